"""How fast: the sampler against transformers' generate, and the update with and without dropping zero-weight samples.

    python bench.py                              embedded model on the CPU: base, LoRA and 4-bit, 16 to 512 rows
    python bench.py --against trl                whole training step against TRL's GRPOTrainer (pip install trl==1.16.0)
    python bench.py --model FILE.gguf            a real model, on sums in words; with --against trl its training step
    python bench.py --scaling                    time and peak memory of a step against k, prompts, length, vocabulary
    python bench.py --shape 7b --rows 128 --new-tokens 512     random weights of a 7b model, meant for a GPU
    python bench.py --gpu-report DIR             all of that on a GPU, its tests too, in nine minutes, as a table
    python bench.py --sandbox 1000               verdicts per second on small programs, each in a fresh sandbox

The two sides of a ratio alternate in one process on the same prompts; the median of the pairwise ratios is printed.
Tokens per second count useful tokens only (up to the end-of-sequence token, that one included). Random weights of a
large shape practically never end a completion, so there every row runs to --new-tokens. The last line is JSON.
"""
import argparse
import contextlib
import io
import logging
import math
import multiprocessing
import os
import tempfile
import time
import warnings

from support.flags import Parser, answer, plain_flag


def parse_args(argv=None):
    parser = Parser(description=__doc__.split("\n")[0],
                    formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--shape", default="tiny", choices=["tiny", "0.1b", "0.5b", "1.5b", "7b"],
                        help="the embedded model, or random weights in the shape of Qwen2.5 0.5b, 1.5b, 7b (0.1b: a "
                             "small one)")
    parser.add_argument("--model", default=None,
                        help="a real model instead: hub id, local directory or FILE.gguf; answers sums in words")
    parser.add_argument("--adapter", default=None,
                        help="--model: a run folder, such as an SFT warm-up, whose adapter is merged in first")
    parser.add_argument("--data", default=None, help="--model: problems of your own, FILE.jsonl, instead of sums")
    parser.add_argument("--chat", action=argparse.BooleanOptionalAction, default=None,
                        help="--model: put the problems through the chat template, or not; default where there is one")
    parser.add_argument("--prompts", type=int, default=0,
                        help="--against: prompts of a step; default 128, or 16 for --model")
    parser.add_argument("--rows", default=None,
                        help="batch sizes, prompts x k, comma-separated; default 16,64,256,512 or 64")
    parser.add_argument("--k", type=int, default=8, help="samples per prompt")
    parser.add_argument("--prompt-tokens", type=int, default=128, help="prompt length for random shapes")
    parser.add_argument("--new-tokens", type=int, default=0,
                        help="longest completion; 0 = the task's own, 256 for random shapes, 24 for --model")
    parser.add_argument("--precision", default=None,
                        help="of base (no adapter), lora, 4bit (NF4 + LoRA), comma-separated; default all for tiny, "
                             "lora,4bit otherwise (16-bit on a GPU)")
    parser.add_argument("--repeat", type=int, default=7,
                        help="timed repetitions of each side, after one that is not counted")
    parser.add_argument("--against", default=None, choices=["trl"],
                        help="compare whole training steps with another library's")
    parser.add_argument("--micro", default=None,
                        help="--against: TRL's per_device_train_batch_size, which it sets to 8 by default; default "
                             "8,64,128,256,512, or 8,32,128 for --model")
    parser.add_argument("--scaling", action="store_true",
                        help="how the cost of a step grows; table, fitted exponents and a picture")
    parser.add_argument("--out", default="scaling.png", help="--scaling: where the picture goes")
    parser.add_argument("--skip-generate", action="store_true", help="do not run the comparison with generate")
    parser.add_argument("--gpu-report", metavar="DIR", default=None,
                        help="GPU tests, sampler, update and whole steps of 1.5b, 0.5b and 7b, or of --shape; written "
                             "to DIR after every figure")
    parser.add_argument("--parts", default=None, help="of --gpu-report: shape,tests,step,ppo; default all")
    parser.add_argument("--part", default=None, help=argparse.SUPPRESS)  # one of it, in a process of its own
    parser.add_argument("--vocabulary", type=int, default=151936, help="vocabulary of random shapes")
    parser.add_argument("--sandbox", type=int, default=0,
                        help="time this many verdicts of the sandbox instead; 0 = do not")
    parser.add_argument("--seed", type=int, default=0, help="weights, prompts and draws")
    plain_flag(parser)
    return parser.parse_args(argv)


if __name__ == "__main__":
    answer(parse_args)  # --help and bad flags, before the heavy imports

import random
import statistics

import common
import ppo_passk
import tasks
import torch
from fast.choose import chooser
from fast.folded import folded, lora_layers
from support import load
from support.errors import UserError
from support.flags import cli, numbers
from support.folder import versions
from support.output import to_json
from support.measure import TINY, alternate, build, generate, reset_peak
from support.plots import save_figure
from support.run import batch_of
from support.text import put

def peak(policy, line):
    """Peak memory of a line; on a CPU the process has one peak only, which the JSON line keeps."""
    return f"   peak {line['memory_gb']:.2f} GB" if policy.device.type == "cuda" else ""


def bench_sampler(policy, prompts, args, new_tokens, label):
    """One line: tokens per second of both samplers and the ratio."""
    rows, seeds = len(prompts) * args.k, iter(range(10 ** 9))
    reset_peak(policy)
    def ours():
        draws = [common.seed_of(next(seeds), b) for b in range(len(prompts))]
        return int(common.sample(policy, prompts, args.k, draws, max_new_tokens=new_tokens).lengths.sum())

    def theirs():  # without an adapter, without its wrappers
        with folded(lora_layers(policy)) if label == "base" else contextlib.nullcontext():
            return generate(policy, prompts, args.k, new_tokens, next(seeds))
    runs = alternate(policy, args.repeat, ours, *([] if args.skip_generate else [theirs]))
    rates = [[tokens / seconds for seconds, tokens in side] for side in runs]
    line = {"what": "sampler", "precision": label, "rows": rows, "tokens_per_s": statistics.median(rates[0]),
            "memory_gb": load.peak_memory(policy.device)}
    text = f"sampler  {label:5} {rows:5} rows  {line['tokens_per_s']:10,.0f} tokens/s"
    if not args.skip_generate:
        line |= {"generate_tokens_per_s": statistics.median(rates[1]),
                 "ratio": statistics.median(a / b for a, b in zip(*rates))}
        text += f"   generate {line['generate_tokens_per_s']:10,.0f}   ratio {line['ratio']:.2f}"
    print(text + peak(policy, line), flush=True)
    return line


def bench_update(policy, prompts, rewards_of, args, new_tokens, label):
    """One line per objective: the update with zero-weight samples dropped against the same update with all of them."""
    seeds = [common.seed_of(args.seed, b) for b in range(len(prompts))]
    drawn = common.sample(policy, prompts, args.k, seeds, max_new_tokens=new_tokens)
    tokens, rewards, lines = drawn.lists(), rewards_of(drawn), []

    def update(A, rows):
        for p in policy.parameters():
            p.grad = None
        for index, logps, mask in common.score(policy, [prompts[b] for b, _ in rows], [tokens[b][i] for b, i in rows]):
            b, i = torch.tensor([rows[j] for j in index.tolist()]).T
            ppo_passk.ppo_loss(logps, logps.detach(), mask, A[b, i].to(logps.device), 0.2).backward()

    every = [(b, i) for b in range(len(prompts)) for i in range(args.k)]
    for objective in ("mean", "passk"):
        A = ppo_passk.advantages(rewards, args.k, objective)
        rows = [(b, i) for b, i in A.nonzero().tolist()]
        reset_peak(policy)
        full, *dropped = alternate(policy, args.repeat, lambda: update(A, every),
                                   *([lambda: update(A, rows)] if rows else []))
        line = {"what": "update", "precision": label, "objective": objective, "rows": len(every),
                "zero": 1 - len(rows) / len(every), "all_s": statistics.median(s for s, _ in full),
                "memory_gb": load.peak_memory(policy.device)}
        line["update_tokens_per_s"] = int(drawn.lengths.sum()) / line["all_s"]
        text = "nothing to learn from: no ratio"  # the rewards of each prompt are all alike
        if rows:
            line |= {"dropped_s": statistics.median(s for s, _ in dropped[0]),
                     "ratio": statistics.median(a / b for (a, _), (b, _) in zip(full, dropped[0]))}
            text = f"dropped {line['dropped_s']:.3f} s   ratio {line['ratio']:.2f}"
        lines.append(line)
        print(f"update   {label:5} {len(every):5} rows  {objective:5} {line['zero']:4.0%} zero weights  "
              f"all {line['all_s']:.3f} s   {text}" + peak(policy, line), flush=True)
    return lines


# one step of --scaling, and what is varied around it
POINT = {"k": 8, "prompts": 32, "length": 32, "vocabulary": 2048}
SWEEPS = {"k": (2, 4, 8, 16, 32), "prompts": (8, 16, 32, 64, 128), "length": (8, 16, 32, 64, 128),
          "vocabulary": (512, 2048, 8192, 32768)}


def point(k, prompts, length, vocabulary, seed=0, repeat=3, plain=False):
    """Run in a process of its own: a step (sample k completions of exactly `length` tokens, update with all of them) on
    random weights -> (median seconds, peak memory in GB beyond what building and loading the model took)."""
    with tempfile.TemporaryDirectory() as folder:
        build("micro", folder, seed, vocabulary)
        policy = common.load_policy(folder, 16 if torch.cuda.is_available() else 32, seed=seed, fast=chooser(plain))
    policy.stop = []  # nothing ends before its length
    rng = random.Random(seed)
    xs = [[rng.randrange(vocabulary) for _ in range(16)] for _ in range(prompts)]

    def step():
        drawn = common.sample(policy, xs, k, range(prompts), max_new_tokens=length)
        for p in policy.parameters():
            p.grad = None
        rows = [y for ys in drawn.lists() for y in ys]
        for _, logps, _ in common.score(policy, [x for x in xs for _ in range(k)], rows):
            (logps.sum() / len(rows)).backward()
    before = load.peak_memory(policy.device)
    runs, = alternate(policy, repeat, step)
    return statistics.median(seconds for seconds, _ in runs), load.peak_memory(policy.device) - before


def memory(micro, plain):
    """Run in a process of its own: peak memory in GB of two steps on countdown, ours (micro 0) or TRL's."""
    if micro:
        with contextlib.redirect_stdout(io.StringIO()):
            against_trl(argparse.Namespace(micro=str(micro), repeat=1, model=None, prompts=0, plain=plain),
                        ours={})
        return load.peak_memory(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    step = Stepper("mean", plain=plain)
    step()
    step()
    return load.peak_memory(step.policy.device)


def alone(call, *args, **options):
    """The result of a call in a fresh process: the peak memory of a process never falls."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(call, args, options)


def scaling(args):
    """Table, exponents of a fit of log y = e log x + c over each sweep, and a picture."""
    import importlib.util
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot
    lines, (figure, axes) = [], pyplot.subplots(2, len(SWEEPS), figsize=(3.4 * len(SWEEPS), 5.6), squeeze=False)
    print("a step on random weights (0.2 M parameters without the vocabulary), around "
          + ", ".join(f"{n} {v}" for n, v in POINT.items()))
    for column, (name, values) in enumerate(SWEEPS.items()):
        found = [alone(point, **{**POINT, name: value}, seed=args.seed, plain=args.plain) for value in values]
        for row, (what, unit) in enumerate((("seconds", "s"), ("memory_gb", "GB"))):
            ys = [max(f[row], 1e-6) for f in found]
            x, y = [math.log(v) for v in values], [math.log(v) for v in ys]
            mx, my = statistics.mean(x), statistics.mean(y)
            exponent = sum((a - mx) * (b - my) for a, b in zip(x, y)) / sum((a - mx) ** 2 for a in x)
            lines.append({"what": what, "sweep": name, "values": values, "found": ys, "exponent": exponent})
            print(f"{what:9} against {name:10} exponent {exponent:5.2f}   "
                  + "  ".join(f"{v}: {u:.3g} {unit}" for v, u in zip(values, ys)), flush=True)
            axes[row][column].loglog(values, ys, "o-", ms=4)
            axes[row][column].set(xlabel=name, ylabel=what, title=f"exponent {exponent:.2f}")
            axes[row][column].grid(alpha=0.3)
    save_figure(figure, args.out)
    if importlib.util.find_spec("trl"):
        for micro in (0, *numbers(args.micro or "8,64,128,256,512", int, "--micro")):
            lines.append({"what": "memory", "micro": micro, "memory_gb": alone(memory, micro, args.plain)})
            print(f"peak memory of the process, 128 prompts x 8 of countdown: {lines[-1]['memory_gb']:.2f} GB "
                  + (f"(TRL, micro-batch {micro})" if micro else "(ours)"), flush=True)
    else:
        print("TRL is not installed (pip install trl==1.16.0): its peak memory is left out")
    print(f"written to {args.out}")
    return lines


def real(args, folder):
    """--model: (directory of the model as float32 weights with the adapter merged in, its task), written into folder.
    A copy, so that both sides of a comparison load the very same weights."""
    policy = common.load_policy(args.model, 32, adapter=args.adapter, reference="base")  # only to be saved
    task, rng = None, random.Random(args.seed)
    if not args.data:
        with open(os.path.join(folder, "sums.jsonl"), "w") as file:
            terms = [(a, b, c) for a in range(20, 70) for b in range(2, 20) for c in range(2, 9)]
            for a, b, c in rng.sample(terms, 1000):
                file.write(to_json({"prompt": f"{a} plus {b} minus {c} is", "answer": str(a + b - c)}) + "\n")
    task = tasks.load_task(None, args.data or os.path.join(folder, "sums.jsonl"))
    task.max_new_tokens = args.new_tokens or 24
    load.put_prompts(policy, task, args.chat)
    path = os.path.join(folder, "model")
    policy.model.merge_and_unload().save_pretrained(path)
    policy.tokenizer.save_pretrained(path)
    return path, task


class Stepper:
    """One step of ppo_passk.py at a time, by its own `step`: B prompts x 8 samples, and as its users can ask, no KL
    measured, which TRL does not measure either."""

    def __init__(self, objective, B=128, k=8, model="tiny", task=None, plain=False):
        self.args = ppo_passk.parser().parse_args(["--objective", objective, "--k", str(k), "--samples", str(k),
                                                   "--prompts", str(B), "--lr", "1e-4", "--kl-prompts", "0",
                                                   "--steps", "1000000"])
        self.policy = common.load_policy(model, 32, fast=chooser(plain))
        self.task, self.number = task or tasks.load_task("countdown"), 0
        self.optimizer = torch.optim.AdamW(self.policy.parameters(), lr=self.args.lr, weight_decay=0.0)
        self.zero = []

    def __call__(self):
        self.number += 1
        problems = batch_of(self.task.train, self.args.prompts, self.number, self.args.seed)
        line, _ = ppo_passk.step(self.policy, self.task, self.optimizer, problems, self.number, self.args)
        self.zero.append(line["zero"])


def against_trl(args, ours=None):
    """Lines of samples per second: our step under two objectives and a step of TRL's GRPOTrainer in turns, in one
    process. Same base, LoRA, batch and verifier, temperature 1, no KL; TRL's other settings are its defaults."""
    logging.disable(logging.WARNING)  # TRL's imports and its trainer have much to say
    warnings.simplefilter("ignore")
    try:
        import trl
    except ImportError as error:
        raise UserError("--against trl needs TRL, which this project does not install: pip install trl==1.16.0"
                        ) from error
    import datasets
    import peft
    import transformers
    lines, B = [], args.prompts or (16 if args.model else 128)
    rows, sizes = 8 * B, [(micro, True) for micro in
                          numbers(args.micro or ("8,32,128" if args.model else "8,64,128,256,512"), int, "--micro")]
    for micro, _ in sizes:
        if rows % micro or micro % 8:
            raise UserError(f"--micro {micro}: give multiples of 8 that divide {rows}")
    with tempfile.TemporaryDirectory() as folder:
        path, task = real(args, folder) if args.model else (TINY, tasks.load_task("countdown"))
        own = path if args.model else "tiny"
        if ours is None:
            ours = {objective: Stepper(objective, B, model=own, task=task, plain=args.plain)
                    for objective in ("mean", "passk")}
        tokenizer = transformers.AutoTokenizer.from_pretrained(path)
        # the text of what the policy reads, chat template and all, reads the same to TRL
        used = task.chat and tokenizer.chat_template
        text = {p.id: put(tokenizer, p.prompt) if used else p.prompt for p in task.train}
        problem = {text[p.id]: p for p in task.train}

        def reward(prompts, completions, **_):
            return task.rewards([problem[x] for x in prompts], completions)
        for micro, checkpointing in sizes:
            times = {"trl": [], **{objective: [] for objective in ours}}

            class Turns(transformers.TrainerCallback):
                """After every step of TRL, one of ours for each objective."""
                def on_step_end(self, *_, **__):
                    times["trl"].append(time.perf_counter() - self.mark)
                    for objective, step in ours.items():
                        started = time.perf_counter()
                        step()
                        times[objective].append(time.perf_counter() - started)
                    self.mark = time.perf_counter()
            turns = Turns()
            trainer = trl.GRPOTrainer(
                model=transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32),
                processing_class=tokenizer, reward_funcs=reward, callbacks=[turns],
                train_dataset=datasets.Dataset.from_list([{"prompt": x} for x in problem]),
                peft_config=peft.LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
                args=trl.GRPOConfig(
                    output_dir=os.path.join(folder, "trl"), per_device_train_batch_size=micro,
                    gradient_accumulation_steps=rows // micro, num_generations=8, max_steps=args.repeat + 1,
                    gradient_checkpointing=checkpointing, max_completion_length=task.max_new_tokens, temperature=1.0,
                    beta=0.0, learning_rate=1e-4, use_cpu=not torch.cuda.is_available(), bf16=False, report_to=[],
                    save_strategy="no", logging_strategy="no", disable_tqdm=True))
            trainer.remove_callback(transformers.PrinterCallback)
            load.set_threads(trainer.model.num_parameters())
            turns.mark = time.perf_counter()
            trainer.train()
            for objective in ours:
                a, b, zero = times[objective][1:], times["trl"][1:], ours[objective].zero[-args.repeat:]
                lines.append({"what": "step", "objective": objective, "micro": micro, "checkpointing": checkpointing,
                              "samples_per_s": rows / statistics.median(a), "zero": statistics.mean(zero),
                              "trl_samples_per_s": rows / statistics.median(b),
                              "ratio": statistics.median(y / x for x, y in zip(a, b))})
                print("step  {objective:5}  {samples_per_s:7,.4g} samples/s, {zero:3.0%} zero weights   TRL, "
                      "micro-batch {micro:4} {trl_samples_per_s:7,.4g}   ratio {ratio:.2f}".format(**lines[-1])
                      + ("" if checkpointing else "   (without gradient checkpointing)"), flush=True)
            # once more at its best, without a default that costs it time
            if ours and (micro, checkpointing) == sizes[-1] and checkpointing:
                sizes.append((max(lines, key=lambda line: line["trl_samples_per_s"])["micro"], False))
    return lines


def bench_sandbox(count):
    """One line per kind of program: verdicts per second with all workers, the seconds of CPU that one verdict takes."""
    import resource
    lines, spent = [], lambda: sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])
    spec = {"tests": "assert f(2) == 4 and f(3) == 9", "names": {"f": "f"}, "prefix": "", "limit": 3.0}
    stdio = {"inputs": ["2\n"], "outputs": ["4\n"], "limit": 3.0}
    for kind, spec, program in (("function", spec, "def f(x): return x * x  # {}"),
                                ("program", stdio, "print(int(input()) ** 2)  # {}")):
        problem, before = tasks.data.code_problem("bench", "square", None, spec), spent()
        task = tasks.Code("bench", [], [], [problem])
        task.open()
        workers = task.pool.size
        warm = 2 * workers  # until every worker and its judge have started
        task.rewards([problem] * warm, [program.format(-i) for i in range(1, warm + 1)])
        started = time.perf_counter()
        rewards = task.rewards([problem] * count, [program.format(i) for i in range(count)])
        seconds = time.perf_counter() - started
        del task  # its workers end, and their time and that of all sandboxes counts as this process's children's
        line = {"what": "sandbox", "kind": kind, "workers": workers, "verdicts": count,
                "verdicts_per_s": count / seconds, "cpu_ms": 1000 * (spent() - before) / (count + warm),
                "right": sum(rewards)}
        lines.append(line)
        print(f"sandbox  {kind:8} {workers} workers  {line['verdicts_per_s']:7.1f} verdicts/s   "
              f"{line['cpu_ms']:.1f} ms of CPU each   {line['right']:.0f} of {count} right", flush=True)
    return lines


@cli
def main(argv=None):
    args = parse_args(argv)
    if args.gpu_report:
        from support import gpu_report
        gpu_report.prepare(args)
        (gpu_report.one_part if args.part else gpu_report.report)(args)
        return
    if args.against:
        lines = against_trl(args)
        print(to_json({"against": args.against, "lines": lines, **versions()}))
        return
    if args.scaling:
        print(to_json({"scaling": POINT, "lines": scaling(args), **versions()}))
        return
    if args.sandbox < 0:
        raise UserError(f"--sandbox must not be negative, it is {args.sandbox}")
    if args.sandbox:
        print(to_json({"lines": bench_sandbox(args.sandbox), **versions()}))
        return
    tiny = args.shape == "tiny" and not args.model
    sizes = numbers(args.rows or ("16,64,256,512" if tiny else "128" if args.model else "64"), int, "--rows")
    if args.repeat < 1 or args.k < 1 or any(rows % args.k for rows in sizes):
        raise UserError(f"--rows must be multiples of --k {args.k}, and --repeat at least 1")
    precisions = (args.precision or ("base,lora,4bit" if tiny else "lora" if args.model else "lora,4bit")).split(",")
    if set(precisions) - {"base", "lora", "4bit"}:
        raise UserError(f"--precision {args.precision}: choose from base, lora, 4bit")
    gpu, rng, lines = torch.cuda.is_available(), random.Random(args.seed), []
    task = tasks.load_task("countdown")
    with tempfile.TemporaryDirectory() as folder:
        path = "tiny" if tiny else folder
        if args.model:
            path, task = real(args, folder)
        elif not tiny:
            build(args.shape, folder, args.seed, args.vocabulary)
        for precision in precisions:
            bits = 4 if precision == "4bit" else 16 if gpu else 32
            policy = common.load_policy(path, bits, seed=args.seed, fast=chooser(args.plain))
            if precision == precisions[0]:
                print(f"{args.model or args.shape}, {policy.note}; medians of {args.repeat}", flush=True)
            if precision == "base":
                policy.model.base_model.disable_adapter_layers()
            new_tokens = args.new_tokens or (task.max_new_tokens if tiny or args.model else 256)

            def prompts_for(rows):
                if tiny or args.model:
                    return policy.encode([p.prompt for p in task.train[:rows // args.k]], task.chat)
                return [[rng.randrange(1, 30000) for _ in range(args.prompt_tokens)] for _ in range(rows // args.k)]

            def rewards_of(drawn):
                if tiny or args.model:
                    prompts = prompts_for(args.k * len(drawn.tokens))
                    texts = policy.texts([row for rows in drawn.lists() for row in rows], prompts)
                    problems = [p for p in task.train[:len(drawn.tokens)] for _ in range(args.k)]
                    return torch.tensor(task.rewards(problems, texts)).view(-1, args.k)
                generator = torch.Generator().manual_seed(common.torch_seed(args.seed))
                # random weights solve nothing: rewards at p = 0.2
                return (torch.rand(drawn.lengths.shape, generator=generator) < 0.2).float()
            lines += [bench_sampler(policy, prompts_for(rows), args, new_tokens, precision) for rows in sizes]
            if precision != "base":
                lines += bench_update(policy, prompts_for(sizes[-1]), rewards_of, args, new_tokens, precision)
            del policy
            if gpu:
                torch.cuda.empty_cache()
    print(to_json({"shape": args.model or args.shape, "device": "cuda" if gpu else "cpu", "lines": lines,
                      **versions()}))


if __name__ == "__main__":
    main()
