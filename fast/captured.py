"""The sampling loop on a GPU, a token of all rows captured as one CUDA graph.

A token of a model with 28 layers is about 2,400 kernels, which take longer to launch than to run. A CUDA graph launches
them at once, but repeats them exactly: the same kernels on the same memory. So keys and values have memory of fixed
size, and everything that changes from token to token, where to write included, is a value on the device. Every
SEGMENT tokens finished rows leave, memory is made for those that are left, and the step is captured again.

In bfloat16 any sampler is off the scorer by rounding, this one as the plain one: on the embedded model by .0006 ±.0010
nats per completion on average, with a standard deviation of .022. That is noise in a KL gap, not a bias, and PPO's
ratio, whose denominator is what was drawn from, corrects for it.
"""
import functools
import warnings
from contextlib import contextmanager, nullcontext

import torch
import torch.nn.functional as F

import common
from support import load

SEGMENT = 128  # most tokens between captures, each of which costs about three tokens launched kernel by kernel
EVERY = 16  # tokens between questions to the device of how many rows are left


@functools.cache
def fixed_layer():
    """A layer of transformers' cache whose memory stays where it is."""
    from transformers.cache_utils import DynamicLayer

    class Fixed(DynamicLayer):
        """The first n keys and values of some rows of another layer, and room for more."""

        def __init__(self, layer, rows, n, room, slot):
            super().__init__()
            self.keys, self.values = (F.pad(old[:, :, :n].index_select(0, rows), (0, 0, 0, room - n))
                                      for old in (layer.keys, layer.values))  # [R, heads, room, width]
            self.dtype, self.device, self.slot, self.is_initialized = self.keys.dtype, self.keys.device, slot, True

        def update(self, keys, values, *args, **kwargs):
            self.keys.index_copy_(2, self.slot, keys)
            self.values.index_copy_(2, self.slot, values)
            return self.keys, self.values
    return DynamicLayer, Fixed


@functools.cache
def side(device):
    """The stream that graphs of a device are captured on: torch would take one of the device that is current, and
    cuBLAS keeps memory for each stream that it has met."""
    return torch.cuda.Stream(device)


class Decoder:
    """A step of common.decode, in memory that stays where it is."""

    def __init__(self, policy, prompts, temperature):
        ids, mask = common.left_pad(prompts, policy.device)  # [P, L]
        position = common.positions_of(mask)
        out = policy.forward(ids, mask, position, 1, use_cache=True)  # each prompt once
        self.policy, self.temperature, self.cache = policy, temperature, out.past_key_values
        self.stop = torch.tensor(policy.stop, device=policy.device)
        self.logits, self.position, self.seen = out.logits[:, -1], position[:, -1:], ids.shape[1]
        self.least = torch.finfo(policy.lm.dtype).min
        self.mask = ((1 - mask) * self.least).to(policy.lm.dtype)[:, None, None]  # [P, 1, 1, L], added to the scores
        self.done = torch.zeros(len(prompts), dtype=torch.bool, device=policy.device)
        plain = fixed_layer()[0]
        if not all(type(layer) is plain for layer in self.cache.layers):
            raise ValueError("a cache that does more than append")

    def begin(self, rows, u):
        """Memory for a segment: of these rows, one for each row of uniforms u [R, S]."""
        (R, S), n, device = u.shape, self.seen, u.device
        room = -(-(n + S) // 16) * 16  # attention kernels want a multiple of 8
        self.t, self.slot = (torch.full((1,), at, device=device) for at in (-1, n - 1))
        for i, layer in enumerate(self.cache.layers):
            self.cache.layers[i] = fixed_layer()[1](layer, rows, n, room, self.slot)
        self.mask = F.pad(self.mask[..., :n].index_select(0, rows), (0, room - n), value=self.least)
        self.logits, self.position, self.done = (x.index_select(0, rows)
                                                 for x in (self.logits, self.position, self.done))
        self.u, self.lengths = u.contiguous(), torch.zeros(R, dtype=torch.long, device=device)
        self.tokens = torch.zeros(R, S, dtype=torch.long, device=device)
        self.logps, self.entropies = torch.zeros(2, R, S, device=device)

    def step(self):
        """One token of every row. Nothing in here may depend on a value the host has, which would be captured."""
        self.t += 1
        self.slot += 1
        logp = torch.log_softmax(self.logits.float() / self.temperature, -1)  # [R, V]
        p = logp.exp()
        token = common.draw(p, self.u.index_select(1, self.t))  # [R, 1]
        self.tokens.index_copy_(1, self.t, token)
        self.logps.index_copy_(1, self.t, logp.gather(1, token).masked_fill(self.done[:, None], 0.0))
        self.entropies.index_copy_(1, self.t, torch.special.entr(p).sum(1, keepdim=True).masked_fill(
            self.done[:, None], 0.0))
        self.lengths += ~self.done
        self.done |= (token == self.stop).any(1)
        self.position += 1
        self.mask.index_fill_(3, self.slot, 0.0)
        self.logits.copy_(self.policy.forward(token, self.mask, self.position, 1, past_key_values=self.cache,
                                              use_cache=True).logits[:, -1])

    def run(self, steps):
        """Decode up to so many tokens; fewer where most rows have ended -> how many."""
        step = self.step
        for t in range(1, steps + 1):
            if t == 2 and self.done.is_cuda:  # the first one has made ready what kernels need before they are captured
                self.graph = torch.cuda.CUDAGraph()  # kept until the device has been waited for
                here = torch.cuda.current_stream(self.done.device)
                try:
                    with torch.cuda.graph(self.graph, stream=side(self.done.device)):
                        self.step()  # computes nothing
                finally:  # a capture that failed would leave its stream current
                    torch.cuda.set_stream(here)
                step = self.graph.replay
            step()
            if t % EVERY == 0 and t < steps and (~self.done).sum() < (len(self.done) + 1) // 2:
                break
        self.seen += t
        return t


@torch.no_grad()
def decode(policy, prompts, u, temperature):
    """common.decode, captured."""
    (P, k, T), device = u.shape, policy.device
    with light(policy.fast.light), torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        decoder = Decoder(policy, prompts, temperature)
        u, chosen = u.flatten(0, 1), torch.arange(P, device=device).repeat_interleave(k)
        rows = torch.arange(P * k, device=device)  # the row of the result that each row writes
        tokens, lengths = torch.zeros(P * k, T, dtype=torch.long, device=device), torch.zeros_like(rows)
        logps, entropies = torch.zeros(2, P * k, T, device=device)
        t = 0
        while t < T and len(rows):
            decoder.begin(chosen, u[rows, t:t + SEGMENT])
            upto = t + decoder.run(min(SEGMENT, T - t))
            for whole, part in ((tokens, decoder.tokens), (logps, decoder.logps), (entropies, decoder.entropies)):
                whole[rows, t:upto] = part[:, :upto - t]
            lengths[rows] += decoder.lengths
            chosen, t = (~decoder.done).nonzero()[:, 0], upto
            rows = rows[chosen]
    return (*(x.unflatten(0, (P, k)) for x in (tokens, logps, entropies)), lengths.view(P, k))


class Light(torch.nn.Module):
    """A LoRA layer in the precision of its base, which peft's casts, scales and adds take six small kernels for:
    W x + (s B) (A x), two products in one kernel each on top of the base's."""

    def __init__(self, layer, weight):
        super().__init__()
        self.base, self.weight = layer.base_layer, weight  # weight: the base's, de-quantised; None: as it is
        active = [] if layer.disable_adapters else layer.active_adapters
        dtype = layer.base_layer.weight.dtype if weight is None else weight.dtype
        if active:
            self.A = torch.cat([layer.lora_A[name].weight for name in active]).to(dtype).T  # [in, r]
            self.B = torch.cat([layer.scaling[name] * layer.lora_B[name].weight for name in active], 1).to(dtype).T
        self.plain = not active

    def forward(self, x):
        y = self.base(x) if self.weight is None else F.linear(x, self.weight, self.base.bias)
        if self.plain:
            return y
        return torch.addmm(y.flatten(0, -2), x.flatten(0, -2) @ self.A, self.B).view_as(y)


@contextmanager
def light(layers):
    """Inside, each of these LoRA layers is a Light one with the adapter as it is now. It stays apart from the weights:
    added to them in bfloat16, small deltas would round away."""
    for parent, name, layer, weight in layers:
        setattr(parent, name, Light(layer, weight))
    try:
        yield
    finally:
        for parent, name, layer, _ in layers:
            setattr(parent, name, layer)


def weights(policy, layers):
    """[(parent, name, layer, de-quantised weight or None)] of LoRA layers that Light can replace, and that in words."""
    known = {"Linear", "Conv1D", "Linear4bit"}
    if any(type(layer.base_layer).__name__ not in known for _, _, layer in layers) or any(
            c.peft_type != "LORA" or c.use_dora or c.lora_bias for c in policy.model.peft_config.values()):
        return [], "the adapter as peft has it"
    four = [layer for _, _, layer in layers if type(layer.base_layer).__name__ == "Linear4bit"]
    if not four:
        return [(*layer, None) for layer in layers], "the adapter beside the weights"
    import bitsandbytes
    need = policy.lm.dtype.itemsize * sum(layer.in_features * layer.out_features for layer in four)
    if need > load.free_memory(policy.device) / 4:
        return [], "weights de-quantised for each token (a copy would take more than a quarter of the memory)"
    return [(parent, name, layer, bitsandbytes.functional.dequantize_4bit(
        layer.base_layer.weight.data, layer.base_layer.weight.quant_state).to(policy.lm.dtype) if layer in four
        else None) for parent, name, layer in layers], f"weights de-quantised for rollouts ({need / 1e9:.1f} GB)"


def near(x, y, exact):
    """Whether two ways give the same log-probabilities: in bfloat16 a logit of 20 moves by .125 at a time."""
    return torch.allclose(x, y, atol=1e-4) if exact else bool((x - y).abs().mean() < 0.2 and (x - y).abs().max() < 1.0)


def never_waits(policy, prompts, u):
    """A step of the decoder under which the host does not wait for the device.  Raises RuntimeError if it does."""
    with light(policy.fast.light):
        decoder = Decoder(policy, prompts, 1.0)
        decoder.begin(torch.arange(len(prompts), device=u.device), u[:, 0])
        decoder.step()  # the first one makes ready what kernels need
        torch.cuda.set_sync_debug_mode("error")
        try:
            decoder.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")


def choose(policy, fast, layers):
    """Whether this model can be captured and draws by its own log-probabilities: tried, on padded prompts. First kernel
    by kernel, where a host that waits is an error: one that waits in a capture leaves CUDA in disorder.
    Sets fast.captured and fast.light -> what was chosen, in words."""
    quantised = getattr(policy.lm.config, "quantization_config", None)
    if getattr(quantised, "load_in_8bit", False):
        return "decoded kernel by kernel (8 bits)"
    V = policy.lm.config.get_text_config().vocab_size
    prompts, u = [[1 % V, 2 % V, 3 % V], [4 % V]], torch.linspace(0.1, 0.9, 16, dtype=torch.float64).view(2, 2, 4)
    fast.light, how = weights(policy, layers)
    policy.fast, why = fast, None
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.filterwarnings("error", message="The CUDA Graph is empty")
            apart = common.decode(policy, prompts, u.to(policy.device), 1.0)
            never_waits(policy, prompts, u.to(policy.device))
            found = decode(policy, prompts, u.to(policy.device), 1.0)
            # What was drawn, scored as always: rounding may have drawn other tokens than the plain loop does.
            policy.fast, (ys, drawn), (others, _) = None, *(
                ([y[:n] for y, n in zip(x[0].flatten(0, 1).tolist(), x[3].flatten().tolist())],
                 x[1].sum(-1).flatten().cpu()) for x in (found, apart))
            scored = torch.zeros(len(ys))
            for index, logps, _ in common.score(policy, [x for x in prompts for _ in range(2)], ys, 1.0, 2048):
                scored[index] = logps.sum(-1).cpu()
        exact, entropies = policy.lm.dtype == torch.float32, (x[2][..., 0] for x in (apart, found))
        if not (near(scored, drawn, exact) and near(*entropies, exact) and (ys == others or not exact)):
            why = "other log-probabilities"
    except torch.OutOfMemoryError:
        raise
    except (ValueError, RuntimeError, AttributeError, TypeError, Warning) as error:  # what cannot be captured
        why = load.first_line(error)
    finally:
        policy.fast = None
    fast.captured = why is None
    if why:
        fast.light = []
        return f"decoded kernel by kernel ({type(policy.lm).__name__} captured: {why})"
    return f"decoded in CUDA graphs, {how}"
