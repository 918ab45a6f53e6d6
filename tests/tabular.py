"""Exact expectations of estimators on tabular policies, and the figures that docstrings give of them."""
import itertools
import math
import re

import torch

PROMPTS = (0.1, 0.5, 0.9)  # success probabilities of three prompts


def binomial(M, p):
    """P(c right ones among M) for c = 0..M."""
    return [math.comb(M, c) * p ** c * (1 - p) ** (M - c) for c in range(M + 1)]


def rewards_of(counts, M):
    """Rewards [B, M] with so many right ones, first, in each row."""
    return torch.tensor([[1.0] * c + [0.0] * (M - c) for c in counts], dtype=torch.float64)


def on_three_prompts(coefficients, M, together=False):
    """Exact expectation of sum_i c_i grad log pi(y_i) for three prompts solved with the probabilities PROMPTS, each a
    logit of its own, over all counts of right samples (coefficients do not depend on their order) -> [3].
    coefficients(r [B, M]) -> [B, M];  together: they depend on the other prompts of the batch."""
    p = torch.tensor(PROMPTS, dtype=torch.float64)[:, None]
    chance = [binomial(M, x) for x in PROMPTS]
    if not together:
        r = rewards_of(range(M + 1), M)  # [M + 1, M]
        c = coefficients(r)
        sums = torch.stack([(c * (r - x)).sum(1) for x in p])  # d log pi / d logit is 1 - p or -p  [3, M + 1]
        return (torch.tensor(chance, dtype=torch.float64) * sums).sum(1)
    total = torch.zeros(3, dtype=torch.float64)
    for counts in itertools.product(range(M + 1), repeat=3):
        r = rewards_of(counts, M)
        total += math.prod(row[c] for row, c in zip(chance, counts)) * (coefficients(r) * (r - p)).sum(1)
    return total


def slope_on_three_prompts(T):
    """Gradient of sum T(p) over the same prompts in their logits -> [3]."""
    logit = torch.tensor(PROMPTS, dtype=torch.float64).logit().requires_grad_()
    return torch.autograd.grad(sum(T(p) for p in torch.sigmoid(logit)), logit)[0]


def distance(found, exact):
    """(cosine, scale) of an expected estimate against a gradient."""
    return (found @ exact / (found.norm() * exact.norm())).item(), (found.norm() / exact.norm()).item()


def figures(function):
    """{label: (cosine, scale)} of the lines "label  cosine c, scale s" of a docstring."""
    rows = re.findall(r"^ +(\S.*?) +cosine ([-.\d]+), scale ([.\d]+)$", function.__doc__, re.MULTILINE)
    assert rows, function
    return {label: (float(cosine), float(scale)) for label, cosine, scale in rows}


def assert_figures(function, found):
    """The docstring says what is found {label: (cosine, scale)}, to the last digit that it gives."""
    written = figures(function)
    assert written.keys() == found.keys(), written.keys() ^ found.keys()
    for label, pair in found.items():
        for a, b in zip(pair, written[label]):
            assert abs(a - b) < 5.1e-4, (label, pair, written[label])
