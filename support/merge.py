"""Merge the adapter of a run into its base model, and save a plain model folder for transformers or a server.

    python -m support.merge runs/mine DIR

The adapter is merged in float32 into the weights that it was trained on. A 4-bit, 8-bit or GGUF base is de-quantised,
which differs from the base before quantisation (use --bits 32 for that). DIR gets weights, config, generation_config,
tokenizer, chat template and a model card. Before the folder is renamed to DIR, plain transformers loads it, and it must
give 64 samples of the trained policy the same log-probabilities as the policy.
"""
import argparse
import contextlib
import gc
import os
import shutil
import time
import warnings

DTYPES = ("bfloat16", "float32")


def parse_args(argv=None):
    parser = argparse.ArgumentParser(prog="python -m support.merge", description=__doc__.split("\n")[0])
    parser.add_argument("run", help="run folder, or directory of a peft adapter")
    parser.add_argument("folder", metavar="DIR", help="folder to write, new or empty")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16",
                        help="precision of the stored weights, 2 or 4 bytes each (merging needs 4 bytes of memory "
                             "each); default bfloat16")
    parser.add_argument("--model", help="the base model; default: the one that the run or the adapter names")
    parser.add_argument("--bits", type=int, choices=[4, 8, 16, 32],
                        help="precision of the base that the adapter was trained on; default: as in the run, else 32")
    return parser.parse_args(argv)


if __name__ == "__main__":
    parse_args()  # handle --help and usage errors before the heavy imports

import torch

import common
from support import adapters, card, check, contents, load
from support.errors import UserError
from support.flags import cli
from support.folder import writing

SAMPLES = 64
TOKENS = 64  # maximum length of a sample
LIMITS = {"float32": (1e-3, 1e-3), "bfloat16": (float("inf"), 0.1)}  # largest and mean gap, nats per token


def base_of(run, info):
    """The base model that a run, or the folder of an adapter, names.  Raises UserError."""
    config = contents.read_json(os.path.join(run, "adapter_config.json"))
    named = info["flags"].get("model") or config.get("base_model_name_or_path")
    if not named:
        raise UserError(f"{run!r} names no base: give a run folder, or a directory of an adapter and --model")
    files = os.listdir(named) if os.path.isdir(named) else []
    ggufs = [name for name in files if name.endswith(".gguf")]
    if ggufs and "config.json" not in files:
        if len(ggufs) > 1:
            raise UserError(f"the base of {run!r} is one of several GGUF files in {named}: say which with --model")
        return os.path.join(named, ggufs[0])
    return named


def samples(policy, info):
    """Draw 64 completions of the run's prompts from the trained policy -> [(prompt, completion)], lists of token ids.
    If no prompts are known, the prompt is the BOS token."""
    flags = info["flags"]
    policy.system = flags.get("system")
    chat = policy.tokenizer.chat_template if info["chat"] is None else info["chat"]
    prompts = policy.encode(info["prompts"], chat)
    if not all(prompts) or not prompts:
        first = policy.tokenizer.bos_token_id
        prompts = [[policy.stop[0] if first is None else first]]
    longest = min(flags.get("max_new_tokens") or TOKENS, TOKENS, policy.positions - max(map(len, prompts)))
    each = -(-SAMPLES // len(prompts))
    drawn = common.sample(policy, prompts, each, range(len(prompts)), 1.0, longest)
    return [(x, y) for x, ys in zip(prompts, drawn.lists()) for y in ys][:SAMPLES]


@torch.no_grad()
def logps(lm, rows):
    """log pi of each token of each completion, from one forward pass for each row, without other code of this project
    -> float32 [tokens of all completions]."""
    results = []
    for x, y in rows:
        ids = torch.tensor([x + y])
        logits = lm(input_ids=ids, use_cache=False).logits[0, len(x) - 1:-1].float()  # [T, V]
        results.append(torch.log_softmax(logits, -1).gather(-1, ids[0, len(x):, None])[:, 0])
    return torch.cat(results)


def checked_gap(before, after, limits, what):
    """(largest, mean) gap of two lists of log-probabilities.  Raises UserError if it exceeds its limit.  what: name of
    the second model, for the message."""
    largest, mean = check.gap([before], [after])
    if not (largest <= limits[0] and mean <= limits[1]):
        raise UserError(f"{what} gives the samples different log-probabilities than the trained policy, by up to "
                        f"{largest:.3g} nats for a token and {mean:.2g} on average, so nothing is written: try --dtype "
                        "float32, or use the adapter on its base")
    return largest, mean


def rounding(policy):
    """Limits of the gap between the trained policy and its weights in float32."""
    kind = check.precision(policy)
    largest, mean = check.LIMITS[kind]
    return (largest if kind == "float32" else float("inf")), mean


def on_plain_weights(policy, model, bits, adapter):
    """The trained policy with float32 weights -> (the peft model, how the base was converted, as text). Removes the
    model from `policy`.  Raises UserError."""
    stored_bits = load.bits_of(policy)
    wrapped = policy.model
    policy.model = None
    if not getattr(wrapped.get_base_model(), "is_quantized", False):
        return wrapped.float(), " into de-quantised weights" * ("de-quantised" in policy.note)
    needed = 4 * wrapped.get_base_model().num_parameters()
    free = load.free_memory(policy.device)
    del wrapped  # peft would merge into quantised weights, so the base is loaded again
    gc.collect()
    if needed > free:
        raise UserError(f"merging needs {needed / 1e9:.1f} GB of memory, and {free / 1e9:.1f} GB are free: use a "
                        "larger machine")
    lm, _, _ = load.load_base(model, bits, "cpu")
    lm = load.without_trace(lm.dequantize(torch.float32)).float()
    return adapters.put_on(lm, adapter).eval(), f" into the de-quantised {stored_bits}-bit weights"


def merged(wrapped, adapter):
    """Merge the adapter into the weights and remove peft -> the model.  Raises UserError if peft cannot merge it."""
    lm = wrapped.get_base_model()
    kind = wrapped.peft_config["default"].peft_type.value
    tied = getattr(lm.config.get_text_config(), "tie_word_embeddings", False)
    part(lm)
    try:
        lm = wrapped.merge_and_unload(safe_merge=True)
    except Exception as error:  # peft's kinds of adapters raise different exceptions
        reason = load.first_line(error)
        raise UserError(f"peft cannot merge adapter {adapter!r} of kind {kind} ({reason}): use it as it is, on its base"
                        ) from error
    head, table = lm.get_output_embeddings(), lm.get_input_embeddings()
    tied = bool(tied and head is not None and torch.equal(head.weight, table.weight))
    if tied:
        head.weight = table.weight
    for config in (lm.config, lm.config.get_text_config()):
        config.tie_word_embeddings = tied
    return lm


def part(lm):
    """Untie weights: give every module a separate copy of a shared weight. Otherwise an adapter on only the embedding
    or the head would be merged into both."""
    seen = set()
    for module in lm.modules():
        for name, p in list(module.named_parameters(recurse=False)):
            if id(p) in seen:
                setattr(module, name, torch.nn.Parameter(p.detach().clone(), requires_grad=False))
            seen.add(id(p))


@contextlib.contextmanager
def beside(folder):
    """Context with a temporary folder next to `folder`, to be renamed to it when complete, else removed.  Raises
    UserError if `folder` is not empty."""
    if os.path.isfile(folder) or os.path.isdir(folder) and os.listdir(folder):
        raise UserError(f"{folder} already exists and is not empty: give another folder")
    temporary = f"{folder}.{os.getpid()}.tmp"
    with writing(folder):
        os.makedirs(temporary)
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def enough_memory():
    """Context that turns torch's out-of-memory error on a CPU into a UserError."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "alloc" not in str(error):
            raise
        raise UserError("out of memory, and nothing is written: merging needs 4 bytes for each parameter, so use a "
                        "larger machine") from error


def save(lm, policy, place, folder):
    """Write weights, configs and tokenizer into `place`.  Raises UserError if this fails or the disk is too full."""
    needed = lm.num_parameters() * lm.dtype.itemsize
    free = shutil.disk_usage(place).free
    if needed > free:
        raise UserError(f"{folder} needs {needed / 1e9:.2f} GB, and {free / 1e9:.2f} GB of its disk are free")
    settings = lm.generation_config
    settings.eos_token_id = policy.stop  # all tokens that ended a completion in training
    try:
        settings.validate(strict=True)
    except ValueError:  # a temperature without do_sample, for example, which transformers loads and does not save
        settings.do_sample = True
    try:
        with writing(folder), load.quiet():
            lm.save_pretrained(place)
            policy.tokenizer.save_pretrained(place)
    except (ValueError, NotImplementedError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"transformers cannot save this model ({load.first_line(error)}), so nothing is written: use "
                        "the adapter on its base") from error
    for entry in os.scandir(place):  # safetensors creates files that other users, such as a server's, cannot read
        shutil.copymode(os.path.join(place, "config.json"), entry)


def reloaded(place, policy, texts):
    """Load the model of a folder with plain transformers.  Raises UserError if this fails, or if its tokenizer differs
    from the policy's."""
    import transformers
    try:
        with load.quiet():
            tokenizer = transformers.AutoTokenizer.from_pretrained(place)
            lm = transformers.AutoModelForCausalLM.from_pretrained(place, dtype="auto").eval()
    except Exception as error:  # as in load_base
        raise UserError(f"transformers cannot load the merged model ({load.first_line(error)}), so nothing is written: "
                        "use the adapter on its base") from error
    same = all(tokenizer(text)["input_ids"] == policy.tokenizer(text)["input_ids"] for text in texts)
    if not same or tokenizer.chat_template != policy.tokenizer.chat_template:
        raise UserError("the tokenizer changes when it is saved and loaded, so nothing is written: use the adapter on "
                        "its base")
    return lm


def report(conversion, dtype, effect, gap):
    """What was done and measured, as text.

    conversion  how the base was converted
    effect      mean change of log-probabilities due to the adapter, nats per token
    gap         (largest, mean) change due to merging and storing, nats per token
    """
    sentences = (f"Merged in float32{conversion}, stored in {dtype}. {SAMPLES} samples of the trained policy have the "
                 f"same log-probabilities in the stored model up to {gap[0]:.1g} nats per token, {gap[1]:.1g} on "
                 f"average; the adapter changes them by {effect:.2g} on average.")
    if dtype == "bfloat16" and gap[1] >= effect / 2:
        sentences += " Rounding to bfloat16 hides much of the adapter's effect: use --dtype float32."
    return sentences


def places(run):
    """Resolve a run folder, its adapter/, or the folder of another adapter -> (run folder if there is one, adapter)."""
    run = os.path.normpath(run)
    if os.path.basename(run) == "adapter" and contents.read_json(os.path.join(os.path.dirname(run), "args.json")):
        return os.path.dirname(run), run
    inner = os.path.join(run, "adapter")
    return run, inner if os.path.isdir(inner) else run


def merge(run, folder, dtype="bfloat16", model=None, bits=None):
    """Write the merged model of a run into `folder` -> what was done and measured, as text.  Raises UserError, and then
    nothing is written."""
    folder = os.path.realpath(folder)
    with beside(folder) as place, enough_memory(), warnings.catch_warnings(action="ignore"):
        run, adapter = places(run)
        info = card.facts(run)
        model = info["flags"]["model"] = model or base_of(run, info)
        bits = bits or info["flags"].get("bits")
        policy = common.load_policy(model, bits, adapter=adapter, reference="base", device="cpu")
        print(policy.note.split("\n")[0], flush=True)
        print(f"drawing {SAMPLES} samples of the trained policy", flush=True)
        rows = samples(policy, info)
        trained = logps(policy.lm, rows)
        limits = rounding(policy)
        print("merging in float32", flush=True)
        wrapped, conversion = on_plain_weights(policy, model, bits, adapter)
        before = logps(wrapped.get_base_model(), rows)
        checked_gap(trained, before, limits, "the base in float32")
        with wrapped.disable_adapter():
            effect = (before - logps(wrapped.get_base_model(), rows)).abs().mean().item()

        save(merged(wrapped, adapter).to(getattr(torch, dtype)), policy, place, folder)
        print("stored; loading it again to compare it with the trained policy on these samples", flush=True)
        del wrapped  # memory may not suffice for two models
        gc.collect()
        texts = [*info["prompts"], *(policy.decode(y) for _, y in rows)]
        after = logps(reloaded(place, policy, texts), rows)
        gap = checked_gap(before, after, LIMITS[dtype], f"the merged model in {dtype}")
        sentences = report(conversion, dtype, effect, gap)
        with writing(folder):
            with open(os.path.join(place, "README.md"), "w") as file:
                file.write(card.of_model(info, sentences))
            os.rename(place, folder)
    return sentences


@cli
def main(argv=None):
    args = parse_args(argv)
    started = time.time()
    print(merge(args.run, args.folder, args.dtype, args.model, args.bits))
    size = sum(entry.stat().st_size for entry in os.scandir(args.folder))
    print(f"{time.time() - started:.0f} s, {load.peak_memory(torch.device('cpu')):.1f} GB of memory; "
          f"{size / 1e9:.2f} GB are in {args.folder}/", flush=True)


if __name__ == "__main__":
    main()
