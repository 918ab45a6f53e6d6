"""The one error that all parts share."""


class UserError(ValueError):
    """A mistake in what the user gave (flag, file, model). Its message is one sentence: what is wrong, what to do."""
