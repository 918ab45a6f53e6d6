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
(1+f)/(1-f); the sign that makes it exact pushes them up (--negatives exact). 4) rl is (M-1)/M times the exact gradient,
because the baseline contains the sample itself.
Differences from the paper: 1) LoRA instead of all weights; 2) M plain samples where the paper draws best-of-N ones and
throws the others away; 3) one on-policy step per batch; 4) KL is in the reward, with a leave-one-out baseline.

    CPU, embedded model:  python bon_rl.py
    a verifier, then v:   python bon_rl.py --fit-verifier --out runs/verifier && python bon_rl.py --variant v --verifier runs/verifier
    GPU, 4-bit LoRA:      python bon_rl.py --model Qwen/Qwen2.5-1.5B-Instruct --task gsm8k --prompts 32 --samples 16 --lr 2e-5
"""
import argparse

import math
from math import comb
import torch
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
            raise ValueError(f"the pool estimate exists for the positive variant and 1 <= n <= samples, not for {variant!r}, n = {n}, {M} samples")
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
