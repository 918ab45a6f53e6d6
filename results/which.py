"""Which one should I use? `python results/claims.py which` makes the runs, `python results/claims.py --draw` the table.

Every objective of the six scripts from one base per task, on equal samples (64 prompts x 16) and steps (100), k = N = 8.
Each has three learning rates to choose from, tried at seed 0, and takes the one that is best on the 400 validation
problems at what the objective is for (SELECT). The run of that seed and four more are in the table, on the 400 test
problems; base and verifier are the same for all rows of a task. All 2-core CPU runs of one process beside another one.
"""
import statistics

import runner
from runner import interval, value

TASKS = tuple(runner.JUDGES)
SELECT = {"mean": "pass@1", "passk": "pass@8", "majority": "maj@8", "bon-sft": "pass@8", "bon-rlbp": "pass@8",
          "bon-s": "pass@8", "bon-v": "bon@8", "cat-passk": "pass@8", "cat-pool": "pass@8", "cat-majority": "maj@8"}
LABELS = {
    "base": "base", "mean": "mean: `ppo_passk.py --objective mean`", "passk": "pass@8: `ppo_passk.py`",
    "majority": "majority: `ppo_passk.py --objective majority`", "bon-sft": "BoN-SFT: `bon_sft.py`",
    "bon-rlbp": "RLB(P): `bon_rl.py --variant bp`", "bon-s": "BoN-RL-S: `bon_rl.py --variant s`",
    "bon-v": "BoN-RL-V: `bon_rl.py --variant v`", "cat-passk": "CAT Pass@8: `cat_passk.py --form raw`",
    "cat-pool": "CAT Pass@8, pool: `cat_passk.py --form pool`", "cat-majority": "CAT majority: `cat_majority.py`"}
BEST = ("pass@1", "pass@8", "pass@32", "maj@8", "bon@8")  # columns in which most is best
COLUMNS = (*BEST, "kl", "cpu_seconds", "samples_per_s")


def tries(task, objective):
    return [f"which-{task}-{objective}-{lr}" for lr in runner.LRS]


def chosen(found, task, objective):
    """The row of an objective at the learning rate that validation problems choose (of equal ones the smallest), None
    before all are tried. The base has no choice."""
    if objective == "base":
        return f"which-{task}-base"
    rows = tries(task, objective)
    if any((row, 0) not in found for row in rows):
        return None
    return max(rows, key=lambda row: found[row, 0]["valid"][SELECT[objective]])


def stages(seeds):
    """The two lists of (row, seed) to make, the second a function of what the first has recorded."""
    first = [(row, 0) for task in TASKS for objective in SELECT for row in tries(task, objective)]
    return first, lambda found: [(chosen(found, task, objective), seed) for task in TASKS for objective in LABELS
                                 for seed in range(seeds)]


def runs(found, row):
    return {seed: run for (other, seed), run in found.items() if other == row}


def tied(found, best, row, metric):
    """Whether the paired 95 % interval of the best row's lead over another one covers 0, or there is none yet."""
    one, other = runs(found, best), runs(found, row)
    _, low, _ = interval([value(one[seed], metric) - value(other[seed], metric) for seed in sorted(one.keys() & other)])
    return low is None or low <= 0


def table(found, task):
    """Markdown: means over seeds ± standard deviation; the best in bold, what ties with it marked ≈."""
    rows = {objective: chosen(found, task, objective) for objective in LABELS}
    rows = {objective: row for objective, row in rows.items() if row and runs(found, row)}
    values = {(o, c): [value(run, c) for run in runs(found, row).values() if c in run or c in run["after"]]
              for o, row in rows.items() for c in COLUMNS}
    values = {cell: [v for v in some if v is not None] for cell, some in values.items()}
    lines = ["| objective | learning rate | seeds | " + " | ".join(COLUMNS) + " |", "|---" * (3 + len(COLUMNS)) + "|"]
    best = {c: max((o for o in rows if values[o, c]), key=lambda o: statistics.mean(values[o, c])) for c in BEST
            if any(values[o, c] for o in rows)}
    for objective, row in rows.items():
        cells = []
        for column in COLUMNS:
            some = values[objective, column]
            text = f"{statistics.mean(some):.{3 * (abs(some[0]) < 10)}f}" if some else ""
            text += f" ±{statistics.stdev(some):.{3 * (abs(some[0]) < 10)}f}" if len(some) > 1 else ""
            if best.get(column) == objective:
                text = f"**{text}**"
            elif column in best and some and tied(found, rows[best[column]], row, column):
                text = f"≈ {text}"
            cells.append(text)
        lr = "" if objective == "base" else row.rpartition("-")[2]
        lines.append(f"| {LABELS[objective]} | {lr} | {len(runs(found, row))} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def page(found):
    """results/which.md."""
    text = ["# Which one should I use? The runs", "",
            "Written by `python results/claims.py --draw` from results/records/; `python results/claims.py which` makes "
            "what is missing.", "", " ".join(__doc__.split("\n\n")[1].split()),
            "Means over seeds ± standard deviation; per column the best is bold, and ≈ marks what the paired 95 % "
            "interval (t over seeds) does not separate from it. KL in nats to the base; seconds of CPU.", ""]
    for task in TASKS:
        text += [f"## {task}", "", table(found, task), ""]
    text += ["![pass@32 against pass@1, with the frontier](figures/which.png)", "",
             "![pass@32 against KL](figures/which-kl.png)", "", "## Learning rates", "",
             "On validation problems, seed 0; the chosen one is bold.", "",
             "| task | objective | metric | " + " | ".join(runner.LRS) + " |", "|---" * (3 + len(runner.LRS)) + "|"]
    for task in TASKS:
        for objective, metric in SELECT.items():
            best, cells = chosen(found, task, objective), []
            for row in tries(task, objective):
                text_ = f"{found[row, 0]['valid'][metric]:.3f}" if (row, 0) in found else ""
                cells.append(f"**{text_}**" if row == best else text_)
            if any(cells):
                text.append(f"| {task} | {objective} | {metric} | " + " | ".join(cells) + " |")
    return "\n".join(text) + "\n"
