"""Problems from data sets on the Hugging Face hub or local copies of them, and from the user's own data.

The user's own problems are rows with a prompt and an answer or tests, in any format of files.py: a file, a folder or
the id of a data set on the hub (org/name, org/name:config). shapes.py lists the column names. If neither rows nor file
names state a split, problems are divided 80/10/10. On the hub a checksum of the prompt decides, so the split does not
depend on whether all rows are read or, with --train-problems N, only those up to the Nth train problem. Later rows,
valid or not, then affect neither a run nor its resume, which compares the problems that were read.

math-verify compares answers in child processes with a hard time limit; an answer that hangs it scores 0 and is counted
as verifier_timeouts. Tests are Python assertions, HumanEval's check(candidate), functions and classes as for pytest and
unittest (see unit_tests.py; the entry point is a function, a class or Solution().method), or standard input and output.
"time_limit" overrides the limit of 3 seconds of CPU. A row whose tests cannot fail, or end before they use the program,
is left out and reported.

For a built-in data set, --data takes a local copy with or without the hub's folders, or the release files
(HumanEval.jsonl.gz, mbpp.jsonl, sanitized-mbpp.json, those of GSM8K and MATH), in the same formats. MBPP prompts show
the first test and hide the others. Codecontests and TACO problems with several correct outputs accept only one; at most
50 tests per problem are used. TACO has a loading script on the hub, which `datasets` no longer runs: provide its rows
as Parquet or JSON lines.
"""
import functools
import itertools
import json
import os
import random
import re
import time
import zlib
from collections.abc import Callable

from support.errors import UserError

from .answers import last_box
from .embedded import Problem, Task
from .files import is_hub_id, one_configuration, parted, parts_of, rows_in
from .mathematics import Math
from .programs import Code, CodeProblem, fenced, report_left_out, squeeze
from .shapes import columns_of, object_in, problem_of, row_problem
from .specs import LIMIT, input_output_spec, limit_of, names_in, stdio_spec
from .unit_tests import CannotJudge

INSTRUCTION = "\nReason step by step and put the final answer in \\boxed{}."
ASK_PROGRAM = "\n\nWrite a Python program that reads standard input and writes standard output, in one ```python block."
MATH_SUBJECTS = ("algebra", "counting_and_probability", "geometry", "intermediate_algebra", "number_theory",
                 "prealgebra", "precalculus")
MBPP_NUMBERS = ((601, 1000), (511, 601), (11, 511))  # train, valid, test: [first, end)


# --------------------------------------------------------------------------------------------------- rows and splits

def tenth(n: int) -> int:
    return max(1, n // 10) if n >= 3 else 0


def key_of(problem: Problem) -> str:
    """The prompt with normalised whitespace; the same object if nothing changes, which saves memory."""
    text = squeeze(problem.prompt)
    return problem.prompt if text == problem.prompt else text


def carve(train: list[Problem], test: list[Problem]) -> tuple[list[Problem], list[Problem]]:
    """Split train into (train, valid): valid is a seeded tenth, at most 500. Problems whose prompt is in test and
    duplicates are left out."""
    held_out = {squeeze(problem.prompt) for problem in test}
    unique = {}
    for problem in train:
        key = squeeze(problem.prompt)
        if key not in held_out:
            unique.setdefault(key, problem)
    problems = list(unique.values())
    random.Random(0).shuffle(problems)
    size = min(500, tenth(len(problems)))
    return problems[size:], problems[:size]


class BadRows:
    """Collects invalid rows: the first raises an error, unless they are skipped. skip: None if skipping is not
    possible."""

    def __init__(self, skip: bool | None = None):
        self.skip = skip
        self.reasons = {}

    def add(self, place, error):
        file, unit, number = place
        if not self.skip:
            hint = "" if self.skip is None else " (--skip-bad-rows leaves such rows out)"
            raise UserError(f"--data {file}, {unit} {number}: {error}{hint}")
        self.reasons.setdefault(str(error), []).append(f"{unit} {number}")

    def without(self, rows, lacks, reason):
        """The rows (place, problem, split) without those that lack something that other rows have."""
        lacking = [row for row in rows if lacks(row)]
        if len(lacking) == len(rows):
            return rows
        for place, *_ in lacking:
            self.add(place, reason)
        return [row for row in rows if not lacks(row)]

    def __str__(self):
        count = sum(map(len, self.reasons.values()))
        told = [f"{', '.join(places[:5])}{', ...' * (len(places) > 5)} ({reason})"
                for reason, places in itertools.islice(self.reasons.items(), 5)]
        return f"; {count:,} bad rows left out: {'; '.join(told)}" if count else ""


def read(rows, make, bad):
    """(place, make(row, place, n)) of the rows for which make does not return None; n counts rows from 1."""
    for n, (place, row) in enumerate(rows, start=1):
        try:
            if isinstance(row, UserError):
                raise row
            made = make(row, place, n)
        except UserError as error:
            bad.add(place, error)
        except (AttributeError, LookupError, TypeError, ValueError, SyntaxError, RecursionError, MemoryError) as error:
            reason = squeeze(f"{type(error).__name__}: {error}")[:100]
            bad.add(place, f"it is not what such a row is ({reason})")
        else:
            if made is not None:
                yield place, made


# ------------------------------------------------------------------------------------------- data sets known by name

def checked(make, fields, split, before, row, place, n):
    """make(row, split, number of problems before it) of a row.  Raises UserError if a field is missing."""
    for field in fields:
        if row.get(field) is None:
            raise UserError(f"lacks the field {field!r}")
    return make(row, split, len(before))


def named(data: str | None, hub: str, config: str | None, make: Callable, fields: tuple[str, ...],
          splits: tuple[str, ...] = ("train", "test"), first: int | None = None) -> dict[str | None, list[Problem]]:
    """{split: problems} of a data set on the hub, or of `data`, a local copy. A problem is make(row, split, number
    before it); None is left out. The split None stands for files that state none.  fields: required in each row; first:
    most rows to read of the train split.  Raises UserError."""
    path = hub if data is None else os.path.abspath(data)
    if data is not None and not os.path.exists(path):
        raise UserError(f"--data: {path} is not a directory or file, but it should be a local copy of the data set")
    parts = parts_of(path, config, streaming=first is not None, exact=True)
    found = {}
    for split in splits:
        if split is None and None not in parts or found.get(None):
            continue
        if split not in parts and (None in parts or not os.path.isfile(path)):
            raise UserError(f"cannot load the {split} split of {path}: cannot tell which split its files are, "
                            "call them train.jsonl or test.jsonl, say")
        found[split] = []
        one = functools.partial(checked, make, fields, split, found[split])
        rows = itertools.islice(parts.get(split, ()), first if split == "train" else None)
        for _, problem in read(rows, one, BadRows()):
            found[split].append(problem)
        if split in parts and not found[split]:
            what = f"the {split} split of " * bool(split)
            raise UserError(f"{what}{path} is empty, or its rows are no problems")
    return found


def load_gsm8k(data: str | None = None) -> Task:
    """Grade school word problems, https://arxiv.org/abs/2110.14168; valid is carved out of train.  Raises UserError."""
    def make(row, split, i):
        rationale, mark, answer = row["answer"].rpartition("####")
        answer = answer.strip().replace(",", "") if mark else None
        solution = f"{re.sub('<<.*?>>', '', rationale).strip()}\nThe answer is \\boxed{{{answer}}}."
        return Problem(f"gsm8k/{split}/{i}", row["question"] + INSTRUCTION, answer, solution)
    splits = named(data, "openai/gsm8k", "main", make, ("question", "answer"))
    return Math("gsm8k", *carve(**splits), splits["test"])


def load_math(data: str | None = None) -> Task:
    """Competition problems of levels 1 to 5, https://arxiv.org/abs/2103.03874. test is the MATH-500 subset (in a local
    copy without a folder MATH-500 the whole test split), valid is carved out of train.  Raises UserError."""
    path = subset = data
    subjects = MATH_SUBJECTS
    if data is not None:
        inner = [os.path.join(data, name) for name in ("hendrycks_math", "MATH-500")]
        path, subset = (folder if os.path.isdir(folder) else data for folder in inner)
        folders = {part for folder, _, _ in os.walk(path) for part in folder.split(os.sep)}
        subjects = [subject for subject in MATH_SUBJECTS if subject in folders] or [None]
    released = data is not None and subset == data
    fields = ("problem", "level", "solution")

    def make(row, split, i):
        answer = row.get("answer") or last_box(row["solution"])
        name = row.get("unique_id") or f"{split}/{subject or 'all'}/{i}"
        level = str(row["level"]).removeprefix("Level ")
        return Problem(f"math/{name}", row["problem"] + INSTRUCTION, answer, row["solution"], level)
    splits = {"train": [], "test": []}
    for subject in subjects:
        found = named(path, "EleutherAI/hendrycks_math", subject, make, fields, [*splits] if released else ["train"])
        for split, problems in found.items():
            splits[split] += problems
    if not released:
        splits |= named(subset, "HuggingFaceH4/MATH-500", None, make, (*fields, "answer", "unique_id"), ["test"])
    return Math("math", *carve(**splits), splits["test"], max_new_tokens=1024)


def code_problem(id: str, prompt: str, solution: str | None, spec: dict, level: str | None = None) -> CodeProblem:
    return CodeProblem(id, prompt, json.dumps(spec), solution, level)


def load_humaneval(data: str | None = None) -> Task:
    """164 functions to complete, https://arxiv.org/abs/2107.03374, all of them test problems.  Raises UserError."""
    fields = ("task_id", "prompt", "canonical_solution", "test", "entry_point")

    def make(row, split, i):
        id, prompt, solution, test, name = (str(row[field]) for field in fields)
        spec = {"tests": f"{test}\ncheck({name})\n", "names": {name: name}, "prefix": prompt, "limit": LIMIT}
        return code_problem(f"humaneval/{id}", prompt, solution, spec)
    found = named(data, "openai/openai_humaneval", "openai_humaneval", make, fields, [None, "test"])
    return Code("humaneval", [], [], *found.values())


def load_mbpp(data: str | None = None) -> Task:
    """974 functions described in a sentence, https://arxiv.org/abs/2108.07732, in the original splits. The prompt shows
    the first test, which gives the function's name; the others are hidden.  Raises UserError."""
    def make(row, split, i):
        tests = "\n".join([*row["test_list"], *(row.get("challenge_test_list") or [])])
        setup = row.get("test_setup_code") or "\n".join(row.get("test_imports") or [])
        names = {name: name for name in names_in(tests, row["code"], setup)}
        if not names:  # the tests do not call the program, so their outcome says nothing
            return None
        spec = {"tests": f"{setup}\n{tests}\n", "names": names, "prefix": "", "limit": LIMIT}
        text = row.get("text") or row["prompt"]  # its name in the sanitized release
        prompt = (f"{text.strip()}\nYour code should pass this test:\n{row['test_list'][0]}\n\n"
                  "Write it in one ```python block.")
        return code_problem(f"mbpp/{int(row['task_id'])}", prompt, fenced(row["code"].replace("\r", "")), spec)
    splits = named(data, "google-research-datasets/mbpp", "full", make, ("task_id", "code", "test_list"),
                   [None, "train", "valid", "test"])
    if None in splits:  # split by number, as in the release; 1 to 10 are for prompting
        whole = {int(problem.id.removeprefix("mbpp/")): problem for problem in splits[None]}
        splits = {first: [whole[i] for i in whole if first <= i < end] for first, end in MBPP_NUMBERS}
    return Code("mbpp", *splits.values())


def load_codecontests(data: str | None = None, first: int = 1000) -> Task:
    """Programs from contests, https://arxiv.org/abs/2203.07814, streamed: the `first` rows of the train split. Tests
    are public, private and generated ones, in this order. Of several correct outputs only one counts.  Raises
    UserError."""
    def make(row, split, i):
        kinds = [row[f"{kind}_tests"] for kind in ("public", "private", "generated")]
        inputs, outputs = ([text for tests in kinds for text in tests[side]] for side in ("input", "output"))
        time = row["time_limit"]
        spec = stdio_spec(inputs, outputs, time["seconds"] + time["nanos"] / 1e9 if time else LIMIT)
        if spec is None or row["input_file"] or row["output_file"]:
            return None
        written = zip(row["solutions"]["language"], row["solutions"]["solution"])
        gold = next((fenced(text) for language, text in written if language == 3), None)  # Python 3
        prompt = row["description"] + ASK_PROGRAM
        return code_problem(f"codecontests/{split}/{i + 1}", prompt, gold, spec, str(row["difficulty"]))
    splits = named(data, "deepmind/code_contests", None, make, ("description", "solutions", "difficulty"),
                   ["train", "valid", "test"], first)
    return Code("codecontests", *splits.values(), max_new_tokens=1024)


def load_taco(data: str | None = None) -> Task:
    """Programs and functions, https://arxiv.org/abs/2312.14852; valid is carved out of train. Needs a local copy of the
    rows, because `datasets` no longer runs the loading script on the hub.  Raises UserError."""
    def make(row, split, i):
        tests = object_in(row["input_output"])
        golds = object_in(row["solutions"]) or []
        if not tests:  # missing, or with integers too long for Python to parse
            return None
        starter = row.get("starter_code") or ""
        spec = input_output_spec(tests, limit_of(row, words=True))
        if spec is None:
            return None
        ask = ASK_PROGRAM
        if tests.get("fn_name"):
            ask = f"\n\n{starter}\n\nComplete this code in one ```python block."
        gold = fenced(golds[0]) if golds else None
        return code_problem(f"taco/{split}/{i + 1}", row["question"] + ask, gold, spec, row.get("difficulty"))
    try:
        splits = named(data, "BAAI/TACO", None, make, ("question", "input_output", "solutions"))
    except UserError as error:
        raise UserError(f"{error}; on the hub TACO comes with a loading script, which datasets no longer runs: save "
                        "its rows as Parquet or JSON lines, DIR/train.* and DIR/test.*") from error
    return Code("taco", *carve(**splits), splits["test"], max_new_tokens=1024)


# ---------------------------------------------------------------------------------------------- the user's own problems

class Unjudged(Task):
    """Problems with a solution but no answer, for supervised training. The solution counts as correct; judging any
    other completion raises UserError."""

    def __init__(self, name: str, train: list[Problem], valid: list[Problem], test: list[Problem]):
        super().__init__()
        self.name = name
        self.train = train
        self.valid = valid
        self.test = test

    def check_can_verify(self):
        raise UserError("no row of --data has an answer or tests, so no sample can be judged: say which column holds "
                        "them (--columns answer=...); supervised training does without, with --eval-samples 0")

    def verify(self, problem: Problem, completion: str) -> float:
        if completion != problem.solution:
            self.check_can_verify()
        return 1.0

    def extract(self, completion: str) -> str | None:
        return None


def own_parts(path, config, limit, only):
    """{split or None: rows} of a file, a folder or a data set on the hub.  Raises UserError if splits are unclear."""
    if os.path.isdir(path):
        one_configuration(path, config)
    elif not is_hub_id(path):
        return {None: rows_in(path)}
    parts = settled(parts_of(path, config, streaming=bool(limit or only)), path)
    if only in parts:
        return {only: parts[only]}
    if only and not limit:  # the whole split is needed, so let `datasets` cache it
        parts = settled(parts_of(path, config), path)
    return parts


def settled(parts, path):
    """The parts without MBPP's examples for prompting. If everything is called train, that is not taken as a split.
    Raises UserError if only some parts state their split."""
    if not parts:
        raise UserError(f"--data: {path} holds no file of rows (.jsonl, .json, .parquet, .csv, .tsv or .arrow)")
    if len(parts) == 1:
        name, rows = *parts, *parts.values()
        return {None if name in ("train", "prompt") else name: rows}
    if None in parts:
        raise UserError(f"--data: cannot tell which split all of {path} is, as only some names say so: put what does "
                        "not belong to it elsewhere")
    return {split: rows for split, rows in parts.items() if split != "prompt"}


def drawn(home, problem, parts):
    """The split of a row from the hub whose stated split is `home`. A split missing on the hub is taken from the train
    rows, a tenth each, by a checksum of the prompt, which does not depend on how many rows are read."""
    if home is not None and (home != "train" or "train" not in parts):
        return home
    key = key_of(problem).encode("utf-8", "surrogatepass")
    split = {0: "test", 1: "valid"}.get(zlib.crc32(key) % 10, "train")
    return "train" if split in parts else split


def read_own(parts, make, bad, limit):
    """[(place, problem, split or None)] of all parts, with at most `limit` train problems unless rows state their
    split. make(source, row, place, n) -> (problem, split)."""
    rows = []
    train = set()
    for source in sorted(parts, key=["test", "valid", "train", None].index):
        others = {key_of(problem) for _, problem, _ in rows} if limit else ()
        for place, (problem, split) in read(parts[source], functools.partial(make, source), bad):
            rows.append((place, problem, split))
            if limit and (source == "train" or split is None) and drawn(split, problem, parts) == "train":
                train |= {key_of(problem)}.difference(others)
                if len(train) == limit:
                    break
    return rows


def judged_by_rows(rows):
    """The task constructor that fits the rows (place, problem, split): code, mathematics or unjudged.  Raises
    UserError."""
    first = rows[0][1]
    for place, problem, _ in rows:
        if type(problem) is not type(first):
            BadRows().add(place, "a file holds problems with an answer, or code, but not both")
    kind = Unjudged if first.answer is None else Math
    return functools.partial(Code if isinstance(first, CodeProblem) else kind, "jsonl")


def tenths(keys):
    """{key: split}, a seeded 80/10/10 split of the keys."""
    prompts = list(dict.fromkeys(keys))
    random.Random(0).shuffle(prompts)
    size = tenth(len(prompts))
    homes = dict.fromkeys(prompts, "train")
    homes |= dict.fromkeys(prompts[:size], "test") | dict.fromkeys(prompts[size:2 * size], "valid")
    return homes


def divide(rows, bad, named):
    """({split: problems}, number left out) of rows that either all have a split or all have none.  named: file names
    state the splits; then a problem in two splits stays in the held-out one, and a missing valid is carved out of
    train."""
    keys = [key_of(problem) for _, problem, _ in rows]
    homes = tenths(keys) if rows[0][2] is None else {}
    for key, (place, _, split) in zip(keys, rows):
        home = homes.setdefault(key, split)
        if split not in (None, home):
            homes[key] = min(home, split, key=("test", "valid", "train").index)
            if not named:
                bad.add(place, "this prompt is in another split too")
    splits = {"train": [], "valid": [], "test": []}
    for key, (_, problem, split) in zip(keys, rows):
        if split in (None, homes[key]):
            splits[homes[key]].append(problem)
    if named and splits["test"] and not splits["valid"]:
        splits["train"], splits["valid"] = carve(splits["train"], splits["test"])
    kept = sum(map(len, splits.values()))
    return splits, (len(rows) - kept) * named


def load_own(data: str, columns: str | None = None, skip: bool = False, limit: int | None = None,
             only: str | None = None, judged: Callable | None = None) -> Task:
    """The user's own problems from a file, a folder or a data set on the hub, read as in shapes.py. If neither rows nor
    file names state a split, a seeded 80/10/10 split.

    columns: text of --columns.
    skip: leave out invalid rows and report them.
    limit, only: number of train problems and split needed from the hub; no more is read (None: all).
    judged(train, valid, test): constructs the task, if something other than answers and tests judges it.
    Raises UserError."""
    started = time.time()
    path, config = parted(data)
    hub = is_hub_id(path)
    if not hub:
        limit = only = None
    base = os.path.basename(os.path.normpath(data))
    several = hub or os.path.isdir(path)  # several files, so a row number alone is no unique name
    columns = columns_of(columns)
    problem_in = row_problem if judged else problem_of
    used = {}
    left = {}

    def make(source, row, place, n):
        name = f"{base}/{source or 'all'}:{n}" if several else f"{base}:{place[2]}"
        try:
            problem, split = problem_in(row, name, columns, used)
        except CannotJudge as error:
            left[name] = str(error)
            return None
        if source and split and source != split:
            raise UserError(f'"split" is {split} in a file of {source}')
        return problem, source or split
    bad = BadRows(skip)
    parts = own_parts(path, config, limit, only)
    rows = read_own(parts, make, bad, limit)
    if left:
        report_left_out(left, len(rows) + len(left))
    if not judged:
        rows = bad.without(rows, lambda row: row[1].answer is None, '"answer" is missing')
    rows = bad.without(rows, lambda row: row[2] is None, '"split" is missing, but other rows have one')
    if not rows:
        raise UserError(f"--data {data} holds no problems{bad}")
    judged = judged or judged_by_rows(rows)
    if hub:
        rows = [(place, problem, drawn(split, problem, parts)) for place, problem, split in rows]
    splits, again = divide(rows, bad, named=hub or None not in parts)
    task = judged(*splits.values())
    told = [f"{field} from {' or '.join(sorted(names))}" for field, names in used.items()]
    sizes = [f"{len(problems):,} {split}" for split, problems in splits.items()]
    more = "; no more of it was read than --train-problems asks for" * bool(limit)
    more += f"; {again:,} left out that come again or are in another split" * bool(again)
    task.understood = (f"{data}: {len(rows):,} rows in {time.time() - started:.1f} s ({', '.join(told)}), "
                       f"{', '.join(sizes)}{more}{bad}")
    return task
