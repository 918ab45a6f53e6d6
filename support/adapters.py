"""Select the layers for a new adapter, and load adapters from other sources. An adapter is accepted only if sampler,
scorer, both references and the saved adapter agree with plain peft; otherwise an error gives the reason.

peft has about fifty kinds of adapters. Those that only add to layers of the base work; `refusal` names those that
cannot work, and `check_adapter` tests the others with a forward pass that shows whether the base is unchanged.
"""
import contextlib
import copy
import inspect
import math
import os
import re
import sys
import tempfile

import torch
from torch.overrides import TorchFunctionMode

from support import ROOT, contents, load, text
from support.errors import UserError
from support.model_checks import PADDING, causal, differs_in_batch, exact, mean_gap, pads, probe

CHANGING = ("pissa", "olora")  # initialisations that subtract their matrices from the base, and can be recomputed
CONVERT = ("convert it to a plain LoRA where it was trained, with peft's "
           "save_pretrained(..., path_initial_model_for_weight_conversion=...)")
MERGE = "merge it into its base (peft's merge_and_unload) and give the result as --model"
LOFTQ = f"LoftQ replaced the base by a quantised one, which is not in the folder: {MERGE}"


def linear_layers(lm):
    """Names of the layers for a new LoRA: all linear layers except the output embedding, layers where an adapter would
    have no effect (the model reads the weight directly, or text does not pass through), and layers where peft would
    adapt another tensor.  Raises ValueError if none is left."""
    from transformers.pytorch_utils import Conv1D
    head = lm.get_output_embeddings()
    linear = {name: module for name, module in lm.named_modules()
              if isinstance(module, (torch.nn.Linear, Conv1D)) and module is not head}
    left_out = read_by_kernels(lm)
    left_out |= {kind for kind in {leaf(name) for name in linear} if taken_for_experts(lm, kind)}
    reached = with_effect(lm, linear)
    names = [name for name in linear if name in reached and leaf(name) not in left_out]
    if not names:
        raise ValueError("there is no linear layer on which it would have an effect")
    return names


def leaf(name):
    return name.rpartition(".")[2]


def with_effect(lm, modules):
    """Names of the linear modules {name: module} that are called as layers, return a tensor of the expected size, and
    affect the logits, tested with the gradient of a zero that is added to their output."""
    zeros = {}

    def hook(name):
        def add(module, inputs, output):
            wide = module.out_features if isinstance(module, torch.nn.Linear) else module.nf
            if not torch.is_tensor(output) or output.shape != (*inputs[0].shape[:-1], wide):
                return None  # another kind of layer: routers return several tensors, grouped layers another shape
            if not output.is_floating_point():  # the model casts its input to the dtype of the quantised weight
                raise ValueError(f"{name} computes with integers if its weight is quantised: use --bits 32")
            if name not in zeros:  # some layers are called several times
                zeros[name] = torch.zeros((), dtype=output.dtype, device=output.device, requires_grad=True)
            return output + zeros[name]
        return add
    hooks = [module.register_forward_hook(hook(name)) for name, module in modules.items()]
    try:
        with torch.enable_grad():
            total = lm(input_ids=probe(lm)[:1], use_cache=False).logits.float().sum()
        if total.requires_grad:
            total.backward()
    finally:
        for handle in hooks:
            handle.remove()
    return {name for name, zero in zeros.items() if zero.grad is not None}


def read_by_kernels(lm):
    """Names of layers whose weight the model passes directly to a kernel, like Mamba's out_proj. They are found in the
    source code, because such kernels run only on a GPU, and an adapter should have the same layers everywhere."""
    code = inspect.getsource(sys.modules[type(lm).__module__])
    return set(re.findall(r"self\.(\w+)\.weight(?:,| @)", code))


def taken_for_experts(lm, name):
    """Whether peft treats a layer of this name as a part of experts that are fused into one tensor, and would adapt the
    whole tensor."""
    import peft
    from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
    config = peft.LoraConfig(target_modules=[name])
    try:
        convert_peft_config_for_transformers(config, lm, None)
    except ValueError:  # peft requires the other parts, too
        return True
    return bool(config.target_parameters)


class Read(TorchFunctionMode):
    """Context that records the parameters used in computations."""

    def __init__(self):
        super().__init__()
        self.used = set()

    def __torch_function__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, (torch.Tensor, tuple, list)) and not isinstance(result, torch.Size):
            self.used |= {id(x) for x in (*args, *(kwargs or {}).values()) if isinstance(x, torch.nn.Parameter)}
        return result


@torch.no_grad()
def untouched(lm):
    """Matrices other than embeddings that are used for text but have no adapter -> names of their modules as text,
    largest last; "" if there are none."""
    with Read() as read:
        lm(input_ids=probe(lm)[:1], use_cache=False)
    modules = dict(lm.named_modules())
    adapted = tuple(name for name, module in modules.items() if hasattr(module, "base_layer"))
    tables = [module for module in modules.values() if isinstance(module, torch.nn.Embedding)]
    tables.append(lm.get_output_embeddings())
    sizes = {}
    for name, module in modules.items():
        if any(f"{name}.".startswith(f"{other}.") for other in adapted) or any(module is table for table in tables):
            continue
        partly = any(other.startswith(f"{name}.") for other in adapted)  # submodules have adapters
        for kind, tensor in module.named_parameters(recurse=False):
            if tensor.dim() > 1 and id(tensor) in read.used:
                label = kind if partly else leaf(name)
                if "experts" in name.split("."):
                    label = "experts"
                sizes[label] = sizes.get(label, 0) + tensor.numel()
    return ", ".join(sorted(sizes, key=sizes.get))


def put_on(lm, folder, start=None):
    """Put the adapter of a folder on `lm`, trainable, as "default", and a frozen copy named `start`, if given -> the
    peft model.  Raises UserError with the reason, and whatever peft raises for a damaged folder or an adapter of
    another model."""
    import peft
    contents.look_for_hub(folder)
    try:
        config = peft.PeftConfig.from_pretrained(folder)
    except KeyError as error:
        raise UserError(f"peft {peft.__version__} does not support its kind, {error}: install a newer one") from error
    except ImportError as error:  # LoftQ is refused, whether or not the package that it needs is installed
        raise UserError(LOFTQ if "scipy" in str(error) else load.first_line(error)) from error
    reason = refusal(config) or contents.other_base(folder, getattr(lm, "source", lm.name_or_path))
    if reason:
        raise UserError(reason)
    saved = peft.utils.load_peft_weights(folder, device="cpu")
    damaged = [name for name, value in saved.items() if not value.isfinite().all()]
    if damaged:
        raise UserError(f"its weight {damaged[0]} has values that are not finite: train it again, or use another")
    tables = embeddings_in(saved, lm, config)
    before = logits(lm, lm)
    with plain(lm, config, folder, saved) as source:
        wrapped = peft.PeftModel.from_pretrained(lm, source, is_trainable=True).eval()
        mine = peft.get_peft_model_state_dict(wrapped, adapter_name="default", save_embedding_layers=False)
        if mine.keys() != saved.keys() - tables:
            raise ValueError("its layers are not those of this model")
        check_adapter(wrapped, lm, before)
        if start:
            wrapped.load_adapter(source, adapter_name=start, is_trainable=False)
            check_start(wrapped.eval(), lm, start)
    return wrapped


def template_note(folder, tokenizer):
    """A note if the folder of an adapter has a tokenizer with another chat template than the base's, which is used: the
    adapter was trained with other prompts; else "".  Raises whatever the tokenizer raises."""
    names = os.listdir(folder) if os.path.isdir(folder) else []
    if not any(re.search(contents.TOKENIZER, name) for name in names):
        return ""
    import transformers
    stored = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    chat = [("user", "4711")]
    rendered = [text.render(each, chat, answer=True) for each in (stored, tokenizer) if each.chat_template]
    if not stored.chat_template or len(rendered) == 2 and rendered[0] == rendered[1]:
        return ""
    return ", chat template of the base (the adapter's folder has another one, which is not used)"


def refusal(config):
    """Why an adapter of this kind cannot be used, as the end of a sentence; None if it can, or has to be tested."""
    kind = str(getattr(config.peft_type, "value", config.peft_type))
    init = str(getattr(config, "init_lora_weights", "")).lower()
    if config.is_prompt_learning:
        return (f"{kind} adds trained vectors to the input, which peft does in a wrapper around the model, but the "
                "sampler calls the model itself: use an adapter of weights, such as LoRA")
    if kind in ("XLORA", "POLY", "SHADOW"):
        return (f"{kind} needs peft's wrapper around the model, but the sampler calls the model itself: use an adapter "
                "of weights, such as LoRA")
    if getattr(config, "alora_invocation_tokens", None) is not None:
        return ("an activated LoRA (aLoRA) starts at its invocation tokens, which only peft's wrapper around the model "
                "looks for, but the sampler calls the model itself: train a plain LoRA")
    if getattr(config, "bias", "none") not in ("none", False, True):
        return (f"it trains biases of the base (bias={config.bias!r}), so switching it off does not restore the base: "
                f"{MERGE}")
    if init.startswith("pissa_niter"):
        return (f"PiSSA subtracted its initial matrices from the base, from a random decomposition ({init}), and the "
                f"folder does not contain them: {CONVERT}")
    if init in ("corda", "lora_ga"):
        return (f"{init} subtracted its initial matrices from the base, based on data, and the folder does not contain "
                f"them: {CONVERT}")
    if init == "loftq":
        return LOFTQ
    if init in CHANGING and (config.use_dora or config.use_rslora and (config.rank_pattern or config.alpha_pattern)):
        return (f"{init} changes the base, and with DoRA, or rsLoRA and rank patterns, the change cannot be expressed "
                f"as a plain LoRA: {MERGE}")
    return None


def embeddings_in(saved, lm, config):
    """Names of untrained embedding tables in a saved adapter: peft saves the whole table of an embedding with a LoRA.
    Raises UserError if one differs from the base's."""
    untrained = set()
    trained = tuple(getattr(config, "modules_to_save", None) or ())
    tables = {id(module): module for module in (lm.get_input_embeddings(), lm.get_output_embeddings()) if module}
    for path, module in lm.named_modules():
        for key in ("base_layer.weight", "weight") if id(module) in tables else ():
            name = f"base_model.model.{path}.{key}"
            if name not in saved:
                continue
            table, weight = saved[name], module.weight
            if len(table) != len(weight):
                raise UserError(f"it contains an embedding of {len(table):,} tokens, but the base has {len(weight):,}, "
                                f"so tokens were added to its base: {MERGE}")
            if path.endswith(trained):
                continue
            if not torch.allclose(table.to(weight), weight, atol=1e-6, rtol=1e-2):
                raise UserError(f"it contains another embedding table for {path}, which would replace the base's, so "
                                f"the base would change: {MERGE}")
            untrained.add(name)
    return untrained


@contextlib.contextmanager
def plain(lm, config, folder, saved):
    """Context with the folder to load an adapter from. For a kind that changes the base on loading (W becomes
    W - s B0 A0), this is a temporary folder with an equivalent plain LoRA of twice the rank, W + s (B A - B0 A0). So
    the base stays unchanged for both references and for users of the saved adapter; peft would recompute B0 A0 from the
    current base each time it is loaded."""
    if str(getattr(config, "init_lora_weights", "")).lower() not in CHANGING:
        yield folder
        return
    if getattr(lm, "is_quantized", False):
        raise UserError(f"{config.init_lora_weights} computes its initial matrices from the base before quantisation: "
                        f"use --bits 32, or {CONVERT}")
    from safetensors.torch import save_file
    initial = initial_matrices(lm, config)
    weights = {}
    for name, value in saved.items():
        first = initial[name]
        if "lora_A" in name:
            value = torch.cat([value, first.to(value)], 0)
        elif "lora_B" in name:
            value = torch.cat([value, -first.to(value)], 1)
        weights[name] = value.contiguous()
    twice = copy.deepcopy(config)
    twice.init_lora_weights = True
    twice.r *= 2
    twice.lora_alpha *= math.sqrt(2) if config.use_rslora else 2  # keeps the factor s
    twice.rank_pattern = {name: 2 * rank for name, rank in config.rank_pattern.items()}
    twice.alpha_pattern = {name: 2 * alpha for name, alpha in config.alpha_pattern.items()}
    with tempfile.TemporaryDirectory() as place:
        twice.save_pretrained(place)
        save_file(weights, os.path.join(place, "adapter_model.safetensors"))
        yield place


def initial_matrices(lm, config):
    """The initial matrices that peft computes from the base for an adapter of this kind -> {name: tensor}. `lm` is
    restored."""
    import peft
    kept = [(p, p.data.clone()) for p in lm.parameters()]  # OLoRA modifies the weights in place, PiSSA replaces them
    wrapped = peft.get_peft_model(lm, copy.deepcopy(config))
    state = peft.get_peft_model_state_dict(wrapped, save_embedding_layers=False)
    initial = {name: value.detach().cpu().clone() for name, value in state.items()}
    wrapped.unload()
    vars(lm).pop("peft_config", None)
    for p, data in kept:
        p.data = data
        p.requires_grad_(False)
    return initial


@torch.no_grad()
def logits(model, lm):
    return model(input_ids=probe(lm)[:1]).logits


def near(lm, actual, expected):
    """Whether logits are equal up to rounding, relative to their variation."""
    return mean_gap(actual, expected) <= (1e-3 if exact(lm) else 0.1) * mean_gap(expected, expected.float().mean())


def check_adapter(wrapped, lm, before):
    """Check that the base is unchanged, that logits are the same with and without the peft wrapper, and that the model
    is still causal and independent of the batch.  before: logits of the base.  Raises UserError."""
    kind = wrapped.peft_config["default"].peft_type.value
    with wrapped.disable_adapter():
        if not near(lm, logits(lm, lm), before):
            raise UserError(f"{kind} changes the base when it is loaded, so the base would not be available: {MERGE}")
        padding = PADDING if pads(lm) else 0
    if not near(lm, logits(lm, lm), logits(wrapped, lm)):
        raise UserError(f"{kind} needs peft's wrapper around the model, but the sampler calls the model itself: use an "
                        "adapter of weights, such as LoRA")
    if not causal(lm) or differs_in_batch(lm, padding):  # Lily averages over all tokens of a batch
        raise UserError(f"with {kind}, logits depend on later tokens or on the rest of the batch, so samples would be "
                        "wrong: use another kind of adapter, such as LoRA")


def check_start(wrapped, lm, start):
    """Check that the second copy of the adapter gives the same logits as the first.  Raises UserError."""
    first = logits(lm, lm)
    wrapped.set_adapter(start)
    second = logits(lm, lm)
    wrapped.set_adapter("default")
    kind = wrapped.peft_config["default"].peft_type.value
    if not near(lm, second, first):
        raise UserError(f"{kind} gives other logits when it is loaded a second time: {MERGE}")


def name_base(wrapped, model):
    """Set the base model in the adapter's config so that peft finds it from any working directory: a hub id, the
    absolute path of a folder, or the folder of a GGUF file (AutoPeftModelForCausalLM takes gguf_file=NAME)."""
    if model in load.EMBEDDED_MODELS:
        model = os.path.join(ROOT, "models", model)
    elif model.endswith(".gguf"):
        model = os.path.dirname(os.path.abspath(model))
    elif os.path.isdir(model):
        model = os.path.abspath(model)
    config = wrapped.peft_config["default"]
    config.base_model_name_or_path = model
    config.revision = None  # it may be a revision of another base
