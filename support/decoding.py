"""What the sampling loop and its fast paths share: memory for keys and values, masks, the window of a model."""
import functools
import itertools
import math
import re
import sys

import torch


def window(config):
    """The shortest attention window of a layer, in tokens; a row with a shared prompt must fit into it.

    Configs call it sliding_window, window_size, attention_window, attention_chunk_size and more, so every name with
    "window" or "chunk" in it counts, whether the model uses it or not: too small a limit costs time, too large a one is
    wrong."""
    limits = [math.inf]
    for name, value in vars(config.get_text_config()).items():
        if ("window" in name or "chunk" in name) and name != "max_window_layers":
            values = value if isinstance(value, (list, tuple)) else [value]
            limits += [v for v in values if type(v) is int and v > 0]
    return min(limits)


def known_masks(lm):
    """Whether the layers of a model attend by the mask that they are given: its code makes masks by transformers' own
    function, and no layer keeps a mask of its own (GPT-Neo's local layers do)."""
    code = sys.modules[type(lm).__module__]
    for name, buffer in lm.named_buffers():
        mask = buffer.dtype in (torch.bool, torch.uint8) and buffer.dim() > 1
        if mask and "absmax" not in name:
            return False
    return hasattr(code, "create_causal_mask")


def rope_limit(config):
    """(tokens, kind): up to this length the rotary positions of a model do not depend on the length of the row. Kinds
    "longrope" and "dynamic" rescale all positions when a row grows longer, so its cache and the rest of its batch would
    have wrong positions. (inf, None) for all other kinds."""
    config = config.get_text_config()
    found = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    nested = [value for value in found.values() if isinstance(value, dict)]  # one for each type of layer
    original = "original_max_position_embeddings"
    limit = math.inf, None
    for rope in nested or [found]:
        kind = rope.get("rope_type") or rope.get("type")
        if kind in ("longrope", "dynamic"):
            most = rope.get(original) or getattr(config, original, None)
            most = most or config.max_position_embeddings
            limit = min(limit, (most, kind))
    return limit


class Rerun:
    """Replaces the cache of a model whose cache cannot be copied to samples: the tokens of the rows so far, which are
    rerun from the start for each new token."""

    def __init__(self, ids):
        self.ids = ids  # [R, L]

    def reorder_cache(self, rows):
        self.ids = self.ids[rows]

    def longer(self, token):
        """The rows with a token more, [R, L + 1]."""
        self.ids = torch.cat([self.ids, token], 1)
        return self.ids


def batches(rows, prompts, most, pads):
    """Split indices of prompts, sorted by length, into lists of at most `most`; if the model does not pad, of one
    length each."""
    parts = [rows]
    if not pads:
        groups = itertools.groupby(rows, key=lambda b: len(prompts[b]))
        parts = [list(part) for _, part in groups]
    found = []
    for part in parts:
        found += [part[first:first + most] for first in range(0, len(part), most)]
    return found


def recurrent(cache):
    """Whether layers of a cache keep states that each token changes, beside or in place of keys and values."""
    return any(hasattr(layer, "recurrent_states") for layer in getattr(cache, "layers", ()))


def additive(mask, dtype):
    """A mask [P, L] of zeros and ones as it is added to the attention scores, [P, 1, 1, L]."""
    return ((1 - mask) * torch.finfo(dtype).min).to(dtype)[:, None, None]


def halving(loop):
    """Wrap a sampling loop so that it runs on half of its rows at a time if the memory of a GPU does not hold all: the
    draws are fixed by u, so they stay the same. (The update's micro-batches are not halved: their estimate leaves half
    of the memory free.)"""
    def run(policy, prompts, u, temperature):
        P, k, _ = u.shape
        try:
            return loop(policy, prompts, u, temperature)
        except RuntimeError as error:
            if not out_of_memory(error) or P * k == 1:
                raise
        torch.cuda.empty_cache()  # outside of `except`, which holds the frames that hold the memory
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
    """Whether memory has run out: graphs, cuBLAS and torch each raise another error for it."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return re.search("out of memory|ALLOC_FAILED", str(error)) is not None


@functools.cache
def roomy():
    """A layer of transformers' cache that grows in place, with room for a quarter more: the default copies all keys and
    values for every token."""
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
            head = old.stride(1)  # numbers from one head to the next
            if head < m * D or old.stride() != (H * head, head, D, 1):  # no room behind it
                room = m + max(4, m // 4)
                moved = old.new_empty(R, H, room, D)[:, :, :n]
                old = moved.copy_(old)
            whole = old.as_strided((R, H, m, D), old.stride())
            whole[:, :, n:] = new
            return whole
    return DynamicLayer, Roomy


def make_room(cache):
    """Let the append-only layers of a cache grow in place; not for use with gradients."""
    plain, Roomy = roomy()
    for layer in getattr(cache, "layers", ()):
        if type(layer) is plain and layer.get_seq_length():
            layer.__class__ = Roomy
