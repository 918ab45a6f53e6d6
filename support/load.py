"""Load a frozen base model in any precision, and estimate what fits into memory."""
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

SMALL = 5e6  # parameters; smaller models spend their time on calls, and get the defaults of the embedded models


def set_threads(parameters):
    """Set the number of threads on a CPU: one for a tiny model, for which two are slower even on an idle machine, else
    torch's default. For larger models also make glibc keep freed memory: by default it returns that of large tensors to
    the system, and mapping new pages takes a fifth of a step of a model with 135 M parameters."""
    if parameters < SMALL:
        torch.set_num_threads(1)
        return
    with contextlib.suppress(OSError, AttributeError, TypeError):  # not glibc
        libc = ctypes.CDLL(None)
        libc.mallopt(-3, 2 ** 30)  # M_MMAP_THRESHOLD
        libc.mallopt(-1, 2 ** 31 - 1)  # M_TRIM_THRESHOLD


def first_line(error):
    """The first line of an error message. Some libraries add a page of advice."""
    return str(error).strip().split("\n")[0]


def default_bits(device):
    """Default precision of the base model in bits."""
    return 4 if device.type == "cuda" else 32


def bits_of(policy):
    """Precision in bits of a policy's base model, which its checkpoint may determine; None if none was loaded."""
    lm = getattr(policy, "lm", None)
    return getattr(lm, "bits", None)


def learning_rate(parameters, supervised):
    """Default of --lr for a base model of this size, in parameters -> (rate, the reason as text). Values are those in
    common use with LoRA. Large models have a lower rate in RL, where samples move a policy further than gold
    completions do."""
    sizes = {SMALL: (2e-3, 2e-3), 1e8: (5e-4, 5e-4), 1e9: (2e-4, 1e-4), math.inf: (1e-4, 2e-5)}
    sft, rl = sizes[min(most for most in sizes if parameters < most)]
    mode, rate = ("SFT", sft) if supervised else ("RL", rl)
    return rate, f"default of {mode} for {parameters / 1e6:,.1f} M parameters"


def put_prompts(policy, task, chat=None, system=None):
    """Set how prompts are formatted for a policy -> the choice as text; for the user's data also how it was read, with
    the first prompt as the model sees it and its gold answer.  Raises UserError."""
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
        words += ", with the texts of chat messages joined"
    words = f"{words}\n{task.understood}\nthe first prompt is {in_short(shown)}"
    if not (problem.answer or problem.solution):  # a reward function may need no answer
        return words
    kind = "completion" if problem.answer is None else "answer"
    return f"{words}, its gold {kind} {in_short(problem.answer or problem.solution)}"


def in_short(words, most=300):
    """A text in quotes; a long one is shortened to its beginning and end."""
    return repr(words) if len(words) <= most else f"{words[:most // 2]!r} ... {words[-most // 2:]!r}"


def choose_template(policy, task, chat, system):
    """Apply --chat and --system: sets task.chat, and system, stop and end of the policy -> the choice as text.  Raises
    UserError."""
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
    except Exception as error:  # a template is a program and may raise anything
        leave = "leave out --system, or " * bool(system)
        raise UserError(f"the chat template of this model cannot be used ({first_line(error)}): {leave}use --no-chat"
                        ) from error
    if text.leaves_out(policy.tokenizer, "user"):
        raise UserError("the chat template of this model leaves out user messages, so all prompts would be equal: use "
                        "--no-chat, or a tokenizer with another template")
    if system and text.leaves_out(policy.tokenizer, "system"):
        raise UserError("--system: the chat template of this model leaves the system message out: put its text into "
                        "the prompts")
    words = "through the chat template" + ", with a system message" * bool(system)
    words += f", whose date is {text.DAY:%d %b %Y}" * text.has_clock(policy.tokenizer)
    return words + end_turns(policy)


def check_system_messages(tokenizer, prompts):
    """Raises UserError if prompts have system messages and the chat template leaves these out."""
    roles = {role for prompt in prompts for role, _ in text.turns_of(prompt)}
    if "system" in roles and text.leaves_out(tokenizer, "system"):
        raise UserError("--data: there are prompts with a system message, which the chat template of this model leaves "
                        "out: put its text into the user message, or use --no-chat")


def leave_written(policy, task, prompts, chat, system):
    """If prompts are already formatted with the chat template, do not apply it again, which would nest messages -> this
    as text; None if they are not.  Raises UserError."""
    if not policy.tokenizer.chat_template:
        return None
    written = sum(text.is_written(policy.tokenizer, prompts))
    if not written:
        return None
    if chat or system:
        raise UserError(f"{'--chat' if chat else '--system'}: {written:,} of {len(prompts):,} prompts already contain "
                        "the chat template: leave the flag out")
    if written < len(prompts) and task.chat:
        raise UserError(f"{written:,} of {len(prompts):,} prompts already contain the chat template, the others do "
                        "not: use --no-chat, or give all prompts the same form")
    task.chat = False
    return "as they are, already with the chat template" + end_turns(policy)


def end_turns(policy):
    """Make the chat template's end-of-turn token end completions, also gold ones -> this as text.  Raises UserError."""
    end = text.end_of_turn(policy.tokenizer, policy.stop)
    policy.end = policy.tokenizer.eos_token_id
    if end is not None:
        policy.known([end])
        policy.end = end
        policy.stop = sorted({*policy.stop, end})
        return f", whose end-of-turn token {text.name_of(policy.tokenizer, end)} also ends completions"
    return ""


def load_base(model, bits=None, device=None, kind="AutoModelForCausalLM", **options):
    """Load a frozen model with an auto class of transformers, quantised to `bits`, and its tokenizer.
    Returns (model, tokenizer, note on device and precision).  Raises UserError as load_policy does."""
    model = contents.located(model, "--model")
    # bitsandbytes warns of a missing optional kernel, and of a cast in every 8-bit product.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    import transformers
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    device = device_of(device)
    asked = bits
    bits = default_bits(device) if asked is None else asked
    dtype = compute_dtype(bits, device)
    if device.type == "cuda":
        torch.cuda.set_device(device)  # for code that uses the current device
        torch.backends.cuda.enable_cudnn_sdp(False)  # it compiles a plan for each shape, and keys grow at every token
        # peft computes the adapter in float32; next to a base in bfloat16, TF32 is precise enough for its products
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
    """The torch device for --device (cpu, cuda, cuda:1; None: a GPU if there is one). With several processes on GPUs,
    each gets the GPU with its local rank.  Raises UserError if there is no such device."""
    if asked is None:
        asked = "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, number = str(asked).partition(":")
    if kind == "mps":
        raise UserError(f"--device {asked}: mps supports neither float64, which sampling needs, nor bitsandbytes, "
                        "which quantises the base: use cpu")
    if not re.fullmatch(r"cpu|cuda(:\d+)?", str(asked)):
        raise UserError(f"--device {asked}: choose cpu, cuda or cuda:NUMBER")
    if kind == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise UserError(f"--device {asked}: torch sees no GPU here: check the driver, or use cpu")
    if number and processes.WORLD > 1:
        raise UserError(f"--device {asked} would put all {processes.WORLD} processes on one GPU: use cuda, which gives "
                        "each process another one")
    number = int(number or os.environ.get("LOCAL_RANK", 0))
    count = torch.cuda.device_count()
    if number >= count:
        raise UserError(f"--device {asked}: there is no GPU {number}, torch sees {count}, counted from 0: choose one "
                        "of those, start no more processes than there are GPUs, or use cpu")
    return torch.device("cuda", number)


def compute_dtype(bits, device):
    """The dtype for computing with a base model of this many bits: bfloat16 if the hardware supports it, never float16,
    whose gradients vanish without loss scaling.  Raises UserError for bits that are not supported, or not by this
    device."""
    if bits not in (4, 8, 16, 32):
        raise UserError(f"--bits {bits}: choose 4, 8, 16 or 32")
    bf16 = bits == 16
    if device.type == "cuda":
        bf16 = has_bfloat16()
    if bits == 16 and not bf16:
        raise UserError(f"--bits 16 needs bfloat16, which {torch.cuda.get_device_name(device)} does not support: use "
                        "4, 8 or 32")
    return torch.bfloat16 if bf16 and bits != 32 else torch.float32


def has_bfloat16():
    """Whether the GPU supports bfloat16 in hardware."""
    return torch.cuda.is_bf16_supported(including_emulation=False)


def quantisation(bits, dtype):
    """The bitsandbytes config for this many bits; None for 16 and 32."""
    from transformers import BitsAndBytesConfig
    if bits == 4:
        return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
                                  bnb_4bit_compute_dtype=dtype)
    if bits == 8:
        # With a threshold, outlier columns are selected for the whole batch, so samples would depend on the batch.
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=0.0)
    return None


def path_of(model, kind, options):
    """The folder or hub id of a model. Adds the name of a GGUF file to the options.  Raises UserError."""
    if model in EMBEDDED_MODELS:
        return os.path.join(ROOT, "models", model)
    if not model.endswith(".gguf"):
        return model
    if kind != "AutoModelForCausalLM":
        raise UserError(f"model {model!r}: a GGUF file can be a policy, but not a verifier: give a hub id or a "
                        "directory")
    if importlib.util.find_spec("gguf") is None:
        raise UserError(f"--model {model}: to read GGUF files, pip install gguf")
    path, options["gguf_file"] = os.path.split(os.path.abspath(model))
    return path


def read_files(model, path, kind, options, how, asked):
    """Read config, tokenizer and weights, and check that they are complete.

    how    options of from_pretrained
    asked  bits, or None
    Returns (model, tokenizer, storage format of the weights: None, "gguf" or a name of support/checkpoint.py).  Raises
    UserError, and whatever transformers raises.
    """
    import transformers
    auto = getattr(transformers, kind)
    no_code = {"trust_remote_code": False}  # otherwise transformers asks at the terminal
    both = {"output_loading_info": True, "ignore_mismatched_sizes": True, **no_code}
    config = transformers.AutoConfig.from_pretrained(path, **no_code, **options)  # the smallest file first
    if getattr(config, "is_encoder_decoder", False):
        raise UserError(f"model {model!r} is an encoder-decoder or is the decoder of an encoder-decoder "
                        f"({config.model_type}): choose a decoder-only language model")
    gguf = {name: value for name, value in options.items() if name == "gguf_file"}
    tokenizer = transformers.AutoTokenizer.from_pretrained(path, **no_code, **gguf)
    method = "gguf" if gguf else checkpoint.stored(model, config)
    if method == checkpoint.FP8:
        checkpoint.check_scales(model, path, config)
    again = False  # whether the weights are de-quantised and then quantised to `asked`
    if method == checkpoint.BITSANDBYTES:
        # --bits is for the policy; a verifier has its own precision
        checkpoint.own_bits(model, config, asked if kind == "AutoModelForCausalLM" else None)
        config = checkpoint.made_trainable(config, how["dtype"])
        lm, report = auto.from_pretrained(path, config=config, dtype=how["dtype"], device_map=how["device_map"], **both)
    elif method is None:
        lm, report = auto.from_pretrained(path, **how, **options, **both)
    else:
        again = how["quantization_config"] is not None
        device_map = {"": "cpu"} if again else how["device_map"]
        plain = checkpoint.plain_settings(method, dict(gguf))
        lm, report = auto.from_pretrained(path, config=config, dtype=how["dtype"], device_map=device_map, **plain,
                                          **both)
        if method != "gguf":
            checkpoint.in_one_precision(lm, how["dtype"])
        lm = without_trace(lm)
    if hasattr(lm, "peft_config"):
        raise UserError(f"model {model!r} contains an adapter in addition to its weights, which transformers would "
                        "apply to them: give its base as --model and it as --adapter, or remove adapter_config.json")
    checkpoint.check_weights(model, lm, report, fresh_head="num_labels" in options)
    if again:  # transformers cannot do both at once; this needs no copy on disk
        generation_config = lm.generation_config
        lm = type(lm).from_pretrained(None, config=lm.config, state_dict=lm.state_dict(), **how)
        lm.generation_config = generation_config
    return lm, tokenizer, method


def cannot_load(model, error):
    """The UserError for an exception of transformers, whose first line names the file or id."""
    reason = contents.fault_in(model, "config.json")
    if "automatic conversion of the weights" in str(error):  # the message names no weights
        reason = ("its quantised weights cannot be assembled, because a part is missing or has another size: download "
                  "its files again or use another model")
    if "backend tokenizer" in str(error) and not reason:
        reason = ("its tokenizer files need other libraries: pip install sentencepiece tiktoken, or save it as "
                  "tokenizer.json")
    if "trust_remote_code" in str(error):
        reason = ("it needs code from its repository, which is not run here: use a model whose architecture "
                  "transformers supports")
    if "Unrecognized configuration class" in str(error):
        reason = f"transformers does not load its type as a language model ({first_line(error)}): use another one"
    if reason:
        return UserError(f"model {model!r}: {reason}")
    return UserError(f"cannot load model {model!r} ({type(error).__name__}: {first_line(error)}): give a hub id that "
                     "this machine can reach, a local directory with config, weights and tokenizer, or a GGUF file of "
                     "an architecture that transformers reads")


def as_expected(lm):
    """Freeze a model, make it return named outputs, and switch off a code path with wrong gradients."""
    for settings in (lm.config, lm.config.get_text_config()):
        settings.return_dict = True  # some configs set it to False
        settings.use_cache = True
    for module in lm.modules():
        # On a CPU with AVX512-BF16, bitsandbytes 0.50 repacks the weights in the first forward pass without gradient
        # (in the sampler). After that, gradients are silently wrong.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    lm.requires_grad_(False)


def note_on(lm, device, dtype, asked, method):
    """Device and precision of a base model as text.  asked: bits, or None; method: as from read_files."""
    gpu = device.type == "cuda"
    why = "as asked"
    if asked is None:
        why = "default on a GPU" if gpu else "default on a CPU"
    if gpu and asked is None and dtype == torch.bfloat16 and 2 * lm.num_parameters() < free_memory(device) / 4:
        why += "; it would fit with --bits 16, which avoids the de-quantisation of each layer"
    if method == checkpoint.BITSANDBYTES:
        why = "as in its checkpoint"
    elif method:
        again = " and quantised again" * (lm.bits < 16)
        why += f", de-quantised from {method.upper()}{again}"
    hardware = f"{torch.get_num_threads()} thread(s)"
    computed = str(dtype).split(".")[-1]
    if gpu:
        hardware = torch.cuda.get_device_name(device)
        if lm.bits != 32 and dtype == torch.float32:
            computed += ", because this GPU does not support bfloat16 (float16 would lose small gradients)"
    where = f"{device} ({hardware})" if device.index else f"{device.type} ({hardware})"
    return f"{where}, {lm.bits}-bit base ({why}), compute {computed}"


@contextlib.contextmanager
def quiet():
    """Context without transformers' progress bar for GGUF files, unless stderr is a terminal."""
    with contextlib.nullcontext() if sys.stderr.isatty() else contextlib.redirect_stderr(io.StringIO()):
        yield


def without_trace(lm):
    """Remove the record of how the files of a de-quantised model stored its weights, because with it, saving would
    quantise them again -> the model."""
    for owner, name in ((lm, "hf_quantizer"), (lm.config, "quantization_config"), (lm, "_weight_conversions")):
        if hasattr(owner, name):
            delattr(owner, name)
    return lm


def free_memory(device):
    """Free memory in bytes: of the GPU, with the unused part of torch's cache, or of the system."""
    if device.type != "cuda":
        import psutil
        return psutil.virtual_memory().available
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + cached


def largest(config, name, default):
    """A size from a config, the maximum over layers; `default` if the config has none."""
    layers = getattr(config, "per_layer_config", None) or [config]
    values = [getattr(layer, name, None) or default for layer in layers]
    return max(max(value) if isinstance(value, (list, tuple)) else value for value in values)


def sizes(lm):
    """(number of layers, hidden size, vocabulary size) of a model."""
    config = lm.config.get_text_config()
    vocabulary, hidden = lm.get_input_embeddings().weight.shape
    return largest(config, "num_hidden_layers", 1), largest(config, "hidden_size", hidden), vocabulary


def most_rows(lm, tokens):
    """How many rows of this many tokens the sampler decodes at once: as many as fit, with keys, values and logits, into
    half of a GPU's free memory; on a CPU into 1 GB, at most 1024."""
    c = lm.config.get_text_config()
    layers, hidden, vocabulary = sizes(lm)
    heads = largest(c, "num_attention_heads", 1)
    width = largest(c, "head_dim", hidden // heads)
    width *= largest(c, "num_key_value_heads", heads)
    # Bytes of keys and values with reserved memory, and of logits, log-probabilities, probabilities and products.
    row = 2.5 * lm.dtype.itemsize * layers * width * tokens + 20 * vocabulary
    rows = min(1024, 2 ** 30 // row)
    if lm.device.type == "cuda":
        rows = free_memory(lm.device) // 2 // row
    return max(1, int(rows))


def micro_batch(lm):
    """Maximum tokens of a micro-batch of the update: 2048 on a CPU, 8192 on a GPU; fewer for a large model, so that
    they fit into 2 GB on a CPU, or half of the free memory of a GPU."""
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
    """Context for gradient checkpointing, if wanted: each layer stores only its inputs and is recomputed in the
    backward pass. Used for a row with more tokens than a micro-batch should have. gradient_checkpointing_enable() is
    not used, because it needs train mode, which turns dropout on."""
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
    """Peak memory in GB: allocated on the GPU, or resident memory of the process; None if the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    try:
        import resource
    except ImportError:  # not on Unix
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9
