"""Train a language model for best-of-N sampling: reinforcement learning through the best of N samples.

Paper: Chow et al. 2024, "Inference-Aware Fine-Tuning for Best-of-N Sampling in Large Language Models", arXiv 2412.15287
(as we read it).

At test time N samples are drawn and the one that a verifier scores highest is kept. Its distribution is modelled by a tilt
of the policy (equations 10-11), and the expected reward under it is what is trained:

    pi_bon(y|x) ~ pi(y|x) exp(lambda_N Q(x, y)),    Q(x, y) = P_{y'~pi}( s(x, y) >= s(x, y') )
    J(theta) = E_{y ~ pi_bon}[ r(x, y) ]

    variant  trained on
    v        BoN-RL-V: s is a learned verifier (--verifier), r the environment's reward
    s        BoN-RL-S: s = r
    b        BoN-RLB: r in {0, 1}, s = r, J = 1 - f^N with f the probability to fail: the exact form of best-of-N
    bp       BoN-RLB(P): the same J with weights on the right samples only
    rl       N = 1: the mean reward with the mean as baseline, best-of-N ignored (--entropy-coef: explicit exploration)
    star     N = 1: right samples only, as STaR does

Every variant gives each of the M samples of a prompt one detached coefficient c_j, and

    loss = -(1/B) sum_prompts sum_j c_j log pi(y_j|x).

Symbols: B prompts per step, M samples per prompt (--samples), N the test-time budget trained for (--n), s the score of the
verifier, r the reward, lambda_N the tilt whose KL to pi is that of best-of-N, T the temperature, beta the KL coefficient.

What to know: 1) with finite M the estimates of v and s are biased, by O(1/M); Q's own gradient is part of them. 2) The
tilt is a poor model of best-of-N on hard prompts with a binary verifier (f = .99, N = 128: it is right with probability
.035, true best-of-128 with .724); b and bp do not use it. 3) b pushes failures down, which is the exact gradient times
(1+f)/(1-f), so hard prompts count most: with N = 8 and M = 16 each sample of an all-wrong prompt has c = -12. The sign
that makes it exact pushes failures up (--negatives exact). 4) rl is (M-1)/M times the exact gradient, because the
baseline contains the sample itself.
Differences from the paper: 1) LoRA instead of all weights; 2) M plain samples where the paper draws best-of-N ones and
throws the others away; 3) one on-policy step per batch; 4) KL is in the reward, with a leave-one-out baseline.

    CPU, embedded model:  python bon_rl.py
    a verifier, then v:   python bon_rl.py --fit-verifier --out runs/verifier && python bon_rl.py --variant v --verifier runs/verifier
    GPU, 4-bit LoRA:      python bon_rl.py --model Qwen/Qwen2.5-1.5B-Instruct --task gsm8k --prompts 32 --samples 16 --lr 2e-5
"""
import argparse


def parser():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    p.add_argument("--variant", choices=["v", "s", "b", "bp", "rl", "star"], default="bp", help="what to train on; see the top of the file")
    p.add_argument("--n", type=int, default=8, help="test-time budget N that is trained for; rl and star only report it")
    p.add_argument("--negatives", choices=["minus", "exact"], default="minus",
                   help="sign of the failures in variant b: minus pushes them down, (1+f)/(1-f) times the exact gradient with f the "
                        "probability to fail; exact pushes them up")
    p.add_argument("--estimate", choices=["plugin", "pool"], default="plugin",
                   help="N f^(N-1) in variant bp: from the share of failures, or unbiased (needs samples >= N)")
    p.add_argument("--entropy-coef", type=float, default=0.0, help="weight of the entropy of pi(.|x) in the objective, in rewards per nat")
    p.add_argument("--verifier", default=None, help="folder of --fit-verifier, or a reward model of one label: variant v selects by it, "
                                                    "and best-of-N by it is evaluated")
    p.add_argument("--task", default=None, help="countdown, routes, program, gsm8k, math, humaneval, mbpp, codecontests, taco; default countdown, or that of --data")
    p.add_argument("--data", default=None, help="your own problems, FILE.jsonl, or a local copy of the task's data set")
    p.add_argument("--levels", default=None, help="difficulty levels of the task `math`, e.g. 1-3")
    p.add_argument("--allow-unsandboxed-code", action="store_true", help="run model-written programs even where there is no sandbox")
    p.add_argument("--model", default=None, help="hub id, local directory, or an embedded model; default that of the task")
    p.add_argument("--adapter", default=None, help="run folder or LoRA directory to continue from")
    p.add_argument("--bits", type=int, choices=[4, 8, 16, 32], default=None,
                   help="precision of the frozen base; default 4 (NF4) on a GPU, 32 on a CPU")
    p.add_argument("--lora-rank", type=int, default=16, help="rank of the LoRA adapter (alpha is twice that)")
    p.add_argument("--samples", type=int, default=16, help="samples per prompt M")
    p.add_argument("--prompts", type=int, default=32, help="prompts per step B")
    p.add_argument("--steps", type=int, default=100, help="sampling steps, one optimiser step each")
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
    p.add_argument("--out", default=None, help="run folder; default runs/bon_rl-<task>-<variant>-<number>")
    p.add_argument("--resume", action="store_true", help="continue the run in --out")
    fit = p.add_argument_group("fitting a verifier")
    fit.add_argument("--fit-verifier", action="store_true", help="train no policy: fit an outcome verifier on samples of it, into --out")
    fit.add_argument("--fit-problems", type=int, default=4000, help="training problems to sample on; 0 = all")
    fit.add_argument("--fit-samples", type=int, default=8, help="samples per problem")
    fit.add_argument("--fit-epochs", type=int, default=2, help="passes over the samples, 256 at a time")
    fit.add_argument("--fit-lr", type=float, default=5e-3, help="peak learning rate (AdamW), decays to 0; large models: 1e-5 to 1e-4")
    fit.add_argument("--verifier-noise", type=float, default=0.0, help="probability that a label is flipped before fitting")
    return p


if __name__ == "__main__":
    parser().parse_args()  # --help and bad flags answer before the heavy imports

import math
import time
from math import comb

import common  # before torch: it sets the thread policy
import evaluate
import tasks
import torch
import torch.nn.functional as F
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


def bon_rl_coefficients(scores, rewards, n):
    """Coefficients c_j of grad log pi(y_j|x) whose sum estimates grad E_{y~pi_bon}[r(y)] for every prompt (sum convention).

    scores, rewards [B, M] tensors, any real numbers; n: the budget N.  Returns [B, M].  With w = softmax(lambda_N Q^),
    Q^_j = (1/M) sum_l 1{s_j >= s_l} and b = sum_i w_i r_i:

        c_j = w_j (r_j - b) + (lambda_N / M) sum_i w_i (r_i - b) 1{s_i >= s_j}

    The second term is the gradient of Q. The estimate is biased by O(1/M) where N > 1; at N = 1, where c_j = (r_j - mean r) / M,
    it is (M-1)/M times the exact gradient.  Raises ValueError for other shapes and n < 1.  Source: arXiv 2412.15287,
    equations 10-11.
    """
    if scores.dim() != 2 or scores.shape != rewards.shape:
        raise ValueError(f"scores and rewards must both be [prompts, samples], not {tuple(scores.shape)} and {tuple(rewards.shape)}")
    r = rewards if rewards.is_floating_point() else rewards.float()  # [B, M]
    lam, M = lambda_n(n), r.shape[1]
    beats = (scores[:, :, None] >= scores[:, None, :]).to(r)  # 1{s_i >= s_j}  [B, i, j]
    w = torch.softmax(lam * beats.mean(2), 1)  # [B, M]
    d = r - r.amin(1, keepdim=True)  # a shift of r moves nothing; equal rewards weigh exactly nothing
    gain = w * (d - (w * d).sum(1, keepdim=True))  # w_i (r_i - b)  [B, M]
    return gain + lam / M * (gain[:, :, None] * beats).sum(1)


def rlb_weights(f, n, variant):
    """Weights of right and of wrong plain samples, before the 1/M, for J = 1 - f^N -> (correct, wrong).

    f  probability to fail, number or tensor;  n: the budget N
        "positive"  (N f^{N-1}, 0)                               the exact gradient, N f^{N-1} E[r grad log pi]
        "minus"     (N f^{N-1} / (1-f), -N f^N / (1-f))          (1+f)/(1-f) times the exact gradient
        "exact"     (N f^{N-1} / (1-f), +N f^N / (1-f))          the exact gradient, failures pushed up
    The paper's weights belong to best-of-N samples, g+ = N f^{N-1} / (1-f^N) and g- = N f / (1-f); a plain sample stands
    for them with E_bon[r h] = ((1-f^N)/(1-f)) E_pi[r h] and E_bon[(1-r) h] = f^{N-1} E_pi[(1-r) h].
    Raises ValueError for f outside [0, 1], for f = 1 unless "positive" (infinite weights), n < 1, an unknown variant.
    """
    if variant not in ("positive", "minus", "exact"):
        raise ValueError(f"unknown variant {variant!r}: choose positive, minus or exact")
    if not n >= 1 or n % 1:
        raise ValueError(f"n must be an integer of at least 1, not {n}")
    values = torch.as_tensor(f, dtype=torch.float64)
    if not ((values >= 0) & (values <= 1)).all() or variant != "positive" and (values == 1).any():
        raise ValueError(f"f must be a probability{'' if variant == 'positive' else ' below 1'}")
    first = n * f ** (n - 1)
    if variant == "positive":
        return first, 0 * first
    return first / (1 - f), (-f if variant == "minus" else f) * first / (1 - f)


def bon_rlb_coefficients(rewards, n, variant, estimate="plugin"):
    """Coefficients c_j of grad log pi(y_j|x) for J = 1 - f^N, from M plain samples per prompt (sum convention).

    rewards [B, M] of 0 and 1;  variant "minus", "exact" or "positive" (rlb_weights)
    estimate  "plugin"  f^ = share of wrong samples, for minus and exact kept within [1/(2M), 1 - 1/(2M)]; biased
              "pool"    positive only, M >= N: N C(M-c, N-1) / C(M-1, N-1) for N f^{N-1}, c the number of right samples;
                        the expectation of sum_j c_j grad log pi(y_j) is exactly grad (1 - f^N)
    Returns [B, M].  Raises ValueError for anything else.
    """
    if rewards.dim() != 2 or not ((rewards == 0) | (rewards == 1)).all():
        raise ValueError("rewards must be [prompts, samples] of 0 and 1")
    if estimate not in ("plugin", "pool"):
        raise ValueError(f"unknown estimate {estimate!r}: choose plugin or pool")
    r = rewards if rewards.is_floating_point() else rewards.float()  # [B, M]
    M = r.shape[1]
    if estimate == "pool":
        if variant != "positive" or not 1 <= n <= M:
            raise ValueError(f"the pool estimate exists for the positive variant and 1 <= n <= samples, not for {variant!r}, "
                             f"n = {n} and {M} samples")
        weight = [n * comb(M - int(c), n - 1) / comb(M - 1, n - 1) for c in r.sum(1).tolist()]  # exact integers first
        return r * r.new_tensor(weight)[:, None] / M
    f = 1 - r.mean(1, keepdim=True)  # [B, 1]
    if variant != "positive":
        f = f.clamp(1 / (2 * M), 1 - 1 / (2 * M))  # at 0 and 1 the weights of samples that are not there would be infinite
    correct, wrong = rlb_weights(f, n, variant)
    return torch.where(r == 1, correct, wrong) / M


def kl_coefficients(gap):
    """Coefficients of grad log pi(y_i) whose expected sum is grad KL(pi || ref), as the score-function form has it:
    (1/M) (gap_i - mean_{j != i} gap_j), gap = log pi(y) - log ref(y) [B, M], detached. With gap = log pi(y) it is the
    gradient of minus the entropy of pi(.|x)."""
    M = gap.shape[1]
    baseline = (gap.sum(1, keepdim=True) - gap) / (M - 1) if M > 1 else 0.0
    return (gap - baseline) / M


# --------------------------------------------------------------------------------------------------------- the verifier

def fit_verifier(args, task):
    """Samples of the policy on training problems, right or wrong by the environment's reward, teach a scalar head and a
    LoRA adapter on the same base to tell them apart (binary cross-entropy). Judged on samples on test problems."""
    folder = common.new_folder(args.out, f"verifier-{task.name}")
    started = time.time()
    policy = common.load_policy(args.model, args.bits, args.lora_rank, args.adapter, "base", args.seed)
    length = args.max_new_tokens or task.max_new_tokens

    def draw(problems, count):
        return evaluate.draw_pool(policy, task, common.that_fit(policy, task, problems, length), count, args.temperature, args.seed, length)
    train = draw(task.need("train")[:args.fit_problems or None], args.fit_samples)
    test = draw(task.need("test")[:args.eval_problems or None], 16)
    del policy  # a large base would be in memory twice
    verifier = common.load_verifier(args.model, args.bits, args.lora_rank, args.seed)
    print(f"{folder}: {verifier.note}\nsampled {len(train) * args.fit_samples} completions in {time.time() - started:.0f} s", flush=True)

    generator = torch.Generator().manual_seed(args.seed)
    examples = [(e["prompt"], y, float(r == 1)) for e in train for y, r in zip(e["completions"], e["rewards"])]
    labels = torch.tensor([r for *_, r in examples])  # [R]
    flip = torch.rand(len(labels), generator=generator) < args.verifier_noise
    labels = torch.where(flip, 1 - labels, labels)
    rows = [verifier.encode(x, y, task.chat) for x, y, _ in examples]
    optimizer = torch.optim.AdamW(verifier.parameters(), lr=args.fit_lr, betas=(0.9, 0.98), weight_decay=0.01)
    batches = [batch for _ in range(args.fit_epochs) for batch in torch.randperm(len(rows), generator=generator).split(256)]
    losses = []
    for step, batch in enumerate(batches, 1):
        for group in optimizer.param_groups:
            group["lr"] = args.fit_lr * min(1, step / 30) * (1 - (step - 1) / len(batches))
        optimizer.zero_grad()
        losses.append(0.0)
        mine = batch[common.RANK::common.WORLD]
        for index, logits in common.verifier_logits(verifier, [rows[j] for j in mine]):
            loss = F.binary_cross_entropy_with_logits(logits, labels[mine[index]].to(logits), reduction="sum") / len(batch)
            loss.backward()
            losses[-1] += loss.item()
        losses[-1] = common.total(losses[-1])
        common.clip_gradient(verifier, 1.0)
        optimizer.step()
        if step % 50 == 0 or step == len(batches):
            print(f"step {step}/{len(batches)}  loss {sum(losses[-50:]) / len(losses[-50:]):.4f}", flush=True)

    evaluate.add_scores(test, verifier, task.chat)
    found = evaluate.judge_verifier(test)
    verifier.extra |= {"bits": args.bits, "task": task.name, "flags": vars(args), "seconds": round(time.time() - started, 1), **found}
    verifier.save(folder)
    print(f"AUC on {len(test)} test problems {found['auc']:.3f} [{found['low']:.3f}, {found['high']:.3f}] (95 %, over problems), "
          f"calibration error {found['calibration_error']:.3f}\n predicted     right   samples")
    for predicted, right, count in found["calibration"]:
        print(f"{predicted:10.3f}{right:10.3f}{count:10d}")
    print(f"{time.time() - started:.0f} s; everything is in {folder}/", flush=True)


# ------------------------------------------------------------------------------------------------------------- training

def check(args):
    """Flags that argparse cannot judge.  Raises UserError."""
    common.check_flags(args, positive=("n", "fit_samples", "fit_epochs"),
                       not_negative=("max_grad_norm", "entropy_coef", "fit_problems", "fit_lr", "verifier_noise"))
    if args.verifier_noise > 1:
        raise UserError(f"--verifier-noise is a probability, not {args.verifier_noise}")
    if args.fit_verifier and (args.resume or args.verifier):
        raise UserError("--fit-verifier makes a new verifier: leave out --resume and --verifier")
    if args.variant == "v" and not args.verifier and not args.fit_verifier:
        raise UserError("--variant v needs --verifier: make one with --fit-verifier, or give a reward model of one label")
    if args.estimate == "pool" and (args.variant != "bp" or args.n > args.samples):
        raise UserError("--estimate pool exists for --variant bp with --samples of at least --n")
    if args.negatives == "exact" and args.variant != "b":
        raise UserError("--negatives concerns --variant b only")


@common.cli
def main(argv=None):
    args = parser().parse_args(argv)
    run = common.Run(args, parser(), argv)
    check(args)
    B, M, n, T, beta, variant = args.prompts, args.samples, args.n, args.temperature, args.kl_coef, args.variant

    # Set up: task, run folder, policy, verifier, optimiser, and the last checkpoint if there is one.
    args.task = args.task or (None if args.data else "countdown")
    task = tasks.load_task(args.task, data=args.data, levels=args.levels, allow_unsandboxed=args.allow_unsandboxed_code)
    args.model = args.model or task.base
    if task.graded and (args.fit_verifier or variant in ("b", "bp", "star")):
        raise UserError(f"task {task.name} has graded rewards: --variant {variant} and --fit-verifier need right or wrong")
    if args.fit_verifier:
        return fit_verifier(args, task)
    kind = "max" if task.graded else "pass"
    run.create("bon_rl", f"{task.name}-{variant}")
    policy = common.load_policy(args.model, args.bits, args.lora_rank, args.adapter, args.reference, args.seed)
    verifier = common.load_verifier(args.verifier, args.bits) if args.verifier else None
    max_new_tokens = args.max_new_tokens or task.max_new_tokens
    train = common.that_fit(policy, task, task.need("train"), max_new_tokens)
    valid = common.that_fit(policy, task, task.need("valid"), max_new_tokens) if args.eval_every else []
    test = common.that_fit(policy, task, task.need("test"), max_new_tokens) if args.eval_samples else []
    optimizer = torch.optim.AdamW(policy.parameters(), lr=args.lr, weight_decay=0.0)
    run.begin(policy, optimizer)
    print(f"{run.folder}: {args.model}, {task.name}, variant {variant}, N {n}, M {M}\n{policy.note}", flush=True)

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

        # Sample. The seed alone fixes which problems a step has, and the M draws of each.
        problems = common.batch_of(train, B, step, args.seed)
        prompts = [policy.encode(p.prompt, task.chat) for p in problems]
        drawn = common.sample(policy, prompts, M, [common.seed_of(args.seed, step, b) for b in range(B)], T, max_new_tokens)
        y = [row for rows in drawn.lists() for row in rows]  # B M completions; sample j belongs to prompt j // M
        sampled = time.time()

        # Verify.
        texts = [policy.decode(row) for row in y]
        rewards = torch.tensor(common.rewards(task, [p for p in problems for _ in range(M)], texts)).view(B, M)
        scores = rewards
        if verifier:
            asked = [p.prompt for p in problems for _ in range(M)]
            scores = torch.tensor(common.verify_scores(verifier, asked, texts, task.chat)).view(B, M)

        # Weight.
        if variant in ("v", "s"):
            c = bon_rl_coefficients(scores if variant == "v" else rewards, rewards, n)  # [B, M]
        elif variant in ("b", "bp"):
            c = bon_rlb_coefficients(rewards, n, args.negatives if variant == "b" else "positive", args.estimate)
        else:
            c = bon_rl_coefficients(rewards, rewards, 1) if variant == "rl" else bon_rlb_coefficients(rewards, 1, "positive")
        zero, weights = (c == 0).float().mean().item(), common.spread(c)
        # KL to the reference: with beta > 0 on every sample, otherwise measured on the first sample of up to 32.
        m, some = (M, B) if beta else (1, min(B, 32))
        with policy.reference():
            ref = common.sequence_logps(policy, [x for x in prompts[:some] for _ in range(m)],
                                        [row for b in range(some) for row in y[b * M:b * M + m]], T)
        logp = drawn.logps.sum(-1).cpu()  # log pi  [B, M]
        gap = logp[:some, :m] - ref.view(some, m)  # log pi - log ref  [some, m]
        if beta:
            c = c - beta * kl_coefficients(gap).to(c)
        if args.entropy_coef:
            c = c - args.entropy_coef * kl_coefficients(logp)

        # Update. Samples of zero weight have no gradient: they never enter a forward pass. The divisor counts every prompt.
        c, loss, norm = c.flatten(), 0.0, 0.0  # [B M]
        kept = c.nonzero()[:, 0]
        mine = common.own(kept, kept // M)
        optimizer.zero_grad()
        for index, logps, _ in common.score(policy, [prompts[j // M] for j in mine], [y[j] for j in mine], T):
            part_loss = -(c[mine[index]].to(logps.device) * logps.sum(-1)).sum() / B
            part_loss.backward()
            loss += part_loss.item()
        if len(kept):
            norm = common.clip_gradient(policy, args.max_grad_norm)
            optimizer.step()

        # Log.
        run.step = step
        seconds, counted, budgets = time.time() - started, int(drawn.lengths.sum()), {1, min(n, M)}
        line = {"step": step, "loss": common.total(loss), "reward": rewards.mean().item(),
                **{f"{kind}@{b}": sum(common.bon_at_k(r, r, b) for r in rewards.tolist()) / B for b in sorted(budgets)},
                "zero": zero, "kl": gap.mean().item(), "grad_norm": norm, "length": counted / (B * M), **task.counts,
                "tokens_per_s": counted / (sampled - started), "samples_per_s": B * M / seconds,
                "memory_gb": common.peak_memory(policy), "seconds": run.seconds()}
        if verifier:  # signs of reward hacking: wrong answers that score high, selection that loses what the pool holds
            wrong = scores[rewards != 1]
            line["score_wrong"] = wrong.mean().item() if len(wrong) else None
            bon = sum(common.bon_at_k(s, r, min(n, M)) for s, r in zip(scores.tolist(), rewards.tolist())) / B
            line["bon_gap"] = bon - line[f"{kind}@{min(n, M)}"]
        line["entropy"] = drawn.entropies.sum().item() / counted  # nats per token
        line |= weights
        line["diversity"] = evaluate.mean_diversity(texts, [task.extract(t) for t in texts], M)
        if args.eval_every and step % args.eval_every == 0:
            line["valid"] = judge(valid)
            print(evaluate.table({f"validation, step {step}": line["valid"]}, ks=(1, n, 32)))
        run.log("metrics.jsonl", **line)
        if step == 1 or step % 25 == 0 or step == args.steps:
            for b in (0, B - 1):
                run.log("samples.jsonl", step=step, prompt=problems[b].prompt, completion=texts[b * M], reward=rewards[b, 0].item())
                print(f"  {problems[b].prompt} -> {texts[b * M]}   reward {rewards[b, 0]:g}")
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
