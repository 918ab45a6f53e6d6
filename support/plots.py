"""Plots: training curves, pass@k curves of an evaluation, and weights against the success probability."""
import io
import json
import math
import os

from support import processes
from support.folder import write_atomic
from support.output import to_json

KINDS = {"pass": "pass@k", "max": "max@k", "maj": "maj@k", "bon": "BoN@k"}


def canvas(columns=1, width=4.2, height=3.4):
    """A new figure that needs no display -> (figure, its axes in one row)."""
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
    """Add legend and grid."""
    axis.legend(fontsize=7)
    axis.grid(alpha=0.3)


def k_curve(axis, result, kind, **style):
    """Plot kind@k against k from a result row, with error bars of one standard error, if the row has such keys."""
    ks = sorted(int(name.split("@")[1]) for name in result if name.startswith(kind + "@"))
    if ks:
        cells = [result[f"{kind}@{k}"] for k in ks]
        means = [cell["mean"] for cell in cells]
        errors = [cell["se"] for cell in cells]
        style = {"marker": "o", "ms": 3, **style}
        axis.errorbar(ks, means, errors, **style)
        axis.set_xscale("log", base=2)


def plot(results, path, title=""):
    """Plot pass@k (max@k), maj@k and BoN@k against k, one line per row of `results`, with standard errors."""
    names = {name.split("@")[0] for result in results.values() for name in result}
    kinds = [kind for kind in KINDS if kind in names]
    figure, axes = canvas(len(kinds))
    for axis, kind in zip(axes, kinds):
        for (row, result), width in zip(results.items(), widths(len(results))):
            k_curve(axis, result, kind, label=row, linewidth=width)
        axis.set_xlabel("k")
        axis.set_title(KINDS[kind], fontsize=10)
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=7)
    figure.suptitle(title, fontsize=10)
    save_figure(figure, path)


# Panels of curves.png with values of metrics.jsonl, one unit each: {title: prefixes of keys}
PANELS = {
    "training batches": ("pass@", "max@", "maj@", "reward"),
    "nats": ("kl", "gold"),
    "shares": ("zero", "alike", "cut", "w_even")}
# Lines of curves.png with values of result.json: (kind, row, colour)
TESTS = [
    ("pass", "before", "tab:gray"), ("pass", "after", "tab:blue"), ("max", "before", "tab:gray"),
    ("max", "after", "tab:blue"), ("maj", "before", "tab:olive"), ("maj", "after", "tab:orange")]


def plot_run(folder, result):
    """Write curves.png of a run folder: training curves from metrics.jsonl, and curves against k before and after
    training, if the run's result has them."""
    if processes.RANK:
        return
    lines = read_metrics(os.path.join(folder, "metrics.jsonl"))
    panels = {title: curves_of(lines, prefixes) for title, prefixes in PANELS.items()}
    panels = {title: curves for title, curves in panels.items() if curves}
    tests = [(kind, row, color) for kind, row, color in TESTS if f"{kind}@1" in result.get(row, {})]
    columns = len(panels) + bool(tests)
    figure, axes = canvas(columns, width=4)
    for axis, (title, curves) in zip(axes, panels.items()):
        plot_steps(axis, lines, curves)
        axis.set(xlabel="step", title=f"{title} (smoothed)")
        finish(axis)
    if tests:
        plot_tests(axes[-1], result, tests)
    name = os.path.basename(os.path.abspath(folder))
    figure.suptitle(name, fontsize=10)
    save_figure(figure, os.path.join(folder, "curves.png"))


def read_metrics(path):
    """The lines of metrics.jsonl as dicts, with NaN for null, which stands for values that are not finite."""
    lines = []
    with open(path) as file:
        for line in file:
            values = json.loads(line)
            lines.append({name: math.nan if value is None else value for name, value in values.items()})
    return lines


def plot_steps(axis, lines, curves):
    """Plot curves {name: [a value for each line]} against the step."""
    steps = [line["step"] for line in lines]
    for (name, values), width in zip(curves.items(), widths(len(curves))):
        axis.plot(steps, values, label=name, linewidth=width)


def curves_of(lines, prefixes):
    """{key: smoothed values} for the keys with one of these prefixes."""
    names = [name for name in shown_once(lines[0]) if name.startswith(prefixes)]
    curves = {}
    for name in names:
        values = [line.get(name, math.nan) for line in lines]
        curves[name] = smooth(values)
    return curves


def shown_once(line):
    """The keys of a line of metrics.jsonl, without `reward` if pass@1 or max@1 has the same value."""
    same = line.get("pass@1", line.get("max@1"))
    duplicate = same is not None and math.isclose(line["reward"], same, rel_tol=1e-6, abs_tol=1e-9)
    return [name for name in line if name != "reward" or not duplicate]


def smooth(values):
    """Moving average over a tenth of the steps, centred."""
    width = max(1, len(values) // 20)
    means = []
    for i in range(len(values)):
        first = max(0, i - width)
        window = values[first:i + width + 1]
        mean = sum(window) / len(window)
        means.append(mean)
    return means


def widths(count):
    """Line widths in drawing order, each thinner than the last, so that overlapping lines all stay visible."""
    more = min(1.0, 4 / count)
    return [1.2 + more * i for i in reversed(range(count))]


def plot_tests(axis, result, tests):
    """Plot curves against k, before and after training."""
    for (kind, row, color), width in zip(tests, widths(len(tests))):
        label = f"{kind}@k {row}"
        k_curve(axis, result[row], kind, color=color, linewidth=width, label=label)
    axis.set(xlabel="k", title="test problems")
    finish(axis)


def regions(mask):
    """Intervals in which a mask [G] over (0, 1) is true -> [[from, to], ...]."""
    intervals = []
    G = len(mask)
    before = False
    for i, inside in enumerate([*mask.tolist(), False]):
        if inside and not before:
            start = i
        if before and not inside:
            intervals.append([start / G, i / G])
        before = inside
    return intervals


def in_words(intervals):
    return " ".join(f"{start:.2f}-{end:.2f}" for start, end in intervals) or "none"


def weight_report(train, tests, folder, xlabel):
    """Compare a training weight with the weights of test budgets: writes weights.png and weights.json, prints a table.

    train  (label, w [G]): the training weight at x = (i + 1/2) / G, a uniform grid on (0, 1)
    tests  {label: w [G]}: the same for each test budget
    alignment   cosine similarity of the two weights over x
    waste       intervals of x where training has weight, but the test budget has less than 5 % of its maximum
    starvation  intervals of x where the test budget has weight, but training has less than 5 % of its maximum
    This is our reading of the diagnostics of arXiv 2604.24957; the threshold of 5 % is ours.
    """
    name, w = train
    G = len(w)
    x = [(i + .5) / G for i in range(G)]
    trained = w > 0.05 * w.max()
    shown = ", ".join(f"{w[int(at * G)]:.3g}" for at in (.1, .5, .9))
    print(f"training weight {name}: mean {w.mean():.3g}, at {xlabel} = .1, .5, .9: {shown}")
    figure, (axis,) = canvas(width=6, height=3.8)
    report = {}
    for label, v in tests.items():
        tested = v > 0.05 * v.max()
        cosine = (w * v).sum() / (w.norm() * v.norm())
        entry = {"alignment": cosine.item(),
                 "waste": regions(trained & ~tested),
                 "starvation": regions(tested & ~trained)}
        print(f"  {label:14} alignment {entry['alignment']:.3f}   waste {in_words(entry['waste']):12} "
              f"starvation {in_words(entry['starvation'])}")
        report[label] = entry
        axis.plot(x, v / v.max(), label=label, lw=1)
    axis.plot(x, w / w.max(), "k--", label=f"training: {name}")
    axis.set(xlabel=xlabel, ylabel="weight / its maximum")
    finish(axis)
    save_figure(figure, os.path.join(folder, "weights.png"))
    contents = {"training": name, "weights": w.tolist(), "tests": report}
    write_atomic(os.path.join(folder, "weights.json"), to_json(contents))
    print(f"written to {folder}/")
    return report


def plot_co_scaling(results, fits, path):
    """Plot pass@N against N, measured and fitted."""
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
