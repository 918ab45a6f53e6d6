"""Train a language model for best-of-N sampling with supervised fine-tuning (BoN-SFT).

Paper: Chow et al. 2024, "Inference-Aware Fine-Tuning for Best-of-N Sampling in Large Language Models", arXiv 2412.15287
(as we read it).
Derivation: docs/bon_sft.md

At test time N samples are drawn and a verifier keeps the one with the highest score. The paper models the distribution
of that sample as a tilted policy (equations 10-11), and training maximises the log-likelihood of the gold completion y*
under it:

    pi_bon(y|x) = pi(y|x) exp(lambda_N Q(x, y)) / Z,    Q(x, y) = P_{y'~pi}( s(x, y) >= s(x, y') )
    J(theta) = E_{(x, y*) ~ D}[ log pi_bon(y*|x) ]

    grad log pi_bon(y*) = grad F(y*) - E_{y ~ pi_bon}[ grad F(y) ],
    grad F(y) = grad log pi(y) + lambda_N E_{y'~pi}[ 1{s(y) >= s(y')} grad log pi(y') ]

M samples from the policy estimate the expectations. The gold completion gets the coefficient 1 and sample j a detached
coefficient c_j (bon_sft_coefficients):

    loss = -(1/B) sum_prompts [ log pi(y*|x) + sum_j c_j log pi(y_j|x) ].

With N = 1 nothing is sampled: this is plain supervised fine-tuning, the baseline. BoN-SFT helps where plain fine-tuning
becomes overconfident: few gold completions (--train-problems), many epochs. The default run is built to show that: 200
gold completions, 32 epochs, and tiny_hasty, a base that stops too early (models/make_tiny.py).

Symbols: B prompts per step, M samples per prompt (--samples), N the test-time budget (--n), s the verifier's score
(--scores: the environment's reward or a learned verifier), tau the temperature, lambda_N the strength of the tilt,
chosen so that KL(pi_bon || pi) equals that of true best-of-N.

Limitations: with finite M the estimate has a bias of O(1/M). The tilt is a poor model of best-of-N on hard prompts with
a binary verifier: with failure rate f = .99 and N = 128 the tilted policy is correct with probability .035, true
best-of-128 with .724.
Q depends on the policy, so it has a gradient, which is kept: dropping it loses about 20 % of the gradient at N = 2 and
80 % at N = 32 (by enumeration of small cases).
Differences from the paper: 1) LoRA instead of all weights; 2) the same M samples estimate both expectations.
With --rollouts, samples come from the distribution q of an inference engine and are weighted by pi / q. A bias remains,
because a coefficient depends on all samples of its prompt; passk_reweighted in ppo_passk.py measures it for pass@k.

    CPU, embedded model:  python bon_sft.py
    plain fine-tuning:    python bon_sft.py --n 1
    GPU, 4-bit LoRA:      python bon_sft.py --model Qwen/Qwen2.5-1.5B-Instruct --task gsm8k --train-problems 0 --lr 2e-5
"""
from support import flags


def parser() -> flags.Parser:
    p = flags.parser(__doc__, "bon_sft", samples=8, prompts=64, steps=100, train_problems=200, kl=False)
    p.add_argument("--n", type=int, default=16,
                   help="test-time budget: the best of N samples is trained for; 1 = plain supervised fine-tuning, "
                        "which draws no samples")
    p.add_argument("--scores", choices=["reward", "verifier"], default="reward",
                   help="score by which best-of-N selects: the task's reward, or --verifier")
    p.add_argument("--verifier",
                   help="folder made by fit_verifier.py, or a sequence classifier with one label (reward model); used "
                        "by --scores verifier, and for best-of-N in the evaluation")
    return p


if __name__ == "__main__":
    flags.answer(parser().parse_args)  # answer --help and reject bad flags before the slow imports

import math
import time

import torch

import common
import evaluate
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
    gold_completions,
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


def bon_sft_coefficients(sample_scores: torch.Tensor, gold_scores: torch.Tensor,
                         n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Coefficients of grad log pi(y*|x) and of grad log pi(y_j|x) for M samples. Their weighted sum estimates
    grad log pi_bon(y*|x) for every prompt (sum convention).

    sample_scores  [B, M], any real numbers
    gold_scores    [B]
    n              the budget N
    Returns (gold coefficients [B], sample coefficients [B, M]).  Raises ValueError for other shapes and n < 1.

    The gold completion gets 1. With w = softmax(lambda_N Q^) and Q^_j = (1/M) sum_l 1{s_j >= s_l}, which counts ties
    and sample j itself, sample j gets

        c_j = (lambda_N / M) 1{s* >= s_j} - w_j - (lambda_N / M) sum_i w_i 1{s_i >= s_j}

    The first term is lambda_N grad Q(y*), with the samples as y'. The other two are the normaliser,
    E_{y ~ pi_bon}[grad F(y)], with w_i in place of pi_bon: grad F(y_i) consists of grad log pi(y_i) and the gradient of
    Q(y_i). At N = 1 the formula gives -1/M on every sample, zero in expectation because E[grad log pi] = 0. This
    function returns zeros there, so that N = 1 is plain supervised fine-tuning.
    Biased by O(1/M) for N > 1. Compared with grad log pi_bon at N = 4, for three completions with log pi 1, 0, -1 (up
    to a constant) and scores .1, .7, .4, the second one gold:
        M = 4   cosine 0.995, scale 0.930
        M = 16  cosine 1.000, scale 1.001
        M = 64  cosine 1.000, scale 1.004
    Source: arXiv 2412.15287, equations 10-11.
    """
    if sample_scores.dim() != 2 or gold_scores.shape != sample_scores.shape[:1]:
        raise ValueError("scores must be [prompts, samples] and [prompts], not "
                         f"{tuple(sample_scores.shape)} and {tuple(gold_scores.shape)}")
    s = sample_scores if sample_scores.is_floating_point() else sample_scores.float()  # [B, M]
    target = gold_scores if gold_scores.is_floating_point() else gold_scores.float()  # s*  [B]
    if n == 1:
        return torch.ones_like(target), torch.zeros_like(s)
    lam = lambda_n(n)
    M = s.shape[1]
    wins = (s[:, :, None] >= s[:, None, :]).to(s)  # 1{s_i >= s_j}  [B, i, j]
    w = torch.softmax(lam * wins.mean(2), 1)  # wins.mean(2) is Q^  [B, M]
    beaten = (target[:, None] >= s).to(s)  # 1{s* >= s_j}  [B, M]
    gold_term = lam / M * beaten
    expected_wins = (w[:, :, None] * wins).sum(1)  # sum_i w_i 1{s_i >= s_j}  [B, M]
    normaliser_term = lam / M * expected_wins
    return torch.ones_like(target), gold_term - w - normaliser_term


def sft_coefficients(scores: torch.Tensor, n: int) -> torch.Tensor:
    """bon_sft_coefficients for scores in one tensor, the gold completion first: [B, 1 + M] -> coefficients [B, 1 + M].
    Raises ValueError as bon_sft_coefficients does."""
    gold_scores = scores[:, 0]
    sample_scores = scores[:, 1:]
    gold, samples = bon_sft_coefficients(sample_scores, gold_scores, n)
    gold = gold[:, None]
    return torch.cat([gold, samples], 1)


def gold_first(golds: list, samples: list) -> list:
    """B gold completions and B M samples -> B (1 + M), each gold completion followed by its M samples."""
    M = len(samples) // len(golds)
    merged = []
    for b, gold in enumerate(golds):
        first = b * M
        merged.append(gold)
        merged += samples[first:first + M]
    return merged


# ------------------------------------------------------------------------------------------------------------- training

def check_flags(args: flags.Flags) -> None:
    """Check values and combinations that argparse cannot.  Raises UserError."""
    flags.check_common(args, positive=("n",))
    if args.n == 1:
        flags.refuse(args, ["samples", "scores"], "with --n 1, which draws no samples")
    if args.scores == "verifier" and not args.verifier:
        raise UserError("--scores verifier needs --verifier: make one with fit_verifier.py, or give a reward model "
                        "with one label")


def step(policy: common.Policy, task: Task, optimizer: torch.optim.Optimizer, problems: list[Problem], number: int,
         args: flags.Flags, golds: dict[str, list[int]], verifier: Verifier | None = None) -> tuple[dict, list[dict]]:
    """Run training step `number` (1, 2, ...) on B problems, N > 1 -> (metrics by the keys of METRICS in support/run.py,
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
    sampled = [row for rows in drawn.lists() for row in rows]  # B M
    gold_ids = [golds[p.id] for p in problems]  # B
    y = gold_first(gold_ids, sampled)  # B (1 + M), each gold completion followed by its samples
    seconds = time.time() - started

    # Verify gold completions and samples alike.
    sample_texts = policy.texts(sampled, prompts)
    texts = gold_first([p.solution for p in problems], sample_texts)
    owners = [p for p in problems for _ in range(1 + M)]  # B (1 + M), the problem of each text
    rewards = processes.rewards(task, owners, texts)
    rewards = rewards.float().view(B, 1 + M)
    scores = rewards
    if args.scores == "verifier":
        flat_scores = verify_scores(verifier, [p.prompt for p in owners], texts, task.chat)
        scores = torch.tensor(flat_scores).view(B, 1 + M)

    # Compute the coefficients.
    coefficients = sft_coefficients(scores, args.n)  # [B, 1 + M]
    coefficients[:, 1:] *= drawn.weights  # pi / q if an inference engine sampled from q (--rollouts), else 1

    # Update. Samples with coefficient 0 never enter a forward pass; the mean is over all prompts.
    loss = 0.0
    logp = torch.zeros(B * (1 + M), dtype=torch.float64)  # log pi(y|x)
    optimizer.zero_grad()
    for j, logps, _ in common.score_weighted(policy, prompts, y, coefficients, tau):  # [R], [R, T]
        total = logps.sum(-1)  # log pi(y|x)  [R]
        c = coefficients.flatten()[j].to(total)
        part_loss = -(c * total).sum() / B
        part_loss.backward()
        loss += part_loss.detach()
        logp[j] = total.detach().double().cpu()
    norm = processes.clip_gradient(policy.parameters(), args.max_grad_norm)
    optimizer.step()

    metrics = {"loss": processes.all_reduce(float(loss))}
    logp = processes.all_reduce(logp).view(B, 1 + M)
    metrics["gold"] = logp[:, 0].mean().item()
    metrics["zero"] = (coefficients == 0).float().mean().item()
    metrics["grad_norm"] = norm
    took = time.time() - started
    metrics["samples_per_s"] = len(y) / took
    sample_rewards = rewards[:, 1:]  # [B, M]
    metrics |= sample_stats(policy, task, drawn, sample_rewards, args.n, None, seconds)
    metrics |= weight_stats(coefficients[:, 1:], "c")
    answers = [task.extract(text) for text in sample_texts]
    metrics["diversity"] = evaluate.mean_diversity(sample_texts, answers, M)
    return metrics, examples(policy, problems, prompts, sampled, gold=True, reward=sample_rewards)


def step_plain(policy: common.Policy, task: Task, optimizer: torch.optim.Optimizer, problems: list[Problem],
               number: int, args: flags.Flags, golds: dict[str, list[int]]) -> tuple[dict, list[dict]]:
    """`step` for N = 1, plain supervised fine-tuning: no samples, and coefficient 1 for every gold completion."""
    B = len(problems)
    common.set_rate(optimizer, args.lr, number, args.steps)
    started = time.time()
    questions = [p.prompt for p in problems]
    prompts = policy.encode(questions, task.chat)
    y = [golds[p.id] for p in problems]

    # Update.
    loss = 0.0
    logp = torch.zeros(B, dtype=torch.float64)  # log pi(y*|x)
    optimizer.zero_grad()
    for j, logps, _ in common.score_share(policy, prompts, y, args.temperature):  # [R], [R, T]
        total = logps.sum(-1)  # log pi(y*|x)  [R]
        part_loss = -total.sum() / B
        part_loss.backward()
        loss += part_loss.detach()
        logp[j] = total.detach().double().cpu()
    norm = processes.clip_gradient(policy.parameters(), args.max_grad_norm)
    optimizer.step()

    logp = processes.all_reduce(logp)
    metrics = {"loss": processes.all_reduce(float(loss))}
    metrics["gold"] = logp.mean().item()
    metrics["zero"] = 0.0
    metrics["length"] = sum(map(len, y)) / B
    metrics["grad_norm"] = norm
    took = time.time() - started
    metrics["samples_per_s"] = len(y) / took
    return metrics, examples(policy, problems, prompts, y, logp=logp)


@flags.cli
def main(argv: list[str] | None = None) -> None:
    folder = Folder("bon_sft", parser(), argv)
    args = folder.args
    check_flags(args)
    task, policy, optimizer, problems = set_up(folder, "countdown", args.n, base="tiny_hasty")
    verifier = load_verifier(args.verifier, args.bits, device=args.device) if args.verifier else None
    train, golds = gold_completions(policy, task, problems.train, longest=task.max_new_tokens)
    run = Run(folder, task, policy, optimizer, problems, budget=args.n, verifier=verifier)
    start(run, f"N {args.n}, M {args.samples}, {len(train)} gold solutions")
    evaluate_before(run)
    for number in range(run.step + 1, args.steps + 1):
        batch = batch_of(train, args.prompts, number, args.seed)
        if args.n == 1:
            metrics, shown = step_plain(policy, task, optimizer, batch, number, args, golds)
        else:
            metrics, shown = step(policy, task, optimizer, batch, number, args, golds, verifier)
        end_of_step(run, metrics, shown)
    evaluate_after(run)


if __name__ == "__main__":
    main()
