"""Rollouts by an engine: the same run as with the built-in sampler, and one sentence for what goes wrong."""
import json
import os
import re

import pytest
import torch
from conftest import load_policy
from engine_server import Engine, once
from test_common import shaken
from test_scripts import read_lines, run

import bon_rl
import bon_sft
import cat_bon
import cat_majority
import cat_passk
import common
import evaluate
import ppo_passk
from support import folder, rollouts
from support.errors import UserError

FLAGS = ["--steps", 2, "--prompts", 4, "--samples", 4, "--eval-samples", 4, "--eval-problems", 4]
DRAW = "/v1/completions"
MODES = {"passk": (ppo_passk, "--k", 2), "mean": (ppo_passk, "--objective", "mean", "--k", 2, "--kl-coef", 0.1),
         "bon_rl": (bon_rl, "--n", 4, "--entropy-coef", 0.01), "bon_sft": (bon_sft, "--n", 4),
         "cat_passk": (cat_passk, "--n", 4), "cat_majority": (cat_majority, "--n", 4),
         "cat_bon": (cat_bon, "--n", 4), "cat_bon sft": (cat_bon, "--n", 4, "--mode", "sft", "--train-problems", 8)}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """No pictures; a server that is away comes back at once."""
    monkeypatch.setattr("support.run.plot_run", lambda *_: None)
    monkeypatch.setattr("support.plots.plot", lambda *_: None)
    monkeypatch.setattr(rollouts.time, "sleep", lambda _: None)


@pytest.fixture(scope="module")
def tiny():
    with Engine() as engine:
        yield engine


@pytest.fixture
def engine(tiny):
    tiny.log.clear()
    tiny.faults.clear()
    tiny.adapters.clear()
    yield tiny


def of(model, url, folder, correction="weights", bound=3, patience=60):
    """A policy that a server draws for, begun."""
    policy = shaken(load_policy(model), scale=0.05)
    policy.rollouts = rollouts.Rollouts(rollouts.Server(url, patience), folder / "a", folder, correction, bound)
    policy.rollouts.begin(policy)
    return policy


def close(a, b):
    return a == pytest.approx(b, rel=2e-3, abs=2e-4)


@pytest.mark.parametrize("name", MODES)
def test_a_run_is_the_run_of_the_built_in_sampler(name, tmp_path):
    """The same samples, losses and evaluations; the engine keeps no adapter, the disk no folder of one."""
    script, *flags = MODES[name]
    with Engine({bon_sft: "tiny_hasty", cat_bon: "tiny_peptide"}.get(script, "tiny")) as engine:
        for out, more in (("own", []), ("engine", ["--rollouts", engine.url])):
            code, said, err = run(script.main, *FLAGS, *flags, "--out", tmp_path / out, *more)
            assert code == 0, err
        assert engine.adapters == {} and len(engine.asked("/v1/load_lora_adapter")) == 3  # before, after each step
        assert len({body["lora_path"] for body in engine.asked("/v1/load_lora_adapter")}) == 3
        assert len(engine.asked(DRAW)) >= 2 * 4
    assert not (tmp_path / "engine" / "rollouts").exists()
    assert "; the engine's own: largest" in said and f"rollouts by {engine.url}" in said
    for own, found in zip(read_lines(tmp_path / "own"), read_lines(tmp_path / "engine"), strict=True):
        if "reward" in found:  # of a supervised step nothing is sampled
            assert found.keys() - own.keys() == {"engine_gap", "engine_gap_max", "engine_cut"}
            assert found["engine_gap"] <= found["engine_gap_max"] < 1e-4 and found["engine_cut"] == 0
        for key in own.keys() - {"seconds", "tokens_per_s", "samples_per_s", "memory_gb", "diversity"}:
            assert close(found[key], own[key]), (key, found[key], own[key])
    own, found = (json.load(open(tmp_path / out / "result.json")) for out in ("own", "engine"))
    for row in ("before", "after"):
        for key in own[row]:
            assert close(found[row][key]["mean"], own[row][key]["mean"]), (row, key)
