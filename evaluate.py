"""Evaluate models, adapters and run folders on the same problems: pass@k, maj@k, BoN@k with standard errors.

    python evaluate.py tiny runs/ppo_passk-countdown-passk-1 --task countdown --samples 64 --k 1,8,32

Each of n samples per problem is drawn once; every k <= n is then computed exactly from that pool (common.py):
    pass@k  1 - C(n-c,k)/C(n,k)                          (max@k for graded rewards)
    maj@k   expected accuracy of a plurality vote, ties shared, summed over the keys that were verified right
    BoN@k   expected reward of the best of k by --score: the mean token log-probability, a learned verifier
            (--verifier), or the environment reward itself (`oracle`, which equals max@k)
A second table holds the diversity of the samples (`diversity` below), and with --verifier how well it judges them.
Standard errors are over problems; models are compared with the first one problem by problem (paired). A run folder
brings its base and precision, the first one the problems too; temperature and length are this command's own. Writes
result.json, curves.png and one pool-<n>.jsonl per model and temperature, which `--pool` rescores without sampling
again. `--co-scaling` fits pass@N(T) = exp(a(T) N^b(T)) at each temperature (Chow et al. 2024, arXiv 2412.15287).
"""
import argparse
import gc
import json
import math
import os
import time
from difflib import SequenceMatcher

from support.flags import Parser, answer, plain_flag, prompt_flags


def parse_args(argv=None):
    parser = Parser(description=__doc__.split("\n")[0],
                    formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("models", nargs="*", default=[],
                        help="run folders, hub ids, local model directories, GGUF files or embedded models (tiny, "
                             "tiny_program, ...); BASE+ADAPTER: adapter on base; default that of the task")
    parser.add_argument("--task", default=None, help="task name; default: that of the first run folder, else countdown")
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
                        help="longest completion in tokens; 0 = the task's own")
    parser.add_argument("--score", default=None, choices=["logp", "oracle", "verifier"],
                        help="what best-of-N selects by; default the verifier if there is one, else logp")
    parser.add_argument("--verifier", default=None,
                        help="folder of fit_verifier.py, or a reward model of one label")
    parser.add_argument("--bits", type=int, default=None, choices=[4, 8, 16, 32],
                        help="precision of the base; default that of the run, or 4 (NF4) on a GPU, 32 on a CPU")
    prompt_flags(parser)
    plain_flag(parser)
    parser.add_argument("--pool", nargs="+", default=None, help="rescore these pool files instead of sampling")
    parser.add_argument("--co-scaling", action="store_true", help="fit and plot pass@N(T) = exp(a(T) N^b(T))")
    parser.add_argument("--seed", type=int, default=0, help="seed of the draws")
    parser.add_argument("--out", default=None, help="folder for the results; default runs/evaluate-<task>-<number>")
    return parser.parse_args(argv)


if __name__ == "__main__":
    answer(parse_args)  # --help and bad flags before the heavy imports

import common
import tasks
from fast.choose import chooser
from support import contents, load, plots, processes
from support.check import Check
from support.check import words as check_words
from support.errors import UserError
from support.flags import cli, numbers
from support.folder import new_folder, versions, write_atomic
from support.output import to_json
from support.text import Chat, messages_of
from support.verifier import load_verifier, verify_scores


def draw_pool(policy, task, problems, samples, temperature=1.0, seed=0, max_new_tokens=0, kl=False, label="",
              target="solution"):
    """Sample and verify: one dict per problem with id, prompt, completions, rewards, answers, logps (mean per token),
    lengths (tokens), entropy (of the sampled distribution, nats per token), gold (log pi of the gold completion, if
    there is one), and with kl=True `kl`, the mean of log pi - log reference over the first 8 samples (nats).
    Problems are taken in blocks, on which the draws do not depend: of about 8,192 samples for a tiny model, of what
    takes ten seconds for others. Shows a bar on a terminal; else a line after the first block and each half minute, if
    it takes longer."""
    from tqdm import tqdm
    pool, most = [], max(1, 8192 // samples)
    tiny = policy.size < load.TINY
    size = most if tiny else max(1, 64 // samples)
    bar = tqdm(total=len(problems), desc=label or "evaluate", leave=False, unit="problem",
               disable=processes.RANK > 0 or None)  # None: silent in a pipe
    started = said = mark = time.time()
    while len(pool) < len(problems):
        first, block = len(pool), problems[len(pool):len(pool) + size]
        prompts = policy.encode([p.prompt for p in block], task.chat)
        drawn = common.sample(policy, prompts, samples, [common.seed_of("evaluate", seed, p.id) for p in block],
                              temperature, max_new_tokens or task.max_new_tokens)
        tokens, sums, lengths = drawn.lists(), drawn.logps.double().sum(-1).cpu(), drawn.lengths.cpu()  # [b, n] each
        entropies = (drawn.entropies.sum((1, 2)).cpu() / lengths.sum(1)).tolist()
        texts = [policy.texts(rows, [x]) for x, rows in zip(prompts, tokens)]
        owners = [p for p in block for _ in range(samples)]
        rewards = processes.rewards(task, owners, [text for rows in texts for text in rows])
        for b, p in enumerate(block):
            pool.append({"id": p.id, "prompt": p.prompt, "completions": texts[b],
                         "rewards": rewards.view(-1, samples)[b].tolist(),
                         "answers": [task.extract(t) for t in texts[b]], "logps": (sums[b] / lengths[b]).tolist(),
                         "lengths": lengths[b].tolist(), "entropy": entropies[b]})
        solutions = [task.target(p, target) for p in block]
        golds = [(entry, x, policy.encode_solution(text, entry["prompt"], task.chat))
                 for entry, x, text in zip(pool[first:], prompts, solutions) if text is not None]
        golds = [row for row in golds if row[2] and len(row[1]) + len(row[2]) <= policy.positions]
        if golds:
            found = common.sequence_logps(policy, [x for _, x, _ in golds], [y for _, _, y in golds], temperature)
            for (entry, *_), value in zip(golds, found.tolist()):
                entry["gold"] = value
        if kl:
            gaps = common.kl_gap(policy, prompts, drawn, temperature, (len(prompts), 8))
            for entry, gap in zip(pool[first:], gaps.mean(-1).tolist()):
                entry["kl"] = gap
        bar.update(len(block))
        now, done = time.time(), len(pool)
        left = (now - started) / done * (len(problems) - done)
        if left and (now - said > 30 or first == 0 and left > 30) and bar.disable and not processes.RANK:
            print(f"{label or 'evaluate'}: {done:,} of {len(problems):,} problems, {now - started:.0f} s, about "
                  f"{left:.0f} s left", flush=True)
            said = now
        if not tiny:  # the first process says it for all of them
            grown = min(most, max(1, int(size * min(4, 10 / max(1e-3, now - mark)))))
            size, mark = int(processes.all_reduce(0.0 if processes.RANK else float(grown))), now
    bar.close()
    return pool


def diversity(texts, answers):
    """How different the n completions of one problem are -> {name: number}.
    distinct    different completions;   answers  different answers (vote keys, no answer not counted)
    distinct-2  different pairs of neighbouring characters, over all of them
    similarity  mean difflib ratio (1 = equal) of up to 8 disjoint pairs of completions: 1 and 2, 3 and 4, ..."""
    pairs = [text[i:i + 2] for text in texts for i in range(len(text) - 1)]
    ratios = [SequenceMatcher(None, a, b, autojunk=False).ratio() for a, b in list(zip(texts[::2], texts[1::2]))[:8]]
    return {"distinct": len(set(texts)), "answers": len(set(answers) - {None}),
            "distinct-2": len(set(pairs)) / max(1, len(pairs)),
            "similarity": sum(ratios) / len(ratios) if ratios else math.nan}


def mean_diversity(texts, answers, n):
    """`diversity` of flat lists, n completions per problem, averaged over the problems."""
    found = [diversity(texts[i:i + n], answers[i:i + n]) for i in range(0, len(texts), n)]
    return {name: sum(f[name] for f in found) / len(found) for name in found[0]}


def add_scores(pool, verifier, chat=False):
    """Give every entry of a pool `scores`, those of the verifier for its completions."""
    pairs = [(entry["prompt"], text) for entry in pool for text in entry["completions"]]
    scores = verify_scores(verifier, *map(list, zip(*pairs)), chat)
    for entry in pool:
        entry["scores"], scores = scores[:len(entry["rewards"])], scores[len(entry["rewards"]):]


def auc(scores, right):
    """Chance that a right sample outscores a wrong one, ties half (Mann-Whitney); nan where one kind is missing."""
    import numpy as np
    _, place, count = np.unique(np.asarray(scores, dtype=float), return_inverse=True, return_counts=True)
    rank = (count.cumsum() - (count - 1) / 2)[place]  # mean rank of equal scores
    right = np.asarray(right) == 1
    p, q = int(right.sum()), int((~right).sum())
    return float((rank[right].sum() - p * (p + 1) / 2) / (p * q)) if p and q else math.nan


def judge_verifier(pool, resamples=200):
    """How well the scores of a pool tell right from wrong: AUC over all samples with a 95 % bootstrap interval over
    problems; calibration of sigmoid(score) in ten bins (mean probability, share right, count), its expected error."""
    import numpy as np
    scores, right = [np.array(e["scores"]) for e in pool], [np.array(e["rewards"]) == 1 for e in pool]
    rng, draws = np.random.default_rng(0), []
    for _ in range(resamples):
        some = rng.integers(len(pool), size=len(pool))
        draws.append(auc(np.concatenate([scores[i] for i in some]), np.concatenate([right[i] for i in some])))
    s, r = np.concatenate(scores), np.concatenate(right)
    probability = 0.5 + 0.5 * np.tanh(s / 2)
    bins = np.minimum((probability * 10).astype(int), 9)
    calibration = [[float(probability[bins == b].mean()), float(r[bins == b].mean()), int((bins == b).sum())]
                   for b in range(10) if (bins == b).any()]
    low, high = np.nanquantile(draws, [0.025, 0.975]) if not np.isnan(draws).all() else (math.nan, math.nan)
    return {"auc": auc(s, r), "low": float(low), "high": float(high), "calibration": calibration,
            "calibration_error": sum(abs(p - q) * n for p, q, n in calibration) / len(s),
            "score_right": float(s[r].mean()) if r.any() else None,
            "score_wrong": float(s[~r].mean()) if (~r).any() else None}


def metrics(pool, ks, graded=False, score="logp"):
    """Per-problem values of every metric from a pool -> {"pass@8": [one per problem], ...}."""
    values = {}
    for entry in pool:
        rewards, answers, n = entry["rewards"], entry["answers"], len(entry["rewards"])
        keys = {a for a, r in zip(answers, rewards) if r == 1 and a is not None}
        for k in ks:
            if graded:
                values.setdefault(f"max@{k}", []).append(common.bon_at_k(rewards, rewards, k))
            else:
                values.setdefault(f"pass@{k}", []).append(common.pass_at_k(n, sum(r == 1 for r in rewards), k))
                values.setdefault(f"maj@{k}", []).append(sum(common.maj_at_k(answers, key, k) for key in keys))
            by = {"oracle": rewards, "logp": entry["logps"], "verifier": entry.get("scores")}[score]
            values.setdefault(f"bon@{k}", []).append(common.bon_at_k(by, rewards, k))
        values.setdefault("reward", []).append(sum(rewards) / n)
        values.setdefault("length", []).append(sum(entry["lengths"]) / n)
        if "completions" in entry:
            for name, value in diversity(entry["completions"], answers).items():
                values.setdefault(name, []).append(value)
        for name in ("kl", "entropy", "gold"):
            if name in entry:
                values.setdefault(name, []).append(entry[name])
    return values


def that_fit(policy, task, problems):
    """The problems whose prompt leaves room for the task's max_new_tokens in the model's positions; says how many it
    left out.  Raises UserError if none is left, or nothing of a prompt."""
    longest = policy.positions - task.max_new_tokens
    rows = policy.encode([p.prompt for p in problems], task.chat)
    for p, ids in zip(problems, rows):
        if not ids:
            raise UserError(f"{p.id}: the tokenizer of this model leaves nothing of the prompt {p.prompt[:40]!r}: take "
                            "the problem out, or another model")
    kept = [p for p, ids in zip(problems, rows) if len(ids) <= longest]
    if not kept and problems:
        raise UserError(f"no problem leaves room for --max-new-tokens {task.max_new_tokens} in the model's "
                        f"{policy.limit}: lower it or take a model with more")
    if len(kept) < len(problems):
        print(f"left out {len(problems) - len(kept)} of {len(problems)} problems: prompts too long for the model",
              flush=True)
    return kept


def fit_length(policy, task):
    """Where the task's own max_new_tokens would fill the positions of a small model, take what the longest prompt
    leaves, half of them at least: sets it, says so and returns it; 0 where it stays."""
    if task.max_new_tokens <= policy.positions // 2:
        return 0
    prompts = policy.encode([p.prompt for p in task.train + task.valid + task.test], task.chat)
    room = max(policy.positions // 2, policy.positions - max(map(len, prompts), default=0))
    if room >= task.max_new_tokens:
        return 0
    task.max_new_tokens = room
    print(f"completions of at most {room} tokens, which the prompts leave of the model's {policy.limit} "
          "(--max-new-tokens)", flush=True)
    return room


def mean_se(values):
    """{"mean", "se"}: mean and standard error over problems (nan for one problem)."""
    n, mean = len(values), sum(values) / len(values)
    return {"mean": mean, "se": math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1) / n) if n > 1 else math.nan}


def evaluate(policy, task, problems, samples=64, ks=(1, 8, 32), temperature=1.0, seed=0, max_new_tokens=0, kl=False,
             score="logp", verifier=None, target="solution"):
    """What the training scripts call before the first and after the last update. With a verifier best-of-N selects by
    it. Returns ({"pass@8": {"mean", "se"}, ...}, pool).  Raises UserError if a k exceeds `samples`."""
    if max(ks) > samples:
        raise UserError(f"k = {max(ks)} needs at least as many samples per problem, not {samples}")
    pool = draw_pool(policy, task, problems, samples, temperature, seed, max_new_tokens, kl, target=target)
    if verifier:
        add_scores(pool, verifier, task.chat)
        score = "verifier"
    return {name: mean_se(v) for name, v in metrics(pool, ks, task.graded, score).items()}, pool


def table(results, kinds=("pass", "max", "maj", "bon", "kl", "length"), ks=None):
    """Text table of {row name: {"pass@8": {"mean", "se"}, ...}}: pass@k, maj@k, bon@k, KL and length, or other kinds;
    for the budgets ks only (None: all). maj@1 and bon@1 are the mean reward, as is pass@1, so they are left out."""
    names = [n for n in next(iter(results.values())) if n not in ("maj@1", "bon@1") and n.split("@")[0] in kinds
             and (ks is None or "@" not in n or int(n.split("@")[1]) in ks)]
    names.sort(key=lambda n: kinds.index(n.split("@")[0]))  # stable: k stays in order
    width = max(map(len, results))
    lines = [" " * width + "".join(f"{n:>15}" for n in names)]
    for row, result in results.items():
        cells = (f"{result[n]['mean']:.3f} ±{result[n]['se']:.3f}" if n in result else "-" for n in names)
        lines.append(f"{row:{width}}" + "".join(f"{cell:>15}" for cell in cells))
    return "\n".join(lines)


DIVERSITY = ("distinct", "answers", "entropy", "distinct-2", "similarity", "gold")  # the columns of the second table


def co_scaling(results):
    """Least squares of log(-log pass@N) = log(-a) + b log N per temperature (papers' eq.: pass@N = exp(a N^b), a < 0).
    results {T: {"pass@N": {"mean"}}} -> {T: {"a", "b", "rmse"}}, rmse of pass@N itself; without points at 0 or 1."""
    fits = {}
    for temperature, result in results.items():
        points = [(math.log(int(name[5:])), math.log(-math.log(cell["mean"])), cell["mean"])
                  for name, cell in result.items() if name.startswith("pass@") and 0 < cell["mean"] < 1]
        if len(points) < 2:
            continue
        mx, my = (sum(p[i] for p in points) / len(points) for i in (0, 1))
        b = sum((x - mx) * (y - my) for x, y, _ in points) / sum((x - mx) ** 2 for x, _, _ in points)
        a = -math.exp(my - b * mx)
        errors = [math.exp(a * math.exp(b * x)) - p for x, _, p in points]
        fits[temperature] = {"a": a, "b": b, "rmse": math.sqrt(sum(e * e for e in errors) / len(errors))}
    return fits


def run_flags(model):
    """Flags of a run folder, or None if `model` is none."""
    flags = contents.read_json(os.path.join(model, "args.json")).get("flags")
    known = isinstance(flags, dict) and {"model", "task", "data", "levels"} <= flags.keys()
    return flags if known else None


def base_and_adapter(model):
    """(base, adapter or None, flags of the adapter's run or None) that an argument names: a run folder, BASE+ADAPTER or
    a model.  Raises UserError if something that is a path is not there."""
    flags = run_flags(model)
    if flags:
        return contents.located(flags["model"], f"base of {model}, --model"), model, flags
    plus = [i for i, character in enumerate(model) if character == "+"]
    if model in load.EMBEDDED or os.path.exists(model) or not plus:
        return contents.located(model, "model"), None, None
    # a name may hold a + itself: the longest base that exists, or else a hub id, in which there is none
    place = next((i for i in reversed(plus) if model[:i] in load.EMBEDDED or os.path.exists(model[:i])), plus[0])
    base, adapter = model[:place], model[place + 1:]
    if not base or not adapter:
        raise UserError(f"{model}: give BASE+ADAPTER, or one of them alone")
    return contents.located(base, "base"), contents.located(adapter, "adapter"), run_flags(adapter)


def problems_of(args, runs):
    """The task to evaluate on: that of --task or --data; else that of the runs among the arguments, {argument: flags};
    else countdown.  Raises UserError if the runs are of different ones."""
    first = next((flags for flags in runs.values() if not args.data and args.task in (None, flags["task"])), None)
    if not args.task and not args.data:
        kinds = {}  # what a run was about: the first that was
        for model, flags in runs.items():
            kinds.setdefault(tuple(flags.get(name) for name in ("task", "data", "levels", "columns")), model)
        if len(kinds) > 1:
            told = (f"{model} of {' '.join(filter(None, kind))}" for kind, model in kinds.items())
            raise UserError(f"these runs are of different problems ({', '.join(told)}): evaluate them one by one, or "
                            "say on which with --task or --data")
    name, data, levels = args.task or (None if args.data else "countdown"), args.data, args.levels
    rows = args.columns, args.skip_bad_rows
    if first:
        name, data, levels = first["task"], first["data"], levels or first["levels"]
        rows = args.columns or first.get("columns"), args.skip_bad_rows or first.get("skip_bad_rows", False)
    return tasks.load_task(name, data, levels, args.allow_unsandboxed_code, *rows)


def read_pool(path):
    """A pool file -> list of dicts.  Raises UserError."""
    try:
        with open(path) as file:
            pool = [json.loads(line) for line in file]
        for entry in pool:
            [entry[name] for name in ("task", "graded", "id", "rewards", "answers", "logps", "lengths")]
            if "messages" in entry:
                entry["prompt"] = Chat((message["role"], message["content"]) for message in entry["messages"])
            for name in entry.keys() & {"kl", "entropy", "gold"}:
                entry[name] = number(entry[name])
            for name in entry.keys() & {"logps", "scores"}:
                entry[name] = [number(value) for value in entry[name]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"--pool {path} is no readable pool file ({error}): give a pool-*.jsonl of evaluate.py"
                        ) from error
    if not pool:
        raise UserError(f"--pool {path} is empty")
    return pool


def number(value):
    """A number of a JSON file, where null stands for what is not finite."""
    return math.nan if value is None else value


def draw_pools(args, task, parts, temperatures, verifier):
    """Sample every model of `parts` {argument: what base_and_adapter says of it} at every temperature -> {row: pool},
    {argument: findings of its check}."""
    pools, checks = {}, {}
    wanted, length = task.chat, task.max_new_tokens  # of the task: whether it asks for a template; its longest
    count = len(task.need(args.split)[:args.problems or None])
    print(f"{args.out}: {task.name}, {count:,} problems of the {args.split} split, {args.samples} samples each",
          flush=True)
    for model, (base, adapter, flags) in parts.items():
        own = flags if flags and adapter == model else {}  # of a run folder; BASE+ADAPTER is put as asked here
        policy = None  # two models need not fit at once
        gc.collect()
        policy = common.load_policy(base, args.bits or own.get("bits"), adapter=adapter, reference="base",
                                    fast=chooser(args.plain))
        findings = checks[model] = []
        policy.check = Check(findings.append)
        own, task.chat, task.max_new_tokens = own if args.chat is None else {}, wanted, length
        how = load.put_prompts(policy, task, own.get("chat", args.chat), args.system or own.get("system"))
        print(f"{model}: {policy.note}, prompts {how}", flush=True)
        if not args.max_new_tokens:
            fit_length(policy, task)
        problems = that_fit(policy, task, task.need(args.split))[:args.problems or None]
        for temperature in temperatures:
            row = model + (f" T={temperature:g}" if len(temperatures) > 1 else "")
            told = len(findings)
            pool = draw_pool(policy, task, problems, args.samples, temperature, args.seed, label=row)
            if findings and not told:
                print(check_words(findings[0]), flush=True)
            if verifier:
                add_scores(pool, verifier, task.chat)
            pools[row] = [{"task": task.name, "graded": task.graded, "chat": task.chat, **entry,
                           **messages_of(entry["prompt"])} for entry in pool]
            write_atomic(os.path.join(args.out, f"pool-{len(pools)}.jsonl"),  # at once: the next model may fail
                         "".join(to_json(entry) + "\n" for entry in pools[row]))
        del policy
    return pools, checks


def paired(values, pools):
    """{"row - first row": means of the differences problem by problem}, where both were on the same problems."""
    first, *others = values
    told = {row: [entry["id"] for entry in pool if "gold" in entry] for row, pool in pools.items()}
    found = {}
    for row in others:
        if [e["id"] for e in pools[row]] != [e["id"] for e in pools[first]]:
            continue
        names = [n for n in values[row] if n in values[first] and (n != "gold" or told[row] == told[first])]
        found[f"{row} - {first}"] = {n: mean_se([b - a for a, b in zip(values[first][n], values[row][n])])
                                     for n in names}
    return found


def show(report):
    """Print what result.json holds."""
    results = report["results"]
    print(table(results))
    if "distinct" in results[next(iter(results))]:
        print(table(results, DIVERSITY))
    for row, found in report.get("verifier", {}).items():
        print(f"verifier on {row}: AUC {found['auc']:.3f} [{found['low']:.3f}, {found['high']:.3f}], calibration "
              f"error {found['calibration_error']:.3f}")
    for row, found in report.get("paired", {}).items():
        print(table({f"{row} (paired)": found}))
    if report.get("counts"):
        print("  ".join(f"{n} {c}" for n, c in report["counts"].items()))
    for row, fit in report.get("co_scaling", {}).items():
        print(f"co-scaling {row}: pass@N = exp({fit['a']:.3f} N^{fit['b']:.3f}), rmse {fit['rmse']:.4f}")


def check(args, ks, pools):
    """Flags that argparse cannot judge.  Raises UserError."""
    for name in ("problems", "max_new_tokens"):
        if getattr(args, name) < 0:
            raise UserError(f"--{name.replace('_', '-')} must not be negative")
    if args.co_scaling and (args.pool or len(ks) < 2):
        raise UserError("--co-scaling needs to sample, and at least two budgets --k")
    samples = min((len(entry["rewards"]) for pool in pools.values() for entry in pool), default=args.samples)
    if max(ks) > samples:
        raise UserError(f"--k {max(ks)} exceeds the {samples} samples per problem: draw more samples or lower k")
    if args.score == "verifier" and not args.verifier:
        raise UserError("--score verifier needs --verifier: a folder of fit_verifier.py, or a reward model of "
                        "one label")
    kinds = {(entry["task"], entry["graded"]) for pool in pools.values() for entry in pool}
    if len(kinds) > 1:
        raise UserError("--pool: the files are of different tasks: rescore them one by one")
    for path, pool in pools.items():
        if args.verifier and not all("completions" in e and "prompt" in e for e in pool):
            raise UserError(f"--verifier: the pool file {path} has no completions to score")


def new_report(args, ks, pools, **known):
    """What result.json holds, from pools {row: list of dicts}."""
    graded = next(iter(pools.values()))[0]["graded"]
    values = {row: metrics(pool, ks, graded, args.score) for row, pool in pools.items()}
    results = {row: {n: mean_se(v) for n, v in value.items()} for row, value in values.items()}
    report = {"flags": vars(args), "results": results, **known, **versions()}
    if args.verifier:
        report["verifier"] = {row: judge_verifier(pool) for row, pool in pools.items()}
    if len(pools) > 1:
        report["paired"] = paired(values, pools)
    if args.co_scaling:
        report["co_scaling"] = co_scaling(results)
    return report


@cli
def main(argv=None):
    args = parse_args(argv)
    ks, temperatures = numbers(args.k, int, "--k"), numbers(args.temperature, float, "--temperature")
    pools = {path: read_pool(path) for path in args.pool or ()}
    check(args, ks, pools)
    args.verifier = contents.located(args.verifier, "--verifier")
    parts = {model: base_and_adapter(model) for model in args.models}  # all, before the first takes its time
    verifier = load_verifier(args.verifier, args.bits) if args.verifier else None
    args.score = args.score or ("verifier" if verifier else "logp")
    known = {}
    if pools:
        known["task"] = pools[args.pool[0]][0]["task"]
        args.out = new_folder(args.out, f"evaluate-{known['task']}")
        for pool in pools.values() if verifier else ():
            add_scores(pool, verifier, pool[0].get("chat", False))
    else:
        task = problems_of(args, {model: flags for model, (*_, flags) in parts.items() if flags})
        task.max_new_tokens = args.max_new_tokens or task.max_new_tokens
        if not parts:
            args.models, parts = [task.base], {task.base: (task.base, None, None)}
        known["task"] = task.name
        args.out = new_folder(args.out, f"evaluate-{task.name}")
        pools, known["checks"] = draw_pools(args, task, parts, temperatures, verifier)
        known["counts"] = dict(task.counts)
    report = new_report(args, ks, pools, **known)
    # files first: what is printed may have no reader
    write_atomic(os.path.join(args.out, "result.json"), to_json(report, indent=1))
    plots.plot(report["results"], os.path.join(args.out, "curves.png"), known["task"])
    if args.co_scaling:
        plots.plot_co_scaling(report["results"], report["co_scaling"], os.path.join(args.out, "co_scaling.png"))
    show(report)
    print(f"written to {args.out}/")


if __name__ == "__main__":
    main()
