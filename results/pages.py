"""What the pages of results/ are written with: Markdown tables, means with their spread or interval, lines of 120
characters."""
import re
import statistics
import textwrap


def table(columns, rows):
    """Markdown: names of columns, and rows of as many texts."""
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def spread(values, digits=3):
    """Mean ± standard deviation of numbers, one per seed; of a single one itself, of none nothing."""
    if not values:
        return ""
    text = f"{statistics.mean(values):.{digits}f}"
    if len(values) > 1:
        text += f" ±{statistics.stdev(values):.{digits}f}"
    return text


def number(x):
    """With its sign, three digits behind the point and no 0 before it."""
    return re.sub(r"^([+-])0\.", r"\1.", f"{x:+.3f}")


def with_interval(mean, low, high):
    """A difference with its interval, where there are any."""
    if mean is None:
        return ""
    return number(mean) if low is None else f"{number(mean)} [{number(low)}, {number(high)}]"


def paragraph(text):
    """Its lines, and an empty one."""
    return [*wrapped(text), ""]


def wrapped(text, indent=""):
    """The lines of a paragraph; `indent` before all but the first."""
    return textwrap.wrap(text, 120, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
