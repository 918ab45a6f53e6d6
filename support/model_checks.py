"""Requirements for a model to be sampled from: a stand-alone decoder, causal, with logits that do not depend on the
batch. Also tests whether it supports padded batches, and copying its cache to several samples.

The auto class of transformers for causal LMs also loads models such as BERT, which attend to the whole text by default,
and decoders of encoder-decoder models. All of them produce samples without a warning.
"""
import inspect
import math

import torch
import torch.nn.functional as F

from support.errors import UserError

TOKENS = 12  # length of a test row; less if the model has fewer positions
PADDING = 3  # padding columns of a test batch
CROSS = ("encoder_attn", "crossattention", "cross_attn", "EncDecAttention")  # names of cross-attention layers


def refuse(lm, model):
    """Raise UserError with the reason, unless `lm` is a decoder that can be sampled from, at least with prompts of
    equal length in a batch.  model: as the user named it."""
    name, hint = type(lm).__name__, "choose a decoder-only language model"
    if needs_encoder(lm):
        raise UserError(f"model {model!r} is the decoder of an encoder-decoder ({name} has attention to the states of "
                        f"an encoder) and was not made to continue text without it: {hint}")
    try:
        if not causal(lm):
            config = ", and its config says is_decoder false" * (getattr(lm.config, "is_decoder", None) is False)
            raise UserError(f"model {model!r} is not causal (in {name} a changed token changes what is predicted "
                            f"before it{config}): {hint}")
        different = differs_in_batch(lm, 0)
    except (torch.OutOfMemoryError, UserError):
        raise
    except Exception as error:  # a model may need other inputs than text, and may raise anything
        reason = str(error).strip().split("\n")[0]
        if not exact(lm):  # some models use a weight in ways that quantisation does not support
            hint = f"give --bits 32, or {hint}"
        raise UserError(f"model {model!r} cannot be run on tokens alone ({name}: {reason}): {hint}") from error
    if different:
        raise UserError(f"model {model!r} gives other log-probabilities {different} than to the same tokens alone, so "
                        f"samples of {name} would depend on the batch: {hint}")


def pads(lm):
    """Whether prompts of different lengths may share a left-padded batch. If padding affects the tokens after it, as in
    RWKV's recurrence, only prompts of equal length may."""
    return differs_in_batch(lm) is None


def needs_encoder(lm):
    """Whether this is the decoder of an encoder-decoder model. The class of such a decoder alone sets
    is_encoder_decoder to false in its own config, but keeps the layers that attend to the encoder."""
    if getattr(lm.config, "is_encoder_decoder", False):
        return True
    # Layers with these names may also read optional images, through another argument.
    if "encoder_hidden_states" not in inspect.signature(lm.forward).parameters and not has_decoder_of(lm):
        return False
    return any(path.rpartition(".")[2] in CROSS for path, _ in lm.named_modules())


def has_decoder_of(lm):
    """Whether a submodule takes the states of an encoder, even if the model's own forward does not show it."""
    return any("encoder_hidden_states" in inspect.signature(module.forward).parameters for module in lm.modules()
               if hasattr(module, "get_input_embeddings"))


def probe(lm):
    """Two rows of token ids [2, n] that agree in the first half and differ everywhere in the second."""
    size = lm.get_input_embeddings().weight.shape[0]
    room = getattr(lm.config.get_text_config(), "max_position_embeddings", None) or TOKENS + PADDING
    n = max(2, min(TOKENS, room - PADDING))
    first = (1 + 7 * torch.arange(n)) % size
    second = first.clone()
    second[n // 2:] = (first[n // 2:] + size // 2) % size
    return torch.stack([first, second]).to(lm.device)


def mean_gap(actual, expected):
    """Mean absolute difference. The maximum is not used, because in half precision a router may choose other experts
    for single tokens."""
    return (actual.float() - expected.float()).abs().mean().item()


def exact(lm):
    return lm.dtype == torch.float32 and not getattr(lm, "is_quantized", False)


def tolerance(lm):
    """Limit for the mean gap of logits due to rounding, relative to the variation of logits over positions."""
    return 1e-3 if exact(lm) else 0.1


@torch.no_grad()
def causal(lm):
    """Whether logits do not depend on later tokens, tested in one forward pass of two rows without padding.

    The effect of a change on earlier positions is compared with its effect on later ones, so that the test also works
    for a model with small random weights, in which tokens have little effect on each other.
    """
    one, other = lm(input_ids=probe(lm)).logits
    half = len(one) // 2
    leak = mean_gap(one[:half], other[:half])
    effect = mean_gap(one[half:], other[half:])
    strict = exact(lm) or getattr(lm.config, "is_decoder", None) is False  # this config setting makes a leak likely
    limit = 1e-4 if strict else 0.02
    return leak <= limit * effect


@torch.no_grad()
def differs_in_batch(lm, padding=PADDING):
    """Compare the logits of a row in batches with those of the row alone, without padding, mask and positions -> in
    which batch they differ, as text, or None. Calls the model as common.py does.  padding: columns on the left; 0: test
    with another row in the batch, and with padding on the right."""
    rows = probe(lm)
    row = rows[:1]
    known = inspect.signature(lm.forward).parameters
    expected = lm(input_ids=row).logits[0]
    spread = mean_gap(expected, expected.float().mean(0))  # variation over positions

    def same(ids, *sides):
        mask = F.pad(torch.ones_like(ids), sides)
        options = {}
        if "position_ids" in known:
            options["position_ids"] = mask.cumsum(-1).sub(1).clamp_min(0)
        out = lm(input_ids=F.pad(ids, sides), attention_mask=mask, **options)
        actual = out.logits[0, mask[0].bool()]
        return mean_gap(actual, expected) <= tolerance(lm) * spread

    if not same(row, 0, 0):
        return "to tokens whose positions are counted from 0"
    if padding and not same(row, padding, 0):
        return "to tokens after padding on the left"
    if not padding and not same(rows, 0, PADDING):
        return "to tokens beside another row"
    return None


@torch.no_grad()
def caches(lm):
    """Whether the model's cache can be copied to several samples of a prompt, and rows can be selected from it. The
    test would notice a tensor of the cache that is left out, because a row would then keep another row's states."""
    for module in lm.modules():
        limit = getattr(module, "time_step_limit", (0.0, math.inf))
        if tuple(limit) != (0.0, math.inf):
            return False  # transformers clamps the time steps of Mamba 2 when it scans a row, but not in decoding
    rows = probe(lm)
    known = inspect.signature(lm.forward).parameters
    n = rows.shape[1] - 2  # [2, n + 2]

    def forward(ids, length, **options):
        mask = torch.ones(len(ids), length, dtype=torch.long, device=ids.device)
        if "position_ids" in known:
            positions = mask.cumsum(-1) - 1
            options["position_ids"] = positions[:, -ids.shape[1]:]
        return lm(input_ids=ids, attention_mask=mask, use_cache=True, **options)

    def select(*chosen):
        cache.reorder_cache(torch.tensor(chosen, device=rows.device))
    try:
        expected = lm(input_ids=rows).logits
        cache = forward(rows[:, :n], n).past_key_values
        select(1, 0, 0, 1)
        first = forward(rows[[1, 0, 0, 1], n:-1], n + 1, past_key_values=cache)
        select(3, 1)
        second = forward(rows[[1, 0], -1:], n + 2, past_key_values=cache)
    except torch.OutOfMemoryError:
        raise
    except Exception:  # no cache, one without reorder_cache, or one that does not support a mask
        return False
    limit = tolerance(lm) * mean_gap(expected, expected.float().mean((0, 1)))
    gap = mean_gap(first.logits[:, -1], expected[[1, 0, 0, 1], n])
    next_gap = mean_gap(second.logits[:, -1], expected[[1, 0], n + 1])
    return gap <= limit and next_gap <= limit
