"""Formulas of other projects for pass@k, each enumerated: what it expects, against which gradient, with what variance.

    python results/elsewhere.py            the page, printed
    python results/elsewhere.py --draw     results/elsewhere.md and results/figures/elsewhere.png

A formula maps the rewards of one prompt's n samples to coefficients c_i; the estimate of a gradient is

    g = sum_i c_i grad log pi(y_i)

Where a paper or a program averages over the group, c_i has that 1/n. The policy is a table: each prompt has its own
logits over three completions. All 3^n sample tuples are listed, so expectation and variance are exact up to rounding
(float64). Nothing here says how well a method trains: clipping, KL, optimiser, batches and everything else of the other
projects is left out, and a formula is what stood in the source on the day named beside it, in our words.

    q_i        mean over the k-subsets of the n samples with i of the largest reward
    rho_-i     the same over the k-subsets without i (needs n > k)
    K          how many of the n samples are right
"""
import os
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path[:0] = [ROOT, os.path.join(ROOT, "results")]  # also where a test loads this file by its path
from support.flags import Parser, answer


def parser():
    p = Parser(description=__doc__.split("\n")[0])
    p.add_argument("--draw", action="store_true", help="write results/elsewhere.md and results/figures/elsewhere.png")
    return p


if __name__ == "__main__":
    answer(parser().parse_args)  # --help and bad flags, before the heavy imports

import itertools
from collections.abc import Callable
from functools import lru_cache, partial
from typing import NamedTuple

import support

support.set_thread_policy()  # torch reads it when it is loaded

import torch
from pages import paragraph, table, wrapped

from ppo_passk import advantages
from support.output import consoles

EPSILON = 1e-6  # what several programs add to a deviation before they divide by it
READ = "2026-11-29"


# --------------------------------------------------------------------- the formulas: rewards [T, n], k -> c [T, n]

def subset_means(r, k):
    """(q_i, rho_-i) as above, [T, n] each; rho_-i is 0/0 = NaN at n = k."""
    subsets = torch.tensor(list(itertools.combinations(range(r.shape[1]), k)))  # [S, k]
    best = r[:, subsets].amax(-1)  # [T, S]
    inside = torch.zeros(len(subsets), r.shape[1], dtype=r.dtype).scatter(1, subsets, 1.0)  # [S, n]
    outside = 1 - inside
    return best @ inside / inside.sum(0), best @ outside / outside.sum(0)


def dr_grpo(r, k):
    """(r_i - mean) / n"""
    return (r - r.mean(1, keepdim=True)) / r.shape[1]


def grpo(r, k):
    """(r_i - mean) / (std + 1e-6) / n, std with n - 1"""
    return dr_grpo(r, k) / (r.std(1, keepdim=True) + EPSILON)


def verl_passk(r, k):
    """largest - second largest reward, on the largest; 0 on the others"""
    largest, second = r.sort(1, descending=True).values[:, :2].split(1, dim=1)  # [T, 1] each
    return (largest - second) * (r == largest)


def verl_passk_std(r, k):
    """the same / (std + 1e-6), std with n - 1"""
    return verl_passk(r, k) / (r.std(1, keepdim=True) + EPSILON)


def passk_training(r, k):
    """(q_i - rho) / (sqrt(rho (1 - rho)) + 1e-6) / n, with rho = 1 - C(n-K, k) / C(n, k)"""
    q, _ = subset_means(r, k)
    rho = q.mean(1, keepdim=True)  # each k-subset holds k samples
    return (q - rho) / ((rho * (1 - rho)).clamp(min=0).sqrt() + EPSILON) / r.shape[1]


def rllm_pkpo(r, k):
    """(k/n) q_i, minus its mean over the group"""
    credit = pkpo_s(r, k)
    return credit - credit.mean(1, keepdim=True)


def pkpo_s(r, k):
    """(k/n) q_i"""
    q, _ = subset_means(r, k)
    return k / r.shape[1] * q


def pkpo_sloo(r, k):
    """(k/n) q_i - k/(n-1) rho_-i"""
    _, rho = subset_means(r, k)
    return pkpo_s(r, k) - k / (r.shape[1] - 1) * rho


def pkpo_sloo_minus_one(r, k):
    """(k/n) q_i - (k/n) rho_-i of k - 1 instead of k samples"""
    _, rho = subset_means(r, k - 1)
    return pkpo_s(r, k) - k / r.shape[1] * rho


def maxpo(r, k):
    """(k/n) (q_i - rho_-i)"""
    q, rho = subset_means(r, k)
    return k / r.shape[1] * (q - rho)


def maxrl(r, k):
    """r_i / K, 0 where K = 0"""
    return r / r.sum(1, keepdim=True).clamp(min=1)


def maxrl_variate(r, k):
    """r_i / K - 1/n, -1/n where K = 0"""
    return maxrl(r, k) - 1 / r.shape[1]


def maxrl_dropped(r, k):
    """r_i / K - 1/n, 0 where K = 0"""
    return maxrl_variate(r, k) * (r.sum(1, keepdim=True) > 0)


def rs_grpo(r, k, beta=2.0):
    """(e^(b r_i) / mean e^(b r) - 1) / b / n, b = 2"""
    tilted = (beta * r).exp()
    return (tilted / tilted.mean(1, keepdim=True) - 1) / beta / r.shape[1]


def nsr(r, k):
    """-1/n on wrong, 0 on right"""
    return (r - 1) / r.shape[1]


def w_reinforce(r, k, right=0.1):
    """-1/n on wrong, .1/n on right"""
    return nsr(r, k) + right * r / r.shape[1]


def ours(r, k, objective="passk", estimator="loo"):
    return advantages(r, k, objective, estimator=estimator)


# ------------------------------------------------------- objectives: probabilities [V], rewards [V], k, n -> a scalar

def mean_reward(pi, r, k, n):
    return pi @ r


def best_of(pi, r, k):
    """E of the largest of k rewards: P(largest <= s) = P(one <= s)^k."""
    s, order = r.sort()
    return s @ torch.diff(pi[order].cumsum(0) ** k, prepend=pi.new_zeros(1))


def pass_at_k(pi, r, k, n):
    return best_of(pi, r, k)


def pass_at_n(pi, r, k, n):
    return best_of(pi, r, n)


def truncated_log(pi, r, order):
    """-sum_{t <= order} (1-p)^t / t, with p the chance to be right."""
    wrong = 1 - pi @ r
    return -sum(wrong ** t / t for t in range(1, order + 1))


def maxrl_order_n(pi, r, k, n):
    return truncated_log(pi, r, n)


def maxrl_order_less(pi, r, k, n):
    return truncated_log(pi, r, n - 1)


def entropic(pi, r, k, n, beta=2.0):
    return (pi @ (beta * r).exp()).log() / beta


def less_wrong(pi, r, k, n):
    return pi @ r - 1


def weighted(pi, r, k, n, right=0.1):
    return right * pi @ r - pi @ (1 - r)


# ----------------------------------------------------------------------------------------------------------- the list

class Formula(NamedTuple):
    """own: the objective its source names, label: that objective in words; binary: for rewards 0 and 1 alone;
    larger: needs n > k."""
    function: Callable
    own: Callable
    label: str
    source: str
    binary: bool = False
    larger: bool = False


VERL = "verl, `core_algos.py` at 012be9d"
PKPO = "arXiv 2505.15201, copies of its listing of equations 19, 29, 33"
MAXRL = "arXiv 2602.02710; tajwarfahim/maxrl at 7db6bb9, "
NSR = "arXiv 2506.01347; TianHongZXY/RLVR-Decomposed, `core_algos.py` at 84be7a2, "
TANG = "[ppo_passk.py](../ppo_passk.py), `advantages`: "
FORMULAS = {
    "GRPO, no deviation": Formula(dr_grpo, mean_reward, "mean", f"arXiv 2503.20783; {VERL}, `grpo`"),
    "GRPO": Formula(grpo, mean_reward, "mean", f"arXiv 2402.03300; {VERL}, `grpo`"),
    "verl grpo_passk, no deviation": Formula(
        verl_passk, pass_at_n, "pass@{n}", f"{VERL}, `grpo_passk`; its k is the size of the group; "
        "summed as in arXiv 2503.19595, which it names"),
    "verl grpo_passk": Formula(verl_passk_std, pass_at_n, "pass@{n}", f"{VERL}, `grpo_passk`, the default"),
    "RUCAIBox Pass@k Training": Formula(
        passk_training, pass_at_k, "pass@{k}", "arXiv 2508.10751; RUCAIBox/Passk_Training, `passk_adv.py` at 00474d7",
        binary=True),
    "rLLM pkpo": Formula(
        rllm_pkpo, pass_at_k, "pass@{k}", "rllm-org/rllm, pull request 743, open in the copy read; it asks for k < n"),
    "PKPO s": Formula(pkpo_s, pass_at_k, "pass@{k}", PKPO),
    "PKPO sloo": Formula(pkpo_sloo, pass_at_k, "pass@{k}", PKPO, larger=True),
    "PKPO sloo_minus_one": Formula(pkpo_sloo_minus_one, pass_at_k, "pass@{k}", PKPO),
    "MaxPO": Formula(
        maxpo, pass_at_k, "pass@{k}", "arXiv 2606.06080, its abstract; the formula as in the README of "
        "paavo5/ordergrad, by one of its authors; the factor k/n is ours", larger=True),
    "MaxRL": Formula(maxrl, maxrl_order_n, "MaxRL, T = {n}", MAXRL + "the estimator of its theorem", binary=True),
    "MaxRL, 1/n always": Formula(
        maxrl_variate, maxrl_order_n, "MaxRL, T = {n}", MAXRL + "`vr_cond_weights`", binary=True),
    "MaxRL, 1/n unless K = 0": Formula(
        maxrl_dropped, maxrl_order_less, "MaxRL, T = {less}", MAXRL + "`p_normalization`, (r - mean) / (mean + 1e-6)",
        binary=True),
    "RS-GRPO": Formula(
        rs_grpo, entropic, "log E e^(2r) / 2", "arXiv 2509.24261; Jackory/RS-GRPO, `risk_sensitive_adv.py` at 5c476b5"),
    "NSR": Formula(nsr, less_wrong, "-P(wrong)", NSR + "`negative`", binary=True),
    "W-REINFORCE": Formula(w_reinforce, weighted, ".1 P(right) - P(wrong)", NSR + "`weighted`", binary=True),
    "ours, mean": Formula(partial(ours, objective="mean"), mean_reward, "mean", TANG + "leave-one-out"),
    "ours, loo": Formula(ours, pass_at_k, "pass@{k}", TANG + "leave-one-out over k-subsets, as sloo_minus_one"),
    "ours, centred": Formula(
        partial(ours, estimator="centred"), pass_at_k, "pass@{k}", TANG + "as MaxPO", larger=True),
    "ours, plain": Formula(partial(ours, estimator="plain"), pass_at_k, "pass@{k}", TANG + "no baseline, as s"),
}
SETTINGS = ((4, 8), (8, 8))  # k, n
RATES = (.1, .3, .6, .9)  # of success
GRADED = ((.1, .3, .6), (.3, .3, .4), (.6, .3, .1), (.1, .8, .1))  # chances of the rewards 1, .5, 0


def takes(formula, k, n):
    return n > k or not formula.larger


# -------------------------------------------------------------------------------------------------------- enumeration

class Prompt(NamedTuple):
    """Chances and rewards of its completions, float64 [V] each."""
    pi: torch.Tensor
    r: torch.Tensor


def prompt(chances, rewards):
    return Prompt(torch.tensor(chances, dtype=torch.float64), torch.tensor(rewards, dtype=torch.float64))


def binary(p):
    """One completion is right, with chance p; two are wrong."""
    return prompt((p, (1 - p) * 2 / 3, (1 - p) / 3), (1.0, 0.0, 0.0))


def graded(chances):
    return prompt(chances, (1.0, .5, 0.0))


@lru_cache
def tuples(V, n):
    """All V^n draws of n completions, [T, n]."""
    return torch.cartesian_prod(*[torch.arange(V)] * n)


@lru_cache
def listed(function, rewards, k, n):
    """Coefficients of all tuples: (summed by completion [T, V], their sums [T, 1], their sums of squares [T])."""
    y = tuples(len(rewards), n)
    c = function(torch.tensor(rewards, dtype=torch.float64)[y], k)  # [T, n]
    by_completion = torch.zeros(len(y), len(rewards), dtype=c.dtype).scatter_add(1, y, c)
    return by_completion, c.sum(1, keepdim=True), c.square().sum(1)


def moments(function, x, k, n):
    """Of the estimate g on prompt x: (its expectation by logit [V], its variance summed over the logits, the expected
    sum of c_i^2)."""
    by_completion, total, squares = listed(function, tuple(x.r.tolist()), k, n)
    g = by_completion - total * x.pi  # [T, V]: grad log pi(y) is 1 at y, minus pi
    chance = x.pi[tuples(len(x.r), n)].prod(1)  # [T]
    mean = chance @ g
    return mean, chance @ (g - mean).square().sum(1), chance @ squares


def gradient(objective, x, k, n):
    """Exact gradient of an objective by the logits, [V]."""
    logits = x.pi.log().requires_grad_()
    return torch.autograd.grad(objective(torch.softmax(logits, 0), x.r, k, n), logits)[0]


def compared(found, wanted):
    """(cosine, scale) of an expectation against a gradient: scale is the factor that brings the gradient nearest. No
    cosine where nothing is expected."""
    scale = (found @ wanted / (wanted @ wanted)).item()
    if found.norm() < 1e-12:
        return None, 0.0
    return (found @ wanted / (found.norm() * wanted.norm())).item(), scale


class Measured(NamedTuple):
    """own, target: (cosine, scale) against the gradients of the formula's objective and of pass@k. variance: n times
    that of g over its squared expectation. squares: n times the expected sum of c_i^2 over the squared scale to its
    own. Both None where nothing is expected."""
    own: tuple
    target: tuple
    variance: float | None
    squares: float | None


def measured(formula, prompts, k, n):
    """A formula over a table of prompts, each with its own logits."""
    means, variances, squares = zip(*(moments(formula.function, x, k, n) for x in prompts))
    mean = torch.cat(means)
    own = compared(mean, torch.cat([gradient(formula.own, x, k, n) for x in prompts]))
    target = compared(mean, torch.cat([gradient(pass_at_k, x, k, n) for x in prompts]))
    if own[0] is None:
        return Measured(own, target, None, None)
    variance = n * sum(variances).item() / mean.square().sum().item()
    return Measured(own, target, variance, n * sum(squares).item() / len(prompts) / own[1] ** 2)


def weight(function, p, k, n):
    """(w, squares) on a prompt of success rate p: what is expected is w grad p, for right and wrong alone."""
    found = measured(Formula(function, mean_reward, "", ""), [binary(p)], k, n)
    return found.own[1], found.squares


# ----------------------------------------------------------------------------------------------------------- the page

def number(value):
    """Three digits; "0", "1" and "-1" stand for what is that up to rounding, and nothing else."""
    if value is None:
        return "–"
    if abs(value) < 1e-9:
        return "0"
    if abs(abs(value) - 1) < 1e-9:
        return f"{value:.0f}"
    text = f"{value:.3g}"
    return f"{value:.6f}".rstrip("0") if text in ("1", "-1") else text


def comparison(prompts, k, n, takes_binary):
    """The table of cosines, scales and noise."""
    lines = []
    for name, formula in FORMULAS.items():
        if formula.binary and not takes_binary:
            continue
        cells = ["n > k only"] + [""] * 5
        if takes(formula, k, n):
            own, target, *spread = measured(formula, prompts, k, n)
            cells = [number(value) for value in (*own, *target, *spread)]
        lines.append([name, formula.label.format(k=k, n=n, less=n - 1), *cells])
    return table(["formula", "own objective", "cosine to its gradient", "scale", f"cosine to grad pass@{k}", "scale",
                  "variance", "squares"], lines)


def by_rate(k, n):
    """The table of weights at several success rates."""
    lines = [[f"grad pass@{k}: {k} (1-p)^{k - 1}", *(number(k * (1 - p) ** (k - 1)) for p in RATES)]]
    for name, formula in FORMULAS.items():
        if takes(formula, k, n):
            pairs = [weight(formula.function, p, k, n) for p in RATES]
            lines.append([name, *(f"{number(w)} ({number(spread)})" for w, spread in pairs)])
    return table(["formula", *(f"p = {p:g}" for p in RATES)], lines)


def one_group(k, n):
    """The table of coefficients: K of n right."""
    counts = (0, 1, 2, n // 2, n)
    lines = []
    r = torch.tensor([[1.0] * K + [0.0] * (n - K) for K in counts], dtype=torch.float64)
    for name, formula in FORMULAS.items():
        if takes(formula, k, n):
            cells = []
            for K, c in zip(counts, formula.function(r, k).tolist()):
                right = "" if K == 0 else number(c[0])
                wrong = "" if K == n else number(c[-1])
                cells.append(" / ".join(filter(None, (right, wrong))))
            lines.append([name, *cells])
    return table(["formula", *(f"K = {K}" for K in counts)], lines)


def sources():
    lines = []
    for name, formula in FORMULAS.items():
        ours = formula.source.startswith(TANG)
        lines.append([name, "" if ours else formula.function.__doc__, formula.source, "" if ours else READ])
    return table(["formula", "c_i", "source", "read"], lines)


def item(text):
    return wrapped("- " + text, "  ")


def findings():
    """What the tables show, in words with their numbers; the identities are in the tests."""
    right = {name: measured(formula, [binary(p) for p in RATES], 4, 8) for name, formula in FORMULAS.items()}
    steps = measured(FORMULAS["verl grpo_passk"], [graded(chances) for chances in GRADED], 8, 8)
    cosine = {name: number(found.own[0]) for name, found in right.items()}
    squares = {name: number(found.squares) for name, found in right.items()}
    easy = {name: number(weight(formula.function, .6, 4, 8)[1]) for name, formula in FORMULAS.items()}
    hard = {name: number(weight(formula.function, .1, 4, 8)[1]) for name, formula in FORMULAS.items()}
    return [
        *item("Exact for pass@k at every n they take: PKPO's three, MaxPO, ours. PKPO's `s` is our `plain`, "
              "`sloo_minus_one` our `loo`, MaxPO our `centred`, sample by sample. They differ in what they scatter: at "
              f"k = 4, n = 8 squares of {hard['PKPO s']} (`s`), {hard['PKPO sloo']} (`sloo`), "
              f"{hard['PKPO sloo_minus_one']} (`sloo_minus_one`) and {hard['MaxPO']} (MaxPO) where one sample in ten "
              f"is right, {easy['PKPO s']}, {easy['PKPO sloo']}, {easy['PKPO sloo_minus_one']} and {easy['MaxPO']} "
              "where six are."),
        *item("verl's `grpo_passk` without the deviation is our `loo` at k = n, its own k being the group. With it, "
              "right or wrong, each weight grows by the same √n, since one right of n has the deviation 1/√n; with "
              f"graded rewards the direction changes (cosine {number(steps.own[0])})."),
        *item("rLLM's `pkpo` is `1-k/n` times MaxPO, sample by sample: the direction of grad pass@k for k < n, nothing "
              "at k = n."),
        *item("RUCAIBox's coefficients are rLLM's divided by `k√(rho(1-rho))`, which differs from group to group: "
              f"cosine {cosine['RUCAIBox Pass@k Training']} to grad pass@4. At k = n, and where none or all are right, "
              "they are 0."),
        *item("MaxRL: `r_i/K` and `r_i/K-1/n` expect the gradient of order n; with the 1/n dropped where none is "
              f"right, that of order `n-1`. Squares {squares['MaxRL']}, {squares['MaxRL, 1/n always']} and "
              f"{squares['MaxRL, 1/n unless K = 0']}."),
        *item("GRPO without the deviation is `(n-1)/n` times grad of the mean, as its baseline holds the sample "
              f"itself; with it the cosine over prompts of different success rates is {cosine['GRPO']}."),
        *item(f"RS-GRPO: cosine {cosine['RS-GRPO']} and scale {number(right['RS-GRPO'].own[1])} to the gradient of its "
              "objective over the four prompts, as the mean in its denominator is that of the same n samples."),
        *item("NSR expects grad P(right), as GRPO without the deviation does up to `(n-1)/n`, and W-REINFORCE 1.1 "
              "times it: pushing the wrong down and the right up are the same in expectation. Their squares differ: "
              f"{hard['NSR']}, {hard['W-REINFORCE']} and, for ours with a baseline, {hard['ours, mean']} where one "
              "sample in ten is right."),
        ""]


INTRODUCTION = (
    "Written by `python results/elsewhere.py --draw`. Each formula is a function of a few lines in "
    "[elsewhere.py](elsewhere.py); its expectation and variance are exact, over all tuples of n samples of a tabular "
    "policy. The estimate is g = sum_i c_i grad log pi(y_i), with the 1/n of those who average over the group in c_i. "
    "What else the projects do (clipping, KL, optimiser, normalisation over tokens) is left out: this compares "
    "formulas as they stood on the day they were read, not methods, and no number says how well anything trains.",
    "A constant scale is a learning rate, and nothing at all to Adam; a scale that differs between prompts is another "
    "objective. So cosines are taken over four prompts together, each with its own logits. *Scale*: by how much what "
    "is expected exceeds the gradient, by least squares. *Variance*: n times that of g, summed over logits and "
    "prompts, over its squared expectation. *Squares*: n times the expected sum of c_i², mean over prompts, over the "
    "squared scale to its own objective. A table of three completions draws the same one again and again; of a "
    "language model two samples are hardly ever the same text and their gradients nearly at right angles, and there "
    "the squares are what the variance grows with. Compare either between formulas of one objective only. 1 and 0 mean "
    "1 and 0 to nine digits, – that nothing is expected.")
PICTURE = (
    "![Three panels against the success rate p, n = 8. Left: how formulas weigh a prompt, each curve divided by its "
    "mean: verl's pass@8 falls steepest, then pass@4, RUCAIBox's, MaxRL's and RS-GRPO's, all from hard prompts to easy "
    "ones; GRPO's rises a little at both ends; that of the mean and NSR is flat. Middle: squares of four exact "
    "estimators of pass@4, close together on hard prompts, many powers of ten apart on easy ones: s highest, then "
    "sloo, loo, centred. Right: squares for other objectives; MaxRL without 1/n rises towards easy prompts, NSR and "
    "W-REINFORCE towards hard ones, MaxRL with 1/n and the mean fall at both ends.](figures/elsewhere.png)")


def page():
    """results/elsewhere.md."""
    text = ["# What others compute for pass@k, enumerated", ""]
    for part in INTRODUCTION:
        text += paragraph(part)
    text += ["## What it shows", "", *findings(), *paragraph(PICTURE)]
    rates = ", ".join(f"{p:g}" for p in RATES)
    chances = ", ".join("(" + ", ".join(f"{c:g}" for c in row) + ")" for row in GRADED)
    for k, n in SETTINGS:
        text += [f"## k = {k}, n = {n}", "",
                 f"Right or wrong, four prompts of success rates {rates}:", "",
                 comparison([binary(p) for p in RATES], k, n, True), "",
                 *paragraph("Weight by success rate p: w in E g = w grad p, and in brackets the squares of that prompt "
                            "alone, over w²:"),
                 by_rate(k, n), "",
                 f"Coefficients of one group, right / wrong, where K of the {n} samples are right:", "",
                 one_group(k, n), "",
                 *paragraph(f"Graded rewards 1, .5 and 0, four prompts of chances {chances}; pass@k is the expected "
                            "largest reward. Formulas for right or wrong are left out:"),
                 comparison([graded(row) for row in GRADED], k, n, False), ""]
    text += ["## Where they stand", "",
             *paragraph("q_i: mean over the k-subsets with i of the largest reward; rho_-i: over those without i; rho: "
                        "over all; K: how many of the group are right. Where paper and program differ, the program. "
                        "Read in stored copies at the commits named; a project may have changed since."),
             sources()]
    return "\n".join(text) + "\n"


# --------------------------------------------------------------------------------------------------------- the figure

CURVES = {  # colours of Okabe and Ito, each with a line of its own
    "black": ("#000000", "-"), "blue": ("#0072B2", "-"), "vermilion": ("#D55E00", (0, (1, 1))),
    "green": ("#009E73", (0, (5, 1, 1, 1))), "purple": ("#CC79A7", (0, (3, 1))), "sky": ("#56B4E9", (0, (6, 2, 1, 2))),
    "orange": ("#E69F00", (0, (4, 2)))}
WEIGHTS = {  # formulas that weigh alike share a curve
    "PKPO s": ("pass@4: PKPO, MaxPO, rLLM, ours", "blue"), "verl grpo_passk": ("pass@8: verl", "sky"),
    "RUCAIBox Pass@k Training": ("RUCAIBox, k = 4", "purple"), "MaxRL, 1/n unless K = 0": ("MaxRL, T = 7", "green"),
    "RS-GRPO": ("RS-GRPO", "orange"), "GRPO": ("GRPO", "vermilion"), "NSR": ("mean, NSR", "black")}
EXACT = {"PKPO s": ("s, plain", "vermilion"), "PKPO sloo": ("sloo", "green"),
         "PKPO sloo_minus_one": ("sloo_minus_one, loo", "blue"), "MaxPO": ("MaxPO, centred", "purple")}
OTHERS = {"MaxRL": ("MaxRL", "vermilion"), "MaxRL, 1/n unless K = 0": ("MaxRL, 1/n unless K = 0", "green"),
          "ours, mean": ("mean, GRPO without deviation", "blue"), "NSR": ("NSR", "black"),
          "W-REINFORCE": ("W-REINFORCE", "purple")}


def draw(path, k=4, n=8):
    """The figure, from nothing but the formulas."""
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot
    rates = [(i + .5) / 40 for i in range(40)]
    figure, axes = pyplot.subplots(1, 3, figsize=(10.6, 3.1))
    titles = ("how a prompt is weighed", "exact estimators of pass@4", "other objectives")
    for axis, curves, title in zip(axes, (WEIGHTS, EXACT, OTHERS), titles):
        for name, (label, style) in curves.items():
            weights, values = zip(*(weight(FORMULAS[name].function, p, k, n) for p in rates))
            if curves is WEIGHTS:
                values = [w * len(weights) / sum(weights) for w in weights]
            color, line = CURVES[style]
            axis.plot(rates, values, color=color, linestyle=line, lw=1.4, label=label)
        axis.set_title(f"{title}, n = {n}", fontsize=10)
        axis.set_xlabel("success rate p")
        axis.grid(alpha=.3)
        axis.legend(fontsize=7)
    axes[0].set_ylabel("weight / its mean over p")
    for axis in axes[1:]:
        axis.set_yscale("log")
        axis.set_ylabel("squares: n E sum c² / w²")
    figure.tight_layout()
    figure.savefig(path, dpi=80, metadata={"Software": None})
    pyplot.close(figure)


def main(argv=None):
    args = parser().parse_args(argv)
    if not args.draw:
        print(page(), end="")
        return
    folder = os.path.join(ROOT, "results")
    with open(os.path.join(folder, "elsewhere.md"), "w", encoding="utf-8") as file:
        file.write(page())
    draw(os.path.join(folder, "figures", "elsewhere.png"))
    print("results/elsewhere.md and results/figures/elsewhere.png are drawn")


if __name__ == "__main__":
    with consoles():
        main()
