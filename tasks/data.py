"""Problems from data sets on the hub or local copies of them, and from data of one's own.

Your own problems are rows of a prompt and an answer, or tests, in any of the formats of files.py: a file, a folder or a
data set of the hub by its id (org/name, org/name:config). What its columns may be called is in shapes.py. Without a
split in rows or names of files they are divided 80/10/10. Answers are compared by math-verify in child processes with a
hard time limit; one that hangs it scores 0 and is counted as verifier_timeouts. Tests are Python asserts, HumanEval's
check(candidate), functions and classes as for pytest and unittest (see unit_tests.py; the entry point is a function, a
class or Solution().method), or standard input and output, with a "time_limit" in seconds of CPU if 3 is not right. A
row whose tests cannot fail, or end before they use the program, is left out, and named.

--data of a named data set takes a local copy with or without the hub's folders, or the release files
(HumanEval.jsonl.gz, mbpp.jsonl, sanitized-mbpp.json, GSM8K's and MATH's), in the same formats. MBPP prompts show the
first test and hide the others. Codecontests and TACO problems with several right outputs accept one; at most 50 tests
of a problem are used. TACO has a loading script on the hub, which `datasets` no longer runs: give its rows as Parquet
or JSON lines.
"""
import functools
import itertools
import json
import os
import random
import re
import time

from support.errors import UserError

from .answers import last_box
from .embedded import Problem, Task
from .files import local_files, own_rows, rows_of, sound_rows
from .mathematics import Math
from .programs import Code, CodeProblem, fenced, report_left_out, squeeze
from .reward import Judge, Judged
from .shapes import columns_of, problem_of, row_problem
from .specs import LIMIT, input_output_spec, names_in, stdio_spec
from .unit_tests import CannotJudge

INSTRUCTION = "\nReason step by step and put the final answer in \\boxed{}."
MATH_SUBJECTS = ("algebra", "counting_and_probability", "geometry", "intermediate_algebra", "number_theory",
                 "prealgebra", "precalculus")


def tenth(n):
    return max(1, n // 10) if n >= 3 else 0


def carve(train, test):
    """(train, valid): valid is a seeded tenth of train, at most 500. A problem whose text is in test is left out, one
    whose text comes again is kept once."""
    unique, held_out = {}, {squeeze(p.prompt) for p in test}
    for problem in train:
        if squeeze(problem.prompt) not in held_out:
            unique.setdefault(squeeze(problem.prompt), problem)
    problems = list(unique.values())
    random.Random(0).shuffle(problems)
    size = min(500, tenth(len(problems)))
    return problems[size:], problems[:size]


def local(data, folder=""):
    """The path of a local copy of a data set, a file or a folder.  Raises UserError if there is none."""
    path = os.path.abspath(os.path.join(data, folder))  # absolute: `datasets` would take 'json' for a file format
    if not os.path.isdir(path) and not (os.path.isfile(path) and not folder):
        raise UserError(f"--data: {path} is not a directory or file, but it should be a local copy of the data set")
    return path


def fetch(path, config, split, columns):
    """Rows {column: str} of a data set on the hub or in a local file or folder; of one file none, where it is called
    after another split.  Raises UserError."""
    if os.path.isfile(path):
        mine, unnamed = local_files(path, config, split)
        if unnamed:
            raise UserError(f"cannot tell which split {path} is: call it train.jsonl or test.jsonl")
        if not mine:
            return []
    rows = rows_of(path, config, split, lambda row: {column: row.get(column) for column in columns})
    if not rows or any(value is None for row in rows for value in row.values()):
        raise UserError(f"the {split} split of {path} is empty or lacks values in its columns {', '.join(columns)}")
    return [{column: str(value) for column, value in row.items()} for row in rows]


def load_gsm8k(data=None):
    """Grade school word problems, https://arxiv.org/abs/2110.14168; valid is carved out of train.  Raises UserError."""
    path = "openai/gsm8k" if data is None else local(data)
    splits = {"train": [], "test": []}
    for split, problems in splits.items():
        for i, row in enumerate(fetch(path, "main", split, ("question", "answer"))):
            rationale, mark, answer = row["answer"].rpartition("####")
            answer = answer.strip().replace(",", "") if mark else None
            solution = f"{re.sub('<<.*?>>', '', rationale).strip()}\nThe answer is \\boxed{{{answer}}}."
            problems.append(Problem(f"gsm8k/{split}/{i}", row["question"] + INSTRUCTION, answer, solution))
    return Math("gsm8k", *carve(splits["train"], splits["test"]), splits["test"])


def load_math(data=None):
    """Competition problems of levels 1 to 5, https://arxiv.org/abs/2103.03874; test is the MATH-500 subset of the test
    split (of a local copy without a folder MATH-500 the whole), valid is carved out of train.  Raises UserError."""
    path, path_500, subjects = "EleutherAI/hendrycks_math", "HuggingFaceH4/MATH-500", MATH_SUBJECTS
    if data is not None:
        path = path_500 = local(data)
        if os.path.isdir(os.path.join(path, "hendrycks_math")):
            path = os.path.join(path, "hendrycks_math")
        if os.path.isdir(os.path.join(path_500, "MATH-500")):
            path_500 = os.path.join(path_500, "MATH-500")
        folders = {part for folder, _, _ in os.walk(path) for part in folder.split(os.sep)}
        subjects = [s for s in MATH_SUBJECTS if s in folders] or [None]
    train, test = [], []
    for subject in subjects:
        for i, row in enumerate(fetch(path, subject, "train", ("problem", "level", "solution"))):
            answer = last_box(row["solution"])
            train.append(Problem(f"math/train/{subject or 'all'}/{i}", row["problem"] + INSTRUCTION, answer,
                                 row["solution"], row["level"].removeprefix("Level ")))
    released = data is not None and path_500 == local(data)
    columns = ("problem", "level", "solution") + (() if released else ("answer", "unique_id"))
    for subject in subjects if released else [None]:
        for i, row in enumerate(fetch(path_500, subject, "test", columns)):
            answer = row.get("answer") or last_box(row["solution"])
            name = row.get("unique_id") or f"test/{subject or 'all'}/{i}"
            test.append(Problem(f"math/{name}", row["problem"] + INSTRUCTION, answer, row["solution"],
                                row["level"].removeprefix("Level ")))
    return Math("math", *carve(train, test), test, max_new_tokens=1024)


ASK_PROGRAM = "\n\nWrite a Python program that reads standard input and writes standard output, in one ```python block."


def code_problem(id, prompt, solution, spec, level=None):
    return CodeProblem(id, prompt, json.dumps(spec), solution, level)


def with_fields(files, columns):
    """The rows of files that name no split.  Raises UserError if one lacks a field."""
    for file in files:
        for number, row in enumerate(sound_rows(file), start=1):
            missing = [column for column in columns if row.get(column) is None]
            if missing:
                raise UserError(f"{file}, row {number}: lacks the field {missing[0]!r}")
            yield row


def load_humaneval(data=None):
    """164 functions to complete, https://arxiv.org/abs/2107.03374: all of them test problems.  Raises UserError."""
    path = "openai/openai_humaneval" if data is None else local(data)
    test, columns = [], ("task_id", "prompt", "canonical_solution", "test", "entry_point")
    unnamed = local_files(path, "openai_humaneval", "test")[1] if data is not None else []
    rows = [{c: str(row[c]) for c in columns} for row in with_fields(unnamed, columns)]
    for row in rows or fetch(path, "openai_humaneval", "test", columns):
        name = row["entry_point"]
        spec = {"tests": f"{row['test']}\ncheck({name})\n", "names": {name: name}, "prefix": row["prompt"],
                "limit": LIMIT}
        test.append(code_problem(f"humaneval/{row['task_id']}", row["prompt"], row["canonical_solution"], spec))
    return Code("humaneval", [], [], test)


def load_mbpp(data=None):
    """974 functions from a sentence, https://arxiv.org/abs/2108.07732, in the data set's own splits. The prompt shows
    the first test, which says what the function is called; the others are hidden.  Raises UserError."""
    path = "google-research-datasets/mbpp" if data is None else local(data)

    def make(row):
        tests = "\n".join([*row["test_list"], *(row.get("challenge_test_list") or [])])
        setup = row.get("test_setup_code") or "\n".join(row.get("test_imports") or [])
        names = {name: name for name in names_in(tests, row["code"], setup)}
        if not names:  # a test that calls nothing of the program would pass or fail whatever that is
            return None
        spec = {"tests": f"{setup}\n{tests}\n", "names": names, "prefix": "", "limit": LIMIT}
        text = row["text"] if row.get("text") else row["prompt"]  # as the sanitized release calls it
        prompt = (f"{text.strip()}\nYour code should pass this test:\n{row['test_list'][0]}\n\n"
                  "Write it in one ```python block.")
        return code_problem(f"mbpp/{row['task_id']}", prompt, fenced(row["code"].replace("\r", "")), spec)
    unnamed = local_files(path, "full", "test")[1] if data is not None else []
    if not unnamed:
        return Code("mbpp", *(rows_of(path, "full", split, make) for split in ("train", "validation", "test")))
    splits = {"train": [], "validation": [], "test": []}  # by the numbers of the release; 1 to 10 are for prompting
    try:
        for row in with_fields(unnamed, ("task_id", "code", "test_list")):
            i = int(row["task_id"])
            split = "test"
            if i > 600:
                split = "train"
            elif i > 510:
                split = "validation"
            made = make(row) if i > 10 else None
            if made is not None:
                splits[split].append(made)
    except (KeyError, TypeError, ValueError, AttributeError, SyntaxError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"--data: {unnamed[0]} is not the release of mbpp ({type(error).__name__}: "
                        f"{squeeze(str(error))[:100]})") from error
    return Code("mbpp", *splits.values())


def load_codecontests(data=None, first=1000):
    """Programs from contests, https://arxiv.org/abs/2203.07814, streamed; of the train split the `first` rows. Public,
    private and generated tests in this order. A problem with several right outputs has one here.  Raises UserError."""
    path = "deepmind/code_contests" if data is None else local(data)

    def make(row):
        inputs, outputs = ([text for kind in ("public", "private", "generated") for text in row[f"{kind}_tests"][side]]
                           for side in ("input", "output"))
        time = row["time_limit"]
        spec = stdio_spec(inputs, outputs, time["seconds"] + time["nanos"] / 1e9 if time else LIMIT)
        if spec is None or row["input_file"] or row["output_file"]:
            return None
        gold = [text for language, text in zip(row["solutions"]["language"], row["solutions"]["solution"])
                if language == 3]  # Python 3
        problems.append(row["name"])
        return code_problem(f"codecontests/{split}/{len(problems)}", row["description"] + ASK_PROGRAM,
                            fenced(gold[0]) if gold else None, spec, str(row["difficulty"]))
    splits = []
    for split in ("train", "valid", "test"):
        problems = []
        splits.append(rows_of(path, None, split, make, first if split == "train" else 10 ** 6))
    return Code("codecontests", *splits, max_new_tokens=1024)


def load_taco(data=None):
    """Programs and functions, https://arxiv.org/abs/2312.14852; valid is carved out of train. On the hub it has a
    loading script, which the library `datasets` no longer runs, so it takes a local copy of its rows.  Raises
    UserError."""
    path = "BAAI/TACO" if data is None else local(data)

    def make(row):
        try:
            tests, golds = json.loads(row["input_output"]), json.loads(row["solutions"] or "[]")
        except ValueError:  # some rows have no tests, some numbers of more digits than Python reads
            return None
        time = re.match(r"\s*([0-9]+(?:\.[0-9]+)?)", str(row.get("time_limit") or ""))
        limit, name, starter = float(time[1]) if time else LIMIT, tests.get("fn_name"), row.get("starter_code") or ""
        spec = input_output_spec(tests, starter or (golds[0] if golds else ""), limit)
        if spec is None:
            return None
        problems.append(name)
        ask = f"\n\n{starter}\n\nComplete this code in one ```python block." if name else ASK_PROGRAM
        return code_problem(f"taco/{split}/{len(problems)}", row["question"] + ask, fenced(golds[0]) if golds else None,
                            spec, row.get("difficulty"))
    splits = {}
    for split in ("train", "test"):
        problems = []
        try:
            splits[split] = rows_of(path, None, split, make)
        except UserError as error:
            raise UserError(f"{error}; on the hub TACO comes with a loading script, which datasets no longer runs: "
                            "save its rows as Parquet or JSON lines, DIR/train.* and DIR/test.*") from error
    return Code("taco", *carve(splits["train"], splits["test"]), splits["test"], max_new_tokens=1024)


# --------------------------------------------------------------------------------------------------- one's own problems

class Unjudged(Task):
    """Problems that have a solution and no answer: for supervised training. Their solutions are right, and what needs a
    verdict on anything else is refused."""
    name = "jsonl"

    def __init__(self, name, train, valid, test):
        super().__init__()
        self.name, self.train, self.valid, self.test = name, train, valid, test

    def check_can_verify(self):
        raise UserError("no row of --data has an answer or tests, so no sample can be judged: say which column holds "
                        "them (--columns answer=...); supervised training does without, with --eval-samples 0")

    def rewards(self, problems, completions):
        if any(completion != problem.solution for problem, completion in zip(problems, completions, strict=True)):
            self.check_can_verify()
        return [1.0] * len(problems)

    def verify(self, problem, completion):
        return self.rewards([problem], [completion])[0]

    def extract(self, completion):
        return None


class BadRows:
    """Rows that are no problems: the first is an error, unless they are to be left out."""

    def __init__(self, skip):
        self.skip, self.reasons = skip, {}

    def add(self, place, error):
        file, unit, number = place
        if not self.skip:
            raise UserError(f"--data {file}, {unit} {number}: {error} (--skip-bad-rows leaves such rows out)")
        self.reasons.setdefault(str(error), []).append(f"{unit} {number}")

    def __str__(self):
        count = sum(map(len, self.reasons.values()))
        told = (f"{', '.join(places[:5])}{', ...' * (len(places) > 5)} ({reason})"
                for reason, places in self.reasons.items())
        return f"; {count:,} bad rows left out: {'; '.join(itertools.islice(told, 5))}" if count else ""


def load_own(data, columns=None, skip=False, reward=None, processes=0):
    """Problems of one's own file or folder, or of a data set of the hub, as shapes.py reads them. Without any split in
    the rows or the names of files, a seeded 80/10/10.  columns: text of --columns; skip: leave rows out that are no
    problems, and say so; reward: text of --reward, what judges them instead of their answers, in `processes`.  Raises
    UserError."""
    started, columns, used = time.time(), columns_of(columns), {}
    judge = Judge(reward) if reward else None
    read = row_problem if judge else problem_of
    bad, rows, left = BadRows(skip), [], {}
    named = False
    for place, name, source, row in own_rows(data):
        named = named or source is not None
        try:
            if isinstance(row, UserError):
                raise row
            problem, split = read(row, name, columns, used)
            if source and split and source != split:
                raise UserError(f'"split" is {split} in a file of {source}')
            rows.append((place, problem, source or split))
        except CannotJudge as error:
            left[name] = str(error)
        except UserError as error:
            bad.add(place, error)
    if left:
        report_left_out(left, len(rows) + len(left))
    rows = with_splits(rows if judge else answered(rows, bad), bad)
    if not rows:
        raise UserError(f"--data {data} holds no problems{bad}")
    make = functools.partial(Judged, judge, processes) if judge else judged_by_rows(rows)
    splits, dropped = divide(rows, bad, named)
    task = make(*splits.values())
    sizes = ", ".join(f"{len(problems):,} {split}" for split, problems in splits.items())
    found = ", ".join(f"{field} from {' or '.join(sorted(names))}" for field, names in used.items())
    again = f"; {dropped:,} left out that come again or are in another split" if dropped else ""
    task.understood = (f"{data}: {len(rows):,} rows in {time.time() - started:.1f} s ({found}), {sizes}{again}{bad}")
    if judge:
        task.understood += f"\n{task}"
    return task


def judged_by_rows(rows):
    """What makes a task of the problems of rows (place, problem, split), by what they are judged by.  Raises UserError.
    """
    kinds = {type(problem) for _, problem, _ in rows}
    if len(kinds) > 1:
        file, unit, number = next(place for place, problem, _ in rows if type(problem) is not type(rows[0][1]))
        raise UserError(f"--data {file}, {unit} {number}: a file holds problems with an answer, or code, but not both")
    kind = Math if rows[0][1].answer is not None else Unjudged
    return functools.partial(Code if CodeProblem in kinds else kind, "jsonl")


def answered(rows, bad):
    """The rows, without those that lack what the others are judged by."""
    lacking = sum(problem.answer is None for _, problem, _ in rows)
    if lacking in (0, len(rows)):
        return rows
    for place, problem, _ in rows:
        if problem.answer is None:
            bad.add(place, '"answer" is missing')
    return [row for row in rows if row[1].answer is not None]


def with_splits(rows, bad):
    """The rows, without those that have no split where others have one."""
    lacking = sum(split is None for _, _, split in rows)
    if lacking in (0, len(rows)):
        return rows
    for place, _, split in rows:
        if split is None:
            bad.add(place, '"split" is missing, but other rows have one')
    return [row for row in rows if row[2] is not None]


def divide(rows, bad, named):
    """({split: problems}, how many are left out) of rows that all have a split, or none has.  named: the names of files
    say the splits; then problems that are in two stay in the one that is judged on, and valid is carved out of train if
    there is none."""
    splits, homes = {"train": [], "valid": [], "test": []}, {}
    if rows[0][2] is None:
        prompts = list(dict.fromkeys(key_of(problem) for _, problem, _ in rows))
        random.Random(0).shuffle(prompts)
        size = tenth(len(prompts))
        for i, prompt in enumerate(prompts):
            homes[prompt] = "train"
            if i < size:
                homes[prompt] = "test"
            elif i < 2 * size:
                homes[prompt] = "valid"
        for _, problem, _ in rows:
            splits[homes[key_of(problem)]].append(problem)
        return splits, 0
    for place, problem, split in rows:
        key = key_of(problem)
        home = homes.setdefault(key, split)
        if home != split:
            homes[key] = min(home, split, key=("test", "valid", "train").index)
            if not named:
                bad.add(place, "this prompt is in another split too")
    for _, problem, split in rows:
        if homes[key_of(problem)] == split:
            splits[split].append(problem)
    if named and splits["test"] and not splits["valid"]:
        splits["train"], splits["valid"] = carve(splits["train"], splits["test"])
    kept = sum(map(len, splits.values()))
    return splits, (len(rows) - kept) * named


def key_of(problem):
    """The prompt without what layout makes different; itself where that is the same, which takes no memory."""
    text = squeeze(problem.prompt)
    return problem.prompt if text == problem.prompt else text
