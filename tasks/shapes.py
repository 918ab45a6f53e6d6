r"""What the columns of a row are, and what they say as a problem.

    prompt       prompt, problem, question, query, instruction (with `input` after it); else messages or conversations
    answer       answer, final_answer, ground_truth, target, label, reward_model.ground_truth,
                 verification_info.ground_truth; else the last box or the #### of the solution
    solution     solution, rationale, response, output, completion, canonical_solution, gold_standard_solution, code,
                 the first of solutions; else the last message of messages, if those before it are the prompt
    tests        tests, or all of test_list, challenge_test_list and test after test_imports or test_setup_code; inputs
                 and outputs; input_output; verification_info.test_cases
    entry_point  entry_point; else what the solution defines and the tests use
    level        level, difficulty
    split        split

a.b is the column b inside of a, which may be JSON in a text. Where two names of a line are there with different values,
a sentence asks which one is meant (`--columns prompt=problem,answer=reward_model.ground_truth`). A row with an answer
is judged by that, else by its tests. In an answer a number is its digits, true is True, a list its elements with commas
between them (inner lists in brackets), an object of one value that value, any other its JSON.

A prompt is used as it is, so let it ask for a \boxed{} answer. Chat messages go through the model's template as they
are; the last one is the user's. A prompt that does not name the function to write gets the `starter_code` of its row,
or the first test.
"""
import ast
import json
import math
import re
from dataclasses import dataclass, field

from support.errors import UserError
from support.text import Chat, turns_of

from .answers import MAX_ANSWER, has_answer, last_box
from .embedded import Problem
from .files import SPLITS
from .programs import CodeProblem, fenced, program_of
from .specs import LIMIT, code_answer, input_output_spec, names_in
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
PLACES = {field: [(name, name.partition(".")[0]) for name in names] for field, names in NAMES.items()}
MESSAGES = ("messages", "conversations")
ROLES = {"human": "user", "gpt": "assistant", **{role: role for role in ("system", "user", "assistant")}}
FENCED = ("code", "solutions", "gold_standard_solution")  # solutions that are programs without a fence
MARKED = re.compile(r"####[ \t]*(\S.*?)\s*\Z")


def columns_of(text):
    """{field: column} of "prompt=problem,answer=reward_model.ground_truth".  Raises UserError."""
    found = {}
    for part in (text or "").split(",") if text else ():
        field, mark, name = (piece.strip() for piece in part.partition("="))
        if field not in NAMES or not mark or not name:
            raise UserError(f"--columns {text!r}: give FIELD=COLUMN,..., where FIELD is one of {', '.join(NAMES)}")
        found[field] = name
    return found


# -------------------------------------------------------------------------------------------------------------- values

def object_in(value):
    """What JSON, or Python's spelling of it, in a text stands for; of another value itself. None where it is neither.
    """
    if not isinstance(value, str):
        return value
    for read in (json.loads, ast.literal_eval) if value.lstrip()[:1] in ("{", "[") else ():
        try:
            return read(value.strip())
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            pass
    return None


def at(row, path):
    """The value at a.b of a row, None if there is none."""
    if path in row or "." not in path:
        return row.get(path)
    value = row
    for name in path.split("."):
        value = object_in(value)
        if not isinstance(value, dict):
            return None
        value = value.get(name)
    return value


def as_text(value, field):
    """A value as text, by the rule of the docstring above.  Raises UserError."""
    if isinstance(value, str):
        return value
    if isinstance(value, float) and not math.isfinite(value):
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
        return json.dumps(value, ensure_ascii=False, default=str)
    return str(value)


def is_empty(value):
    return value is None or isinstance(value, (str, list, dict)) and len(value) == 0


def pick(row, field, columns, used):
    """(column, value) of a field of a row, (None, None) if there is none; adds the column to `used`.  Raises UserError
    if it cannot be told."""
    if field in columns:
        found = {columns[field]: at(row, columns[field])}
    else:
        found = {name: at(row, name) for name, top in PLACES[field] if top in row or name in row}
    there = {name: value for name, value in found.items() if value is not None}
    full = {name: value for name, value in there.items() if not is_empty(value)}
    if field in ("prompt", "split"):  # an empty one is there, and wrong
        full = full or there
    if not full:
        return None, None
    first, *others = full
    for other in others:
        if not alike(full[first], full[other], field):
            raise UserError(f'"{first}" and "{other}" could both be the {field}: say which one is, e.g. --columns '
                            f"{field}={first}")
    used.setdefault(field, set()).add(first)
    return first, full[first]


def alike(a, b, field):
    """Whether it makes no difference which of two values is the one of a field."""
    if field == "answer":
        a, b = (marked(as_text(value, field)) or as_text(value, field) for value in (a, b))
    return a == b or as_text(a, field).strip() == as_text(b, field).strip()


def marked(text):
    """What stands behind #### in the last line of a text, None if there is none."""
    match = MARKED.search(text) if "####" in text else None
    return match and match[1]


# ------------------------------------------------------------------------------------------------------------ messages

def turns_in(value, field):
    """((role, text), ...) of a list of chat messages.  Raises UserError."""
    turns = []
    for message in value:
        if not isinstance(message, dict) or not ("role" in message or "from" in message):
            raise UserError(f'"{field}" must be text or a list of chat messages, each with a role and a content')
        role, content = message.get("role", message.get("from")), message.get("content", message.get("value"))
        if isinstance(content, list) and all(isinstance(p, dict) and isinstance(p.get("text"), str) for p in content):
            content = "".join(part["text"] for part in content)
        if role not in ROLES:
            raise UserError(f'"{field}" has a message of {role!r}: the roles are system, user and assistant')
        if not isinstance(content, str):
            raise UserError(f'"{field}" has a message whose content is no text')
        turns.append((ROLES[role], content))
    return turns


def is_messages(value):
    """The list of chat messages that a value is, or a text spells; None if it is none."""
    if isinstance(value, str) and not re.match(r"\s*\[\s*\{\s*['\"](?:role|from|content|value)['\"]", value):
        return None
    value = object_in(value)
    return value if isinstance(value, list) else None


def chat_of(turns, field):
    """A prompt of chat messages.  Raises UserError."""
    if not turns:
        raise UserError(f'"{field}" must not be empty')
    if turns[-1][0] != "user":
        raise UserError(f'the last message of "{field}" must be the user\'s, not one of {turns[-1][0]}')
    return Chat(turns)


def prompt_of(row, columns, used):
    """(prompt, last message of the assistant or None) of a row.  Raises UserError."""
    column, value = pick(row, "prompt", columns, used)
    if value is None or column in MESSAGES:
        return conversation(row, used, [column] if column else MESSAGES)
    messages = is_messages(value)
    if messages is not None:
        prompt = chat_of(turns_in(messages, "prompt"), "prompt")
    elif isinstance(value, str):
        prompt = value
    else:
        raise UserError('"prompt" must be text or a list of chat messages')
    more = row.get("input")
    if column == "instruction" and isinstance(more, str) and more.strip():
        prompt = f"{prompt}\n\n{more}"
    if not prompt.strip():
        raise UserError('"prompt" and "answer" must not be empty')
    return prompt, None


def missing(row, field):
    """What to say of a row without a field."""
    names = ", ".join([name for name, value in row.items() if not is_empty(value)][:12])[:200]
    hint = f": it has {names}; say which with --columns {field}=..."
    return UserError(f'"{field}" is missing' + hint * bool(names))


def conversation(row, used, names):
    """The prompt of a row that has only messages, in one of these columns, and what the assistant says at its end.
    Raises UserError."""
    name = next((name for name in names if not is_empty(row.get(name))), None)
    if name is None:
        raise missing(row, "prompt")
    turns = turns_in(object_in(row[name]) or [], name)
    said = turns.pop()[1] if turns and turns[-1][0] == "assistant" else None
    used.setdefault("prompt", set()).add(name)
    return chat_of(turns, name), said


def extended(prompt, text):
    """A prompt with a text after it."""
    if isinstance(prompt, Chat):
        *turns, (role, last) = prompt.turns
        return Chat([*turns, (role, f"{last}\n\n{text}")])
    return f"{prompt}\n\n{text}"


# ------------------------------------------------------------------------------------------------------------ problems

def solution_of(row, prompt, columns, used, said):
    """(column, gold completion) of a row, (None, None) if there is none.  said: what the assistant says at the end of
    the messages that the prompt is from.  Raises UserError."""
    column, value = pick(row, "solution", columns, used)
    if value is None:
        said = answer_in_messages(row, prompt) if said is None else said
        if said is not None:
            used.setdefault("solution", set()).add("the last message")
        return None, said
    if column == "solutions":
        value = object_in(value)
    messages = is_messages(value)
    if messages and isinstance(messages[0], dict):
        value = turns_in(messages, column)[-1][1]
    elif isinstance(value, list):
        value = value[0] if value else None
    if value is not None and not isinstance(value, str):
        raise UserError(f'"{column}" must be text')
    return column, value


def answer_in_messages(row, prompt):
    """The last message of the assistant, if those before it are the prompt; else None."""
    try:
        *before, (role, last) = turns_in(is_messages(row.get("messages")) or [("", None)], "messages")
    except UserError:
        return None
    return last if role == "assistant" and before == [*turns_of(prompt)] else None


def answer_of(row, columns, used, solution):
    """(answer or None, solution) of a row.  Raises UserError."""
    _, value = pick(row, "answer", columns, used)
    if value is not None:
        text = as_text(value, "answer")
        found = marked(text)
        if found is None or text.lstrip().startswith("####"):
            return found or text, solution
        return found, text if solution is None else solution
    found = solution and (last_box(solution) or marked(solution))
    if found:
        used.setdefault("answer", set()).add("the last box or #### of the solution")
    return found or None, solution


def problem_of(row, name, columns=(), used=None):
    """(Problem called `name`, split or None) of a row; its answer is None where it has only a solution.  columns:
    {field: column} that are not to be looked for; used: {field: names of the columns that were found} so far.  Raises
    UserError that does not say where, CannotJudge if it is to be left out."""
    used = {} if used is None else used
    columns = columns or {}
    prompt, said = prompt_of(row, columns, used)
    column, solution = solution_of(row, prompt, columns, used, said)
    level = level_of(row, columns, used)
    split = split_of(row, columns, used)
    answered = "answer" in columns or row.get("answer") is not None and "tests" not in columns
    tests = {} if answered else tests_in(row, columns)
    if tests:
        used.setdefault("tests", set()).add(tests["column"])
        if solution and column in FENCED and "```" not in solution:
            solution = fenced(solution.replace("\r", ""))
        return code_problem_of(row, name, prompt, solution, level, tests, columns), split
    answer, solution = answer_of(row, columns, used, solution)
    if answer is None and solution is None:
        raise missing(row, "answer")
    if answer is not None and not has_answer(answer):
        raise UserError(f'"prompt" and "answer" must not be empty, nor the answer longer than {MAX_ANSWER} characters')
    return Problem(name, prompt, answer, solution, level), split


@dataclass(frozen=True)
class RowProblem(Problem):
    """A problem that a function of one's own judges (reward.py), which reads its row."""
    row: dict = field(default_factory=dict, hash=False)


def row_problem(row, name, columns=(), used=None):
    """The same as `problem_of` for a function of one's own that judges: a RowProblem, which needs a prompt and nothing
    else."""
    used = {} if used is None else used
    columns = dict(columns or {})
    if row.get("answer") is not None:  # the function gets the others by their own names
        columns.setdefault("answer", "answer")
    prompt, said = prompt_of(row, columns, used)
    _, solution = solution_of(row, prompt, columns, used, said)
    answer, solution = answer_of(row, columns, used, solution)
    level = level_of(row, columns, used)
    return RowProblem(name, prompt, answer, solution, level, row), split_of(row, columns, used)


def level_of(row, columns, used):
    _, value = pick(row, "level", columns, used)
    if isinstance(value, (bool, list, dict)):
        raise UserError('"level" must be text or a number')
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return None if value is None else as_text(value, "level").removeprefix("Level ")  # as MATH has it


def split_of(row, columns, used):
    """The split that a row says, None if it says none.  Raises UserError."""
    _, value = pick(row, "split", columns, used)
    if value is None:
        return None
    if not isinstance(value, str):
        raise UserError('"split" must be text')
    if value not in SPLITS:
        raise UserError(f'"split" must be train, valid or test, not {value!r}')
    return SPLITS[value]


# --------------------------------------------------------------------------------------------------------------- tests

def tests_in(row, columns):
    """{"tests", "entry_point"}, {"inputs", "outputs"} or {"io"} of a row, and the "column" it stands in; {} if it holds
    no tests."""
    column = columns.get("tests", "tests")
    if "tests" in columns or row.get("tests") is not None:
        return {"tests": at(row, column), "column": column}
    if row.get("inputs") is not None:
        return {"inputs": row["inputs"], "outputs": row.get("outputs"), "column": "inputs and outputs"}
    if row.get("input_output") is not None:
        return {"io": object_in(row["input_output"]), "column": "input_output"}
    cases = at(row, "verification_info.test_cases")
    if cases:
        inputs = [case.get("input") for case in cases]
        outputs = [case.get("output") for case in cases]
        io = {"inputs": inputs, "outputs": outputs, "fn_name": cases[0].get("fn_name")}
        return {"io": io, "column": "verification_info.test_cases"}
    truth = object_in(at(row, "reward_model.ground_truth"))
    if isinstance(truth, dict) and {"inputs", "outputs"} <= truth.keys():
        return {"io": truth, "column": "reward_model.ground_truth"}
    return asserts_in(row)


def asserts_in(row):
    """The same of what MBPP, HumanEval and those that extend them have."""
    names = [name for name in ("test_list", "challenge_test_list", "test") if row.get(name)]
    parts = [row.get(name) or [] for name in ("test_imports", "test_setup_code", *names)]
    lines = [line for part in parts for line in ([part] if isinstance(part, str) else part)]
    if not names or not all(isinstance(line, str) for line in lines):
        return {}
    first = row.get("test_list")
    return {"tests": "\n".join(lines) + "\n", "shown": first[0] if isinstance(first, list) and first else None,
            "column": " and ".join(names)}


def code_problem_of(row, name, prompt, solution, level, tests, columns):
    """The problem of a row that is judged by tests.  Raises UserError, CannotJudge."""
    tests = {part: value for part, value in tests.items() if part != "column"}
    for answer in NAMES["answer"]:
        if "io" not in tests and isinstance(at(row, answer), (str, int, float)) and "tests" not in columns:
            raise UserError(f'"{answer}" and its tests could both be meant to judge it: say --columns answer={answer}, '
                            f"or leave {answer} out")
    code = program_of(solution) if solution else ""
    shown = tests.pop("shown", None)
    hint = row.get("starter_code") or shown and f"Your code should pass this test:\n{shown}"
    if "io" in tests:
        answer, entry = judged_by_io(row, tests["io"], code)
    else:
        entry = at(row, columns.get("entry_point", "entry_point"))
        names = [] if entry or "inputs" in tests else defined(tests["tests"], code)
        entry = names[-1] if names else entry
        limit = {"time_limit": row["time_limit"]} if row.get("time_limit") is not None else {}
        answer = code_answer({**tests, **limit, "entry_point": entry, "prompt": last_text(prompt),
                              "solution": solution})
        answer = with_names(answer, names)
    if isinstance(entry, str) and hint and not re.search(rf"\b{re.escape(entry)}\b", prompt):
        prompt = extended(prompt, hint)
    return CodeProblem(name, prompt, answer, solution, level)


def last_text(prompt):
    """The text of a prompt, or of its last message."""
    return prompt.turns[-1][1] if isinstance(prompt, Chat) else prompt


def defined(tests, code):
    """What a solution defines and its tests, a text or lines of it, use; [] where one of them is no Python."""
    try:
        return names_in(tests if isinstance(tests, str) else "\n".join(tests), code)
    except (TypeError, ValueError, SyntaxError, RecursionError, MemoryError):
        return []


def with_names(answer, names):
    """The spec of a problem whose tests reach more than the entry point."""
    if len(names) < 2:
        return answer
    spec = json.loads(answer)
    spec["names"] |= {name: name for name in names}
    return json.dumps(spec)


def judged_by_io(row, io, code):
    """(answer of a CodeProblem, name of the function or None) by what APPS and TACO call input_output.  Raises
    CannotJudge if there is nothing in it."""
    seconds = re.match(r"\s*([0-9]+(?:\.[0-9]+)?)", str(row.get("time_limit") or ""))
    shown = row.get("starter_code") or code
    try:
        spec = input_output_spec(io, shown, float(seconds[1]) if seconds else LIMIT)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise CannotJudge("it has no inputs and outputs that can be read") from error
    if spec is None:
        raise CannotJudge("it has no inputs and outputs")
    return json.dumps({**spec, "typing": True}), io.get("fn_name")
