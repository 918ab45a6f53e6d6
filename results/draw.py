"""The figures of results/claims.py, drawn from the records.

Colours are the colour-blind safe palette of Okabe and Ito. Line styles and markers differ too, so figures stay legible
in greyscale. Grey is always the base, vermilion the inference-unaware twin, blue the inference-aware objective; others
use the remaining colours. Bands and error bars are 95 % intervals over seeds (Student's t).

A figure is a function from the records to a list of panels. A panel is a function that draws on an axis.
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
METRICS = {"pass": "pass@k", "maj": "maj@k", "bon": "best of k by the verifier", "max": "best of k"}


def middle(values):
    """(mean, low, high) of values, one per seed. For a single value all three are equal; None without values."""
    if len(values) < 2:
        return tuple(values * 3) or None
    return runner.interval(values)


def point(recorded, row, metric, minus=None):
    """`middle` of a row's metric over seeds; with `minus`, of the difference to that row at the same seed."""
    return middle(runner.differences(recorded, row, minus, metric))


def band(axis, x, points, style, label):
    """Draw points (mean, low, high) at x as a line with a band."""
    color, line, marker = STYLES[style]
    mean, low, high = zip(*points)
    axis.plot(x, mean, color=color, linestyle=line, marker=marker, ms=4, lw=1.4, label=label)
    axis.fill_between(x, low, high, color=color, alpha=.2, lw=0)


def log_ticks(axis, ks):
    axis.set_xscale("log", base=2)
    axis.set_xticks(ks, [str(k) for k in ks])


def set_title(axis, title):
    axis.set_title(title, fontsize=10)


# ----------------------------------------------------------------------------------------------------- curves against k

def curves(recorded, name):
    """The panels of a figure of PANELS; panels with fewer than two recorded rows are left out."""
    panels = []
    for title, kind, rows, minus in PANELS[name]:
        present = [row for row, _, _ in rows if runner.runs_of(recorded, row)]
        if len(present) > 1:
            panels.append(partial(curves_of_rows, recorded=recorded, title=title, kind=kind, rows=rows, minus=minus))
    return panels


def curves_of_rows(axis, recorded, title, kind, rows, minus):
    ks = runner.KS
    for row, label, style in rows:
        points = [point(recorded, row, f"{kind}@{k}", minus) for k in ks]
        if None not in points:
            band(axis, ks, points, style, label)
    log_ticks(axis, ks)
    less = f" minus {minus}" if minus else ""
    axis.set(xlabel="k", ylabel=METRICS[kind] + less)
    set_title(axis, title)


PANELS = {  # figure: [(title, kind of metric, [(row, label, style), ...], row to subtract), ...]
    "ksample": [
        ("countdown", "pass", [
            ("countdown-base", "base", "base"),
            ("countdown-mean", "mean", "twin"),
            ("countdown-passk", "pass@8", "aware")], None),
        ("routes", "pass", [
            ("routes-base", "base", "base"),
            ("routes-mean", "mean", "twin"),
            ("routes-passk", "pass@8", "aware")], None),
        ("routes", "maj", [
            ("routes-base", "base", "base"),
            ("routes-mean", "mean", "twin"),
            ("routes-passk", "pass@8", "aware"),
            ("routes-majority", "majority", "green")], None)],
    "bon": [
        ("RL", "pass", [
            ("countdown-base", "base", "base"),
            ("rl", "RL", "twin"),
            ("bp-8", "RLB(P), N = 8", "aware")], None),
        ("supervised, 200 gold solutions", "pass", [
            ("countdown-base", "base", "base"),
            ("bon-sft-1", "SFT", "twin"),
            ("bon-sft-16", "BoN-SFT, N = 16", "aware")], None),
        ("a verifier in the loop", "bon", [
            ("countdown-base", "base", "base"),
            ("s", "S: trained by the reward", "twin"),
            ("v", "V: trained by the verifier", "aware")], None)],
    "rlb": [
        ("N = 8", "pass", [
            ("rl", "RL", "twin"),
            ("rl-entropy", "RL, entropy bonus", "green"),
            ("bp-8", "RLB(P)", "aware"),
            ("b-8", "RLB, failures down", "purple")], "countdown-base"),
        ("N = 16", "pass", [
            ("bp-16", "RLB(P)", "aware"),
            ("b-16", "RLB, failures down", "purple")], "countdown-base")],
    "catsft": [
        ("SFT, 50 gold solutions", "pass", [
            ("countdown-base", "base", "base"),
            ("gold50-1", "N = 1", "twin"),
            ("gold50-16", "N = 16", "aware"),
            ("gold50-64", "N = 64", "green")], None),
        ("SFT, 4,000 gold solutions", "pass", [
            ("countdown-base", "base", "base"),
            ("gold4000-1", "N = 1", "twin"),
            ("gold4000-16", "N = 16", "aware")], None)],
    "catrl": [
        ("RL, N = 16", "pass", [
            ("countdown-base", "base", "base"),
            ("cat-1", "standard RL", "twin"),
            ("cat-sequence-16", "log, p of the sample", "purple"),
            ("cat-raw-16", "raw, success rate", "aware"),
            ("cat-log-16", "log, success rate", "green"),
            ("old-cat-pool-16", "pool", "sky")], None),
        ("the same, minus the base", "pass", [
            ("cat-1", "standard RL", "twin"),
            ("cat-sequence-16", "log, p of the sample", "purple"),
            ("cat-raw-16", "raw, success rate", "aware"),
            ("cat-log-16", "log, success rate", "green"),
            ("old-cat-pool-16", "pool", "sky")], "countdown-base")],
    "catwarm": [
        ("warm-up on 50 gold solutions, then RL", "pass", [
            ("countdown-base", "base", "base"),
            ("gold50-1-then-1", "cross-entropy, RL", "twin"),
            ("gold50-16-then-1", "aligned, RL", "aware"),
            ("gold50-1-then-raw-16", "cross-entropy, aligned RL", "purple"),
            ("gold50-16-then-raw-16", "aligned, aligned RL", "green")], None)],
    "catmajority": [
        ("routes, RL", "maj", [
            ("routes-base", "base", "base"),
            ("majority-1", "standard RL", "twin"),
            ("majority-raw-16", "majority, raw", "aware"),
            ("old-majority-log-16", "majority, log", "green")], None),
        ("routes, SFT on 50 gold solutions", "maj", [
            ("routes-base", "base", "base"),
            ("majority-gold-1", "cross-entropy", "twin"),
            ("majority-gold-16", "majority", "aware"),
            ("majority-contrastive", "contrastive", "green")], None)],
    "catbon": [
        ("peptide, against the base", "max", [
            ("peptide-1", "standard RL", "twin"),
            ("peptide-8", "ranks, N = 8", "aware"),
            ("old-peptide-exact-8", "exact, N = 8", "green"),
            ("peptide-target-8", "SFT on the best", "purple")], "peptide-base"),
        ("peptide, against standard RL", "max", [
            ("peptide-8", "ranks, N = 8", "aware"),
            ("old-peptide-exact-8", "exact, N = 8", "green")], "peptide-1")],
}


# --------------------------------------------------------------------------------------- pass@8 against KL, temperature

BETAS = ("0.1", "0.03", "0.01")  # KL coefficients


def kl(recorded):
    """pass@8 against KL to the base, one point per KL coefficient."""
    points = {}
    for objective in ("mean", "passk"):
        rows = [f"kl-{objective}-{beta}" for beta in BETAS]
        points[objective] = [point(recorded, row, metric) for metric in ("kl", "pass@8") for row in rows]
    if any(None in series for series in points.values()):
        return []
    base = point(recorded, "countdown-base", "pass@8")
    return [partial(kl_of_objectives, points=points, base=base)]


def kl_of_objectives(axis, points, base):
    for objective, label, style in (("mean", "mean", "twin"), ("passk", "pass@8", "aware")):
        color, line, marker = STYLES[style]
        x = points[objective][:len(BETAS)]
        y = points[objective][len(BETAS):]
        means_x = [mean for mean, _, _ in x]
        means_y = [mean for mean, _, _ in y]
        axis.errorbar(means_x, means_y, xerr=lengths(x), yerr=lengths(y), color=color, linestyle=line, marker=marker,
                      capsize=2, label=label)
        for beta, *at in zip(BETAS, means_x, means_y):
            axis.annotate(beta[1:], at, textcoords="offset points", xytext=(5, -10), fontsize=8, color=color)
    if base:
        axis.plot(0, base[0], marker="o", color=STYLES["base"][0], linestyle="none", label="base")
    axis.set(xlabel="KL to the base (nats)", ylabel="pass@8")
    set_title(axis, "countdown, numbers: --kl-coef")


def lengths(points):
    """Error bars of points (mean, low, high) in matplotlib's form: [lengths below, lengths above]."""
    below = [abs(low - mean) for mean, low, _ in points]
    above = [abs(high - mean) for mean, _, high in points]
    return [below, above]


def temperatures(recorded):
    """pass@8 against the test temperature; pass@N of one seed with the fits exp(a N^b)."""
    if any((f"base-T{t}", 0) not in recorded for t in runner.TEMPERATURES):
        return []
    return [partial(tested_at_temperatures, recorded=recorded), partial(fits, recorded=recorded)]


def tested_at_temperatures(axis, recorded):
    models = (("base", "base", "base"), ("rl", "RL", "twin"), ("bp-8", "RLB(P), T = 1", "aware"),
              ("bp-8-cold", "RLB(P), T = .5", "green"))
    for model, label, style in models:
        points = {}
        for t in runner.TEMPERATURES:
            tested = point(recorded, f"{model}-T{t}", "pass@8")
            if tested:
                points[float(t)] = tested
        if points:
            band(axis, list(points), points.values(), style, label)
    axis.set(xlabel="test temperature", ylabel="pass@8")
    set_title(axis, "countdown, 200 test problems")


def fits(axis, recorded):
    ks = runner.KS[:-1]
    for t, style in zip(runner.TEMPERATURES, ("base", "twin", "aware", "green", "purple")):
        color, line, marker = STYLES[style]
        run = recorded[f"base-T{t}", 0]
        measured = [run["after"][f"pass@{k}"]["mean"] for k in ks]
        a = run["co_scaling"]["a"]
        b = run["co_scaling"]["b"]
        axis.plot(ks, measured, marker, color=color, ms=4, label=f"T = {t}")
        axis.plot(ks, [math.exp(a * k ** b) for k in ks], linestyle=line, color=color, lw=1.2)
    log_ticks(axis, ks)
    axis.set(xlabel="N", ylabel="pass@N")
    set_title(axis, "base, one seed: measured and fit exp(a N^b)")


# -------------------------------------------------------------------------------------------------------------- weights

def weights(recorded):
    """Raw RL weights N (1-p)^(N-1) against the success rate p, in training and in the test. Shaded where only one of
    the two is above 5 % of its maximum. Needs no runs."""
    styles = {1: "twin", 16: "aware", 64: "green"}
    return [partial(weights_of_n, n=n, style=style) for n, style in styles.items()]


def weights_of_n(axis, n, style, test=16):
    p = [(i + .5) / 400 for i in range(400)]
    trained = [(1 - x) ** (n - 1) for x in p]  # divided by the maximum, N
    needed = [(1 - x) ** (test - 1) for x in p]
    waste = [w > .05 >= v for w, v in zip(trained, needed)]
    starvation = [v > .05 >= w for w, v in zip(trained, needed)]
    axis.fill_between(p, 0, 1, where=waste, color=STYLES["twin"][0], alpha=.18, hatch="//", lw=0,
                      label="waste: trained, not needed")
    axis.fill_between(p, 0, 1, where=starvation, color=STYLES["purple"][0], alpha=.3, hatch="..", lw=0,
                      label="starvation: needed, not trained")
    color, line, _ = STYLES[style]
    axis.plot(p, trained, color=color, linestyle=line, label=f"trained for pass@{n}")
    color, line, _ = STYLES["base"]
    axis.plot(p, needed, color=color, linestyle=line, label=f"tested at pass@{test}")
    axis.set(xlabel="success rate p", ylabel="weight / its maximum")
    set_title(axis, f"trained for pass@{n}, tested at pass@{test}")


# ------------------------------------------------------------------------------------------------------- all objectives

POINTS = {  # colour and marker; a marker shape per paper
    "base": ("#000000", "*"), "mean": ("#D55E00", "s"), "passk": ("#0072B2", "s"), "majority": ("#009E73", "s"),
    "bon-sft": ("#E69F00", "^"), "bon-rlbp": ("#0072B2", "^"), "bon-s": ("#CC79A7", "^"), "bon-v": ("#56B4E9", "^"),
    "cat-passk": ("#0072B2", "o"), "cat-pool": ("#56B4E9", "o"), "cat-majority": ("#009E73", "o"),
    "maxrl-16": ("#D55E00", "D"), "maxrl-8": ("#E69F00", "D"), "passk-8-1": ("#CC79A7", "s"),
    "rucaibox": ("#009E73", "D"), "verl": ("#CC79A7", "D"), "rs-grpo": ("#56B4E9", "D"), "grpo": ("#000000", "D")}


def scatter(recorded, x, y):
    """One panel per task, one point per objective with 95 % intervals of both metrics. If higher is better for both,
    the Pareto frontier is drawn too."""
    panels = []
    for task in which.TASKS:
        points = {}
        for objective in POINTS:
            row = which.chosen(recorded, task, objective)
            ends = row and (point(recorded, row, x), point(recorded, row, y))
            if ends and None not in ends:
                points[objective] = ends
        if len(points) > 2:
            panels.append(partial(scatter_of_task, points=points, x=x, y=y, task=task))
    return panels


def scatter_of_task(axis, points, x, y, task):
    for objective, (at_x, at_y) in points.items():
        color, marker = POINTS[objective]
        axis.errorbar(at_x[0], at_y[0], xerr=lengths([at_x]), yerr=lengths([at_y]), color=color, capsize=2, lw=1)
        axis.plot(at_x[0], at_y[0], color=color, marker=marker, ms=7, linestyle="none", label=objective)
    means = [(at_x[0], at_y[0]) for at_x, at_y in points.values()]
    if x != "kl":
        axis.plot(*zip(*frontier(means)), color="#777777", lw=1, zorder=0)
    axis.set_xlim(*with_room([mean for mean, _ in means]))
    axis.set_ylim(*with_room([mean for _, mean in means]))
    axis.set(xlabel="KL to the base (nats)" if x == "kl" else x, ylabel=y)
    set_title(axis, task)


def frontier(points):
    """The Pareto-optimal points (x, y), from left to right."""
    def exceeded(point):
        return any(other != point and other[0] >= point[0] and other[1] >= point[1] for other in points)
    return sorted(point for point in points if not exceeded(point))


def with_room(values):
    """Axis limits from the points, not from their intervals: a single collapsed seed can make an interval as wide as
    the metric's range."""
    low, high = min(values), max(values)
    room = .15 * (high - low)
    return low - room, high + room


def learning(recorded, task="countdown6"):
    """pass@1 and pass@8 of the training samples against the number drawn, for the five objectives with the best final
    pass@8."""
    runs = {}
    for objective in which.best_five(recorded, task, "pass@8"):
        row = which.chosen(recorded, task, objective)
        runs[objective] = runner.runs_of(recorded, row).values()
    return [partial(learning_of_metric, runs=runs, metric=metric, task=task) for metric in ("pass@1", "pass@8")
            if runs]


def learning_of_metric(axis, runs, metric, task, window=10):
    """window: number of steps averaged into one point."""
    for objective, seeds in runs.items():
        curves = [run["curve"][metric] for run in seeds if metric in run["curve"]]
        if not curves:
            continue
        drawn = []
        points = []
        for i in range(0, len(curves[0]), window):
            drawn.append((i + window) * 1.024)
            points.append(middle([statistics.mean(curve[i:i + window]) for curve in curves]))
        mean, low, high = zip(*points)
        color, marker = POINTS[objective]
        axis.plot(drawn, mean, color=color, marker=marker, ms=4, lw=1.2, label=objective)
        axis.fill_between(drawn, low, high, color=color, alpha=.12, lw=0)
    axis.set(xlabel="samples drawn, thousands", ylabel=metric)
    set_title(axis, f"{task}, during training")


# ------------------------------------------------------------------------------------------------------------ the files

FIGURES = {
    **{name: partial(curves, name=name) for name in PANELS},
    "kl": kl,
    "temperatures": temperatures,
    "weights": weights,
    "which": partial(scatter, x="pass@1", y="pass@32"),
    "which-kl": partial(scatter, x="kl", y="pass@32"),
    "which-learning": learning,
}


def save(recorded, name):
    """Draw one of FIGURES into results/figures/ -> a message, also if there are too few runs to draw it."""
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot
    panels = FIGURES[name](recorded)
    if not panels:
        return f"results/figures/{name}.png not drawn: too few of its runs are recorded"
    figure, axes = pyplot.subplots(1, len(panels), figsize=(3.9 * len(panels), 3.2), squeeze=False)
    for axis, paint in zip(axes[0], panels):
        paint(axis)
        axis.grid(alpha=.3)
        if not name.startswith("which"):
            axis.legend(fontsize=7)
    if name.startswith("which"):  # one legend for all panels, outside: points are everywhere inside
        labels = [axis.get_legend_handles_labels() for axis in axes[0]]
        fullest = max(labels, key=lambda pair: len(pair[0]))
        axes[0][-1].legend(*fullest, fontsize=7, labelspacing=.2, loc="upper left", bbox_to_anchor=(1.02, 1))
    figure.tight_layout()
    os.makedirs(FOLDER, exist_ok=True)
    figure.savefig(os.path.join(FOLDER, name + ".png"), dpi=80, metadata={"Software": None})
    pyplot.close(figure)
    return f"wrote results/figures/{name}.png"
