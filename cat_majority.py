"""Train a language model for majority vote through an operator on its success probability: CAT with Majority.

Paper: Ousherovitch, Tewari 2026, "Compute Aligned Training: Optimizing for Test Time Inference", arXiv 2604.24957 (as
we read it).
Derivation: docs/cat_majority.md

An inference strategy maps the success probability p of one sample to the success probability T(p) of the strategy:

    T(p) = P(Bin(N, p) >= k)                             the right answer gets at least k of N votes

--mode sft   ascends log T with p = pi(y*|x), the probability of the whole gold completion y*:
    loss = -(1/B) sum_prompts log T(p)                  its gradient is -w grad log p with
    w    = p T'/T = k C(N,k) p^k (1-p)^(N-k) / T         (equation 7; near k where p << k/N, near 0 where p >> k/N)
--contrastive uses the token-level hybrid loss of the appendix instead: per token of y*
    0.5 (-log pi(y*_t)) + 0.5 mean over 4 rival tokens v of -log sigmoid(logit of y*_t - logit of v)

--mode rl    multiplies the reward of each of M samples y_i by a weight, p = (c+1)/(M+2) with c right ones among M:
    grad = (1/B) sum_prompts sum_i (r_i w / M) grad log pi(y_i|x)

    form    w                                            expectation with the true p and a fixed k
    raw     T' = N C(N-1,k-1) p^(k-1) (1-p)^(N-k)        grad T          (the paper's majority runs)
    log     p T'/T, the weight of SFT                    p grad log T    (w/p would give grad log T)

Why: grad T(p) = T'(p) grad p, and grad p = E[r grad log pi(y)] because p = E[r]; a constant added to r changes nothing,
because E[grad log pi(y)] = 0.

The threshold k is fixed (floor(N/2) + 1, or --threshold) or, by default in rl, estimated from the rollouts of each
prompt: just above the votes of the most frequent wrong answer. Symbols: B prompts per step (--prompts), M samples per
prompt (--samples), N the budget trained for (--n), tau the temperature, r the reward in {0, 1}, standardised within the
prompt; -0.5 for all samples of a prompt that no sample solved (--all-wrong). Both forms are biased: p is estimated from
the same rollouts, and a threshold only approximates the plurality vote (ppo_passk.py --objective majority trains on the
vote itself).

Differences from the paper: 1) --normalise divides by the mean weight over all samples of the batch; 2) KL is in the
reward, with a leave-one-out baseline; 3) rivals are drawn from the policy without the gold token. If p << k/N for every
gold completion, w is k and sft is cross-entropy: the step line shows the weights (w_even = 1: no effect).
With --rollouts, samples come from the distribution q of an inference engine and are weighted by pi / q. A bias remains,
because a coefficient depends on all samples of its prompt; passk_reweighted in ppo_passk.py measures it for pass@k.

    CPU, embedded model:  python cat_majority.py
    supervised:           python cat_majority.py --mode sft --train-problems 50
    GPU, 4-bit LoRA:      python cat_majority.py --model Qwen/Qwen2.5-1.5B-Instruct --task math --lr 2e-5

Settings closest to the authors' code (adamoosya/compute-aligned-training, in their words a new implementation), after
its warm-up (2,000 examples, three epochs of --mode sft --n 1 --target solution):

    python cat_majority.py --model mistralai/Mistral-7B-Instruct-v0.2 --task math --levels 1-3 --adapter WARM-UP
        --train-problems 300 --n 8 --clip-weight 10 --correction 1 --kl-prompts 0 --samples 8 --prompts 4 --steps 75
        --temperature 0.8 --lr 1e-6 --max-new-tokens 512

That code also has: top_p .95, so samples are not drawn from the policy that is scored; LoRA on q and v alone; 1e-4
added to the standard deviation; 60 warm-up steps of the learning rate. Its SFT takes whole solutions (--target
solution), divides by their number of tokens, and has thresholds below floor(N/2) + 1: 3 at --n 8, 4 at 16, 26 at 64.
Its SFT weight is that of equation 7, not of the paper's Table 1 as we read it.
"""
import argparse

from support import flags


def parser() -> flags.Parser:
    p = flags.parser(__doc__, "cat_majority", task="routes", samples=8, prompts=64, steps=100, test_n="1,4,16,64")
    p.add_argument("--mode", choices=["sft", "rl"], default="rl",
                   help="imitate gold completions, or weigh samples")
    p.add_argument("--n", type=int, default=16,
                   help="budget N to train for; 1 = cross-entropy, or plain RL")
    p.add_argument("--threshold", default="auto",
                   help="votes k needed to win, a number; auto: floor(n/2) + 1 in sft, from the rollouts in rl")
    p.add_argument("--contrastive", action="store_true",
                   help="sft: the token-level hybrid instead of this loss")
    p.add_argument("--target", choices=["answer", "solution"], default="answer",
                   help="the gold completion, answer only or in full (the authors' code): sft imitates it, and the "
                        "evaluation reports its log pi")
    p.add_argument("--form", choices=["raw", "log"], default="raw",
                   help="rl: the weight; the paper's runs use raw")
    p.add_argument("--rewards", choices=["standardised", "raw"], default="standardised",
                   help="rl: the paper standardises")
    p.add_argument("--correction", type=int, choices=[0, 1], default=0,
                   help="rl: the standard deviation divides by the number of rewards minus this")
    p.add_argument("--clip-weight", type=float, default=0.0,
                   help="rl: cap on the weight, before it is normalised; 0 = none")
    p.add_argument("--all-wrong", type=float, default=-0.5,
                   help="rl: reward of every sample of a prompt that no sample solved, never standardised")
    p.add_argument("--normalise", action=argparse.BooleanOptionalAction, default=True,
                   help="rl: divide by the mean weight of the batch")
    return p


if __name__ == "__main__":
    flags.answer(parser().parse_args)  # answer --help and reject bad flags before the slow imports

import math
import time
from collections import Counter

import torch

import common
from common import elementwise, kl_coefficients, log1mexp, standardise
from support import processes
from support.errors import UserError
from support.folder import Folder, new_folder
from support.plots import weight_report
from support.run import (
    Run,
    batch_of,
    end_of_step,
    evaluate_after,
    evaluate_before,
    examples,
    gold_completions,
    sample_stats,
    set_up,
    start,
    weight_stats,
)
from tasks import Problem, Task

# ------------------------------------------------------------------------------------------------ the paper's equations

def check_vote(n: int, k: int) -> None:
    for name, value in (("n", n), ("k", k)):
        whole = isinstance(value, int) and not isinstance(value, bool)
        if not whole or value < 1:
            raise ValueError(f"{name} must be a whole number of at least 1, not {value!r}")
    if k > n:
        raise ValueError(f"the threshold k = {k} exceeds the budget n = {n}")


def times(a: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """a x with 0 (-inf) = 0, so that p^0 is 1 at p = 0."""
    return torch.where(a == 0, 0.0, a * x)


def log_terms(j: list[int], shift: int, logp: torch.Tensor, logf: torch.Tensor, n: int) -> torch.Tensor:
    """log of C(n,j) p^(j-shift) (1-p)^(n-j) for each j of a list, from log p, log(1-p) of shape [...] -> [...,
    len(j)]."""
    like = {"dtype": logp.dtype, "device": logp.device}
    ways = [math.comb(n, i) for i in j]
    log_ways = [math.log(x) for x in ways]
    log_ways = torch.tensor(log_ways, **like)
    j = torch.tensor(j, **like)
    right = times(j - shift, logp[..., None])
    wrong = times(n - j, logf[..., None])
    return log_ways + right + wrong


def log_weight_and_tail(logp: torch.Tensor, logf: torch.Tensor, n: int, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """log of the SFT weight k C(n,k) p^k (1-p)^(n-k) / T, and log(T / p^k). Both are free of the factor p^k: in float32
    its logarithm would swamp the rest, and as a probability it would underflow."""
    enough = list(range(k, n + 1))
    terms = log_terms(enough, k, logp, logf, n)  # [..., n - k + 1]
    tail = torch.logsumexp(terms, -1)
    first = terms[..., 0]
    log_w = math.log(k) + first - tail
    return log_w, tail


def majority_sft_loss(logp: torch.Tensor | float, n: int, k: int) -> torch.Tensor | float:
    """-log T with T = P(Bin(n, p) >= k) and p = e^logp, the probability of the whole gold completion: the target gets
    at least k of n votes. Any shape, tensor or float. Its gradient with respect to logp is minus the SFT weight
    k C(n,k) p^k (1-p)^(n-k) / T (equation 7; Table 1, as we read it, has it without the factor k/T): do not weight this
    loss again. First derivatives only. n = 1 is -logp. A logp of up to 1e-3 counts as rounding of 0; NaN passes. Raises
    ValueError for more, and unless 1 <= k <= n."""
    check_vote(n, k)
    logp, back = elementwise(logp, -math.inf, 1e-3, "logp")
    if n == 1:
        return back(-logp)
    with torch.no_grad():
        x = logp.clamp(-1e30, -1e-30)
        log_f = log1mexp(x)  # log(1-p)
        log_w, tail = log_weight_and_tail(x, log_f, n, k)
        log_t = k * x + tail
        # T close to 1: log(1 - P(fewer than k votes)), which does not cancel
        too_few = list(range(k))
        terms = log_terms(too_few, 0, x, log_f, n)  # [..., k]
        fewer = torch.logsumexp(terms, -1)
        close = log_t > -math.log(2)
        log_t = torch.where(close, log1mexp(fewer), log_t)
    # the gradient is the closed-form weight: autograd through the logsumexp cancels where T is near 1
    logp = logp.clamp(min=-1e30)
    straight_through = logp - logp.detach()  # 0, with the gradient of logp
    return back(-log_t - log_w.exp() * straight_through)


def majority_weight(p: torch.Tensor | float, n: int, k: int, form: str) -> torch.Tensor | float:
    """Weight of the majority operator T(p) = P(Bin(n, p) >= k) at success probability p; any shape, tensor or float.
    "raw"  T'(p) = n C(n-1,k-1) p^(k-1) (1-p)^(n-k): r * raw * grad log pi has the expectation grad T
    "log"  p T'(p) / T(p) = k C(n,k) p^k (1-p)^(n-k) / T, the SFT weight; with r * grad log pi its expectation is
           p grad log T; the exact weight for log T would be without the factor p
    Raises ValueError for p outside [0, 1], another form, and unless 1 <= k <= n."""
    if form not in ("raw", "log"):
        raise ValueError(f"unknown form {form!r}: choose raw or log")
    check_vote(n, k)
    p, back = elementwise(p, 0, 1, "p")
    # log p and log(1-p), -inf at 0; the inner `where` keeps the NaN of the other branch out of the gradient
    possible = p > 0
    uncertain = p < 1
    above_0 = torch.where(possible, p, 1.0)
    below_1 = torch.where(uncertain, p, 0.0)
    logp = above_0.log()
    log_f = torch.log1p(-below_1)
    logp = torch.where(possible, logp, -math.inf)
    log_f = torch.where(uncertain, log_f, -math.inf)
    if form == "log":
        log_w, _ = log_weight_and_tail(logp, log_f, n, k)
        return back(log_w.exp())
    terms = log_terms([k], 1, logp, log_f, n)  # [..., 1]
    term = terms[..., 0]
    return back(k * term.exp())


def dynamic_threshold(answers: list, correct, n: int) -> int:
    """Votes out of n that beat the most frequent wrong answer, estimated from the rollouts:
    max(2, min(floor(n/2) + 1, floor(n c_max / M) + 1)), at most n, where c_max of the M rollouts give that answer.
    answers: M hashables; None = no answer: together they count as one wrong answer (in maj@k they cast no vote).
    correct: the right answer, a set of right answers, or a list of M truth values.
    Why None counts here: a rollout without an answer is as wrong as any, and the paper counts votes among all M.
    Raises ValueError without answers, for a list of another length, and for n < 1."""
    check_vote(n, 1)
    answers = list(answers)
    if isinstance(correct, torch.Tensor):
        correct = correct.tolist()
    elif isinstance(correct, (set, frozenset)):
        correct = [a in correct for a in answers]
    elif not isinstance(correct, (list, tuple)):
        correct = [a == correct for a in answers]
    if not answers or len(correct) != len(answers):
        raise ValueError("a threshold needs at least one answer and as many truth values, not "
                         f"{len(answers)} and {len(correct)}")
    wrong = [a for a, right in zip(answers, correct) if a is None or not right]
    votes = Counter(wrong)
    strongest = max(votes.values(), default=0)
    enough = n * strongest // len(answers) + 1
    more_than_half = n // 2 + 1
    threshold = min(more_than_half, enough)
    threshold = max(2, threshold)
    return min(n, threshold)


def contrastive_loss(logits: torch.Tensor, gold: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    """The hybrid of the appendix, per token: 0.5 (-log p_gold) + 0.5 mean_v -log sigmoid(logit_gold - logit_v).
    logits [..., V], gold [...] token ids, u [..., R] uniform on [0, 1): rival v is drawn by inverse transform from the
    policy without the gold token, and detached -> [...]."""
    logp = torch.log_softmax(logits, -1)  # [..., V]
    gold = gold[..., None]  # [..., 1]
    chosen = logp.gather(-1, gold)  # [..., 1]
    with torch.no_grad():
        others = logp.exp().scatter_(-1, gold, 0.0)
        rivals = common.draw(others, u.double())  # [..., R]
    gaps = chosen - logp.gather(-1, rivals)  # differences of logits
    log_beaten = torch.nn.functional.logsigmoid(gaps)
    beaten = log_beaten.mean(-1)
    return -0.5 * chosen[..., 0] - 0.5 * beaten


def rl_coefficients(rewards: torch.Tensor, answers: list[list], n: int, form: str = "raw", threshold: int | None = None,
                    standardised: bool = True, all_wrong: float = -0.5, normalised: bool = True, clip: float = 0.0,
                    correction: int = 0) -> torch.Tensor:
    """Coefficients c_i = w_i r_i / M of grad log pi(y_i|x), for every prompt (sum convention).

    rewards       [B, M], 1 = right: float64 stays float64, integers and booleans become float32
    answers       [B][M] hashables, None = no answer
    n             budget that is trained for
    form, threshold, normalised, clip     as in rl_weights
    standardised, all_wrong, correction   as in shaped
    Returns [B, M].  Raises ValueError as rl_weights does.

    All are biased: p is estimated from the same samples, and a threshold only approximates the vote. Compared with the
    gradient of maj@N (ties shared), summed over three prompts solved with p = .1, .5, .9 (one logit each, one wrong
    answer), N = 4 and M = 8, with the dynamic threshold unless another is named:
        raw, threshold 3               cosine 0.985, scale 1.040
        raw                            cosine 0.997, scale 0.744
        log                            cosine 0.909, scale 1.229
        raw, standardised              cosine 0.991, scale 1.457
        raw, standardised, normalised  cosine 0.995, scale 2.408
        log, standardised, normalised  cosine 0.851, scale 1.690
    """
    r = rewards if rewards.is_floating_point() else rewards.float()  # [B, M]
    w = rl_weights(r, answers, n, form, threshold, normalised, clip)  # [B, M]
    M = r.shape[1]
    seen = shaped(r, standardised, all_wrong, correction)
    c = w * seen / M
    return c.to(r)


def rl_weights(rewards: torch.Tensor, answers: list[list], n: int, form: str = "raw", threshold: int | None = None,
               normalised: bool = True, clip: float = 0.0) -> torch.Tensor:
    """The weight w of every sample, float64 [B, M], at p = (c+1)/(M+2) with c right ones among the M of a prompt
    (Laplace's rule: neither 0 nor 1).

    form        "raw" or "log" (majority_weight)
    threshold   votes k needed to win; None: dynamic_threshold of each prompt
    normalised  divided by the mean over all samples of the batch, so that the step size does not depend on n
    clip        cap on the weight before that; 0: none
    Raises ValueError for another form, unless 1 <= threshold <= n, and for answers of another shape."""
    right = (rewards == 1).double()  # [B, M]
    M = right.shape[1]
    c = right.sum(1)  # [B]
    p = (c + 1) / (M + 2)
    w = []
    thresholds = thresholds_of(rewards, answers, n, threshold)
    for p_b, k in zip(p, thresholds):
        weight = majority_weight(p_b, n, k, form)
        w.append(weight)
    w = torch.stack(w)  # [B]
    if clip:
        w = w.clamp(max=clip)
    w = w[:, None].expand_as(right)
    if normalised:  # the floor: no 0/0 if every weight underflows
        w = w / w.mean().clamp_min(1e-6)
    return w


def thresholds_of(rewards: torch.Tensor, answers: list[list], n: int, threshold: int | None = None) -> list[int]:
    """The votes k needed to win, for each prompt [B]: `threshold`, or the dynamic one if it is None."""
    if threshold is not None:
        return [threshold] * len(rewards)
    thresholds = []
    for row, r in zip(answers, rewards, strict=True):
        k = dynamic_threshold(row, r == 1, n)
        thresholds.append(k)
    return thresholds


def shaped(rewards: torch.Tensor, standardised: bool, all_wrong: float, correction: int = 0) -> torch.Tensor:
    """Rewards [B, M] that the update uses: (r - mean) / standard deviation (by M - correction) within each prompt if
    `standardised`, 0 where all are right; all_wrong, never standardised, where none is right."""
    right = rewards == 1
    solved = right.any(1, keepdim=True)  # [B, 1]
    r = rewards
    if standardised:
        r = standardise(r, correction=correction)
    return torch.where(solved, r, all_wrong)


# ------------------------------------------------------------------------------------------------------------- training

def check_flags(args: flags.Flags) -> None:
    """Check values and combinations that argparse cannot.  Raises UserError."""
    flags.check_common(args, positive=("n",), not_negative=("clip_weight",), plotted=("mode", "n", "form", "threshold"))
    if args.mode == "sft" and args.kl_coef:
        raise UserError("--kl-coef needs samples: use it with --mode rl")
    if args.mode == "rl" and args.contrastive:
        raise UserError("--contrastive learns from gold tokens: use it with --mode sft")
    if args.mode == "sft":
        unused = ["samples", "form", "rewards", "correction", "clip_weight", "all_wrong", "normalise"]
        if args.kl_prompts:
            unused.append("kl_prompts")
        flags.refuse(args, unused, "with --mode sft")
    if args.rewards == "raw":
        flags.refuse(args, ["correction"], "with --rewards raw")
    if args.contrastive:
        flags.refuse(args, ["n", "threshold"], "with --contrastive, which weighs no sequence")
    if args.threshold != "auto":
        number = int(args.threshold) if args.threshold.isdecimal() else 0
        if not 1 <= number <= args.n:
            raise UserError(f"--threshold must be auto or a number from 1 to --n {args.n}, not {args.threshold}")
        args.threshold = str(number)
    if not math.isfinite(args.all_wrong):
        raise UserError(f"--all-wrong must be finite, not {args.all_wrong}")
    if args.mode == "rl" and args.normalise and args.prompts == 1:
        raise UserError("--normalise over a single prompt cancels its weight: use more --prompts, or --no-normalise")


def fixed_threshold(args: flags.Flags) -> int:
    """The threshold k of sft, and of rl if it is not estimated from the rollouts."""
    if args.threshold == "auto":
        return args.n // 2 + 1
    return int(args.threshold)


def plot_weights(args: flags.Flags) -> None:
    """--plot-weights: the training weight over p beside the weights of the test budgets; for a threshold estimated from
    the rollouts, the weight at its largest value."""
    folder = new_folder(args.out, "cat_majority-weights")
    cells = torch.arange(1000, dtype=torch.float64)
    p = (cells + 0.5) / 1000
    form = "log" if args.mode == "sft" else args.form
    k = fixed_threshold(args)
    budgets = flags.numbers(args.test_n, int, "--test-n")
    tests = {}
    for n in budgets:
        half = n // 2 + 1
        tests[f"majority@{n}"] = majority_weight(p, n, half, form)
    w = majority_weight(p, args.n, k, form)
    trained = f"majority@{args.n}, {k} votes, {form}", w
    weight_report(trained, tests, folder, "p")


def step_sft(policy: common.Policy, task: Task, optimizer: torch.optim.Optimizer, problems: list[Problem], number: int,
             args: flags.Flags, golds: dict[str, list[int]]) -> tuple[dict, list[dict]]:
    """Run training step `number` (1, 2, ...) on the gold completions of B problems -> (metrics by the keys of METRICS
    in support/run.py, examples to print)."""
    B = len(problems)
    k = fixed_threshold(args)
    common.set_rate(optimizer, args.lr, number, args.steps)
    started = time.time()
    questions = [p.prompt for p in problems]
    prompts = policy.encode(questions, task.chat)
    y = [golds[p.id] for p in problems]

    # Update. The gradient of this loss includes the weight. The divisor counts every prompt.
    loss = 0.0
    gold_logp = torch.zeros(B, dtype=torch.float64)  # log pi(y*|x)
    optimizer.zero_grad()
    for j, logps, _ in common.score_share(policy, prompts, y, args.temperature):  # [R], [R, T]
        logp = logps.sum(-1)  # [R]
        losses = majority_sft_loss(logp, args.n, k)  # [R]
        part_loss = losses.sum() / B
        part_loss.backward()
        loss += part_loss.detach()
        gold_logp[j] = logp.detach().double().cpu()
    norm = processes.clip_gradient(policy.parameters(), args.max_grad_norm)
    optimizer.step()

    gold_logp = processes.all_reduce(gold_logp)
    p = gold_logp.exp().clamp(max=1)
    metrics = {"loss": processes.all_reduce(float(loss))}
    metrics["gold"] = gold_logp.mean().item()
    metrics["zero"] = 0.0
    metrics["length"] = sum(map(len, y)) / B
    w = majority_weight(p, args.n, k, "log")
    metrics |= weight_stats(w, "w")
    metrics["grad_norm"] = norm
    took = time.time() - started
    metrics["samples_per_s"] = len(y) / took
    return metrics, examples(policy, problems, prompts, y, logp=gold_logp)


def step_contrastive(policy: common.Policy, task: Task, optimizer: torch.optim.Optimizer, problems: list[Problem],
                     number: int, args: flags.Flags, golds: dict[str, list[int]]) -> tuple[dict, list[dict]]:
    """step_sft with the token-level hybrid loss instead of -log T."""
    B = len(problems)
    common.set_rate(optimizer, args.lr, number, args.steps)
    started = time.time()
    questions = [p.prompt for p in problems]
    prompts = policy.encode(questions, task.chat)
    y = [golds[p.id] for p in problems]

    # Update. The rival tokens of a prompt do not depend on its micro-batch.
    loss = 0.0
    gold_logp = torch.zeros(B, dtype=torch.float64)  # log pi(y*|x)
    optimizer.zero_grad()
    for j, logits, mask in common.score_share(policy, prompts, y, args.temperature, logits=True):  # [R], [R, T, V]
        T = mask.shape[1]
        gold = []
        u = []
        for i in j.tolist():
            padding = [0] * (T - len(y[i]))
            gold.append(y[i] + padding)
            seed = common.seed_of("rivals", args.seed, number, i)
            generator = torch.Generator().manual_seed(seed)
            draws = torch.rand(T, 4, generator=generator)
            u.append(draws)
        gold = torch.tensor(gold, device=mask.device)  # [R, T]
        u = torch.stack(u).to(mask.device)  # [R, T, 4]
        token_losses = contrastive_loss(logits, gold, u)  # [R, T]
        token_losses = token_losses * mask
        part_loss = token_losses.sum() / B
        part_loss.backward()
        loss += part_loss.detach()
        logps = torch.log_softmax(logits.detach(), -1)  # [R, T, V]
        index = gold[..., None]
        logps = logps.gather(-1, index)[..., 0]  # [R, T]
        logps = logps * mask
        logp = logps.sum(-1)
        gold_logp[j] = logp.double().cpu()
    norm = processes.clip_gradient(policy.parameters(), args.max_grad_norm)
    optimizer.step()

    gold_logp = processes.all_reduce(gold_logp)
    metrics = {"loss": processes.all_reduce(float(loss))}
    metrics["gold"] = gold_logp.mean().item()
    metrics["zero"] = 0.0
    metrics["length"] = sum(map(len, y)) / B
    metrics |= weight_stats(torch.ones(B), "w")  # the hybrid weighs no sequence
    metrics["grad_norm"] = norm
    took = time.time() - started
    metrics["samples_per_s"] = len(y) / took
    return metrics, examples(policy, problems, prompts, y, logp=gold_logp)


def step_rl(policy: common.Policy, task: Task, optimizer: torch.optim.Optimizer, problems: list[Problem], number: int,
            args: flags.Flags) -> tuple[dict, list[dict]]:
    """Run training step `number` (1, 2, ...) on samples for B problems -> (metrics by the keys of METRICS in
    support/run.py, examples to print)."""
    B = len(problems)
    M = args.samples
    tau = args.temperature
    common.set_rate(optimizer, args.lr, number, args.steps)
    started = time.time()

    # Sample. Each prompt has its own seed, so its M samples do not depend on the rest of the batch.
    questions = [p.prompt for p in problems]
    prompts = policy.encode(questions, task.chat)
    seeds = [common.seed_of(args.seed, number, b) for b in range(B)]
    drawn = common.sample(policy, prompts, M, seeds, tau, task.max_new_tokens)
    y = [row for rows in drawn.lists() for row in rows]  # B M completions; completion j belongs to prompt j // M
    seconds = time.time() - started

    # Verify.
    owners = [p for p in problems for _ in range(M)]  # B M, the problem of each completion
    texts = policy.texts(y, prompts)
    rewards = processes.rewards(task, owners, texts)
    rewards = rewards.float().view(B, M)

    # Compute the coefficients.
    answers = [task.extract(text) for text in texts]
    answers = [answers[b * M:b * M + M] for b in range(B)]
    threshold = None if args.threshold == "auto" else fixed_threshold(args)
    standardised = args.rewards == "standardised"
    weighing = {"form": args.form, "threshold": threshold, "normalised": args.normalise, "clip": args.clip_weight}
    shaping = {"standardised": standardised, "all_wrong": args.all_wrong, "correction": args.correction}
    coefficients = rl_coefficients(rewards, answers, args.n, **weighing, **shaping)  # [B, M]
    w = rl_weights(rewards, answers, args.n, **weighing)  # [B, M], only for the log
    unused = coefficients == 0
    zero = unused.float().mean().item()
    gap = None  # log pi - log ref, nats
    if args.kl_coef:
        gap = common.kl_gap(policy, prompts, drawn, tau)  # [B, M]
        kl = kl_coefficients(gap).to(coefficients)
        coefficients = coefficients - args.kl_coef * kl
    elif args.kl_prompts:  # measured for the log only: one sample for each of the first prompts
        measured = args.kl_prompts, 1
        gap = common.kl_gap(policy, prompts, drawn, tau, some=measured)
    coefficients = coefficients * drawn.weights  # pi / q if an inference engine sampled from q (--rollouts), else 1

    # Update.
    loss, norm = update(policy, optimizer, prompts, y, coefficients, args)

    metrics = {"loss": loss}
    metrics |= sample_stats(policy, task, drawn, rewards, args.n, gap, seconds, answers)
    metrics["zero"] = zero
    thresholds = thresholds_of(rewards, answers, args.n, threshold)
    metrics["threshold"] = sum(thresholds) / B
    metrics |= weight_stats(w, "w")
    metrics["grad_norm"] = norm
    took = time.time() - started
    metrics["samples_per_s"] = len(y) / took
    return metrics, examples(policy, problems, prompts, y, reward=rewards)


def update(policy: common.Policy, optimizer: torch.optim.Optimizer, prompts: list[list[int]], y: list[list[int]],
           coefficients: torch.Tensor, args: flags.Flags) -> tuple[float, float]:
    """One optimiser step on the loss -(1/B) sum_prompts sum_j c_j log pi(y_j|x) -> (loss, gradient norm).

    B prompts and B M completions y as token ids, coefficients c [B, M]. Samples with coefficient 0 never enter a
    forward pass, but their prompts count in the mean over prompts."""
    loss = 0.0
    norm = 0.0
    optimizer.zero_grad()
    for j, logps, _ in common.score_weighted(policy, prompts, y, coefficients, args.temperature):  # [R], [R, T]
        logp = logps.sum(-1)  # log pi(y|x)  [R]
        c = coefficients.flatten()[j].to(logp)
        part_loss = -(c * logp).sum() / len(prompts)
        part_loss.backward()
        loss += part_loss.detach()
    if coefficients.any():
        norm = processes.clip_gradient(policy.parameters(), args.max_grad_norm)
        optimizer.step()
    return processes.all_reduce(float(loss)), norm


@flags.cli
def main(argv: list[str] | None = None) -> None:
    folder = Folder("cat_majority", parser(), argv)
    args = folder.args
    check_flags(args)
    if args.plot_weights:
        return plot_weights(args)
    task, policy, optimizer, problems = set_up(folder, "routes", args.mode, binary=True)
    train = problems.train
    if args.mode == "sft":
        train, golds = gold_completions(policy, task, train, args.target)
    run = Run(folder, task, policy, optimizer, problems, budget=args.n, target=args.target)
    start(run, f"{args.mode} for majority@{args.n}")
    evaluate_before(run)
    for number in range(run.step + 1, args.steps + 1):
        batch = batch_of(train, args.prompts, number, args.seed)
        if args.contrastive:
            metrics, shown = step_contrastive(policy, task, optimizer, batch, number, args, golds)
        elif args.mode == "sft":
            metrics, shown = step_sft(policy, task, optimizer, batch, number, args, golds)
        else:
            metrics, shown = step_rl(policy, task, optimizer, batch, number, args)
        end_of_step(run, metrics, shown)
    evaluate_after(run)


if __name__ == "__main__":
    main()
