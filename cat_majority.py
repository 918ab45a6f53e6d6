"""Train a language model for majority vote through an operator on its success probability: CAT with the majority operator.

Paper: Ousherovitch, Tewari 2026, "Compute Aligned Training: Optimizing for Test Time Inference", arXiv 2604.24957 (as we
read it). An inference strategy maps the probability p of success of one sample to that of the strategy:

    T(p) = P(Bin(N, p) >= k)                             the right answer gets at least k of N votes

--mode sft   ascends log T with p = pi(y*|x), the probability of the whole gold completion y*:
    loss = -(1/B) sum_prompts log T(p)                  its gradient is -w grad log p with
    w    = p T'/T = k C(N,k) p^k (1-p)^(N-k) / T         (equation 7; near k where p << k/N, near 0 where p >> k/N)
--contrastive replaces it by the token-level hybrid of the appendix: per token of y*
    0.5 (-log pi(y*_t)) + 0.5 mean over 4 rival tokens v of -log sigmoid(logit of y*_t - logit of v)

--mode rl    multiplies the reward of each of M samples y_i by a weight, p = (c+1)/(M+2) with c right ones among M:
    grad = (1/B) sum_prompts sum_i (r_i w / M) grad log pi(y_i|x)

    form    w                                            expectation with the true p and a fixed k
    raw     T' = N C(N-1,k-1) p^(k-1) (1-p)^(N-k)        grad T          (the paper's majority runs)
    log     p T'/T, the weight of SFT                    p grad log T    (w/p would give grad log T)

The threshold k is fixed (floor(N/2) + 1, or --threshold), or in rl read off the rollouts per prompt: just above the
votes of the strongest wrong answer. Symbols: B prompts per step (--prompts), M samples per prompt (--samples), N the
budget trained for (--n), r the reward in {0, 1}, standardised within the prompt; -0.5 for all samples of a prompt that
nobody solved (--all-wrong). Both forms are biased: p is estimated from the same rollouts, and no threshold is the plurality
vote itself (ppo_passk.py --objective majority estimates that one).

Differences from the paper: 1) --normalise divides by the mean weight over all samples of the batch; 2) KL is in the
reward, with a leave-one-out baseline; 3) rivals are drawn from the policy without the gold token. If p << k/N for every
gold completion, w is k and sft is cross-entropy: the step line shows the weights (w_even = 1: no effect).

    CPU, embedded model:  python cat_majority.py --train-problems 50
    weights, no training: python cat_majority.py --n 16 --plot-weights
    GPU, 4-bit LoRA:      python cat_majority.py --mode rl --model mistralai/Mistral-7B-Instruct-v0.2 --task math --samples 8 --lr 2e-5
"""
import argparse


def parser():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    p.add_argument("--mode", choices=["sft", "rl"], default="sft", help="imitate gold completions, or learn from sampled ones")
    p.add_argument("--n", type=int, default=16, help="test-time budget N that is trained for; 1 = cross-entropy, or plain RL")
    p.add_argument("--threshold", default="auto", help="votes k that win, a number; auto: floor(n/2) + 1 in sft, from the rollouts in rl")
    p.add_argument("--contrastive", action="store_true", help="sft: the token-level contrastive hybrid in place of the majority loss")
    p.add_argument("--target", choices=["answer", "solution"], default="answer", help="sft: the gold completion, answer only (the paper's) or in full")
    p.add_argument("--train-problems", type=int, default=0, help="use the first so many training problems; 0 = all")
    p.add_argument("--form", choices=["raw", "log"], default="raw", help="rl: the weight; the paper's majority runs use raw")
    p.add_argument("--rewards", choices=["standardised", "raw"], default="standardised", help="rl: rewards within the prompt; the paper standardises")
    p.add_argument("--all-wrong", type=float, default=-0.5, help="rl: reward of every sample of a prompt that nobody solved, never standardised")
    p.add_argument("--normalise", action=argparse.BooleanOptionalAction, default=True, help="rl: divide by the mean weight over all samples of the batch")
    p.add_argument("--task", default=None, help="countdown, routes, program, gsm8k, math, humaneval, mbpp, codecontests, taco; default routes, or that of --data")
    p.add_argument("--data", default=None, help="your own problems, FILE.jsonl, or a local copy of the task's data set")
    p.add_argument("--levels", default=None, help="difficulty levels of the task `math`, e.g. 1-3")
    p.add_argument("--allow-unsandboxed-code", action="store_true", help="run model-written programs even where there is no sandbox")
    p.add_argument("--model", default=None, help="hub id, local directory, or an embedded model; default that of the task")
    p.add_argument("--adapter", default=None, help="run folder or LoRA directory to continue from, e.g. an SFT warm-up before RL")
    p.add_argument("--bits", type=int, choices=[4, 8, 16, 32], default=None,
                   help="precision of the frozen base; default 4 (NF4) on a GPU, 32 on a CPU")
    p.add_argument("--lora-rank", type=int, default=16, help="rank of the LoRA adapter (alpha is twice that)")
    p.add_argument("--samples", type=int, default=16, help="rl: samples per prompt M (the paper: 8)")
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
    p.add_argument("--out", default=None, help="run folder; default runs/cat_majority-<task>-<mode>-<number>")
    p.add_argument("--resume", action="store_true", help="continue the run in --out")
    return p


if __name__ == "__main__":
    parser().parse_args()  # --help and bad flags answer before the heavy imports

import math
import time
from collections import Counter

import common  # before torch: it sets the thread policy
import evaluate
import tasks
import torch
import torch.nn.functional as F
from common import UserError


# -------------------------------------------------------------------------------------------------- the paper's equations

def log1mexp(x):
    """log(1 - e^x) for x < 0; its value only, the gradients below are closed forms."""
    return torch.where(x > -math.log(2), torch.log(-torch.expm1(x)), torch.log1p(-torch.exp(x)))


def check_vote(n, k):
    for name, value in (("n", n), ("k", k)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be a whole number of at least 1, not {value!r}")
    if k > n:
        raise ValueError(f"the threshold k = {k} exceeds the budget n = {n}")


def times(a, x):
    """a x with 0 (-inf) = 0, so that p^0 is 1 at p = 0."""
    return torch.where(a == 0, 0.0, a * x)


def log_terms(j, shift, logp, logf, n):
    """log of C(n,j) p^(j-shift) (1-p)^(n-j) for a list j, from log p and log(1-p) of any shape [...] -> [..., len(j)]."""
    j, c = (torch.tensor(v, dtype=logp.dtype, device=logp.device) for v in (j, [math.log(math.comb(n, i)) for i in j]))
    return c + times(j - shift, logp[..., None]) + times(n - j, logf[..., None])


def log_weight(logp, logf, n, k):
    """log of the SFT weight k C(n,k) p^k (1-p)^(n-k) / T, and log(T / p^k). p^k is divided out of both: in float32 its
    logarithm would swamp what is left, and in probabilities it would underflow."""
    tail = torch.logsumexp(log_terms(list(range(k, n + 1)), k, logp, logf, n), -1)
    return math.log(k) + log_terms([k], k, logp, logf, n)[..., 0] - tail, tail


def majority_sft_loss(logp, n, k):
    """-log T with T = P(Bin(n, p) >= k) and p = e^logp, the probability of the whole gold completion: the target gets at
    least k of n votes. Any shape, tensor or float. Its gradient with respect to logp is minus the SFT weight
    k C(n,k) p^k (1-p)^(n-k) / T (equation 7; Table 1, as we read it, has it without the factor k/T): never weigh this loss again.
    First derivatives only. n = 1 is -logp. A logp of up to 1e-3 counts as rounding of 0; NaN passes through.
    Raises ValueError for more, and unless 1 <= k <= n."""
    check_vote(n, k)
    logp, back = common.elementwise(logp, -math.inf, 1e-3, "logp")
    if n == 1:
        return back(-logp)
    with torch.no_grad():
        x = logp.clamp(-1e30, -1e-30)
        f = log1mexp(x)
        weight, tail = log_weight(x, f, n, k)
        log_t = k * x + tail
        # T close to 1: log(1 - P(fewer than k votes)), or nothing would be left of the difference
        rest = torch.logsumexp(log_terms(list(range(k)), 0, x, f, n), -1)
        log_t = torch.where(log_t > -math.log(2), log1mexp(rest), log_t)
    # the value, with the closed-form weight as its gradient: autograd through the logsumexp cancels where T is close to 1
    path = logp.clamp(min=-1e30)
    return back(-log_t - weight.exp() * (path - path.detach()))


def majority_weight(p, n, k, form):
    """Weight of the majority operator T(p) = P(Bin(n, p) >= k) at success probability p; any shape, tensor or float.
    "raw"  T'(p) = n C(n-1,k-1) p^(k-1) (1-p)^(n-k): r * raw * grad log pi has the expectation grad T
    "log"  p T'(p) / T(p) = k C(n,k) p^k (1-p)^(n-k) / T, the SFT weight; with r * grad log pi its expectation is
           p grad log T: the exact weight for log T would lack the factor p
    Raises ValueError for p outside [0, 1], another form, and unless 1 <= k <= n."""
    if form not in ("raw", "log"):
        raise ValueError(f"unknown form {form!r}: choose raw or log")
    check_vote(n, k)
    p, back = common.elementwise(p, 0, 1, "p")
    # log p and log(1-p), -inf where it must be; the inner `where` keeps the NaN of the other branch out of the gradient
    logp = torch.where(p > 0, torch.log(torch.where(p > 0, p, 1.0)), -math.inf)
    logf = torch.where(p < 1, torch.log1p(-torch.where(p < 1, p, 0.0)), -math.inf)
    if form == "log":
        return back(log_weight(logp, logf, n, k)[0].exp())
    return back(k * log_terms([k], 1, logp, logf, n)[..., 0].exp())


def dynamic_threshold(answers, correct, n):
    """Votes out of n that beat the strongest wrong answer, as the rollouts show it:
    max(2, min(floor(n/2) + 1, floor(n c_max / M) + 1)), never above n, with c_max of the M rollouts on that answer.
    answers: M hashables; None = no answer, and all of those are one wrong answer here (in maj@k they cast no vote).
    correct: the right answer, a set of right answers, or a list of M truth values.
    Raises ValueError without answers, for a list of another length, and for n < 1."""
    check_vote(n, 1)
    answers = list(answers)
    if isinstance(correct, torch.Tensor):
        correct = correct.tolist()
    if not isinstance(correct, (list, tuple)):
        right = correct if isinstance(correct, (set, frozenset)) else {correct}
        correct = [a in right for a in answers]
    if not answers or len(correct) != len(answers):
        raise ValueError(f"a threshold needs at least one answer and as many truth values, not {len(answers)} and {len(correct)}")
    wrong = Counter(a for a, right in zip(answers, correct) if a is None or not right)
    strongest = max(wrong.values(), default=0)
    return min(n, max(2, min(n // 2 + 1, n * strongest // len(answers) + 1)))


def contrastive_loss(logits, gold, u):
    """The hybrid of the appendix, per token: 0.5 (-log p_gold) + 0.5 mean_v -log sigmoid(logit_gold - logit_v).
    logits [..., V], gold [...] token ids, u [..., R] uniform on [0, 1): rival v is drawn by inverse transform from the
    policy without the gold token, and detached -> [...]."""
    logp = torch.log_softmax(logits, -1)  # [..., V]
    chosen = logp.gather(-1, gold[..., None])  # [..., 1]
    with torch.no_grad():
        cdf = logp.exp().double().scatter(-1, gold[..., None], 0.0).cumsum(-1)  # [..., V]
        rivals = torch.searchsorted(cdf, u.double() * cdf[..., -1:], right=True).clamp_max(cdf.shape[-1] - 1)  # [..., R]
    return -0.5 * chosen[..., 0] - 0.5 * F.logsigmoid(chosen - logp.gather(-1, rivals)).mean(-1)  # differences of logits


def rl_weights(right, thresholds, n, form):
    """The weight of every sample [B, M]. right [B, M]: which samples succeeded; thresholds: the k of each prompt."""
    p = (right.sum(1) + 1) / (right.shape[1] + 2)  # Laplace's rule: neither 0 nor 1  [B]
    w = torch.stack([majority_weight(x, n, k, form) for x, k in zip(p, thresholds)])
    return w[:, None].expand_as(right)


def shaped(rewards, standardised, all_wrong):
    """Rewards [B, M] as the update sees them: (r - mean) / standard deviation within each prompt if `standardised`, 0 where
    all are right (the deviation is rounding), and all_wrong where nobody is right: it bypasses the standardisation."""
    r = rewards
    if standardised:
        centred = rewards - rewards.mean(1, keepdim=True)
        equal = rewards.amax(1, keepdim=True) - rewards.amin(1, keepdim=True) < 1e-6
        r = torch.where(equal, 0.0, centred / rewards.std(1, correction=0, keepdim=True).clamp_min(1e-6))
    return torch.where((rewards == 1).any(1, keepdim=True), r, all_wrong)


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
    if args.mode == "rl" and args.contrastive:
        raise UserError("--contrastive learns from gold tokens: use it with --mode sft")
    if args.threshold != "auto":
        if not args.threshold.isdigit() or not 1 <= int(args.threshold) <= args.n:
            raise UserError(f"--threshold must be auto or a number from 1 to --n {args.n}, not {args.threshold}")
        args.threshold = str(int(args.threshold))
    if not -math.inf < args.all_wrong < math.inf:
        raise UserError(f"--all-wrong must be finite, not {args.all_wrong}")
    if args.mode == "rl" and args.normalise and args.prompts == 1:
        raise UserError("--normalise over a single prompt cancels its weight: use more --prompts, or --no-normalise")


def plot_weights(args):
    """--plot-weights: the weight trained with over p, against those of the test budgets."""
    folder = common.new_folder(args.out, "cat_majority-weights")
    p = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    form, k = "log" if args.mode == "sft" else args.form, args.n // 2 + 1 if args.threshold == "auto" else int(args.threshold)
    evaluate.weight_report((f"majority@{args.n}, {k} votes, {form}", majority_weight(p, args.n, k, form)),
                           {f"majority@{n}": majority_weight(p, n, n // 2 + 1, form) for n in evaluate.numbers(args.test_n, int, "--test-n")},
                           folder, "p")


@common.cli
def main(argv=None):
    args = parser().parse_args(argv)
    run = common.Run(args, parser(), argv)
    check(args)
    if args.plot_weights:
        return plot_weights(args)
    B, M, n, T, beta = args.prompts, args.samples, args.n, args.temperature, args.kl_coef
    fixed = n // 2 + 1 if args.threshold == "auto" else int(args.threshold)

    # Set up: task, run folder, policy, optimiser, and the last checkpoint if there is one.
    args.task = args.task or (None if args.data else "routes")
    task = tasks.load_task(args.task, data=args.data, levels=args.levels, allow_unsandboxed=args.allow_unsandboxed_code)
    args.model = args.model or task.base
    if task.graded:
        raise UserError(f"task {task.name} has graded rewards, and a vote needs right or wrong: use cat_bon.py")
    run.create("cat_majority", f"{task.name}-{args.mode}")
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
    print(f"{run.folder}: {args.model}, {task.name}, {args.mode} for majority@{n}\n{policy.note}", flush=True)

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
            ks = [fixed] * B
            if args.threshold == "auto":
                ks = [dynamic_threshold([task.extract(t) for t in texts[b * M:b * M + M]], rewards[b] == 1, n) for b in range(B)]
            w = rl_weights((rewards == 1).double(), ks, n, args.form)  # [B, M]
            if args.normalise:  # the floor: when every weight underflows there is nothing to learn, and no 0/0
                w = w / w.mean().clamp_min(1e-6)
            c = (w * shaped(rewards, args.rewards == "standardised", args.all_wrong) / M).float()  # [B, M]
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
        for index, logps, mask, *logits in common.score(policy, [prompts[j // per] for j in mine], [y[j] for j in mine], T, logits=args.contrastive):
            j = mine[index]  # [r]
            total = logps.sum(-1)  # log pi(y|x)  [r]
            if args.contrastive:
                width = mask.shape[1]
                gold = torch.tensor([y[i] + [0] * (width - len(y[i])) for i in j]).to(mask.device)  # [r, T']
                u = torch.stack([torch.rand(width, 4, generator=torch.Generator().manual_seed(common.seed_of("rivals", args.seed, step, i.item())))
                                 for i in j]).to(mask.device)  # [r, T', 4]
                part_loss = (contrastive_loss(logits[0], gold, u) * mask).sum() / B
            else:
                part_loss = (majority_sft_loss(total, n, fixed) if args.mode == "sft" else -c[j].to(total) * total).sum() / B
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
            w = majority_weight(seen.double().exp().clamp(max=1), n, fixed, "log")  # [B]
            w = torch.ones(B) if args.contrastive else w  # the hybrid weighs no sequence
            line = {"step": step, "loss": common.total(loss), "gold": seen.mean().item(), "zero": (w < 0.01).double().mean().item()}
        else:
            line = {"step": step, "loss": common.total(loss), "reward": rewards.mean().item(),
                    **{f"pass@{b}": sum(common.bon_at_k(r, r, b) for r in rewards.tolist()) / B for b in sorted({1, min(n, M)})},
                    "threshold": sum(ks) / B, "zero": zero, "kl": gap.mean().item()}
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
            print("note: the weights are all alike, so this objective is that of no weighting: shorter targets or a smaller --n tell prompts apart", flush=True)
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
