"""Pictures: curves of a run, k-curves of an evaluation, weights over the success probability."""
import io
import json
import math
import os

from support import processes
from support.folder import write_atomic
from support.output import to_json


def save_figure(figure, path):
    from matplotlib import pyplot
    figure.tight_layout()
    image = io.BytesIO()
    figure.savefig(image, dpi=110)
    pyplot.close(figure)
    write_atomic(path, image.getvalue())


def plot(results, path, title=""):
    """Picture of pass@k (max@k), maj@k and BoN@k against k, one line per row of `results`, bars: a standard error."""
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot
    names = {name.split("@")[0] for result in results.values() for name in result if "@" in name}
    kinds = [kind for kind in ("pass", "max", "maj", "bon") if kind in names]
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
    save_figure(figure, path)


def plot_run(folder, result):
    """curves.png of a run folder: training curves from metrics.jsonl, k-curves before and after, where they are, from
    the run's result."""
    if processes.RANK:
        return
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot
    with open(os.path.join(folder, "metrics.jsonl")) as file:
        lines = [{name: math.nan if value is None else value for name, value in json.loads(line).items()}
                 for line in file]  # null stands for what is not finite
    curves = [name for name in lines[0] if name.startswith(("pass@", "max@", "reward", "gold"))]
    figure, axes = pyplot.subplots(1, 3, figsize=(12, 3.4))
    for name in curves:
        smooth, width = [], max(1, len(lines) // 20)
        for i in range(len(lines)):
            window = [line[name] for line in lines[max(0, i - width):i + width + 1]]
            smooth.append(sum(window) / len(window))
        axes[0].plot([line["step"] for line in lines], smooth, label=name)
    axes[0].set(xlabel="step", title="training batches (smoothed)")
    for name, label in (("kl", "KL to the reference (nats)"), ("zero", "share of zero coefficients"),
                        ("w_even", "share of weights within 5 % of their mean")):
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
    save_figure(figure, os.path.join(folder, "curves.png"))


def weight_report(train, tests, folder, xlabel):
    """weights.png, weights.json and a table: what a training weight pays attention to, and what a test budget needs.

    train  (label, w [G]): the training weight at x = (i + 1/2) / G, so uniform on (0, 1)
    tests  {label: w [G]}: the same for each test budget
    alignment   cosine of the two weights over x
    waste       x where training pushes and the test weight has gone (below 5 % of its maximum)
    starvation  x where the test weight is there and training is silent (below 5 % of its maximum)
    As we read the diagnostics of arXiv 2604.24957; the 5 % are ours. Returns {label: {"alignment", "waste",
    "starvation"}}, regions as lists of [from, to].
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
    print(f"training weight {name}: mean {w.mean():.3g}, at {xlabel} = .1, .5, .9: "
          + ", ".join(f"{w[int(x * G)]:.3g}" for x in (.1, .5, .9)))
    figure, axis = pyplot.subplots(figsize=(6, 3.8))
    for label, v in tests.items():
        want = v > 0.05 * v.max()
        report[label] = {"alignment": float((w * v).sum() / (w.norm() * v.norm())), "waste": region(on & ~want),
                         "starvation": region(want & ~on)}
        spans = {k: " ".join(f"{a:.2f}-{b:.2f}" for a, b in report[label][k]) or "none"
                 for k in ("waste", "starvation")}
        print(f"  {label:14} alignment {report[label]['alignment']:.3f}   waste {spans['waste']:12} "
              f"starvation {spans['starvation']}")
        axis.plot([(i + .5) / G for i in range(G)], v / v.max(), label=label, lw=1)
    axis.plot([(i + .5) / G for i in range(G)], w / w.max(), "k--", label=f"training: {name}")
    axis.set(xlabel=xlabel, ylabel="weight / its maximum")
    axis.legend(fontsize=7)
    axis.grid(alpha=0.3)
    save_figure(figure, os.path.join(folder, "weights.png"))
    write_atomic(os.path.join(folder, "weights.json"),
                 to_json({"training": name, "weights": w.tolist(), "tests": report}))
    print(f"written to {folder}/")
    return report


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
    save_figure(figure, path)
