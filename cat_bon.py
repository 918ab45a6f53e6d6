"""Train a language model for best-of-N under a real-valued reward with Compute Aligned Training (CAT), by RL or SFT.

Paper: Ousherovitch, Tewari 2026, "Compute Aligned Training: Optimizing for Test Time Inference", arXiv 2604.24957 (as
we read it).
Derivation: docs/cat_bon.md

At test time N samples are drawn and the one with the highest reward is kept, so a sample matters only if it beats the
N-1 others. The paper weights its reward by the probability of that.

--mode rl    estimates the gradient by (1/B) sum_prompts sum_i c_i grad log pi(y_i|x)

    --form  c_i, from M samples per prompt
    rank    (N/M) q_i^(N-1) r_i                 q_i = P(r(Y) < r(y_i)), the quantile of the reward, as in the paper,
                                                estimated by (samples below + 1) / (M + 1) as in the authors' code
    exact   (N/M) mean_S (r_i - max_S r)^+      S runs over the (N-1)-subsets of the other samples; the expectation is
                                                grad E[max of N]

exact is the gradient because grad E[max of N] = N E[(max of all N - max of the N-1 without y) grad log pi(y)]: the
subtracted maximum does not depend on y, and E[grad log pi(y)] = 0. The difference is (r(y) - max of the others)^+.

Quantiles are taken within the prompt, or among recent rewards of all prompts (--ranks fifo or past, for unconditional
generation). The rank form is not invariant to a shift of the rewards, so they are standardised first (--rewards).

--mode sft   Pass@N on the best target: y* is the best of M samples of the starting policy, and p = pi(y*|x):
    loss = -(1/B) sum_prompts log(1 - (1-p)^N)

Symbols: B prompts per step, M samples per prompt (--samples), N the test-time budget (--n), r the reward, tau the
temperature.

Differences from the paper: 1) the exact form: for M >= N its expectation is the gradient of E[max of N], that of the
rank form is not; 2) the KL penalty is part of the reward, with a leave-one-out baseline; 3) the embedded task, with its
own base model, is a synthetic stand-in for the paper's protein design.
A sequence of 18 residues has p << 1/N, where Pass@N SFT is cross-entropy on the best target. The step line summarises
the weights: w_even = 1 means that they are all equal and have no effect.
With --rollouts, samples come from the distribution q of an inference engine and are weighted by pi / q. A bias remains,
because a coefficient depends on all samples of its prompt; passk_reweighted in ppo_passk.py measures it for pass@k.

    CPU, embedded model:  python cat_bon.py
    weights, no training: python cat_bon.py --n 8 --plot-weights
    GPU, ProtGPT2:        python cat_bon.py --model nferruz/ProtGPT2 --ranks fifo --lr 2e-5

The authors' code (adamoosya/compute-aligned-training, described there as a new implementation) is closest to these
settings for unconditional generation:

    python cat_bon.py --model nferruz/ProtGPT2 --bits 16 --ranks past --fifo 4000 --correction 1 --kl-coef 0.3
        --samples 32 --prompts 4 --steps 300 --temperature 1.2 --lr 1e-5 --max-new-tokens 64

For conditional generation, after a warm-up, they are --ranks prompt --kl-coef 0.05 --samples 25 --temperature 1.3
--lr 2e-6 --max-new-tokens 32. It differs from them in: weights divided by their mean over the batch; rewards clipped at
5 standard deviations; 1e-4 added to the standard deviation; q clamped to [.001, .999]; top_k 50 (unconditional), so
samples are not drawn from the policy that is scored; all weights trained, not LoRA; KL in the loss, as the mean over
tokens of exp(-d) + d - 1 with d = log pi - log ref; 60 warm-up steps of the learning rate; its own rewards. It ranks
within the prompt, as the paper's text says, and notes that the scripts of the paper's runs ranked across prompts.
"""
from support import flags


def parser() -> flags.Parser:
    p = flags.parser(__doc__, "cat_bon", task="peptide", samples=16, prompts=64, steps=100, test_n="1,4,8,16")
    p.add_argument("--mode", choices=["sft", "rl"], default="rl",
                   help="sft: train on the best of --samples completions, drawn once from the starting policy; rl: "
                        "train on weighted samples of the current policy")
    p.add_argument("--n", type=int, default=8,
                   help="test-time budget N; 1 = plain SFT (cross-entropy) or plain RL")
    p.add_argument("--form", choices=["rank", "exact"], default="rank",
                   help="rl: coefficient of a sample. rank: reward times a weight for its rank, as in the paper; "
                        "exact: an unbiased gradient of E[max of n] with --rewards raw (needs --samples of at least "
                        "--n)")
    p.add_argument("--ranks", choices=["prompt", "fifo", "past"], default="prompt",
                   help="rl, form rank: rank a reward within its prompt (prompt), or among the last --fifo rewards of "
                        "all prompts, including those of this step (fifo) or not (past)")
    p.add_argument("--fifo", type=int, default=1024,
                   help="rl: number of recent rewards that --ranks fifo and past compare with")
    p.add_argument("--rewards", choices=["standardised", "raw"], default="standardised",
                   help="rl: standardise rewards within the prompt (with --ranks fifo: by the recent rewards), or not; "
                        "exact is unbiased with raw")
    p.add_argument("--correction", type=int, choices=[0, 1], default=0,
                   help="rl: 0 or 1, subtracted from the number of rewards in the standard deviation's divisor")
    return p


if __name__ == "__main__":
    flags.answer(parser().parse_args)  # answer --help and reject bad flags before the slow imports

import math
import time
from math import comb

import torch

import common
from common import elementwise, kl_coefficients, log1mexp, standardise
from support import processes
from support.errors import UserError
from support.folder import Folder, new_folder, write_atomic
from support.output import to_json
from support.plots import weight_report
from support.run import (
    Run,
    batch_of,
    end_of_step,
    evaluate_after,
    evaluate_before,
    examples,
    sample_stats,
    set_up,
    start,
    weight_stats,
)
from tasks import Problem, Task

# ------------------------------------------------------------------------------------------------ the paper's equations

def rl_coefficients(rewards: torch.Tensor, n: int, form: str = "rank", recent: list[float] | torch.Tensor | None = None,
                    standardised: bool = True, pool: list[float] | torch.Tensor | None = None,
                    correction: int = 0) -> torch.Tensor:
    """Coefficients c_i of grad log pi(y_i|x) for the best of n samples, for every prompt (sum convention).

    rewards       [B, M] tensor: float64 stays float64, integers and booleans become float32
    n, form, recent   as in bon_weight
    standardised  use (r - mean) / standard deviation over the prompt's rewards, 0 where all are equal
    pool          [R] rewards, a list or a tensor: standardise by their mean and deviation instead of the prompt's
    correction    subtracted from the number of rewards in the divisor of the standard deviation
    Returns [B, M].  Raises ValueError as bon_weight does.

    With form "exact", not standardised, the expectation of sum_i c_i grad log pi(y_i) is exactly grad E[max of n]. The
    expected estimates compared with it, for one prompt with four equally likely completions of rewards 0, 1, 2 and 4,
    N = 4, M = 8:
        exact                cosine 1.000, scale 1.000
        exact, standardised  cosine 0.999, scale 0.713
        rank                 cosine 0.998, scale 1.467
        rank, of r - 4       cosine 0.398, scale 0.314
        rank, standardised   cosine 1.000, scale 0.588
    """
    r = rewards if rewards.is_floating_point() else rewards.float()  # [B, M]
    if not standardised:
        return bon_weight(r, n, form, recent)
    if pool is not None:
        pool = torch.as_tensor(pool, dtype=r.dtype, device=r.device)
        pool = pool.view(1, -1)  # [1, R]
    z = standardise(r, pool, correction)
    return bon_weight(r, n, form, recent, z)


def bon_weight(rewards: torch.Tensor, n: int, form: str, recent: list[float] | torch.Tensor | None = None,
               seen: torch.Tensor | None = None) -> torch.Tensor:
    """Coefficients c_i of grad log pi(y_i|x) for the best of n samples (sum convention: reward and 1/M are included).

    rewards  [B, M] tensor: float64 stays float64, integers and booleans become float32
    n        the budget N
    form     "rank"   (n/M) q_i^(n-1) r_i, as in the paper, with q_i as in rank_weight. Not the gradient of E[max]: it
                      is not invariant to a shift of the rewards
             "exact"  (n/M) mean of (r_i - max_S r)^+ over the (n-1)-subsets S of the other samples; r_i / M at n = 1.
                      Its expected sum is grad E[max of n], also with ties. Needs M >= n. Not in the paper; it equals
                      passk_leave_one_out(r, n) of ppo_passk.py
    recent   "rank" only: [R] rewards, a list or a tensor, to rank against instead of the prompt's other samples
    seen     [B, M], replaces r_i in these formulas but not in the ranks, such as standardised rewards; None: rewards
    Returns [B, M].  Raises ValueError for any other input.
    """
    if form not in ("rank", "exact"):
        raise ValueError(f"unknown form {form!r}: choose rank or exact")
    if rewards.dim() != 2 or rewards.numel() == 0:
        raise ValueError(f"rewards must be [prompts, samples], not of shape {tuple(rewards.shape)}")
    r = rewards if rewards.is_floating_point() else rewards.float()  # [B, M]
    M = r.shape[1]
    check_budget(n)
    seen = r if seen is None else seen
    if form == "rank":
        return rank_weight(r, n, recent) * seen / M
    if recent is not None:
        raise ValueError("the exact form compares samples of one prompt: it cannot use recent rewards")
    if n > M:
        raise ValueError(f"the exact form needs at least n = {n} samples per prompt, not {M}")
    return exact_coefficients(seen, n)


def rank_weight(r: torch.Tensor, n: int, recent: list[float] | torch.Tensor | None = None) -> torch.Tensor:
    """n q^(n-1) for every sample, for r [B, M] -> [B, M]. q = (rewards strictly below + 1) / (count + 2), never 0,
    among the other samples of the prompt (count = M - 1) or among `recent` [R] (count = R)."""
    others = r  # [B, M]; a sample is not below itself
    count = r.shape[1] - 1
    if recent is not None:
        others = torch.as_tensor(recent, dtype=r.dtype, device=r.device)
        others = others.view(1, -1)  # [1, R]
        count = others.shape[1]
    is_below = others[:, None, :] < r[:, :, None]  # [B, M, M or R]
    below = is_below.to(r).sum(-1)  # [B, M]
    q = (below + 1) / (count + 2)  # [B, M]
    return n * q ** (n - 1)


def exact_coefficients(r: torch.Tensor, n: int) -> torch.Tensor:
    """(n/M) mean of (r_i - max_S r)^+ over the (n-1)-subsets S of the other samples, for r [B, M] -> [B, M].

    With rewards in ascending order, s_0 <= s_1 <= ..., s_j with j < i is the maximum of C(j, n-2) subsets S that lie
    below i. Because (n/M) / C(M-1, n-1) = 1 / C(M, n), c_i = sum_{j<i} (s_i - s_j) C(j, n-2) / C(M, n)."""
    M = r.shape[1]
    if n == 1:
        return r / M
    s, order = r.sort(dim=1)  # [B, M]
    subsets = comb(M, n)
    share = [comb(j, n - 2) / subsets for j in range(M)]
    share = r.new_tensor(share)  # C(j, n-2) / C(M, n)  [j]
    gap = s[:, :, None] - s[:, None, :]  # s_i - s_j  [B, i, j]
    c = (gap * share).tril(-1).sum(-1)  # [B, M], in sorted order
    return torch.zeros_like(r).scatter(1, order, c)


# The next four functions are copies from cat_passk.py, so that each script stands alone.

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


# ------------------------------------------------------------------------------------------------------------- training

def check_flags(args: flags.Flags) -> None:
    """Check values and combinations that argparse cannot.  Raises UserError."""
    flags.check_common(args, positive=("n", "fifo"), plotted=("mode", "n", "form"))
    if args.mode == "sft" and args.kl_coef:
        raise UserError("--kl-coef needs samples from the policy: use it with --mode rl")
    if args.mode == "sft":
        unused = ["form", "ranks", "fifo", "rewards", "correction"]
        if args.kl_prompts:
            unused.append("kl_prompts")
        flags.refuse(args, unused, "with --mode sft")
        return
    if args.form == "exact" and args.plot_weights:
        raise UserError("--plot-weights plots a weight per rank: in --form exact it depends on the rewards themselves")
    if args.form == "exact" and args.ranks != "prompt":
        raise UserError(f"--form exact compares samples of one prompt: it cannot use --ranks {args.ranks}")
    if args.ranks == "prompt":
        flags.refuse(args, ["fifo"], "without --ranks fifo or past")
    if args.rewards == "raw":
        flags.refuse(args, ["correction"], "with --rewards raw")
    if args.form == "exact" and args.samples < args.n:
        raise UserError(f"--form exact needs at least --n {args.n} samples per prompt, not --samples {args.samples}")


def plot_weights(args: flags.Flags) -> None:
    """--plot-weights: plot the training weight next to the weights of the test budgets --test-n: in rl the rank weight
    as a function of q, in sft the weight of Pass@N as a function of p."""
    folder = new_folder(args.out, "cat_bon-weights")
    cells = torch.arange(1000, dtype=torch.float64)
    x = (cells + 0.5) / 1000
    budgets = flags.numbers(args.test_n, int, "--test-n")
    if args.mode == "sft":
        tests = {f"Pass@{n}": passn_weight(x, n, "log") for n in budgets}
        w = passn_weight(x, args.n, "log")
        trained = f"Pass@{args.n} log", w
        weight_report(trained, tests, folder, "p")
    else:
        tests = {f"best of {n}": n * x ** (n - 1) for n in budgets}
        w = args.n * x ** (args.n - 1)
        trained = f"best of {args.n}", w
        weight_report(trained, tests, folder, "q")


def find_targets(policy: common.Policy, task: Task, problems: list[Problem], samples: int, tau: float,
                 seed: int) -> dict[str, list[int]]:
    """Sample the policy -> {problem id: token ids of the best of `samples` completions}, the first one in a tie."""
    targets = {}
    for first in range(0, len(problems), 256):  # 256 problems at a time
        block = problems[first:first + 256]
        questions = [p.prompt for p in block]
        prompts = policy.encode(questions, task.chat)
        seeds = [common.seed_of("target", seed, p.id) for p in block]
        drawn = common.sample(policy, prompts, samples, seeds, tau, task.max_new_tokens)
        drawn = drawn.lists()  # [P][samples], lists of token ids
        y = [row for rows in drawn for row in rows]
        texts = policy.texts(y, prompts)
        owners = [p for p in block for _ in range(samples)]
        rewards = processes.rewards(task, owners, texts)
        rewards = rewards.view(-1, samples).tolist()
        for p, r, rows in zip(block, rewards, drawn):
            best = r.index(max(r))
            targets[p.id] = rows[best]
    return targets


def targets_of(folder: Folder, policy: common.Policy, task: Task, problems: list[Problem]) -> dict[str, list[int]]:
    """SFT targets, sampled from the starting policy and kept in targets.json for --resume.  Raises UserError."""
    args = folder.args
    golds = processes.on_first(lambda: folder.read("targets.json"))
    if golds is None and folder.step:
        raise UserError(f"{folder.path('targets.json')} is damaged, and the policy that sampled the targets has been "
                        "trained since: begin a new run")
    if golds is None:
        golds = find_targets(policy, task, problems, args.samples, args.temperature, args.seed)
        write_atomic(folder.path("targets.json"), to_json(golds))
    return golds


def step_sft(policy: common.Policy, task: Task, optimizer: torch.optim.Optimizer, problems: list[Problem], number: int,
             args: flags.Flags, golds: dict[str, list[int]]) -> tuple[dict, list[dict]]:
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
        part_loss = passn_sft_loss(logp, args.n).sum() / B
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
    metrics |= weight_stats(passn_weight(p, args.n, "log"), "w")
    metrics["grad_norm"] = norm
    took = time.time() - started
    metrics["samples_per_s"] = len(y) / took
    return metrics, examples(policy, problems, prompts, y, logp=gold_logp)


def step_rl(policy: common.Policy, task: Task, optimizer: torch.optim.Optimizer, problems: list[Problem], number: int,
            args: flags.Flags, recent: list[float]) -> tuple[dict, list[dict], list[float]]:
    """Run training step `number` (1, 2, ...) on samples for B problems -> (metrics by the keys of METRICS in
    support/run.py, examples to print, `recent` with this step's rewards, for the next step)."""
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
    past = recent
    if args.ranks != "prompt":
        seen = past + rewards.flatten().tolist()
        recent = seen[-args.fifo:]
    ranked_among = {"prompt": None, "past": past, "fifo": recent}[args.ranks]
    pool = recent if args.ranks == "fifo" else None  # rewards to standardise by
    standardised = args.rewards == "standardised"
    coefficients = rl_coefficients(  # [B, M]
        rewards, args.n, args.form, ranked_among, standardised, pool, args.correction)
    w = M * coefficients  # for the log only; in the exact form the weight is not separate from the reward
    if args.form == "rank":
        w = rank_weight(rewards, args.n, ranked_among)  # [B, M]
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
    return metrics, examples(policy, problems, prompts, y, reward=rewards), recent


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
    folder = Folder("cat_bon", parser(), argv)
    args = folder.args
    check_flags(args)
    if args.plot_weights:
        return plot_weights(args)
    task, policy, optimizer, problems = set_up(folder, "peptide", args.mode)
    train = problems.train
    run = Run(folder, task, policy, optimizer, problems, budget=args.n)
    start(run, f"{args.mode} for the best of {args.n}")
    golds = targets_of(folder, policy, task, train) if args.mode == "sft" else None
    evaluate_before(run)
    recent = folder.kept.get("recent", [])  # rewards for --ranks fifo and past, saved for --resume
    for number in range(run.step + 1, args.steps + 1):
        batch = batch_of(train, args.prompts, number, args.seed)
        if args.mode == "sft":
            metrics, shown = step_sft(policy, task, optimizer, batch, number, args, golds)
        else:
            metrics, shown, recent = step_rl(policy, task, optimizer, batch, number, args, recent)
        folder.kept["recent"] = recent
        end_of_step(run, metrics, shown)
    evaluate_after(run)


if __name__ == "__main__":
    main()
