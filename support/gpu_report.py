"""bench.py --gpu-report DIR: benchmarks and tests on a GPU, in one command of at most nine minutes.

The parts run one after the other, the most important first, each in a separate process with a time limit, so that a
part that fails or hangs does not affect the others. Every result is appended to DIR/gpu.jsonl at once, and DIR/gpu.json
and DIR/gpu.md are regenerated from it, so an interrupted run keeps its results. DIR/output.log has the output of the
parts. --parts selects some of them. On a CPU, the same command is a rehearsal.
"""
import contextlib
import faulthandler
import gc
import importlib.util
import json
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
from tasks import Problem

SECONDS = 500  # for the whole command: less than nine minutes with start and end
PARTS = {"shape": (60, 190), "tests": (60, 120), "step": (60, 130), "ppo": (40, 70)}  # seconds: least, most
THEIRS = 64  # tokens decoded by the sampler's slower rivals, if the full length is not needed
BOUND = ("tokens/s at most = rows x bandwidth / (W + rows x c x (L + T/2)): weights W and, per token of context, keys "
         "and values c are read once for each decoded token; L prompt, T new tokens")
RATE = "share of the matrix rate = tokens/s x 4 P / rate: forward and the gradient of activations, 2 P each; P weights"


def record(folder, part, **line):
    """Store a line of results and rewrite the report."""
    with open(os.path.join(folder, "gpu.jsonl"), "a", encoding="utf-8") as file:
        file.write(to_json({"part": part, **line}) + "\n")
    lines = read(folder)
    write_atomic(os.path.join(folder, "gpu.json"), to_json(lines, indent=1) + "\n")
    write_atomic(os.path.join(folder, "gpu.md"), markdown(lines))
    shown = (f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in line.items())
    print(f"{part}: " + ", ".join(shown), flush=True)


def read(folder):
    with open(os.path.join(folder, "gpu.jsonl"), encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def markdown(lines):
    """The report in Markdown: a section for each part, with one table for all lines that have the same keys."""
    head = lines[0]
    packages = ", ".join(f"{name} {version}" for name, version in head["versions"].items())
    origin = f"{head['date']}, commit {head['commit']}, `{head['command']}`, {packages}"
    text = [f"# {head['device']}", origin, BOUND, RATE]
    for part in dict.fromkeys(line["part"] for line in lines[1:]):
        text.append(f"## {part}")
        tables = {}  # {keys: lines}
        for line in lines:
            if line["part"] == part:
                names = tuple(name for name in line if name != "part")
                tables.setdefault(names, []).append(line)
        text += [table(names, rows) for names, rows in tables.items()]
    return "\n\n".join(text) + "\n"


def table(names, lines):
    rows = [[name.replace("_", " ") for name in names], ["---"] * len(names)]
    rows += [[cell(line[name]) for name in names] for line in lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def cell(value):
    if isinstance(value, float):
        return f"{value:,.4g}"
    return str(value).replace("|", "\\|").replace("\n", "<br>")


def device():
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def free():
    """Free the memory of deleted objects. A policy needs the garbage collector, because it is in a reference cycle."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@contextlib.contextmanager
def attempt(folder, part):
    """Context that reports an error as a note, so that the report continues."""
    try:
        yield
    except (RuntimeError, ValueError, TypeError, AttributeError, UserError) as error:  # also out of memory
        record(folder, part, note=f"failed: {type(error).__name__}: {load.first_line(error)}")
        error.__traceback__ = None  # its frames keep tensors alive
    free()


def rates():
    """Measure (memory bandwidth of a copy in bytes per second, read and written; floating-point operations per second
    of a matrix product) in the precision of the base model."""
    gpu = device().type == "cuda"
    dtype = torch.bfloat16 if measure.whole_bits() == 16 else torch.float32
    n = 8192 if gpu else 1024
    numbers = 2 ** 30 if gpu else 2 ** 24
    # Random numbers: a GPU multiplies constants faster, because that takes less power.
    x, y = (torch.randn(numbers, dtype=dtype, device=device()) for _ in range(2))
    a, b = (v[:n * n].view(n, n) for v in (x, y))
    copying = seconds_of(lambda: y.copy_(x))
    multiplying = seconds_of(lambda: a @ b)
    return 2 * x.numel() * x.itemsize / copying, 2 * n ** 3 / multiplying


def seconds_of(call):
    """Mean duration of a call on the device in seconds, after two warm-up calls."""
    times = 100 if device().type == "cuda" else 3
    for count in (2, times):
        wait()
        started = time.perf_counter()
        for _ in range(count):
            call()
        wait()
    return (time.perf_counter() - started) / times


def wait():
    """Wait for the device."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def prompts_of(rows, args):
    return random_tokens(rows // args.k, args.prompt_tokens, args)


def random_tokens(rows, length, args):
    rng = random.Random(args.seed)
    return [[rng.randrange(1, args.vocabulary) for _ in range(length)] for _ in range(rows)]


def multiplied(policy):
    """The base model's weights that every token is multiplied by: all but the embeddings, unless these are tied to the
    output layer."""
    embeddings = policy.lm.get_input_embeddings().weight
    tied = policy.lm.config.get_text_config().tie_word_embeddings
    return [p for p in policy.lm.parameters() if not p.requires_grad and (tied or p is not embeddings)]


@contextlib.contextmanager
def fresh_peak(policy, line):
    """Context that adds its duration and peak memory to a line."""
    measure.synchronise(policy)
    measure.reset_peak(policy)
    started = time.perf_counter()
    yield
    measure.synchronise(policy)
    line |= {"seconds": time.perf_counter() - started, "peak_gb": load.peak_memory(policy.device)}


def read_per_token(policy):
    """Bytes of weights that are read for each decoded token; those of the de-quantised copy, if the sampler has one."""
    light = getattr(policy.fast, "light", None) or ()
    copies = {id(layer.base_layer.weight): copy for _, _, layer, copy in light if copy is not None}
    total = sum(copy.nbytes for copy in copies.values())
    return total + sum(p.nbytes for p in multiplied(policy) if id(p) not in copies)


def cached_per_token(policy):
    """Bytes of keys and values per token."""
    config = policy.lm.config.get_text_config()
    width = config.num_key_value_heads * config.hidden_size // config.num_attention_heads
    return 2 * config.num_hidden_layers * width * policy.lm.dtype.itemsize


def sampler(policy, rows, args, bandwidth):
    """A line: the sampler's tokens per second, and the bound. Times the second of two calls; the first one is a warm-up
    for this number of rows."""
    prompts = prompts_of(rows, args)
    line = {"rows": rows}
    for _ in range(2):
        with fresh_peak(policy, line):
            common.sample(policy, prompts, args.k, range(len(prompts)), max_new_tokens=args.new_tokens)
    line["tokens_per_s"] = rows * args.new_tokens / line["seconds"]
    context = args.prompt_tokens + args.new_tokens / 2
    line["bound"] = rows * bandwidth / (read_per_token(policy) + rows * cached_per_token(policy) * context)
    line["of_bound"] = line["tokens_per_s"] / line["bound"]
    return line


def rivals(policy, rows, tokens, args):
    """Lines that compare, on the same prompts and number of tokens, the sampler, its plain loop, and the generate
    method of transformers with peft's adapter; with the sampler's speed-up."""
    prompts = prompts_of(rows, args)
    first = None

    def ours():
        common.sample(policy, prompts, args.k, range(len(prompts)), max_new_tokens=tokens)

    def plain():
        policy.fast.captured = False
        try:
            ours()
        finally:
            policy.fast.captured = True

    calls = {"sampler": ours}
    if getattr(policy.fast, "captured", False):
        calls["kernel by kernel"] = plain
    if not args.skip_generate:
        calls["generate"] = lambda: measure.generate(policy, prompts, args.k, tokens, args.seed)
    for who, call in calls.items():
        cost = {}
        with fresh_peak(policy, cost):
            call()
        first = first or cost["seconds"]
        line = {"rows": rows, "new_tokens": tokens, "who": who, "tokens_per_s": rows * tokens / cost["seconds"]}
        line["sampler_is_faster"] = cost["seconds"] / first
        line["peak_gb"] = cost["peak_gb"]
        yield line


def update(policy, rows, args, rate):
    """A line: tokens per second of an update with all rows. Computed tokens count a shared prompt once."""
    xs = [x for x in prompts_of(rows, args) for _ in range(args.k)]
    ys = random_tokens(rows, args.new_tokens, args)
    cost = {}
    computed = []

    def count(module, inputs, options):
        computed.append(options["input_ids"].numel())

    hook = policy.lm.register_forward_pre_hook(count, with_kwargs=True)
    for _ in range(2):  # the first one is a warm-up
        computed.clear()
        measure.without_gradients(policy)
        with fresh_peak(policy, cost):
            for _, logps, _ in common.score(policy, xs, ys):
                logps.sum().backward()
    hook.remove()
    weights = sum(p.numel() * (2 if p.dtype == torch.uint8 else 1) for p in multiplied(policy))  # 4 bits: two per byte
    line = {"rows": rows, "completion_tokens_per_s": rows * args.new_tokens / cost["seconds"]}
    line["computed_tokens_per_s"] = sum(computed) / cost["seconds"]
    line["of_matrix_rate"] = line["computed_tokens_per_s"] * 4 * weights / rate
    line["peak_gb"] = cost["peak_gb"]
    return line


def shape_part(folder, shape, args):
    """Benchmark a randomly initialised model in both precisions: loading, sampler, update; for the 7b shape, first a
    step within 24 GB."""
    bandwidth, rate = rates()
    record(folder, shape, what="device", bandwidth_gb_per_s=bandwidth / 1e9, matrix_tflops=rate / 1e12)
    with tempfile.TemporaryDirectory() as path:
        measure.build(shape, path, args.seed, args.vocabulary)
        full = measure.whole_bits()
        if shape == "7b":
            with attempt(folder, "7b on 24 GB"):
                small_card(folder, path, args)
        for bits in (4, full) if shape == "7b" else (full, 4):
            with attempt(folder, f"{shape}, {bits} bits"):
                precision_part(folder, f"{shape}, {bits} bits", path, bits, args, bandwidth, rate)


def precision_part(folder, label, path, bits, args, bandwidth, rate):
    """Benchmark a model in one precision."""
    policy = common.load_policy(path, bits, seed=args.seed, fast=chooser(args.plain))
    middle = args.row_counts[len(args.row_counts) // 2]
    policy.stop = [args.vocabulary]  # no completion ends early
    record(folder, label, how=policy.note)
    for rows in args.row_counts:
        with attempt(folder, label):
            record(folder, label, what="sampler", **sampler(policy, rows, args, bandwidth))
    with attempt(folder, label):
        record(folder, label, what="update", **update(policy, args.row_counts[0], args, rate))
    if not args.skip_generate:
        measure.generate(policy, prompts_of(args.k, args)[:1], args.k, 4, args.seed)  # warm-up
    for rows in sorted(args.row_counts, key=lambda rows: rows != middle):
        tokens = min(THEIRS, args.new_tokens)
        if rows == middle and bits != 4:  # the main result is measured at full length
            tokens = args.new_tokens
        with attempt(folder, label):
            for line in rivals(policy, rows, tokens, args):
                record(folder, label, what="against", **line)


def small_card(folder, path, args, total=24e9, tokens=512):
    """Measure a step with one prompt and k samples of 512 tokens, all of them in the update, with the memory limited to
    that of a 24 GB GPU."""
    with only(total):
        policy = common.load_policy(path, 4, seed=args.seed, fast=chooser(args.plain))
        policy.stop = [args.vocabulary]
        prompts = prompts_of(args.k, args)
        cost = {}
        with fresh_peak(policy, cost):
            drawn = common.sample(policy, prompts, args.k, [0], max_new_tokens=tokens)
            for _, logps, _ in common.score(policy, prompts * args.k, drawn.lists()[0]):
                logps.sum().backward()
        if device().type == "cuda":
            cost["reserved_gb"] = torch.cuda.max_memory_reserved() / 1e9
        record(folder, "7b on 24 GB", how=policy.note.split("\n")[-1], k=args.k, tokens=tokens, **cost)


@contextlib.contextmanager
def only(total):
    """Context that limits a GPU to `total` bytes, less the size of a CUDA context; no effect on a CPU."""
    if device().type != "cuda":
        yield
        return
    total = total - 0.6e9
    free_memory = load.free_memory

    def left(where):
        return total - torch.cuda.memory_allocated(where) if where.type == "cuda" else free_memory(where)

    try:
        torch.cuda.set_per_process_memory_fraction(min(1.0, total / torch.cuda.get_device_properties(0).total_memory))
        load.free_memory = left
        yield
    finally:
        load.free_memory = free_memory
        torch.cuda.set_per_process_memory_fraction(1.0)


class RandomTask:
    """A task with random prompts. A completion is correct with probability 1/5, decided by a hash of its text, because
    random weights solve no real problem. TRL needs prompts as text, so the tokenizer has one word per token."""
    chat = False
    graded = False

    def __init__(self, args, tokenizer):
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
    """A tokenizer of `size` words w0, w1, ...; w0 is the EOS token. It is never saved, because transformers would load
    another class for this type of model."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast
    tokenizer = Tokenizer(models.WordLevel({f"w{i}": i for i in range(size)}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="w0", pad_token="w0")


def trl_part(folder, shape, args):
    """Benchmark a whole step with all completions at --new-tokens: ours with two objectives, and TRL's with its default
    micro-batch and a larger one. Both use bfloat16, LoRA, temperature 1 and no KL."""
    if importlib.util.find_spec("trl") is None:
        record(folder, "TRL", note="not installed: pip install trl==1.16.0")
        return
    rows = args.row_counts[len(args.row_counts) // 2]
    with tempfile.TemporaryDirectory() as path:
        measure.build(shape, path, args.seed, args.vocabulary)
        tokenizer = word_tokenizer(args.vocabulary)
        task = RandomTask(args, tokenizer)
        our_steps(folder, path, tokenizer, task, rows, args)
        free()
        for micro in (8, min(64, rows)):
            steps_of_trl(folder, path, tokenizer, task, rows, micro, args)
            free()


def our_steps(folder, path, tokenizer, task, rows, args):
    """Benchmark steps of ppo_passk.py."""
    policy = common.load_policy(path, measure.whole_bits(), seed=args.seed, fast=chooser(args.plain))
    policy.tokenizer = tokenizer
    policy.stop = [args.vocabulary]  # no completion ends early; for TRL, min_new_tokens ensures this
    for objective in ("mean", "passk"):
        flags = (f"--objective {objective} --k {args.k} --samples {args.k} --prompts {rows // args.k} --lr 1e-5 "
                 "--kl-prompts 0")
        script_args = ppo_passk.parser().parse_args(flags.split())
        optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-5, weight_decay=0.0)
        for number in (1, 2):  # the first one is a warm-up
            cost = {}
            problems = batch_of(task.train, script_args.prompts, number, args.seed)
            with fresh_peak(policy, cost):
                line, _ = ppo_passk.step(policy, task, optimizer, problems, number, script_args)
        record(folder, "step", who=f"ours, {objective}", rows=rows, zero=line["zero"],
               samples_per_s=rows / cost["seconds"], **cost)


def steps_of_trl(folder, path, tokenizer, task, rows, micro, args):
    """Benchmark steps of TRL's GRPOTrainer."""
    import trl
    problems = {p.prompt: p for p in task.train}
    settings = {"num_generations": args.k, "max_steps": 2, "learning_rate": 1e-5}
    settings["generation_kwargs"] = {"min_new_tokens": args.new_tokens}
    dtype = torch.bfloat16 if measure.whole_bits() == 16 else torch.float32
    trainer = measure.trl_trainer(path, tokenizer, task, problems, os.path.join(path, "trl"), rows, micro, dtype,
                                  **settings)
    if device().type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    seconds = measure.steps_of_trl(trainer)[-1]
    record(folder, "step", who=f"TRL {trl.__version__}, micro-batch {micro}", rows=rows, zero=0.0,
           samples_per_s=rows / seconds, seconds=seconds, peak_gb=load.peak_memory(device()))


def child(folder, command, seconds):
    """Run a Python command in this checkout, with its output appended to DIR/output.log -> (exit code or "stopped",
    lines of output, seconds). Its temporary files are removed, even if it is killed."""
    started = time.time()
    with tempfile.TemporaryDirectory() as scratch, open(os.path.join(folder, "output.log"), "a+") as log:
        before = log.seek(0, os.SEEK_END)
        env = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1", "TMPDIR": scratch}
        line = [sys.executable, *command]
        try:
            done = subprocess.run(line, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, timeout=seconds, env=env)
            code = done.returncode
        except subprocess.TimeoutExpired:
            code = "stopped"
        log.seek(before)
        return code, log.read().strip().split("\n"), time.time() - started


def command_part(folder, part, command, seconds):
    """Run a command and record how it ended, with the lines of its output that summarise it."""
    code, lines, taken = child(folder, command, seconds)
    summary = [line for line in lines if re.search(r"passed|failed|FAILED|^E  |^\w*Error|^before|^after", line)]
    shown = (summary or lines[-3:])[-30:]
    record(folder, part, command=" ".join(command), exit_code=code, seconds=taken, output="\n".join(shown))


def one_part(args):
    """Run the part named by --part, in its own process. If it hangs, it prints a traceback before the time limit."""
    kind, shape, seconds = args.part.split(":")
    faulthandler.dump_traceback_later(max(1, int(seconds) - 4), exit=True)
    {"shape": shape_part, "step": trl_part}[kind](args.gpu_report, shape, args)
    faulthandler.cancel_dump_traceback_later()


def prepare(args):
    """Set the defaults of the report.  Raises UserError."""
    args.row_counts = flags.numbers(args.rows or "64,256,512", int, "--rows")
    if args.k < 1 or any(rows % args.k for rows in args.row_counts):
        raise UserError(f"--rows must be multiples of --k {args.k}")
    args.new_tokens = args.new_tokens or 256
    chosen = (args.parts or ",".join(PARTS)).split(",")
    for name in chosen:
        if name not in PARTS:
            raise UserError(f"--parts: unknown part {name!r}; choose from {', '.join(PARTS)}")
    args.parts = chosen
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError("--gpu-report needs bitsandbytes: pip install -r requirements.txt")


def report(args):
    """Run the whole report. Parts that do not fit into the remaining time are left out, with a note."""
    started = time.time()
    folder = args.gpu_report
    start(folder)
    for kind, name in plan(args):
        least, most = PARTS[kind]
        left = SECONDS - (time.time() - started)
        command = commands(args).get(name)
        if left < least:
            record(folder, name if command else f"{kind} {name}", note=f"left out: {left:.0f} s were left")
        elif command:
            with tempfile.TemporaryDirectory() as scratch:
                out = ["--out", os.path.join(scratch, "run")] if kind == "ppo" else []
                command_part(folder, name, [*command, *out], min(left, most))
        else:
            own_part(args, kind, name, int(min(left, most)))
    record(folder, "end", seconds=time.time() - started)
    print(f"written to {folder}/gpu.md, gpu.json and gpu.jsonl")


def start(folder):
    """Create the folder of a report and record its first line.  Raises UserError."""
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to --gpu-report {folder}: {error.strerror}") from error
    if os.path.exists(os.path.join(folder, "gpu.jsonl")):
        raise UserError(f"--gpu-report {folder} already contains a report: choose another folder")
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU: a rehearsal, not a GPU"
    record(folder, "start", device=name, date=time.strftime("%Y-%m-%d"), command="python " + " ".join(sys.argv),
           **versions())


def plan(args):
    """[(kind of part, shape of its model or name of its command)], the most important first."""
    shapes = ["1.5b", "7b", "0.5b"] if args.shape == "tiny" else [args.shape]
    parts = [("shape", shapes[0]), ("tests", "GPU tests")]
    parts += [("shape", shape) for shape in shapes[1:2]]
    parts += [("step", shapes[0]), ("ppo", "ppo_passk.py")]
    parts += [("shape", shape) for shape in shapes[2:]]
    return [part for part in parts if part[0] in args.parts]


def commands(args):
    """The parts that are commands of this project, {name: arguments of python}."""
    tests = "-m pytest -v --tb=short -rf -o addopts= -p no:cacheprovider tests/test_gpu.py".split()
    if torch.cuda.is_available() and importlib.util.find_spec("xdist"):
        tests += ["-n", "4"]
    ppo = "ppo_passk.py --bits 4 --steps 40 --eval-samples 16".split()
    if args.plain:
        ppo.append("--plain")
    return {"GPU tests": tests, "ppo_passk.py": ppo}


def own_part(args, kind, shape, seconds):
    """Run a part of this file in its own process."""
    folder = args.gpu_report
    command = [os.path.join(ROOT, "bench.py"), "--gpu-report", folder, "--part", f"{kind}:{shape}:{seconds}"]
    for name in ("rows", "k", "prompt_tokens", "new_tokens", "vocabulary", "seed"):
        if getattr(args, name):
            command += [f"--{name.replace('_', '-')}", str(getattr(args, name))]
    command += ["--skip-generate"] * args.skip_generate + ["--plain"] * args.plain
    code, lines, _ = child(folder, command, seconds)
    if code:
        print("\n".join(lines[-30:]), file=sys.stderr)
        note = f"ended with exit code {code}: {load.first_line(lines[-1])}"
        if code == "stopped":
            note = "stopped at its time limit"
        record(folder, f"{kind} {shape}", note=note)
