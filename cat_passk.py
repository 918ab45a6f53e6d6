"""Train a language model for pass@N with Compute Aligned Training (CAT), by supervised fine-tuning or RL.

Paper: Ousherovitch, Tewari 2026, "Compute Aligned Training: Optimizing for Test Time Inference", arXiv 2604.24957 (as
we read it).
Derivation: docs/cat_passk.md

An inference strategy, such as "draw N samples, one correct sample is enough", is an operator T. It maps the success
probability p of one sample to the success probability of the strategy:

    T(p) = 1 - (1-p)^N                                   at least one of N samples is correct

--mode sft   maximises log T with p = pi(y*|x), the probability of the whole gold completion y*:
    loss = -(1/B) sum_prompts log(1 - (1-p)^N)           its gradient is -w grad log p per prompt, with
    w    = p T'/T = N p (1-p)^(N-1) / (1 - (1-p)^N)      near 1 if p << 1/N, near 0 if N samples contain y* anyway

--mode rl    multiplies the reward of each of M samples y_i by a weight w; the estimated gradient is
    (1/B) sum_prompts sum_i (r_i w / M) grad log pi(y_i|x)

    --form  w                                   expected gradient per prompt if p is known
    raw     T' = N (1-p)^(N-1)                  grad T
    log     p T'/T, the weight of SFT           p grad log T (w/p would give grad log T)
    pool    N C(M-c,N-1) / C(M-1,N-1)           grad T, without knowing p: c of the M >= N samples are correct

These hold because grad T(p) = T'(p) grad p, and grad p = E[r grad log pi(y)] because p = E[r]. Subtracting a constant
from r changes nothing, because E[grad log pi(y)] = 0.
p is the smoothed success rate (c+1)/(M+2) of the prompt or, with --probability sequence, pi(y_i|x) of the sample, as in
the paper's runs. On the embedded task pi(y_i|x) is far below 1/N, so all weights are nearly equal and this is plain RL.
raw and log are biased because p is estimated. pool with --rewards raw is unbiased, and has the same coefficients as the
default estimator of ppo_passk.py.
--operator FILE.py:T replaces Pass@N by your own operator in every form but pool. T is a torch function of a tensor of
probabilities p and of N that returns the strategy's success probability; autograd computes T'.

    def at_least_two(p, n):                              # at least two of N samples are correct
        return 1 - (1 - p) ** n - n * p * (1 - p) ** (n - 1)

Symbols: B prompts per step, M samples per prompt (--samples), N the test-time budget (--n), r the reward in {0, 1},
tau the temperature.

Differences from the paper: 1) the pool form; 2) --normalise divides by the mean weight over all samples of the batch;
3) the KL penalty is part of the reward, with a leave-one-out baseline.
If p << 1/N for every gold completion, w is 1 and sft is cross-entropy. Short targets (--target answer) keep p larger.
The step line summarises the weights: w_even = 1 means that they are all equal and have no effect.
With --rollouts, samples come from the distribution q of an inference engine and are weighted by pi / q. A bias remains,
because a coefficient depends on all samples of its prompt; passk_reweighted in ppo_passk.py measures it for pass@k.

    CPU, embedded model:  python cat_passk.py
    supervised:           python cat_passk.py --mode sft --train-problems 50
    another strategy:     python cat_passk.py --operator my_operator.py:at_least_two
    GPU, 4-bit LoRA:      python cat_passk.py --model mistralai/Mistral-7B-Instruct-v0.2 --task math --lr 2e-5

The authors' code (adamoosya/compute-aligned-training, described there as a new implementation) is closest to these
settings. WARM-UP is the run folder of a warm-up (2,000 examples, one epoch of --mode sft --n 1 --target solution):

    python cat_passk.py --model mistralai/Mistral-7B-Instruct-v0.2 --task math --adapter WARM-UP --train-problems 500
        --probability sequence --no-normalise --clip-weight 50 --correction 1 --kl-coef 0.05 --samples 4 --prompts 4
        --steps 125 --temperature 0.8 --lr 1e-6 --max-new-tokens 300

It differs from them in: top_p .95, so samples are not drawn from the policy that is scored; LoRA on q and v only; KL in
the loss, as the mean over tokens of exp(-d) + d - 1 with d = log pi - log ref; 1e-4 added to the standard deviation; p
clamped to [1e-10, 1 - 1e-10]; 60 warm-up steps of the learning rate. Its SFT uses 4 examples per step, lr 5e-6 and
gradients clipped to norm .3.
"""
import argparse

from support import flags


def parser() -> flags.Parser:
    p = flags.parser(__doc__, "cat_passk", samples=16, prompts=64, steps=100, test_n="1,4,16,64")
    p.add_argument("--mode", choices=["sft", "rl"], default="rl",
                   help="sft: train on gold completions; rl: train on weighted samples")
    p.add_argument("--n", type=int, default=16,
                   help="test-time budget N; 1 = plain SFT (cross-entropy) or plain RL")
    p.add_argument("--operator",
                   help="FILE.py:T, your own strategy instead of Pass@N: a torch function T(p, n) that returns the "
                        "success probability with n samples, given the probability p of one")
    p.add_argument("--target", choices=["answer", "solution"], default="answer",
                   help="gold completion: the answer only, as in the paper, or the full solution; sft trains on it, "
                        "and the evaluation reports its log-probability as gold")
    p.add_argument("--form", choices=["raw", "log", "pool"], default="log",
                   help="rl: weight of a correct sample. raw: slope of pass@N; log: slope of log pass@N times p, as in "
                        "the paper's runs; pool: raw without estimating p (needs --samples of at least --n)")
    p.add_argument("--probability", choices=["success", "sequence"], default="success",
                   help="rl: p in the weight: success rate of the prompt, or probability of the sampled sequence as in "
                        "the paper's runs; pool needs success")
    p.add_argument("--rewards", choices=["standardised", "raw"], default="standardised",
                   help="rl: standardise rewards within the prompt, as in the paper, or not; pool is exact with raw")
    p.add_argument("--correction", type=int, choices=[0, 1], default=0,
                   help="rl: 0 or 1, subtracted from the number of rewards in the standard deviation's divisor")
    p.add_argument("--clip-weight", type=float, default=0.0,
                   help="rl: upper limit of the weight, applied before --normalise; 0 = none")
    p.add_argument("--normalise", action=argparse.BooleanOptionalAction, default=True,
                   help="rl: divide the weights by their mean over the batch, so that the step size does not depend on "
                        "--n")
    return p


if __name__ == "__main__":
    flags.answer(parser().parse_args)  # answer --help and reject bad flags before the slow imports

import math
import time

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
from tasks.own import File, takes

# ------------------------------------------------------------------------------------------------ the paper's equations

def check_budget(n: int, name: str = "n") -> None:
    """Raises ValueError unless n is an integer of at least 1."""
    is_integer = isinstance(n, int) and not isinstance(n, bool)
    if not is_integer or n < 1:
        raise ValueError(f"{name} must be an integer of at least 1, not {n!r}")


def passn_sft_loss(logp: torch.Tensor | float, n: int) -> torch.Tensor | float:
    """-log(1 - (1-p)^n), where p = e^logp is the probability of the whole gold completion; any shape, tensor or float.

    Its gradient with respect to logp is -n p (1-p)^(n-1) / (1 - (1-p)^n), minus the SFT weight, so the loss must not be
    weighted again. For n = 1 it is -logp. A logp between 0 and 1e-3 is taken for a rounding error of 0; NaN passes
    through.  Raises ValueError for a larger logp, and for n < 1.
    """
    check_budget(n)
    logp, back = elementwise(logp, -math.inf, 1e-3, "logp")
    if n == 1:
        return back(-logp)
    x = logp.clamp(max=-1e-30)
    # 1 - (1-p)^n = n p (1 - (n-1) p / 2 + ...): for p < e^-60 the first term is exact; e^logp would underflow
    small = x < -60
    log_f = log1mexp(torch.where(small, -1.0, x))  # log(1-p)
    log_t = torch.where(small, x + math.log(n), log1mexp(n * log_f))  # log T(p)
    return back(-log_t)


def passn_weight(p: torch.Tensor | float, n: int, form: str = "log") -> torch.Tensor | float:
    """Weight of the Pass@N operator T at success probability p; any shape, tensor or float.

    form  "raw"  T'(p) = n (1-p)^(n-1); the expectation of r * weight * grad log pi is grad T(p)
          "log"  p T'(p) / T(p), the SFT weight; here the expectation is p grad log T(p). The exact weight for log T
                 would lack the factor p
    Raises ValueError for p outside [0, 1], n < 1 or another form."""
    if form not in ("raw", "log"):
        raise ValueError(f"unknown form {form!r}: choose raw or log")
    check_budget(n)
    p, back = elementwise(p, 0, 1, "p")
    f = 1 - p
    raw = n * f ** (n - 1)
    if form == "raw":
        return back(raw)
    return back(raw / powers(f, n))  # T(p) / p as sum_{j<n} f^j avoids 0/0 at p = 0, where the weight is 1


def powers(f: torch.Tensor, n: int) -> torch.Tensor:
    """sum_{j<n} f^j, by doubling: log2(n) multiplications.

    With f = 1 - p this is also the weight of MaxRL of order n (arXiv 2602.02710), the slope of sum_{j<=n} (1/j) pass@j.
    It is biased if p is estimated; ppo_passk.py --objective maxrl is not."""
    if n == 1:
        return torch.ones_like(f)
    half = n // 2
    total = powers(f, half) * (1 + f ** half)
    if n % 2:
        total = total + f ** (n - 1)
    return total


def pool_weight(c: torch.Tensor | float, m: int, n: int) -> torch.Tensor | float:
    """n C(m-c, n-1) / C(m-1, n-1): weight of each correct sample if c of m samples are correct. Unbiased:
    E[(c/m) pool_weight] = p n (1-p)^(n-1) for every p, whereas inserting p = c/m into n (1-p)^(n-1) has a large bias.
    c: integer or tensor of any shape.  Raises ValueError unless 1 <= n <= m and 0 <= c <= m."""
    check_budget(n)
    check_budget(m, "m")
    if n > m:
        raise ValueError(f"the pool form needs at least n = {n} samples per prompt, not {m}")
    count, back = elementwise(c, 0, m, "c")
    if (count != count.round()).any():
        raise ValueError("c counts samples: it must be an integer")
    subsets = math.comb(m - 1, n - 1)
    table = [n * math.comb(m - i, n - 1) / subsets for i in range(m + 1)]
    table = torch.tensor(table, dtype=count.dtype, device=count.device)
    return back(table[count.long()])


def operator_weight(T, p: torch.Tensor | float, form: str = "log") -> torch.Tensor | float:
    """passn_weight for any inference strategy, with T' from autograd; any shape, tensor or float.

    T     operator: a function of a tensor of probabilities
    form  "raw" T'(p), or "log" p T'(p) / T(p)
    A p below 1e-6 is replaced by 1e-6, which is close to the limit at 0.  Raises ValueError for p outside [0, 1],
    another form, and for "log" where T is not positive."""
    if form not in ("raw", "log"):
        raise ValueError(f"unknown form {form!r}: choose raw or log")
    p, back = elementwise(p, 0, 1, "p")
    with torch.enable_grad():
        x = p.detach().double().clamp(min=1e-6).requires_grad_()
        value = T(x)
        slope, = torch.autograd.grad(value.sum(), x)
    if form == "raw":
        return back(slope)
    if not (value > 0).all():
        raise ValueError("the operator must be positive for p > 0")
    return back((x * slope / value).detach())


def operator_sft_loss(T, logp: torch.Tensor | float) -> torch.Tensor | float:
    """-log T(p) with p = e^logp, like passn_sft_loss for any operator; its gradient is minus operator_weight. Below
    p = 1e-6 the loss is extrapolated linearly in logp."""
    logp, back = elementwise(logp, -math.inf, 1e-3, "logp")
    x = logp.detach().double().clamp(math.log(1e-6), 0)
    p = x.exp()
    w = operator_weight(T, p)
    log_t = T(p).log()
    return back(-log_t - w * (logp - x))  # x is a constant: the gradient is -w


def weight_of(p: torch.Tensor | float, n: int, form: str, operator=None) -> torch.Tensor | float:
    """Weight of the operator T(p, n), by default Pass@N, at success probability p; any shape, tensor or float."""
    if operator is None:
        return passn_weight(p, n, form)
    return operator_weight(lambda x: operator(x, n), p, form)


def rl_coefficients(rewards: torch.Tensor, n: int, form: str = "log", probability: str = "success",
                    logp: torch.Tensor | None = None, standardised: bool = True, normalised: bool = True,
                    clip: float = 0.0, correction: int = 0, operator=None) -> torch.Tensor:
    """Coefficients c_i = w_i r_i / M of grad log pi(y_i|x), for every prompt (sum convention).

    rewards       [B, M], 1 = correct: float64 stays float64, integers and booleans become float32
    n             the budget N
    form, probability, logp, normalised, clip, operator   as in rl_weights
    standardised  use (r - mean) / standard deviation over the prompt's rewards, 0 where all are equal
    correction    subtracted from M in the divisor of the standard deviation
    Returns [B, M].  Raises ValueError as rl_weights does.

    With form "pool", neither standardised nor normalised, the expectation of sum_i c_i grad log pi(y_i) is exactly
    grad T(p). Everything else is biased, because p is estimated from the same samples. The expected estimates compared
    with grad T, summed over three prompts solved with p = .1, .5, .9 (one logit each), N = 4 and M = 8:
        pool                           cosine 1.000, scale 1.000
        pool, standardised             cosine 1.000, scale 2.602
        raw                            cosine 0.975, scale 0.636
        raw, standardised              cosine 0.977, scale 1.574
        raw, standardised, normalised  cosine 0.995, scale 1.868
        log                            cosine 0.928, scale 0.269
        log, standardised, normalised  cosine 0.963, scale 1.937
    """
    r = rewards if rewards.is_floating_point() else rewards.float()  # [B, M]
    w = rl_weights(r, n, form, probability, logp, normalised, clip, operator)  # [B, M]
    if standardised:
        r = standardise(r, correction=correction)
    return w * r / r.shape[1]


def rl_weights(rewards: torch.Tensor, n: int, form: str = "log", probability: str = "success",
               logp: torch.Tensor | None = None, normalised: bool = True, clip: float = 0.0,
               operator=None) -> torch.Tensor:
    """Weight w of every sample, [B, M]; c of a prompt's M samples are correct.

    form         "raw", "log" (weight_of), or "pool" (pool_weight, Pass@N only)
    probability  p: "success", (c+1)/(M+2) (Laplace's rule: never 0 or 1), or "sequence", pi(y_i|x)
    logp         log pi(y_i|x) [B, M], for "sequence"
    normalised   divide by the mean over all samples of the batch, so that the step size does not depend on n
    clip         upper limit of the weight, applied before that; 0: none
    operator     T(p, n); None: Pass@N
    Raises ValueError for another form or probability, n < 1, "pool" with n > M, "sequence" without logp."""
    correct = (rewards == 1).double()  # [B, M]
    M = correct.shape[1]
    c = correct.sum(1, keepdim=True)  # [B, 1]
    if form == "pool":
        w = pool_weight(c, M, n)
    elif probability == "success":
        w = weight_of((c + 1) / (M + 2), n, form, operator)
    elif probability == "sequence" and logp is not None:
        p = logp.double().exp().clamp(max=1)
        w = weight_of(p, n, form, operator)
    else:
        raise ValueError(f"probability must be success, or sequence with logp, not {probability!r}")
    w = w.to(rewards).expand_as(rewards)
    if clip:
        w = w.clamp(max=clip)
    if normalised:
        w = w / w.mean().clamp_min(1e-6)  # no 0/0 if every weight underflows
    return w


# ------------------------------------------------------------------------------------------------------------- training

def check_flags(args: flags.Flags) -> None:
    """Check values and combinations that argparse cannot.  Raises UserError."""
    flags.check_common(args, positive=("n",), not_negative=("clip_weight",), plotted=("mode", "n", "form", "operator"))
    if args.mode == "sft" and args.kl_coef:
        raise UserError("--kl-coef needs samples from the policy: use it with --mode rl")
    if args.mode == "sft":
        unused = ["samples", "form", "probability", "rewards", "correction", "clip_weight", "normalise"]
        if args.kl_prompts:
            unused.append("kl_prompts")
        flags.refuse(args, unused, "with --mode sft")
        return
    if args.rewards == "raw":
        flags.refuse(args, ["correction"], "with --rewards raw")
    if args.form == "pool" and args.operator:
        raise UserError("--form pool exists for Pass@N only: use raw or log with --operator")
    if args.form == "pool" and args.probability != "success":
        raise UserError("--form pool counts correct samples: it needs --probability success")
    if args.form == "pool" and args.samples < args.n:
        raise UserError(f"--form pool needs at least --n {args.n} samples per prompt, not --samples {args.samples}")
    if args.normalise and args.prompts == 1:
        raise UserError("--normalise cancels the weight of a single prompt: use more --prompts, or --no-normalise")


def own_operator(args: flags.Flags, folder: Folder) -> tuple:
    """Load --operator -> (T(p, n), its name); (None, "Pass") without the flag. Records its file in folder.code, for
    --resume, and reports an exception in T as a one-sentence UserError.  Raises UserError."""
    if not args.operator:
        return None, "Pass"
    file = File("--operator", args.operator)
    T = file.pick(file.defined(), "functions")
    file.what = f"--operator {file.base}:{file.name}"
    takes(T, file.what, ["p", "n"])

    def guarded(p, n):
        with file.sentence(f"(p, {n})"):
            return T(p, n)
    budgets = [args.n]
    if args.plot_weights:
        budgets += flags.numbers(args.test_n, int, "--test-n")
    form = "log" if args.mode == "sft" else args.form
    for n in budgets:
        check_operator(guarded, n, form, f"{file.what}(p, {n})")
    args.operator = f"{file.path}:{file.name}"  # --resume loads the same function from any directory
    folder.code["operator"] = {**file.digests, "function": file.name}
    return guarded, file.name


def check_operator(T, n: int, form: str, call: str) -> None:
    """Raises UserError unless T(p, n) is differentiable, finite, increasing, 0 at p = 0 and numerically precise near
    p = 0.  call: how messages refer to the operator."""
    p = torch.linspace(0, 1, 1001, dtype=torch.float64, requires_grad=True)
    value = T(p, n)
    if not torch.is_tensor(value) or value.shape != p.shape or not value.requires_grad:
        raise UserError(f"{call} must return a tensor like p, computed from it with torch")
    value = value.detach()
    if not value.isfinite().all():
        raise UserError(f"{call} is not finite for all p from 0 to 1")
    if value[0].abs() > 1e-9 or value.diff().min() < -1e-9 or value[-1] <= value[0]:
        raise UserError(f"{call} must increase with p, from 0 at p = 0")
    near_0 = torch.logspace(-6, -5, 30, dtype=torch.float64)
    value = T(near_0, n)
    if not (value > 0).all():
        raise UserError(f"{call} is not positive for p from 1e-6 to 1e-5")
    w = weight_of(p, n, form, T)
    if not w.isfinite().all():
        raise UserError(f"{call} has a slope that is not finite")
    w = weight_of(near_0, n, "log", T)  # constant if T is a power of p, which it nearly is this close to 0
    spread = (w / w.mean() - 1).abs().max()
    if not spread <= 0.05:
        raise UserError(f"{call} loses precision near p = 0: write it as a sum of positive terms")


def plot_weights(args: flags.Flags, operator, name: str) -> None:
    """--plot-weights: plot the training weight as a function of p, next to the weights of the test budgets --test-n.
    name: of the operator, for the legend."""
    folder = new_folder(args.out, "cat_passk-weights")
    cells = torch.arange(1000, dtype=torch.float64)
    p = (cells + 0.5) / 1000
    form = args.form
    if args.mode == "sft":
        form = "log"
    elif form == "pool":  # pool estimates the raw weight
        form = "raw"
    budgets = flags.numbers(args.test_n, int, "--test-n")
    tests = {f"{name}@{n}": weight_of(p, n, form, operator) for n in budgets}
    trained = f"{name}@{args.n} {form}", weight_of(p, args.n, form, operator)
    weight_report(trained, tests, folder, "p")


def step_sft(policy: common.Policy, task: Task, optimizer: torch.optim.Optimizer, problems: list[Problem], number: int,
             args: flags.Flags, golds: dict[str, list[int]], operator=None) -> tuple[dict, list[dict]]:
    """Run training step `number` (1, 2, ...) on the gold completions of B problems -> (metrics by the keys of METRICS
    in support/run.py, examples to print)."""
    B = len(problems)
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
        losses = passn_sft_loss(logp, args.n)
        if operator:
            losses = operator_sft_loss(lambda p: operator(p, args.n), logp)
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
    w = weight_of(p, args.n, "log", operator)
    metrics |= weight_stats(w, "w")
    metrics["grad_norm"] = norm
    took = time.time() - started
    metrics["samples_per_s"] = len(y) / took
    return metrics, examples(policy, problems, prompts, y, logp=gold_logp)


def step_rl(policy: common.Policy, task: Task, optimizer: torch.optim.Optimizer, problems: list[Problem], number: int,
            args: flags.Flags, operator=None) -> tuple[dict, list[dict]]:
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
    logp = drawn.logps.double().sum(-1).cpu()  # log pi(y|x)  [B, M]
    standardised = args.rewards == "standardised"
    weighing = {"form": args.form, "probability": args.probability, "logp": logp, "normalised": args.normalise,
                "clip": args.clip_weight, "operator": operator}
    coefficients = rl_coefficients(  # [B, M]
        rewards, args.n, standardised=standardised, correction=args.correction, **weighing)
    w = rl_weights(rewards, args.n, **weighing)  # [B, M], for the log only
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
    metrics |= sample_stats(policy, task, drawn, rewards, args.n, gap, seconds)
    metrics["zero"] = zero
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
    folder = Folder("cat_passk", parser(), argv)
    args = folder.args
    check_flags(args)
    operator, name = own_operator(args, folder)
    if args.plot_weights:
        return plot_weights(args, operator, name)
    task, policy, optimizer, problems = set_up(folder, "countdown", args.mode, binary=True)
    train = problems.train
    if args.mode == "sft":
        train, golds = gold_completions(policy, task, train, args.target)
    run = Run(folder, task, policy, optimizer, problems, budget=args.n, target=args.target)
    start(run, f"{args.mode} for {name}@{args.n}")
    evaluate_before(run)
    for number in range(run.step + 1, args.steps + 1):
        batch = batch_of(train, args.prompts, number, args.seed)
        if args.mode == "sft":
            metrics, shown = step_sft(policy, task, optimizer, batch, number, args, golds, operator)
        else:
            metrics, shown = step_rl(policy, task, optimizer, batch, number, args, operator)
        end_of_step(run, metrics, shown)
    evaluate_after(run)


if __name__ == "__main__":
    main()
