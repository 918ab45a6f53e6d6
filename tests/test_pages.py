"""docs/logged.md and docs/troubleshooting.md: the keys, units and lines that they name are those of the code."""
import ast
import functools
import json
import os
import re
from importlib import import_module
from types import SimpleNamespace

import pytest
from conftest import ROOT
from references import FENCE, blocks, source
from test_scripts import read_lines

import evaluate
import tasks
from support import check
from support import run as runs
from support.notes import IDLE, MANY, PAGE, STEPS, Notes
from support.track import PROJECT
from tasks.mathematics import Math
from tasks.programs import COUNTED

PAGES = ["docs/logged.md", "docs/troubleshooting.md"]
LOGGED = {"metrics.jsonl": runs.METRICS, "result.json": runs.RESULT, "checks.jsonl": runs.CHECKS}


# ---------------------------------------------------------------------------------------------------------- logged.md

def tables(heading):
    """The tables below a heading of docs/logged.md -> [[cells of a row], ...] each, without their first two rows."""
    text = source("docs/logged.md").split(f"\n## {heading}\n")[1].split("\n## ")[0]
    found = []
    for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        rows = [re.split(r" ?\| ?", line.strip("|\n").strip()) for line in table.strip().split("\n")]
        found.append(rows[2:])
    return found


def keys_and_units(rows):
    return [(row[0].strip("`"), row[1]) for row in rows]


@pytest.mark.parametrize("file", LOGGED)
def test_keys_and_units(file):
    """Of each file the page has every key of the code once, with its unit, and no other."""
    first, *_ = tables(file)
    assert sorted(keys_and_units(first)) == sorted(LOGGED[file].items())
    assert all(row[2] for row in first)


def test_keys_of_a_verifier():
    _, second = tables("result.json")
    assert sorted(keys_and_units(second)) == sorted(runs.VERIFIER.items())
    pool = [{"scores": [0.1, 0.2], "rewards": [0, 1]}, {"scores": [0.5, -0.2], "rewards": [1, 0]}]
    assert evaluate.judge_verifier(pool, resamples=2).keys() == runs.VERIFIER.keys()


def kinds(script, supervised):
    """The words of the last column that mean a step of this script."""
    found = {"all", f"{script}.py"}
    if script.startswith("cat"):
        found.add("CAT")
    if script == "bon_sft":  # with N above 1
        return found | {"SFT", "sampled"}
    return found | ({"SFT"} if supervised else {"RL", "sampled"})


def keys_of_a_line(script, supervised):
    """What docs/logged.md says of a line of metrics.jsonl -> (keys that it has, keys that it may have)."""
    always = set()
    possible = set()
    for key, _, _, _, where in tables("metrics.jsonl")[0]:
        for cell in where.split(", "):
            who, _, condition = cell.partition(" if ")
            if who in kinds(script, supervised):
                possible.add(key.strip("`"))
                always |= set() if condition else {key.strip("`")}
    return always, possible


def keys_of_a_row(graded):
    """What it says of a row of result.json, `gold` aside."""
    found = set()
    for key, _, _, _, where in tables("metrics.jsonl")[0]:
        cells = {cell.partition(" if ")[::2] for cell in where.split(", ")}
        wanted = {("rows", ""), ("rows", "graded" if graded else "not graded")}
        if cells & wanted:
            found.add(key.strip("`"))
    return found


def assert_as_the_page_says(script, supervised, place):
    """The files of a run have the keys that the page gives them. (Called for a run of each script by test_house.py.)"""
    def named(keys):
        return {re.sub(r"@\d+$", "@<k>", key) for key in keys}
    line, = read_lines(place)
    always, possible = keys_of_a_line(script, supervised)
    assert always <= named(line) <= possible, (always - named(line), named(line) - possible)
    result = json.loads((place / "result.json").read_text())
    assert {"before", "after", "seconds"} <= result.keys() <= runs.RESULT.keys()
    wanted = keys_of_a_row("max@1" in result["before"])
    for row in (result["before"], result["after"]):
        assert wanted <= named(row) <= wanted | {"gold"}, named(row) ^ wanted
        assert all(value.keys() == {"mean", "se"} for value in row.values())
    if "diversity" in line:
        assert {*line["diversity"]} == {"distinct", "answers", "distinct-2", "similarity"}
    for finding in (place / "checks.jsonl").read_text().strip().split("\n"):
        assert json.loads(finding).keys() == runs.CHECKS.keys()


def test_where_is_said_in_known_words():
    known = r"(all|RL|SFT|sampled|CAT|rows|[a-z_]+\.py)( if [^,|]+)?"
    for row in tables("metrics.jsonl")[0]:
        for cell in row[-1].split(", "):
            who = re.fullmatch(known, cell)[1]
            assert not who.endswith(".py") or os.path.exists(os.path.join(ROOT, who)), cell


def test_what_tasks_count_is_a_key():
    """The counts of every task; those of mathematics by a problem without an answer."""
    problem = tasks.Problem("a", "one", "1")
    without = tasks.Problem("b", "two", "")
    counts = Math("m", [problem, without], [without], [problem]).counts
    assert {*counts} == {"train_without_answer", "valid_without_answer"}
    assert {re.sub("^(train|valid|test)_", "<split>_", name) for name in counts} <= runs.METRICS.keys()
    assert {*COUNTED.values(), "verifier_timeouts", "verifier_errors", "unsupported"} <= runs.METRICS.keys()


def test_limits_of_the_check():
    page = {key: what for key, _, what in tables("checks.jsonl")[0]}
    limits = [check.LIMITS[kind] for kind in ("float32", "bfloat16", "8 bits")]
    said = [re.findall(r"(?<![\w.])\d*\.?\d+(?= in|,|$)", page[key]) for key in ("`largest`", "`mean`")]
    for numbers, known in zip(said, zip(*limits), strict=True):
        assert [float(number) for number in numbers] == pytest.approx(known)


def test_dashboards():
    from support.flags import TRACKERS
    rows, = tables("Dashboards")
    assert [row[0].strip("`") for row in rows] == [*TRACKERS]
    text = source("docs/logged.md")
    assert text.count(PROJECT) == 2 and "`tracked.json`" in text


# --------------------------------------------------------------------------------------------------- what a run prints

def words_of(node):
    """The text of a string in the code, `...` for what is filled in; None for anything else."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else "..." for part in node.values)
    return None


@functools.cache
def sentences():
    """All strings of the code but docstrings, white space as one space."""
    found = set()
    for place, folders, names in os.walk(ROOT):
        folders[:] = [name for name in folders if name not in ("tests", "results", ".git")]
        for name in names:
            if name.endswith(".py"):
                tree = ast.parse(source(os.path.relpath(os.path.join(place, name), ROOT)))
                nodes = [*ast.walk(tree)]
                loose = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}  # docstrings
                texts = [words_of(node) for node in nodes if id(node) not in loose]
                found |= {" ".join(text.split()) for text in texts if text}
    return found


def quotes(path):
    """The lines that a page says a run prints."""
    return [line for block in blocks(source(path), "") for line in block.strip().split("\n")]


@pytest.mark.parametrize("path", PAGES)
def test_lines_are_printed_so(path):
    """Each stands in a string of the code, word for word, but for `note:` and `error:`, which are put in front."""
    assert quotes(path)
    for line in quotes(path):
        bare = re.sub(r"^(note|error): ", "", line)
        assert any(line in words or bare in words for words in sentences()), line


def test_notes_are_explained():
    """Every note of support/notes.py is quoted, and says where."""
    page = " ".join(quotes(PAGE))
    tree = ast.parse(source("support/notes.py"))
    kind, = (node for node in tree.body if isinstance(node, ast.ClassDef))
    notes = [words_of(node.value) for node in ast.walk(kind) if isinstance(node, ast.Return)]
    notes = [words for words in notes if words]
    assert len(notes) == 7
    for words in notes:
        assert words[:40] in page, words


LINE = {"step": 2, "grad_norm": 1.0, "zero": 0.5, "alike": 0.5, "cut": 0.0, "kl": 1.0, "length": 10.0, "reward": 0.3}
THRESHOLDS = [  # a key, its last value without a note and its first with one, steps, the words of the page
    ("alike", 0.899, 0.901, STEPS, "`alike` is at least .9 over ten steps"),
    ("zero", 0.99, 1.0, IDLE, "`zero` is 1 for five steps"),
    ("kl", 9.9, 10.1, STEPS, "mean `kl` above mean `length` over ten steps"),
    ("cut", 0.199, 0.201, STEPS, "`cut` above .2"),
    ("grad_norm", 4.9, 5.1, MANY, "at 45 of 50 steps `grad_norm` was above five times the limit")]


def noted(lines, capsys, **flags):
    """What is printed of these lines."""
    args = SimpleNamespace(max_grad_norm=1.0, **flags)
    notes = Notes(args, 4, SimpleNamespace(graded=False, max_new_tokens=8, unanswered=None))
    for line in lines:
        notes.look(line)
    return capsys.readouterr().out


@pytest.mark.parametrize("key,below,above,steps,words", THRESHOLDS)
def test_thresholds(key, below, above, steps, words, capsys):
    """On either side of what the page says."""
    assert words in " ".join(source(PAGE).split())
    assert not noted([{**LINE, key: below}] * steps, capsys)
    said = noted([{**LINE, key: above}] * steps, capsys)
    assert said.startswith("note: ") and said.endswith(f" ({PAGE})\n") and said.count("\n") == 1
    if key in ("alike", "zero"):
        assert not noted([{**LINE, key: above}] * (steps - 1), capsys)
    if key == "grad_norm":
        assert not noted([{**LINE, key: above}] * 44 + [LINE] * 6, capsys)
        assert noted([LINE] * 5 + [{**LINE, key: above}] * 45, capsys)


def test_thresholds_of_the_first_step(capsys):
    assert "`w_even` above .95 in step 1" in source(PAGE)
    first = {**LINE, "step": 1, "w_mean": 1.0}
    assert not noted([{**first, "w_even": 0.95}], capsys)
    assert not noted([{**first, "step": 2, "w_even": 1.0}], capsys)
    assert "all weights are nearly equal" in noted([{**first, "w_even": 0.96}], capsys)


# ------------------------------------------------------------------------------------------------------- both of them

@pytest.mark.parametrize("path", PAGES)
def test_short(path):
    """What one reads, tables included, printed lines and commands aside."""
    text = FENCE.sub("", source(path))
    words = [word for word in re.split(r"[\s|]+", text) if re.search(r"\w", word)]
    assert len(words) <= 1200, len(words)


@pytest.mark.parametrize("path", PAGES)
def test_flags_are_those_of_a_script(path):
    """Those named outside of commands, which test_readme_commands_parse reads."""
    scripts = ("ppo_passk", "bon_sft", "bon_rl", "cat_passk", "cat_majority", "cat_bon", "bench")
    known = "".join(import_module(name).parser().format_help() for name in scripts[:-1]) + source("bench.py")
    for flag in set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", FENCE.sub("", source(path)))):
        assert re.search(rf"{flag}\b(?!-)", known), flag


def test_code_of_the_pages_runs():
    for path in PAGES:
        for block in blocks(source(path), "python"):
            exec(block, {})


def test_runs_name_the_pages():
    """The pages that a run names are there."""
    for words in sentences():
        for path in re.findall(r"\bdocs/\w+\.md\b", words):
            assert os.path.exists(os.path.join(ROOT, path)), path
    assert PAGE in PAGES
