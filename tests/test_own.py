"""A task or a reward in a file of one's own: what it may be, what it is given, what is said of it, what is kept."""
import datetime
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
import time

import pytest
from test_scripts import read_lines, run, untimed
from test_tasks_math import write_parquet
from test_user import said_no

import evaluate
import fit_verifier
import ppo_passk
import tasks
from support import contents, flags
from support.errors import UserError
from tasks import own, reward

SMALL = ["--prompts", 4, "--samples", 4, "--max-new-tokens", 6, "--steps", 1, "--eval-samples", 0]
TINY = [*SMALL, "--k", 2]
ROWS = [{"prompt": f"c{a},2:{a}>", "answer": a, "hint": f"h{a}"} for a in range(1, 31)]
EXAMPLES = textwrap.dedent(flags.examples()).replace("\n    ", "\n")
TASK, REWARD = re.findall(r"\n\n(from tasks.*?\n)\nA reward.*?:\n\n(.*)", EXAMPLES, re.DOTALL)[0]


@pytest.fixture(autouse=True, scope="module")
def no_pictures():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("support.run.plot_run", lambda *rest: None)
        patch.setattr("support.plots.plot", lambda *rest: None)
        yield


def put(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(text))
    return path


def rows(folder, made=ROWS, name="p.jsonl"):
    return put(folder / name, "".join(json.dumps(row) + "\n" for row in made))


def judged(folder, source, made=ROWS, name="", **options):
    """The task of a reward in a file, on problems in another."""
    file = put(folder / "my_reward.py", source)
    return tasks.load_task(data=str(rows(folder, made)), reward=f"{file}{name}", **options)


def in_order(task):
    return sorted(task.train + task.valid + task.test, key=lambda p: int(p.id.rpartition(":")[2]))


# -------------------------------------------------------------------------------------------------------- the examples

def test_the_examples_are_shown():
    """Ten lines of each in the docstring of tasks/ and in the help of whatever takes the flags."""
    for shown in (TASK, REWARD):
        assert 8 <= len([line for line in shown.split("\n") if line]) <= 11
    parsers = [importlib.import_module(name).parser() for name in (
        "ppo_passk", "bon_sft", "bon_rl", "cat_passk", "cat_majority", "cat_bon", "fit_verifier")]
    for parser in parsers:
        assert parser.format_help().endswith(flags.examples()) and tasks.__doc__.endswith(flags.examples()[-300:])
    with pytest.raises(SystemExit):
        evaluate.parse_args(["--help"])


def test_the_example_of_a_task(tmp_path):
    """It trains, is resumed and evaluated by its path alone, and the reward is its own."""
    file = put(tmp_path / "my_task.py", TASK)
    code, out, err = run(ppo_passk.main, *TINY, "--task", file, "--out", tmp_path / "r")
    assert code == 0 and not err and f"{file}:Sums: 2,381 train, 595 valid, 595 test" in out, (out, err)
    lines = read_lines(tmp_path / "r", "samples.jsonl")
    assert lines and all(line["reward"] == float(line["completion"] == str(eval(line["prompt"][:-1])))
                         for line in lines)
    task = tasks.load_task(f"{file}:Sums")
    assert task.rewards(task.test, [p.answer for p in task.test]) == [1] * 595
    with open(file, "a") as more:
        more.write("# another line\n")
    resumed_run = run(ppo_passk.main, "--out", tmp_path / "r", "--resume")
    said_no(resumed_run, f"--task {file}:Sums has changed", "in my_task.py")
    code, out, err = run(evaluate.main, tmp_path / "r", "--samples", 2, "--k", 1, "--problems", 3, "--out",
                         tmp_path / "e")
    assert code == 0 and "sums, 3 problems" in out and "note: --task has changed since" in out, err
    begun = json.loads((tmp_path / "r" / "args.json").read_text())
    assert begun["flags"]["task"] == f"{file}:Sums"  # which is not another task than FILE.py
    assert begun["contents"]["task"] == {"my_task.py": own.hashlib.sha256(TASK.encode()).hexdigest(), "class": "Sums"}
    assert begun["contents"]["data"]["train"] == 2381


@pytest.mark.parametrize("processes", [0, 2])
def test_the_example_of_a_reward(processes, tmp_path):
    task = judged(tmp_path, REWARD, name=":right", reward_processes=processes)
    p = in_order(task)[2]
    assert task.rewards([p, p, p], ["1+2=3", "3", "1+2=3"]) == [1.0, 0.0, 1.0]
    assert [task.extract(text) for text in ("1+2= 3", "3")] == ["3", None] and not task.graded
    task = judged(tmp_path, REWARD, name=":short", reward_processes=processes)
    assert task.rewards([p, p], ["", "1" * 50]) == [0.0, -0.5] and task.graded and task.judge.limit == 10


# ----------------------------------------------------------------------------------------------- what it is called with

SEEN = """
    calls = []
    def one(prompt, completion, answer=None, **row):
        calls.append((prompt, completion, answer, row))
        return completion == answer
    def named(completion, hint):
        return hint + completion == "h34"
    def batch(prompts, completions, **columns):
        calls.append((prompts, completions, columns))
        return [len(prompts) == len(columns["hint"])] * len(prompts)
    def some(completions, more, answer):
        calls.append((completions, more, answer))
        return [1] * len(completions)
    """


def calls_of(task):
    return task.judge.file.module.calls


def test_what_one_sample_is_judged_by(tmp_path):
    """Equal samples once; answer is text, the other columns are as they are."""
    made = [{**row, "more": {"a": [1]}, "completion": "gold"} if row["answer"] == 3 else row for row in ROWS]
    task = judged(tmp_path, SEEN, made, ":one")
    p, q = in_order(task)[2:4]
    assert task.rewards([p, p, q, q], ["3", "3", "3", "4"]) == [1.0, 1.0, 0.0, 1.0]
    first, *rest = calls_of(task)
    assert first == ("c3,2:3>", "3", "3", {"hint": "h3", "more": {"a": [1]}}) and len(rest) == 2
    assert rest[0] == ("c4,2:4>", "3", "4", {"hint": "h4", "more": None})
    assert task.extract(" 3\n") == "3" and p.solution == "gold"
    task = judged(tmp_path, SEEN, made, ":named")
    assert task.rewards([p, p], ["4", "5"]) == [1.0, 0.0]


def test_what_a_batch_is_judged_by(tmp_path):
    """As TRL calls it: every sample, each column a list, the values those of the file."""
    made = [{**row, "more": 1.5} if row["answer"] == 3 else row for row in ROWS]
    task = judged(tmp_path, SEEN, made, ":batch")
    p, q = in_order(task)[2:4]
    assert task.rewards([p, p, q], ["a", "a", "b"]) == [1.0] * 3 and task.rewards([], []) == []
    assert calls_of(task) == [(["c3,2:3>"] * 2 + ["c4,2:4>"], ["a", "a", "b"],
                               {"hint": ["h3", "h3", "h4"], "more": [1.5, 1.5, None], "answer": [3, 3, 4]})]
    task = judged(tmp_path, SEEN, made, ":some")
    task.rewards([p, q], ["a", "b"])
    assert calls_of(task) == [(["a", "b"], [1.5, None], [3, 4])]


def test_chat_messages(tmp_path):
    """TRL's form gets lists of messages for them, the other one texts. An answer that has another name is one too."""
    messages = [{"role": "system", "content": "Add."}, {"role": "user", "content": "1+2?"}]
    made = [{"prompt": messages[:1] + [{"role": "user", "content": f"1+{i}?"}], "ground_truth": 1 + i}
            for i in range(2, 30)]
    task = judged(tmp_path, SEEN, made, ":batch".replace("batch", "one"))
    p = in_order(task)[0]
    assert task.rewards([p], ["3"]) == [1.0]
    (prompt, completion, answer, row), = calls_of(task)
    assert (type(prompt), prompt, completion, answer, row) == (str, "Add.\n\n1+2?", "3", "3", {"ground_truth": 3})
    task = judged(tmp_path, SEEN.replace('columns["hint"]', 'columns["answer"]'), made, ":batch")
    task.rewards([p], ["3"])
    assert calls_of(task) == [([messages], [[{"role": "assistant", "content": "3"}]],
                               {"ground_truth": [3], "answer": ["3"]})]


def test_rows_need_a_prompt_only(tmp_path):
    """Neither answer nor solution; tests are a column like others, and a change in any is one of the data."""
    made = [{"prompt": f"c{a},2:{a}>", "tests": "assert", "extra": [a, None]} for a in range(1, 31)]
    task = judged(tmp_path, "def f(completion, extra):\n    return int(completion) in extra\n", made)
    p = in_order(task)[4]
    assert p.answer is None and p.solution is None and task.rewards([p, p], ["5", "6"]) == [1.0, 0.0]
    code, out, err = run(ppo_passk.main, *TINY, "--data", tmp_path / "p.jsonl", "--out", tmp_path / "r", "--reward",
                         put(tmp_path / "other.py", "def f(completion):\n    return 1\n"))
    assert code == 0 and "other.py:f (one sample a call, votes by the whole text)" in out and "gold" not in out, err
    rows(tmp_path, [{**row, "extra": 0} for row in made])
    said_no(run(ppo_passk.main, "--out", tmp_path / "r", "--resume"), "--data", "in the text of its problems")


def test_rows_of_parquet_in_other_processes(tmp_path):
    """Values that JSON does not have, and functions that pickle does not take."""
    day = datetime.date(2024, 7, 26)
    write_parquet(tmp_path / "p.parquet", [{"prompt": f"c{a}>", "day": day, "raw": b"ab"} for a in range(20)])
    file = put(tmp_path / "r.py", """
        import datetime
        def made(mark):
            return lambda completion, day, raw: day.year == 2024 and raw == b"ab" and completion == mark
        inside = made("x")
        """)
    for processes in (0, 1):
        task = tasks.load_task(data=str(tmp_path / "p.parquet"), reward=f"{file}:inside", reward_processes=processes)
        assert task.rewards(task.train[:2], ["x", "y"]) == [1.0, 0.0]
        assert len(contents.of_rows(task, "p.parquet")["sha256"]) == 64


# ------------------------------------------------------------------------------------------------------ the file itself

def test_modules_beside_the_file(tmp_path, monkeypatch):
    """By their names, relatively, and inside of a function; two files, and two helpers, of one name are two."""
    for mark in ("a", "b"):
        put(tmp_path / mark / "helper.py", f"MARK = {mark!r}\n")
        put(tmp_path / mark / "pack" / "__init__.py", "")
        put(tmp_path / mark / "pack" / "deep.py", f"MARK = {mark!r}\n")
        put(tmp_path / mark / f"late_{mark}.py", f"MARK = {mark!r}\n")
        put(tmp_path / mark / "my.reward.py", f"""
            import bought, helper
            from .pack.deep import MARK
            from dataclasses import dataclass
            @dataclass
            class Kept:
                x: "int" = 1
            def f(completion):
                import late_{mark}
                return [completion] * 3 == [helper.MARK, MARK, late_{mark}.MARK] and Kept().x == 1
            """)
        put(tmp_path / mark / "venv" / "site-packages" / "bought.py", "")  # a library, though below the folder
    before = sys.path[:]
    monkeypatch.syspath_prepend(tmp_path / "a" / "venv" / "site-packages")
    a, b, again = (tasks.load_task(data=str(rows(tmp_path)), reward=f"{tmp_path}/{mark}/my.reward.py")
                   for mark in "aba")
    assert a.rewards(a.train[:2], ["a", "b"]) == again.rewards(a.train[:2], ["a", "b"]) == [1.0, 0.0]
    assert b.rewards(a.train[:2], ["a", "b"]) == [0.0, 1.0]
    assert a.code == again.code and a.code["reward"].keys() == {
        "my.reward.py", "helper.py", "pack/__init__.py", "pack/deep.py", "function"}
    assert sys.path[1:len(before) + 1] == before and not (tmp_path / "a" / "__pycache__" / "my.reward.pyc").exists()


def test_a_module_of_another_place_is_not_taken_for_one_beside(tmp_path):
    put(tmp_path / "common.py", "def score():\n    return 1\n")
    with pytest.raises(UserError, match=r"my_reward.py imports common, which is .+common.py here, not the file"):
        judged(tmp_path, "import common\ndef f(completion):\n    return 1\n")
    put(tmp_path / "wave.py", "")  # of the standard library too; not imported before the function is called
    with pytest.raises(UserError, match=r"my_reward.py imports wave, which is \S+wave.py here"):
        judged(tmp_path, "def f(completion):\n    from wave import open\n")
    judged(tmp_path / "other", "import common\ndef f(completion):\n    return common.seed_of(1) > 0\n")


def test_what_is_run_is_what_the_file_says(tmp_path):
    """Also where it changes within the second that bytecode is kept by."""
    for value in "0101":
        task = judged(tmp_path, f"def f(completion):\n    return {value}\n")
        assert task.rewards(task.train[:1], ["x"]) == [float(value)]


GOOD = "def f(completion):\n    return 1\n"
AT_ONCE = [  # source, name, words
    (None, "", "there is no such file"),
    ("def f(completion:\n    return 1\n", "", "raised SyntaxError: '(' was never closed (my_reward.py, line 1)"),
    ("import nowhere_to_be_found\n", "", "No module named 'nowhere_to_be_found' (my_reward.py, line 1)"),
    ("from . import nowhere\n", "", "raised ImportError: cannot import name 'nowhere'"),
    ("x = 1\nimport sys\nsys.exit(0)\n", "", "raised SystemExit: 0 (my_reward.py, line 3)"),
    ("exit('no')\n", "", "raised SystemExit: no (my_reward.py, line 1)"),
    ("{}['a']\n", "", "raised KeyError: 'a' (my_reward.py, line 1)"),
    ("import helper\n", "", "raised ValueError: of two lines (helper.py, line 1)"),
    (GOOD, ":g", "has no g; the functions that judge in it: f"),
    (GOOD + "def g(completions):\n    return [1]\n", "", "say which of the functions that judge in it is meant, as "
     "my_reward.py:NAME; it has f, g"),
    ("x = 1\n", "", "it has none"),
    ("f = 3\n", ":f", "is an int, but it must be a function"),
    ("class F:\n    def __init__(self, completion):\n        pass\n", ":F", "is a type, but it must be a function"),
    ("def f(prompt, text):\n    return 1\n", ":f", "takes (prompt, text): it must name completion"),
    ("def f(completion, completions):\n    return 1\n", "", "takes (completion, completions): it must name"),
    ("def f(**all):\n    return 1\n", ":f", "takes (all): it must name completion"),
    ("def f(completion, /):\n    return 1\n", "", "parameters without names"),
    ("def f(completion, *more):\n    return 1\n", "", "parameters without names"),
    ("def f(completion, level):\n    return 1\n", "", "needs level, which no row of --data has: give it a default"),
    ("def f(completions, completion_ids):\n    return [1]\n", "", "needs completion_ids, which no row of --data has"),
    ("def f(prompt, completions):\n    return [1]\n", "", "needs prompt, which no row"),
    ("async def f(completion):\n    return 1\n", "", "my_reward.py:f is async"),
    ("async def f(completion):\n    yield 1\n", "", "my_reward.py:f is async"),
    ("def f(completion):\n    yield 1\n", "", "my_reward.py:f is a generator"),
    (GOOD + "extract = 3\n", "", "extract, is an int, but it must be a function"),
    (GOOD + "def extract():\n    return 1\n", "", "extract, must take (completion): too many positional arguments"),
    (GOOD + "async def extract(completion):\n    return 1\n", "", "extract, is async"),
    (GOOD + "f.limit = 0\n", "", "its limit must be a number of seconds, not 0"),
    (GOOD + "f.limit = '9'\n", "", "its limit must be a number of seconds, not '9'")]


@pytest.mark.parametrize("source, name, words", AT_ONCE, ids=[words[:40] for *_, words in AT_ONCE])
def test_what_is_said_at_once(source, name, words, tmp_path, monkeypatch):
    """Before a model is loaded or a folder made, in one sentence and by exit code 2, which is not that of the file."""
    monkeypatch.setattr("common.load_policy", lambda *rest, **more: pytest.fail("a model was loaded"))
    put(tmp_path / "helper.py", "raise ValueError('of two\\nlines')\n")
    file = tmp_path / "my_reward.py"
    if source is not None:
        put(file, source)
    err = said_no(run(ppo_passk.main, *TINY, "--data", rows(tmp_path), "--reward", f"{file}{name}", "--out",
                      tmp_path / "r"), words)
    assert len(err) < 400 and "--reward" in err and not (tmp_path / "r").exists()
    assert err.count("(my_reward.py, line 1)") <= 1


def test_a_split_without_problems_is_said_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr("common.load_policy", lambda *rest, **more: pytest.fail("a model was loaded"))
    said_no(run(ppo_passk.main, *TINY, "--data", rows(tmp_path, ROWS[:2]), "--eval-samples", 4, "--out",
                tmp_path / "r"),
            "has no test problems (2 train, 0 valid, 0 test): add some")
    assert not (tmp_path / "r").exists()


def test_problems_of_the_readme_fill_every_split(tmp_path):
    with open(os.path.join(os.path.dirname(__file__), "..", "README.md"), encoding="utf-8") as file:
        source = re.search(r"python - > problems.jsonl <<'END'\n(.*?)END\n", file.read(), re.DOTALL)[1]
    made = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True).stdout
    task = tasks.load_task(data=str(put(tmp_path / "problems.jsonl", made)))
    assert all(len(task.need(split)) >= 10 for split in ("train", "valid", "test"))


def test_flags_that_do_not_belong_together(tmp_path):
    file, data = put(tmp_path / "r.py", GOOD), rows(tmp_path)
    for main, out in ((ppo_passk.main, ["--out", tmp_path / "r"]), (evaluate.main, []), (fit_verifier.main, [])):
        said_no(run(main, "--reward", file, *out), "give --data without --task")
        said_no(run(main, "--reward", file, "--data", data, "--task", "gsm8k", *out), "give --data without --task")
        said_no(run(main, "--reward-processes", 2, "--data", data, *out), "--reward-processes")
        said_no(run(main, "--reward-processes", -1, "--data", data, "--reward", file, *out), "--reward-processes")
        said_no(run(main, "--reward", "f", "--data", data, *out), "--reward f", "FILE.py:NAME")
        said_no(run(main, "--task", put(tmp_path / "t.py", TASK), "--data", data, *out), "leave out --data")
        said_no(run(main, "--task", tmp_path / "none.py", *out), "none.py: there is no such file")


# ----------------------------------------------------------------------------------------------------- what it returns

RETURNS = [  # what f(completion) and f(completions) return, words or the reward
    ("True", 1.0), ("0", 0.0), ("1.0", 1.0), ("__import__('numpy').float32(1)", 1.0),
    ("None", "returned None, which is not a number"), ("'1'", "returned '1', which is not a number"),
    ("float('nan')", "returned nan: a reward must be finite"), ("-float('inf')", "returned -inf: a reward must be"),
    ("__import__('torch').ones(1)", "returned a Tensor, which is not a number"),
    ("[1.0]", "returned a list, which is not a number"), ("0.5", "returned 0.5: rewards other than 0 and 1 need"),
    ("1 / 0", "raised ZeroDivisionError: division by zero (my_reward.py, line 3)"),
    ("int(completion)", "raised ValueError: invalid literal for int() with base 10: 'x' (my_reward.py, line 3)"),
    ("__import__('json').loads('{')", "raised JSONDecodeError"), ("exit()", "raised SystemExit: None"),
    ("wait()", "returned a coroutine"), ("10 ** 400", "raised OverflowError")]


@pytest.mark.parametrize("value, expected", RETURNS, ids=[value for value, _ in RETURNS])
@pytest.mark.filterwarnings("ignore:coroutine")
def test_what_is_returned(value, expected, tmp_path):
    """Of one sample, of a list of them, and of a task: a number, or one sentence that says where."""
    one = judged(tmp_path / "1", f"async def wait(): pass\ndef f(completion):\n    return {value}\n")
    many = judged(tmp_path / "2", "async def wait(): pass\ndef f(completions):\n    return [__C__ for completion in "
                  "completions]\n".replace("__C__", value))
    source = TASK.replace("return float(completion == problem.answer)", f"return {value}")
    file = put(tmp_path / "my_task.py", "async def wait(): pass\n" + source)
    for task in (one, many, tasks.load_task(str(file))):
        some = task.train[:2]
        if isinstance(expected, float):
            assert task.rewards(some, ["x", "y"]) == [expected] * 2
            continue
        with pytest.raises(UserError) as error:
            task.rewards(some, ["x", "y"])
        said = str(error.value)
        assert expected.partition(" (my_reward")[0] in said and "\n" not in said and len(said) < 400, said
        if "raised" in expected:
            assert re.search(r"\((my_reward|my_task|own)\.py, line \d+\)$", said), said
    if isinstance(expected, str):
        assert f"of {some[0].id}" not in said
        with pytest.raises(UserError, match=re.escape(f"my_reward.py:f, of {one.train[0].id} and 'x', ")):
            one.rewards(one.train[:1], ["x"])


@pytest.mark.parametrize("value, words", [
    ("[1]", "returned 1 rewards for 2 completions"), ("[1] * 3", "returned 3 rewards for 2"),
    ("1.0", "returned a float: it must return a list"), ("None", "returned None: it must return a list"),
    ("'11'", "returned '11': it must"), ("(x for x in (1, 1))", "returned a generator: it must return a list"),
    ("__import__('torch').ones(2)", "returned a Tensor: it must return a list"),
    ("__import__('numpy').ones(2)", "returned a ndarray: it must return a list")])
def test_lists_that_are_none(value, words, tmp_path):
    task = judged(tmp_path, f"def f(completions):\n    return {value}\n")
    with pytest.raises(UserError, match=re.escape(words)):
        task.rewards(task.train[:2], ["x", "y"])


@pytest.mark.parametrize("value, expected", [
    ("None", None), ("completion", "x"), ("7", "7"), ("2.5", "2.5"), ("[1]", "returned a list: it must return text"),
    ("float('nan')", "returned a float"), ("('a',)", "returned a tuple"),
    ("1 / 0", "extract, raised ZeroDivisionError"),
    ("exit()", "extract, raised SystemExit")])
def test_votes(value, expected, tmp_path):
    a = judged(tmp_path, f"{GOOD}def extract(completion):\n    return {value}\n")
    source = TASK.replace("return completion\n", f"return {value}\n")
    assert source != TASK or value == "completion"
    b = tasks.load_task(str(put(tmp_path / "t.py", source)))
    for task in (a, b):
        if expected is None or "returned" not in expected and "raised" not in expected:
            assert task.extract("x") == expected
        else:
            with pytest.raises(UserError, match=expected):
                task.extract("x")


def test_an_error_in_a_run(tmp_path):
    """In the middle of training and in a process of its own: one sentence, exit code 2, the checkpoint stays."""
    data = rows(tmp_path)
    source = "calls = []\ndef f(completion):\n    calls.append(1)\n    return 1 / (1 - (len(calls) > 20)) > 2\n"
    code, out, err = run(ppo_passk.main, *TINY, "--steps", 9, "--save-every", 1, "--data", data, "--reward",
                         put(tmp_path / "r.py", source), "--out", tmp_path / "r")
    assert code == 2 and err.count("\n") == 1, err
    assert re.search(r"error: --reward r.py:f, of p.jsonl:\d+ and '.*', raised ZeroDivisionError: division by zero "
                     r"\(r.py, line 4\)\n", err), err
    assert (tmp_path / "r" / "state.pt").exists()
    said_no(run(evaluate.main, "--data", data, "--samples", 2, "--k", 1, "--problems", 1, "--max-new-tokens", 4,
                "--reward", put(tmp_path / "s.py", "def f(completion):\n    exit(0)\n"), "--reward-processes", 1,
                "--out", tmp_path / "e"), "--reward s.py:f, of p.jsonl:", "raised SystemExit: 0 (s.py, line 2)")


# -------------------------------------------------------------------------------------------------------- a task's file

BAD_TASKS = [  # what of the example is replaced, by what, words
    ("class Sums(Task)", "class Sums", "say which of the tasks in it is meant, as my_task.py:NAME; it has none"),
    ("class Sums(Task)", "class Other(Task):\n    pass\nclass Sums(Task)", "it has Other, Sums"),
    ('"sums", 8', '"a/b", 8', "its name is 'a/b'"), ('"sums", 8', '"sums", 0', "max_new_tokens must be"),
    ("super().__init__()", "pass", "__init__ must begin with super().__init__()"),
    ("def verify", "def verified", "has no verify(self, problem, completion)"),
    ("def extract", "def extracted", "has no extract(self, completion)"),
    ("self, problem, completion", "self, problem", "verify, must take (problem, completion)"),
    ("def extract", "async def extract", "extract, is async"),
    ("def __init__(self)", "def __init__(self, n)", "raised TypeError"),
    ("problems[::2]", "tuple(problems)", "fill the lists train, valid and test"),
    ("problems[::2]", "['a']", "train holds 'a', but it must hold tasks.Problem"),
    ("for a in range(1, 70) ", "for a in () ", "holds no problems"),
    ('Problem(f"{a}+{b}", ', 'Problem("same", ', "two problems have the id 'same'"),
    ("problems[1::8]", "[Problem('x', '1+1:', '2')]", "is in train too"),
    ('f"{a}+{b}:", str(a + b)', '" ", ""', "must be text, and not empty"),
    ("str(a + b))", "str(a + b), 3)", "must be text or None")]


@pytest.mark.parametrize("old, new, words", BAD_TASKS, ids=[words[:40] for *_, words in BAD_TASKS])
def test_tasks_that_are_none(old, new, words, tmp_path):
    assert old in TASK
    file = put(tmp_path / "my_task.py", TASK.replace(old, new))
    with pytest.raises(UserError) as error:
        tasks.load_task(str(file))
    assert words in str(error.value) and str(error.value).startswith("--task my_task.py"), error.value
    with pytest.raises(UserError, match="has no Sum; the tasks in it"):
        tasks.load_task(f"{file}:Sum")
    with pytest.raises(UserError, match="Task, which is imported|is no subclass|must take|raised|__init__|holds"):
        tasks.load_task(f"{put(file, TASK + 'x = 1')}:x")


def test_gold_completions_of_a_task(tmp_path):
    for value, words in (("1 / 0", "target, raised ZeroDivisionError"), ("3", "target, returned an int")):
        source = f"{TASK}    def target(self, problem, kind):\n        return {value}\n"
        task = tasks.load_task(str(put(tmp_path / "t.py", source)))
        with pytest.raises(UserError, match=words):
            task.target(task.train[0])


# --------------------------------------------------------------------------------------------------- in other processes

SLOW = """
    import os, time
    print("a line of its own")
    def f(completion):
        print("and one for each call")
        if completion == "slow":
            time.sleep(60)
        if completion == "dead":
            os._exit(0)
        return float(completion == input() if completion == "asks" else completion == "right")
    def g(prompts, completions):
        return [f(c) for c in completions]
    f.limit = g.limit = 0.5
    """


def test_a_limit_that_strikes_is_counted(tmp_path, capfd):
    """What takes too long and what dies score 0 and are counted; what is judged after them is judged."""
    task = judged(tmp_path, SLOW, name=":f", reward_processes=2)
    assert capfd.readouterr().out == "a line of its own\n"
    texts = ["right", "slow", "right", "dead", "wrong", "slow", "right"]
    started = time.time()
    some = [task.train[0]] * 7
    assert task.rewards(some, texts) == [1, 0, 1, 0, 0, 0, 1] and time.time() - started < 20
    assert dict(task.counts) == {"verifier_timeouts": 1, "verifier_errors": 1}
    assert capfd.readouterr().out == ""
    with pytest.raises(UserError, match="raised EOFError"):
        task.rewards(some[:1], ["asks"])
    task = judged(tmp_path, SLOW, name=":g", reward_processes=2)  # a prompt at a time
    a, b = task.train[:2]
    assert task.rewards([a, a, b, b], ["right", "slow", "right", "wrong"]) == [0, 0, 1, 0]
    assert dict(task.counts) == {"verifier_timeouts": 2}


def test_counts_are_in_the_step_line(tmp_path):
    source = "import time\ndef f(completion):\n    time.sleep(9)\nf.limit = 0.1\n"
    code, out, err = run(ppo_passk.main, *TINY, "--prompts", 1, "--samples", 2, "--data", rows(tmp_path), "--reward",
                         put(tmp_path / "r.py", source), "--reward-processes", 2, "--out", tmp_path / "r")
    found = read_lines(tmp_path / "r")[0]["verifier_timeouts"]
    assert code == 0 and found in (1, 2) and f"verifier_timeouts {found}" in out, (out, err)


# ------------------------------------------------------------------------------------------------ what is kept of a run

@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A run with a reward of its own that imports a module beside it, killed before its last step, and the same one
    whole."""
    place = tmp_path_factory.mktemp("begun")
    put(place / "code" / "helper.py", "LEAST = 2\n")
    put(place / "code" / "my_reward.py", """
        from helper import LEAST
        def f(prompt, completion, hint, **row):
            return len({*completion}) >= LEAST
        def g(completion):
            return 0
        def extract(completion):
            return completion[:1]
        """)
    rows(place)
    argv = [*TINY, "--steps", 2, "--eval-samples", 2, "--eval-problems", 3, "--save-every", 1, "--data",
            place / "p.jsonl", "--reward", f"{place}/code/my_reward.py:f"]
    assert run(ppo_passk.main, *argv, "--out", place / "whole")[0] == 0
    from test_runs import killed_after
    killed_after(2, ppo_passk.main, *argv, "--out", place / "part")
    return place


def resumed(place, *flags):
    return run(ppo_passk.main, "--out", place / "part", "--resume", *flags)


def test_a_run_goes_on_where_its_reward_has_moved(begun, tmp_path):
    place = shutil.copytree(begun, tmp_path / "b")
    os.rename(begun / "code", begun / "gone")
    try:
        said_no(resumed(place), f"--reward {begun}/code/my_reward.py:f: there is no such file; if it has moved")
        flag = ["--reward", f"{place}/code/my_reward.py"]
        said_no(resumed(place, *flag, "--data", place / "p.jsonl"), "say which")
        code, _, err = resumed(place, f"{flag[0]}={flag[1]}:f", "--reward-processes", 1)
        assert code == 0, err
    finally:
        os.rename(begun / "gone", begun / "code")
    assert untimed(read_lines(place / "part")) == untimed(read_lines(begun / "whole"))
    again = json.loads((place / "part" / "args.json").read_text())["flags"]
    assert again["reward"] == f"{place}/code/my_reward.py:f"


@pytest.mark.parametrize("name, words", [("helper.py", "in helper.py"), ("my_reward.py", "in my_reward.py"),
                                         (None, "differs from it in function")])
def test_another_reward_is_said(name, words, begun, tmp_path, capsys):
    """A run does not go on with it; an evaluation says that it is by what is there."""
    place = shutil.copytree(begun, tmp_path / "b")
    flag = ["--reward", f"{place}/code/my_reward.py:{'f' if name else 'g'}"]
    if name:
        with open(place / "code" / name, "a") as file:
            file.write("\n# another line\n")
    said_no(resumed(place, *flag), "--resume: --reward", words, "give what the run began with")
    asked = evaluate.parse_args([*flag, "--data", str(place / "p.jsonl")])
    task = evaluate.problems_of(asked, {"runs/mine": evaluate.run_flags(place / "whole")})
    place_of = words.removeprefix("differs from it ")
    assert capsys.readouterr().out == (f"note: --reward has changed since runs/mine was trained, {place_of}: these "
                                       "figures are from its current version\n")
    assert task.code["reward"].keys() == {"my_reward.py", "helper.py", "function"}


def test_evaluation_by_the_reward_of_the_run(begun, tmp_path):
    """By its folder alone, and on other data too; two runs of different rewards are of different problems."""
    few = ["--samples", 2, "--k", 1, "--problems", 2, "--max-new-tokens", 4]
    other = rows(tmp_path, ROWS[:20], "other.jsonl")
    code, out, err = run(evaluate.main, begun / "whole", *few, "--out", tmp_path / "e")
    assert code == 0 and "note" not in out, err
    assert "my_reward.py:f (one sample a call, votes by its extract)" in out
    for entry in read_lines(tmp_path / "e", "pool-1.jsonl"):
        assert entry["rewards"] == [float(len({*text}) >= 2) for text in entry["completions"]]
        assert entry["answers"] == [text[:1] for text in entry["completions"]]
    assert len(json.loads((tmp_path / "e" / "result.json").read_text())["code"]["reward"]["my_reward.py"]) == 64
    asked = evaluate.parse_args(["--data", str(other)])
    task = evaluate.problems_of(asked, {"runs/mine": evaluate.run_flags(begun / "whole")})
    assert task.judge.function.__name__ == "f" and task.train[0].id.startswith("other.jsonl")
    copy = shutil.copytree(begun / "whole", tmp_path / "copy")
    flags = json.loads((copy / "args.json").read_text())
    flags["flags"]["reward"] = None
    (copy / "args.json").write_text(json.dumps(flags))
    said_no(run(evaluate.main, begun / "whole", copy, *few), "different problems")


# ----------------------------------------------------------------------------------------------------- in every script

SHARED = """
    def f(completion):
        return len({*completion}) > 2
    def g(completion):
        return len(completion) / 9
    g.graded = True
    """
SCRIPTS = [("bon_sft", ["--n", 2], True), ("bon_rl", ["--n", 2, "--variant", "bp"], False),
           ("cat_passk", ["--n", 2], False), ("cat_majority", ["--n", 2], False), ("cat_bon", ["--n", 2], True),
           ("ppo_passk", ["--k", 2, "--objective", "majority"], True), ("fit_verifier", [], False)]


@pytest.mark.parametrize("script, argv, graded", SCRIPTS)
def test_every_script(script, argv, graded, tmp_path):
    """Rewards of 0 and 1 in all, graded ones where they mean something."""
    main = importlib.import_module(script).main
    data = rows(tmp_path, [{**row, "solution": f"{row['answer']}*1"} for row in ROWS])
    file = put(tmp_path / "my_reward.py", SHARED)
    small = SMALL
    if script == "fit_verifier":
        small = ["--samples", 2, "--max-new-tokens", 6, "--epochs", 1, "--train-problems", 6, "--eval-problems", 2]
    for name in ("f", "g"):
        done = run(main, *small, *argv, "--data", data, "--reward", f"{file}:{name}", "--out", tmp_path / name)
        if name == "g" and not graded:
            said_no(done, "graded rewards")
        else:
            assert done[0] == 0 and not done[2], done[2]
    if script == "fit_verifier":
        kept = json.loads((tmp_path / "f" / "verifier.json").read_text())["code"]
        assert kept["reward"]["function"] == "f" and len(kept["reward"]["my_reward.py"]) == 64


def test_the_card_names_the_reward(tmp_path):
    from support import card
    words = card.task_of({"task": None, "data": "/a/p.jsonl", "reward": "/b/r.py:f"})
    assert words == "own problems p.jsonl, judged by r.py:f" and card.task_of({"task": "/a/t.py:T"}) == "t.py:T"
    assert card.task_of({"task": "countdown"}) == "countdown"
    assert reward.LIMIT == 60
