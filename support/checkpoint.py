"""Checks of a checkpoint: is every weight there, in which precision is it stored, are its numbers plausible?

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

SHOWN = 3  # names in a message
SAMPLED = 2 ** 16  # numbers of a weight that are looked at
LARGEST_DEVIATION = 10.0  # of a matrix; int8 numbers read as weights have 49 or more, those of FP8 about 100
LARGEST_VECTOR = 1e4  # of a norm or a bias, whose sizes differ more

# What files hold besides weights: constants that models compute themselves, and parts that no forward pass here uses.
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
TOWERS = r"(^|\.)(vision|visual|audio|image|video|multi_modal|embed_vision|embed_audio)"  # beside a text model
CAUSAL_HEAD = r"^(lm_head|embed_out)\."
SCORE_HEAD = r"^score\."
# What wrappers put into the names of a model that was saved with them on.
WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "base_model.model.", "module.", "base_layer.")

KINDS = r"attn|attention|mlp|ffn|feed_forward|experts|\.fc"  # matrices of attention and MLP


# ------------------------------------------------------------------------------------------ kept in another precision

def stored(model, config):
    """How the weights of a checkpoint are stored -> None (as plain numbers), BITSANDBYTES, FP8 or MXFP4.  Raises
    UserError for everything else: it would be read as if it were plain numbers, or needs kernels without a gradient."""
    settings = settings_of(config)
    if not settings:
        return None
    if settings.get("load_in_4bit") or settings.get("load_in_8bit"):
        return BITSANDBYTES
    method = str(settings.get("quant_method", "unnamed"))
    if method in (FP8, MXFP4):
        return method
    raise UserError(f"model {model!r} is quantised already, by a method that cannot be trained here ({method}): take "
                    "the unquantised model, and --bits 4 or 8 to quantise it")


def settings_of(config):
    """The quantisation settings of a checkpoint, a dict; empty if there are none."""
    for holder in (config, config.get_text_config()):
        for name in ("quantization_config", "compression_config"):
            found = getattr(holder, name, None)
            if found:
                return found if isinstance(found, dict) else found.to_dict()
    return {}


def own_bits(model, config, asked):
    """Bits of a checkpoint that bitsandbytes quantised.  Raises UserError where others are asked for."""
    bits = 4 if settings_of(config).get("load_in_4bit") else 8
    if asked not in (None, bits):
        raise UserError(f"--bits {asked}: model {model!r} is quantised already, to {bits} bits: leave --bits out, or "
                        "take the unquantised model")
    return bits


def made_trainable(config, dtype):
    """Set how a bitsandbytes checkpoint computes, not its weights, to the settings of load_base: in float16 gradients
    vanish, and with a threshold a draw would depend on the rest of the batch."""
    settings = settings_of(config)
    settings["bnb_4bit_compute_dtype"] = str(dtype).split(".")[-1]
    settings["llm_int8_threshold"] = 0.0
    for holder in (config, config.get_text_config()):
        if getattr(holder, "quantization_config", None):
            holder.quantization_config = settings
    return config


def check_scales(model, path, config):
    """Check the scales of an FP8 checkpoint: transformers divides a matrix evenly by its grid of scales, which is wrong
    if the last block is cut off.  Raises UserError for such a matrix, and for one without a scale."""
    block = settings_of(config).get("weight_block_size")
    found = tensors_of(path)
    bad = []
    for name, (kind, shape) in found.items():
        if not kind.startswith("F8_E4M3"):
            continue
        _, scale = found.get(f"{name}_scale_inv", (None, None))
        if scale is None or not even(shape, scale, block):
            bad.append(name)
    if bad or not found:
        what = listed(bad) if bad else "no safetensors file was found"
        raise UserError(f"model {model!r} is kept in FP8 with scales that cannot be applied here ({what}): take the "
                        "unquantised model")


def even(shape, scale, block):
    """Whether a grid of scales divides a matrix into equal blocks, those that the checkpoint's settings name."""
    if all(size == 1 for size in scale):  # one for the whole matrix
        return block is None or all(size <= most for size, most in zip(shape[-2:], block))
    if block is None or len(scale) < 2:
        return False
    for size, count, most in zip(shape[-2:], scale[-2:], block):
        whole = size % most == 0 and count == size // most
        if not whole and not (size <= most and count == 1):
            return False
    return True


def tensors_of(path):
    """{name: (type, shape)} of the safetensors files of a folder or a hub id, from their headers."""
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
    found = {}
    for name in files:
        with open(name, "rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(size))
        header.pop("__metadata__", None)
        found |= {key: (entry["dtype"], entry["shape"]) for key, entry in header.items()}
    return found


def plain_settings(method, options):
    """Add to the options of from_pretrained that the weights are wanted as plain numbers."""
    from transformers.utils import quantization_config as known
    name = {FP8: "FineGrainedFP8Config", MXFP4: "Mxfp4Config", "gguf": "GgufConfig"}[method]
    if method != "gguf" or hasattr(known, name):  # older transformers have no other way with GGUF
        options["quantization_config"] = getattr(known, name)(dequantize=True)
    return options


def in_one_precision(lm, dtype):
    """Cast unquantised weights, which transformers leaves in the file's precision, except those that the model keeps in
    float32."""
    kept = [*(lm._keep_in_fp32_modules or ()), *(lm._keep_in_fp32_modules_strict or ())]
    for name, p in lm.named_parameters():
        if p.is_floating_point() and not any(part in name for part in kept):
            p.data = p.data.to(dtype)


# ------------------------------------------------------------------------------------------------- what was not found

def check_weights(model, lm, report, fresh_head=False):
    """Read the loading report of a model, then look at its weights.  fresh_head: a score head is to be fitted, or comes
    with an adapter, so the checkpoint may lack one.  Raises UserError."""
    check_names(model, lm, report, fresh_head)
    check_shapes(model, lm)
    check_numbers(model, lm)


def check_names(model, lm, report, fresh_head):
    """Raises UserError for weights that are missing, have no place in the model or another size."""
    missing = without(report["missing_keys"], CONSTANTS + (SCORE_HEAD,) * fresh_head)
    extra = without(report["unexpected_keys"], harmless(lm))
    sizes = sorted({entry[0] for entry in report["mismatched_keys"]})
    faults = []
    if missing:
        faults.append(f"{counted(missing)} missing in its files ({listed(missing)})")
    if extra:
        faults.append(f"{counted(extra)} in its files without a place in the model ({listed(extra)})")
    if sizes:
        faults.append(f"{counted(sizes)} of another size than its config says ({listed(sizes)})")
    if report["error_msgs"]:
        faults.append(str(report["error_msgs"][0]).strip().split("\n")[0])
    if faults:
        raise UserError(f"model {model!r}: {' and '.join(faults)}: {advice(lm, extra)}")


def without(names, patterns):
    """Those of the names that no pattern is found in, sorted."""
    return sorted(name for name in names if not any(re.search(pattern, name) for pattern in patterns))


def harmless(lm):
    """Patterns of names that a file may hold without a place in this model."""
    patterns = CONSTANTS + UNUSED
    if hasattr(lm, "score"):
        patterns += (CAUSAL_HEAD,)
    config = lm.config.get_text_config()
    if not any(re.search(TOWERS, name) for name, _ in lm.named_modules()):
        patterns += (TOWERS,)
    # layers after the last one that predict further tokens: of as many as the config says, and no more
    first = getattr(config, "num_hidden_layers", 0) or 0
    for layer in range(first, first + (getattr(config, "num_nextn_predict_layers", 0) or 0)):
        patterns += (rf"(^|\.)layers\.{layer}\.",)
    return patterns


def listed(names):
    """The first names, and whether there are more."""
    return ", ".join(names[:SHOWN]) + ", ..." * (len(names) > SHOWN)


def counted(names):
    return f"{len(names):,} weight{'s are' if len(names) != 1 else ' is'}"


def advice(lm, extra):
    """What to do about it: wrappers that were saved along are known by their names."""
    known = lm.state_dict().keys()
    for wrapper in WRAPPERS:
        if any(wrapper in name and name.replace(wrapper, "") in known for name in extra):
            return f"the names hold {wrapper!r} of a wrapper, so save the model again without it, unwrapped or merged"
    saved = (lm.config.architectures or [None])[0]
    if saved not in (None, type(lm).__name__):
        return f"its config says {saved}, and it is read as {type(lm).__name__}, so take another model"
    return "give the files that belong to this config, or another model"


# --------------------------------------------------------------------------------------------- what the numbers are

def check_shapes(model, lm):
    """Sizes of what was quantised while loading, which transformers does not compare.  Raises UserError."""
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
        raise UserError(f"model {model!r}: {counted(bad)} of another size than its config says ({listed(bad)}): "
                        f"{advice(lm, [])}")


@torch.no_grad()
def check_numbers(model, lm):
    """Raises UserError unless a sample of every weight is finite and of ordinary size, and the first of each kind is
    not all zero. Later ones may be all zero, as layers added for training are at first."""
    names, measured = [], []
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
    for name, (largest, deviation) in zip(names, torch.stack(measured).tolist()):  # a GPU is waited for once
        what = None
        if not largest < float("inf"):  # nor NaN
            what = "holds numbers that are not finite"
        elif name in kinds and largest == 0:
            what = "is all zeros"
        elif deviation > LARGEST_DEVIATION:
            what = f"has a standard deviation of {deviation:.3g}, where that of weights is below {LARGEST_DEVIATION:g}"
        elif largest > LARGEST_VECTOR:
            what = f"holds numbers as large as {largest:.3g}"
        if what:
            raise UserError(f"model {model!r}: weight {name} {what}: its files are damaged or kept in a precision that "
                            "its config does not say, so fetch them again or take another model")


def sampled(weight):
    """Some of the numbers that a weight stands for, float32, evenly spaced; None where it has none. Of four bits: the
    largest numbers of its blocks."""
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
    """At most SAMPLED numbers of a tensor. An odd step walks through all columns of a matrix."""
    values = values.flatten()
    step = -(-values.numel() // SAMPLED)
    return values[::step + 1 - step % 2].float()


def largest_of_blocks(state):
    """The largest size of a number in each block of 4-bit ones."""
    if not state.nested:
        return state.absmax
    from bitsandbytes.functional import dequantize_blockwise
    return dequantize_blockwise(state.absmax, state.state2) + state.offset


def first_of_each(lm, names):
    """Names of the embedding, of the head, and of the first matrix of each name in attention and MLP."""
    ends = [lm.get_input_embeddings(), lm.get_output_embeddings()]
    wanted = {id(module.weight) for module in ends if hasattr(module, "weight")}
    parameters = dict(lm.named_parameters())
    found, seen = set(), set()
    for name in names:
        if id(parameters[name]) in wanted:
            found.add(name)
        role = re.sub(r"\.\d+\.", ".*.", name)
        if role in seen or parameters[name].dim() < 2 or not re.search(KINDS, name):
            continue
        seen.add(role)
        found.add(name)
    return found
