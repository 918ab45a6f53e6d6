"""Formulas of other projects for pass@k, by enumeration: expectation, variance, and the gradient that each matches.

    python results/elsewhere.py            print the page
    python results/elsewhere.py --draw     write results/elsewhere.md and results/figures/elsewhere.png

A formula maps the rewards of one prompt's n samples to coefficients c_i. Its gradient estimate is

    g = sum_i c_i grad log pi(y_i)

If a paper or program averages over the group, c_i includes that 1/n. The policy is tabular: each prompt has its own
logits over three completions. All 3^n sample tuples are enumerated, so expectation and variance are exact up to
rounding (float64). This says nothing about how well a method trains: clipping, KL, optimiser, batching and everything
else in the other projects is left out. A formula is our reading of the source on the day given next to it.

    q_i        largest reward in a k-subset that contains i, averaged over these subsets of the n samples
    rho_-i     the same over the k-subsets without i (needs n > k)
    K          number of correct samples among the n
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

EPSILON = 1e-6  # several programs add this to a standard deviation before dividing by it
READ = "2026-11-29"  # when the sources were read


# --------------------------------------------------------------------- the formulas: rewards [T, n], k -> c [T, n]

def subset_means(r, k):
    """(q_i, rho_-i) as defined at the top, [T, n] each. rho_-i is 0/0 = NaN at n = k."""
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
    """-1/n on wrong samples, 0 on correct ones"""
    return (r - 1) / r.shape[1]


def w_reinforce(r, k, right=0.1):
    """-1/n on wrong samples, .1/n on correct ones"""
    return nsr(r, k) + right * r / r.shape[1]


def ours(r, k, objective="passk", estimator="loo"):
    return advantages(r, k, objective, estimator=estimator)


# ------------------------------------------------------- objectives: probabilities [V], rewards [V], k, n -> a scalar

def mean_reward(pi, r, k, n):
    return pi @ r


def best_of(pi, r, k):
    """Expected largest of k rewards, from P(largest <= s) = P(one <= s)^k."""
    s, order = r.sort()
    return s @ torch.diff(pi[order].cumsum(0) ** k, prepend=pi.new_zeros(1))


def pass_at_k(pi, r, k, n):
    return best_of(pi, r, k)


def pass_at_n(pi, r, k, n):
    return best_of(pi, r, n)


def truncated_log(pi, r, order):
    """-sum_{t <= order} (1-p)^t / t, where p = P(correct)."""
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
    """own: the objective that its source states; label: its name on the page; binary: only for rewards 0 and 1;
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
        verl_passk, pass_at_n, "pass@{n}", f"{VERL}, `grpo_passk`; its k is the group size; summed "
        "over the group as in arXiv 2503.19595, which it cites"),
    "verl grpo_passk": Formula(verl_passk_std, pass_at_n, "pass@{n}", f"{VERL}, `grpo_passk`, the default"),
    "RUCAIBox Pass@k Training": Formula(
        passk_training, pass_at_k, "pass@{k}", "arXiv 2508.10751; RUCAIBox/Passk_Training, `passk_adv.py` at 00474d7",
        binary=True),
    "rLLM pkpo": Formula(
        rllm_pkpo, pass_at_k, "pass@{k}", "rllm-org/rllm, pull request 743, open when read; it requires k < n"),
    "PKPO s": Formula(pkpo_s, pass_at_k, "pass@{k}", PKPO),
    "PKPO sloo": Formula(pkpo_sloo, pass_at_k, "pass@{k}", PKPO, larger=True),
    "PKPO sloo_minus_one": Formula(pkpo_sloo_minus_one, pass_at_k, "pass@{k}", PKPO),
    "MaxPO": Formula(
        maxpo, pass_at_k, "pass@{k}", "arXiv 2606.06080, abstract; formula from the README of "
        "paavo5/ordergrad, by one of the authors; we added the factor k/n", larger=True),
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
    "ours, loo": Formula(ours, pass_at_k, "pass@{k}", TANG + "leave-one-out over k-subsets, like sloo_minus_one"),
    "ours, centred": Formula(
        partial(ours, estimator="centred"), pass_at_k, "pass@{k}", TANG + "like MaxPO", larger=True),
    "ours, plain": Formula(partial(ours, estimator="plain"), pass_at_k, "pass@{k}", TANG + "no baseline, like s"),
}
SETTINGS = ((4, 8), (8, 8))  # k, n
RATES = (.1, .3, .6, .9)  # of success
GRADED = ((.1, .3, .6), (.3, .3, .4), (.6, .3, .1), (.1, .8, .1))  # probabilities of the rewards 1, .5, 0


def takes(formula, k, n):
    return n > k or not formula.larger


# -------------------------------------------------------------------------------------------------------- enumeration

class Prompt(NamedTuple):
    """Probabilities and rewards of its completions, float64 [V] each."""
    pi: torch.Tensor
    r: torch.Tensor


def prompt(probabilities, rewards):
    return Prompt(torch.tensor(probabilities, dtype=torch.float64), torch.tensor(rewards, dtype=torch.float64))


def binary(p):
    """A prompt with one correct completion, of probability p, and two wrong ones."""
    return prompt((p, (1 - p) * 2 / 3, (1 - p) / 3), (1.0, 0.0, 0.0))


def graded(probabilities):
    return prompt(probabilities, (1.0, .5, 0.0))


@lru_cache
def tuples(V, n):
    """All T = V^n tuples of n completions, [T, n]."""
    return torch.cartesian_prod(*[torch.arange(V)] * n)


@lru_cache
def listed(function, rewards, k, n):
    """Coefficients of all tuples: (sums per completion [T, V], total [T, 1], sum of squares [T])."""
    y = tuples(len(rewards), n)
    c = function(torch.tensor(rewards, dtype=torch.float64)[y], k)  # [T, n]
    by_completion = torch.zeros(len(y), len(rewards), dtype=c.dtype).scatter_add(1, y, c)
    return by_completion, c.sum(1, keepdim=True), c.square().sum(1)


def moments(function, x, k, n):
    """Of the estimate g on prompt x: (expectation per logit [V], variance summed over logits, expected sum of
    c_i^2)."""
    by_completion, total, squares = listed(function, tuple(x.r.tolist()), k, n)
    g = by_completion - total * x.pi  # [T, V]: grad log pi(y) = onehot(y) - pi
    chance = x.pi[tuples(len(x.r), n)].prod(1)  # [T]
    mean = chance @ g
    return mean, chance @ (g - mean).square().sum(1), chance @ squares


def gradient(objective, x, k, n):
    """Exact gradient of an objective with respect to the logits, [V]."""
    logits = x.pi.log().requires_grad_()
    return torch.autograd.grad(objective(torch.softmax(logits, 0), x.r, k, n), logits)[0]


def compared(mean, exact):
    """(cosine, scale) of an expected estimate against an exact gradient; scale is the least-squares factor. The cosine
    is None if the expectation is zero."""
    scale = (mean @ exact / (exact @ exact)).item()
    if mean.norm() < 1e-12:
        return None, 0.0
    return (mean @ exact / (mean.norm() * exact.norm())).item(), scale


class Measured(NamedTuple):
    """own, target: (cosine, scale) against the gradients of the formula's own objective and of pass@k. variance: n
    times the variance of g, divided by its squared expectation. squares: n times the expected sum of c_i^2, divided by
    the squared scale to its own objective. Both are None if the expectation is zero."""
    own: tuple
    target: tuple
    variance: float | None
    squares: float | None


def measured(formula, prompts, k, n):
    """A formula on several prompts, each with its own logits."""
    means, variances, squares = zip(*(moments(formula.function, x, k, n) for x in prompts))
    mean = torch.cat(means)
    own = compared(mean, torch.cat([gradient(formula.own, x, k, n) for x in prompts]))
    target = compared(mean, torch.cat([gradient(pass_at_k, x, k, n) for x in prompts]))
    if own[0] is None:
        return Measured(own, target, None, None)
    variance = n * sum(variances).item() / mean.square().sum().item()
    return Measured(own, target, variance, n * sum(squares).item() / len(prompts) / own[1] ** 2)


def weight(function, p, k, n):
    """(w, squares) on a prompt with success rate p and binary rewards, where E g = w grad p."""
    result = measured(Formula(function, mean_reward, "", ""), [binary(p)], k, n)
    return result.own[1], result.squares


# ----------------------------------------------------------------------------------------------------------- the page

def number(value):
    """Three significant digits. "0", "1" and "-1" are only printed for values that equal them up to rounding."""
    if value is None:
        return "–"
    if abs(value) < 1e-9:
        return "0"
    if abs(abs(value) - 1) < 1e-9:
        return f"{value:.0f}"
    text = f"{value:.3g}"
    return f"{value:.6f}".rstrip("0") if text in ("1", "-1") else text


def comparison(prompts, k, n, takes_binary):
    """Table of cosines, scales and noise."""
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
    """Table of weights at several success rates."""
    lines = [[f"grad pass@{k}: {k} (1-p)^{k - 1}", *(number(k * (1 - p) ** (k - 1)) for p in RATES)]]
    for name, formula in FORMULAS.items():
        if takes(formula, k, n):
            pairs = [weight(formula.function, p, k, n) for p in RATES]
            lines.append([name, *(f"{number(w)} ({number(spread)})" for w, spread in pairs)])
    return table(["formula", *(f"p = {p:g}" for p in RATES)], lines)


def one_group(k, n):
    """Table of coefficients of one group with K of n samples correct."""
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
    """The findings as list items, with numbers computed here; tests check the identities."""
    binary_rewards = {name: measured(formula, [binary(p) for p in RATES], 4, 8) for name, formula in FORMULAS.items()}
    graded_rewards = measured(FORMULAS["verl grpo_passk"], [graded(row) for row in GRADED], 8, 8)
    cosine = {name: number(result.own[0]) for name, result in binary_rewards.items()}
    squares = {name: number(result.squares) for name, result in binary_rewards.items()}
    easy = {name: number(weight(formula.function, .6, 4, 8)[1]) for name, formula in FORMULAS.items()}
    hard = {name: number(weight(formula.function, .1, 4, 8)[1]) for name, formula in FORMULAS.items()}
    return [
        *item("**Unbiased for pass@k** at every n they accept: PKPO's three estimators, MaxPO and ours. Sample by "
              "sample, PKPO's `s` equals our `plain`, `sloo_minus_one` our `loo`, and MaxPO our `centred`. They differ "
              f"in noise. At k = 4 and n = 8 the squares are {hard['PKPO s']} (`s`), {hard['PKPO sloo']} (`sloo`), "
              f"{hard['PKPO sloo_minus_one']} (`sloo_minus_one`) and {hard['MaxPO']} (MaxPO) at a success rate of .1, "
              f"and {easy['PKPO s']}, {easy['PKPO sloo']}, {easy['PKPO sloo_minus_one']} and {easy['MaxPO']} at .6."),
        *item("**verl's `grpo_passk`** without the standard deviation equals our `loo` at k = n; its k is the group "
              "size. With it and binary rewards, all weights grow by the same factor √n, because one correct sample "
              "of n has the standard deviation 1/√n. With graded rewards the direction changes (cosine "
              f"{number(graded_rewards.own[0])})."),
        *item("**rLLM's `pkpo`** is `1-k/n` times MaxPO, sample by sample: the direction of grad pass@k for k < n, "
              "zero at k = n."),
        *item("**RUCAIBox**: its coefficients are rLLM's divided by `k√(rho(1-rho))`, which varies between groups: "
              f"cosine {cosine['RUCAIBox Pass@k Training']} to grad pass@4. They are 0 at k = n, and if none or all of "
              "the samples are correct."),
        *item("**MaxRL**: `r_i/K` and `r_i/K-1/n` are unbiased for the objective of order n. Dropping the 1/n if no "
              f"sample is correct gives order `n-1`. Their squares are {squares['MaxRL']}, "
              f"{squares['MaxRL, 1/n always']} and {squares['MaxRL, 1/n unless K = 0']}."),
        *item("**GRPO** without the standard deviation is in expectation `(n-1)/n` times the gradient of the mean, "
              "because its baseline includes the sample itself. With it, the cosine over prompts with different "
              f"success rates is {cosine['GRPO']}."),
        *item(f"**RS-GRPO**: cosine {cosine['RS-GRPO']} and scale {number(binary_rewards['RS-GRPO'].own[1])} to the "
              "gradient of its objective over the four prompts, because the mean in its denominator is taken over the "
              "same n samples."),
        *item("**NSR** is unbiased for grad P(correct), like GRPO without the standard deviation up to `(n-1)/n`; "
              "W-REINFORCE gives 1.1 times that gradient. In expectation, pushing wrong samples down equals pushing "
              f"correct ones up. The squares at a success rate of .1 differ: {hard['NSR']}, {hard['W-REINFORCE']} and, "
              f"for ours with a baseline, {hard['ours, mean']}."),
        ""]


INTRODUCTION = (
    "Generated by `python results/elsewhere.py --draw`. Each formula is a short function in "
    "[elsewhere.py](elsewhere.py). Its expectation and variance are exact, computed over all tuples of n samples of a "
    "tabular policy. The estimate is g = sum_i c_i grad log pi(y_i); if a project averages over the group, c_i "
    "includes the 1/n. Everything else the projects do (clipping, KL, optimiser, normalisation over tokens) is left "
    "out. This page compares formulas as they stood on the day they were read, not methods; no number says how well "
    "anything trains.",
    "A constant scale only changes the learning rate, and Adam ignores it; a scale that differs between prompts "
    "changes the objective. Cosines are therefore taken over four prompts jointly, each with its own logits. *Scale*: "
    "the least-squares factor from the gradient to the expected estimate. *Variance*: n times the variance of g, "
    "summed over logits and prompts, divided by its squared expectation. *Squares*: n times the expected sum of c_i², "
    "averaged over prompts, divided by the squared scale to its own objective.",
    "With only three completions the same one is drawn many times. Two samples of a language model are almost never "
    "the same text and their gradients are nearly orthogonal, so there the variance is proportional to the squares. "
    "Compare variance and squares only between formulas with the same objective. 1 and 0 are printed only for values "
    "equal to 1 and 0 to nine digits; – means that the expectation is zero.")
PICTURE = (
    "![Three panels against the success rate p, n = 8. Left: weight of a prompt under each formula, each curve divided "
    "by its mean: verl's pass@8 falls most steeply from hard to easy prompts, then pass@4, RUCAIBox, MaxRL and "
    "RS-GRPO; GRPO rises slightly at both ends; the mean and NSR are flat. Middle: squares of four unbiased estimators "
    "of pass@4, close together on hard prompts and orders of magnitude apart on easy ones: s highest, then sloo, loo, "
    "centred. Right: squares for other objectives; MaxRL without 1/n rises towards easy prompts, NSR and W-REINFORCE "
    "towards hard ones, MaxRL with 1/n and the mean fall at both ends.](figures/elsewhere.png)")


def page():
    """The text of results/elsewhere.md."""
    text = ["# Formulas of other projects for pass@k, by exact enumeration", ""]
    for part in INTRODUCTION:
        text += paragraph(part)
    text += ["## Findings", "", *findings(), *paragraph(PICTURE)]
    rates = ", ".join(f"{p:g}" for p in RATES)
    probabilities = ", ".join("(" + ", ".join(f"{c:g}" for c in row) + ")" for row in GRADED)
    for k, n in SETTINGS:
        text += [f"## k = {k}, n = {n}", "",
                 f"Binary rewards, four prompts with success rates {rates}:", "",
                 comparison([binary(p) for p in RATES], k, n, True), "",
                 *paragraph("Weight w of a prompt by its success rate p, from E g = w grad p; in brackets the squares "
                            "of that prompt alone, divided by w²:"),
                 by_rate(k, n), "",
                 f"Coefficients of correct / wrong samples in a group with K of {n} samples correct:", "",
                 one_group(k, n), "",
                 *paragraph(f"Graded rewards 1, .5 and 0, four prompts with probabilities {probabilities}; pass@k is "
                            "the expected largest reward. Formulas for binary rewards are left out:"),
                 comparison([graded(row) for row in GRADED], k, n, False), ""]
    text += ["## Sources", "",
             *paragraph("q_i: largest reward in a k-subset, averaged over the k-subsets with i; rho_-i: over those "
                        "without i; rho: over all; K: number of correct samples in the group. If paper and program "
                        "differ, we follow the program. Read in stored copies at the commits given; projects may have "
                        "changed since."),
             sources()]
    return "\n".join(text) + "\n"


# --------------------------------------------------------------------------------------------------------- the figure

CURVES = {  # palette of Okabe and Ito, each with its own line style
    "black": ("#000000", "-"), "blue": ("#0072B2", "-"), "vermilion": ("#D55E00", (0, (1, 1))),
    "green": ("#009E73", (0, (5, 1, 1, 1))), "purple": ("#CC79A7", (0, (3, 1))), "sky": ("#56B4E9", (0, (6, 2, 1, 2))),
    "orange": ("#E69F00", (0, (4, 2)))}
WEIGHTS = {  # formulas with the same weights share a curve
    "PKPO s": ("pass@4: PKPO, MaxPO, rLLM, ours", "blue"), "verl grpo_passk": ("pass@8: verl", "sky"),
    "RUCAIBox Pass@k Training": ("RUCAIBox, k = 4", "purple"), "MaxRL, 1/n unless K = 0": ("MaxRL, T = 7", "green"),
    "RS-GRPO": ("RS-GRPO", "orange"), "GRPO": ("GRPO", "vermilion"), "NSR": ("mean, NSR", "black")}
EXACT = {"PKPO s": ("s, plain", "vermilion"), "PKPO sloo": ("sloo", "green"),
         "PKPO sloo_minus_one": ("sloo_minus_one, loo", "blue"), "MaxPO": ("MaxPO, centred", "purple")}
OTHERS = {"MaxRL": ("MaxRL", "vermilion"), "MaxRL, 1/n unless K = 0": ("MaxRL, 1/n unless K = 0", "green"),
          "ours, mean": ("mean, GRPO without deviation", "blue"), "NSR": ("NSR", "black"),
          "W-REINFORCE": ("W-REINFORCE", "purple")}


def draw(path, k=4, n=8):
    """Draw the figure; it needs no records."""
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot
    rates = [(i + .5) / 40 for i in range(40)]
    figure, axes = pyplot.subplots(1, 3, figsize=(10.6, 3.1))
    titles = ("weight of a prompt", "unbiased estimators of pass@4", "other objectives")
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
    print("wrote results/elsewhere.md and results/figures/elsewhere.png")


if __name__ == "__main__":
    with consoles():
        main()
