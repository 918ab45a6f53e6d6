"""Train a language model on a k-sample objective with PPO: pass@k, majority vote, MaxRL or the mean reward.

Paper: Tang, Zheng, Synnaeve, Munos 2025, "Optimizing Language Models for Inference Time Objectives using Reinforcement
Learning", arXiv 2503.19595 (as we read it).
Derivation: docs/ppo_passk.md

The objective is the expected value of a function f of k samples, not of one:

    J(theta) = E_{y_1..y_k ~ pi(.|x)} [ f(x, y_1..y_k) ]

    --objective  f(x, y_1..y_k)
    mean         (1/k) sum_i r(x, y_i)
    passk        max_i r(x, y_i)                       pass@k for r in {0, 1}, max@k for real-valued r
    maxrl        sum_{j<=k} (1/j) max_{i<=j} r(x, y_i)
    majority     reward of the most frequent answer; tied answers share it equally; 0 if no sample has an answer

The leave-one-out gradient (Lemma 1) is unbiased because f(y_{-i}), the value without sample i, does not depend on y_i:

    A_i = f(y_1..y_k) - f(y_{-i}),      grad J = E[ sum_i A_i grad log pi(y_i|x) ]

With n > k samples per prompt the estimate is averaged over all subsets of size k (for majority: over n/k disjoint
groups). It stays unbiased and has less variance. PPO turns the coefficients A_i into an update, with per-token ratios
rho_t = pi(y_t) / pi_old(y_t), summed over tokens and samples:

    loss = -(1/B) sum_prompts sum_i sum_t min(rho_t A_i, clip(rho_t, 1-eps, 1+eps) A_i)

At rho = 1 its gradient is minus the estimate above. By default (one epoch, one minibatch) rho is always 1, up to
rounding: --clip has no effect, and the method is REINFORCE with a leave-one-out baseline.

Symbols: B prompts per step, n samples per prompt (--samples), k the test-time budget (--k), r the reward, tau the
temperature, beta the KL coefficient.

maxrl is MaxRL of order k (arXiv 2602.02710): the sum of (1/j) pass@j over j <= k. As k grows it approaches log p plus a
constant, where p is the probability that a sample is correct. Its estimate, the same sum over the estimates of pass@j,
is unbiased for every k <= n; at k = n it is r_i/c, where c of the n samples are correct. For real-valued r, which that
paper does not treat, max@j replaces pass@j.
--k 8:1 anneals k linearly from 8 to 1, rounded, as in PKPO (arXiv 2505.15201). Evaluation then reports k = 8.

Differences from the paper:
1) n may exceed k.
2) There is no value function: the leave-one-out term is the baseline. At k = 1 even that is missing, A_i = r_i/n, so
   a prompt whose samples are all correct still moves the policy.
3) The KL penalty is part of the reward, beta (log pi - log ref), with a leave-one-out baseline. Its expected gradient
   is exactly that of KL(pi || ref); differentiating a sampled KL estimate would give a different one.
4) LoRA is trained instead of all weights.
5) maxrl and --k 8:1 are additions.
6) With --rollouts, samples come from the distribution q of an inference engine and are weighted by pi(y|x) / q(y|x).
   This is exact for the mean and the KL. For passk with loo, passk_reweighted is exact; its docstring quantifies the
   bias of the plain weights.

    CPU, embedded model:  python ppo_passk.py
    GPU, 4-bit LoRA:      python ppo_passk.py --model Qwen/Qwen2.5-1.5B-Instruct --task gsm8k --prompts 32 --lr 2e-5
"""
from support import flags


def budget(text: str) -> int | str:
    """Parse --k: an integer, or FIRST:LAST, which stays a string.  Raises ValueError."""
    first, colon, last = text.partition(":")
    if not colon:
        return int(text)
    return f"{int(first)}:{int(last)}"


def parser() -> flags.Parser:
    p = flags.parser(__doc__, "ppo_passk", samples=16, prompts=64, steps=200, exact=True)
    p.add_argument("--objective", choices=["mean", "passk", "maxrl", "majority"], default="passk",
                   help="function f of k samples: mean reward, best reward (pass@k), MaxRL, or reward of the majority "
                        "answer")
    p.add_argument("--k", type=budget, default=8,
                   help="test-time budget: samples per problem at test time (at most --samples); for maxrl its order; "
                        "FIRST:LAST, such as 8:1, anneals k linearly during training (passk, maxrl)")
    p.add_argument("--estimator", choices=["loo", "centred", "plain", "constant", "solved"], default="loo",
                   help="baseline of the advantages. loo: leave one out, as in the paper; centred: subsets without the "
                        "sample (needs --samples above --k); plain: none. For maxrl with --k equal to --samples also "
                        "constant: loo minus 1/samples (unbiased), and solved: the same, but only for prompts with a "
                        "correct sample (its expected gradient is that of order k - 1)")
    p.add_argument("--epochs", type=int, default=1,
                   help="PPO epochs over the samples of a step; with 1 epoch and 1 minibatch the ratio stays 1, so "
                        "nothing is clipped")
    p.add_argument("--minibatches", type=int, default=1,
                   help="optimiser steps per epoch, each on its share of the prompts")
    p.add_argument("--clip", type=float, default=0.2,
                   help="PPO clip range eps: the per-token ratio is clipped to 1 - eps .. 1 + eps")
    return p


if __name__ == "__main__":
    flags.answer(parser().parse_args)  # answer --help and reject bad flags before the slow imports

import time
from collections import Counter
from math import comb

import torch

import common
from common import kl_coefficients
from support import processes
from support.errors import UserError
from support.folder import Folder
from support.run import (
    Run,
    batch_of,
    end_of_step,
    evaluate_after,
    evaluate_before,
    examples,
    sample_stats,
    set_up,
    start,
)
from tasks import Problem, Task

# ------------------------------------------------------------------------------------------------ the paper's equations

def vote(answers: list, rewards: list[float]) -> float:
    """f of the majority objective: mean reward of the samples that gave the most frequent answer; tied answers share
    equally; 0 if nobody votes.  answers: [k] hashables, None = no vote; rewards: [k] floats."""
    votes = Counter(a for a in answers if a is not None)
    if not votes:
        return 0.0
    top = max(votes.values())
    winners = {a for a, v in votes.items() if v == top}
    total = sum(r for a, r in zip(answers, rewards) if a in winners)
    return total / (top * len(winners))


def advantages(rewards: torch.Tensor, k: int, objective: str, answers: list[list] | None = None,
               estimator: str = "loo") -> torch.Tensor:
    """Coefficients A_i such that E[sum_i A_i grad log pi(y_i|x)] = grad E[f(y_1..y_k)] for every prompt (sum
    convention).

    rewards    [B, n] tensor: float64 stays float64, integers and booleans become float32
    k          number of samples that f takes, 1 <= k <= n
    objective  "mean", "passk" (max@k for graded rewards), "maxrl" or "majority" (needs answers, and n a multiple of k)
    answers    [B][n] hashables; None = no answer: it uses up a draw but casts no vote
    estimator  I runs over the subsets of k samples (majority: over the n/k groups), and f of the empty set is 0:
               "loo"      (k/n) mean of f(I) - f(I without i) over the I that contain i
               "centred"  (k/n) (mean of f(I) over the I that contain i - mean over the others); needs n > k
               "plain"    (k/n) mean of f(I) over the I that contain i: no baseline
               For maxrl, these are the sum over j <= k of (1/j) times the estimate for max@j. With k = n also:
               "constant" loo minus 1/n
               "solved"   loo minus 1/n for prompts with a reward above 0, else loo. Biased by -(1/n) grad P(a reward
                          is above 0): for rewards in {0, 1} its expectation is the gradient of order n - 1
    Returns [B, n].  Raises ValueError for any other input.

    Derivation: grad pi = pi grad log pi, so grad E[f(I)] = E[f(I) sum_{i in I} grad log pi(y_i)]. A baseline that does
    not depend on y_i changes nothing, because E[grad log pi] = 0. Averaged over all C(n,k) subsets, sample i gets
    C(n-1,k-1) / C(n,k) = k/n times its mean over the subsets that contain it.
    Source: arXiv 2503.19595, Lemma 1. All k-subsets: also PKPO (arXiv 2505.15201); centred: MaxPO (arXiv 2606.06080);
    constant: MaxRL (arXiv 2602.02710); solved: (r - mean) / mean, as MaxRL is often implemented.
    """
    check_samples(rewards, k, objective, answers, estimator)
    r = rewards if rewards.is_floating_point() else rewards.float()  # [B, n]
    if objective == "majority":
        return majority_advantages(r, answers, k, estimator)
    if objective == "mean":
        return mean_advantages(r, k, estimator)
    if objective == "maxrl":
        return maxrl_advantages(r, k, estimator)
    return passk_advantages(r, k, estimator)


def maxrl_advantages(r: torch.Tensor, k: int, estimator: str) -> torch.Tensor:
    """MaxRL of order k, for r [B, n] -> [B, n]. For loo and binary rewards with c correct samples, each correct sample
    gets sum_{j<=k} C(n-c, j-1) / (j C(n, j)), which is 1/c at k = n, and each wrong sample 0."""
    shifted = estimator in ("constant", "solved")
    passk_estimator = "loo" if shifted else estimator
    A = torch.zeros_like(r)  # [B, n]
    for j in range(1, k + 1):
        A = A + passk_advantages(r, j, passk_estimator) / j
    if not shifted:
        return A
    solved = (r > 0).any(1, keepdim=True)  # [B, 1]
    shift = torch.where(solved | (estimator == "constant"), 1.0, 0.0).to(r)
    return A - shift / r.shape[1]


def passk_leave_one_out(r: torch.Tensor, k: int) -> torch.Tensor:
    """pass@k (max@k) with the leave-one-out estimator, for r [B, n] -> [B, n]:
    A_i = (k/n) mean of max_I r - max_{I without i} r over the k-subsets I that contain i.

    This difference is 0 unless i is the unique maximum of I. With rewards in ascending order, s_0 <= s_1 <= ..., it is
    then s_i - s_j, where j < i is the runner-up in I and the other k-2 members lie below j. That is the case in
    C(j, k-2) of the C(n-1, k-1) subsets with i. Because (k/n) / C(n-1, k-1) = 1 / C(n, k),
    A_i = sum_{j<i} (s_i - s_j) C(j, k-2) / C(n, k). For r in {0, 1} with c correct samples, each correct sample gets
    C(n-c, k-1) / C(n, k), and each wrong sample 0."""
    n = r.shape[1]
    if k == 1:
        return r / n  # f of the empty set is 0: no baseline
    s, order = r.sort(dim=1)  # [B, n]
    gap = s[:, :, None] - s[:, None, :]  # s_i - s_j  [B, i, j]
    share = share_of_subsets(r, k, range(n), k - 2)  # C(j, k-2) / C(n, k)  [j]
    A = (gap * share).tril(-1).sum(-1)  # [B, n], in sorted order
    return torch.zeros_like(r).scatter(1, order, A)


def passk_reweighted(r: torch.Tensor, w: torch.Tensor, k: int) -> torch.Tensor:
    """`passk_leave_one_out` for samples drawn from another distribution q, with weights w = pi(y|x) / q(y|x); r, w and
    the result are [B, n]. Every subset counts with the product of its weights, so the expectation of
    sum_i w_i A_i grad log pi(y_i) is the exact gradient.

    A_i = sum_{j<i} (s_i - s_j) w_j e_{k-2}(w_0..w_{j-1}) / C(n, k), where e_m is the elementary symmetric polynomial:
    C(j, m) times the mean product of m of the weights w_0..w_{j-1}. For r in {0, 1} this is
    r_i e_{k-1}(w of the wrong samples) / C(n, k).

    Multiplying `passk_leave_one_out` by w_i alone keeps the direction of each prompt's gradient, but scales it by
    ((1 - p_q) / (1 - p))^(k-1), where p and p_q are the probabilities of a correct sample under pi and q. The expected
    estimates compared with the exact gradient, for n = k samples from four completions, two correct and two wrong:
    pi = .14 .08 .44 .34 (p = .22), q = .10 .10 .36 .44 (p_q = .20):
        k 2, no weights               cosine 0.970, scale 0.917
        k 2, w_i alone                cosine 1.000, scale 1.026
        k 2, w_i alone, w at most 1.2 cosine 0.998, scale 0.923
        k 2, this                     cosine 1.000, scale 1.000
        k 2, this, w at most 1.2      cosine 0.998, scale 0.891
        k 8, no weights               cosine 0.970, scale 1.067
        k 8, w_i alone                cosine 1.000, scale 1.194
        k 8, w_i alone, w at most 1.2 cosine 0.998, scale 1.074
        k 8, this                     cosine 1.000, scale 1.000
        k 8, this, w at most 1.2      cosine 0.998, scale 0.837
        k 32, no weights              cosine 0.970, scale 1.960
        k 32, w_i alone               cosine 1.000, scale 2.192
        k 32, w_i alone, w at most 1.2 cosine 0.998, scale 1.973
        k 32, this                    cosine 1.000, scale 1.000
        k 32, this, w at most 1.2     cosine 0.998, scale 0.654
    """
    n = r.shape[1]
    if k == 1:
        return r / n
    s, order = r.sort(dim=1)  # [B, n]
    w = w.to(s).gather(1, order)
    gap = s[:, :, None] - s[:, None, :]  # s_i - s_j  [B, i, j]
    subsets = share_of_subsets(r, k, range(n), k - 2)
    products = w * mean_products(w, k - 2)  # [B, j]
    share = subsets * products
    parts = gap * share[:, None]
    A = parts.tril(-1).sum(-1)  # [B, n], in sorted order
    return torch.zeros_like(r).scatter(1, order, A)


def mean_products(w: torch.Tensor, m: int) -> torch.Tensor:
    """For each j, the mean product of m of the weights w_0..w_{j-1} (0 if j < m), for w [B, n] -> [B, n].

    Dynamic programme over j: of the subsets of a given size of w_0..w_j, a fraction size / (j + 1) contains w_j."""
    size = torch.arange(m + 1).to(w)
    mean = torch.zeros(len(w), m + 1).to(w)  # mean product of 0..m of the weights so far
    mean[:, 0] = 1
    means = []
    for j in range(w.shape[1]):
        means.append(mean[:, m])
        w_j = w[:, j:j + 1]
        one_smaller = mean.roll(1, 1)
        without_j = mean * (j + 1 - size)
        with_j = w_j * one_smaller * size
        mean = (without_j + with_j) / (j + 1)
    return torch.stack(means, 1)


def share_of_subsets(r: torch.Tensor, k: int, top: range, bottom: int) -> torch.Tensor:
    """C(t, bottom) / C(n, k) for each t in `top`, 0 where t or bottom is negative -> [len(top)], with r's dtype and
    device; n is the number of samples in r [B, n]. Python's integers keep large binomials exact."""
    all_subsets = comb(r.shape[1], k)
    shares = []
    for t in top:
        possible = min(t, bottom) >= 0
        ways = comb(t, bottom) if possible else 0
        shares.append(ways / all_subsets)
    return r.new_tensor(shares)


def passk_advantages(r: torch.Tensor, k: int, estimator: str) -> torch.Tensor:
    """pass@k (max@k) with any estimator, for r [B, n] -> [B, n]. In ascending order the maximum of a subset is its last
    member, so binomials count the subsets that share a maximum."""
    if estimator == "loo":
        return passk_leave_one_out(r, k)
    n = r.shape[1]
    s, order = r.sort(dim=1)  # [B, n]
    if estimator == "centred":
        s = s - s[:, :1]  # shifting the rewards of a prompt leaves A unchanged; so equal rewards give exactly 0
    # Sum of f / C(n, k) over the subsets that contain i. Their last member is i, in C(i, k-1) of them, or a j > i, in
    # C(j-1, k-2) of them. The sum is (k/n) times the mean of f over these subsets: C(n-1, k-1) / C(n, k) = k/n.
    one_less = range(-1, n - 1)  # j-1 for each j
    i_last = s * share_of_subsets(r, k, range(n), k - 1)
    j_last = s * share_of_subsets(r, k, one_less, k - 2)
    later = j_last.sum(1, keepdim=True) - j_last.cumsum(1)  # j > i
    with_i = i_last + later
    if estimator == "plain":
        return torch.zeros_like(r).scatter(1, order, with_i)
    # The same sum over the subsets without i. Their last member is a j < i, in C(j, k-1) of them, or a j > i, in
    # C(j-1, k-1) of them. A mean needs the factor C(n, k) / C(n-1, k) = n / (n-k), and then k/n as above.
    j_last = s * share_of_subsets(r, k, one_less, k - 1)
    earlier = i_last.cumsum(1) - i_last  # j < i
    total = earlier + j_last.sum(1, keepdim=True)
    without_i = total - j_last.cumsum(1)
    scale = k / (n - k)
    A = with_i - without_i * scale
    return torch.zeros_like(r).scatter(1, order, A)


def mean_advantages(r: torch.Tensor, k: int, estimator: str) -> torch.Tensor:
    """f = mean reward of k samples, for r [B, n] -> [B, n].

    f(I) - f(I without i) = (r_i - mean of I without i) / k. Averaged over all I with i, times k/n, this is
    (r_i - mean_{j != i} r_j) / n; the centred estimate is the same. k matters only at k = 1: f of the empty set is 0,
    so the leave-one-out estimate is r / n, without a baseline."""
    n = r.shape[1]
    if n == 1 or (estimator == "loo" and k == 1):
        return r / n
    if estimator == "plain":
        others = (k - 1) * mean_of_others(r)
        return (r + others) / n
    d = r - r.amin(1, keepdim=True)  # shifting the rewards changes nothing; so equal rewards give exactly 0
    return (d - mean_of_others(d)) / n


def mean_of_others(r: torch.Tensor) -> torch.Tensor:
    """mean_{j != i} r_j for each i, for r [B, n] -> [B, n]."""
    n = r.shape[1]
    others = r.sum(1, keepdim=True) - r
    return others / (n - 1)


def majority_advantages(r: torch.Tensor, answers: list[list], k: int, estimator: str) -> torch.Tensor:
    """f = vote(answers, rewards), averaged over n/k disjoint groups of k samples, for r [B, n] and answers [B][n] ->
    [B, n]."""
    A = torch.zeros_like(r)  # [B, n]
    n = r.shape[1]
    groups = [slice(first, first + k) for first in range(0, n, k)]
    for b, rewards in enumerate(r.tolist()):
        votes = answers[b]
        f = [vote(votes[g], rewards[g]) for g in groups]
        for j, g in enumerate(groups):
            if estimator == "loo":
                gain = vote_leave_one_out(votes[g], rewards[g])
                A[b, g] = r.new_tensor(gain)
            elif estimator == "centred":
                others = f[:j] + f[j + 1:]
                baseline = sum(others) / len(others)
                A[b, g] = f[j] - baseline
            else:
                A[b, g] = f[j]
    return A * (k / n)  # averages over the n/k groups


def vote_leave_one_out(answers: list, rewards: list[float]) -> list[float]:
    """f(y_1..y_k) - f(y_{-i}) for each sample i of a group of k; samples with the same answer and reward share it."""
    gain = {}
    for i, sample in enumerate(zip(answers, rewards)):
        if sample not in gain:
            other_answers = answers[:i] + answers[i + 1:]
            other_rewards = rewards[:i] + rewards[i + 1:]
            without = vote(other_answers, other_rewards)
            gain[sample] = vote(answers, rewards) - without
    return [gain[sample] for sample in zip(answers, rewards)]


def check_samples(rewards: torch.Tensor, k: int, objective: str, answers: list[list] | None, estimator: str) -> None:
    """Raises ValueError if `advantages` is not defined for these arguments."""
    if objective not in ("mean", "passk", "maxrl", "majority"):
        raise ValueError(f"unknown objective {objective!r}: choose mean, passk, maxrl or majority")
    if estimator not in ("loo", "centred", "plain", "constant", "solved"):
        raise ValueError(f"unknown estimator {estimator!r}: choose loo, centred, plain, constant or solved")
    if rewards.dim() != 2:
        raise ValueError(f"rewards must be [prompts, samples], not of shape {tuple(rewards.shape)}")
    B, n = rewards.shape
    if not 1 <= k <= n:
        raise ValueError(f"k must be between 1 and the {n} samples per prompt, not {k}")
    if estimator == "centred" and n == k:
        raise ValueError("the centred estimator compares subsets with and without a sample, so it needs more than "
                         f"k = {k} samples")
    if estimator in ("constant", "solved") and (objective != "maxrl" or n > k):
        raise ValueError(f"the estimator {estimator!r} needs the objective maxrl and k equal to the {n} samples per "
                         "prompt")
    if objective != "majority":
        return
    if answers is None:
        raise ValueError("the majority objective needs answers")
    if [len(row) for row in answers] != [n] * B:
        raise ValueError(f"answers must match the rewards, {B} lists of {n}")
    if n % k:
        raise ValueError(f"the majority objective needs the samples per prompt to be a multiple of k = {k}, not {n}")


def ppo_loss(logps: torch.Tensor, old_logps: torch.Tensor, mask: torch.Tensor, A: torch.Tensor,
             clip: float) -> torch.Tensor:
    """PPO's clipped loss, -sum_i sum_t min(rho A_i, clip(rho) A_i), over R samples with up to T tokens -> scalar.

    logps (with gradient), old_logps, mask (1 on completion tokens)  [R, T];  A  [R]
    At rho = 1 the gradient is -sum_i A_i grad log pi(y_i). It sums over tokens: dividing by the length would change the
    estimator."""
    rho = (logps - old_logps).exp()  # [R, T]
    A = A[:, None]
    clipped = rho.clamp(1 - clip, 1 + clip)
    objective = torch.minimum(rho * A, clipped * A)
    return -(objective * mask).sum()


# ------------------------------------------------------------------------------------------------------------- training

def check_flags(args: flags.Flags) -> None:
    """Check values and combinations that argparse cannot.  Raises UserError."""
    exact = args.objective == "passk" and args.estimator == "loo"
    if args.rollouts and exact and not args.rollouts_correction:
        args.rollouts_correction = "exact"
    flags.check_common(args, positive=("epochs", "minibatches"), not_negative=("clip",))
    if args.rollouts_correction == "exact" and not exact:
        raise UserError("--rollouts-correction exact needs --objective passk and --estimator loo")
    first, last = ends(args.k)
    if not 1 <= last <= first:
        raise UserError(f"--k must be at least 1, and FIRST:LAST must not increase; it is {args.k}")
    if first > args.samples:
        raise UserError(f"--k {args.k} exceeds --samples {args.samples}: draw at least k samples per prompt")
    if last < first and args.objective not in ("passk", "maxrl"):
        raise UserError(f"--k {args.k} needs --objective passk or maxrl: {args.objective} trains for a single k")
    if args.minibatches > args.prompts:
        raise UserError(f"--minibatches {args.minibatches} exceeds --prompts {args.prompts}")
    if args.objective == "majority" and args.samples % first:
        raise UserError(f"--objective majority needs --samples to be a multiple of --k: {args.samples} is not a "
                        f"multiple of {args.k}")
    if args.epochs * args.minibatches == 1:
        flags.refuse(args, ["clip"], "with one epoch and one minibatch, where the ratio is 1")
    if args.estimator == "centred" and args.samples == first:
        raise UserError("--estimator centred needs --samples greater than --k")
    if args.estimator in ("constant", "solved") and (args.objective != "maxrl" or last < args.samples):
        raise UserError(f"--estimator {args.estimator} needs --objective maxrl with --k equal to --samples")


def ends(k: int | str) -> tuple[int, int]:
    """First and last k of training: (8, 1) for --k 8:1, (8, 8) for --k 8."""
    first, _, last = str(k).partition(":")
    return int(first), int(last or first)


def k_of(number: int, args: flags.Flags) -> int:
    """k of training step `number` (1, 2, ...)."""
    first, last = ends(args.k)
    progress = (number - 1) / max(1, args.steps - 1)
    return round(first + (last - first) * progress)


def step(policy: common.Policy, task: Task, optimizer: torch.optim.Optimizer, problems: list[Problem], number: int,
         args: flags.Flags) -> tuple[dict, list[dict]]:
    """Run training step `number` (1, 2, ...) on B problems -> (metrics by the keys of METRICS in support/run.py,
    examples to print)."""
    B = len(problems)
    n = args.samples
    tau = args.temperature
    common.set_rate(optimizer, args.lr, number, args.steps)
    started = time.time()

    # Sample. Each prompt has its own seed, so its n samples do not depend on the rest of the batch.
    questions = [p.prompt for p in problems]
    prompts = policy.encode(questions, task.chat)
    seeds = [common.seed_of(args.seed, number, b) for b in range(B)]
    drawn = common.sample(policy, prompts, n, seeds, tau, task.max_new_tokens)
    y = [row for rows in drawn.lists() for row in rows]  # B n completions; completion j belongs to prompt j // n
    old_logps = drawn.logps.flatten(0, 1)  # [B n, T]
    seconds = time.time() - started

    # Verify.
    owners = [p for p in problems for _ in range(n)]  # B n, the problem of each completion
    texts = policy.texts(y, prompts)
    rewards = processes.rewards(task, owners, texts)
    rewards = rewards.float().view(B, n)
    answers = None
    if args.objective == "majority":
        extracted = [task.extract(text) for text in texts]
        answers = [extracted[b * n:b * n + n] for b in range(B)]  # [B][n]

    # Compute the coefficients.
    k = k_of(number, args)
    coefficients = advantages(rewards, k, args.objective, answers, args.estimator)  # [B, n]
    if args.rollouts_correction == "exact":
        coefficients = passk_reweighted(rewards, drawn.weights, k)
    unused = coefficients == 0
    zero = unused.float().mean().item()
    gap = None  # log pi - log ref, nats
    if args.kl_coef:
        gap = common.kl_gap(policy, prompts, drawn, tau)  # [B, n]
        kl = kl_coefficients(gap).to(coefficients)
        coefficients = coefficients - args.kl_coef * kl
    elif args.kl_prompts:  # measured for the log only: one sample for each of the first prompts
        measured = args.kl_prompts, 1
        gap = common.kl_gap(policy, prompts, drawn, tau, some=measured)
    coefficients = coefficients * drawn.weights  # pi / q if an inference engine sampled from q (--rollouts), else 1

    # Update.
    loss, norm = ppo_update(policy, optimizer, prompts, y, old_logps, coefficients, args)

    metrics = {"loss": loss}
    first, _ = ends(args.k)
    metrics |= sample_stats(policy, task, drawn, rewards, first, gap, seconds, answers)
    metrics["zero"] = zero
    metrics["grad_norm"] = norm
    took = time.time() - started
    metrics["samples_per_s"] = len(y) / took
    return metrics, examples(policy, problems, prompts, y, reward=rewards)


def ppo_update(policy: common.Policy, optimizer: torch.optim.Optimizer, prompts: list[list[int]], y: list[list[int]],
               old_logps: torch.Tensor, coefficients: torch.Tensor, args: flags.Flags) -> tuple[float, float]:
    """PPO on one batch: --epochs passes of --minibatches optimiser steps each -> (mean loss, last gradient norm).

    B prompts and B n completions y as token ids, old_logps [B n, T], coefficients [B, n]. Samples with coefficient 0
    never enter a forward pass, but their prompts count in the mean over prompts."""
    loss = 0.0
    norm = 0.0
    prompt_numbers = torch.arange(len(prompts))  # [B]
    minibatches = list(range(args.minibatches)) * args.epochs
    for minibatch in minibatches:
        inside = prompt_numbers % args.minibatches == minibatch  # [B]
        weights = coefficients * inside[:, None]  # 0 for prompts of the other minibatches  [B, n]
        optimizer.zero_grad()
        for j, logps, mask in common.score_weighted(policy, prompts, y, weights, args.temperature):  # [R], [R, T] x 2
            A = weights.flatten()[j].to(logps)
            T = logps.shape[1]  # longest completion of this micro-batch
            old = old_logps[j, :T]
            total = ppo_loss(logps, old, mask, A, args.clip)
            part_loss = total / inside.sum()
            part_loss.backward()
            loss += part_loss.detach() / len(minibatches)
        if weights.any():
            norm = processes.clip_gradient(policy.parameters(), args.max_grad_norm)
            optimizer.step()
    return processes.all_reduce(float(loss)), norm


@flags.cli
def main(argv: list[str] | None = None) -> None:
    folder = Folder("ppo_passk", parser(), argv)
    args = folder.args
    check_flags(args)
    task, policy, optimizer, problems = set_up(folder, "countdown", args.objective)
    first, _ = ends(args.k)
    run = Run(folder, task, policy, optimizer, problems, budget=first)
    start(run, f"objective {args.objective}, k {args.k}, n {args.samples}")
    evaluate_before(run)
    for number in range(run.step + 1, args.steps + 1):
        batch = batch_of(problems.train, args.prompts, number, args.seed)
        metrics, shown = step(policy, task, optimizer, batch, number, args)
        end_of_step(run, metrics, shown)
    evaluate_after(run)


if __name__ == "__main__":
    main()
