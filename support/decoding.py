"""Helpers shared by the sampling loop and the fast paths: caches that grow in place, masks, attention windows."""
import functools
import itertools
import math
import re
import sys

import torch


def window(config):
    """Shortest attention window of any layer, in tokens; a row with a shared prompt must fit into it.

    Configs name it sliding_window, window_size, attention_window, attention_chunk_size and more, so every name that
    contains "window" or "chunk" counts, whether the model uses it or not: a limit that is too small only costs time,
    one that is too large gives wrong results."""
    limits = [math.inf]
    for name, value in vars(config.get_text_config()).items():
        if ("window" in name or "chunk" in name) and name != "max_window_layers":
            values = value if isinstance(value, (list, tuple)) else [value]
            limits += [v for v in values if type(v) is int and v > 0]
    return min(limits)


def known_masks(lm):
    """Whether the layers of a model use the attention mask they are given: the model's code creates masks with the
    function of transformers, and no layer stores another mask (as GPT-Neo's local layers do)."""
    code = sys.modules[type(lm).__module__]
    for name, buffer in lm.named_buffers():
        mask = buffer.dtype in (torch.bool, torch.uint8) and buffer.dim() > 1
        if mask and "absmax" not in name:
            return False
    return hasattr(code, "create_causal_mask")


def rope_limit(config):
    """(tokens, kind): the row length up to which rotary positions do not depend on the length of the row. RoPE of kind
    "longrope" or "dynamic" rescales all positions when a row grows longer, which would make the positions in the cache
    and in the rest of the batch wrong. (inf, None) for all other kinds."""
    config = config.get_text_config()
    settings = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    nested = [value for value in settings.values() if isinstance(value, dict)]  # one for each type of layer
    original = "original_max_position_embeddings"
    limit = math.inf, None
    for rope in nested or [settings]:
        kind = rope.get("rope_type") or rope.get("type")
        if kind in ("longrope", "dynamic"):
            most = rope.get(original) or getattr(config, original, None)
            most = most or config.max_position_embeddings
            limit = min(limit, (most, kind))
    return limit


class Rerun:
    """Replaces the cache of a model whose cache cannot be copied to samples. It stores the tokens of the rows so far,
    which are rerun from the start for each new token."""

    def __init__(self, ids):
        self.ids = ids  # [R, L]

    def reorder_cache(self, rows):
        self.ids = self.ids[rows]

    def longer(self, token):
        """Append a token to each row -> the rows [R, L + 1]."""
        self.ids = torch.cat([self.ids, token], 1)
        return self.ids


def batches(rows, prompts, most, pads):
    """Split prompt indices, sorted by prompt length, into batches of at most `most`.  pads: whether prompts of
    different lengths may share a batch."""
    parts = [rows]
    if not pads:
        groups = itertools.groupby(rows, key=lambda b: len(prompts[b]))
        parts = [list(part) for _, part in groups]
    split = []
    for part in parts:
        split += [part[first:first + most] for first in range(0, len(part), most)]
    return split


def recurrent(cache):
    """Whether a cache has recurrent states, which every token changes, besides or instead of keys and values."""
    return any(hasattr(layer, "recurrent_states") for layer in getattr(cache, "layers", ()))


def additive(mask, dtype):
    """Convert a mask [P, L] of zeros and ones to the additive form [P, 1, 1, L] for attention scores."""
    return ((1 - mask) * torch.finfo(dtype).min).to(dtype)[:, None, None]


def halving(loop):
    """Wrap a sampling loop so that it splits its rows in halves when a GPU runs out of memory. The uniform numbers u
    determine the draws, so these stay the same. (Micro-batches of the update are not halved: their estimate leaves half
    of the memory free.)"""
    def run(policy, prompts, u, temperature):
        P, k, _ = u.shape
        try:
            return loop(policy, prompts, u, temperature)
        except RuntimeError as error:
            if not out_of_memory(error) or P * k == 1:
                raise
        torch.cuda.empty_cache()  # outside of `except`, whose traceback keeps tensors alive
        if P > 1:
            half = P // 2
            first = run(policy, prompts[:half], u[:half], temperature)
            second = run(policy, prompts[half:], u[half:], temperature)
            return tuple(map(torch.cat, zip(first, second, strict=True)))
        half = k // 2
        first = run(policy, prompts, u[:, :half], temperature)
        second = run(policy, prompts, u[:, half:], temperature)
        return tuple(torch.cat(pair, 1) for pair in zip(first, second, strict=True))
    return run


def out_of_memory(error):
    """Whether an error means that GPU memory has run out: CUDA graphs, cuBLAS and torch raise different errors."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return re.search("out of memory|ALLOC_FAILED", str(error)) is not None


@functools.cache
def roomy():
    """A cache layer for transformers that grows in place and reserves a quarter more memory than needed. The default
    layer copies all keys and values for every token. -> (the default class, the new class)"""
    from transformers.cache_utils import DynamicLayer

    class Roomy(DynamicLayer):
        def update(self, keys, values, *args, **kwargs):
            self.keys = self.longer(self.keys, keys)
            self.values = self.longer(self.values, values)
            return self.keys, self.values

        @staticmethod
        def longer(old, new):
            R, H, n, D = old.shape
            m = n + new.shape[2]
            head = old.stride(1)  # distance between heads, in elements
            if head < m * D or old.stride() != (H * head, head, D, 1):  # no reserved memory left
                room = m + max(4, m // 4)
                moved = old.new_empty(R, H, room, D)[:, :, :n]
                old = moved.copy_(old)
            whole = old.as_strided((R, H, m, D), old.stride())
            whole[:, :, n:] = new
            return whole
    return DynamicLayer, Roomy


def make_room(cache):
    """Make the append-only layers of a cache grow in place. Not for use with gradients."""
    plain, Roomy = roomy()
    for layer in getattr(cache, "layers", ()):
        if type(layer) is plain and layer.get_seq_length():
            layer.__class__ = Roomy
