"""Train a language model for best-of-N sampling with reinforcement learning (BoN-RL).

Paper: Chow et al. 2024, "Inference-Aware Fine-Tuning for Best-of-N Sampling in Large Language Models", arXiv 2412.15287
(as we read it).
Derivation: docs/bon_rl.md

At test time N samples are drawn and a verifier keeps the one with the highest score. The paper models the distribution
of that sample as a tilted policy (equations 10-11), and training maximises its expected reward:

    pi_bon(y|x) = pi(y|x) exp(lambda_N Q(x, y)) / Z,    Q(x, y) = P_{y'~pi}( s(x, y) >= s(x, y') )
    J(theta) = E_{y ~ pi_bon}[ r(x, y) ]

    --variant
    v        BoN-RL-V: s is a learned verifier (--verifier), r the environment's reward
    s        BoN-RL-S: s = r
    b        BoN-RLB: r in {0, 1} and s = r, so J = 1 - f^N exactly, without the tilt; f is the failure probability
    bp       BoN-RLB(P): the same J with weights on correct samples only
    rl       baseline: mean reward of single samples (N = 1), centred by the mean of the prompt's M samples
    star     baseline: correct samples only (N = 1), as in STaR

Every variant gives each of the M samples of a prompt one detached coefficient c_j, and

    loss = -(1/B) sum_prompts sum_j c_j log pi(y_j|x).

Symbols: B prompts per step, M samples per prompt (--samples), N the test-time budget (--n), s the verifier's score, r
the reward, tau the temperature, beta the KL coefficient, lambda_N the strength of the tilt, chosen so that
KL(pi_bon || pi) equals that of true best-of-N.

Properties of the variants:
1) The derivations use E[grad log pi(y)] = 0 and E[r grad log pi(y)] = grad E[r], with expectations over y ~ pi.
2) v and s keep the gradient of Q. With finite M they have a bias of O(1/M).
3) The tilt of v and s is a poor model of best-of-N on hard prompts with a binary verifier: with f = .99 and N = 128 the
   tilted policy is correct with probability .035, true best-of-128 with .724.
4) b pushes failures down. Because E[(1-r) grad log pi] = -E[r grad log pi], its expectation is (1+f)/(1-f) times the
   exact gradient, so hard prompts dominate: with N = 8 and M = 16 each sample of an all-wrong prompt has c = -12. The
   sign that makes the gradient exact pushes failures up (--negatives exact).
5) rl has (M-1)/M times the exact gradient as its expectation, because the baseline includes the sample itself.
Differences from the paper: 1) LoRA instead of all weights; 2) M plain samples, where the paper draws best-of-N samples
and discards the others; 3) one on-policy step per batch; 4) the KL penalty is part of the reward, with a leave-one-out
baseline. --entropy-coef, an exploration bonus to compare with, is an addition.
With --rollouts, samples come from the distribution q of an inference engine and are weighted by pi / q. A bias remains,
because a coefficient depends on all samples of its prompt; passk_reweighted in ppo_passk.py measures it for pass@k.

    CPU, embedded model:  python bon_rl.py
    a verifier, then v:   python fit_verifier.py --out runs/verifier
                          python bon_rl.py --variant v --verifier runs/verifier
    GPU, 4-bit LoRA:      python bon_rl.py --model Qwen/Qwen2.5-1.5B-Instruct --task gsm8k --lr 2e-5
"""
import argparse

from support import flags


def parser() -> flags.Parser:
    p = flags.parser(__doc__, "bon_rl", samples=16, prompts=32, steps=100)
    p.add_argument("--variant", choices=["v", "s", "b", "bp", "rl", "star"], default="bp",
                   help="objective. v, s: reward of the best of N, selected by --verifier or by the reward itself; bp, "
                        "b: the same for rewards 0 and 1, with weights on correct or on all samples; rl, star: "
                        "baselines that train single samples")
    p.add_argument("--n", type=int, default=8,
                   help="test-time budget: the best of N samples is trained for; for rl and star it is only reported")
    p.add_argument("--negatives", choices=["minus", "exact"], default="minus",
                   help="variant b: sign of the weight of wrong samples. minus pushes them down, which is (1+f)/(1-f) "
                        "times the exact gradient, f the failure probability; exact pushes them up")
    p.add_argument("--estimate", choices=["plugin", "pool"], default="plugin",
                   help="variant bp: estimate f^(N-1) by a power of the observed failure rate (biased), or by counting "
                        "all-wrong subsets of samples (unbiased, needs --samples of at least --n)")
    p.add_argument("--entropy-coef", type=float, default=0.0,
                   help="entropy bonus: weight of the entropy of pi(.|x) in the objective, in units of reward per nat")
    p.add_argument("--verifier",
                   help="folder made by fit_verifier.py, or a sequence classifier with one label (reward model); used "
                        "by variant v, and for best-of-N in the evaluation")
    p.add_argument("--fit-verifier", action=flags.Elsewhere, nargs=0, default=argparse.SUPPRESS,
                   help=argparse.SUPPRESS,
                   const="a verifier is fitted by a separate script: python fit_verifier.py --out DIR")
    return p


if __name__ == "__main__":
    flags.answer(parser().parse_args)  # answer --help and reject bad flags before the slow imports

import math
import time
from math import comb

import torch

import common
import evaluate
from common import kl_coefficients
from support import processes
from support.errors import UserError
from support.folder import Folder
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
from support.verifier import Verifier, load_verifier, verify_scores
from tasks import Problem, Task

# ------------------------------------------------------------------------------------------------ the paper's equations

def lambda_n(n: int) -> float:
    """lambda_N, for which the KL of the tilted policy to pi equals that of best-of-N (for scores without ties); 0.0 at
    N = 1. It solves equation 11 for l:  ((l-1) e^l + 1) / (e^l - 1) - log((e^l - 1) / l) = log N - (N-1)/N.
    Raises ValueError unless n is an integer of at least 1.

    With u = 1 - e^-l the left side equals l/u - 1 - l - log(u/l) = l e^-l / u - 1 + log(l/u), which cannot overflow."""
    if not n >= 1 or n % 1:
        raise ValueError(f"lambda_n needs an integer n of at least 1, not {n}")
    if n == 1:
        return 0.0
    right = math.log(n) - (n - 1) / n
    low = 1.0
    high = 2.0 * n
    for _ in range(100):  # bisection to the last bit: the left side increases with l, like log l - 1
        middle = (low + high) / 2
        u = -math.expm1(-middle)
        left = middle * math.exp(-middle) / u - 1 + math.log(middle / u)
        if left < right:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def bon_rl_coefficients(scores: torch.Tensor, rewards: torch.Tensor, n: int) -> torch.Tensor:
    """Coefficients c_j such that sum_j c_j grad log pi(y_j|x) estimates grad E_{y~pi_bon}[r(y)] for every prompt (sum
    convention).

    scores, rewards  [B, M] tensors, any real numbers
    n                the budget N
    Returns [B, M].  Raises ValueError for other shapes and n < 1.

    With w = softmax(lambda_N Q^), Q^_j = (1/M) sum_l 1{s_j >= s_l}, which counts ties and sample j itself, and
    b = sum_i w_i r_i:

        c_j = w_j (r_j - b) + (lambda_N / M) sum_i w_i (r_i - b) 1{s_i >= s_j}

    Derivation: grad log pi_bon(y) = grad F(y) - E_{y ~ pi_bon}[grad F(y)] with
    grad F(y) = grad log pi(y) + lambda_N E_{y'~pi}[ 1{s(y) >= s(y')} grad log pi(y') ], so that
    grad E_{pi_bon}[r] = E_{pi_bon}[(r - b) grad log pi_bon] = E_{pi_bon}[(r - b) grad F], as E_{pi_bon}[r - b] = 0.
    The samples replace both distributions, with weights w_i for pi_bon and 1/M for pi. The first term of c_j comes from
    grad log pi, the second from the gradient of Q.

    At N = 1, where c_j = (r_j - mean r) / M, this is (M-1)/M times the exact gradient, because the baseline includes
    the sample itself. For N > 1 it is biased by O(1/M). Compared with grad E_{pi_bon}[r] at N = 4, for three
    completions with log pi 1, 0, -1 (up to a constant), scores .1, .7, .4 and rewards 0, 1, 0:
        M = 4   cosine 0.993, scale 0.505
        M = 16  cosine 0.999, scale 0.790
        M = 64  cosine 1.000, scale 0.935
    Compared with the gradient of true best-of-N, 1 - f^N, where s = r, for three prompts solved with probability p =
    .1, .5, .9 (one logit each), N = 4 and M = 8:
        the tilt  cosine 0.951, scale 0.909
    Source: arXiv 2412.15287, equations 10-11.
    """
    if scores.dim() != 2 or scores.shape != rewards.shape:
        raise ValueError("scores and rewards must both be [prompts, samples], not "
                         f"{tuple(scores.shape)} and {tuple(rewards.shape)}")
    r = rewards if rewards.is_floating_point() else rewards.float()  # [B, M]
    lam = lambda_n(n)
    M = r.shape[1]
    wins = (scores[:, :, None] >= scores[:, None, :]).to(r)  # 1{s_i >= s_j}  [B, i, j]
    w = torch.softmax(lam * wins.mean(2), 1)  # wins.mean(2) is Q^  [B, M]
    d = r - r.amin(1, keepdim=True)  # shifting the rewards changes nothing; so equal rewards give exactly 0
    gain = w * (d - (w * d).sum(1, keepdim=True))  # w_i (r_i - b)  [B, M]
    return gain + lam / M * (gain[:, :, None] * wins).sum(1)


def rlb_weights(f: torch.Tensor | float, n: int, variant: str) -> tuple[torch.Tensor | float, torch.Tensor | float]:
    """Weights of correct and of wrong samples, without the factor 1/M, for J = 1 - f^N -> (correct, wrong).

    f        failure probability, number or tensor
    n        the budget N
    variant  "positive"  (N f^{N-1}, 0)                           the exact gradient, N f^{N-1} E[r grad log pi]
             "minus"     (N f^{N-1} / (1-f), -N f^N / (1-f))      (1+f)/(1-f) times the exact gradient
             "exact"     (N f^{N-1} / (1-f), +N f^N / (1-f))      the exact gradient; failures are pushed up
    Raises ValueError for f outside [0, 1], for f = 1 unless "positive" (infinite weights), n < 1, an unknown variant.

    Derivation: with h = grad log pi, E[h] = 0 and E[r h] = grad p = -grad f. So grad J = N f^{N-1} E[r h], and
    E[(1-r) h] = -E[r h] = grad f. Hence minus is N f^{N-1} / (1-f) (1 + f) E[r h], and exact has 1 - f for 1 + f.
    The paper's weights, g+ = N f^{N-1} / (1-f^N) and g- = N f / (1-f), are for best-of-N samples. They convert to plain
    samples by E_bon[r h] = ((1-f^N)/(1-f)) E_pi[r h] and E_bon[(1-r) h] = f^{N-1} E_pi[(1-r) h].
    """
    if variant not in ("positive", "minus", "exact"):
        raise ValueError(f"unknown variant {variant!r}: choose positive, minus or exact")
    if not n >= 1 or n % 1:
        raise ValueError(f"n must be an integer of at least 1, not {n}")
    values = torch.as_tensor(f, dtype=torch.float64)
    if not ((values >= 0) & (values <= 1)).all():
        raise ValueError("f must be a probability")
    if variant != "positive" and (values == 1).any():
        raise ValueError("f must be a probability below 1: at 1 the weights are infinite")
    first = n * f ** (n - 1)  # N f^{N-1} = -dJ/df
    if variant == "positive":
        return first, 0 * first
    sign = -1 if variant == "minus" else 1
    return first / (1 - f), sign * f * first / (1 - f)


def bon_rlb_coefficients(rewards: torch.Tensor, n: int, variant: str, estimate: str = "plugin") -> torch.Tensor:
    """Coefficients c_j of grad log pi(y_j|x) for J = 1 - f^N, from M plain samples per prompt (sum convention).

    rewards   [B, M], 0 or 1
    n         the budget N
    variant   "minus", "exact" or "positive", as in rlb_weights
    estimate  "plugin"  f^ = share of wrong samples, for minus and exact clamped to [1/(2M), 1 - 1/(2M)]; biased
              "pool"    positive only, M >= N: N C(W, N-1) / C(M-1, N-1) replaces N f^{N-1}, where W samples are wrong;
                        the expectation of sum_j c_j grad log pi(y_j) is exactly grad (1 - f^N)
    Returns [B, M].  Raises ValueError for any other input.
    The expected estimates compared with grad J, for three prompts solved with p = .1, .5, .9 (one logit each), N = 4
    and M = 8:
        positive, pool    cosine 1.000, scale 1.000
        positive, plugin  cosine 0.991, scale 0.755
        minus, plugin     cosine 0.982, scale 14.212
        exact, plugin     cosine -0.976, scale 5.775
    exact is exact only if f is known: with f^ its direction reverses. The scale of minus comes from all-wrong prompts.
    """
    if rewards.dim() != 2 or not ((rewards == 0) | (rewards == 1)).all():
        raise ValueError("rewards must be [prompts, samples] of 0 and 1")
    if estimate not in ("plugin", "pool"):
        raise ValueError(f"unknown estimate {estimate!r}: choose plugin or pool")
    r = rewards if rewards.is_floating_point() else rewards.float()  # [B, M]
    M = r.shape[1]
    if estimate == "pool":
        if variant != "positive" or not 1 <= n <= M:
            raise ValueError("the pool estimate needs the positive variant and 1 <= n <= samples, not "
                             f"{variant!r}, n = {n} and {M} samples")
        wrong = (M - r.sum(1)).int().tolist()  # W  [B]
        weight = [n * comb(W, n - 1) / comb(M - 1, n - 1) for W in wrong]
        return r * r.new_tensor(weight)[:, None] / M
    f = 1 - r.mean(1, keepdim=True)  # [B, 1]
    if variant != "positive":
        f = f.clamp(1 / (2 * M), 1 - 1 / (2 * M))  # at f = 1 the weights are infinite
    correct, wrong = rlb_weights(f, n, variant)
    return torch.where(r == 1, correct, wrong) / M


def variant_coefficients(variant: str, rewards: torch.Tensor, scores: torch.Tensor | None, n: int,
                         negatives: str = "minus", estimate: str = "plugin") -> torch.Tensor:
    """Coefficients of a --variant, for rewards [B, M] and scores [B, M] (variant v only) -> [B, M]."""
    if variant == "v":
        return bon_rl_coefficients(scores, rewards, n)
    if variant == "s":
        return bon_rl_coefficients(rewards, rewards, n)
    if variant == "rl":
        return bon_rl_coefficients(rewards, rewards, 1)  # no tilt: (r - mean r) / M
    if variant == "b":
        return bon_rlb_coefficients(rewards, n, negatives)
    if variant == "star":
        return bon_rlb_coefficients(rewards, 1, "positive")  # r / M
    return bon_rlb_coefficients(rewards, n, "positive", estimate)


# ------------------------------------------------------------------------------------------------------------- training

def check_flags(args: flags.Flags) -> None:
    """Check values and combinations that argparse cannot.  Raises UserError."""
    flags.check_common(args, positive=("n",), not_negative=("entropy_coef",))
    if args.variant == "v" and not args.verifier:
        raise UserError("--variant v needs --verifier: make one with fit_verifier.py, or give a reward model with one "
                        "label")
    if args.estimate == "pool" and (args.variant != "bp" or args.n > args.samples):
        raise UserError("--estimate pool needs --variant bp and --samples of at least --n")
    if args.variant != "b":
        flags.refuse(args, ["negatives"], f"with --variant {args.variant}, only with b")
    if args.variant not in ("b", "bp"):
        flags.refuse(args, ["estimate"], f"with --variant {args.variant}, only with b and bp")


def step(policy: common.Policy, task: Task, optimizer: torch.optim.Optimizer, problems: list[Problem], number: int,
         args: flags.Flags, verifier: Verifier | None = None) -> tuple[dict, list[dict]]:
    """Run training step `number` (1, 2, ...) on B problems -> (metrics by the keys of METRICS in support/run.py,
    examples to print)."""
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
    rewards = processes.rewards(task, owners, texts).float().view(B, M)
    scores = None
    if verifier:
        flat_scores = verify_scores(verifier, [p.prompt for p in owners], texts, task.chat)
        scores = torch.tensor(flat_scores).view(B, M)

    # Compute the coefficients.
    coefficients = variant_coefficients(args.variant, rewards, scores, args.n, args.negatives, args.estimate)  # [B, M]
    unused = coefficients == 0
    zero = unused.float().mean().item()
    weights = weight_stats(coefficients, "c")
    gap = None  # log pi - log ref, nats
    if args.kl_coef:
        gap = common.kl_gap(policy, prompts, drawn, tau)  # [B, M]
        kl = kl_coefficients(gap).to(coefficients)
        coefficients = coefficients - args.kl_coef * kl
    elif args.kl_prompts:  # measured for the log only: one sample for each of the first prompts
        measured = args.kl_prompts, 1
        gap = common.kl_gap(policy, prompts, drawn, tau, some=measured)
    if args.entropy_coef:
        logp = drawn.logps.sum(-1).cpu()  # log pi(y|x)  [B, M]
        coefficients = coefficients - args.entropy_coef * kl_coefficients(logp)
    coefficients = coefficients * drawn.weights  # pi / q if an inference engine sampled from q (--rollouts), else 1

    # Update.
    loss, norm = update(policy, optimizer, prompts, y, coefficients, args)

    metrics = {"loss": loss}
    metrics |= sample_stats(policy, task, drawn, rewards, args.n, gap, seconds)
    metrics["zero"] = zero
    metrics |= weights
    metrics["grad_norm"] = norm
    answers = [task.extract(text) for text in texts]
    metrics["diversity"] = evaluate.mean_diversity(texts, answers, M)
    took = time.time() - started
    metrics["samples_per_s"] = len(y) / took
    if verifier:
        metrics |= verifier_stats(scores, rewards, min(args.n, M))  # at most the M samples of this step
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


def verifier_stats(scores: torch.Tensor, rewards: torch.Tensor, n: int) -> dict[str, float | None]:
    """Signs of reward hacking, for scores and rewards [B, M]: the verifier's mean score of wrong samples, and best-of-n
    reward when the verifier selects minus when the reward selects (at most 0)."""
    wrong = scores[rewards != 1]
    gap = 0.0
    for s, r in zip(scores.tolist(), rewards.tolist()):
        gap += common.bon_at_k(s, r, n) - common.bon_at_k(r, r, n)
    mean = wrong.mean().item() if len(wrong) else None
    return {"score_wrong": mean, "bon_gap": gap / len(scores)}


@flags.cli
def main(argv: list[str] | None = None) -> None:
    folder = Folder("bon_rl", parser(), argv)
    args = folder.args
    check_flags(args)
    binary = args.variant in ("b", "bp", "star")  # these need rewards 0 and 1
    task, policy, optimizer, problems = set_up(folder, "countdown", args.variant, binary)
    verifier = load_verifier(args.verifier, args.bits, device=args.device) if args.verifier else None
    run = Run(folder, task, policy, optimizer, problems, budget=args.n, verifier=verifier)
    start(run, f"variant {args.variant}, N {args.n}, M {args.samples}")
    evaluate_before(run)
    for number in range(run.step + 1, args.steps + 1):
        batch = batch_of(problems.train, args.prompts, number, args.seed)
        metrics, shown = step(policy, task, optimizer, batch, number, args, verifier)
        end_of_step(run, metrics, shown)
    evaluate_after(run)


if __name__ == "__main__":
    main()
