"""What a run shows of itself: the command that repeats it, its step line, its picture."""
import argparse
import importlib
import itertools
import json
import shlex
import types

import numpy as np
import pytest
import torch
from test_scripts import read_lines, run, untimed

import common
import evaluate
import ppo_passk
from support import card, plots
from support import run as runs

SCRIPTS = ["ppo_passk", "bon_sft", "bon_rl", "cat_passk", "cat_majority", "cat_bon"]
SMALL = ["--prompts", 4, "--samples", 4, "--k", 4, "--eval-samples", 0, "--steps", 2]


@pytest.fixture(autouse=True, scope="module")
def no_picture():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("support.run.plot_run", lambda folder, result: None)
        yield


def test_the_command_that_repeats_a_run(tmp_path):
    """Printed and stored as one text; run again it gives the same numbers."""
    flags = ["--objective", "majority", "--temperature", 0.9, "--no-chat", "--seed=-3"]
    code, out, error = run(ppo_passk.main, *SMALL, *flags, "--out", tmp_path / "a")
    assert code == 0, error
    stored = json.loads((tmp_path / "a" / "args.json").read_text())
    assert out.count(f"\nto repeat it: {stored['command']}\n") == 1
    python, script, *words = shlex.split(stored["command"])
    assert python == "python" and script.endswith("ppo_passk.py") and not {"--out", "--save-every"} & {*words}
    assert run(ppo_passk.main, *words, "--out", tmp_path / "b")[0] == 0
    assert untimed(read_lines(tmp_path / "a")) == untimed(read_lines(tmp_path / "b"))
    again = json.loads((tmp_path / "b" / "args.json").read_text())
    assert again["command"] == stored["command"]


@pytest.mark.parametrize("script", SCRIPTS)
def test_flags_that_are_told_off(script):
    """card.NEGATED has all of them, and a command that has everything is read as it was."""
    parser = importlib.import_module(script).parser()
    negated = {action.dest for action in parser._actions if isinstance(action, argparse.BooleanOptionalAction)}
    assert negated <= {*card.NEGATED}
    args = parser.parse_args([f"--no-{name}" for name in negated])
    words = shlex.split(card.command(script, vars(args)))[2:]
    assert vars(parser.parse_args(words)) == vars(args)


def printed(line, capsys):
    runs.print_line(line, 10, 1.0)
    return capsys.readouterr().out


def test_nothing_is_in_the_step_line_twice(capsys):
    line = {"step": 1, "loss": 0.5, "reward": 0.25, "grad_norm": 1.0, "seconds": 3.0}
    for key in ("pass@1", "max@1"):
        assert "reward" not in printed({**line, key: 0.25}, capsys)
        assert "reward 0.25" in printed({**line, key: 0.5}, capsys)
    assert "reward 0.25" in printed(line, capsys)
    assert printed({"step": 1, "loss": 0.5, "gold": -3.0}, capsys) == "step 1/10  loss 0.5  gold -3  eta 9 s\n"


@pytest.mark.parametrize("script,flags,shown", [
    ("ppo_passk", ["--objective", "majority"], True), ("ppo_passk", ["--objective", "mean"], False),
    ("cat_majority", [], True)])
def test_the_vote_is_shown_where_it_is_trained_for(script, flags, shown, tmp_path):
    budget = ["--n" if "cat" in script else "--k", 4]
    code, out, error = run(importlib.import_module(script).main, *SMALL[:4], *budget, *SMALL[6:], *flags, "--steps", 1,
                           "--out", tmp_path / "r")
    assert code == 0, error
    line, = (line for line in out.split("\n") if line.startswith("step 1/1 "))
    assert ("  maj@4 " in line) == shown and "  pass@1 " in line and "reward" not in line
    assert out.count("what the keys of a step mean: docs/logged.md\n") == 1


def test_what_samples_show():
    """By hand: the vote of three of four over all choices, prompts whose samples are alike, completions cut."""
    answers = [["a", "b", "b", None], ["c", "c", "c", "c"]]
    rewards = torch.tensor([[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]])
    tokens = torch.tensor([[[5, 0, 7], [5, 5, 0], [5, 5, 5], [0, 5, 5]]]).expand(2, 4, 3)
    lengths = torch.tensor([[2, 3, 3, 1]]).expand(2, 4)
    drawn = common.Samples(tokens, torch.zeros(2, 4, 3), lengths, torch.zeros(2, 4, 3), torch.ones(2, 4))
    policy = types.SimpleNamespace(stop=[0])
    stats = runs.sample_stats(policy, types.SimpleNamespace(graded=False), drawn, rewards, 3, None, 1.0, answers)
    votes = [choice.count("a") == choice.count("b") == 1 for choice in itertools.combinations(answers[0], 3)]
    assert stats["maj@3"] == pytest.approx((0.5 * sum(votes) / len(votes) + 1) / 2)
    assert stats["alike"] == 0.5 and stats["cut"] == 0.25
    graded = types.SimpleNamespace(graded=True)
    assert "maj@3" not in runs.sample_stats(policy, graded, drawn, rewards, 3, None, 1.0, answers)


def pixels(figure):
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba()).copy()


def test_no_curve_is_hidden(tmp_path, monkeypatch):
    """Where all curves of a panel are one and the same, each of them changes the picture still. It has the run's name,
    and a panel for each unit: a log-probability flattens no share."""
    folder = tmp_path / "my run"
    folder.mkdir()
    keys = ["reward", "pass@1", "pass@4", "maj@4", "kl", "gold", "zero", "alike", "cut", "w_even"]
    lines = [json.dumps({"step": step, **dict.fromkeys(keys, 0.5)}) + "\n" for step in range(1, 31)]
    (folder / "metrics.jsonl").write_text("".join(lines))
    row = {f"{kind}@{k}": {"mean": 0.5, "se": 0.1} for kind in ("pass", "maj") for k in (1, 2, 4)}
    figures = []
    monkeypatch.setattr(plots, "save_figure", lambda figure, path: figures.append(figure))
    plots.plot_run(str(folder), {"before": row, "after": row})
    figure, = figures
    assert figure.get_suptitle() == "my run"
    named = [[text.get_text() for text in axis.get_legend().get_texts()] for axis in figure.axes]
    assert named == [["pass@1", "pass@4", "maj@4"], ["kl", "gold"], ["zero", "alike", "cut", "w_even"],
                     ["pass@k before", "pass@k after", "maj@k before", "maj@k after"]]
    for axis in figure.axes:
        axis.get_legend().remove()
    whole = pixels(figure)
    for axis in figure.axes:
        for line in axis.lines:
            line.set_visible(False)
            changed = (pixels(figure) != whole).any(-1).sum()
            line.set_visible(True)
            assert changed > 100, line
    monkeypatch.undo()
    plots.plot_run(str(folder), {})
    assert (folder / "curves.png").stat().st_size > 1000


def test_evaluation_takes_the_length_of_the_runs():
    """Where none is given: the longest of those on the same task, so that all are compared at one."""
    runs = {"a": {"task": "countdown", "max_new_tokens": 5}, "b": {"task": "countdown", "max_new_tokens": 7},
            "c": {"task": "routes", "max_new_tokens": 30}}
    for flags, longest in (([], 30), (["--task", "countdown"], 7), (["--task", "program"], 0)):
        assert evaluate.length_of(evaluate.parse_args(flags), runs) == longest
    assert evaluate.length_of(evaluate.parse_args(["tiny"]), {}) == 0
