"""What every script does around its step: set up a run, draw batches, log and save steps, evaluate before and after.

These functions take a `Run`, which a script's main() fills. The training loop, and everything specific to the paper,
are in the script.
"""
import functools
import random
import time
from collections import namedtuple
from dataclasses import dataclass

import torch

import common
import evaluate
import tasks
from fast.choose import chooser
from support import check, contents, load, rollouts
from support.errors import UserError
from support.folder import Folder
from support.notes import Notes
from support.plots import plot_run, shown_once
from support.track import Tracker

# Names and units of all logged keys; docs/logged.md explains them, with good values and warning signs. METRICS has all
# keys of a line of metrics.jsonl and of a row of result.json (`before`, `after`, and `valid` in metrics.jsonl). <k> is
# a budget, <split> is train, valid or test. A script logs the keys that apply to it: no `reward` without samples.
METRICS = {
    "step": "steps", "loss": "nats", "reward": "reward", "pass@<k>": "share", "max@<k>": "reward", "maj@<k>": "share",
    "bon@<k>": "reward", "alike": "share", "cut": "share", "zero": "share", "kl": "nats", "gold": "nats",
    "grad_norm": "norm", "length": "tokens", "entropy": "nats per token", "diversity": "object",
    "distinct": "number", "answers": "number", "distinct-2": "share", "similarity": "share", "threshold": "votes",
    "score_wrong": "logit", "bon_gap": "reward", "w_mean": "weight", "w_min": "weight", "w_median": "weight",
    "w_max": "weight", "w_even": "share", "w_small": "share", "c_mean": "coefficient", "c_min": "coefficient",
    "c_median": "coefficient", "c_max": "coefficient", "c_even": "share", "c_small": "share",
    "engine_gap": "nats per token", "engine_gap_max": "nats", "engine_cut": "share",
    "tokens_per_s": "tokens per s", "samples_per_s": "completions per s", "memory_gb": "GB", "seconds": "s",
    "valid": "row", "verifier_timeouts": "number", "verifier_errors": "number", "program_timeouts": "number",
    "unsupported": "number", "<split>_without_answer": "number"}
RESULT = {"before": "row", "after": "row", "seconds": "s", "verifier before": "object", "verifier after": "object"}
VERIFIER = {  # `verifier before` and `verifier after`
    "auc": "share", "low": "share", "high": "share", "calibration": "list", "calibration_error": "share",
    "score_right": "logit", "score_wrong": "logit"}
CHECKS = {"step": "steps", "longest": "tokens", "largest": "nats", "mean": "nats"}  # a line of checks.jsonl


Problems = namedtuple("Problems", "train valid test")  # lists; valid and test are empty without evaluation


@dataclass
class Run:
    """The objects of a run, filled by a script's main(), and when the functions below last printed and plotted."""
    folder: Folder
    task: tasks.Task
    policy: common.Policy
    optimizer: torch.optim.Optimizer
    problems: Problems
    budget: int  # the k or N trained for
    verifier: object = None  # learned verifier that best-of-k is evaluated with
    target: str = "solution"  # kind of gold completion whose log pi is evaluated
    step_began: float = 0.0  # times in seconds: start of the current step
    printed: float = 0.0  # last step line
    plotted: float = 0.0  # last curves.png
    checked: bool = False  # whether a result of the check has been printed

    def __post_init__(self):
        self.notes = Notes(self.args, self.budget, self.task)
        self.tracker = Tracker(self.args.track, self.folder)

    @property
    def args(self):
        return self.folder.args

    @property
    def step(self):
        """Number of steps done."""
        return self.folder.step


def set_up(folder, default, label, binary=False, base=None):
    """Create the run folder, load task, policy and problems -> (task, policy, optimizer, problems).

    default  task without --task and --data
    label    part of the folder's name: what is trained for
    binary   whether the objective needs binary rewards
    base     embedded model for the default task; None: the model that the task names
    Raises UserError.
    """
    args = folder.args
    locate(args)
    args.task = args.task or (None if args.data else default)
    task = tasks.task_of(args)
    if args.eval_samples:
        task.check_can_verify()
    for split in splits_of(args):  # a missing split ends the run before the model is loaded
        task.need(split)
    if not args.model:
        embedded = base if base and task.name == default else task.base
        args.model = own_base(args.adapter) or embedded
    if task.graded and binary:
        raise UserError(f"task {task.name} has graded rewards, but {folder.script}.py ({label}) needs binary ones: "
                        "use cat_bon.py")
    task.max_new_tokens = args.max_new_tokens or task.max_new_tokens
    folder.create(f"{task.name}-{label}")
    fast = chooser(args.plain)
    policy = common.load_policy(args.model, args.bits, args.lora_rank, args.adapter, args.reference, args.seed,
                                args.device, fast)
    folder.identify(task, generated=not args.data and args.task in tasks.EMBEDDED_TASKS)
    policy.note += f"\nprompts {load.put_prompts(policy, task, args.chat, args.system)}"
    resolve(folder, policy)
    if not args.max_new_tokens and not folder.resumed:
        args.max_new_tokens = evaluate.fit_length(policy, task)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=args.lr, weight_decay=0.0)
    return task, policy, optimizer, problems_of(policy, task, args)


def problems_of(policy, task, args):
    """The problems of each split whose prompts fit the model; [] for splits that the flags do not need.  Raises
    UserError."""
    splits = {split: evaluate.that_fit(policy, task, task.need(split)) for split in splits_of(args)}
    return Problems(splits["train"][:args.train_problems or None], splits.get("valid", []), splits.get("test", []))


def splits_of(args):
    """Names of the splits that the flags need."""
    needed = {"train": True, "valid": args.eval_every, "test": args.eval_samples}
    return [split for split, amount in needed.items() if amount]


def locate(args):
    """Make the paths among the flags absolute, so that the run can be resumed from another directory.  Raises UserError
    if one does not exist, before anything is loaded."""
    for name in (*contents.PATHS, *contents.CODE):
        try:
            if name in args:
                setattr(args, name, contents.located(getattr(args, name), f"--{name}"))
        except UserError as error:
            hint = "; if it has moved, give its new path" * getattr(args, "resume", False)
            raise UserError(f"{error}{hint}") from error


def own_base(adapter):
    """The base model that an adapter names, or None.  Raises UserError if that is a folder that no longer exists."""
    base = contents.base_of(adapter) if adapter else None
    try:
        return contents.located(base, "--model")
    except UserError as error:
        raise UserError(f"--adapter {adapter} was trained on {base}, which does not exist: give its base model with "
                        "--model") from error


def resolve(folder, policy):
    """Replace defaults that depend on the model or the machine by numbers, so that args.json records them and a resumed
    run uses them, and add them to the policy's note."""
    args = folder.args
    size = policy.size
    why = "--lr"
    if not folder.resumed:
        args.bits = load.bits_of(policy) or args.bits or load.default_bits(policy.device)
    if args.lr is None:
        supervised = folder.script == "bon_sft" or getattr(args, "mode", "rl") == "sft"
        args.lr, why = load.learning_rate(size, supervised)
    if args.eval_problems is None:
        args.eval_problems = 0 if size < load.SMALL else max(1, 4096 // max(1, args.eval_samples))
    policy.note += f", learning rate {args.lr:g} ({why})"


def start(run, objective):
    """Load the last checkpoint if there is one, print the first lines.  objective: what is trained for, as printed."""
    policy = run.policy
    chat = bool(run.task.chat and policy.tokenizer.chat_template)
    run.folder.start(policy, run.optimizer, chat)
    policy.check = check.Check(functools.partial(report_check, run))
    rollouts.connect(policy, run.args, run.folder.name)
    print(f"{run.folder.name}: {run.args.model}, {run.task.name} ({counts(run)}), {objective}\n{policy.note}\n"
          f"to repeat it: {run.folder.command()}\nwhat the keys of a step mean: docs/logged.md", flush=True)
    run.tracker.open(vars(run.args))
    run.step_began = run.printed = run.plotted = time.time()


def counts(run):
    """Text: how many problems of each split fit the model, and how many test problems are used."""
    train, valid, test = run.problems
    valid = valid or run.task.valid
    test = test or run.task.test
    used = len(test[:run.args.eval_problems or None])
    of_all = f" of {len(test):,}" if used < len(test) else ""
    return f"{len(train):,} train, {len(valid):,} valid, {used:,}{of_all} test problems"


def report_check(run, result):
    """Append a result of support/check.py to checks.jsonl, and print the first one."""
    if not run.checked:
        print(check.words(result), flush=True)
    run.checked = True
    run.folder.log("checks.jsonl", step=run.step, **result)


def look_again(run):
    """Have the samples of the next step checked (support/check.py). A supervised step draws no samples, so draw four
    here."""
    args = run.args
    run.policy.check.again()
    supervised = getattr(args, "mode", "rl") == "sft" or (run.folder.script == "bon_sft" and args.n == 1)
    if supervised:
        prompts = run.policy.encode([p.prompt for p in run.problems.train[:4]], run.task.chat)
        seeds = [common.seed_of("check", args.seed, run.step, b) for b in range(len(prompts))]
        check.draw(run.policy, prompts, seeds, args.temperature, run.task.max_new_tokens)


def evaluate_before(run):
    """Compute the row `before` of result.json, unless a resumed run has it, and have the first step checked."""
    if run.args.eval_samples and "before" not in run.folder.result:
        run.folder.result["before"] = result_row(run, run.problems.test, "before")
        run.folder.save(run.policy, run.optimizer)
    run.tracker.send()
    look_again(run)
    run.folder.training = True
    run.step_began = time.time()


def result_row(run, problems, row=None):
    """Evaluate the current policy on these problems -> a row of result.json.  row: its name, if it is "before" or
    "after"; then the learned verifier is evaluated, too."""
    args = run.args
    budgets = {1, 2, 4, 8, 16, 32, 64, run.budget}
    budgets = sorted(k for k in budgets if k <= args.eval_samples)
    problems = problems[:args.eval_problems or None]
    if run.policy.size >= load.SMALL:
        print(f"evaluation on {len(problems)} problems x {args.eval_samples} samples of at most "
              f"{run.task.max_new_tokens} tokens (--eval-problems, --eval-samples, --max-new-tokens)", flush=True)
    options = {"kl": True, "verifier": run.verifier, "target": run.target}
    values, pool = evaluate.evaluate(run.policy, run.task, problems, args.eval_samples, budgets, args.temperature,
                                     args.seed, **options)
    if run.verifier and row:  # on samples of this policy, which may have learned to exploit it
        run.folder.result[f"verifier {row}"] = evaluate.judge_verifier(pool)
    return values


def show(run, rows):
    """Print rows of result.json, with the same columns in all scripts."""
    print(evaluate.table(rows, ks=(1, run.budget, 32)), evaluate.table(rows, evaluate.DIVERSITY), sep="\n")


def gold_completions(policy, task, problems, target="solution", longest=torch.inf):
    """Gold completions for supervised fine-tuning -> (problems that have one of at most `longest` tokens, {problem id:
    its token ids, with the EOS token}). Prints how many problems are left out.  Raises UserError if none is left."""
    golds = {}
    untokenizable = 0  # no token ids decode to exactly the text
    for p, prompt in zip(problems, policy.encode([p.prompt for p in problems], task.chat)):
        text = task.target(p, target)
        if text is None:
            continue
        ids = policy.encode_solution(text, p.prompt, task.chat)
        if ids is None:
            untokenizable += 1
        elif len(ids) <= min(longest, policy.positions - len(prompt)):
            golds[p.id] = ids
    if untokenizable:
        print(f"{untokenizable} of {len(problems)} gold completions cannot be tokenized: no tokens decode to exactly "
              "their text without ending it early", flush=True)
    missing = f"no gold completion ({target})" + f" of at most {longest} tokens" * (longest < torch.inf)
    if not golds:
        why = f", and {untokenizable} cannot be tokenized" * bool(untokenizable)
        raise UserError(f"task {task.name} has no problem to learn from: {missing} that fits the model{why}; add "
                        "\"solution\" to its data, raise --max-new-tokens, or use another model")
    if len(golds) < len(problems):
        print(f"left out {len(problems) - len(golds)} of {len(problems)} problems: {missing}, or too long for the "
              "model", flush=True)
    return [p for p in problems if p.id in golds], golds


@functools.lru_cache(maxsize=2)
def permutation(n, seed, epoch):
    order = list(range(n))
    random.Random(common.seed_of("order", seed, epoch)).shuffle(order)
    return order


def batch_of(problems, size, step, seed):
    """The `size` problems of step 1, 2, ...: shuffled epochs over `problems` in sequence, without dropping any."""
    batch = []
    for j in range((step - 1) * size, step * size):
        epoch, index = divmod(j, len(problems))
        order = permutation(len(problems), seed, epoch)
        batch.append(problems[order[index]])
    return batch


def sample_stats(policy, task, drawn, rewards, budget, gap, seconds, answers=None):
    """The keys of METRICS that describe samples.

    rewards  [B, n]
    gap      log pi - log ref, nats; None if not measured
    seconds  duration of sampling
    answers  [B][n], if majority voting is trained for
    """
    B, n = rewards.shape
    tokens = int(drawn.lengths.sum())
    stats = {"reward": rewards.mean().item()}
    kind = "max" if task.graded else "pass"
    most = min(budget, n)
    for k in sorted({1, most}):
        estimates = [common.bon_at_k(r, r, k) for r in rewards.tolist()]
        stats[f"{kind}@{k}"] = sum(estimates) / B
    if answers and most > 1 and not task.graded:
        estimates = [evaluate.majority(a, r, most) for a, r in zip(answers, rewards.tolist())]
        stats[f"maj@{most}"] = sum(estimates) / B
    alike = rewards.amax(1) == rewards.amin(1)  # [B]
    stats["alike"] = alike.float().mean().item()
    stats["cut"] = share_cut(policy, drawn)
    if gap is not None:
        stats["kl"] = gap.mean().item()
    stats["length"] = tokens / (B * n)
    stats["entropy"] = drawn.entropies.sum().item() / tokens
    stats["tokens_per_s"] = tokens / seconds
    return stats | drawn.notes


def share_cut(policy, drawn):
    """Share of samples that do not end with an EOS token."""
    rows = [row for rows in drawn.lists() for row in rows]
    cut = [row[-1] not in policy.stop for row in rows]
    return sum(cut) / len(cut)


def weight_stats(weights, name):
    """Distribution of a batch's weights (name "w") or signed coefficients ("c"), as keys of METRICS."""
    w = weights.double().flatten()
    mean = w.mean()
    even = (w - mean).abs() <= 0.05 * mean.abs()
    small = w.abs() < 0.01
    stats = {"mean": mean, "min": w.min(), "median": w.median(), "max": w.max()}
    stats |= {"small": small.double().mean(), "even": even.double().mean()}
    return {f"{name}_{kind}": value.item() for kind, value in stats.items()}


def examples(policy, problems, prompts, y, gold=False, **values):
    """For samples.jsonl: the first completion of the first and the last problem of a step, with its value.

    prompts  token ids of each problem's prompt
    y        completions (token ids), equally many of each problem
    gold     whether to add the gold completion
    values   name=tensor: a value of each completion
    """
    (name, values), = values.items()
    shown = []
    for b in (0, len(problems) - 1):
        j = b * len(y) // len(problems)
        completion = policy.decode(y[j], prompts[b])
        example = {"prompt": problems[b].prompt, "completion": completion}
        if gold:
            example["gold"] = problems[b].solution
        example[name] = values.flatten()[j].item()
        shown.append(example)
    return shown


def end_of_step(run, line, shown):
    """Log, validate, print, save, and stop if requested.  line: the step's keys of METRICS; shown: `examples`."""
    args = run.args
    took = time.time() - run.step_began
    run.folder.step += 1
    step = run.step
    last = step == args.steps
    memory = load.peak_memory(run.policy.device)
    line = {"step": step, **line, **run.task.counts, "memory_gb": memory, "seconds": run.folder.seconds()}
    if args.eval_every and step % args.eval_every == 0:
        line["valid"] = result_row(run, run.problems.valid)
        show(run, {f"validation, step {step}": line["valid"]})
    run.folder.log("metrics.jsonl", **line)
    if step == 1 and not last:  # before its first update, a new adapter has no effect
        look_again(run)
    run.notes.look(line)
    if step == 1 or step % 25 == 0 or last:
        for example in shown:
            run.folder.log("samples.jsonl", step=step, **example)
            print_example(example)
    if step == 1 or step % 10 == 0 or last or time.time() - run.printed > 30:
        print_line(line, args.steps, took)
        run.printed = time.time()
    stopping = run.folder.stopping
    if step % args.save_every == 0 or last or stopping:
        run.folder.save(run.policy, run.optimizer)
        run.tracker.send()
        if not last and time.time() - run.plotted > 60:  # plotting takes a second
            plot_run(run.folder.name, run.folder.result)
            run.plotted = time.time()
    if stopping and not last:
        print(f"stopped after step {step}; continue with --out {run.folder.name} --resume", flush=True)
        raise SystemExit(130)
    run.step_began = time.time()


def print_example(example):
    """Print a record of samples.jsonl on one line."""
    prompt, completion, *rest = example.items()
    parts = [f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}" for name, value in rest]
    print(f"  {prompt[1]} -> {completion[1]}   {'  '.join(parts)}")


def print_line(line, steps, seconds):
    """Print the step line: the values of metrics.jsonl, rounded, and the time left at `seconds` per step."""
    left = seconds * (steps - line["step"])
    hidden = ("step", "seconds", "samples_per_s", "grad_norm", "_min", "_small")  # in metrics.jsonl only
    parts = []
    for name in shown_once(line):
        value = line[name]
        if not name.endswith(hidden) and isinstance(value, (int, float)):
            parts.append(f"{name} {value:,.0f}" if abs(value) >= 100 else f"{name} {value:.3g}")
    text = "  ".join(parts)
    print(f"step {line['step']}/{steps}  {text}  eta {left:.0f} s", flush=True)


def evaluate_after(run):
    """Compute the row `after` of result.json, write result.json and curves.png, print both rows."""
    run.folder.training = False
    if run.args.eval_samples:
        run.folder.result["after"] = result_row(run, run.problems.test, "after")
    run.folder.finish()  # write files first: printing may fail
    if run.args.eval_samples:
        show(run, {row: run.folder.result[row] for row in ("before", "after")})
        for row in ("before", "after") if run.verifier else ():
            quality = run.folder.result[f"verifier {row}"]
            print(f"verifier on samples {row}: AUC {quality['auc']:.3f} [{quality['low']:.3f}, {quality['high']:.3f}]")
    plot_run(run.folder.name, run.folder.result)
    run.tracker.finish()
    print(f"{run.folder.result['seconds']:.0f} s; everything is in {run.folder.name}/", flush=True)
