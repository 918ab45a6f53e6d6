"""DOC
"""
import math

import common
import torch
from collections import Counter

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
    """log of the SFT weight k C(n,k) p^k (1-p)^(n-k) / B, and log(B / p^k). p^k is divided out of both: in float32 its
    logarithm would swamp what is left, and in probabilities it would underflow."""
    tail = torch.logsumexp(log_terms(list(range(k, n + 1)), k, logp, logf, n), -1)
    return math.log(k) + log_terms([k], k, logp, logf, n)[..., 0] - tail, tail


def majority_sft_loss(logp, n, k):
    """-log B with B = P(Bin(n, p) >= k) and p = e^logp, the probability of the whole gold completion: the target gets at
    least k of n votes. Any shape, tensor or float. Its gradient with respect to logp is minus the SFT weight
    k C(n,k) p^k (1-p)^(n-k) / B (equation 7; the paper's Table 1 lacks the factor k/B): never weigh this loss again.
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
        log_b = k * x + tail
        # B close to 1: log(1 - P(fewer than k votes)), or nothing would be left of the difference
        rest = torch.logsumexp(log_terms(list(range(k)), 0, x, f, n), -1)
        log_b = torch.where(log_b > -math.log(2), log1mexp(rest), log_b)
    # the value, with the closed-form weight as its gradient: autograd through the logsumexp cancels where B is close to 1
    path = logp.clamp(min=-1e30)
    return back(-log_b - weight.exp() * (path - path.detach()))


def majority_weight(p, n, k, form):
    """Weight of the majority operator B(p) = P(Bin(n, p) >= k) at success probability p; any shape, tensor or float.
    "raw"  B'(p) = n C(n-1,k-1) p^(k-1) (1-p)^(n-k): r * raw * grad log pi has the expectation grad B
    "log"  p B'(p) / B(p) = k C(n,k) p^k (1-p)^(n-k) / B, the SFT weight; with r * grad log pi its expectation is
           p grad log B: the exact weight for log B would lack the factor p
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
