"""The exception for mistakes of the user, shared by all modules."""


class UserError(ValueError):
    """Invalid user input (flag, file, model). The message says in one sentence what is wrong and what to do."""
