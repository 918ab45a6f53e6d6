"""What the sampling loop and its fast paths share: memory for keys and values, masks, the window of a model."""
import functools
import math
import re

import torch


def window(config):
    """Most tokens that a position of the model looks back on; a row that shares its prompt must lie within it."""
    return getattr(config.get_text_config(), "sliding_window", None) or math.inf


def additive(mask, dtype):
    """A mask [P, L] of zeros and ones as it is added to the attention scores, [P, 1, 1, L]."""
    return ((1 - mask) * torch.finfo(dtype).min).to(dtype)[:, None, None]


def halving(loop):
    """A sampling loop that is run for half of its rows at a time where the memory of a GPU does not hold all: the draws
    are fixed by u, so they stay the same. (The update's micro-batches are not: their estimate leaves half free.)"""
    def run(policy, prompts, u, temperature):
        P, k, _ = u.shape
        try:
            return loop(policy, prompts, u, temperature)
        except RuntimeError as error:  # instantiating a graph, cuBLAS and torch have an error of their own each
            full = isinstance(error, torch.OutOfMemoryError) or re.search("out of memory|ALLOC_FAILED", str(error))
            if not full or P * k == 1:
                raise
        torch.cuda.empty_cache()  # outside of `except`, which holds the frames that hold the memory
        if P > 1:
            halves = [run(policy, prompts[half], u[half], temperature) for half in (slice(P // 2), slice(P // 2, P))]
        else:
            halves = [run(policy, prompts, u[:, half], temperature) for half in (slice(k // 2), slice(k // 2, k))]
        return tuple(torch.cat(pair, 0 if P > 1 else 1) for pair in zip(*halves))
    return run


@functools.cache
def roomy():
    """A layer of transformers' cache that grows in place, with room for a quarter more: the default copies all keys and
    values for every token."""
    from transformers.cache_utils import DynamicLayer

    class Roomy(DynamicLayer):
        def update(self, keys, values, *args, **kwargs):
            self.keys, self.values = (self.longer(*pair) for pair in ((self.keys, keys), (self.values, values)))
            return self.keys, self.values

        @staticmethod
        def longer(old, new):
            (R, H, n, D), m = old.shape, old.shape[2] + new.shape[2]
            if old.stride() != (H * old.stride(1), old.stride(1), D, 1) or old.stride(1) < m * D:  # no room behind it
                old, short = old.new_empty(R, H, m + max(4, m // 4), D)[:, :, :n], old
                old.copy_(short)
            whole = old.as_strided((R, H, m, D), old.stride())
            whole[:, :, n:] = new
            return whole
    return DynamicLayer, Roomy


def make_room(cache):
    """Let the layers of a cache grow in place, those that only append; not where a gradient is wanted."""
    plain, Roomy = roomy()
    for layer in getattr(cache, "layers", ()):
        if type(layer) is plain and layer.get_seq_length():
            layer.__class__ = Roomy
