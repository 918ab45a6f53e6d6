"""bench.py --gpu-report DIR: everything that is worth knowing of a GPU, in one command of at most nine minutes.

The parts run one after the other, the most wanted first, each in a process of its own, so that one that fails or hangs
takes nothing with it, and has seconds of its own. Every figure is appended to DIR/gpu.jsonl as soon as it is there, and
DIR/gpu.json and DIR/gpu.md are made anew from that, so that a run that is cut off still counts; what the parts print is
in DIR/output.log. --parts takes some of them. On a CPU the same command is a rehearsal.
"""
import contextlib
import faulthandler
import gc
import importlib.util
import json
import math
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter

import torch

import common
import ppo_passk
from fast.choose import chooser
from support import ROOT, flags, load, measure
from support.errors import UserError
from support.folder import versions, write_atomic
from support.output import to_json
from support.run import batch_of

SECONDS = 500  # of the whole command: below nine minutes with what starting and ending take
PARTS = {"shape": (60, 190), "tests": (60, 120), "step": (60, 130), "ppo": (40, 70)}  # seconds: needed, at most
THEIRS = 64  # tokens that the slow rivals of the sampler decode, where they need not be given the whole length
BOUND = ("tokens/s at most = rows x bandwidth / (W + rows x c x (L + T/2)): weights W and, per token of context, keys "
         "and values c are read once for each decoded token; L prompt, T new tokens")
RATE = "share of the matrix rate = tokens/s x 4 P / rate: forward and the gradient of activations, 2 P each; P weights"


def record(folder, part, **line):
    """Keep a line of figures, and write the report as it is now."""
    with open(os.path.join(folder, "gpu.jsonl"), "a", encoding="utf-8") as file:
        file.write(to_json({"part": part, **line}) + "\n")
    lines = read(folder)
    write_atomic(os.path.join(folder, "gpu.json"), to_json(lines, indent=1) + "\n")
    write_atomic(os.path.join(folder, "gpu.md"), markdown(lines))
    shown = [f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in line.items()]
    print(f"{part}: {', '.join(shown)}", flush=True)


def read(folder):
    with open(os.path.join(folder, "gpu.jsonl"), encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def markdown(lines):
    """The report in Markdown: a section for each part, of lines with the same keys a table."""
    head = lines[0]
    made = ", ".join(f"{name} {version}" for name, version in head["versions"].items())
    text = [f"# {head['device']}", f"{head['date']}, commit {head['commit']}, `{head['command']}`, {made}", BOUND, RATE]
    for part in dict.fromkeys(line["part"] for line in lines[1:]):
        text.append(f"## {part}")
        tables = {}
        for line in lines:
            if line["part"] == part:
                names = tuple(name for name in line if name != "part")
                tables.setdefault(names, []).append(line)
        for names, rows in tables.items():
            text.append(table(names, rows))
    return "\n\n".join(text) + "\n"


def table(names, rows):
    """A table of the values that rows have of these names."""
    lines = [[name.replace("_", " ") for name in names], ["---"] * len(names)]
    lines += [[cell(row[name]) for name in names] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def cell(value):
    if isinstance(value, float):
        return f"{value:,.4g}"
    return str(value).replace("|", "\\|").replace("\n", "<br>")


def device():
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def free():
    """What was deleted leaves the card: a policy holds itself in a cycle."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@contextlib.contextmanager
def attempt(folder, part):
    """A figure that fails is named in the report, and the next one is taken."""
    try:
        yield
    except (RuntimeError, ValueError, TypeError, AttributeError, UserError) as error:  # out of memory among the first
        record(folder, part, note=f"failed: {type(error).__name__}: {load.first_line(error)}")
        error.__traceback__ = None  # its frames hold tensors
    free()


def rates():
    """(bytes per second of a copy, reading and writing; floating-point operations per second of a matrix product) as
    this device reaches them, in the precision of the base."""
    gpu = device().type == "cuda"
    dtype, size, n, times = (torch.bfloat16, 2 ** 30, 8192, 100) if gpu else (torch.float32, 2 ** 24, 1024, 3)
    # random: a card multiplies ones faster, because it draws less power
    x, y = (torch.randn(size, dtype=dtype, device=device()) for _ in range(2))
    a, b = (part[:n * n].view(n, n) for part in (x, y))

    def seconds(call):
        for count in (2, times):  # once to warm up
            wait()
            started = time.perf_counter()
            for _ in range(count):
                call()
            wait()
        return (time.perf_counter() - started) / times
    moved = 2 * x.numel() * x.itemsize
    operations = 2 * n ** 3
    return moved / seconds(lambda: y.copy_(x)), operations / seconds(lambda: a @ b)


def wait():
    """Until the device is idle."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def prompts_of(rows, args):
    return random_rows(rows // args.k, args.prompt_tokens, args)


def random_rows(count, length, args):
    """`count` lists of as many random token ids."""
    rng = random.Random(args.seed)
    return [[rng.randrange(1, args.vocabulary) for _ in range(length)] for _ in range(count)]


def multiplied(policy):
    """The base's weights that every token is multiplied with: not the embeddings, unless they are the head too."""
    embeddings = policy.lm.get_input_embeddings().weight
    tied = policy.lm.config.get_text_config().tie_word_embeddings
    return [p for p in policy.lm.parameters() if not p.requires_grad and (tied or p is not embeddings)]


@contextlib.contextmanager
def fresh_peak(policy, line):
    """Adds the seconds and the peak memory of what is inside to a line."""
    measure.synchronise(policy)
    measure.reset_peak(policy)
    started = time.perf_counter()
    yield
    measure.synchronise(policy)
    line |= {"seconds": time.perf_counter() - started, "peak_gb": load.peak_memory(policy.device)}


def read_per_token(policy):
    """Bytes of weights that are read for a decoded token: where a de-quantised copy is decoded from, the copy's."""
    copied = {}  # id of a weight: its copy
    for _, _, layer, copy in getattr(policy.fast, "light", None) or ():
        if copy is not None:
            copied[id(layer.base_layer.weight)] = copy
    return sum(copied.get(id(p), p).nbytes for p in multiplied(policy))


def sampler(policy, rows, args, bandwidth):
    """A line: tokens per second of the sampler, and the bound. The second of two calls: the first makes ready what
    depends on the number of rows."""
    T = args.new_tokens
    prompts = prompts_of(rows, args)
    line = {"rows": rows}
    for _ in range(2):
        with fresh_peak(policy, line):
            common.sample(policy, prompts, args.k, range(len(prompts)), max_new_tokens=T)
    line["tokens_per_s"] = rows * T / line["seconds"]
    context = args.prompt_tokens + T / 2
    read = read_per_token(policy) + rows * context * cached_per_token(policy.lm)
    bound = rows * bandwidth / read
    return line | {"bound": bound, "of_bound": line["tokens_per_s"] / bound}


def cached_per_token(lm):
    """Bytes of keys and values of a token."""
    c = lm.config.get_text_config()
    width = c.num_key_value_heads * c.hidden_size // c.num_attention_heads
    return 2 * c.num_hidden_layers * width * lm.dtype.itemsize


def rivals(policy, rows, tokens, args):
    """Lines: on equal prompts and tokens, the sampler, its plain loop and transformers' generate, with the adapter as
    peft computes it, and how many times as fast the sampler is."""
    prompts = prompts_of(rows, args)
    first = None

    def ours():
        common.sample(policy, prompts, args.k, range(len(prompts)), max_new_tokens=tokens)
    whose = {"sampler": ours}
    if getattr(policy.fast, "captured", False):
        def plain():
            policy.fast.captured = False
            try:
                ours()
            finally:
                policy.fast.captured = True
        whose["kernel by kernel"] = plain
    if not args.skip_generate:
        whose["generate"] = lambda: measure.generate(policy, prompts, args.k, tokens, args.seed)
    for who, call in whose.items():
        line = {}
        with fresh_peak(policy, line):
            call()
        seconds = line["seconds"]
        first = first or seconds
        yield {"rows": rows, "new_tokens": tokens, "who": who, "tokens_per_s": rows * tokens / seconds,
               "sampler_is_faster": seconds / first, "peak_gb": line["peak_gb"]}


def update(policy, rows, args, rate):
    """A line: tokens per second of an update with all of the rows, those that are computed (a shared prompt once)."""
    prompts = [x for x in prompts_of(rows, args) for _ in range(args.k)]
    ys = random_rows(rows, args.new_tokens, args)
    line = {}
    sizes = []

    def count(_, __, options):
        sizes.append(options["input_ids"].numel())
    hook = policy.lm.register_forward_pre_hook(count, with_kwargs=True)
    for _ in range(2):  # once to warm up
        sizes.clear()
        policy.model.zero_grad()
        with fresh_peak(policy, line):
            for _, logps, _ in common.score(policy, prompts, ys):
                logps.sum().backward()
    hook.remove()
    weights = 0
    for p in multiplied(policy):
        weights += p.numel() * (2 if p.dtype == torch.uint8 else 1)  # two to a byte
    computed = sum(sizes) / line["seconds"]
    return {"rows": rows,
            "completion_tokens_per_s": rows * args.new_tokens / line["seconds"],
            "computed_tokens_per_s": computed,
            "of_matrix_rate": computed * 4 * weights / rate,
            "peak_gb": line["peak_gb"]}


def shape_part(folder, shape, args):
    """A model of random weights in both precisions: loading, sampler, update; of the 7b shape first what a card of 24
    GB would do."""
    gpu = device().type == "cuda"
    bandwidth, rate = rates()
    record(folder, shape, what="device", bandwidth_gb_per_s=bandwidth / 1e9, matrix_tflops=rate / 1e12)
    with tempfile.TemporaryDirectory() as path:
        measure.build(shape, path, args.seed, args.vocabulary)
        full = 16 if gpu else 32
        if shape == "7b":
            with attempt(folder, "7b on 24 GB"):
                small_card(folder, path, args)
        for bits in (4, full) if shape == "7b" else (full, 4):
            with attempt(folder, f"{shape}, {bits} bits"):
                precision_part(folder, f"{shape}, {bits} bits", path, bits, args, bandwidth, rate)


def precision_part(folder, label, path, bits, args, bandwidth, rate):
    policy = common.load_policy(path, bits, seed=args.seed, fast=chooser(args.plain))
    middle = args.row_counts[len(args.row_counts) // 2]
    policy.stop = [args.vocabulary]  # nothing ends before its length
    record(folder, label, how=policy.note)
    for rows in args.row_counts:
        with attempt(folder, label):
            record(folder, label, what="sampler", **sampler(policy, rows, args, bandwidth))
    with attempt(folder, label):
        record(folder, label, what="update", **update(policy, args.row_counts[0], args, rate))
    if not args.skip_generate:
        measure.generate(policy, prompts_of(args.k, args)[:1], args.k, 4, args.seed)  # makes ready
    for rows in sorted(args.row_counts, key=lambda rows: rows != middle):
        with attempt(folder, label):
            tokens = args.new_tokens  # the figure that counts is taken on the whole length
            if rows != middle or bits == 4:
                tokens = min(THEIRS, tokens)
            for line in rivals(policy, rows, tokens, args):
                record(folder, label, what="against", **line)


def small_card(folder, path, args, total=24e9, tokens=512):
    """A step of one prompt, k samples of 512 tokens, all in the update, on what a card of 24 GB has: more than that is
    refused."""
    with contextlib.ExitStack() as stack:
        own = load.free_memory
        stack.callback(setattr, load, "free_memory", own)
        if device().type == "cuda":
            total -= 0.6e9  # the context
            share = total / torch.cuda.get_device_properties(0).total_memory
            torch.cuda.set_per_process_memory_fraction(min(1.0, share))
            stack.callback(torch.cuda.set_per_process_memory_fraction, 1.0)

            def left(where):
                return total - torch.cuda.memory_allocated(where) if where.type == "cuda" else own(where)
            load.free_memory = left
        policy = common.load_policy(path, 4, seed=args.seed, fast=chooser(args.plain))
        policy.stop = [args.vocabulary]
        line = {}
        prompts = prompts_of(args.k, args)
        with fresh_peak(policy, line):
            drawn = common.sample(policy, prompts, args.k, [0], max_new_tokens=tokens)
            for _, logps, _ in common.score(policy, prompts * args.k, drawn.lists()[0]):
                logps.sum().backward()
        if device().type == "cuda":
            line["reserved_gb"] = torch.cuda.max_memory_reserved() / 1e9
        record(folder, "7b on 24 GB", how=policy.note.split("\n")[-1], k=args.k, tokens=tokens, **line)


class Words:
    """A task of random prompts whose rewards are a coin of 1 in 5 that depends on the text alone: random weights solve
    nothing. For TRL the prompts are texts, so the tokenizer has a word for each token."""
    chat, graded = False, False

    def __init__(self, args, tokenizer):
        from tasks import Problem
        rng = random.Random(args.seed)
        self.train = []
        for i in range(256):
            words = [f"w{rng.randrange(1, len(tokenizer))}" for _ in range(args.prompt_tokens)]
            self.train.append(Problem(str(i), " ".join(words), ""))
        self.max_new_tokens = args.new_tokens
        self.counts = Counter()

    def rewards(self, problems, completions):
        return [float(random.Random(p.id + c).random() < 0.2) for p, c in zip(problems, completions, strict=True)]


def word_tokenizer(size):
    """A tokenizer of `size` words w0, w1, ...; w0 ends a sequence. Never saved: transformers would load another one for
    this kind of model."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast
    tokenizer = Tokenizer(models.WordLevel({f"w{i}": i for i in range(size)}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="w0", pad_token="w0")


def trl_part(folder, shape, args):
    """A whole step, 32 prompts x k samples, all of --new-tokens: ours under two objectives, then TRL's with its
    defaults and with a larger micro-batch. Both in bfloat16 with LoRA, temperature 1, no KL."""
    try:
        import trl
    except ImportError:
        record(folder, "TRL", note="not installed: pip install trl==1.16.0")
        return
    gpu = device().type == "cuda"
    rows = args.row_counts[len(args.row_counts) // 2]
    with tempfile.TemporaryDirectory() as path:
        measure.build(shape, path, args.seed, args.vocabulary)
        tokenizer = word_tokenizer(args.vocabulary)
        task = Words(args, tokenizer)
        policy = common.load_policy(path, 16 if gpu else 32, seed=args.seed, fast=chooser(args.plain))
        policy.tokenizer = tokenizer
        policy.stop = [args.vocabulary]  # nothing ends early, as with TRL's least length
        for objective in ("mean", "passk"):
            record(folder, "step", **our_step(policy, task, objective, rows, args))
        del policy
        free()
        for micro in (8, min(64, rows)):
            record(folder, "step", who=f"TRL {trl.__version__}, micro-batch {micro}",
                   **their_step(path, task, tokenizer, micro, rows, args))
            free()


def our_step(policy, task, objective, rows, args):
    """A line: the second of two steps of ppo_passk.py; the first one warms up."""
    flags_of = {"--objective": objective, "--k": args.k, "--samples": args.k, "--prompts": rows // args.k,
                "--lr": 1e-5, "--kl-prompts": 0}
    own = ppo_passk.parser().parse_args([f"{flag}={value}" for flag, value in flags_of.items()])
    optimizer = torch.optim.AdamW(policy.parameters(), lr=own.lr, weight_decay=0.0)
    for number in (1, 2):
        line = {}
        problems = batch_of(task.train, own.prompts, number, args.seed)
        with fresh_peak(policy, line):
            shown, _ = ppo_passk.step(policy, task, optimizer, problems, number, own)
    speed = rows / line["seconds"]
    return {"who": f"ours, {objective}", "rows": rows, "zero": shown["zero"], "samples_per_s": speed, **line}


def their_step(path, task, tokenizer, micro, rows, args):
    """A line: the second of two steps of TRL's GRPO."""
    import datasets
    import peft
    import transformers
    import trl
    gpu = device().type == "cuda"
    dtype = torch.bfloat16 if gpu else torch.float32
    problem = {p.prompt: p for p in task.train}

    class Clock(transformers.TrainerCallback):
        def on_step_end(self, *_, **__):
            wait()
            self.seconds = time.perf_counter() - self.mark
            self.mark = time.perf_counter()

    def reward(prompts, completions, **_):
        return task.rewards([problem[x] for x in prompts], completions)
    batch = {"per_device_train_batch_size": micro, "gradient_accumulation_steps": math.ceil(rows / micro),
             "num_generations": args.k, "max_steps": 2}
    drawn = {"max_completion_length": args.new_tokens, "generation_kwargs": {"min_new_tokens": args.new_tokens},
             "temperature": 1.0}
    silent = {"report_to": [], "save_strategy": "no", "logging_strategy": "no", "disable_tqdm": True}
    config = trl.GRPOConfig(output_dir=os.path.join(path, "trl"), beta=0.0, learning_rate=1e-5, bf16=gpu,
                            use_cpu=not gpu, **batch, **drawn, **silent)
    lora = peft.LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    clock = Clock()
    model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=dtype)
    data = datasets.Dataset.from_list([{"prompt": x} for x in problem])
    trainer = trl.GRPOTrainer(model=model, processing_class=tokenizer, callbacks=[clock], reward_funcs=reward,
                              train_dataset=data, peft_config=lora, args=config)
    trainer.remove_callback(transformers.PrinterCallback)
    if gpu:
        torch.cuda.reset_peak_memory_stats()
    clock.mark = time.perf_counter()
    trainer.train()
    return {"rows": rows, "zero": 0.0, "samples_per_s": rows / clock.seconds, "seconds": clock.seconds,
            "peak_gb": load.peak_memory(device())}


def child(folder, command, seconds):
    """Run a command of this checkout, what it prints to DIR/output.log -> (exit code or "stopped", its lines, seconds).
    Its temporary files go with it, also where it is killed."""
    started = time.time()
    with tempfile.TemporaryDirectory() as scratch, open(os.path.join(folder, "output.log"), "a+") as log:
        start = log.seek(0, os.SEEK_END)
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1", "TMPDIR": scratch}
        try:
            done = subprocess.run([sys.executable, *command], cwd=ROOT, stdout=log, stderr=subprocess.STDOUT,
                                  timeout=seconds, env=environment)
            code = done.returncode
        except subprocess.TimeoutExpired:
            code = "stopped"
        log.seek(start)
        return code, log.read().strip().split("\n"), time.time() - started


def command_part(folder, part, command, seconds):
    """The lines of a command's output that say how it ended."""
    code, lines, taken = child(folder, command, seconds)
    telling = re.compile(r".*(passed|failed|FAILED)|E  |\w*Error|before|after")
    tail = [line for line in lines if telling.match(line)] or lines[-3:]
    record(folder, part, command=" ".join(command), exit_code=code, seconds=taken, output="\n".join(tail[-30:]))


def one_part(args):
    """In a process of its own: the part of --part, which says where it hangs before its seconds are over."""
    kind, shape, seconds = args.part.split(":")
    faulthandler.dump_traceback_later(max(1, int(seconds) - 4), exit=True)
    {"shape": shape_part, "step": trl_part}[kind](args.gpu_report, shape, args)
    faulthandler.cancel_dump_traceback_later()


def prepare(args):
    """Numbers in the place of flags that have defaults of their own here."""
    args.row_counts = flags.numbers(args.rows or "64,256,512", int, "--rows")
    if args.k < 1 or any(rows % args.k for rows in args.row_counts):
        raise UserError(f"--rows must be multiples of --k {args.k}")
    args.new_tokens = args.new_tokens or 256
    chosen = (args.parts or ",".join(PARTS)).split(",")
    for name in chosen:
        if name not in PARTS:
            raise UserError(f"--parts: there is no {name!r}; choose from {', '.join(PARTS)}")
    args.parts = chosen
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError("--gpu-report needs bitsandbytes: pip install -r requirements.txt")


def report(args):
    """The whole of it; parts that the time left does not hold are named and left out."""
    folder = args.gpu_report
    started = time.time()
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to --gpu-report {folder}: {error.strerror}") from error
    if os.path.exists(os.path.join(folder, "gpu.jsonl")):
        raise UserError(f"--gpu-report {folder} holds a report: give another folder")
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU: a rehearsal, not a GPU"
    record(folder, "start", device=name, date=time.strftime("%Y-%m-%d"), command="python " + " ".join(sys.argv),
           **versions())
    for kind, name, command in plan(args):
        least, most = PARTS[kind]
        left = SECONDS - (time.time() - started)
        if kind not in args.parts:
            continue
        if left < least:
            record(folder, name if command else f"{kind} {name}", note=f"left out: {left:.0f} s were left")
        elif command:
            with tempfile.TemporaryDirectory() as scratch:
                out = ["--out", os.path.join(scratch, "run")] * (kind == "ppo")
                command_part(folder, name, [*command, *out], min(left, most))
        else:
            model_part(folder, kind, name, int(min(left, most)), args)
    record(folder, "end", seconds=time.time() - started)
    print(f"written to {folder}/gpu.md, gpu.json and gpu.jsonl")


def plan(args):
    """[(kind of part, its name or shape, command if it is not of this file)], the most wanted first."""
    shapes = ["1.5b", "7b", "0.5b"] if args.shape == "tiny" else [args.shape]
    workers = torch.cuda.is_available() and importlib.util.find_spec("xdist") is not None
    tests = ["-m", "pytest", "-v", "--tb=short", "-rf", "-o", "addopts=", "-p", "no:cacheprovider", "tests/test_gpu.py"]
    tests += ["-n", "4"] * workers
    ppo = ["ppo_passk.py", "--bits", "4", "--steps", "40", "--eval-samples", "16", *["--plain"] * args.plain]
    parts = [("tests", "GPU tests", tests), ("step", shapes[0], None), ("ppo", "ppo_passk.py", ppo)]
    for place, shape in zip((0, 2, 5), shapes):
        parts.insert(place, ("shape", shape, None))
    return parts


def model_part(folder, kind, name, seconds, args):
    """A part of this file, in a process of its own."""
    part = f"{kind}:{name}:{seconds}"
    command = [os.path.join(ROOT, "bench.py"), "--gpu-report", folder, "--part", part]
    for flag in ("rows", "k", "prompt_tokens", "new_tokens", "vocabulary", "seed"):
        value = getattr(args, flag)
        if value:
            command += [f"--{flag.replace('_', '-')}", str(value)]
    command += ["--skip-generate"] * args.skip_generate + ["--plain"] * args.plain
    code, lines, _ = child(folder, command, seconds)
    if code:
        print("\n".join(lines[-30:]), file=sys.stderr)
        why = f"ended with exit code {code}: {load.first_line(lines[-1])}"
        if code == "stopped":
            why = "stopped: its time was over"
        record(folder, f"{kind} {name}", note=why)
