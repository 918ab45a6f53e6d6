"""The paper's equations in ppo_passk.py against brute force: exact expectations over all sample tuples, in float64."""
import itertools
import math
import random
from types import SimpleNamespace

import pytest
import torch

from ppo_passk import advantages, budget, ends, k_of, kl_coefficients, ppo_loss, vote

# A tabular policy over V completions is softmax(theta). Each completion has a reward and an answer.

def instances():
    """Name, rewards of the completions, their answers."""
    return [("binary", [1, 0, 0], ["a", "b", "c"]),
            ("binary, two right", [1, 0, 1], ["a", "b", "c"]),
            ("shared answers", [1, 0, 1], ["a", "b", "a"]),
            ("no answer", [1, 0, 0], ["a", None, "b"]),
            ("graded", [0.3, -1.2, 2.5], ["a", "b", "c"]),
            ("graded, tied", [0.7, 0.7, -0.4], ["a", "b", None])]


def brute_f(rewards, answers, objective):
    """The objective's value for one tuple, written independently of the script; nothing at all gives 0."""
    if not rewards:
        return 0.0
    if objective == "mean":
        return sum(rewards) / len(rewards)
    if objective == "passk":
        return max(rewards)
    keys = [a for a in answers if a is not None]
    if not keys:
        return 0.0
    top = max(keys.count(a) for a in keys)
    winners = sorted({a for a in keys if keys.count(a) == top})
    value = {a: sum(r for r, b in zip(rewards, answers) if b == a) / top for a in winners}
    return sum(value.values()) / len(winners)


def exact_gradient(theta, rewards, answers, k, objective):
    """Autograd gradient of the exact objective: sum over all V^k tuples."""
    if objective == "maxrl":
        return sum(exact_gradient(theta, rewards, answers, j, "passk") / j for j in range(1, k + 1))
    theta = theta.clone().requires_grad_()
    logp = torch.log_softmax(theta, 0)
    J = sum(torch.stack([logp[y] for y in ys]).sum().exp()
            * brute_f([rewards[y] for y in ys], [answers[y] for y in ys], objective)
            for ys in itertools.product(range(len(rewards)), repeat=k))
    return torch.autograd.grad(J, theta)[0] if J.requires_grad else torch.zeros_like(theta)


def expected_estimate(theta, rewards, answers, n, k, objective, estimator):
    """Exact expectation of sum_i A_i grad log pi(y_i) over all V^n tuples."""
    p = torch.softmax(theta, 0)
    V = len(p)
    tuples = list(itertools.product(range(V), repeat=n))
    r = torch.tensor([[rewards[y] for y in ys] for ys in tuples], dtype=torch.float64)
    A = advantages(r, k, objective, [[answers[y] for y in ys] for ys in tuples], estimator)
    grads = torch.eye(V, dtype=torch.float64) - p  # row y: grad of log p[y]
    weight = torch.stack([p[list(ys)].prod() for ys in tuples])
    return (weight[:, None] * torch.einsum("ti,tiv->tv", A, grads[torch.tensor(tuples)])).sum(0)


CASES = [(k, n) for k in (1, 2, 3, 4) for n in (k, k + 1, k + 2, 2 * k) if n <= 6]


@pytest.mark.parametrize("estimator", ["loo", "centred", "plain"])
@pytest.mark.parametrize("objective", ["mean", "passk", "maxrl", "majority"])
def test_expectation_is_the_exact_gradient(objective, estimator):
    generator, tried = torch.Generator().manual_seed(0), 0
    for name, rewards, answers in instances():
        theta = torch.randn(3, generator=generator, dtype=torch.float64)
        for k, n in CASES:
            if estimator == "centred" and n == k or objective == "majority" and n % k:
                continue
            exact = exact_gradient(theta, rewards, answers, k, objective)
            found = expected_estimate(theta, rewards, answers, n, k, objective, estimator)
            assert torch.allclose(found, exact, atol=1e-12), (name, k, n, found, exact)
            tried += 1
    assert tried >= 18


def test_scale_across_prompts():
    """Two prompts that share theta: with binary rewards one prompt alone cannot show a wrong scale."""
    theta = torch.tensor([0.3, -0.8, 0.1], dtype=torch.float64)
    p = torch.softmax(theta, 0)
    for objective, k, n in (("passk", 2, 3), ("passk", 3, 3), ("mean", 2, 3), ("majority", 3, 3), ("maxrl", 2, 3),
                            ("maxrl", 3, 3)):
        easy, hard = ([1, 1, 0], ["a", "a", "b"]), ([0, 1, 0], ["a", "b", "c"])
        exact = sum(exact_gradient(theta, *task, k, objective) for task in (easy, hard))
        found = torch.zeros(3, dtype=torch.float64)
        for y in itertools.product(itertools.product(range(3), repeat=n), repeat=2):
            r = torch.tensor([[task[0][i] for i in row] for task, row in zip((easy, hard), y)], dtype=torch.float64)
            A = advantages(r, k, objective, [[task[1][i] for i in row] for task, row in zip((easy, hard), y)])
            weight = p[list(y[0] + y[1])].prod()
            for row, a in zip(y, A):
                for i, c in zip(row, a):
                    g = -p.clone()
                    g[i] += 1
                    found += weight * c * g
        assert torch.allclose(found, exact, atol=1e-12), objective


def brute_advantages(r, k, objective, answers, estimator):
    """The docstring's definitions, literally, for one prompt."""
    n = len(r)
    if objective == "maxrl":
        return sum(brute_advantages(r, j, "passk", answers, estimator) / j for j in range(1, k + 1))
    f = lambda I: brute_f([r[i] for i in I], [answers[i] for i in I], objective)
    subsets = (list(itertools.combinations(range(n), k)) if objective != "majority"
               else [tuple(range(g, g + k)) for g in range(0, n, k)])
    out = []
    for i in range(n):
        within, without = [I for I in subsets if i in I], [I for I in subsets if i not in I]
        if estimator == "loo":
            out.append(sum(f(I) - f([j for j in I if j != i]) for I in within) / len(subsets))
        else:
            q = sum(map(f, within)) / len(within)
            rho = sum(map(f, without)) / len(without) if estimator == "centred" else 0.0
            out.append(k / n * (q - rho))
    return torch.tensor(out, dtype=torch.float64)


@pytest.mark.parametrize("estimator", ["loo", "centred", "plain"])
@pytest.mark.parametrize("objective", ["mean", "passk", "maxrl", "majority"])
def test_single_draws_match_the_definition(objective, estimator):
    rng = random.Random(1)
    for trial in range(60):
        n, B = rng.randint(1, 8), 3
        k = rng.choice([k for k in range(1, n + 1) if objective != "majority" or n % k == 0])
        if estimator == "centred" and n == k:
            continue
        draw = rng.choice([lambda: float(rng.random() < 0.4), lambda: rng.choice([-1.0, 0.5, 0.5, 2.0]),
                           lambda: rng.gauss(0, 3)])
        r = [[draw() for _ in range(n)] for _ in range(B)]
        answers = [[rng.choice(["a", "b", "c", None]) for _ in range(n)] for _ in range(B)]
        found = advantages(torch.tensor(r, dtype=torch.float64), k, objective, answers, estimator)
        for b in range(B):
            assert torch.allclose(found[b], brute_advantages(r[b], k, objective, answers[b], estimator),
                                  atol=1e-12), (k, n, r[b])


def test_closed_form_of_binary_passk():
    """A = C(n-c, k-1) / C(n, k) on each of the c right samples, exactly 0 on the wrong ones."""
    for n, k in ((16, 8), (9, 3), (64, 32)):
        for c in range(n + 1):
            A = advantages(torch.tensor([[1.0] * c + [0.0] * (n - c)], dtype=torch.float64), k, "passk")[0]
            assert torch.allclose(
                A[:c], torch.full((c,), math.comb(n - c, k - 1) / math.comb(n, k), dtype=torch.float64))
            assert (A[c:] == 0).all()


def success(theta, rewards):
    """-sum_{j<=T} (1-p)^j / j as the paper has it, with p the chance of a right completion -> its gradient, by T."""
    theta = theta.clone().requires_grad_()
    p = torch.softmax(theta, 0) @ torch.tensor(rewards, dtype=torch.float64)
    return lambda T: torch.autograd.grad(-sum((1 - p) ** j / j for j in range(1, T + 1)), theta, retain_graph=True)[0]


def test_maxrl():
    """At k = n each of K right samples gets 1/K and no wrong one anything; less 1/n for all prompts it stays unbiased;
    where none is right it may stay 0, and what is expected is then of order n - 1. The objective is the paper's."""
    theta = torch.tensor([0.3, -0.8, 0.1], dtype=torch.float64)
    for n in (1, 3, 16):
        right = torch.ones(n, n, dtype=torch.float64).tril()  # 1 to n right ones
        r = torch.cat([torch.zeros(1, n), right])
        share = r / r.sum(1, keepdim=True).clamp(min=1)
        found = {name: advantages(r, n, "maxrl", estimator=name) for name in ("loo", "constant", "solved")}
        assert torch.allclose(found["loo"], share, atol=1e-14) and (found["loo"][r == 0] == 0).all()
        assert torch.allclose(found["constant"], share - 1 / n, atol=1e-14)
        assert torch.equal(found["solved"][1:], found["constant"][1:])
        assert (found["solved"][[0, n]] == 0).all()  # none right, all right: never scored
    for rewards in ([1, 0, 0], [1, 0, 1]):
        wanted = success(theta, rewards)
        for n in (1, 2, 4):
            estimate = lambda name: expected_estimate(theta, rewards, "abc", n, n, "maxrl", name)
            assert torch.allclose(estimate("loo"), wanted(n), atol=1e-12)
            assert torch.allclose(estimate("constant"), wanted(n), atol=1e-12)
            less = wanted(n - 1) if n > 1 else torch.zeros(3, dtype=torch.float64)
            assert torch.allclose(estimate("solved"), less, atol=1e-12)
            assert not torch.allclose(less, wanted(n), rtol=1e-3)
    graded = [0.3, -1.2, 2.5]
    for n in (2, 3):
        exact = exact_gradient(theta, graded, "abc", n, "maxrl")
        above = exact_gradient(theta, [1, 0, 1], "abc", n, "passk") / n
        for name, bias in (("constant", 0), ("solved", above)):
            found = expected_estimate(theta, graded, "abc", n, n, "maxrl", name)
            assert torch.allclose(found, exact - bias, atol=1e-12)


def test_k_that_falls():
    """From the first to the last, both reached, each in between about equally often."""
    budgets = lambda k, steps: [k_of(number, SimpleNamespace(k=k, steps=steps)) for number in range(1, steps + 1)]
    assert budgets(8, 3) == [8, 8, 8] and ends(8) == (8, 8) and ends("8:1") == (8, 1)
    assert budgets("8:1", 8) == [8, 7, 6, 5, 4, 3, 2, 1] and budgets("4:1", 1) == [4]
    found = budgets("8:1", 200)
    assert found == sorted(found, reverse=True) and found[0] == 8 and found[-1] == 1
    assert all(28 <= found.count(k) <= 29 for k in range(2, 8)) and 14 <= found.count(8) <= 15
    assert [budget(text) for text in ("8", "8:1")] == [8, "8:1"]
    for text in ("8:", ":1", "8:x", "8.5", ""):
        with pytest.raises(ValueError):
            budget(text)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_equal_rewards_weigh_exactly_nothing(dtype):
    """Rounding noise would keep samples in the update that the objective does not need."""
    for value in (0.0, 1.0, 0.1, 1 / 3, -7.7):
        r = torch.full((2, 12), value, dtype=dtype)
        for k in (2, 3, 6):
            for estimator in ("loo", "centred"):
                for objective in ("mean", "passk"):
                    assert (advantages(r, k, objective, estimator=estimator) == 0).all(), (
                        value, k, estimator, objective)


def test_types_and_limits():
    r = torch.tensor([[1, 0, 0, 1]])
    assert advantages(r, 2, "passk").dtype == torch.float32
    assert advantages(r.bool(), 2, "passk").tolist() == advantages(r, 2, "passk").tolist() != [[0, 0, 0, 0]]
    assert advantages(r.double(), 2, "passk").dtype == torch.float64
    assert advantages(torch.tensor([[0.7]]), 1, "passk").item() == pytest.approx(0.7)  # k = n = 1: A = r
    assert advantages(torch.tensor([[0.7]]), 1, "mean").item() == pytest.approx(0.7)
    assert advantages(torch.tensor([[0.7]]), 1, "majority", [["a"]]).item() == pytest.approx(0.7)
    large = advantages((torch.rand(4, 256) < 0.1).float(), 128, "passk")
    assert large.isfinite().all() and (large >= 0).all() and large.dtype == torch.float32


@pytest.mark.parametrize("call", [
    lambda r: advantages(r, 0, "passk"), lambda r: advantages(r, 5, "passk"), lambda r: advantages(r, 2, "best"),
    lambda r: advantages(r, 2, "passk", estimator="ppo"), lambda r: advantages(r, 2, "majority"),
    lambda r: advantages(r, 3, "majority", [["a"] * 4]), lambda r: advantages(r, 2, "majority", [["a"] * 3]),
    lambda r: advantages(r, 4, "passk", estimator="centred"), lambda r: advantages(r[0], 2, "passk"),
    lambda r: advantages(r, 4, "maxrl", estimator="centred"), lambda r: advantages(r, 3, "maxrl", estimator="constant"),
    lambda r: advantages(r, 4, "passk", estimator="solved"), lambda r: advantages(r, 0, "maxrl")])
def test_bad_arguments(call):
    with pytest.raises(ValueError):
        call(torch.tensor([[1.0, 0.0, 0.0, 1.0]]))


def test_vote():
    assert vote(["a", "b", "a"], [1.0, 0.0, 1.0]) == 1.0
    assert vote(["a", "b"], [1.0, 0.0]) == 0.5
    assert vote([None, "a", None], [0.0, 1.0, 0.0]) == 1.0
    assert vote([None, None], [1.0, 1.0]) == 0.0


# ----------------------------------------------------------------------------------------------------------- PPO and KL

def test_ppo_gradient_at_ratio_one():
    """Sum over samples AND tokens: -sum_i A_i grad log pi(y_i), whatever the padding holds."""
    logits = torch.randn(3, 4, 5, dtype=torch.float64, requires_grad=True)
    chosen = torch.randint(5, (3, 4))
    mask = torch.tensor([[1., 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]], dtype=torch.float64)
    A = torch.tensor([0.5, -2.0, 0.0], dtype=torch.float64)
    logps = torch.log_softmax(logits, -1).gather(-1, chosen[..., None])[..., 0]
    found, = torch.autograd.grad(ppo_loss(logps, logps.detach(), mask, A, 0.2), logits, retain_graph=True)
    wanted, = torch.autograd.grad(-(A[:, None] * logps * mask).sum(), logits)
    assert torch.allclose(found, wanted, atol=1e-14) and wanted.abs().sum() > 0


@pytest.mark.parametrize("ratio,A,value,slope", [
    (1.5, 1.0, -1.2, 0.0), (1.5, -1.0, 1.5, 1.5), (0.5, 1.0, -0.5, -0.5), (0.5, -1.0, 0.8, 0.0),
    (1.1, 1.0, -1.1, -1.1)])
def test_the_corners_of_the_clip(ratio, A, value, slope):
    logp = torch.tensor([[math.log(ratio)]], dtype=torch.float64, requires_grad=True)
    one = torch.ones(1, 1, dtype=torch.float64)
    loss = ppo_loss(logp, torch.zeros_like(one), one, torch.tensor([A], dtype=torch.float64), 0.2)
    loss.backward()
    assert loss.item() == pytest.approx(value) and logp.grad.item() == pytest.approx(slope)


def test_kl_direction():
    """The expected gradient is that of KL(pi || ref), by enumeration, and not that of KL(ref || pi)."""
    theta = torch.tensor([0.5, -1.0, 0.2], dtype=torch.float64, requires_grad=True)
    ref = torch.log_softmax(torch.tensor([-0.4, 0.3, 0.9], dtype=torch.float64), 0)
    logp = torch.log_softmax(theta, 0)
    exact, = torch.autograd.grad((logp.exp() * (logp - ref)).sum(), theta, retain_graph=True)
    reverse, = torch.autograd.grad((ref.exp() * (ref - logp)).sum(), theta)
    p, gap = logp.detach().exp(), (logp - ref).detach()
    for n in (1, 2, 3):
        found = torch.zeros(3, dtype=torch.float64)
        for ys in itertools.product(range(3), repeat=n):
            c = kl_coefficients(gap[list(ys)][None])[0]
            for y, coefficient in zip(ys, c):
                found += p[list(ys)].prod() * coefficient * (torch.eye(3, dtype=torch.float64)[y] - p)
        assert torch.allclose(found, exact, atol=1e-12)
        assert not torch.allclose(found, reverse, atol=1e-2)


def test_tabular_policy_climbs_to_the_maximum():
    """Sampled ascent on two prompts with one shared theta reaches the optimum of each objective: pass@2 wants both
    right answers kept alive, the mean is content with either."""
    generator = torch.Generator().manual_seed(0)
    R = torch.tensor([[1., 0, 0], [0., 1, 0]])  # prompt 1 is solved by completion 0, prompt 2 by completion 1
    theta = torch.tensor([1.0, -1.0, 0.5])
    for step in range(3000):
        p = torch.softmax(theta, 0)
        y = torch.multinomial(p, 8, replacement=True, generator=generator).view(2, 4)
        A = advantages(R.gather(1, y), 2, "passk")
        theta = theta + 0.2 * torch.zeros(3).index_add(0, y.flatten(), A.flatten()) - 0.2 * A.sum() * p
    p = torch.softmax(theta, 0)
    assert p[0] == pytest.approx(0.5, abs=0.12) and p[2] < 0.02
