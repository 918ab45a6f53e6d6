"""Which one should I use? `python results/claims.py which robust` makes the runs, `--draw` the tables in which.md.

Every objective of the six scripts, and some of other projects, from one base per task, on equal samples (64 prompts x
16) and steps (50), k = N = 8 where there is a choice. Each has three learning rates to choose from, tried at seed 0,
and takes the one that is best on the 400 validation problems at what the objective is for. The run of that seed and
four more are in the table, on the 400 test problems; base and verifier are the same for all rows of a task. One thread
each, two runs beside each other.
"""
import statistics

import runner
from pages import number, paragraph, spread, table, with_interval
from runner import differences, interval, known, runs_of

TASKS = tuple(runner.VERIFIERS)
SELECT = {  # what an objective is for
    "mean": "pass@1", "passk": "pass@8", "majority": "maj@8", "bon-sft": "pass@8", "bon-rlbp": "pass@8",
    "bon-s": "pass@8", "bon-v": "bon@8", "cat-passk": "pass@8", "cat-pool": "pass@8", "cat-majority": "maj@8",
    "maxrl-16": "pass@8", "maxrl-8": "pass@8", "passk-8-1": "pass@1", "rucaibox": "pass@8", "verl": "pass@8",
    "rs-grpo": "pass@8", "grpo": "pass@1"}
LABELS = {
    "base": "base", "mean": "mean: `ppo_passk.py --objective mean`", "passk": "pass@8: `ppo_passk.py`",
    "majority": "majority: `ppo_passk.py --objective majority`", "bon-sft": "BoN-SFT: `bon_sft.py`",
    "bon-rlbp": "RLB(P): `bon_rl.py --variant bp`", "bon-s": "BoN-RL-S: `bon_rl.py --variant s`",
    "bon-v": "BoN-RL-V: `bon_rl.py --variant v`", "cat-passk": "CAT Pass@8: `cat_passk.py --form raw`",
    "cat-pool": "CAT Pass@8, pool: `cat_passk.py --form pool`", "cat-majority": "CAT majority: `cat_majority.py`",
    "maxrl-16": "MaxRL, T = n: `ppo_passk.py --objective maxrl --k 16 --estimator solved`",
    "maxrl-8": "MaxRL, T = 8: `ppo_passk.py --objective maxrl`",
    "passk-8-1": "pass@8, then pass@1: `ppo_passk.py --k 8:1`",
    "rucaibox": "RUCAIBox's formula for pass@8", "verl": "verl's formula for pass@16, with the deviation",
    "rs-grpo": "RS-GRPO's formula", "grpo": "GRPO's formula, with the deviation"}
BEST = ("pass@1", "pass@8", "pass@32", "maj@8", "bon@8")  # columns in which most is best
COLUMNS = (*BEST, "kl", "cpu_seconds", "samples_per_s")
AGAINST = "passk"  # what the others are recommended over
BUDGETS = ("pass@1", "pass@8", "pass@32")  # for which


def tries(task, objective):
    return [f"which-{task}-{objective}-{lr}" for lr in runner.LRS]


def tried(found, task, objective):
    """Those of the learning rates that are recorded."""
    return [row for row in tries(task, objective) if (row, 0) in found]


def chosen(found, task, objective):
    """The row of an objective at the learning rate that validation problems choose (of equal ones the smallest), None
    before all are tried. The base has no choice."""
    if objective == "base":
        return f"which-{task}-base"
    rows = tried(found, task, objective)
    if len(rows) < len(runner.LRS):
        return None
    return max(rows, key=lambda row: found[row, 0]["valid"][SELECT[objective]])


def trials(task):
    """[(row, 0)] of which the learning rates are chosen."""
    return [(row, 0) for objective in SELECT for row in tries(task, objective)]


def table_runs(found, task, seeds):
    """[(row, seed)] of a task's table once its trials are recorded, seed after seed."""
    return [(chosen(found, task, objective), seed) for seed in range(seeds) for objective in LABELS]


def lead(found, row, other, metric):
    """(mean, low, high) of a row's metric over another row's, paired by seed; None where there is no pair."""
    return interval(differences(found, row, other, metric))


def tied(found, best, row, metric):
    """Whether the paired 95 % interval of the best row's lead over another one covers 0, or there is none yet."""
    low = lead(found, best, row, metric)[1]
    return low is None or low <= 0


def results(found, task):
    """Markdown: means over seeds ± standard deviation; the best in bold, what ties with it marked ≈."""
    rows = {objective: chosen(found, task, objective) for objective in LABELS}
    best = {column: best_row(found, rows.values(), column) for column in BEST}
    lines = []
    for objective, row in rows.items():
        cells = [result(found, row, column, best.get(column)) for column in COLUMNS]
        lines.append([LABELS[objective], rate_of(found, task, objective), str(len(runs_of(found, row))), *cells])
    return table(["objective", "learning rate", "seeds", *COLUMNS], lines)


def best_row(found, rows, metric):
    """The row with the highest mean of a metric, None where no row has it."""
    means = {}
    for row in rows:
        values = known(found, row, metric)
        if values:
            means[row] = statistics.mean(values)
    return max(means, key=means.get, default=None)


def result(found, row, column, best):
    """A cell of `results`. best: the row with the best value of the column, None if there is no best."""
    values = known(found, row, column)
    large = values and abs(values[0]) >= 10
    text = spread(values, 0 if large else 3)
    if not values or best is None:
        return text
    if row == best:
        return f"**{text}**"
    return f"≈ {text}" if tied(found, best, row, column) else text


def rate_of(found, task, objective):
    """The chosen learning rate of an objective, or how many are tried before one is chosen."""
    if objective == "base":
        return ""
    row = chosen(found, task, objective)
    if row is None:
        return f"{len(tried(found, task, objective))} of {len(runner.LRS)} tried"
    return row.rpartition("-")[2]


def leads(found, task):
    """Markdown: each objective's lead over the base, paired by seed."""
    base = chosen(found, task, "base")
    lines = []
    for objective in SELECT:
        row = chosen(found, task, objective)
        if row:
            lines.append([objective, *(with_interval(*lead(found, row, base, metric)) for metric in BEST)])
    return table(["lead over the base", *BEST], lines)


def ahead(found, objective, metric):
    """The tasks on which the 95 % interval of an objective's lead over AGAINST is above 0."""
    tasks = []
    for task in TASKS:
        low = lead(found, chosen(found, task, objective), chosen(found, task, AGAINST), metric)[1]
        if low is not None and low > 0:
            tasks.append(task)
    return tasks


def recommended(found, metric):
    """The objectives that are ahead on two tasks or more."""
    return [objective for objective in SELECT if len(ahead(found, objective, metric)) > 1]


def against(found, metric):
    """Markdown: each objective's lead over AGAINST at a metric, task by task."""
    lines = []
    for objective in SELECT:
        if objective != AGAINST:
            count = len(ahead(found, objective, metric))
            cells = [lead_over_passk(found, task, objective, metric) for task in TASKS]
            lines.append([objective, *cells, f"**{count}**" if count > 1 else str(count)])
    return table([f"lead at {metric}", *TASKS, "tasks ahead"], lines)


def lead_over_passk(found, task, objective, metric):
    """A cell of `against`, with the number of seeds where some are missing."""
    row = chosen(found, task, objective)
    other = chosen(found, task, AGAINST)
    seeds = len(differences(found, row, other, metric))
    few = f" ({seeds} seeds)" if 1 < seeds < 5 else ""
    return with_interval(*lead(found, row, other, metric)) + few


def best_five(found, task, metric):
    """The objectives with the highest metric on a task, best first. cat-pool is left out: it is passk once more."""
    rows = {o: known(found, chosen(found, task, o), metric) for o in SELECT if o != "cat-pool"}
    means = {objective: statistics.mean(values) for objective, values in rows.items() if values}
    return sorted(means, key=means.get, reverse=True)[:5]


def change(found, row, base, low, high):
    """(mean, low, high) over seeds of how training changes the success rate, in the mean over the problems that the
    base solves in `low` to below `high` of its 64 samples. Those are counted in its run of another seed: in the one
    that is compared with, the luckiest would be taken for the easiest."""
    bases = runs_of(found, base)
    changes = []
    for seed, run in runs_of(found, row).items():
        other = bases[(seed + 1) % len(bases)]
        counts = (some["problems"]["right"] for some in (run, bases[seed], other))
        gains = [(after - before) / 64 for after, before, c in zip(*counts, strict=True) if low <= c < high]
        changes.append(statistics.mean(gains))
    return interval(changes)


def rates(found):
    """Markdown: what the learning rates were chosen by."""
    rows = []
    for task in TASKS:
        for objective, metric in SELECT.items():
            best = chosen(found, task, objective)
            cells = []
            for row in tries(task, objective):
                text = f"{found[row, 0]['valid'][metric]:.3f}" if (row, 0) in found else ""
                cells.append(f"**{text}**" if row == best else text)
            if any(cells):
                rows.append([task, objective, metric, *cells])
    return table(["task", "objective", "metric", *runner.LRS], rows)


def page(found):
    """results/which.md."""
    text = ["# Which one should I use? The runs", "",
            *paragraph("Written by `python results/claims.py --draw` from results/records/; `python results/claims.py "
                       "which robust` makes what is missing."),
            *paragraph(__doc__.split("\n\n")[1] + "Means over seeds ± standard deviation; per column the best is bold, "
                       "and ≈ marks what the paired 95 % interval (t over seeds) does not separate from it. KL in nats "
                       "to the base; seconds of CPU. Objectives of other projects, and on countdown6 all but BoN-RL-V, "
                       "are judged without a verifier. A row with fewer than five seeds is a first look."),
            "## Does anything beat `ppo_passk.py`?", "",
            *paragraph("Leads over `ppo_passk.py` (passk), each at its chosen learning rate, paired by seed, with 95 % "
                       "intervals. An objective is recommended over it for a budget if the interval is above 0 on at "
                       "least two tasks; then the number of tasks is bold.")]
    for metric in BUDGETS:
        text += [against(found, metric), ""]
    text += ["![pass@1 and pass@8 of the samples of training](figures/which-learning.png)", "",
             *paragraph("On countdown6, the five objectives that end with the highest pass@8: what the samples of "
                        "training themselves have, ten steps together, with 95 % intervals over seeds.")]
    for task in TASKS:
        text += [f"## {task}", "", results(found, task), "", leads(found, task), ""]
    text += [*paragraph("A point is an objective, its bars are 95 % intervals over seeds, cut at the panel; the grey "
                        "line is the frontier."),
             "![pass@32 against pass@1, with the frontier](figures/which.png)", "",
             "![pass@32 of each objective against its KL to the base](figures/which-kl.png)", "",
             "## Learning rates", "",
             "On validation problems, seed 0; the chosen one is bold.", "",
             rates(found)]
    return "\n".join([*text, "", *robust_page(found)]) + "\n"


# ----------------------------------------------------------------------------------------------------- how robust it is

def robust_rows(base, k, n, lr):
    """The two rows that are compared: trained for pass@k and for the mean, with n samples per prompt."""
    return f"robust-{base}-passk-{k}-{n}-{lr}", f"robust-{base}-mean-{n}-{lr}"


def robust_runs(seeds):
    """(row, seed) of all runs, seed after seed, the default's k first."""
    pairs = [(base, k, n, lr) for k, n in sorted(runner.BUDGETS, key=lambda b: b[0] != 8) for base in runner.BASES
             for lr in runner.LRS]
    rows = [f"robust-{base}-base" for base in runner.BASES] + [row for pair in pairs for row in robust_rows(*pair)]
    return list(dict.fromkeys((row, seed) for seed in range(seeds) for row in rows))


def at_their_best(found, base, k, n):
    """Both rows, each at the learning rate with the best pass@k; None before all rates of both are there."""
    pairs = [robust_rows(base, k, n, lr) for lr in runner.LRS]
    if all(runs_of(found, row) for pair in pairs for row in pair):
        return [max(rows, key=lambda row: statistics.mean(known(found, row, f"pass@{k}"))) for rows in zip(*pairs)]


def compared(found, k, n):
    """Differences at pass@k between training for it and for the mean: columns (each at its best, then the learning
    rates) of one list per base, seed by seed."""
    columns = [[at_their_best(found, base, k, n) for base in runner.BASES],
               *([robust_rows(base, k, n, lr) for base in runner.BASES] for lr in runner.LRS)]
    return [[differences(found, *pair, f"pass@{k}") if pair else [] for pair in column] for column in columns]


def robust_page(found):
    """Markdown lines: the lead of pass@k training at pass@k over the mean objective, and over the base."""
    columns = ["k", "n", "each at its best", *(f"learning rate {lr}" for lr in runner.LRS)]
    ends = []  # of each interval of one base and learning rate
    for k, n in runner.BUDGETS:
        for column in compared(found, k, n)[1:]:
            ends += [interval(pairs)[1:] for pairs in column if len(pairs) > 1]
    above = sum(low > 0 for low, _ in ends)
    below = sum(high < 0 for _, high in ends)
    unfinished = any((row, seed) not in found for row, seed in robust_runs(3))
    return [
        "## How robust is pass@k against the mean?", "",
        *paragraph(
            "Countdown, 50 steps of 1,024 samples, 200 test problems x 64 samples. The lead at pass@k of training for "
            "pass@k over training for the mean with the same n samples per prompt, paired by seed, with its 95 % "
            "interval. Each at its best: each objective at the learning rate that is best for it on these same "
            "problems. First all bases together, a pair per base and seed."),
        *["Not finished: every cell is to have three seeds.\n"] * unfinished,
        *table([*columns, "pairs"], of_all_bases(found)).split("\n"), "",
        *paragraph(
            "Each base by itself, and / the lead over that base. *tiny* is the embedded model, *short* has a third of "
            f"its pretraining, *wide* four times its parameters. Of {len(ends)} cells of one base and learning rate "
            f"{above} have an interval above 0, {below} one below."),
        *table(["base", *columns, "seeds"], of_each_base(found)).split("\n")]


def of_all_bases(found):
    """Lines of a table: per budget the leads of all bases together, and the smallest number of pairs."""
    lines = []
    for k, n in runner.BUDGETS:
        columns = [sum(column, []) for column in compared(found, k, n)]
        if any(columns):
            fewest = min(map(len, columns[1:]))
            lines.append([str(k), str(n), *(with_interval(*interval(pairs)) for pairs in columns), str(fewest)])
    return lines


def of_each_base(found):
    """Lines of a table: per base and budget the leads, each with that over the base, and the fewest seeds."""
    lines = []
    for i, base in enumerate(runner.BASES):
        for k, n in runner.BUDGETS:
            best, *by_rate = [column[i] for column in compared(found, k, n)]
            if best or any(by_rate):
                cells = [with_interval(*interval(best))]
                for lr, pairs in zip(runner.LRS, by_rate):
                    row, _ = robust_rows(base, k, n, lr)
                    over_base, *_ = lead(found, row, f"robust-{base}-base", f"pass@{k}")
                    missing = not pairs or over_base is None
                    cells.append("" if missing else f"{with_interval(*interval(pairs))} / {number(over_base)}")
                lines.append([base, str(k), str(n), *cells, str(min(map(len, by_rate)))])
    return lines
