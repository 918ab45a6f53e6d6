"""The runs behind results/claims.py: their definitions, how a run is made, and the format of results/records/.

ROWS maps a row name to a command line without seed and output folder. {name} stands for the folder of another row's run
with the same seed (a warm-up, a verifier), which is made first. A trailing "@ name" is the verifier that best-of-k is
selected by in the evaluation. All relevant flags are spelled out, so a row keeps its meaning when a default changes.
The recipes had been chosen on validation problems before; nothing is tuned here.

A run is trained by main() of its script in runs/claims/ROW-SEED, so it can be resumed. It is then evaluated on the 400
test problems with 64 samples each; a base is evaluated once per task and seed. The evaluation draws the same samples as
the script itself would. Runs with the same seed use the same uniform random numbers, so their differences are paired.
The record is then appended to results/records/SCRIPT.jsonl as one line:

    row, script, flags (of the command line, plus the seed), commit (of the code), versions
    formula               name in FORMULAS, if a formula replaced the coefficients of the script
    seconds, cpu_seconds  training time: wall clock (on a shared machine), CPU of this process (None if resumed)
    samples_per_s, zero   in training: median over steps; share of samples with zero weight, mean over steps
    after                 {metric: {"mean", "se"}} over problems; KL is to the base, even after a warm-up
    problems              one integer per test problem: {"right": correct samples of 64; other metrics times 1000}
                          (gold: only problems with a solution)
    valid                 which-*, seed 0: means on the 400 validation problems, which choose the learning rate
    curve                 which-countdown6-*: {metric: its value on the samples of each training step}
    auc                   of the verifier on these samples
    co_scaling            {"a", "b", "rmse"} of the fit pass@N = exp(a N^b)

Rows old-* and real-* exist only in records/older.jsonl. They are runs by earlier versions of the code, with one or
three seeds and without `problems`, kept because no later run has their settings. This file cannot make the runs of the
real model.
"""
import contextlib
import fcntl
import functools
import json
import math
import multiprocessing
import os
import re
import shlex
import signal
import statistics
import subprocess
import sys
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
RECORDS, RUNS = os.path.join(ROOT, "results", "records"), os.path.join(ROOT, "runs", "claims")
KS = (1, 2, 4, 8, 16, 32, 64)
VALID = ("pass@1", "pass@8", "pass@32", "maj@8", "bon@8")

TINY_FLAGS = "--model tiny --lr 0.002 --temperature 1 "
RL = TINY_FLAGS + "--kl-prompts 0 "  # measuring the KL costs 5 % of a run and does not affect it
PPO = "ppo_passk " + RL + "--k 8 --samples 16 --prompts 64 "
SFT = "bon_sft " + TINY_FLAGS + "--task countdown --train-problems 200 --prompts 64 --steps 125 "
BON = "bon_rl " + RL + "--task countdown --samples 16 --prompts 32 --steps 100 "
CAT = "cat_passk " + RL + "--task countdown --prompts 64 --steps 100 "
GOLD = CAT + "--mode sft --target answer "
CATRL = CAT + "--mode rl --samples 16 --normalise "
SUCCESS = "--rewards standardised --probability success "
SEQUENCE = "--rewards standardised --probability sequence --form log "
MAJ = "cat_majority " + RL + "--task routes --prompts 64 --steps 100 "
GOLDMAJ = MAJ + "--mode sft --target answer --train-problems 50 "
MAJRL = MAJ + "--mode rl --samples 8 --rewards standardised --normalise "
PEP = "cat_bon " + RL.replace("tiny", "tiny_peptide") + "--task peptide --samples 16 --prompts 64 --steps 100 "
TEMPERATURES = ("0.1", "0.5", "1", "1.5", "2")

ROWS = {
    "verifier": "fit_verifier --model tiny --task countdown --train-problems 4000 --samples 8 --epochs 2 --lr 0.005",
    "countdown-base": "evaluate tiny --task countdown @ verifier",
    "routes-base": "evaluate tiny --task routes",
    "peptide-base": "evaluate tiny_peptide --task peptide",
    # k-sample objectives, arXiv 2503.19595
    **{f"{task}-{objective}": PPO + f"--task {task} --objective {objective} --steps 250"
       for task in ("countdown", "routes") for objective in ("mean", "passk", "majority")},
    **{f"kl-{objective}-{beta}": PPO + f"--task countdown --objective {objective} --kl-coef {beta} --steps 100"
       for beta in ("0.03", "0.01", "0.1") for objective in ("mean", "passk")},
    # best-of-N, arXiv 2412.15287
    "bon-sft-1": SFT + "--n 1 @ verifier",
    "bon-sft-16": SFT + "--n 16 --samples 8 --scores reward @ verifier",
    "rl": BON + "--variant rl --n 8 @ verifier",
    "rl-entropy": BON + "--variant rl --n 8 --entropy-coef 0.03 @ verifier",
    **{f"bp-{n}": BON + f"--variant bp --n {n} --estimate plugin @ verifier" for n in (8, 16)},
    **{f"b-{n}": BON + f"--variant b --n {n} --negatives minus @ verifier" for n in (8, 16)},
    "s": BON + "--variant s --n 8 @ verifier",
    "v": BON + "--variant v --n 8 --verifier {verifier} @ verifier",
    "bp-8-cold": BON.replace("--temperature 1 ", "--temperature 0.5 ") + "--variant bp --n 8 --estimate plugin",
    **{f"{model}-T{t}": f"evaluate {folder} --task countdown --problems 200 --temperature {t}" for t in TEMPERATURES
       for model, folder in (("base", "tiny"), ("rl", "{rl}"), ("bp-8", "{bp-8}"), ("bp-8-cold", "{bp-8-cold}"))},
    # compute aligned training, arXiv 2604.24957
    **{f"gold50-{n}": GOLD + f"--train-problems 50 --n {n}" for n in (1, 16, 64)},
    **{f"gold4000-{n}": GOLD + f"--train-problems 0 --n {n}" for n in (1, 16)},
    "cat-1": CATRL + SEQUENCE + "--n 1",
    "cat-sequence-16": CATRL + SEQUENCE + "--n 16",
    "cat-log-16": CATRL + SUCCESS + "--form log --n 16",
    "cat-raw-16": CATRL + SUCCESS + "--form raw --n 16",
    **{f"gold50-{n}-then-1": CATRL + SEQUENCE + f"--n 1 --adapter {{gold50-{n}}}" for n in (1, 16)},
    **{f"gold50-{n}-then-raw-16": CATRL + SUCCESS + f"--form raw --n 16 --adapter {{gold50-{n}}}" for n in (1, 16)},
    **{f"majority-gold-{n}": GOLDMAJ + f"--threshold auto --n {n}" for n in (1, 16)},
    "majority-contrastive": GOLDMAJ + "--contrastive",
    "majority-1": MAJRL + "--n 1 --form raw --threshold auto --all-wrong 0",
    "majority-raw-16": MAJRL + "--n 16 --form raw --threshold auto --all-wrong -0.5",
    **{f"peptide-{n}": PEP + f"--mode rl --form rank --ranks prompt --rewards standardised --n {n}" for n in (1, 8)},
    **{f"peptide-{n}-slow": PEP.replace("--lr 0.002", "--lr 0.001") + "--mode rl --form rank --ranks prompt "
       f"--rewards standardised --n {n}" for n in (1, 8)},
    **{f"peptide-target-{n}": PEP + f"--mode sft --train-problems 256 --n {n}" for n in (1, 8)},
}

# Which one should I use? (which.py): all objectives from the same base per task, with equal samples and steps. Each has
# three learning rates, chosen from on validation problems.
OBJECTIVES = {
    "mean": "ppo_passk --objective mean --k 8",
    "passk": "ppo_passk --objective passk --k 8",
    "majority": "ppo_passk --objective majority --k 8",
    "bon-sft": "bon_sft --scores reward --train-problems 0 --n 8",
    "bon-rlbp": "bon_rl --variant bp --estimate plugin --n 8",
    "bon-s": "bon_rl --variant s --n 8",
    "bon-v": "bon_rl --variant v --n 8 --verifier {verifier}",
    "cat-passk": "cat_passk --mode rl --normalise " + SUCCESS + "--form raw --n 8",
    "cat-pool": "cat_passk --mode rl --no-normalise --rewards raw --probability success --form pool --n 8",
    "cat-majority": "cat_majority --mode rl --normalise --rewards standardised --form raw --threshold auto "
                    "--all-wrong -0.5 --n 8",
}
# Objectives of other projects. If no script has one, a formula of elsewhere.py replaces the coefficients of
# ppo_passk.py.
OTHERS = {
    "maxrl-16": "ppo_passk --objective maxrl --k 16 --estimator solved",
    "maxrl-8": "ppo_passk --objective maxrl --k 8",
    "passk-8-1": "ppo_passk --objective passk --k 8:1",
    **dict.fromkeys(("rucaibox", "verl", "rs-grpo", "grpo"), "ppo_passk --objective passk --k 8"),
}
FORMULAS = {
    "rucaibox": "RUCAIBox Pass@k Training", "verl": "verl grpo_passk", "rs-grpo": "RS-GRPO", "grpo": "GRPO"}
VERIFIERS = {"countdown": "verifier", "routes": "verifier-routes", "program": "verifier-program",
             "countdown6": "verifier-countdown6"}
MODELS = {"countdown": "tiny", "routes": "tiny", "program": "tiny_program", "countdown6": "tiny_countdown6"}


def judge(task, objective):
    """The " @ verifier" part of a row, or "". Evaluating with a verifier costs as much as training, so objectives of
    other projects go without, and on countdown6 only bon-v, which trains with it, gets one."""
    needed = objective == "bon-v" or task != "countdown6" and objective not in OTHERS
    return f" @ {VERIFIERS[task]}" * needed


LRS = ("0.002", "0.004", "0.008")

ROWS |= {
    **{verifier: ROWS["verifier"].replace("tiny --task countdown", f"{MODELS[task]} --task {task}")
       for task, verifier in VERIFIERS.items()},
    **{f"which-{task}-base": f"evaluate {MODELS[task]} --task {task}{judge(task, 'base')}" for task in VERIFIERS},
    **{f"which-{task}-{objective}-{lr}":
       f"{line.format(verifier='{' + verifier + '}')} --model {MODELS[task]} --task {task} --temperature 1 "
       f"--samples 16 --prompts 64 --steps 50 --lr {lr}{' --kl-prompts 0' * (objective != 'bon-sft')}"
       f"{judge(task, objective)}"
       for task, verifier in VERIFIERS.items() for objective, line in (OBJECTIVES | OTHERS).items() for lr in LRS},
}

# How robust is it? (which.py): pass@k against the mean for several bases, k, samples per prompt and learning rates,
# with 1,024 samples per step. The two bases that are not in models/ are pretrained once, for all seeds.
BASES = {"tiny": "tiny", "short": "{base-short}", "wide": "{base-wide}"}
BUDGETS = ((2, 2), (2, 8), (8, 8), (8, 32), (32, 32), (32, 128))  # k, n samples per prompt


def robust(base, objective, n, lr):
    return (f"ppo_passk --model {BASES[base]} --task countdown --objective {objective} --samples {n} --prompts "
            f"{1024 // n} --steps 50 --lr {lr} --temperature 1 --kl-prompts 0 --eval-problems 200 --k ")


ROWS |= {
    "base-short": "make_tiny --tasks countdown,routes --width 64 --layers 4 --steps 1300 --lr 0.005",
    "base-wide": "make_tiny --tasks countdown,routes --width 128 --layers 4 --steps 4000 --lr 0.003",
    **{f"robust-{base}-base": f"evaluate {model} --task countdown --problems 200" for base, model in BASES.items()},
    **{f"robust-{base}-mean-{n}-{lr}": robust(base, "mean", n, lr) + str(n)
       for base in BASES for n in sorted({n for _, n in BUDGETS}) for lr in LRS},
    **{f"robust-{base}-passk-{k}-{n}-{lr}": robust(base, "passk", n, lr) + str(k)
       for base in BASES for k, n in BUDGETS for lr in LRS},
}


def command_of(row):
    """(script, its arguments with {name} in place of folders, verifier or None) of a row."""
    line, _, verifier = ROWS[row].partition("@")
    script, *rest = shlex.split(line)
    return script, rest, verifier.strip() or None


def needs(row):
    """The rows whose run folders a row depends on."""
    _, rest, verifier = command_of(row)
    return [*re.findall(r"{([^}]+)}", " ".join(rest)), *([verifier] if verifier else [])]


def formula_of(row):
    """The name in elsewhere.py of the formula that replaces the coefficients in a row, or None."""
    objective = row.removeprefix("which-").partition("-")[2].rpartition("-")[0]
    return FORMULAS.get(objective) if row.startswith("which-") else None


@contextlib.contextmanager
def handed(formula):
    """Context in which ppo_passk.py takes its coefficients from a formula of elsewhere.py, in float64 (None: its own).
    Coefficients that are zero up to rounding are set to 0, so their samples are skipped in the update."""
    import elsewhere

    import ppo_passk
    own = ppo_passk.advantages

    def advantages(rewards, k, objective, answers=None, estimator="loo"):
        distinct, place = rewards.double().unique(dim=0, return_inverse=True)  # most prompts share a few patterns
        c = elsewhere.FORMULAS[formula].function(distinct, k)
        return c.where(c.abs() > 1e-8, 0.0)[place].to(rewards)
    if formula:
        ppo_passk.advantages = advantages
    try:
        yield
    finally:
        ppo_passk.advantages = own


def is_verifier(row):
    return command_of(row)[0] == "fit_verifier"


def is_base(row):
    return ROWS[row].startswith("make_tiny ")


def folder(row, seed):
    """The folder of a run; all seeds share a base."""
    return os.path.join(RUNS, f"{row}-{0 if is_base(row) else seed}")


def is_done(row, seed):
    """Whether a run has finished. make_tiny.py writes an empty result when it starts."""
    path = os.path.join(folder(row, seed), "verifier.json" if is_verifier(row) else "result.json")
    return os.path.exists(path) and os.path.getsize(path) > 2


def arguments(row, seed):
    """The arguments of a run's script, without --out."""
    rest = command_of(row)[1]
    return [re.sub(r"{([^}]+)}", lambda match: folder(match[1], seed), word) for word in rest] + ["--seed", str(seed)]


def records():
    """{(row, seed): record} of everything in results/records/. A line cut short by a kill is ignored; of two lines for
    the same run the first counts."""
    recorded = {}
    for name in sorted(os.listdir(RECORDS)) if os.path.isdir(RECORDS) else ():
        with open(os.path.join(RECORDS, name), encoding="utf-8") as file:
            for line in file:
                with contextlib.suppress(ValueError):
                    run = json.loads(line)
                    recorded.setdefault((run["row"], run["flags"]["seed"]), run)
    return recorded


@contextlib.contextmanager
def locked(path, wait=True):
    """Hold an exclusive file lock. Yields False at once if another process has it and `wait` is not set. A killed
    process loses its lock."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True


def append(run):
    """Append a record to the file of its script. If a killed writer left half a line, that line is ended first."""
    sys.path[:0] = [ROOT] * (ROOT not in sys.path)
    from support.output import to_json
    path = os.path.join(RECORDS, run["script"] + ".jsonl")
    os.makedirs(RECORDS, exist_ok=True)
    with locked(os.path.join(RUNS, "records.lock")), open(path, "ab+") as file:
        end = b""
        if file.tell():
            file.seek(-1, os.SEEK_END)
            end = b"" if file.read() == b"\n" else b"\n"
        file.write(end + (to_json(run, separators=(",", ":")) + "\n").encode())
        file.flush()
        os.fsync(file.fileno())


def ensure(row, seed, wait=True, adapter=False):
    """Make the run of a row and seed, and the runs it needs, unless it is recorded (`adapter`: and its folder exists).
    Returns False only if another process is making it and `wait` is not set, else True. Raises SystemExit as scripts
    do: 130 after Ctrl-C or SIGTERM, with the state saved, so that the same call continues."""
    def finished():
        return (row, seed) in records() and (is_done(row, seed) or not adapter)
    if finished():
        return True
    for other in needs(row):
        if not ensure(other, 0 if is_base(other) else seed, wait, adapter=True):
            return False
    with locked(folder(row, seed) + ".lock", wait) as mine:
        if not mine or finished():
            return mine
        started = time.time()
        cpu = time.process_time()
        cpu_seconds = None  # stays None for a resumed run, of which only the last part is timed
        resumed = os.path.exists(os.path.join(folder(row, seed), "args.json")) and not is_done(row, seed)
        script = command_of(row)[0]
        if script != "evaluate" and not is_done(row, seed):
            print(f"{row}, seed {seed}: {'going on' if resumed else 'training'}", flush=True)
            train(row, seed, resumed)
            if not resumed:
                cpu_seconds = time.process_time() - cpu
        if (row, seed) not in records():
            with open(folder(row, seed) + ".log", "a") as file, contextlib.redirect_stdout(file):
                run = evaluated(row, seed, cpu_seconds)
            append(run)
            print(f"{row}, seed {seed}: recorded after {time.time() - started:.0f} s", flush=True)
    return True


def train(row, seed, resumed):
    """Run a row's script in this process, with its output in ROW-SEED.log."""
    script, out = command_of(row)[0], folder(row, seed)
    sys.path[:0] = [path for path in (ROOT, os.path.join(ROOT, "models")) if path not in sys.path]
    module = __import__(script)
    extra = [] if is_verifier(row) or is_base(row) else ["--eval-samples", "0"]
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    with open(out + ".log", "a") as file, contextlib.redirect_stdout(file), handed(formula_of(row)):
        try:
            module.main([*arguments(row, seed), *extra, "--out", out, *(["--resume"] if resumed else [])])
        finally:  # the script has installed its own, which save and stop
            for number, handler in handlers.items():
                signal.signal(number, handler)


def read_json(row, seed, name):
    with open(os.path.join(folder(row, seed), name)) as file:
        return json.load(file)


def evaluated(row, seed, cpu_seconds):
    """The record of a run whose training is finished."""
    sys.path[:0] = [ROOT] * (ROOT not in sys.path)
    from support.folder import versions
    script, rest, verifier = command_of(row)
    run = {"row": row, "script": script, "flags": flags_of(rest, seed), **versions(), "commit": commit()}
    if formula_of(row):
        run["formula"] = formula_of(row)
    if is_verifier(row):
        fit = read_json(row, seed, "verifier.json")
        return {**run, "seconds": fit["seconds"], "cpu_seconds": cpu_seconds, "auc": fit["auc"],
                "auc_interval": [fit["low"], fit["high"]], "after": {}, "problems": {}}
    if is_base(row):
        made = read_json(row, seed, "result.json")
        return {**run, "seconds": made["seconds"], "cpu_seconds": cpu_seconds, "parameters": made["parameters"],
                "after": {}, "problems": {}}
    if script != "evaluate":
        run |= training_of(row, seed, cpu_seconds)
    return run | measured(row, seed)


def training_of(row, seed, cpu_seconds):
    """The part of a record about training."""
    with open(os.path.join(folder(row, seed), "metrics.jsonl")) as file:
        steps = [json.loads(text) for text in file]
    curve = {}
    if row.startswith("which-countdown6-"):
        curve["curve"] = {metric: [round(step[metric], 5) for step in steps] for metric in ("pass@1", "pass@8")
                          if metric in steps[0]}
    return {**curve, "seconds": read_json(row, seed, "result.json")["seconds"],
            "cpu_seconds": cpu_seconds and round(cpu_seconds, 1),
            "samples_per_s": round(statistics.median(s["samples_per_s"] for s in steps), 1),
            "zero": round(statistics.mean(s["zero"] for s in steps), 4)}


def what_to_measure(row, seed):
    """(flags, model, adapter, number of problems or None for all, temperature) of a row's evaluation."""
    import evaluate
    script, rest, _ = command_of(row)
    line = arguments(row, seed)
    if script != "evaluate":
        flags = __import__(script).parser().parse_args(line)
        # Tested at temperature 1 whatever it was trained at; tests at other temperatures are rows of their own.
        return flags, flags.model, folder(row, seed), flags.eval_problems or None, 1.0
    flags = evaluate.parse_args(line)
    model = flags.models[0]
    adapter = None
    if rest[0].startswith("{") and not is_base(rest[0][1:-1]):
        adapter = model
        model = "tiny"
    return flags, model, adapter, flags.problems or None, float(flags.temperature)


def kept_of(row, task):
    """The metrics to record per problem. None for the large comparisons, whose intervals are over seeds only."""
    if row.startswith(("which-", "robust-")):
        return set()
    kept = {"gold", "kl", "bon@8", "bon@32", "maj@8"}
    if task.graded:
        kept |= {"max@1", "max@8", "max@64"}
    if task.name == "routes":
        kept |= {"maj@16", "maj@32", "maj@64"}
    return kept


def measured(row, seed):
    """The part of a record about the evaluation."""
    import common
    import evaluate
    import tasks
    from fast.choose import choose_fast
    from support.verifier import load_verifier
    script, _, verifier = command_of(row)
    flags, model, adapter, size, temperature = what_to_measure(row, seed)
    task = tasks.load_task(flags.task)
    policy = common.load_policy(model, 32, adapter=adapter, reference="base", fast=choose_fast)

    def draw(problems, kl):
        pool = evaluate.draw_pool(policy, task, problems, 64, temperature, seed, kl=kl)  # as evaluate.evaluate does
        if verifier:
            evaluate.add_scores(pool, load_verifier(folder(verifier, seed)))
        return pool, evaluate.metrics(pool, KS, task.graded, "verifier" if verifier else "logp")

    pool, values = draw(task.test[:size], True)
    if not verifier:  # best of k by log-probability is of no interest
        values = {name: v for name, v in values.items() if not name.startswith("bon@")}
    after = evaluate.means(values)
    run = {"after": {name: {part: round(number, 5) for part, number in cell.items()} for name, cell in after.items()}}
    run["problems"] = {} if task.graded else {"right": [sum(r == 1 for r in e["rewards"]) for e in pool]}
    for name in sorted(kept_of(row, task) & values.keys()):
        run["problems"][name] = [round(1000 * v) for v in values[name]]
    if verifier:
        scores = [s for e in pool for s in e["scores"]]
        run["auc"] = round(evaluate.auc(scores, [r for e in pool for r in e["rewards"]]), 5)
    if row.startswith("which-") and script != "evaluate" and seed == 0:  # this chooses the learning rate
        means = evaluate.means(draw(task.valid, False)[1])
        names = VALID if verifier else [name for name in VALID if not name.startswith("bon@")]
        run["valid"] = {name: round(means[name]["mean"], 5) for name in names}
    if "-T" in row:
        fit = evaluate.co_scaling({1: {f"pass@{k}": after[f"pass@{k}"] for k in KS[:-1]}})[1]
        run["co_scaling"] = {name: round(value, 5) for name, value in fit.items()}
    return run


def commit():
    """The last commit of the code, "-dirty" if it has changed since. results/ and tests/ are not counted as code."""
    code = ["--", "*.py", ":!results", ":!tests"]
    try:
        last, changed = (subprocess.run(["git", "-C", ROOT, *ask, *code], capture_output=True,
                                        text=True).stdout.strip()
                         for ask in (["log", "-1", "--format=%h"], ["status", "--porcelain"]))
    except OSError:  # no git here
        return None
    return last + "-dirty" * bool(changed) or None


def flags_of(rest, seed):
    """A command line as {flag: value}, with numbers parsed. The model of evaluate.py becomes "models"."""
    flags = {}
    name = "models"
    for word in rest:
        if word.startswith("--"):
            name = word[2:].removeprefix("no-").replace("-", "_")
            flags[name] = not word.startswith("--no-")
        else:
            try:
                flags[name] = json.loads(word)
            except ValueError:
                flags[name] = word
    return {**flags, "seed": seed}


def use(place):
    """Keep the runs and records of this process in another folder."""
    global RECORDS, RUNS
    RECORDS, RUNS = (os.path.join(os.path.abspath(place), name) for name in ("records", "claims"))


def remember_problems():
    """Cache the generated problems of a task in this process: generating them takes up to half of a short run."""
    from tasks.embedded import Embedded
    made, problems = {}, Embedded.problems
    if hasattr(problems, "__wrapped__"):  # already cached
        return

    @functools.wraps(problems)
    def problems_once(task, split, size, seed=0):
        key = type(task), split, size, seed
        if key not in made:
            made[key] = problems(task, split, size, seed)
        return list(made[key])
    Embedded.problems = problems_once


def work(wanted, place=None):
    """Make the missing ones of the runs [(row, seed)], in this order. Several processes can share a list: each takes
    runs that no other is making, and finally waits for the others. A process whose parent was killed stops.
    place: as in `use`, for a spawned process."""
    if place:
        use(place)
    sys.path[:0] = [ROOT] * (ROOT not in sys.path)
    remember_problems()
    parent = multiprocessing.parent_process()
    for wait in (False, True):
        for row, seed in wanted:
            if parent is None or parent.is_alive():
                ensure(row, seed, wait)


# ----------------------------------------------------------------------------------------------- reading the records

# Student's t, 97.5 % quantile for 1 to 20 degrees of freedom; beyond that the last, which is slightly conservative
T975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120,
        2.110, 2.101, 2.093, 2.086)


def interval(values):
    """(mean, low, high): 95 % t interval of values, one per seed. low and high are None for a single value, all three
    without values."""
    if len(values) < 2:
        return (*values, None, None) if values else (None, None, None)
    mean = statistics.mean(values)
    half = T975[min(len(values) - 1, len(T975)) - 1] * statistics.stdev(values) / math.sqrt(len(values))
    return mean, mean - half, mean + half


def value(run, metric):
    """A metric of a record. "x - y" is a difference of two, "auc" its verifier's, "rmse" that of its co-scaling fit."""
    if " - " in metric:
        x, y = metric.split(" - ")
        return value(run, x) - value(run, y)
    if metric in ("auc", "cpu_seconds", "seconds", "zero", "samples_per_s"):
        return run[metric]
    return run["co_scaling"]["rmse"] if metric == "rmse" else run["after"][metric]["mean"]


def runs_of(recorded, row):
    """{seed: record} of a row."""
    return {seed: run for (other, seed), run in recorded.items() if other == row}


def by_seed(recorded, row, metric):
    """{seed: metric} of the runs of a row that have the metric."""
    values = {}
    for seed, run in sorted(runs_of(recorded, row).items()):
        with contextlib.suppress(KeyError):
            values[seed] = value(run, metric)
    return {seed: number for seed, number in values.items() if number is not None}


def known(recorded, row, metric):
    """Values of a metric of a row, ordered by seed; seeds without it are left out."""
    return list(by_seed(recorded, row, metric).values())


def differences(recorded, row, minus, metric):
    """A row's metric minus that of the row `minus` (None: nothing) at the same seed: a list ordered by seed, of the
    seeds that both rows have."""
    if minus is None:
        return known(recorded, row, metric)
    values = by_seed(recorded, row, metric)
    others = by_seed(recorded, minus, metric)
    return [values[seed] - others[seed] for seed in values if seed in others]


def per_problem(run, metric):
    """A record's metric per problem, None if it was not recorded."""
    if " - " in metric:
        x, y = (per_problem(run, name) for name in metric.split(" - "))
        return x and y and [u - v for u, v in zip(x, y)]
    if metric.startswith("pass@") and "right" in run["problems"]:
        k = int(metric[5:])
        return [1 - math.comb(64 - c, k) / math.comb(64, k) for c in run["problems"]["right"]]
    kept = run["problems"].get(metric)
    return kept and [v / 1000 for v in kept]
