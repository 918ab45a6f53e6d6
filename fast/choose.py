"""Which fast paths a model gets: those that are cheaper and pass a trial."""
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
    """The fast paths of a model. common.sample calls `decode`, and common.score calls `score` where it `pays`."""
    layers: list  # LoRA layers that are folded: (parent module, attribute name, layer)
    packs: bool  # several completions to a row, the adapter folded in the update too; False: shared keys and values
    wide: bool = False  # tokens are decoded under a 4-D mask (Policy.decoding_mask)
    captured: bool = False  # decoding is fast/captured.py
    light: list = ()  # LoRA layers that captured decoding replaces: (parent module, attribute name, layer, weight)

    def decode(self, policy, prompts, u, temperature):
        """common.decode with the adapter folded, and several samples to a row where the model's window holds them all;
        on a GPU captured where that works."""
        k, T = u.shape[1:]
        L = max(map(len, prompts))
        if self.captured and L + T <= policy.window:
            return captured.decode(policy, prompts, u, temperature)
        g = 1  # samples to a row
        if self.packs:
            fits = [g for g in range(2, k + 1) if k % g == 0 and g * T <= packed.PACK and L + g * T <= policy.window]
            g = max(fits, default=1)
        with folded(self.layers):
            if g == 1:
                return common.decode(policy, prompts, u, temperature)
            return packed.decode_packed(policy, prompts, u.unflatten(1, (-1, g)), temperature)

    def pays(self, prompts, completions, max_tokens, logits):
        """Whether scoring these completions the fast way is cheaper; with shared keys and values, by the number of
        tokens."""
        if self.packs:
            return not logits
        if any(len(x) + len(y) > max_tokens for x, y in zip(prompts, completions)):
            return False  # such a row needs its layers computed again, which keys and values handed out do not survive
        lengths = {}
        for x, y in zip(prompts, completions):
            lengths.setdefault(tuple(x), []).append(len(y))
        apart = sum(map(len, prompts)) + sum(map(len, completions))
        together = sum(len(x) + len(ys) * max(ys) for x, ys in lengths.items())  # padded to the longest of a prompt
        return apart > 1.25 * together  # what two forward passes for one, and wider attention, were measured to cost

    def score(self, policy, prompts, completions, temperature, max_tokens, logits=False):
        """common.score in the fast way."""
        if not self.packs:
            yield from shared.score_shared(policy, prompts, completions, temperature, max_tokens, logits)
            return
        packs = packed.packs_of(policy, prompts, completions)
        batches = packed.score_packs(policy, prompts, completions, packs, temperature, max_tokens)
        while True:
            # anew for each micro-batch: its backward frees the graph that leads to the adapter
            with folded(self.layers):
                batch = next(batches, None)
            if batch is None:
                return
            yield batch


def chooser(plain):
    """The argument `fast` of common.load_policy, by --plain."""
    return None if plain else choose_fast


def choose_fast(policy):
    """Which fast paths pay for this model and are right -> (Fast or None, the choice and its reason in words).

    By cost: packed rows and a copy of every weight, with its gradient, must be small beside the calls saved, which is
    so below 5 M parameters on a CPU; weights that are not float32 would lose small deltas when folded. They are right
    if the model gives the log-probabilities of two samples of a short prompt in either way: tried, whatever its name.
    """
    lm = policy.lm
    reason = why_plain(policy)
    if reason:
        return None, f"plain ({type(lm).__name__} {reason})"
    layers = lora_layers(policy)
    cannot = why_not_folded(policy, layers)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        policy.fast = None
        if policy.size < load.SMALL and not cannot:
            with folded(layers):
                mask = why_not(policy, packed.score_packs, [[0, 1]])
            if not mask and not decoding.known_masks(lm):
                mask = "its layers have masks of their own"
            if not mask:
                return Fast(layers, True), "fast (adapter folded into the weights, samples of a prompt share a row)"
            cannot = f"{type(lm).__name__} under a 4-D mask: {mask}"
        wrong = why_not(policy, shared.score_shared)
    if wrong:
        return None, f"plain ({type(lm).__name__} from a prompt's keys and values on: {wrong})"
    words = "samples of a prompt share its keys and values, "
    if policy.device.type == "cuda":
        found = Fast([], False, takes_wide(policy))
        return found, words + captured.where_possible(policy, found, layers)
    if cannot:
        return Fast([], False), words + f"adapter not folded into the weights ({cannot})"
    return Fast(layers, False), words + "adapter folded into the weights in rollouts"


@torch.no_grad()
def why_plain(policy):
    """Why a model cannot take any fast path, in words that follow its name; None if it may. A trial alone is not
    enough: with small random weights, the state of another row changes little."""
    if not policy.caches:
        return "has no cache that can be shared out: for each token its row is run again"
    if not policy.pads:
        return "is another under padding: only prompts of one length share a batch"
    ids = torch.ones(1, 2, dtype=torch.long, device=policy.device)
    if decoding.recurrent(policy.forward(ids, ids, common.positions_of(ids), 1, use_cache=True).past_key_values):
        return "has layers whose states go from token to token"
    return None


def why_not_folded(policy, layers):
    """Why the adapter cannot be folded into copies of the weights; None if it can."""
    from transformers.pytorch_utils import Conv1D
    bases = [layer.base_layer for _, _, layer in layers]
    plain = all(type(base) in (torch.nn.Linear, Conv1D) and base.weight.dtype == torch.float32 for base in bases)
    if policy.device.type != "cpu" or not plain:
        return "that needs linear layers in float32 on a CPU"
    if not plain_lora(policy):
        return "the adapter is more than W + s B A"
    copy = 4 * sum(base.weight.numel() for base in bases)
    if copy > load.free_memory(policy.device) / 4:
        return "the copy would take more than a quarter of the memory"
    return None


def why_not(policy, way, *packs):
    """Why this way of scoring two samples of a short prompt cannot be taken; None if it is right."""
    lm = policy.lm
    V = lm.config.get_text_config().vocab_size
    x = [[1 % V, 2 % V]] * 2
    y = [[3 % V, 4 % V, 5 % V], [5 % V, 3 % V]]
    (_, apart, _), = common.score(policy, x, y, 1.0, 2048)
    try:
        (_, found, _), = way(policy, x, y, *packs, 1.0, 2048)
    except (ValueError, RuntimeError) as error:  # what models raise whose mask has another shape (alibi)
        return load.first_line(error)
    # one order in both, the longest completion first; in less than float32 any order of sums is another number
    exact = apart.dtype == lm.dtype == torch.float32 and not getattr(lm, "is_quantized", False)
    return None if captured.near(apart, found, exact) else "other log-probabilities"


@torch.no_grad()
def takes_wide(policy):
    """Whether a token after a padded prompt has the same logits under both masks."""
    V = policy.lm.config.get_text_config().vocab_size
    ids, mask = common.left_pad([[1 % V, 2 % V, 3 % V], [4 % V]], policy.device)
    longer = F.pad(mask, (0, 1), value=1)
    found = []
    for read in (longer, decoding.additive(longer, policy.lm.dtype)):
        cache = policy.forward(ids, mask, common.positions_of(mask), 1, use_cache=True).past_key_values
        try:
            out = policy.forward(ids[:, :1], read, common.positions_of(longer)[:, -1:], 1, past_key_values=cache,
                                 use_cache=True)
        except (ValueError, RuntimeError):  # as in why_not
            return False
        found.append(out.logits[:, -1].float())
    return captured.near(*found, policy.lm.dtype == torch.float32)
