"""Train a language model for majority voting with Compute Aligned Training (CAT), by supervised fine-tuning or RL.

Paper: Ousherovitch, Tewari 2026, "Compute Aligned Training: Optimizing for Test Time Inference", arXiv 2604.24957 (as
we read it).
Derivation: docs/cat_majority.md

An inference strategy, such as "draw N samples and take a vote", is an operator T. It maps the success probability p of
one sample to the success probability of the strategy:

    T(p) = P(Bin(N, p) >= k)                            the correct answer gets at least k of N votes

--mode sft   maximises log T with p = pi(y*|x), the probability of the whole gold completion y*:
    loss = -(1/B) sum_prompts log T(p)                  its gradient is -w grad log p per prompt, with
    w    = p T'/T = k C(N,k) p^k (1-p)^(N-k) / T        (equation 7; near k if p << k/N, near 0 if p >> k/N)
--contrastive replaces this loss by the token-level hybrid loss of the paper's appendix, per token of y*:
    0.5 (-log pi(y*_t)) + 0.5 mean over 4 rival tokens v of -log sigmoid(logit of y*_t - logit of v)

--mode rl    multiplies the reward of each of M samples y_i by a weight w; the estimated gradient is
    (1/B) sum_prompts sum_i (r_i w / M) grad log pi(y_i|x)

    --form  w                                           expected gradient per prompt if p is known and k is fixed
    raw     T' = N C(N-1,k-1) p^(k-1) (1-p)^(N-k)       grad T          (the paper's majority runs)
    log     p T'/T, the weight of SFT                   p grad log T    (w/p would give grad log T)

These hold because grad T(p) = T'(p) grad p, and grad p = E[r grad log pi(y)] because p = E[r]. Subtracting a constant
from r changes nothing, because E[grad log pi(y)] = 0.
p is estimated by (c+1)/(M+2), where c of the prompt's M samples are correct. Rewards are standardised within the
prompt; if no sample is correct, every sample gets the reward -0.5 (--all-wrong). The threshold k is fixed
(floor(N/2) + 1, or --threshold) or, by default in rl, estimated from the samples of each prompt: just above the votes
of the most frequent wrong answer (dynamic_threshold).
Both forms are biased, because p is estimated from the same samples, and because a threshold only approximates a
plurality vote. ppo_passk.py --objective majority trains on the vote itself.

Symbols: B prompts per step (--prompts), M samples per prompt (--samples), N the test-time budget (--n), r the reward in
{0, 1}, tau the temperature.

Differences from the paper: 1) --normalise divides by the mean weight over all samples of the batch; 2) the KL penalty
is part of the reward, with a leave-one-out baseline; 3) rivals are drawn from the policy without the gold token.
If p << k/N for every gold completion, w is k and sft is cross-entropy. The step line summarises the weights: w_even = 1
means that they are all equal and have no effect.
With --rollouts, samples come from the distribution q of an inference engine and are weighted by pi / q. A bias remains,
because a coefficient depends on all samples of its prompt; passk_reweighted in ppo_passk.py measures it for pass@k.

    CPU, embedded model:  python cat_majority.py
    supervised:           python cat_majority.py --mode sft --train-problems 50
    GPU, 4-bit LoRA:      python cat_majority.py --model Qwen/Qwen2.5-1.5B-Instruct --task math --lr 2e-5

The authors' code (adamoosya/compute-aligned-training, described there as a new implementation) is closest to these
settings. WARM-UP is the run folder of a warm-up (2,000 examples, three epochs of --mode sft --n 1 --target solution):

    python cat_majority.py --model mistralai/Mistral-7B-Instruct-v0.2 --task math --levels 1-3 --adapter WARM-UP
        --train-problems 300 --n 8 --clip-weight 10 --correction 1 --kl-prompts 0 --samples 8 --prompts 4 --steps 75
        --temperature 0.8 --lr 1e-6 --max-new-tokens 512

It differs from them in: top_p .95, so samples are not drawn from the policy that is scored; LoRA on q and v only; 1e-4
added to the standard deviation; 60 warm-up steps of the learning rate. Its SFT trains on full solutions (--target
solution), divides log pi by their number of tokens, and uses thresholds below floor(N/2) + 1: 3 at --n 8, 4 at 16, 26
at 64. Its SFT weight is that of equation 7, not of the paper's Table 1 as we read it.
"""
import argparse

from support import flags


def parser() -> flags.Parser:
    p = flags.parser(__doc__, "cat_majority", task="routes", samples=8, prompts=64, steps=100, test_n="1,4,16,64")
    p.add_argument("--mode", choices=["sft", "rl"], default="rl",
                   help="sft: train on gold completions; rl: train on weighted samples")
    p.add_argument("--n", type=int, default=16,
                   help="test-time budget N; 1 = plain SFT (cross-entropy) or plain RL")
    p.add_argument("--threshold", default="auto",
                   help="votes k that the correct answer needs to win. auto: floor(n/2) + 1 in sft, estimated from the "
                        "samples of each prompt in rl")
    p.add_argument("--contrastive", action="store_true",
                   help="sft: use the token-level contrastive hybrid loss of the paper's appendix instead")
    p.add_argument("--target", choices=["answer", "solution"], default="answer",
                   help="gold completion: the answer only, or the full solution as in the authors' code; sft trains on "
                        "it, and the evaluation reports its log-probability as gold")
    p.add_argument("--form", choices=["raw", "log"], default="raw",
                   help="rl: weight of a sample. raw: slope of the vote's success probability, as in the paper's runs; "
                        "log: slope of its logarithm times p")
    p.add_argument("--rewards", choices=["standardised", "raw"], default="standardised",
                   help="rl: standardise rewards within the prompt, as in the paper, or not")
    p.add_argument("--correction", type=int, choices=[0, 1], default=0,
                   help="rl: 0 or 1, subtracted from the number of rewards in the standard deviation's divisor")
    p.add_argument("--clip-weight", type=float, default=0.0,
                   help="rl: upper limit of the weight, applied before --normalise; 0 = none")
    p.add_argument("--all-wrong", type=float, default=-0.5,
                   help="rl: reward of every sample of a prompt without a correct sample, not standardised")
    p.add_argument("--normalise", action=argparse.BooleanOptionalAction, default=True,
                   help="rl: divide the weights by their mean over the batch, so that the step size does not depend on "
                        "--n")
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
    """Raises ValueError unless n and k are integers with 1 <= k <= n."""
    for name, value in (("n", n), ("k", k)):
        is_integer = isinstance(value, int) and not isinstance(value, bool)
        if not is_integer or value < 1:
            raise ValueError(f"{name} must be an integer of at least 1, not {value!r}")
    if k > n:
        raise ValueError(f"the threshold k = {k} exceeds the budget n = {n}")


def times(a: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """a x, where 0 times -inf is 0, so that p^0 = exp(0 log p) is 1 at p = 0."""
    return torch.where(a == 0, 0.0, a * x)


def log_terms(j: list[int], shift: int, logp: torch.Tensor, logf: torch.Tensor, n: int) -> torch.Tensor:
    """log[ C(n,j) p^(j-shift) (1-p)^(n-j) ] for each j, the log of a binomial term divided by p^shift.
    j: list of integers; logp = log p and logf = log(1-p): [...]  ->  [..., len(j)]."""
    like = {"dtype": logp.dtype, "device": logp.device}
    ways = [math.comb(n, i) for i in j]
    log_ways = [math.log(x) for x in ways]
    log_ways = torch.tensor(log_ways, **like)
    j = torch.tensor(j, **like)
    correct = times(j - shift, logp[..., None])
    wrong = times(n - j, logf[..., None])
    return log_ways + correct + wrong


def log_weight_and_tail(logp: torch.Tensor, logf: torch.Tensor, n: int, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(log of the SFT weight k C(n,k) p^k (1-p)^(n-k) / T, log(T / p^k)), both of the shape of logp.

    The factor p^k is cancelled in both: in float32 its logarithm would swamp the rest, and p^k itself could underflow.
    """
    winning = list(range(k, n + 1))
    terms = log_terms(winning, k, logp, logf, n)  # [..., n - k + 1]
    tail = torch.logsumexp(terms, -1)
    first = terms[..., 0]
    log_w = math.log(k) + first - tail
    return log_w, tail


def majority_sft_loss(logp: torch.Tensor | float, n: int, k: int) -> torch.Tensor | float:
    """-log T with T = P(Bin(n, p) >= k), the probability that the gold completion gets at least k of n votes, and
    p = e^logp, the probability of the whole gold completion. Any shape, tensor or float.

    Its gradient with respect to logp is minus the SFT weight k C(n,k) p^k (1-p)^(n-k) / T (equation 7; Table 1, as we
    read it, lacks the factor k/T), so the loss must not be weighted again. There are no second derivatives. For n = 1
    the loss is -logp. A logp between 0 and 1e-3 is taken for a rounding error of 0; NaN passes through.  Raises
    ValueError for a larger logp, and unless 1 <= k <= n."""
    check_vote(n, k)
    logp, back = elementwise(logp, -math.inf, 1e-3, "logp")
    if n == 1:
        return back(-logp)
    with torch.no_grad():
        x = logp.clamp(-1e30, -1e-30)
        log_f = log1mexp(x)  # log(1-p)
        log_w, tail = log_weight_and_tail(x, log_f, n, k)
        log_t = k * x + tail
        # For T > 1/2, log(1 - P(fewer than k votes)) is more precise.
        losing = list(range(k))
        terms = log_terms(losing, 0, x, log_f, n)  # [..., k]
        log_lost = torch.logsumexp(terms, -1)
        likely = log_t > -math.log(2)
        log_t = torch.where(likely, log1mexp(log_lost), log_t)
    # The gradient is the closed-form weight: autograd through the logsumexp would lose precision for T near 1.
    logp = logp.clamp(min=-1e30)
    straight_through = logp - logp.detach()  # 0, with the gradient of logp
    return back(-log_t - log_w.exp() * straight_through)


def majority_weight(p: torch.Tensor | float, n: int, k: int, form: str) -> torch.Tensor | float:
    """Weight of the majority operator T(p) = P(Bin(n, p) >= k) at success probability p; any shape, tensor or float.

    form  "raw"  T'(p) = n C(n-1,k-1) p^(k-1) (1-p)^(n-k); the expectation of r * weight * grad log pi is grad T
          "log"  p T'(p) / T(p) = k C(n,k) p^k (1-p)^(n-k) / T, the SFT weight; here the expectation is p grad log T.
                 The exact weight for log T would lack the factor p
    Raises ValueError for p outside [0, 1], another form, and unless 1 <= k <= n."""
    if form not in ("raw", "log"):
        raise ValueError(f"unknown form {form!r}: choose raw or log")
    check_vote(n, k)
    p, back = elementwise(p, 0, 1, "p")
    # log p and log(1-p), -inf at 0. Both are computed on safe inputs: a NaN in a branch of `where` that is not taken
    # would still reach the gradient.
    positive = p > 0
    below_1 = p < 1
    safe_p = torch.where(positive, p, 1.0)
    safe_below_1 = torch.where(below_1, p, 0.0)
    logp = safe_p.log()
    log_f = torch.log1p(-safe_below_1)
    logp = torch.where(positive, logp, -math.inf)
    log_f = torch.where(below_1, log_f, -math.inf)
    if form == "log":
        log_w, _ = log_weight_and_tail(logp, log_f, n, k)
        return back(log_w.exp())
    terms = log_terms([k], 1, logp, log_f, n)  # [..., 1]
    term = terms[..., 0]
    return back(k * term.exp())


def dynamic_threshold(answers: list, correct, n: int) -> int:
    """Threshold k: votes out of n that beat the most frequent wrong answer, estimated from M samples of one prompt:
    max(2, min(floor(n/2) + 1, floor(n c_max / M) + 1)), at most n, where c_max samples give the most frequent wrong
    answer.

    answers  M hashables. None = no answer: all None count as one wrong answer here, because the paper counts votes
             among all M samples (in maj@k they cast no vote)
    correct  the correct answer, a set of correct answers, or a list of M booleans
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
        raise ValueError("a threshold needs at least one answer and as many booleans, not "
                         f"{len(answers)} and {len(correct)}")
    wrong = [a for a, is_correct in zip(answers, correct) if a is None or not is_correct]
    votes = Counter(wrong)
    c_max = max(votes.values(), default=0)
    enough = n * c_max // len(answers) + 1
    more_than_half = n // 2 + 1
    threshold = min(more_than_half, enough)
    threshold = max(2, threshold)
    return min(n, threshold)


def contrastive_loss(logits: torch.Tensor, gold: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    """Hybrid loss of the paper's appendix, per token:
    0.5 (-log p_gold) + 0.5 mean_v -log sigmoid(logit_gold - logit_v).

    logits [..., V], gold [...] token ids, u [..., R] uniform on [0, 1)  ->  [...]
    Each u draws one rival v by inverse transform sampling from the policy without the gold token."""
    logp = torch.log_softmax(logits, -1)  # [..., V]
    gold = gold[..., None]  # [..., 1]
    gold_logp = logp.gather(-1, gold)  # [..., 1]
    with torch.no_grad():
        others = logp.exp().scatter_(-1, gold, 0.0)
        rivals = common.draw(others, u.double())  # [..., R]
    gaps = gold_logp - logp.gather(-1, rivals)  # the normaliser cancels: logit_gold - logit_v  [..., R]
    log_sigmoid = torch.nn.functional.logsigmoid(gaps)
    contrast = log_sigmoid.mean(-1)
    return -0.5 * gold_logp[..., 0] - 0.5 * contrast


def rl_coefficients(rewards: torch.Tensor, answers: list[list], n: int, form: str = "raw", threshold: int | None = None,
                    standardised: bool = True, all_wrong: float = -0.5, normalised: bool = True, clip: float = 0.0,
                    correction: int = 0) -> torch.Tensor:
    """Coefficients c_i = w_i r_i / M of grad log pi(y_i|x), for every prompt (sum convention).

    rewards       [B, M], 1 = correct: float64 stays float64, integers and booleans become float32
    answers       [B][M] hashables, None = no answer
    n             the budget N
    form, threshold, normalised, clip     as in rl_weights
    standardised, all_wrong, correction   as in shaped
    Returns [B, M].  Raises ValueError as rl_weights does.

    Biased, because p is estimated from the same samples and a threshold only approximates the vote. The expected
    estimates compared with the gradient of maj@N (ties shared), summed over three prompts solved with p = .1, .5, .9
    (one logit each, one wrong answer), N = 4 and M = 8, with the dynamic threshold unless a threshold is given:
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
    z = shaped(r, standardised, all_wrong, correction)
    c = w * z / M
    return c.to(r)


def rl_weights(rewards: torch.Tensor, answers: list[list], n: int, form: str = "raw", threshold: int | None = None,
               normalised: bool = True, clip: float = 0.0) -> torch.Tensor:
    """Weight w of every sample, float64 [B, M], at p = (c+1)/(M+2), where c of a prompt's M samples are correct
    (Laplace's rule: never 0 or 1).

    form        "raw" or "log" (majority_weight)
    threshold   votes k needed to win; None: dynamic_threshold of each prompt
    normalised  divide by the mean over all samples of the batch, so that the step size does not depend on n
    clip        upper limit of the weight, applied before that; 0: none
    Raises ValueError for another form, unless 1 <= threshold <= n, and for answers of another shape."""
    correct = (rewards == 1).double()  # [B, M]
    M = correct.shape[1]
    c = correct.sum(1)  # [B]
    p = (c + 1) / (M + 2)
    thresholds = thresholds_of(rewards, answers, n, threshold)
    w = []
    for p_b, k in zip(p, thresholds):
        weight = majority_weight(p_b, n, k, form)
        w.append(weight)
    w = torch.stack(w)  # [B]
    if clip:
        w = w.clamp(max=clip)
    w = w[:, None].expand_as(correct)
    if normalised:
        w = w / w.mean().clamp_min(1e-6)  # no 0/0 if every weight underflows
    return w


def thresholds_of(rewards: torch.Tensor, answers: list[list], n: int, threshold: int | None = None) -> list[int]:
    """Votes k needed to win, for each prompt: `threshold`, or dynamic_threshold if it is None -> [B]."""
    if threshold is not None:
        return [threshold] * len(rewards)
    thresholds = []
    for row, r in zip(answers, rewards, strict=True):
        k = dynamic_threshold(row, r == 1, n)
        thresholds.append(k)
    return thresholds


def shaped(rewards: torch.Tensor, standardised: bool, all_wrong: float, correction: int = 0) -> torch.Tensor:
    """Rewards used in the update, from rewards [B, M] -> [B, M]: standardised within each prompt if `standardised`
    (common.standardise, 0 where all are correct); all_wrong, not standardised, where no sample is correct."""
    correct = rewards == 1
    solved = correct.any(1, keepdim=True)  # [B, 1]
    r = rewards
    if standardised:
        r = standardise(r, correction=correction)
    return torch.where(solved, r, all_wrong)


# ------------------------------------------------------------------------------------------------------------- training

def check_flags(args: flags.Flags) -> None:
    """Check values and combinations that argparse cannot.  Raises UserError."""
    flags.check_common(args, positive=("n",), not_negative=("clip_weight",), plotted=("mode", "n", "form", "threshold"))
    if args.mode == "sft" and args.kl_coef:
        raise UserError("--kl-coef needs samples from the policy: use it with --mode rl")
    if args.mode == "rl" and args.contrastive:
        raise UserError("--contrastive needs gold completions: use it with --mode sft")
    if args.mode == "sft":
        unused = ["samples", "form", "rewards", "correction", "clip_weight", "all_wrong", "normalise"]
        if args.kl_prompts:
            unused.append("kl_prompts")
        flags.refuse(args, unused, "with --mode sft")
    if args.rewards == "raw":
        flags.refuse(args, ["correction"], "with --rewards raw")
    if args.contrastive:
        flags.refuse(args, ["n", "threshold"], "with --contrastive, which has no sequence weights")
    if args.threshold != "auto":
        number = int(args.threshold) if args.threshold.isdecimal() else 0
        if not 1 <= number <= args.n:
            raise UserError(f"--threshold must be auto or an integer from 1 to --n {args.n}, not {args.threshold}")
        args.threshold = str(number)
    if not math.isfinite(args.all_wrong):
        raise UserError(f"--all-wrong must be finite, not {args.all_wrong}")
    if args.mode == "rl" and args.normalise and args.prompts == 1:
        raise UserError("--normalise cancels the weight of a single prompt: use more --prompts, or --no-normalise")


def fixed_threshold(args: flags.Flags) -> int:
    """Threshold k of sft, and of rl unless it is estimated from the samples."""
    if args.threshold == "auto":
        return args.n // 2 + 1
    return int(args.threshold)


def plot_weights(args: flags.Flags) -> None:
    """--plot-weights: plot the training weight as a function of p, next to the weights of the test budgets --test-n. An
    estimated threshold is plotted at its largest value, floor(n/2) + 1."""
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

    # Update. The gradient of this loss includes the weight.
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
    """step_sft with contrastive_loss, summed over tokens, instead of -log T."""
    B = len(problems)
    common.set_rate(optimizer, args.lr, number, args.steps)
    started = time.time()
    questions = [p.prompt for p in problems]
    prompts = policy.encode(questions, task.chat)
    y = [golds[p.id] for p in problems]

    # Update. Each prompt has its own seed, so its rival tokens do not depend on the micro-batch.
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
    metrics |= weight_stats(torch.ones(B), "w")  # this loss has no sequence weights
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
    extracted = [task.extract(text) for text in texts]
    answers = [extracted[b * M:b * M + M] for b in range(B)]  # [B][M]
    threshold = None if args.threshold == "auto" else fixed_threshold(args)
    standardised = args.rewards == "standardised"
    weighing = {"form": args.form, "threshold": threshold, "normalised": args.normalise, "clip": args.clip_weight}
    shaping = {"standardised": standardised, "all_wrong": args.all_wrong, "correction": args.correction}
    coefficients = rl_coefficients(rewards, answers, args.n, **weighing, **shaping)  # [B, M]
    w = rl_weights(rewards, answers, args.n, **weighing)  # [B, M], for the log only
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
