"""Validate a checkpoint: are all weights there, in which precision are they stored, are their values plausible?

transformers initialises missing weights at random and drops unexpected ones; only its loading report says so.
`check_weights` reads that report.
"""
import glob
import json
import os
import re

import torch

from support.errors import UserError

BITSANDBYTES = "bitsandbytes"
FP8 = "fp8"
MXFP4 = "mxfp4"

SHOWN = 3  # most names in a message
SAMPLED = 2 ** 16  # most values of a weight that are examined
LARGEST_DEVIATION = 10.0  # of a matrix; int8 values read as weights have at least 49, FP8 values about 100
LARGEST_VECTOR = 1e4  # of a norm or a bias, which vary more

# Tensors in files besides used weights: constants that models compute, and parts that no forward pass here uses.
CONSTANTS = (
    r"(^|\.)inv_freq$",
    r"(^|\.)position_ids$",
    r"(^|\.)(cos|sin)_cached$",
    r"(^|\.)(attn|attention|self_attn|self_attention)\.(bias|masked_bias)$",
)
UNUSED = (
    r"(^|\.)mtp(_\w+)?\.",  # multi-token prediction
    r"^v_head\.",  # value head of a policy that PPO trained
)
TOWERS = r"(^|\.)(vision|visual|audio|image|video|multi_modal|embed_vision|embed_audio)"  # other modalities
CAUSAL_HEAD = r"^(lm_head|embed_out)\."
SCORE_HEAD = r"^score\."
# Parts of names from wrappers that a model was saved with
WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "base_model.model.", "module.", "base_layer.")

KINDS = r"attn|attention|mlp|ffn|feed_forward|experts|\.fc"  # matrices of attention and MLP


# ------------------------------------------------------------------------------------------ kept in another precision

def stored(model, config):
    """How the weights of a checkpoint are stored -> None (unquantised), BITSANDBYTES, FP8 or MXFP4.  Raises UserError
    for other formats, which would be read as if they were unquantised, or need kernels without a gradient."""
    settings = settings_of(config)
    if not settings:
        return None
    if settings.get("load_in_4bit") or settings.get("load_in_8bit"):
        return BITSANDBYTES
    method = str(settings.get("quant_method", "unnamed"))
    if method in (FP8, MXFP4):
        return method
    raise UserError(f"model {model!r} is already quantised, with a method that cannot be trained here ({method}): use "
                    "the unquantised model, and --bits 4 or 8 to quantise it")


def settings_of(config):
    """The quantisation settings of a checkpoint, a dict; empty if there are none."""
    for holder in (config, config.get_text_config()):
        for name in ("quantization_config", "compression_config"):
            settings = getattr(holder, name, None)
            if settings:
                return settings if isinstance(settings, dict) else settings.to_dict()
    return {}


def own_bits(model, config, asked):
    """Bits of a checkpoint that bitsandbytes quantised.  Raises UserError if --bits (`asked`) differs."""
    bits = 4 if settings_of(config).get("load_in_4bit") else 8
    if asked not in (None, bits):
        raise UserError(f"--bits {asked}: model {model!r} is already quantised to {bits} bits: leave --bits out, or "
                        "use the unquantised model")
    return bits


def made_trainable(config, dtype):
    """Set the compute options of a bitsandbytes checkpoint to those of load_base: in float16 gradients vanish, and with
    a threshold samples would depend on the batch. The weights stay the same."""
    settings = settings_of(config)
    settings["bnb_4bit_compute_dtype"] = str(dtype).split(".")[-1]
    settings["llm_int8_threshold"] = 0.0
    for holder in (config, config.get_text_config()):
        if getattr(holder, "quantization_config", None):
            holder.quantization_config = settings
    return config


def check_scales(model, path, config):
    """Check the scales of an FP8 checkpoint. transformers divides a matrix evenly by its grid of scales, which is wrong
    if the last block is smaller.  Raises UserError for such a matrix, and for one without scales."""
    block = settings_of(config).get("weight_block_size")
    tensors = tensors_of(path)
    bad = []
    for name, (kind, shape) in tensors.items():
        if not kind.startswith("F8_E4M3"):
            continue
        _, scale = tensors.get(f"{name}_scale_inv", (None, None))
        if scale is None or not even(shape, scale, block):
            bad.append(name)
    if bad or not tensors:
        reason = listed(bad) if bad else "no safetensors file was found"
        raise UserError(f"model {model!r} is stored in FP8 with scales that cannot be applied here ({reason}): use the "
                        "unquantised model")


def even(shape, scale, block):
    """Whether a grid of scales divides a matrix into equal blocks, of the size in the checkpoint's settings."""
    if all(size == 1 for size in scale):  # one scale for the whole matrix
        return block is None or all(size <= most for size, most in zip(shape[-2:], block))
    if block is None or len(scale) < 2:
        return False
    for size, count, most in zip(shape[-2:], scale[-2:], block):
        whole = size % most == 0 and count == size // most
        if not whole and not (size <= most and count == 1):
            return False
    return True


def tensors_of(path):
    """{name: (type, shape)} of the tensors in the safetensors files of a folder or hub id, from the file headers."""
    from transformers.utils import cached_file
    if os.path.isdir(path):
        files = glob.glob(os.path.join(path, "*.safetensors"))
    else:
        index = cached_file(path, "model.safetensors.index.json", _raise_exceptions_for_missing_entries=False)
        names = ["model.safetensors"]
        if index:
            with open(index) as file:
                names = sorted(set(json.load(file)["weight_map"].values()))
        files = [cached_file(path, name) for name in names]
    tensors = {}
    for name in files:
        with open(name, "rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(size))
        header.pop("__metadata__", None)
        tensors |= {key: (entry["dtype"], entry["shape"]) for key, entry in header.items()}
    return tensors


def plain_settings(method, options):
    """Add the option to de-quantise the weights to the options of from_pretrained -> the options."""
    from transformers.utils import quantization_config as known
    name = {FP8: "FineGrainedFP8Config", MXFP4: "Mxfp4Config", "gguf": "GgufConfig"}[method]
    if method != "gguf" or hasattr(known, name):  # older versions of transformers always de-quantise GGUF
        options["quantization_config"] = getattr(known, name)(dequantize=True)
    return options


def in_one_precision(lm, dtype):
    """Cast unquantised weights, which transformers leaves in the file's precision, to one dtype, except those that the
    model keeps in float32."""
    kept = [*(lm._keep_in_fp32_modules or ()), *(lm._keep_in_fp32_modules_strict or ())]
    for name, p in lm.named_parameters():
        if p.is_floating_point() and not any(part in name for part in kept):
            p.data = p.data.to(dtype)


# ------------------------------------------------------------------------------------------------- what was not found

def check_weights(model, lm, report, fresh_head=False):
    """Check the loading report of a model, and its weights.  fresh_head: the checkpoint may lack a score head, because
    it is to be fitted or comes with an adapter.  Raises UserError."""
    check_names(model, lm, report, fresh_head)
    check_shapes(model, lm)
    check_numbers(model, lm)


def check_names(model, lm, report, fresh_head):
    """Raises UserError for weights that are missing, unexpected, or of another size."""
    missing = without(report["missing_keys"], CONSTANTS + (SCORE_HEAD,) * fresh_head)
    extra = without(report["unexpected_keys"], harmless(lm))
    sizes = sorted({entry[0] for entry in report["mismatched_keys"]})
    faults = []
    if missing:
        faults.append(f"{counted(missing)} missing from its files ({listed(missing)})")
    if extra:
        faults.append(f"{counted(extra)} in its files but not in the model ({listed(extra)})")
    if sizes:
        faults.append(f"{counted(sizes)} not of the size in its config ({listed(sizes)})")
    if report["error_msgs"]:
        faults.append(str(report["error_msgs"][0]).strip().split("\n")[0])
    if faults:
        raise UserError(f"model {model!r}: {' and '.join(faults)}: {advice(lm, extra)}")


def without(names, patterns):
    """The names that match none of the patterns, sorted."""
    return sorted(name for name in names if not any(re.search(pattern, name) for pattern in patterns))


def harmless(lm):
    """Patterns for names of unexpected tensors that do no harm."""
    patterns = CONSTANTS + UNUSED
    if hasattr(lm, "score"):
        patterns += (CAUSAL_HEAD,)
    config = lm.config.get_text_config()
    if not any(re.search(TOWERS, name) for name, _ in lm.named_modules()):
        patterns += (TOWERS,)
    # Layers after the last one that predict further tokens: as many as the config says, not more
    first = getattr(config, "num_hidden_layers", 0) or 0
    for layer in range(first, first + (getattr(config, "num_nextn_predict_layers", 0) or 0)):
        patterns += (rf"(^|\.)layers\.{layer}\.",)
    return patterns


def listed(names):
    """The first names as text, with dots if there are more."""
    return ", ".join(names[:SHOWN]) + ", ..." * (len(names) > SHOWN)


def counted(names):
    return f"{len(names):,} weight{'s are' if len(names) != 1 else ' is'}"


def advice(lm, extra):
    """What to do about wrong names; names of wrappers show that they were saved with the model."""
    known = lm.state_dict().keys()
    for wrapper in WRAPPERS:
        if any(wrapper in name and name.replace(wrapper, "") in known for name in extra):
            return f"the names contain {wrapper!r} of a wrapper, so save the model again, unwrapped or merged"
    saved = (lm.config.architectures or [None])[0]
    if saved not in (None, type(lm).__name__):
        return f"its config names {saved}, but it is loaded as {type(lm).__name__}, so use another model"
    return "use the files that belong to this config, or another model"


# --------------------------------------------------------------------------------------------- what the numbers are

def check_shapes(model, lm):
    """Check the shapes of weights that were quantised while loading, which transformers does not.  Raises UserError."""
    bad = []
    for name, module in lm.named_modules():
        weight = getattr(module, "weight", None)
        state = getattr(weight, "quant_state", None)
        if state is None and not hasattr(weight, "SCB"):
            continue
        shape = weight.shape if state is None else state.shape
        if tuple(shape) != (module.out_features, module.in_features):
            bad.append(f"{name}.weight")
    if bad:
        raise UserError(f"model {model!r}: {counted(bad)} not of the size in its config ({listed(bad)}): "
                        f"{advice(lm, [])}")


@torch.no_grad()
def check_numbers(model, lm):
    """Raises UserError unless sampled values of all weights are finite and of ordinary size, and the first matrix of
    each kind is not all zeros. Later ones may be, because layers added for training often start at zero."""
    names = []
    measured = []
    for name, weight in lm.named_parameters():
        values = sampled(weight)
        if values is None:
            continue
        names.append(name)
        deviation = values.std(correction=0) if weight.dim() > 1 else torch.zeros_like(values[0])
        measured.append(torch.stack((values.abs().max(), deviation)))
    if not names:
        return
    kinds = first_of_each(lm, names)
    for name, (largest, deviation) in zip(names, torch.stack(measured).tolist()):  # wait for a GPU only once
        fault = None
        if not largest < float("inf"):  # also NaN
            fault = "has values that are not finite"
        elif name in kinds and largest == 0:
            fault = "is all zeros"
        elif deviation > LARGEST_DEVIATION:
            fault = f"has a standard deviation of {deviation:.3g}, but weights have less than {LARGEST_DEVIATION:g}"
        elif largest > LARGEST_VECTOR:
            fault = f"has values as large as {largest:.3g}"
        if fault:
            raise UserError(f"model {model!r}: weight {name} {fault}: its files are damaged, or stored in a precision "
                            "that its config does not name, so download them again or use another model")


def sampled(weight):
    """Evenly spaced values of a weight, de-quantised, float32; None if it has none. For 4-bit weights: the largest
    value of each block."""
    state = getattr(weight, "quant_state", None)
    if state is not None:
        return spaced(largest_of_blocks(state))
    if weight.numel() == 0:
        return None
    scales = getattr(weight, "SCB", None)
    if scales is not None:
        step = -(-weight.numel() // SAMPLED)
        return (weight.data[::step].float() * scales.to(weight.device)[::step, None] / 127).flatten()
    return spaced(weight.data) if weight.is_floating_point() else None


def spaced(values):
    """About SAMPLED values of a tensor. An odd step visits all columns of a matrix."""
    values = values.flatten()
    step = -(-values.numel() // SAMPLED)
    return values[::step + 1 - step % 2].float()


def largest_of_blocks(state):
    """The largest absolute value of each block of 4-bit weights."""
    if not state.nested:
        return state.absmax
    from bitsandbytes.functional import dequantize_blockwise
    return dequantize_blockwise(state.absmax, state.state2) + state.offset


def first_of_each(lm, names):
    """Names of the embedding, the head, and the first matrix of each kind in attention and MLP."""
    ends = [lm.get_input_embeddings(), lm.get_output_embeddings()]
    embeddings = {id(module.weight) for module in ends if hasattr(module, "weight")}
    parameters = dict(lm.named_parameters())
    first = set()
    seen = set()
    for name in names:
        if id(parameters[name]) in embeddings:
            first.add(name)
        role = re.sub(r"\.\d+\.", ".*.", name)
        if role in seen or parameters[name].dim() < 2 or not re.search(KINDS, name):
            continue
        seen.add(role)
        first.add(name)
    return first
