"""Loading a frozen base in any precision, and what fits into memory."""
import contextlib
import ctypes
import functools
import importlib.util
import io
import logging
import math
import os
import re
import sys
import warnings

import torch
import torch.utils.checkpoint

from support import ROOT, checkpoint, contents, processes, text
from support.contents import EMBEDDED_MODELS
from support.errors import UserError

SMALL = 5e6  # parameters; below, a step costs calls and not arithmetic, and defaults are those of the embedded models


def set_threads(parameters):
    """One thread for a tiny model on a CPU, where two are slower even on an idle machine; torch's default otherwise,
    and tensors whose memory is kept: glibc gives that of large ones back, and each gets its pages anew, which is a
    fifth of a step of 135 M parameters."""
    if parameters < SMALL:
        torch.set_num_threads(1)
        return
    with contextlib.suppress(OSError, AttributeError, TypeError):  # not glibc
        libc = ctypes.CDLL(None)
        libc.mallopt(-3, 2 ** 30)  # M_MMAP_THRESHOLD
        libc.mallopt(-1, 2 ** 31 - 1)  # M_TRIM_THRESHOLD


def first_line(error):
    """The first line of an error, for libraries that raise a dozen types with a page of advice each."""
    return str(error).strip().split("\n")[0]


def default_bits(device):
    """Precision of the base if none is asked for."""
    return 4 if device.type == "cuda" else 32


def bits_of(policy):
    """Precision that the base of a policy is held in, which its checkpoint may have set; None where none was loaded."""
    lm = getattr(policy, "lm", None)
    return getattr(lm, "bits", None)


def learning_rate(parameters, supervised):
    """Default of --lr for a base of this size, in parameters -> (rate, the reason in words). Steps over what the field
    uses with LoRA; samples move a policy further than gold completions at the same rate, so RL has half or less."""
    sizes = {SMALL: (2e-3, 2e-3), 1e8: (5e-4, 5e-4), 1e9: (2e-4, 1e-4), math.inf: (1e-4, 2e-5)}
    sft, rl = sizes[min(most for most in sizes if parameters < most)]
    mode, rate = ("SFT", sft) if supervised else ("RL", rl)
    return rate, f"default of {mode} for {parameters / 1e6:,.1f} M parameters"


def put_prompts(policy, task, chat=None, system=None):
    """Set how prompts are given to a policy -> the choice, in words; for your own data also what was understood, the
    first prompt as the model gets it and its gold answer.  Raises UserError."""
    words = choose_template(policy, task, chat, system)
    if not getattr(task, "understood", ""):
        return words
    prompts = [problem.prompt for problem in task.train + task.valid + task.test]
    words = leave_written(policy, task, prompts, chat, system) or words
    if task.chat and policy.tokenizer.chat_template:
        check_system_messages(policy.tokenizer, prompts)
    problem = next(iter(task.train or task.valid or task.test))
    (shown,), _ = policy.put([problem.prompt], task.chat)
    if isinstance(problem.prompt, text.Chat) and not task.chat:
        words += ", of chat messages their texts one after the other"
    words = f"{words}\n{task.understood}\nthe first prompt is {in_short(shown)}"
    if not (problem.answer or problem.solution):  # what judges it needs none
        return words
    kind = "completion" if problem.answer is None else "answer"
    return f"{words}, its gold {kind} {in_short(problem.answer or problem.solution)}"


def in_short(words, most=300):
    """A text in quotes; of a long one only the beginning and the end."""
    return repr(words) if len(words) <= most else f"{words[:most // 2]!r} ... {words[-most // 2:]!r}"


def choose_template(policy, task, chat, system):
    """Resolve --chat and --system: sets task.chat, and system, stop and end of the policy -> what was chosen, in words.
    Raises UserError."""
    if not policy.tokenizer.chat_template and (chat or system):
        raise UserError(f"{'--chat' if chat else '--system'}: the tokenizer of this model has no chat template: leave "
                        "it out, or add chat_template to its tokenizer_config.json")
    task.chat = task.chat if chat is None else chat
    used = task.chat and bool(policy.tokenizer.chat_template)
    if system and not used:
        raise UserError("--system needs prompts that go through the chat template: add --chat")
    policy.system = system
    if not used:
        policy.end = policy.tokenizer.eos_token_id
        return "as they are"
    try:
        policy.encode("prompt", task.chat)
    except Exception as error:  # a template is a program, and raises what it likes
        leave = "leave out --system, or " * bool(system)
        raise UserError(f"the chat template of this model cannot be used ({first_line(error)}): {leave}give --no-chat"
                        ) from error
    if text.leaves_out(policy.tokenizer, "user"):
        raise UserError("the chat template of this model leaves out what the user says, so that all prompts would be "
                        "alike: give --no-chat, or a tokenizer with another template")
    if system and text.leaves_out(policy.tokenizer, "system"):
        raise UserError("--system: the chat template of this model leaves the system message out: put what it says "
                        "into the prompts")
    words = "through the chat template" + ", with a system message" * bool(system)
    words += f", whose clock says {text.DAY:%d %b %Y}" * text.has_clock(policy.tokenizer)
    return words + end_turns(policy)


def check_system_messages(tokenizer, prompts):
    """Raises UserError if there are any in the prompts and the chat template leaves them out."""
    roles = {role for prompt in prompts for role, _ in text.turns_of(prompt)}
    if "system" in roles and text.leaves_out(tokenizer, "system"):
        raise UserError("--data: there are prompts with a system message, which the chat template of this model leaves "
                        "out: put what it says into the user's, or give --no-chat")


def leave_written(policy, task, prompts, chat, system):
    """Leave prompts as they are that have been through the chat template already: through it again, each would be a
    message in a message -> this in words, None where they have not been.  Raises UserError."""
    if not policy.tokenizer.chat_template:
        return None
    written = sum(text.is_written(policy.tokenizer, prompts))
    if not written:
        return None
    if chat or system:
        raise UserError(f"{'--chat' if chat else '--system'}: {written:,} of {len(prompts):,} prompts have been "
                        "through the chat template already: leave it out")
    if written < len(prompts) and task.chat:
        raise UserError(f"{written:,} of {len(prompts):,} prompts have been through the chat template already, the "
                        "others not: give --no-chat, or make them alike")
    task.chat = False
    return "as they are, with the chat template in them" + end_turns(policy)


def end_turns(policy):
    """Let the token that ends a turn in the chat template end completions, gold ones too -> this in words.  Raises
    UserError."""
    end = text.end_of_turn(policy.tokenizer, policy.stop)
    policy.end = policy.tokenizer.eos_token_id
    if end is not None:
        policy.known([end])
        policy.end = end
        policy.stop = sorted({*policy.stop, end})
        return f", whose turns end with {text.name_of(policy.tokenizer, end)}, and so completions"
    return ""


def load_base(model, bits=None, device=None, kind="AutoModelForCausalLM", **options):
    """Load a frozen model of a transformers auto class, quantised if asked, and its tokenizer.
    Returns (model, tokenizer, note on device and precision).  Raises UserError as load_policy does."""
    model = contents.located(model, "--model")
    # bitsandbytes warns that an optional kernel is absent, and of a cast in every 8-bit product.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    import transformers
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    device = device_of(device)
    asked = bits
    bits = default_bits(device) if asked is None else asked
    dtype = compute_dtype(bits, device)
    if device.type == "cuda":
        torch.cuda.set_device(device)  # for what asks for no particular one
        torch.backends.cuda.enable_cudnn_sdp(False)  # it plans anew for each shape, and keys grow with every token
        # peft computes the adapter in float32: beside a base in bfloat16 ten bits of its products are enough
        torch.set_float32_matmul_precision("high" if dtype == torch.bfloat16 else "highest")
    how = {"dtype": dtype, "quantization_config": quantisation(bits, dtype), "device_map": {"": device}}
    path = path_of(model, kind, options)
    contents.look_for_hub(model)
    try:
        with warnings.catch_warnings(), quiet():
            warnings.simplefilter("ignore")
            lm, tokenizer, method = read_files(model, path, kind, options, how, asked)
    except (torch.OutOfMemoryError, UserError):
        raise
    except Exception as error:  # transformers raises a dozen types here
        raise cannot_load(model, error) from error
    lm.bits = bits
    lm.source = model
    if method == checkpoint.BITSANDBYTES:
        lm.bits = checkpoint.own_bits(model, lm.config, None)
    as_expected(lm)
    if device.type != "cuda":
        set_threads(sum(p.numel() for p in lm.parameters()))
    return lm, tokenizer, note_on(lm, device, dtype, asked, method)


def device_of(asked):
    """The device asked for (cpu, cuda, cuda:1; None: a GPU where there is one), of several processes on GPUs the one
    with this process's own number.  Raises UserError if there is no such device."""
    if asked is None:
        asked = "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, number = str(asked).partition(":")
    if kind == "mps":
        raise UserError(f"--device {asked}: mps lacks float64, in which tokens are drawn and sums are taken, and "
                        "bitsandbytes, which keeps a base in 4 or 8 bits: give cpu")
    if not re.fullmatch(r"cpu|cuda(:\d+)?", str(asked)):
        raise UserError(f"--device {asked}: choose cpu, cuda or cuda:NUMBER")
    if kind == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise UserError(f"--device {asked}: torch sees no GPU here: check the driver, or give cpu")
    if number and processes.WORLD > 1:
        raise UserError(f"--device {asked} would put all {processes.WORLD} processes on one GPU: give cuda, and each "
                        "takes its own")
    number = int(number or os.environ.get("LOCAL_RANK", 0))
    count = torch.cuda.device_count()
    if number >= count:
        raise UserError(f"--device {asked}: there is no GPU {number}, torch sees {count}, counted from 0: choose one "
                        "of those, start no more processes than there are GPUs, or give cpu")
    return torch.device("cuda", number)


def compute_dtype(bits, device):
    """The precision that a base of this many bits is computed in: bfloat16 if the hardware has it. Never float16:
    without loss scaling its gradients vanish.  Raises UserError for bits that do not exist, or not on this device."""
    if bits not in (4, 8, 16, 32):
        raise UserError(f"--bits {bits}: choose 4, 8, 16 or 32")
    bf16 = bits == 16
    if device.type == "cuda":
        bf16 = has_bfloat16()
    if bits == 16 and not bf16:
        raise UserError(f"--bits 16 needs bfloat16, which {torch.cuda.get_device_name(device)} does not have: give 4, "
                        "8 or 32")
    return torch.bfloat16 if bf16 and bits != 32 else torch.float32


def has_bfloat16():
    """Whether the GPU computes in bfloat16 itself."""
    return torch.cuda.is_bf16_supported(including_emulation=False)


def quantisation(bits, dtype):
    """The settings of bitsandbytes for this many bits; None where nothing is quantised."""
    from transformers import BitsAndBytesConfig
    if bits == 4:
        return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
                                  bnb_4bit_compute_dtype=dtype)
    if bits == 8:
        # With a threshold, columns are chosen for all rows at once, and a draw would depend on what else is drawn.
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=0.0)
    return None


def path_of(model, kind, options):
    """The path or hub id of a model; the name of a GGUF file is added to the options.  Raises UserError."""
    if model in EMBEDDED_MODELS:
        return os.path.join(ROOT, "models", model)
    if not model.endswith(".gguf"):
        return model
    if kind != "AutoModelForCausalLM":
        raise UserError(f"model {model!r}: a GGUF file can be a policy, not a verifier: give a hub id or a directory")
    if importlib.util.find_spec("gguf") is None:
        raise UserError(f"--model {model}: to read GGUF files, pip install gguf")
    path, options["gguf_file"] = os.path.split(os.path.abspath(model))
    return path


def read_files(model, path, kind, options, how, asked):
    """Read config, tokenizer and weights, and check that they are complete.  how: options of from_pretrained; asked:
    bits, or None.  Returns (model, tokenizer, how its files keep the weights: None, "gguf" or a name of
    support/checkpoint.py).  Raises UserError; whatever transformers raises."""
    import transformers
    auto = getattr(transformers, kind)
    no_code = {"trust_remote_code": False}  # a checkpoint's own; without it transformers asks at the terminal
    both = {"output_loading_info": True, "ignore_mismatched_sizes": True, **no_code}
    config = transformers.AutoConfig.from_pretrained(path, **no_code, **options)  # small, and first
    if getattr(config, "is_encoder_decoder", False):
        raise UserError(f"model {model!r} is an encoder-decoder or is the decoder of an encoder-decoder "
                        f"({config.model_type}): choose a decoder-only language model")
    named = {name: value for name, value in options.items() if name == "gguf_file"}
    tokenizer = transformers.AutoTokenizer.from_pretrained(path, **no_code, **named)
    method = "gguf" if named else checkpoint.stored(model, config)
    if method == checkpoint.FP8:
        checkpoint.check_scales(model, path, config)
    again = False  # whether it is de-quantised and then quantised as asked
    if method == checkpoint.BITSANDBYTES:
        # of a verifier --bits says nothing: it is that of the policy, and this one has its own
        checkpoint.own_bits(model, config, asked if kind == "AutoModelForCausalLM" else None)
        config = checkpoint.made_trainable(config, how["dtype"])
        lm, report = auto.from_pretrained(path, config=config, dtype=how["dtype"], device_map=how["device_map"], **both)
    elif method is None:
        lm, report = auto.from_pretrained(path, **how, **options, **both)
    else:
        again = how["quantization_config"] is not None
        device_map = {"": "cpu"} if again else how["device_map"]
        plain = checkpoint.plain_settings(method, dict(named))
        lm, report = auto.from_pretrained(path, config=config, dtype=how["dtype"], device_map=device_map, **plain,
                                          **both)
        if method != "gguf":
            checkpoint.in_one_precision(lm, how["dtype"])
        lm = without_trace(lm)
    if hasattr(lm, "peft_config"):
        raise UserError(f"model {model!r} holds an adapter beside its weights, which transformers puts on them: give "
                        "its base as --model and it as --adapter, or move adapter_config.json out of it")
    checkpoint.check_weights(model, lm, report, fresh_head="num_labels" in options)
    if again:  # transformers does not do both at once; this needs no copy on disk
        start = lm.generation_config
        lm = type(lm).from_pretrained(None, config=lm.config, state_dict=lm.state_dict(), **how)
        lm.generation_config = start
    return lm, tokenizer, method


def cannot_load(model, error):
    """The UserError for what transformers raises; its first line says which file or id it was."""
    reason = contents.fault_in(model, "config.json")
    if "automatic conversion of the weights" in str(error):  # and transformers names none
        reason = ("what its files hold of quantised weights cannot be put together, a part is missing or has another "
                  "size: fetch them again or take another model")
    if "backend tokenizer" in str(error) and not reason:
        reason = ("its tokenizer is in files that only other libraries read: pip install sentencepiece tiktoken, or "
                  "save it as tokenizer.json")
    if "trust_remote_code" in str(error):
        reason = ("it comes with code of its own, which is not run here: take a model of an architecture that "
                  "transformers has")
    if "Unrecognized configuration class" in str(error):
        reason = f"transformers does not load its kind as a language model ({first_line(error)}): take another one"
    if reason:
        return UserError(f"model {model!r}: {reason}")
    return UserError(f"cannot load model {model!r} ({type(error).__name__}: {first_line(error)}): give a hub id that "
                     "this machine can reach, a local directory with config, weights and tokenizer, or a GGUF file of "
                     "an architecture that transformers reads")


def as_expected(lm):
    """Freeze a model, let it return outputs by name, and refuse a path with wrong gradients."""
    for settings in (lm.config, lm.config.get_text_config()):
        settings.return_dict = True  # a config may say otherwise
        settings.use_cache = True
    for module in lm.modules():
        # bitsandbytes 0.50 on a CPU with AVX512-BF16 repacks the weights in the first forward without gradient (the
        # sampler's), after which gradients are silently wrong. Refuse that path.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    lm.requires_grad_(False)


def note_on(lm, device, dtype, asked, method):
    """Device and precision of a base in words.  asked: bits, or None; method: as of read_files."""
    gpu = device.type == "cuda"
    why = "as asked"
    if asked is None:
        why = "default on a GPU" if gpu else "default on a CPU"
    if gpu and asked is None and dtype == torch.bfloat16 and 2 * lm.num_parameters() < free_memory(device) / 4:
        why += "; it would fit with --bits 16, which spares the de-quantisation of each layer"
    if method == checkpoint.BITSANDBYTES:
        why = "as its checkpoint is quantised"
    elif method:
        again = " and quantised again" * (lm.bits < 16)
        why += f", de-quantised from {method.upper()}{again}"
    hardware = f"{torch.get_num_threads()} thread(s)"
    computed = str(dtype).split(".")[-1]
    if gpu:
        hardware = torch.cuda.get_device_name(device)
        if lm.bits != 32 and dtype == torch.float32:
            computed += ", because this GPU has no bfloat16 (float16 would lose small gradients)"
    place = f"{device} ({hardware})" if device.index else f"{device.type} ({hardware})"
    return f"{place}, {lm.bits}-bit base ({why}), compute {computed}"


@contextlib.contextmanager
def quiet():
    """Without a terminal, switch off the progress bar that transformers draws over the tensors of a GGUF file."""
    with contextlib.nullcontext() if sys.stderr.isatty() else contextlib.redirect_stderr(io.StringIO()):
        yield


def without_trace(lm):
    """The model, whose weights are plain, without the record of how its files stored them; with it, saving would
    quantise them again."""
    for owner, name in ((lm, "hf_quantizer"), (lm.config, "quantization_config"), (lm, "_weight_conversions")):
        if hasattr(owner, name):
            delattr(owner, name)
    return lm


def free_memory(device):
    """Free memory in bytes: of a GPU including the unused part of torch's cache, of the system on a CPU."""
    if device.type != "cuda":
        import psutil
        return psutil.virtual_memory().available
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + cached


def largest(config, name, default):
    """A size in a config, the largest of a list with one for each layer; `default` where there is none."""
    layers = getattr(config, "per_layer_config", None) or [config]
    values = [getattr(layer, name, None) or default for layer in layers]
    return max(max(value) if isinstance(value, (list, tuple)) else value for value in values)


def sizes(lm):
    """(layers, hidden size, vocabulary) of a model, whatever its config calls them."""
    config = lm.config.get_text_config()
    vocabulary, hidden = lm.get_input_embeddings().weight.shape
    return largest(config, "num_hidden_layers", 1), largest(config, "hidden_size", hidden), vocabulary


def most_rows(lm, tokens):
    """How many rows of this many tokens the sampler decodes at once: as many as fit with keys, values and logits into
    half the free memory of a GPU; on a CPU into 1 GB, at most 1024."""
    c = lm.config.get_text_config()
    layers, hidden, vocabulary = sizes(lm)
    heads = largest(c, "num_attention_heads", 1)
    width = largest(c, "head_dim", hidden // heads)
    width *= largest(c, "num_key_value_heads", heads)
    # bytes of keys and values with room to grow, and of a row of logits, log-probabilities, probabilities, products
    row = 2.5 * lm.dtype.itemsize * layers * width * tokens + 20 * vocabulary
    rows = min(1024, 2 ** 30 // row)
    if lm.device.type == "cuda":
        rows = free_memory(lm.device) // 2 // row
    return max(1, int(rows))


def micro_batch(lm):
    """Tokens of one micro-batch of the update: 2048 on a CPU, 8192 on a GPU; less for a large model, as many as 2 GB of
    a CPU's memory or half of a GPU's hold."""
    layers, hidden, vocabulary = sizes(lm)
    # Bytes that autograd keeps per token: activations of each layer (LoRA inputs in float32), logits in two precisions.
    token = 100 * layers * hidden + 24 * vocabulary
    most = 2048
    memory = 2 ** 31
    if lm.device.type == "cuda":
        most = 8192
        memory = free_memory(lm.device) // 2
    return max(256, min(most, memory // token))


@contextlib.contextmanager
def checkpoints(lm, wanted):
    """Context in which, if wanted, each layer keeps only its inputs and is recomputed in the backward pass: for a row
    with more tokens than a micro-batch should have. The model's own switch is not used, because it turns dropout on."""
    from transformers.modeling_layers import GradientCheckpointingLayer
    layers = [layer for layer in lm.modules() if isinstance(layer, GradientCheckpointingLayer)] if wanted else []
    for layer in layers:
        layer.forward = functools.partial(torch.utils.checkpoint.checkpoint, layer.forward, use_reentrant=False)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def peak_memory(device):
    """Peak memory in GB: allocated on the GPU, resident in the process on a CPU; None where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    try:
        import resource
    except ImportError:  # not a Unix
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9
