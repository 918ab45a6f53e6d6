"""Re-create the embedded models (same seed, same file):

    python models/make_tiny.py                                                             about 4 minutes on one core
    python models/make_tiny.py --out models/tiny_program --tasks program --steps 1100      less than two
    python models/make_tiny.py --out models/tiny_peptide --tasks peptide --layers 2 --steps 900        less than one
    python models/make_tiny.py --out models/tiny_hasty --start tiny --tasks countdown --cut 0.6 --lr 1e-3 --steps 200
    python models/make_tiny.py --out models/tiny_countdown6 --start tiny --tasks countdown6 --lr 2e-3 --steps 400

A Llama with about 0.2 M parameters and a character tokenizer, pretrained from scratch on generated solutions of the
embedded tasks. With it every script runs in minutes without a download. The pretraining stream contains no problems of
the valid or test splits (tasks.split_of). The loss covers only the solution and its end-of-sequence token.

tiny_hasty (half a minute) makes supervised fine-tuning useful: tiny was trained on the distribution of the gold
solutions, so imitating them teaches it nothing. tiny_hasty is tiny trained further on a corpus with 60 % of its lines
cut short (`7*3` for `7*3+2`). It can do what tiny can, but mostly stops too early, which gold solutions correct.
tiny_countdown6 (less than a minute) is tiny trained further on longer sums, and stopped while it rarely solves one.
"""
import math
import os
import random
import sys
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

from support.flags import Help, Parser, answer


def parse_args(argv=None):
    parser = Parser(description=__doc__.split("\n")[0], formatter_class=Help)
    parser.add_argument("--out", default=os.path.join("models", "tiny"),
                        help="output folder for model.safetensors, tokenizer, config, result.json")
    parser.add_argument("--tasks", default="countdown,routes",
                        help="comma-separated embedded tasks, in equal shares; program and peptide only alone")
    parser.add_argument("--start", choices=["tiny"], help="continue from this embedded model instead of from scratch")
    parser.add_argument("--cut", type=float, default=0.0,
                        help="countdown: share of corpus lines cut before all numbers are used")
    parser.add_argument("--width", type=int, default=64, help="hidden size (a multiple of 64 keeps 4-bit simple)")
    parser.add_argument("--layers", type=int, default=4, help="number of layers")
    parser.add_argument("--steps", type=int, default=4000, help="optimiser steps")
    parser.add_argument("--batch", type=int, default=64, help="sequences per step")
    parser.add_argument("--lr", type=float, default=5e-3, help="peak learning rate (AdamW)")
    parser.add_argument("--seed", type=int, default=0, help="initialisation and data")
    return parser.parse_args(argv)


if __name__ == "__main__":
    answer(parse_args)  # --help and bad flags, before the heavy imports

import support

support.set_thread_policy()  # torch reads it when it is loaded

import torch
import torch.nn.functional as F

import common
import evaluate
import tasks
from fast.choose import choose_fast
from support import load
from support.errors import UserError
from support.flags import cli
from support.folder import write_atomic, writing
from support.output import to_json

CHARACTERS = "0123456789+-*=:,>crABCDEFG"
# alphabets of tasks that need their own model
OWN = {"program": "0123456789+-*():,>x", "peptide": ">" + "".join(tasks.RESIDUES)}


def make_tokenizer(characters=CHARACTERS):
    """A PreTrainedTokenizerFast with one token per character, plus <eos> and <unk>."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast
    vocabulary = {token: i for i, token in enumerate(["<eos>", "<unk>", *characters])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<eos>", unk_token="<unk>")


def check_flags(args, names):
    """Raises UserError for invalid flags."""
    for name in names:
        if name not in tasks.EMBEDDED_TASKS:
            raise UserError(f"--tasks: {name!r} is not an embedded task; choose from {', '.join(tasks.EMBEDDED_TASKS)}")
    if len({*names}) < len(names):
        raise UserError("--tasks names a task twice")
    if args.steps < 1 or args.layers < 1:
        raise UserError("--steps and --layers must be at least 1")
    if args.batch < len(names):
        raise UserError("--batch must be at least the number of tasks")
    if args.width < 1 or args.width % 16:
        raise UserError("--width must be a multiple of 16")
    if not args.lr > 0:
        raise UserError("--lr must be positive")
    own = OWN.keys() & {*names}
    if own and len(names) > 1:
        raise UserError(f"--tasks: {' and '.join(OWN)} have alphabets of their own, so each gets a model of its own")
    if own and args.start:
        raise UserError(f"--start: tiny does not know the alphabet of {names[0]}")
    if args.cut and (own or "routes" in names) or not 0 <= args.cut < 1:
        raise UserError("--cut is a share below 1 of the lines of countdown")


def batch(tokenizer, pairs):
    """(prompt, completion) pairs -> token ids and targets [B, L]; targets are -100 outside the completions."""
    end = [tokenizer.eos_token_id]
    rows = [tokenizer(prompt + completion)["input_ids"] + end for prompt, completion in pairs]
    starts = torch.tensor([len(tokenizer(prompt)["input_ids"]) for prompt, _ in pairs])
    lengths = torch.tensor([len(row) for row in rows])
    width = max(map(len, rows))
    ids = torch.tensor([row + end * (width - len(row)) for row in rows])
    position = torch.arange(width)
    outside = (position < starts[:, None]) | (position >= lengths[:, None])
    return ids, ids.masked_fill(outside, -100)


def new_model(args, tokenizer):
    """A Llama with random weights, or the model of --start."""
    if args.start:
        return load.load_base(args.start, 32)[0].requires_grad_(True)
    import transformers
    heads = args.width // 16
    eos = tokenizer.eos_token_id
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=args.width, intermediate_size=3 * args.width,
        num_hidden_layers=args.layers, num_attention_heads=heads, num_key_value_heads=heads,
        max_position_embeddings=512, tie_word_embeddings=True, bos_token_id=None, eos_token_id=eos, pad_token_id=eos))


def lr_factor(step, steps):
    """Learning rate over its peak: 30 steps of warm-up, constant until 30 % of the steps, then cosine to zero."""
    progress = max(0.0, (step - 0.3 * steps) / (0.7 * steps))
    return min(1.0, (step + 1) / 30) * 0.5 * (1 + math.cos(math.pi * progress))


def pretrain(model, tokenizer, streams, args):
    """Train on streams {task: iterator of (prompt, solution)}, with equal shares of each batch."""
    started = time.time()
    running = {}  # moving average of the loss per task
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: lr_factor(step, args.steps))
    for step in range(1, args.steps + 1):
        loss = 0.0
        for name, stream in streams.items():  # one block per task: less padding, and a loss per task
            pairs = [next(stream) for _ in range(args.batch // len(streams))]
            ids, target = batch(tokenizer, pairs)
            logits = model(input_ids=ids).logits  # causal attention: right padding needs no mask
            task_loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), target[:, 1:].flatten())
            loss = loss + task_loss / len(streams)
            running[name] = 0.98 * running.get(name, task_loss.item()) + 0.02 * task_loss.item()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 200 == 0 or step == args.steps:
            losses = "  ".join(f"{name} loss {value:.4f}" for name, value in running.items())
            print(f"step {step}/{args.steps}  {losses}  {time.time() - started:.0f} s", flush=True)


@cli
def main(argv=None):
    args = parse_args(argv)
    load.set_threads(1)
    import transformers
    transformers.utils.logging.disable_progress_bar()
    names = args.tasks.split(",")
    check_flags(args, names)
    try:
        os.makedirs(args.out, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to --out {args.out}: {error.strerror}") from error
    write_atomic(os.path.join(args.out, "result.json"), "{}")

    streams = {}
    for name in names:
        task = tasks.EMBEDDED_TASKS[name](sizes=(0, 0, 0))
        task.cut = args.cut
        streams[name] = task.stream(random.Random(f"pretrain {name} {args.seed}"))
    tokenizer = make_tokenizer(OWN.get(names[0], CHARACTERS))
    torch.manual_seed(common.torch_seed(args.seed))
    started = time.time()
    model = new_model(args, tokenizer)
    pretrain(model, tokenizer, streams, args)

    eos = tokenizer.eos_token_id
    model.generation_config = type(model.generation_config)(eos_token_id=eos, pad_token_id=eos)
    with writing(args.out):
        model.save_pretrained(args.out)
        tokenizer.save_pretrained(args.out)
    seconds = time.time() - started
    policy = common.load_policy(os.path.abspath(args.out), bits=32, fast=choose_fast)
    flags = {name: value for name, value in vars(args).items() if name != "out"}
    parameters = sum(p.numel() for p in model.parameters())
    result = {"flags": flags, "parameters": parameters, "seconds": round(seconds)}
    for name in names:
        task = tasks.load_task(name)
        result[name], _ = evaluate.evaluate(policy, task, task.valid, samples=64, ks=(1, 8, 32), seed=args.seed)
    write_atomic(os.path.join(args.out, "result.json"), to_json(result, indent=1))
    for name in names:
        print(evaluate.table({f"{name} (valid)": result[name]}))


if __name__ == "__main__":
    main()
