"""Problems from data sets on the hub or local copies of them, and from files of one's own.

Your own problems are lines of {"prompt", "answer"[, "solution", "level", "split"]}; without a split they are divided
80/10/10. Answers are compared by math-verify in child processes with a hard time limit; one that hangs it scores 0 and
is counted as verifier_timeouts. Code is {"prompt", "tests", "entry_point"} (Python asserts, HumanEval's
check(candidate), functions and classes as for pytest and unittest, see unit_tests.py; the entry point is a function, a
class or Solution().method) or {"prompt", "inputs", "outputs"} (standard input and output), with a "time_limit" in
seconds of CPU if 3 is not right. A row whose tests cannot fail, or end before they use the program, is left out, and
named.

--data of a named data set takes a local copy with or without the hub's folders, or the release files
(HumanEval.jsonl.gz, mbpp.jsonl, sanitized-mbpp.json, GSM8K's and MATH's), as JSON, JSON lines or Parquet, gzipped or
not. MBPP prompts show the first test and hide the others. Codecontests and TACO problems with several right outputs
accept one; at most 50 tests of a problem are used. TACO has a loading script on the hub, which `datasets` no longer
runs: give its rows as Parquet or JSON lines.
"""
import ast
import gzip
import itertools
import json
import math
import os
import random
import re
import sys

from support.errors import UserError

from .answers import MAX_ANSWER, clean, last_box
from .embedded import Problem
from .mathematics import Math
from .programs import DEFINITION, Code, CodeProblem, prefix_of, report_left_out, squeeze, stub, unfinished
from .unit_tests import CannotJudge, prepare

SPLITS = {"train": "train", "valid": "valid", "test": "test", "validation": "valid", "val": "valid"}
INSTRUCTION = "\nReason step by step and put the final answer in \\boxed{}."
MATH_SUBJECTS = ("algebra", "counting_and_probability", "geometry", "intermediate_algebra", "number_theory",
                 "prealgebra", "precalculus")
LIMIT = 3.0  # seconds of CPU for all tests of a function or one input of a program, where the data set does not say
MAX_TESTS, MAX_TEST_TEXT = 50, 300_000  # of one problem: inputs, and characters of inputs and outputs


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


def rows_in(path):
    """The rows of one file: Parquet, or JSON (lines, a list or one object), gzipped or not.  Raises UserError."""
    try:
        if path.endswith(".parquet"):
            import pyarrow.parquet
            yield from (row for batch in pyarrow.parquet.ParquetFile(path).iter_batches() for row in batch.to_pylist())
            return
        with (gzip.open if path.endswith(".gz") else open)(path, "rb") as file:
            text = file.read().decode("utf-8-sig")
    except Exception as error:  # of files that are damaged, Parquet and gzip raise too many types to list
        raise UserError(f"cannot read {path} ({squeeze(str(error))[:100] or type(error).__name__})") from error
    try:
        rows = json.loads(text)
        rows = enumerate(rows if isinstance(rows, list) else [rows], start=1)
    except (ValueError, RecursionError):
        rows = ((number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip())
    for number, row in rows:
        try:
            row = json.loads(row) if isinstance(row, str) else row
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}, line {number}: not valid JSON") from error
        if not isinstance(row, dict):
            raise UserError(f"{path}, line {number}: not a JSON object")
        yield row


def local_files(path, config, split):
    """(files of a split, files that name no split) of a local copy; of one `config` where folders are called so. The
    split is the first of train, test, valid(ation), val, dev and prompt in a file's name, or else in a folder's."""
    found = [path] if os.path.isfile(path) else sorted(
        os.path.join(folder, name) for folder, _, names in os.walk(path) for name in names
        if re.search(r"\.(?:jsonl|json|parquet)(?:\.gz)?$", name) and not re.match(r"dataset_infos?\.json|\.", name))
    parts = {file: os.path.relpath(file, os.path.dirname(path) if file == path else path).split(os.sep)
             for file in found}
    if any(config in part[:-1] for part in parts.values()):
        found = [file for file in found if config in parts[file][:-1]]
    named = {"dev": "valid", "prompt": "prompt", **SPLITS}
    splits = {}
    for file in found:
        match = next(filter(None, (re.search(rf"(?<![a-z])({'|'.join(named)})(?![a-z])", part.lower())
                                   for part in reversed(parts[file]))), None)
        splits[file] = match and named[match[1]]
    mine = [file for file in found if splits[file] == SPLITS[split]]
    # not train_socratic.jsonl beside train.jsonl
    exact = [file for file in mine if parts[file][-1].split(".")[0].lower() == split]
    return exact or mine, [file for file in found if not splits[file]]


def rows_of(path, config, split, make, first=None):
    """make(row) of the rows of a data set on the hub or in a local file or folder, those that are None left out. With
    `first` it is streamed, and no more than so many rows are.  Raises UserError."""
    try:
        files = local_files(path, config, split)[0] if os.path.exists(path) else []
        if files:
            data = (row for file in files for row in rows_in(file))
        else:
            import datasets
            datasets.disable_progress_bars()
            datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # the errors come up as exceptions too
            if not os.path.isdir(path) and not datasets.config.HF_HUB_OFFLINE:
                import huggingface_hub
                try:
                    huggingface_hub.get_session().head(huggingface_hub.constants.ENDPOINT, timeout=10)
                except Exception:  # no network: `datasets` would retry for half a minute before it looks into its cache
                    datasets.config.HF_HUB_OFFLINE = True
            data = datasets.load_dataset(path, config, split=split, streaming=first is not None)
        return [made for made in map(make, itertools.islice(data, first)) if made is not None]
    except Exception as error:  # the network, the hub, file formats and their libraries raise too many types to list
        reason = squeeze(str(error.__cause__ or error))[:200] or type(error).__name__
        if isinstance(error, UserError):
            reason = str(error)
        elif isinstance(error, KeyError):
            reason = f"a row lacks the field {error}"
        raise UserError(f"cannot load the {split} split of {path} ({reason}): check the network, or give a local copy "
                        "with --data DIR") from error


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


def fenced(code):
    return f"```python\n{code.strip()}\n```"


def with_fields(files, columns):
    """The rows of files that name no split.  Raises UserError if one lacks a field."""
    for file in files:
        for number, row in enumerate(rows_in(file), start=1):
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
        used = {node.id for node in ast.walk(ast.parse(tests)) if isinstance(node, ast.Name)}
        defined = [node.name for node in ast.parse(row["code"]).body
                   if isinstance(node, (ast.FunctionDef, ast.ClassDef))]
        setup = row.get("test_setup_code") or "\n".join(row.get("test_imports") or [])
        names = {name: name for name in defined if name in used or name in setup}
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
            split = "train" if i > 600 else "validation" if i > 510 else "test"
            made = make(row) if i > 10 else None
            if made is not None:
                splits[split].append(made)
    except (KeyError, TypeError, ValueError, AttributeError, SyntaxError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"--data: {unnamed[0]} is not the release of mbpp ({type(error).__name__}: "
                        f"{squeeze(str(error))[:100]})") from error
    return Code("mbpp", *splits.values())


def stdio_spec(inputs, outputs, limit):
    """The spec of a program, its tests cut to MAX_TESTS and MAX_TEST_TEXT; None if there are none."""
    kept, size = [], 0
    for given, wanted in zip(inputs, outputs):
        size += len(given) + len(wanted)
        if len(kept) < MAX_TESTS and size <= MAX_TEST_TEXT:
            kept.append((given, wanted))
    return {"inputs": [i for i, _ in kept], "outputs": [o for _, o in kept], "limit": limit} if kept else None


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


SAME = """
def plain(value):
    return [plain(x) for x in value] if isinstance(value, (list, tuple)) else value
def same(value, wanted):
    return plain(value) == wanted or isinstance(wanted, list) and wanted and plain(value) == wanted[0]
"""


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
        if name:
            shown = starter or (golds[0] if golds else "")
            entry = f"Solution().{name}" if "class Solution" in shown else name
            cases = [f"assert same(candidate(*{args if isinstance(args, list) else [args]!r}), {wanted!r})"
                     for args, wanted in zip(tests["inputs"], tests["outputs"])][:MAX_TESTS]
            spec = {"tests": SAME + "\n".join(cases), "names": {"candidate": entry}, "prefix": "",
                    "limit": limit, "typing": True} if cases else None
        else:
            inputs, outputs = (["\n".join(x) if isinstance(x, list) else x for x in tests[side]]
                               for side in ("inputs", "outputs"))
            spec = stdio_spec(inputs, outputs, limit)
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


def check_imports(prefix):
    """Raises CannotJudge if the beginning of a program imports what no program finds in the sandbox."""
    for node in ast.walk(ast.parse(stub(prefix))):
        modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [
            getattr(node, "module", None) or ""]
        for module in modules:
            name = module.partition(".")[0]
            if name and name not in sys.stdlib_module_names:
                raise CannotJudge(f"its prompt imports {name}, which no program can")


def code_answer(row):
    """The answer of a CodeProblem from a line of JSON.  Raises UserError, CannotJudge if it is to be left out."""
    limit = row.get("time_limit", LIMIT)
    if isinstance(limit, bool) or not isinstance(limit, (int, float)) or not 0 < limit <= 3600:
        raise UserError('"time_limit" must be a number of seconds, more than 0 and at most 3600')
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
        check_entry(entry, str(row["tests"]), prompt, row.get("solution"))
        check_imports(prefix)
        return json.dumps({"tests": tests, "names": names, "prefix": prefix, "limit": float(limit), "typing": True})
    inputs, outputs = row.get("inputs"), row.get("outputs")
    if any(not isinstance(side, list) or not side or not all(isinstance(text, str) for text in side)
           for side in (inputs, outputs)) or len(inputs) != len(outputs):
        raise UserError('"inputs" and "outputs" must be lists of text of one length, and not empty')
    return json.dumps({"inputs": inputs, "outputs": outputs, "limit": float(limit), "typing": True})


def check_entry(name, tests, prompt, solution):
    """Whether anything in a row of code speaks of its entry point.  Raises CannotJudge if it is the name of nothing."""
    def named(text):
        return isinstance(text, str) and re.search(rf"\b{name}\b", text)
    if not named(tests) and not named(prompt) and not named(solution):
        raise CannotJudge(f'"entry_point" {name!r} is in neither "tests" nor "prompt" nor "solution": what is tested?')
    defined = rf"^[ \t]*{DEFINITION}"
    if (isinstance(solution, str) and re.search(defined, solution, re.MULTILINE) and not named(solution)
            and not (isinstance(prompt, str) and re.search(rf"{defined}{name}\b", prompt, re.MULTILINE))):
        raise CannotJudge(f'"entry_point" {name!r} is not what "solution" defines')


def parse_problem(line, name):
    """(Problem called name, split or None) from a line of JSON.  Raises UserError that does not say where."""
    try:
        row = json.loads(line)
        json.dumps(row, ensure_ascii=False).encode()  # half a surrogate pair passes for JSON but is no text
    except (ValueError, RecursionError) as error:
        raise UserError("not valid JSON") from error
    if not isinstance(row, dict):
        raise UserError("not a JSON object")
    code = "answer" not in row and ("tests" in row or "inputs" in row)
    if code:
        row = {**row, "answer": code_answer(row)}
    texts = {}
    for field in ("prompt", "answer", "solution", "level", "split"):
        value = row.get(field)
        if field in ("answer", "level") and isinstance(value, (int, float)) and not isinstance(value, bool):
            if isinstance(value, float) and not math.isfinite(value):
                raise UserError(f'"{field}" must be finite')
            value = str(value)
        if value is None and field in ("prompt", "answer"):
            raise UserError(f'"{field}" is missing')
        if value is not None and not isinstance(value, str):
            raise UserError(f'"{field}" must be text' + ' or a number' * (field in ("answer", "level")))
        texts[field] = value
    split = texts.pop("split")
    if split not in (None, *SPLITS):
        raise UserError(f'"split" must be train, valid or test, not {split!r}')
    if not texts["prompt"].strip() or not code and clean(texts["answer"]) is None:
        raise UserError(f'"prompt" and "answer" must not be empty, nor the answer longer than {MAX_ANSWER} characters')
    return (CodeProblem if code else Problem)(name, **texts), SPLITS.get(split)


def load_jsonl(path):
    """Problems from lines {"prompt", "answer"[, "solution", "level", "split"]}; other fields are ignored. The prompt is
    used as it is, so let it ask for a \\boxed{} answer. Without any "split", a seeded 80/10/10.  Raises UserError.
    Code has {"tests", "entry_point"} or {"inputs", "outputs"} in place of "answer", and may have a "time_limit"."""
    try:
        with open(path, "rb") as file:
            text = file.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        number = error.object[:error.start].count(b"\n") + 1
        raise UserError(f"--data {path}, line {number}: not UTF-8 text") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise UserError(f"cannot read --data {path}: {getattr(error, 'strerror', None) or error}") from error
    rows, left = [], {}
    for number, line in enumerate(text.split("\n"), start=1):  # splitlines would also split inside JSON strings
        name = f"{os.path.basename(path)}:{number}"
        if line.strip():
            try:
                rows.append((number, *parse_problem(line, name)))
            except CannotJudge as error:
                left[name] = str(error)
            except UserError as error:
                raise UserError(f"--data {path}, line {number}: {error}") from error
    report_left_out(left, len(rows) + len(left))
    if not rows:
        raise UserError(f"--data {path} holds no problems")
    if len({type(problem) for _, problem, _ in rows}) > 1:
        number = next(number for number, problem, _ in rows if type(problem) is not type(rows[0][1]))
        raise UserError(f"--data {path}, line {number}: a file holds problems with an answer, or code, but not both")

    homes = {}  # the split of each prompt; one prompt in two splits would leak from one into the other
    if any(split for _, _, split in rows):
        for number, problem, split in rows:
            if split is None:
                raise UserError(f'--data {path}, line {number}: "split" is missing, but other lines have one')
            if homes.setdefault(squeeze(problem.prompt), split) != split:
                raise UserError(f"--data {path}, line {number}: this prompt is in another split too")
    else:
        prompts = list(dict.fromkeys(squeeze(problem.prompt) for _, problem, _ in rows))
        random.Random(0).shuffle(prompts)
        size = tenth(len(prompts))
        for i, prompt in enumerate(prompts):
            homes[prompt] = "test" if i < size else "valid" if i < 2 * size else "train"
    kind = Code if isinstance(rows[0][1], CodeProblem) else Math
    return kind("jsonl", *([p for _, p, _ in rows if homes[squeeze(p.prompt)] == split]
                           for split in ("train", "valid", "test")))
