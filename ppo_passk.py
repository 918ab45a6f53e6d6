"""Train a language model for what it does with k samples: PPO on pass@k, majority vote or the mean reward.

Paper: Tang, Zheng, Synnaeve, Munos 2025, "Optimizing Language Models for Inference Time Objectives using Reinforcement
Learning", arXiv 2503.19595 (as we read it).

    J(theta) = E_{y_1..y_k ~ pi(.|x)} [ f(x, y_1..y_k) ]

    objective   f(x, y_1..y_k)
    mean        (1/k) sum_i r(x, y_i)
    passk       max_i r(x, y_i)                    pass@k for r in {0, 1}, max@k for real r
    majority    r of the answer with most votes; tied answers share equally; no votes: 0

Leave-one-out gradient (Lemma 1), unbiased because f(y_{-i}) does not depend on y_i:

    A_i = f(y_1..y_k) - f(y_{-i}),      grad J = E[ sum_i A_i grad log pi(y_i|x) ]

With n > k samples per prompt the estimate is averaged over all k-subsets (majority: over n/k groups): still unbiased,
less variance. The update is PPO: per-token ratios rho_t = pi(y_t) / pi_old(y_t), summed over tokens and samples,

    loss = -(1/B) sum_prompts sum_i sum_t min(rho_t A_i, clip(rho_t, 1-eps, 1+eps) A_i),

whose gradient at rho = 1 is the estimate above. Symbols: B prompts per step, n samples per prompt (--samples), k the
budget trained for, r the reward, tau the temperature, beta the KL coefficient.

Differences from the paper: 1) n > k by subsets; 2) no value function, the leave-one-out term is the baseline; 3) KL is
in the reward, beta (log pi - log ref) with a leave-one-out baseline: its expected gradient is exactly that of
KL(pi || ref) (differentiating a sampled KL estimate would give another one); 4) LoRA instead of all weights.

    CPU, embedded model:  python ppo_passk.py
    GPU, 4-bit LoRA:      python ppo_passk.py --model Qwen/Qwen2.5-1.5B-Instruct --task gsm8k --prompts 32 --lr 2e-5
"""
from support import flags


def parser():
    p = flags.parser(__doc__, "ppo_passk", samples=16, prompts=64, steps=200)
    p.add_argument("--objective", choices=["mean", "passk", "majority"], default="passk", help="what to train for")
    p.add_argument("--k", type=int, default=8, help="test-time budget that is trained for, at most --samples")
    p.add_argument("--estimator", choices=["loo", "centred", "plain"], default="loo",
                   help="leave-one-out (the paper's; at k = 1 it has no baseline), centred (needs samples > k), or no "
                        "baseline")
    p.add_argument("--epochs", type=int, default=1,
                   help="passes over the samples of a step; with 1 epoch and 1 minibatch the ratio is 1, up to what "
                        "sampler and scorer round differently")
    p.add_argument("--minibatches", type=int, default=1,
                   help="optimiser steps per pass, each over its share of the prompts")
    p.add_argument("--clip", type=float, default=0.2, help="PPO clip eps of the per-token ratio")
    return p


if __name__ == "__main__":
    flags.answer(parser().parse_args)  # --help and bad flags, before the heavy imports

import time
from collections import Counter
from math import comb

import common
import torch
from common import kl_coefficients
from support import processes
from support.errors import UserError
from support.folder import Run
from support.run import batch_of, begin, end_of_step, evaluate_after, evaluate_before, examples, sample_stats, set_up


# ------------------------------------------------------------------------------------------------ the paper's equations

def vote(answers, rewards):
    """f of the majority objective: mean reward of the voters of the answer with most votes, tied answers sharing
    equally; 0 without votes. answers: list of hashables, None = no vote; rewards: list of float."""
    votes = Counter(a for a in answers if a is not None)
    if not votes:
        return 0.0
    top = max(votes.values())
    winners = {a for a, v in votes.items() if v == top}
    return sum(r for a, r in zip(answers, rewards) if a in winners) / (top * len(winners))


def advantages(rewards, k, objective, answers=None, estimator="loo"):
    """Coefficients A_i such that E[sum_i A_i grad log pi(y_i|x)] = grad E[f(y_1..y_k)] for every prompt (sum
    convention).

    rewards    [B, n] tensor: float64 stays float64, integers and booleans become float32
    k          size of the sample that f judges, 1 <= k <= n
    objective  "mean", "passk" (max@k for graded rewards) or "majority" (needs answers, and n a multiple of k)
    answers    [B][n] hashables, None = no answer: it consumes a draw and casts no vote
    estimator  with means over the k-subsets I of the n samples (majority: over the n/k groups of k)
               "loo"      (k/n) (mean over I with i of f(I) - f(I without i)), f of nothing = 0
               "centred"  (k/n) (mean over I with i of f(I) - mean over I without i of f(I)); needs n > k
               "plain"    (k/n) mean over I with i of f(I): no baseline
    Returns [B, n].  Raises ValueError with one sentence for anything else.
    Source: arXiv 2503.19595, Lemma 1; all k-subsets: also PKPO (arXiv 2505.15201); centred: MaxPO (arXiv 2606.06080).
    """
    if objective not in ("mean", "passk", "majority"):
        raise ValueError(f"unknown objective {objective!r}: choose mean, passk or majority")
    if estimator not in ("loo", "centred", "plain"):
        raise ValueError(f"unknown estimator {estimator!r}: choose loo, centred or plain")
    if rewards.dim() != 2:
        raise ValueError(f"rewards must be [prompts, samples], not of shape {tuple(rewards.shape)}")
    r = rewards if rewards.is_floating_point() else rewards.float()  # [B, n]
    B, n = r.shape
    if not 1 <= k <= n:
        raise ValueError(f"k must be between 1 and the {n} samples per prompt, not {k}")
    if estimator == "centred" and n == k:
        raise ValueError("the centred estimator compares subsets with and without a sample: it needs more than k = "
                         f"{k} samples")

    if objective == "majority":
        if answers is None:
            raise ValueError("the majority objective needs answers")
        if len(answers) != B or any(len(row) != n for row in answers):
            raise ValueError(f"answers must match the rewards, {B} lists of {n}")
        if n % k:
            raise ValueError("the majority objective needs the samples per prompt to be a multiple of k = "
                             f"{k}, not {n}")
        A = torch.zeros_like(r)  # [B, n]
        for b, (row, rs) in enumerate(zip(answers, r.tolist())):
            groups = [slice(g, g + k) for g in range(0, n, k)]
            f = [vote(row[g], rs[g]) for g in groups]
            for j, g in enumerate(groups):
                if estimator == "loo":  # A_i = f(y_1..y_k) - f(y_{-i}); computed once per distinct (answer, reward)
                    memo = {}
                    for i in range(g.start, g.stop):
                        if (row[i], rs[i]) not in memo:
                            rest = [*range(g.start, i), *range(i + 1, g.stop)]
                            memo[row[i], rs[i]] = f[j] - vote([row[m] for m in rest], [rs[m] for m in rest])
                        A[b, i] = memo[row[i], rs[i]]
                elif estimator == "centred":
                    A[b, g] = f[j] - sum(f[:j] + f[j + 1:]) / (len(f) - 1)
                else:
                    A[b, g] = f[j]
        return A * (k / n)  # mean over the n/k groups

    if estimator == "plain":
        base = torch.zeros_like(r[:, :1])
    else:  # a shift of the rewards moves neither estimate; it makes equal rewards exactly 0
        base = r.amin(1, keepdim=True)
    if objective == "mean":
        if n == 1 or k == 1 and estimator == "loo":
            return r / n  # f of nothing is 0: no baseline is left
        d = r - base
        others = (d.sum(1, keepdim=True) - d) / (n - 1)  # mean of r_j, j != i  [B, n]
        if estimator == "plain":  # q_i = (r_i + (k-1) others_i) / k
            return (r + (k - 1) * others) / n
        return (d - others) / n

    # pass@k. Sorted ascending, the maximum of a k-subset is its last member, so subsets are counted by binomials.
    s, order = r.sort(dim=1)  # [B, n]

    def C(top, bottom):  # C(top_j, bottom) / C(n, k), exact integers first: no overflow
        return r.new_tensor([comb(t, bottom) / comb(n, k) if t >= 0 and bottom >= 0 else 0.0 for t in top])
    index = range(n)
    if estimator == "loo":
        if k == 1:
            return r / n
        # i adds to I only as its unique maximum: s_i - s_j with j the second largest, k-2 more below j.
        gap = s[:, :, None] - s[:, None, :]  # [B, i, j]
        sorted_A = (gap * C(index, k - 2)).tril(-1).sum(-1)  # [B, n]
    else:
        s = s - base
        # q_i: s_i is the maximum of C(i, k-1) of the C(n-1, k-1) subsets with i, a later s_j of C(j-1, k-2).
        later = s * C([j - 1 for j in index], k - 2)  # [B, n]
        later = later.sum(1, keepdim=True) - later.cumsum(1)  # sum over j > i
        sorted_A = s * C(index, k - 1) + later  # = (k/n) q_i, since C(n-1,k-1) / C(n,k) = k/n
        if estimator == "centred":
            # rho_{-i}: s_j is the maximum of C(j, k-1) subsets without i for j < i, of C(j-1, k-1) for j > i.
            before, after = s * C(index, k - 1), s * C([j - 1 for j in index], k - 1)
            rho = before.cumsum(1) - before + after.sum(1, keepdim=True) - after.cumsum(1)  # [B, n]
            sorted_A = sorted_A - rho * (k / (n - k))  # C(n,k) / C(n-1,k) = n/(n-k), times k/n
    return torch.zeros_like(r).scatter(1, order, sorted_A)


def ppo_loss(logps, old_logps, mask, A, clip):
    """PPO's clipped objective, summed over tokens and samples, negated: -sum_i sum_t min(rho A_i, clip(rho) A_i).
    logps (with gradient), old_logps, mask (1 on completion tokens) [r, T], A [r] -> scalar. At rho = 1 its gradient is
    -sum_i A_i grad log pi(y_i): a sum over tokens; a mean over the length would be another estimator."""
    rho = (logps - old_logps).exp()  # [r, T]
    A = A[:, None]
    return -(torch.minimum(rho * A, rho.clamp(1 - clip, 1 + clip) * A) * mask).sum()


# ------------------------------------------------------------------------------------------------------------- training

def check(args):
    """Flags that argparse cannot judge.  Raises UserError."""
    flags.check(args, positive=("k", "epochs", "minibatches"), not_negative=("clip",))
    if args.k > args.samples:
        raise UserError(f"--k {args.k} exceeds --samples {args.samples}: draw at least k samples per prompt")
    if args.minibatches > args.prompts:
        raise UserError(f"--minibatches {args.minibatches} exceeds --prompts {args.prompts}")
    if args.objective == "majority" and args.samples % args.k:
        raise UserError("--objective majority needs --samples to be a multiple of --k, not "
                        f"{args.samples} for {args.k}")
    if args.estimator == "centred" and args.samples == args.k:
        raise UserError("--estimator centred needs --samples greater than --k")


def step(policy, task, optimizer, problems, number, args):
    """Training step `number` (1, 2, ...) on B problems -> (keys of support/run.py METRICS, examples to show)."""
    B, n, k, tau, beta = len(problems), args.samples, args.k, args.temperature, args.kl_coef
    optimizer.param_groups[0]["lr"] = args.lr * (1 - (number - 1) / args.steps)
    started = time.time()
    prompts = policy.encode([p.prompt for p in problems], task.chat)

    # Sample. The seed alone fixes the n draws of each prompt.
    seeds = [common.seed_of(args.seed, number, b) for b in range(B)]
    drawn = common.sample(policy, prompts, n, seeds, tau, task.max_new_tokens)
    y = [row for rows in drawn.lists() for row in rows]  # B n completions; completion j belongs to prompt j // n
    old_logps = drawn.logps.flatten(0, 1)  # [B n, T]
    sampled = time.time()

    # Verify.
    texts = policy.texts(y, prompts)
    rewards = processes.rewards(task, [p for p in problems for _ in range(n)], texts).float().view(B, n)
    answers = None
    if args.objective == "majority":
        answers = [[task.extract(text) for text in texts[b * n:b * n + n]] for b in range(B)]

    # Weight.
    A = advantages(rewards, k, args.objective, answers, args.estimator)  # [B, n]
    zero, gap = (A == 0).float().mean().item(), None
    if beta or args.kl_prompts:  # log pi - log ref
        gap = common.kl_gap(policy, prompts, drawn, tau, None if beta else (args.kl_prompts, 1))
    if beta:
        A = A - beta * kl_coefficients(gap).to(A)

    # Update. Samples of zero advantage never enter a forward pass. Divisors count every prompt.
    loss, norm = 0.0, 0.0
    for part in args.epochs * list(range(args.minibatches)):
        inside = torch.arange(B) % args.minibatches == part  # the prompts of this minibatch  [B]
        weights = A * inside[:, None]
        optimizer.zero_grad()
        for j, logps, mask in common.score_weighted(policy, prompts, y, weights, tau):  # [r], [r, T'], [r, T']
            part_loss = ppo_loss(logps, old_logps[j, :logps.shape[1]], mask, A.flatten()[j].to(logps), args.clip)
            part_loss = part_loss / inside.sum()
            part_loss.backward()
            loss += part_loss.detach() / (args.epochs * args.minibatches)
        if weights.any():
            norm = processes.clip_gradient(policy.parameters(), args.max_grad_norm)
            optimizer.step()

    line = {"loss": processes.all_reduce(float(loss)), **sample_stats(task, drawn, rewards, k, gap, sampled - started),
            "zero": zero, "grad_norm": norm, "samples_per_s": len(y) / (time.time() - started)}
    return line, examples(policy, problems, prompts, y, reward=rewards)


@flags.cli
def main(argv=None):
    run = Run("ppo_passk", parser(), argv)
    args = run.args
    check(args)
    set_up(run, "countdown", args.objective)
    begin(run, f"objective {args.objective}, k {args.k}, n {args.samples}", budget=args.k)
    evaluate_before(run)
    for number in range(run.step + 1, args.steps + 1):
        problems = batch_of(run.train, args.prompts, number, args.seed)
        end_of_step(run, *step(run.policy, run.task, run.optimizer, problems, number, args))
    evaluate_after(run)


if __name__ == "__main__":
    main()
