"""Code says one thing at a time: few tokens to a line, short statements, short functions.

`python tests/test_density.py` prints the figures of every module, and the table of exceptions as it would be; with
--where also the places. Counted are the tokens NAME, OP, NUMBER and STRING of `tokenize`, an f-string being one;
annotations, docstrings and comments are not. A line of code is a line on which a counted token starts that is neither a
bracket nor a comma. Tables of constants, which are assignments of literals at the top level of a module, count as
nothing. How many ways lead through a function is held by ruff (test_lint.py)."""
import ast
import io
import math
import os
import subprocess
import sys
import tokenize
from typing import NamedTuple

import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
READ = {"ppo_passk.py", "bon_sft.py", "bon_rl.py", "cat_passk.py", "cat_majority.py", "cat_bon.py", "fit_verifier.py",
        "common.py"}
AROUND = ("evaluate.py", "support/", "fast/", "tasks/")
TOKENS = {tokenize.NAME, tokenize.OP, tokenize.NUMBER, tokenize.STRING}
OPENS = getattr(tokenize, "FSTRING_START", None)  # from Python 3.12 on an f-string is several tokens
CLOSES = getattr(tokenize, "FSTRING_END", None)


class Figures(NamedTuple):
    density: float  # tokens per line of code
    statements: int = 0  # of more than 40 tokens, outside parser()
    conditions: int = 0  # conditional expressions inside another
    functions: int = 0  # of more than 60 lines without the docstring


# Files that do not keep the general caps: their figures are their caps, and may only shrink.
ABOVE = {}


def general(path):
    """The caps that a file is held to; None: it is held to none."""
    if path in READ:
        return Figures(10.0)
    return Figures(11.0) if path.startswith(AROUND) else None


def files():
    listed = subprocess.run(["git", "-C", ROOT, "ls-files", "*.py"], capture_output=True, text=True, check=True)
    return [path for path in listed.stdout.split() if os.path.exists(os.path.join(ROOT, path))]


def source(path):
    with open(os.path.join(ROOT, path), encoding="utf-8") as file:
        return file.read()


def start(node):
    return node.lineno, node.col_offset


def end(node):
    return node.end_lineno, node.end_col_offset


def docstring(node):
    """The statement that is the docstring of a module, class or function; None if it has none."""
    documented = isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))
    if documented and ast.get_docstring(node, clean=False) is not None:
        return node.body[0]
    return None


def table(node):
    """Whether a statement assigns a collection of constants."""
    if not isinstance(node, ast.Assign) or not isinstance(node.value, (ast.Dict, ast.List, ast.Set, ast.Tuple)):
        return False
    try:
        ast.literal_eval(node.value)
    except (ValueError, TypeError):
        return False
    return True


def left_out(tree):
    """-> (ranges of annotations, ranges of docstrings and tables), each (first position, position after the last)."""
    annotations = []
    for node in ast.walk(tree):
        for name in ("annotation", "returns"):
            if getattr(node, name, None):
                annotations.append(getattr(node, name))
    others = [docstring(node) for node in ast.walk(tree) if docstring(node)]
    others += [node for node in tree.body if table(node)]
    return [[(start(node), end(node)) for node in nodes] for nodes in (annotations, others)]


def f_strings_are_one(tokens):
    """The tokens, without those inside of an f-string."""
    depth = 0
    for token in tokens:
        if token.type == CLOSES and CLOSES is not None:
            depth -= 1
        elif depth == 0:
            yield token
        if token.type == OPENS and OPENS is not None:
            depth += 1


def counted(text, tree):
    """-> [(position, string)] of the counted tokens; as in ast, columns are bytes."""
    annotations, others = left_out(tree)
    lines = text.split("\n")
    found = []
    for token in f_strings_are_one(tokenize.generate_tokens(io.StringIO(text).readline)):
        if token.type not in TOKENS | {OPENS}:
            continue
        line, column = token.start
        position = line, len(lines[line - 1][:column].encode())
        if inside(position, others):
            continue
        if any(position == first for first, _ in annotations):
            found.pop()  # the colon or arrow before it
        if not inside(position, annotations):
            found.append((position, token.string))
    return found


def inside(position, ranges):
    return any(first <= position < last for first, last in ranges)


def header(node):
    """The range of a statement, without the statements inside of it."""
    body = getattr(node, "body", None) or getattr(node, "cases", None)
    if isinstance(body, list):
        first = body[0].pattern if isinstance(body[0], ast.match_case) else body[0]
        return start(node), start(first)
    return start(node), end(node)


def within(tokens, first, last):
    return sum(first <= position < last for position, _ in tokens)


def lines_of(node):
    """Lines of a function, without its docstring."""
    written = docstring(node)
    return node.end_lineno - node.lineno + 1 - (written.end_lineno - written.lineno + 1 if written else 0)


def statements(tree):
    """Every statement but those of a function parser()."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef) and node.name == "parser":
            continue
        if isinstance(node, ast.stmt) and not table(node):
            yield node
        yield from statements(node)


def examine(text):
    """-> (Figures, lines of code, where the figures are from: [(line, what)])."""
    tree = ast.parse(text)
    tokens = counted(text, tree)
    lines = {position[0] for position, string in tokens if string not in "()[]{},"}
    where = []
    sizes = {start(node): within(tokens, *header(node)) for node in statements(tree)}
    long = [place for place, size in sizes.items() if size > 40]
    where += [(place[0], f"{sizes[place]} tokens") for place in long]
    nested = [node for node in ast.walk(tree) if isinstance(node, ast.IfExp)
              and any(isinstance(inner, ast.IfExp) and inner is not node for inner in ast.walk(node))]
    where += [(node.lineno, "a condition in a condition") for node in nested]
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and lines_of(node) > 60]
    where += [(node.lineno, f"{node.name}: {lines_of(node)} lines") for node in functions]
    density = len(tokens) / max(1, len(lines))
    return Figures(density, len(long), len(nested), len(functions)), len(lines), where


def exceeds(figures, cap):
    return any(value > most for value, most in zip(figures, cap, strict=True))


EXAMPLE = '''"""Not counted."""
TABLE = {"not": 1,
         "counted": 2}


def function(a: dict[str, int], b=1) -> int:  # 10 tokens
    """Not counted."""
    x = f"{a} is {b + 1} one {f'{a}'}"  # 3
    call(
        "ä", x)  # 2 and 4
    y: int = 1  # 3
    return (1 if a else
            2 if b else 3)  # 6 and 6
'''


def test_what_is_counted():
    """The example has 10 + 3 + 2 + 4 + 3 + 6 + 6 tokens on 7 lines of code."""
    figures, lines, where = examine(EXAMPLE)
    assert lines == 7
    assert figures == (34 / 7, 0, 1, 0) and where == [(12, "a condition in a condition")]


def test_what_is_too_long():
    call = "f(" + ", ".join("abcdefghijklmnopqrs") + ")"  # 2 + 37 + 1 tokens
    assert examine(call)[0].statements == 0
    assert examine(f"-{call}")[0].statements == 1
    assert examine(f"if -{call}:\n    pass")[0].statements == 1
    assert examine(f"def parser():\n    return -{call}")[0].statements == 0
    assert examine("if x:\n" + "    f(x)\n" * 20)[0].statements == 0
    body = '    """Three\n    lines\n    of docstring."""\n' + "    pass\n" * 59
    assert examine(f"def f():\n{body}")[0].functions == 0
    assert examine(f"def f():\n{body}    pass\n")[0].functions == 1


@pytest.mark.parametrize("path", [path for path in files() if general(path)])
def test_density(path):
    figures, _, where = examine(source(path))
    cap = ABOVE.get(path, general(path))
    assert not exceeds(figures, cap), (path, figures, cap, where)


def test_the_table_of_exceptions_is_true():
    """A file that keeps the general caps has no place in the table."""
    for path in ABOVE:
        assert exceeds(examine(source(path))[0], general(path)), f"{path} may leave the table"


def main():
    total = 0
    above = []
    print(f"{'file':<26} {'tokens/line':>11} {'lines':>6} {'statements':>11} {'conditions':>11} {'functions':>10}")
    for path in files():
        if path.startswith("tests/"):
            continue
        figures, lines, where = examine(source(path))
        total += lines
        if general(path) and exceeds(figures, general(path)):
            above.append((path, figures))
        print(f"{path:<26} {figures.density:>11.1f} {lines:>6} {figures.statements:>11} {figures.conditions:>11} "
              f"{figures.functions:>10}")
        if "--where" in sys.argv:
            for line, what in sorted(where):
                print(f"    {path}:{line} {what}")
    print(f"{total} lines of code outside tests/\n\nABOVE = {{")
    for path, figures in above:
        density = max(general(path).density, math.ceil(figures.density * 10) / 10)
        print(f"    {path!r}: {figures._replace(density=density)},".replace("'", '"'))
    print("}")


if __name__ == "__main__":
    main()
