"""Train a language model for the best of N samples under a real-valued reward: CAT with Best-of-N, RL and SFT.

Paper: Ousherovitch, Tewari 2026, "Compute Aligned Training: Optimizing for Test Time Inference", arXiv 2604.24957 (as we
read it). A sample counts if it is the best of N, so its reward is weighed by the chance that N-1 others are worse:

--mode rl    grad = (1/B) sum_prompts sum_i c_i grad log pi(y_i|x)

    form    c_i, from M samples per prompt
    rank    (N/M) q_i^(N-1) r_i                 q_i = P(r(Y) < r(y_i)), the rank of the reward (the paper's)
    exact   (N/M) mean_S (r_i - max_S r)^+      S: the (N-1)-subsets of the other samples; grad E[max of N]

Ranks are taken within the prompt, or against the last rewards of all prompts (--ranks fifo, for unconditional
generation). The rank form changes with a shift of the rewards: they are standardised first (--rewards).

--mode sft   Pass@N on the best target found: y* is the best of M samples of the starting policy, p = pi(y*|x),
    loss = -(1/B) sum_prompts log(1 - (1-p)^N)

Symbols: B prompts per step, M samples per prompt (--samples), N the budget trained for (--n), r the reward.

Differences from the paper: 1) the exact form; the rank form is no gradient of E[max], the exact form is, for M >= N;
2) KL is in the reward, with a leave-one-out baseline; 3) the embedded task is a synthetic stand-in for its protein
design, with a base of its own. A sequence of 18 residues has p << 1/N, where Pass@N SFT is cross-entropy on the best
target: the step line shows the weights (w_even = 1: no effect).

    CPU, embedded model:  python cat_bon.py
    weights, no training: python cat_bon.py --n 8 --plot-weights
    GPU, ProtGPT2:        python cat_bon.py --model nferruz/ProtGPT2 --ranks fifo --lr 2e-5
"""
import argparse


def parser():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    p.add_argument("--mode", choices=["sft", "rl"], default="rl", help="imitate the best completion found, or learn from sampled ones")
    p.add_argument("--n", type=int, default=8, help="test-time budget N that is trained for; 1 = cross-entropy, or plain RL")
    p.add_argument("--train-problems", type=int, default=0, help="use the first so many training problems; 0 = all")
    p.add_argument("--form", choices=["rank", "exact"], default="rank", help="rl: the paper's rank weight, or the gradient of E[max of n]")
    p.add_argument("--ranks", choices=["prompt", "fifo"], default="prompt", help="rl, rank: within the prompt, or against recent rewards")
    p.add_argument("--fifo", type=int, default=1024, help="rl: how many recent rewards --ranks fifo keeps")
    p.add_argument("--rewards", choices=["standardised", "raw"], default="standardised", help="rl: rewards within the prompt, with fifo by the recent ones; exact ascends E[max] with raw")
    p.add_argument("--task", default=None, help="peptide, or a task with right and wrong; default peptide, or that of --data")
    p.add_argument("--data", default=None, help="your own problems, FILE.jsonl, or a local copy of the task's data set")
    p.add_argument("--levels", default=None, help="difficulty levels of the task `math`, e.g. 1-3")
    p.add_argument("--allow-unsandboxed-code", action="store_true", help="run model-written programs even where there is no sandbox")
    p.add_argument("--model", default=None, help="hub id, local directory, or an embedded model; default that of the task")
    p.add_argument("--adapter", default=None, help="run folder or LoRA directory to continue from, e.g. an SFT warm-up before RL")
    p.add_argument("--bits", type=int, choices=[4, 8, 16, 32], default=None,
                   help="precision of the frozen base; default 4 (NF4) on a GPU, 32 on a CPU")
    p.add_argument("--lora-rank", type=int, default=16, help="rank of the LoRA adapter (alpha is twice that)")
    p.add_argument("--samples", type=int, default=16, help="samples per prompt M; exact needs at least n; sft: drawn once to find the target")
    p.add_argument("--prompts", type=int, default=64, help="prompts per step B")
    p.add_argument("--steps", type=int, default=100, help="optimiser steps")
    p.add_argument("--lr", type=float, default=2e-3, help="peak learning rate (AdamW), decays to 0; large models: 1e-5 to 5e-5")
    p.add_argument("--max-grad-norm", type=float, default=1.0, help="clip the gradient's norm; 0 = never")
    p.add_argument("--temperature", type=float, default=1.0, help="sampling and scoring temperature T")
    p.add_argument("--max-new-tokens", type=int, default=0, help="longest completion in tokens; 0 = the task's own")
    p.add_argument("--kl-coef", type=float, default=0.0, help="rl: beta of KL(pi || reference); 0 = measured only")
    p.add_argument("--reference", choices=["start", "base"], default="start", help="KL reference: the start of this run, or the base")
    p.add_argument("--eval-samples", type=int, default=64, help="samples per test problem before and after; 0 = no evaluation")
    p.add_argument("--eval-problems", type=int, default=0, help="test problems to evaluate on; 0 = all")
    p.add_argument("--eval-every", type=int, default=0, help="evaluate on validation problems every so many steps; 0 = never")
    p.add_argument("--save-every", type=int, default=25, help="steps between checkpoints")
    p.add_argument("--seed", type=int, default=0, help="initialisation, data order and sampling")
    p.add_argument("--plot-weights", action="store_true", help="no training: picture and numbers of the weight against test budgets")
    p.add_argument("--test-n", default="1,4,8,16", help="test budgets of --plot-weights, comma-separated")
    p.add_argument("--out", default=None, help="run folder; default runs/cat_bon-<task>-<mode>-<number>")
    p.add_argument("--resume", action="store_true", help="continue the run in --out")
    return p


if __name__ == "__main__":
    parser().parse_args()  # --help and bad flags answer before the heavy imports

import json
import math
import time
from math import comb

import common  # before torch: it sets the thread policy
import evaluate
import tasks
import torch
from common import UserError


# -------------------------------------------------------------------------------------------------- the paper's equations

def rank_weight(r, n, recent=None):
    """n q^(n-1) [B, M] with q the share of rewards strictly below: of the prompt's other samples, or of `recent`."""
    if recent is None:
        q = (r[:, None, :] < r[:, :, None]).to(r).sum(-1) / max(1, r.shape[1] - 1)  # [B, M]
    else:
        q = (torch.as_tensor(recent, dtype=r.dtype, device=r.device).flatten() < r[:, :, None]).to(r).mean(-1)  # [B, M]
    return n * q ** (n - 1)


def bon_weight(rewards, n, form, recent=None):
    """Coefficients c_i of grad log pi(y_i|x) for the best of n samples (sum convention: reward and 1/M are in them).

    rewards  [B, M] tensor: float64 stays float64, integers and booleans become float32
    n        budget that is trained for
    form     "rank"   (n/M) q_i^(n-1) r_i, the paper's: q_i = share of the other samples with a strictly lower reward. A rank
                      weight, not the gradient of E[max]: it changes with a shift of the rewards.
             "exact"  (n/M) mean over (n-1)-subsets S of the others of (r_i - max_S r)^+, at n = 1 r_i / M: its expected sum
                      is grad E[max of n], ties included. Needs M >= n. (Not in the paper; the same number as
                      max over the n-subset minus max without i, averaged over the subsets.)
    recent   "rank" only: list or tensor of rewards that ranks are taken against, instead of the prompt's other samples
    Returns [B, M].  Raises ValueError with one sentence for anything else.
    """
    if form not in ("rank", "exact"):
        raise ValueError(f"unknown form {form!r}: choose rank or exact")
    if rewards.dim() != 2 or rewards.numel() == 0:
        raise ValueError(f"rewards must be [prompts, samples], not of shape {tuple(rewards.shape)}")
    r = rewards if rewards.is_floating_point() else rewards.float()  # [B, M]
    M = r.shape[1]
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise ValueError(f"n must be a whole number of at least 1, not {n!r}")
    if form == "rank":
        if recent is not None and len(recent) == 0:
            raise ValueError("recent holds no rewards to rank against")
        return rank_weight(r, n, recent) * r / M
    if recent is not None:
        raise ValueError("the exact form compares samples of one prompt: it takes no recent rewards")
    if n > M:
        raise ValueError(f"the exact form needs at least n = {n} samples per prompt, not {M}")
    if n == 1:
        return r / M
    # Sorted ascending, r_j with j < i is the maximum of C(j, n-2) subsets S below i; (n/M) / C(M-1,n-1) = 1 / C(M,n).
    s, order = r.sort(dim=1)  # [B, M]
    share = r.new_tensor([comb(j, n - 2) / comb(M, n) for j in range(M)])
    c = ((s[:, :, None] - s[:, None, :]) * share).tril(-1).sum(-1)  # [B, M]
    return torch.zeros_like(r).scatter(1, order, c)


def log1mexp(x):
    """log(1 - e^x) for x < 0, value and gradient: each branch of a `where` needs an input that is safe for it, because a
    NaN of the branch not taken would reach the gradient."""
    near = x > -math.log(2)
    return torch.where(near, torch.log(-torch.expm1(torch.where(near, x, -1.0))),
                       torch.log1p(-torch.exp(torch.where(near, -1.0, x))))


def passn_sft_loss(logp, n):
    """-log(1 - (1-p)^n) with p = e^logp, the probability of the whole target, a tensor of any shape. As in cat_passk.py."""
    if n == 1:
        return -logp
    x = logp.clamp(max=-1e-30)
    # 1 - (1-p)^n = n p (1 - (n-1) p / 2 + ...): below e^-60 the first term is exact, and e^logp soon underflows
    small = x < -60
    regular = log1mexp(n * log1mexp(torch.where(small, -1.0, x)))
    return -torch.where(small, x + math.log(n), regular)


def passn_weight(p, n):
    """n p (1-p)^(n-1) / (1 - (1-p)^n), what passn_sft_loss weighs grad log p by, for the step line; 1 at p = 0."""
    return n * (1 - p) ** (n - 1) / sum((1 - p) ** j for j in range(n))


def standardise(rewards, recent=None):
    """(r - mean) / standard deviation [B, M], 0 where all are equal: of the prompt's own rewards, or of the recent ones
    [1, R]. Returns both on the new scale."""
    pool = rewards if recent is None else recent
    mean, std = pool.mean(1, keepdim=True), pool.std(1, correction=0, keepdim=True)
    equal = pool.amax(1, keepdim=True) - pool.amin(1, keepdim=True) < 1e-6  # rounding would pass for a deviation
    return [None if r is None else torch.where(equal, 0.0, (r - mean) / std.clamp_min(1e-6)) for r in (rewards, recent)]


def find_targets(policy, task, problems, M, T, max_new_tokens, seed):
    """{problem id: token ids of the best of M samples}, the first of equals."""
    targets = {}
    for first in range(0, len(problems), 256):
        block = problems[first:first + 256]
        prompts = [policy.encode(p.prompt, task.chat) for p in block]
        drawn = common.sample(policy, prompts, M, [common.seed_of("target", seed, p.id) for p in block], T, max_new_tokens).lists()
        rewards = common.rewards(task, [p for p in block for _ in range(M)], [policy.decode(y) for rows in drawn for y in rows])
        for b, p in enumerate(block):
            targets[p.id] = max(zip(rewards[b * M:b * M + M], drawn[b]), key=lambda pair: pair[0])[1]
    return targets


def kl_coefficients(gap):
    """Coefficients of grad log pi(y_i) whose expected sum is grad KL(pi || ref), as the score-function form has it:
    (1/M) (gap_i - mean_{j != i} gap_j), gap = log pi(y) - log ref(y) [B, M], detached."""
    M = gap.shape[1]
    baseline = (gap.sum(1, keepdim=True) - gap) / (M - 1) if M > 1 else 0.0
    return (gap - baseline) / M


# ------------------------------------------------------------------------------------------------------------- training

def check(args):
    """Flags that argparse cannot judge.  Raises UserError."""
    common.check_flags(args, positive=("n", "fifo"), not_negative=("max_grad_norm", "train_problems"))
    evaluate.numbers(args.test_n, int, "--test-n")
    if args.mode == "sft" and args.kl_coef:
        raise UserError("--kl-coef needs samples: use it with --mode rl")
    if args.mode == "rl" and args.form == "exact" and args.ranks == "fifo":
        raise UserError("--form exact compares samples of one prompt: it has no --ranks fifo")
    if args.mode == "rl" and args.form == "exact" and args.samples < args.n:
        raise UserError(f"--form exact needs at least --n {args.n} samples per prompt, not --samples {args.samples}")


def plot_weights(args):
    """--plot-weights: the rank weight N q^(N-1) trained with over q, against those of the test budgets."""
    folder = common.new_folder(args.out, "cat_bon-weights")
    q = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    weight = lambda n: n * q ** (n - 1)
    evaluate.weight_report((f"best of {args.n}", weight(args.n)),
                           {f"best of {n}": weight(n) for n in evaluate.numbers(args.test_n, int, "--test-n")}, folder, "q")


@common.cli
def main(argv=None):
    args = parser().parse_args(argv)
    run = common.Run(args, parser(), argv)
    check(args)
    if args.plot_weights:
        return plot_weights(args)
    B, M, n, T, beta = args.prompts, args.samples, args.n, args.temperature, args.kl_coef

    # Set up: task, run folder, policy, optimiser, and the last checkpoint if there is one.
    args.task = args.task or (None if args.data else "peptide")
    task = tasks.load_task(args.task, data=args.data, levels=args.levels, allow_unsandboxed=args.allow_unsandboxed_code)
    args.model = args.model or task.base
    kind = "max" if task.graded else "pass"
    run.create("cat_bon", f"{task.name}-{args.mode}")
    policy = common.load_policy(args.model, args.bits, args.lora_rank, args.adapter, args.reference, args.seed)
    max_new_tokens = args.max_new_tokens or task.max_new_tokens
    train = common.that_fit(policy, task, task.need("train"), max_new_tokens)[:args.train_problems or None]
    valid = common.that_fit(policy, task, task.need("valid"), max_new_tokens) if args.eval_every else []
    test = common.that_fit(policy, task, task.need("test"), max_new_tokens) if args.eval_samples else []
    optimizer = torch.optim.AdamW(policy.parameters(), lr=args.lr, weight_decay=0.0)
    run.begin(policy, optimizer)
    print(f"{run.folder}: {args.model}, {task.name}, {args.mode} for the best of {n}\n{policy.note}", flush=True)

    def judge(problems):
        problems, ks = problems[:args.eval_problems or None], sorted(budget for budget in {1, 2, 4, 8, 16, 32, 64, n} if budget <= args.eval_samples)
        return evaluate.evaluate(policy, task, problems, args.eval_samples, ks, T, args.seed, max_new_tokens, kl=True)[0]

    if args.mode == "sft":  # found once, by the policy that training starts from
        golds = common.on_first(lambda: run.read("targets.json"))
        if golds is None and run.step:
            raise UserError(f"{run.path('targets.json')} is damaged, and the policy that found the targets has trained "
                            "on: begin a new run")
        if golds is None:
            golds = find_targets(policy, task, train, M, T, max_new_tokens, args.seed)
            common.write_atomic(run.path("targets.json"), json.dumps(golds))

    if args.eval_samples and "before" not in run.result:
        run.result["before"] = judge(test)
        run.save(policy, optimizer)

    for step in range(run.step + 1, args.steps + 1):
        started = time.time()
        for group in optimizer.param_groups:
            group["lr"] = args.lr * (1 - (step - 1) / args.steps)
        problems = common.batch_of(train, B, step, args.seed)
        prompts = [policy.encode(p.prompt, task.chat) for p in problems]

        if args.mode == "sft":
            y, c = [golds[p.id] for p in problems], torch.ones(B)  # [B]
        else:
            # Sample. The seed alone fixes which problems a step has, and the M draws of each.
            drawn = common.sample(policy, prompts, M, [common.seed_of(args.seed, step, b) for b in range(B)], T, max_new_tokens)
            y = [row for rows in drawn.lists() for row in rows]  # B M completions; sample j belongs to prompt j // M
            logp = drawn.logps.double().sum(-1).cpu()  # [B, M]

            # Verify.
            texts = [policy.decode(row) for row in y]
            rewards = torch.tensor(common.rewards(task, [p for p in problems for _ in range(M)], texts)).view(B, M)

            # Weight.
            r, recent = rewards, None
            if args.ranks == "fifo" and args.form == "rank":  # part of the checkpoint: a resumed run has the same rewards
                run.result["recent"] = (run.result.get("recent", []) + rewards.flatten().tolist())[-args.fifo:]
                recent = torch.tensor(run.result["recent"]).view(1, -1)
            if args.rewards == "standardised":
                r, recent = standardise(rewards, recent)
            c = bon_weight(r, n, args.form, recent)  # [B, M]
            w = rank_weight(r, n, recent) if args.form == "rank" else M * c
            zero = (c == 0).float().mean().item()
            # KL to the reference: with beta > 0 on every sample, otherwise measured on the first sample of up to 32.
            m, some = (M, B) if beta else (1, min(B, 32))
            with policy.reference():
                ref = common.sequence_logps(policy, [x for x in prompts[:some] for _ in range(m)], [row for b in range(some) for row in y[b * M:b * M + m]], T)
            gap = logp[:some, :m] - ref.view(some, m)  # log pi - log ref  [some, m]
            if beta:
                c = c - beta * kl_coefficients(gap).to(c)
            c = c.flatten()  # [B M]

        # Update. Samples of zero weight have no gradient: they never enter a forward pass. The divisor counts every prompt.
        per, loss, norm, seen = len(y) // B, 0.0, 0.0, torch.zeros(len(y))
        kept = c.nonzero()[:, 0]
        mine = common.own(kept, kept // per)
        optimizer.zero_grad()
        for index, logps, _ in common.score(policy, [prompts[j // per] for j in mine], [y[j] for j in mine], T):
            j = mine[index]  # [r]
            total = logps.sum(-1)  # log pi(y|x)  [r]
            part_loss = (passn_sft_loss(total, n) if args.mode == "sft" else -c[j].to(total) * total).sum() / B
            part_loss.backward()
            loss += part_loss.item()
            seen[j] = total.detach().float().cpu()
        seen = common.total(seen)
        if len(kept):
            norm = common.clip_gradient(policy, args.max_grad_norm)
            optimizer.step()

        # Log.
        run.step = step
        seconds, counted = time.time() - started, sum(map(len, y))
        if args.mode == "sft":
            w = passn_weight(seen.double().exp().clamp(max=1), n)  # [B]
            line = {"step": step, "loss": common.total(loss), "gold": seen.mean().item(), "zero": (w < 0.01).double().mean().item()}
        else:
            line = {"step": step, "loss": common.total(loss), "reward": rewards.mean().item(),
                    **{f"{kind}@{b}": sum(common.bon_at_k(r, r, b) for r in rewards.tolist()) / B for b in sorted({1, min(n, M)})},
                    "zero": zero, "kl": gap.mean().item()}
        line |= {**common.spread(w), "grad_norm": norm, "length": counted / len(y), **task.counts, "tokens_per_s": counted / seconds,
                 "samples_per_s": len(y) / seconds, "memory_gb": common.peak_memory(policy), "seconds": run.seconds()}
        if args.eval_every and step % args.eval_every == 0:
            line["valid"] = judge(valid)
            print(evaluate.table({f"validation, step {step}": line["valid"]}, ks=(1, n, 64)))
        run.log("metrics.jsonl", **line)
        if step == 1 or step % 25 == 0 or step == args.steps:
            for b in (0, B - 1):
                shown = {"logp": seen[b].item()} if args.mode == "sft" else {"reward": rewards[b, 0].item()}
                run.log("samples.jsonl", step=step, prompt=problems[b].prompt, completion=policy.decode(y[b * per]), **shown)
            print(f"  {problems[b].prompt} -> {policy.decode(y[b * per])}   " + "  ".join(f"{k} {v:.3g}" for k, v in shown.items()))
        if step == 1 and n > 1 and (args.mode == "sft" or args.form == "rank") and line["w_even"] > 0.95:
            print("note: the weights are all alike, so this objective is that of --n 1: the targets are too improbable for this --n to tell them apart", flush=True)
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
        print(evaluate.table(rows, ks=(1, n, 64)), evaluate.table(rows, evaluate.DIVERSITY), sep="\n")
    run.result.pop("recent", None)
    run.finish()
    evaluate.plot_run(run.folder)
    print(f"{run.result['seconds']:.0f} s; everything is in {run.folder}/", flush=True)


if __name__ == "__main__":
    main()
