"""Which one should I use? `python results/claims.py which robust` makes the runs, `--draw` the tables in which.md.

All objectives of the six scripts, and some of other projects, start from the same base per task and get the same number
of samples (64 prompts x 16) and steps (50), with k = N = 8 unless an objective fixes them. For each objective, three
learning rates are tried at seed 0. The one with the best target metric on the 400 validation problems is run at four
more seeds. The tables give all five on the 400 test problems. All rows of a task share the base and the verifier. Every
run uses one thread, and two run in parallel.
"""
import statistics

import runner
from pages import number, paragraph, spread, table, with_interval
from runner import differences, interval, known, runs_of

TASKS = tuple(runner.VERIFIERS)
SELECT = {  # target metric of each objective
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
BEST = ("pass@1", "pass@8", "pass@32", "maj@8", "bon@8")  # columns in which higher is better
COLUMNS = (*BEST, "kl", "cpu_seconds", "samples_per_s")
AGAINST = "passk"  # the objective that others are compared with
BUDGETS = ("pass@1", "pass@8", "pass@32")  # metrics of that comparison


def tries(task, objective):
    return [f"which-{task}-{objective}-{lr}" for lr in runner.LRS]


def tried(recorded, task, objective):
    """The rows of an objective whose learning rates have been tried."""
    return [row for row in tries(task, objective) if (row, 0) in recorded]


def chosen(recorded, task, objective):
    """The row of an objective at the learning rate with the best validation result (the smallest of equals). None until
    all have been tried. The base has only one row."""
    if objective == "base":
        return f"which-{task}-base"
    rows = tried(recorded, task, objective)
    if len(rows) < len(runner.LRS):
        return None
    return max(rows, key=lambda row: recorded[row, 0]["valid"][SELECT[objective]])


def trials(task):
    """[(row, 0)] of the runs that choose the learning rates."""
    return [(row, 0) for objective in SELECT for row in tries(task, objective)]


def table_runs(recorded, task, seeds):
    """[(row, seed)] of a task's table, ordered by seed. All its trials must be recorded."""
    return [(chosen(recorded, task, objective), seed) for seed in range(seeds) for objective in LABELS]


def lead(recorded, row, other, metric):
    """(mean, low, high) of a row's lead over another row at a metric, paired by seed. None, None, None without a
    pair."""
    return interval(differences(recorded, row, other, metric))


def tied(recorded, best, row, metric):
    """Whether the paired 95 % interval of the best row's lead over another row covers 0. Also true without an
    interval."""
    low = lead(recorded, best, row, metric)[1]
    return low is None or low <= 0


def results(recorded, task):
    """Markdown table: means over seeds ± standard deviation; the best is bold, ties with it are marked ≈."""
    rows = {objective: chosen(recorded, task, objective) for objective in LABELS}
    best = {column: best_row(recorded, rows.values(), column) for column in BEST}
    lines = []
    for objective, row in rows.items():
        cells = [result(recorded, row, column, best.get(column)) for column in COLUMNS]
        lines.append([LABELS[objective], rate_of(recorded, task, objective), str(len(runs_of(recorded, row))), *cells])
    return table(["objective", "learning rate", "seeds", *COLUMNS], lines)


def best_row(recorded, rows, metric):
    """The row with the highest mean of a metric, None if no row has the metric."""
    means = {}
    for row in rows:
        values = known(recorded, row, metric)
        if values:
            means[row] = statistics.mean(values)
    return max(means, key=means.get, default=None)


def result(recorded, row, column, best):
    """A cell of `results`. best: the best row of this column, None if the column has no best."""
    values = known(recorded, row, column)
    large = values and abs(values[0]) >= 10
    text = spread(values, 0 if large else 3)
    if not values or best is None:
        return text
    if row == best:
        return f"**{text}**"
    return f"≈ {text}" if tied(recorded, best, row, column) else text


def rate_of(recorded, task, objective):
    """The chosen learning rate of an objective or, until then, how many have been tried."""
    if objective == "base":
        return ""
    row = chosen(recorded, task, objective)
    if row is None:
        return f"{len(tried(recorded, task, objective))} of {len(runner.LRS)} tried"
    return row.rpartition("-")[2]


def leads(recorded, task):
    """Markdown table: each objective's lead over the base, paired by seed."""
    base = chosen(recorded, task, "base")
    lines = []
    for objective in SELECT:
        row = chosen(recorded, task, objective)
        if row:
            lines.append([objective, *(with_interval(*lead(recorded, row, base, metric)) for metric in BEST)])
    return table(["lead over the base", *BEST], lines)


def ahead(recorded, objective, metric):
    """The tasks on which the 95 % interval of an objective's lead over AGAINST is above 0."""
    tasks = []
    for task in TASKS:
        low = lead(recorded, chosen(recorded, task, objective), chosen(recorded, task, AGAINST), metric)[1]
        if low is not None and low > 0:
            tasks.append(task)
    return tasks


def recommended(recorded, metric):
    """The objectives that are ahead of AGAINST on at least two tasks."""
    return [objective for objective in SELECT if len(ahead(recorded, objective, metric)) > 1]


def against(recorded, metric):
    """Markdown table: each objective's lead over AGAINST at a metric, per task."""
    lines = []
    for objective in SELECT:
        if objective != AGAINST:
            count = len(ahead(recorded, objective, metric))
            cells = [lead_over_passk(recorded, task, objective, metric) for task in TASKS]
            lines.append([objective, *cells, f"**{count}**" if count > 1 else str(count)])
    return table([f"lead at {metric}", *TASKS, "tasks ahead"], lines)


def lead_over_passk(recorded, task, objective, metric):
    """A cell of `against`, with the number of seeds if some are missing."""
    row = chosen(recorded, task, objective)
    other = chosen(recorded, task, AGAINST)
    seeds = len(differences(recorded, row, other, metric))
    few = f" ({seeds} seeds)" if 1 < seeds < 5 else ""
    return with_interval(*lead(recorded, row, other, metric)) + few


def best_five(recorded, task, metric):
    """The five objectives with the highest metric on a task, best first. cat-pool is left out: it duplicates passk."""
    rows = {o: known(recorded, chosen(recorded, task, o), metric) for o in SELECT if o != "cat-pool"}
    means = {objective: statistics.mean(values) for objective, values in rows.items() if values}
    return sorted(means, key=means.get, reverse=True)[:5]


def change(recorded, row, base, low, high):
    """Change of the success rate by training: (mean, low, high) over seeds, averaged over the problems that the base
    solves in at least `low` and fewer than `high` of its 64 samples. These are counted in the base's run at another
    seed. In the run compared with, lucky problems would pass for easy ones, and the change would be biased."""
    bases = runs_of(recorded, base)
    changes = []
    for seed, run in runs_of(recorded, row).items():
        other = bases[(seed + 1) % len(bases)]
        counts = (record["problems"]["right"] for record in (run, bases[seed], other))
        gains = [(after - before) / 64 for after, before, c in zip(*counts, strict=True) if low <= c < high]
        changes.append(statistics.mean(gains))
    return interval(changes)


def rates(recorded):
    """Markdown table: validation results of the learning rates."""
    rows = []
    for task in TASKS:
        for objective, metric in SELECT.items():
            best = chosen(recorded, task, objective)
            cells = []
            for row in tries(task, objective):
                text = f"{recorded[row, 0]['valid'][metric]:.3f}" if (row, 0) in recorded else ""
                cells.append(f"**{text}**" if row == best else text)
            if any(cells):
                rows.append([task, objective, metric, *cells])
    return table(["task", "objective", "metric", *runner.LRS], rows)


def page(recorded):
    """The text of results/which.md."""
    text = ["# Which one should I use? All objectives compared", "",
            *paragraph("Generated by `python results/claims.py --draw` from results/records/. `python "
                       "results/claims.py which robust` makes missing runs."),
            *paragraph(__doc__.split("\n\n")[1]),
            *paragraph("Tables show means over seeds ± standard deviation. The best of a column is bold; ≈ marks "
                       "results that the paired 95 % interval (t over seeds) does not separate from it. KL is to the "
                       "base, in nats; cpu_seconds is training time. Objectives of other projects are evaluated "
                       "without a verifier and have no bon@8; on countdown6 only BoN-RL-V has it. Rows with fewer "
                       "than five seeds are preliminary."),
            "## Does anything beat `ppo_passk.py`?", "",
            *paragraph("Lead of each objective over `ppo_passk.py` (passk), both at their chosen learning rates, "
                       "paired by seed, with 95 % intervals. An objective is recommended over passk at a metric if "
                       "the interval is above 0 on at least two tasks; the number of tasks is then bold.")]
    for metric in BUDGETS:
        text += [against(recorded, metric), ""]
    text += ["![pass@1 and pass@8 of the training samples](figures/which-learning.png)", "",
             *paragraph("The five objectives with the highest final pass@8 on countdown6: pass@1 and pass@8 of the "
                        "training samples, averaged over ten steps, with 95 % intervals over seeds.")]
    for task in TASKS:
        text += [f"## {task}", "", results(recorded, task), "", leads(recorded, task), ""]
    text += [*paragraph("Each point is an objective; bars are 95 % intervals over seeds, clipped to the panel; the "
                        "grey line is the Pareto frontier."),
             "![pass@32 against pass@1, with the Pareto frontier](figures/which.png)", "",
             "![pass@32 of each objective against its KL to the base](figures/which-kl.png)", "",
             "## Learning rates", "",
             "Results on validation problems at seed 0; the chosen learning rate is bold.", "",
             rates(recorded)]
    return "\n".join([*text, "", *robust_page(recorded)]) + "\n"


# ----------------------------------------------------------------------------------------------------- how robust it is

def robust_rows(base, k, n, lr):
    """The two rows compared: training for pass@k and for the mean, with n samples per prompt."""
    return f"robust-{base}-passk-{k}-{n}-{lr}", f"robust-{base}-mean-{n}-{lr}"


def robust_runs(seeds):
    """[(row, seed)] of all runs, ordered by seed, the default k first."""
    pairs = [(base, k, n, lr) for k, n in sorted(runner.BUDGETS, key=lambda b: b[0] != 8) for base in runner.BASES
             for lr in runner.LRS]
    rows = [f"robust-{base}-base" for base in runner.BASES] + [row for pair in pairs for row in robust_rows(*pair)]
    return list(dict.fromkeys((row, seed) for seed in range(seeds) for row in rows))


def at_their_best(recorded, base, k, n):
    """Both rows, each at the learning rate with the best pass@k; None until all learning rates of both are recorded."""
    pairs = [robust_rows(base, k, n, lr) for lr in runner.LRS]
    if all(runs_of(recorded, row) for pair in pairs for row in pair):
        return [max(rows, key=lambda row: statistics.mean(known(recorded, row, f"pass@{k}"))) for rows in zip(*pairs)]


def compared(recorded, k, n):
    """Differences at pass@k between training for pass@k and for the mean: [column][base][seed], with a column for each
    objective at its best and then one per learning rate."""
    columns = [[at_their_best(recorded, base, k, n) for base in runner.BASES],
               *([robust_rows(base, k, n, lr) for base in runner.BASES] for lr in runner.LRS)]
    return [[differences(recorded, *pair, f"pass@{k}") if pair else [] for pair in column] for column in columns]


def robust_page(recorded):
    """Lines of Markdown: the lead of pass@k training at pass@k over the mean objective and over the base."""
    columns = ["k", "n", "each at its best", *(f"learning rate {lr}" for lr in runner.LRS)]
    ends = []  # (low, high) of the interval of each base, budget and learning rate
    for k, n in runner.BUDGETS:
        for column in compared(recorded, k, n)[1:]:
            ends += [interval(pairs)[1:] for pairs in column if len(pairs) > 1]
    above = sum(low > 0 for low, _ in ends)
    below = sum(high < 0 for _, high in ends)
    unfinished = any((row, seed) not in recorded for row, seed in robust_runs(3))
    return [
        "## How robust is pass@k against the mean?", "",
        *paragraph(
            "Lead of training for pass@k over training for the mean, at pass@k, with the same n samples per prompt. "
            "Countdown, 50 steps of 1,024 samples, 200 test problems x 64 samples; pairs share the seed; 95 % "
            "intervals. *Each at its best*: each objective at its own best learning rate, selected on these same test "
            "problems. The first table pools the bases, one pair per base and seed."),
        *["Unfinished: some cells have fewer than three seeds.\n"] * unfinished,
        *table([*columns, "pairs"], of_all_bases(recorded)).split("\n"), "",
        *paragraph(
            "The same for each base separately; the number after / is the lead over the base. *tiny* is the embedded "
            "model, *short* has a third of its pretraining, *wide* four times its parameters. Of the "
            f"{len(ends)} intervals of a base and learning rate, {above} lie above 0 and {below} below."),
        *table(["base", *columns, "seeds"], of_each_base(recorded)).split("\n")]


def of_all_bases(recorded):
    """Table rows: leads pooled over bases, one row per budget, with the smallest number of pairs."""
    lines = []
    for k, n in runner.BUDGETS:
        columns = [sum(column, []) for column in compared(recorded, k, n)]
        if any(columns):
            fewest = min(map(len, columns[1:]))
            lines.append([str(k), str(n), *(with_interval(*interval(pairs)) for pairs in columns), str(fewest)])
    return lines


def of_each_base(recorded):
    """Table rows: leads per base and budget, each followed by the lead over the base, with the smallest number of
    seeds."""
    lines = []
    for i, base in enumerate(runner.BASES):
        for k, n in runner.BUDGETS:
            best, *by_rate = [column[i] for column in compared(recorded, k, n)]
            if best or any(by_rate):
                cells = [with_interval(*interval(best))]
                for lr, pairs in zip(runner.LRS, by_rate):
                    row, _ = robust_rows(base, k, n, lr)
                    over_base, *_ = lead(recorded, row, f"robust-{base}-base", f"pass@{k}")
                    missing = not pairs or over_base is None
                    cells.append("" if missing else f"{with_interval(*interval(pairs))} / {number(over_base)}")
                lines.append([base, str(k), str(n), *cells, str(min(map(len, by_rate)))])
    return lines
