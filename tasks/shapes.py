r"""Turns a row of data into a problem: which columns are recognised, and how their values are read.

    prompt       prompt, problem, question, query, instruction (with `input` after it); else messages or conversations
    answer       answer, final_answer, ground_truth, target, label, reward_model.ground_truth,
                 verification_info.ground_truth; else the last box or the #### of the solution
    solution     solution, rationale, response, output, completion, canonical_solution, gold_standard_solution, code,
                 the first of solutions; else the last message of messages, if those before it are the prompt
    tests        tests, or all of test_list, challenge_test_list and test after test_imports or test_setup_code; inputs
                 and outputs; input_output, and the same in tests, verification_info.test_cases or
                 reward_model.ground_truth
    entry_point  entry_point; else what the solution defines and the tests use
    level        level, difficulty
    split        split

a.b is the entry b of column a, which may be JSON text. If a row has two names of a line with different values, an error
asks which one to use (`--columns prompt=problem,answer=reward_model.ground_truth`). A row with an answer is judged by
it, otherwise by its tests. As an answer, a number becomes its digits, true becomes True, a list its elements separated
by commas (inner lists in brackets), an object with one value that value, any other object its JSON.

Prompts are used unchanged, so they should ask for a \boxed{} answer. Chat messages go through the model's template; the
last one must be the user's. If a prompt does not name the function to write, the row's `starter_code` or the first test
is appended.
"""
import ast
import functools
import json
import math
import re
from dataclasses import dataclass, field
from decimal import Decimal

from support.errors import UserError
from support.text import Chat, turns_of

from .answers import MAX_ANSWER, clean, last_box
from .embedded import Problem
from .files import SPLITS
from .programs import CodeProblem, fenced, program_of
from .specs import check_texts, input_output_spec, limit_of, names_in, tests_spec
from .unit_tests import CannotJudge

NAMES = {
    "prompt": ("prompt", "problem", "question", "query", "instruction"),
    "answer": ("answer", "final_answer", "ground_truth", "target", "label", "reward_model.ground_truth",
               "verification_info.ground_truth"),
    "solution": ("solution", "rationale", "response", "output", "completion", "canonical_solution",
                 "gold_standard_solution", "code", "solutions"),
    "tests": ("tests",),
    "entry_point": ("entry_point",),
    "level": ("level", "difficulty"),
    "split": ("split",)}
MESSAGES = ("messages", "conversations")
ROLES = {"human": "user", "gpt": "assistant", **{role: role for role in ("system", "user", "assistant")}}
FENCED = ("code", "solutions", "gold_standard_solution")  # columns whose programs have no fence
SPELLED = re.compile(r"\s*\[\s*\{\s*['\"](?:role|from|content|value)['\"]")
MARKED = re.compile(r"####[ \t]*(\S.*?)\s*\Z")


def columns_of(text: str | None) -> dict[str, str]:
    """{field: column} of "prompt=problem,answer=reward_model.ground_truth".  Raises UserError."""
    found = {}
    for part in text.split(",") if text else ():
        field, mark, name = (piece.strip() for piece in part.partition("="))
        if field not in NAMES or not mark or not name:
            raise UserError(f"--columns {text!r}: give FIELD=COLUMN,..., where FIELD is one of {', '.join(NAMES)}")
        found[field] = name
    return found


# -------------------------------------------------------------------------------------------------------------- values

def object_in(value):
    """The object that text spells in JSON or Python syntax, else None; values other than text are returned as they
    are."""
    if not isinstance(value, str):
        return value
    for read in (json.loads, ast.literal_eval) if value.lstrip()[:1] in ("{", "[") else ():
        try:
            return read(value.strip())
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            pass
    return None


def at(row: dict, path: str):
    """The value at path a.b of a row, None if there is none."""
    if path in row or "." not in path:
        return row.get(path)
    value = row
    for name in path.split("."):
        value = object_in(value)
        if not isinstance(value, dict):
            return None
        value = value.get(name)
    return value


def as_text(value, field: str) -> str:
    """A value as text, as the docstring of the module describes.  Raises UserError."""
    if isinstance(value, str):
        return value
    if isinstance(value, (float, Decimal)) and not math.isfinite(value):
        raise UserError(f'"{field}" must be finite')
    if value is None or isinstance(value, bytes):
        raise UserError(f'"{field}" must not hold null or bytes')
    if isinstance(value, (list, tuple)):
        parts = [f"({as_text(part, field)})" if isinstance(part, (list, tuple)) else as_text(part, field)
                 for part in value]
        return ", ".join(parts)
    if isinstance(value, dict) and len(value) == 1:
        return as_text(*value.values(), field)
    if isinstance(value, dict):
        try:
            return json.dumps(value, ensure_ascii=False, allow_nan=False, default=lambda part: as_text(part, field))
        except UserError:
            raise
        except ValueError as error:
            raise UserError(f'"{field}" must be finite') from error
    return str(value)


def is_empty(value):
    return value is None or isinstance(value, (str, list, dict)) and len(value) == 0


def marked(text):
    """The text after #### in the last line, None if there is none."""
    match = MARKED.search(text) if "####" in text else None
    return match and match[1]


@functools.lru_cache
def names_among(columns):
    """{field: its names among these columns, a tuple}. Cached, since most rows have the same columns."""
    found = {}
    for kind, names in NAMES.items():
        found[kind] = [name for name in names if name in columns or name.partition(".")[0] in columns]
    return found


class Fields:
    """The fields of a row. Columns come from `columns`, {field: column}, or are recognised by name; `used`, {field:
    {column}}, records them."""

    def __init__(self, row: dict, columns: dict[str, str], used: dict[str, set[str]]):
        self.row = row
        self.columns = columns
        self.used = used

    def note(self, field, column):
        self.used.setdefault(field, set()).add(column)

    def pick(self, field):
        """(column, value) of a field, (None, None) if there is none.  Raises UserError if it is ambiguous."""
        names = names_among(tuple(self.row))[field]
        if field in self.columns:
            names = [self.columns[field]]
        if not names:
            return None, None
        found = {name: at(self.row, name) for name in names}
        full = {name: value for name, value in found.items() if not is_empty(value)}
        if field in ("prompt", "split"):  # an empty one is there, and wrong
            full = full or {name: value for name, value in found.items() if value is not None}
        first, *others = full or [None]
        for other in others:
            if alike(full[first], field) != alike(full[other], field):
                raise UserError(f'"{first}" and "{other}" could both be the {field}: say which one is, e.g. --columns '
                                f"{field}={first}")
        if first is not None:
            self.note(field, first)
        return first, full.get(first)

    def missing(self, field):
        """The error for a missing field."""
        names = ", ".join([name for name, value in self.row.items() if not is_empty(value)][:12])[:200]
        hint = f": it has {names}; say which with --columns {field}=..."
        return UserError(f'"{field}" is missing' + hint * bool(names))


def alike(value, field):
    """Text of a value for comparison: equal texts mean the same."""
    text = as_text(value, field)
    return (field == "answer" and marked(text) or text).strip()


# ------------------------------------------------------------------------------------------------------------ messages

def is_messages(value):
    """Whether a value may be chat messages, or text that spells them."""
    return not isinstance(value, str) or SPELLED.match(value) is not None


def messages_in(value, field):
    """[(role, text)] of chat messages, also if they are spelled as text; None for anything else.  Raises UserError."""
    value = object_in(value) if is_messages(value) else None
    return [turn_of(message, field) for message in value] if isinstance(value, list) else None


def turn_of(message, field):
    """(role, text) of a chat message.  Raises UserError."""
    if not isinstance(message, dict) or not ("role" in message or "from" in message):
        raise UserError(f'"{field}" must be text or a list of chat messages, each with a role and a content')
    role = message.get("role", message.get("from"))
    content = message.get("content", message.get("value"))
    if isinstance(content, list) and all(isinstance(p, dict) and isinstance(p.get("text"), str) for p in content):
        content = "".join(part["text"] for part in content)
    if not isinstance(role, str) or role not in ROLES:
        raise UserError(f'"{field}" has a message of {role!r}: the roles are system, user and assistant')
    if not isinstance(content, str):
        raise UserError(f'"{field}" has a message whose content is no text')
    return ROLES[role], content


def prompt_of(fields):
    """(prompt, last message of the assistant or None) of a row.  Raises UserError."""
    column, value = fields.pick("prompt")
    if value is None:
        column = next((name for name in MESSAGES if not is_empty(fields.row.get(name))), None)
        if column is None:
            raise fields.missing("prompt")
        value = fields.row[column]
        fields.note("prompt", column)
    name = column if column in MESSAGES else "prompt"
    turns = messages_in(value, name)
    said = None
    if turns and turns[-1][0] == "assistant" and column in MESSAGES:
        said = turns.pop()[1]
    if turns:
        if turns[-1][0] != "user":
            raise UserError(f'the last message of "{name}" must be the user\'s, not one of {turns[-1][0]}')
        value = Chat(turns)
    elif turns is not None:
        raise UserError(f'"{name}" must not be empty')
    if not isinstance(value, str) or turns is None and column in MESSAGES:
        raise UserError(f'"{name}" must be {"text or " * (name == "prompt")}a list of chat messages')
    more = fields.row.get("input")
    if column == "instruction" and isinstance(more, str) and more.strip():
        value = extended(value, more)
    if not value.strip():
        raise UserError('"prompt" and "answer" must not be empty')
    return value, said


def extended(prompt, text):
    """A prompt with text appended to its last message."""
    *turns, (role, last) = turns_of(prompt)
    last = f"{last}\n\n{text}"
    return Chat([*turns, (role, last)]) if isinstance(prompt, Chat) else last


# ------------------------------------------------------------------------------------------------------------ problems

def solution_of(fields, prompt, said):
    """(column, gold completion) of a row, (None, None) if there is none.  said: the assistant's last message in the
    messages that the prompt comes from.  Raises UserError."""
    column, value = fields.pick("solution")
    if value is None:
        said = said or answer_in_messages(fields.row, prompt)
        if said is not None:
            fields.note("solution", "the last message")
        return None, said
    several = object_in(value)
    if isinstance(several, list) and isinstance(several[0] if several else None, dict) and is_messages(value):
        value = messages_in(several, column)[-1][1]
    elif isinstance(several, list) and (column == "solutions" or isinstance(value, list)):
        value = several[0] if several else None
    if value is not None and not isinstance(value, str):
        raise UserError(f'"{column}" must be text')
    return column, value


def answer_in_messages(row, prompt):
    """The assistant's last message if the messages before it are the prompt, else None."""
    try:
        *before, (role, last) = messages_in(row.get("messages"), "messages") or [("", None)]
    except UserError:
        return None
    return last if role == "assistant" and before == [*turns_of(prompt)] else None


def answer_of(fields, solution):
    """(answer or None, solution) of a row.  Raises UserError."""
    _, value = fields.pick("answer")
    if value is not None:
        text = as_text(value, "answer")
        found = marked(text)
        if found and solution is None and not text.lstrip().startswith("####"):
            solution = text
        return found or text, solution
    found = solution and (last_box(solution) or marked(solution))
    if found:
        fields.note("answer", "the last box or #### of the solution")
    return found or None, solution


def problem_of(row: dict, name: str, columns: dict[str, str] | None = None, used: dict[str, set[str]] | None = None
               ) -> tuple[Problem, str | None]:
    """(Problem with id `name`, split or None) of a row. The answer is None if the row has only a solution.  columns:
    {field: column} given by the user; used: {field: columns used so far}, updated.  Raises UserError without the place
    of the row, CannotJudge if the row must be left out."""
    fields = Fields(row, columns or {}, {} if used is None else used)
    prompt, said = prompt_of(fields)
    column, solution = solution_of(fields, prompt, said)
    level = level_of(fields)
    split = split_of(fields)
    named = fields.columns.keys()
    tests = None
    if "answer" not in named and (row.get("answer") is None or "tests" in named):
        tests = tests_in(row, fields.columns)
    if tests:
        if solution and column in FENCED and "```" not in solution:
            solution = fenced(solution.replace("\r", ""))
        prompt, spec = judged_by(fields, prompt, solution, *tests)
        return CodeProblem(name, prompt, json.dumps({**spec, "typing": True}), solution, level), split
    answer, solution = answer_of(fields, solution)
    if answer is None and solution is None:
        raise fields.missing("answer")
    if answer is not None and not clean(answer):
        raise UserError(f'"prompt" and "answer" must not be empty, nor the answer longer than {MAX_ANSWER} characters')
    return Problem(name, prompt, answer, solution, level), split


@dataclass(frozen=True)
class RowProblem(Problem):
    """A problem with its row, for the user's own reward function (reward.py)."""
    row: dict = field(default_factory=dict, hash=False)


def row_problem(row: dict, name: str, columns: dict[str, str] | None = None, used: dict[str, set[str]] | None = None
                ) -> tuple[RowProblem, str | None]:
    """`problem_of` for the user's own reward function: a RowProblem, which needs only a prompt."""
    columns = dict(columns or {})
    if row.get("answer") is not None:  # other columns reach the function under their own names
        columns.setdefault("answer", "answer")
    fields = Fields(row, columns, {} if used is None else used)
    prompt, said = prompt_of(fields)
    _, solution = solution_of(fields, prompt, said)
    level = level_of(fields)
    split = split_of(fields)
    answer, solution = answer_of(fields, solution)
    return RowProblem(name, prompt, answer, solution, level, row), split


def level_of(fields):
    _, value = fields.pick("level")
    if isinstance(value, (bool, list, dict)):
        raise UserError('"level" must be text or a number')
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return None if value is None else as_text(value, "level").removeprefix("Level ")  # as MATH has it


def split_of(fields):
    """The split stated in a row, None if there is none.  Raises UserError."""
    _, value = fields.pick("split")
    if value is not None and not isinstance(value, str):
        raise UserError('"split" must be text')
    if value is not None and value not in SPLITS:
        raise UserError(f'"split" must be train, valid or test, not {value!r}')
    return SPLITS.get(value)


# --------------------------------------------------------------------------------------------------------------- tests

def tests_in(row, columns):
    """(column, kind, value) of the tests of a row, None if it has none. Kinds: "asserts", "texts" (inputs and outputs),
    "io" (inputs and outputs as in APPS and TACO)."""
    column = columns.get("tests", "tests")
    if "tests" in columns or row.get("tests") is not None:
        cases = cases_in(at(row, column))
        return column, "io" if cases else "asserts", cases or at(row, column)
    if row.get("inputs") is not None:
        return "inputs and outputs", "texts", (row["inputs"], row.get("outputs"))
    if row.get("input_output") is not None:
        return "input_output", "io", object_in(row["input_output"])
    for column in ("verification_info.test_cases", "reward_model.ground_truth"):
        value = at(row, column)
        cases = cases_in(value)
        if cases:
            return column, "io", cases
        if value and column.endswith("test_cases"):
            raise TypeError(f"{column} are no test cases")
    names = [name for name in ("test_list", "challenge_test_list", "test") if row.get(name)]
    parts = [row.get(name) or [] for name in ("test_imports", "test_setup_code", *names)]
    lines = [line for part in parts for line in ([part] if isinstance(part, str) else part)]
    if not names or not all(isinstance(line, str) for line in lines):
        return None
    return " and ".join(names), "asserts", "\n".join(lines) + "\n"


def cases_in(value):
    """{"inputs", "outputs"[, "fn_name"]} from a value or JSON text in this form, or in that of a list of {"input",
    "output"[, "fn_name"]}, as in open-r1, LiveCodeBench and DeepCoder; None for anything else."""
    value = object_in(value)
    if isinstance(value, list) and value and all(isinstance(case, dict) for case in value):
        name = value[0].get("fn_name") or at(value[0], "metadata.func_name")
        sides = {f"{side}s": [case.get(side) for case in value] for side in ("input", "output")}
        return {**sides, "fn_name": name}
    return value if isinstance(value, dict) and {"inputs", "outputs"} <= value.keys() else None


def judged_by(fields, prompt, solution, column, kind, tests):
    """(prompt, spec of the tests) of a row. If the prompt does not name what to write, the starter code or the first
    test is appended.  Raises UserError, CannotJudge."""
    row = fields.row
    fields.note("tests", column)
    for answer in NAMES["answer"]:
        if kind != "io" and isinstance(at(row, answer), (str, int, float)) and "tests" not in fields.columns:
            raise UserError(f'"{answer}" and its tests could both be meant to judge it: say --columns answer={answer}, '
                            f"or leave {answer} out")
    code = program_of(solution) if solution else ""
    entry = at(row, fields.columns.get("entry_point", "entry_point"))
    hint = as_text(row.get("starter_code") or "", "starter_code")
    if kind == "io":
        spec, entry = by_io(row, tests)
    elif kind == "texts":
        spec = {"inputs": check_texts(*tests), "outputs": tests[1], "limit": limit_of(row)}
    else:
        names = [] if entry else defined(tests, code)
        entry = names[-1] if names else entry
        spec = tests_spec(tests, entry, turns_of(prompt)[-1][1], solution)
        spec = {**spec, "limit": limit_of(row)}
        spec["names"] |= {name: name for name in names[:-1]}
        shown = row.get("test_list") if "test_list" in column else None
        if not hint and isinstance(shown, list):
            hint = f"Your code should pass this test:\n{shown[0]}"
    if isinstance(entry, str) and hint and not re.search(rf"\b{re.escape(entry)}\b", prompt):
        prompt = extended(prompt, hint)
    return prompt, spec


def defined(tests, code):
    """Names that a solution defines and its tests (text or list of lines) use; [] if either is invalid Python."""
    try:
        return names_in(tests if isinstance(tests, str) else "\n".join(tests), code)
    except (TypeError, ValueError, SyntaxError, RecursionError, MemoryError):
        return []


def by_io(row, io):
    """(spec, function name or None) of input_output as in APPS and TACO.  Raises CannotJudge if it has no usable
    tests."""
    limit = limit_of(row, words=True)
    try:
        sides = io["inputs"], io["outputs"]
        if not all(isinstance(side, list) for side in sides) or not isinstance(io.get("fn_name") or "", str):
            raise TypeError
        spec = input_output_spec(io, limit)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise CannotJudge("it has no inputs and outputs that can be read") from error
    if spec is None or len(sides[0]) != len(sides[1]):
        raise CannotJudge("it has no inputs and outputs, or not as many of both")
    return spec, io.get("fn_name")
