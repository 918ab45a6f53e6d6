"""Named data sets from the files that people have: releases, single files, folders with and without the hub's names."""
import gzip
import json
import shutil

import pytest
from test_tasks_code import mbpp_row, write_parquet

import tasks

needs_sandbox = pytest.mark.skipif(shutil.which("bwrap") is None,
                                   reason="bubblewrap is not installed (apt install bubblewrap)")
HUMANEVAL = [{"task_id": f"HumanEval/{i}", "entry_point": f"add{i}", "prompt": f'def add{i}(x):\n    """ x + {i} """\n',
              "canonical_solution": f"    return x + {i}\n",
              "test": f"def check(candidate):\n    assert candidate(1) == {i + 1}\n"} for i in range(3)]
GSM8K = [{"question": f"What is {i} + 1?", "answer": f"It is <<{i}+1={i + 1}>>{i + 1}.\n#### {i + 1}"}
         for i in range(12)]
MATH = [{"problem": f"Find {i}+1.", "level": f"Level {i % 5 + 1}", "type": "Algebra",
         "solution": rf"It is $\boxed{{{i + 1}}}$."} for i in range(12)]


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def put(path, data):
    """Write rows as the name of the file says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        write_parquet(path, data)
    elif path.suffix == ".gz":
        path.write_bytes(gzip.compress(lines(data)))
    else:
        path.write_bytes(lines(data) if path.suffix == ".jsonl" else json.dumps(data).encode())
    return path


@needs_sandbox
@pytest.mark.parametrize("name", ["HumanEval.jsonl.gz", "HumanEval.jsonl", "any.json", "test.parquet",
                                  "data/test-00000-of-00001.parquet", "openai_humaneval/test-00000-of-00001.parquet",
                                  "human-eval/data/HumanEval.jsonl.gz"])
@pytest.mark.parametrize("as_file", [True, False])
def test_humaneval(name, as_file, tmp_path):
    path = put(tmp_path / "test copy" / name, HUMANEVAL)  # what a folder above is called says nothing
    task = tasks.load_task("humaneval", data=str(path if as_file else tmp_path / "test copy"))
    assert [p.id for p in task.test] == [f"humaneval/HumanEval/{i}" for i in range(3)] and not task.train
    assert (json.loads(task.test[1].answer)["names"] == {"add1": "add1"}
            and task.test[1].solution == "    return x + 1\n")


@needs_sandbox
def test_a_release_is_judged(tmp_path):
    task = tasks.load_task("humaneval", data=str(put(tmp_path / "HumanEval.jsonl.gz", HUMANEVAL)))
    assert task.rewards(task.test, [p.solution for p in task.test]) == [1.0] * 3


@needs_sandbox
def test_mbpp(tmp_path):
    """One file of all: the release's numbers say the split. The sanitized one calls two fields otherwise."""
    numbers = [1, 10, 11, 510, 511, 600, 601, 974]
    full = [mbpp_row(i) for i in numbers]
    sanitized = [{"source_file": "a", "task_id": i, "prompt": f"Add {i}.", "code": mbpp_row(i)["code"],
                  "test_imports": ["import math"], "test_list": mbpp_row(i)["test_list"]} for i in numbers]
    for path, rows in ((tmp_path / "mbpp.jsonl", full), (tmp_path / "b/mbpp.jsonl.gz", full),
                       (tmp_path / "c/sanitized-mbpp.json", sanitized)):
        task = tasks.load_task("mbpp", data=str(put(path, rows)))
        assert [[p.id for p in split] for split in (task.train, task.valid, task.test)] == [
            [f"mbpp/{i}" for i in some] for some in ((601, 974), (511, 600), (11, 510))]
    assert task.test[0].prompt.startswith("Add 11.\n") and "import math" in json.loads(task.test[0].answer)["tests"]
    assert task.rewards(task.test, [p.solution for p in task.test]) == [1.0, 1.0]
    for split in ("train", "validation", "test"):
        put(tmp_path / f"d/{split}-00000-of-00001.parquet", sanitized[:2])
    task = tasks.load_task("mbpp", data=str(tmp_path / "d"))
    assert [len(split) for split in (task.train, task.valid, task.test)] == [2, 2, 2]


@pytest.mark.parametrize("names", [("train.jsonl", "test.jsonl"),
                                   ("grade_school_math/data/train.jsonl", "grade_school_math/data/test.jsonl"),
                                   ("train.jsonl.gz", "test.jsonl.gz"),
                                   ("main/train-00000-of-00001.parquet", "main/test-00000-of-00001.parquet"),
                                   ("gsm8k_train.json", "gsm8k_test.json")])
def test_gsm8k(names, tmp_path):
    for name, rows in zip(names, (GSM8K[:10], GSM8K[10:])):
        put(tmp_path / name, rows)
    if "main" in names[0]:
        put(tmp_path / "socratic/train-00000-of-00001.parquet", [{"question": "?", "answer": "no"}])
    elif names[0].endswith("train.jsonl"):
        put((tmp_path / names[0]).parent / "train_socratic.jsonl", [{"question": "?", "answer": "no"}])
    task = tasks.load_task("gsm8k", data=str(tmp_path))
    assert (len(task.train), len(task.valid), [p.answer for p in task.test]) == (9, 1, ["11", "12"])


def test_gsm8k_from_one_file(tmp_path):
    task = tasks.load_task("gsm8k", data=str(put(tmp_path / "test.jsonl", GSM8K)))
    assert (len(task.train), len(task.test)) == (0, 12)
    with pytest.raises(tasks.UserError, match="cannot tell which split .*train.jsonl or test.jsonl"):
        tasks.load_task("gsm8k", data=str(put(tmp_path / "mine.jsonl", GSM8K)))


def test_math_release(tmp_path):
    """MATH/train/algebra/1.json: one problem a file."""
    for i, row in enumerate(MATH):
        path = tmp_path / f"MATH/{'train' if i < 10 else 'test'}/{'algebra' if i % 2 else 'geometry'}/{i}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(row, indent=2))
    for data in (tmp_path, tmp_path / "MATH"):
        task = tasks.load_task("math", data=str(data))
        assert (len(task.train), len(task.valid), sorted(p.answer for p in task.test)) == (9, 1, ["11", "12"])
        assert {p.level for p in task.test} == {"1", "2"}


def test_math_lines(tmp_path):
    put(tmp_path / "train.jsonl", MATH[:10])
    put(tmp_path / "test.jsonl", MATH[10:])
    task = tasks.load_task("math", data=str(tmp_path))
    assert (len(task.train), len(task.valid), [p.answer for p in task.test]) == (9, 1, ["11", "12"])
    assert len(tasks.load_task("math", data=str(tmp_path / "test.jsonl")).test) == 2


@pytest.mark.parametrize("content, match", [
    (b"", "empty|cannot"), (b"{", "line 1: not valid JSON"), (lines(HUMANEVAL) + b"{]", "line 4: not valid JSON"),
    (b"[1]", "row 1: not a JSON object"), (b"\xff\xfe", "cannot read"),
    (lines([{**HUMANEVAL[0], "test": None}]), "lacks the field 'test'"), (b"[" * 5000, "not valid JSON"),
    (lines([{"prompt": "p"}]), "lacks the field 'task_id'")])
@pytest.mark.parametrize("name", ["HumanEval.jsonl", "HumanEval.jsonl.gz"])
def test_damaged_files_are_one_sentence(name, content, match, tmp_path):
    path = tmp_path / name
    path.write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    with pytest.raises(tasks.UserError, match=match) as error:
        tasks.load_task("humaneval", data=str(path))
    assert "\n" not in str(error.value)


def test_a_damaged_archive_is_one_sentence(tmp_path):
    whole = gzip.compress(lines(GSM8K))
    for data in (whole[:-20], whole[:20] + b"xxxx" + whole[24:], b"no archive"):
        (tmp_path / "train.jsonl.gz").write_bytes(data)
        (tmp_path / "test.jsonl").write_bytes(lines(GSM8K))
        with pytest.raises(tasks.UserError, match="cannot (load|read)") as error:
            tasks.load_task("gsm8k", data=str(tmp_path))
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("row", [{"code": 5}, {"test_list": 5}, {"task_id": "x"}, {"code": "def ("}, {"text": None}])
def test_rows_that_are_no_mbpp(row, tmp_path):
    with pytest.raises(tasks.UserError) as error:
        tasks.load_task("mbpp", data=str(put(tmp_path / "mbpp.jsonl", [mbpp_row(20), {**mbpp_row(21), **row}])))
    assert "\n" not in str(error.value)
