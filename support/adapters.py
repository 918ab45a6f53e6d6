"""Which layers a new adapter goes on, and how adapters made elsewhere are loaded: sampler, scorer, both references and
the saved adapter agree with plain peft, or the adapter is refused with the reason.

peft has some fifty kinds. Those that only add something inside the layers of the base need no care; `refusal` names
those that cannot work, and `check_adapter` tests the rest: a forward pass shows whether the base is unchanged.
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

CHANGING = ("pissa", "olora")  # initialisations that take their matrices out of the base, and could be computed again
CONVERT = ("convert it to a plain LoRA where it was trained, with peft's "
           "save_pretrained(..., path_initial_model_for_weight_conversion=...)")
MERGE = "merge it into its base (peft's merge_and_unload) and give the result as --model"
LOFTQ = f"LoftQ put another, quantised base in the place of this one, and the folder does not hold it: {MERGE}"


def linear_layers(lm):
    """Names of the layers that a new LoRA goes on: all linear ones but the output embedding. Left out are layers where
    it would have no effect, because the model reads the weight directly or text does not pass through, and layers where
    peft would put it on another tensor.  Raises ValueError if none is left."""
    from transformers.pytorch_utils import Conv1D
    head = lm.get_output_embeddings()
    linear = {name: module for name, module in lm.named_modules()
              if isinstance(module, (torch.nn.Linear, Conv1D)) and module is not head}
    left_out = read_by_kernels(lm)
    left_out |= {kind for kind in {leaf(name) for name in linear} if taken_for_experts(lm, kind)}
    reached = with_effect(lm, linear)
    names = [name for name in linear if name in reached and leaf(name) not in left_out]
    if not names:
        raise ValueError("there is no linear layer that it would have an effect on")
    return names


def leaf(name):
    return name.rpartition(".")[2]


def with_effect(lm, modules):
    """Names of the linear modules {name: module} that are called as layers, return a tensor of their size, and affect
    the logits: tested by the gradient of a zero that is added to their output."""
    zeros = {}

    def hook(name):
        def add(module, inputs, output):
            wide = module.out_features if isinstance(module, torch.nn.Linear) else module.nf
            if not torch.is_tensor(output) or output.shape != (*inputs[0].shape[:-1], wide):
                return None  # a linear layer of another kind: routers give several tensors, grouped ones another shape
            if not output.is_floating_point():  # the model casts the input to what a quantised weight is stored as
                raise ValueError(f"{name} computes in whole numbers where its weight is quantised: give --bits 32")
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
        for each in hooks:
            each.remove()
    return {name for name, zero in zeros.items() if zero.grad is not None}


def read_by_kernels(lm):
    """Names of layers whose weight the model's code hands to a kernel directly, like Mamba's out_proj. They are found
    in the source code, because such kernels run only on a GPU, and an adapter should be the same everywhere."""
    code = inspect.getsource(sys.modules[type(lm).__module__])
    return set(re.findall(r"self\.(\w+)\.weight(?:,| @)", code))


def taken_for_experts(lm, name):
    """Whether peft takes a layer of this name for a part of experts fused into one tensor, and would put the LoRA on
    all of that tensor."""
    import peft
    from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
    config = peft.LoraConfig(target_modules=[name])
    try:
        convert_peft_config_for_transformers(config, lm, None)
    except ValueError:  # it wants the other parts named as well
        return True
    return bool(config.target_parameters)


class Read(TorchFunctionMode):
    """Context that records the parameters used in computations."""

    def __init__(self):
        super().__init__()
        self.found = set()

    def __torch_function__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, (torch.Tensor, tuple, list)) and not isinstance(result, torch.Size):
            self.found |= {id(x) for x in (*args, *(kwargs or {}).values()) if isinstance(x, torch.nn.Parameter)}
        return result


@torch.no_grad()
def untouched(lm):
    """The matrices that text passes through and no adapter reaches, other than embeddings, in words: the names of their
    modules, the largest last; "" if there are none."""
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
        beside = any(other.startswith(f"{name}.") for other in adapted)  # the module's own tensors, not all of it
        for kind, tensor in module.named_parameters(recurse=False):
            if tensor.dim() > 1 and id(tensor) in read.found:
                said = kind if beside else leaf(name)
                if "experts" in name.split("."):
                    said = "experts"
                sizes[said] = sizes.get(said, 0) + tensor.numel()
    return ", ".join(sorted(sizes, key=sizes.get))


def put_on(lm, folder, start=None):
    """The model `lm` with the adapter of a folder, trainable, as "default"; with a frozen copy called `start`, if that
    is given.  Raises UserError with the reason, and whatever peft raises for a damaged folder or one of another
    model."""
    import peft
    contents.look_for_hub(folder)
    try:
        config = peft.PeftConfig.from_pretrained(folder)
    except KeyError as error:
        raise UserError(f"peft {peft.__version__} does not know its kind, {error}: take a newer one") from error
    except ImportError as error:  # LoftQ is refused, whether or not the package is there that it wants
        raise UserError(LOFTQ if "scipy" in str(error) else load.first_line(error)) from error
    reason = refusal(config) or contents.other_base(folder, getattr(lm, "source", lm.name_or_path))
    if reason:
        raise UserError(reason)
    saved = peft.utils.load_peft_weights(folder, device="cpu")
    damaged = [name for name, value in saved.items() if not value.isfinite().all()]
    if damaged:
        raise UserError(f"its weight {damaged[0]} holds numbers that are not finite: train it again, or take another")
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
    """Words where the folder of an adapter holds a tokenizer that writes a chat in another way than that of the base,
    which is used: the adapter was trained on other prompts; else "".  Raises what such a tokenizer raises."""
    names = os.listdir(folder) if os.path.isdir(folder) else []
    if not any(re.search(contents.TOKENIZER, name) for name in names):
        return ""
    import transformers
    own = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    chat = [("user", "4711")]
    said = [text.render(each, chat, answer=True) for each in (own, tokenizer) if each.chat_template]
    if not own.chat_template or len(said) == 2 and said[0] == said[1]:
        return ""
    return ", chat template of the base (the adapter's folder holds another one, which is not used)"


def refusal(config):
    """Why an adapter of this kind cannot be used, in words that end a sentence; None if it can be used or has to be
    tested."""
    kind = str(getattr(config.peft_type, "value", config.peft_type))
    init = str(getattr(config, "init_lora_weights", "")).lower()
    if config.is_prompt_learning:
        return (f"{kind} puts trained vectors beside the text, which peft does around the model and not in its layers, "
                "and the sampler calls the model itself: take an adapter of weights, such as LoRA")
    if kind in ("XLORA", "POLY", "SHADOW"):
        return (f"{kind} needs a forward pass of peft's own around the model, and the sampler calls the model itself: "
                "take one adapter of weights, such as LoRA")
    if getattr(config, "alora_invocation_tokens", None) is not None:
        return ("an activated LoRA (aLoRA) begins at its invocation tokens, which only peft's forward pass around the "
                "model looks for, and the sampler calls the model itself: train a plain LoRA")
    if getattr(config, "bias", "none") not in ("none", False, True):
        return (f"it trains biases of the base (bias={config.bias!r}), so that the base is not the base any more where "
                f"it is switched off: {MERGE}")
    if init.startswith("pissa_niter"):
        return ("PiSSA took its matrices out of the base by a decomposition that is drawn at random each time "
                f"({init}), and the folder does not hold them: {CONVERT}")
    if init in ("corda", "lora_ga"):
        return (f"{init} took its matrices out of the base by data, and the folder does not hold them: {CONVERT}")
    if init == "loftq":
        return LOFTQ
    if init in CHANGING and (config.use_dora or config.use_rslora and (config.rank_pattern or config.alpha_pattern)):
        return (f"{init} changes the base, and with DoRA, or rsLoRA and patterns of ranks, the change cannot be "
                f"written as a plain LoRA: {MERGE}")
    return None


def embeddings_in(saved, lm, config):
    """Names of whole embedding tables that an adapter carries without having trained them: peft saves those of layers
    with a LoRA.  Raises UserError where they are not those of the base."""
    found, owned = set(), tuple(getattr(config, "modules_to_save", None) or ())
    tables = {id(module): module for module in (lm.get_input_embeddings(), lm.get_output_embeddings()) if module}
    for path, module in lm.named_modules():
        for key in ("base_layer.weight", "weight") if id(module) in tables else ():
            name = f"base_model.model.{path}.{key}"
            if name not in saved:
                continue
            table, weight = saved[name], module.weight
            if len(table) != len(weight):
                raise UserError(f"it carries an embedding of {len(table):,} tokens where the base has {len(weight):,}, "
                                f"so tokens were added to its base: {MERGE}")
            if path.endswith(owned):  # trained, and an addition of its own
                continue
            if not torch.allclose(table.to(weight), weight, atol=1e-6, rtol=1e-2):
                raise UserError(f"it carries a whole table of its own for {path}, which peft puts in the place of the "
                                f"base's, so that this would not be the base any more: {MERGE}")
            found.add(name)
    return found


@contextlib.contextmanager
def plain(lm, config, folder, saved):
    """The folder to load an adapter from. If its kind changes the base on loading (W becomes W - s B0 A0), it is the
    folder of an equivalent plain LoRA of twice the rank: s (B A - B0 A0) beside W. The base then stays unchanged, for
    both references and for everyone who loads the saved adapter; peft would recompute B0 A0 from the current base each
    time."""
    if str(getattr(config, "init_lora_weights", "")).lower() not in CHANGING:
        yield folder
        return
    if getattr(lm, "is_quantized", False):
        raise UserError(f"{config.init_lora_weights} takes its matrices out of the base as it was before it was "
                        f"quantised: give --bits 32, or {CONVERT}")
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
    twice.lora_alpha *= math.sqrt(2) if config.use_rslora else 2  # the factor s stays
    twice.rank_pattern = {name: 2 * rank for name, rank in config.rank_pattern.items()}
    twice.alpha_pattern = {name: 2 * alpha for name, alpha in config.alpha_pattern.items()}
    with tempfile.TemporaryDirectory() as place:
        twice.save_pretrained(place)
        save_file(weights, os.path.join(place, "adapter_model.safetensors"))
        yield place


def initial_matrices(lm, config):
    """What peft computes from the base for an adapter of this kind -> its tensors by name. `lm` is left as it was."""
    import peft
    kept = [(p, p.data.clone()) for p in lm.parameters()]  # OLoRA writes into them, PiSSA replaces them
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


def near(lm, found, wanted):
    return mean_gap(found, wanted) <= (1e-3 if exact(lm) else 0.1) * mean_gap(wanted, wanted.float().mean())


def check_adapter(wrapped, lm, before):
    """Check that the base is unchanged, that the logits are the same with and without the peft wrapper, and that the
    model is still causal.  before: logits of the base.  Raises UserError."""
    kind = wrapped.peft_config["default"].peft_type.value
    with wrapped.disable_adapter():
        if not near(lm, logits(lm, lm), before):
            raise UserError(f"{kind} changes the base as it is loaded, so that the base could not be told from it: "
                            f"{MERGE}")
        padding = PADDING if pads(lm) else 0
    if not near(lm, logits(lm, lm), logits(wrapped, lm)):
        raise UserError(f"{kind} needs a forward pass of peft's own around the model, and the sampler calls the model "
                        "itself: take one adapter of weights, such as LoRA")
    if not causal(lm) or differs_in_batch(lm, padding):  # Lily's mixture is a mean over all tokens of a batch
        raise UserError(f"with {kind} what is said of a token depends on later ones, or on the rest of its batch, so "
                        "that samples would not be its own: take another kind of adapter, such as LoRA")


def check_start(wrapped, lm, start):
    """Check that the second copy of the adapter gives the logits of the first.  Raises UserError."""
    first = logits(lm, lm)
    wrapped.set_adapter(start)
    second = logits(lm, lm)
    wrapped.set_adapter("default")
    kind = wrapped.peft_config["default"].peft_type.value
    if not near(lm, second, first):
        raise UserError(f"{kind} is another one when it is loaded a second time, beside itself: {MERGE}")


def name_base(wrapped, model):
    """Write the base into the adapter's config so that peft finds it from any working directory: a hub id unchanged, a
    folder by its absolute path, a GGUF file by its folder (AutoPeftModelForCausalLM takes gguf_file=NAME)."""
    if model in load.EMBEDDED_MODELS:
        model = os.path.join(ROOT, "models", model)
    elif model.endswith(".gguf"):
        model = os.path.dirname(os.path.abspath(model))
    elif os.path.isdir(model):
        model = os.path.abspath(model)
    config = wrapped.peft_config["default"]
    config.base_model_name_or_path = model
    config.revision = None  # of the base that the adapter was made on, perhaps; this one was loaded without
