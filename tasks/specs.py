"""Tests of programs in rows of data: what the worker of a program is told, from the shapes in which rows hold tests."""
import ast
import json
import re
import sys

from support.errors import UserError

from .programs import DEFINITION, prefix_of, stub, unfinished
from .unit_tests import CannotJudge, prepare

LIMIT = 3.0  # seconds of CPU for all tests of a function or one input of a program, where the data set does not say
MAX_TESTS, MAX_TEST_TEXT = 50, 300_000  # of one problem: inputs, and characters of inputs and outputs
SAME = """
def plain(value):
    return [plain(x) for x in value] if isinstance(value, (list, tuple)) else value
def same(value, wanted):
    return plain(value) == wanted or isinstance(wanted, list) and wanted and plain(value) == wanted[0]
"""


def stdio_spec(inputs, outputs, limit):
    """The spec of a program, its tests cut to MAX_TESTS and MAX_TEST_TEXT; None if there are none."""
    kept, size = [], 0
    for given, wanted in zip(inputs, outputs):
        size += len(given) + len(wanted)
        if len(kept) < MAX_TESTS and size <= MAX_TEST_TEXT:
            kept.append((given, wanted))
    return {"inputs": [i for i, _ in kept], "outputs": [o for _, o in kept], "limit": limit} if kept else None


def input_output_spec(tests, shown, limit):
    """The spec of {"inputs", "outputs"[, "fn_name"]}, as APPS and TACO have them; None if there are no tests.  shown:
    the beginning of the program, or a right one, which says whether the function is a method of Solution."""
    name = tests.get("fn_name")
    if not name:
        inputs, outputs = (["\n".join(map(str, x)) if isinstance(x, list) else x for x in tests[side]]
                           for side in ("inputs", "outputs"))
        return stdio_spec(inputs, outputs, limit)
    entry = f"Solution().{name}" if "class Solution" in shown else name
    cases = [f"assert same(candidate(*{args if isinstance(args, list) else [args]!r}), {wanted!r})"
             for args, wanted in zip(tests["inputs"], tests["outputs"])][:MAX_TESTS]
    return {"tests": SAME + "\n".join(cases), "names": {"candidate": entry}, "prefix": "", "limit": limit,
            "typing": True} if cases else None


def names_in(tests, code, setup=""):
    """What `code` defines and the tests use, in the order of the code.  Raises SyntaxError."""
    used = {node.id for node in ast.walk(ast.parse(tests)) if isinstance(node, ast.Name)}
    defined = [node.name for node in ast.parse(code).body if isinstance(node, (ast.FunctionDef, ast.ClassDef))]
    return [name for name in defined if name in used or name in setup]


def check_imports(prefix):
    """Raises CannotJudge if the beginning of a program imports what no program finds in the sandbox."""
    for node in ast.walk(ast.parse(stub(prefix))):
        modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [
            getattr(node, "module", None) or ""]
        for module in modules:
            name = module.partition(".")[0]
            if name and name not in sys.stdlib_module_names:
                raise CannotJudge(f"its prompt imports {name}, which no program can")


def limit_of(row):
    """The time limit of a row in seconds.  Raises UserError."""
    limit = row.get("time_limit", LIMIT)
    if isinstance(limit, bool) or not isinstance(limit, (int, float)) or not 0 < limit <= 3600:
        raise UserError('"time_limit" must be a number of seconds, more than 0 and at most 3600')
    return float(limit)


def code_answer(row):
    """The answer of a CodeProblem from a row {"tests", "entry_point"} or {"inputs", "outputs"}.  Raises UserError,
    CannotJudge if it is to be left out."""
    limit = limit_of(row)
    if "tests" in row:
        tests, name = row["tests"], row.get("entry_point")
        if isinstance(tests, list) and all(isinstance(test, str) for test in tests):
            tests = "\n".join(tests)
        if not isinstance(tests, str) or not tests.strip():
            raise UserError('"tests" must be Python source, or a list of lines of it, and not empty')
        if not isinstance(name, str) or not re.fullmatch(r"[^\W\d]\w*(\(\)\.[^\W\d]\w*)?", name):
            raise UserError('"entry_point" must be the name of the function or class that is tested, or Class().method')
        try:
            tests, names = prepare(tests, name)
        except CannotJudge:
            raise
        except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
            raise UserError('"tests" is not valid Python') from error
        entry = name.partition("(")[0]
        prompt = row["prompt"] if isinstance(row.get("prompt"), str) else ""
        prefix = prefix_of(prompt, entry)
        if not prefix and unfinished(prompt):
            raise CannotJudge(f"its prompt begins {unfinished(prompt)}, its entry_point is {name}")
        check_entry(entry, str(row["tests"]), row.get("prompt"), row.get("solution"))
        check_imports(prefix)
        return json.dumps({"tests": tests, "names": names, "prefix": prefix, "limit": limit, "typing": True})
    inputs, outputs = row.get("inputs"), row.get("outputs")
    if any(not isinstance(side, list) or not side or not all(isinstance(text, str) for text in side)
           for side in (inputs, outputs)) or len(inputs) != len(outputs):
        raise UserError('"inputs" and "outputs" must be lists of text of one length, and not empty')
    return json.dumps({"inputs": inputs, "outputs": outputs, "limit": limit, "typing": True})


def check_entry(name, tests, prompt, solution):
    """Whether anything in a row of code speaks of its entry point.  Raises UserError if it is the name of nothing."""
    def named(text):
        return isinstance(text, str) and re.search(rf"\b{name}\b", text)
    if not named(tests) and not named(prompt) and not named(solution):
        raise UserError(f'"entry_point" {name!r} is in neither "tests" nor "prompt" nor "solution": what is tested?')
    defined = rf"^[ \t]*{DEFINITION}"
    if (isinstance(solution, str) and re.search(defined, solution, re.MULTILINE) and not named(solution)
            and not (isinstance(prompt, str) and re.search(rf"{defined}{name}\b", prompt, re.MULTILINE))):
        raise UserError(f'"entry_point" {name!r} is not what "solution" defines')
