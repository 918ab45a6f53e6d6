"""Train a language model for what it does with k samples: PPO on pass@k, majority vote or the mean reward.

Paper: Tang, Zheng, Synnaeve, Munos 2025, "Optimizing Language Models for Inference Time Objectives using Reinforcement
Learning", arXiv 2503.19595 (as we read it).
Page: docs/ppo_passk.md

    J(theta) = E_{y_1..y_k ~ pi(.|x)} [ f(x, y_1..y_k) ]

    objective   f(x, y_1..y_k)
    mean        (1/k) sum_i r(x, y_i)
    passk       max_i r(x, y_i)                    pass@k for r in {0, 1}, max@k for real r
    maxrl       sum_{j<=k} (1/j) max_{i<=j} r(x, y_i)
    majority    r of the answer with most votes; tied answers share equally; no votes: 0

Leave-one-out gradient (Lemma 1), unbiased because f(y_{-i}) does not depend on y_i:

    A_i = f(y_1..y_k) - f(y_{-i}),      grad J = E[ sum_i A_i grad log pi(y_i|x) ]

With n > k samples per prompt the estimate is averaged over all k-subsets (majority: over n/k groups): still unbiased,
less variance.
maxrl is MaxRL of order T = k (arXiv 2602.02710): the sum over j <= k of (1/j) pass@j, which tends to log p plus a
constant as k grows, p the chance of a right sample. For real r, which that paper does not treat, max@j replaces pass@j.
The estimate is the sum of (1/j) times the estimate of pass@j, unbiased for every k <= n; at k = n it is r_i/K, with K
right ones among n. --k 8:1 anneals k linearly from 8 to 1, rounded (as PKPO does, arXiv 2505.15201); evaluation reports
k = 8.
The update is PPO: per-token ratios rho_t = pi(y_t) / pi_old(y_t), summed over tokens and samples,

    loss = -(1/B) sum_prompts sum_i sum_t min(rho_t A_i, clip(rho_t, 1-eps, 1+eps) A_i),

whose gradient at rho = 1 is the estimate above. With one epoch and one minibatch, the default, rho is 1 (up to
rounding), --clip does nothing and this is REINFORCE with a leave-one-out baseline.
Symbols: B prompts per step, n samples per prompt (--samples), k the budget trained for, r the reward, tau the
temperature, beta the KL coefficient.

Differences from the paper: 1) n > k by subsets; 2) no value function, the leave-one-out term is the baseline; 3) KL is
in the reward, beta (log pi - log ref) with a leave-one-out baseline: its expected gradient is exactly that of
KL(pi || ref) (differentiating a sampled KL estimate would give another one); 4) LoRA instead of all weights; 5) maxrl
and --k 8:1. At k = 1 loo has no baseline: it is r_i/n, so prompts that every sample solves still move the policy.
6) If an engine draws from q (--rollouts), a sample counts with w = pi(y|x) / q(y|x). For the mean and the KL that is
exact; passk with loo has an exact form, passk_reweighted, whose docstring gives the bias that w alone leaves.

    CPU, embedded model:  python ppo_passk.py
    GPU, 4-bit LoRA:      python ppo_passk.py --model Qwen/Qwen2.5-1.5B-Instruct --task gsm8k --prompts 32 --lr 2e-5
"""
from support import flags


def budget(text: str) -> int | str:
    """Parse --k: a whole number, or FIRST:LAST, which stays a string.  Raises ValueError."""
    first, colon, last = text.partition(":")
    if not colon:
        return int(text)
    return f"{int(first)}:{int(last)}"


def parser() -> flags.Parser:
    p = flags.parser(__doc__, "ppo_passk", samples=16, prompts=64, steps=200, exact=True)
    p.add_argument("--objective", choices=["mean", "passk", "maxrl", "majority"], default="passk",
                   help="what to train for")
    p.add_argument("--k", type=budget, default=8,
                   help="test-time budget to train for, at most --samples; the order T of maxrl; FIRST:LAST anneals it "
                        "linearly over the steps (passk, maxrl)")
    p.add_argument("--estimator", choices=["loo", "centred", "plain", "constant", "solved"], default="loo",
                   help="leave-one-out (the paper's; no baseline at k = 1), centred (needs samples > k), or plain: no "
                        "baseline; for maxrl with k = samples also loo minus 1/samples: `constant` for all prompts "
                        "(unbiased), `solved` for prompts with a right sample (expectation: order k - 1)")
    p.add_argument("--epochs", type=int, default=1,
                   help="passes over the samples of a step; with 1 epoch and 1 minibatch the ratio is 1, up to "
                        "rounding")
    p.add_argument("--minibatches", type=int, default=1,
                   help="optimiser steps per pass, each over its share of the prompts")
    p.add_argument("--clip", type=float, default=0.2,
                   help="PPO clip eps of the per-token ratio")
    return p


if __name__ == "__main__":
    flags.answer(parser().parse_args)  # --help and bad flags, before the heavy imports

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
    """f of the majority objective: mean reward of the samples that gave the answer with most votes; tied answers share
    equally; 0 without votes. answers: list of hashables, None = no vote; rewards: list of float."""
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
    answers    [B][n] hashables, None = no answer: it takes up a draw but casts no vote
    estimator  means are over the k-subsets I of the n samples (majority: over the n/k groups of k)
               "loo"      (k/n) (mean over I with i of f(I) - f(I without i)), f of nothing = 0
               "centred"  (k/n) (mean over I with i of f(I) - mean over I without i of f(I)); needs n > k
               "plain"    (k/n) mean over I with i of f(I): no baseline
               maxrl: the sum over j <= k of (1/j) times the estimate for f = max of j; with k = n also
               "constant" loo minus 1/n, for all prompts
               "solved"   constant where a reward is above 0, else loo. Biased: its expectation is the gradient minus
                          (1/n) grad P(a reward is above 0), for rewards 0 and 1 the gradient of order n - 1
    Returns [B, n].  Raises ValueError with one sentence for anything else.

    Why: grad pi = pi grad log pi, so grad E[f(I)] = E[f(I) sum_{i in I} grad log pi(y_i)]. A baseline that does not
    depend on y_i changes nothing, because E[grad log pi] = 0. Averaged over all C(n,k) subsets, sample i gets
    C(n-1,k-1) / C(n,k) = k/n times its mean over the subsets that contain it.
    Source: arXiv 2503.19595, Lemma 1; all k-subsets: also PKPO (arXiv 2505.15201); centred: MaxPO (arXiv 2606.06080);
    constant: MaxRL (arXiv 2602.02710); solved: (r - mean) / mean, as in implementations of MaxRL.
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
    """MaxRL of order k for r [B, n]. With loo and binary rewards, K of them right, each right sample gets sum_{j<=k}
    C(n-K, j-1) / (j C(n, j)), which is 1/K at k = n, and each wrong one 0."""
    shifted = estimator in ("constant", "solved")
    each = "loo" if shifted else estimator
    A = torch.zeros_like(r)  # [B, n]
    for j in range(1, k + 1):
        A = A + passk_advantages(r, j, each) / j
    if not shifted:
        return A
    solved = (r > 0).any(1, keepdim=True)  # [B, 1]
    less = torch.where(solved | (estimator == "constant"), 1.0, 0.0).to(r)
    return A - less / r.shape[1]


def passk_leave_one_out(r: torch.Tensor, k: int) -> torch.Tensor:
    """The paper's own case: A_i = (k/n) mean over the k-subsets I with i of (max_I r - max_{I without i} r), for r
    [B, n].

    The difference is 0 unless i is the unique maximum of I. In ascending order it is then s_i - s_j, where j < i is the
    second largest member and the other k-2 lie below j: C(j, k-2) of the C(n-1, k-1) subsets with i. Because (k/n) /
    C(n-1, k-1) = 1 / C(n, k),  A_i = sum_{j<i} (s_i - s_j) C(j, k-2) / C(n, k). For r in {0, 1} with c right ones, each
    of these gets C(n-c, k-1) / C(n, k), and the wrong ones 0."""
    n = r.shape[1]
    if k == 1:
        return r / n  # f of nothing is 0: E[r grad log pi] = grad E[r]
    s, order = r.sort(dim=1)  # [B, n]
    gap = s[:, :, None] - s[:, None, :]  # s_i - s_j  [B, i, j]
    share = share_of_subsets(r, k, range(n), k - 2)  # C(j, k-2) / C(n, k)  [j]
    A = (gap * share).tril(-1).sum(-1)  # [B, n], in sorted order
    return torch.zeros_like(r).scatter(1, order, A)


def passk_reweighted(r: torch.Tensor, w: torch.Tensor, k: int) -> torch.Tensor:
    """`passk_leave_one_out` for samples that an engine drew from q, r [B, n], with weights w = pi(y|x) / q(y|x) [B, n].
    The expectation of w_i A_i grad log pi(y_i), summed over i, is the gradient: a subset counts with the product of its
    weights.

    For r in {0, 1} it is r_i e_{k-1}(w of the wrong ones) / C(n, k), e the elementary symmetric polynomial. In general
    A_i = sum_{j<i} (s_i - s_j) w_j e_{k-2}(w_0..w_{j-1}) / C(n, k), and e_{k-2} is C(j, k-2) times its mean.
    If `passk_leave_one_out` is only multiplied by w_i, each prompt's gradient keeps its direction but is
    ((1 - q) / (1 - p))^(k-1) times as long, with p and q the chances of success under pi and q. Compared with the
    gradient, for n = k samples of two right completions and two wrong ones, pi = .14 .08 .44 .34 (p = .22) and
    q = .10 .10 .36 .44 (q = .20):
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
    """Mean over the m-subsets of w_0..w_{j-1} of their product, for each j, of weights [B, n] -> [B, n]; 0 where j < m.
    Among j + 1 weights, a share of size / (j + 1) of the subsets of that size contains the last one."""
    size = torch.arange(m + 1).to(w)
    mean = torch.zeros(len(w), m + 1).to(w)  # over subsets of 0..m weights
    mean[:, 0] = 1
    found = []
    for j in range(w.shape[1]):
        found.append(mean[:, m])
        own = w[:, j:j + 1]
        shorter = mean.roll(1, 1)
        without = mean * (j + 1 - size)
        joined = own * shorter * size
        mean = (without + joined) / (j + 1)
    return torch.stack(found, 1)


def share_of_subsets(r: torch.Tensor, k: int, top: range, bottom: int) -> torch.Tensor:
    """C(t, bottom) / C(n, k) for each t of `top`, a tensor like r [B, n]. Integers until the division: no overflow."""
    every = comb(r.shape[1], k)
    shares = []
    for t in top:
        possible = min(t, bottom) >= 0
        ways = comb(t, bottom) if possible else 0
        shares.append(ways / every)
    return r.new_tensor(shares)


def passk_advantages(r: torch.Tensor, k: int, estimator: str) -> torch.Tensor:
    """The estimate of pass@k (max@k) for r [B, n]. In ascending order the maximum of a subset is its last member, so
    binomials count the subsets."""
    if estimator == "loo":
        return passk_leave_one_out(r, k)
    n = r.shape[1]
    s, order = r.sort(dim=1)  # [B, n]
    if estimator == "centred":
        s = s - s[:, :1]  # a shift changes nothing; equal rewards give exactly 0
    one_less = range(-1, n - 1)  # j-1 for each j
    as_last = s * share_of_subsets(r, k, range(n), k - 1)  # i is the last of I: C(i, k-1) subsets
    behind = s * share_of_subsets(r, k, one_less, k - 2)  # a later j is last: C(j-1, k-2) subsets with i
    later = behind.sum(1, keepdim=True) - behind.cumsum(1)
    q = as_last + later  # (k/n) mean of f over the subsets with i: C(n-1,k-1) / C(n,k) = k/n
    if estimator == "plain":
        return torch.zeros_like(r).scatter(1, order, q)
    # rho: the same sum over the subsets without i, where j is last in C(j, k-1) if j < i, else in C(j-1, k-1).
    after = s * share_of_subsets(r, k, one_less, k - 1)
    before = as_last.cumsum(1) - as_last
    upto_last = before + after.sum(1, keepdim=True)
    rho = upto_last - after.cumsum(1)
    scale = k / (n - k)  # rho to a mean: C(n,k) / C(n-1,k) = n/(n-k); times k/n
    A = q - rho * scale
    return torch.zeros_like(r).scatter(1, order, A)


def mean_advantages(r: torch.Tensor, k: int, estimator: str) -> torch.Tensor:
    """f = mean of k, for r [B, n]: f(I) - f(I without i) = (r_i - mean of I without i) / k. Averaged over all I with i,
    times k/n, it is (r_i - mean_{j != i} r_j) / n; the centred estimate is the same. k matters only at 1, where f of
    nothing is 0 and there is no baseline: r / n."""
    n = r.shape[1]
    if n == 1 or estimator == "loo" and k == 1:
        return r / n
    if estimator == "plain":
        others = (k - 1) * mean_of_others(r)
        return (r + others) / n
    d = r - r.amin(1, keepdim=True)  # a shift changes nothing; equal rewards give exactly 0
    return (d - mean_of_others(d)) / n


def mean_of_others(r: torch.Tensor) -> torch.Tensor:
    n = r.shape[1]
    others = r.sum(1, keepdim=True) - r
    return others / (n - 1)  # mean of r_j, j != i  [B, n]


def majority_advantages(r: torch.Tensor, answers: list[list], k: int, estimator: str) -> torch.Tensor:
    """f = vote, over the n/k groups of k samples, for r [B, n] and answers [B][n]."""
    A = torch.zeros_like(r)  # [B, n]
    n = r.shape[1]
    groups = [slice(first, first + k) for first in range(0, n, k)]
    for b, rs in enumerate(r.tolist()):
        voters = answers[b]
        f = [vote(voters[g], rs[g]) for g in groups]
        for j, g in enumerate(groups):
            if estimator == "loo":
                gain = vote_leave_one_out(voters[g], rs[g])
                A[b, g] = r.new_tensor(gain)
            elif estimator == "centred":
                others = f[:j] + f[j + 1:]
                baseline = sum(others) / len(others)
                A[b, g] = f[j] - baseline
            else:
                A[b, g] = f[j]
    return A * (k / n)  # mean over the n/k groups


def vote_leave_one_out(answers: list, rewards: list[float]) -> list[float]:
    """f(y_1..y_k) - f(y_{-i}) of one group [k], computed once per distinct answer and reward."""
    gain = {}
    for i, voter in enumerate(zip(answers, rewards)):
        if voter not in gain:
            rest = answers[:i] + answers[i + 1:]
            rest_rewards = rewards[:i] + rewards[i + 1:]
            without = vote(rest, rest_rewards)
            gain[voter] = vote(answers, rewards) - without
    return [gain[voter] for voter in zip(answers, rewards)]


def check_samples(rewards: torch.Tensor, k: int, objective: str, answers: list[list] | None, estimator: str) -> None:
    """Raises ValueError for arguments that `advantages` is not defined for."""
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
        raise ValueError("the centred estimator compares subsets with and without a sample: it needs more than k = "
                         f"{k} samples")
    if estimator in ("constant", "solved") and (objective != "maxrl" or n > k):
        raise ValueError(f"the estimator {estimator!r} is for maxrl, whose coefficients have a known mean at k = {n} "
                         "samples")
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
    """PPO's clipped objective, summed over tokens and samples, negated: -sum_i sum_t min(rho A_i, clip(rho) A_i).
    logps (with gradient), old_logps, mask (1 on completion tokens) [R, T], A [R] -> scalar. At rho = 1 its gradient is
    -sum_i A_i grad log pi(y_i): a sum over tokens; dividing by the length would change the estimator."""
    rho = (logps - old_logps).exp()  # [R, T]
    A = A[:, None]
    clipped = rho.clamp(1 - clip, 1 + clip)
    least = torch.minimum(rho * A, clipped * A)
    return -(least * mask).sum()


# ------------------------------------------------------------------------------------------------------------- training

def check_flags(args: flags.Flags) -> None:
    """Check what argparse cannot.  Raises UserError."""
    exact = args.objective == "passk" and args.estimator == "loo"
    if args.rollouts and exact and not args.rollouts_correction:
        args.rollouts_correction = "exact"
    flags.check_common(args, positive=("epochs", "minibatches"), not_negative=("clip",))
    if args.rollouts_correction == "exact" and not exact:
        raise UserError("--rollouts-correction exact exists for --objective passk with --estimator loo")
    first, last = ends(args.k)
    if not 1 <= last <= first:
        raise UserError(f"--k must be at least 1, or fall from FIRST to LAST, not {args.k}")
    if first > args.samples:
        raise UserError(f"--k {args.k} exceeds --samples {args.samples}: draw at least k samples per prompt")
    if last < first and args.objective not in ("passk", "maxrl"):
        raise UserError(f"--k {args.k} is for --objective passk and maxrl: {args.objective} trains for one k")
    if args.minibatches > args.prompts:
        raise UserError(f"--minibatches {args.minibatches} exceeds --prompts {args.prompts}")
    if args.objective == "majority" and args.samples % first:
        raise UserError("--objective majority needs --samples to be a multiple of --k, not "
                        f"{args.samples} for {args.k}")
    if args.epochs * args.minibatches == 1:
        flags.refuse(args, ["clip"], "with one epoch and one minibatch, where the ratio is 1")
    if args.estimator == "centred" and args.samples == first:
        raise UserError("--estimator centred needs --samples greater than --k")
    if args.estimator in ("constant", "solved") and (args.objective != "maxrl" or last < args.samples):
        raise UserError(f"--estimator {args.estimator} needs --objective maxrl with --k equal to --samples")


def ends(k: int | str) -> tuple[int, int]:
    """The first and the last k of --k: (8, 1) for "8:1", (8, 8) for 8."""
    first, _, last = str(k).partition(":")
    return int(first), int(last or first)


def k_of(number: int, args: flags.Flags) -> int:
    """The k of training step `number` (1, 2, ...)."""
    first, last = ends(args.k)
    done = (number - 1) / max(1, args.steps - 1)
    return round(first + (last - first) * done)


def step(policy: common.Policy, task: Task, optimizer: torch.optim.Optimizer, problems: list[Problem], number: int,
         args: flags.Flags) -> tuple[dict, list[dict]]:
    """Training step `number` (1, 2, ...) on B problems -> (step line by the keys of support/run.py METRICS, examples to
    show)."""
    B = len(problems)
    n = args.samples
    tau = args.temperature
    common.set_rate(optimizer, args.lr, number, args.steps)
    started = time.time()

    # Sample. The seed alone fixes the n draws of each prompt.
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
        answers = [task.extract(text) for text in texts]
        answers = [answers[b * n:b * n + n] for b in range(B)]

    # Weight.
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
    elif args.kl_prompts:  # only for the log: one sample of each of the first prompts
        watched = args.kl_prompts, 1
        gap = common.kl_gap(policy, prompts, drawn, tau, some=watched)
    coefficients = coefficients * drawn.weights  # pi / q where an engine drew from q (support/rollouts.py), else 1

    # Update.
    loss, norm = ppo_update(policy, optimizer, prompts, y, old_logps, coefficients, args)

    line = {"loss": loss}
    first, _ = ends(args.k)
    line |= sample_stats(policy, task, drawn, rewards, first, gap, seconds, answers)
    line["zero"] = zero
    line["grad_norm"] = norm
    took = time.time() - started
    line["samples_per_s"] = len(y) / took
    return line, examples(policy, problems, prompts, y, reward=rewards)


def ppo_update(policy: common.Policy, optimizer: torch.optim.Optimizer, prompts: list[list[int]], y: list[list[int]],
               old_logps: torch.Tensor, coefficients: torch.Tensor, args: flags.Flags) -> tuple[float, float]:
    """--epochs passes over B prompts with B n completions y, their old_logps [B n, T] and coefficients [B, n], in
    --minibatches steps each -> (mean loss, norm of the last gradient). Samples with coefficient 0 never enter a forward
    pass, but the loss is divided by the number of all prompts."""
    loss = 0.0
    norm = 0.0
    numbers = torch.arange(len(prompts))  # [B]
    passes = list(range(args.minibatches)) * args.epochs  # minibatch numbers, epoch by epoch
    for part in passes:
        inside = numbers % args.minibatches == part  # the prompts of this minibatch  [B]
        weights = coefficients * inside[:, None]  # 0 for all other prompts  [B, n]
        optimizer.zero_grad()
        for j, logps, mask in common.score_weighted(policy, prompts, y, weights, args.temperature):  # [R], 2 x [R, T']
            A = weights.flatten()[j].to(logps)
            T = logps.shape[1]
            old = old_logps[j, :T]
            total = ppo_loss(logps, old, mask, A, args.clip)
            part_loss = total / inside.sum()
            part_loss.backward()
            loss += part_loss.detach() / len(passes)
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
        line, shown = step(policy, task, optimizer, batch, number, args)
        end_of_step(run, line, shown)
    evaluate_after(run)


if __name__ == "__main__":
    main()
