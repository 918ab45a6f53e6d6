"""bon_sft.py and bon_rl.py: their equations against brute force in float64, and real runs on the embedded model."""
import importlib
import itertools
import json
import math
import os
import subprocess
from decimal import Decimal, getcontext

import architectures
import pytest
import safetensors.torch
import torch
import transformers
from conftest import ROOT, load_policy
from tabular import assert_figures, distance, on_three_prompts, slope_on_three_prompts
from test_scripts import command, read_lines, run, same_run

import bon_rl
import bon_sft
import common
import evaluate
import fit_verifier
import tasks
from bon_rl import bon_rl_coefficients, bon_rlb_coefficients, kl_coefficients, lambda_n, rlb_weights
from bon_sft import bon_sft_coefficients
from support import load, processes
from support import verifier as verifiers
from support.errors import UserError
from support.folder import Folder
from support.run import batch_of


@pytest.fixture(autouse=True, scope="module")
def no_picture():
    """curves.png takes a third of the time of so short a run; that of every mode is drawn in test_house.py."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("support.run.plot_run",
                      lambda folder, result: open(os.path.join(folder, "curves.png"), "w").close())
        yield


# A tabular policy over V completions is softmax(theta). Each completion has a score and a reward.
CASES = [("three", [0.1, 0.7, 0.4], [0.0, 1.0, 0.0]),
         ("tied scores", [0.5, 0.5, -1.0], [1.0, 0.0, 1.0]),
         ("graded", [2.0, -1.0, 0.3], [0.3, -1.2, 2.5]),
         ("two", [0.0, 1.0], [0.0, 1.0])]


def theta_of(V, seed=0):
    return torch.randn(V, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def tensor(x):
    return torch.tensor(x, dtype=torch.float64)


def log_bon(theta, scores, n):
    """log pi_bon of every completion, exact: Q sums the policy over the completions that do not score higher."""
    logp = torch.log_softmax(theta, 0)
    s = tensor(scores)
    Q = ((s[:, None] >= s[None, :]).double() * logp.exp()).sum(1)
    return torch.log_softmax(logp + bon_rl.lambda_n(n) * Q, 0)


def gradient(function, theta):
    theta = theta.clone().requires_grad_()
    return torch.autograd.grad(function(theta), theta)[0]


def counts_of(V, M):
    """All ways to spread M draws over V completions."""
    if V == 1:
        return [(M,)]
    return [(c, *rest) for c in range(M + 1) for rest in counts_of(V - 1, M - c)]


def expected_estimate(theta, M, coefficients):
    """Exact expectation of sum_j c_j grad log pi(y_j) over M draws, by multinomial counts (the coefficients do not
    depend on the order of the samples). coefficients: completions [R, M] -> (c [R, M], gold coefficient times gradient
    or 0)."""
    p = torch.softmax(theta, 0)
    V = len(p)
    counts = counts_of(V, M)
    y = torch.tensor([[v for v, c in enumerate(row) for _ in range(c)] for row in counts])  # [R, M]
    ways = [math.lgamma(M + 1) - sum(math.lgamma(c + 1) for c in row) for row in counts]
    weight = (tensor(ways) + (tensor(counts) * p.log()).sum(1)).exp()
    assert weight.sum().item() == pytest.approx(1, abs=1e-10)
    grads = torch.eye(V, dtype=torch.float64) - p  # row y: grad of log pi(y)
    return (weight[:, None] * torch.einsum("rm,rmv->rv", coefficients(y), grads[y])).sum(0)


# --------------------------------------------------------------------------------------------------------------- lambda

def residual(l, n):
    """Left minus right side of the equation as printed, in 60 digits."""
    getcontext().prec = 60
    l, n = Decimal(l), Decimal(n)
    e = l.exp()
    return ((l - 1) * e + 1) / (e - 1) - ((e - 1) / l).ln() - n.ln() + (n - 1) / n


def test_lambda_solves_its_equation():
    for n in (*range(2, 40), 64, 100, 128, 255, 256, 512, 777, 1023, 1024):
        for function in (lambda_n, bon_sft.lambda_n):
            l = function(n)
            low, high = (residual(Decimal(l) * (1 + Decimal(sign) / 10 ** 9), n) for sign in (-1, 1))
            assert low < 0 < high, n  # the root is within 1e-9 of l
    table = {1: 0, 2: 2.288641, 4: 4.916908, 8: 9.054541, 16: 17.031899, 32: 33.015789, 64: 65.007853, 128: 129.003916}
    for n, l in table.items():
        assert lambda_n(n) == pytest.approx(l, abs=1e-6)
    assert lambda_n(1) == bon_sft.lambda_n(1) == 0.0
    assert lambda_n(1024) / (1024 * math.exp(1 / 1024)) == pytest.approx(1, abs=1e-5)


def test_the_tilt_is_as_far_from_the_policy_as_best_of_n():
    """What defines lambda_N: equal KL to the policy, for scores without ties."""
    for n in (2, 8, 50):
        q = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000  # the quantile of y, uniform under pi
        tilt = torch.softmax(lambda_n(n) * q, 0)
        kl = (tilt * (tilt * len(q)).log()).sum().item()
        bon = n * q ** (n - 1)
        assert (kl == pytest.approx((bon * bon.log()).mean().item(), abs=1e-6)
                == pytest.approx(math.log(n) - (n - 1) / n, abs=1e-6))


# ------------------------------------------------------------------------------------------------ the variational forms

def brute_rl(s, r, n):
    """The docstring of bon_rl_coefficients for one prompt, by loops."""
    M, lam = len(s), lambda_n(n)
    Q = [sum(s[j] >= s[l] for l in range(M)) / M for j in range(M)]
    w = [math.exp(lam * (q - max(Q))) for q in Q]
    w = [x / sum(w) for x in w]
    b = sum(x * y for x, y in zip(w, r))
    return [w[j] * (r[j] - b) + lam / M * sum(w[i] * (r[i] - b) for i in range(M) if s[i] >= s[j]) for j in range(M)]


def brute_sft(s, gold, n):
    M, lam = len(s), lambda_n(n)
    Q = [sum(s[j] >= s[l] for l in range(M)) / M for j in range(M)]
    w = [math.exp(lam * (q - max(Q))) for q in Q]
    w = [x / sum(w) for x in w]
    return [lam / M * (gold >= s[j]) - w[j] - lam / M * sum(w[i] for i in range(M) if s[i] >= s[j]) for j in range(M)]


@pytest.mark.parametrize("n", [2, 4, 32])
@pytest.mark.parametrize("name,scores,rewards", CASES)
def test_finite_M_has_its_own_expectation(name, scores, rewards, n):
    """Against all V^M tuples, each scored by loops: the estimators are biased, but by design and not by mistake."""
    theta = theta_of(len(scores))
    p, V, gold = torch.softmax(theta, 0), len(scores), len(scores) - 2
    s, r = tensor(scores), tensor(rewards)
    for M in (1, 2, 3, 5):
        rl, sft = torch.zeros(V, dtype=torch.float64), torch.zeros(V, dtype=torch.float64)
        for ys in itertools.product(range(V), repeat=M):
            weight = math.prod(p[y].item() for y in ys)
            for total, c in ((rl, brute_rl([scores[y] for y in ys], [rewards[y] for y in ys], n)),
                             (sft, brute_sft([scores[y] for y in ys], scores[gold], n))):
                for y, cj in zip(ys, c):
                    total += weight * cj * ((torch.arange(V) == y).double() - p)
        assert torch.allclose(expected_estimate(theta, M, lambda y: bon_rl_coefficients(s[y], r[y], n)), rl, atol=1e-12)
        assert torch.allclose(
            expected_estimate(theta, M, lambda y: bon_sft_coefficients(s[y], s[gold].expand(len(y)), n)[1]),
            sft, atol=1e-12)


@pytest.mark.parametrize("n", [2, 4])
@pytest.mark.parametrize("name,scores,rewards", CASES)
def test_the_bias_vanishes_with_M(name, scores, rewards, n):
    """The limit is the exact gradient through pi_bon, Q's own gradient included; closer at every doubling of M."""
    theta, s, r, gold = theta_of(len(scores)), tensor(scores), tensor(rewards), len(scores) - 2
    exact_rl = gradient(lambda t: (log_bon(t, scores, n).exp() * r).sum(), theta)
    exact_sft = gradient(lambda t: log_bon(t, scores, n)[gold], theta)
    own = gradient(lambda t: torch.log_softmax(t, 0)[gold], theta)  # of the gold completion, coefficient 1
    errors = {"rl": [], "sft": []}
    for M in (4, 8, 16, 32, 64):
        rl = expected_estimate(theta, M, lambda y: bon_rl_coefficients(s[y], r[y], n))
        sft = own + expected_estimate(theta, M, lambda y: bon_sft_coefficients(s[y], s[gold].expand(len(y)), n)[1])
        errors["rl"].append((rl - exact_rl).norm().item())
        errors["sft"].append((sft - exact_sft).norm().item())
    for kind, e in errors.items():
        assert all(b < 0.75 * a for a, b in zip(e, e[1:])), (kind, e)
        assert e[-1] < 0.05, (kind, e)


def test_figures_of_the_bias():
    """What the docstrings say of the distance to the gradient."""
    theta, s, r, n = tensor([1.0, 0.0, -1.0]), tensor([0.1, 0.7, 0.4]), tensor([0.0, 1.0, 0.0]), 4
    found, of_sft = {}, {}
    exact = gradient(lambda t: (log_bon(t, s.tolist(), n).exp() * r).sum(), theta)
    exact_sft = gradient(lambda t: log_bon(t, s.tolist(), n)[1], theta)
    own = gradient(lambda t: torch.log_softmax(t, 0)[1], theta)  # of the gold completion, coefficient 1
    for M in (4, 16, 64):
        rl = expected_estimate(theta, M, lambda y: bon_rl_coefficients(s[y], r[y], n))
        sft = expected_estimate(theta, M, lambda y: bon_sft_coefficients(s[y], s[1].expand(len(y)), n)[1])
        found[f"M = {M}"], of_sft[f"M = {M}"] = distance(rl, exact), distance(own + sft, exact_sft)
    exact = slope_on_three_prompts(lambda p: 1 - (1 - p) ** n)
    found["the tilt"] = distance(on_three_prompts(lambda r: bon_rl_coefficients(r, r, n), 8), exact)
    assert_figures(bon_rl_coefficients, found)
    assert_figures(bon_sft_coefficients, of_sft)
    kinds = [("positive", "pool"), ("positive", "plugin"), ("minus", "plugin"), ("exact", "plugin")]
    assert_figures(bon_rlb_coefficients, {
        f"{variant}, {estimate}": distance(on_three_prompts(
            lambda r: bon_rlb_coefficients(r, n, variant, estimate), 8), exact) for variant, estimate in kinds})


def test_what_a_variant_trains_with():
    """Each name of --variant gives its equation, at the budget that it trains for."""
    r = tensor([[1.0, 0.0, 0.0, 1.0], [0.0, 0.0, 0.0, 1.0]])
    s = tensor([[0.2, 0.4, -1.0, 0.3], [3.0, 1.0, 2.0, 0.0]])
    for variant, wanted in (("v", bon_rl_coefficients(s, r, 3)), ("s", bon_rl_coefficients(r, r, 3)),
                            ("rl", (r - r.mean(1, keepdim=True)) / 4), ("star", r / 4),
                            ("b", bon_rlb_coefficients(r, 3, "exact")),
                            ("bp", bon_rlb_coefficients(r, 3, "positive", "pool"))):
        found = bon_rl.variant_coefficients(variant, r, s, 3, "exact", "pool")
        assert torch.allclose(found, wanted, atol=1e-15) and found.abs().max() > 0.1, variant


def test_scale_across_prompts():
    """Two prompts that share theta: one alone cannot show a wrong scale. The limit of the sum is the sum of the limits,
    and a batch is weighted row by row."""
    theta = theta_of(3, 4)
    easy, hard = tensor([1.0, 1.0, 0.0]), tensor([0.0, 0.0, 1.0])
    for function in (lambda y: bon_rl_coefficients(hard[y], hard[y], 4),
                     lambda y: bon_rlb_coefficients(hard[y], 4, "minus")):
        y = torch.tensor([[0, 1, 2, 2], [2, 0, 0, 0]])
        assert torch.equal(function(y), torch.cat([function(y[:1]), function(y[1:])]))
    exact = gradient(lambda t: sum(1 - (torch.softmax(t, 0) * (1 - r)).sum() ** 3 for r in (easy, hard)), theta)
    found = sum(expected_estimate(theta, 4, lambda y: bon_rlb_coefficients(r[y], 3, "positive", "pool"))
                for r in (easy, hard))
    assert torch.allclose(found, exact, atol=1e-12)
    exact = gradient(lambda t: sum((log_bon(t, r.tolist(), 3).exp() * r).sum() for r in (easy, hard)), theta)
    found = sum(expected_estimate(theta, 64, lambda y: bon_rl_coefficients(r[y], r[y], 3)) for r in (easy, hard))
    assert torch.allclose(found, exact, rtol=0.03, atol=0.003)


# ------------------------------------------------------------------------------------------------------- binary rewards

@pytest.mark.parametrize("n", [1, 2, 8, 64])
def test_binary_weights_give_the_exact_gradient(n):
    """rlb_weights at the true f: E_pi[weight grad log pi] is grad (1 - f^N), times (1+f)/(1-f) for minus."""
    for theta in (theta_of(3, 1), theta_of(3, 2)):
        for r in (tensor([1.0, 0.0, 0.0]), tensor([1.0, 0.0, 1.0])):
            p = torch.softmax(theta, 0)
            f = (p * (1 - r)).sum()
            exact = gradient(lambda t: 1 - (torch.softmax(t, 0) * (1 - r)).sum() ** n, theta)
            for variant, factor in (("positive", 1), ("exact", 1), ("minus", (1 + f) / (1 - f))):
                correct, wrong = rlb_weights(f, n, variant)
                c = torch.where(r == 1, correct, wrong)
                found = (p * c) @ (torch.eye(3, dtype=torch.float64) - p)
                assert torch.allclose(found, factor * exact, rtol=1e-9, atol=1e-13), (variant, n)
            # as the paper prints them, for best-of-N samples: E_bon = the right ones with probability 1 - f^N
            bon = torch.where(r == 1, p * (1 - f ** n) / (1 - f), p * f ** (n - 1))
            printed = torch.where(r == 1, n * f ** (n - 1) / (1 - f ** n), -n * f / (1 - f))
            assert torch.allclose((bon * printed) @ (torch.eye(3, dtype=torch.float64) - p), (1 + f) / (1 - f) * exact,
                                  rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("M,n", [(1, 1), (4, 1), (4, 4), (6, 3), (32, 8)])
def test_the_pool_estimate_is_unbiased(M, n):
    r = tensor([1.0, 0.0, 0.0])
    for theta in (theta_of(3, 1), theta_of(3, 2) * 3):
        exact = gradient(lambda t: 1 - (torch.softmax(t, 0) * (1 - r)).sum() ** n, theta)
        assert torch.allclose(expected_estimate(theta, M, lambda y: bon_rlb_coefficients(r[y], n, "positive", "pool")),
                              exact, atol=1e-12)


@pytest.mark.parametrize("variant", ["minus", "exact", "positive"])
def test_the_plugin_estimate(variant):
    """Its own exact expectation over all tuples by loops; and the exact gradient (times the factor of minus) as M
    grows."""
    n, r, theta = 3, tensor([1.0, 0.0, 0.0]), theta_of(3, 1)
    p = torch.softmax(theta, 0)
    for M in (1, 2, 5):
        found, wanted = (expected_estimate(theta, M, lambda y: bon_rlb_coefficients(r[y], n, variant)),
                         torch.zeros(3, dtype=torch.float64))
        for ys in itertools.product(range(3), repeat=M):
            f = sum(r[y].item() == 0 for y in ys) / M
            if variant != "positive":
                f = min(max(f, 1 / (2 * M)), 1 - 1 / (2 * M))
            right = n * f ** (n - 1) / (1 if variant == "positive" else 1 - f)
            wrong = {"positive": 0.0, "minus": -f * right, "exact": f * right}[variant]
            for y in ys:
                wanted += p[list(ys)].prod() * (right if r[y] else wrong) / M * ((torch.arange(3) == y).double() - p)
        assert torch.allclose(found, wanted, atol=1e-12)
    f = (p * (1 - r)).sum()
    exact = (gradient(lambda t: 1 - (torch.softmax(t, 0) * (1 - r)).sum() ** n, theta)
             * ((1 + f) / (1 - f) if variant == "minus" else 1))
    errors = [(expected_estimate(theta, M, lambda y: bon_rlb_coefficients(r[y], n, variant)) - exact).norm()
              / exact.norm() for M in (8, 16, 32, 64)]
    assert all(b < 0.75 * a for a, b in zip(errors, errors[1:])) and errors[-1] < 0.2, errors


# ------------------------------------------------------------------------------------------------ limits, types, errors

def test_limits_at_one():
    """N = 1: plain SFT without samples, the mean reward with its mean, positives only, and the factor of minus."""
    s, r = tensor([[0.3, 0.9, 0.9, -1.0]]), tensor([[1.0, 0.0, 1.0, 0.0]])
    gold, c = bon_sft_coefficients(s, tensor([0.5]), 1)
    assert gold.tolist() == [1.0] and c.tolist() == [[0.0] * 4]
    assert torch.allclose(bon_rl_coefficients(s, r, 1), (r - r.mean()) / 4, atol=1e-15)
    for estimate in ("plugin", "pool"):
        assert torch.equal(bon_rlb_coefficients(r, 1, "positive", estimate), r / 4)
    assert torch.allclose(bon_rlb_coefficients(r, 1, "minus"), torch.where(r == 1, tensor(2.0), tensor(-1.0)) / 4)
    theta, reward = theta_of(3), tensor([0.5, -1.0, 2.0])
    exact = gradient(lambda t: (torch.softmax(t, 0) * reward).sum(), theta)
    for M in (2, 3, 7):
        found = expected_estimate(theta, M, lambda y: bon_rl_coefficients(reward[y], reward[y], 1))
        assert torch.allclose(found, (M - 1) / M * exact, atol=1e-12)


@pytest.mark.parametrize("n", [1, 2, 8, 128, 1024])
def test_extremes_are_finite(n):
    for f in (0.0, 1e-12, 0.5, 1 - 1e-12, 1.0):
        for variant in ("positive", "minus", "exact"):
            for value in (f, tensor([f])):
                if f == 1 and variant != "positive":
                    with pytest.raises(ValueError):
                        rlb_weights(value, n, variant)
                    continue
                correct, wrong = (torch.as_tensor(x) for x in rlb_weights(value, n, variant))
                assert correct.isfinite().all() and wrong.isfinite().all() and (correct >= 0).all()
                assert (wrong <= 0).all() if variant == "minus" else (wrong >= 0).all()
    assert rlb_weights(1.0, n, "positive") == (n, 0)
    M = 16
    for dtype in (torch.float32, torch.float64):
        for row in ([0.0] * M, [1.0] * M, [1.0] + [0.0] * (M - 1), [0.0] + [1.0] * (M - 1)):
            r = torch.tensor([row], dtype=dtype)
            for variant in ("positive", "minus", "exact"):
                c = bon_rlb_coefficients(r, n, variant)
                assert c.isfinite().all() and c.dtype == dtype and c.shape == r.shape
            c = bon_rl_coefficients(r, r, n)
            assert c.isfinite().all() and c.dtype == dtype
            if len(set(row)) == 1:
                assert (c == 0).all()
            gold, c = bon_sft_coefficients(r, r[:, 0], n)
            assert c.isfinite().all() and c.dtype == gold.dtype == dtype
    # all wrong: minus pushes everything down and positive does nothing;
    # all right: minus pushes up, by little at large N
    assert ((bon_rlb_coefficients(torch.zeros(1, M), n, "minus") < 0).all()
            and (bon_rlb_coefficients(torch.zeros(1, M), n, "positive") == 0).all())
    assert (bon_rlb_coefficients(torch.ones(1, M), n, "minus") >= 0).all()


def test_equal_rewards_weigh_exactly_nothing():
    scores = torch.randn(2, 12, generator=torch.Generator().manual_seed(0))
    for value in (0.0, 1.0, 0.1, 1 / 3, -7.7):
        for n in (1, 4, 64):
            assert (bon_rl_coefficients(scores, torch.full((2, 12), value), n) == 0).all()


def test_types():
    r = torch.tensor([[1, 0, 0, 1]])
    assert bon_rl_coefficients(r, r, 4).dtype == bon_rlb_coefficients(r, 4, "minus").dtype == torch.float32
    assert (torch.equal(bon_rl_coefficients(r.bool(), r.bool(), 4), bon_rl_coefficients(r, r, 4))
            and bon_rl_coefficients(r, r, 4).abs().sum() > 0)
    assert torch.equal(bon_rlb_coefficients(r.bool(), 4, "minus"), bon_rlb_coefficients(r, 4, "minus"))
    assert isinstance(rlb_weights(0.5, 4, "minus")[0], float)
    one, both = tensor([[0.2, 0.4]]), tensor([[0.2, 0.4], [5.0, 1.0]])
    assert torch.equal(bon_sft_coefficients(both, tensor([0.3, 0.0]), 4)[1][:1],
                       bon_sft_coefficients(one, tensor([0.3]), 4)[1])


@pytest.mark.parametrize("call", [
    lambda r: lambda_n(0), lambda r: lambda_n(2.5), lambda r: lambda_n(math.nan), lambda r: bon_sft.lambda_n(-1),
    lambda r: lambda_n(math.inf), lambda r: bon_rl_coefficients(r, r[:, :2], 4),
    lambda r: bon_rl_coefficients(r[0], r[0], 4), lambda r: bon_rl_coefficients(r, r, 0),
    lambda r: bon_sft_coefficients(r, r, 4), lambda r: bon_sft_coefficients(r[0], r[0], 4),
    lambda r: bon_sft_coefficients(r, r[:, 0], 0), lambda r: rlb_weights(-0.1, 4, "minus"),
    lambda r: rlb_weights(1.1, 4, "positive"), lambda r: rlb_weights(0.5, 0, "positive"),
    lambda r: rlb_weights(0.5, 4, "plus"), lambda r: rlb_weights(math.nan, 4, "minus"),
    lambda r: bon_rlb_coefficients(r * 0.5, 4, "minus"), lambda r: bon_rlb_coefficients(r, 0, "minus"),
    lambda r: bon_rlb_coefficients(r, 4, "other"), lambda r: bon_rlb_coefficients(r, 5, "positive", "pool"),
    lambda r: bon_rlb_coefficients(r, 2, "minus", "pool"), lambda r: bon_rlb_coefficients(r, 2, "minus", "guess"),
    lambda r: bon_rlb_coefficients(r[0], 2, "minus")])
def test_bad_arguments(call):
    with pytest.raises(ValueError) as error:
        call(torch.tensor([[1.0, 0.0, 0.0, 1.0]]))
    assert len(str(error.value)) > 20


def test_kl_and_entropy_coefficients():
    """The expected gradient is that of KL(pi || ref); with log pi itself in place of the gap, that of minus the
    entropy."""
    theta, ref = theta_of(3), torch.log_softmax(theta_of(3, 1), 0)
    logp = torch.log_softmax(theta, 0)
    for M in (1, 2, 3):
        found = expected_estimate(theta, M, lambda y: kl_coefficients((logp - ref)[y]))
        assert torch.allclose(
            found, gradient(lambda t: (torch.softmax(t, 0) * (torch.log_softmax(t, 0) - ref)).sum(), theta), atol=1e-12)
        found = expected_estimate(theta, M, lambda y: kl_coefficients(logp[y]))
        assert torch.allclose(
            found, gradient(lambda t: (torch.softmax(t, 0) * torch.log_softmax(t, 0)).sum(), theta), atol=1e-12)


# -------------------------------------------------------------------------------------------- diversity, AUC, entropies

def test_diversity():
    found = evaluate.diversity(["1+2", "1+2", "2+1", "33"], ["a", "a", "a", None])
    # 1+ +2 2+ +1 33 of 7; pairs 1-2 and 3-4
    assert found == {"distinct": 3, "answers": 1, "distinct-2": 5 / 7, "similarity": (1 + 0) / 2}
    texts = ["ab", "ab"] * 7 + ["ab", "cd"] * 3  # ten pairs, of which eight are compared
    assert evaluate.diversity(texts, texts)["similarity"] == pytest.approx(7 / 8)
    assert evaluate.mean_diversity(["ab"] * 2 + ["cd", "ef"], [None] * 4, 2) == {
        "distinct": 1.5, "answers": 0, "distinct-2": 0.75, "similarity": 0.5}


def test_auc_and_calibration():
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        scores = torch.randint(5, (30,), generator=generator).tolist()
        right = [1.0] + (torch.rand(28, generator=generator) < 0.4).float().tolist() + [0.0]
        pairs = [(a > b) + 0.5 * (a == b) for a, x in zip(scores, right) if x for b, z in zip(scores, right) if not z]
        assert evaluate.auc(scores, right) == pytest.approx(sum(pairs) / len(pairs))
    assert math.isnan(evaluate.auc([1.0, 2.0], [1.0, 1.0]))
    probability = torch.rand(500, 16, generator=generator)
    honest = (torch.rand(500, 16, generator=generator) < probability).float()
    for scale, low, high in ((1.0, 0.0, 0.03), (4.0, 0.1, 1.0)):  # an overconfident verifier has the same AUC
        found = evaluate.judge_verifier([{"scores": s, "rewards": r} for s, r in
                                         zip((scale * probability.logit()).tolist(), honest.tolist())], 50)
        assert found["auc"] == pytest.approx(5 / 6, abs=0.02) and found["low"] < found["auc"] < found["high"]
        assert low <= found["calibration_error"] < high and sum(count for *_, count in found["calibration"]) == 8000


def test_the_interval_of_the_auc():
    """95 % over problems, each judged all right or all wrong: the AUC is a binomial share of them, so its quantiles are
    known. Over single samples the interval would be a third as wide."""
    pool = [{"scores": [1.0 if i < 40 else -1.0, 0.0] * 8, "rewards": [1.0, 0.0] * 8} for i in range(100)]
    found = evaluate.judge_verifier(pool, 2000)
    width = 1.96 * math.sqrt(0.4 * 0.6 / 100)
    assert found["auc"] == pytest.approx(0.4)
    assert found["low"] == pytest.approx(0.4 - width, abs=0.01)
    assert found["high"] == pytest.approx(0.4 + width, abs=0.01)


def test_entropies_are_those_of_the_sampled_distribution():
    policy = load_policy("tiny", bits=32)
    prompts = [policy.encode(p) for p in ("c7,3,2,9:23>", "c8,8:64>")]
    drawn = common.sample(policy, prompts, 40, [1, 2], 0.8, 12)
    padding = torch.arange(drawn.entropies.shape[2]) >= drawn.lengths[..., None]
    assert padding.any() and (drawn.entropies[padding] == 0).all()  # also where a finished row stays in the batch
    for b, rows in enumerate(drawn.lists()):
        for i, row in enumerate(rows[:3]):
            logp = torch.log_softmax(
                policy.lm(input_ids=torch.tensor([prompts[b] + row])).logits[0, len(prompts[b]) - 1:-1] / 0.8, -1)
            assert torch.allclose(drawn.entropies[b, i, :len(row)], -(logp.exp() * logp).sum(-1), atol=1e-4)


# --------------------------------------------------------------------------------------------------------- the verifier

SMALL = ["--prompts", "6", "--n", "4", "--eval-samples", "8", "--eval-problems", "20"]
SAMPLES = ["--samples", "6"]
FIT = ["--train-problems", "600", "--samples", "8", "--epochs", "2", "--eval-problems", "100"]


@pytest.fixture(scope="module")
def verifier(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fit") / "v"
    code, out, err = run(fit_verifier.main, *FIT, "--out", folder)
    assert code == 0 and not err and "AUC" in out and "predicted" in out, err
    return str(folder)


def test_the_fitted_verifier_knows_right_from_wrong(verifier, tmp_path):
    """Its AUC is on samples of problems that it was not fitted on; loaded from disk it is the same verifier."""
    fitted = json.load(open(os.path.join(verifier, "verifier.json")))
    assert fitted["model"] == "tiny" and fitted["low"] < fitted["auc"] < fitted["high"] and fitted["auc"] > 0.58
    assert fitted["score_right"] > fitted["score_wrong"]
    code, out, err = run(evaluate.main, "tiny", "--samples", 16, "--k", "1,8", "--problems", 100,
                         "--verifier", verifier, "--out", tmp_path / "e")
    assert code == 0 and "AUC" in out and "similarity" in out, err
    report = json.load(open(tmp_path / "e" / "result.json"))
    assert report["verifier"]["tiny"]["auc"] == pytest.approx(fitted["auc"], abs=1e-6)
    cells = report["results"]["tiny"]
    # selection by it beats none
    assert cells["pass@8"]["mean"] > cells["bon@8"]["mean"] > cells["bon@1"]["mean"] + 0.02
    pool = tmp_path / "e" / "pool-1.jsonl"
    code, _, err = run(evaluate.main, "--pool", pool, "--k", "1,8", "--verifier", verifier, "--out", tmp_path / "f")
    assert (code == 0 and json.load(open(tmp_path / "f" / "result.json"))["results"][str(pool)]["bon@8"]
            == cells["bon@8"]), err


def test_evaluation_selects_by_the_verifier(verifier):
    """What the training scripts report as BoN@k where they have one."""
    policy, task = load_policy("tiny", bits=32), tasks.load_task("countdown")
    found, pool = evaluate.evaluate(policy, task, task.test[:10], 8, (4,), verifier=verifiers.load_verifier(verifier))
    by = lambda key: [common.bon_at_k(entry[key], entry["rewards"], 4) for entry in pool]
    assert found["bon@4"] == evaluate.mean_se(by("scores")) and by("scores") != by("logps")


CHAT = [("ppo_passk", ["--samples", "4", "--k", "2"]), ("bon_sft", ["--scores", "verifier"]),
        ("bon_rl", ["--variant", "v"]), ("fit_verifier", ["--samples", "2", "--epochs", "1"]), ("cat_passk", []),
        ("cat_majority", []), ("cat_bon", []),
        ("evaluate", ["--samples", "4", "--k", "2", "--problems", "3"])]


@pytest.mark.parametrize("script,flags", CHAT, ids=lambda f: f if isinstance(f, str) else " ".join(f))
def test_chat_reaches_every_prompt(script, flags, verifier, tmp_path, monkeypatch):
    """On a task whose prompts go through the chat template, those of the policy and those of the verifier all do."""
    asked = {common.Policy: [], verifiers.Verifier: []}
    for kind, calls in asked.items():
        def spy(*args, calls=calls, encode=kind.encode):
            calls += [args[-1]] * (len(args[1]) if isinstance(args[1], list) else 1)
            return encode(*args)
        monkeypatch.setattr(kind, "encode", spy)
    data, fits = tmp_path / "p.jsonl", script == "fit_verifier"
    problems = [{"prompt": f"c{a},2:{a + 2}>", "answer": str(a + 2), "solution": f"{a}+2"} for a in range(1, 30)]
    data.write_text("".join(json.dumps(problem) + "\n" for problem in problems))
    learned = ["--verifier", verifier] if script in ("bon_sft", "bon_rl", "evaluate") and not fits else []
    some = ["--eval-problems", 3] if fits else ["--steps", 1, "--prompts", 3, "--eval-samples", 4, "--eval-problems", 3]
    some = [] if script == "evaluate" else some
    main = importlib.import_module(script).main
    code, _, err = run(main, *some, "--data", data, "--max-new-tokens", 5, "--out", tmp_path / "r", *learned, *flags)
    assert code == 0, err
    if script == "evaluate":  # a pool remembers it
        pool = tmp_path / "r" / "pool-1.jsonl"
        code, _, err = run(main, "--pool", pool, "--k", 2, "--out", tmp_path / "s", *learned)
        assert code == 0, err
    assert bool(asked[verifiers.Verifier]) == bool(learned or fits)
    assert len(asked[common.Policy]) > 3 and all(flag is True for calls in asked.values() for flag in calls)


def test_what_reaches_the_verifier(tmp_path, monkeypatch):
    """The gradient of the mean binary cross-entropy over a batch, all its micro-batches, with the environment's labels,
    from plain rows; a rate that warms up over 30 steps and falls to lr / steps."""
    seen, rates, draw_pool = {}, [], evaluate.draw_pool

    def clip(parameters, max_norm):
        seen["gradient"] = torch.cat([p.grad.flatten().clone() for p in parameters])

    def keep(*args):
        seen["verifier"] = load_verifier(*args)
        return seen["verifier"]
    load_verifier = fit_verifier.load_verifier
    monkeypatch.setattr(fit_verifier, "load_verifier", keep)
    monkeypatch.setattr(processes, "clip_gradient", clip)
    monkeypatch.setattr(load, "micro_batch", lambda lm: 100)
    monkeypatch.setattr(evaluate, "draw_pool", lambda *args: seen.setdefault(f"pool {len(args[2])}", draw_pool(*args)))
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self: rates.append(self.param_groups[0]["lr"]))
    code, _, err = run(fit_verifier.main, "--train-problems", 6, "--samples", 4, "--epochs", 2, "--lr", 0.3,
                       "--eval-problems", 2, "--out", tmp_path / "v")
    assert code == 0 and rates == pytest.approx([0.3 / 30, 0.3 * 2 / 30 / 2]), err
    v, loss = seen["verifier"], 0.0  # each of the two batches holds all the samples
    labels = [x for e in seen["pool 6"] for x in e["rewards"]]
    texts = [(e["prompt"], y) for e in seen["pool 6"] for y in e["completions"]]
    for (x, y), label in zip(texts, labels, strict=True):
        logit = v.model(input_ids=torch.tensor([v.encode(x, y)])).logits[0, 0]
        loss = loss + torch.log1p(torch.exp(-logit if label else logit)) / 24
    assert 0 < sum(labels) < 24
    wanted = torch.cat([g.flatten() for g in torch.autograd.grad(loss, v.parameters())])
    assert (seen["gradient"] - wanted).norm() < 1e-3 * wanted.norm()


def test_flipped_labels_teach_the_opposite(tmp_path):
    code, _, err = run(fit_verifier.main, *FIT, "--epochs", 1, "--train-problems", 400, "--noise", 1, "--bits", 4,
                       "--out", tmp_path / "v")
    assert code == 0, err
    fitted = json.load(open(tmp_path / "v" / "verifier.json"))
    assert fitted["auc"] < 0.45 and fitted["bits"] == 4
    model = verifiers.load_verifier(str(tmp_path / "v"))
    kinds = {type(m).__name__ for m in model.model.modules()}
    assert "Linear4bit" in kinds and "4-bit" in model.note  # quantised like the policy, as it was fitted


@pytest.fixture(scope="module")
def reward_model(tmp_path_factory):
    """A random decoder with one label, whose padding token is its end-of-sequence token, as users have them."""
    import transformers
    made = {}
    for kind, labels in (("llama", 1), ("gpt2", 1), ("llama", 2)):
        tokenizer = transformers.AutoTokenizer.from_pretrained(ROOT + "/models/tiny")
        eos = tokenizer.eos_token_id
        shape = dict(vocab_size=len(tokenizer), num_labels=labels, pad_token_id=eos, eos_token_id=eos,
                     bos_token_id=None)
        config = (transformers.LlamaConfig(hidden_size=32, intermediate_size=32, num_hidden_layers=2,
                                           num_attention_heads=2, **shape)
                  if kind == "llama" else transformers.GPT2Config(n_embd=32, n_layer=2, n_head=2, **shape))
        torch.manual_seed(0)
        model = transformers.AutoModelForSequenceClassification.from_config(config)
        for p in model.parameters():
            torch.nn.init.normal_(p, std=0.3)
        made[kind, labels] = str(tmp_path_factory.mktemp(kind))
        model.save_pretrained(made[kind, labels])
        tokenizer.save_pretrained(made[kind, labels])
    return made


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_scores_of_a_reward_model(reward_model, kind, monkeypatch):
    """Its head at the end-of-sequence token, whatever else is in the batch; and gradients where they are wanted."""
    v = verifiers.load_verifier(reward_model[kind, 1])
    pairs = [("c7,3,2,9:23>", "7*2+9"), ("c1,2:3>", "1+2"), ("c7,3,2,9:23>", "7*2+9"), ("c1,2:3>", ""),
             ("c1,2:3>", "2+1")]
    found = verifiers.verify_scores(v, *map(list, zip(*pairs)))
    for (x, y), score in zip(pairs, found):
        ids = torch.tensor([v.tokenizer(x + y, add_special_tokens=False)["input_ids"] + [v.tokenizer.eos_token_id]])
        hidden = getattr(v.model, v.model.base_model_prefix)(input_ids=ids).last_hidden_state[0, -1]
        assert v.model.score(hidden).item() == pytest.approx(score, abs=1e-4)
    assert found[0] == found[2] and len(set(found)) == 4
    asked, logits = [], verifiers.verifier_logits
    monkeypatch.setattr(verifiers, "verifier_logits", lambda v, rows: asked.extend(rows) or logits(v, rows))
    assert verifiers.verify_scores(v, *map(list, zip(*pairs))) == found
    assert len(asked) == 4  # equal pairs are scored once: their tie is exact
    monkeypatch.undo()
    rows = [v.encode(x, y) for x, y in pairs]
    small = {int(i): s.item() for index, logits in verifiers.verifier_logits(v, rows, max_tokens=20)
             for i, s in zip(index, logits)}
    assert [small[i] for i in range(5)] == pytest.approx(found, abs=1e-4)


def test_a_verifier_has_one_label(reward_model, tmp_path):
    with pytest.raises(UserError, match="one label"):
        verifiers.load_verifier(reward_model["llama", 2])
    code, _, err = run(bon_rl.main, *SMALL, "--steps", 1, "--variant", "v", "--verifier", reward_model["gpt2", 1],
                       "--out", tmp_path / "r")
    assert code == 0, err
    code, _, err = run(bon_sft.main, *SMALL, "--steps", 1, "--scores", "verifier",
                       "--verifier", reward_model["llama", 1], "--out", tmp_path / "s")
    assert code == 0, err


# ---------------------------------------------------------------------------------------------------------- the scripts

RUNS = [("bon_rl", f) for f in (["--variant", "v"], ["--variant", "s"], ["--variant", "b"],
                                ["--variant", "b", "--negatives", "exact"], ["--variant", "bp"], ["--estimate", "pool"],
                                ["--variant", "rl", "--entropy-coef", "0.1"], ["--variant", "star"],
                                ["--kl-coef", "0.1", "--bits", "4"])]
RUNS += [("bon_sft", f) for f in ([], ["--n", "1"], ["--scores", "verifier"], ["--bits", "4", "--train-problems", "0"])]
MAIN = {"bon_rl": bon_rl.main, "bon_sft": bon_sft.main, "fit_verifier": fit_verifier.main}


@pytest.mark.parametrize("script,flags", RUNS, ids=lambda f: f if isinstance(f, str) else " ".join(f))
def test_two_steps(script, flags, verifier, tmp_path):
    """The adapter moves, the files are there, the numbers are finite, and the tables are printed."""
    learned = ["--verifier", verifier] if "v" in flags or "verifier" in flags else []
    code, out, err = run(MAIN[script], *SMALL, "--steps", 2, "--out", tmp_path / "r", "--temperature", "1.1",
                         "--eval-every", 2, *flags, *learned, *[] if "1" in flags else SAMPLES)
    assert code == 0 and not err, err
    assert "before" in out and "pass@1" in out and "similarity" in out and ("AUC" in out) == bool(learned)
    assert set(os.listdir(tmp_path / "r")) == {"args.json", "metrics.jsonl", "samples.jsonl", "result.json",
                                               "checks.jsonl", "curves.png", "adapter", "state.pt", "state.previous.pt"}
    lines = read_lines(tmp_path / "r")
    assert [line["step"] for line in lines] == [1, 2] and "pass@1" in lines[1]["valid"]
    assert all(math.isfinite(v) for line in lines for v in line.values() if not isinstance(v, dict))
    if "1" in flags:  # nothing is sampled
        assert not {"reward", "c_mean", "tokens_per_s", "diversity"} & set(lines[0]) and lines[0]["zero"] == 0
    else:
        assert ({"c_mean", "c_min", "c_median", "c_max"} <= set(lines[0]) and lines[0]["diversity"]["distinct"] > 1
                and lines[0]["entropy"] > 0)
    if learned and script == "bon_rl":
        assert lines[0]["bon_gap"] <= 0 and "score_wrong" in lines[0]
    result = json.load(open(tmp_path / "r" / "result.json"))
    for row in ("before", "after"):
        assert {"pass@1", "pass@8", "maj@8", "bon@8", "gold", "distinct", "answers", "entropy", "distinct-2",
                "similarity", "kl"} <= set(result[row])
        assert not learned or 0 < result[f"verifier {row}"]["auc"] < 1
    adapter = safetensors.torch.load_file(tmp_path / "r" / "adapter" / "adapter_model.safetensors")
    assert max(t.abs().max() for n, t in adapter.items() if "lora_B" in n) > 0  # a fresh adapter has B = 0


def plain_gradient(policy, pairs):
    """Gradient of sum of c log pi(y|x), one row at a time, no padding."""
    for p in policy.parameters():
        p.grad = None
    for x, y, c, T in pairs:
        logits = policy.lm(input_ids=torch.tensor([x + y])).logits[0, len(x) - 1:-1] / T
        (c * torch.log_softmax(logits, -1)[torch.arange(len(y)), y].sum()).backward()
    return torch.cat([p.grad.flatten() for p in policy.parameters()])


@pytest.mark.parametrize("script,flags", [
    ("bon_rl", ["--variant", "s"]), ("bon_rl", ["--variant", "v"]), ("bon_rl", ["--variant", "b"]),
    ("bon_rl", ["--variant", "rl", "--entropy-coef", "0.3", "--kl-coef", "0.2"]),
    ("bon_rl", ["--estimate", "pool", "--temperature", "0.7"]), ("bon_sft", []), ("bon_sft", ["--n", "1"]),
    ("bon_sft", ["--scores", "verifier", "--temperature", "0.7"])],
    ids=lambda f: f if isinstance(f, str) else " ".join(f))
def test_what_reaches_the_optimiser(script, flags, verifier, tmp_path, monkeypatch):
    """The gradient is -(1/B) sum_prompts sum_j c_j grad log pi(y_j), with the coefficients of the pure functions
    applied to rewards and scores that are computed here again, prompts without signal counted; plain SFT is
    cross-entropy alone."""
    seen, original = {}, common.sample

    def clip(parameters, max_norm):
        seen["gradient"] = torch.cat([p.grad.flatten().clone() for p in parameters])
        return 0.0

    def keep_policy(function):
        def wrapped(policy, *rest):
            seen["policy"] = policy
            return function(policy, *rest)
        return wrapped

    def sample(policy, prompts, n, *rest):
        seen["n"], seen["drawn"] = n, original(policy, prompts, n, *rest)
        return seen["drawn"]
    monkeypatch.setattr(processes, "clip_gradient", clip)
    for name in ("score_weighted", "score_share"):
        monkeypatch.setattr(common, name, keep_policy(getattr(common, name)))
    monkeypatch.setattr(common, "sample", sample)
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self: None)
    monkeypatch.setattr(load, "micro_batch", lambda lm: 60)  # tokens: a few micro-batches, as a large model has them
    learned = ["--verifier", verifier] if {"v", "s", "verifier"} & set(flags) else []  # s has it for its log only
    B, M, n, T = 6, 6, 1 if "1" in flags else 4, 0.7 if "0.7" in flags else 1.0
    flags = flags if n == 1 else [*flags, "--samples", M]
    code, _, err = run(MAIN[script], "--prompts", B, "--n", n, "--steps", 1, "--eval-samples", 0,
                       "--out", tmp_path / "r", *flags, *learned)
    assert code == 0, err
    task, policy = tasks.load_task("countdown"), seen["policy"]
    train = task.train if script == "bon_rl" else task.train[:200]
    problems = batch_of(train, B, 1, 0)
    prompts = [policy.encode(p.prompt) for p in problems]
    rows = seen["drawn"].lists() if "drawn" in seen else [[]] * B
    assert ("drawn" in seen) == (script == "bon_rl" or n > 1)
    texts = [[policy.decode(y) for y in ys] for ys in rows]
    r = torch.tensor([[task.verify(p, t) for t in ts] for p, ts in zip(problems, texts)])
    s, gold_scores = r, torch.ones(B)
    if learned:  # in one call: a sample that equals the gold completion ties with it exactly
        pairs = [(p.prompt, text) for p, ts in zip(problems, texts)
                 for text in ([p.solution] * (script == "bon_sft") + ts)]
        found = verifiers.verify_scores(verifiers.load_verifier(verifier), *map(list, zip(*pairs)))
        s = torch.tensor(found).view(B, -1)
        gold_scores, s = (s[:, 0], s[:, 1:]) if script == "bon_sft" else (None, s)
    if script == "bon_rl":
        logp = seen["drawn"].logps.sum(-1)
        variant = flags[1] if flags[0] == "--variant" else "bp"
        c = {"s": lambda: bon_rl_coefficients(r, r, n), "v": lambda: bon_rl_coefficients(s, r, n),
             "b": lambda: bon_rlb_coefficients(r, n, "minus"),
             "bp": lambda: bon_rlb_coefficients(r, n, "positive", "pool"),
             # the KL to the start is zero, and so is its gradient
             "rl": lambda: bon_rl_coefficients(r, r, 1) - 0.3 * kl_coefficients(logp)}[variant]()
        pairs = []
    else:
        c = bon_sft_coefficients(s, gold_scores, n)[1]
        end = [policy.tokenizer.eos_token_id]
        pairs = [(x, policy.tokenizer(p.solution)["input_ids"] + end, -1 / B, T) for x, p in zip(prompts, problems)]
    assert c.numel() == 0 or c.abs().max() > 0.01
    pairs += [(x, y, -cj / B, T) for x, ys, cs in zip(prompts, rows, c.tolist()) for y, cj in zip(ys, cs) if cj]
    line, = read_lines(tmp_path / "r")
    logps = [common.sequence_logps(policy, [x], [y], T).item() for x, y, *_ in pairs]
    assert line["loss"] == pytest.approx(sum(c * logp for (_, _, c, _), logp in zip(pairs, logps)), rel=1e-4, abs=1e-5)
    if script == "bon_sft":
        assert line["gold"] == pytest.approx(sum(logps[:B]) / B, rel=1e-4)
    if "drawn" in seen:
        assert line[f"pass@{n}"] == pytest.approx(sum(common.pass_at_k(M, int(c), n) for c in r.sum(1)) / B)
        lengths = seen["drawn"].lengths
        assert line["length"] == pytest.approx(lengths.float().mean().item()) and lengths.min() < lengths.max()
        assert line["entropy"] == pytest.approx((seen["drawn"].entropies.sum() / lengths.sum()).item())
    if learned and script == "bon_rl":
        assert line["score_wrong"] == pytest.approx(s[r != 1].mean().item(), rel=1e-4) and 0 < r.mean() < 1
        best = [common.bon_at_k(a, b, n) - common.bon_at_k(b, b, n) for a, b in zip(s.tolist(), r.tolist())]
        assert line["bon_gap"] == pytest.approx(sum(best) / B)
    wanted = plain_gradient(policy, pairs)
    assert wanted.norm() > 0 and (seen["gradient"] - wanted).norm() < 2e-3 * wanted.norm()


@pytest.mark.parametrize("script,flags", [("bon_rl", ["--variant", "v"]), ("bon_sft", ["--train-problems", "20"])],
                         ids=["bon_rl", "bon_sft"])
def test_resume_bit_for_bit(script, flags, verifier, tmp_path, monkeypatch):
    """Killed in step 4 of 5, the log ahead of the checkpoint of step 2."""
    flags = [*SMALL, *SAMPLES, "--steps", 5, "--save-every", 2, "--verifier", verifier, *flags]
    assert run(MAIN[script], *flags, "--out", tmp_path / "a")[0] == 0
    log = Folder.log

    def dies(self, name, **values):
        log(self, name, **values)
        if name == "metrics.jsonl" and values["step"] == 3:
            raise KeyboardInterrupt
    with monkeypatch.context() as patch:
        patch.setattr(Folder, "log", dies)
        assert run(MAIN[script], *flags, "--out", tmp_path / "b")[0] == 130
    assert len(read_lines(tmp_path / "b")) == 3
    code, _, err = run(MAIN[script], "--out", tmp_path / "b", "--resume")
    assert code == 0, err
    same_run(tmp_path / "a", tmp_path / "b")
    a, b = (json.load(open(tmp_path / x / "result.json")) for x in "ab")
    assert a["verifier after"] == b["verifier after"] and a["verifier before"] == b["verifier before"]


def test_a_gold_completion_ends():
    """On countdown the end is all but certain once the numbers are used up, so no gradient would show that it is
    missing."""
    policy = load_policy("tiny", bits=32)
    ids = policy.encode_solution("7*2+9")
    assert ids[-1] == policy.tokenizer.eos_token_id and policy.decode(ids) == "7*2+9" and len(ids) == 6


def test_problems_without_a_gold_solution_are_left_out(tmp_path):
    data = tmp_path / "p.jsonl"
    lines = [{"prompt": f"c{a},2>", "answer": str(a), "split": "train", **({"solution": str(a)} if a % 3 else {})}
             for a in range(1, 10)]
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    flags = ["--data", data, "--prompts", 4, "--samples", 2, "--n", 2, "--steps", 2, "--max-new-tokens", 4,
             "--eval-samples", 0]
    code, out, err = run(bon_sft.main, *flags, "--out", tmp_path / "r")
    assert code == 0 and "left out 3 of 9" in out and "6 gold" in out, err
    assert all(line["gold"].isdigit() and int(line["gold"]) % 3 for line in read_lines(tmp_path / "r", "samples.jsonl"))
    data.write_text("".join(json.dumps({**line, "solution": None}) + "\n" for line in lines))
    code, out, err = run(bon_sft.main, *flags, "--out", tmp_path / "s")
    assert code == 2 and "solution" in err and err.count("\n") == 1, err


def test_in_a_process_of_its_own(tmp_path):
    done = subprocess.run(command("bon_sft.py", *SMALL, "--train-problems", 40, "--steps", 1, "--out", tmp_path / "r"),
                          capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == "" and "everything is in" in done.stdout, done.stderr


@pytest.mark.parametrize("script,flags,words", [
    ("bon_rl", ["--variant", "v"], "--verifier"), ("bon_rl", ["--n", "0"], "--n"),
    ("bon_rl", ["--estimate", "pool", "--variant", "b"], "pool"),
    ("bon_rl", ["--estimate", "pool", "--n", "32", "--samples", "16"], "pool"),
    ("bon_rl", ["--negatives", "exact"], "--negatives"),
    ("bon_rl", ["--variant", "v", "--verifier", "no/such"], "no/such"),
    ("fit_verifier", ["--noise", "2"], "--noise"), ("fit_verifier", ["--noise", "-1"], "--noise"),
    ("fit_verifier", ["--epochs", "0"], "--epochs"), ("fit_verifier", ["--temperature", "0"], "--temperature"),
    ("fit_verifier", ["--task", "peptide"], "graded"), ("fit_verifier", ["--out", "/proc/no/run"], "/proc/no/run"),
    ("bon_rl", ["--fit-verifier"], "fit_verifier.py"),
    ("bon_rl", ["--fit-problems", "600", "--fit-verifier", "--out", "x"], "fit_verifier.py"),
    ("bon_rl", ["--entropy-coef", "-1"], "--entropy-coef"),
    ("bon_rl", ["--negatives", "minus"], "--negatives"),
    ("bon_rl", ["--variant", "s", "--negatives", "minus"], "--variant s"),
    ("bon_rl", ["--variant", "rl", "--estimate", "plugin"], "--estimate"),
    ("bon_sft", ["--n", "1", "--samples", "8"], "--samples"),
    ("bon_sft", ["--n", "1", "--scores", "reward"], "--scores"),
    ("bon_rl", ["--out", "/proc/no/run"], "/proc/no/run"),
    ("bon_sft", ["--scores", "verifier"], "--verifier"), ("bon_sft", ["--n", "-1"], "--n"),
    ("bon_sft", ["--train-problems", "-1"], "--train-problems"), ("bon_sft", ["--task", "chess"], "chess"),
    ("bon_sft", ["--resume"], "--out"), ("evaluate", ["--score", "verifier"], "--verifier"),
    ("evaluate", ["--verifier", "no/such"], "no/such")], ids=lambda v: " ".join(v) if isinstance(v, list) else "")
def test_errors_are_one_sentence(script, flags, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, err = run(MAIN.get(script, evaluate.main), *flags)
    assert code == 2 and words in err and err.count("\n") == 1, err


def test_a_verifier_on_fused_experts(tmp_path):
    """Its adapter goes where that of a policy goes: the names of a router or of experts would be taken for others."""
    config = transformers.MixtralConfig(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=1,
                                        num_attention_heads=4, num_key_value_heads=2, num_local_experts=4)
    verifier = verifiers.load_verifier(architectures.save(tmp_path, config), lora_rank=4)
    trained = {name for name, p in verifier.model.named_parameters() if p.requires_grad}
    assert any("q_proj.lora_A" in name for name in trained) and any(".score." in name for name in trained)
    assert not any("experts" in name or ".gate." in name for name in trained)
