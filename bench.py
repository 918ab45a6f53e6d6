"""Benchmark the sampler against transformers' generate, and the update with and without dropping zero-weight samples.

    python bench.py                              embedded model on the CPU: base, LoRA and 4-bit, 16 to 512 rows
    python bench.py --against trl                whole training step against TRL's GRPOTrainer (pip install trl==1.16.0)
    python bench.py --model FILE.gguf            a real model, on sums in words; also with --against trl
    python bench.py --scaling                    time and peak memory of a step against k, prompts, length, vocabulary
    python bench.py --shape 7b --rows 128 --new-tokens 512     random weights in the shape of a 7b model, for a GPU
    python bench.py --gpu-report DIR             all of this and the GPU tests on a GPU, in nine minutes, as a table
    python bench.py --sandbox 1000               verdicts per second on small programs, each in a fresh sandbox

The two sides of a comparison alternate in one process on the same prompts; the median of the pairwise ratios is
printed. Tokens per second count completions up to and including the end-of-sequence token, without padding. Random
weights of a large shape practically never end a completion, so every row runs to --new-tokens. The last line of the
output is JSON.
"""
import argparse
import contextlib
import io
import logging
import multiprocessing
import os
import tempfile
import time
import warnings

from support.flags import Help, Parser, answer, computing_flags


def parse_args(argv=None):
    parser = Parser(description=__doc__.split("\n")[0], formatter_class=Help)
    parser.add_argument("--shape", default="tiny", choices=["tiny", "0.1b", "0.5b", "1.5b", "7b"],
                        help="tiny: the embedded model; else random weights in the shape of Qwen2.5 (0.1b: a smaller "
                             "shape of the same kind)")
    parser.add_argument("--model", default=None,
                        help="a real model instead: hub id, local directory or FILE.gguf; prompts are sums in words")
    parser.add_argument("--adapter", default=None,
                        help="--model: run folder, such as an SFT warm-up, whose adapter is merged in first")
    parser.add_argument("--data", default=None, help="--model: your own problems, FILE.jsonl, instead of sums")
    parser.add_argument("--chat", action=argparse.BooleanOptionalAction, default=None,
                        help="--model: use the chat template for the problems, or not; default: if there is one")
    parser.add_argument("--prompts", type=int, default=0,
                        help="--against: prompts per step; default 128, or 16 with --model")
    parser.add_argument("--rows", default=None,
                        help="batch sizes, prompts x k, comma-separated; default 16,64,256,512 for tiny, 128 with "
                             "--model, else 64")
    parser.add_argument("--k", type=int, default=8, help="samples per prompt")
    parser.add_argument("--prompt-tokens", type=int, default=128, help="prompt length for random shapes")
    parser.add_argument("--new-tokens", type=int, default=0,
                        help="longest completion in tokens; 0 = the task's limit, 256 for random shapes, 24 with "
                             "--model")
    parser.add_argument("--precision", default=None,
                        help="any of base (no adapter), lora, 4bit (NF4 + LoRA), comma-separated; default all for "
                             "tiny, lora with --model, else lora,4bit; base and lora are 16-bit on a GPU")
    parser.add_argument("--repeat", type=int, default=7,
                        help="timed repetitions of each side, after one warm-up")
    parser.add_argument("--against", default=None, choices=["trl"],
                        help="compare whole training steps with another library")
    parser.add_argument("--micro", default=None,
                        help="--against: values of TRL's per_device_train_batch_size (8 is TRL's own default), "
                             "comma-separated; default 8,64,128,256,512, or 8,32,128 with --model")
    parser.add_argument("--scaling", action="store_true",
                        help="measure how the cost of a step grows: a table, fitted exponents and a plot")
    parser.add_argument("--out", default="scaling.png", help="--scaling: file of the plot")
    parser.add_argument("--skip-generate", action="store_true", help="skip the comparison with generate")
    parser.add_argument("--gpu-report", metavar="DIR", default=None,
                        help="run the GPU tests, and measure sampler, update and whole steps of 1.5b, 0.5b and 7b, "
                             "or of --shape; results are written to DIR one by one")
    parser.add_argument("--parts", default=None, help="--gpu-report: any of shape,tests,step,ppo; default all")
    parser.add_argument("--part", default=None, help=argparse.SUPPRESS)  # one of these, in its own process
    parser.add_argument("--vocabulary", type=int, default=151936, help="vocabulary of random shapes")
    parser.add_argument("--sandbox", type=int, default=0,
                        help="time this many verdicts of the sandbox instead; 0 = off")
    parser.add_argument("--seed", type=int, default=0, help="weights, prompts and draws")
    computing_flags(parser)
    return parser.parse_args(argv)


if __name__ == "__main__":
    answer(parse_args)  # answer --help and reject bad flags before the slow imports

import random
import statistics

import torch

import common
import ppo_passk
import tasks
from fast.choose import chooser
from fast.folded import folded, lora_layers
from support import load
from support.errors import UserError
from support.flags import cli, numbers, refuse
from support.folder import versions
from support.measure import (
    TINY_FOLDER,
    alternate,
    build,
    generate,
    reset_peak,
    steps_of_trl,
    trl_trainer,
    whole_bits,
    without_gradients,
)
from support.output import to_json
from support.plots import save_figure
from support.run import batch_of
from support.text import put


def peak_note(policy, line):
    """Peak memory as text, on a GPU only: on a CPU it is that of the whole process, which the JSON has."""
    return f"   peak {line['memory_gb']:.2f} GB" if policy.device.type == "cuda" else ""


def ratio(ours, theirs):
    """Median of the pairwise ratios ours / theirs."""
    return statistics.median(a / b for a, b in zip(ours, theirs))


# ------------------------------------------------------------------------------------------------- sampler and update

class Problems:
    """Workload for a trained model: training problems of a task, k samples each."""

    def __init__(self, task, k):
        self.task = task
        self.k = k
        self.new_tokens = task.max_new_tokens

    def prompts(self, policy, rows):
        return policy.encode([p.prompt for p in self.task.train[:rows // self.k]], self.task.chat)

    def rewards(self, policy, drawn):
        problems = self.task.train[:len(drawn.tokens)]
        prompts = self.prompts(policy, self.k * len(problems))
        texts = policy.texts([row for rows in drawn.lists() for row in rows], prompts)
        owners = [p for p in problems for _ in range(self.k)]
        return torch.tensor(self.task.rewards(owners, texts)).view(-1, self.k)


class Noise:
    """Workload for random weights: random prompts, and random rewards, 1 with p = 0.2, since such a model solves
    nothing."""
    new_tokens = 256

    def __init__(self, args):
        self.rng = random.Random(args.seed)
        self.seed = args.seed
        self.k = args.k
        self.length = args.prompt_tokens

    def prompts(self, policy, rows):
        return [[self.rng.randrange(1, 30000) for _ in range(self.length)] for _ in range(rows // self.k)]

    def rewards(self, policy, drawn):
        generator = torch.Generator().manual_seed(common.torch_seed(self.seed))
        return (torch.rand(drawn.lengths.shape, generator=generator) < 0.2).float()


def bench_sampler(policy, prompts, args, new_tokens, label):
    """Time both samplers -> a dict for the JSON line: tokens per second and their ratio."""
    rows = len(prompts) * args.k
    seeds = iter(range(10 ** 9))
    reset_peak(policy)

    def ours():
        seed = next(seeds)
        draws = [common.seed_of(seed, b) for b in range(len(prompts))]
        return int(common.sample(policy, prompts, args.k, draws, max_new_tokens=new_tokens).lengths.sum())

    def theirs():  # for label base also without the LoRA layers, which would cost time
        with folded(lora_layers(policy)) if label == "base" else contextlib.nullcontext():
            return generate(policy, prompts, args.k, new_tokens, next(seeds))

    sides = [ours] if args.skip_generate else [ours, theirs]
    runs = alternate(policy, args.repeat, *sides)
    rates = [[tokens / seconds for seconds, tokens in side] for side in runs]
    line = {"what": "sampler", "precision": label, "rows": rows, "tokens_per_s": statistics.median(rates[0])}
    line["memory_gb"] = load.peak_memory(policy.device)
    text = f"sampler  {label:5} {rows:5} rows  {line['tokens_per_s']:10,.0f} tokens/s"
    if not args.skip_generate:
        line["generate_tokens_per_s"] = statistics.median(rates[1])
        line["ratio"] = ratio(*rates)
        text += f"   generate {line['generate_tokens_per_s']:10,.0f}   ratio {line['ratio']:.2f}"
    print(text + peak_note(policy, line), flush=True)
    return line


def update(policy, prompts, tokens, A, rows):
    """Compute the gradient of ppo_passk.py for the samples `rows`, [(prompt, sample), ...], with advantages A [B,
    k]."""
    without_gradients(policy)
    xs = [prompts[b] for b, _ in rows]
    ys = [tokens[b][i] for b, i in rows]
    for index, logps, mask in common.score(policy, xs, ys):
        b, i = torch.tensor([rows[j] for j in index.tolist()]).T
        ppo_passk.ppo_loss(logps, logps.detach(), mask, A[b, i].to(logps.device), 0.2).backward()


def bench_update(policy, prompts, workload, args, new_tokens, label):
    """Time the update with and without dropping zero-weight samples -> a dict per objective."""
    seeds = [common.seed_of(args.seed, b) for b in range(len(prompts))]
    drawn = common.sample(policy, prompts, args.k, seeds, max_new_tokens=new_tokens)
    tokens = drawn.lists()
    rewards = workload.rewards(policy, drawn)
    all_rows = [(b, i) for b in range(len(prompts)) for i in range(args.k)]
    lines = []
    for objective in ("mean", "passk"):
        A = ppo_passk.advantages(rewards, args.k, objective)
        rows = [(b, i) for b, i in A.nonzero().tolist()]
        subsets = [all_rows, rows] if rows else [all_rows]
        calls = [lambda subset=subset, A=A: update(policy, prompts, tokens, A, subset) for subset in subsets]
        reset_peak(policy)
        runs = alternate(policy, args.repeat, *calls)
        seconds = [[taken for taken, _ in side] for side in runs]
        zero = 1 - len(rows) / len(all_rows)
        line = {"what": "update", "precision": label, "objective": objective, "rows": len(all_rows), "zero": zero}
        line["all_s"] = statistics.median(seconds[0])
        line["memory_gb"] = load.peak_memory(policy.device)
        line["update_tokens_per_s"] = int(drawn.lengths.sum()) / line["all_s"]
        text = "all weights are zero: no ratio"  # every prompt has equal rewards
        if rows:
            line["dropped_s"] = statistics.median(seconds[1])
            line["ratio"] = ratio(*seconds)
            text = f"dropped {line['dropped_s']:.3f} s   ratio {line['ratio']:.2f}"
        lines.append(line)
        print(f"update   {label:5} {len(all_rows):5} rows  {objective:5} {zero:4.0%} zero weights  "
              f"all {line['all_s']:.3f} s   {text}" + peak_note(policy, line), flush=True)
    return lines


DEFAULTS = {  # --rows and --precision for each kind of model
    "tiny": ("16,64,256,512", "base,lora,4bit"),
    "real": ("128", "lora"),
    "random": ("64", "lora,4bit")}


def bench_model(args):
    """Benchmark sampler and update of the embedded model, a real model or random weights -> dicts."""
    kind = "tiny" if args.shape == "tiny" else "random"
    if args.model:
        kind = "real"
    sizes, precisions = DEFAULTS[kind]
    sizes = numbers(args.rows or sizes, int, "--rows")
    precisions = (args.precision or precisions).split(",")
    if args.repeat < 1 or args.k < 1 or any(rows % args.k for rows in sizes):
        raise UserError(f"--rows must be multiples of --k {args.k}, and --repeat at least 1")
    if not {"base", "lora", "4bit"}.issuperset(precisions):
        raise UserError(f"--precision {args.precision}: choose from base, lora, 4bit")
    with tempfile.TemporaryDirectory() as folder:
        path = "tiny"
        workload = Noise(args)
        if kind == "real":
            path, task = real_model(args, folder)
            workload = Problems(task, args.k)
        elif kind == "tiny":
            workload = Problems(tasks.load_task("countdown"), args.k)
        else:
            path = folder
            build(args.shape, folder, args.seed, args.vocabulary, args.device)
        return [line for precision in precisions
                for line in bench_precision(args, path, workload, sizes, precision, precision == precisions[0])]


def bench_precision(args, path, workload, sizes, precision, first):
    """Benchmark sampler and update in one precision -> dicts. first: print a headline."""
    bits = 4 if precision == "4bit" else whole_bits(args.device)
    policy = common.load_policy(path, bits, seed=args.seed, device=args.device, fast=chooser(args.plain))
    if first:
        print(f"{args.model or args.shape}, {policy.note}; medians of {args.repeat}", flush=True)
    if precision == "base":
        policy.model.base_model.disable_adapter_layers()
    new_tokens = args.new_tokens or workload.new_tokens
    lines = []
    for rows in sizes:
        lines.append(bench_sampler(policy, workload.prompts(policy, rows), args, new_tokens, precision))
    if precision != "base":
        prompts = workload.prompts(policy, sizes[-1])
        lines += bench_update(policy, prompts, workload, args, new_tokens, precision)
    del policy
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return lines


def real_model(args, folder):
    """Prepare --model in `folder` -> (directory of its float32 weights with the adapter merged in, its task). Both
    sides of a comparison load this copy, so they have the same weights."""
    policy = common.load_policy(args.model, 32, adapter=args.adapter, reference="base",
                                device=args.device)
    task = tasks.load_task(None, args.data or write_sums(folder, args.seed))
    task.max_new_tokens = args.new_tokens or 24
    load.put_prompts(policy, task, args.chat)
    path = os.path.join(folder, "model")
    policy.model.merge_and_unload().save_pretrained(path)
    policy.tokenizer.save_pretrained(path)
    return path, task


def write_sums(folder, seed):
    """Write a file of 1,000 sums in words -> its path."""
    terms = [(a, b, c) for a in range(20, 70) for b in range(2, 20) for c in range(2, 9)]
    path = os.path.join(folder, "sums.jsonl")
    with open(path, "w") as file:
        for a, b, c in random.Random(seed).sample(terms, 1000):
            problem = {"prompt": f"{a} plus {b} minus {c} is", "answer": str(a + b - c)}
            file.write(to_json(problem) + "\n")
    return path


# --------------------------------------------------------------------------------------------------- whole steps, TRL

class Stepper:
    """Each call runs one training step of ppo_passk.py: B prompts x 8 samples, without measuring the KL, as in TRL."""

    def __init__(self, objective, B=128, model="tiny", task=None, plain=False, device=None):
        flags = f"--objective {objective} --k 8 --samples 8 --prompts {B} --lr 1e-4 --kl-prompts 0 --steps 1000000"
        self.args = ppo_passk.parser().parse_args(flags.split())
        self.policy = common.load_policy(model, 32, device=device, fast=chooser(plain))
        self.task = task or tasks.load_task("countdown")
        self.optimizer = torch.optim.AdamW(self.policy.parameters(), lr=self.args.lr, weight_decay=0.0)
        self.number = 0
        self.zero = []  # share of zero-weight samples, per step
        self.seconds = []

    def __call__(self):
        started = time.perf_counter()
        self.number += 1
        problems = batch_of(self.task.train, self.args.prompts, self.number, self.args.seed)
        line, _ = ppo_passk.step(self.policy, self.task, self.optimizer, problems, self.number, self.args)
        self.zero.append(line["zero"])
        self.seconds.append(time.perf_counter() - started)


def against_trl(args, alone=False):
    """Compare our step under two objectives with a step of TRL's GRPOTrainer, alternating in one process -> dicts. Both
    have the same base, LoRA, batch and verifier, temperature 1 and no KL; TRL's other settings are its defaults.
    alone: run TRL's steps only."""
    logging.disable(logging.WARNING)  # TRL logs many warnings
    warnings.simplefilter("ignore")
    try:
        import trl  # noqa: F401
    except ImportError as error:
        raise UserError("--against trl needs TRL, which this project does not install: pip install trl==1.16.0"
                        ) from error
    B, micros = (16, "8,32,128") if args.model else (128, "8,64,128,256,512")
    B = args.prompts or B
    sizes = numbers(args.micro or micros, int, "--micro")
    for micro in sizes:
        if 8 * B % micro or micro % 8:
            raise UserError(f"--micro {micro}: give multiples of 8 that divide {8 * B}")
    with tempfile.TemporaryDirectory() as folder:
        path = TINY_FOLDER
        task = tasks.load_task("countdown")
        if args.model:
            path, task = real_model(args, folder)
        ours = {}
        for objective in () if alone else ("mean", "passk"):
            ours[objective] = Stepper(objective, B, path if args.model else "tiny", task, args.plain, args.device)
        lines = []
        for micro in sizes:
            lines += in_turns(args, ours, folder, path, task, B, micro)
        if ours:  # TRL's fastest setting again, without gradient checkpointing, its default that costs time
            best = max(lines, key=lambda line: line["trl_samples_per_s"])
            lines += in_turns(args, ours, folder, path, task, B, best["micro"], checkpointing=False)
    return lines


def in_turns(args, ours, folder, path, task, B, micro, checkpointing=True):
    """Alternate a step of TRL with one of ours for each objective -> a dict per objective.  micro: TRL's batch size."""
    import transformers
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    problems = read_as(tokenizer, task)
    settings = {"num_generations": 8, "max_steps": args.repeat + 1, "learning_rate": 1e-4}
    cpu = load.device_of(args.device).type == "cpu"
    trainer = trl_trainer(path, tokenizer, task, problems, os.path.join(folder, "trl"), rows=8 * B, micro=micro,
                          cpu=cpu, gradient_checkpointing=checkpointing, **settings)
    load.set_threads(trainer.model.num_parameters())
    theirs = steps_of_trl(trainer, between=lambda: [step() for step in ours.values()])[1:]
    lines = []
    for objective, step in ours.items():
        seconds = step.seconds[-args.repeat:]
        line = {"what": "step", "objective": objective, "micro": micro, "checkpointing": checkpointing}
        line["samples_per_s"] = 8 * B / statistics.median(seconds)
        line["zero"] = statistics.mean(step.zero[-args.repeat:])
        line["trl_samples_per_s"] = 8 * B / statistics.median(theirs)
        line["ratio"] = ratio(theirs, seconds)
        print(f"step  {objective:5}  {line['samples_per_s']:7,.4g} samples/s, {line['zero']:3.0%} zero weights   TRL, "
              f"micro-batch {micro:4} {line['trl_samples_per_s']:7,.4g}   ratio {line['ratio']:.2f}"
              + ("" if checkpointing else "   (without gradient checkpointing)"), flush=True)
        lines.append(line)
    return lines


def read_as(tokenizer, task):
    """{prompt text: problem} of the training problems, for TRL: the text is what the policy gets, after the chat
    template if there is one."""
    if not task.chat or not tokenizer.chat_template:
        return {p.prompt: p for p in task.train}
    return {put(tokenizer, p.prompt): p for p in task.train}


# ------------------------------------------------------------------------------------------------- how the cost grows

# --scaling varies one of these sizes of a step at a time, and leaves the others at POINT.
POINT = {"k": 8, "prompts": 32, "length": 32, "vocabulary": 2048}
SWEEPS = {
    "k": (2, 4, 8, 16, 32),
    "prompts": (8, 16, 32, 64, 128),
    "length": (8, 16, 32, 64, 128),
    "vocabulary": (512, 2048, 8192, 32768)}


def point(k, prompts, length, vocabulary, seed=0, repeat=3, plain=False, device=None):
    """Time a step on random weights: sample k completions of exactly `length` tokens, update with all of them ->
    (median seconds, peak memory in GB beyond that of loading the model). Needs a process of its own, for the memory."""
    with tempfile.TemporaryDirectory() as folder:
        build("micro", folder, seed, vocabulary, device)
        policy = common.load_policy(folder, whole_bits(device), seed=seed, device=device, fast=chooser(plain))
    policy.stop = []  # no completion ends early
    rng = random.Random(seed)
    xs = [[rng.randrange(vocabulary) for _ in range(16)] for _ in range(prompts)]

    def step():
        drawn = common.sample(policy, xs, k, range(prompts), max_new_tokens=length)
        without_gradients(policy)
        ys = [y for rows in drawn.lists() for y in rows]
        for _, logps, _ in common.score(policy, [x for x in xs for _ in range(k)], ys):
            (logps.sum() / len(ys)).backward()

    before = load.peak_memory(policy.device)
    runs, = alternate(policy, repeat, step)
    return statistics.median(seconds for seconds, _ in runs), load.peak_memory(policy.device) - before


def memory(micro, plain, device=None):
    """Peak memory in GB of two steps on countdown, ours (micro 0) or TRL's. Needs a process of its own."""
    if micro:
        args = argparse.Namespace(micro=str(micro), repeat=1, model=None, prompts=0, plain=plain, device=device)
        with contextlib.redirect_stdout(io.StringIO()):
            against_trl(args, alone=True)
        return load.peak_memory(load.device_of(device))
    step = Stepper("mean", plain=plain, device=device)
    step()
    step()
    return load.peak_memory(step.policy.device)


def in_a_process(call, *args, **options):
    """Run a call in a fresh process, because the peak memory of a process never falls."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(call, args, options)


def scaling(args):
    """Run all sweeps -> dicts, with exponents e of a fit log y = e log x + c; prints a table and saves a plot."""
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot
    figure, axes = pyplot.subplots(2, len(SWEEPS), figsize=(3.4 * len(SWEEPS), 5.6), squeeze=False)
    lines = []
    print("a step on random weights (0.2 M parameters without the vocabulary), around "
          + ", ".join(f"{n} {v}" for n, v in POINT.items()))
    for name, column in zip(SWEEPS, axes.T):
        lines += sweep(name, column, args)
    save_figure(figure, args.out)
    lines += memories(args)
    print(f"written to {args.out}")
    return lines


def sweep(name, axes, args):
    """Vary one size of a step -> two dicts, seconds and memory, each plotted on one of the axes."""
    import numpy as np
    values = SWEEPS[name]
    options = {"seed": args.seed, "plain": args.plain, "device": args.device}
    measured = [in_a_process(point, **{**POINT, name: value}, **options) for value in values]
    lines = []
    for axis, what, unit, ys in zip(axes, ("seconds", "memory_gb"), ("s", "GB"), zip(*measured)):
        ys = [max(y, 1e-6) for y in ys]
        exponent = float(np.polyfit(np.log(values), np.log(ys), 1)[0])
        lines.append({"what": what, "sweep": name, "values": values, "found": ys, "exponent": exponent})
        print(f"{what:9} against {name:10} exponent {exponent:5.2f}   "
              + "  ".join(f"{v}: {y:.3g} {unit}" for v, y in zip(values, ys)), flush=True)
        axis.loglog(values, ys, "o-", ms=4)
        axis.set(xlabel=name, ylabel=what, title=f"exponent {exponent:.2f}")
        axis.grid(alpha=0.3)
    return lines


def memories(args):
    """Peak memory of our step and, if TRL is installed, of TRL's -> dicts."""
    import importlib.util
    if not importlib.util.find_spec("trl"):
        print("TRL is not installed (pip install trl==1.16.0): its peak memory is not measured")
        return []
    lines = []
    for micro in (0, *numbers(args.micro or "8,64,128,256,512", int, "--micro")):
        peak = in_a_process(memory, micro, args.plain, args.device)
        lines.append({"what": "memory", "micro": micro, "memory_gb": peak})
        whose = f"TRL, micro-batch {micro}" if micro else "ours"
        print(f"peak memory of the process, 128 prompts x 8 of countdown: {peak:.2f} GB ({whose})", flush=True)
    return lines


# -------------------------------------------------------------------------------------------------------- the sandbox

FUNCTION = {"tests": "assert f(2) == 4 and f(3) == 9", "names": {"f": "f"}, "prefix": "", "limit": 3.0}
PROGRAM = {"inputs": ["2\n"], "outputs": ["4\n"], "limit": 3.0}


def bench_sandbox(count):
    """Time the sandbox for two kinds of programs -> dicts: verdicts per second with all workers, CPU time of each."""
    return [sandbox_line(count, "function", FUNCTION, "def f(x): return x * x  # {}"),
            sandbox_line(count, "program", PROGRAM, "print(int(input()) ** 2)  # {}")]


def sandbox_line(count, kind, spec, program):
    """Time `count` verdicts on copies of a program that differ in a comment -> a dict."""
    problem = tasks.data.code_problem("bench", "square", None, spec)
    before = children_seconds()
    task = tasks.Code("bench", [], [], [problem])
    task.open()
    workers = task.pool.size
    warm = 2 * workers  # first verdicts, not timed: every worker starts its judge
    task.rewards([problem] * warm, [program.format(-i) for i in range(1, warm + 1)])
    started = time.perf_counter()
    rewards = task.rewards([problem] * count, [program.format(i) for i in range(count)])
    seconds = time.perf_counter() - started
    del task  # ends its workers: the CPU time of a child process is known only after it has ended
    cpu = children_seconds() - before
    line = {"what": "sandbox", "kind": kind, "workers": workers, "verdicts": count}
    line["verdicts_per_s"] = count / seconds
    line["cpu_ms"] = 1000 * cpu / (count + warm)
    line["right"] = sum(rewards)
    print(f"sandbox  {kind:8} {workers} workers  {line['verdicts_per_s']:7.1f} verdicts/s   "
          f"{line['cpu_ms']:.1f} ms of CPU each   {line['right']:.0f} of {count} right", flush=True)
    return line


def children_seconds():
    """CPU seconds of all child processes that have ended."""
    import resource
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


@cli
def main(argv=None):
    args = parse_args(argv)
    if args.sandbox < 0:
        raise UserError(f"--sandbox must be 0 or more, not {args.sandbox}")
    device = load.device_of(args.device)
    if args.against and device.index:
        raise UserError(f"--against: TRL uses the first visible GPU, not {device}: set CUDA_VISIBLE_DEVICES instead")
    if args.gpu_report:
        refuse(args, ["device"], "with --gpu-report, which measures the first GPU")
        from support import gpu_report
        gpu_report.prepare(args)
        (gpu_report.one_part if args.part else gpu_report.report)(args)
        return
    about = {}
    if args.against:
        about = {"against": args.against}
        lines = against_trl(args)
    elif args.scaling:
        about = {"scaling": POINT}
        lines = scaling(args)
    elif args.sandbox:
        lines = bench_sandbox(args.sandbox)
    else:
        about = {"shape": args.model or args.shape, "device": device.type}
        lines = bench_model(args)
    print(to_json({**about, "lines": lines, **versions()}))


if __name__ == "__main__":
    main()
