"""The sampling loop on a GPU: decoding one token for all rows is captured as one CUDA graph.

For a model with 28 layers, one token takes about 2,400 kernels, whose launches take longer than their execution. A CUDA
graph launches all of them at once, but always runs the same kernels on the same memory. So keys and values are in
buffers of fixed size, and everything that changes between tokens, such as the position to write to, is a tensor on the
device. Every SEGMENT tokens, finished rows are removed, buffers for the others are allocated, and the step is captured
again.

In bfloat16 every sampler differs from the scorer by rounding. For this one, as for the plain one, the difference on the
embedded model was .0006 ±.0010 nats per completion on average, with a standard deviation of .022. In a KL estimate this
is noise and not a bias, and PPO's ratio corrects for it, because its denominator has the sampler's log-probabilities.
"""
import functools
import warnings
from contextlib import contextmanager, nullcontext

import torch
import torch.nn.functional as F

import common
from fast.folded import plain_lora
from support import load

SEGMENT = 128  # most tokens between captures; a capture costs about as much as three tokens without a graph
EVERY = 16  # tokens between checks of how many rows are still running, for which the host waits


@functools.cache
def fixed_layer():
    """A cache layer for transformers with buffers of fixed size and address -> (the default class, the new class)."""
    from transformers.cache_utils import DynamicLayer

    class Fixed(DynamicLayer):
        """The first n keys and values of selected rows of another layer, with space for up to `room`."""

        def __init__(self, layer, rows, n, room, slot):
            super().__init__()

            def padded(old):
                first = old[:, :, :n].index_select(0, rows)
                return F.pad(first, (0, 0, 0, room - n))  # [R, heads, room, width]
            self.keys = padded(layer.keys)
            self.values = padded(layer.values)
            self.dtype = self.keys.dtype
            self.device = self.keys.device
            self.slot = slot
            self.is_initialized = True

        def update(self, keys, values, *args, **kwargs):
            self.keys.index_copy_(2, self.slot, keys)
            self.values.index_copy_(2, self.slot, values)
            return self.keys, self.values
    return DynamicLayer, Fixed


@functools.cache
def side(device):
    """The stream for capturing graphs on a device. By default torch would use a stream of the current device, and
    cuBLAS allocates memory for each stream that it is used on."""
    return torch.cuda.Stream(device)


class Decoder:
    """The step of common.decode, with all tensors in fixed memory."""

    def __init__(self, policy, prompts, temperature):
        ids, mask = common.left_pad(prompts, policy.device)  # [P, L]
        position = common.positions_of(mask)
        out = policy.forward(ids, mask, position, 1, use_cache=True)  # run each prompt once
        self.policy = policy
        self.temperature = temperature
        self.cache = out.past_key_values
        self.stop = torch.tensor(policy.stop, device=policy.device)
        self.logits = out.logits[:, -1]
        self.position = position[:, -1:]
        self.seen = ids.shape[1]
        dtype = policy.lm.dtype
        self.least = torch.finfo(dtype).min
        unseen = (1 - mask) * self.least
        self.mask = unseen.to(dtype)[:, None, None]  # [P, 1, 1, L], additive
        self.done = torch.zeros(len(prompts), dtype=torch.bool, device=policy.device)
        plain, _ = fixed_layer()
        if not all(type(layer) is plain for layer in self.cache.layers):
            raise ValueError("its cache does more than append")

    def take_rows(self, rows, u):
        """Allocate memory for a segment of S tokens of these rows.  u [R, S]: uniform numbers, a row for each."""
        S = u.shape[1]
        n = self.seen
        room = -(-(n + S) // 16) * 16  # attention kernels need a multiple of 8
        self.t = torch.full((1,), -1, device=u.device)
        self.slot = self.t + n
        _, Fixed = fixed_layer()
        for i, layer in enumerate(self.cache.layers):
            self.cache.layers[i] = Fixed(layer, rows, n, room, self.slot)
        mask = self.mask[..., :n].index_select(0, rows)
        self.mask = F.pad(mask, (0, room - n), value=self.least)
        self.logits = self.logits.index_select(0, rows)
        self.position = self.position.index_select(0, rows)
        self.done = self.done.index_select(0, rows)
        self.u = u.contiguous()
        self.tokens = torch.zeros_like(u, dtype=torch.long)
        self.logps = torch.zeros_like(u, dtype=torch.float32)
        self.entropies = torch.zeros_like(self.logps)
        self.lengths = torch.zeros_like(self.done, dtype=torch.long)

    def step(self):
        """Decode one token of each row. Nothing here may depend on a changing value on the host, because a capture
        would record it as a constant."""
        self.t += 1
        self.slot += 1
        logp = torch.log_softmax(self.logits.float() / self.temperature, -1)  # [R, V]
        p = logp.exp()
        token = common.draw(p, self.u.index_select(1, self.t))  # [R, 1]
        done = self.done[:, None]
        drawn = logp.gather(1, token).masked_fill(done, 0.0)
        entropy = torch.special.entr(p).sum(1, keepdim=True)
        self.tokens.index_copy_(1, self.t, token)
        self.logps.index_copy_(1, self.t, drawn)
        self.entropies.index_copy_(1, self.t, entropy.masked_fill(done, 0.0))
        self.lengths += ~self.done
        self.done |= (token == self.stop).any(1)
        self.position += 1
        self.mask.index_fill_(3, self.slot, 0.0)
        memory = {"past_key_values": self.cache, "use_cache": True}
        out = self.policy.forward(token, self.mask, self.position, 1, **memory)
        self.logits.copy_(out.logits[:, -1])

    def run(self, steps):
        """Decode up to `steps` tokens, fewer if most rows have ended -> number of tokens."""
        step = self.step
        for t in range(1, steps + 1):
            if t == 2 and self.done.is_cuda:  # the first step is the warm-up that a capture needs
                step = self.capture()
            step()
            if t % EVERY == 0 and t < steps and self.mostly_ended():
                break
        self.seen += t
        return t

    def mostly_ended(self):
        """Whether fewer than half of the rows are still running; the host waits for the answer."""
        alive = (~self.done).sum()
        return alive < (len(self.done) + 1) // 2

    def capture(self):
        """Capture a step, without running it -> the function that replays it."""
        device = self.done.device
        self.graph = torch.cuda.CUDAGraph()  # an attribute, so that it lives until the device has finished
        current = torch.cuda.current_stream(device)
        try:
            with torch.cuda.graph(self.graph, stream=side(device)):
                self.step()
        finally:  # a failed capture leaves its stream as the current one
            torch.cuda.set_stream(current)
        return self.graph.replay


@torch.no_grad()
def decode(policy, prompts, u, temperature):
    """As common.decode, with CUDA graphs."""
    current = nullcontext()
    if policy.device.type == "cuda":
        current = torch.cuda.device(policy.device)
    with light(policy.fast.light), current:
        return decode_segments(policy, prompts, u, temperature)


def decode_segments(policy, prompts, u, temperature):
    """`decode` on the current device, with the model's current layers."""
    P, k, T = u.shape
    decoder = Decoder(policy, prompts, temperature)
    u = u.flatten(0, 1)  # [P k, T]
    tokens = torch.zeros_like(u, dtype=torch.long)
    logps = torch.zeros_like(u, dtype=torch.float32)
    entropies = torch.zeros_like(logps)
    rows = torch.arange(P * k, device=u.device)  # row of the results that each active row writes to
    lengths = torch.zeros_like(rows)
    chosen = rows // k  # active rows as indices into those of the previous segment, at first into the prompts
    t = 0
    while t < T and len(rows):
        decoder.take_rows(chosen, u[rows, t:t + SEGMENT])
        done = decoder.run(min(SEGMENT, T - t))
        tokens[rows, t:t + done] = decoder.tokens[:, :done]
        logps[rows, t:t + done] = decoder.logps[:, :done]
        entropies[rows, t:t + done] = decoder.entropies[:, :done]
        lengths[rows] += decoder.lengths
        chosen = torch.argwhere(~decoder.done)[:, 0]
        rows = rows[chosen]
        t += done
    whole = [x.view(P, k, T) for x in (tokens, logps, entropies)]
    return (*whole, lengths.view(P, k))


class Light(torch.nn.Module):
    """A LoRA layer in the precision of its base, W x + (s B) (A x), with two kernels besides the base's; peft uses six
    (casts, scaling, sums)."""

    def __init__(self, layer, weight):
        super().__init__()
        self.base = layer.base_layer
        self.weight = weight  # de-quantised weight of the base; None: call the base layer
        dtype = self.base.weight.dtype if weight is None else weight.dtype
        active = [] if layer.disable_adapters else layer.active_adapters
        self.plain = not active
        if active:
            A = [layer.lora_A[name].weight for name in active]
            B = [layer.scaling[name] * layer.lora_B[name].weight for name in active]
            self.A = torch.cat(A).to(dtype).T  # [in, r]
            self.B = torch.cat(B, 1).to(dtype).T  # [r, out]

    def forward(self, x):
        if self.weight is None:
            y = self.base(x)
        else:
            y = F.linear(x, self.weight, self.base.bias)
        if self.plain:
            return y
        inner = x.flatten(0, -2) @ self.A
        return torch.addmm(y.flatten(0, -2), inner, self.B).view_as(y)


@contextmanager
def light(layers):
    """Context that replaces each of these LoRA layers by a Light layer with the current adapter. The adapter is not
    added to the weights, because in bfloat16 small deltas would be rounded away."""
    for parent, name, layer, weight in layers:
        setattr(parent, name, Light(layer, weight))
    try:
        yield
    finally:
        for parent, name, layer, _ in layers:
            setattr(parent, name, layer)


def weights(policy, layers):
    """The LoRA layers that Light can replace -> ([(parent, name, layer, de-quantised weight or None)], the choice as
    text)."""
    kinds = {type(layer.base_layer).__name__ for _, _, layer in layers}
    if not kinds <= {"Linear", "Conv1D", "Linear4bit"} or not plain_lora(policy):
        return [], "adapter computed by peft"
    dtype = policy.lm.dtype
    sizes = [layer.in_features * layer.out_features for _, _, layer in layers if in_four_bits(layer)]
    if not sizes:
        return [(*layer, None) for layer in layers], "adapter computed in two kernels"
    need = dtype.itemsize * sum(sizes)
    if need > load.free_memory(policy.device) / 4:
        return [], "weights de-quantised for each token (a copy would take more than a quarter of the memory)"
    replaceable = []
    for parent, name, layer in layers:
        weight = dequantised(layer, dtype) if in_four_bits(layer) else None
        replaceable.append((parent, name, layer, weight))
    return replaceable, f"weights de-quantised for rollouts ({need / 1e9:.1f} GB)"


def in_four_bits(layer):
    return type(layer.base_layer).__name__ == "Linear4bit"


def dequantised(layer, dtype):
    """The de-quantised weight of a layer that stores it in 4 bits."""
    from bitsandbytes.functional import dequantize_4bit
    weight = layer.base_layer.weight
    return dequantize_4bit(weight.data, weight.quant_state).to(dtype)


def near(x, y, exact):
    """Whether log-probabilities are equal up to rounding. In bfloat16, logits around 20 are multiples of .125."""
    if exact:
        return torch.allclose(x, y, atol=1e-4)
    gap = (x - y).abs()
    return bool(gap.mean() < 0.2 and gap.max() < 1.0)


def never_waits(policy, prompts, u):
    """Run a decoder step without a graph.  Raises RuntimeError if it makes the host wait for the device."""
    with light(policy.fast.light):
        decoder = Decoder(policy, prompts, 1.0)
        decoder.take_rows(torch.arange(len(prompts), device=u.device), u[:, 0])
        decoder.step()  # warm-up
        torch.cuda.set_sync_debug_mode("error")
        try:
            decoder.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")


def completions(draws):
    """The completions that a sampling loop has drawn, as lists of token ids without padding."""
    tokens, _, _, lengths = draws
    rows = tokens.flatten(0, 1).tolist()
    return [row[:n] for row, n in zip(rows, lengths.flatten().tolist(), strict=True)]


@torch.no_grad()
def draws_as_scored(policy):
    """Test on padded prompts whether `decode` samples with the scorer's log-probabilities and, in float32, draws the
    same tokens as the plain loop. A step without a graph runs first and must not make the host wait, because waiting
    during a capture leaves CUDA in an invalid state.  Raises what the model raises if it cannot be captured."""
    V = policy.lm.config.get_text_config().vocab_size
    prompts = [[1 % V, 2 % V, 3 % V], [4 % V]]
    u = torch.linspace(0.1, 0.9, 16, dtype=torch.float64)
    u = u.view(2, 2, 4).to(policy.device)
    plain_draws = common.decode(policy, prompts, u, 1.0)
    never_waits(policy, prompts, u)
    draws = decode(policy, prompts, u, 1.0)
    ys = completions(draws)
    exact = policy.lm.dtype == torch.float32
    if exact and ys != completions(plain_draws):
        return False
    # Score these draws with the plain scorer: with rounding, the plain loop may have drawn other tokens.
    policy.fast = None
    scored = torch.zeros(len(ys))
    xs = [x for x in prompts for _ in range(2)]
    for index, logps, _ in common.score(policy, xs, ys, 1.0, 2048):
        scored[index] = logps.sum(-1).cpu()
    drawn = draws[1].sum(-1).flatten().cpu()
    first = [entropies[..., 0] for _, _, entropies, _ in (plain_draws, draws)]
    return near(scored, drawn, exact) and near(*first, exact)


def where_possible(policy, fast, layers):
    """Use CUDA graphs if the model can be captured and `draws_as_scored`. Sets fast.captured and fast.light -> the
    choice as text."""
    quantised = getattr(policy.lm.config, "quantization_config", None)
    if getattr(quantised, "load_in_8bit", False):
        return "decoded kernel by kernel (8 bits)"
    fast.light, how = weights(policy, layers)
    why = None
    policy.fast = fast
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.filterwarnings("error", message="The CUDA Graph is empty")
            if not draws_as_scored(policy):
                why = "different log-probabilities"
    except torch.OutOfMemoryError:
        raise
    except (ValueError, RuntimeError, AttributeError, TypeError, Warning) as error:  # the model cannot be captured
        why = load.first_line(error)
    finally:
        policy.fast = None
    fast.captured = why is None
    if why:
        fast.light = []
        return f"decoded kernel by kernel ({type(policy.lm).__name__} captured: {why})"
    return f"decoded in CUDA graphs, {how}"
