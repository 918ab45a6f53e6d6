"""bon_sft.py and bon_rl.py: their equations against brute force in float64, and real runs on the embedded model."""
import itertools
import math
from decimal import Decimal, getcontext

import pytest
import torch

import bon_rl
import bon_sft
from bon_rl import bon_rl_coefficients, bon_rlb_coefficients, kl_coefficients, lambda_n, rlb_weights
from bon_sft import bon_sft_coefficients

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
    """Exact expectation of sum_j c_j grad log pi(y_j) over M draws, by multinomial counts (the coefficients do not depend
    on the order of the samples). coefficients: completions [R, M] -> (c [R, M], gold coefficient times gradient or 0)."""
    p = torch.softmax(theta, 0)
    V = len(p)
    counts = counts_of(V, M)
    y = torch.tensor([[v for v, c in enumerate(row) for _ in range(c)] for row in counts])  # [R, M]
    ways = [math.lgamma(M + 1) - sum(math.lgamma(c + 1) for c in row) for row in counts]
    weight = (tensor(ways) + (tensor(counts) * p.log()).sum(1)).exp()
    assert weight.sum().item() == pytest.approx(1, abs=1e-10)
    grads = torch.eye(V, dtype=torch.float64) - p  # row y: grad of log pi(y)
    return (weight[:, None] * torch.einsum("rm,rmv->rv", coefficients(y), grads[y])).sum(0)


# ---------------------------------------------------------------------------------------------------------------- lambda

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
        assert kl == pytest.approx((bon * bon.log()).mean().item(), abs=1e-6) == pytest.approx(math.log(n) - (n - 1) / n, abs=1e-6)


# ------------------------------------------------------------------------------------------------- the variational forms

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
        assert torch.allclose(expected_estimate(theta, M, lambda y: bon_sft_coefficients(s[y], s[gold].expand(len(y)), n)[1]), sft, atol=1e-12)


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


def test_scale_across_prompts():
    """Two prompts that share theta: one alone cannot show a wrong scale. The limit of the sum is the sum of the limits, and
    a batch is weighted row by row."""
    theta = theta_of(3, 4)
    easy, hard = tensor([1.0, 1.0, 0.0]), tensor([0.0, 0.0, 1.0])
    for function in (lambda y: bon_rl_coefficients(hard[y], hard[y], 4), lambda y: bon_rlb_coefficients(hard[y], 4, "minus")):
        y = torch.tensor([[0, 1, 2, 2], [2, 0, 0, 0]])
        assert torch.equal(function(y), torch.cat([function(y[:1]), function(y[1:])]))
    exact = gradient(lambda t: sum(1 - (torch.softmax(t, 0) * (1 - r)).sum() ** 3 for r in (easy, hard)), theta)
    found = sum(expected_estimate(theta, 4, lambda y: bon_rlb_coefficients(r[y], 3, "positive", "pool")) for r in (easy, hard))
    assert torch.allclose(found, exact, atol=1e-12)
    exact = gradient(lambda t: sum((log_bon(t, r.tolist(), 3).exp() * r).sum() for r in (easy, hard)), theta)
    found = sum(expected_estimate(theta, 64, lambda y: bon_rl_coefficients(r[y], r[y], 3)) for r in (easy, hard))
    assert torch.allclose(found, exact, rtol=0.03, atol=0.003)


# -------------------------------------------------------------------------------------------------------- binary rewards

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
            assert torch.allclose((bon * printed) @ (torch.eye(3, dtype=torch.float64) - p), (1 + f) / (1 - f) * exact, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("M,n", [(1, 1), (4, 1), (4, 4), (6, 3), (32, 8)])
def test_the_pool_estimate_is_unbiased(M, n):
    r = tensor([1.0, 0.0, 0.0])
    for theta in (theta_of(3, 1), theta_of(3, 2) * 3):
        exact = gradient(lambda t: 1 - (torch.softmax(t, 0) * (1 - r)).sum() ** n, theta)
        assert torch.allclose(expected_estimate(theta, M, lambda y: bon_rlb_coefficients(r[y], n, "positive", "pool")), exact, atol=1e-12)


@pytest.mark.parametrize("variant", ["minus", "exact", "positive"])
def test_the_plugin_estimate(variant):
    """Its own exact expectation over all tuples by loops; and the exact gradient (times the factor of minus) as M grows."""
    n, r, theta = 3, tensor([1.0, 0.0, 0.0]), theta_of(3, 1)
    p = torch.softmax(theta, 0)
    for M in (1, 2, 5):
        found, wanted = expected_estimate(theta, M, lambda y: bon_rlb_coefficients(r[y], n, variant)), torch.zeros(3, dtype=torch.float64)
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
    exact = gradient(lambda t: 1 - (torch.softmax(t, 0) * (1 - r)).sum() ** n, theta) * ((1 + f) / (1 - f) if variant == "minus" else 1)
    errors = [(expected_estimate(theta, M, lambda y: bon_rlb_coefficients(r[y], n, variant)) - exact).norm() / exact.norm() for M in (8, 16, 32, 64)]
    assert all(b < 0.75 * a for a, b in zip(errors, errors[1:])) and errors[-1] < 0.2, errors


# --------------------------------------------------------------------------------------------------- limits, types, errors

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
    # all wrong: minus pushes everything down and positive does nothing; all right: minus pushes up, by little at large N
    assert (bon_rlb_coefficients(torch.zeros(1, M), n, "minus") < 0).all() and (bon_rlb_coefficients(torch.zeros(1, M), n, "positive") == 0).all()
    assert (bon_rlb_coefficients(torch.ones(1, M), n, "minus") >= 0).all()


def test_equal_rewards_weigh_exactly_nothing():
    scores = torch.randn(2, 12, generator=torch.Generator().manual_seed(0))
    for value in (0.0, 1.0, 0.1, 1 / 3, -7.7):
        for n in (1, 4, 64):
            assert (bon_rl_coefficients(scores, torch.full((2, 12), value), n) == 0).all()


def test_types():
    r = torch.tensor([[1, 0, 0, 1]])
    assert bon_rl_coefficients(r, r, 4).dtype == bon_rlb_coefficients(r, 4, "minus").dtype == torch.float32
    assert torch.equal(bon_rl_coefficients(r.bool(), r.bool(), 4), bon_rl_coefficients(r, r, 4)) and bon_rl_coefficients(r, r, 4).abs().sum() > 0
    assert torch.equal(bon_rlb_coefficients(r.bool(), 4, "minus"), bon_rlb_coefficients(r, 4, "minus"))
    assert isinstance(rlb_weights(0.5, 4, "minus")[0], float)
    one, both = tensor([[0.2, 0.4]]), tensor([[0.2, 0.4], [5.0, 1.0]])
    assert torch.equal(bon_sft_coefficients(both, tensor([0.3, 0.0]), 4)[1][:1], bon_sft_coefficients(one, tensor([0.3]), 4)[1])


@pytest.mark.parametrize("call", [
    lambda r: lambda_n(0), lambda r: lambda_n(2.5), lambda r: lambda_n(math.nan), lambda r: bon_sft.lambda_n(-1), lambda r: lambda_n(math.inf),
    lambda r: bon_rl_coefficients(r, r[:, :2], 4), lambda r: bon_rl_coefficients(r[0], r[0], 4), lambda r: bon_rl_coefficients(r, r, 0),
    lambda r: bon_sft_coefficients(r, r, 4), lambda r: bon_sft_coefficients(r[0], r[0], 4), lambda r: bon_sft_coefficients(r, r[:, 0], 0),
    lambda r: rlb_weights(-0.1, 4, "minus"), lambda r: rlb_weights(1.1, 4, "positive"), lambda r: rlb_weights(0.5, 0, "positive"),
    lambda r: rlb_weights(0.5, 4, "plus"), lambda r: rlb_weights(math.nan, 4, "minus"), lambda r: bon_rlb_coefficients(r * 0.5, 4, "minus"),
    lambda r: bon_rlb_coefficients(r, 0, "minus"), lambda r: bon_rlb_coefficients(r, 4, "other"), lambda r: bon_rlb_coefficients(r, 5, "positive", "pool"),
    lambda r: bon_rlb_coefficients(r, 2, "minus", "pool"), lambda r: bon_rlb_coefficients(r, 2, "minus", "guess"), lambda r: bon_rlb_coefficients(r[0], 2, "minus")])
def test_bad_arguments(call):
    with pytest.raises(ValueError) as error:
        call(torch.tensor([[1.0, 0.0, 0.0, 1.0]]))
    assert len(str(error.value)) > 20


def test_kl_and_entropy_coefficients():
    """The expected gradient is that of KL(pi || ref); with log pi itself in place of the gap, that of minus the entropy."""
    theta, ref = theta_of(3), torch.log_softmax(theta_of(3, 1), 0)
    logp = torch.log_softmax(theta, 0)
    for M in (1, 2, 3):
        found = expected_estimate(theta, M, lambda y: kl_coefficients((logp - ref)[y]))
        assert torch.allclose(found, gradient(lambda t: (torch.softmax(t, 0) * (torch.log_softmax(t, 0) - ref)).sum(), theta), atol=1e-12)
        found = expected_estimate(theta, M, lambda y: kl_coefficients(logp[y]))
        assert torch.allclose(found, gradient(lambda t: (torch.softmax(t, 0) * torch.log_softmax(t, 0)).sum(), theta), atol=1e-12)
