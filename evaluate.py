"""Evaluate models, adapters and run folders on the same problems: pass@k, maj@k, BoN@k with standard errors.

    python evaluate.py tiny runs/ppo_passk-countdown-passk-1 --task countdown --samples 64 --k 1,8,32

n samples per problem (--samples) are drawn once. For every k <= n the metrics are then computed exactly, as an
expectation over k draws from these n (common.py):
    pass@k  1 - C(n-c,k)/C(n,k), c correct samples       (max@k for graded rewards)
    maj@k   expected accuracy of a plurality vote, ties shared; several answers may be correct
    BoN@k   expected reward of the best of k by --score: the mean token log-probability (logp), a learned verifier
            (verifier, with --verifier), or the reward itself (oracle, which equals max@k)
A second table has the diversity of the samples (function `diversity`) and, with --verifier, how well the verifier
separates correct from wrong samples. Standard errors are over problems. With several models, the differences to the
first one are computed problem by problem. A run folder determines its base model and precision, and the first one the
problems; temperature and length are flags of this command.
Writes result.json, curves.png and one pool-<n>.jsonl per model and temperature. `--pool` computes metrics from such
files without sampling again. `--co-scaling` fits pass@N(T) = exp(a(T) N^b(T)) at each temperature T (Chow et al. 2024,
arXiv 2412.15287).
"""
import gc
import json
import math
import os
import time
from collections.abc import Sequence
from difflib import SequenceMatcher

from support.flags import Help, Parser, answer, check_rollouts, computing_flags, prompt_flags, refuse, rollouts_flags


def parse_args(argv=None):
    parser = Parser(description=__doc__.split("\n")[0], formatter_class=Help)
    parser.add_argument("models", nargs="*", default=[],
                        help="run folders, hub ids, local model directories, GGUF files or embedded models (tiny, "
                             "tiny_program, ...); BASE+ADAPTER for an adapter on a base; default: the task's "
                             "base model")
    parser.add_argument("--task", default=None, help="task name, or your own task, FILE.py[:CLASS]; default: that of "
                        "the first run folder, else countdown")
    parser.add_argument("--data", default=None, help="problems from FILE.jsonl, or a local copy of the task's data set")
    parser.add_argument("--levels", default=None, help="difficulty levels of the task `math`, e.g. 1-3")
    parser.add_argument("--allow-unsandboxed-code", action="store_true",
                        help="run model-written programs even where there is no sandbox")
    parser.add_argument("--split", default="test", choices=["train", "valid", "test"], help="problems to use")
    parser.add_argument("--problems", type=int, default=0, help="how many problems; 0 = all of the split")
    parser.add_argument("--samples", type=int, default=64, help="samples per problem n")
    parser.add_argument("--k", default="1,2,4,8,16,32", help="budgets k, comma-separated, each at most --samples")
    parser.add_argument("--temperature", default="1.0", help="sampling temperatures, comma-separated")
    parser.add_argument("--max-new-tokens", type=int, default=0,
                        help="longest completion in tokens; 0 = that of the run folders, else the task's limit")
    parser.add_argument("--score", default=None, choices=["logp", "oracle", "verifier"],
                        help="score by which best-of-N selects; default verifier with --verifier, else logp")
    parser.add_argument("--verifier", default=None,
                        help="folder made by fit_verifier.py, or a sequence classifier with one label (reward model)")
    parser.add_argument("--bits", type=int, default=None, choices=[4, 8, 16, 32],
                        help="precision of the base; default that of the run, or 4 (NF4) on a GPU, 32 on a CPU")
    prompt_flags(parser)
    computing_flags(parser)
    rollouts_flags(parser)
    parser.add_argument("--pool", nargs="+", default=None, help="compute metrics from these pool files, do not sample")
    parser.add_argument("--co-scaling", action="store_true", help="fit and plot pass@N(T) = exp(a(T) N^b(T))")
    parser.add_argument("--seed", type=int, default=0, help="seed of the samples")
    parser.add_argument("--out", default=None, help="folder for the results; default runs/evaluate-<task>-<number>")
    return parser.parse_args(argv)


if __name__ == "__main__":
    answer(parse_args)  # answer --help and reject bad flags before the slow imports

import common
import tasks
from fast.choose import chooser
from support import contents, load, plots, processes, rollouts
from support.check import Check
from support.check import words as check_words
from support.errors import UserError
from support.flags import cli, numbers
from support.folder import new_folder, versions, write_atomic
from support.output import to_json
from support.text import Chat, messages_of
from support.verifier import Verifier, load_verifier, verify_scores


def draw_pool(policy: common.Policy, task: tasks.Task, problems: list[tasks.Problem], samples: int,
              temperature: float = 1.0, seed: int = 0, kl: bool = False, label: str = "evaluate",
              target: str = "solution") -> list[dict]:
    """Sample every problem and grade the samples -> one dict per problem:

    id, prompt, completions, rewards, answers
    logps    mean log-probability per token of each completion
    lengths  in tokens
    entropy  mean entropy of the sampled distributions, nats per token
    gold     log pi of the gold completion of the kind `target`, if there is one
    kl       with kl=True: mean of log pi - log ref over the first 8 samples, nats

    Problems are sampled in blocks; the samples do not depend on the blocks."""
    pool = []
    blocks = Blocks(policy, len(problems), samples, label)
    while len(pool) < len(problems):
        block = problems[len(pool):len(pool) + blocks.size]
        prompts = policy.encode([p.prompt for p in block], task.chat)
        seeds = [common.seed_of("evaluate", seed, p.id) for p in block]
        drawn = common.sample(policy, prompts, samples, seeds, temperature, task.max_new_tokens)
        entries = verified(policy, task, block, prompts, drawn)
        add_gold(policy, task, block, prompts, entries, temperature, target)
        if kl:
            gaps = common.kl_gap(policy, prompts, drawn, temperature, (len(prompts), 8))
            for entry, gap in zip(entries, gaps.mean(-1).tolist()):
                entry["kl"] = gap
        pool += entries
        blocks.advance(len(block))
    blocks.bar.close()
    return pool


class Blocks:
    """Number of problems sampled at once: about 8,192 samples for a tiny model, else about ten seconds of sampling.
    Shows a progress bar on a terminal, else prints a line after the first block and every half minute."""

    def __init__(self, policy: common.Policy, problems: int, samples: int, label: str):
        from tqdm import tqdm
        self.problems = problems  # their number
        self.done = 0
        self.label = label
        self.most = max(1, 8192 // samples)  # problems per block
        self.tiny = policy.size < load.SMALL
        self.size = self.most if self.tiny else max(1, 64 // samples)
        hidden = True if processes.RANK else None  # None: silent in a pipe
        self.bar = tqdm(total=problems, desc=label, leave=False, unit="problem", disable=hidden)
        self.started = self.printed = self.block_started = time.time()

    def advance(self, count):
        """Record that `count` more problems are done, and adapt the size of the next block."""
        first = self.done == 0
        self.done += count
        self.bar.update(count)
        now = time.time()
        taken = now - self.started
        left = taken / self.done * (self.problems - self.done)
        due = now - self.printed > 30 or (first and left > 30)
        if left and due and self.bar.disable and not processes.RANK:
            print(f"{self.label}: {self.done:,} of {self.problems:,} problems, {taken:.0f} s, about {left:.0f} s left",
                  flush=True)
            self.printed = now
        if not self.tiny:
            self.resize(now - self.block_started)
            self.block_started = now

    def resize(self, seconds):
        """Aim at ten seconds per block, from the duration of the last one; the first process decides for all."""
        growth = min(4, 10 / max(1e-3, seconds))
        size = min(self.most, max(1, int(self.size * growth)))
        summand = 0.0 if processes.RANK else float(size)  # the sum over processes is the size of the first
        self.size = int(processes.all_reduce(summand))


def verified(policy: common.Policy, task: tasks.Task, problems: list[tasks.Problem], prompts: list[list[int]],
             drawn: common.Samples) -> list[dict]:
    """Grade the samples of a block of problems -> the dicts described in draw_pool, without gold and kl."""
    count = drawn.lengths.shape[1]
    texts = [policy.texts(rows, [x]) for x, rows in zip(prompts, drawn.lists())]
    owners = [p for p in problems for _ in range(count)]
    rewards = processes.rewards(task, owners, [text for rows in texts for text in rows])
    rewards = rewards.view(-1, count).tolist()  # [b, n]
    sums = drawn.logps.double().sum(-1).cpu()  # [b, n]
    lengths = drawn.lengths.cpu()  # [b, n]
    logps = (sums / lengths).tolist()
    entropies = (drawn.entropies.sum((1, 2)).cpu() / lengths.sum(1)).tolist()
    entries = []
    for b, p in enumerate(problems):
        entry = {"id": p.id, "prompt": p.prompt, "completions": texts[b], "rewards": rewards[b]}
        entry["answers"] = [task.extract(text) for text in texts[b]]
        entry["logps"] = logps[b]
        entry["lengths"] = lengths[b].tolist()
        entry["entropy"] = entropies[b]
        entries.append(entry)
    return entries


def add_gold(policy: common.Policy, task: tasks.Task, problems: list[tasks.Problem], prompts: list[list[int]],
             entries: list[dict], temperature: float, target: str) -> None:
    """Set `gold`, log pi of the gold completion, in the entries whose problem has one that fits the model."""
    scored = []
    xs = []
    ys = []
    for problem, entry, x in zip(problems, entries, prompts):
        text = task.target(problem, target)
        y = None if text is None else policy.encode_solution(text, problem.prompt, task.chat)
        if y and len(x) + len(y) <= policy.positions:
            scored.append(entry)
            xs.append(x)
            ys.append(y)
    if scored:
        logps = common.sequence_logps(policy, xs, ys, temperature)
        for entry, logp in zip(scored, logps.tolist()):
            entry["gold"] = logp


def diversity(texts: list[str], answers: list) -> dict[str, float]:
    """Diversity of the n completions of one problem -> {name: number}.

    distinct    number of different completions
    answers     number of different answers, None not counted
    distinct-2  different pairs of neighbouring characters, as a share of all such pairs
    similarity  mean difflib ratio (1 = equal) of up to 8 pairs of completions: 1 and 2, 3 and 4, ..."""
    bigrams = [text[i:i + 2] for text in texts for i in range(len(text) - 1)]
    pairs = list(zip(texts[::2], texts[1::2]))[:8]
    ratios = [SequenceMatcher(None, a, b, autojunk=False).ratio() for a, b in pairs]
    values = {"distinct": len(set(texts)), "answers": len(set(answers) - {None})}
    values["distinct-2"] = len(set(bigrams)) / max(1, len(bigrams))
    values["similarity"] = sum(ratios) / len(ratios) if ratios else math.nan
    return values


def mean_diversity(texts: list[str], answers: list, n: int) -> dict[str, float]:
    """`diversity` averaged over problems, for flat lists of n completions per problem."""
    rows = []
    for start in range(0, len(texts), n):
        problem = slice(start, start + n)
        rows.append(diversity(texts[problem], answers[problem]))
    return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}


def add_scores(pool: list[dict], verifier: Verifier, chat: bool = False) -> None:
    """Set `scores`, the verifier's score of each completion, in every entry of a pool."""
    prompts = [entry["prompt"] for entry in pool for _ in entry["completions"]]
    texts = [text for entry in pool for text in entry["completions"]]
    scores = iter(verify_scores(verifier, prompts, texts, chat))
    for entry in pool:
        entry["scores"] = [next(scores) for _ in entry["completions"]]


def auc(scores: list[float], right: list[float]) -> float:
    """Probability that a correct sample outscores a wrong one, ties counting half (Mann-Whitney); nan unless there are
    both. right: rewards, 1 = correct."""
    import numpy as np
    scores = np.asarray(scores, dtype=float)
    _, index, count = np.unique(scores, return_inverse=True, return_counts=True)
    mean_rank = count.cumsum() - (count - 1) / 2  # equal scores share their mean rank
    rank = mean_rank[index]
    correct = np.asarray(right) == 1
    P = int(correct.sum())
    N = int((~correct).sum())
    if not P or not N:
        return math.nan
    return float((rank[correct].sum() - P * (P + 1) / 2) / (P * N))


def auc_interval(pool: list[dict], resamples: int) -> tuple[float, float]:
    """95 % bootstrap interval over problems of the AUC of a pool's scores -> (low, high); nan if no AUC is defined."""
    import numpy as np
    scores = [np.array(e["scores"]) for e in pool]
    correct = [np.array(e["rewards"]) == 1 for e in pool]
    rng = np.random.default_rng(0)
    draws = []
    for _ in range(resamples):
        some = rng.integers(len(pool), size=len(pool))
        those = np.concatenate([scores[i] for i in some])
        labels = np.concatenate([correct[i] for i in some])
        draws.append(auc(those, labels))
    if np.isnan(draws).all():
        return math.nan, math.nan
    low, high = np.nanquantile(draws, [0.025, 0.975])
    return float(low), float(high)


def judge_verifier(pool: list[dict], resamples: int = 200) -> dict:
    """How well the scores of a pool separate correct from wrong samples -> the keys of VERIFIER in support/run.py: AUC
    over all samples with a 95 % bootstrap interval over problems; calibration of sigmoid(score) in ten bins, as (mean
    predicted probability, share of correct samples, count), and the expected calibration error."""
    import numpy as np
    scores = np.array([s for e in pool for s in e["scores"]])
    correct = np.array([r for e in pool for r in e["rewards"]]) == 1
    probability = 0.5 + 0.5 * np.tanh(scores / 2)
    bins = np.minimum((probability * 10).astype(int), 9)
    calibration = []
    for b in range(10):
        inside = bins == b
        if inside.any():
            expected = float(probability[inside].mean())
            share = float(correct[inside].mean())
            calibration.append([expected, share, int(inside.sum())])
    low, high = auc_interval(pool, resamples)
    report = {"auc": auc(scores, correct), "low": low, "high": high, "calibration": calibration}
    report["calibration_error"] = sum(abs(p - share) * n for p, share, n in calibration) / len(scores)
    report["score_right"] = float(scores[correct].mean()) if correct.any() else None
    report["score_wrong"] = float(scores[~correct].mean()) if (~correct).any() else None
    return report


def metrics(pool: list[dict], ks: Sequence[int], graded: bool = False, score: str = "logp") -> dict[str, list[float]]:
    """Every metric of every problem in a pool -> {"pass@8": [one value per problem], ...}."""
    values = {}
    for entry in pool:
        for name, value in metrics_of(entry, ks, graded, score).items():
            values.setdefault(name, []).append(value)
    return values


def majority(answers: list, rewards: list[float], k: int) -> float:
    """Probability that a plurality vote of k of a problem's n samples is correct, ties shared.  answers: [n], None = no
    vote; rewards: [n], 1 = correct. Several answers may be correct; they cannot win together, so probabilities add."""
    keys = {a for a, r in zip(answers, rewards) if r == 1 and a is not None}
    return sum(common.maj_at_k(answers, key, k) for key in keys)


def metrics_of(entry: dict, ks: Sequence[int], graded: bool, score: str) -> dict[str, float]:
    """Every metric of one problem -> {name: number}."""
    rewards = entry["rewards"]
    answers = entry["answers"]
    n = len(rewards)
    c = sum(r == 1 for r in rewards)
    scores = {"oracle": rewards, "logp": entry["logps"], "verifier": entry.get("scores")}[score]
    values = {}
    for k in ks:
        if graded:
            values[f"max@{k}"] = common.bon_at_k(rewards, rewards, k)
        else:
            values[f"pass@{k}"] = common.pass_at_k(n, c, k)
            values[f"maj@{k}"] = majority(answers, rewards, k)
        values[f"bon@{k}"] = common.bon_at_k(scores, rewards, k)
    values["reward"] = sum(rewards) / n
    values["length"] = sum(entry["lengths"]) / n
    if "completions" in entry:
        values |= diversity(entry["completions"], answers)
    for name in ("kl", "entropy", "gold"):
        if name in entry:
            values[name] = entry[name]
    return values


def that_fit(policy: common.Policy, task: tasks.Task, problems: list[tasks.Problem]) -> list[tasks.Problem]:
    """The problems whose prompt leaves room for max_new_tokens in the model's positions; prints how many are left out.
    Raises UserError if none remains, or if a prompt has no tokens."""
    longest = policy.positions - task.max_new_tokens
    rows = policy.encode([p.prompt for p in problems], task.chat)
    kept = []
    for p, ids in zip(problems, rows):
        if not ids:
            raise UserError(f"{p.id}: the prompt {p.prompt[:40]!r} has no tokens after tokenization: remove the "
                            "problem, or use another model")
        if len(ids) <= longest:
            kept.append(p)
    if not kept and problems:
        raise UserError(f"no problem leaves room for --max-new-tokens {task.max_new_tokens} in the model's "
                        f"{policy.limit}: lower it or take a model with more")
    if len(kept) < len(problems):
        print(f"left out {len(problems) - len(kept)} of {len(problems)} problems: prompts too long for the model",
              flush=True)
    return kept


def fit_length(policy: common.Policy, task: tasks.Task) -> int:
    """Lower the task's default max_new_tokens if it exceeds half of a small model's positions: to what the longest
    prompt leaves, but at least that half. Prints and returns the new value; 0 if nothing changes."""
    half = policy.positions // 2
    if task.max_new_tokens <= half:
        return 0
    prompts = policy.encode([p.prompt for p in task.train + task.valid + task.test], task.chat)
    longest = max(map(len, prompts), default=0)
    room = max(half, policy.positions - longest)
    if room >= task.max_new_tokens:
        return 0
    task.max_new_tokens = room
    print(f"completions of at most {room} tokens, which the prompts leave of the model's {policy.limit} "
          "(--max-new-tokens)", flush=True)
    return room


def mean_se(values: list[float]) -> dict[str, float]:
    """{"mean", "se"}: mean and standard error over problems (nan for one problem)."""
    n = len(values)
    mean = sum(values) / n
    if n == 1:
        return {"mean": mean, "se": math.nan}
    variance = sum((v - mean) ** 2 for v in values) / (n - 1)
    return {"mean": mean, "se": math.sqrt(variance / n)}


def means(values):
    """`mean_se` of each metric, for values as returned by `metrics`."""
    return {name: mean_se(column) for name, column in values.items()}


def evaluate(policy: common.Policy, task: tasks.Task, problems: list[tasks.Problem], samples: int, ks: Sequence[int],
             temperature: float = 1.0, seed: int = 0, kl: bool = False, verifier: Verifier | None = None,
             target: str = "solution") -> tuple[dict, list[dict]]:
    """Evaluate a policy, as the training scripts do before the first and after the last update. With a verifier,
    best-of-N selects by it.  Returns ({"pass@8": {"mean", "se"}, ...}, pool).  Raises UserError if a k exceeds
    `samples`.
    """
    if max(ks) > samples:
        raise UserError(f"k = {max(ks)} needs at least as many samples per problem, not {samples}")
    pool = draw_pool(policy, task, problems, samples, temperature, seed, kl, target=target)
    if verifier:
        add_scores(pool, verifier, task.chat)
    score = "verifier" if verifier else "logp"
    return means(metrics(pool, ks, task.graded, score)), pool


MAIN = ("pass", "max", "maj", "bon", "kl", "length")  # the columns of the first table
DIVERSITY = ("distinct", "answers", "entropy", "distinct-2", "similarity", "gold")  # the columns of the second table


def table(results: dict[str, dict], kinds: Sequence[str] = MAIN, ks: Sequence[int] | None = None) -> str:
    """Text table of {row name: {"pass@8": {"mean", "se"}, ...}}.

    kinds  metrics to show, without @k; default pass@k, maj@k, bon@k, KL and length
    ks     budgets to show; None: all

    maj@1 and bon@1 are left out, because they equal pass@1."""
    names = []
    for name in next(iter(results.values())):
        kind, _, k = name.partition("@")
        wanted = ks is None or not k or int(k) in ks
        if kind in kinds and wanted and name not in ("maj@1", "bon@1"):
            names.append(name)
    names.sort(key=lambda n: kinds.index(n.split("@")[0]))  # stable: k stays in order
    width = max(map(len, results))
    lines = [" " * width + "".join(f"  {n:>13}" for n in names)]
    for row, result in results.items():
        line = f"{row:{width}}"
        for name in names:
            cell = f"{result[name]['mean']:.3f} ±{result[name]['se']:.3f}" if name in result else "-"
            line += f"  {cell:>13}"
        lines.append(line)
    return "\n".join(lines)


def co_scaling(results: dict[str, dict]) -> dict[str, dict[str, float]]:
    """Fit pass@N = exp(a N^b), a < 0, at each temperature T, by least squares of log(-log pass@N) = log(-a) + b log N.
    results {T: {"pass@N": {"mean"}}} -> {T: {"a", "b", "rmse"}}, where rmse is that of pass@N itself. Points at 0 or 1
    are left out."""
    import numpy as np
    fits = {}
    for temperature, result in results.items():
        measured = {int(name[5:]): cell["mean"] for name, cell in result.items() if name.startswith("pass@")}
        measured = {n: p for n, p in measured.items() if 0 < p < 1}
        if len(measured) < 2:
            continue
        n = np.array(list(measured), dtype=float)
        p = np.array(list(measured.values()))
        b, intercept = np.polyfit(np.log(n), np.log(-np.log(p)), 1)
        a = -np.exp(intercept)
        errors = np.exp(a * n ** b) - p
        rmse = np.sqrt((errors ** 2).mean())
        fits[temperature] = {"a": float(a), "b": float(b), "rmse": float(rmse)}
    return fits


def run_flags(model: str) -> dict | None:
    """Flags of a run folder and, under "contents", digests of its inputs; None if `model` is not a run folder."""
    saved = contents.read_json(os.path.join(model, "args.json"))
    flags = saved.get("flags")
    is_run = isinstance(flags, dict) and {"model", "task", "data", "levels"} <= flags.keys()
    return {**flags, "contents": saved.get("contents") or {}} if is_run else None


def base_and_adapter(model: str) -> tuple[str, str | None, dict | None]:
    """Split an argument (run folder, BASE+ADAPTER or model) -> (base, adapter or None, flags of the adapter's run or
    None).  Raises UserError if a path does not exist."""
    flags = run_flags(model)
    if flags:
        return contents.located(flags["model"], f"base of {model}, --model"), model, flags
    if "+" not in model or is_local(model):
        return contents.located(model, "model"), None, None
    base, adapter = split_at_plus(model)
    if not base or not adapter:
        raise UserError(f"{model}: give BASE+ADAPTER, or one of them alone")
    return contents.located(base, "base"), contents.located(adapter, "adapter"), run_flags(adapter)


def is_local(model):
    return model in load.EMBEDDED_MODELS or os.path.exists(model)


def split_at_plus(model):
    """Split BASE+ADAPTER -> (base, adapter). Local paths may contain a +, hub ids cannot: the base is the longest
    prefix that exists as a path, else the part before the first +."""
    parts = model.split("+")
    splits = [("+".join(parts[:i]), "+".join(parts[i:])) for i in range(1, len(parts))]
    local = [split for split in splits if is_local(split[0])]
    return local[-1] if local else splits[0]


def problems_of(args, runs: dict[str, dict]) -> tasks.Task:
    """The task to evaluate on: from --task or --data, else from the run folders {argument: flags}, else countdown.
    Raises UserError if the run folders have different problems."""
    if not args.task and not args.data:
        same_problems(runs)
    name = args.task
    data = args.data
    reward = args.reward
    levels = args.levels
    columns = args.columns
    skip = args.skip_bad_rows
    train = None  # number of training problems read from a hub data set: its splits can depend on it
    matching = [flags for flags in runs.values() if name in (None, flags["task"])]
    if matching and not data:
        name = matching[0]["task"]
        data = matching[0]["data"]
        levels = levels or matching[0]["levels"]
        columns = columns or matching[0].get("columns")
        skip = skip or matching[0].get("skip_bad_rows", False)
        train = matching[0].get("train_problems") or None
    elif not name and not data:
        name = "countdown"
    if matching and not args.task:
        reward = reward or matching[0].get("reward")
    task = tasks.load_task(name, data, levels, args.allow_unsandboxed_code, columns, skip, (train, args.split), reward,
                           args.reward_processes)
    for model, flags in runs.items():
        say_changed(model, flags["contents"], task)
    return task


def length_of(args, runs: dict[str, dict]) -> int:
    """Largest max_new_tokens of the run folders {argument: flags} on the task that is evaluated; 0 if there are
    none."""
    matching = [flags for flags in runs.values() if args.task in (None, flags["task"]) and not args.data]
    return max((flags.get("max_new_tokens") or 0 for flags in matching), default=0)


def say_changed(model: str, begun: dict, task: tasks.Task) -> None:
    """Print a note if code that grades samples has changed since the run `model` began with the digests `begun`."""
    for flag, now in task.code.items():
        names = contents.differing(begun.get(flag) or now, now)
        if names:
            print(f"note: --{flag} has changed since {model} was trained, in {contents.listed(names)}: these figures "
                  "are from its current version", flush=True)


def same_problems(runs):
    """Raises UserError if run folders {argument: flags} have different problems."""
    first = {}  # {problems: the first run folder with them}
    for model, flags in runs.items():
        kind = (flags["task"], flags["data"], flags["levels"], flags.get("columns"), flags.get("reward"))
        first.setdefault(kind, model)
    if len(first) > 1:
        listed = ", ".join(f"{model}: {' '.join(filter(None, kind))}" for kind, model in first.items())
        raise UserError(f"these runs have different problems ({listed}): evaluate them one by one, or choose the "
                        "problems with --task or --data")


NEEDED = ("task", "graded", "id", "rewards", "answers", "logps", "lengths")  # keys of every line of a pool file


def read_pool(path: str) -> list[dict]:
    """Read a pool file -> list of dicts, one per problem.  Raises UserError."""
    try:
        with open(path) as file:
            pool = [json.loads(line) for line in file]
        for entry in pool:
            [entry[name] for name in NEEDED]
            if "messages" in entry:
                entry["prompt"] = Chat((message["role"], message["content"]) for message in entry["messages"])
            for name in entry.keys() & {"kl", "entropy", "gold"}:
                entry[name] = number(entry[name])
            for name in entry.keys() & {"logps", "scores"}:
                entry[name] = [number(value) for value in entry[name]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"--pool {path} is not a readable pool file ({error}): give a pool-*.jsonl of evaluate.py"
                        ) from error
    if not pool:
        raise UserError(f"--pool {path} is empty")
    return pool


def number(value):
    """A number from a JSON file, in which null represents nan."""
    return math.nan if value is None else value


def draw_pools(args, task: tasks.Task, parts: dict[str, tuple], temperatures: list[float],
               verifier: Verifier | None) -> tuple[dict[str, list[dict]], dict]:
    """Sample every model in `parts`, {argument: result of base_and_adapter}, at every temperature, and write the pool
    files -> ({row of the table: pool}, {argument: findings of support/check.py})."""
    pools = {}
    checks = {}
    chat = task.chat  # whether the task asks for a template
    longest = task.max_new_tokens
    count = len(task.need(args.split)[:args.problems or None])
    print(f"{args.out}: {task.name}, {count:,} problems of the {args.split} split, {args.samples} samples each",
          flush=True)
    for model, named in parts.items():
        gc.collect()  # frees the previous model: two may not fit in memory
        task.chat = chat
        task.max_new_tokens = longest
        policy = ready(args, task, model, *named)
        findings = checks[model] = []
        policy.check = Check(findings.append)
        problems = that_fit(policy, task, task.need(args.split))[:args.problems or None]
        for temperature in temperatures:
            row = f"{model} T={temperature:g}" if len(temperatures) > 1 else model
            checked = len(findings)
            pool = draw_pool(policy, task, problems, args.samples, temperature, args.seed, label=row)
            if findings and not checked:
                print(check_words(findings[0]), flush=True)
            if verifier:
                add_scores(pool, verifier, task.chat)
            known = {"task": task.name, "graded": task.graded, "chat": task.chat}
            pools[row] = [{**known, **entry, **messages_of(entry["prompt"])} for entry in pool]
            # saved before the next model is loaded, which may fail
            text = "".join(to_json(entry) + "\n" for entry in pools[row])
            write_atomic(os.path.join(args.out, f"pool-{len(pools)}.jsonl"), text)
        del policy
    return pools, checks


def ready(args, task: tasks.Task, model: str, base: str, adapter: str | None, flags: dict | None) -> common.Policy:
    """Load a policy, set how the task formats its prompts and how long completions may be, and print these choices."""
    saved = flags if flags and adapter == model else {}  # for BASE+ADAPTER only the flags of this command count
    bits = args.bits or saved.get("bits")
    policy = common.load_policy(base, bits, adapter=adapter, reference="base", device=args.device,
                                fast=chooser(args.plain))
    chat = args.chat
    system = args.system
    if chat is None:
        chat = saved.get("chat")
        system = system or saved.get("system")
    how = load.put_prompts(policy, task, chat, system)
    rollouts.connect(policy, args, args.out)
    print(f"{model}: {policy.note}, prompts {how}", flush=True)
    if not args.max_new_tokens:
        fit_length(policy, task)
    return policy


def paired(values: dict[str, dict], pools: dict[str, list[dict]]) -> dict[str, dict]:
    """Means of the differences to the first row, problem by problem -> {"row - first row": {metric: {"mean", "se"}}}.
    Rows on other problems than the first are left out."""
    first, *others = values
    ids = {row: [entry["id"] for entry in pool] for row, pool in pools.items()}
    gold_ids = {row: [entry["id"] for entry in pool if "gold" in entry] for row, pool in pools.items()}
    differences_of = {}
    for row in others:
        if ids[row] != ids[first]:
            continue
        differences = {}
        for name in values[row]:
            comparable = name != "gold" or gold_ids[row] == gold_ids[first]
            if comparable and name in values[first]:
                differences[name] = [b - a for a, b in zip(values[first][name], values[row][name])]
        differences_of[f"{row} - {first}"] = means(differences)
    return differences_of


def show(report):
    """Print the contents of result.json as tables."""
    results = report["results"]
    print(table(results))
    if "distinct" in results[next(iter(results))]:
        print(table(results, DIVERSITY))
    for row, v in report.get("verifier", {}).items():
        print(f"verifier on {row}: AUC {v['auc']:.3f} [{v['low']:.3f}, {v['high']:.3f}], calibration error "
              f"{v['calibration_error']:.3f}")
    for row, differences in report.get("paired", {}).items():
        print(table({f"{row} (paired)": differences}))
    if report.get("counts"):
        print("  ".join(f"{n} {c}" for n, c in report["counts"].items()))
    for row, fit in report.get("co_scaling", {}).items():
        print(f"co-scaling {row}: pass@N = exp({fit['a']:.3f} N^{fit['b']:.3f}), rmse {fit['rmse']:.4f}")


def check_flags(args, ks: list[int], pools: dict[str, list[dict]]) -> None:
    """Check values and combinations that argparse cannot.  Raises UserError."""
    if args.problems < 0:
        raise UserError("--problems must not be negative")
    if args.max_new_tokens < 0:
        raise UserError("--max-new-tokens must not be negative")
    check_rollouts(args)
    if args.pool:
        refuse(args, ["rollouts"], "with --pool, which draws no samples")
    if args.co_scaling and (args.pool or len(ks) < 2):
        raise UserError("--co-scaling needs at least two budgets --k, and cannot be used with --pool")
    entries = [entry for pool in pools.values() for entry in pool]
    samples = min((len(entry["rewards"]) for entry in entries), default=args.samples)
    if max(ks) > samples:
        raise UserError(f"--k {max(ks)} exceeds the {samples} samples per problem: draw more samples or lower k")
    if args.score == "verifier" and not args.verifier:
        raise UserError("--score verifier needs --verifier: a folder made by fit_verifier.py, or a reward model with "
                        "one label")
    kinds = {(entry["task"], entry["graded"]) for entry in entries}
    if len(kinds) > 1:
        raise UserError("--pool: these files are from different tasks: give them one by one")
    if not args.verifier:
        return
    for path, pool in pools.items():
        if not all("completions" in e and "prompt" in e for e in pool):
            raise UserError(f"--verifier: the pool file {path} has no completions to score")


def new_report(args, ks: list[int], pools: dict[str, list[dict]], **known) -> dict:
    """Contents of result.json, from pools {row: list of dicts}; **known are added as they are."""
    graded = next(iter(pools.values()))[0]["graded"]
    values = {row: metrics(pool, ks, graded, args.score) for row, pool in pools.items()}
    results = {row: means(value) for row, value in values.items()}
    report = {"flags": vars(args), "results": results, **known, **versions()}
    if args.verifier:
        report["verifier"] = {row: judge_verifier(pool) for row, pool in pools.items()}
    if len(pools) > 1:
        report["paired"] = paired(values, pools)
    if args.co_scaling:
        report["co_scaling"] = co_scaling(results)
    return report


@cli
def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    ks = numbers(args.k, int, "--k")
    temperatures = numbers(args.temperature, float, "--temperature")
    pools = {path: read_pool(path) for path in args.pool or ()}
    check_flags(args, ks, pools)
    args.verifier = contents.located(args.verifier, "--verifier")
    parts = {model: base_and_adapter(model) for model in args.models}  # check all of them before loading the first
    verifier = None
    if args.verifier:
        verifier = load_verifier(args.verifier, args.bits, device=args.device)
    args.score = args.score or ("verifier" if verifier else "logp")
    known = {}
    if pools:
        known["task"] = pools[args.pool[0]][0]["task"]
        args.out = new_folder(args.out, f"evaluate-{known['task']}")
        for pool in pools.values() if verifier else ():
            add_scores(pool, verifier, pool[0].get("chat", False))
    else:
        runs = {model: flags for model, (*_, flags) in parts.items() if flags}
        task = problems_of(args, runs)
        args.max_new_tokens = args.max_new_tokens or length_of(args, runs)
        task.max_new_tokens = args.max_new_tokens or task.max_new_tokens
        if not parts:
            args.models = [task.base]
            parts[task.base] = (task.base, None, None)
        known["task"] = task.name
        args.out = new_folder(args.out, f"evaluate-{task.name}")
        pools, known["checks"] = draw_pools(args, task, parts, temperatures, verifier)
        known["counts"] = dict(task.counts)
        known["code"] = task.code
    report = new_report(args, ks, pools, **known)
    # Files are written first, because printing fails if the output is piped into a program that has ended.
    write_atomic(os.path.join(args.out, "result.json"), to_json(report, indent=1))
    plots.plot(report["results"], os.path.join(args.out, "curves.png"), known["task"])
    if args.co_scaling:
        picture = os.path.join(args.out, "co_scaling.png")
        plots.plot_co_scaling(report["results"], report["co_scaling"], picture)
    show(report)
    print(f"written to {args.out}/")


if __name__ == "__main__":
    main()
