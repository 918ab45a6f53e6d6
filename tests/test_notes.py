"""What a run says of itself (support/notes.py): each note by making it happen, once; none where there is no cause."""
import json

import pytest
from test_scripts import run

import cat_majority
import cat_passk
import ppo_passk

SMALL = ["--prompts", 4, "--samples", 4, "--eval-samples", 0]


@pytest.fixture(autouse=True, scope="module")
def no_picture():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("support.run.plot_run", lambda folder, result: None)
        yield


def notes(main, *flags):
    code, out, error = run(main, *flags)
    assert code == 0, error
    return [line for line in out.split("\n") if line.startswith("note: ")]


@pytest.fixture
def impossible(tmp_path):
    """Problems that the embedded model has no right sample for."""
    path = tmp_path / "impossible.jsonl"
    lines = [{"prompt": f"c{i},3:21>", "answer": "never"} for i in range(1, 40)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_none_without_a_cause(tmp_path):
    """A dozen steps of a run as it is meant to be."""
    assert not notes(ppo_passk.main, *SMALL, "--k", 4, "--steps", 12, "--out", tmp_path / "r")


def test_cut_and_far(tmp_path):
    """Completions of three tokens, and steps that take the policy anywhere."""
    flags = ["--n", 4, "--steps", 5, "--max-new-tokens", 3, "--lr", 0.3]
    found = notes(cat_majority.main, *SMALL, *flags, "--out", tmp_path / "r")
    for words in ("% of the completions were cut at --max-new-tokens 3 and scored as they were",
                  "the KL to the reference is above 1 nat per token ("):
        assert sum(words in note for note in found) == 1, found


def test_clipped(tmp_path):
    """At every step, by a limit that every gradient passes; where nothing is clipped it is not said."""
    flags = ["--mode", "sft", "--prompts", 2, "--train-problems", 20, "--eval-samples", 0, "--steps", 52]
    found = notes(cat_passk.main, *flags, "--max-grad-norm", 1e-3, "--out", tmp_path / "r")
    assert len([note for note in found if "a fifth of its norm in 50 of the last 50 steps (median norm" in note]) == 1
    found = notes(cat_passk.main, *flags, "--max-grad-norm", 0, "--out", tmp_path / "s")
    assert not [note for note in found if "clipped" in note]


def test_too_hard(impossible, tmp_path):
    """Where wrong samples have coefficients; where they have none another note says as much."""
    found = notes(cat_majority.main, *SMALL, "--n", 4, "--steps", 11, "--data", impossible, "--out", tmp_path / "a")
    assert len([note for note in found if "nearly all prompts had only wrong or only correct samples (mean reward 0), "
                "which gives little or no gradient: use easier problems, more --samples" in note]) == 1, found
    found = notes(ppo_passk.main, *SMALL, "--k", 4, "--steps", 11, "--data", impossible, "--out", tmp_path / "b")
    assert len([note for note in found if "all coefficients were 0" in note]) == 1
    assert not [note for note in found if "nearly all prompts" in note]


def test_too_easy(tmp_path, monkeypatch):
    """Where right samples have coefficients though all are right: with k = 1 there is no baseline."""
    monkeypatch.setattr("tasks.Task.rewards", lambda self, problems, completions: [1.0] * len(completions))
    found = notes(ppo_passk.main, *SMALL, "--k", 1, "--steps", 11, "--out", tmp_path / "r")
    assert len([note for note in found if "(mean reward 1), which gives little or no gradient: use h" in note]) == 1
