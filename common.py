"""What the scripts share: loading a policy, sampling from it, scoring completions, pass@k-type estimators, the run folder.

No paper's objective is in here; each stands in its own script. One convention runs through all of them: the policy is
softmax(logits / T) over the whole vocabulary (no top-k, no top-p), a completion ends with an end-of-sequence token that
is a decision of the policy like any other, and log pi(y|x) is the sum over the completion's tokens, that one included.
"""
import argparse
import errno
import functools
import hashlib
import inspect
import io
import json
import logging
import math
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import time
import warnings
import zipfile
from collections import Counter
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from itertools import accumulate

# A tiny model on a busy machine: threads that spin while they wait cost up to 50x. Read once, before torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "0")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import safetensors
import torch
import torch.nn.functional as F

from tasks import UserError

HERE = os.path.dirname(os.path.abspath(__file__))


# ------------------------------------------------------------------------------------------------------- command line

def cli(main):
    """Decorator of every script's main(argv): a mistake of the user ends in one sentence and exit code 2."""
    @functools.wraps(main)
    def wrapped(argv=None):
        try:
            join()
            return main(argv)
        except UserError as error:
            message = error
        except torch.OutOfMemoryError:
            message = "out of GPU memory: lower --max-new-tokens, load the base with --bits 4, or take a smaller model"
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            message = (f"{error.strerror}: what was saved is intact; make room and run the command again, a training "
                       "run with --resume")
        except KeyboardInterrupt:
            raise SystemExit(130) from None
        finally:
            if torch.distributed.is_initialized():
                torch.distributed.destroy_process_group()
        print(f"{os.path.basename(sys.argv[0])}: error: {f'process {RANK}: ' if RANK else ''}{message}", file=sys.stderr)
        raise SystemExit(2)
    return wrapped


def seed_of(*parts):
    """A 63-bit seed from anything printable. Every draw of a run has a seed of its own, e.g. seed_of(seed, step, i), so
    no state of a generator has to be carried over a resume or between processes."""
    return random.Random(" ".join(map(str, parts))).getrandbits(63)


def set_threads(parameters):
    """One thread for a tiny model on a CPU, where two are slower even on an idle machine; torch's default otherwise."""
    if parameters < 5e6:
        torch.set_num_threads(1)


# -------------------------------------------------------------------------------------------------- several processes

# Several processes, started by torchrun or accelerate launch (one process is a group of one and takes the same path). They
# hold the same adapter and the same batch. Each samples, verifies and updates with its own prompts, b % WORLD == RANK; sums
# over the processes put the shares together. The first writes the run folder.
RANK, WORLD = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def join():
    """Meet the other processes, if there are any. Only the first one prints."""
    if WORLD > 1 and not torch.distributed.is_initialized():
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
        with lost():
            torch.distributed.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
        if RANK:
            sys.stdout = open(os.devnull, "w")


@contextmanager
def lost():
    """Turns the many errors of a broken connection into one sentence."""
    try:
        yield
    except RuntimeError as error:
        raise UserError("lost the other processes of this run, one of which has ended or cannot be reached: see its own "
                        "message; a training run goes on from its last checkpoint with --resume") from error


def total(x):
    """Sum over the processes, of a tensor (in place) or a number."""
    if WORLD == 1:
        return x
    tensor = x if torch.is_tensor(x) else torch.tensor(x, dtype=torch.float64)
    with lost():
        torch.distributed.all_reduce(tensor)
    return tensor if torch.is_tensor(x) else tensor.item()


def from_first(x):
    """Any object, as the first process has it."""
    if WORLD > 1:
        box = [x]
        with lost():
            torch.distributed.broadcast_object_list(box)
        x = box[0]
    return x


def on_first(call):
    """What call() returns on the first process, on all of them. If it raises UserError there, all end, and one says why."""
    result, error = None, None
    if not RANK:
        try:
            result = call()
        except UserError as raised:
            error = raised
    result, failed = from_first((result, error is not None))
    if failed:
        raise SystemExit(2) if RANK else error
    return result


def own(rows, prompt):
    """Those of the rows [r] whose prompt [r], by its number in the batch, is this process's."""
    return rows[prompt % WORLD == RANK]


def rewards(task, problems, completions):
    """task.rewards, each process verifying its share; what went wrong anywhere is added to task.counts everywhere."""
    share = slice(len(completions) * RANK // WORLD, len(completions) * (RANK + 1) // WORLD)
    before, found = Counter(task.counts), torch.zeros(len(completions) + 1, dtype=torch.float64)
    found[:-1][share] = torch.tensor(task.rewards(problems[share], completions[share]), dtype=torch.float64)
    found[-1] = (task.counts - before).total()
    *found, went_wrong = total(found).tolist()
    if WORLD > 1 and went_wrong:
        new = [None] * WORLD
        with lost():
            torch.distributed.all_gather_object(new, task.counts - before)
        task.counts = sum(new, before)
    return found


# --------------------------------------------------------------------------------------------------------- the policy

@dataclass
class Policy:
    """A causal LM with a LoRA adapter, and what is needed to talk to it."""
    model: torch.nn.Module  # the peft model: saves and loads the adapter
    tokenizer: object
    device: torch.device
    note: str  # device, precision and why
    stop: list[int]  # token ids that end a completion
    start: str | None = None  # peft name of the frozen starting adapter, the KL reference
    reference_kind: str = "start"
    accepts: frozenset = frozenset()  # argument names of the model's forward
    small: bool = False  # a float32 model for which the fast paths pay: `folded`, and several samples per row

    @property
    def lm(self):
        """The transformers model with the LoRA layers in place."""
        return self.model.get_base_model()

    def parameters(self):
        """The trainable tensors: those of the adapter "default"."""
        return [p for p in self.model.parameters() if p.requires_grad]

    def start_parameters(self):
        """The frozen tensors of the starting adapter; none where the start is the base."""
        return [p for n, p in self.model.named_parameters() if f".{self.start}." in n]

    def encode(self, prompt, chat=False):
        """Token ids of one prompt; through the chat template if `chat` and the tokenizer has one."""
        if chat and self.tokenizer.chat_template:
            text = self.tokenizer.apply_chat_template([{"role": "user", "content": prompt}], tokenize=False,
                                                      add_generation_prompt=True)
            return self.tokenizer(text, add_special_tokens=False)["input_ids"]
        ids = self.tokenizer(prompt)["input_ids"]
        while len(ids) > 1 and ids[-1] == self.tokenizer.eos_token_id:  # some tokenizers append it: the text would be over
            ids.pop()
        return ids

    def encode_solution(self, text):
        """Token ids of a gold completion, end-of-sequence token included: to stop is a decision too."""
        end = self.tokenizer.eos_token_id
        return self.tokenizer(text, add_special_tokens=False)["input_ids"] + [self.stop[0] if end is None else end]

    def decode(self, tokens):
        """Text of a completion (list of ids) without its end-of-sequence token."""
        return self.tokenizer.decode(tokens[:-1] if tokens and tokens[-1] in self.stop else tokens,
                                     skip_special_tokens=True)

    @contextmanager
    def reference(self):
        """Inside, the model is the KL reference: the base (adapter off) or the frozen starting adapter."""
        if self.start is None or self.reference_kind == "base":
            with self.model.disable_adapter():
                yield
        else:
            self.model.set_adapter(self.start)
            try:
                yield
            finally:  # set_adapter also switches requires_grad: the trainable adapter is trainable again, the start not
                self.model.set_adapter("default")

    @functools.cached_property
    def layers(self):
        """(parent module, attribute name, LoRA layer) of every linear layer with an adapter."""
        return [(self.lm.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2], layer)
                for name, layer in self.lm.named_modules() if hasattr(layer, "base_layer")]

    @functools.cached_property
    def fast(self):
        """Whether this model gives the same log-probabilities when the adapter is folded into the weights and several samples
        share a row under a 4-D mask: tried once, on two samples of one short prompt, so any architecture may say no."""
        configs = self.model.peft_config.values()
        if not self.small or any(c.peft_type != "LORA" or c.use_dora or c.lora_bias for c in configs):  # more than W + s B A
            return False
        vocabulary = self.lm.config.get_text_config().vocab_size
        x, y = [[1 % vocabulary, 2 % vocabulary]] * 2, [[i % vocabulary for i in (3, 4, 5)], [i % vocabulary for i in (5, 3)]]
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _, plain, _ = next(score_rows(self, x, y, [[0], [1]], 1.0, 2048))
            try:
                with folded(self):
                    _, packed, _ = next(score_rows(self, x, y, [[0, 1]], 1.0, 2048))
            except Exception:  # whatever a model raises at a mask it does not know
                return False
        return torch.allclose(plain, packed, atol=1e-4)

    def window(self, tokens):
        """Whether a row of so many tokens lies within the model's sliding window, if it has one."""
        return tokens <= (getattr(self.lm.config.get_text_config(), "sliding_window", None) or math.inf)


class Product(torch.nn.Module):
    """A linear layer with `delta` added to a copy of its weight; a gradient reaches delta."""

    def __init__(self, base, delta):
        super().__init__()
        weight = base.weight + delta
        self.weight = weight if isinstance(base, torch.nn.Linear) else weight.T  # GPT-2's Conv1D has [in, out]
        self.bias = base.bias

    def forward(self, x):
        if x.dim() == 3 and len(x) >= 16 and x.shape[1] >= 8 and x.numel() >= 2 ** 15:
            # A convolution of size 1 goes to oneDNN, a linear layer to MKL, which is up to half as fast on AMD.
            y = F.conv2d(x.unsqueeze(2).permute(0, 3, 1, 2), self.weight[:, :, None, None], self.bias)  # [rows, out, tokens, 1]
            return y.permute(0, 2, 3, 1).squeeze(2)
        return F.linear(x, self.weight, self.bias)


@contextmanager
def folded(policy):
    """Inside, each linear layer is one product with W + s B A (the active adapter folded into a copy of its weight) instead of
    three. Gradients reach A and B through the copy. The base is never written: merging in place and back is not exact."""
    products = [Product(layer.base_layer, sum(layer.get_delta_weight(adapter) for adapter in layer.active_adapters
                                              if not layer.disable_adapters)) for _, _, layer in policy.layers]
    try:
        for (parent, name, _), product in zip(policy.layers, products):
            setattr(parent, name, product)
        yield
    finally:
        for parent, name, layer in policy.layers:
            setattr(parent, name, layer)


def load_base(model, bits=None, device=None, kind="AutoModelForCausalLM", **options):
    """Load a frozen model of a transformers auto class, quantised if asked, and its tokenizer.
    Returns (model, tokenizer, note on device and precision).  Raises UserError as load_policy does."""
    # bitsandbytes warns that an optional kernel is absent, and of a cast in every 8-bit product.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    import transformers
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    if device is None:
        device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"
    device = torch.device(device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"device {device} was asked for but torch sees no GPU: check the driver or use the CPU")
    gpu = device.type == "cuda"
    why = "default on a GPU" if gpu else "default on a CPU"
    if bits is None:
        bits = 4 if gpu else 32
    else:
        why = "as asked"
    if bits not in (4, 8, 16, 32):
        raise UserError(f"--bits {bits}: choose 4, 8, 16 or 32")
    # bf16 where the hardware has it. Never float16: without loss scaling its gradients vanish.
    bf16 = torch.cuda.is_bf16_supported(including_emulation=False) if gpu else bits == 16
    dtype = torch.bfloat16 if bf16 and bits != 32 else torch.float32
    quantisation = None
    if bits == 4:
        quantisation = transformers.BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype)
    elif bits == 8:
        quantisation = transformers.BitsAndBytesConfig(load_in_8bit=True)

    path = os.path.join(HERE, model) if model in ("tiny", "tiny_program", "tiny_peptide") else model
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            transformers.AutoConfig.from_pretrained(path)  # one small file first: no network shows here, not in every file
            tokenizer = transformers.AutoTokenizer.from_pretrained(path)
            lm = getattr(transformers, kind).from_pretrained(path, dtype=dtype, quantization_config=quantisation,
                                                             device_map={"": device}, **options)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # transformers raises a dozen types here; the first line says which file or id it was
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"cannot load model {model!r} ({type(error).__name__}: {reason}): give a hub id that this "
                        "machine can reach, or a local directory with config, weights and tokenizer") from error
    for module in lm.modules():
        # bitsandbytes 0.50 on a CPU with AVX512-BF16 repacks the weights in the first forward without gradient (the
        # sampler's), after which gradients are silently wrong. Refuse that path.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    set_threads(sum(p.numel() for p in lm.parameters()) if not gpu else 0)
    lm.requires_grad_(False)
    hardware = torch.cuda.get_device_name(device) if gpu else f"{torch.get_num_threads()} thread(s)"
    return lm, tokenizer, f"{device.type} ({hardware}), {bits}-bit base ({why}), compute {str(dtype).split('.')[-1]}"


def load_policy(model="tiny", bits=None, lora_rank=16, adapter=None, reference="start", seed=0, device=None):
    """Load a base model, quantised if asked, with a LoRA adapter (alpha = 2 rank, all linear layers, no dropout).

    model      hub id, local directory, or an embedded model: "tiny", "tiny_program", "tiny_peptide"
    bits       4 (NF4, double quantisation), 8, 16 or 32; None: 4 on a GPU, 32 on a CPU
    adapter    directory of a peft adapter, or a run folder, to continue from (lora_rank is then the adapter's own);
               None: a new adapter, equal to the base
    reference  what Policy.reference() is: "start" (the policy as loaded) or "base". Costs no second model.
    Raises UserError: unknown model, no such device, bits that the hardware cannot do, adapter that does not fit.
    """
    lm, tokenizer, note = load_base(model, bits, device)
    import peft  # after the line of load_base that quietens what it imports

    start, inner = None, os.path.join(adapter or "", "adapter")
    folder = inner if os.path.isdir(inner) else adapter
    torch.manual_seed(seed)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if adapter is None:
                wrapped = peft.get_peft_model(lm, peft.LoraConfig(
                    r=lora_rank, lora_alpha=2 * lora_rank, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM"))
            else:
                wrapped = peft.PeftModel.from_pretrained(lm, folder, is_trainable=True)
                mine = peft.get_peft_model_state_dict(wrapped, adapter_name="default", save_embedding_layers=False)
                if mine.keys() != peft.utils.load_peft_weights(folder, device="cpu").keys():
                    raise ValueError("its layers are not those of this model")
                if reference == "start":
                    start = "start"
                    wrapped.load_adapter(folder, adapter_name=start, is_trainable=False)
                    wrapped.set_adapter("default")
    except Exception as error:  # as above
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"cannot put a new LoRA adapter on {model!r} ({reason}): choose a decoder with linear layers"
                        if adapter is None else
                        f"cannot load adapter {adapter!r} onto {model!r} ({reason}): give a run folder or a directory with "
                        "adapter_config.json made for this model") from error
    wrapped.eval()  # no dropout anywhere: what is scored is what was sampled

    generation = getattr(lm, "generation_config", None)
    eos = getattr(generation, "eos_token_id", None) or []
    stop = sorted({*(eos if isinstance(eos, list) else [eos]), tokenizer.eos_token_id} - {None})
    if not stop:
        raise UserError(f"model {model!r} has no end-of-sequence token: add eos_token to its tokenizer_config.json")
    note += f", LoRA on {sum(p.numel() for p in wrapped.parameters() if p.requires_grad):,} parameters"
    small = lm.device.type == "cpu" and lm.dtype == torch.float32 and bits in (None, 16, 32) and lm.num_parameters() < 5e6
    return Policy(wrapped, tokenizer, lm.device, note, stop, start, reference,
                  frozenset(inspect.signature(lm.forward).parameters), small)


# ----------------------------------------------------------------------------------------------- sampling and scoring

PACK = 128  # most completion tokens that share a row: beyond that, looking past each other costs more than the prompt saves


@dataclass
class Samples:
    """k completions for each of B prompts, T the longest; padding after `lengths` is arbitrary."""
    tokens: torch.Tensor  # [B, k, T] int64, end-of-sequence token included
    logps: torch.Tensor  # [B, k, T] float32, log softmax(logits / temperature) of each token, 0 in the padding
    lengths: torch.Tensor  # [B, k] int64
    entropies: torch.Tensor  # [B, k, T] float32, entropy in nats of what each token was drawn from, 0 in the padding

    def lists(self):
        """Token ids as nested lists [B][k], without the padding."""
        return [[row[:n] for row, n in zip(rows, ns)] for rows, ns in zip(self.tokens.tolist(), self.lengths.tolist())]


def free_memory(device):
    """Bytes that a GPU has free, the unused part of torch's own cache included."""
    return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def left_pad(prompts, device=None):
    """Prompts (lists of ids) padded on the left -> ids [B, L], mask [B, L]."""
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
    return ids, mask


@torch.no_grad()
def sample(policy, prompts, k, seeds, temperature=1.0, max_new_tokens=64, max_rows=None):
    """Draw k completions per prompt from exactly softmax(logits / temperature).

    prompts  B lists of token ids, of any lengths
    seeds    B integers: the draws of prompt b depend on seeds[b] alone, not on what else is in the batch
    max_rows most rows (prompt x sample) decoded at once; None: 1024 on a CPU, what half the free memory holds on a GPU
    Returns Samples.  A completion cut at max_new_tokens has no end-of-sequence token; its text is verified as it stands.
    Raises UserError if prompt and completion do not fit the model's positions.
    """
    if not all(prompts):
        raise ValueError("a prompt has no tokens")
    if temperature <= 0:
        raise ValueError(f"temperature must be positive, not {temperature}")
    c, longest = policy.lm.config.get_text_config(), max(map(len, prompts))
    if longest + max_new_tokens > positions(policy):
        raise UserError(f"a prompt of {longest} tokens and --max-new-tokens {max_new_tokens} do not fit the model's "
                        f"{positions(policy)} positions: lower --max-new-tokens or take a model with more")
    if max_rows is None:
        max_rows = min(1024, 2 ** 26 // c.vocab_size)
        if policy.device.type == "cuda":
            heads = getattr(c, "num_key_value_heads", None) or c.num_attention_heads
            width = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
            # bytes of keys and values in 16 bits, and of one row of logits, probabilities and their float64 sums
            row = 4 * c.num_hidden_layers * heads * width * (longest + max_new_tokens) + 24 * c.vocab_size
            max_rows = max(1, free_memory(policy.device) // 2 // row)
    tokens = torch.zeros(len(prompts) * k, max_new_tokens, dtype=torch.long, device=policy.device)
    logps, entropies = (torch.zeros(len(prompts) * k, max_new_tokens, device=policy.device) for _ in range(2))
    lengths = torch.zeros(len(prompts) * k, dtype=torch.long, device=policy.device)
    order = sorted(range(RANK, len(prompts), WORLD), key=lambda b: len(prompts[b]))  # little padding within a chunk
    chunk, share = max(1, max_rows // k), min(k, max_rows)  # prompts at once, samples of each at once
    # Samples of one prompt that share a row: its keys are stored and read once for all of them, but each looks past the others.
    group = max(g for g in range(1, share + 1) if share % g == 0 and (g == 1 or g * max_new_tokens <= PACK))
    if group > 1 and not (policy.fast and policy.window(longest + group * max_new_tokens)):
        group = 1
    for first in range(0, len(order), chunk):
        chosen = order[first:first + chunk]
        # All uniforms at once and per prompt: nothing random inside the loop, the same draw in any batch.
        u = torch.stack([torch.rand(k, max_new_tokens, dtype=torch.float64, generator=torch.Generator().manual_seed(seeds[b]))
                         for b in chosen])  # [B', k, T]
        rows = torch.tensor(chosen)[:, None] * k + torch.arange(k)  # [B', k] where the results go
        for some in range(0, k, share):
            g = math.gcd(group, len(u[0, some:some + share]))
            with folded(policy) if policy.fast else nullcontext():
                decode_chunk(policy, [prompts[b] for b in chosen], u[:, some:some + share].unflatten(1, (-1, g)).to(policy.device),
                             temperature, tokens, logps, lengths, entropies, rows[:, some:some + share].reshape(-1, g).to(policy.device))
    if WORLD > 1:  # in one message; float64 holds them all exactly
        every = total(torch.cat([tokens.double(), logps.double(), entropies.double(), lengths[:, None].double()], 1))
        tokens, logps, entropies, lengths = every.split([max_new_tokens] * 3 + [1], 1)
        tokens, logps, entropies, lengths = tokens.long(), logps.float(), entropies.float(), lengths[:, 0].long()
    longest, shape = int(lengths.max()), (len(prompts), k)
    return Samples(tokens[:, :longest].unflatten(0, shape), logps[:, :longest].unflatten(0, shape), lengths.view(shape),
                   entropies[:, :longest].unflatten(0, shape))


def positions(policy):
    """Most tokens that the model has positions for."""
    return getattr(policy.lm.config.get_text_config(), "max_position_embeddings", None) or math.inf


def that_fit(policy, task, problems, max_new_tokens):
    """The problems whose prompt leaves room for max_new_tokens in the model's positions; says how many it left out."""
    if positions(policy) == math.inf:
        return problems
    kept = [p for p in problems if len(policy.encode(p.prompt, task.chat)) + max_new_tokens <= positions(policy)]
    if not kept and problems:
        raise UserError(f"no problem leaves room for --max-new-tokens {max_new_tokens} in the model's {positions(policy)} "
                        "positions: lower it or take a model with more")
    if len(kept) < len(problems):
        print(f"left out {len(problems) - len(kept)} of {len(problems)} problems: prompts too long for the model", flush=True)
    return kept


def gold(policy, task, problems, target="solution"):
    """Gold completions for supervised fine-tuning -> (problems that have one, their token ids with end-of-sequence);
    says how many were left out.  Raises UserError if none is left."""
    kept, golds = [], []
    for p in problems:
        text = task.target(p, target)
        if text is not None:
            ids = policy.encode_solution(text)
            if len(policy.encode(p.prompt, task.chat)) + len(ids) <= positions(policy):
                kept.append(p)
                golds.append(ids)
    if not kept:
        raise UserError(f"task {task.name} has no gold completions to learn from (--target {target}): its problems need a solution")
    if len(kept) < len(problems):
        print(f"left out {len(problems) - len(kept)} of {len(problems)} problems: no gold completion, or too long for the model", flush=True)
    return kept, golds


def decode_chunk(policy, prompts, u, temperature, tokens, logps, lengths, entropies, rows):
    """The sampling loop of `sample` for one chunk: u [P, k/g, g, T] uniforms, g samples of one prompt to a row. Writes into
    rows `rows` [P k/g, g] of tokens, logps, entropies [., T] and lengths [.]."""
    lm, stop = policy.lm, torch.tensor(policy.stop, device=policy.device)
    ids, mask = left_pad(prompts, device=policy.device)
    position = mask.cumsum(-1).sub(1).clamp_min(0)  # [P, L]
    keep = {"logits_to_keep": 1} if "logits_to_keep" in policy.accepts else {}

    def forward(ids, mask, position, cache=None, keep=keep):
        places = {"position_ids": position} if "position_ids" in policy.accepts else {}
        out = lm(input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True, **places, **keep)
        return out.logits, getattr(out, "past_key_values", None)

    logits, cache = forward(ids, mask, position)  # each prompt once ...
    (_, repeat, g, steps), length = u.shape, ids.shape[1]
    logits = logits[:, -1:].repeat_interleave(repeat, 0).expand(-1, g, -1)  # [R, g, V]
    try:
        if repeat > 1:
            cache.batch_repeat_interleave(repeat)  # ... and its keys and values shared out to its rows
        elif not hasattr(cache, "batch_select_indices"):
            raise AttributeError
    except AttributeError as error:
        raise UserError(f"the sampler needs an attention cache, which {type(lm).__name__} does not have: choose a decoder "
                        "with attention in every layer") from error
    position = position[:, -1:].repeat_interleave(repeat, 0).repeat(1, g)  # [R, g]
    if g == 1:
        mask = F.pad(mask, (0, steps), value=1).repeat_interleave(repeat, 0)  # [R, L + T]
    else:  # the g queries of a step see the prompt, and of the samples' columns (token by token, g each) their own
        own = torch.eye(g, device=policy.device).repeat(1, steps).expand(len(rows), 1, g, -1)
        seen = torch.cat([mask.repeat_interleave(repeat, 0)[:, None, None].expand(-1, 1, g, -1), own], -1)
        mask = (1 - seen) * torch.finfo(logits.dtype).min  # [R, 1, g, L + g T], added to the scores
    u, done = u.flatten(0, 1), torch.zeros_like(rows, dtype=torch.bool)  # [R, g, T], [R, g]
    every = 1 if policy.device.type == "cpu" else 8  # asking a GPU whether rows have ended makes it wait
    for t in range(steps):
        logp = torch.log_softmax(logits.float() / temperature, -1)  # [R, g, V]
        # Inverse transform: the first token whose cumulative probability exceeds u. float64 keeps the far tail exact.
        p = logp.exp()
        cdf = p.cumsum(-1, dtype=torch.float64)
        token = torch.searchsorted(cdf, u[..., t:t + 1] * cdf[..., -1:], right=True).clamp_max_(cdf.shape[-1] - 1)  # [R, g, 1]
        logps[rows, t] = logp.gather(-1, token)[..., 0].masked_fill(done, 0.0)
        entropies[rows, t] = torch.special.entr(p).sum(-1).masked_fill(done, 0.0)
        token = token[..., 0]
        tokens[rows, t] = token
        lengths[rows] += ~done
        done = done | torch.isin(token, stop)
        if t + 1 == steps:
            break
        if (t + 1) % every == 0:
            alive = (~done.all(1)).nonzero()[:, 0]
            if len(alive) == 0:
                break
            if len(alive) < 0.9 * len(rows):  # finished rows leave the batch, once it is worth the copy
                cache.batch_select_indices(alive)
                rows, u, mask, position, token, done = (x[alive] for x in (rows, u, mask, position, token, done))
        position = position + 1
        logits, cache = forward(token, mask[..., :length + g * (t + 1)], position, cache, {})


def micro_batch(lm):
    """Tokens of one micro-batch of the update: 2048 on a CPU, 8192 on a GPU, less for a large model."""
    c, gpu = lm.config.get_text_config(), lm.device.type == "cuda"
    # Bytes that autograd keeps per token: activations of each layer (LoRA inputs in float32), logits in float32 and bf16.
    token = 100 * c.num_hidden_layers * c.hidden_size + 24 * c.vocab_size
    return max(256, min(8192 if gpu else 2048, (free_memory(lm.device) // 2 if gpu else 2 ** 32) // token))


def score(policy, prompts, completions, temperature=1.0, max_tokens=None, logits=False):
    """Log-probabilities of completions, in micro-batches; the gradient flows if it is enabled.

    prompts, completions  R lists of token ids each (one prompt per completion)
    max_tokens            most tokens (rows x padded length) in a micro-batch; None: see micro_batch
    logits                also yield them, divided by the temperature, [r, T, V]
    Yields (index [r] into the R rows, logps [r, T], mask [r, T] 1.0 on completion tokens); logps are 0 where mask is 0.
    Backward through one micro-batch before the next: logits exist for one at a time, and never for prompt tokens.
    """
    packs = [[i] for i in range(len(prompts))]
    if policy.fast and not logits and policy.window(max(map(len, prompts), default=0) + max(map(len, completions), default=0)):
        packs, same = [], {}  # completions of one prompt share a row: the prompt is computed once
        for i in sorted(range(len(prompts)), key=lambda i: len(completions[i])):
            same.setdefault(tuple(prompts[i]), []).append(i)
        for rows in same.values():
            while rows:
                g = max(1, min(len(rows), PACK // max(1, len(completions[rows[-1]]))))
                packs.append(rows[-g:])
                del rows[-g:]
    batches = score_rows(policy, prompts, completions, packs, temperature, max_tokens or micro_batch(policy.lm), logits)
    while True:
        with folded(policy) if policy.fast else nullcontext():
            batch = next(batches, None)
        if batch is None:
            return
        yield batch


def score_rows(policy, prompts, completions, packs, temperature, max_tokens, logits=False):
    """`score` for rows that each hold one prompt and the completions packs[row] of it, one after the other: completion j
    starts at the position after the prompt, and sees the prompt and itself only."""
    order = sorted(packs, key=lambda pack: (len(pack), max(len(completions[i]) for i in pack), len(prompts[pack[0]])))
    while order:
        # From the longest down; the width of a micro-batch is set by its longest prompt and its longest completion.
        rows, g, prompt_width, width = [], len(order[-1]), 0, 0
        while order:
            wider = [max(prompt_width, len(prompts[order[-1][0]])), max(width, *(len(completions[i]) for i in order[-1]), 0)]
            if rows and (len(rows) + 1) * (wider[0] + g * wider[1]) > max_tokens:
                break
            prompt_width, width = wider
            rows.append(order.pop())
        # Prompts end and completions begin at one column, so the logits of the last g width + 1 positions are enough.
        ids, mask = left_pad([prompts[pack[0]] for pack in rows])  # [p, L]
        ys = [completions[i] for pack in rows for i in pack]
        place = torch.tensor([row * g + slot for row, pack in enumerate(rows) for slot in range(len(pack))])  # [r] of p g slots
        own = torch.arange(width) < torch.tensor([len(y) for y in ys])[:, None]  # [r, T]
        tokens = torch.tensor([y + [0] * (width - len(y)) for y in ys], dtype=torch.long)  # [r, T]
        slots, real = (torch.zeros(len(rows) * g, width, dtype=torch.long).index_put((place,), x.long()).view(len(rows), -1)
                       for x in (tokens, own))  # [p, g T]
        position = mask.cumsum(-1).sub(1).clamp_min(0)  # [p, L]
        position = torch.cat([position, position[:, -1:] + 1 + torch.arange(width).repeat(g)], 1)  # [p, L + g T]
        ids, mask = torch.cat([ids, slots], 1), torch.cat([mask, real], 1)
        if g > 1:
            owner = torch.cat([torch.full((prompt_width,), -1), torch.arange(g).repeat_interleave(width)])  # -1: the prompt, for all
            seen = ((owner == -1) | (owner == owner[:, None])).tril()  # [L + g T, L + g T]
            mask = (~(seen & mask[:, None, None].bool())).to(policy.lm.dtype) * torch.finfo(policy.lm.dtype).min
        extra = {"logits_to_keep": g * width + 1} if "logits_to_keep" in policy.accepts else {}
        if "position_ids" in policy.accepts:
            extra["position_ids"] = position.to(policy.device)
        scaled = policy.lm(input_ids=ids.to(policy.device), attention_mask=mask.to(policy.device), use_cache=False, **extra).logits
        scaled = scaled[:, -g * width - 1:].float() / temperature  # [p, 1 + g T, V]
        if g == 1:
            scaled = scaled[:, :-1]  # [r, T, V]
        else:  # what predicts token t of slot j: the prompt's last position for t = 0, else the token before it
            column = torch.cat([torch.zeros(g, 1, dtype=torch.long), 1 + torch.arange(g * width).view(g, width)[:, :-1]], 1)
            scaled = scaled[place[:, None] // g, column[place % g]]  # [r, T, V]
        logps = -F.cross_entropy(scaled.flatten(0, 1), tokens.to(policy.device).flatten(), reduction="none").view_as(tokens)
        own = own.to(policy.device)
        index = torch.tensor([i for pack in rows for i in pack])
        yield index, logps.masked_fill(~own, 0.0), own.float(), *([scaled] if logits else [])


@torch.no_grad()
def sequence_logps(policy, prompts, completions, temperature=1.0):
    """log pi(y|x) of R completions (sums over tokens), without gradient -> float64 tensor [R] on the CPU."""
    out, share = torch.zeros(len(prompts), dtype=torch.float64), slice(RANK, None, WORLD)
    for index, logps, _ in score(policy, prompts[share], completions[share], temperature):
        out[share][index] = logps.double().sum(-1).cpu()
    return total(out)


# ------------------------------------------------------------------------------------------------- the learned verifier

@dataclass
class Verifier:
    """A decoder with one scalar output, read at the last token of prompt + completion: a logit of being right."""
    model: torch.nn.Module
    tokenizer: object
    note: str
    extra: dict  # what is known about it: base, precision, how it was fitted

    def parameters(self):
        """The trainable tensors: head and adapter."""
        return [p for p in self.model.parameters() if p.requires_grad]

    def encode(self, prompt, completion, chat=False):
        """Token ids of prompt and completion as a finished answer, end-of-sequence token included."""
        if chat and self.tokenizer.chat_template:
            turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]
            return self.tokenizer(self.tokenizer.apply_chat_template(turns, tokenize=False), add_special_tokens=False)["input_ids"]
        end = [] if self.tokenizer.eos_token_id is None else [self.tokenizer.eos_token_id]
        ids = self.tokenizer(prompt + completion)["input_ids"]
        return ids if ids[-1:] == end else ids + end

    def save(self, folder):
        """adapter/ (for peft) and verifier.json, which load_verifier reads."""
        def write():
            save_adapter(self.model, os.path.join(folder, "adapter"))
            write_atomic(os.path.join(folder, "verifier.json"), json.dumps(self.extra, indent=1))
        on_first(write)


def load_verifier(path, bits=None, lora_rank=None, seed=0, device=None):
    """A verifier from a folder of `bon_rl.py --fit-verifier`, or a reward model (hub id or directory: a decoder that
    AutoModelForSequenceClassification loads with one label). With lora_rank: a new one to be fitted, a fresh head and
    adapter on the base `path`.  Raises UserError if it is none of these."""
    own = os.path.join(path, "verifier.json")
    extra = {"model": path, "bits": bits}
    if lora_rank is None and os.path.exists(own):
        with open(own) as file:
            extra = json.load(file)
    torch.manual_seed(seed)  # of a fresh head
    model, tokenizer, note = load_base(extra["model"], bits or extra["bits"], device, "AutoModelForSequenceClassification",
                                       **({"num_labels": 1} if lora_rank or extra["model"] != path else {}))
    if model.config.num_labels != 1 or not hasattr(model, "score"):
        raise UserError(f"{path!r} is no verifier: give a folder of bon_rl.py --fit-verifier, or a decoder with one label")
    import peft
    model.config.pad_token_id = -1  # transformers reads the output at the last token that is no padding, and the padding token
    # is often the end-of-sequence token; rows are padded on the left here, so the last column it is
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if lora_rank:  # SEQ_CLS: the head is trained and saved with the adapter
                model = peft.get_peft_model(model, peft.LoraConfig(r=lora_rank, lora_alpha=2 * lora_rank, target_modules="all-linear",
                                                                   task_type="SEQ_CLS"))
            elif extra["model"] != path:
                model = peft.PeftModel.from_pretrained(model, os.path.join(path, "adapter"))
    except Exception as error:  # as in load_policy
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"cannot put the verifier's adapter on {extra['model']!r} ({reason}): fit it again with --fit-verifier") from error
    return Verifier(model.eval(), tokenizer, note, extra)


def verifier_logits(verifier, rows, max_tokens=None):
    """Outputs for R rows of token ids in micro-batches, with gradient if it is enabled: yields (index [r], logits [r])."""
    inner = verifier.model.get_base_model() if hasattr(verifier.model, "get_base_model") else verifier.model
    max_tokens = max_tokens or micro_batch(inner)
    placed = "position_ids" in inspect.signature(inner.forward).parameters
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    while order:
        size = max(1, max_tokens // len(rows[order[-1]]))
        index, order = order[-size:], order[:-size]
        ids, mask = left_pad([rows[i] for i in index], verifier.model.device)
        places = {"position_ids": mask.cumsum(-1).sub(1).clamp_min(0)} if placed else {}
        out = verifier.model(input_ids=ids, attention_mask=mask, use_cache=False, **places)
        yield torch.tensor(index), out.logits[:, 0].float()


@torch.no_grad()
def verify_scores(verifier, prompts, completions, chat=False):
    """Scores of R pairs of texts -> list of float. Equal pairs are scored once, so that they tie exactly."""
    pairs = list(dict.fromkeys(zip(prompts, completions, strict=True)))
    scores, share = torch.zeros(len(pairs), dtype=torch.float64), slice(RANK, None, WORLD)
    for index, logits in verifier_logits(verifier, [verifier.encode(p, c, chat) for p, c in pairs[share]]):
        scores[share][index] = logits.double().cpu()
    scores = dict(zip(pairs, total(scores).tolist()))
    return [scores[pair] for pair in zip(prompts, completions)]


# ----------------------------------------------------------------------------------------------------------- estimators

def pass_at_k(n, c, k):
    """Chance that k draws without replacement from n samples, c of them right, hold a right one: 1 - C(n-c,k) / C(n,k).
    Unbiased for 1 - (1-p)^k (Chen et al. 2021, arXiv 2107.03374).  Raises ValueError unless 0 <= c <= n, 1 <= k <= n."""
    if not (0 <= c <= n and 1 <= k <= n):
        raise ValueError(f"pass_at_k needs 0 <= c <= n and 1 <= k <= n, got n={n}, c={c}, k={k}")
    return 1 - math.comb(n - c, k) / math.comb(n, k)


def maj_at_k(answers, correct, k):
    """Chance that `correct` wins a plurality vote of k draws without replacement from the pool `answers`; a tie of t
    answers counts 1/t; None consumes a draw and casts no vote. Exact, no resampling.  Raises ValueError unless 1 <= k <= n.

    Sum over the winning number of votes v: `correct` gets v, answers with fewer than v copies get anything, each answer
    with at least v copies gets fewer than v or ties at v. Counting the ways is a product of polynomials in x (votes) and
    z (ties); its float64 terms are all positive, so nothing cancels.
    """
    import numpy as np
    n = len(answers)
    if not 1 <= k <= n:
        raise ValueError(f"maj_at_k needs 1 <= k <= the number of answers, got k={k} for {n}")
    if n > 1000:
        raise ValueError(f"maj_at_k counts in float64, which holds pools of up to 1000 answers, not {n}")
    if correct is None:
        raise ValueError("maj_at_k: None is the absence of an answer and cannot be the correct one")
    counts = Counter(answers)
    mine, blank = counts.pop(correct, 0), counts.pop(None, 0)
    total = 0.0
    for v in range(1, min(k, mine) + 1):
        rest = k - v  # draws for everybody else
        free = blank + sum(c for c in counts.values() if c < v)
        ways = np.zeros((rest // v + 1, rest + 1))  # [ties, draws]
        ways[0] = [math.comb(free, d) for d in range(rest + 1)]
        for c in (c for c in counts.values() if c >= v):
            tied = np.zeros_like(ways)
            if v <= rest:
                tied[1:, v:] = ways[:-1, :rest + 1 - v] * math.comb(c, v)
            for u in range(1, min(v, rest + 1)):  # fewer votes: times sum_{u<v} C(c,u) x^u, the term u = 0 below
                tied[:, u:] += ways[:, :-u] * math.comb(c, u)
            ways = ways + tied
        total += math.comb(mine, v) * float((ways[:, rest] / np.arange(1, len(ways) + 1)).sum())
    return total / math.comb(n, k)


def bon_at_k(scores, rewards, k):
    """Expected reward of the highest-scored of k draws without replacement; equal scores share the choice equally.
    With scores = rewards this is max@k (pass@k for rewards in {0, 1}).  Raises ValueError unless 1 <= k <= n."""
    n = len(scores)
    if len(rewards) != n or not 1 <= k <= n:
        raise ValueError(f"bon_at_k needs as many rewards as scores and 1 <= k <= n, got {n}, {len(rewards)}, k={k}")
    groups = {}
    for s, r in zip(scores, rewards):
        groups.setdefault(s, []).append(r)
    total, below = 0.0, 0
    for s in sorted(groups):
        upto = below + len(groups[s])
        top = (math.comb(upto, k) - math.comb(below, k)) / math.comb(n, k)  # chance that s is the best score drawn
        total, below = total + top * sum(groups[s]) / len(groups[s]), upto
    return total


def elementwise(value, low, high, name):
    """For functions of a tensor or a number -> (float tensor, function that gives a result the type of `value`).
    A number is computed in float64; NaN passes.  Raises ValueError outside [low, high]."""
    tensor = value if torch.is_tensor(value) else torch.tensor(value, dtype=torch.float64)
    tensor = tensor if tensor.is_floating_point() else tensor.float()
    if ((tensor < low) | (tensor > high)).any():
        raise ValueError(f"{name} must lie between {low} and {high}")
    return tensor, (lambda t: t.to(tensor.dtype)) if torch.is_tensor(value) else float


def spread(weights):
    """How the weights of a batch are distributed, for the step line. w_even is the share within 5 % of their mean: at 1
    the weights do nothing, and the objective is the one without them."""
    w = weights.double().flatten()
    return {"w_mean": w.mean().item(), "w_min": w.min().item(), "w_median": w.median().item(), "w_max": w.max().item(),
            "w_even": ((w - w.mean()).abs() <= 0.05 * w.mean().abs()).double().mean().item()}


def mean_se(values):
    """{"mean", "se"}: mean and standard error over problems (nan for one problem)."""
    n, mean = len(values), sum(values) / len(values)
    return {"mean": mean, "se": math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1) / n) if n > 1 else math.nan}


# ----------------------------------------------------------------------------------------------------------- run folder

@contextmanager
def writing(path):
    """Turns a full disk, a read-only folder and whatever else keeps `path` from being written into one sentence."""
    try:
        yield
    except (OSError, safetensors.SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot write {path} ({reason}): what was saved before is intact, the last checkpoint too; "
                        "put that right and run the command again, a training run with --resume") from error


def write_atomic(path, data, keep=None):
    """Write a file (text or bytes) so that a reader, or a kill at any moment, meets the old one or the new one. `keep`
    is a name under which the old one stays.  Raises UserError if it cannot be written; the old one is then in place."""
    if RANK:
        return
    with writing(path):
        try:
            with open(path + ".tmp", "wb") as file:
                file.write(data.encode() if isinstance(data, str) else data)
                file.flush()
                os.fsync(file.fileno())  # some file systems say only here that they are full
            if keep and os.path.exists(path):
                second_name(path, keep)
            os.replace(path + ".tmp", path)
        except OSError:
            for rest in (path + ".tmp", f"{keep}.tmp"):
                with suppress(OSError):
                    os.remove(rest)
            raise


def second_name(path, name):
    """Give the file `path` another name too, in place of the file that has it. Never is `path` missing."""
    spare = name + ".tmp"
    with suppress(FileNotFoundError):
        os.remove(spare)
    try:
        os.link(path, spare)
    except OSError:  # a file system without hard links
        shutil.copyfile(path, spare)
    os.replace(spare, name)
    with suppress(FileNotFoundError):  # a kill between here and the next write: both were names of one file, and
        os.remove(spare)               # renaming one to the other did nothing


def save_adapter(model, folder):
    """Write the adapter "default" as peft reads it, equal adapters in equal bytes.  Raises UserError if it cannot."""
    for name, value in vars(model.peft_config["default"]).items():
        if isinstance(value, set):  # its order, and so the order in the file, is another in every process
            setattr(model.peft_config["default"], name, sorted(value))
    shutil.rmtree(folder + ".tmp", ignore_errors=True)  # what a killed run left would be taken over
    with writing(folder):
        try:
            model.save_pretrained(folder + ".tmp", selected_adapters=["default"], save_embedding_layers=False)
            os.makedirs(folder, exist_ok=True)
            for name in os.listdir(folder + ".tmp"):
                os.replace(os.path.join(folder + ".tmp", name), os.path.join(folder, name))
        finally:
            shutil.rmtree(folder + ".tmp", ignore_errors=True)


def step_of(line):
    """The step of a line of a log (bytes), or None if it is no such line."""
    try:
        step = json.loads(line)["step"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return step if type(step) is int and line.endswith(b"\n") else None


def log_until(data, step, name):
    """What of a log (bytes) was written up to `step` -> (its size in bytes, number of its first broken line or None).
    metrics.jsonl has one line per step, samples.jsonl some for some steps."""
    lines = data.splitlines(keepends=True)
    steps = [step_of(line) for line in lines]
    if name == "metrics.jsonl":
        count, wanted = step, range(1, step + 1)
    else:
        count = max((i for i, s in enumerate(steps, 1) if s is not None and s <= step), default=0)
        wanted = accumulate((s if s is not None and s <= step else 0 for s in steps[:count]), max)  # steps never fall
    found = (steps + [None] * count)[:count]
    broken = next((i for i, (s, w) in enumerate(zip(found, wanted), 1) if s != w), None)
    return len(b"".join(lines[:count])), broken


def fits(action, value):
    """Whether a flag of argparse can have this value."""
    if value is None:
        return action.default is None
    if action.nargs == 0:
        return type(value) is bool
    types = {int: (int,), float: (int, float)}.get(action.type, (str,))
    return type(value) in types and value in (action.choices or [value])


# What a checkpoint knows the bytes of, the name of the one before, and the flags that may differ from the checkpoint's:
# folders move.
LOGGED = ("metrics.jsonl", "samples.jsonl", "targets.json")
PREVIOUS = "state.previous.pt"
MAY_CHANGE = ("model", "data", "adapter", "verifier", "out", "resume", "save_every")


def new_folder(folder, label):
    """Create the folder, or runs/<label>-<number> if it is None, and see that it can be written.  Raises UserError."""
    return on_first(lambda: make_folder(folder, label))


def make_folder(folder, label):
    number = 1
    while folder is None:
        try:
            os.makedirs(os.path.join("runs", f"{label}-{number}"))
            folder = os.path.join("runs", f"{label}-{number}")
        except FileExistsError:
            number += 1
        except OSError as error:
            raise UserError(f"cannot create the folder runs/{label}-{number}: {error.strerror}; give another with --out") from error
    try:
        os.makedirs(folder, exist_ok=True)
        if not all(name.endswith(".tmp") for name in os.listdir(folder)):  # a command killed early leaves no others
            raise UserError(f"--out {folder} is not empty: choose another folder, or continue a run with --resume")
    except OSError as error:
        raise UserError(f"cannot write to --out {folder}: {error.strerror}") from error
    try_folder(folder)
    return folder


def try_folder(folder):
    """See that files can be made in the folder, before any work is done.  Raises UserError."""
    probe = os.path.join(folder, "args.json.tmp")
    try:
        with open(probe, "w") as file:
            file.write("{}")
    except OSError as error:
        raise UserError(f"cannot write to --out {folder}: {error.strerror}") from error
    finally:
        with suppress(OSError):
            os.remove(probe)


class Damage(UserError):
    """A file of a run folder is not what the run wrote."""


class Run:
    """One training run on disk: args.json, metrics.jsonl, samples.jsonl, result.json, curves.png, adapter/, state.pt.

    `--resume` takes every flag from args.json (a flag given again must agree), cuts what was logged after the last
    checkpoint, and goes on from it. Nothing random is stored: every draw has its own seed (seed_of).
    state.pt is what torch.save writes, and then the SHA-256 of that. It holds size and SHA-256 of the logs up to its
    step, and the flags. What does not agree ends in one sentence with the command that goes on from state.previous.pt,
    the checkpoint before; nothing falls back to it unasked.
    Ctrl-C or SIGTERM sets `stopping`; the loop then saves after the current step. A second Ctrl-C leaves at once.
    Of several processes the first one reads and writes.
    """

    def __init__(self, args, parser, argv):
        self.args, self.folder, self.resumed = args, args.out, args.resume
        self.started, self.asked_to_stop, self.step, self.result = time.time(), False, 0, {}
        if args.resume:
            self.read_args(args, parser, argv)

    @property
    def stopping(self):
        """Whether any process was asked to stop: all of them have to ask at the same place of the loop."""
        return total(float(self.asked_to_stop)) > 0

    def create(self, script, label):
        """Make the folder, runs/<script>-<label>-<number> unless --out names one.  Raises UserError if it is in use."""
        self.script = script
        if not self.resumed:
            self.folder = self.args.out = new_folder(self.args.out, f"{script}-{label}")
        elif self.made_by != script:
            raise UserError(f"--resume: {self.folder} is a run of {self.made_by}.py, not of {script}.py")
        else:
            on_first(lambda: try_folder(self.folder))

    def path(self, name):
        return os.path.join(self.folder, name)

    def read(self, name):
        """A JSON file of the folder, or None if there is none that can be read."""
        try:
            with open(self.path(name)) as file:
                return json.load(file)
        except (OSError, ValueError, RecursionError):
            return None

    def read_args(self, args, parser, argv):
        if not args.out:
            raise UserError("--resume needs --out DIR, the run folder to continue")
        found = on_first(lambda: self.read("args.json"))
        flags = found.get("flags") if isinstance(found, dict) else None
        if not isinstance(flags, dict):
            raise UserError(f"--resume: {self.folder} has no readable args.json, so it is no run folder, or of a run "
                            "killed before it wrote anything: then give the command that started it again")
        self.made_by, known = found.get("script"), {action.dest: action for action in parser._actions}
        for name, value in flags.items():
            if name not in known or not fits(known[name], value):
                raise UserError(f"--resume: args.json in {self.folder} has --{name.replace('_', '-')} {value}, which "
                                f"this script does not take: it is a run of {found.get('script')}.py, or damaged")
        for action in parser._actions:  # the flags given on this command line: defaults suppressed, what is left was given
            action.default = argparse.SUPPRESS
        given = vars(parser.parse_args(argv))
        for name, value in given.items():
            if name not in ("out", "resume", "save_every") and flags.get(name) != value:
                raise UserError(f"--resume continues with the flags of args.json, where --{name.replace('_', '-')} is "
                                f"{flags.get(name)}, not {value}: leave the flag out, or start a new run (--adapter)")
        vars(args).update({k: v for k, v in flags.items() if k not in ("out", "resume") and k not in given})

    def begin(self, policy, optimizer):
        """Write args.json, load the last checkpoint if resuming, listen for Ctrl-C. Sets `step`, the number of steps done."""
        if not self.resumed:
            on_first(lambda: write_atomic(self.path("args.json"), json.dumps(
                {"script": self.script, "flags": vars(self.args), "processes": WORLD, **versions()}, indent=1)))
        else:
            state = on_first(lambda: self.restore(policy, optimizer))
            if state and RANK:
                self.load(state, policy, optimizer)

        def stop(number, frame):
            if self.asked_to_stop:
                raise KeyboardInterrupt
            self.asked_to_stop = True
            print("stopping after this step (Ctrl-C again to leave at once)", flush=True)
        try:
            signal.signal(signal.SIGINT, stop)
            signal.signal(signal.SIGTERM, stop)
        except ValueError:
            pass  # not the main thread: the caller looks after signals

    def restore(self, policy, optimizer):
        """Load the last checkpoint and cut the logs to its step -> the checkpoint, None if there was none yet.  Raises
        UserError: damage, with the way on; flags other than the checkpoint's; files that cannot be written."""
        try:
            state = self.read_checkpoint("state.pt")
            if state is None and os.path.exists(self.path(PREVIOUS)):
                raise Damage(f"{self.path('state.pt')} is missing")
            if state:
                self.load(state, policy, optimizer)
            sizes = self.check_logs(state)
        except Damage as error:
            raise UserError(f"{error}: {self.way_on()}") from error
        for name, size in sizes.items():
            with writing(self.path(name)), suppress(FileNotFoundError), open(self.path(name), "r+b") as file:
                file.truncate(size)  # in place: a full disk has no room for a copy
        if state:  # a kill may have left an adapter/ that is ahead of the checkpoint, or half of one
            save_adapter(policy.model, self.path("adapter"))
        return state

    def load(self, state, policy, optimizer):
        """Put a checkpoint into policy, optimiser and this run.  Raises UserError if its flags or tensors are others."""
        for name, value in json.loads(state.get("flags", "{}")).items():
            now = vars(self.args).get(name)
            if name not in MAY_CHANGE and now != value:
                raise UserError(f"{name} is {json.dumps(now)} in {self.path('args.json')} and {json.dumps(value)} in the "
                                "state.pt beside it, so one of them was changed: put it back")
        try:
            mine, start = policy.parameters(), policy.start_parameters()
            for p, saved in zip(mine + start, state["parameters"] + state["start"], strict=True):
                if p.shape != saved.shape:
                    raise ValueError(f"{tuple(saved.shape)} for {tuple(p.shape)}")
                p.data.copy_(saved)  # of the start, too: the folder it came from may have trained on since
            optimizer.load_state_dict(state["optimizer"])
            for p in mine:
                for name, moment in optimizer.state[p].items():
                    if name != "step" and moment.shape != p.shape:
                        raise ValueError(f"{name} {tuple(moment.shape)} for {tuple(p.shape)}")
        except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise Damage(f"{self.path('state.pt')} is of another run, its tensors do not fit ({error})") from error
        self.step, self.result = state["step"], json.loads(state["result"])
        self.started -= state["seconds"]

    def bytes_of(self, name):
        """What is in a file of the folder, None if there is no such file.  Raises Damage if it cannot be read."""
        try:
            with open(self.path(name), "rb") as file:
                return file.read()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise Damage(f"{self.path(name)} cannot be read ({error.strerror})") from error

    def read_checkpoint(self, name):
        """The checkpoint in a file, None if there is no such file.  Raises Damage."""
        data = self.bytes_of(name)
        if data is None:
            return None
        whole = hashlib.sha256(data[:-32]).digest() == data[-32:]
        try:
            if not whole and zipfile.ZipFile(io.BytesIO(data)).testzip():
                raise ValueError("a record with another checksum")
            state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
            if "files" in state and not whole:  # older versions wrote neither digest nor "files"
                raise ValueError("another SHA-256")
            state["step"] + state["seconds"], json.loads(state["result"])
        except Exception as error:  # there is no end to what zipfile and the unpickler raise at damaged bytes
            raise Damage(f"{self.path(name)} is damaged") from error
        return state

    def check_logs(self, state):
        """{file: its size in bytes at a checkpoint, None: at the start}.  Raises Damage if it changed up to there."""
        sizes = dict.fromkeys(LOGGED, 0)
        for name in LOGGED if state else ():
            data = self.bytes_of(name) or b""
            sizes[name], broken = (len(data), None) if name == "targets.json" else log_until(data, state["step"], name)
            whole = not broken
            if "files" in state:
                sizes[name], digest = state["files"][name]
                whole = hashlib.sha256(data[:sizes[name]]).hexdigest() == digest
            if not whole:
                line = f" in line {broken}" if broken else ""
                raise Damage(f"{self.path(name)} is damaged{line}, before the checkpoint of step {state['step']}")
        return sizes

    def way_on(self):
        """The words that say how to go on where the last checkpoint, or what was logged before it, is damaged."""
        script = os.path.join(HERE, self.script + ".py")
        resume = shlex.join([sys.executable, script, "--out", self.folder, "--resume"])
        state, previous = self.path("state.pt"), self.path(PREVIOUS)
        try:
            found = self.read_checkpoint(PREVIOUS)
            self.check_logs(found)
        except Damage:
            found = None
        if found:
            move = shlex.join(["mv", previous, state])
            return f"go on from the checkpoint before it, of step {found['step']}, with: {move} && {resume}"
        remove = shlex.join(["rm", "-f", state, previous])
        return f"no checkpoint before it is whole; begin this run again with: {remove} && {resume}"

    def log(self, name, **values):
        """Append one line to metrics.jsonl or samples.jsonl.  Raises UserError if it cannot be written."""
        if RANK:
            return
        with writing(self.path(name)), open(self.path(name), "a") as file:
            file.write(json.dumps(values) + "\n")

    def seconds(self):
        """Seconds that the run has taken, interruptions not counted."""
        return time.time() - self.started

    def save(self, policy, optimizer):
        """Checkpoint: adapter/ for any user of peft, state.pt for --resume. A kill leaves the last one intact.  Raises
        UserError if it cannot be written, which leaves the last one intact too."""
        def write():
            save_adapter(policy.model, self.path("adapter"))
            logged = {name: self.bytes_of(name) or b"" for name in LOGGED}
            buffer = io.BytesIO()
            torch.save({"step": self.step, "seconds": self.seconds(), "result": json.dumps(self.result),
                        "files": {name: [len(data), hashlib.sha256(data).hexdigest()] for name, data in logged.items()},
                        "flags": json.dumps(vars(self.args)),
                        "parameters": [p.detach() for p in policy.parameters()],
                        "start": [p.detach() for p in policy.start_parameters()],
                        "optimizer": optimizer.state_dict()}, buffer)
            body = buffer.getvalue()
            write_atomic(self.path("state.pt"), body + hashlib.sha256(body).digest(), keep=self.path(PREVIOUS))
        on_first(write)

    def finish(self):
        self.result["seconds"] = round(self.seconds(), 1)
        on_first(lambda: write_atomic(self.path("result.json"), json.dumps(self.result, indent=1)))


@functools.lru_cache(maxsize=2)
def permutation(n, seed, epoch):
    order = list(range(n))
    random.Random(seed_of("order", seed, epoch)).shuffle(order)
    return order


def batch_of(problems, size, step, seed):
    """The `size` problems of step 1, 2, ...: one shuffled pass over `problems` after the other, nothing dropped."""
    places = (divmod(j, len(problems)) for j in range((step - 1) * size, step * size))
    return [problems[permutation(len(problems), seed, epoch)[place]] for epoch, place in places]


def clip_gradient(policy, max_norm):
    """Sum the gradient of a policy's (or verifier's) adapter over the processes, and clip its norm (max_norm 0: leave it), in
    place -> its norm before.  Raises UserError if it is not finite, before it can reach the adapter."""
    if WORLD > 1:
        parameters = policy.parameters()
        flat = total(torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten().float() for p in parameters]))
        for p, grad in zip(parameters, flat.split([p.numel() for p in parameters])):
            p.grad = grad.view_as(p).to(p.dtype)
    norm = torch.nn.utils.clip_grad_norm_(policy.parameters(), max_norm or math.inf).item()
    if not math.isfinite(norm):
        raise UserError("the gradient is not finite: lower --lr or --max-grad-norm; the last checkpoint is intact")
    return norm


def peak_memory(policy):
    """Peak memory in GB: allocated on the GPU, resident in the process on a CPU."""
    if policy.device.type == "cuda":
        return torch.cuda.max_memory_allocated(policy.device) / 1e9
    try:
        import resource
    except ImportError:  # not a Unix
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9


def check_flags(args, positive=(), not_negative=()):
    """What argparse cannot judge about the flags that all scripts share.  Raises UserError."""
    for name in ("samples", "prompts", "steps", "lora_rank", "save_every", *positive):
        if not getattr(args, name) >= 1:
            raise UserError(f"--{name.replace('_', '-')} must be at least 1, not {getattr(args, name)}")
    for name in ("lr", "kl_coef", "max_new_tokens", "eval_samples", "eval_problems", "eval_every", "seed", *not_negative):
        if not 0 <= getattr(args, name, 0) < math.inf:
            raise UserError(f"--{name.replace('_', '-')} must not be negative, and finite; it is {getattr(args, name)}")
    if not 0 < args.temperature < math.inf:
        raise UserError(f"--temperature must be positive, not {args.temperature}")
    if args.eval_every and not args.eval_samples:
        raise UserError("--eval-every needs --eval-samples of at least 1")


def print_line(line, steps, seconds):
    """The step line: the keys of metrics.jsonl, rounded, and the time left at `seconds` per step."""
    left = seconds * (steps - line["step"])
    hidden = ("step", "seconds", "samples_per_s", "grad_norm")  # these, and what is no number, are in metrics.jsonl only
    shown = {k: v for k, v in line.items() if k not in hidden and isinstance(v, (int, float))}
    text = "  ".join(f"{k} {v:,.0f}" if abs(v) >= 100 else f"{k} {v:.3g}" for k, v in shown.items())
    print(f"step {line['step']}/{steps}  {text}  eta {left:.0f} s", flush=True)


def versions():
    """Versions of what matters and the commit of this checkout, for args.json."""
    import importlib.metadata as metadata
    packages = {}
    for name in ("torch", "transformers", "peft", "bitsandbytes"):
        try:
            packages[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            packages[name] = None
    try:
        commit = subprocess.run(["git", "-C", HERE, "describe", "--always", "--dirty"], capture_output=True, text=True).stdout
    except OSError:  # no git here
        commit = ""
    return {"versions": packages, "commit": commit.strip() or None}
