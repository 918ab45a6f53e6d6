"""DOC
"""
from math import comb

import torch

# -------------------------------------------------------------------------------------------------- the paper's equations

def bon_weight(rewards, n, form, recent=None):
    """Coefficients c_i of grad log pi(y_i|x) for the best of n samples (sum convention: reward and 1/M are in them).

    rewards  [B, M] tensor: float64 stays float64, integers and booleans become float32
    n        budget that is trained for
    form     "rank"   (n/M) q_i^(n-1) r_i, the paper's: q_i = share of the other samples with a strictly lower reward. A rank
                      weight, not the gradient of E[max]: it changes with a shift of the rewards.
             "exact"  (n/M) mean over (n-1)-subsets S of the others of (r_i - max_S r)^+, at n = 1 r_i / M: its expected sum
                      is grad E[max of n], ties included. Needs M >= n. (Not in the paper; the same number as
                      max over the n-subset minus max without i, averaged over the subsets.)
    recent   "rank" only: list or tensor of rewards that ranks are taken against, instead of the prompt's other samples
    Returns [B, M].  Raises ValueError with one sentence for anything else.
    """
    if form not in ("rank", "exact"):
        raise ValueError(f"unknown form {form!r}: choose rank or exact")
    if rewards.dim() != 2 or rewards.numel() == 0:
        raise ValueError(f"rewards must be [prompts, samples], not of shape {tuple(rewards.shape)}")
    r = rewards if rewards.is_floating_point() else rewards.float()  # [B, M]
    M = r.shape[1]
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise ValueError(f"n must be a whole number of at least 1, not {n!r}")
    if form == "rank":
        if recent is None:
            q = (r[:, None, :] < r[:, :, None]).to(r).sum(-1) / max(1, M - 1)  # [B, M]
        elif len(recent):
            q = (torch.as_tensor(recent, dtype=r.dtype, device=r.device) < r[:, :, None]).to(r).mean(-1)  # [B, M]
        else:
            raise ValueError("recent holds no rewards to rank against")
        return n / M * q ** (n - 1) * r
    if recent is not None:
        raise ValueError("the exact form compares samples of one prompt: it takes no recent rewards")
    if n > M:
        raise ValueError(f"the exact form needs at least n = {n} samples per prompt, not {M}")
    if n == 1:
        return r / M
    # Sorted ascending, r_j with j < i is the maximum of C(j, n-2) subsets S below i; (n/M) / C(M-1,n-1) = 1 / C(M,n).
    s, order = r.sort(dim=1)  # [B, M]
    share = r.new_tensor([comb(j, n - 2) / comb(M, n) for j in range(M)])
    c = ((s[:, :, None] - s[:, None, :]) * share).tril(-1).sum(-1)  # [B, M]
    return torch.zeros_like(r).scatter(1, order, c)
