"""Train a language model for best-of-N sampling: supervised fine-tuning through the best of N samples.

Paper: Chow et al. 2024, "Inference-Aware Fine-Tuning for Best-of-N Sampling in Large Language Models", arXiv 2412.15287
(as we read it).

At test time N samples are drawn and the one that a verifier scores highest is kept. Its distribution is modelled by a tilt
of the policy (equations 10-11), and the log-likelihood of the gold completion y* under it is what is trained:

    pi_bon(y|x) ~ pi(y|x) exp(lambda_N Q(x, y)),    Q(x, y) = P_{y'~pi}( s(x, y) >= s(x, y') )
    J(theta) = E_{(x, y*) ~ D}[ log pi_bon(y*|x) ]

    grad log pi_bon(y*) = grad F(y*) - E_{y ~ pi_bon}[ grad F(y) ],
    grad F(y) = grad log pi(y) + lambda_N E_{y'~pi}[ 1{s(y) >= s(y')} grad log pi(y') ]

The gold completion gets the coefficient 1 and each of M samples from the policy a detached c_j (bon_sft_coefficients);

    loss = -(1/B) sum_prompts [ log pi(y*|x) + sum_j c_j log pi(y_j|x) ].

With N = 1 nothing is sampled and this is plain supervised fine-tuning, the twin to compare with. The gain shows where
plain fine-tuning becomes overconfident: few gold completions, many epochs (--train-problems).

Symbols: B prompts per step, M samples per prompt (--samples), N the test-time budget trained for (--n), s the score of the
verifier (--scores: the environment's reward, or a learned one), lambda_N the tilt whose KL to pi is that of best-of-N.

What to know: with finite M the estimate is biased, by O(1/M). Q depends on the policy and its gradient is kept: without
it a large part is lost (in enumerated cases about 20 % at N = 2, 80 % at N = 32). The tilt is a poor model of best-of-N
on hard prompts with a binary verifier (f = .99, N = 128: it is right with probability .035, true best-of-128 with .724).
Differences from the paper: 1) LoRA instead of all weights; 2) the M samples of a step serve both expectations.

    CPU, embedded model:  python bon_sft.py
    plain fine-tuning:    python bon_sft.py --n 1
    GPU, 4-bit LoRA:      python bon_sft.py --model Qwen/Qwen2.5-1.5B-Instruct --task gsm8k --train-problems 0 --prompts 16 --lr 2e-5
"""
import argparse


def parser():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    p.add_argument("--n", type=int, default=16, help="test-time budget N that is trained for; 1 = plain supervised fine-tuning")
    p.add_argument("--scores", choices=["reward", "verifier"], default="reward", help="what best-of-N selects by")
    p.add_argument("--verifier", default=None, help="folder of bon_rl.py --fit-verifier, or a reward model of one label: --scores "
                                                    "verifier selects by it, and best-of-N by it is evaluated")
    p.add_argument("--train-problems", type=int, default=200, help="training problems whose gold completions are used; 0 = all")
    p.add_argument("--task", default=None, help="countdown, routes, program, gsm8k, math, humaneval, mbpp, codecontests, taco; default countdown, or that of --data")
    p.add_argument("--data", default=None, help="your own problems, FILE.jsonl, or a local copy of the task's data set")
    p.add_argument("--levels", default=None, help="difficulty levels of the task `math`, e.g. 1-3")
    p.add_argument("--allow-unsandboxed-code", action="store_true", help="run model-written programs even where there is no sandbox")
    p.add_argument("--model", default=None, help="hub id, local directory, or an embedded model; default that of the task")
    p.add_argument("--adapter", default=None, help="run folder or LoRA directory to continue from")
    p.add_argument("--bits", type=int, choices=[4, 8, 16, 32], default=None,
                   help="precision of the frozen base; default 4 (NF4) on a GPU, 32 on a CPU")
    p.add_argument("--lora-rank", type=int, default=16, help="rank of the LoRA adapter (alpha is twice that)")
    p.add_argument("--samples", type=int, default=8, help="samples per prompt M, none at N = 1")
    p.add_argument("--prompts", type=int, default=64, help="prompts per step B")
    p.add_argument("--steps", type=int, default=125, help="optimiser steps")
    p.add_argument("--lr", type=float, default=2e-3, help="peak learning rate (AdamW), decays to 0; large models: 1e-5 to 5e-5")
    p.add_argument("--max-grad-norm", type=float, default=1.0, help="clip the gradient's norm; 0 = never")
    p.add_argument("--temperature", type=float, default=1.0, help="sampling and scoring temperature T")
    p.add_argument("--max-new-tokens", type=int, default=0, help="longest completion in tokens; 0 = the task's own")
    p.add_argument("--reference", choices=["start", "base"], default="start", help="reference of the measured KL: the start of this run, or the base")
    p.add_argument("--eval-samples", type=int, default=64, help="samples per test problem before and after; 0 = no evaluation")
    p.add_argument("--eval-problems", type=int, default=0, help="test problems to evaluate on; 0 = all")
    p.add_argument("--eval-every", type=int, default=0, help="evaluate on validation problems every so many steps; 0 = never")
    p.add_argument("--save-every", type=int, default=25, help="steps between checkpoints")
    p.add_argument("--seed", type=int, default=0, help="initialisation, data order and sampling")
    p.add_argument("--out", default=None, help="run folder; default runs/bon_sft-<task>-<n>-<number>")
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

def lambda_n(n):
    """lambda_N, at which the tilt's KL to pi equals that of best-of-N (scores without ties); 0.0 at N = 1. Equation 11:
    ((l-1) e^l + 1) / (e^l - 1) - log((e^l - 1) / l) = log N - (N-1)/N.  Raises ValueError unless n is an integer >= 1."""
    if not n >= 1 or n % 1:
        raise ValueError(f"lambda_n needs an integer n of at least 1, not {n}")
    if n == 1:
        return 0.0
    low, high = 1.0, 2.0 * n  # the left side grows with l, like log l - 1; bisect to the last bit
    for _ in range(100):
        l = (low + high) / 2
        # the left side with e^l divided out: nothing overflows
        left = l * math.exp(-l) / -math.expm1(-l) - 1 + math.log(l / -math.expm1(-l))
        low, high = (l, high) if left < math.log(n) - (n - 1) / n else (low, l)
    return (low + high) / 2


def bon_sft_coefficients(sample_scores, gold_scores, n):
    """Coefficients of grad log pi on the gold completion and on M samples, whose sum estimates grad log pi_bon(y*|x) for
    every prompt (sum convention) -> (gold [B], samples [B, M]).

    sample_scores [B, M], gold_scores [B]: any real numbers; n: the budget N.  1 on the gold completion, and on sample j,
    with w = softmax(lambda_N Q^) and Q^_j = (1/M) sum_l 1{s_j >= s_l},

        c_j = (lambda_N / M) 1{s* >= s_j} - w_j - (lambda_N / M) sum_i w_i 1{s_i >= s_j}

    The terms with lambda_N / M are the gradient of Q (of the gold one, and of the samples that make up the normaliser).
    At N = 1 this would be -1/M on every sample, zero in expectation: it is exactly zero here, so that N = 1 is plain
    supervised fine-tuning. Biased by O(1/M) for N > 1.  Raises ValueError for other shapes and n < 1.
    Source: arXiv 2412.15287, equations 10-11.
    """
    if sample_scores.dim() != 2 or gold_scores.shape != sample_scores.shape[:1]:
        raise ValueError(f"scores must be [prompts, samples] and [prompts], not {tuple(sample_scores.shape)} and {tuple(gold_scores.shape)}")
    s, gold = (x if x.is_floating_point() else x.float() for x in (sample_scores, gold_scores))  # [B, M], [B]
    lam, M = lambda_n(n), s.shape[1]
    if n == 1:
        return torch.ones_like(gold), torch.zeros_like(s)
    beats = (s[:, :, None] >= s[:, None, :]).to(s)  # 1{s_i >= s_j}  [B, i, j]
    w = torch.softmax(lam * beats.mean(2), 1)  # [B, M]
    c = lam / M * (gold[:, None] >= s).to(s) - w - lam / M * (w[:, :, None] * beats).sum(1)
    return torch.ones_like(gold), c


# ------------------------------------------------------------------------------------------------------------- training

def check(args):
    """Flags that argparse cannot judge.  Raises UserError."""
    common.check_flags(args, positive=("n",), not_negative=("max_grad_norm", "train_problems"))
    if args.scores == "verifier" and not args.verifier:
        raise UserError("--scores verifier needs --verifier: make one with bon_rl.py --fit-verifier, or give a reward model of one label")


@common.cli
def main(argv=None):
    args = parser().parse_args(argv)
    run = common.Run(args, parser(), argv)
    check(args)
    B, M, n, T = args.prompts, args.samples if args.n > 1 else 0, args.n, args.temperature

    # Set up: task, run folder, policy, verifier, optimiser, and the last checkpoint if there is one.
    args.task = args.task or (None if args.data else "countdown")
    task = tasks.load_task(args.task, data=args.data, levels=args.levels, allow_unsandboxed=args.allow_unsandboxed_code)
    args.model = args.model or task.base
    kind = "max" if task.graded else "pass"
    run.create("bon_sft", f"{task.name}-{n}")
    policy = common.load_policy(args.model, args.bits, args.lora_rank, args.adapter, args.reference, args.seed)
    verifier = common.load_verifier(args.verifier, args.bits) if args.verifier else None
    max_new_tokens = args.max_new_tokens or task.max_new_tokens
    golds = {p.id: policy.encode_solution(p.solution) for p in task.need("train") if p.solution}
    golds = {name: gold for name, gold in golds.items() if len(gold) <= max_new_tokens}
    train = [p for p in task.train if p.id in golds]
    if len(train) < len(task.train):
        print(f"left out {len(task.train) - len(train)} of {len(task.train)} training problems: no gold solution of at most "
              f"{max_new_tokens} tokens", flush=True)
    if not train:
        raise UserError(f"task {task.name} has no training problem with a gold solution of at most {max_new_tokens} tokens: "
                        "add \"solution\" to its data, or raise --max-new-tokens")
    train = common.that_fit(policy, task, train, max_new_tokens)[:args.train_problems or None]
    valid = common.that_fit(policy, task, task.need("valid"), max_new_tokens) if args.eval_every else []
    test = common.that_fit(policy, task, task.need("test"), max_new_tokens) if args.eval_samples else []
    optimizer = torch.optim.AdamW(policy.parameters(), lr=args.lr, weight_decay=0.0)
    run.begin(policy, optimizer)
    print(f"{run.folder}: {args.model}, {task.name}, N {n}, M {M}, {len(train)} gold solutions\n{policy.note}", flush=True)

    def judge(problems, row=None):
        ks = sorted(budget for budget in {1, 2, 4, 8, 16, 32, n} if budget <= args.eval_samples)
        found, pool = evaluate.evaluate(policy, task, problems[:args.eval_problems or None], args.eval_samples, ks, T, args.seed,
                                        max_new_tokens, kl=True, verifier=verifier)
        if verifier and row:  # on samples of this policy, which may have learned to deceive it
            run.result[f"verifier {row}"] = evaluate.judge_verifier(pool)
        return found

    if args.eval_samples and "before" not in run.result:
        run.result["before"] = judge(test, "before")
        run.save(policy, optimizer)

    for step in range(run.step + 1, args.steps + 1):
        started = time.time()
        for group in optimizer.param_groups:
            group["lr"] = args.lr * (1 - (step - 1) / args.steps)

        # Sample, unless N = 1. The seed alone fixes which problems a step has, and the M draws of each.
        problems = common.batch_of(train, B, step, args.seed)
        prompts = [policy.encode(p.prompt, task.chat) for p in problems]
        y, texts = [golds[p.id] for p in problems], []  # the gold completions, and after them B M samples
        if M:
            drawn = common.sample(policy, prompts, M, [common.seed_of(args.seed, step, b) for b in range(B)], T, max_new_tokens)
            y += [row for rows in drawn.lists() for row in rows]  # sample j belongs to prompt j // M
            texts = [policy.decode(row) for row in y[B:]]

        # Verify gold completions and samples alike.
        owners = problems + [p for p in problems for _ in range(M)]
        answers = [p.solution for p in problems] + texts
        rewards = torch.tensor(common.rewards(task, owners, answers))  # [B + B M]
        scores = rewards
        if args.scores == "verifier":
            scores = torch.tensor(common.verify_scores(verifier, [p.prompt for p in owners], answers, task.chat))

        # Weight.
        gold, c = bon_sft_coefficients(scores[B:].view(B, M), scores[:B], n)  # [B], [B, M]
        c = torch.cat([gold, c.flatten()])  # [B + B M]

        # Update. Samples of zero weight have no gradient: they never enter a forward pass. The divisor counts every prompt.
        rows, loss, gold_logp = prompts + [x for x in prompts for _ in range(M)], 0.0, 0.0
        kept = c.nonzero()[:, 0]
        mine = common.own(kept, torch.cat([torch.arange(B), torch.arange(B).repeat_interleave(M)])[kept])
        optimizer.zero_grad()
        for index, logps, _ in common.score(policy, [rows[j] for j in mine], [y[j] for j in mine], T):
            j = mine[index]  # [r]
            sums = logps.sum(-1)  # log pi(y|x)  [r]
            part_loss = -(c[j].to(sums) * sums).sum() / B
            part_loss.backward()
            loss += part_loss.item()
            gold_logp += sums.detach().cpu()[j < B].sum().item() / B
        norm = common.clip_gradient(policy, args.max_grad_norm)
        optimizer.step()

        # Log.
        run.step = step
        seconds = time.time() - started
        line = {"step": step, "loss": common.total(loss), "gold": common.total(gold_logp), "zero": (c == 0).float().mean().item(), "grad_norm": norm, **task.counts,
                "samples_per_s": len(y) / seconds, "memory_gb": common.peak_memory(policy), "seconds": run.seconds()}
        if M:
            r, counted = rewards[B:].view(B, M), int(drawn.lengths.sum())
            line |= {"reward": r.mean().item(),
                     **{f"{kind}@{b}": sum(common.bon_at_k(x, x, b) for x in r.tolist()) / B for b in sorted({1, min(n, M)})},
                     "length": counted / (B * M), "entropy": drawn.entropies.sum().item() / counted,  # nats per token
                     **common.spread(c[B:]), "diversity": evaluate.mean_diversity(texts, [task.extract(t) for t in texts], M)}
        if args.eval_every and step % args.eval_every == 0:
            line["valid"] = judge(valid)
            print(evaluate.table({f"validation, step {step}": line["valid"]}, ks=(1, n, 32)))
        run.log("metrics.jsonl", **line)
        if step == 1 or step % 25 == 0 or step == args.steps:
            shown = (texts or answers)[0]
            run.log("samples.jsonl", step=step, prompt=problems[0].prompt, completion=shown, gold=answers[0],
                    reward=rewards[B if M else 0].item())
            print(f"  {problems[0].prompt} -> {shown}   gold {answers[0]}")
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
        run.result["after"] = judge(test, "after")
        rows = {row: run.result[row] for row in ("before", "after")}
        print(evaluate.table(rows, ks=(1, n, 32)), evaluate.table(rows, evaluate.DIVERSITY), sep="\n")
        for row in rows if verifier else ():
            found = run.result[f"verifier {row}"]
            print(f"verifier on samples {row}: AUC {found['auc']:.3f} [{found['low']:.3f}, {found['high']:.3f}]")
    run.finish()
    evaluate.plot_run(run.folder)
    print(f"{run.result['seconds']:.0f} s; everything is in {run.folder}/", flush=True)


if __name__ == "__main__":
    main()
