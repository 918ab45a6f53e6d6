"""Samples that an engine drew from q, for the objectives of pi: what weights pi / q make right, and what they leave
biased, by enumeration in float64."""
import itertools
import math

import pytest
import torch
from tabular import assert_figures, distance
from test_ppo_passk import instances

from common import kl_coefficients
from ppo_passk import advantages, passk_reweighted

PI = torch.tensor([0.14, 0.08, 0.44, 0.34], dtype=torch.float64)  # p = .22, where the gradient is taken
Q = torch.tensor([0.10, 0.10, 0.36, 0.44], dtype=torch.float64)  # q = .20, drawn from
REWARDS = torch.tensor([1, 1, 0, 0], dtype=torch.float64)
BOUND = 1.2


def pools(n, kinds):
    """Every way to draw n of so many kinds, without order -> the kinds of the samples [ways, n], and how many of each
    [ways, kinds]."""
    cuts = itertools.combinations(range(n + kinds - 1), kinds - 1)
    bars = torch.tensor([(-1, *cut, n + kinds - 1) for cut in cuts])
    counts = bars.diff() - 1
    rows = torch.arange(kinds).expand(len(counts), -1)
    return torch.repeat_interleave(rows.flatten(), counts.flatten()).view(-1, n), counts


def expected(coefficients, pi, q, n):
    """Exact expectation of sum_i c_i grad log pi(y_i) over n samples from q, in the logits of pi [V]. coefficients, of
    the kinds [ways, n], are taken to depend on no order."""
    kinds, counts = pools(n, len(pi))
    ways = math.lgamma(n + 1) - torch.lgamma(counts.double() + 1).sum(1)
    chance = (ways + (counts * q.log()).sum(1)).exp()
    assert abs(chance.sum() - 1) < 1e-9
    c = coefficients(kinds)
    scores = torch.eye(len(pi), dtype=torch.float64) - pi  # row y: grad of log pi(y)
    whole = chance[:, None] * c
    total = torch.zeros(len(pi), dtype=torch.float64)
    return total.index_add(0, kinds.flatten(), whole.flatten()) @ scores


def gradient(pi, k, rewards=REWARDS):
    """Of E[max of k rewards] in the logits of pi, from the chances that the maximum is at most each reward."""
    logits = pi.log().requires_grad_()
    p = torch.softmax(logits, 0)
    values = rewards.unique()
    upto = torch.stack([p[rewards <= value].sum() for value in values]) ** k
    best = (values * upto.diff(prepend=torch.zeros(1))).sum()
    return torch.autograd.grad(best, logits)[0]


def corrected(kinds, form, k, bound=math.inf, rewards=REWARDS):
    """What ppo_passk.py trains with, by --rollouts-correction."""
    r = rewards[kinds]
    w = (PI / Q).clamp(max=bound)[kinds]
    if form == "none":
        w = torch.ones_like(w)
    c = passk_reweighted(r, w, k) if form == "exact" else advantages(r, k, "passk")
    return c * w


def test_figures_of_the_docstring():
    """The bias of each correction, whole and truncated, at k = 2, 8, 32; exact is exact."""
    found = {}
    for k in (2, 8, 32):
        exact = gradient(PI, k)
        for form, bound in (("none", math.inf), ("weights", math.inf), ("weights", BOUND), ("exact", math.inf),
                            ("exact", BOUND)):
            how = {"none": "no weights", "weights": "w_i alone", "exact": "this"}[form]
            cut = "" if bound == math.inf else f", w at most {BOUND}"
            mean = expected(lambda kinds: corrected(kinds, form, k, bound), PI, Q, k)
            found[f"k {k}, {how}{cut}"] = distance(mean, exact)
            if form == "exact" and not cut:
                assert torch.allclose(mean, exact, atol=1e-12)
            if form == "weights" and not cut:  # the law of the docstring
                assert torch.allclose(mean, exact * (0.80 / 0.78) ** (k - 1), atol=1e-12)
    for label, pair in found.items():
        print(f"        {label:<28} cosine {pair[0]:.3f}, scale {pair[1]:.3f}")
    assert_figures(passk_reweighted, found)


@pytest.mark.parametrize("k,n", [(1, 1), (1, 3), (2, 2), (2, 5), (3, 3), (3, 5), (4, 6)])
def test_exact_is_unbiased(k, n):
    """Rewards of every kind, graded and tied ones too, of samples from another policy."""
    q = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)
    pi = torch.tensor([0.25, 0.35, 0.4], dtype=torch.float64)
    for name, rewards, _ in instances():
        rewards = torch.tensor(rewards, dtype=torch.float64)

        def coefficients(kinds):
            w = (pi / q)[kinds]
            return passk_reweighted(rewards[kinds], w, k) * w
        exact = gradient(pi, k, rewards)
        assert torch.allclose(expected(coefficients, pi, q, n), exact, atol=1e-12), name


def test_exact_is_the_elementary_symmetric_polynomial():
    """w_i r_i e_{k-1}(w of the wrong samples) / C(n,k) for binary rewards, summed subset by subset."""
    generator = torch.Generator().manual_seed(0)
    for n, k in ((4, 2), (5, 3), (6, 6), (7, 4)):
        r = (torch.rand(3, n, generator=generator) < 0.4).double()
        w = torch.rand(3, n, generator=generator, dtype=torch.float64) * 2
        found = passk_reweighted(r, w, k) * w
        for b in range(3):
            wrong = [w[b, i].item() for i in range(n) if not r[b, i]]
            e = sum(map(math.prod, itertools.combinations(wrong, k - 1)))
            assert torch.allclose(found[b], w[b] * r[b] * e / math.comb(n, k), atol=1e-12)


def test_without_an_engine_exact_is_leave_one_out():
    """At weights of 1, also where binomials are beyond float32."""
    generator = torch.Generator().manual_seed(0)
    for n, k, dtype in ((16, 8, torch.float32), (64, 32, torch.float32), (400, 200, torch.float64)):
        r = torch.rand(2, n, generator=generator, dtype=dtype)
        for rewards in (r, (r < 0.1).to(dtype)):
            found = passk_reweighted(rewards, torch.ones(2, n), k)
            assert torch.equal(found, advantages(rewards, k, "passk"))


def test_one_weight_is_exact_for_the_mean_and_the_kl():
    """The objective mean with its baseline, and the KL term: w_i alone has the exact gradient."""
    n = 4
    mean = expected(lambda kinds: advantages(REWARDS[kinds], n, "mean") * (PI / Q)[kinds], PI, Q, n)
    assert torch.allclose(mean, gradient(PI, 1), atol=1e-12)
    reference = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)
    gap = (PI / reference).log()
    found = expected(lambda kinds: kl_coefficients(gap[kinds]) * (PI / Q)[kinds], PI, Q, n)
    logits = PI.log().requires_grad_()
    p = torch.softmax(logits, 0)
    kl = (p * (p / reference).log()).sum()
    assert torch.allclose(found, torch.autograd.grad(kl, logits)[0], atol=1e-12)


def error(form, p, spread, k, prompts=64):
    """Root mean square error of the gradient estimate of so many equal prompts, relative to the gradient: bias and
    noise. One right completion, drawn with chance .2 where p is right, and two wrong ones whose weights differ by a
    factor (1 + spread) / (1 - spread)."""
    q = torch.tensor([0.2, 0.4, 0.4], dtype=torch.float64)
    wrong = (1 - p) / 2
    pi = torch.tensor([p, wrong * (1 + spread), wrong * (1 - spread)], dtype=torch.float64)
    rewards = torch.tensor([1, 0, 0], dtype=torch.float64)
    n = 2 * k
    kinds, counts = pools(n, 3)
    ways = math.lgamma(n + 1) - torch.lgamma(counts.double() + 1).sum(1)
    chance = (ways + (counts * q.log()).sum(1)).exp()
    r = rewards[kinds]
    w = torch.ones_like(r) if form == "none" else (pi / q)[kinds]
    c = passk_reweighted(r, w, k) if form == "exact" else advantages(r, k, "passk")
    scores = torch.eye(3, dtype=torch.float64) - pi
    estimates = (c * w)[..., None] * scores[kinds]
    estimates = estimates.sum(1)
    mean = chance @ estimates
    noise = (chance[:, None] * (estimates - mean) ** 2).sum() / prompts
    exact = gradient(pi, k, rewards)
    bias = ((mean - exact) ** 2).sum()
    return ((bias + noise).sqrt() / exact.norm()).item()


def test_exact_is_worth_its_noise():
    """Why it is the default where it exists: where policies differ in how often they are right it is the nearest, and
    where they differ in other ways by a fifth it costs little. By half, it costs more than a small bias."""
    for p in (0.18, 0.22):
        for k in (8, 32):
            assert error("exact", p, 0.1, k) < min(error("weights", p, 0.1, k), error("none", p, 0.1, k))
    assert error("exact", 0.2, 0.2, 8) < 1.35 * error("weights", 0.2, 0.2, 8)
    assert error("exact", 0.2, 0.5, 8) > 2 * error("weights", 0.2, 0.5, 8)
    found = {(form, p, spread): round(error(form, p, spread, 8), 3) for form in ("none", "weights", "exact")
             for p in (0.2, 0.22) for spread in (0.1, 0.5)}
    assert found == {("none", 0.2, 0.1): 0.064, ("none", 0.2, 0.5): 0.064, ("none", 0.22, 0.1): 0.11,
                     ("none", 0.22, 0.5): 0.11, ("weights", 0.2, 0.1): 0.064, ("weights", 0.2, 0.5): 0.064,
                     ("weights", 0.22, 0.1): 0.208, ("weights", 0.22, 0.5): 0.208, ("exact", 0.2, 0.1): 0.069,
                     ("exact", 0.2, 0.5): 0.171, ("exact", 0.22, 0.1): 0.069, ("exact", 0.22, 0.5): 0.171}
