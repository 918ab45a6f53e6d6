"""Two steps of the scripts, a resume and an evaluation, on tiny models of the architectures that people take."""
import zlib

import pytest
import safetensors.torch
import torch
from architectures import config_of, save
from test_scripts import no_picture, read_lines, run, untimed  # noqa: F401, a fixture

import bon_rl
import cat_passk
import common
import evaluate
import ppo_passk
import tasks
from support.errors import UserError

KINDS = {
    "qwen3_5_text": {}, "gemma3_text": {}, "qwen3_moe": {}, "gpt_oss": {}, "smollm3": {"no_rope_layers": [1, 0]},
    "granitemoehybrid": {},
    "llama": {"tie_word_embeddings": True, "rope_parameters": {
        "rope_type": "llama3", "rope_theta": 5e5, "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64}},
    "phi3": {"tie_word_embeddings": True, "original_max_position_embeddings": 64, "rope_parameters": {
        "rope_type": "longrope", "rope_theta": 1e4, "partial_rotary_factor": 0.5, "short_factor": [1.0, 1.5],
        "long_factor": [2.0, 4.0], "original_max_position_embeddings": 64}},
}
SMALL = ["--task", "countdown", "--prompts", 3, "--max-new-tokens", 6, "--eval-samples", 0, "--lr", 0.01]
SAMPLES = ["--samples", 4]
SCRIPTS = {"ppo_passk": (ppo_passk, ["--k", 2, *SAMPLES]), "cat_passk": (cat_passk, ["--n", 4, *SAMPLES]),
           "cat_passk sft": (cat_passk, ["--n", 4, "--mode", "sft"]), "bon_rl": (bon_rl, ["--n", 2, *SAMPLES])}


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
    folders = {}

    def get(kind):
        if kind not in folders:
            folders[kind] = save(tmp_path_factory.mktemp(kind), config_of(kind, **KINDS[kind]))
        return folders[kind]
    return get


@pytest.fixture(autouse=True)
def policies(monkeypatch):
    """Rewards of random text that differ; yields the policies that are loaded, each with its base as it was."""
    monkeypatch.setattr(tasks.Countdown, "verify", lambda self, problem, text: float(zlib.crc32(text.encode()) % 2))
    loaded, load = [], common.load_policy

    def remember(*args, **options):
        policy = load(*args, **options)
        loaded.append((policy, base(policy)))
        return policy
    monkeypatch.setattr(common, "load_policy", remember)
    return loaded


def base(policy):
    return {name: p.data.clone() for name, p in policy.model.named_parameters() if "lora_" not in name}


def check_run(folder, policies, rewarded=True):
    """Gradients, an adapter that moved and a base that did not, of a run of two steps."""
    lines = read_lines(folder)
    assert len(lines) == 2 and all(line["grad_norm"] > 0 for line in lines)
    assert not rewarded or any(0 < line["reward"] < 1 for line in lines)
    saved = safetensors.torch.load_file(folder / "adapter" / "adapter_model.safetensors")
    assert any(t.abs().max() > 0 for name, t in saved.items() if "lora_B" in name)
    policy, before = policies[-1]
    assert before.keys() == base(policy).keys() and all(torch.equal(p, before[n]) for n, p in base(policy).items())


@pytest.mark.parametrize("bits", [32, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_two_steps_of_each_script(kind, bits, folder_of, policies, tmp_path):
    for name, (script, flags) in SCRIPTS.items():
        code, _, error = run(script.main, *SMALL, *flags, "--model", folder_of(kind), "--bits", bits, "--steps", 2,
                             "--out", tmp_path / name)
        assert code == 0, error
        check_run(tmp_path / name, policies, rewarded="sft" not in name)


@pytest.mark.parametrize("kind", ["qwen3_5_text", "qwen3_moe"])
def test_resume_and_evaluation(kind, folder_of, policies, tmp_path, monkeypatch):
    """A run that broke off in its second step goes on bit for bit; a run is evaluated beside its base."""
    flags = [*SMALL, *SAMPLES, "--k", 2, "--model", folder_of(kind), "--save-every", 1, "--steps", 2]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert run(ppo_passk.main, *flags, "--out", whole)[0] == 0
    step, calls = ppo_passk.step, []

    def breaks(*args):
        calls.append(args)
        if len(calls) == 2:
            raise UserError("broken off")
        return step(*args)
    with monkeypatch.context() as patch:
        patch.setattr(ppo_passk, "step", breaks)
        assert run(ppo_passk.main, *flags, "--out", parts)[0] == 2
    code, _, error = run(ppo_passk.main, "--out", parts, "--resume")
    assert code == 0, error
    assert untimed(read_lines(parts)) == untimed(read_lines(whole))
    check_run(whole, policies)
    code, printed, error = run(evaluate.main, folder_of(kind), whole, "--task", "countdown", "--samples", 2, "--k", 2,
                               "--problems", 3, "--max-new-tokens", 6, "--out", tmp_path / "e")
    assert code == 0 and "pass@2" in printed, error
