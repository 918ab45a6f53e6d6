"""Data as people have it: eleven files, eight schemas that people train on, folders, the hub's layout, bad rows."""
import datetime
import gzip
import json
import pickle
import shutil
import tracemalloc
from decimal import Decimal
from types import SimpleNamespace

import pytest
from conftest import load_policy
from test_real import CHAT
from test_scripts import read_lines, run
from test_tasks_math import write_parquet

import bon_sft
import cat_passk
import evaluate
import ppo_passk
import tasks
from support import contents
from support.errors import UserError
from support.text import Chat
from tasks import files, shapes

needs_sandbox = pytest.mark.skipif(shutil.which("bwrap") is None,
                                   reason="bubblewrap is not installed (apt install bubblewrap)")
TINY = ["--model", "tiny", "--prompts", 2, "--samples", 2, "--eval-samples", 2, "--max-new-tokens", 4]


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def cell(value):
    text = value if isinstance(value, str) else json.dumps(value)
    return '"' + text.replace('"', '""') + '"'


def table(rows, separator):
    return "".join(separator.join(map(cell, row)) + "\n" for row in [[*rows[0]], *(row.values() for row in rows)])


def put(path, rows):
    """Write rows as the name of the file says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    name = path.name.removesuffix(".gz")
    if name.endswith(".parquet"):
        write_parquet(path, rows)
        return path
    text = (json.dumps(rows) if name.endswith(".json") else table(rows, ",") if name.endswith(".csv") else
            table(rows, "\t") if name.endswith(".tsv") else lines(rows)).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


def user(text, system=None):
    return [{"role": "system", "content": system}] * bool(system) + [{"role": "user", "content": text}]


def said(text):
    return {"role": "assistant", "content": text}


def problems_of(data, **options):
    task = tasks.load_task(data=str(data), **options)
    return task, task.train + task.valid + task.test


def in_order(task):
    return sorted(task.train + task.valid + task.test, key=lambda p: int(p.id.rpartition(":")[2]))


# ---------------------------------------------------------------------------------------------------- eight data sets

def openr1(i):
    return {"problem": f"Compute {i} plus 1.", "solution": f"Add: $\\boxed{{{i + 1}}}$", "answer": str(i + 1),
            "problem_type": "Algebra", "question_type": "math-word-problem", "source": "olympiads", "uuid": f"u{i}",
            "is_reasoning_complete": [True, False], "generations": ["<think>\n</think>", "so"],
            "correctness_math_verify": [True, False], "correctness_llama": None, "finish_reasons": None,
            "correctness_count": 1, "messages": [*user(f"Compute {i} plus 1."), said("<think>so</think>")]}


def dapo(i):
    ask = f"Solve the problem; the last line is Answer: $Answer.\n\nWhat is {i} plus 1?"
    return {"data_source": "math_dapo", "prompt": user(ask), "ability": "MATH",
            "reward_model": {"ground_truth": str(i + 1), "style": "rule-lighteval/MATH_v2"},
            "extra_info": {"index": f"index-{i}"}}


def deepscaler(i):
    return {"problem": f"Find {i} plus 1.", "answer": f"{i + 1}", "solution": ""}


def numina(i):
    solution = f"We add and find $\\boxed{{\\frac{{{i}}}{{7}}}}$."
    return {"source": "cn_k12", "problem": f"What is ${i}/7$?", "solution": solution,
            "messages": [*user(f"What is ${i}/7$?"), said(solution)]}


def gsm8k_verl(i):
    question = f"Ann has {i} apples and gets one."
    ask = f'{question} Let\'s think step by step and output the final answer after "####".'
    return {"data_source": "openai/gsm8k", "prompt": user(ask), "ability": "math",
            "reward_model": {"ground_truth": f"{i + 1}", "style": "rule"},
            "extra_info": {"answer": f"She has <<{i}+1={i + 1}>>.\n#### {i + 1}", "index": i, "question": question,
                           "split": "train"}}


def trl(i):
    return {"prompt": user(f"How much is {i} and 1?", "You add."), "completion": [said(f"It is \\boxed{{{i + 1}}}.")]}


def apps(i):
    io = {"inputs": ["1\n", "2\n"], "outputs": [f"{i}\n", f"{2 * i}\n"]}
    call = {"fn_name": "times", "inputs": [[1], [2]], "outputs": [[i], [2 * i]]}
    program, function = f"print(int(input()) * {i})", f"def times(x):\n    return x * {i}"
    return {"problem_id": i, "question": f"Multiply by {i}.", "solutions": json.dumps([function if i % 2 else program]),
            "input_output": json.dumps(call if i % 2 else io), "difficulty": "interview", "url": "",
            "starter_code": "def times(x):\n" if i % 2 else ""}


def mbpp_plus(i):
    tests = [f"assert add_{i}(1) == {i + 1}", f"assert add_{i}(2) == {i + 2}"]
    more = ("import math\n\ndef assertion(out, exp, atol):\n    if atol == 0:\n        assert out == exp, f'{out}'\n"
            f"inputs = [[3], [4]]\nresults = [{i + 3}, {i + 4}]\n"
            f"for i, (inp, exp) in enumerate(zip(inputs, results)):\n    assertion(add_{i}(*inp), exp, 0)\n")
    return {"task_id": i, "code": f"\ndef helper(x):\n    return x\ndef add_{i}(x):\n    return helper(x) + {i}",
            "prompt": f"Write a function to add {i} to a number.", "source_file": "Benchmark.ipynb",
            "test_imports": [], "test_list": tests, "test": more}


MATHEMATICS = {  # rows, the prompt of row 3, its answer, a right and a wrong completion, level
    "OpenR1-Math": (openr1, "Compute 3 plus 1.", "4", "\\boxed{4}", "\\boxed{3}"),
    "DAPO-Math-17k": (dapo, Chat([("user", dapo(3)["prompt"][0]["content"])]), "4", "Answer: 4", "Answer: 5"),
    "DeepScaleR": (deepscaler, "Find 3 plus 1.", "4", "The answer is 4.", "The answer is 14."),
    "NuminaMath": (numina, "What is $3/7$?", r"\frac{3}{7}", r"\boxed{6/14}", r"\boxed{7/3}"),
    "GSM8K of verl": (gsm8k_verl, Chat([("user", gsm8k_verl(3)["prompt"][0]["content"])]), "4", "#### 4", "#### 5"),
    "TRL": (trl, Chat([("system", "You add."), ("user", "How much is 3 and 1?")]), "4", "\\boxed{4}", "4 or 5")}


@pytest.mark.parametrize("form", ["jsonl", "json", "parquet", "jsonl.gz", "csv"])
@pytest.mark.parametrize("name", MATHEMATICS)
def test_schemas_of_mathematics(name, form, tmp_path):
    make, prompt, answer, right, wrong = MATHEMATICS[name]
    data = put(tmp_path / f"own.{form}", [make(i) for i in range(20)])
    if form == "csv" and name == "OpenR1-Math":
        pytest.skip("null in a column of lists is no text of a table")
    task, problems = problems_of(data)
    assert [len(split) for split in (task.train, task.valid, task.test)] == [16, 2, 2] and task.name == "jsonl"
    place = {"jsonl": 4, "jsonl.gz": 4, "csv": 5}.get(form, 4)
    p, = (p for p in problems if p.id == f"own.{form}:{place}")
    assert (p.prompt, p.answer) == (prompt, answer) and type(p.prompt) is type(prompt)
    assert task.rewards([p, p], [right, wrong]) == [1.0, 0.0]


@needs_sandbox
@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_schema_of_apps(form, tmp_path):
    folder = tmp_path / "apps"
    put(folder / f"train.{form}", [apps(i) for i in range(2, 12)])
    put(folder / f"test.{form}", [apps(i) for i in (20, 21)] + [{**apps(22), "input_output": ""}])
    task = tasks.load_task(data=str(folder))
    assert [len(split) for split in (task.train, task.valid, task.test)] == [9, 1, 2]
    a, b = task.test
    assert a.prompt == "Multiply by 20." and b.prompt == "Multiply by 21.\n\ndef times(x):\n" and b.level == "interview"
    assert (a.id, json.loads(a.answer)["inputs"]) == ("apps/test:1", ["1\n", "2\n"])
    assert a.solution == "```python\nprint(int(input()) * 20)\n```"
    assert task.rewards([a, b, a, b], [a.solution, b.solution, b.solution, "def times(x): return 21"]) == [1, 1, 0, 0]
    assert "tests from input_output" in task.understood and "level from difficulty" in task.understood


@needs_sandbox
@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_schema_of_mbpp_plus(form, tmp_path):
    data = put(tmp_path / f"test.{form}", [mbpp_plus(i) for i in range(2, 12)])
    task, problems = problems_of(data)
    assert [len(split) for split in (task.train, task.valid, task.test)] == [8, 1, 1]
    p, = (p for p in problems if p.id.endswith(":1"))
    assert p.prompt == ("Write a function to add 2 to a number.\n\nYour code should pass this test:\n"
                        "assert add_2(1) == 3")
    seen = "```python\ndef add_2(x):\n    return {1: 3, 2: 4}[x]\n```"  # right but for what only `test` has
    assert task.rewards([p, p, p], [p.solution, seen, "def add_2(x): return x"]) == [1.0, 0.0, 0.0]
    assert not task.counts


# ------------------------------------------------------------------------------------------------------- eleven files

ELEVEN = {  # file: rows of number i, how many messages the prompt has (0: it is text)
    "trl.jsonl": (lambda i: {"prompt": user(f"{i}+1?"), "answer": str(i + 1)}, 1),
    "verl.parquet": (lambda i: {"data_source": "a", "prompt": user(f"{i}+1?"),
                                "reward_model": {"style": "rule", "ground_truth": str(i + 1)}}, 1),
    "verl.jsonl": (lambda i: {"prompt": user(f"{i}+1?", "Add."), "reward_model": {"ground_truth": i + 1}}, 2),
    "openr1.jsonl": (lambda i: {"problem": f"{i}+1?", "solution": "so", "answer": str(i + 1)}, 0),
    "gsm8k.jsonl": (lambda i: {"question": f"{i}+1?", "answer": f"It is.\n#### {i + 1}"}, 0),
    "chat.jsonl": (lambda i: {"messages": [*user(f"{i}+1?"), said(f"\\boxed{{{i + 1}}}")]}, 1),
    "truth.jsonl": (lambda i: {"prompt": f"{i}+1?", "ground_truth": i + 1.0}, 0),
    "plain.parquet": (lambda i: {"prompt": f"{i}+1?", "answer": i + 1}, 0),
    "plain.csv": (lambda i: {"prompt": f"{i}+1?", "answer": i + 1}, 0),
    "plain.tsv": (lambda i: {"query": f"{i}+1?", "target": i + 1}, 0),
    "list.json": (lambda i: {"instruction": f"{i}+1?", "input": "", "final_answer": [i + 1]}, 0)}


@pytest.mark.parametrize("name", ELEVEN)
def test_eleven_files(name, tmp_path):
    make, messages = ELEVEN[name]
    data = put(tmp_path / name, [{**make(i), "split": split} for i, split in enumerate(
        ["train"] * 3 + ["validation", "test"])])
    task, problems = problems_of(data)
    assert [len(split) for split in (task.train, task.valid, task.test)] == [3, 1, 1]
    for i, p in enumerate(problems):
        assert p.prompt.endswith(f"{i}+1?") and len(getattr(p.prompt, "turns", ())) == messages
        assert task.rewards([p, p], [f"\\boxed{{{i + 1}}}", f"\\boxed{{{i}}}"]) == [1.0, 0.0]
    assert p.answer == ("5.0" if name == "truth.jsonl" else "5")


@pytest.mark.parametrize("form", ["jsonl", "json", "json.gz", "parquet", "csv", "csv.gz", "tsv", "arrow"])
def test_formats_say_the_same(form, tmp_path):
    """The same problems in the same order, whatever the file."""
    rows = [{"prompt": f'"{i}",\n{i}\t?', "answer": str(i), "solution": "" if i % 2 else "so"} for i in range(30)]
    if form == "arrow":
        import datasets
        datasets.Dataset.from_list(rows).save_to_disk(tmp_path / "own.arrow")
    else:
        put(tmp_path / f"own.{form}", rows)
    task = tasks.load_task(data=str(tmp_path / f"own.{form}"))
    reference = tasks.load_task(data=str(put(tmp_path / "b.jsonl", rows)))
    for split in ("train", "valid", "test"):
        assert [(p.prompt, p.answer, p.solution) for p in getattr(task, split)] == [
            (p.prompt, p.answer, p.solution) for p in getattr(reference, split)]
    assert f"{24} train, 3 valid, 3 test" in task.understood


@pytest.mark.parametrize("form", ["jsonl", "json", "parquet", "csv"])
def test_memory_of_a_large_file(form, tmp_path):
    """A few times the file, whatever the format, at every moment."""
    rows = [{"problem": f"{i} " + " ".join(str(i * j % 997) for j in range(50)), "answer": str(i)} for i in range(5000)]
    data = put(tmp_path / f"a.{form}", rows)
    size = len(lines(rows))
    tasks.load_task(data=str(data))  # what is imported
    tracemalloc.start()
    task = tasks.load_task(data=str(data))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(task.train) == 4000 and peak < (6 if form == "json" else 4) * size


# -------------------------------------------------------------------------------------------------- columns and values

@pytest.mark.parametrize("value, text", [
    (5, "5"), (2.5, "2.5"), (True, "True"), (["1"], "1"), ([1, "x"], "1, x"), ([[1, 2], [3]], "(1, 2), (3)"),
    ({"value": 7}, "7"), ({"a": 1, "b": [2]}, '{"a": 1, "b": [2]}'), ("So.\n#### 1,000 ", "1,000")])
def test_answers_as_text(value, text):
    assert shapes.problem_of({"prompt": "p", "answer": value}, "n")[0].answer == text


@pytest.mark.parametrize("row, columns, expected", [
    ({"problem": "a", "question": "b", "answer": 1}, "prompt=question", ("b", "1", None)),
    ({"q": "a", "gold": {"x": '{"y": 3}'}}, "prompt=q, answer=gold.x.y", ("a", "3", None)),
    ({"prompt": "a", "answer": 1, "proof": "c"}, "solution=proof", ("a", "1", "c")),
    ({"prompt": "a", "flat.name": 1}, "answer=flat.name", ("a", "1", None)),
    ({"prompt": "a", "answer": "4", "reward_model": {"ground_truth": 4}}, "", ("a", "4", None)),
    ({"question": "a", "answer": "so\n#### 4", "ground_truth": 4}, "", ("a", "4", "so\n#### 4")),
    ({"instruction": "a", "input": "b", "output": "\\boxed{c}"}, "", ("a\n\nb", "c", "\\boxed{c}")),
    ({"prompt": "a", "verification_info": '{"ground_truth": "4"}'}, "", ("a", "4", None)),
    ({"prompt": "a", "verification_info": "{'ground_truth': 4}"}, "", ("a", "4", None)),
    ({"problem": "a", "solution": "#### Sum\nIt is \\boxed{4}"}, "", ("a", "4", "#### Sum\nIt is \\boxed{4}")),
    ({"prompt": "", "problem": "a", "answer": 1, "level": 3.0}, "", ("a", "1", None)),
    ({"prompt": "a", "answer": "", "rationale": "#### 4"}, "", ("a", "4", "#### 4")),
    ({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}, "", ("a", None, "b")),
    ({"messages": json.dumps([*user("a"), said("b")])}, "", ("a", None, "b")),
    ({"prompt": "a", "messages": [*user("a"), said("b")]}, "", ("a", None, "b")),
    ({"prompt": "a", "messages": [*user("a"), said("b"), *user("c"), said("d")]}, "prompt=messages",
     ("a\n\nb\n\nc", None, "d")),
    ({"messages": user("no"), "conversations": [*user("a"), said("b")]}, "prompt=conversations", ("a", None, "b")),
    ({"prompt": "a", "answer": 1, "messages": ["b"]}, "", ("a", "1", None)),
    ({"prompt": "a", "answer": 1, "messages": [*user("a"), said("b"), *user("c"), said("d")]}, "", ("a", "1", None)),
    ({"prompt": [{"role": "user", "content": [{"type": "text", "text": "a"}]}], "answer": 1}, "", ("a", "1", None))])
def test_columns(row, columns, expected):
    problem, _ = shapes.problem_of(row, "n", shapes.columns_of(columns))
    assert (str(problem.prompt), problem.answer, problem.solution) == expected


@pytest.mark.parametrize("row, words", [
    ({"problem": "a", "question": "b", "answer": 1}, '"problem" and "question" could both be the prompt'),
    ({"prompt": "a", "answer": 1, "label": 2}, '"answer" and "label" could both be the answer: .*--columns answer='),
    ({"prompt": "a", "tests": "assert f()", "entry_point": "f", "label": 2}, '"label" and its tests could both'),
    ({"prompt": [], "answer": 1}, "must not be empty"), ({"prompt": {"a": 1}, "answer": 1}, '"prompt" must be text or'),
    ({"prompt": [said("a")], "answer": 1}, "the last message of \"prompt\" must be the user's, not one of assistant"),
    ({"prompt": user("a", "b")[:1], "answer": 1}, "must be the user's, not one of system"),
    ({"prompt": [{"role": "tool", "content": "a"}, *user("a")], "answer": 1}, "'tool'"),
    ({"prompt": [{"role": "user", "content": None}], "answer": 1}, "whose content is no text"),
    ({"prompt": [{"role": "user", "content": [{"type": "image"}]}], "answer": 1}, "whose content is no text"),
    ({"prompt": ["a"], "answer": 1}, "each with a role"), ({"messages": user("a")}, '"answer" is missing'),
    ({"text": "a", "code": "b"}, '"prompt" is missing: it has text, code; say which with --columns prompt='),
    ({"messages": "hello", "answer": 1}, '"messages" must be a list of chat messages'),
    ({"messages": {"a": 1}, "answer": 1}, '"messages" must be a list'),
    ({"prompt": [{"role": ["user"], "content": "a"}], "answer": 1}, "the roles are system, user and assistant"),
    ({"prompt": "a", "answer": {"a": float("nan"), "b": 1}}, "finite"),
    ({"prompt": "a", "answer": {"a": b"1", "b": 1}}, "null or bytes"),
    ({"prompt": "a", "answer": Decimal("NaN")}, "finite"), ({"prompt": "a", "solution": {"x": 1}}, "must be text"),
    ({"prompt": "a", "input_output": {"inputs": ["1"], "outputs": ["1"]}, "time_limit": 1e9}, "time_limit"),
    ({"prompt": user(" "), "answer": 1}, "must not be empty"), ({"prompt": "a", "answer": b"1"}, "bytes")])
def test_rows_that_are_no_problems(row, words):
    with pytest.raises(UserError, match=words) as error:
        shapes.problem_of(row, "n")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("io", [
    {"inputs": ["1", "2"], "outputs": ["1"]}, {"inputs": "12", "outputs": "34"}, [1],
    {"inputs": [None], "outputs": ["1"]}, {"inputs": [[1]], "outputs": [1], "fn_name": 5}])
def test_inputs_and_outputs_that_cannot_judge(io):
    with pytest.raises(UserError, match="it has no inputs and outputs"):
        shapes.problem_of({"prompt": "a", "input_output": io}, "n")


def test_whatever_is_in_a_row_is_no_stack_trace(tmp_path):
    """It is named, or left out."""
    deep = json.loads("[" * 900 + "1" + "]" * 900)
    rows = [{"prompt": "a", "verification_info": {"test_cases": [1, 2]}}, {"prompt": "a", "test_list": 5},
            {"prompt": "a", "answer": deep}, {"prompt": "a", "verification_info": {"test_cases": {"a": 1}}}]
    for row in rows:
        data = put(tmp_path / "a.jsonl", [row, {"prompt": "b", "answer": 1}])
        with pytest.raises(UserError, match="a.jsonl, line 1: it is not what such a row is") as error:
            tasks.load_task(data=str(data))
        assert "\n" not in str(error.value)
        assert "1 bad row" in tasks.load_task(data=str(data), skip_bad_rows=True).understood


@pytest.mark.parametrize("text", ["prompt", "=a", "prompt=", "promt=a", "prompt=a,b"])
def test_a_wrong_columns_flag(text, tmp_path):
    with pytest.raises(UserError, match="--columns .*prompt, answer, solution"):
        tasks.load_task(data=str(put(tmp_path / "a.jsonl", [{"prompt": "a", "answer": 1}])), columns=text)


def test_columns_of_one_row_say_nothing_of_another(tmp_path):
    rows = [{"prompt": "a", "answer": 1}, {"instruction": "b", "input": "c", "output": "\\boxed{2}"}] * 2
    task, problems = problems_of(put(tmp_path / "a.jsonl", rows))
    assert {p.prompt: p.answer for p in problems} == {"a": "1", "b\n\nc": "2"}
    assert "prompt from instruction or prompt" in task.understood


def test_the_table_of_names_is_the_code():
    """What the docstring lists is what is looked for, in that order."""
    table = shapes.__doc__.split("\n\n")[1]
    for field, names in shapes.NAMES.items():
        place = table.index(f"\n    {field} ") if field != "prompt" else 0
        for name in names:
            place = table.index(name, place)


# ------------------------------------------------------------------------------------------------------------ bad rows

def test_bad_rows(tmp_path):
    good = [{"prompt": f"{i}?", "answer": i} for i in range(1, 11)]
    text = lines(good[:3]) + "{\n" + lines(good[3:6] + [{"prompt": "x"}, {"prompt": [said("a")], "answer": 1}, [1]]
                                           + good[6:])
    data = tmp_path / "a.jsonl"
    data.write_text(text)
    with pytest.raises(UserError, match="a.jsonl, line 4: not valid JSON .*--skip-bad-rows"):
        tasks.load_task(data=str(data))
    task = tasks.load_task(data=str(data), skip_bad_rows=True)
    assert sorted(int(p.answer) for p in task.train + task.valid + task.test) == list(range(1, 11))
    assert ('4 bad rows left out: line 4 (not valid JSON); line 8 ("answer" is missing: it has prompt; say which with '
            '--columns answer=...); line 9 (the last message of "prompt" must be' in task.understood)
    with pytest.raises(UserError, match="holds no problems; 2 bad rows"):
        tasks.load_task(data=str(put(tmp_path / "b.jsonl", [{"prompt": "x"}, {"answer": 1}])), skip_bad_rows=True)


@pytest.mark.parametrize("rows, kept", [
    ([("a", "train"), ("b", None), ("c", "test")], {"a": "train", "c": "test"}),
    ([("a", "train"), ("b", "train"), (" a", "test"), ("c", "valid")], {"b": "train", " a": "test", "c": "valid"})])
def test_bad_splits_can_be_left_out(rows, kept, tmp_path):
    """A prompt in two splits stays in the one that is judged on."""
    data = put(tmp_path / "a.jsonl", [{"prompt": p, "answer": 1, "split": split} for p, split in rows])
    with pytest.raises(UserError, match="line [23]: .*split"):
        tasks.load_task(data=str(data))
    task = tasks.load_task(data=str(data), skip_bad_rows=True)
    assert {p.prompt: split for split in ("train", "valid", "test") for p in getattr(task, split)} == kept
    assert "1 bad row" in task.understood


@pytest.mark.parametrize("name, content, words", [
    ("a.csv", "prompt,answer\na,1\nb\n", "a.csv, line 3: not as many values"),
    ("a.csv", "prompt,prompt\na,1\n", "two columns of one name"),
    ("a.csv", 'prompt,answer\n"a"b,1\n', "cannot read .*line 2"),
    ("a.jsonl", '{"prompt": "a", "answer": 1, "answer": 2}', "line 1: not valid JSON .a name stands in it twice"),
    ("a.csv", "\nprompt,answer\na\n", "line 3: not as many values"),
    ("a.csv", "prompt;answer\na;1\n", '"prompt" is missing'), ("a.csv", "", "holds no problems"),
    ("a.json", '[{"prompt": "a", "answer": 1},\n{"prompt"]', "line 2: not valid JSON"),
    ("a.json", '[{"prompt": "a", "answer": 1}, 3]', "row 2: not a JSON object"),
    ("a.parquet", "PAR1 no", "cannot read"), ("a.arrow", "no", "cannot read"),
    ("a.csv", b"prompt,answer\n\xff,1\n", "cannot read")])
def test_broken_files(name, content, words, tmp_path):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=words) as error:
        tasks.load_task(data=str(path))
    assert "\n" not in str(error.value)


# --------------------------------------------------------------------------------------------------- folders, the hub

ROWS = [{"problem": f"What is {i}?", "answer": str(i)} for i in range(40)]


def test_folders_with_splits(tmp_path):
    """Names say the splits; valid is carved out of train if there is none; what is in two stays in test."""
    put(tmp_path / "a/data/train-00000-of-00002.parquet", ROWS[:10])
    put(tmp_path / "a/data/train-00001-of-00002.parquet", ROWS[10:20])
    put(tmp_path / "a/data/test-00000-of-00001.parquet", ROWS[18:25])
    put(tmp_path / "a/.cache/train.jsonl", [{"problem": "no", "answer": "no"}])
    task = tasks.load_task(data=str(tmp_path / "a"))
    assert [len(split) for split in (task.train, task.valid, task.test)] == [17, 1, 7]
    assert [p.id for p in task.test][:2] == ["a/test:1", "a/test:2"] and "2 left out that come again" in task.understood
    put(tmp_path / "b/train.csv", ROWS[:10])
    put(tmp_path / "b/dev.csv", ROWS[10:13])
    put(tmp_path / "b/test.csv", ROWS[13:15])
    task = tasks.load_task(data=str(tmp_path / "b"))
    assert [p.answer for p in task.valid + task.test] == ["10", "11", "12", "13", "14"] and len(task.train) == 10
    for name in ("c/train.jsonl", "d/part-0.jsonl"):  # nothing is said
        put(tmp_path / name, ROWS)
        task = tasks.load_task(data=str((tmp_path / name).parent))
        assert [len(split) for split in (task.train, task.valid, task.test)] == [32, 4, 4]
    put(tmp_path / "b/more.csv", ROWS[:10])
    with pytest.raises(UserError, match="cannot tell which split"):
        tasks.load_task(data=str(tmp_path / "b"))


@pytest.mark.parametrize("train,test", [
    ("training", "testing"), ("trainset", "testset"), ("train_set", "test_set"), ("my-train", "eval"),
    ("train", "evaluation"), ("TRAIN", "Test2")])
def test_other_names_of_splits(train, test, tmp_path):
    """Of files and of folders: test problems are not trained on."""
    for place in ("{}.jsonl", "{}/a.jsonl"):
        folder = tmp_path / str(len(place))
        put(folder / place.format(train), ROWS[:30])
        put(folder / place.format(test), ROWS[30:])
        task = tasks.load_task(data=str(folder))
        assert [p.answer for p in task.test] == [row["answer"] for row in ROWS[30:]]


def test_splits_that_only_the_card_says(tmp_path):
    put(tmp_path / "a.jsonl", ROWS[:30])
    put(tmp_path / "b.jsonl", ROWS[30:])
    files = "  - split: train\n    path: a.jsonl\n  - split: test\n    path: b.jsonl\n"
    (tmp_path / "README.md").write_text(f"---\nconfigs:\n- config_name: all\n  data_files:\n{files}---\n")
    with pytest.raises(UserError, match="README.md of .* says which files are train and test, but their names do not"):
        tasks.load_task(data=str(tmp_path))


@pytest.mark.parametrize("name, content, words", [
    ("a.xlsx", b"PK\x03\x04", "no JSON, nor does its name say"), ("a.jsonl.zst", b"\x28\xb5\x2f\xfd", "no JSON, nor"),
    ("a.txt", b"What is 1?", "no JSON, nor"), ("a.jsonl", b"version https://git-lfs.github", "pointer of git-lfs"),
    ("a.parquet", b"version https://git-lfs.github", "pointer of git-lfs"),
    ("a.csv", b"version https://git-lfs.github", "pointer of git-lfs")])
def test_files_of_other_formats(name, content, words, tmp_path):
    """Said of the file: no row of it is bad, and none can be left out."""
    (tmp_path / name).write_bytes(content)
    for skip in (False, True):
        with pytest.raises(UserError, match=f"cannot read .*{words}"):
            tasks.load_task(data=str(tmp_path / name), skip_bad_rows=skip)


def test_spaces_in_a_header(tmp_path):
    """As people write it; the cells stay as they are."""
    (tmp_path / "a.csv").write_text("prompt , answer\n" + "".join(f"p{i}, {i}\n" for i in range(9)))
    rows = [row for _, row in files.rows_in(str(tmp_path / "a.csv"))]
    assert rows[0] == {"prompt": "p0", "answer": " 0"} and len(problems_of(tmp_path / "a.csv")[1]) == 9


def test_contents_before_names(tmp_path):
    """What is zipped is so under any name, and JSON is under a name that says nothing."""
    put(tmp_path / "a.jsonl.gz", ROWS).rename(tmp_path / "a.jsonl")
    put(tmp_path / "b.jsonl", ROWS).rename(tmp_path / "rows.of.today")
    for name in ("a.jsonl", "rows.of.today"):
        assert len(tasks.load_task(data=str(tmp_path / name)).train) == 32


@pytest.mark.parametrize("hub", [False, True])
def test_floats_of_32_bits(hub, tmp_path, monkeypatch):
    """.1 is what was written, and .10000000149 is no right answer; in lists and objects, too."""
    import datasets
    import pyarrow
    import pyarrow.parquet
    values = pyarrow.array([0.1, 2.5, 3.0, None], pyarrow.float32())
    objects = pyarrow.StructArray.from_arrays([values], names=["ground_truth"])
    lists = pyarrow.array([[0.1, None], [2.5], [], None], pyarrow.list_(pyarrow.float32()))
    table = pyarrow.table({"prompt": ["a", "b", "c", "d"], "label": values, "reward_model": objects, "all": lists,
                           "wide": [0.1, 1 / 3, 2.0, 5.0]})
    pyarrow.parquet.write_table(table, tmp_path / "train.parquet")
    name = str(tmp_path / "train.parquet")
    if hub:
        found = datasets.load_dataset("parquet", data_files={"train": name}, cache_dir=str(tmp_path / "cache"))
        name = "org/name"
        monkeypatch.setattr(files, "from_hub", lambda *args: found)
    rows = [row for _, row in next(iter(files.parts_of(name).values()))]
    assert [row["label"] for row in rows] == [0.1, 2.5, 3.0, None] == [
        (row["reward_model"] or {}).get("ground_truth") for row in rows]
    assert [row["all"] for row in rows] == [[0.1, None], [2.5], [], None] and rows[1]["wide"] == 1 / 3


def test_links_in_folders(tmp_path):
    """They are followed, also to a folder, but not in a circle."""
    put(tmp_path / "a/train.jsonl", ROWS[:5])
    put(tmp_path / "elsewhere/test.jsonl", ROWS[5:8])
    (tmp_path / "a/more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/back").symlink_to(tmp_path / "a")
    task = tasks.load_task(data=str(tmp_path / "a"))
    assert [p.answer for p in task.test] == ["5", "6", "7"] and len(task.train) + len(task.valid) == 5


def test_odd_columns_of_parquet(tmp_path):
    """Numbers of any kind, dates and categories are text; two columns of one name are refused."""
    import pyarrow
    import pyarrow.parquet
    kinds = {"1.50": pyarrow.array([Decimal("1.50")]), "2024-01-02": pyarrow.array([datetime.date(2024, 1, 2)]),
             "7": pyarrow.array([7], pyarrow.uint8()), "so": pyarrow.array(["so"]).dictionary_encode()}
    path = tmp_path / "a.parquet"
    for text, values in kinds.items():
        pyarrow.parquet.write_table(pyarrow.table({"prompt": ["a"], "answer": values}), path)
        assert problems_of(path)[1][0].answer == text
    table = pyarrow.Table.from_arrays([pyarrow.array(["a"])] * 3, names=["prompt", "answer", "answer"])
    pyarrow.parquet.write_table(table, path)
    with pytest.raises(UserError, match="two columns of one name"):
        tasks.load_task(data=str(path))


def test_names_that_are_nothing(tmp_path, monkeypatch):
    """They are not looked for on the hub; ids without an owner are."""
    monkeypatch.chdir(tmp_path)
    for flag, name, words in (("--model", "tinyy", "is it tiny"), ("--model", "Tiny_Program", "is it tiny_program"),
                              ("--data", "gsm8", "is ORG/NAME")):
        code, _, err = run(ppo_passk.main, flag, name)
        assert code == 2 and err.count("\n") == 1 and "no such file or folder" in err and words in err
    for name in ("gpt2", "distilgpt2", "org/tiny"):
        assert contents.located(name, "--model") == name


def test_levels_of_own_folders(tmp_path):
    """MATH as it was released, a problem a file, without its name."""
    for i in range(6):
        row = {"problem": f"{i}?", "level": f"Level {i % 2 + 1}", "type": "Algebra", "solution": f"$\\boxed{{{i}}}$"}
        path = tmp_path / f"MATH/{'test' if i > 3 else 'train'}/algebra/{i}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(row, indent=2))
    task = tasks.load_task(data=str(tmp_path / "MATH"), levels="2")
    assert [p.answer for p in task.test] == ["5"] and {p.level for p in task.train + task.valid} == {"2"}


def test_save_to_disk(tmp_path):
    import datasets
    rows = [{"answer": row["answer"], "prompt": user(row["problem"])} for row in ROWS]
    one = datasets.Dataset.from_list(rows)
    one.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": one.select(range(30)), "validation": one.select(range(30, 34)),
                          "test": one.select(range(34, 40))}).save_to_disk(tmp_path / "three")
    task = tasks.load_task(data=str(tmp_path / "one"))
    assert [len(split) for split in (task.train, task.valid, task.test)] == [32, 4, 4]
    task = tasks.load_task(data=str(tmp_path / "three"))
    assert [len(split) for split in (task.train, task.valid, task.test)] == [30, 4, 6]
    assert task.test[0].prompt == Chat([("user", "What is 34?")]) and task.test[0].id == "three/test:1"


def hub_copy(folder, configs):
    text = "---\nconfigs:\n"
    for config in configs:
        text += f"- config_name: {config}\n  data_files:\n  - split: train\n    path: {config}/train-*\n"
        put(folder / f"{config}/train-00000-of-00001.parquet", [{**row, "answer": config} for row in ROWS])
    (folder / "README.md").write_text(text + "---\n")


def test_the_hubs_layout(tmp_path, monkeypatch):
    hub_copy(tmp_path / "sums", ["easy", "hard"])
    hub_copy(tmp_path / "one", ["default"])
    with pytest.raises(UserError, match="has the configurations easy, hard: choose one, e.g. .*sums:easy"):
        tasks.load_task(data=str(tmp_path / "sums"))
    with pytest.raises(UserError, match="no folder harder"):
        tasks.load_task(data=f"{tmp_path}/sums:harder")
    assert {p.answer for p in tasks.load_task(data=f"{tmp_path}/sums:hard").train} == {"hard"}
    assert len(tasks.load_task(data=str(tmp_path / "one")).train) == 32
    monkeypatch.chdir(tmp_path)
    assert contents.located("sums:hard", "--data") == f"{tmp_path}/sums:hard"
    code, out, err = run(ppo_passk.main, *TINY, "--data", "sums:hard", "--steps", 1, "--k", 1, "--eval-samples", 0,
                         "--columns", "prompt=problem", "--out", "r")
    assert code == 0 and "40 rows" in out, err
    code, out, err = run(evaluate.main, "r", "--samples", 2, "--k", 1, "--max-new-tokens", 4, "--problems", 2,
                         "--out", "e")
    assert code == 0 and "40 rows" in out, err


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A folder in the hub's layout that `datasets` gives for any id, and what it was asked for."""
    import datasets
    import huggingface_hub
    load_dataset, asked = datasets.load_dataset, []
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "get_session", lambda: SimpleNamespace(head=lambda url, timeout: None))

    def served(path, config=None, streaming=False):
        asked.append((path, config, streaming))
        return load_dataset(str(tmp_path / "served"), config, streaming=streaming)
    monkeypatch.setattr(datasets, "load_dataset", served)
    return tmp_path / "served", asked


def splits_of(task):
    return [{p.prompt for p in getattr(task, split)} for split in ("train", "valid", "test")]


def test_an_id_of_the_hub(hub):
    """What it has no split for is taken out of its train rows by a checksum, whatever else is there."""
    folder, asked = hub
    hub_copy(folder, ["easy", "hard"])
    task = tasks.load_task(data="org/sums:hard")
    assert asked == [("org/sums", "hard", False)] and {p.answer for p in task.train} == {"hard"}
    sizes = [*map(len, splits_of(task))]
    assert sum(sizes) == 40 and sizes[0] > 25 and min(sizes) > 0
    assert task.train[0].id.startswith("sums:hard/all:")
    with pytest.raises(UserError, match="cannot load org/sums .*easy.*hard.*org/sums:NAME") as error:
        tasks.load_task(data="org/sums")
    assert "\n" not in str(error.value)
    for name in ("org/none.jsonl", "org/none.parquet"):
        with pytest.raises(UserError, match="cannot read .*No such file"):
            tasks.load_task(data=name)
    assert len(asked) == 2
    assert files.parted("org/sums:hard") == ("org/sums", "hard") and files.parted("a.jsonl") == ("a.jsonl", None)


@pytest.mark.parametrize("there", [["train"], ["train", "test"], ["train", "validation", "test"]])
def test_a_part_of_the_hub(there, hub):
    """Only the rows that are needed are read: the second file of the train split, with rows that are none, would be
    refused. A problem is in the same split however many are read."""
    folder, asked = hub
    for n, split in enumerate(there):
        rows = [{"problem": f"{n} {i}?", "answer": str(i)} for i in range(60 if split == "train" else 5)]
        put(folder / f"{split}-00000-of-00002.jsonl", rows)
    put(folder / "test-00001-of-00002.jsonl", [{"problem": "0 3?", "answer": "3"}])
    if len(there) == 1:
        (folder / "test-00001-of-00002.jsonl").unlink()
    bad = put(folder / "train-00001-of-00002.jsonl", [{"problem": "", "answer": ""}])
    part = tasks.load_task(data="org/sums", part=(40, None))
    assert asked == [("org/sums", None, True)] and len(part.train) == 40 and "--train-problems" in part.understood
    with pytest.raises(UserError, match="org/sums, train row 61: .*empty"):
        tasks.load_task(data="org/sums")
    whole = tasks.load_task(data="org/sums", skip_bad_rows=True)
    assert "1 bad row" in whole.understood and [streaming for *_, streaming in asked[1:]] == [False, False]
    for a, b in zip(splits_of(part), splits_of(whole)):
        assert a and a <= b
    assert "0 3?" not in splits_of(whole)[0] or len(there) == 1
    assert "bad" not in tasks.load_task(data="org/sums", part=(40, None), skip_bad_rows=True).understood
    for split in ("valid", "test"):  # one split alone: train is not touched where it is not needed
        alone = tasks.load_task(data="org/sums", part=(None, split), skip_bad_rows=True)
        assert getattr(alone, split) == getattr(whole, split)
        assert bool(alone.train) == (split not in [*map(files.split_in, zip(there))])
    with pytest.raises(UserError, match="train row 61"):  # levels are known once rows are read
        tasks.load_task(data="org/sums", part=(40, None), levels="1")
    assert bad.exists()


def test_a_reward_reads_the_same_part_of_the_hub(hub, tmp_path):
    """A function of one's own judges the problems that are read without it, in the same splits."""
    folder, asked = hub
    put(folder / "train.jsonl", [*({"problem": f"{i}?", "answer": str(i)} for i in range(60)), {"problem": ""}])
    (tmp_path / "mine.py").write_text("def right(completion, answer): return float(completion == answer)")
    plain = tasks.load_task(data="org/sums", part=(30, None))
    judged = tasks.load_task(data="org/sums", part=(30, None), reward=f"{tmp_path}/mine.py")
    assert splits_of(judged) == splits_of(plain) and len(judged.train) == 30 and judged.train[0].row["answer"]
    assert [streaming for *_, streaming in asked] == [True, True]


def test_a_run_on_a_part_of_the_hub(hub, tmp_path, monkeypatch):
    """Its resume compares what it read; evaluate.py reads the same."""
    monkeypatch.setattr("support.run.plot_run", lambda *_: None)  # pictures take a third of the time
    monkeypatch.setattr(evaluate.plots, "plot", lambda *_: None)
    folder, asked = hub
    rows = [{"problem": f"c{i},2:{i}>", "answer": str(i)} for i in range(1, 81)]
    data = put(folder / "train.jsonl", rows)
    flags = ["--data", "org/sums", "--train-problems", 30, "--steps", 1, "--k", 1, "--out", tmp_path / "r"]
    code, out, err = run(ppo_passk.main, *TINY, *flags, "--eval-samples", 0)
    assert code == 0 and "30 train" in out and "no more of it was read" in out, err
    for row in rows[60:]:
        row["answer"] = ""  # which is not read
    put(data, rows)
    assert run(ppo_passk.main, "--out", tmp_path / "r", "--resume")[0] == 0
    code, out, err = run(evaluate.main, tmp_path / "r", "--samples", 2, "--k", 1, "--max-new-tokens", 4, "--out",
                         tmp_path / "e")
    pool = read_lines(tmp_path / "e", "pool-1.jsonl")
    assert code == 0 and {entry["prompt"] for entry in pool} == splits_of(
        tasks.load_task(data="org/sums", part=(30, None)))[2], err
    assert all(streaming for *_, streaming in asked)
    rows[0]["answer"] = "9"
    put(data, rows)
    code, _, err = run(ppo_passk.main, "--out", tmp_path / "r", "--resume")
    assert code == 2 and "the text of its problems" in err


# ------------------------------------------------------------------------------------------------------------ messages

def with_template(policy, template=CHAT):
    policy.tokenizer.chat_template = template
    return policy


def test_messages_go_through_the_template():
    policy = with_template(load_policy("tiny"))
    chat = Chat([("system", "1"), ("user", "2"), ("assistant", "3"), ("user", "4")])
    (text, plain), written = policy.put([chat, "5"], True)
    assert written and text == "<system>1<user>2<assistant>3<user>4<assistant>" and plain == "<user>5<assistant>"
    assert policy.put([chat], False) == ([chat], False) and str(chat) == "1\n\n2\n\n3\n\n4"
    policy.system = "6"
    with pytest.raises(UserError, match="--system: there are prompts with a system message of their own"):
        policy.put([chat], True)
    assert policy.put([Chat(chat.turns[1:])], True)[0] == ["<system>6<user>2<assistant>3<user>4<assistant>"]
    policy.system = None
    with_template(policy, "{{ raise_exception('no system role') }}")
    with pytest.raises(UserError, match="does not take messages of system, user, assistant, user .*no system role"):
        policy.encode([chat], True)
    with_template(policy, None)
    with pytest.raises(UserError, match="prompts are chat messages, but the tokenizer of this model has no chat temp"):
        policy.encode([chat], True)
    assert policy.encode([chat], False) == policy.encode([str(chat)], False)


def test_a_chat_is_a_text():
    """Equal only to the same messages; it can be stored, and copied."""
    a, b = Chat([("system", "1"), ("user", "2")]), Chat([("user", "1"), ("user", "2")])
    assert a != b and (a == b) is False and a == Chat(a.turns) and len({a, b, Chat(a.turns)}) == 2 and a != str(a)
    assert pickle.loads(pickle.dumps(a)) == a and json.dumps(a) == '"1\\n\\n2"'
    task = [tasks.Task() for _ in range(2)]
    for t, chat in zip(task, (a, b)):
        t.train = [tasks.Problem("n", chat, "1")]
    assert contents.of_rows(task[0], "x")["sha256"] != contents.of_rows(task[1], "x")["sha256"]


def test_runs_on_messages(tmp_path):
    """The embedded model has no template: one sentence, or with --no-chat their texts; samples, pools and a resume."""
    rows = [{"prompt": user(f"c{i},2:{i}>", "7"), "answer": str(i)} for i in range(1, 31)]
    data = put(tmp_path / "p.jsonl", rows)
    code, _, err = run(ppo_passk.main, *TINY, "--k", 1, "--data", data, "--steps", 1, "--out", tmp_path / "q")
    assert code == 2 and err.count("\n") == 1 and "chat_template" in err and "--no-chat" in err
    flags = [*TINY, "--k", 1, "--data", data, "--steps", 1, "--no-chat", "--out", tmp_path / "r"]
    code, out, err = run(ppo_passk.main, *flags)
    assert code == 0 and "prompts as they are, of chat messages their texts one after the other" in out, err
    assert "30 rows in " in out and "(prompt from prompt, answer from answer), 24 train, 3 valid, 3 test" in out
    first = tasks.load_task(data=str(data)).train[0]
    assert f"the first prompt is {str(first.prompt)!r}, its gold answer {first.answer!r}" in out
    assert read_lines(tmp_path / "r", "samples.jsonl")[0]["prompt"].startswith("7\n\nc")
    assert run(ppo_passk.main, "--out", tmp_path / "r", "--resume")[0] == 0
    put(tmp_path / "p.jsonl", [{**row, "prompt": user(row["prompt"][1]["content"], "8")} for row in rows])
    code, _, err = run(ppo_passk.main, "--out", tmp_path / "r", "--resume")
    assert code == 2 and "text of its problems" in err
    code, out, err = run(evaluate.main, "tiny", "--data", data, "--no-chat", "--samples", 2, "--k", 1,
                         "--max-new-tokens", 4, "--out", tmp_path / "e")
    assert code == 0 and read_lines(tmp_path / "e", "pool-1.jsonl")[0]["prompt"].startswith("8\n\n"), err
    pool = evaluate.read_pool(str(tmp_path / "e" / "pool-1.jsonl"))  # a verifier scores it as messages
    assert {tuple(role for role, _ in entry["prompt"].turns) for entry in pool} == {("system", "user")}


def test_messages_alone_serve_supervised_training(tmp_path):
    rows = [{"messages": [*user(f"c{i},2:"), said(f"{i}")]} for i in range(1, 31)]
    data = put(tmp_path / "p.jsonl", rows)
    flags = ["--data", data, "--no-chat", "--steps", 1, "--prompts", 2]
    code, out, err = run(cat_passk.main, *flags, "--mode", "sft", "--eval-samples", 0, "--out", tmp_path / "a")
    assert code == 0 and "solution from the last message" in out, err
    code, out, err = run(bon_sft.main, *flags, "--n", 1, "--eval-samples", 0, "--out", tmp_path / "b")
    assert code == 0, err
    for more in ([], ["--eval-samples", 0]):
        code, _, err = run(ppo_passk.main, *flags, "--k", 1, "--samples", 4, *more, "--out", tmp_path / "c")
        assert code == 2 and err.count("\n") == 1 and "no row of --data has an answer or tests" in err


def test_the_verifier_reads_messages():
    from support.verifier import Verifier
    verifier = Verifier(None, with_template(load_policy("tiny")).tokenizer, "", {})
    chat = Chat([("system", "1"), ("user", "2")])
    wanted = verifier.tokenizer("<system>1<user>2<assistant>3", add_special_tokens=False)["input_ids"]
    assert verifier.encode(chat, "3", chat=True) == wanted
    assert verifier.encode(chat, "3")[:-1] == verifier.encode("1\n\n2", "3")[:-1]


def test_flags_that_are_for_own_data():
    for options in ({"columns": "prompt=a"}, {"skip_bad_rows": True}):
        with pytest.raises(UserError, match="for data of your own"):
            tasks.load_task("countdown", **options)
