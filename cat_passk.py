"""Train a language model for pass@N through an operator on its success probability: CAT with Pass@N, SFT and RL.

Paper: Ousherovitch, Tewari 2026, "Compute Aligned Training: Optimizing for Test Time Inference", arXiv 2604.24957 (as we
read it). An inference strategy maps the probability p of success of one sample to that of the strategy:

    T(p) = 1 - (1-p)^N                                   at least one of N samples succeeds

--mode sft   ascends log T with p = pi(y*|x), the probability of the whole gold completion y*:
    loss = -(1/B) sum_prompts log(1 - (1-p)^N)           its gradient is -w grad log p with
    w    = p T'/T = N p (1-p)^(N-1) / (1 - (1-p)^N)      near 1 where p << 1/N, near 0 where N samples find y* anyway

--mode rl    multiplies the reward of each of M samples y_i by a weight:
    grad = (1/B) sum_prompts sum_i (r_i w / M) grad log pi(y_i|x)

    form    w                                   expectation with the true p
    raw     T' = N (1-p)^(N-1)                  grad T
    log     p T'/T, the weight of SFT           p grad log T (w/p would give grad log T)
    pool    N C(M-c,N-1) / C(M-1,N-1)           grad T, without knowing p: c right ones among M >= N samples

p is the smoothed success rate (c+1)/(M+2) of the prompt (--probability success) or pi(y_i|x) of the sample itself
(sequence, as in the paper's runs). raw and log with an estimated p are biased; pool with --rewards raw is not. Symbols:
B prompts per step, M samples per prompt (--samples), N the budget trained for (--n), r the reward in {0, 1}.

Differences from the paper: 1) the pool form; 2) --normalise divides by the mean weight over all samples of the batch;
3) KL is in the reward, with a leave-one-out baseline. If p << 1/N for every gold completion, w is 1 and this is
cross-entropy: short targets (--target answer) keep p up, and the step line shows the weights (w_even = 1: no effect).

    CPU, embedded model:  python cat_passk.py --train-problems 50
    weights, no training: python cat_passk.py --n 16 --plot-weights
    GPU, 4-bit LoRA:      python cat_passk.py --mode rl --model mistralai/Mistral-7B-Instruct-v0.2 --task math --samples 4 --lr 2e-5
"""
import argparse


def parser():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    p.add_argument("--mode", choices=["sft", "rl"], default="sft", help="imitate gold completions, or learn from sampled ones")
    p.add_argument("--n", type=int, default=16, help="test-time budget N that is trained for; 1 = cross-entropy, or plain RL")
    p.add_argument("--target", choices=["answer", "solution"], default="answer", help="sft: the gold completion, answer only (the paper's) or in full")
    p.add_argument("--train-problems", type=int, default=0, help="use the first so many training problems; 0 = all")
    p.add_argument("--form", choices=["raw", "log", "pool"], default="log", help="rl: the weight; the paper's Pass@N runs use log")
    p.add_argument("--probability", choices=["success", "sequence"], default="sequence", help="rl: what p is; pool needs success")
    p.add_argument("--rewards", choices=["standardised", "raw"], default="standardised", help="rl: rewards within the prompt; the paper standardises, pool is exact with raw")
    p.add_argument("--normalise", action=argparse.BooleanOptionalAction, default=True, help="rl: divide by the mean weight over all samples of the batch")
    p.add_argument("--task", default=None, help="countdown, routes, program, gsm8k, math, humaneval, mbpp, codecontests, taco; default countdown, or that of --data")
    p.add_argument("--data", default=None, help="your own problems, FILE.jsonl, or a local copy of the task's data set")
    p.add_argument("--levels", default=None, help="difficulty levels of the task `math`, e.g. 1-3")
    p.add_argument("--allow-unsandboxed-code", action="store_true", help="run model-written programs even where there is no sandbox")
    p.add_argument("--model", default=None, help="hub id, local directory, or an embedded model; default that of the task")
    p.add_argument("--adapter", default=None, help="run folder or LoRA directory to continue from, e.g. an SFT warm-up before RL")
    p.add_argument("--bits", type=int, choices=[4, 8, 16, 32], default=None,
                   help="precision of the frozen base; default 4 (NF4) on a GPU, 32 on a CPU")
    p.add_argument("--lora-rank", type=int, default=16, help="rank of the LoRA adapter (alpha is twice that)")
    p.add_argument("--samples", type=int, default=16, help="rl: samples per prompt M (the paper: 4); pool needs at least n")
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
    p.add_argument("--test-n", default="1,4,16,64", help="test budgets of --plot-weights, comma-separated")
    p.add_argument("--out", default=None, help="run folder; default runs/cat_passk-<task>-<mode>-<number>")
    p.add_argument("--resume", action="store_true", help="continue the run in --out")
    return p


if __name__ == "__main__":
    parser().parse_args()  # --help and bad flags answer before the heavy imports

import math
import time

import common  # before torch: it sets the thread policy
import evaluate
import tasks
import torch
from common import UserError


# -------------------------------------------------------------------------------------------------- the paper's equations

def log1mexp(x):
    """log(1 - e^x) for x < 0, value and gradient: each branch of a `where` needs an input that is safe for it, because a
    NaN of the branch not taken would reach the gradient."""
    near = x > -math.log(2)
    return torch.where(near, torch.log(-torch.expm1(torch.where(near, x, -1.0))),
                       torch.log1p(-torch.exp(torch.where(near, -1.0, x))))


def check_budget(n, name="n"):
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, not {n!r}")


def passn_sft_loss(logp, n):
    """-log(1 - (1-p)^n) with p = e^logp, the probability of the whole gold completion; any shape, tensor or float.

    Its gradient with respect to logp is -n p (1-p)^(n-1) / (1 - (1-p)^n), the SFT weight: never weigh this loss again.
    n = 1 is -logp.
    A logp of up to 1e-3 counts as rounding of 0; NaN passes through.  Raises ValueError for more, and for n < 1.
    """
    check_budget(n)
    logp, back = common.elementwise(logp, -math.inf, 1e-3, "logp")
    if n == 1:
        return back(-logp)
    x = logp.clamp(max=-1e-30)
    # 1 - (1-p)^n = n p (1 - (n-1) p / 2 + ...): below e^-60 the first term is exact, and e^logp soon underflows
    small = x < -60
    regular = log1mexp(n * log1mexp(torch.where(small, -1.0, x)))
    return back(-torch.where(small, x + math.log(n), regular))


def passn_weight(p, n, form):
    """Weight of the Pass@N operator at success probability p; any shape, tensor or float.
    "raw"  T'(p) = n (1-p)^(n-1): r * raw * grad log pi has the expectation grad T(p)
    "log"  p T'(p) / T(p), the SFT weight; the expectation of r * log * grad log pi is p grad log T(p): the exact weight
           for log T would lack the factor p
    Raises ValueError for p outside [0, 1], n < 1 or another form."""
    if form not in ("raw", "log"):
        raise ValueError(f"unknown form {form!r}: choose raw or log")
    check_budget(n)
    p, back = common.elementwise(p, 0, 1, "p")
    f = 1 - p
    raw = n * f ** (n - 1)
    # T(p) / p = sum_{j<n} f^j: no 0/0 at p = 0, where the weight is 1
    return back(raw if form == "raw" else raw / powers(f, n))


def powers(f, n):
    """sum_{j<n} f^j, by doubling."""
    if n == 1:
        return torch.ones_like(f)
    total = powers(f, n // 2) * (1 + f ** (n // 2))
    return total + f ** (n - 1) if n % 2 else total


def pool_weight(c, m, n):
    """n C(m-c, n-1) / C(m-1, n-1): weight of each of the c right ones of m samples such that
    E[(c/m) pool_weight] = p n (1-p)^(n-1) for every p. The plug-in p = c/m in n (1-p)^(n-1) is badly biased.
    c: whole numbers, tensor of any shape or int.  Raises ValueError unless 1 <= n <= m and 0 <= c <= m."""
    check_budget(n)
    check_budget(m, "m")
    if n > m:
        raise ValueError(f"the pool form needs at least n = {n} samples per prompt, not {m}")
    count, back = common.elementwise(c, 0, m, "c")
    if (count != count.round()).any():
        raise ValueError("c counts samples: it must be whole")
    table = [n * math.comb(m - i, n - 1) / math.comb(m - 1, n - 1) for i in range(m + 1)]
    return back(torch.tensor(table, dtype=count.dtype, device=count.device)[count.long()])


def operator_weight(T, p):
    """p T'(p) / T(p) by autograd, the SFT weight of any inference strategy given as an operator T on a tensor of
    probabilities; any shape, tensor or float. At p = 0 the limit, to about 1e-6 (it is taken at p = 1e-6).
    Raises ValueError for p outside [0, 1] or where T is not positive."""
    p, back = common.elementwise(p, 0, 1, "p")
    with torch.enable_grad():
        x = torch.where(p == 0, 1e-6, p.detach().double()).requires_grad_()
        value = T(x)
        if not (value > 0).all():
            raise ValueError("the operator must be positive for p > 0")
        slope, = torch.autograd.grad(value.sum(), x)
    return back((x * slope / value).detach())


def rl_weights(right, logp, n, form, probability):
    """The weight of every sample [B, M]. right [B, M]: which samples succeeded; logp [B, M]: log pi(y_i|x), detached."""
    M, c = right.shape[1], right.sum(1, keepdim=True)  # [B, 1]
    if form == "pool":
        w = pool_weight(c, M, n)
    elif probability == "success":
        w = passn_weight((c + 1) / (M + 2), n, form)  # Laplace's rule: neither 0 nor 1
    else:
        w = passn_weight(logp.exp().clamp(max=1), n, form)
    return w.float().expand_as(right)


def standardise(rewards):
    """(r - mean) / standard deviation within each prompt [B, M]; 0 where all rewards are equal."""
    centred = rewards - rewards.mean(1, keepdim=True)
    equal = rewards.amax(1, keepdim=True) - rewards.amin(1, keepdim=True) < 1e-6  # rounding would pass for a deviation
    return torch.where(equal, 0.0, centred / rewards.std(1, correction=0, keepdim=True).clamp_min(1e-6))


def kl_coefficients(gap):
    """Coefficients of grad log pi(y_i) whose expected sum is grad KL(pi || ref), as the score-function form has it:
    (1/M) (gap_i - mean_{j != i} gap_j), gap = log pi(y) - log ref(y) [B, M], detached."""
    M = gap.shape[1]
    baseline = (gap.sum(1, keepdim=True) - gap) / (M - 1) if M > 1 else 0.0
    return (gap - baseline) / M


# ------------------------------------------------------------------------------------------------------------- training

def check(args):
    """Flags that argparse cannot judge.  Raises UserError."""
    common.check_flags(args, positive=("n",), not_negative=("max_grad_norm", "train_problems"))
    evaluate.numbers(args.test_n, int, "--test-n")
    if args.mode == "sft" and args.kl_coef:
        raise UserError("--kl-coef needs samples: use it with --mode rl")
    if args.mode == "rl" and args.form == "pool" and args.probability != "success":
        raise UserError("--form pool counts right samples: it needs --probability success")
    if args.mode == "rl" and args.form == "pool" and args.samples < args.n:
        raise UserError(f"--form pool needs at least --n {args.n} samples per prompt, not --samples {args.samples}")
    if args.mode == "rl" and args.normalise and args.prompts == 1:
        raise UserError("--normalise over a single prompt cancels its weight: use more --prompts, or --no-normalise")


def plot_weights(args):
    """--plot-weights: the weight trained with over p, against those of the test budgets."""
    folder = common.new_folder(args.out, "cat_passk-weights")
    p = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    form = "log" if args.mode == "sft" else "raw" if args.form == "pool" else args.form  # pool estimates raw
    evaluate.weight_report((f"Pass@{args.n} {form}", passn_weight(p, args.n, form)),
                           {f"Pass@{n}": passn_weight(p, n, form) for n in evaluate.numbers(args.test_n, int, "--test-n")}, folder, "p")


@common.cli
def main(argv=None):
    args = parser().parse_args(argv)
    run = common.Run(args, parser(), argv)
    check(args)
    if args.plot_weights:
        return plot_weights(args)
    B, M, n, T, beta = args.prompts, args.samples, args.n, args.temperature, args.kl_coef

    # Set up: task, run folder, policy, optimiser, and the last checkpoint if there is one.
    args.task = args.task or (None if args.data else "countdown")
    task = tasks.load_task(args.task, data=args.data, levels=args.levels, allow_unsandboxed=args.allow_unsandboxed_code)
    args.model = args.model or task.base
    if task.graded:
        raise UserError(f"task {task.name} has graded rewards, and Pass@N needs right or wrong: use cat_bon.py")
    run.create("cat_passk", f"{task.name}-{args.mode}")
    policy = common.load_policy(args.model, args.bits, args.lora_rank, args.adapter, args.reference, args.seed)
    max_new_tokens = args.max_new_tokens or task.max_new_tokens
    train = common.that_fit(policy, task, task.need("train"), max_new_tokens)[:args.train_problems or None]
    if args.mode == "sft":
        train, golds = common.gold(policy, task, train, args.target)
        golds = {p.id: y for p, y in zip(train, golds)}
    valid = common.that_fit(policy, task, task.need("valid"), max_new_tokens) if args.eval_every else []
    test = common.that_fit(policy, task, task.need("test"), max_new_tokens) if args.eval_samples else []
    optimizer = torch.optim.AdamW(policy.parameters(), lr=args.lr, weight_decay=0.0)
    run.begin(policy, optimizer)
    print(f"{run.folder}: {args.model}, {task.name}, {args.mode} for Pass@{n}\n{policy.note}", flush=True)

    def judge(problems):
        problems, ks = problems[:args.eval_problems or None], sorted(budget for budget in {1, 2, 4, 8, 16, 32, 64, n} if budget <= args.eval_samples)
        return evaluate.evaluate(policy, task, problems, args.eval_samples, ks, T, args.seed, max_new_tokens, kl=True,
                                 target=args.target)[0]

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
            w = rl_weights((rewards == 1).double(), logp, n, args.form, args.probability)  # [B, M]
            if args.normalise:  # the floor: when every weight underflows there is nothing to learn, and no 0/0
                w = w / w.mean().clamp_min(1e-6)
            c = w * (standardise(rewards) if args.rewards == "standardised" else rewards) / M  # [B, M]
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
            w = passn_weight(seen.double().exp().clamp(max=1), n, "log")  # [B]
            line = {"step": step, "loss": common.total(loss), "gold": seen.mean().item(), "zero": (w < 0.01).double().mean().item()}
        else:
            line = {"step": step, "loss": common.total(loss), "reward": rewards.mean().item(),
                    **{f"pass@{b}": sum(common.bon_at_k(r, r, b) for r in rewards.tolist()) / B for b in sorted({1, min(n, M)})},
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
        if step == 1 and n > 1 and line["w_even"] > 0.95:
            print("note: the weights are all alike, so this objective is that of --n 1: --target answer, a smaller --n, or --probability success tells prompts apart", flush=True)
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
    run.finish()
    evaluate.plot_run(run.folder)
    print(f"{run.result['seconds']:.0f} s; everything is in {run.folder}/", flush=True)


if __name__ == "__main__":
    main()
