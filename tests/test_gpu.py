"""What only a GPU can show; skipped without CUDA. PRETEND_GPU=1 rehearses it on a CPU (pretend_gpu.py)."""
import importlib
import math
import os

import bitsandbytes  # it, peft and transformers look for CUDA when they are imported: before one is pretended
import peft
import pytest
import torch
import transformers
from conftest import load_policy
from pretend_gpu import PretendGPU
from test_common import PROMPTS, dequantised, folder_of, gradient, shaken  # noqa: F401, a fixture
from test_pretend_gpu import SCRIPTS, in_float32
from test_scripts import read_lines, run

import bench
import common
import ppo_passk
from fast import captured
from support import load

PRETENDED = os.environ.get("PRETEND_GPU") and not torch.cuda.is_available()


@pytest.fixture(autouse=True)
def device():
    if not torch.cuda.is_available() and not PRETENDED:
        pytest.skip("no CUDA (PRETEND_GPU=1 rehearses these tests)")
    if PRETENDED:
        with PretendGPU() as gpu:
            yield
        assert not gpu.mismatches
    else:
        yield
        torch.cuda.empty_cache()


def uniforms(seed, k, T):
    return torch.rand(k, T, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def boundary(policy, prompt, prefix, u):
    """How far a uniform is from the nearest step of the distribution function after a prompt and a prefix."""
    ids = torch.tensor([prompt + prefix], device=policy.device)
    mask = torch.ones_like(ids)
    logits = policy.forward(ids, mask, common.positions_of(mask), 1, use_cache=False).logits[0, -1]
    return (logits.double().softmax(-1).cumsum(-1) - u).abs().min().item()


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt2"])
def test_captured_and_plain_draw_the_same(folder_of, kind, monkeypatch):
    """In float32 the same tokens for the same seeds, until a uniform lies within 1e-5 of a boundary; and their
    log-probabilities. In several segments."""
    monkeypatch.setattr(captured, "SEGMENT", 3 if PRETENDED else 48)
    policy = shaken(load_policy(folder_of(kind), bits=32), scale=0.05)
    assert "decoded in CUDA graphs, adapter computed in two kernels" in policy.note, policy.note
    prompts, k, T = [policy.encode(x) for x in PROMPTS], 4 if PRETENDED else 64, 8 if PRETENDED else 110
    found = common.sample(policy, prompts, k, range(len(prompts)), max_new_tokens=T)
    policy.fast.captured = False
    plain = common.sample(policy, prompts, k, range(len(prompts)), max_new_tokens=T)
    other = 0
    for b, (ours, theirs) in enumerate(zip(found.lists(), plain.lists())):
        u = uniforms(b, k, T)
        for i, (x, y) in enumerate(zip(ours, theirs)):
            t = next((t for t in range(min(len(x), len(y))) if x[t] != y[t]), None)
            if t is None:
                assert x == y
            else:
                other += 1
                assert boundary(policy, prompts[b], x[:t], u[i, t].item()) < 1e-5
            t = len(x) if t is None else t
            assert torch.allclose(found.logps[b, i, :t], plain.logps[b, i, :t], atol=1e-3)
    assert other <= 0.05 * len(prompts) * k  # 1e-5 is a rare event


@pytest.mark.parametrize("bits", [4, 16])
def test_captured_is_as_exact_as_plain(bits, monkeypatch):
    """In bfloat16 and 4 bits: as near to what the weights give in float32 as the plain loop. All finite, on prompts
    padded on the left, and in several segments, between which rows leave."""
    monkeypatch.setattr(captured, "SEGMENT", 4)
    policy = shaken(load_policy("tiny", bits=bits), scale=0.05)
    assert "decoded in CUDA graphs" in policy.note, policy.note
    prompts, k, both, off = [policy.encode(x) for x in PROMPTS], 4 if PRETENDED else 64, [], []
    for policy.fast.captured in (True, False):
        both.append(common.sample(policy, prompts, k, range(len(prompts)), max_new_tokens=12))
    assert all(drawn.logps.isfinite().all() and drawn.entropies.isfinite().all() for drawn in both)
    in_float32(policy)
    for drawn in both:
        true = common.sequence_logps(policy, [x for x in prompts for _ in range(k)],
                                     [y for rows in drawn.lists() for y in rows])
        gap = (true - drawn.logps.flatten(0, 1).double().sum(-1).cpu()) / drawn.lengths.flatten().cpu()
        off.append(gap.abs().mean().item())
    assert 0 < off[0] < 2 * off[1] and off[0] < 0.05, off


def test_sampler_draws_from_the_model():
    """Frequencies of all completions of one or two tokens against their exact probabilities, by chi-square."""
    policy = shaken(load_policy("tiny", bits=32), scale=0.05)
    prompt, N, V = policy.encode("c7,3:21>"), 512 if PRETENDED else 65536, policy.lm.config.vocab_size
    drawn = common.sample(policy, [prompt], N, [0], max_new_tokens=2).lists()[0]
    every = [[a, b] for a in range(V) if a not in policy.stop for b in range(V)] + [[a] for a in policy.stop]
    exact = common.sequence_logps(policy, [prompt] * len(every), every).exp()
    assert math.isclose(exact.sum().item(), 1.0, abs_tol=1e-4)
    counts = torch.zeros(len(every), dtype=torch.float64)
    place = {tuple(y): j for j, y in enumerate(every)}
    for y in drawn:
        counts[place[tuple(y)]] += 1
    common_ones = N * exact >= 5  # the rest is one cell
    seen, expected = (torch.cat([x[common_ones], x[~common_ones].sum()[None]]) for x in (counts, N * exact))
    chi, cells = ((seen - expected) ** 2 / expected.clamp_min(1e-9)).sum().item(), len(seen) - 1
    assert chi < cells + 5 * math.sqrt(2 * cells) + 5, (chi, cells)


@pytest.mark.parametrize("bits", [4, 8])
def test_quantised_gradients(bits):
    """Against the same weights de-quantised, before and after rollouts; bfloat16 moves them by some percent, a wrong
    backward by more."""
    policy = shaken(load_policy("tiny", bits=bits), scale=0.05)
    prompts = [policy.encode(p) for p in PROMPTS]
    tokens = common.sample(policy, prompts, 2, range(5), max_new_tokens=12).lists()
    rows = ([p for p in prompts for _ in range(2)], [row for pair in tokens for row in pair],
            torch.linspace(-1, 1, 10, device=policy.device))
    first = gradient(policy, *rows)[1]
    common.sample(policy, prompts, 2, range(5), max_new_tokens=12)
    again = gradient(policy, *rows)[1]
    right = gradient(in_float32(dequantised(policy)), *rows)[1]
    for found in (first, again):
        near, far = (0.98, 1.1) if bits == 4 else (0.95, 1.25)  # 8 bits round the activations, too
        assert torch.cosine_similarity(found, right, dim=0) > near and 1 / far < found.norm() / right.norm() < far


def test_resume(tmp_path):
    """Not bit for bit, because a GPU's sums have no fixed order, but the same run."""
    flags = ["--k", 4, "--steps", 4, "--prompts", 4, "--samples", 4, "--max-new-tokens", 8, "--eval-samples", 0,
             "--save-every", 2, "--bits", 32]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert run(ppo_passk.main, *flags, "--out", whole)[0] == 0
    assert run(ppo_passk.main, *flags, "--out", parts)[0] == 0
    (parts / "state.previous.pt").replace(parts / "state.pt")  # back to step 2
    code, printed, error = run(ppo_passk.main, "--out", parts, "--resume")
    assert code == 0, error
    a, b = read_lines(whole), read_lines(parts)
    assert [line["step"] for line in b] == [1, 2, 3, 4]
    assert all(abs(x["length"] - y["length"]) < 0.5 and abs(x["loss"] - y["loss"]) < 0.05 for x, y in zip(a, b))


@pytest.mark.skipif(bool(PRETENDED), reason="memory is not pretended")
@pytest.mark.parametrize("bits", [4, 16])
def test_memory_stays_within_the_estimate(tmp_path, bits):
    """Of the sampler by support/load.py, most_rows, of the update by micro_batch: both mean to take half of what is
    free. In a small model what does not grow with rows or tokens is more than usual: three quarters are allowed."""
    bench.build("0.1b", str(tmp_path), 0)
    policy = load_policy(str(tmp_path), bits=bits)
    policy.stop = []
    prompts = [[7] * 128] * 64
    for budget in (2 ** 31, 2 ** 33):  # as if so much were free
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(load, "free_memory", lambda _: budget)
            rows, tokens = load.most_rows(policy.lm, 128 + 64), load.micro_batch(policy.lm)
        torch.cuda.synchronize()
        start = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        drawn = common.sample(policy, prompts, 32, range(64), max_new_tokens=64, max_rows=rows)
        assert torch.cuda.max_memory_allocated() - start < 0.75 * budget, (rows, budget)
        torch.cuda.reset_peak_memory_stats()
        start = torch.cuda.memory_allocated()
        ys = [y for rows in drawn.lists() for y in rows][:256]
        for _, logps, _ in common.score(policy, [prompts[0]] * len(ys), ys, 1.0, tokens):
            logps.sum().backward()
        assert torch.cuda.max_memory_allocated() - start < 0.75 * budget, (tokens, budget)


@pytest.mark.skipif(bool(PRETENDED), reason="kernels are not pretended")
def test_attention_is_not_planned_anew_for_every_length():
    """cuDNN's attention plans for every shape, and keys that grow by a token have another one each time."""
    policy = load_policy("tiny", bits=16)
    policy.fast.captured = False
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as found:
        common.sample(policy, [policy.encode("c7,3:21>")] * 4, 4, range(4), max_new_tokens=20)
    names = [event.key for event in found.key_averages()]
    assert names and not [name for name in names if "cudnn" in name.lower()], names


@pytest.mark.parametrize("name", [name for name in SCRIPTS if " " not in name])
def test_two_steps_of_each_script(name, tmp_path):
    """In the default precision, with evaluation."""
    code, printed, error = run(importlib.import_module(name).main, *SCRIPTS[name], "--steps", 2, "--prompts", 4,
                               "--samples", 4, "--eval-samples", 4, "--eval-problems", 4, "--max-new-tokens", 8,
                               "--out", tmp_path / "run")
    assert code == 0 and "4-bit base (default on a GPU" in printed, error
    assert all(math.isfinite(line["loss"]) for line in read_lines(tmp_path / "run"))
