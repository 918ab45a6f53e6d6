"""docs/tour.ipynb: its commands and names exist, what it prints is what the code prints, and its sentences are true of
the results that are stored in it."""
import contextlib
import importlib
import io
import json
import os
import re
import shlex

import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
with open(os.path.join(ROOT, "docs", "tour.ipynb"), encoding="utf-8") as file:
    CELLS = json.load(file)["cells"]
CODE = ["".join(cell["source"]) for cell in CELLS if cell["cell_type"] == "code"]
PYTHON = [source for source in CODE if not source.startswith("%%bash\n")]
COMMANDS = [source.removeprefix("%%bash\n") for source in CODE if source.startswith("%%bash\n")]


def printed(cell):
    return "".join("".join(output.get("text", "")) for output in cell["outputs"])


def stored(start):
    """What the cell that begins with a text has printed."""
    cell, = (cell for cell in CELLS if "".join(cell["source"]).startswith(start))
    return printed(cell)


def test_all_cells_have_run_in_order():
    cells = [cell for cell in CELLS if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    kinds = {output["output_type"] for cell in cells for output in cell["outputs"]}
    assert kinds == {"stream", "display_data"}  # no error
    assert os.path.getsize(os.path.join(ROOT, "docs", "tour.ipynb")) < 200_000


@pytest.mark.parametrize("command", COMMANDS, ids=range(len(COMMANDS)))
def test_commands_parse(command):
    python, script, *words = shlex.split(command.replace("\\\n", " "))
    assert python == "python"
    importlib.import_module(script.removesuffix(".py")).parser().parse_args(words)


def test_names_exist():
    named = re.findall(r"\b(common|ppo_passk)\.(\w+)\(", "\n".join(PYTHON))
    assert len(named) >= 4
    for module, name in named:
        assert hasattr(importlib.import_module(module), name), name


def test_links_lead_somewhere():
    text = "\n".join("".join(cell["source"]) for cell in CELLS if cell["cell_type"] == "markdown")
    links = re.findall(r"\]\(([^)#]+)", text)
    assert len(links) >= 5
    for link in links:
        assert os.path.exists(os.path.join(ROOT, "docs", link)), link


def test_what_is_computed_is_what_is_stored(monkeypatch):
    """The cells before the runs, executed once more, print what is stored."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("MPLBACKEND", "agg")
    names = {}
    for source in CODE[:CODE.index("%%bash\n" + COMMANDS[0])]:
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(compile(source, "tour", "exec"), names)
        assert out.getvalue() == stored(source), source
    assert names["expected"](.5, 2, 2) == pytest.approx(1.0)


def test_what_is_said_of_the_runs():
    """pass@1 is won by the mean, pass@k from k = 8 on by pass@8, and at k = 32 the mean is below the base."""
    lines = dict(re.findall(r"^(base|for the mean|for pass@8)\s+(.*)$", stored("results = {}"), re.MULTILINE))
    base, mean, aware = ({int(k): float(value) for k, value in re.findall(r"pass@(\d+) (\S+)", lines[name])}
                         for name in ("base", "for the mean", "for pass@8"))
    assert mean[1] > aware[1] > base[1] and mean[32] < base[32]
    assert all(aware[k] > max(mean[k], base[k]) for k in (8, 16, 32))
    own = stored("%%bash\npython ppo_passk.py --data")
    before, after = (float(re.search(rf"^{row}\s+(\S+)", own, re.MULTILINE)[1]) for row in ("before", "after"))
    assert after > before + .3 and "far from the model it started from" in own
