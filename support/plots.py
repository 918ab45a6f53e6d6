"""Pictures: curves of a run, k-curves of an evaluation, weights over the success probability."""
import io
import json
import math
import os

from support import processes
from support.folder import write_atomic
from support.output import to_json

KINDS = {"pass": "pass@k", "max": "max@k", "maj": "maj@k", "bon": "BoN@k"}


def canvas(columns=1, width=4.2, height=3.4):
    """A new figure without a screen -> (figure, its axes in a row)."""
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot
    figure, axes = pyplot.subplots(1, columns, figsize=(width * columns, height), squeeze=False)
    return figure, axes[0]


def save_figure(figure, path):
    from matplotlib import pyplot
    figure.tight_layout()
    image = io.BytesIO()
    figure.savefig(image, dpi=110)
    pyplot.close(figure)
    write_atomic(path, image.getvalue())


def finish(axis):
    """Legend and grid."""
    axis.legend(fontsize=7)
    axis.grid(alpha=0.3)


def k_curve(axis, result, kind, **style):
    """A line of kind@k against k from a result row, bars: a standard error. Nothing where the row has no such key."""
    ks = sorted(int(name.split("@")[1]) for name in result if name.startswith(kind + "@"))
    if ks:
        cells = [result[f"{kind}@{k}"] for k in ks]
        means = [cell["mean"] for cell in cells]
        errors = [cell["se"] for cell in cells]
        axis.errorbar(ks, means, errors, marker="o", ms=3, **style)
        axis.set_xscale("log", base=2)


def plot(results, path, title=""):
    """Picture of pass@k (max@k), maj@k and BoN@k against k, one line per row of `results`, bars: a standard error."""
    names = {name.split("@")[0] for result in results.values() for name in result}
    kinds = [kind for kind in KINDS if kind in names]
    figure, axes = canvas(len(kinds))
    for axis, kind in zip(axes, kinds):
        for row, result in results.items():
            k_curve(axis, result, kind, label=row)
        axis.set_xlabel("k")
        axis.set_title(KINDS[kind], fontsize=10)
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=7)
    figure.suptitle(title, fontsize=10)
    save_figure(figure, path)


def plot_run(folder, result):
    """curves.png of a run folder: training curves from metrics.jsonl, k-curves before and after, where they are, from
    the run's result."""
    if processes.RANK:
        return
    lines = read_metrics(os.path.join(folder, "metrics.jsonl"))
    figure, axes = canvas(3, width=4)
    plot_training(axes[0], lines)
    plot_weights(axes[1], lines)
    plot_tests(axes[2], result)
    save_figure(figure, os.path.join(folder, "curves.png"))


def read_metrics(path):
    """The lines of metrics.jsonl, where null stands for what is not finite."""
    lines = []
    with open(path) as file:
        for line in file:
            values = json.loads(line)
            lines.append({name: math.nan if value is None else value for name, value in values.items()})
    return lines


def plot_training(axis, lines):
    """How well the samples of each step did, smoothed over a tenth of the steps."""
    steps = [line["step"] for line in lines]
    width = max(1, len(lines) // 20)
    for name in lines[0]:
        if name.startswith(("pass@", "max@", "reward", "gold")):
            values = [line[name] for line in lines]
            smooth = []
            for i in range(len(lines)):
                window = values[max(0, i - width):i + width + 1]
                smooth.append(sum(window) / len(window))
            axis.plot(steps, smooth, label=name)
    axis.set(xlabel="step", title="training batches (smoothed)")
    finish(axis)


def plot_weights(axis, lines):
    """How far the policy has moved, and how much of the batch still teaches."""
    steps = [line["step"] for line in lines]
    labels = {"kl": "KL to the reference (nats)",
              "zero": "share of zero coefficients",
              "w_even": "share of weights within 5 % of their mean"}
    for name, label in labels.items():
        if name in lines[0]:
            axis.plot(steps, [line[name] for line in lines], label=label)
    axis.set(xlabel="step")
    finish(axis)


def plot_tests(axis, result):
    """k-curves before and after the run."""
    styles = {"pass": "-", "max": "-", "maj": "--"}
    colors = {"before": "tab:gray", "after": "tab:blue"}
    for kind, style in styles.items():
        for row, color in colors.items():
            k_curve(axis, result.get(row, {}), kind, linestyle=style, color=color, label=f"{kind}@k {row}")
    if axis.has_data():
        axis.legend(fontsize=7)
    axis.set(xlabel="k", title="test problems, before and after")
    axis.grid(alpha=0.3)


def regions(mask):
    """Where a mask [G] over (0, 1) is true -> [[from, to], ...]."""
    found = []
    G = len(mask)
    before = False
    for i, inside in enumerate([*mask.tolist(), False]):
        if inside and not before:
            start = i
        if before and not inside:
            found.append([start / G, i / G])
        before = inside
    return found


def in_words(spans):
    return " ".join(f"{start:.2f}-{end:.2f}" for start, end in spans) or "none"


def weight_report(train, tests, folder, xlabel):
    """weights.png, weights.json and a table: what a training weight pays attention to, and what a test budget needs.

    train  (label, w [G]): the training weight at x = (i + 1/2) / G, so uniform on (0, 1)
    tests  {label: w [G]}: the same for each test budget
    alignment   cosine of the two weights over x
    waste       x where training pushes and the test weight has gone (below 5 % of its maximum)
    starvation  x where the test weight is there and training is silent (below 5 % of its maximum)
    As we read the diagnostics of arXiv 2604.24957; the 5 % are ours.
    """
    name, w = train
    G = len(w)
    x = [(i + .5) / G for i in range(G)]
    on = w > 0.05 * w.max()
    shown = ", ".join(f"{w[int(at * G)]:.3g}" for at in (.1, .5, .9))
    print(f"training weight {name}: mean {w.mean():.3g}, at {xlabel} = .1, .5, .9: {shown}")
    figure, (axis,) = canvas(width=6, height=3.8)
    report = {}
    for label, v in tests.items():
        wanted = v > 0.05 * v.max()
        cosine = (w * v).sum() / (w.norm() * v.norm())
        found = {"alignment": cosine.item(),
                 "waste": regions(on & ~wanted),
                 "starvation": regions(wanted & ~on)}
        print(f"  {label:14} alignment {found['alignment']:.3f}   waste {in_words(found['waste']):12} "
              f"starvation {in_words(found['starvation'])}")
        report[label] = found
        axis.plot(x, v / v.max(), label=label, lw=1)
    axis.plot(x, w / w.max(), "k--", label=f"training: {name}")
    axis.set(xlabel=xlabel, ylabel="weight / its maximum")
    finish(axis)
    save_figure(figure, os.path.join(folder, "weights.png"))
    written = {"training": name, "weights": w.tolist(), "tests": report}
    write_atomic(os.path.join(folder, "weights.json"), to_json(written))
    print(f"written to {folder}/")
    return report


def plot_co_scaling(results, fits, path):
    """pass@N against N, measured and as fitted."""
    figure, (axis,) = canvas(width=5, height=3.6)
    for row, fit in fits.items():
        cells = {name: cell for name, cell in results[row].items() if name.startswith("pass@")}
        ns = [int(name[5:]) for name in cells]
        means = [cell["mean"] for cell in cells.values()]
        dots, = axis.plot(ns, means, "o", ms=4, label=row)
        fitted = [math.exp(fit["a"] * n ** fit["b"]) for n in ns]
        axis.plot(ns, fitted, "-", color=dots.get_color())
    axis.set(xscale="log", xlabel="N", ylabel="pass@N", title="dots: measured, lines: exp(a N^b)")
    finish(axis)
    save_figure(figure, path)
