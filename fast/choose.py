"""Select the fast paths for a model: those that are cheaper and pass a test on this model."""
import warnings
from dataclasses import dataclass

import torch
import torch.nn.functional as F

import common
from fast import captured, packed, shared
from fast.folded import folded, lora_layers, plain_lora
from support import decoding, load


@dataclass
class Fast:
    """The fast paths of a model. common.sample calls `decode`, and common.score calls `score` if it `pays`."""
    layers: list  # LoRA layers to fold: (parent module, attribute name, layer)
    packs: bool  # pack completions in rows, and fold the adapter in the update, too; False: share keys and values
    wide: bool = False  # decode under a 4-D mask (Policy.decoding_mask)
    captured: bool = False  # decode with CUDA graphs (fast/captured.py)
    light: list = ()  # LoRA layers that captured decoding replaces: (parent module, attribute name, layer, weight)

    def decode(self, policy, prompts, u, temperature):
        """As common.decode: with CUDA graphs if they are available, else with the adapter folded, and several samples
        in a row if `packs` is set and they fit into the model's attention window."""
        k, T = u.shape[1:]
        L = max(map(len, prompts))
        if self.captured and L + T <= policy.window:
            return captured.decode(policy, prompts, u, temperature)
        g = 1  # samples per row
        if self.packs:
            fits = [g for g in range(2, k + 1) if k % g == 0 and g * T <= packed.PACK and L + g * T <= policy.window]
            g = max(fits, default=1)
        with folded(self.layers):
            if g == 1:
                return common.decode(policy, prompts, u, temperature)
            return packed.decode_packed(policy, prompts, u.unflatten(1, (-1, g)), temperature)

    def pays(self, prompts, completions, max_tokens, logits):
        """Whether `score` is cheaper than common.score for these completions; with shared keys and values, this depends
        on the number of tokens."""
        if self.packs:
            return not logits
        if any(len(x) + len(y) > max_tokens for x, y in zip(prompts, completions)):
            return False  # such a row needs gradient checkpointing, which does not work with shared keys and values
        lengths = {}
        for x, y in zip(prompts, completions):
            lengths.setdefault(tuple(x), []).append(len(y))
        separate = sum(map(len, prompts)) + sum(map(len, completions))
        shared_tokens = sum(len(x) + len(ys) * max(ys) for x, ys in lengths.items())  # completions are padded
        return separate > 1.25 * shared_tokens  # measured: cost of the second forward pass and of wider attention

    def score(self, policy, prompts, completions, temperature, max_tokens, logits=False):
        """As common.score, with the fast path."""
        if not self.packs:
            yield from shared.score_shared(policy, prompts, completions, temperature, max_tokens, logits)
            return
        packs = packed.packs_of(policy, prompts, completions)
        batches = packed.score_packs(policy, prompts, completions, packs, temperature, max_tokens)
        while True:
            # Fold again for each micro-batch, because its backward pass frees the graph that leads to the adapter.
            with folded(self.layers):
                batch = next(batches, None)
            if batch is None:
                return
            yield batch


def chooser(plain):
    """The argument `fast` of common.load_policy, for the flag --plain."""
    return None if plain else choose_fast


def choose_fast(policy):
    """Select the fast paths that are cheaper for this model and correct -> (Fast or None, the choice and its reason as
    text).

    Cost: packed rows and a copy of all weights, with gradients, pay off if they cost less than the calls that they
    save, which holds below 5 M parameters on a CPU. Weights below float32 are not folded, because small deltas would be
    rounded away. Correctness: a test on this model compares the log-probabilities of two samples of a short prompt.
    """
    lm = policy.lm
    reason = why_plain(policy)
    if reason:
        return None, f"plain ({type(lm).__name__} {reason})"
    layers = lora_layers(policy)
    unfoldable = why_not_folded(policy, layers)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        policy.fast = None
        if policy.size < load.SMALL and not unfoldable:
            with folded(layers):
                unpackable = why_not(policy, packed.score_packs, [[0, 1]])
            if not unpackable and not decoding.known_masks(lm):
                unpackable = "its layers do not use the given mask"
            if not unpackable:
                return Fast(layers, True), "fast (adapter folded into the weights, samples of a prompt share a row)"
            unfoldable = f"{type(lm).__name__} under a 4-D mask: {unpackable}"
        unshareable = why_not(policy, shared.score_shared)
    if unshareable:
        return None, f"plain ({type(lm).__name__} with shared keys and values: {unshareable})"
    text = "samples of a prompt share its keys and values, "
    if policy.device.type == "cuda":
        fast = Fast([], False, takes_wide(policy))
        return fast, text + captured.where_possible(policy, fast, layers)
    if unfoldable:
        return Fast([], False), text + f"adapter not folded into the weights ({unfoldable})"
    return Fast(layers, False), text + "adapter folded into the weights in rollouts"


@torch.no_grad()
def why_plain(policy):
    """Why a model cannot use any fast path, as a phrase that follows its name; None if it may. The tests of `why_not`
    do not suffice here: with small random weights, the state of another row makes little difference."""
    if not policy.caches:
        return "has no cache that can be shared: each token reruns its row"
    if not policy.pads:
        return "changes under padding: only prompts of equal length share a batch"
    ids = torch.ones(1, 2, dtype=torch.long, device=policy.device)
    if decoding.recurrent(policy.forward(ids, ids, common.positions_of(ids), 1, use_cache=True).past_key_values):
        return "has recurrent layers"
    return None


def why_not_folded(policy, layers):
    """Why the adapter cannot be folded into a copy of the weights; None if it can."""
    from transformers.pytorch_utils import Conv1D
    bases = [layer.base_layer for _, _, layer in layers]
    plain = all(type(base) in (torch.nn.Linear, Conv1D) and base.weight.dtype == torch.float32 for base in bases)
    if policy.device.type != "cpu" or not plain:
        return "this needs linear layers in float32 on a CPU"
    if not plain_lora(policy):
        return "the adapter is not of the form W + s B A"
    copy = 4 * sum(base.weight.numel() for base in bases)
    if copy > load.free_memory(policy.device) / 4:
        return "the copy would take more than a quarter of the memory"
    return None


def why_not(policy, scorer, *packs):
    """Why this scorer is wrong for two samples of a short prompt; None if it agrees with common.score."""
    lm = policy.lm
    V = lm.config.get_text_config().vocab_size
    x = [[1 % V, 2 % V]] * 2
    y = [[3 % V, 4 % V, 5 % V], [5 % V, 3 % V]]
    (_, expected, _), = common.score(policy, x, y, 1.0, 2048)
    try:
        (_, logps, _), = scorer(policy, x, y, *packs, 1.0, 2048)
    except (ValueError, RuntimeError) as error:  # raised by models that need masks of another shape (ALiBi)
        return load.first_line(error)
    # Both have the longest completion first. Below float32, results depend on the order of sums.
    exact = expected.dtype == lm.dtype == torch.float32 and not getattr(lm, "is_quantized", False)
    return None if captured.near(expected, logps, exact) else "different log-probabilities"


@torch.no_grad()
def takes_wide(policy):
    """Whether a token after a padded prompt has the same logits under a 2-D and a 4-D mask."""
    V = policy.lm.config.get_text_config().vocab_size
    ids, mask = common.left_pad([[1 % V, 2 % V, 3 % V], [4 % V]], policy.device)
    longer = F.pad(mask, (0, 1), value=1)
    logits = []
    for decoding_mask in (longer, decoding.additive(longer, policy.lm.dtype)):
        cache = policy.forward(ids, mask, common.positions_of(mask), 1, use_cache=True).past_key_values
        try:
            out = policy.forward(ids[:, :1], decoding_mask, common.positions_of(longer)[:, -1:], 1,
                                 past_key_values=cache, use_cache=True)
        except (ValueError, RuntimeError):  # as in why_not
            return False
        logits.append(out.logits[:, -1].float())
    return captured.near(*logits, policy.lm.dtype == torch.float32)
