"""The figures of results/claims.py, from the records alone.

Colours are Okabe and Ito's, which the colour-blind tell apart; each line also has a style and a marker of its own, so
that a grey print can be read. Grey is always the base, vermilion the inference-unaware twin, blue the aware objective;
what else there is has the others. A band, or a bar, is the 95 % interval over seeds (t).
"""
import math
import os
import statistics
from functools import partial

import runner
import which

FOLDER = os.path.join(runner.ROOT, "results", "figures")
STYLES = {  # colour, line, marker
    "base": ("#777777", (0, (4, 2)), "o"), "twin": ("#D55E00", (0, (1, 1)), "s"), "aware": ("#0072B2", "-", "^"),
    "green": ("#009E73", (0, (5, 1, 1, 1)), "D"), "purple": ("#CC79A7", (0, (3, 1)), "v"),
    "sky": ("#56B4E9", (0, (6, 2, 1, 2, 1, 2)), "P")}
METRIC = {"pass": "pass@k", "maj": "maj@k", "bon": "best of k by the verifier", "max": "best of k"}


def middle(values):
    """(mean, low, high) of numbers, one per seed; of a single one the ends are its own, of none it is None."""
    if len(values) < 2:
        return tuple(values * 3) or None
    return runner.interval(values)


def point(found, row, metric, minus=None):
    """`middle` of a row's metric over its seeds, less that of the row `minus` at the same seed."""
    return middle(runner.differences(found, row, minus, metric))


def band(axis, x, points, style, label):
    """A line through points (mean, low, high) at x, with its band."""
    color, line, marker = STYLES[style]
    mean, low, high = zip(*points)
    axis.plot(x, mean, color=color, linestyle=line, marker=marker, ms=4, lw=1.4, label=label)
    axis.fill_between(x, low, high, color=color, alpha=.2, lw=0)


def log_ticks(axis, ks):
    axis.set_xscale("log", base=2)
    axis.set_xticks(ks, [str(k) for k in ks])


def curve(axis, found, row, label, style, kind="pass", minus=None, ks=runner.KS):
    """A metric of a row against k (`minus`: less that of another row), with its band."""
    points = [point(found, row, f"{kind}@{k}", minus) for k in ks]
    if None in points:
        return
    band(axis, ks, points, style, label)
    log_ticks(axis, ks)
    axis.set(xlabel="k", ylabel=METRIC[kind] + (f" minus that of {minus}" if minus else ""))


def panel(axis, found, title, kind, rows, minus=None):
    for row, label, style in rows:
        curve(axis, found, row, label, style, kind, minus)
    axis.set_title(title, fontsize=10)


def curves(*panels):
    """A figure of curves against k. panels: (title, kind, [(row, label, style), ...][, row to subtract]). Those of
    which fewer than two rows are recorded are left out."""
    return lambda found: [partial(panel, found=found, title=title, kind=kind, rows=rows, **dict(zip(["minus"], minus)))
                          for title, kind, rows, *minus in panels
                          if sum(bool(runner.runs_of(found, row)) for row, _, _ in rows) > 1]


def kl(found):
    """Pass@8 against KL to the base, one point per KL coefficient."""
    rows = {o: [f"kl-{o}-{beta}" for beta in ("0.1", "0.03", "0.01")] for o in ("mean", "passk")}
    points = {o: [(point(found, row, "kl"), point(found, row, "pass@8")) for row in rows[o]] for o in rows}

    def paint(axis):
        for objective, style, label in (("mean", "twin", "mean"), ("passk", "aware", "pass@8")):
            color, line, marker = STYLES[style]
            x, y = ([point[i][0] for point in points[objective]] for i in range(2))
            bars = {f"{n}err": [[abs(p[i][end] - p[i][0]) for p in points[objective]] for end in (1, 2)]
                    for i, n in enumerate("xy")}
            axis.errorbar(x, y, **bars, color=color, linestyle=line, marker=marker, capsize=2, label=label)
            for beta, a, b in zip((".1", ".03", ".01"), x, y):
                axis.annotate(beta, (a, b), textcoords="offset points", xytext=(5, -10), fontsize=8, color=color)
        base = point(found, "countdown-base", "pass@8")
        if base:
            axis.plot(0, base[0], marker="o", color=STYLES["base"][0], linestyle="none", label="base")
        axis.set(xlabel="KL to the base (nats)", ylabel="pass@8")
        axis.set_title("countdown, numbers: --kl-coef", fontsize=10)
    return [] if any(None in point for o in rows for point in points[o]) else [paint]


def temperatures(found):
    """Pass@8 against the temperature of the test; pass@N of one seed with the fits exp(a N^b)."""
    def tested(axis):
        for model, label, style in (("base", "base", "base"), ("rl", "RL", "twin"), ("bp-8", "RLB(P), T = 1", "aware"),
                                    ("bp-8-cold", "RLB(P), T = .5", "green")):
            points = {float(t): point(found, f"{model}-T{t}", "pass@8") for t in runner.TEMPERATURES}
            points = {t: cell for t, cell in points.items() if cell}
            if points:
                band(axis, list(points), points.values(), style, label)
        axis.set(xlabel="temperature of the test", ylabel="pass@8")
        axis.set_title("countdown, 200 test problems", fontsize=10)

    def fitted(axis):
        ks = runner.KS[:-1]
        for t, style in zip(runner.TEMPERATURES, ("base", "twin", "aware", "green", "purple")):
            color, line, marker = STYLES[style]
            run = found[f"base-T{t}", 0]
            a, b = run["co_scaling"]["a"], run["co_scaling"]["b"]
            axis.plot(ks, [run["after"][f"pass@{k}"]["mean"] for k in ks], marker, color=color, ms=4, label=f"T = {t}")
            axis.plot(ks, [math.exp(a * k ** b) for k in ks], linestyle=line, color=color, lw=1.2)
        log_ticks(axis, ks)
        axis.set(xlabel="N", ylabel="pass@N")
        axis.set_title("base, one seed: measured, and exp(a N^b)", fontsize=10)
    return [tested, fitted] if all((f"base-T{t}", 0) in found for t in runner.TEMPERATURES) else []


def weights(found):
    """Raw weights N (1-p)^(N-1) of RL over the success rate p: where the weight trained with and that of the test are
    both above 5 % of their maximum, and where only one is. Needs no run."""
    p = [(i + .5) / 400 for i in range(400)]
    test = [16 * (1 - x) ** 15 for x in p]

    def paint(axis, n, style):
        trained = [n * (1 - x) ** (n - 1) for x in p]
        on, want = [w > .05 * n for w in trained], [w > .05 * 16 for w in test]
        axis.fill_between(p, 0, 1, where=[a and not b for a, b in zip(on, want)], color=STYLES["twin"][0], alpha=.18,
                          hatch="//", lw=0, label="waste: trained, not needed")
        axis.fill_between(p, 0, 1, where=[b and not a for a, b in zip(on, want)], color=STYLES["purple"][0], alpha=.3,
                          hatch="..", lw=0, label="starvation: needed, not trained")
        color, line, _ = STYLES[style]
        axis.plot(p, [w / n for w in trained], color=color, linestyle=line, label=f"trained for pass@{n}")
        axis.plot(p, [w / 16 for w in test], color=STYLES["base"][0], linestyle=STYLES["base"][1],
                  label="of the test, pass@16")
        axis.set(xlabel="success rate p", ylabel="weight / its maximum")
        axis.set_title(f"trained for pass@{n}, tested at pass@16", fontsize=10)
    return [partial(paint, n=n, style=style) for n, style in ((1, "twin"), (16, "aware"), (64, "green"))]


POINTS = {  # of the table of objectives: colour and marker; one paper, one shape of marker
    "base": ("#000000", "*"), "mean": ("#D55E00", "s"), "passk": ("#0072B2", "s"), "majority": ("#009E73", "s"),
    "bon-sft": ("#E69F00", "^"), "bon-rlbp": ("#0072B2", "^"), "bon-s": ("#CC79A7", "^"), "bon-v": ("#56B4E9", "^"),
    "cat-passk": ("#0072B2", "o"), "cat-pool": ("#56B4E9", "o"), "cat-majority": ("#009E73", "o"),
    "maxrl-16": ("#D55E00", "D"), "maxrl-8": ("#E69F00", "D"), "passk-8-1": ("#CC79A7", "s"),
    "rucaibox": ("#009E73", "D"), "verl": ("#CC79A7", "D"), "rs-grpo": ("#56B4E9", "D"), "grpo": ("#000000", "D")}


def scatter(x, y):
    """One point per objective with the 95 % interval of each metric, a panel per task; where more of both is better,
    also the frontier: the points that no other one exceeds in both. The panel has room for the points, and an interval
    that leaves it is cut: one collapsed seed makes one as wide as all of the metric."""
    def paint(axis, found, task):
        points = []
        for objective, (color, marker) in POINTS.items():
            row = which.chosen(found, task, objective)
            at = row and point(found, row, x), row and point(found, row, y)
            if None not in at:
                bars = [[[abs(at[i][0] - at[i][end])] for end in (1, 2)] for i in range(2)]
                axis.errorbar(at[0][0], at[1][0], xerr=bars[0], yerr=bars[1], color=color, capsize=2, lw=1)
                axis.plot(at[0][0], at[1][0], color=color, marker=marker, ms=7, linestyle="none", label=objective)
                points.append((at[0][0], at[1][0]))
        if x != "kl":
            front = sorted(p for p in points if not any(q[0] >= p[0] and q[1] >= p[1] and q != p for q in points))
            axis.plot(*zip(*front), color="#777777", lw=1, zorder=0)
        for limits, values in zip((axis.set_xlim, axis.set_ylim), zip(*points)):
            room = .15 * (max(values) - min(values))
            limits(min(values) - room, max(values) + room)
        axis.set(xlabel="KL to the base (nats)" if x == "kl" else x, ylabel=y)
        axis.set_title(task, fontsize=10)
    return lambda found: [partial(paint, found=found, task=task) for task in which.TASKS
                          if sum(which.chosen(found, task, objective) is not None for objective in POINTS) > 2]


def learning(found, task="countdown6", window=10):
    """Pass@k of the samples of training against how many were drawn, `window` steps together, of the five objectives
    that are best in the end."""
    shown = {o: runner.runs_of(found, which.chosen(found, task, o)) for o in which.best_five(found, task, "pass@8")}

    def paint(axis, metric):
        for objective, runs in shown.items():
            curves = [run["curve"][metric] for run in runs.values() if metric in run["curve"]]
            if curves:
                x = range(0, len(curves[0]), window)
                points = [middle([statistics.mean(c[i:i + window]) for c in curves]) for i in x]
                mean, low, high = zip(*points)
                color, marker = POINTS[objective]
                drawn = [(i + window) * 1.024 for i in x]
                axis.plot(drawn, mean, color=color, marker=marker, ms=4, lw=1.2, label=objective)
                axis.fill_between(drawn, low, high, color=color, alpha=.12, lw=0)
        axis.set(xlabel="samples drawn, thousands", ylabel=metric)
        axis.set_title(f"{task}, while training", fontsize=10)
    return [partial(paint, metric=metric) for metric in ("pass@1", "pass@8")] if shown else []


COUNTDOWN, ROUTES = ("countdown-base", "base", "base"), ("routes-base", "base", "base")
FIGURES = {
    "ksample": curves(
        ("countdown", "pass", [COUNTDOWN, ("countdown-mean", "mean", "twin"), ("countdown-passk", "pass@8", "aware")]),
        ("routes", "pass", [ROUTES, ("routes-mean", "mean", "twin"), ("routes-passk", "pass@8", "aware")]),
        ("routes", "maj", [ROUTES, ("routes-mean", "mean", "twin"), ("routes-passk", "pass@8", "aware"),
                           ("routes-majority", "majority", "green")])),
    "kl": kl,
    "bon": curves(
        ("RL", "pass", [COUNTDOWN, ("rl", "RL", "twin"), ("bp-8", "RLB(P), N = 8", "aware")]),
        ("supervised, 200 gold solutions", "pass", [COUNTDOWN, ("bon-sft-1", "SFT", "twin"),
                                                    ("bon-sft-16", "BoN-SFT, N = 16", "aware")]),
        ("a verifier in the loop", "bon", [COUNTDOWN, ("s", "S: trained by the reward", "twin"),
                                           ("v", "V: trained by the verifier", "aware")])),
    "rlb": curves(
        ("N = 8", "pass", [
            ("rl", "RL", "twin"), ("rl-entropy", "RL, entropy bonus", "green"), ("bp-8", "RLB(P)", "aware"),
            ("b-8", "RLB, failures down", "purple")], "countdown-base"),
        ("N = 16", "pass", [
            ("bp-16", "RLB(P)", "aware"), ("b-16", "RLB, failures down", "purple")], "countdown-base")),
    "temperatures": temperatures,
    "catsft": curves(
        ("SFT, 50 gold solutions", "pass", [
            COUNTDOWN, ("gold50-1", "N = 1", "twin"), ("gold50-16", "N = 16", "aware"),
            ("gold50-64", "N = 64", "green")]),
        ("SFT, 4,000 gold solutions", "pass", [
            COUNTDOWN, ("gold4000-1", "N = 1", "twin"), ("gold4000-16", "N = 16", "aware")])),
    "catrl": curves(
        ("RL, N = 16", "pass", [
            COUNTDOWN, ("cat-1", "standard RL", "twin"), ("cat-sequence-16", "log, p of the sample", "purple"),
            ("cat-raw-16", "raw, success rate", "aware"), ("cat-log-16", "log, success rate", "green"),
            ("old-cat-pool-16", "pool", "sky")]),
        ("the same, minus the base", "pass", [
            ("cat-1", "standard RL", "twin"), ("cat-sequence-16", "log, p of the sample", "purple"),
            ("cat-raw-16", "raw, success rate", "aware"), ("cat-log-16", "log, success rate", "green"),
            ("old-cat-pool-16", "pool", "sky")], "countdown-base")),
    "catwarm": curves(
        ("warm-up on 50 gold solutions, then RL", "pass", [
            COUNTDOWN, ("gold50-1-then-1", "cross-entropy, RL", "twin"), ("gold50-16-then-1", "aligned, RL", "aware"),
            ("gold50-1-then-raw-16", "cross-entropy, aligned RL", "purple"),
            ("gold50-16-then-raw-16", "aligned, aligned RL", "green")])),
    "catmajority": curves(
        ("routes, RL", "maj", [ROUTES, ("majority-1", "standard RL", "twin"),
                               ("majority-raw-16", "majority, raw", "aware"),
                               ("old-majority-log-16", "majority, log", "green")]),
        ("routes, SFT on 50 gold solutions", "maj", [
            ROUTES, ("majority-gold-1", "cross-entropy", "twin"), ("majority-gold-16", "majority", "aware"),
            ("majority-contrastive", "contrastive", "green")])),
    "catbon": curves(
        ("peptide, against the base", "max", [
            ("peptide-1", "standard RL", "twin"), ("peptide-8", "ranks, N = 8", "aware"),
            ("old-peptide-exact-8", "exact, N = 8", "green"), ("peptide-target-8", "SFT on the best", "purple")],
         "peptide-base"),
        ("peptide, against standard RL", "max", [
            ("peptide-8", "ranks, N = 8", "aware"), ("old-peptide-exact-8", "exact, N = 8", "green")], "peptide-1")),
    "weights": weights,
    "which": scatter("pass@1", "pass@32"),
    "which-kl": scatter("kl", "pass@32"),
    "which-learning": learning,
}


def save(found, name):
    """Draw one of FIGURES into results/figures/ -> a line that says so, or that there is nothing to draw yet."""
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot
    panels = FIGURES[name](found)
    if not panels:
        return f"results/figures/{name}.png is not drawn: too few of its runs are recorded"
    figure, axes = pyplot.subplots(1, len(panels), figsize=(3.9 * len(panels), 3.2), squeeze=False)
    for axis, paint in zip(axes[0], panels):
        paint(axis)
        axis.grid(alpha=.3)
        if not name.startswith("which"):
            axis.legend(fontsize=7)
    if name.startswith("which"):  # the same labels for every panel, beside the last: points are all over it
        shown = max((panel.get_legend_handles_labels() for panel in axes[0]), key=lambda pair: len(pair[0]))
        axis.legend(*shown, fontsize=7, loc="upper left", bbox_to_anchor=(1.02, 1))
    figure.tight_layout()
    os.makedirs(FOLDER, exist_ok=True)
    figure.savefig(os.path.join(FOLDER, name + ".png"), dpi=80, metadata={"Software": None})
    pyplot.close(figure)
    return f"results/figures/{name}.png is drawn"
