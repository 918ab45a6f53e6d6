"""Specs of tests: converts the forms in which rows of data hold tests into what a sandbox worker is given."""
import ast
import json
import re
import sys

from support.errors import UserError

from .programs import DEFINITION, prefix_of, stub, unfinished
from .unit_tests import CannotJudge, prepare

LIMIT = 3.0  # default: seconds of CPU for all tests of a function, or for one input of a program
MAX_TESTS = 50  # per problem
MAX_TEST_TEXT = 300_000  # characters of inputs and outputs per problem
ENTRY = r"[^\W\d]\w*(\(\)\.[^\W\d]\w*)?"  # name, or Class().method
EITHER = "Solution().{0} if 'Solution' in globals() else {0}"  # what is called, as in the graders of APPS and TACO
SAME = """
from math import inf, isclose, nan
def same(value, wanted):
    if isinstance(wanted, list):
        return isinstance(value, (list, tuple)) and len(value) == len(wanted) and all(map(same, value, wanted))
    if isinstance(wanted, dict):
        alike = isinstance(value, dict) and value.keys() == wanted.keys()
        return alike and all(same(value[key], wanted[key]) for key in wanted)
    if isinstance(wanted, float) and isinstance(value, (int, float)):
        return isclose(value, wanted, rel_tol=1e-6, abs_tol=1e-6) or value != value and wanted != wanted
    return value == wanted
def numbered(value):  # keys that are numbers are text in JSON
    if isinstance(value, dict) and all(str(key).removeprefix("-").isdecimal() for key in value):
        return {int(key): part for key, part in value.items()}
    return value
def right(value, wanted):
    inside = wanted[0] if isinstance(wanted, list) and len(wanted) == 1 else wanted
    return same(value, wanted) or same(value, inside) or same(value, numbered(inside))
"""


def stdio_spec(inputs: list[str], outputs: list[str], limit: float) -> dict | None:
    """The spec of a program, limited to MAX_TESTS and MAX_TEST_TEXT; None without tests."""
    size = 0
    kept_inputs = []
    kept_outputs = []
    for given, wanted in zip(inputs, outputs):
        size += len(given) + len(wanted)
        if len(kept_inputs) < MAX_TESTS and size <= MAX_TEST_TEXT:
            kept_inputs.append(given)
            kept_outputs.append(wanted)
    if not kept_inputs:
        return None
    return {"inputs": kept_inputs, "outputs": kept_outputs, "limit": limit}


def input_output_spec(tests: dict, limit: float) -> dict | None:
    """The spec of {"inputs", "outputs"[, "fn_name"]}, as in APPS and TACO; None without tests. The tests call a
    function, or a method of Solution if the program has that class."""
    name = tests.get("fn_name")
    if not name:
        inputs = [lines_of(x) for x in tests["inputs"]]
        outputs = [lines_of(x) for x in tests["outputs"]]
        return stdio_spec(inputs, outputs, limit)
    cases = []
    for given, wanted in zip(tests["inputs"], tests["outputs"]):
        arguments, wanted = arguments_of(given, wanted)
        cases.append(f"assert right(candidate({arguments}), {wanted!r})")
    if not cases:
        return None
    source = SAME + "\n".join(cases[:MAX_TESTS])
    names = {"candidate": EITHER.format(name)}
    return {"tests": source, "names": names, "prefix": "", "limit": limit, "typing": True}


def arguments_of(given, wanted):
    """(source of the arguments, expected value) of a call. Text with one JSON value per line is a list of arguments, as
    in LiveCodeBench, and the expected value is JSON too; any other text is itself the argument."""
    if isinstance(given, list):
        texts = [repr(argument) for argument in given]
        if given and isinstance(given[0], dict):
            texts[0] = f"numbered({texts[0]})"
        return ", ".join(texts), wanted
    try:
        arguments = [json.loads(line) for line in given.strip().split("\n")]
        return ", ".join(map(repr, arguments)), json.loads(wanted) if isinstance(wanted, str) else wanted
    except (AttributeError, ValueError):
        return repr(given), wanted


def lines_of(value):
    """Text that a program reads or prints; some data sets store a number or a list of lines instead."""
    if isinstance(value, (int, float)):
        return str(value)
    return "\n".join(map(str, value)) if isinstance(value, list) else value


def names_in(tests: str, code: str, setup: str = "") -> list[str]:
    """Names that `code` defines and the tests use, in the order of the code.  Raises SyntaxError."""
    everything = ast.walk(ast.parse(tests))
    used = {node.id for node in everything if isinstance(node, ast.Name)}
    body = ast.parse(code).body
    defined = [node.name for node in body if isinstance(node, (ast.FunctionDef, ast.ClassDef))]
    return [name for name in defined if name in used or name in setup]


def check_imports(prefix):
    """Raises CannotJudge if the beginning of a program imports a module that is not in the sandbox."""
    for node in ast.walk(ast.parse(stub(prefix))):
        modules = [getattr(node, "module", None) or ""]
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        for module in modules:
            name = module.partition(".")[0]
            if name and name not in sys.stdlib_module_names:
                raise CannotJudge(f"its prompt imports {name}, which no program can")


def limit_of(row: dict, words: bool = False) -> float:
    """The time limit of a row in seconds; words: it may be text like "2.0 seconds".  Raises UserError."""
    limit = row.get("time_limit")
    if words:
        found = re.match(r"\s*([0-9]+(?:\.[0-9]+)?)", str(limit or ""))
        limit = float(found[1]) if found else None
    if limit is None:
        return LIMIT
    number = isinstance(limit, (int, float)) and not isinstance(limit, bool)
    if not number or not 0 < limit <= 3600:
        raise UserError('"time_limit" must be a number of seconds, more than 0 and at most 3600')
    return float(limit)


def check_texts(inputs, outputs) -> list[str]:
    """The inputs of a program.  Raises UserError unless inputs and outputs are lists of text of equal length."""
    if not is_texts(inputs) or not is_texts(outputs) or len(inputs) != len(outputs):
        raise UserError('"inputs" and "outputs" must be lists of text of one length, and not empty')
    return inputs


def is_texts(value):
    """Whether a value is a non-empty list of strings."""
    return isinstance(value, list) and bool(value) and all(isinstance(text, str) for text in value)


def tests_spec(tests: str | list[str], name: str | None, prompt: str, solution: str | None) -> dict:
    """The spec of tests of the function or class `name`, without the fields that all specs share.  Raises UserError,
    CannotJudge."""
    source = "\n".join(tests) if is_texts(tests) else tests
    if not isinstance(source, str) or not source.strip():
        raise UserError('"tests" must be Python source, or a list of lines of it, and not empty')
    if not isinstance(name, str) or not re.fullmatch(ENTRY, name):
        raise UserError('"entry_point" must be the name of the function or class that is tested, or Class().method')
    try:
        source, names = prepare(source, name)
    except CannotJudge:
        raise
    except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
        raise UserError('"tests" is not valid Python') from error
    entry = name.partition("(")[0]
    prefix = prefix_of(prompt, entry)
    if not prefix and unfinished(prompt):
        raise CannotJudge(f"its prompt begins {unfinished(prompt)}, its entry_point is {name}")
    check_entry(entry, str(tests), prompt, solution or "")
    check_imports(prefix)
    return {"tests": source, "names": names, "prefix": prefix}


def check_entry(name, tests, prompt, solution):
    """Raises UserError if the entry point of a row occurs nowhere in it, or is not what its solution defines."""
    if not any(re.search(rf"\b{name}\b", text) for text in (tests, prompt, solution)):
        raise UserError(f'"entry_point" {name!r} is in neither "tests" nor "prompt" nor "solution": what is tested?')
    other = re.search(rf"^[ \t]*{DEFINITION}", solution, re.MULTILINE) and not re.search(rf"\b{name}\b", solution)
    if other and not re.search(rf"^[ \t]*{DEFINITION}{name}\b", prompt, re.MULTILINE):
        raise UserError(f'"entry_point" {name!r} is not what "solution" defines')
