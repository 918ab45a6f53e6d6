"""The code tasks from small local copies in the data sets' own schema, programs taken out of completions, own files."""
import json
import os
import re
import shutil
import subprocess
import sys
import time

import pytest
from conftest import ROOT
from test_scripts import run

import bench
import evaluate
import ppo_passk
import tasks
from tasks.data import code_problem, load_codecontests
from tasks.programs import prefix_of, program_of
from tasks.specs import LIMIT, MAX_TESTS, stdio_spec

if shutil.which("bwrap") is None:
    pytest.skip("bubblewrap is not installed (apt install bubblewrap)", allow_module_level=True)


# ---------------------------------------------------------------------------------------- the program in a completion

PREFIX = 'from typing import List\n\ndef helper(x):\n    return x\n\ndef f(x: int) -> int:\n    """ Twice x """\n'


@pytest.mark.parametrize("completion, rest", [
    ("    return 2 * x\n", "    return 2 * x\n"),
    ("    return 2 * x\n\ndef g():\n    pass\nprint(f(1))", "    return 2 * x\n"),
    ("    return 2 * x\n# Test\nassert 0", "    return 2 * x"),
    ("    return 2 * x\n```\nThis works.", "    return 2 * x"),
    ("Sure:\n```python\n    return 2 * x\n```", "    return 2 * x"),
    ("Sure:\n```python\ndef f(x):\n    return 2 * x\n```", "\n    pass\n\ndef f(x):\n    return 2 * x"),
    ("def f(x):\n    return 2 * x", "\n    pass\n\ndef f(x):\n    return 2 * x"),
    ("", ""),
])
def test_program_of_a_prompt_that_is_code(completion, rest):
    assert program_of(completion, PREFIX, ["f"]) == PREFIX + rest


def test_program_without_a_prefix():
    assert program_of("print(1)") == "print(1)"
    assert program_of("I do\n```\nprint(1)\n```") == "print(1)"


def test_prefix_of():
    assert prefix_of(PREFIX, "f") == PREFIX
    for prompt in (PREFIX + "    return 1\n)", "Write a function f.", "", "\0", "(" * 100_000, "x = 1"):
        assert prefix_of(prompt, "f") == ""
    assert prefix_of(PREFIX, "g") == ""


SOLUTION = "def f(x: int) -> int:\n    y = x + 1\n    if y:\n        return y - 1 + x\n    return 2 * x"
USAGE, OUTPUT = "print(f(2))  # 4", "4\n6"
SHAPES = {  # how chat models and base models write the function, {code}, or its body, {body} and {flat}, one level out
    "block": "```python\n{code}\n```",
    "block after prose": "Sure! Here it is:\n\n```python\n{code}\n```\nIt doubles x.",
    "no language": "```\n{code}\n```", "block and usage": "```python\n{code}\n```\n\nExample:\n```python\n{usage}\n```",
    "block and output": "```python\n{code}\n```\nOutput:\n```\n{output}\n```",
    "usage, then block": "Use it like\n```python\n{usage}\n```\n\n```python\n{code}\n```",
    "block, usage, output": "```python\n{code}\n```\n```python\n{usage}\n```\n```text\n{output}\n```",
    "block and tests": "```python\n{code}\n```\n```python\ndef test_f():\n    assert f(1) == 2\n```",
    "block and shell": "```python\n{code}\n```\n```bash\npython f.py\n```",
    "in a list": "1. Write it:\n\n   ```python\n{three}\n   ```\n2. Done.",
    "in a bullet": "- Here:\n  ```python\n{two}\n  ```", "tildes": "~~~python\n{code}\n~~~",
    "bare tildes": "So:\n~~~\n{code}\n~~~\nDone.", "four backticks": "````python\n{code}\n````",
    "python3": "```python3\n{code}\n```", "spaced language": "``` py\n{code}\n```", "capital": "```Python\n{code}\n```",
    "in a quotation": "> ```python\n{quoted}\n> ```", "carriage returns": "```python\r\n{code}\r\n```\r\n",
    "cut off": "Here:\n```python\n{code}",
    "wrong, then right": "```python\ndef f(x):\n    return 0\n```\nNo:\n```python\n{code}\n```",
    "with its imports": "```python\nimport math\nfrom typing import *\n\n{code}\n```",
    "whole prompt again": "```python\n{prompt}{body}\n```",
    "language without a fence": "python\n{code}", "language, then a fence": " Python3\n{code}\n```",
    "language after prose": "Here it is:\n\npy\n{code}\n\nDone.", "language in a block": "```\npython\n{code}\n```",
    "language and body": "python\n{body}",
    "with main": "```python\n{code}\n\nif __name__ == '__main__':\n    print(f(3))\n```",
    "body in a block": "```python\n{body}\n```", "body at the margin in a block": "```python\n{flat}\n```",
    "body at the margin after prose": "The body is\n\n```\n{flat}\n```\nas wanted.", "body": "{body}",
    "body and more": "{body}\n\ndef g(x):\n    return 0\nprint(g(1))",
    "body, then a fence": "{body}\n```\nThat is all.", "unfenced": "{code}",
    "unfenced after prose": "Here is the solution:\n\n{code}",
    "unfenced between prose": "Here is the solution:\n\n{code}\n\nThis function doubles its argument.",
    "unfenced and usage": "{code}\n\n{usage}", "prose and body": "The function should be:\n\n{body}",
    "byte order mark": "```python\n\ufeff{code}\n```", "token after the code": "{code}<|im_end|>",
    "token after the body": "{body}<|endoftext|>\n", "import from the future": "```python\n# Twice\nfrom __future__ "
    "import annotations\n\n{code}\n```", "thoughts": "Try\n```python\ndef f(x): return 2 * x\n```\n</think>\n{code}"}


def in_shape(shape, code):
    body, margin = code.partition("\n")[2], lambda text: text + code.replace("\n", "\n" + text)
    return SHAPES[shape].format(
        code=code, body=body, flat="\n".join(line[4:] for line in body.split("\n")), usage=USAGE, output=OUTPUT,
        prompt=PREFIX, two=margin("  "), three=margin("   "), quoted=margin("> "))


@pytest.fixture(scope="module")
def judged():
    """A task with one problem, whose tests need the function and a helper of the prompt."""
    task = tasks.Code("t", [], [], [])
    spec = {"tests": "assert f(2) == 4 and f(-1) == -2 and f(0) == 0", "names": {"f": "f"}, "prefix": PREFIX,
            "limit": 3}
    task.test = [code_problem("p", PREFIX, None, spec), code_problem("q", "?", None, spec | {"prefix": ""})]
    task.open()
    return task


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_of_a_completion(shape, judged):
    """The right function counts and a wrong one does not, however they are written. Only text is looked at for them."""
    completions = [in_shape(shape, code) for code in (
        SOLUTION, SOLUTION.replace("2 * x", "2 * x + 1").replace("- 1 + x", "+ x"))]
    # Without the head of a function there is nothing to complete.
    for problem in judged.test[:1 if "body" in shape else 2]:
        assert judged.rewards([problem] * 2, completions) == [1.0, 0.0]


@pytest.mark.parametrize("completion", [
    f"```python\n{SOLUTION}\n```\nBetter:\n```python\ndef f(x):\n    return 0\n```", "```python\nassert f(2) == 4\n```",
    "```\n4\n```", "I cannot do that.", "f(2) is 4, so it returns 4.", "```python\n```", "# def f(x): return 2 * x"])
def test_shapes_that_are_not_right(completion, judged):
    assert judged.verify(judged.test[0], completion) == 0.0


def test_programs_are_put_together():
    """Imports from __future__ come first, and what reads standard input in any way is the program."""
    blocks = ["def g(x):\n    return x", "from __future__ import annotations\ndef f(x: Any): return g(x)"]
    program = program_of("\n".join(f"```python\n{code}\n```" for code in blocks), names=["f"])
    assert program.startswith("from __future__ import annotations\ndef g(x)") and "def f" in program
    compile(program, "program.py", "exec")
    assert "os.read" in program_of("```python\nprint(os.read(0, 99))\n```\n```python\nprint(open('a'))\n```")


@pytest.mark.parametrize("completion", [
    "```python\n{code}\n```\nInput:\n```\n2\n```\nOutput:\n```\n4\n```", "Input\n```\n2\n```\n\n```python\n{code}\n```",
    "```python\n{code}\n```\n```\n1 2 3\n```", "~~~\n{code}\n~~~\n~~~\n4\n~~~",
    "1. Do\n   ```python\n   {code}\n   ```\n   which prints\n   ```text\n   4\n   ```", "{code}", "```python\n{code}",
    "python\n{code}\n```", "python\n{code}", "\n py\n{code}\n```", "python3.11 \n{code}", "```\nPython\n{code}\n```",
    "The program:\npython\n{code}", '```python\n"""\nSample:\n```\n2\n```\n"""\n{code}\n```'])
def test_shapes_of_a_program(completion, judged):
    spec = {"inputs": ["2\n", "3"], "outputs": ["4", "9"], "limit": 3}
    for code, reward in (("print(int(input()) ** 2)", 1.0), ("print(int(input()) ** 2 + 1)", 0.0)):
        assert judged.verify(code_problem("s", "?", None, spec), completion.replace("{code}", code)) == reward


@pytest.mark.parametrize("unit", ["```\n", "```python\n", "~~~", "`", "```a ", "> ", "> ```\n", "- ", "- ```\n", "1. ",
                                  "    ", "\t", "def f(x):\n", "return\n", "x = 1\n", "a, ", "(", "\n", "\r\n",
                                  "\"\"\"", "if x:\n ", "</s>", "<|a|>", "<|", "from __future__ import (\n"])
def test_long_completions_take_linear_time(unit):
    for text in (unit * (400_000 // len(unit)), "```python\n" + unit * (400_000 // len(unit)) + "\n```"):
        started = time.process_time()
        program_of(text, PREFIX, ["f"])
        program_of(text)
        assert time.process_time() - started < 4


def test_votes_are_counted_by_the_program():
    extract = tasks.Code("t", [], [], []).extract
    same = ["```python\ndef f(x):\n    return x + 1\n```", "def f(x):  # add\n\n  return (x+1)",
            "Well.\n```\ndef f( x ):\n\treturn x+1\n```\nDone."]
    assert len({extract(text) for text in same}) == 1
    assert extract("    return x+1 # body\n") == extract("    return x + 1")
    assert extract(same[0]) != extract("def f(x):\n    return x + 2")
    for text in ("", "  \n", "This is prose.", "```\n```", "def f(:", "x\0", "\ud800(", "(" * 5000, "-" * 9000 + "1",
                 "```\n\\\n```"):
        assert extract(text) is None
    for text in ("a" + ".b" * 4000, "x = " + "[" * 90 + "]" * 90, "1" * 9000, "'\\d'", "x = 1\n" * 30_000):
        extract(text)  # comes back, with an answer or without


# ------------------------------------------------------------------------------------------------------ local copies

@pytest.fixture
def cache(tmp_path, monkeypatch):
    import datasets
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def write_parquet(path, rows):
    import pyarrow
    import pyarrow.parquet
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def readme(config, folder, splits):
    files = "\n".join(f"  - split: {split}\n    path: {folder}/{split}-*" for split in splits)
    return f"---\nconfigs:\n- config_name: {config}\n  data_files:\n{files}\n---\n"


@pytest.fixture
def humaneval(tmp_path, cache):
    folder = tmp_path / "humaneval"
    rows = [{"task_id": f"HumanEval/{i}", "entry_point": f"add{i}",
             "prompt": f'from typing import List\n\n\ndef add{i}(xs: List[int]) -> int:\n    """ Sum of xs, and {i}\n'
                       f'    >>> add{i}([1])\n    {i + 1}\n    """\n',
             "canonical_solution": f"    return sum(xs) + {i}\n",
             "test": "\n\nMETADATA = {\n    'author': 'jt'\n}\n\n\ndef check(candidate):\n"
                     f"    assert candidate([]) == {i}\n    assert candidate([1, 2]) == {i + 3}\n"} for i in range(4)]
    rows.append({"task_id": "HumanEval/38", "entry_point": "decode_shift",
                 "canonical_solution": "    return ''.join(chr(ord(c) - 1) for c in s)\n",
                 "prompt": 'def encode_shift(s: str):\n    """ Shift by one """\n'
                           '    return "".join(chr(ord(c) + 1) for c in s)\n\n\ndef decode_shift(s: str):\n'
                           '    """ Undo it """\n',
                 "test": "def check(candidate):\n    from random import choice\n    for _ in range(20):\n"
                         "        text = ''.join(choice('abc') for _ in range(9))\n"
                         "        assert candidate(encode_shift(text)) == text\n"})
    write_parquet(folder / "openai_humaneval/test-00000-of-00001.parquet", rows)
    (folder / "README.md").write_text(readme("openai_humaneval", "openai_humaneval", ["test"]))
    return folder


def test_humaneval(humaneval, capfd):
    task = tasks.load_task("humaneval", data=str(humaneval))
    assert (task.name, task.chat, task.graded, task.train, task.valid, len(task.test)) == (
        "humaneval", True, False, [], [], 5)
    assert [p.id for p in task.test][:2] == ["humaneval/HumanEval/0", "humaneval/HumanEval/1"]
    assert task.rewards(task.test, [p.solution for p in task.test]) == [1.0] * 5
    assert task.rewards(task.test, [task.test[0].solution] * 5) == [1.0, 0.0, 0.0, 0.0, 0.0]
    first, last = task.test[0], task.test[-1]
    assert task.rewards([first] * 4, ["```python\ndef add0(xs: List[int]):\n    return sum(xs)\n```",
                                      "    return sum(xs)\n\nprint(input())", "    return 0", ""]) == [1, 1, 0, 0]
    assert task.verify(last, "```python\ndef encode_shift(s): return s\ndef decode_shift(s): return s\n```") == 0.0
    assert task.target(first) == first.solution and not task.counts
    with pytest.raises(tasks.UserError, match="humaneval has no train problems"):
        task.need("train")
    assert capfd.readouterr().err == ""


def test_what_cannot_be_judged_is_counted(humaneval):
    task = tasks.load_task("humaneval", data=str(humaneval))
    p = code_problem("q", "", None, json.loads(task.test[0].answer) | {"limit": 0.5})
    completions = ["    return object()", "    while True: pass", "    xs.append(object())", "    return 0",
                   "    return sum(xs)"]
    assert task.rewards([p] * 5, completions) == [0, 0, 0, 0, 1]
    assert task.counts == {"unsupported": 2, "program_timeouts": 1}
    broken = code_problem("r", "", None, json.loads(p.answer) | {"tests": "import os\nos._exit(1)"})
    assert task.verify(broken, "    return 0") == 0.0 and task.counts["verifier_errors"] == 1


def test_each_program_is_judged_once(humaneval, monkeypatch):
    task = tasks.load_task("humaneval", data=str(humaneval))
    asked, judge = [], task.pool.judge
    monkeypatch.setattr(task.pool, "judge", lambda jobs: asked.append(len(jobs)) or judge(jobs))
    a, b = task.test[:2]
    code = "```python\ndef add0(xs): return sum(xs)\n```"
    for _ in range(2):
        assert task.rewards([a, a, a, b], [code, "Yes:\n" + code, "    return 1", "    return 1"]) == [1, 1, 0, 0]
    assert asked == [2, 3, 0]  # the tests of two problems on a program that only raises, then the programs
    with pytest.raises(ValueError):
        task.rewards([a, b], [code])


def mbpp_row(i, **more):
    return {"task_id": i, "text": f"Write a function to add {i}.",
            "code": f"def add_{i}(x):\r\n  return helper(x) + {i}\r\ndef helper(x):\r\n  return x",
            "test_list": [f"assert add_{i}(1) == {i + 1}", f"assert add_{i}(2) == {i + 2}"], "test_setup_code": "",
            "challenge_test_list": [f"assert add_{i}(9) == {i + 9}"], **more}


def test_mbpp(tmp_path, cache):
    folder = tmp_path / "mbpp"
    node = {"code": "class Node:\n  def __init__(self, x): self.x = x\ndef depth(n): return n.x",
            "test_setup_code": "root = Node(3)",
            "test_list": ["assert depth(root) == 3"], "challenge_test_list": []}
    rows = {"train": [mbpp_row(i) for i in range(10, 16)],
            "test": [mbpp_row(i) for i in range(3)] + [mbpp_row(7, **node)],
            "validation": [mbpp_row(i) for i in range(20, 22)], "prompt": [mbpp_row(5)]}
    for split, some in rows.items():
        write_parquet(folder / f"full/{split}-00000-of-00001.parquet", some)
    (folder / "README.md").write_text(readme("full", "full", rows))
    task = tasks.load_task("mbpp", data=str(folder))
    assert list(map(len, (task.train, task.valid, task.test))) == [6, 2, 4]
    p = task.test[0]
    assert p.prompt.startswith("Write a function to add 0.\nYour code should pass this test:\n"
                               "assert add_0(1) == 1\n") and "add_0(2)" not in p.prompt
    assert task.rewards(task.test[:3] + task.train,
                        [q.solution for q in task.test[:3] + task.train]) == [1.0] * 9 and not task.counts
    # The challenge test is hidden.
    assert task.verify(p, "```python\ndef add_0(x):\n    return {1: 1, 2: 2}.get(x)\n```") == 0.0
    assert task.verify(task.test[3], task.test[3].solution) == 1.0 and not task.counts  # the test makes a Node of it
    assert task.verify(task.test[3], task.test[3].solution.replace("n.x", "2")) == 0.0


def contest_row(i, **more):
    square = {"input": [f"{n}\n" for n in range(2)], "output": [f"{n * i}\n" for n in range(2)]}
    return {"name": f"{i}_A. Multiply", "description": f"Read n, print n times {i}.", "public_tests": square,
            "private_tests": {"input": ["5\n"], "output": [f"{5 * i}\n"]},
            "generated_tests": {"input": ["7\n"], "output": [f"{7 * i}\n"]}, "source": 2, "difficulty": 7 + i % 2,
            "solutions": {"language": [2, 3], "solution": ["int main(){}", f"print(int(input()) * {i})"]},
            "incorrect_solutions": {"language": [3], "solution": ["print(0)"]}, "cf_contest_id": i, "cf_index": "A",
            "cf_points": 0.0, "cf_rating": 800, "cf_tags": ["math"], "is_description_translated": False,
            "untranslated_description": "", "time_limit": {"seconds": 2, "nanos": 500000000},
            "memory_limit_bytes": 256000000, "input_file": "", "output_file": "", **more}


def test_codecontests(tmp_path, cache):
    folder, none = tmp_path / "code_contests", {"input": [], "output": []}
    rows = {"train": [contest_row(i) for i in range(2, 8)] + [
                contest_row(8, input_file="a.txt"),
                contest_row(9, public_tests=none, private_tests=none, generated_tests=none)],
            "valid": [contest_row(20)],
            "test": [contest_row(30), contest_row(
                31, time_limit=None, solutions={"language": [2], "solution": ["int main(){}"]})]}
    for split, some in rows.items():
        write_parquet(folder / f"data/{split}-00000-of-00001.parquet", some)
    task = tasks.load_task("codecontests", data=str(folder))
    assert list(map(len, (task.train, task.valid, task.test))) == [6, 1, 2]
    assert len(load_codecontests(str(folder), first=3).train) == 3
    p, q = task.test
    assert json.loads(p.answer)["limit"] == 2.5 and json.loads(q.answer)["limit"] == LIMIT and q.solution is None
    assert len(json.loads(p.answer)["inputs"]) == 4 and p.level == "7" and "standard input" in p.prompt
    assert task.rewards(task.train + [p], [x.solution for x in task.train + [p]]) == [1.0] * 7
    assert task.rewards([p, p, p], ["print(0)", "print({0: 0, 1: 30, 5: 150}[int(input())])",
                                    "```python\nn = int(input())\nprint(n * 30, '\\n')\n```"]) == [0, 0, 1]
    assert not task.counts
    assert [x.level for x in tasks.load_task("codecontests", data=str(folder), levels="8").test] == ["8"]


def test_the_tests_of_a_problem_are_bounded():
    spec = stdio_spec(["1"] * 200, ["1"] * 200, 1.0)
    assert len(spec["inputs"]) == len(spec["outputs"]) == MAX_TESTS
    assert stdio_spec(["1" * 400_000], ["1"], 1.0) is None and stdio_spec([], [], 1.0) is None


def taco_row(i, **more):
    return {"question": f"Multiply by {i}.", "solutions": json.dumps([f"print(int(input()) * {i})"]),
            "starter_code": "",
            "input_output": json.dumps({"inputs": ["1\n", "2\n"], "outputs": [f"{i}\n", f"{2 * i}\n"]}),
            "difficulty": "EASY", "raw_tags": "[]", "name": None, "source": "codeforces", "tags": "[]",
            "skill_types": "[]", "url": "", "Expected Auxiliary Space": None, "time_limit": "2.0 seconds", "date": None,
            "picture_num": None, "memory_limit": "256.0 megabytes", "Expected Time Complexity": None, **more}


def test_taco(tmp_path, cache):
    folder = tmp_path / "taco"
    folder.mkdir()
    functions = [
        taco_row(50, starter_code="def double(xs):\n\t",
                 solutions=json.dumps(["def double(xs): return tuple(2 * x for x in xs)"]), time_limit=None,
                 input_output=json.dumps({"fn_name": "double", "inputs": [[[1, 2]], [[]]],
                                          "outputs": [[[2, 4]], [[]]]})),
        taco_row(51, starter_code="class Solution:\n    def minus(self, a, b):\n",
                 solutions=json.dumps(["class Solution:\n    def minus(self, a, b): return a - b"]),
                 input_output=json.dumps({"fn_name": "minus", "inputs": [[5, 3], [1, 2]], "outputs": [2, -1]}))]
    rows = {"train": [taco_row(i) for i in range(10)] + [taco_row(99, input_output=""), taco_row(98, solutions="")],
            "test": [taco_row(20), *functions]}
    for split, some in rows.items():
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, some)))
    task = tasks.load_task("taco", data=str(folder))
    assert len(task.train) + len(task.valid) == 11 and len(task.test) == 3
    assert task.rewards(task.test, [p.solution for p in task.test]) == [1.0] * 3 and not task.counts
    assert json.loads(task.test[0].answer)["limit"] == 2.0 and task.test[0].level == "EASY"
    minus = "class Solution:\n    def minus(self, a: int, b: int) -> Optional[int]: return "
    assert task.rewards(task.test[1:], ["def double(xs): return xs", f"{minus}b - a"]) == [0.0, 0.0]
    alone = functions[1] | {"starter_code": None}
    (folder / "test.jsonl").write_text("\n".join(map(json.dumps, [*rows["test"], alone])))
    assert tasks.load_task("taco", data=str(folder)).test[3].answer == task.test[2].answer
    double = "def double(xs: List[int]): return [2 * x for x in xs]"
    assert task.rewards(task.test[1:], [double, f"{minus}a - b"]) == [1.0, 1.0]
    assert "def double" in task.test[1].prompt and "standard input" in task.test[0].prompt


def test_taco_from_the_hub_says_what_is_the_matter(cache):
    with pytest.raises(tasks.UserError, match="loading script.*Parquet or JSON lines") as error:
        tasks.load_task("taco")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["humaneval", "mbpp", "codecontests", "taco"])
def test_broken_copies(name, tmp_path, cache):
    with pytest.raises(tasks.UserError, match="not a directory"):
        tasks.load_task(name, data=str(tmp_path / "nowhere"))
    write_parquet(tmp_path / "data/test-0.parquet", [{"a": 1}])
    with pytest.raises(tasks.UserError, match="cannot load|lacks the field") as error:
        tasks.load_task(name, data=str(tmp_path))
    assert "\n" not in str(error.value)


# ----------------------------------------------------------------------------------------------------------- own files

@pytest.fixture
def write(tmp_path):
    def write(*rows):
        path = tmp_path / "own.jsonl"
        path.write_text("\n".join(json.dumps(row) for row in rows))
        return str(path)
    return write


FUNCTION = {"prompt": "Write square(x).", "tests": ["assert square(2) == 4", "assert square(3) == 9"],
            "entry_point": "square"}
PROGRAM = {"prompt": "Square stdin.", "inputs": ["2\n", "3\n"], "outputs": ["4", "9"]}


def test_own_code(write):
    complete = {"prompt": 'def square(x):\n    """ x squared """\n',
                "tests": "def check(candidate):\n    assert candidate(2) == 4\n", "entry_point": "square",
                "solution": "    return x ** 2", "level": 2, "time_limit": 1}
    task = tasks.load_task(data=write(FUNCTION | {"split": "test"}, PROGRAM | {"split": "test"},
                                      complete | {"split": "train"}))
    a, b = task.test
    c, = task.train
    assert (task.name, c.level, c.solution, a.id) == ("jsonl", "2", "    return x ** 2", "own.jsonl:1")
    assert [json.loads(p.answer)["limit"] for p in (a, b, c)] == [LIMIT, LIMIT, 1.0]
    right = ["```python\ndef square(x): return x * x\n```", "print(int(input()) ** 2)", "    return x * x"]
    assert task.rewards([a, b, c], right) == [1.0] * 3 and task.verify(c, c.solution) == 1.0
    assert task.rewards([a, b, c], ["def square(x): return 4", "print(4)", "    return x"]) == [0.0] * 3


GUARD = "if __name__ == '__main__':\n"
CASE = "class TestF(unittest.TestCase):\n    def test_a(self):\n        self.assertEqual(f(2), 3)\n"
UNCALLED = {  # tests that somebody else would run, of f(x) = x + 1
    "functions": "def test_a():\n    assert f(2) == 3\ndef test_b():\n    assert f(0) == 1\n",
    "async function": "async def test_a():\n    assert f(2) == 3\n",
    "function in a with": "import contextlib\n"
                          "with contextlib.suppress(OSError):\n    def test_a():\n        assert f(2) == 3\n",
    "function called by another that is not": "def test_a():\n    assert f(2) == 3\ndef main():\n    test_a()\n",
    "class": "class TestF:\n    def test_a(self):\n        assert f(2) == 3\n    @staticmethod\n"
             "    def test_b():\n        assert f(0) == 1\n",
    "class with a setup": "class TestF:\n    def setup_method(self, method):\n        self.wanted = 3\n"
                          "    def test_a(self):\n        assert f(2) == self.wanted\n",
    "class with setups": "def setup_module():\n    global y\n    y = 2\nclass TestF:\n    @classmethod\n"
                         "    def setup_class(cls):\n        cls.wanted = 3\n"
                         "    def test_a(self):\n        assert f(y) == self.wanted\n",
    "TestCase": f"import unittest\n{CASE}", 
    "TestCase and main": f"import unittest\n{CASE}\n{GUARD}    unittest.main()\n",
    "TestCase run without a word": f"import unittest\n{CASE}\nunittest.TextTestRunner().run("
                                   "unittest.defaultTestLoader.loadTestsFromTestCase(TestF))\n",
    "TestCase of a TestCase": "import unittest\nclass Base(unittest.TestCase):\n    wanted = 3\n"
                              "class TestF(Base):\n    def setUp(self):\n        self.x = 2\n"
                              "    def test_a(self):\n        self.assertTrue(f(self.x) == self.wanted)\n",
    "pytest's main": "import pytest, sys\ndef test_a():\n    assert f(2) == 3\n"
                     f"{GUARD}    sys.exit(pytest.main([__file__]))\n",
    "guard": f"{GUARD}    assert f(2) == 3\n", "exit at the end": "assert f(2) == 3\nraise SystemExit(0)\n",
    "check": "def check(candidate):\n    assert candidate(2) == 3\n",
    "check without parameters": "def check():\n    assert f(2) == 3\n",
    "check under an if": "if True:\n    def check(candidate):\n        assert candidate(2) == 3\n",
    "check with another name": "def check_f(candidate):\n    assert candidate(2) == 3\n",
    "async check": "async def check(candidate):\n    assert candidate(2) == 3\n",
    "import of the solution": "from solution import f\n\ndef test_a():\n    assert f(2) == 3\n",
    "import by another name": "def test_a():\n    from .main import f as g\n    assert g(2) == 3\n",
    "import of the module": "import solution\ndef test_a():\n    assert solution.f(2) == 3\n",
    "its name as text": "assert globals()['f'](2) == 3\n",
    "import of everything": "from solution import *\nassert f(2) == 3\n",
    "threads": "from concurrent.futures import ThreadPoolExecutor\nwith ThreadPoolExecutor(4) as pool:\n"
               "    assert list(pool.map(f, range(100))) == list(range(1, 101))\n",
    "its signature": "import inspect\nassert list(inspect.signature(f).parameters) == ['x'] and f.__name__ == 'f'\n"
                     "assert f(2) == 3\n",
    "numpy": "import numpy as np\nassert np.isclose(f(2), 3)\n",
    "numbers of numpy": "import numpy\nassert f(numpy.int64(2)) == 3 == f(numpy.float32(2)) and f(numpy.True_) == 2\n",
    "numpy in a function": "def test_a():\n    import numpy\n    numpy.testing.assert_allclose(f(2.0), 3.0)\n",
    "pytest": "import pytest\ndef test_a():\n    assert f(2) == pytest.approx(3)\n    with pytest.raises(TypeError):\n"
              "        f('a')\n"}


@pytest.fixture(scope="module")
def packages():
    """Whether tests find numpy and pytest: the Python that an unprivileged user may read can be of another version."""
    task = tasks.Code("t", [], [], [])
    task.open()
    task.try_tests({"p": {"tests": "import numpy, pytest", "names": {"f": "f"}, "prefix": "", "limit": 9}})
    return "only raises" in task.flaws["p"]


def test_tests_that_nobody_calls_are_run(write, capfd, packages):
    """A right program is rewarded, one that is wrong or only raises is not."""
    kinds = {name: tests for name, tests in UNCALLED.items() if packages or not re.search("numpy|pytest", tests)}
    task = tasks.load_task(data=write(*({"prompt": f"Write f(x): {name}", "tests": tests, "entry_point": "f",
                                         "split": "test"} for name, tests in kinds.items())))
    assert len(task.test) == len(kinds) and "left out" not in capfd.readouterr().out
    for program, reward in (("def f(x): return x + 1", 1.0), ("def f(x): return x + 5", 0.0),
                            ("def f(x): raise ValueError", 0.0), ("def f(x): return None", 0.0)):
        got = task.rewards(task.test, [program] * len(task.test))
        assert dict(zip(kinds, got)) == dict.fromkeys(kinds, reward)
    assert not task.counts


UNCALLED |= {
    "parametrize": "import pytest\n@pytest.mark.parametrize('x, y', [(2, 3), (0, 1)])\ndef test_a(x, y):\n"
                   "    assert f(x) == y\n",
    "parametrize of a method": "import pytest\nclass TestF:\n    @pytest.mark.parametrize('x', [1, 2])\n"
                               "    @pytest.mark.parametrize(['y'], [(0,), pytest.param(1, id='one')])\n"
                               "    def test_a(self, x, y):\n        assert f(x + y) == x + 1 + y\n"}
IDLE = {  # tests that cannot judge f -> why
    "# assert f(2) == 3\n": "nothing in its tests asserts",
    "METADATA = {'author': 'x'}\n": "nothing in its tests asserts",
    '\"\"\"\n>>> f(2)\n3\n\"\"\"\n': "nothing in its tests asserts", "f(2) == 3": "nothing in its tests asserts",
    "print(f(2))": "nothing in its tests asserts", "assert (f(2) == 3, 'wrong')": "nothing in its tests asserts",
    "f(2)\nassert True": "nothing in its tests asserts",
    "f(2)\ndef run():\n    assert f(2) == 3": "nothing in its tests asserts",
    "assert g(2) == 3": "never use f", "def f(x): return 3\nassert f(2) == 3": "only raises",
    "try:\n    assert f(2) == 3\nexcept Exception:\n    pass": "only raises",
    "def run():\n    assert f(2) == 3\nassert callable(f)": "only raises",
    "assert candidate(2) == 3 == f": "before they use the program \\(NameError: name 'candidate'",
    "open('data.txt').read()\nassert f(2) == 3": "before they use the program \\(FileNotFoundError.*data.txt",
    "import nowhere\nassert f(2) == 3": "before they use the program \\(ModuleNotFoundError.*nowhere",
    "from solution import g\nassert f(2) == 3": "before they use the program \\(ModuleNotFoundError.*solution",
    "assert False\nassert f(2) == 3": "before they use the program \\(AssertionError",
    "import unittest\nraise unittest.SkipTest('no')\nassert f(2) == 3": "before they use the program \\(SkipTest",
    "assert f(len) == 3": "no plain data", "def test_a(numbers):\n    assert f(2) == 3": "what to call test_a",
    "class TestF:\n    def test_a(self, x):\n        assert f(x) == 3": "what to call TestF",
    "from unittest.mock import patch\nwith patch('builtins.input', lambda: '2'):\n    assert f() == 3":
        "runs elsewhere",
    "def check(candidate, cases):\n    assert candidate(2) == 3": "what to call check"}


def test_rows_that_cannot_judge_are_left_out(write, capfd):
    """Each is named by its line, with the reason; the others stay."""
    rows = [{"prompt": f"Write f(x): {tests}", "tests": tests, "entry_point": "f"} for tests in IDLE]
    reasons = [*IDLE.values(), "its prompt begins g, its entry_point is f", "its prompt imports numpy"]
    for prompt in ("def g(x):\n    ''' x + 1 '''\n", "import numpy\ndef f(x):\n"):
        rows.append({"prompt": prompt, "tests": UNCALLED["check"], "entry_point": "f"})
    task = tasks.load_task(data=write(*rows, *({**FUNCTION, "prompt": str(i)} for i in range(4))))
    assert len(task.train + task.valid + task.test) == 4
    out = capfd.readouterr().out
    for number, reason in enumerate(reasons, start=1):
        assert re.search(rf"own\.jsonl:{number}\b[^;]*\([^;]*{reason}", out), (number, reason, out)
    assert re.search(r"^1\d problems left out because of the tests", out, re.MULTILINE)


@pytest.mark.parametrize("tests, reason", [(tests, IDLE[tests]) for tests in list(IDLE)[::8]])
def test_no_row_is_left(tests, reason, write):
    with pytest.raises(tasks.UserError, match=f"no problem can be judged: own.jsonl:1 .*{reason}") as error:
        tasks.load_task(data=write({"prompt": "f", "tests": tests, "entry_point": "f"}))
    assert "\n" not in str(error.value)


def test_what_tests_lack_later_is_counted(write):
    """After the first use of the program, where trying them on one that raises does not get."""
    tests = ["assert f(2) == 3\nopen('data.txt')", "assert f(2) == 3\nassert candidate(2) == 3",
             "def test_a():\n    assert f(2) == 3\ndef test_b():\n    import nowhere",
             "import unittest\nclass TestF(unittest.TestCase):\n    def test_a(self):\n        assert f(2) == 3\n"
             "        self.skipTest('no')\n"]
    task = tasks.load_task(data=write(*({"prompt": str(i), "tests": text, "entry_point": "f", "split": "test"}
                                        for i, text in enumerate(tests))))
    assert task.rewards(task.test, ["def f(x): return x + 1"] * 4) == [0.0] * 4
    assert task.counts == {"unsupported": 4}
    # What the program lacks is its own fault.
    assert task.rewards(task.test, ["def f(x): return y", "def f(x): return open('a')", "def f(x): import nowhere",
                                    "import nowhere\ndef f(x): return x + 1"]) == [0.0] * 4
    spec = json.loads(task.test[0].answer) | {"tests": "try: a = f(2)\nexcept ValueError: pass\nassert a == 3"}
    assert task.verify(code_problem("n", "?", None, spec), "def f(x): raise ValueError") == 0.0
    assert task.counts == {"unsupported": 4}


def test_a_problem_that_cannot_judge_is_found_when_it_is_needed(capfd):
    """Of a data set, and of a long file, whose tests are not tried when they are loaded."""
    spec = {"tests": "try: assert f(2) == 3\nexcept Exception: pass", "names": {"f": "f"}, "prefix": "", "limit": 3}
    problems = [code_problem("bad", "?", None, spec),
                code_problem("good", "?", None, spec | {"tests": "assert f(2) == 3"})]
    task = tasks.Code("t", [], [], problems)
    task.open()
    for _ in range(2):
        assert task.rewards(problems * 2, ["def f(x): return x + 1"] * 2 + ["def f(x): return 0"] * 2) == [0, 1, 0, 0]
        assert task.counts == {"unsupported": 2}
    assert capfd.readouterr().out.count("1 problem score 0, as unsupported, because of the tests: bad "
                                        "(its tests pass on a program that only raises)") == 1


def test_packages_are_for_the_tests_only(write, packages):
    if not packages:
        pytest.skip("the Python of the sandbox is of another version than this one, and has no packages")
    row = {"prompt": "f", "tests": "import numpy\nassert f(2) == numpy.float64(3)\n", "entry_point": "f",
           "split": "test"}
    task = tasks.load_task(data=write(row, row | {"prompt": "import numpy\n\ndef f(x):\n    \"\"\" x + 1 \"\"\"\n"}))
    assert [p.prompt for p in task.test] == ["f"]  # no program could begin like the other
    assert task.rewards(task.test * 3, ["def f(x): return x + 1", "import numpy\ndef f(x): return x + 1",
                                        "import os\ndef f(x): return x + os.path.exists('/packages')"]) == [1, 0, 0]


def test_classes_in_own_files(write):
    """Whose objects the tests make and use, and the typing names that programs on the usual sites find."""
    solution = "class Solution:\n    def add(self, xs: List[int]) -> Optional[int]:\n"
    stack = ("s = Stack([1])\ns.push(2)\nassert s.pop() == 2 and len(s) == 1 and s[0] == 1 and s.items == [1]\n"
             "s.items = [5]\nassert str(s) == 'Stack' and s.pop() == 5 and Stack.kind == 'lifo'\n"
             "t = s.twin()\nt.push(3)\nassert s.total(t) == 3 and t.same() is t\n"
             "try:\n    s.pop()\n    assert False\nexcept IndexError:\n    pass\n")
    tests = [("Solution", "assert Solution().add([1, 2]) == 3\nassert Solution().add([]) is None"),
             ("Solution().add", "def check(candidate):\n    assert candidate([1, 2]) == 3 and candidate([]) is None"),
             ("Stack", stack), ("Stack", "assert Stack([1]) == Stack([1])")]
    prompts = [f"# {i}\n{solution}" for i in range(2)] + ["A stack", "Another"]
    rows = [{"prompt": prompt, "tests": text, "entry_point": name, "split": "test"}
            for prompt, (name, text) in zip(prompts, tests)]
    task = tasks.load_task(data=write(*rows))
    right = f"```python\n{solution}        return sum(xs) or None\n```"
    program = ("class Stack:\n    kind = 'lifo'\n    def __init__(self, items): self.items = items\n"
               "    def push(self, x): self.items.append(x)\n    def pop(self): return self.items.pop()\n"
               "    def __len__(self): return len(self.items)\n    def __getitem__(self, i): return self.items[i]\n"
               "    def __str__(self): return 'Stack'\n    def twin(self): return Stack(list(self.items))\n"
               "    def total(self, other): return sum(self.items) + sum(other.items)\n"
               "    def same(self): return self\n"
               "    def __eq__(self, other): return self.items == other.items\n")
    a, b, c, d = task.test
    assert task.rewards([a, b, a, c], [right, right, "        return sum(xs) or None", program]) == [1.0] * 4
    assert task.rewards([a, b, a, c], [right.replace("sum", "max"), right.replace("sum", "len"), "        return 3",
                                       program.replace("items.pop()", "items[-1]")]) == [0.0] * 4
    assert not task.counts
    assert task.verify(d, program) == 0.0 and task.counts == {"unsupported": 1}  # the program's own word


METHOD = "class Solution:\n    def f(self, x: List[int]): return "
CALLS = [  # what data sets hold of a function -> what a right one and a wrong one return
    ({"inputs": [[2]], "outputs": [4]}, METHOD, "2 * x", "3 * x"),
    ({"inputs": [[2]], "outputs": [4], "starter": METHOD}, "def f(x): return ", "2 * x", "3 * x"),
    ({"inputs": ["[1, 2]\ntrue", "[]\nnull"], "outputs": ["[2, 1]", "[]"]}, "def f(x, y): return ",
     "x[::-1] if y else x", "x"),
    ({"inputs": ['"ab"'], "outputs": ['"ba"']}, "def f(x): return ", "x[::-1]", "'\"ba\"'"),
    ({"inputs": [[{"1": 2, "3": 4}]], "outputs": [4]}, "def f(x): return ", "sum(x)", "sum(x.values())"),
    ({"inputs": [[[1, 1]], [[2]]], "outputs": [{"1": 2}, [{"2": 1}]]}, "def f(x): return ", "{x[0]: len(x)}", "{1: 2}"),
    ({"inputs": [["11"]], "outputs": [{"1": 2}]}, "def f(x): return ", "{x[0]: len(x)}", "{x: 2}"),
    ({"inputs": [[0.1, 0.2]], "outputs": [0.3]}, "def f(x, y): return ", "x + y", "x + y + 1e-5"),
    ({"inputs": [[1]], "outputs": [[[0.3], 10 ** 17]]}, "def f(x): return ", "((.1 + .2,), 10 ** 17)",
     "[[.3], 10 ** 17 + 1]"),
    ({"inputs": [[1], [2]], "outputs": [float("inf"), float("nan")]}, "def f(x): return ",
     "float('inf' if x == 1 else 'nan')", "float('nan')"),
    ({"inputs": [[float("inf")], [1]], "outputs": [True, False]}, "def f(x): return ", "x > 1e300", "True"),
    ({"inputs": [[1]], "outputs": [float("inf")]}, "def f(x): return ", "1e400", "1e300"),
    ({"inputs": [[2]], "outputs": [[4, 5]]}, "def f(x): return ", "4, 5", "4"),
    ({"inputs": [[2]], "outputs": [[4]]}, "def f(x): return ", "4", "[4, 4]")]


def test_calls_as_data_sets_have_them(write):
    """A method or a function, arguments as lines of JSON, keys that are numbers, floats up to 1e-6."""
    rows = []
    for i, (tests, *_) in enumerate(CALLS):
        starter = tests.pop("starter", None)
        rows.append({"prompt": f"f {i}", "input_output": json.dumps({"fn_name": "f", **tests}), "starter_code": starter,
                     "split": "test"})
    task = tasks.load_task(data=write(*rows))
    assert len(task.test) == len(CALLS)
    for column, reward in ((2, 1.0), (3, 0.0)):
        assert task.rewards(task.test, [case[1] + case[column] for case in CALLS]) == [reward] * len(CALLS)
    assert not task.counts


def test_cases_in_the_column_of_tests(write):
    """As DeepCoder and LiveCodeBench have them, and with numbers in place of text."""
    cases = [{"type": "stdin_stdout", "input": "2\n", "output": "4"}, {"input": "3", "output": "9\n"}]
    call = [{"input": "2\n1", "output": "4", "testtype": "functional", "metadata": {"func_name": "f"}}]
    columns = [{"tests": json.dumps(cases)}, {"tests": cases},
               {"tests": json.dumps({"inputs": ["2"], "outputs": ["4"]})},
               {"input_output": {"inputs": [2, 3.0], "outputs": [4, 9]}}, {"tests": json.dumps(call)}]
    task = tasks.load_task(data=write(*({"prompt": str(i), **row, "split": "test"} for i, row in enumerate(columns))))
    right = ["print(round(float(input()) ** 2))"] * 4 + ["class Solution:\n    def f(self, x, y): return x ** 2"]
    assert task.rewards(task.test, right) == [1.0] * 5
    assert task.rewards(task.test, [code.replace("** 2", "+ 1") for code in right]) == [0.0] * 5


def test_programs_of_own_files_find_typing_names(write):
    row = {"prompt": "f", "tests": "assert f([1]) == 1", "entry_point": "f"}
    task = tasks.load_task(data=write(row | {"split": "test"}, PROGRAM | {"split": "test"}))
    head = "def f(xs: List[int], *rest: Any) -> Optional[Dict[str, int]]: "
    assert task.rewards(task.test[:1] * 3, [
        f"{head}return len(xs)", f"from __future__ import annotations\n{head}return 1",
        f"{head}return Counter(xs)[1]"]) == [1.0, 1.0, 0.0]
    assert task.verify(task.test[1], "def main(x: List[int]): print(x[0] ** 2)\nmain([int(input())])") == 1.0


@pytest.mark.parametrize("row, match", [
    (FUNCTION | {"tests": ""}, "not empty"), (FUNCTION | {"tests": 3}, "Python source"),
    (FUNCTION | {"tests": [1]}, "Python source"), (FUNCTION | {"tests": "assert"}, "not valid Python"),
    (FUNCTION | {"entry_point": None}, "entry_point"), (FUNCTION | {"entry_point": "a b"}, "entry_point"),
    ({"prompt": "p", "tests": "assert f()"}, "entry_point"), (PROGRAM | {"outputs": ["4"]}, "of one length"),
    (PROGRAM | {"inputs": []}, "of one length"), (PROGRAM | {"inputs": "2"}, "of one length"),
    (PROGRAM | {"outputs": [4, 9]}, "of one length"), ({"prompt": "p", "inputs": ["1"]}, "of one length"),
    (PROGRAM | {"time_limit": 0}, "time_limit"), (PROGRAM | {"time_limit": "1"}, "time_limit"),
    (PROGRAM | {"time_limit": True}, "time_limit"), (PROGRAM | {"prompt": 3}, '"prompt" must be text'),
    (FUNCTION | {"prompt": " "}, "must not be empty"), ({"prompt": "p", "answer": "1"}, "but not both")])
def test_own_code_names_the_broken_line(row, match, write):
    with pytest.raises(tasks.UserError, match=f"own.jsonl, line 2: .*{match}") as error:
        tasks.load_task(data=write(PROGRAM, row))
    assert "\n" not in str(error.value)


# ---------------------------------------------------------------------------------------------------------- the scripts

def test_evaluate_humaneval_end_to_end(humaneval, tmp_path):
    """On a local model directory. The embedded model cannot write Python; what it writes is judged all the same."""
    model = tmp_path / "model"
    shutil.copytree(os.path.join(ROOT, "models", "tiny"), model)
    code, out, err = run(evaluate.main, "--task", "humaneval", "--data", humaneval, model, "--samples", 4, "--k", "1,4",
                         "--max-new-tokens", 8, "--out", tmp_path / "e")
    assert code == 0 and "pass@4" in out and not err, err
    pool = [json.loads(line) for line in (tmp_path / "e/pool-1.jsonl").read_text().splitlines()]
    assert len(pool) == 5 and all(entry["rewards"] == [0.0] * 4 for entry in pool)
    code, out, err = run(evaluate.main, "--pool", tmp_path / "e/pool-1.jsonl", "--k", "4", "--out", tmp_path / "f")
    assert code == 0, err


def test_training_on_own_code(write, tmp_path):
    """Two steps of training on verdicts of the sandbox, with what the embedded model can write: arithmetic."""
    data = write(*({"prompt": f"c{a},{b}:{a + b}>", "inputs": ["1"], "outputs": [""], "split": split} for a, b, split in
                   [(1, 2, "train"), (3, 4, "train"), (5, 2, "train"), (2, 2, "train"),
                    (1, 7, "test"), (1, 8, "test")]))
    code, out, err = run(ppo_passk.main, "--data", data, "--prompts", 4, "--samples", 4, "--k", 2, "--steps", 2,
                         "--eval-samples", 4, "--max-new-tokens", 6, "--out", tmp_path / "r")
    assert code == 0 and not err, err
    lines = [json.loads(line) for line in (tmp_path / "r/metrics.jsonl").read_text().splitlines()]
    assert max(line["reward"] for line in lines) > 0.3  # an arithmetic expression is a program that prints nothing
    assert json.loads((tmp_path / "r/args.json").read_text())["flags"]["allow_unsandboxed_code"] is False


def test_scripts_without_a_sandbox(humaneval, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.chdir(tmp_path)
    for main, flags in ((ppo_passk.main, []),
                        (evaluate.main, ["--samples", 2, "--k", 1, "--problems", 1, "--max-new-tokens", 4])):
        code, _, err = run(main, "--task", "humaneval", "--data", humaneval, *flags)
        assert code == 2 and err.count("\n") == 1 and "apt install bubblewrap" in err
    code, out, err = run(evaluate.main, "--task", "humaneval", "--data", humaneval, *flags, "--allow-unsandboxed-code",
                         "--out", tmp_path / "e")
    assert code == 0 and "WARNING: no sandbox" in out, err


def test_training_on_humaneval_is_refused(humaneval, tmp_path):
    code, _, err = run(ppo_passk.main, "--task", "humaneval", "--data", humaneval, "--out", tmp_path / "r")
    assert code == 2 and "no train problems" in err and err.count("\n") == 1


def test_bench_of_the_sandbox():
    code, out, err = run(bench.main, "--sandbox", 6)
    assert code == 0 and not err, err
    lines = json.loads(out.strip().split("\n")[-1])["lines"]
    assert [line["kind"] for line in lines] == ["function", "program"]
    assert all(line["what"] == "sandbox" and line["right"] == line["verdicts"] == 6 and line["verdicts_per_s"] > 0
               and 1 < line["cpu_ms"] < 2000 for line in lines)
    assert run(bench.main, "--sandbox", -1)[0] == 2


def test_loading_code_is_light():
    done = subprocess.run([sys.executable, "-c", "import tasks, sys; "
                           "print([m for m in ('torch', 'datasets', 'ctypes', 'numpy') if m in sys.modules])"],
                          cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
