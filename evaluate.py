"""Evaluate models, adapters and run folders on the same problems: pass@k, maj@k, BoN@k with standard errors.

    python evaluate.py tiny runs/ppo_passk-countdown-passk-1 --task countdown --samples 64 --k 1,8,32

Each of n samples per problem is drawn once; every k <= n is then computed exactly from that pool (common.py):
    pass@k  1 - C(n-c,k)/C(n,k)                          (max@k for graded rewards)
    maj@k   expected accuracy of a plurality vote, ties shared, summed over the keys that were verified right
    BoN@k   expected reward of the best of k by --score: the mean token log-probability, or the environment
            reward itself (`oracle`, which equals max@k)
Standard errors are over problems; models are compared with the first one problem by problem (paired). A run folder
brings its base, precision and task; temperature and length are this command's own. Writes result.json, curves.png and
one pool-<n>.jsonl per model and temperature, which `--pool` rescores without sampling again. `--co-scaling` fits
pass@N(T) = exp(a(T) N^b(T)) at each temperature (Chow et al. 2024, arXiv 2412.15287).
"""
import argparse
import json
import math
import os


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0],
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("models", nargs="*", default=["tiny"],
                        help="run folders, hub ids, local model directories or 'tiny'; BASE+ADAPTER puts an adapter on a base")
    parser.add_argument("--task", default=None, help="task name; default: that of the first run folder, else countdown")
    parser.add_argument("--data", default=None, help="problems from FILE.jsonl, or a local copy of the task's data set")
    parser.add_argument("--levels", default=None, help="difficulty levels of the task `math`, e.g. 1-3")
    parser.add_argument("--split", default="test", choices=["train", "valid", "test"], help="problems to use")
    parser.add_argument("--problems", type=int, default=0, help="how many problems; 0 = all of the split")
    parser.add_argument("--samples", type=int, default=64, help="samples per problem n")
    parser.add_argument("--k", default="1,2,4,8,16,32", help="budgets k, comma-separated, each at most --samples")
    parser.add_argument("--temperature", default="1.0", help="sampling temperatures, comma-separated")
    parser.add_argument("--max-new-tokens", type=int, default=0, help="longest completion in tokens; 0 = the task's own")
    parser.add_argument("--score", default="logp", choices=["logp", "oracle"], help="what best-of-N selects by")
    parser.add_argument("--bits", type=int, default=None, choices=[4, 8, 16, 32],
                        help="precision of the base; default 4 (NF4) on a GPU, 32 on a CPU")
    parser.add_argument("--pool", nargs="+", default=None, help="rescore these pool files instead of sampling")
    parser.add_argument("--co-scaling", action="store_true", help="fit and plot pass@N(T) = exp(a(T) N^b(T))")
    parser.add_argument("--seed", type=int, default=0, help="seed of the draws")
    parser.add_argument("--out", default=None, help="folder for the results; default runs/evaluate-<task>-<number>")
    return parser.parse_args(argv)


if __name__ == "__main__":
    parse_args()  # --help and bad flags answer before the heavy imports

import common
import tasks
from common import UserError


def draw_pool(policy, task, problems, samples, temperature=1.0, seed=0, max_new_tokens=0, kl=False, label=""):
    """Sample and verify: one dict per problem with id, prompt, completions, rewards, answers, logps (mean per token),
    lengths (tokens), and with kl=True `kl`, the mean of log pi - log reference over the first 8 samples (nats).
    Problems are taken in blocks of about 8,192 samples; the draws do not depend on the blocks."""
    from tqdm import tqdm
    pool, size, m = [], max(1, 8192 // samples), min(8, samples)
    for first in tqdm(range(0, len(problems), size), desc=label or "evaluate", leave=False, disable=None):  # silent in a pipe
        block = problems[first:first + size]
        prompts = [policy.encode(p.prompt, task.chat) for p in block]
        drawn = common.sample(policy, prompts, samples, [common.seed_of("evaluate", seed, p.id) for p in block],
                              temperature, max_new_tokens or task.max_new_tokens)
        tokens, sums, lengths = drawn.lists(), drawn.logps.double().sum(-1).cpu(), drawn.lengths.cpu()  # [b][n], [b, n], [b, n]
        texts = [[policy.decode(row) for row in rows] for rows in tokens]
        flat = task.rewards([p for p in block for _ in range(samples)], [t for rows in texts for t in rows])
        for b, p in enumerate(block):
            pool.append({"id": p.id, "prompt": p.prompt, "completions": texts[b], "rewards": flat[b * samples:(b + 1) * samples],
                         "answers": [task.extract(t) for t in texts[b]], "logps": (sums[b] / lengths[b]).tolist(),
                         "lengths": lengths[b].tolist()})
        if kl:
            with policy.reference():
                reference = common.sequence_logps(policy, [x for x in prompts for _ in range(m)],
                                                  [row for rows in tokens for row in rows[:m]], temperature)
            for entry, gap in zip(pool[first:], (sums[:, :m] - reference.view(-1, m)).mean(-1).tolist()):
                entry["kl"] = gap
    return pool


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
            by = rewards if score == "oracle" else entry["logps"]
            values.setdefault(f"bon@{k}", []).append(common.bon_at_k(by, rewards, k))
        values.setdefault("reward", []).append(sum(rewards) / n)
        values.setdefault("length", []).append(sum(entry["lengths"]) / n)
        if "kl" in entry:
            values.setdefault("kl", []).append(entry["kl"])
    return values


def evaluate(policy, task, problems, samples=64, ks=(1, 8, 32), temperature=1.0, seed=0, max_new_tokens=0, kl=False,
             score="logp"):
    """What the training scripts call before the first and after the last update.
    Returns ({"pass@8": {"mean", "se"}, ...}, pool).  Raises UserError if a k exceeds `samples`."""
    if max(ks) > samples:
        raise UserError(f"k = {max(ks)} needs at least as many samples per problem, not {samples}")
    pool = draw_pool(policy, task, problems, samples, temperature, seed, max_new_tokens, kl)
    return {name: common.mean_se(v) for name, v in metrics(pool, ks, task.graded, score).items()}, pool


def gold_logp(policy, task, problems, temperature=1.0, target="solution"):
    """{"gold_logp": {"mean", "se"}}: log pi of the gold completions of the problems that have one; {} if none has."""
    pairs = [(p, task.target(p, target)) for p in problems]
    pairs = [p for p, text in pairs if text is not None]
    if not pairs:
        return {}
    kept, golds = common.gold(policy, task, pairs, target)
    logps = common.sequence_logps(policy, [policy.encode(p.prompt, task.chat) for p in kept], golds, temperature)
    return {"gold_logp": common.mean_se(logps.tolist())}


def table(results):
    """Text table of {row name: {"pass@8": {"mean", "se"}, ...}}: pass@k, maj@k, bon@k, then the rest. maj@1 and bon@1
    are the mean reward, which pass@1 is as well, so they are left out."""
    names = [n for n in next(iter(results.values())) if n not in ("maj@1", "bon@1", "reward")]
    names.sort(key=lambda n: ("pass", "max", "maj", "bon", "kl", "length", "gold_logp").index(n.split("@")[0]))  # stable: k stays in order
    width = max(map(len, results))
    lines = [" " * width + "".join(f"{n:>14}" for n in names)]
    for row, result in results.items():
        cells = (f"{result[n]['mean']:.3f} ±{result[n]['se']:.3f}" if n in result else "-" for n in names)
        lines.append(f"{row:{width}}" + "".join(f"{cell:>14}" for cell in cells))
    return "\n".join(lines)


def plot(results, path, title=""):
    """Picture of pass@k (max@k), maj@k and BoN@k against k, one line per row of `results`, bars of one standard error."""
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot
    kinds = [kind for kind in ("pass", "max", "maj", "bon") if any(f"{kind}@" in n for r in results.values() for n in r)]
    figure, axes = pyplot.subplots(1, len(kinds), figsize=(4.2 * len(kinds), 3.4), squeeze=False)
    for axis, kind in zip(axes[0], kinds):
        for row, result in results.items():
            ks = sorted(int(n.split("@")[1]) for n in result if n.startswith(kind + "@"))
            cells = [result[f"{kind}@{k}"] for k in ks]
            axis.errorbar(ks, [c["mean"] for c in cells], [c["se"] for c in cells], marker="o", ms=3, label=row)
        axis.set_xscale("log", base=2)
        axis.set_xlabel("k")
        axis.set_title({"pass": "pass@k", "max": "max@k", "maj": "maj@k", "bon": "BoN@k"}[kind], fontsize=10)
        axis.grid(alpha=0.3)
    axes[0][0].legend(fontsize=7)
    figure.suptitle(title, fontsize=10)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def plot_run(folder):
    """curves.png of a run folder: the training curves from metrics.jsonl, and k-curves before and after from result.json."""
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot
    with open(os.path.join(folder, "metrics.jsonl")) as file:
        lines = [json.loads(line) for line in file]
    with open(os.path.join(folder, "result.json")) as file:
        result = json.load(file)
    curves = [name for name in lines[0] if name.startswith(("pass@", "max@", "reward", "gold_logp"))]
    figure, axes = pyplot.subplots(1, 3, figsize=(12, 3.4))
    for name in curves:
        smooth, width = [], max(1, len(lines) // 20)
        for i in range(len(lines)):
            window = [line[name] for line in lines[max(0, i - width):i + width + 1]]
            smooth.append(sum(window) / len(window))
        axes[0].plot([line["step"] for line in lines], smooth, label=name)
    axes[0].set(xlabel="step", title="training batches (smoothed)")
    for name, label in (("kl", "KL to the reference (nats)"), ("zero", "share of zero weights"), ("w_even", "share of weights within 5 % of their mean")):
        if name in lines[0]:
            axes[1].plot([line["step"] for line in lines], [line[name] for line in lines], label=label)
    axes[1].set(xlabel="step")
    for axis in axes[:2]:
        axis.legend(fontsize=7)
        axis.grid(alpha=0.3)
    for kind, style in (("pass", "-"), ("max", "-"), ("maj", "--")):
        for row, color in (("before", "tab:gray"), ("after", "tab:blue")):
            ks = sorted(int(n.split("@")[1]) for n in result.get(row, {}) if n.startswith(kind + "@"))
            if ks:
                cells = [result[row][f"{kind}@{k}"] for k in ks]
                axes[2].errorbar(ks, [c["mean"] for c in cells], [c["se"] for c in cells], marker="o", ms=3,
                                 linestyle=style, color=color, label=f"{kind}@k {row}")
    if axes[2].has_data():
        axes[2].set_xscale("log", base=2)
        axes[2].legend(fontsize=7)
    axes[2].set(xlabel="k", title="test problems, before and after")
    axes[2].grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(os.path.join(folder, "curves.png"), dpi=110)
    pyplot.close(figure)


def weight_report(train, tests, folder, xlabel):
    """weights.png, weights.json and a table: what a training weight pays attention to, against what a test budget needs.

    train  (label, w [G]): the training weight at x = (i + 1/2) / G, so uniform on (0, 1)
    tests  {label: w [G]}: the same for each test budget
    alignment   cosine of the two weights over x
    waste       x where training pushes and the test weight has gone (below 5 % of its maximum)
    starvation  x where the test weight is there and training is silent (below 5 % of its maximum)
    As we read the diagnostics of arXiv 2604.24957; the 5 % are ours. Returns {label: {"alignment", "waste", "starvation"}},
    regions as lists of [from, to].
    """
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot
    name, w = train
    G = len(w)

    def region(mask):
        edges = [i for i in range(G + 1) if (i < G and bool(mask[i])) != (i > 0 and bool(mask[i - 1]))]
        return [[a / G, b / G] for a, b in zip(edges[::2], edges[1::2])]
    report, on = {}, w > 0.05 * w.max()
    print(f"training weight {name}: mean {w.mean():.3g}, at {xlabel} = .1, .5, .9: " + ", ".join(f"{w[int(x * G)]:.3g}" for x in (.1, .5, .9)))
    figure, axis = pyplot.subplots(figsize=(6, 3.8))
    for label, v in tests.items():
        want = v > 0.05 * v.max()
        report[label] = {"alignment": float((w * v).sum() / (w.norm() * v.norm())), "waste": region(on & ~want),
                         "starvation": region(want & ~on)}
        spans = {k: " ".join(f"{a:.2f}-{b:.2f}" for a, b in report[label][k]) or "none" for k in ("waste", "starvation")}
        print(f"  {label:14} alignment {report[label]['alignment']:.3f}   waste {spans['waste']:12} starvation {spans['starvation']}")
        axis.plot([(i + .5) / G for i in range(G)], v / v.max(), label=label, lw=1)
    axis.plot([(i + .5) / G for i in range(G)], w / w.max(), "k--", label=f"training: {name}")
    axis.set(xlabel=xlabel, ylabel="weight / its maximum")
    axis.legend(fontsize=7)
    axis.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(os.path.join(folder, "weights.png"), dpi=110)
    pyplot.close(figure)
    common.write_atomic(os.path.join(folder, "weights.json"), json.dumps({"training": name, "weights": w.tolist(), "tests": report}))
    print(f"written to {folder}/")
    return report


def co_scaling(results):
    """Least squares of log(-log pass@N) = log(-a) + b log N per temperature (papers' eq.: pass@N = exp(a N^b), a < 0).
    results {T: {"pass@N": {"mean"}}} -> {T: {"a", "b", "rmse"}}, rmse of pass@N itself; points at 0 or 1 are left out."""
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


def numbers(text, kind, flag):
    """The distinct positive numbers of a comma-separated flag, in order.  Raises UserError."""
    try:
        values = sorted({kind(part) for part in text.split(",")})
    except ValueError:
        values = []
    if not values or not 0 < values[0] <= values[-1] < math.inf:
        raise UserError(f"{flag} {text!r}: give positive numbers separated by commas")
    return values


def run_flags(model):
    """Flags of a run folder, or None if `model` is none."""
    try:
        with open(os.path.join(model, "args.json")) as file:
            return json.load(file)["flags"]
    except (OSError, ValueError, KeyError):
        return None


def read_pool(path):
    """A pool file -> list of dicts.  Raises UserError."""
    try:
        with open(path) as file:
            pool = [json.loads(line) for line in file]
        for entry in pool:
            entry["task"], entry["graded"], entry["id"], entry["rewards"], entry["answers"], entry["logps"], entry["lengths"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"--pool {path} is no readable pool file ({error}): give a pool-*.jsonl of evaluate.py") from error
    if not pool:
        raise UserError(f"--pool {path} is empty")
    return pool


@common.cli
def main(argv=None):
    args = parse_args(argv)
    ks, temperatures = numbers(args.k, int, "--k"), numbers(args.temperature, float, "--temperature")
    for name in ("problems", "max_new_tokens"):
        if getattr(args, name) < 0:
            raise UserError(f"--{name.replace('_', '-')} must not be negative")
    if args.co_scaling and (args.pool or len(ks) < 2):
        raise UserError("--co-scaling needs to sample, and at least two budgets --k")
    pools = {path: read_pool(path) for path in args.pool or ()}
    samples = min((len(entry["rewards"]) for pool in pools.values() for entry in pool), default=args.samples)
    if max(ks) > samples:
        raise UserError(f"--k {max(ks)} exceeds the {samples} samples per problem: draw more samples or lower k")

    if args.pool:
        kinds = {(entry["task"], entry["graded"]) for pool in pools.values() for entry in pool}
        if len(kinds) > 1:
            raise UserError("--pool: the files are of different tasks: rescore them one by one")
        (name, graded), = kinds
        out = common.new_folder(args.out, f"evaluate-{name}")
    else:
        first = run_flags(args.models[0])
        own = first and not args.data and args.task in (None, first["task"])  # the problems of the first run itself
        task = tasks.load_task(first["task"] if own else args.task or (None if args.data else "countdown"),
                               data=first["data"] if own else args.data, levels=args.levels or (first["levels"] if own else None))
        name, graded = task.name, task.graded
        out = common.new_folder(args.out, f"evaluate-{name}")
        for model in args.models:
            flags = run_flags(model)
            base, _, adapter = ((flags["model"], "", model) if flags else (model, "", "") if os.path.exists(model)
                                else model.partition("+"))
            policy = common.load_policy(base, args.bits or (flags or {}).get("bits"), adapter=adapter or None, reference="base")
            print(f"{model}: {policy.note}", flush=True)
            problems = common.that_fit(policy, task, task.need(args.split), args.max_new_tokens or task.max_new_tokens)
            for temperature in temperatures:
                row = model + (f" T={temperature:g}" if len(temperatures) > 1 else "")
                pool = draw_pool(policy, task, problems[:args.problems or None], args.samples, temperature, args.seed,
                                 args.max_new_tokens, label=row)
                pools[row] = [{"task": name, "graded": graded, **entry} for entry in pool]
                common.write_atomic(os.path.join(out, f"pool-{len(pools)}.jsonl"),  # at once: the next model may fail
                                    "".join(json.dumps(entry) + "\n" for entry in pools[row]))
            del policy

    values = {row: metrics(pool, ks, graded, args.score) for row, pool in pools.items()}
    results = {row: {n: common.mean_se(v) for n, v in value.items()} for row, value in values.items()}
    report = {"task": name, "flags": {**vars(args), "out": out}, "results": results, **common.versions()}
    print(table(results))
    first, *others = values
    for row in others:
        if [e["id"] for e in pools[row]] == [e["id"] for e in pools[first]]:
            paired = {n: common.mean_se([b - a for a, b in zip(values[first][n], values[row][n])]) for n in values[row]}
            report.setdefault("paired", {})[f"{row} - {first}"] = paired
            print(table({f"{row} - {first} (paired)": paired}))
    if not args.pool and task.counts:
        report["counts"] = dict(task.counts)
        print("  ".join(f"{n} {c}" for n, c in task.counts.items()))
    if args.co_scaling:
        report["co_scaling"] = fits = co_scaling(results)
        for row, fit in fits.items():
            print(f"co-scaling {row}: pass@N = exp({fit['a']:.3f} N^{fit['b']:.3f}), rmse {fit['rmse']:.4f}")
        plot_co_scaling(results, fits, os.path.join(out, "co_scaling.png"))
    plot(results, os.path.join(out, "curves.png"), name)
    common.write_atomic(os.path.join(out, "result.json"), json.dumps(report, indent=1))
    print(f"written to {out}/")


def plot_co_scaling(results, fits, path):
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot
    figure, axis = pyplot.subplots(figsize=(5, 3.6))
    for row, fit in fits.items():
        cells = {int(n[5:]): c["mean"] for n, c in results[row].items() if n.startswith("pass@")}
        line = axis.plot(list(cells), list(cells.values()), "o", ms=4, label=row)[0]
        axis.plot(list(cells), [math.exp(fit["a"] * n ** fit["b"]) for n in cells], "-", color=line.get_color())
    axis.set(xscale="log", xlabel="N", ylabel="pass@N", title="dots: measured, lines: exp(a N^b)")
    axis.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


if __name__ == "__main__":
    main()
