"""The fast paths of common.sample and common.score: the same draws and log-probabilities, where that is cheaper.

Three ideas. Completions of one prompt share its keys and values, computed once, with gradient, and handed out to them
(`score_shared`). The adapter is folded into a copy of the weights, so that a linear layer is one product instead of
three (`folded`). And completions of one prompt share a row under a 4-D mask, so that its keys are stored and read once
for all of them (`decode_packed`, `score_packs`). A model of 0.2 M parameters, whose cost is calls and not arithmetic,
gets the last two: sampling is 1.7 times as fast, the update 2.4 times. A real one gets the first, which needs no mask,
and where it is float32 the second, for sampling only: in the update the gradient of the copy would cost more than the
small products. `choose` says what a model gets, and why; tests compare all of it with the plain versions.
"""
import functools
import math
import re
import warnings
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F

import common  # which imports this module: what it has is looked up when it is called
from support import captured, load

PACK = 128  # most completion tokens in a row: beyond that, looking past each other costs more than the prompt saves


@dataclass
class Fast:
    """What a model gets."""
    layers: list  # LoRA layers that are folded: (parent module, attribute name, layer)
    packs: bool  # several completions to a row, the adapter folded in the update too; False: shared keys and values
    wide: bool = False  # tokens are decoded under a 4-D mask (decoding_mask)
    captured: bool = False  # decoding is support/captured.py
    light: list = ()  # LoRA layers that captured decoding replaces: (parent module, attribute name, layer, weight)


def choose(policy):
    """Which fast paths pay for this model and are right -> (Fast or None, the choice and its reason in words).

    By cost: packed rows and a copy of every weight, with its gradient, must be small beside the calls saved, which is
    so below 5 M parameters on a CPU; weights that are not float32 would lose small deltas when folded. They are right
    if the model gives the log-probabilities of two samples of a short prompt in either way: tried, whatever its name.
    """
    from transformers.pytorch_utils import Conv1D
    lm, layers = policy.lm, lora_layers(policy)
    weights = sum(layer.base_layer.weight.numel() for _, _, layer in layers)
    cannot = None  # why the adapter is not folded
    if policy.device.type != "cpu" or any(type(layer.base_layer) not in (torch.nn.Linear, Conv1D)
                                          or layer.base_layer.weight.dtype != torch.float32 for _, _, layer in layers):
        cannot = "that needs linear layers in float32 on a CPU"
    elif any(c.peft_type != "LORA" or c.use_dora or c.lora_bias for c in policy.model.peft_config.values()):
        cannot = "the adapter is more than W + s B A"
    elif 4 * weights > load.free_memory(policy.device) / 4:
        cannot = "the copy would take more than a quarter of the memory"
    V = lm.config.get_text_config().vocab_size
    x, y = [[1 % V, 2 % V]] * 2, [[3 % V, 4 % V, 5 % V], [5 % V, 3 % V]]
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        policy.fast = None
        (_, apart, _), = common.score(policy, x, y, 1.0, 2048)

        def same(way, *args):
            """None, or why this way of scoring cannot be taken."""
            try:
                (_, found, _), = way(policy, x, y, *args)
            except (ValueError, RuntimeError) as error:  # what models raise whose mask has another shape (alibi)
                return load.first_line(error)
            # one order in both, the longest completion first; in less than float32 any order of sums is another number
            exact = apart.dtype == lm.dtype == torch.float32 and not getattr(lm, "is_quantized", False)
            return None if captured.near(apart, found, exact) else "other log-probabilities"
        small = policy.size < load.TINY
        if small and not cannot:
            with folded(layers):
                mask = same(score_packs, [[0, 1]], 1.0, 2048)
            if not mask:
                return Fast(layers, True), "fast (adapter folded into the weights, samples of a prompt share a row)"
            cannot = f"{type(lm).__name__} under a 4-D mask: {mask}"
        wrong = same(score_shared, 1.0, 2048)
    if wrong:
        return None, f"plain ({type(lm).__name__} from a prompt's keys and values on: {wrong})"
    shared = "samples of a prompt share its keys and values, "
    if policy.device.type == "cuda":
        found = Fast([], False, takes_wide(policy))
        return found, shared + captured.choose(policy, found, layers)
    return Fast([] if cannot else layers, False), shared + "adapter " + (
        f"not folded into the weights ({cannot})" if cannot else "folded into the weights in rollouts")


def decoding_mask(policy, mask):
    """The mask [P, L + T] of prompts and all tokens to come, as decoding reads it: additive and [P, 1, 1, L + T] on a
    GPU, where transformers would look at the values of a 2-D one for each token, and the host wait for the device."""
    if not (policy.fast and policy.fast.wide) or mask.shape[1] > window(policy):
        return mask
    return ((1 - mask) * torch.finfo(policy.lm.dtype).min).to(policy.lm.dtype)[:, None, None]


@torch.no_grad()
def takes_wide(policy):
    """Whether a token after a padded prompt has the same logits under either mask."""
    V, found = policy.lm.config.get_text_config().vocab_size, []
    ids, mask = common.left_pad([[1 % V, 2 % V, 3 % V], [4 % V]], policy.device)
    longer = F.pad(mask, (0, 1), value=1)
    for wide in (False, True):
        policy.fast = Fast([], False, wide)
        cache = policy.forward(ids, mask, common.positions_of(mask), 1, use_cache=True).past_key_values
        try:
            out = policy.forward(ids[:, :1], decoding_mask(policy, longer), common.positions_of(longer)[:, -1:], 1,
                                 past_key_values=cache, use_cache=True)
        except (ValueError, RuntimeError):  # as in choose
            return False
        found.append(out.logits[:, -1].float())
    return captured.near(*found, policy.lm.dtype == torch.float32)


def lora_layers(policy):
    """(parent module, attribute name, LoRA layer) of every layer with an adapter."""
    return [(policy.lm.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2], layer)
            for name, layer in policy.lm.named_modules() if hasattr(layer, "base_layer")]


class Product(torch.nn.Module):
    """A linear layer with `delta` added to a copy of its weight; a gradient reaches delta."""

    def __init__(self, base, delta):
        super().__init__()
        weight = base.weight + delta
        self.weight = weight if isinstance(base, torch.nn.Linear) else weight.T  # GPT-2's Conv1D has [in, out]
        self.bias = base.bias

    def forward(self, x):
        if x.dim() == 3 and len(x) >= 16 and x.shape[1] >= 8 and x.numel() >= 2 ** 15:
            # A convolution of size 1 goes to oneDNN, a linear layer to MKL, which is up to half as fast on AMD.
            y = F.conv2d(x.unsqueeze(2).permute(0, 3, 1, 2), self.weight[:, :, None, None], self.bias)
            return y.permute(0, 2, 3, 1).squeeze(2)  # [rows, out, 1, tokens] as [rows, tokens, out]
        return F.linear(x, self.weight, self.bias)


@contextmanager
def folded(layers):
    """Inside, each of these LoRA layers is one product with W + s B A (the active adapter added to a copy of its
    weight) instead of three. Gradients reach A and B through the copy. The base is never written: merging in place and
    back is not exact."""
    products = [Product(layer.base_layer, sum(layer.get_delta_weight(adapter) for adapter in layer.active_adapters
                                              if not layer.disable_adapters)) for _, _, layer in layers]
    try:
        for (parent, name, _), product in zip(layers, products):
            setattr(parent, name, product)
        yield
    finally:
        for parent, name, layer in layers:
            setattr(parent, name, layer)


def window(policy):
    """Tokens of the model's sliding window; a row that shares its prompt must lie within it."""
    return getattr(policy.lm.config.get_text_config(), "sliding_window", None) or math.inf


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


def decode(policy, prompts, u, temperature):
    """common.decode with the adapter folded, and several samples to a row where the model's window holds them all; on a
    GPU captured where that works."""
    (_, k, T), L = u.shape, max(map(len, prompts))
    if policy.fast.captured and L + T <= window(policy):
        return captured.decode(policy, prompts, u, temperature)
    g = max(g for g in range(1, k + 1)
            if k % g == 0 and (g == 1 or policy.fast.packs and g * T <= PACK and L + g * T <= window(policy)))
    with folded(policy.fast.layers):
        return (common.decode if g == 1 else decode_packed)(policy, prompts, u.unflatten(1, (-1, g)) if g > 1 else u,
                                                            temperature)


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


def decode_packed(policy, prompts, u, temperature):
    """common.decode for u [P, k/g, g, T], g samples of one prompt to a row: its keys are stored and read once for all
    of them, but each looks past the others."""
    (P, repeat, g, T), stop = u.shape, torch.tensor(policy.stop)
    ids, mask = common.left_pad(prompts)
    position = common.positions_of(mask)  # [P, L]
    out = policy.forward(ids, mask, position, 1, use_cache=True)
    cache, L, R = out.past_key_values, ids.shape[1], P * repeat
    if repeat > 1:
        cache.batch_repeat_interleave(repeat)
    logits = out.logits[:, -1:].repeat_interleave(repeat, 0).expand(-1, g, -1)  # [R, g, V]
    position = position[:, -1:].repeat_interleave(repeat, 0).repeat(1, g)  # [R, g]
    # The g queries of a step see the prompt, and of the samples' columns (token by token, g each) their own.
    own = torch.eye(g).repeat(1, T).expand(R, 1, g, -1)
    seen = torch.cat([mask.repeat_interleave(repeat, 0)[:, None, None].expand(-1, 1, g, -1), own], -1)
    mask = (1 - seen) * torch.finfo(logits.dtype).min  # [R, 1, g, L + g T], added to the scores
    u, rows = u.flatten(0, 1), torch.arange(R)
    done = torch.zeros(R, g, dtype=torch.bool)
    tokens, lengths = torch.zeros(R, g, T, dtype=torch.long), torch.zeros(R, g, dtype=torch.long)
    logps, entropies = torch.zeros(2, R, g, T)
    for t in range(T):
        logp = torch.log_softmax(logits.float() / temperature, -1)  # [R, g, V]
        p = logp.exp()
        token = common.draw(p, u[..., t:t + 1])
        logps[rows, :, t] = logp.gather(-1, token)[..., 0].masked_fill(done, 0.0)
        entropies[rows, :, t] = torch.special.entr(p).sum(-1).masked_fill(done, 0.0)
        token = token[..., 0]  # [R, g]
        tokens[rows, :, t] = token
        lengths[rows] += ~done
        done = done | torch.isin(token, stop)
        alive = (~done.all(1)).nonzero()[:, 0]
        if len(alive) == 0 or t + 1 == T:
            break
        if len(alive) < 0.9 * len(rows):
            cache.batch_select_indices(alive)
            rows, u, mask, position, token, done = (x[alive] for x in (rows, u, mask, position, token, done))
        position = position + 1
        logits = policy.forward(token, mask[..., :L + g * (t + 1)], position, g, past_key_values=cache,
                                use_cache=True).logits
    return (*(x.view(P, repeat * g, T) for x in (tokens, logps, entropies)), lengths.view(P, repeat * g))


def pays(policy, prompts, completions, max_tokens, logits):
    """Whether scoring these completions in the fast way is cheaper: by tokens, where keys and values are shared."""
    if policy.fast.packs:
        return not logits
    if any(len(x) + len(y) > max_tokens for x, y in zip(prompts, completions)):
        return False  # such a row needs its layers computed again, which keys and values handed out do not survive
    lengths = {}
    for x, y in zip(prompts, completions):
        lengths.setdefault(tuple(x), []).append(len(y))
    apart = sum(map(len, prompts)) + sum(map(len, completions))
    shared = sum(len(x) + len(ys) * max(ys) for x, ys in lengths.items())  # those of a prompt are padded to its longest
    return apart > 1.25 * shared  # what two forward passes for one, and wider attention, were measured to cost


def score(policy, prompts, completions, temperature, max_tokens, logits=False):
    """common.score in the fast way."""
    if not policy.fast.packs:
        yield from score_shared(policy, prompts, completions, temperature, max_tokens, logits)
        return
    packs, same = [], {}
    apart = max(map(len, prompts), default=0) + max(map(len, completions), default=0) > window(policy)
    for i in sorted(range(len(prompts)), key=lambda i: len(completions[i])):
        same.setdefault(i if apart else tuple(prompts[i]), []).append(i)
    for rows in same.values():
        while rows:
            g = max(1, min(len(rows), PACK // max(1, len(completions[rows[-1]]))))
            packs.append(rows[-g:])
            del rows[-g:]
    batches = score_packs(policy, prompts, completions, packs, temperature, max_tokens)
    while True:
        # anew for each micro-batch: its backward frees the graph that leads to the adapter
        with folded(policy.fast.layers):
            batch = next(batches, None)
        if batch is None:
            return
        yield batch


def score_shared(policy, prompts, completions, temperature, max_tokens, logits=False):
    """common.score with each prompt of a micro-batch computed once: its keys and values, through which the gradient
    flows, are handed out to its completions."""
    same = {}
    for i in sorted(range(len(prompts)), key=lambda i: -len(completions[i])):
        same.setdefault(tuple(prompts[i]), []).append(i)
    units = []  # completions of one prompt, the longest first, no more than a micro-batch holds
    for x, rows in same.items():
        g = max(1, (max_tokens - len(x)) // max(1, len(completions[rows[0]])))
        units += [rows[i:i + g] for i in range(0, len(rows), g)]
    units.sort(key=lambda rows: (len(completions[rows[0]]), len(prompts[rows[0]])))
    while units:
        some, r, L, T = [], 0, 0, 0
        while units:  # from the longest down
            rows = units[-1]
            wider = max(L, len(prompts[rows[0]])), max(T, len(completions[rows[0]]))
            if some and (len(some) + 1) * wider[0] + (r + len(rows)) * wider[1] > max_tokens:
                break
            (L, T), r = wider, r + len(rows)
            some.append(units.pop())
        owner = torch.tensor([p for p, rows in enumerate(some) for _ in rows], device=policy.device)  # [r]
        index = [i for rows in some for i in rows]
        own = torch.arange(T) < torch.tensor([len(completions[i]) for i in index])[:, None]  # [r, T]
        tokens = torch.tensor([completions[i] + [0] * (T - len(completions[i])) for i in index], dtype=torch.long)
        tokens, own = tokens.to(policy.device), own.to(policy.device)
        ids, mask = common.left_pad([prompts[rows[0]] for rows in some], policy.device)  # [p, L]
        position = common.positions_of(mask)
        out = policy.forward(ids, mask, position, 1, use_cache=True)
        scaled = out.logits[:, -1:][owner]  # [r, 1, V]: what the first token is drawn from
        if T > 1:
            cache = out.past_key_values
            cache.batch_select_indices(owner)
            mask = torch.cat([mask[owner], own[:, :-1].long()], 1)  # [r, L + T - 1]
            position = position[owner, -1:] + torch.arange(1, T, device=policy.device)
            out = policy.forward(tokens[:, :-1], mask, position, T - 1, past_key_values=cache, use_cache=True)
            scaled = torch.cat([scaled, out.logits[:, 1 - T:]], 1)
        scaled = scaled[:, :T].float() / temperature  # [r, T, V]
        logps = None if logits else -F.cross_entropy(
            scaled.flatten(0, 1), tokens.flatten(), reduction="none").view_as(own).masked_fill(~own, 0.0)
        yield torch.tensor(index), scaled if logits else logps, own.float()


def score_packs(policy, prompts, completions, packs, temperature, max_tokens):
    """common.score for rows that each hold one prompt and the completions packs[row] of it, one after the other:
    completion j starts at the position after the prompt, and sees the prompt and itself only."""
    order = sorted(packs, key=lambda pack: (len(pack), max(len(completions[i]) for i in pack), len(prompts[pack[0]])))
    while order:
        # From the longest down; a micro-batch is as wide as its longest prompt and its longest completion make it.
        rows, g, L, T = [], len(order[-1]), 0, 0
        while order:
            wider = max(L, len(prompts[order[-1][0]])), max(T, *(len(completions[i]) for i in order[-1]), 0)
            if rows and (len(rows) + 1) * (wider[0] + g * wider[1]) > max_tokens:
                break
            L, T = wider
            rows.append(order.pop())
        ids, mask = common.left_pad([prompts[pack[0]] for pack in rows])  # [p, L]
        ys = [completions[i] for pack in rows for i in pack]
        slot = torch.tensor([row * g + j for row, pack in enumerate(rows) for j in range(len(pack))])  # [r] of p g
        own = torch.arange(T) < torch.tensor([len(y) for y in ys])[:, None]  # [r, T]
        tokens = torch.tensor([y + [0] * (T - len(y)) for y in ys], dtype=torch.long)  # [r, T]
        slots, real = (torch.zeros(len(rows) * g, T, dtype=torch.long).index_put((slot,), x.long()).view(len(rows), -1)
                       for x in (tokens, own))  # [p, g T]
        position = common.positions_of(mask)  # [p, L]
        position = torch.cat([position, position[:, -1:] + 1 + torch.arange(T).repeat(g)], 1)  # [p, L + g T]
        ids, mask = torch.cat([ids, slots], 1), torch.cat([mask, real], 1)
        if g > 1:
            owner = torch.cat([torch.full((L,), -1), torch.arange(g).repeat_interleave(T)])  # -1: the prompt, for all
            seen = ((owner == -1) | (owner == owner[:, None])).tril()  # [L + g T, L + g T]
            mask = (~(seen & mask[:, None, None].bool())).to(policy.lm.dtype) * torch.finfo(policy.lm.dtype).min
        scaled = policy.forward(ids, mask, position, g * T + 1, use_cache=False).logits
        scaled = scaled[:, -g * T - 1:].float() / temperature  # [p, 1 + g T, V]
        if g == 1:
            scaled = scaled[:, :-1]  # [r, T, V]
        else:  # what predicts token t of completion j: the prompt's last position for t = 0, else the token before it
            column = torch.cat([torch.zeros(g, 1, dtype=torch.long), 1 + torch.arange(g * T).view(g, T)[:, :-1]], 1)
            scaled = scaled[slot[:, None] // g, column[slot % g]]  # [r, T, V]
        logps = -F.cross_entropy(scaled.flatten(0, 1), tokens.flatten(), reduction="none").view_as(tokens)
        yield torch.tensor([i for pack in rows for i in pack]), logps.masked_fill(~own, 0.0), own.float()
