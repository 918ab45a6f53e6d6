"""results/elsewhere.py: the formulas by hand, their expectations by brute force, and the page by its own command."""
import itertools
import math
import os
import re
import subprocess
import sys

import elsewhere
import pytest
import torch
from conftest import ROOT
from elsewhere import FORMULAS
from test_ppo_passk import exact_gradient

BINARY = {name for name, formula in FORMULAS.items() if formula.binary}
PKPO = {"PKPO s", "PKPO sloo", "PKPO sloo_minus_one", "MaxPO", "ours, loo", "ours, centred", "ours, plain"}
EXACT = PKPO | {"verl grpo_passk, no deviation", "MaxRL", "MaxRL, 1/n always", "MaxRL, 1/n unless K = 0", "NSR",
                "W-REINFORCE", "ours, mean"}
E2 = math.exp(2)


def coefficients(name, *rewards, k):
    return FORMULAS[name].function(torch.tensor([rewards], dtype=torch.float64), k)[0].tolist()


# ------------------------------------------------------------------------------------------------------------- by hand

ONE_RIGHT = {  # k = 2 of n = 4, rewards 1 0 0 0: q is 1 and 1/3, rho 1/2, rho_-i 0 and 2/3, of single samples 0 and 1/3
    "GRPO, no deviation": (3 / 16, -1 / 16), "GRPO": (3 / 8, -1 / 8), "verl grpo_passk, no deviation": (1, 0),
    "verl grpo_passk": (2, 0), "RUCAIBox Pass@k Training": (1 / 4, -1 / 12), "rLLM pkpo": (1 / 4, -1 / 12),
    "PKPO s": (1 / 2, 1 / 6), "PKPO sloo": (1 / 2, -5 / 18), "PKPO sloo_minus_one": (1 / 2, 0),
    "MaxPO": (1 / 2, -1 / 6), "MaxRL": (1, 0), "MaxRL, 1/n always": (3 / 4, -1 / 4),
    "MaxRL, 1/n unless K = 0": (3 / 4, -1 / 4), "RS-GRPO": ((4 * E2 / (E2 + 3) - 1) / 8, (4 / (E2 + 3) - 1) / 8),
    "NSR": (0, -1 / 4), "W-REINFORCE": (1 / 40, -1 / 4), "ours, mean": (1 / 4, -1 / 12), "ours, loo": (1 / 2, 0),
    "ours, centred": (1 / 2, -1 / 6), "ours, plain": (1 / 2, 1 / 6)}
NONE_RIGHT = {"MaxRL, 1/n always": -1 / 4, "NSR": -1 / 4, "W-REINFORCE": -1 / 4}  # all others 0
STEPS = {  # rewards 1 .5 0 0: q is 1, 2/3 and 1/2, rho_-i 1/3, 2/3 and 5/6, of single samples 1/6, 1/3 and 1/2
    "GRPO, no deviation": (5 / 32, 1 / 32, -3 / 32), "verl grpo_passk, no deviation": (1 / 2, 0, 0),
    "verl grpo_passk": (1 / 2 / math.sqrt(11 / 48), 0, 0), "rLLM pkpo": (1 / 6, 0, -1 / 12),
    "PKPO s": (1 / 2, 1 / 3, 1 / 4), "PKPO sloo": (5 / 18, -1 / 9, -11 / 36),
    "PKPO sloo_minus_one": (5 / 12, 1 / 6, 0), "MaxPO": (1 / 3, 0, -1 / 6), "ours, loo": (5 / 12, 1 / 6, 0),
    "ours, centred": (1 / 3, 0, -1 / 6)}


@pytest.mark.parametrize("name", FORMULAS)
def test_by_hand(name):
    rounded = 1e-5  # 1e-6 is added to deviations
    right, wrong = ONE_RIGHT[name]
    assert coefficients(name, 0, 1, 0, 0, k=2) == pytest.approx([wrong, right, wrong, wrong], rel=rounded)
    assert coefficients(name, 0, 0, 0, 0, k=2) == pytest.approx([NONE_RIGHT.get(name, 0)] * 4, abs=1e-12)
    if name in STEPS:
        first, second, last = STEPS[name]
        assert coefficients(name, 0, 1, 0, .5, k=2) == pytest.approx([last, first, last, second], rel=rounded)


def test_tied_for_the_best():
    for name in ("verl grpo_passk", "verl grpo_passk, no deviation"):
        assert coefficients(name, 1, 1, 0, k=3) == [0, 0, 0]


def test_as_their_sources_write_it():
    """The closed forms of papers and programs, for right and wrong, against subsets."""
    n, k = 7, 3
    for K in range(n + 1):
        rewards = [1.0] * K + [0.0] * (n - K)
        rho = 1 - math.comb(n - K, k) / math.comb(n, k)
        s = math.sqrt(rho * (1 - rho)) + 1e-6
        right = (1 - rho) / s / n
        lost = math.comb(n - K - 1, k - 1) / math.comb(n - 1, k - 1) if K < n else 0
        wrong = (1 - rho - lost) / s / n
        assert coefficients("RUCAIBox Pass@k Training", *rewards, k=k) == pytest.approx(
            [right] * K + [wrong] * (n - K), abs=1e-9)
        rest = 1 - math.comb(n - 1 - K, k - 1) / math.comb(n - 1, k - 1) if K < n else 0
        assert coefficients("PKPO s", *rewards, k=k) == pytest.approx([k / n] * K + [k / n * rest] * (n - K))
        mean = K / n
        assert coefficients("MaxRL, 1/n unless K = 0", *rewards, k=k) == pytest.approx(
            [(r - mean) / (mean + 1e-6) / n for r in rewards], rel=1e-4)
    graded = [.2, -1.0, .7, .7, 3.0]
    soft = math.log(sum(math.exp(2 * r) for r in graded) / 5) / 2
    assert coefficients("RS-GRPO", *graded, k=2) == pytest.approx(
        [(math.exp(2 * (r - soft)) - 1) / 2 / 5 for r in graded])


def test_what_is_the_same_sample_by_sample():
    """What the page says in words."""
    generator = torch.Generator().manual_seed(0)
    for k, n in ((2, 5), (4, 6), (2, 3)):
        graded = torch.rand(20, n, generator=generator, dtype=torch.float64)
        right = (graded < .4).double()
        for r in (graded, right):
            found = {name: formula.function(r, k) for name, formula in FORMULAS.items()}
            whole = {name: FORMULAS[name].function(r, n) for name in ("rLLM pkpo", "ours, loo", "PKPO sloo_minus_one")}
            for name, same in (("PKPO s", found["ours, plain"]), ("PKPO sloo_minus_one", found["ours, loo"]),
                               ("MaxPO", found["ours, centred"]), ("rLLM pkpo", (1 - k / n) * found["MaxPO"]),
                               ("verl grpo_passk, no deviation", whole["ours, loo"]),
                               ("GRPO, no deviation", (n - 1) / n * found["ours, mean"])):
                assert torch.allclose(found[name], same, atol=1e-12), (name, k, n)
            assert whole["rLLM pkpo"].abs().max() < 1e-12
        ratio = found["verl grpo_passk"] / found["verl grpo_passk, no deviation"]
        assert torch.allclose(ratio[ratio.isfinite()], torch.tensor(n ** .5).double(), rtol=1e-5)
        rho = FORMULAS["PKPO s"].function(right, k).mean(1, keepdim=True) * n / k
        s = (rho * (1 - rho)).clamp(min=0).sqrt() + 1e-6
        assert torch.allclose(found["RUCAIBox Pass@k Training"], found["rLLM pkpo"] / k / s, atol=1e-12)
        assert FORMULAS["RUCAIBox Pass@k Training"].function(right, n).abs().max() < 1e-12


# -------------------------------------------------------------------------------------------------------- enumeration

def brute(name, pi, rewards, k, n):
    """(expectation, variance summed over logits, expected sum of squares), tuple by tuple."""
    chances, estimates, squares = [], [], []
    for ys in itertools.product(range(len(pi)), repeat=n):
        c = coefficients(name, *(rewards[y] for y in ys), k=k)
        g = torch.zeros(len(pi), dtype=torch.float64)
        for y, weight in zip(ys, c):
            g -= weight * pi
            g[y] += weight
        chances.append(math.prod(pi[y].item() for y in ys))
        estimates.append(g)
        squares.append(sum(weight ** 2 for weight in c))
    mean = sum(chance * g for chance, g in zip(chances, estimates))
    variance = sum(chance * (g - mean).square().sum() for chance, g in zip(chances, estimates))
    return mean, variance.item(), sum(chance * x for chance, x in zip(chances, squares))


def own_gradient(name, theta, rewards, k, n):
    """Of the objective that the source names, by tuples of another test's making, not by the closed forms."""
    def passk(t):
        return exact_gradient(theta, rewards, [None] * len(rewards), t, "passk")
    label = FORMULAS[name].label
    if label.startswith("pass@"):
        return passk(n if "n" in label else k)
    if label.startswith("MaxRL"):
        return sum(passk(t) / t for t in range(1, (n - 1 if "less" in label else n) + 1))
    return passk(1) * {"mean": 1, "-P(wrong)": 1, ".1 P(right) - P(wrong)": 1.1}[label]


@pytest.mark.parametrize("name", FORMULAS)
def test_expectation(name):
    """Those that are said to be exact are, with right and wrong and with graded rewards, and no other is."""
    formula, theta = FORMULAS[name], torch.tensor([.3, -.8, .5], dtype=torch.float64)
    pi, gaps = torch.softmax(theta, 0), []
    for (k, n), rewards in itertools.product(((2, 3), (3, 4), (3, 3)), ((1.0, 0.0, 0.0), (1.0, .4, -.2))):
        if not elsewhere.takes(formula, k, n) or formula.binary and rewards[1]:
            continue
        x = elsewhere.Prompt(pi, torch.tensor(rewards, dtype=torch.float64))
        found = elsewhere.moments(formula.function, x, k, n)
        wanted = brute(name, pi, rewards, k, n)
        assert torch.allclose(found[0], wanted[0], atol=1e-12)
        assert [found[1].item(), found[2].item()] == pytest.approx(wanted[1:], rel=1e-9, abs=1e-12)
        exact = elsewhere.gradient(formula.own, x, k, n)
        if name != "RS-GRPO":
            assert torch.allclose(exact, own_gradient(name, theta, rewards, k, n), atol=1e-12)
        gaps.append((found[0] - exact).abs().max().item())
    assert gaps
    if name in EXACT:
        assert max(gaps) < 1e-12
    else:
        assert min(gaps) > 1e-3


def test_the_entropic_objective():
    x = elsewhere.graded((.2, .5, .3))
    value = math.log(.2 * math.exp(2) + .5 * math.exp(1) + .3) / 2
    assert elsewhere.entropic(x.pi, x.r, 4, 8).item() == pytest.approx(value)


def test_cosine_scale_and_spread():
    """A formula that is twice the exact one: cosine 1, scale 2, the same variance and squares."""
    prompts = [elsewhere.binary(p) for p in (.2, .7)]
    once = FORMULAS["ours, loo"]
    twice = once._replace(function=lambda r, k: 2 * once.function(r, k))
    a, b = (elsewhere.measured(formula, prompts, 2, 4) for formula in (once, twice))
    assert a.own == a.target == pytest.approx((1, 1)) and b.own == b.target == pytest.approx((1, 2))
    assert (a.variance, a.squares) == pytest.approx((b.variance, b.squares))
    nothing = elsewhere.measured(FORMULAS["rLLM pkpo"], prompts, 4, 4)
    assert nothing == ((None, 0), (None, 0), None, None)
    for p in (.2, .7):
        assert elsewhere.weight(once.function, p, 3, 4)[0] == pytest.approx(3 * (1 - p) ** 2)
        mean = elsewhere.weight(FORMULAS["MaxRL"].function, p, 3, 4)[0]
        assert mean == pytest.approx(sum((1 - p) ** t for t in range(4)))


# ----------------------------------------------------------------------------------------------------------- the page

def test_number():
    assert [elsewhere.number(x) for x in (None, 1e-15, 1 - 1e-12, -1, .99999, 1.0004, .12345, -2.5, 1.11e7)] == [
        "–", "0", "1", "-1", "0.99999", "1.0004", "0.123", "-2.5", "1.11e+07"]


def test_page_is_up_to_date():
    """Every number of the page is what its command computes."""
    page = elsewhere.page()
    with open(os.path.join(ROOT, "results", "elsewhere.md"), encoding="utf-8") as file:
        assert file.read() == page, "python results/elsewhere.py --draw"
    bullets = page.split("## Findings")[1].split("![")[0]
    assert len(re.findall(r"^ *- ", bullets, re.MULTILINE)) == 8  # no other line is taken for an item
    for name, formula in FORMULAS.items():
        assert page.count(f"| {name} | ") == 9 - 2 * formula.binary - 2 * formula.larger, name
        assert formula.function.__doc__ or name.startswith("ours"), name
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", elsewhere.READ)
    with open(os.path.join(ROOT, "results", "README.md"), encoding="utf-8") as file:
        assert "[elsewhere.md](elsewhere.md)" in file.read()


def test_draw(tmp_path, monkeypatch, capsys):
    (tmp_path / "results" / "figures").mkdir(parents=True)
    monkeypatch.setattr(elsewhere, "ROOT", str(tmp_path))
    monkeypatch.setattr(elsewhere, "page", lambda: "the page\n")
    elsewhere.main([])
    assert capsys.readouterr().out == "the page\n"
    elsewhere.main(["--draw"])
    assert (tmp_path / "results" / "elsewhere.md").read_text() == "the page\n"
    figures = [os.path.join(root, "results", "figures", "elsewhere.png") for root in (str(tmp_path), ROOT)]
    assert all(1000 < os.path.getsize(path) < 80_000 for path in figures)


@pytest.mark.parametrize("flag,code", [("--help", 0), ("--no", 2)])
def test_command_line(flag, code):
    done = subprocess.run([sys.executable, os.path.join(ROOT, "results", "elsewhere.py"), flag], capture_output=True,
                          text=True)
    assert done.returncode == code and "Traceback" not in done.stderr
