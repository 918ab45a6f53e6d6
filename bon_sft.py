"""d"""
import math
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


def bon_sft_coefficients(sample_scores, gold_scores, n):
    """Coefficients of grad log pi on the gold completion and on M samples, whose sum estimates grad log pi_bon(y*|x) for
    every prompt (sum convention) -> (gold [B], samples [B, M]).

    sample_scores [B, M], gold_scores [B]: any real numbers; n: the budget N.  1 on the gold completion, and on sample j,
    with w = softmax(lambda_N Q^) and Q^_j = (1/M) sum_l 1{s_j >= s_l},

        c_j = (lambda_N / M) 1{s* >= s_j} - w_j - (lambda_N / M) sum_i w_i 1{s_i >= s_j}

    The terms with lambda_N / M are the gradient of Q (of the gold one, and of the samples that make up the normaliser).
    At N = 1 this would be -1/M on every sample, zero in expectation: it is exactly zero here, so that N = 1 is plain
    supervised fine-tuning. Biased by O(1/M) for N > 1.  Raises ValueError for other shapes and n < 1.
    Source: arXiv 2412.15287, equations 10-11.
    """
    if sample_scores.dim() != 2 or gold_scores.shape != sample_scores.shape[:1]:
        raise ValueError(f"scores must be [prompts, samples] and [prompts], not {tuple(sample_scores.shape)} and {tuple(gold_scores.shape)}")
    s, gold = (x if x.is_floating_point() else x.float() for x in (sample_scores, gold_scores))  # [B, M], [B]
    lam, M = lambda_n(n), s.shape[1]
    if n == 1:
        return torch.ones_like(gold), torch.zeros_like(s)
    beats = (s[:, :, None] >= s[:, None, :]).to(s)  # 1{s_i >= s_j}  [B, i, j]
    w = torch.softmax(lam * beats.mean(2), 1)  # [B, M]
    c = lam / M * (gold[:, None] >= s).to(s) - w - lam / M * (w[:, :, None] * beats).sum(1)
    return torch.ones_like(gold), c
