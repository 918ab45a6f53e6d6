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
budget trained for, r the reward, T the temperature, beta the KL coefficient.

Differences from the paper: 1) n > k by subsets; 2) no value function, the leave-one-out term is the baseline; 3) KL is
in the reward, beta (log pi - log ref) with a leave-one-out baseline: its expected gradient is exactly that of
KL(pi || ref) (differentiating a sampled KL estimate would give another one); 4) LoRA instead of all weights.

    CPU, embedded model:  python ppo_passk.py
    GPU, 4-bit LoRA:      python ppo_passk.py --model Qwen/Qwen2.5-1.5B-Instruct --task gsm8k --prompts 32 --samples 16 --lr 2e-5
"""
import argparse


def parser():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    p.add_argument("--objective", choices=["mean", "passk", "majority"], default="passk", help="what to train for")
    p.add_argument("--k", type=int, default=8, help="test-time budget that is trained for")
    p.add_argument("--estimator", choices=["loo", "centred", "plain"], default="loo",
                   help="leave-one-out (the paper's; at k = 1 it has no baseline), centred (needs samples > k), or no baseline")
    p.add_argument("--task", default=None, help="countdown, routes, program, gsm8k, math, humaneval, mbpp, codecontests, taco; default countdown, or that of --data")
    p.add_argument("--data", default=None, help="your own problems, FILE.jsonl, or a local copy of the task's data set")
    p.add_argument("--levels", default=None, help="difficulty levels of the task `math`, e.g. 1-3")
    p.add_argument("--allow-unsandboxed-code", action="store_true", help="run model-written programs even where there is no sandbox")
    p.add_argument("--model", default=None, help="hub id, local directory, or an embedded model; default that of the task")
    p.add_argument("--adapter", default=None, help="run folder or LoRA directory to continue from")
    p.add_argument("--bits", type=int, choices=[4, 8, 16, 32], default=None,
                   help="precision of the frozen base; default 4 (NF4) on a GPU, 32 on a CPU")
    p.add_argument("--lora-rank", type=int, default=16, help="rank of the LoRA adapter (alpha is twice that)")
    p.add_argument("--samples", type=int, default=16, help="samples per prompt n, at least k (majority: a multiple of k)")
    p.add_argument("--prompts", type=int, default=64, help="prompts per step B")
    p.add_argument("--steps", type=int, default=250, help="sampling steps")
    p.add_argument("--epochs", type=int, default=1, help="passes over the samples of a step; with 1 epoch and 1 minibatch the ratio is 1 and nothing is clipped")
    p.add_argument("--minibatches", type=int, default=1, help="optimiser steps per pass, each over its share of the prompts")
    p.add_argument("--clip", type=float, default=0.2, help="PPO clip eps of the per-token ratio")
    p.add_argument("--lr", type=float, default=2e-3, help="peak learning rate (AdamW), decays to 0; large models: 1e-5 to 5e-5")
    p.add_argument("--max-grad-norm", type=float, default=1.0, help="clip the gradient's norm; 0 = never")
    p.add_argument("--temperature", type=float, default=1.0, help="sampling and scoring temperature T")
    p.add_argument("--max-new-tokens", type=int, default=0, help="longest completion in tokens; 0 = the task's own")
    p.add_argument("--kl-coef", type=float, default=0.0, help="beta of KL(pi || reference); 0 = measured only")
    p.add_argument("--reference", choices=["start", "base"], default="start", help="KL reference: the start of this run, or the base")
    p.add_argument("--eval-samples", type=int, default=64, help="samples per test problem before and after; 0 = no evaluation")
    p.add_argument("--eval-problems", type=int, default=0, help="test problems to evaluate on; 0 = all")
    p.add_argument("--eval-every", type=int, default=0, help="evaluate on validation problems every so many steps; 0 = never")
    p.add_argument("--save-every", type=int, default=25, help="steps between checkpoints")
    p.add_argument("--seed", type=int, default=0, help="initialisation, data order and sampling")
    p.add_argument("--out", default=None, help="run folder; default runs/ppo_passk-<task>-<objective>-<number>")
    p.add_argument("--resume", action="store_true", help="continue the run in --out")
    return p


if __name__ == "__main__":
    parser().parse_args()  # --help and bad flags answer before the heavy imports

import time
from collections import Counter
from math import comb

import common  # before torch: it sets the thread policy
import evaluate
import tasks
import torch
from common import UserError


# -------------------------------------------------------------------------------------------------- the paper's equations

def vote(answers, rewards):
    """f of the majority objective: mean reward of the voters of the answer with most votes, tied answers sharing equally;
    0 without votes. answers: list of hashables, None = no vote; rewards: list of float."""
    votes = Counter(a for a in answers if a is not None)
    if not votes:
        return 0.0
    top = max(votes.values())
    winners = {a for a, v in votes.items() if v == top}
    return sum(r for a, r in zip(answers, rewards) if a in winners) / (top * len(winners))


def advantages(rewards, k, objective, answers=None, estimator="loo"):
    """Coefficients A_i such that E[sum_i A_i grad log pi(y_i|x)] = grad E[f(y_1..y_k)] for every prompt (sum convention).

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
        raise ValueError(f"the centred estimator compares subsets with and without a sample: it needs more than k = {k} samples")

    if objective == "majority":
        if answers is None:
            raise ValueError("the majority objective needs answers")
        if len(answers) != B or any(len(row) != n for row in answers):
            raise ValueError(f"answers must match the rewards, {B} lists of {n}")
        if n % k:
            raise ValueError(f"the majority objective needs the samples per prompt to be a multiple of k = {k}, not {n}")
        A = torch.zeros_like(r)  # [B, n]
        for b, (row, rs) in enumerate(zip(answers, r.tolist())):
            groups = [slice(g, g + k) for g in range(0, n, k)]
            f = [vote(row[g], rs[g]) for g in groups]
            for j, g in enumerate(groups):
                if estimator == "loo":  # A_i = f(y_1..y_k) - f(y_{-i}); computed once per distinct (answer, reward)
                    memo = {}
                    for i in range(g.start, g.stop):
                        if (row[i], rs[i]) not in memo:
                            memo[row[i], rs[i]] = f[j] - vote(row[g.start:i] + row[i + 1:g.stop], rs[g.start:i] + rs[i + 1:g.stop])
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


def kl_coefficients(gap):
    """Coefficients of grad log pi(y_i) whose expected sum is grad KL(pi || ref), as the score-function form has it:
    (1/n) (gap_i - mean_{j != i} gap_j), gap = log pi(y) - log ref(y) [B, n], detached."""
    n = gap.shape[1]
    baseline = (gap.sum(1, keepdim=True) - gap) / (n - 1) if n > 1 else 0.0
    return (gap - baseline) / n


# ------------------------------------------------------------------------------------------------------------- training

def check(args):
    """Flags that argparse cannot judge.  Raises UserError."""
    common.check_flags(args, positive=("k", "epochs", "minibatches"), not_negative=("clip", "max_grad_norm"))
    if args.k > args.samples:
        raise UserError(f"--k {args.k} exceeds --samples {args.samples}: draw at least k samples per prompt")
    if args.minibatches > args.prompts:
        raise UserError(f"--minibatches {args.minibatches} exceeds --prompts {args.prompts}")
    if args.objective == "majority" and args.samples % args.k:
        raise UserError(f"--objective majority needs --samples to be a multiple of --k, not {args.samples} for {args.k}")
    if args.estimator == "centred" and args.samples == args.k:
        raise UserError("--estimator centred needs --samples greater than --k")


@common.cli
def main(argv=None):
    args = parser().parse_args(argv)
    run = common.Run(args, parser(), argv)
    check(args)
    B, n, k, T, beta = args.prompts, args.samples, args.k, args.temperature, args.kl_coef

    # Set up: task, run folder, policy, optimiser, and the last checkpoint if there is one.
    args.task = args.task or (None if args.data else "countdown")
    task = tasks.load_task(args.task, data=args.data, levels=args.levels, allow_unsandboxed=args.allow_unsandboxed_code)
    args.model = args.model or task.base
    kind = "max" if task.graded else "pass"
    run.create("ppo_passk", f"{task.name}-{args.objective}")
    policy = common.load_policy(args.model, args.bits, args.lora_rank, args.adapter, args.reference, args.seed)
    max_new_tokens = args.max_new_tokens or task.max_new_tokens
    train = common.that_fit(policy, task, task.need("train"), max_new_tokens)
    valid = common.that_fit(policy, task, task.need("valid"), max_new_tokens) if args.eval_every else []
    test = common.that_fit(policy, task, task.need("test"), max_new_tokens) if args.eval_samples else []
    optimizer = torch.optim.AdamW(policy.parameters(), lr=args.lr, weight_decay=0.0)
    run.begin(policy, optimizer)
    print(f"{run.folder}: {args.model}, {task.name}, objective {args.objective}, k {k}, n {n}\n{policy.note}", flush=True)

    def judge(problems):
        ks = sorted(budget for budget in {1, 2, 4, 8, 16, 32, k} if budget <= args.eval_samples)
        return evaluate.evaluate(policy, task, problems[:args.eval_problems or None], args.eval_samples, ks, T, args.seed,
                                 max_new_tokens, kl=True)[0]

    if args.eval_samples and "before" not in run.result:
        run.result["before"] = judge(test)
        run.save(policy, optimizer)

    for step in range(run.step + 1, args.steps + 1):
        started = time.time()
        for group in optimizer.param_groups:
            group["lr"] = args.lr * (1 - (step - 1) / args.steps)

        # Sample. The seed alone fixes which problems a step has, and the n draws of each.
        problems = common.batch_of(train, B, step, args.seed)
        prompts = [policy.encode(p.prompt, task.chat) for p in problems]
        drawn = common.sample(policy, prompts, n, [common.seed_of(args.seed, step, b) for b in range(B)], T, max_new_tokens)
        y = [row for rows in drawn.lists() for row in rows]  # B n completions; sample j belongs to prompt j // n
        old_logps = drawn.logps.flatten(0, 1)  # [B n, T']
        sampled = time.time()

        # Verify.
        texts = [policy.decode(row) for row in y]
        rewards = torch.tensor(common.rewards(task, [p for p in problems for _ in range(n)], texts)).view(B, n)
        answers = [[task.extract(t) for t in texts[b * n:b * n + n]] for b in range(B)] if args.objective == "majority" else None

        # Weight.
        A = advantages(rewards, k, args.objective, answers, args.estimator)  # [B, n]
        zero = (A == 0).float().mean().item()
        # KL to the reference: with beta > 0 on every sample, otherwise measured on the first sample of up to 32.
        m, some = (n, B) if beta else (1, min(B, 32))
        with policy.reference():
            ref = common.sequence_logps(policy, [x for x in prompts[:some] for _ in range(m)], [row for b in range(some) for row in y[b * n:b * n + m]], T)
        gap = drawn.logps[:some, :m].sum(-1).cpu() - ref.view(some, m)  # log pi - log ref  [some, m]
        if beta:
            A = A - beta * kl_coefficients(gap).to(A)

        # Update. Samples of zero advantage have no gradient: they never enter a forward pass. Divisors count every prompt.
        A, loss, norm = A.flatten(), 0.0, 0.0  # [B n]
        for _ in range(args.epochs):
            for part in range(args.minibatches):
                size = len(range(part, B, args.minibatches))  # prompts of this minibatch
                kept = A.nonzero()[:, 0]
                kept = kept[kept // n % args.minibatches == part]
                mine = common.own(kept, kept // n // args.minibatches)
                optimizer.zero_grad()
                for index, logps, mask in common.score(policy, [prompts[j // n] for j in mine], [y[j] for j in mine], T):
                    j = mine[index]  # [r]
                    part_loss = ppo_loss(logps, old_logps[j, :logps.shape[1]], mask, A[j].to(logps.device), args.clip) / size
                    part_loss.backward()
                    loss += part_loss.item() / (args.epochs * args.minibatches)
                if len(kept):
                    norm = common.clip_gradient(policy, args.max_grad_norm)
                    optimizer.step()

        # Log.
        run.step = step
        seconds, counted = time.time() - started, int(drawn.lengths.sum())
        line = {"step": step, "loss": common.total(loss), "reward": rewards.mean().item(),
                **{f"{kind}@{b}": sum(common.bon_at_k(r, r, b) for r in rewards.tolist()) / B for b in (1, k)},
                "zero": zero, "kl": gap.mean().item(), "grad_norm": norm, "length": counted / (B * n), **task.counts,
                "tokens_per_s": counted / (sampled - started), "samples_per_s": B * n / seconds,
                "memory_gb": common.peak_memory(policy), "seconds": run.seconds()}
        if args.eval_every and step % args.eval_every == 0:
            line["valid"] = judge(valid)
            print(evaluate.table({f"validation, step {step}": line["valid"]}, ("pass", "max", "maj", "kl"), (1, k, 32)))
        run.log("metrics.jsonl", **line)
        if step == 1 or step % 25 == 0 or step == args.steps:
            for b in (0, B - 1):
                run.log("samples.jsonl", step=step, prompt=problems[b].prompt, completion=texts[b * n], reward=rewards[b, 0].item())
                print(f"  {problems[b].prompt} -> {texts[b * n]}   reward {rewards[b, 0]:g}")
        if step == 1 or step % 10 == 0 or step == args.steps:
            common.print_line(line, args.steps, seconds)
        stopping = run.stopping
        if step % args.save_every == 0 or step == args.steps or stopping:
            run.save(policy, optimizer)
        if stopping and step < args.steps:
            print(f"stopped after step {step}; continue with --out {run.folder} --resume", flush=True)
            raise SystemExit(130)

    # Save and compare.
    if args.eval_samples:
        run.result["after"] = judge(test)
        rows = {row: run.result[row] for row in ("before", "after")}
        print(evaluate.table(rows, ("pass", "max", "maj", "kl"), (1, k, 32)), evaluate.table(rows, evaluate.DIVERSITY), sep="\n")
    run.finish()
    evaluate.plot_run(run.folder)
    print(f"{run.result['seconds']:.0f} s; everything is in {run.folder}/", flush=True)


if __name__ == "__main__":
    main()
