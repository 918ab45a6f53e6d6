"""The path of a GPU on a CPU that obeys CUDA's rules about devices (pretend_gpu.py): no tensor on the wrong one."""
import importlib
import json

import bitsandbytes  # it, peft and transformers look for CUDA when they are imported: before one is pretended
import peft
import pytest
import torch
import transformers
from pretend_gpu import PretendGPU
from test_scripts import read_lines, run

import common
from support import load
from support.errors import UserError

SCRIPTS = {"ppo_passk": ["--k", 4], "bon_sft": ["--n", 4], "bon_rl": ["--n", 4], "cat_passk": ["--n", 4],
           "cat_passk rl": ["--n", 4, "--mode", "rl", "--kl-coef", 0.01], "cat_majority": ["--n", 4],
           "cat_majority rl": ["--n", 4, "--mode", "rl"], "cat_bon": ["--n", 4]}
SMALL = ["--steps", 2, "--prompts", 4, "--samples", 4, "--eval-samples", 4, "--eval-problems", 4]


def test_the_device_obeys():
    """What CUDA refuses is refused; what makes the host wait is counted; without it nothing is left of the device."""
    with PretendGPU() as gpu:
        x = torch.ones(3, device="cuda")
        assert x.is_cuda and (x * 2).device.type == "cuda" and x.cpu().device.type == "cpu"
        with pytest.raises(RuntimeError, match="same device"):
            x + torch.ones(3)
        with pytest.raises(TypeError):
            x.numpy()
        with gpu.phase("wait"):
            x.sum().item()
            x[x > 0]
            torch.tensor([1.0]).to("cuda")
        y = torch.ones(2, requires_grad=True)
        (y.to("cuda") * 3).sum().backward()
        assert not y.grad.is_cuda
    assert gpu.syncs["wait"].total() == 2 and gpu.copies["wait"].total() == 1
    assert not torch.cuda.is_available() and not x.is_cuda


@pytest.mark.parametrize("bits", [4, 8, 16, 32])
def test_sampler_and_scorer(bits):
    """In every precision the sampler and the scorer agree, and every LoRA tensor gets a gradient on the device."""
    with PretendGPU() as gpu:
        policy = common.load_policy("tiny", bits=bits)
        assert policy.device.type == "cuda" and "Pretend" in policy.note
        prompts = [policy.encode(x) for x in ("c7,3:21>", "c2,7,9:23>", "c1,2,3,4:9>")]
        drawn = common.sample(policy, prompts, 8, range(3), max_new_tokens=8)
        ys = [y for rows in drawn.lists() for y in rows]
        for index, logps, _ in common.score(policy, [x for x in prompts for _ in range(8)], ys):
            old = drawn.logps.flatten(0, 1).sum(-1)[index.to("cuda")]
            assert (logps.sum(-1) - old).abs().max().item() < (1e-3 if bits == 32 else 0.5)
            logps.sum().backward()
        assert all(p.grad is not None and p.grad.is_cuda for p in policy.parameters())
    assert not gpu.mismatches


@pytest.mark.parametrize("bits", [4, 16])
def test_the_host_hardly_waits(bits):
    """Of the sampler, at most once per 8 tokens and 8 times a call; of the scorer, per micro-batch."""
    with PretendGPU() as gpu:
        policy = common.load_policy("tiny", bits=bits)
        policy.stop = []
        prompts = [policy.encode(x) for x in ("c7,3:21>", "c2,7,9:23>", "c1,2,3,4:9>")]
        with gpu.phase("sample"):
            drawn = common.sample(policy, prompts, 8, range(3), max_new_tokens=32)
        ys = [y for rows in drawn.lists() for y in rows]
        with gpu.phase("score"):
            for _, logps, _ in common.score(policy, [x for x in prompts for _ in range(8)], ys):
                logps.sum().backward()
    assert gpu.syncs["sample"].total() <= 32 // 8 + 8 and gpu.syncs["score"].total() <= 3, gpu.report()


def test_a_gpu_without_bfloat16(monkeypatch):
    """It trains a 4-bit base in float32, and says that it cannot do 16 bits."""
    with PretendGPU():
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: False)
        with pytest.raises(UserError, match="--bits 16 needs bfloat16, which Pretend H100 does not have"):
            common.load_policy("tiny", bits=16)
        assert "4-bit base (default on a GPU), compute float32" in common.load_policy("tiny").note
        monkeypatch.undo()


def test_16_bits_are_not_offered_where_they_do_not_fit(monkeypatch):
    monkeypatch.setattr(load, "free_memory", lambda _: 2 ** 20)
    with PretendGPU():
        assert "4-bit base (default on a GPU)," in common.load_policy("tiny").note


@pytest.mark.parametrize("name", SCRIPTS)
def test_two_steps_of_each_script(name, tmp_path):
    """A run with its evaluations, in the default precision of a GPU."""
    module, out = importlib.import_module(name.split()[0]), tmp_path / "run"
    with PretendGPU() as gpu:
        code, printed, error = run(module.main, *SCRIPTS[name], *SMALL, "--out", out)
        assert code == 0 and "cuda (Pretend H100), 4-bit base (default on a GPU; it would fit with" in printed, error
    assert not gpu.mismatches and len(read_lines(out)) == 2
    args, result = (json.loads((out / f"{part}.json").read_text()) for part in ("args", "result"))
    assert args["flags"]["bits"] == 4 and {"before", "after"} <= result.keys()
