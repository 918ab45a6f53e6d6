"""cat_passk.py, cat_majority.py, cat_bon.py: equations against enumeration and high precision, and the scripts as
run."""
import itertools
import json
import math
import os
import re
import shlex
from fractions import Fraction

import make_tiny
import mpmath
import pytest
import safetensors.torch
import torch
from conftest import ROOT, load_policy
from tabular import assert_figures, distance, on_three_prompts, slope_on_three_prompts
from test_scripts import read_lines, run, same_run
from test_text import llama_folder

import cat_bon
import cat_majority
import cat_passk
import common
import evaluate
import ppo_passk
import tasks
from cat_bon import bon_weight
from cat_majority import dynamic_threshold, majority_sft_loss, majority_weight
from cat_passk import operator_weight, passn_sft_loss, passn_weight, pool_weight
from support import load, processes
from support.folder import Folder
from support.run import batch_of


@pytest.fixture(autouse=True, scope="module")
def no_picture():
    """curves.png takes a third of the time of so short a run; that of every mode is drawn in test_house.py."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("support.run.plot_run",
                      lambda folder, result: open(os.path.join(folder, "curves.png"), "w").close())
        yield


mpmath.mp.dps = 60
LOGPS = [-1e4, -3000.0, -300.0, -104.0, -88.0, -60.5, -59.5, -40.0, -20.0, -16.5, -9.0, -3.0, -1.0, -0.7, -0.69, -0.2,
         -0.01, -1e-4, -1e-6, -1e-8]
BUDGETS = [(2, 1), (2, 2), (5, 3), (16, 9), (16, 16), (64, 33), (64, 2), (300, 151)]


# ------------------------------------------------------------------------------------- losses and weights, 60 digits

def exact_majority(logp, n, k):
    """(-log B, d(-log B)/dlogp) in 60 digits; k = 1 is Pass@N. p^k is divided out, so nothing cancels."""
    p, f = mpmath.exp(mpmath.mpf(logp)), -mpmath.expm1(mpmath.mpf(logp))
    tail = mpmath.fsum(math.comb(n, j) * p ** (j - k) * f ** (n - j) for j in range(k, n + 1))
    below = mpmath.fsum(math.comb(n, j) * p ** j * f ** (n - j) for j in range(k))
    value = -mpmath.log1p(-below) if below < 0.5 else -(k * mpmath.mpf(logp) + mpmath.log(tail))
    return value, -k * math.comb(n, k) * f ** (n - k) / tail


def close(found, exact, tolerance):
    return abs(found - exact) <= tolerance * abs(exact) + 1e-37


@pytest.mark.parametrize("dtype,tolerance", [(torch.float32, 2e-4), (torch.float64, 1e-11)])
@pytest.mark.parametrize("n,k", [(1, 1), *BUDGETS])
def test_sft_losses_and_gradients_at_any_scale(n, k, dtype, tolerance):
    x = torch.tensor(LOGPS, dtype=dtype, requires_grad=True)
    losses = [majority_sft_loss(x, n, k)] + [passn_sft_loss(x, n)] * (k == 1)
    for loss in losses:
        slope, = torch.autograd.grad(loss.sum(), x, retain_graph=True)
        assert loss.dtype == dtype
        for logp, value, gradient in zip(x.tolist(), loss.tolist(), slope.tolist()):
            wanted = exact_majority(logp, n, k)
            assert (close(value, wanted[0], tolerance)
                    and close(gradient, wanted[1], tolerance)), (logp, value, gradient, wanted)


@pytest.mark.parametrize("loss", [lambda x: passn_sft_loss(x, 16), lambda x: majority_sft_loss(x, 16, 9),
                                  lambda x: majority_sft_loss(x, 7, 1)])
def test_sft_gradients_by_finite_differences(loss):
    for logp in (-12.0, -4.0, -1.5, -0.4, -0.05):
        x, h = torch.tensor(logp, dtype=torch.float64, requires_grad=True), 1e-6
        slope, = torch.autograd.grad(loss(x), x)
        assert slope.item() == pytest.approx((loss(logp + h) - loss(logp - h)) / (2 * h), rel=1e-5, abs=1e-9)


def test_weights_are_the_gradients_of_the_losses():
    """Eq. 7: w = p T'/T is minus the slope of the loss. The weight of the paper's Table 1 lacks the factor k/B, which
    makes it p B' / k: this is the figure that would come out, and it is not the slope."""
    for n, k in [(1, 1), *BUDGETS]:
        x = torch.tensor([-2.0, -0.8, -0.3, -1e-3] + [-5.0, -20.0] * (k < 10), dtype=torch.float64, requires_grad=True)
        p = x.detach().exp()
        slope, = torch.autograd.grad(majority_sft_loss(x, n, k).sum(), x)
        assert torch.allclose(majority_weight(p, n, k, "log"), -slope, rtol=1e-9, atol=1e-300)
        b = (-majority_sft_loss(x, n, k).detach()).exp()
        table = p * majority_weight(p, n, k, "raw") / k  # C(n,k) p^k (1-p)^(n-k)
        assert torch.allclose(table, float(math.comb(n, k)) * p ** k * (1 - p) ** (n - k), rtol=1e-9, atol=1e-300)
        assert torch.allclose(table * k / b, -slope, rtol=1e-9, atol=1e-300)
        if k > 1:
            assert not torch.allclose(table, -slope, rtol=0.5)
        slope, = torch.autograd.grad(passn_sft_loss(x, n).sum(), x)
        assert torch.allclose(passn_weight(p, n, "log"), -slope, rtol=1e-9, atol=1e-300)


@pytest.mark.parametrize("dtype,tolerance", [(torch.float32, 3e-4), (torch.float64, 1e-11)])
def test_weights_at_any_scale(dtype, tolerance):
    p = torch.tensor([math.exp(x) for x in LOGPS], dtype=dtype)
    for n, k in [(1, 1), *BUDGETS]:
        for form in ("raw", "log"):
            pairs = [(majority_weight, (n, k, form))] + [(passn_weight, (n, form))] * (k == 1)
            for function, arguments in pairs:
                q = p.clone().requires_grad_()
                w = function(q, *arguments)
                assert torch.autograd.grad(w.sum(), q)[0].isfinite().all() and w.dtype == dtype
                for x, found in zip(p.tolist(), w.tolist()):
                    x = mpmath.mpf(x)
                    raw = n * math.comb(n - 1, k - 1) * x ** (k - 1) * (1 - x) ** (n - k)
                    tail = mpmath.fsum(math.comb(n, j) * x ** (j - k) * (1 - x) ** (n - j) for j in range(k, n + 1))
                    exact = raw if form == "raw" else k * math.comb(n, k) * (1 - x) ** (n - k) / tail
                    assert abs(found - exact) <= tolerance * exact + 1e-30, (n, k, form, float(x), found, float(exact))


def test_limits_types_and_shapes():
    assert passn_weight(0, 16, "raw") == passn_weight(0.0, 16, "raw") == 16 and passn_weight(0.0, 16, "log") == 1
    assert passn_weight(1, 16, "raw") == passn_weight(1.0, 16, "log") == 0 and passn_weight(1.0, 1, "log") == 1
    assert majority_weight(0.0, 16, 9, "raw") == 0 and majority_weight(0.0, 16, 9, "log") == pytest.approx(9)
    assert majority_weight(0, 16, 1, "raw") == pytest.approx(16) and majority_weight(1, 16, 9, "log") == 0
    assert majority_weight(1.0, 4, 4, "log") == majority_weight(1.0, 4, 4, "raw") == pytest.approx(4)
    assert operator_weight(lambda p: 1 - (1 - p) ** 4, 0.0) == pytest.approx(1, abs=1e-5)
    for x in (torch.tensor(-0.5), torch.full((2, 0), -0.5), torch.full((2, 3, 4), -0.5)):
        for found in (passn_sft_loss(x, 4), majority_sft_loss(x, 4, 2), passn_weight(x.exp(), 4, "log"),
                      majority_weight(x.exp(), 4, 2, "raw"), operator_weight(lambda p: p ** 2, x.exp()),
                      pool_weight(torch.zeros_like(x, dtype=torch.long), 4, 2)):
            assert found.shape == x.shape and found.dtype == torch.float32
    assert (isinstance(passn_sft_loss(-0.5, 4), float) and isinstance(majority_weight(0.5, 4, 2, "raw"), float)
            and isinstance(pool_weight(2, 4, 2), float))
    for loss in (lambda x: passn_sft_loss(x, 8), lambda x: majority_sft_loss(x, 8, 5)):  # log p = +1e-7 by rounding
        x = torch.tensor([1e-7, 0.0], requires_grad=True)
        value = loss(x)
        assert value.abs().max() < 1e-6 and torch.autograd.grad(value.sum(), x)[0].abs().max() < 1e-6


def test_reductions():
    """n = 1 is cross-entropy bit for bit, k = 1 is Pass@N, the last form is the mean reward."""
    x = torch.tensor(LOGPS, requires_grad=True)
    for loss in (passn_sft_loss(x, 1), majority_sft_loss(x, 1, 1)):
        assert torch.equal(loss, -x) and torch.equal(torch.autograd.grad(loss.sum(), x)[0], -torch.ones_like(x))
    p = torch.rand(50, dtype=torch.float64)
    for form in ("raw", "log"):
        assert torch.equal(passn_weight(p, 1, form), torch.ones_like(p))
        assert torch.allclose(majority_weight(p, 1, 1, form), torch.ones_like(p))
        assert torch.allclose(majority_weight(p, 9, 1, form), passn_weight(p, 9, form))
    assert torch.allclose(majority_sft_loss(p.log(), 9, 1), passn_sft_loss(p.log(), 9))
    assert all(pool_weight(c, 6, 1) == 1 for c in range(7))
    r = torch.randn(3, 5, dtype=torch.float64)
    assert torch.allclose(bon_weight(r, 1, "rank"), r / 5) and torch.equal(bon_weight(r, 1, "exact"), r / 5)


@pytest.mark.parametrize("n,k", [(1, 1), (4, 1), (16, 1), (5, 3), (16, 9), (8, 8)])
def test_operator_weight_finds_every_closed_form(n, k):
    """autograd of the binomial tail, written out here, against the scripts' closed forms."""
    p = torch.linspace(0.01, 1, 100, dtype=torch.float64)
    tail = lambda x: sum(math.comb(n, j) * x ** j * (1 - x) ** (n - j) for j in range(k, n + 1))
    assert torch.allclose(operator_weight(tail, p), majority_weight(p, n, k, "log"), atol=1e-9)
    assert torch.allclose(operator_weight(tail, p, "raw"), majority_weight(p, n, k, "raw"), atol=1e-9)
    assert torch.allclose(p * majority_weight(p, n, k, "raw") / tail(p), majority_weight(p, n, k, "log"), atol=1e-9)
    for dtype, tolerance in ((torch.float32, 2e-4), (torch.float64, 2e-5)):
        x = torch.tensor(LOGPS + [0.0, 1e-7], dtype=dtype, requires_grad=True)
        losses = cat_passk.operator_sft_loss(tail, x)
        slope, = torch.autograd.grad(losses.sum(), x)
        assert losses.dtype == dtype
        wanted = majority_sft_loss(x, n, k)
        assert torch.allclose(losses, wanted, rtol=tolerance, atol=1e-6)
        assert torch.allclose(slope, torch.autograd.grad(wanted.sum(), x)[0], rtol=tolerance, atol=1e-6)
    if k == 1:
        assert torch.allclose(operator_weight(lambda x: 1 - (1 - x) ** n, p), passn_weight(p, n, "log"), atol=1e-9)
    # a new one: majority of 3
    assert operator_weight(lambda x: x ** 2 * (3 - 2 * x), 0.3) == pytest.approx(6 * 0.7 / (3 - 0.6))


@pytest.mark.parametrize("call", [
    lambda: passn_sft_loss(-1.0, 0), lambda: passn_sft_loss(-1.0, 2.5), lambda: passn_sft_loss(0.5, 4),
    lambda: passn_sft_loss(torch.tensor([-1.0, 2.0]), 4), lambda: passn_weight(0.5, 4, "pool"),
    lambda: passn_weight(1.2, 4, "raw"), lambda: passn_weight(-0.1, 4, "log"), lambda: passn_weight(0.5, 0, "raw"),
    lambda: pool_weight(1, 4, 5), lambda: pool_weight(5, 4, 2), lambda: pool_weight(-1, 4, 2),
    lambda: pool_weight(1.5, 4, 2), lambda: operator_weight(lambda p: p - 0.5, 0.2),
    lambda: operator_weight(lambda p: p, 1.5), lambda: operator_weight(lambda p: p, .5, "pool"),
    lambda: cat_passk.operator_sft_loss(lambda p: p, 0.5), lambda: majority_sft_loss(-1.0, 4, 5),
    lambda: majority_sft_loss(-1.0, 4, 0), lambda: majority_sft_loss(1.0, 4, 2),
    lambda: majority_weight(0.5, 4, 2, "x"), lambda: majority_weight(0.5, 2, 4, "raw"),
    lambda: majority_weight(1.5, 4, 2, "raw"), lambda: dynamic_threshold([], "a", 4),
    lambda: dynamic_threshold(["a"], [True, False], 4), lambda: dynamic_threshold(["a"], "a", 0),
    lambda: bon_weight(torch.ones(4), 2, "rank"), lambda: bon_weight(torch.ones(1, 4), 5, "exact"),
    lambda: bon_weight(torch.ones(1, 4), 0, "rank"), lambda: bon_weight(torch.ones(1, 4), 2, "best"),
    lambda: bon_weight(torch.ones(1, 4), 2, "exact", recent=[1.0])])
def test_bad_arguments(call):
    with pytest.raises(ValueError) as error:
        call()
    assert "\n" not in str(error.value)


# ------------------------------------------------------------------------------- reinforcement learning, by enumeration
# A tabular policy over 4 completions is softmax(theta); each completion has a reward.

THETA = torch.tensor([0.7, -0.4, 0.1, -1.0], dtype=torch.float64)
RIGHT = [1.0, 0.0, 1.0, 0.0]
GRADED = [0.3, -1.2, 2.5, 0.3]  # with a tie


def expected_sum(theta, rewards, m, coefficients):
    """Exact expectation of sum_i c_i grad log pi(y_i) over all tuples of m draws;
    coefficients(r [1, m], p_i [1, m]) -> [1, m]."""
    p = torch.softmax(theta, 0)
    tuples = torch.tensor(list(itertools.product(range(len(rewards)), repeat=m)))
    r = torch.tensor(rewards, dtype=torch.float64)[tuples]
    grads = torch.eye(len(rewards), dtype=torch.float64) - p
    c = coefficients(r, p[tuples])
    return torch.einsum("t,ti,tiv->v", p[tuples].prod(1), c, grads[tuples])


def gradient_of(J, theta):
    theta = theta.clone().requires_grad_()
    return torch.autograd.grad(J(torch.softmax(theta, 0)), theta)[0]


def success(rewards):
    mask = torch.tensor(rewards, dtype=torch.float64)
    return lambda pi: (pi * mask).sum()


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_pool_form_is_exact(n):
    """E[sum (r_i/M) w grad log pi] = grad (1 - (1-p)^n) for every M >= n; and the identity behind it, in fractions."""
    exact = gradient_of(lambda pi: 1 - (1 - success(RIGHT)(pi)) ** n, THETA)
    for m in range(n, 6):
        found = expected_sum(THETA, RIGHT, m, lambda r, _: r / m * pool_weight(r.sum(1, keepdim=True), m, n))
        assert torch.allclose(found, exact, atol=1e-12), m
    for p in (Fraction(1, 10), Fraction(1, 2), Fraction(9, 10)):
        m = n + 3
        mean = sum(math.comb(m, c) * p ** c * (1 - p) ** (m - c) * Fraction(c, m) * Fraction(pool_weight(c, m, n))
                   for c in range(m + 1))
        assert float(mean) == pytest.approx(float(p * n * (1 - p) ** (n - 1)), rel=1e-12)


def test_pool_form_is_the_passk_objective():
    """With raw rewards it gives each sample the coefficient of ppo_passk.py's default estimator."""
    for m in range(1, 9):
        for n in range(1, m + 1):
            r = torch.tensor([[1.0] * c + [0.0] * (m - c) for c in range(m + 1)], dtype=torch.float64)
            found = r / m * pool_weight(r.sum(1, keepdim=True), m, n)
            assert torch.allclose(found, ppo_passk.advantages(r, n, "passk"), atol=1e-14), (m, n)


@pytest.mark.parametrize("n,k", [(2, 1), (4, 1), (3, 2), (5, 3)])
def test_raw_weight_at_the_true_probability_is_exact_and_log_has_a_factor_p(n, k):
    p = success(RIGHT)(torch.softmax(THETA, 0))
    tail = lambda x: sum(math.comb(n, j) * x ** j * (1 - x) ** (n - j) for j in range(k, n + 1))
    for m in (1, 3):
        raw = expected_sum(THETA, RIGHT, m, lambda r, _: r / m * majority_weight(p, n, k, "raw"))
        log = expected_sum(THETA, RIGHT, m, lambda r, _: r / m * majority_weight(p, n, k, "log"))
        assert torch.allclose(raw, gradient_of(lambda pi: tail(success(RIGHT)(pi)), THETA), atol=1e-12)
        log_gradient = gradient_of(lambda pi: tail(success(RIGHT)(pi)).log(), THETA)
        assert (torch.allclose(log, p * log_gradient, atol=1e-12)
                and not torch.allclose(log, log_gradient, rtol=0.1, atol=0))
        if k == 1:
            assert torch.allclose(raw, expected_sum(THETA, RIGHT, m, lambda r, _: r / m * passn_weight(p, n, "raw")),
                                  atol=1e-12)


def test_the_bias_of_the_plug_in_forms():
    """Biased by design: with the smoothed p of the same rollouts the expectation is E[(c/M) w((c+1)/(M+2))] grad log p;
    unsmoothed, at p = .9 and M = N = 8, the raw form is 588 times too large. The sequence form weighs each right
    completion by its own probability: grad of sum_right pi - pi-dependent, not of pass@N, unless one completion is
    right."""
    m, n = 4, 3
    p = success(RIGHT)(torch.softmax(THETA, 0)).item()
    found = expected_sum(THETA, RIGHT, m,
                         lambda r, _: r / m * passn_weight((r.sum(1, keepdim=True) + 1) / (m + 2), n, "raw"))
    scale = sum(math.comb(m, c) * p ** c * (1 - p) ** (m - c) * c / m * passn_weight((c + 1) / (m + 2), n, "raw")
                for c in range(m + 1))
    direction = gradient_of(lambda pi: success(RIGHT)(pi).log(), THETA)
    exact = gradient_of(lambda pi: 1 - (1 - success(RIGHT)(pi)) ** n, THETA)
    assert torch.allclose(found, scale * direction, atol=1e-12)
    assert abs(found.norm() / exact.norm() - 1) > 0.1
    plug_in = sum(math.comb(8, c) * .9 ** c * .1 ** (8 - c) * c / 8 * passn_weight(c / 8, 8, "raw") for c in range(9))
    assert plug_in / (.9 * passn_weight(.9, 8, "raw")) == pytest.approx(588, abs=1)
    sequence = lambda rewards: expected_sum(THETA, rewards, 2, lambda r, q: r / 2 * passn_weight(q, n, "raw"))
    assert torch.allclose(sequence([0, 1.0, 0, 0]), gradient_of(lambda pi: 1 - (1 - pi[1]) ** n, THETA), atol=1e-12)
    assert torch.allclose(sequence(RIGHT), gradient_of(lambda pi: 2 - (1 - pi[0]) ** n - (1 - pi[2]) ** n, THETA),
                          atol=1e-12)


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("rewards", [RIGHT, GRADED, [-1.0, -1.0, -2.0, -1.0]])
def test_exact_best_of_n(n, rewards):
    """The expected sum is the gradient of E[max of n], ties included, for every M >= n."""
    table = torch.tensor([max(rewards[i] for i in ys) for ys in itertools.product(range(4), repeat=n)],
                         dtype=torch.float64)
    index = torch.tensor(list(itertools.product(range(4), repeat=n)))
    exact = gradient_of(lambda pi: (pi[index].prod(1) * table).sum(), THETA)
    for m in range(n, 6):
        assert torch.allclose(expected_sum(THETA, rewards, m, lambda r, _: bon_weight(r, n, "exact")), exact,
                              atol=1e-12), m


def brute_bon(r, n):
    M, out = len(r), []
    for i in range(M):
        subsets = list(itertools.combinations([r[j] for j in range(M) if j != i], n - 1))
        out.append(n / M * sum(max(0.0, r[i] - max(S)) if S else r[i] for S in subsets) / len(subsets))
    return out


def test_bon_weight_by_definition():
    generator = torch.Generator().manual_seed(0)
    for M, n in ((4, 2), (6, 3), (5, 5), (7, 1)):
        r = torch.randn(3, M, dtype=torch.float64, generator=generator)
        r[0, 1] = r[0, 0]
        exact, rank = bon_weight(r, n, "exact"), bon_weight(r, n, "rank")
        for b in range(3):
            assert exact[b].tolist() == pytest.approx(brute_bon(r[b].tolist(), n), abs=1e-12)
            q = [(sum(s < x for s in r[b].tolist()) + 1) / (M + 1) for x in r[b].tolist()]
            assert rank[b].tolist() == pytest.approx([n / M * a ** (n - 1) * x for a, x in zip(q, r[b].tolist())],
                                                     abs=1e-12)
    tied = bon_weight(torch.tensor([[2, 2, 1, 0]]), 2, "rank")
    assert (tied.dtype == torch.float32
            and tied[0].tolist() == pytest.approx([4 / 4 * (3 / 5), 4 / 4 * (3 / 5), 2 / 4 * (2 / 5), 0]))
    assert (bon_weight(torch.tensor([[3.0, 1.0]]), 3, "rank", recent=[0.0, 1.0, 2.0, 3.0])[0].tolist()
            == pytest.approx([3 / 2 * (4 / 6) ** 2 * 3, 3 / 2 * (2 / 6) ** 2]))
    assert bon_weight(torch.tensor([[3.0, 1.0]]), 3, "rank", recent=[])[0].tolist() == [9 / 8, 3 / 8]  # q = 1/2
    assert (bon_weight(torch.tensor([[5.0]]), 4, "rank").item() == 5 * 4 / 2 ** 3
            and bon_weight(torch.ones(2, 64), 32, "exact").abs().max() == 0)
    assert (bon_weight(torch.tensor([[1.0, 2.0]]), 8, "rank") > 0).all()  # the lowest, too
    # a property of the rank form, not a mistake: a shift of the rewards changes it, and may change its sign
    r = torch.tensor([[1.0, 2.0, 3.0]])
    assert (bon_weight(r, 2, "rank") >= 0).all() and (bon_weight(r - 4, 2, "rank") <= 0).all()
    assert torch.allclose(bon_weight(r, 2, "exact"), bon_weight(r - 4, 2, "exact"))


@pytest.mark.parametrize("n", [2, 3, 4])
def test_the_rank_form_against_its_own_expectation(n):
    """Biased by design: the plug-in q^(n-1) of M samples has the expectation E[((K+1)/(M+1))^(n-1)] with K ~
    Bin(M-1, q)."""
    p = torch.softmax(THETA, 0)
    for m in (3, 5):
        found = expected_sum(THETA, GRADED, m, lambda r, _: bon_weight(r, n, "rank"))
        wanted = torch.zeros(4, dtype=torch.float64)
        for y, r in enumerate(GRADED):
            q = sum(p[z].item() for z in range(4) if GRADED[z] < r)
            w = sum(math.comb(m - 1, K) * q ** K * (1 - q) ** (m - 1 - K) * ((K + 1) / (m + 1)) ** (n - 1)
                    for K in range(m))
            wanted += p[y] * n * w * r * (torch.eye(4, dtype=torch.float64)[y] - p)
        assert torch.allclose(found, wanted, atol=1e-12)


# ------------------------------------------------------------------ final coefficients: r, 1/M and all else inside

PAIR = [(torch.tensor([0.4, -0.3, -0.1], dtype=torch.float64), [1.0, 0.0, 1.0], ["a", "b", "a"]),
        (torch.tensor([-0.9, 0.6, 0.3], dtype=torch.float64), [1.0, 0.0, 0.0], ["a", "b", None])]


def expected_batch(M, coefficients):
    """Exact expectation of sum_i c_i grad log pi(y_i) for the two prompts of PAIR, each a policy of its own, over all
    batches of M draws each; coefficients(rewards, answers, p) of nested lists [2][M] -> [2][M].  Returns [2, 3]."""
    total = torch.zeros(2, 3, dtype=torch.float64)
    policies = [torch.softmax(theta, 0) for theta, *_ in PAIR]
    for ys in itertools.product(itertools.product(range(3), repeat=M), repeat=2):
        pick = lambda values: [[row[y] for y in draws] for row, draws in zip(values, ys)]
        p = pick([policy.tolist() for policy in policies])
        c = coefficients(pick([r for _, r, _ in PAIR]), pick([a for *_, a in PAIR]), p)
        for b, draws in enumerate(ys):
            for y, cy in zip(draws, c[b]):
                total[b] += math.prod(p[0] + p[1]) * float(cy) * (torch.eye(3, dtype=torch.float64)[y] - policies[b])
    return total


def standard(values, pool, correction=0):
    """(x - mean) / standard deviation of the pool, 0 where that is rounding."""
    mean = sum(pool) / len(pool)
    deviation = (sum((x - mean) ** 2 for x in pool) / (len(pool) - correction)) ** 0.5
    return [(x - mean) / deviation if deviation > 1e-6 else 0.0 for x in values]


def finish(weights, rewards, normalised, clip=math.inf):
    """w r / M, w clipped, then divided by its mean over the batch if asked."""
    weights = [[min(w, clip) for w in row] for row in weights]
    flat = [w for row in weights for w in row]
    mean = sum(flat) / len(flat) if normalised else 1
    return [[w / mean * r / len(row) for w, r in zip(ws, row)] for ws, row in zip(weights, rewards)]


@pytest.mark.parametrize("standardised,normalised,clip,correction", [
    (False, False, 0, 0), (True, False, 0, 0), (True, True, 0, 0), (True, True, 0.5, 1)])
def test_final_coefficients_have_the_expectation_of_their_docstring(standardised, normalised, clip, correction):
    """Biased by design: what rl_coefficients says, in loops over floats, has the same exact expectation; here it is
    taken over batches of two prompts, because normalising ties them together."""
    M, n = 2, 3

    def passk(form, probability):
        def brute(r, _, p):
            ws = []
            for row, ps in zip(r, p):
                c = sum(row)
                q = ps if probability == "sequence" else [(c + 1) / (M + 2)] * M
                raw = [n * (1 - x) ** (n - 1) for x in q]
                ws.append(raw if form == "raw" else [x * y / (1 - (1 - x) ** n) for x, y in zip(q, raw)])
            zs = [standard(row, row, correction) if standardised else row for row in r]
            return finish(ws, zs, normalised, clip or math.inf)

        def script(r, _, p):
            return cat_passk.rl_coefficients(tensor(r), n, form, probability, tensor(p).log(), standardised, normalised,
                                             clip, correction)
        return brute, script

    def majority(form, threshold):
        def brute(r, answers, _):
            ws, zs = [], []
            for row, votes in zip(r, answers):
                wrong = [a for a, x in zip(votes, row) if not x]
                k = threshold or max(2, min(n // 2 + 1, n * max(map(wrong.count, wrong), default=0) // M + 1))
                p = (sum(row) + 1) / (M + 2)
                w = n * math.comb(n - 1, k - 1) * p ** (k - 1) * (1 - p) ** (n - k)
                if form == "log":
                    w *= p / sum(math.comb(n, j) * p ** j * (1 - p) ** (n - j) for j in range(k, n + 1))
                ws.append([w] * M)
                zs.append([-0.5] * M if not sum(row) else standard(row, row, correction) if standardised else row)
            return finish(ws, zs, normalised, clip or math.inf)

        def script(r, answers, _):
            return cat_majority.rl_coefficients(tensor(r), answers, n, form, threshold, standardised, -0.5, normalised,
                                                clip, correction)
        return brute, script
    cases = [passk("raw", "success"), passk("log", "success"), passk("log", "sequence"), majority("raw", None),
             majority("log", None), majority("raw", 1)]
    for brute, script in cases:
        wanted = expected_batch(M, brute)
        assert torch.allclose(expected_batch(M, script), wanted, atol=1e-12) and wanted.abs().amax(1).min() > 1e-3


def tensor(x):
    return torch.tensor(x, dtype=torch.float64)


@pytest.mark.parametrize("n", [2, 4])
def test_ranks_of_standardised_rewards_against_their_own_expectation(n):
    """Within the prompt; against a queue of recent rewards, whose mean and deviation are those taken off, or the
    prompt's own."""
    p, queue = torch.softmax(THETA, 0), [0.5, -1.2, 2.5, 0.3, 0.3]
    for m, recent, pool, correction in ((3, None, None, 0), (2, queue, queue, 0), (2, queue, None, 1),
                                        (3, [], None, 1), (2, queue, queue, 1)):
        found = expected_sum(THETA, GRADED, m, lambda r, _: cat_bon.rl_coefficients(
            r, n, "rank", recent, pool=pool, correction=correction))
        wanted = torch.zeros(4, dtype=torch.float64)
        for ys in itertools.product(range(4), repeat=m):
            r = [GRADED[y] for y in ys]
            z = standard(r, pool or r, correction)
            for i, y in enumerate(ys):
                others = r[:i] + r[i + 1:] if recent is None else recent
                q = (sum(x < r[i] for x in others) + 1) / (len(others) + 2)
                wanted += p[list(ys)].prod() * n / m * q ** (n - 1) * z[i] * (torch.eye(4, dtype=torch.float64)[y] - p)
        assert torch.allclose(found, wanted, atol=1e-12) and wanted.abs().max() > 1e-2


def test_figures_of_the_bias():
    """What the docstrings of rl_coefficients say of the distance to the gradient."""
    n, m = 4, 8

    def measured(coefficients, exact):
        return {label: distance(on_three_prompts(lambda r: coefficients(r, **options), m, options.get("normalised")),
                                exact) for label, options in rows.items()}
    off = {"standardised": False, "normalised": False}
    once, all_on = {"standardised": True, "normalised": False}, {"standardised": True, "normalised": True}
    rows = {"pool": {"form": "pool", **off}, "pool, standardised": {"form": "pool", **once},
            "raw": {"form": "raw", **off}, "raw, standardised": {"form": "raw", **once},
            "raw, standardised, normalised": {"form": "raw", **all_on}, "log": {"form": "log", **off},
            "log, standardised, normalised": all_on}
    exact = slope_on_three_prompts(lambda p: 1 - (1 - p) ** n)
    assert_figures(cat_passk.rl_coefficients,
                   measured(lambda r, **options: cat_passk.rl_coefficients(r, n, **options), exact))

    def majority(r, **options):
        answers = [["right" if x else "wrong" for x in row] for row in r.tolist()]
        return cat_majority.rl_coefficients(r, answers, n, **options)

    def vote(p):  # of four, a tie of two and two shared
        return 0.5 * 6 * p ** 2 * (1 - p) ** 2 + 4 * p ** 3 * (1 - p) + p ** 4
    rows = {"raw, threshold 3": {"threshold": 3, "all_wrong": 0.0, **off}, "raw": {"all_wrong": 0.0, **off},
            "log": {"form": "log", "all_wrong": 0.0, **off}, "raw, standardised": once,
            "raw, standardised, normalised": all_on, "log, standardised, normalised": {"form": "log", **all_on}}
    assert_figures(cat_majority.rl_coefficients, measured(majority, slope_on_three_prompts(vote)))

    levels = [0.0, 1.0, 2.0, 4.0]
    index = torch.tensor(list(itertools.product(range(4), repeat=n)))
    exact = gradient_of(lambda pi: pi[index].prod(1) @ tensor(levels)[index].amax(1), torch.zeros(4).double())
    draws = list(itertools.combinations_with_replacement(range(4), m))  # in any order
    ways = [math.factorial(m) / math.prod(math.factorial(y.count(v)) for v in range(4)) for y in draws]
    chance = tensor(ways) / 4 ** m
    draws = torch.tensor(draws)
    slopes = (torch.eye(4, dtype=torch.float64) - 0.25)[draws]
    found = {}
    for label, form, standardised, shift in (("exact", "exact", False, 0), ("exact, standardised", "exact", True, 0),
                                             ("rank", "rank", False, 0), ("rank, of r - 4", "rank", False, 4),
                                             ("rank, standardised", "rank", True, 0)):
        c = cat_bon.rl_coefficients(tensor(levels)[draws] - shift, n, form, None, standardised)
        found[label] = distance(torch.einsum("d,di,div->v", chance, c, slopes), exact)
    assert_figures(cat_bon.rl_coefficients, found)


def docstring_example():
    """The operator in the docstring of cat_passk.py, as text."""
    lines = re.search(r" {4}(def at_least_two.*\n {8}return .*)\n", cat_passk.__doc__)[1]
    return re.sub(r"\n {4}", "\n", lines) + "\n"


@pytest.mark.parametrize("n", [2, 3, 4])
def test_an_operator_of_ones_own(n):
    """At the true probability the raw form is the gradient of T, by enumeration of what two of N right means; Pass@N
    and the vote, given as operators, get the coefficients that they have."""
    space = {}
    exec(docstring_example(), space)
    T = space["at_least_two"]
    index = torch.tensor(list(itertools.product(range(4), repeat=n)))
    two = (tensor(RIGHT)[index].sum(1) >= 2).double()
    exact = gradient_of(lambda pi: pi[index].prod(1) @ two, THETA)
    p = success(RIGHT)(torch.softmax(THETA, 0))
    for m in (2, 3):
        found = expected_sum(THETA, RIGHT, m, lambda r, _: r / m * cat_passk.weight_of(p, n, "raw", T))
        assert torch.allclose(found, exact, atol=1e-12)
    k = n // 2 + 1
    vote = lambda p, n: sum(math.comb(n, j) * p ** j * (1 - p) ** (n - j) for j in range(k, n + 1))
    r = torch.tensor([[1.0] * c + [0.0] * (6 - c) for c in range(7)], dtype=torch.float64)
    logp = torch.linspace(-9, 0, 42, dtype=torch.float64).view(7, 6)
    answers = [["a" if x else "b" for x in row] for row in r.tolist()]
    for form in ("raw", "log"):
        for on in ((False, False), (True, True)):
            for probability in ("success", "sequence"):
                given = n, form, probability, logp, *on
                found = cat_passk.rl_coefficients(r, *given, operator=lambda p, n: 1 - (1 - p) ** n)
                assert torch.allclose(found, cat_passk.rl_coefficients(r, *given), atol=1e-9)
            wanted = cat_majority.rl_coefficients(r, answers, n, form, k, on[0], 0.0, on[1])
            found = cat_passk.rl_coefficients(r, n, form, "success", None, *on, operator=vote)
            assert torch.allclose(found, wanted, atol=1e-9)


OPERATORS = docstring_example() + """
import math
import torch
def passn(p, n): return 1 - (1 - p) ** n
def three(p, n): return sum(math.comb(n, j) * p ** j * (1 - p) ** (n - j) for j in range(3, n + 1))
def rounded(p, n): return 1 - sum(math.comb(n, j) * p ** j * (1 - p) ** (n - j) for j in range(3))
def falls(p, n): return p * (1 - p)
def lifted(p, n): return p + 0.1
def infinite(p, n): return p / (1 - p)
def steep(p, n): return 1 - (1 - p) ** 0.5
def tiny(p, n): return p ** 60
def cut(p, n): return p.detach() ** 2
def number(p, n): return 0.5
def other(p, n): return p[:3]
def broken(p, n): return q
def alone(p): return p
constant = 3
"""


@pytest.fixture
def operators(tmp_path):
    path = tmp_path / "own.py"
    path.write_text(OPERATORS)
    return path


@pytest.mark.parametrize("name,words", [
    ("falls", "falls(p, 16) must increase"), ("lifted", "from 0 at p = 0"), ("infinite", "not finite for all p"),
    ("steep", "slope that is not finite"), ("tiny", "is not positive"), ("cut", "computed from it with torch"),
    ("number", "must return a tensor"), ("other", "a tensor like p"), ("alone", "must take (p, n)"),
    ("broken", "raised NameError: name 'q' is not defined (own.py, line"), ("constant", "must be a function"),
    ("rounded", "sum of positive terms"), ("nothing", "has no nothing"), ("", "say which")])
def test_what_is_no_operator(name, words, operators, tmp_path):
    given = f"{operators}:{name}" if name else operators
    code, _, err = run(cat_passk.main, "--operator", given, "--out", tmp_path / "r")
    assert code == 2 and words in err and err.count("\n") == 1 and "Traceback" not in err
    assert not (tmp_path / "r").exists()


def test_an_operator_is_trained_and_drawn(operators, tmp_path):
    """That of Pass@N does what the script does without one; another is another, drawn, kept with the run and compared
    when it resumes."""
    small = ["--prompts", 8, "--n", 4, "--steps", 1, "--eval-samples", 0]
    found = {}
    for mode, name in (("sft", ""), ("sft", "passn"), ("rl", ""), ("rl", "passn"), ("rl", "three")):
        own = ["--operator", f"{operators}:{name}"] if name else []
        samples = ["--samples", 4] if mode == "rl" else ["--train-problems", 8]
        folder = tmp_path / f"{mode}{name}"
        code, out, err = run(cat_passk.main, *small, *samples, "--mode", mode, *own, "--out", folder)
        assert code == 0 and f" for {name or 'Pass'}@4" in out, err
        line, = read_lines(folder)
        found[mode + name] = [line[key] for key in ("loss", "grad_norm", "w_max")]
    assert found["sftpassn"] == pytest.approx(found["sft"], rel=1e-4)
    assert found["rlpassn"] == pytest.approx(found["rl"], rel=1e-4)
    assert found["rlthree"] != pytest.approx(found["rl"], rel=1e-2)
    assert "operator own.py:three" in (folder / "adapter" / "README.md").read_text()
    assert run(cat_passk.main, "--out", folder, "--resume")[0] == 0
    operators.write_text(OPERATORS.replace("range(3, n", "range(2, n"))
    code, _, err = run(cat_passk.main, "--out", folder, "--resume")
    assert code == 2 and "own.py" in err and err.count("\n") == 1
    code, out, err = run(cat_passk.main, "--operator", f"{operators}:at_least_two", "--plot-weights", "--n", 8,
                         "--test-n", "2,8", "--out", tmp_path / "w")
    assert code == 0, err
    report = json.load(open(tmp_path / "w" / "weights.json"))
    assert report["training"] == "at_least_two@8 log" and [*report["tests"]] == ["at_least_two@2", "at_least_two@8"]
    p = 0.3005
    two = 1 - (1 - p) ** 8 - 8 * p * (1 - p) ** 7
    assert report["weights"][300] == pytest.approx(p * 56 * p * (1 - p) ** 6 / two)
    code, _, err = run(cat_passk.main, "--operator", f"{operators}:at_least_two", "--plot-weights", "--out",
                       tmp_path / "x")
    assert code == 2 and "at_least_two(p, 1) must increase" in err  # of two, with one sample


def test_types_of_final_coefficients():
    """Integers and booleans count as float32, doubles stay; a sequence form needs probabilities."""
    r = torch.tensor([[1, 0, 0, 1], [0, 0, 0, 1]])
    answers = [["a", "b", "b", "a"], ["b", "b", None, "a"]]
    for function in (lambda r: cat_passk.rl_coefficients(r, 3), lambda r: cat_bon.rl_coefficients(r, 3),
                     lambda r: cat_majority.rl_coefficients(r, answers, 3)):
        assert torch.equal(function(r), function(r.bool())) and function(r).dtype == torch.float32
        assert torch.allclose(function(r.double()).float(), function(r)) and function(r.double()).dtype == torch.float64
    for correction in (0, 1):  # of a single sample, no deviation and no warning
        assert common.standardise(torch.tensor([[3.0]]), correction=correction).tolist() == [[0.0]]
    for call in (lambda: cat_passk.rl_coefficients(r, 3, "log", "sequence"),
                 lambda: cat_passk.rl_coefficients(r, 3, "log", "other"),
                 lambda: cat_majority.rl_coefficients(r, answers[:1], 3),
                 lambda: cat_bon.rl_coefficients(r, 5, "exact")):
        with pytest.raises(ValueError):
            call()


def test_scale_across_prompts():
    """Two prompts that share theta: one prompt alone could not show a wrong scale."""
    easy, hard = [1.0, 1.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0]
    m, n = 4, 3
    for coefficients in (lambda r, _: r / m * pool_weight(r.sum(1, keepdim=True), m, n),
                         lambda r, _: bon_weight(r, n, "exact")):
        found = sum(expected_sum(THETA, r, m, coefficients) for r in (easy, hard))
        exact = gradient_of(lambda pi: sum(1 - (1 - success(r)(pi)) ** n for r in (easy, hard)), THETA)
        assert torch.allclose(found, exact, atol=1e-12)


# ------------------------------------------------------------------------------------------ ascent, sampled, tabular

def ascend(coefficients, prompts, steps=4000, lr=0.2, m=4):
    """Sampled ascent of sum_prompts sum_i c_i log pi(y_i) over one theta that the prompts [P, V] share -> pi, averaged
    over the second half of the steps."""
    generator = torch.Generator().manual_seed(0)
    theta, mean = torch.tensor([1.0, -1.0, 0.5, 0.5]), torch.zeros(4)
    for step in range(steps):
        p = torch.softmax(theta, 0)
        y = torch.multinomial(p, len(prompts) * m, replacement=True, generator=generator).view(-1, m)
        c = coefficients(prompts.gather(1, y), p[y])
        theta = theta + lr * (torch.zeros(4).index_add(0, y.flatten(), c.flatten()) - c.sum() * p)
        mean += p * (step >= steps // 2) / (steps - steps // 2)
    return mean


def test_tabular_policies_reach_each_optimum():
    """Prompt 1 is solved by completion 0, prompts 2 and 3 by completion 1. The mean reward is best at
    pi = (0, 1, 0, 0). E over prompts of pass@4 is best where (1-a)^3 = 2 (1-b)^3, a + b = 1. A majority of 3 is best
    at (0, 1, 0, 0)."""
    prompts = torch.tensor([[1.0, 0, 0, 0], [0, 1.0, 0, 0], [0, 1.0, 0, 0]])
    share = 2 ** (1 / 3) / (1 + 2 ** (1 / 3))
    pool = ascend(lambda r, _: r / 4 * pool_weight(r.sum(1, keepdim=True), 4, 4), prompts)
    assert pool[1] == pytest.approx(share, abs=0.06) and pool[2:].max() < 0.03
    best = ascend(lambda r, _: bon_weight(r, 4, "exact"), prompts)
    assert best[1] == pytest.approx(share, abs=0.06) and best[2:].max() < 0.03
    sequence = ascend(lambda r, q: r / 4 * passn_weight(q, 4, "raw"), prompts)  # one right completion: exact as well
    assert sequence[1] == pytest.approx(share, abs=0.06)
    # ascends sum of p grad log T: another optimum
    log = ascend(lambda r, q: r / 4 * passn_weight(q, 4, "log"), prompts)
    assert 0.5 < log[1] < 0.9 and log[0] > 0.1
    mean = ascend(lambda r, _: bon_weight(r, 1, "exact"), prompts)
    assert mean[1] > 0.9
    vote = ascend(lambda r, _: r / 4 * majority_weight((r.sum(1, keepdim=True) + 1) / 6, 3, 2, "raw"), prompts)
    assert vote[1] > 0.9
    one_max = ascend(lambda r, _: bon_weight(r, 4, "exact"), torch.tensor([[0.0, 1.0, 3.0, -2.0]]), steps=1000)
    assert one_max[2] > 0.8


@pytest.mark.parametrize("loss,target", [
    (lambda x: x.new_zeros(()) - x, (1 / 3, 2 / 3)), (lambda x: passn_sft_loss(x, 4), None),
    (lambda x: majority_sft_loss(x, 5, 3), None)])
def test_sft_reaches_the_minimum_of_its_loss(loss, target):
    """Gold answers a, b, b for one prompt: descent ends where a scan of the loss has its minimum. Cross-entropy matches
    the frequencies, Pass@4 is more even; majority is more one-sided."""
    total = lambda a: loss(a.log()) + 2 * loss((1 - a).log())
    theta = torch.zeros((), dtype=torch.float64, requires_grad=True)
    for _ in range(2000):
        slope, = torch.autograd.grad(total(torch.sigmoid(theta)), theta)
        theta = (theta - 0.2 * slope).detach().requires_grad_()
    grid = torch.linspace(0.001, 0.999, 999, dtype=torch.float64)
    best = grid[torch.stack([total(a) for a in grid]).argmin()].item()
    assert torch.sigmoid(theta).item() == pytest.approx(best, abs=2e-3)
    if target:
        assert best == pytest.approx(target[0], abs=2e-3)


def test_dynamic_threshold():
    """max(2, min(floor(N/2) + 1, floor(N c_max / M) + 1)), at most N; None is one wrong answer."""
    assert dynamic_threshold(["a", "b", "b", "c"], "a", 16) == 9  # 16 * 2/4 + 1
    assert dynamic_threshold(["a", "a", "b", "c"], "a", 16) == 5
    assert dynamic_threshold(["a", "a", "a", "a"], "a", 16) == 2  # nobody to beat
    assert dynamic_threshold(["b"] * 8, "a", 16) == 9  # never more than a majority
    assert dynamic_threshold(["a", None, None, None, "b", "c", "d", "e"], "a", 8) == 4
    assert dynamic_threshold(["a", "b", "b", "c"], {"b", "c"}, 8) == 3
    assert (dynamic_threshold(["a", "b", "b", "c"], [0, 1, 1, 1], 8)
            == dynamic_threshold(["a", "b", "b", "c"], torch.tensor([0., 1, 1, 1]), 8) == 3)
    assert dynamic_threshold([None, "a"], [1, 1], 8) == 5  # None cannot be right
    assert [dynamic_threshold(["a", "b"], "a", n) for n in (1, 2, 3)] == [1, 2, 2]
    assert isinstance(dynamic_threshold(["a"], "a", 4), int)


# --------------------------------------------------------------------------------------- the scripts, as users run them

SMALL = ["--prompts", "6", "--eval-samples", "4", "--eval-problems", "5"]


def sized(script, flags, n=4):
    """The flags with a small budget and few samples, where they act."""
    samples = ["--samples", "6"] if script is cat_bon or "sft" not in flags else []
    budget = [] if "--contrastive" in flags or "--n" in flags else ["--n", str(n)]
    return [*flags, *samples, *budget]


MODES = [(cat_passk, ["--mode", "sft", "--train-problems", "20"]),
         (cat_passk, ["--mode", "sft", "--target", "solution", "--task", "routes"]),
         (cat_passk, []), (cat_passk, ["--form", "raw", "--probability", "sequence", "--kl-coef", "0.1"]),
         (cat_passk, ["--form", "pool", "--rewards", "raw", "--no-normalise"]),
         (cat_majority, ["--mode", "sft", "--train-problems", "20"]),
         (cat_majority, ["--mode", "sft", "--threshold", "2", "--task", "countdown"]),
         (cat_majority, ["--mode", "sft", "--contrastive"]), (cat_majority, []),
         (cat_majority, ["--threshold", "2", "--form", "log", "--rewards", "raw", "--all-wrong", "0",
                         "--no-normalise"]),
         (cat_bon, []), (cat_bon, ["--form", "exact", "--rewards", "raw", "--kl-coef", "0.1"]),
         (cat_bon, ["--ranks", "past", "--fifo", "50"]), (cat_bon, ["--mode", "sft", "--train-problems", "8"]),
         (cat_bon, ["--task", "countdown", "--model", "tiny"])]
SCRIPTS = [cat_passk, cat_majority, cat_bon]


def name_of(value):
    return value.__name__ if hasattr(value, "__name__") else " ".join(value) or "default"


@pytest.mark.parametrize("script,flags", MODES, ids=name_of)
def test_every_mode_runs_reports_its_weights_and_resumes(script, flags, tmp_path):
    """Two steps at once against one step, a kill, and one more: bit for bit."""
    flags = sized(script, flags)
    code, out, err = run(script.main, *SMALL, "--steps", 2, "--out", tmp_path / "a", *flags)
    assert code == 0 and not err and "before" in out and "after" in out, err
    lines = read_lines(tmp_path / "a")
    assert [line["step"] for line in lines] == [1, 2] and all(math.isfinite(v) for line in lines for v in line.values())
    assert {"loss", "zero", "w_mean", "w_min", "w_median", "w_max", "w_even", "grad_norm", "samples_per_s",
            "memory_gb"} <= set(lines[0])
    assert ("gold" in lines[0]) != ({"reward", "kl", "tokens_per_s"} <= set(lines[0]))
    result = json.load(open(tmp_path / "a" / "result.json"))
    assert ("gold" in result["before"]) == (script is not cat_bon or "countdown" in flags)  # peptides have no gold
    adapter = safetensors.torch.load_file(tmp_path / "a" / "adapter" / "adapter_model.safetensors")
    assert max(t.abs().max() for n, t in adapter.items() if "lora_B" in n) > 0
    if "past" in flags:  # 36 rewards a step: the queue of 50 reaches into the step before
        assert len(json.loads(torch.load(tmp_path / "a" / "state.pt", weights_only=True)["kept"])["recent"]) == 50
        assert "recent" not in result

    class Killed(Exception):
        pass
    save = Folder.save

    def save_and_die(self, *args):
        save(self, *args)
        if self.step == 1:
            raise Killed
    Folder.save = save_and_die
    try:
        with pytest.raises(Killed):
            run(script.main, *SMALL, "--steps", 2, "--save-every", 1, "--out", tmp_path / "b", *flags)
    finally:
        Folder.save = save
    code, _, err = run(script.main, "--out", tmp_path / "b", "--resume")
    assert code == 0, err
    same_run(tmp_path / "a", tmp_path / "b")


def observed(script, flags, folder, monkeypatch):
    """One step with everything that its gradient depends on: (args, gradient, policy, prompts, completions, task,
    rewards)."""
    seen = {}
    score, load_task, rewards = common.score, tasks.load_task, tasks.Task.rewards

    def clip(parameters, max_norm):
        seen["gradient"] = torch.cat([p.grad.flatten().clone() for p in parameters])
        return 0.0

    def keep_score(policy, prompts, completions, *rest, **options):
        seen["policy"] = policy
        if torch.is_grad_enabled():
            seen["rows"] = list(zip(prompts, completions))
        return score(policy, prompts, completions, *rest, **options)

    def keep(name, function):
        def wrapped(*args, **options):
            seen[name] = function(*args, **options)
            return seen[name]
        return wrapped
    monkeypatch.setattr(processes, "clip_gradient", clip)
    monkeypatch.setattr(common, "score", keep_score)
    monkeypatch.setattr(load, "micro_batch", lambda lm: 60)  # tokens: a few micro-batches, as a large model has them
    monkeypatch.setattr(common, "sample", keep("drawn", common.sample))
    monkeypatch.setattr(script, "batch_of", keep("problems", batch_of))
    monkeypatch.setattr(tasks, "load_task", keep("task", load_task))
    monkeypatch.setattr(tasks.Task, "rewards", keep("rewards", rewards))
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self: None)
    flags = sized(script, flags)
    code, _, err = run(script.main, "--prompts", 6, "--steps", 1, "--eval-samples", 0, "--out", folder, *flags)
    assert code == 0, err
    return script.parser().parse_args(["--prompts", "6", *flags]), seen


def plain(policy, prompt, row, temperature):
    """log softmax(logits / temperature) of every token of a row [T, V], without padding or batches."""
    logits = policy.lm(input_ids=torch.tensor([prompt + row])).logits[0, len(prompt) - 1:-1] / temperature
    return torch.log_softmax(logits, -1)


def gradient_norm_of(policy, loss):
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, policy.parameters())])


@pytest.mark.parametrize("script,flags", [
    (cat_passk, []), (cat_passk, ["--probability", "sequence"]),
    (cat_passk, ["--form", "raw", "--temperature", "0.8"]),
    (cat_passk, ["--form", "pool", "--rewards", "raw", "--no-normalise"]),
    (cat_majority, ["--task", "countdown"]),
    (cat_majority, ["--task", "countdown", "--threshold", "2", "--form", "log", "--no-normalise", "--rewards", "raw"]),
    (cat_passk, ["--clip-weight", "0.5", "--correction", "1"]),
    (cat_majority, ["--task", "countdown", "--clip-weight", "0.5", "--correction", "1"]),
    (cat_bon, []), (cat_bon, ["--form", "exact", "--rewards", "raw"]),
    (cat_bon, ["--ranks", "past", "--correction", "1"]),
    (cat_bon, ["--ranks", "fifo", "--fifo", "20"])], ids=name_of)
def test_what_reaches_the_optimiser_in_rl(script, flags, tmp_path, monkeypatch):
    """-(1/B) sum_prompts sum_i (w_i r_i / M) grad log pi(y_i|x), all written out again from the docstrings, prompt by
    prompt, in plain rows."""
    args, seen = observed(script, flags, tmp_path / "r", monkeypatch)
    policy, task, M, n = seen["policy"], seen["task"], 6, 4
    rewards = [seen["rewards"][b * M:b * M + M] for b in range(6)]
    rows = seen["drawn"].lists()
    prompts = [policy.encode(p.prompt) for p in seen["problems"]]
    logps = [[plain(policy, prompts[b], y, args.temperature)[torch.arange(len(y)), y].sum() for y in rows[b]]
             for b in range(6)]

    flat = [x for r in rewards for x in r]
    recent = flat[-args.fifo:] if script is cat_bon and args.ranks == "fifo" else None
    weights, shaped, clipped = [], [], []
    for b, r in enumerate(rewards):
        c = sum(x == 1 for x in r)
        z = standard(r, recent or r, args.correction) if args.rewards == "standardised" else list(r)
        if script is cat_passk:
            p = [(c + 1) / (M + 2)] * M if args.probability == "success" else [x.exp().item() for x in logps[b]]
            raw = [n * (1 - x) ** (n - 1) for x in p]
            w = ([n * math.comb(M - c, n - 1) / math.comb(M - 1, n - 1)] * M if args.form == "pool" else
                 raw if args.form == "raw" else [x * y / (1 - (1 - x) ** n) for x, y in zip(p, raw)])
        elif script is cat_majority:
            texts = [task.extract(policy.decode(y)) for y in rows[b]]
            wrong = [t if x != 1 else object() for t, x in zip(texts, r)]
            strongest = max([wrong.count(t) for t, x in zip(wrong, r) if x != 1], default=0)
            k = max(2, min(n // 2 + 1, n * strongest // M + 1)) if args.threshold == "auto" else 2
            p = (c + 1) / (M + 2)
            w = [n * math.comb(n - 1, k - 1) * p ** (k - 1) * (1 - p) ** (n - k)] * M
            if args.form == "log":
                w = [x * p / sum(math.comb(n, j) * p ** j * (1 - p) ** (n - j) for j in range(k, n + 1)) for x in w]
            if c == 0:
                z = [-0.5] * M
        elif args.form == "rank":
            others = recent or ([] if args.ranks == "past" else r)  # the first step has no past
            count = len(r) - 1 if others is r else len(others)
            w = [n * ((sum(s < x for s in others) + 1) / (count + 2)) ** (n - 1) for x in r]
        else:
            w, z = [M * x for x in brute_bon(r, n)], [1.0] * M
        clip = getattr(args, "clip_weight", 0) or math.inf
        clipped.append(max(w) > clip)
        weights.append([min(x, clip) for x in w])
        shaped.append(z)
    line, = read_lines(tmp_path / "r")
    assert any(clipped) == ("--clip-weight" in flags)
    if script is not cat_bon:
        right = [sum(x == 1 for x in r) for r in rewards]
        assert line["pass@4"] == pytest.approx(sum(common.pass_at_k(M, c, 4) for c in right) / 6)
    products = [w * z for ws, zs in zip(weights, shaped) for w, z in zip(ws, zs)]
    assert line["zero"] == pytest.approx(products.count(0) / 36)
    mean = sum(map(sum, weights)) / 36 if getattr(args, "normalise", False) else 1
    loss = -sum(w * z / mean / M * logp for ws, zs, ls in zip(weights, shaped, logps)
                for w, z, logp in zip(ws, zs, ls)) / 6
    assert line["loss"] == pytest.approx(loss.item(), rel=1e-3, abs=1e-5)
    wanted = gradient_norm_of(policy, loss)
    assert wanted.norm() > 1e-3 and (seen["gradient"] - wanted).norm() < 2e-3 * wanted.norm()
    if script is cat_majority:
        assert any(sum(r) == 0 for r in rewards) and any(sum(r) for r in rewards)  # both branches were met


@pytest.mark.parametrize("script,flags", [(cat_passk, []), (cat_passk, ["--n", "1"]),
                                          (cat_majority, ["--task", "countdown", "--temperature", "0.8"]),
                                          (cat_majority, ["--contrastive"]),
                                          (cat_majority, ["--contrastive", "--task", "countdown"]),
                                          (cat_bon, ["--train-problems", "8"])], ids=name_of)
def test_what_reaches_the_optimiser_in_sft(script, flags, tmp_path, monkeypatch):
    """-(1/B) sum_prompts w grad log pi(y*), y* the gold completion with its end-of-sequence token."""
    args, seen = observed(script, ["--mode", "sft", *flags], tmp_path / "r", monkeypatch)
    policy, loss, eos, golden = seen["policy"], 0.0, seen["policy"].stop[0], 0.0
    if script is cat_bon:
        golds = json.load(open(tmp_path / "r" / "targets.json"))
        for p in seen["problems"]:  # the best of the samples of the starting policy
            again = common.sample(policy, [policy.encode(p.prompt)], 6, [common.seed_of("target", 0, p.id)],
                                  1.0, 16).lists()[0]
            values = [seen["task"].verify(p, policy.decode(y)) for y in again]
            assert golds[p.id] == again[values.index(max(values))]
    for i, p in enumerate(seen["problems"]):
        y = golds[p.id] if script is cat_bon else policy.encode(p.solution) + [eos]
        assert (policy.encode(p.prompt), y) == seen["rows"][i]
        table = plain(policy, policy.encode(p.prompt), y, args.temperature)
        logp = table[torch.arange(len(y)), y]
        golden += logp.sum().item() / 6
        if getattr(args, "contrastive", False):
            u = torch.rand(max(len(row) for _, row in seen["rows"]), 4,
                           generator=torch.Generator().manual_seed(common.seed_of("rivals", 0, 1, i)))
            for t, gold in enumerate(y):
                rest = table[t].exp().detach().double()
                rest[gold] = 0
                rivals = [int((rest.cumsum(0) / rest.sum() <= v).sum()) for v in u[t].tolist()]
                assert gold not in rivals
                loss = (loss - 0.5 * logp[t]
                        - 0.5 * sum(torch.log(torch.sigmoid(logp[t] - table[t, v])) for v in rivals) / 4)
            continue
        k = args.n // 2 + 1 if script is cat_majority else 1
        loss = loss + float(exact_majority(logp.sum().item(), args.n, k)[1]) * logp.sum()
    assert read_lines(tmp_path / "r")[0]["gold"] == pytest.approx(golden, rel=1e-4)
    wanted = gradient_norm_of(policy, loss / 6)
    assert (seen["gradient"] - wanted).norm() < 2e-3 * wanted.norm()


def test_the_target_is_the_first_of_equals():
    """Where several samples are right, or none, the first of them is imitated, whatever its length."""
    policy, task = load_policy("tiny", bits=32), tasks.load_task("countdown")
    targets = cat_bon.find_targets(policy, task, task.train[:8], 12, 3.0, seed=3)  # hot: of many lengths
    kinds = set()
    for p in task.train[:8]:
        seed = common.seed_of("target", 3, p.id)
        drawn, = common.sample(policy, [policy.encode(p.prompt)], 12, [seed], 3.0, 12).lists()
        right = [y for y in drawn if task.verify(p, policy.decode(y))]
        assert targets[p.id] == (right or drawn)[0]
        kinds.add(any(len(y) != len(targets[p.id]) for y in right or drawn))
    assert True in kinds


def test_the_queue_keeps_the_latest_rewards(tmp_path, monkeypatch):
    """36 rewards a step, a queue of 50: after two steps those of the second and the last 14 of the first, in order."""
    rewards, seen = processes.rewards, []
    monkeypatch.setattr(processes, "rewards", lambda *args: seen.extend((found := rewards(*args)).tolist()) or found)
    code, _, err = run(cat_bon.main, "--ranks", "fifo", "--fifo", 50, "--prompts", 6, "--samples", 6, "--steps", 2,
                       "--eval-samples", 0, "--out", tmp_path / "r")
    assert code == 0 and len(seen) == 72, err
    kept = json.loads(torch.load(tmp_path / "r" / "state.pt", weights_only=True)["kept"])["recent"]
    assert kept == pytest.approx(seen[-50:], abs=1e-6) and len(set(kept)) > 20


@pytest.mark.parametrize("ranks", ["fifo", "past"])
def test_what_ranks_are_taken_against(ranks, tmp_path, monkeypatch):
    """This step's rewards are among them, and mean and deviation theirs, or neither."""
    seen, given, rewards, coefficients = [], [], processes.rewards, cat_bon.rl_coefficients
    monkeypatch.setattr(processes, "rewards", lambda *args: seen.append((found := rewards(*args)).tolist()) or found)
    monkeypatch.setattr(cat_bon, "rl_coefficients",
                        lambda r, n, form, recent, on, pool, *more: given.append((recent, pool))
                        or coefficients(r, n, form, recent, on, pool, *more))
    code, _, err = run(cat_bon.main, "--ranks", ranks, "--prompts", 2, "--samples", 3, "--steps", 2, "--eval-samples",
                       0, "--out", tmp_path / "r")
    assert code == 0, err
    first, both = pytest.approx(seen[0], abs=1e-6), pytest.approx(seen[0] + seen[1], abs=1e-6)
    assert given == ([(first, first), (both, both)] if ranks == "fifo" else [([], None), (first, None)])


def test_the_weight_of_the_mode_is_drawn(tmp_path):
    """cat_bon: of a rank in rl, of Pass@N on the best target in sft."""
    for mode, label, weight in (("rl", "best of 8", lambda x: 8 * x ** 7),
                                ("sft", "Pass@8 log", lambda x: passn_weight(x, 8, "log"))):
        code, _, err = run(cat_bon.main, "--plot-weights", "--mode", mode, "--n", 8, "--out", tmp_path / mode)
        assert code == 0, err
        report = json.load(open(tmp_path / mode / "weights.json"))
        assert report["training"] == label
        assert report["weights"][300] == pytest.approx(weight(0.3005)) and report["weights"][900] > 0


def test_the_commands_of_the_docstrings_are_accepted():
    """Those nearest to the authors' code, and all others."""
    found = []
    for script in SCRIPTS:
        for block in re.findall(r"python (cat_\w+\.py)((?: .*)?(?:\n {8}--.*)*)", script.__doc__):
            assert block[0] == script.__name__ + ".py"
            args = script.parser().parse_args(shlex.split(block[1]))
            script.check_flags(args)
            found.append((script, getattr(args, "correction", 0)))
    assert [found.count((script, 1)) for script in SCRIPTS] == [1, 1, 1] and len(found) == 13


def test_what_does_nothing_may_be_asked_to_do_nothing():
    """--kl-prompts 0 watches no KL, and where there is none to watch that is what happens."""
    for script in SCRIPTS:
        script.check_flags(script.parser().parse_args(["--mode", "sft", "--kl-prompts", "0", "--kl-coef", "0"]))


@pytest.mark.parametrize("script", SCRIPTS, ids=name_of)
def test_plot_weights(script, tmp_path):
    code, out, err = run(script.main, "--plot-weights", "--n", 8, "--test-n", "1,8,32", "--out", tmp_path / "w")
    assert code == 0 and not err and set(os.listdir(tmp_path / "w")) == {"weights.png", "weights.json"}
    report = json.load(open(tmp_path / "w" / "weights.json"))
    one, same, more = report["tests"].values()
    assert same == {"alignment": pytest.approx(1), "waste": [], "starvation": []} and "alignment 1.000" in out
    if script is cat_passk:  # cosine of w_8 and 1, and the regions, from the formula
        grid = [(i + 0.5) / 1000 for i in range(1000)]
        w = [8 * p * (1 - p) ** 7 / (1 - (1 - p) ** 8) for p in grid]
        assert one["alignment"] == pytest.approx(sum(w) / math.sqrt(1000 * sum(x * x for x in w)))
        edge = next(p for p, x in zip(grid, w) if x < 0.05 * w[0])
        assert one["starvation"][0] == pytest.approx([edge, 1], abs=2e-3) and one["waste"] == []
        assert more["waste"][0][1] == pytest.approx(edge, abs=2e-3) and more["starvation"] == []
    if script is cat_bon:  # q^7 against 1: cosine sqrt(15) / 8
        assert one["alignment"] == pytest.approx(math.sqrt(15) / 8, abs=1e-3)


def test_warm_up_then_rl_and_the_sign_of_degeneration(tmp_path):
    """--adapter chains the stages; at n = 1 every weight is 1, and w_even says so."""
    assert run(cat_passk.main, "--mode", "sft", *SMALL, "--n", 1, "--steps", 1, "--out", tmp_path / "a")[0] == 0
    assert read_lines(tmp_path / "a")[0]["w_even"] == 1
    code, _, err = run(cat_passk.main, *SMALL, "--n", 4, "--samples", 6, "--steps", 1, "--adapter", tmp_path / "a",
                       "--out", tmp_path / "b")
    assert code == 0, err
    after, before = (json.load(open(tmp_path / x / "result.json"))[row] for x, row in (("a", "after"), ("b", "before")))
    assert before["gold"] == after["gold"] and abs(before["kl"]["mean"]) < 1e-4
    assert read_lines(tmp_path / "b")[0]["w_even"] < 1


def test_the_defaults_weigh_samples(tmp_path):
    """The first step of either script without flags of its algorithm: samples of the policy, weights that differ."""
    for script in (cat_passk, cat_majority):
        out = tmp_path / script.__name__
        assert run(script.main, "--steps", 1, "--eval-samples", 0, "--out", out)[0] == 0
        line, = read_lines(out)
        assert "reward" in line and line["w_even"] < 0.5 and line["w_max"] > 1.5 * line["w_median"], script
    code, _, err = run(cat_passk.main, "--probability", "sequence", "--steps", 1, "--eval-samples", 0,
                       "--out", tmp_path / "s")  # the paper's form, of which the docstring says that it hardly does
    line, = read_lines(tmp_path / "s")
    assert code == 0 and line["w_max"] < 1.5 * line["w_median"], err


def test_a_degenerate_objective_is_named(tmp_path, capsys):
    """Sequences far less probable than 1/N all have weight 1: the step line says so, and only then."""
    small = ["--steps", "1", "--prompts", "8", "--eval-samples", "0"]
    cat_bon.main(["--mode", "sft", "--n", "8", "--train-problems", "8", *small, "--out", str(tmp_path / "a")])
    assert "all weights are nearly equal" in capsys.readouterr().out
    cat_passk.main(["--mode", "sft", "--n", "16", *small, "--out", str(tmp_path / "b")])
    assert "all weights are nearly equal" not in capsys.readouterr().out


def test_steps_that_teach_nothing_are_named(tmp_path, capsys):
    """Once, after the fifth in a row; not where samples had weight."""
    data = tmp_path / "p.jsonl"
    data.write_text(json.dumps({"prompt": "c1,2>", "answer": "999", "split": "train"}) + "\n")
    flags = ["--prompts", "1", "--samples", "8", "--eval-samples", "0", "--max-new-tokens", "4"]
    for steps, said in ((4, 0), (7, 1)):
        ppo_passk.main([*flags, "--data", str(data), "--steps", str(steps), "--out", str(tmp_path / str(steps))])
        assert capsys.readouterr().out.count("nothing was learned") == said
    ppo_passk.main(["--prompts", "16", "--steps", "6", "--eval-samples", "0", "--out", str(tmp_path / "c")])
    assert "nothing was learned" not in capsys.readouterr().out


def test_problems_without_a_gold_completion_are_counted(tmp_path):
    data = tmp_path / "p.jsonl"
    data.write_text("".join(json.dumps({"prompt": f"c{a},2>", "answer": str(a), "split": "train",
                                        **({"solution": f"{a}+2"} if a < 6 else {})}) + "\n"
                            for a in range(1, 9)))
    flags = ["--mode", "sft", "--data", data, "--steps", 1, "--prompts", 4, "--eval-samples", 0, "--max-new-tokens", 4]
    code, out, err = run(cat_passk.main, *flags, "--target", "solution", "--out", tmp_path / "a")
    assert code == 0 and "left out 3 of 8" in out, err
    code, out, err = run(cat_passk.main, *flags, "--out", tmp_path / "c")  # the answer alone: a box
    assert code == 2 and "8 of 8 gold completions cannot be tokenized" in out and "8 cannot be tokenized" in err
    letters = make_tiny.CHARACTERS + "\\boxed{}"  # of which a box is made
    model = llama_folder(tmp_path / "m", make_tiny.make_tokenizer(letters))
    code, out, err = run(cat_passk.main, *flags, "--model", model, "--out", tmp_path / "b")
    assert code == 0 and "left out" not in out and "cannot be tokenized" not in out, err
    assert read_lines(tmp_path / "b")[0]["length"] == len("\\boxed{5}") + 1  # one token per character, and the end


@pytest.mark.parametrize("script,flags,words", [
    (cat_passk, ["--form", "pool", "--probability", "sequence"], "--probability success"),
    (cat_passk, ["--form", "pool", "--samples", "4"], "--samples 4"),
    (cat_passk, ["--form", "pool", "--operator", "own.py:T"], "--operator"),
    (cat_passk, ["--operator", "own.py:T"], "there is no such file"), (cat_passk, ["--operator", "T"], "FILE.py:NAME"),
    (cat_passk, ["--n", "0"], "--n"), (cat_passk, ["--mode", "sft", "--kl-coef", "1"], "--kl-coef"),
    (cat_passk, ["--task", "peptide", "--model", "tiny_peptide"], "graded"),
    (cat_passk, ["--prompts", "1"], "--normalise"), (cat_passk, ["--test-n", "a"], "--test-n"),
    (cat_passk, ["--train-problems", "-1"], "--train-problems"), (cat_majority, ["--threshold", "17"], "--threshold"),
    (cat_majority, ["--threshold", "x"], "--threshold"), (cat_majority, ["--threshold", "0"], "--threshold"),
    (cat_majority, ["--threshold", "²"], "--threshold"),
    (cat_majority, ["--contrastive"], "--contrastive"),
    (cat_majority, ["--all-wrong", "nan"], "--all-wrong"), (cat_bon, ["--form", "exact", "--ranks", "fifo"], "fifo"),
    (cat_bon, ["--form", "exact", "--samples", "4"], "--samples 4"), (cat_bon, ["--fifo", "0"], "--fifo"),
    *((script, ["--mode", "sft", *flag], flag[0].replace("--no-", "--")) for script, flags in (
        (cat_passk, "--samples 16,--form log,--probability success,--rewards raw,--no-normalise,--kl-prompts 8,"
                    "--correction 1,--clip-weight 50"),
        (cat_majority, "--samples 8,--form raw,--rewards raw,--all-wrong 0,--normalise,--kl-prompts 8,"
                       "--clip-weight 10"),
        (cat_bon, "--form rank,--ranks prompt,--fifo 9,--rewards raw,--kl-prompts 8"))
      for flag in map(str.split, flags.split(","))),
    (cat_majority, ["--mode", "sft", "--contrastive", "--n", "16"], "--n"),
    (cat_majority, ["--mode", "sft", "--contrastive", "--threshold", "auto"], "--threshold"),
    (cat_majority, ["--mode", "sft", "--contrastive", "--plot-weights"], "--contrastive"),
    (cat_bon, ["--fifo", "9"], "--fifo"), (cat_bon, ["--form", "exact", "--plot-weights"], "--form exact"),
    *((script, ["--rewards", "raw", "--correction", "1"], "--correction") for script in SCRIPTS),
    (cat_passk, ["--clip-weight", "-1"], "--clip-weight"), (cat_majority, ["--clip-weight", "nan"], "--clip-weight"),
    (cat_bon, ["--form", "exact", "--ranks", "past"], "past"),
    (cat_passk, ["--test-n", "4"], "--test-n"), (cat_passk, ["--plot-weights", "--steps", "4"], "--steps"),
    (cat_passk, ["--plot-weights", "--out", "/proc/no/w"], "/proc/no/w")], ids=name_of)
def test_errors_are_one_sentence(script, flags, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, err = run(script.main, *flags)
    assert code == 2 and words in err and err.count("\n") == 1 and "Traceback" not in err
    assert not os.path.exists("runs")


def test_the_peptide_base_is_small_and_as_good_as_it_says(tmp_path):
    folder = os.path.join(ROOT, "models", "tiny_peptide")
    assert sum(os.path.getsize(os.path.join(folder, n)) for n in os.listdir(folder)) < 1e6
    recorded = json.load(open(os.path.join(folder, "result.json")))["peptide"]
    task = tasks.load_task("peptide")
    found, _ = evaluate.evaluate(load_policy("tiny_peptide", bits=32), task, task.valid[:100], samples=16,
                                 ks=(1, 8), seed=5)
    for name in ("max@1", "max@8"):
        assert abs(found[name]["mean"] - recorded[name]["mean"]) < 4 * found[name]["se"]
    assert recorded["max@8"]["mean"] > recorded["max@1"]["mean"] + 0.3
    code, _, err = run(make_tiny.main, "--tasks", "peptide,routes", "--out", tmp_path / "t")
    assert code == 2 and "peptide" in err and err.count("\n") == 1


@pytest.mark.parametrize("standardised", [False, True])
def test_what_a_reward_for_nobody_right_teaches(standardised):
    """A reward a where all M are wrong adds -a w (1-p)^(M-1) grad p, w the weight there: p is pushed up."""
    M, n, k, a = 3, 5, 2, -0.5
    with_it, without = (expected_sum(THETA, RIGHT, M, lambda r, _: cat_majority.rl_coefficients(
        r, None, n, "raw", k, standardised, all_wrong, False)) for all_wrong in (a, 0.0))
    p = success(RIGHT)(torch.softmax(THETA, 0))
    wanted = -a * majority_weight(1 / (M + 2), n, k, "raw") * (1 - p) ** (M - 1) * gradient_of(success(RIGHT), THETA)
    assert torch.allclose(with_it - without, wanted, atol=1e-12) and wanted.abs().max() > 1e-3
