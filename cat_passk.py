"""DOC
"""
import argparse
import math

import torch

# -------------------------------------------------------------------------------------------------- the paper's equations

def log1mexp(x):
    """log(1 - e^x) for x < 0, value and gradient: each branch of a `where` needs an input that is safe for it, because a
    NaN of the branch not taken would reach the gradient."""
    near = x > -math.log(2)
    return torch.where(near, torch.log(-torch.expm1(torch.where(near, x, -1.0))),
                       torch.log1p(-torch.exp(torch.where(near, -1.0, x))))


def as_tensor(value, low, high, name):
    """-> (float tensor, function that gives results the type of `value`).  Raises ValueError outside [low, high]."""
    tensor = torch.as_tensor(value, dtype=None if torch.is_tensor(value) else torch.float64)
    tensor = tensor if tensor.is_floating_point() else tensor.float()
    if ((tensor < low) | (tensor > high)).any():
        raise ValueError(f"{name} must lie between {low} and {high}")
    return tensor, (lambda t: t.to(tensor.dtype)) if torch.is_tensor(value) else float


def check_budget(n, name="n"):
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, not {n!r}")


def passn_sft_loss(logp, n):
    """-log(1 - (1-p)^n) with p = e^logp, the probability of the whole gold completion; any shape, tensor or float.

    Its gradient with respect to logp is -n p (1-p)^(n-1) / (1 - (1-p)^n), the SFT weight: never weigh this loss again.
    n = 1 is -logp. Equations: T(p) = 1 - (1-p)^n is the Pass@N operator, SFT maximises log T(p).
    A logp of up to 1e-3 counts as rounding of 0; NaN passes through.  Raises ValueError for more, and for n < 1.
    """
    check_budget(n)
    logp, back = as_tensor(logp, -math.inf, 1e-3, "logp")
    if n == 1:
        return back(-logp)
    x = logp.clamp(max=-1e-30)
    # 1 - (1-p)^n = n p (1 - (n-1) p / 2 + ...): below e^-60 the first term is exact, and e^logp soon underflows
    small = x < -60
    regular = log1mexp(n * log1mexp(torch.where(small, -1.0, x)))
    return back(-torch.where(small, x + math.log(n), regular))


def passn_weight(p, n, form):
    """Weight of the Pass@N operator at success probability p; any shape, tensor or float.
    "raw"  T'(p) = n (1-p)^(n-1): r * raw * grad log pi has the expectation grad T(p)
    "log"  p T'(p) / T(p), the SFT weight; the expectation of r * log * grad log pi is p grad log T(p): the exact weight
           for log T would lack the factor p
    Raises ValueError for p outside [0, 1], n < 1 or another form."""
    if form not in ("raw", "log"):
        raise ValueError(f"unknown form {form!r}: choose raw or log")
    check_budget(n)
    p, back = as_tensor(p, 0, 1, "p")
    f = 1 - p
    raw = n * f ** (n - 1)
    # T(p) / p = sum_{j<n} f^j: no 0/0 at p = 0, where the weight is 1
    return back(raw if form == "raw" else raw / powers(f, n))


def powers(f, n):
    """sum_{j<n} f^j, by doubling."""
    if n == 1:
        return torch.ones_like(f)
    total = powers(f, n // 2) * (1 + f ** (n // 2))
    return total + f ** (n - 1) if n % 2 else total


def pool_weight(c, m, n):
    """n C(m-c, n-1) / C(m-1, n-1): weight of each of the c right ones of m samples such that
    E[(c/m) pool_weight] = p n (1-p)^(n-1) for every p. The plug-in p = c/m in n (1-p)^(n-1) is badly biased.
    c: whole numbers, tensor of any shape or int.  Raises ValueError unless 1 <= n <= m and 0 <= c <= m."""
    check_budget(n)
    check_budget(m, "m")
    if n > m:
        raise ValueError(f"the pool form needs at least n = {n} samples per prompt, not {m}")
    count, back = as_tensor(c, 0, m, "c")
    if (count != count.round()).any():
        raise ValueError("c counts samples: it must be whole")
    table = [n * math.comb(m - i, n - 1) / math.comb(m - 1, n - 1) for i in range(m + 1)]
    return back(torch.tensor(table, dtype=count.dtype, device=count.device)[count.long()])


def operator_weight(T, p):
    """p T'(p) / T(p) by autograd, the SFT weight of any inference strategy given as an operator T on a tensor of
    probabilities; any shape, tensor or float. At p = 0 the limit, to about 1e-6 (it is taken at p = 1e-6).
    Raises ValueError for p outside [0, 1] or where T is not positive."""
    p, back = as_tensor(p, 0, 1, "p")
    with torch.enable_grad():
        x = torch.where(p == 0, 1e-6, p.detach().double()).requires_grad_()
        value = T(x)
        if not (value > 0).all():
            raise ValueError("the operator must be positive for p > 0")
        slope, = torch.autograd.grad(value.sum(), x)
    return back((x * slope / value).detach())
