"""Train a language model for majority vote through an operator on its success probability: CAT with Majority.

Paper: Ousherovitch, Tewari 2026, "Compute Aligned Training: Optimizing for Test Time Inference", arXiv 2604.24957 (as
we read it). An inference strategy maps the probability p of success of one sample to that of the strategy:

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
budget trained for (--n), tau the temperature, r the reward in {0, 1}, standardised within the prompt; -0.5 for all
samples of a prompt that nobody solved (--all-wrong). Both forms are biased: p is estimated from the same rollouts, and
no threshold is the plurality vote itself (ppo_passk.py --objective majority estimates that one).

Differences from the paper: 1) --normalise divides by the mean weight over all samples of the batch; 2) KL is in the
reward, with a leave-one-out baseline; 3) rivals are drawn from the policy without the gold token. If p << k/N for every
gold completion, w is k and sft is cross-entropy: the step line shows the weights (w_even = 1: no effect).

    CPU, embedded model:  python cat_majority.py
    supervised:           python cat_majority.py --mode sft --train-problems 50
    GPU, 4-bit LoRA:      python cat_majority.py --model Qwen/Qwen2.5-1.5B-Instruct --task math --lr 2e-5
"""
import argparse

from support import flags


def parser():
    p = flags.parser(__doc__, "cat_majority", task="routes", samples=8, prompts=64, steps=100, test_n="1,4,16,64")
    p.add_argument("--mode", choices=["sft", "rl"], default="rl", help="imitate gold completions, or weigh samples")
    p.add_argument("--n", type=int, default=16, help="budget N that is trained for; 1 = cross-entropy, or plain RL")
    p.add_argument("--threshold", default="auto",
                   help="votes k that win, a number; auto: floor(n/2) + 1 in sft, from the rollouts in rl")
    p.add_argument("--contrastive", action="store_true", help="sft: the token-level hybrid instead of this loss")
    p.add_argument("--target", choices=["answer", "solution"], default="answer",
                   help="sft: the gold completion, answer only (the paper's) or in full")
    p.add_argument("--form", choices=["raw", "log"], default="raw", help="rl: the weight; the paper's runs use raw")
    p.add_argument("--rewards", choices=["standardised", "raw"], default="standardised",
                   help="rl: the paper standardises")
    p.add_argument("--all-wrong", type=float, default=-0.5,
                   help="rl: reward of every sample of a prompt that nobody solved, never standardised")
    p.add_argument("--normalise", action=argparse.BooleanOptionalAction, default=True,
                   help="rl: divide by the mean weight of the batch")
    return p


if __name__ == "__main__":
    flags.answer(parser().parse_args)  # --help and bad flags, before the heavy imports

import math
import time
from collections import Counter

import common
import torch
from common import elementwise, kl_coefficients, log1mexp, standardise
from support import processes
from support.errors import UserError
from support.folder import Run, new_folder
from support.plots import weight_report
from support.run import (batch_of, begin, end_of_step, evaluate_after, evaluate_before, examples, gold_completions,
                         sample_stats, set_up, weight_stats)


# ------------------------------------------------------------------------------------------------ the paper's equations

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
    """log of C(n,j) p^(j-shift) (1-p)^(n-j) for a list j, from log p and log(1-p) of a shape [...] -> [..., len(j)]."""
    j, c = (torch.tensor(v, dtype=logp.dtype, device=logp.device) for v in (j, [math.log(math.comb(n, i)) for i in j]))
    return c + times(j - shift, logp[..., None]) + times(n - j, logf[..., None])


def log_weight(logp, logf, n, k):
    """log of the SFT weight k C(n,k) p^k (1-p)^(n-k) / T, and log(T / p^k). p^k is divided out of both: in float32 its
    logarithm would swamp what is left, and in probabilities it would underflow."""
    tail = torch.logsumexp(log_terms(list(range(k, n + 1)), k, logp, logf, n), -1)
    return math.log(k) + log_terms([k], k, logp, logf, n)[..., 0] - tail, tail


def majority_sft_loss(logp, n, k):
    """-log T with T = P(Bin(n, p) >= k) and p = e^logp, the probability of the whole gold completion: the target gets
    at least k of n votes. Any shape, tensor or float. Its gradient with respect to logp is minus the SFT weight
    k C(n,k) p^k (1-p)^(n-k) / T (equation 7; Table 1, as we read it, has it without the factor k/T): never weigh this
    loss again. First derivatives only. n = 1 is -logp. A logp of up to 1e-3 counts as rounding of 0; NaN passes.
    Raises ValueError for more, and unless 1 <= k <= n."""
    check_vote(n, k)
    logp, back = elementwise(logp, -math.inf, 1e-3, "logp")
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
    # the value, with the closed-form weight as its gradient: autograd through the logsumexp cancels where T is near 1
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
    p, back = elementwise(p, 0, 1, "p")
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
        raise ValueError("a threshold needs at least one answer and as many truth values, not "
                         f"{len(answers)} and {len(correct)}")
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
        rivals = common.draw(logp.exp().scatter_(-1, gold[..., None], 0.0), u.double())  # [..., R]
    gaps = chosen - logp.gather(-1, rivals)  # differences of logits
    return -0.5 * chosen[..., 0] - 0.5 * torch.nn.functional.logsigmoid(gaps).mean(-1)


def rl_weights(right, thresholds, n, form):
    """The weight of every sample [B, M]. right [B, M]: which samples succeeded; thresholds: the k of each prompt."""
    p = (right.sum(1) + 1) / (right.shape[1] + 2)  # Laplace's rule: neither 0 nor 1  [B]
    w = torch.stack([majority_weight(x, n, k, form) for x, k in zip(p, thresholds)])
    return w[:, None].expand_as(right)


def shaped(rewards, standardised, all_wrong):
    """Rewards [B, M] as the update sees them: (r - mean) / standard deviation within each prompt if `standardised`, 0
    where all are right (the deviation is rounding), and all_wrong where nobody is right: it is not standardised."""
    r = standardise(rewards) if standardised else rewards
    return torch.where((rewards == 1).any(1, keepdim=True), r, all_wrong)


# ------------------------------------------------------------------------------------------------------------- training

def check(args):
    """Flags that argparse cannot judge.  Raises UserError."""
    flags.check(args, positive=("n",))
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


def fixed_threshold(args):
    """The threshold k of sft, and of rl where it is not read off the rollouts."""
    return args.n // 2 + 1 if args.threshold == "auto" else int(args.threshold)


def plot_weights(args):
    """--plot-weights: the weight trained with over p, against those of the test budgets."""
    folder = new_folder(args.out, "cat_majority-weights")
    p = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    form, k = "log" if args.mode == "sft" else args.form, fixed_threshold(args)
    tests = {f"majority@{n}": majority_weight(p, n, n // 2 + 1, form)
             for n in flags.numbers(args.test_n, int, "--test-n")}
    weight_report((f"majority@{args.n}, {k} votes, {form}", majority_weight(p, args.n, k, form)), tests, folder, "p")


def contrastive_part(logits, mask, j, y, seed):
    """contrastive_loss of gold completions y[j] (logits [r, t, V], mask [r, t]), summed, each with draws of its own ->
    (scalar, log-probabilities of their tokens [r, t], detached)."""
    width = mask.shape[1]
    gold = torch.tensor([y[i] + [0] * (width - len(y[i])) for i in j.tolist()], device=mask.device)  # [r, t]
    draws = [torch.Generator().manual_seed(common.seed_of("rivals", *seed, i)) for i in j.tolist()]
    u = torch.stack([torch.rand(width, 4, generator=generator) for generator in draws]).to(mask.device)  # [r, t, 4]
    logps = torch.log_softmax(logits.detach(), -1).gather(-1, gold[..., None])[..., 0]
    return (contrastive_loss(logits, gold, u) * mask).sum(), logps * mask


def step(policy, task, optimizer, problems, number, args, golds=None):
    """Training step `number` (1, 2, ...) on B problems -> (keys of support/run.py METRICS, examples to show)."""
    B, M, n, tau, beta = len(problems), args.samples, args.n, args.temperature, args.kl_coef
    optimizer.param_groups[0]["lr"] = args.lr * (1 - (number - 1) / args.steps)
    started = time.time()
    prompts = policy.encode([p.prompt for p in problems], task.chat)

    if args.mode == "sft":
        y, coef = [golds[p.id] for p in problems], torch.ones(B, 1)
    else:
        # Sample. The seed alone fixes the M draws of each prompt.
        seeds = [common.seed_of(args.seed, number, b) for b in range(B)]
        drawn = common.sample(policy, prompts, M, seeds, tau, task.max_new_tokens)
        y = [row for rows in drawn.lists() for row in rows]  # B M completions; completion j belongs to prompt j // M
        sampled = time.time()

        # Verify.
        texts = policy.texts(y, prompts)
        rewards = processes.rewards(task, [p for p in problems for _ in range(M)], texts).float().view(B, M)
        shown = {"reward": rewards}

        # Weight.
        answers = [[task.extract(text) for text in texts[b * M:b * M + M]] for b in range(B)]
        thresholds = [dynamic_threshold(answers[b], rewards[b] == 1, n) if args.threshold == "auto"
                      else fixed_threshold(args) for b in range(B)]
        w = rl_weights((rewards == 1).double(), thresholds, n, args.form)  # [B, M]
        if args.normalise:  # the floor: when every weight underflows there is nothing to learn, and no 0/0
            w = w / w.mean().clamp_min(1e-6)
        coef = (w * shaped(rewards, args.rewards == "standardised", args.all_wrong) / M).float()  # [B, M]
        zero, gap = (coef == 0).float().mean().item(), None
        if beta or args.kl_prompts:  # log pi - log ref
            gap = common.kl_gap(policy, prompts, drawn, tau, None if beta else (args.kl_prompts, 1))
        if beta:
            coef = coef - beta * kl_coefficients(gap).to(coef)
        line = {**sample_stats(task, drawn, rewards, n, gap, sampled - started), "zero": zero,
                "threshold": sum(thresholds) / B}

    # Update. Completions of zero weight never enter a forward pass. The divisor counts every prompt.
    loss, norm, gold = 0.0, 0.0, torch.zeros(B, dtype=torch.float64)  # log pi of the gold completions
    optimizer.zero_grad()
    for j, values, mask in common.score_weighted(policy, prompts, y, coef, tau, logits=args.contrastive):
        if args.contrastive:
            part_loss, values = contrastive_part(values, mask, j, y, (args.seed, number))
        logp = values.sum(-1)  # log pi(y|x)  [r]
        if args.mode == "rl":
            part_loss = -(coef.flatten()[j].to(logp) * logp).sum()
        else:
            gold[j] = logp.detach().double().cpu()
            part_loss = part_loss if args.contrastive else majority_sft_loss(logp, n, fixed_threshold(args)).sum()
        (part_loss / B).backward()
        loss += part_loss.detach() / B
    if coef.any():
        norm = processes.clip_gradient(policy.parameters(), args.max_grad_norm)
        optimizer.step()

    if args.mode == "sft":
        gold = processes.all_reduce(gold)
        w = majority_weight(gold.exp().clamp(max=1), n, fixed_threshold(args), "log")  # [B]
        w = torch.ones(B) if args.contrastive else w  # the hybrid weighs no sequence
        line = {"gold": gold.mean().item(), "zero": 0.0, "length": sum(map(len, y)) / B}
        shown = {"logp": gold}
    line = {"loss": processes.all_reduce(float(loss)), **line, **weight_stats(w, "w"), "grad_norm": norm,
            "samples_per_s": len(y) / (time.time() - started)}
    return line, examples(policy, problems, prompts, y, **shown)


@flags.cli
def main(argv=None):
    run = Run("cat_majority", parser(), argv)
    args = run.args
    check(args)
    if args.plot_weights:
        return plot_weights(args)
    set_up(run, "routes", args.mode, "a vote needs right or wrong, use cat_bon.py")
    train, golds = run.train, None
    if args.mode == "sft":
        train, golds = gold_completions(run.policy, run.task, run.train, args.target)
    begin(run, f"{args.mode} for majority@{args.n}", budget=args.n, target=args.target)
    evaluate_before(run)
    for number in range(run.step + 1, args.steps + 1):
        problems = batch_of(train, args.prompts, number, args.seed)
        end_of_step(run, *step(run.policy, run.task, run.optimizer, problems, number, args, golds))
    evaluate_after(run)


if __name__ == "__main__":
    main()
