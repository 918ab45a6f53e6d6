"""Helpers for the generated pages of results/: Markdown tables, means with spread or interval, line wrapping at 120."""
import re
import statistics
import textwrap


def table(columns, rows):
    """A Markdown table from column names and rows of strings."""
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def spread(values, digits=3):
    """Mean ± standard deviation of values, one per seed. A single value has no ±; without values the text is empty."""
    if not values:
        return ""
    text = f"{statistics.mean(values):.{digits}f}"
    if len(values) > 1:
        text += f" ±{statistics.stdev(values):.{digits}f}"
    return text


def number(x):
    """Signed, with three decimals and no leading 0: +.012."""
    return re.sub(r"^([+-])0\.", r"\1.", f"{x:+.3f}")


def with_interval(mean, low, high):
    """A mean with its interval; without the interval if low is None, empty if mean is None."""
    if mean is None:
        return ""
    return number(mean) if low is None else f"{number(mean)} [{number(low)}, {number(high)}]"


def paragraph(text):
    """The wrapped lines of a paragraph and an empty line."""
    return [*wrapped(text), ""]


def wrapped(text, indent=""):
    """The wrapped lines of a text, all but the first indented by `indent`."""
    return textwrap.wrap(text, 120, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
