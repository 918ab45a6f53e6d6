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
    print(f"{part}: " + ", ".join(f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
                                  for name, value in line.items()), flush=True)


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
                tables.setdefault(tuple(name for name in line if name != "part"), []).append(line)
        for names, rows in tables.items():
            cells = [[f"{row[n]:,.4g}" if isinstance(row[n], float) else str(row[n]).replace("|", "\\|")
                      .replace("\n", "<br>") for n in names] for row in rows]
            text.append("\n".join("| " + " | ".join(row) + " |" for row in
                                  ([n.replace("_", " ") for n in names], ["---"] * len(names), *cells)))
    return "\n\n".join(text) + "\n"


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
    dtype, n, times = (torch.bfloat16, 8192, 100) if gpu else (torch.float32, 1024, 3)
    # random: a card multiplies ones faster, because it draws less power
    x, y = (torch.randn(2 ** 30 if gpu else 2 ** 24, dtype=dtype, device=device()) for _ in range(2))
    a, b = x[:n * n].view(n, n), y[:n * n].view(n, n)

    def seconds(call):
        for count in (2, times):  # once to warm up
            if gpu:
                torch.cuda.synchronize()
            started = time.perf_counter()
            for _ in range(count):
                call()
            if gpu:
                torch.cuda.synchronize()
        return (time.perf_counter() - started) / times
    return 2 * x.numel() * x.itemsize / seconds(lambda: y.copy_(x)), 2 * n ** 3 / seconds(lambda: a @ b)


def prompts_of(rows, args):
    rng = random.Random(args.seed)
    return [[rng.randrange(1, args.vocabulary) for _ in range(args.prompt_tokens)] for _ in range(rows // args.k)]


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
    copies = [(layer.base_layer.weight, copy) for _, _, layer, copy in getattr(policy.fast, "light", None) or ()
              if copy is not None]
    return sum(p.nbytes for p in multiplied(policy) if not any(p is old for old, _ in copies)) + sum(
        copy.nbytes for _, copy in copies)


def sampler(policy, rows, args, bandwidth):
    """A line: tokens per second of the sampler, and the bound. The second of two calls: the first makes ready what
    depends on the number of rows."""
    c, T, L = policy.lm.config.get_text_config(), args.new_tokens, args.prompt_tokens
    prompts, line = prompts_of(rows, args), {"rows": rows}
    for _ in range(2):
        with fresh_peak(policy, line):
            common.sample(policy, prompts, args.k, range(rows // args.k), max_new_tokens=T)
    line["tokens_per_s"] = rows * T / line["seconds"]
    cached = 2 * c.num_hidden_layers * c.num_key_value_heads * c.hidden_size // c.num_attention_heads
    bound = rows * bandwidth / (read_per_token(policy) + rows * cached * policy.lm.dtype.itemsize * (L + T / 2))
    return line | {"bound": bound, "of_bound": line["tokens_per_s"] / bound}


def rivals(policy, rows, tokens, args):
    """Lines: on equal prompts and tokens, the sampler, its plain loop and transformers' generate, with the adapter as
    peft computes it, and how many times as fast the sampler is."""
    prompts, first = prompts_of(rows, args), None
    ours = lambda: common.sample(policy, prompts, args.k, range(rows // args.k), max_new_tokens=tokens)
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
        first = first or line["seconds"]
        yield {"rows": rows, "new_tokens": tokens, "who": who, "tokens_per_s": rows * tokens / line["seconds"],
               "sampler_is_faster": line["seconds"] / first, "peak_gb": line["peak_gb"]}


def update(policy, rows, args, rate):
    """A line: tokens per second of an update with all of the rows, those that are computed (a shared prompt once)."""
    prompts, line, computed = prompts_of(rows, args), {"rows": rows}, [0]
    rng = random.Random(args.seed)
    ys = [[rng.randrange(1, args.vocabulary) for _ in range(args.new_tokens)] for _ in range(rows)]

    def count(_, __, options):
        computed[0] += options["input_ids"].numel()
    hook = policy.lm.register_forward_pre_hook(count, with_kwargs=True)
    for timed in (False, True):
        computed[0], _ = 0, [setattr(p, "grad", None) for p in policy.parameters()]
        with fresh_peak(policy, line):
            for _, logps, _ in common.score(policy, [x for x in prompts for _ in range(args.k)], ys):
                logps.sum().backward()
    hook.remove()
    weights = sum(p.numel() * (2 if p.dtype == torch.uint8 else 1) for p in multiplied(policy))  # two to a byte
    return {"rows": rows, "completion_tokens_per_s": rows * args.new_tokens / line["seconds"],
            "computed_tokens_per_s": computed[0] / line["seconds"],
            "of_matrix_rate": computed[0] / line["seconds"] * 4 * weights / rate, "peak_gb": line["peak_gb"]}


def shape_part(folder, shape, args):
    """A model of random weights in both precisions: loading, sampler, update; of the 7b shape first what a card of 24
    GB would do."""
    gpu, (bandwidth, rate) = device().type == "cuda", rates()
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
            whole = rows == middle and bits != 4  # the figure that counts is taken on the whole length
            for line in rivals(policy, rows, args.new_tokens if whole else min(THEIRS, args.new_tokens), args):
                record(folder, label, what="against", **line)


def small_card(folder, path, args, total=24e9, tokens=512):
    """A step of one prompt, k samples of 512 tokens, all in the update, on what a card of 24 GB has: more than that is
    refused."""
    with contextlib.ExitStack() as stack:
        own = load.free_memory
        stack.callback(setattr, load, "free_memory", own)
        if device().type == "cuda":
            share = min(1.0, (total - 0.6e9) / torch.cuda.get_device_properties(0).total_memory)  # less the context
            torch.cuda.set_per_process_memory_fraction(share)
            stack.callback(torch.cuda.set_per_process_memory_fraction, 1.0)
            load.free_memory = lambda d: total - 0.6e9 - torch.cuda.memory_allocated(d) if d.type == "cuda" else own(d)
        policy, line = common.load_policy(path, 4, seed=args.seed, fast=chooser(args.plain)), {}
        policy.stop = [args.vocabulary]
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
        rng = random.Random(args.seed)
        words = lambda: " ".join(f"w{rng.randrange(1, len(tokenizer))}" for _ in range(args.prompt_tokens))
        from tasks import Problem
        self.train = [Problem(str(i), words(), "") for i in range(256)]
        self.max_new_tokens, self.counts = args.new_tokens, Counter()

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
    import datasets
    import peft
    import transformers
    gpu, rows = device().type == "cuda", args.row_counts[len(args.row_counts) // 2]
    with tempfile.TemporaryDirectory() as path:
        measure.build(shape, path, args.seed, args.vocabulary)
        tokenizer = word_tokenizer(args.vocabulary)
        task = Words(args, tokenizer)
        policy = common.load_policy(path, 16 if gpu else 32, seed=args.seed, fast=chooser(args.plain))
        policy.tokenizer, policy.stop = tokenizer, [args.vocabulary]  # nothing ends early, as with TRL's least length
        for objective in ("mean", "passk"):
            own = ppo_passk.parser().parse_args([
                "--objective", objective, "--k", str(args.k), "--samples", str(args.k), "--prompts",
                str(rows // args.k), "--lr", "1e-5", "--kl-prompts", "0"])
            optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-5, weight_decay=0.0)
            for number in (1, 2):  # the first one warms up
                line, problems = {}, batch_of(task.train, own.prompts, number, args.seed)
                with fresh_peak(policy, line):
                    shown, _ = ppo_passk.step(policy, task, optimizer, problems, number, own)
            record(folder, "step", who=f"ours, {objective}", rows=rows, zero=shown["zero"],
                   samples_per_s=rows / line["seconds"], **line)
        del policy, optimizer
        free()
        problem = {p.prompt: p for p in task.train}

        class Clock(transformers.TrainerCallback):
            def on_step_end(self, *_, **__):
                if gpu:
                    torch.cuda.synchronize()
                self.seconds, self.mark = time.perf_counter() - self.mark, time.perf_counter()
        for micro in (8, min(64, rows)):
            clock = Clock()
            model = transformers.AutoModelForCausalLM.from_pretrained(
                path, dtype=torch.bfloat16 if gpu else torch.float32)
            trainer = trl.GRPOTrainer(
                model=model, processing_class=tokenizer, callbacks=[clock],
                reward_funcs=lambda prompts, completions, **_: task.rewards([problem[x] for x in prompts], completions),
                train_dataset=datasets.Dataset.from_list([{"prompt": x} for x in problem]),
                peft_config=peft.LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
                args=trl.GRPOConfig(
                    output_dir=os.path.join(path, "trl"), per_device_train_batch_size=micro,
                    gradient_accumulation_steps=math.ceil(rows / micro), num_generations=args.k, max_steps=2,
                    max_completion_length=args.new_tokens, temperature=1.0, beta=0.0, learning_rate=1e-5, bf16=gpu,
                    generation_kwargs={"min_new_tokens": args.new_tokens}, use_cpu=not gpu, report_to=[],
                    save_strategy="no", logging_strategy="no", disable_tqdm=True))
            trainer.remove_callback(transformers.PrinterCallback)
            if gpu:
                torch.cuda.reset_peak_memory_stats()
            clock.mark = time.perf_counter()
            trainer.train()
            record(folder, "step", who=f"TRL {trl.__version__}, micro-batch {micro}", rows=rows, zero=0.0,
                   samples_per_s=rows / clock.seconds, seconds=clock.seconds, peak_gb=load.peak_memory(device()))
            del trainer, model
            free()


def child(folder, command, seconds):
    """Run a command of this checkout, what it prints to DIR/output.log -> (exit code or "stopped", its lines, seconds).
    Its temporary files go with it, also where it is killed."""
    started = time.time()
    with tempfile.TemporaryDirectory() as scratch, open(os.path.join(folder, "output.log"), "a+") as log:
        start = log.seek(0, os.SEEK_END)
        try:
            code = subprocess.run([sys.executable, *command], cwd=ROOT, stdout=log, stderr=subprocess.STDOUT,
                                  timeout=seconds, env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1",
                                                        "TMPDIR": scratch}).returncode
        except subprocess.TimeoutExpired:
            code = "stopped"
        log.seek(start)
        return code, log.read().strip().split("\n"), time.time() - started


def command_part(folder, part, command, seconds):
    """The lines of a command's output that say how it ended."""
    code, lines, taken = child(folder, command, seconds)
    tail = [line for line in lines if "passed" in line or "failed" in line or "FAILED" in line
            or re.match(r"E  |\w*Error|before|after", line)] or lines[-3:]
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
    folder, started = args.gpu_report, time.time()
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to --gpu-report {folder}: {error.strerror}") from error
    if os.path.exists(os.path.join(folder, "gpu.jsonl")):
        raise UserError(f"--gpu-report {folder} holds a report: give another folder")
    gpu = torch.cuda.is_available()
    name = torch.cuda.get_device_name() if gpu else "CPU: a rehearsal, not a GPU"
    record(folder, "start", device=name, date=time.strftime("%Y-%m-%d"), command="python " + " ".join(sys.argv),
           **versions())
    shapes = ["1.5b", "7b", "0.5b"] if args.shape == "tiny" else [args.shape]
    given = [flag for name in ("rows", "k", "prompt_tokens", "new_tokens", "vocabulary", "seed") if getattr(args, name)
             for flag in (f"--{name.replace('_', '-')}", str(getattr(args, name)))]
    given += ["--skip-generate"] * args.skip_generate + ["--plain"] * args.plain
    tests = ["-m", "pytest", "-v", "--tb=short", "-rf", "-o", "addopts=", "-p", "no:cacheprovider", "tests/test_gpu.py",
             *["-n", "4"] * (importlib.util.find_spec("xdist") is not None and gpu)]
    ppo = ["ppo_passk.py", "--bits", "4", "--steps", "40", "--eval-samples", "16", *["--plain"] * args.plain]
    plan = [("shape", shapes[0], None), ("tests", "GPU tests", tests), *(("shape", x, None) for x in shapes[1:2]),
            ("step", shapes[0], None), ("ppo", "ppo_passk.py", ppo), *(("shape", x, None) for x in shapes[2:])]
    for kind, name, command in plan:
        (least, most), left = PARTS[kind], SECONDS - (time.time() - started)
        if kind not in args.parts:
            continue
        if left < least:
            record(folder, name if command else f"{kind} {name}", note=f"left out: {left:.0f} s were left")
        elif command:
            with tempfile.TemporaryDirectory() as scratch:
                out = ["--out", os.path.join(scratch, "run")] * (kind == "ppo")
                command_part(folder, name, [*command, *out], min(left, most))
        else:
            seconds = int(min(left, most))
            code, lines, _ = child(folder, [os.path.join(ROOT, "bench.py"), "--gpu-report", folder, "--part",
                                            f"{kind}:{name}:{seconds}", *given], seconds)
            if code:
                print("\n".join(lines[-30:]), file=sys.stderr)
                record(folder, f"{kind} {name}", note="stopped: its time was over" if code == "stopped" else
                       f"ended with exit code {code}: {load.first_line(lines[-1])}")
    record(folder, "end", seconds=time.time() - started)
    print(f"written to {folder}/gpu.md, gpu.json and gpu.jsonl")
