"""The papers' claims on the embedded tasks: which hold, the size of each effect, and the command to reproduce it.

    python results/claims.py                            all claims: verdict, main number with interval, seeds
    python results/claims.py NAME --seeds 5 --jobs 2    make the missing runs of a claim; its table and figure
    python results/claims.py NAME --again runs/again    repeat all its runs; compare with the recorded number
    python results/claims.py which robust               make the runs of which.md
    python results/claims.py --json                     the list of claims as JSON
    python results/claims.py --draw                     write claims.md, which.md and figures/ from records/

A claim is a list of parts. A part states that the metric of one row, or the difference between two rows, is above or
below a bound, usually 0. A row is a set of runs, one per seed (see results/runner.py). A part is right if the 95 %
interval of its mean lies on the right side of the bound. The interval is Student's t over the differences between runs
with the same seed, which are evaluated on the same 400 test problems with the same uniform random numbers. For
comparison the tables also give a bootstrap over problems of the mean over seeds. It ignores the variation between
seeds and does not enter the verdict.

    holds     every part is right
    in part   the first part (the main one) is right, another is not
    fails     the main part is not right: its interval is on the wrong side or covers the bound
    open      fewer than 5 seeds have all runs

The rules and bounds were fixed before the runs in results/records/ were started. By then we had seen three seeds of
most rows in older runs, so they are not blind predictions. The claims are the papers', as we understand them.
"""
import argparse
import json
import multiprocessing
import os
import random
import sys
from typing import NamedTuple

sys.path[:0] = [os.path.dirname(os.path.abspath(__file__))]  # also where a test loads this file by its path
import runner
import which
from pages import number, paragraph, spread, table, with_interval, wrapped
from runner import interval, known, per_problem, runs_of

SEEDS = 5  # with fewer, a claim is open
TANG, CHOW, CAT = "arXiv 2503.19595", "arXiv 2412.15287", "arXiv 2604.24957"


class Part(NamedTuple):
    """`metric` of row `a` minus `metric` of row `b` (None: 0) is above or below the bound, as `side` says. A metric
    "x - y" is a difference of two."""
    a: str
    b: str | None
    metric: str
    side: str = "above"
    bound: float = 0.0

    def __str__(self):
        less = "" if self.b is None else f" minus {self.b}"
        return f"{self.metric}: {self.a}{less} {self.side} {self.bound:g}"


class Claim(NamedTuple):
    paper: str
    sentence: str
    parts: tuple  # of Part, main part first
    figure: str  # name in results/draw.py
    why: str = ""  # if not every part is right: our explanation


def both(a, b, task, *metrics):
    """One part per metric: row TASK-a is above row TASK-b."""
    return tuple(Part(f"{task}-{a}", f"{task}-{b}", metric) for metric in metrics)


CLAIMS = {
    # k-sample objectives
    "mean-pass1": Claim(TANG, "Training for the mean is best at pass@1", (
        *both("mean", "passk", "countdown", "pass@1"), *both("mean", "base", "countdown", "pass@1"),
        *both("mean", "passk", "routes", "pass@1"), *both("mean", "base", "routes", "pass@1")), "ksample"),
    "passk-pass8": Claim(TANG, "Training for pass@8 beats training for the mean, and the base, at pass@8", (
        *both("passk", "mean", "countdown", "pass@8"), *both("passk", "base", "countdown", "pass@8"),
        *both("passk", "mean", "routes", "pass@8"), *both("passk", "base", "routes", "pass@8")), "ksample"),
    "mean-diversity": Claim(TANG, "The mean objective costs diversity: it loses pass@32, pass@8 training does not", (
        *both("base", "mean", "countdown", "pass@32"), *both("passk", "mean", "countdown", "pass@32", "distinct"),
        Part("countdown-passk", "countdown-base", "pass@32", "above", -.02),
        *both("base", "mean", "routes", "pass@32")), "ksample"),
    "majority-majk": Claim(TANG, "Training for the majority beats training for the mean at maj@k", (
        *both("majority", "mean", "routes", "maj@8", "maj@32"), *both("majority", "base", "routes", "maj@8"),
        *both("majority", "mean", "countdown", "maj@8")), "ksample",
        "On countdown, the last part, each of the many correct expressions of a problem is a separate vote, so a "
        "policy wins votes by settling on one of them: the mean objective ends with 6.9 distinct completions of 64 "
        "and pass@1 .416, the majority objective with 23.9 and .304. On routes the correct answer is a single number; "
        "there the mean objective ends with 2.4 distinct completions, and its vote no longer improves with k."),
    "passk-kl": Claim(TANG, "Training for pass@8 gives more pass@8 at a lower KL, for each of three KL coefficients", (
        *(Part(f"kl-passk-{beta}", f"kl-mean-{beta}", "pass@8") for beta in ("0.03", "0.01", "0.1")),
        *(Part(f"kl-passk-{beta}", f"kl-mean-{beta}", "kl", "below") for beta in ("0.03", "0.01", "0.1"))), "kl"),
    # best-of-N
    "bon-twin": Claim(CHOW, "Training for best-of-N beats its inference-unaware twin at pass@N", (
        Part("bp-8", "rl", "pass@8"), Part("bp-8", "rl", "pass@32"), Part("bon-sft-16", "bon-sft-1", "pass@16"),
        Part("bon-sft-16", "bon-sft-1", "pass@32")), "bon"),
    "rl-pass32": Claim(CHOW, "Plain RL gains pass@1 and loses pass@32", (
        Part("rl", "countdown-base", "pass@32", "below"), Part("rl", "countdown-base", "pass@1")), "bon"),
    "v-over-s": Claim(CHOW, "BoN-RL-V beats BoN-RL-S at best-of-N under the verifier", (
        Part("v", "s", "bon@8"), Part("v", "s", "bon@32")), "bon",
        "At best-of-8 V leads on four of five seeds, by as much as the lead varies between seeds: S raises pass@8 "
        "from .657 to .722, which gives the verifier more correct answers to choose from, while V leaves it at .659 "
        "and makes them easier to tell apart (AUC .790 against .738). At best-of-32, where selection matters more, V "
        "has a significant lead."),
    "verifier-survives": Claim(CHOW, "The verifier survives being optimised against: its AUC falls by less than .01", (
        Part("v", "countdown-base", "auc", "above", -.01), Part("v", "countdown-base", "bon@8")), "bon"),
    "rlb-minus": Claim(CHOW, "BoN-RLB, which pushes failures down, gains pass@N over the base", (
        Part("b-8", "countdown-base", "pass@8"), Part("b-16", "countdown-base", "pass@16")), "rlb",
        "If all 16 samples of a prompt fail, each gets the same coefficient, -12 (the estimated failure rate is capped "
        "at 1 - 1/(2M)), which carries no information and adds noise: no sample has zero weight, the gradient norm is "
        "40 to 80, and one seed in five loses .11 and .21. RLB(P), which leaves failures alone, gains .061 of "
        "pass@8."),
    "implicit": Claim(CHOW, "Implicit exploration (RLB(P)) beats explicit (RL with an entropy bonus) at pass@N", (
        Part("bp-8", "rl-entropy", "pass@8"), Part("bp-8", "rl-entropy", "pass@32")), "rlb"),
    "temperatures": Claim(CHOW, "RLB(P) trained at temperature 1 gains pass@8 over the base when tested at .1 to 2", (
        *(Part(f"bp-8-T{t}", f"base-T{t}", "pass@8") for t in ("1", "0.1", "0.5", "1.5", "2")),), "temperatures",
        "Below the training temperature the trained policy, which is more concentrated, repeats itself: at .1 its 64 "
        "samples contain 5.0 distinct completions, the base's 11.8, so it leads at pass@1 (.328 against .296) and "
        "trails at pass@8 (.500 against .569)."),
    "co-scaling": Claim(CHOW, "pass@N at a temperature is exp(a N^b), N up to 32: root mean square error below .01", (
        *(Part(f"{model}-T{t}", None, "rmse", "below", .01) for model in ("base", "bp-8")
          for t in ("1", "0.1", "0.5", "1.5", "2")),), "temperatures",
        "At temperatures from .5 upwards the residuals have the same shape: the measured pass@N lies above the fit at "
        "N = 1 (by .02 to .05) and 32, and below it from 2 to 8 (by up to .05), because -log pass@N bends downwards on "
        "log-log axes, where the law is a straight line. A straight line needs problems with success rates down to 0; "
        "here 64 samples solve 96 % of the problems."),
    # compute aligned training
    "sft-passn": Claim(CAT, "Aligned SFT (N = 16) gains pass@16 and loses less than .02 of pass@1", (
        Part("gold50-16", "gold50-1", "pass@16"), Part("gold50-16", "gold50-1", "pass@1", "above", -.02),
        Part("gold4000-16", "gold4000-1", "pass@16")), "catsft",
        "With 4,000 gold solutions, the third part, there is no overconfidence to prevent: each is seen less than "
        "twice, they come from the distribution that the base was trained on, and all rows end at the base's pass@16 "
        "(.803)."),
    "gold-likelihood": Claim(CAT, "In SFT the gain comes with a more likely gold solution; both grow with N", (
        Part("gold50-16", "gold50-1", "gold"), Part("gold50-64", "gold50-16", "gold"),
        Part("gold50-64", "gold50-16", "pass@16")), "catsft"),
    "rl-steeper": Claim(CAT, "Aligned RL (N = 16) scales more steeply from pass@1 to pass@64 than standard RL", (
        Part("cat-raw-16", "cat-1", "pass@64 - pass@1"), Part("cat-raw-16", "cat-1", "pass@64"),
        Part("cat-sequence-16", "cat-1", "pass@64 - pass@1")), "catrl",
        "The third part uses the probability of the sample itself as p, as the paper's runs do: at the first step no "
        "weight is more than 6 % above the median (seeds 0 and 1), so it hardly differs from standard RL, and over the "
        "run the median weight is 1.05 times the mean and the largest 1.9 times. With the prompt's success rate as p "
        "these are .27 and 4.2."),
    "raw-log": Claim(CAT, "Log weights keep more pass@1, raw weights more pass@64 (p = success rate, N = 16)", (
        Part("cat-log-16", "cat-raw-16", "pass@1"), Part("cat-raw-16", "cat-log-16", "pass@64")), "catrl",
        "At pass@64 both end at the ceiling of this task (.961 and .964; the base has .956), so there is nothing left "
        "to separate them."),
    "warm-up": Claim(CAT, "Aligned SFT followed by RL beats cross-entropy followed by RL", (
        Part("gold50-16-then-1", "gold50-1-then-1", "pass@16"), Part("gold50-16-then-1", "gold50-1-then-1", "pass@1"),
        Part("gold50-16-then-raw-16", "gold50-1-then-raw-16", "pass@16")), "catwarm"),
    "majority-majn": Claim(CAT, "Majority-aligned training (N = 16) gains maj@N over its twin, in RL and in SFT", (
        Part("majority-raw-16", "majority-1", "maj@16"), Part("majority-raw-16", "majority-1", "maj@64"),
        Part("majority-gold-16", "majority-gold-1", "maj@16")), "catmajority",
        "In SFT on 50 gold solutions, the third part, most weights of the operator are similar (3.8 to 8.2 with a "
        "median of 6.9, seed 0), and Adam is invariant to a common factor, so it matches cross-entropy within the "
        "error. In RL they differ (median .5 of the mean, largest 3.3)."),
    "contrastive": Claim(CAT, "The contrastive hybrid gains the most maj@64 of the SFT rows", (
        Part("majority-contrastive", "majority-gold-1", "maj@64"),
        Part("majority-contrastive", "majority-gold-16", "maj@64")), "catmajority",
        "Its lead over the majority loss varies from .000 to .122 between seeds: on 50 gold solutions all three SFT "
        "rows drift far from the base (5 to 7 nats), and where they end depends more on the seed than on the loss."),
    "bon-lift": Claim(CAT, "Best-of-8 training (ranks) lifts the best of 8 more than the mean", (
        Part("peptide-8", "peptide-1", "max@8"), Part("peptide-8", "peptide-1", "max@8 - max@1"),
        Part("peptide-8", "peptide-base", "max@8 - max@1")), "catbon",
        "One seed of five decides it: from step 5 on, the policy of seed 0 stops one residue early (KL 13.4, best of 8 "
        "1.678), while the other four lead by .010 to .032; with ranks lower / (M - 1), which give the lowest sample "
        "weight 0, no seed did that, and the lead was +.016 [+.004, +.029] (old-peptide-8-lower); with half the "
        "learning rate none does either, and it is +.009 [+.003, +.015] (peptide-8-slow minus peptide-1-slow). Against "
        "the base, the third part, any RL lifts the mean (.791 to 1.315) more than the best of 8 (1.289 to 1.723), "
        "which is closer to the maximum of this reward."),
    "bon-target": Claim(CAT, "Pass@8 SFT on the best target degenerates to cross-entropy: best of 8 within .005", (
        Part("peptide-target-8", "peptide-target-1", "max@8", "above", -.005),
        Part("peptide-target-8", "peptide-target-1", "max@8", "below", .005)), "catbon"),
}


# ----------------------------------------------------------------------------------------------------------- statistics

def seeds_of(recorded, part):
    """The seeds for which both rows of a part are recorded."""
    rows = [row for row in (part.a, part.b) if row]
    return sorted(set.intersection(*(set(runs_of(recorded, row)) for row in rows)))


def differences(recorded, part):
    """The difference that a part is about: one number per seed, in the order of seeds_of."""
    return runner.differences(recorded, part.a, part.b, part.metric)


def bootstrap(recorded, part, resamples=1000):
    """(low, high): 95 % bootstrap interval over problems of the part's mean over seeds. None if the records lack the
    metric per problem."""
    sums = None
    seeds = seeds_of(recorded, part)
    for seed in seeds:
        x = per_problem(recorded[part.a, seed], part.metric)
        y = per_problem(recorded[part.b, seed], part.metric) if part.b else x and [0] * len(x)
        if not x or not y:
            return None
        sums = [s + u - v for s, u, v in zip(sums or [0] * len(x), x, y)]
    if sums is None:
        return None
    rng, n = random.Random(0), len(sums)
    means = sorted(sum(rng.choices(sums, k=n)) / n / len(seeds) for _ in range(resamples))
    return means[round(.025 * resamples)], means[round(.975 * resamples) - 1]


def side(part, low, high):
    """Where an interval lies relative to the bound, in words."""
    if low is None:
        return "open"
    if low <= part.bound <= high:
        return "covers the bound"
    return "right" if (low > part.bound) == (part.side == "above") else "wrong side"


def verdict(parts, intervals, seeds, least=SEEDS):
    """The rule at the top of the file. intervals: (mean, low, high) of each part; seeds: how many have all runs."""
    if seeds < least:
        return "open"
    main, *others = (side(part, low, high) == "right" for part, (_, low, high) in zip(parts, intervals, strict=True))
    if not main:
        return "fails"
    return "holds" if all(others) else "in part"


def verdict_of(recorded, name, least=SEEDS):
    """(verdict, number of seeds, intervals of the parts) of a claim."""
    parts = CLAIMS[name].parts
    seeds = len(set.intersection(*(set(seeds_of(recorded, part)) for part in parts)))
    intervals = [interval(differences(recorded, part)) for part in parts]
    return verdict(parts, intervals, seeds, least), seeds, intervals


# --------------------------------------------------------------------------------------------------------------- output

def in_brief(recorded, name):
    """The main part of a claim with its difference and interval."""
    return f"{CLAIMS[name].parts[0]}: {with_interval(*verdict_of(recorded, name)[2][0])}"


def listing(recorded):
    """All claims as a Markdown table."""
    rows = []
    for name, claim in CLAIMS.items():
        outcome, seeds, _ = verdict_of(recorded, name)
        rows.append([f"`{name}`: {claim.sentence}", claim.paper, outcome, in_brief(recorded, name), str(seeds)])
    return table(["claim", "paper", "verdict", "main number [95 % interval]", "seeds"], rows)


def as_json(recorded):
    rows = []
    for name, claim in CLAIMS.items():
        outcome, seeds, ((mean, low, high), *_) = verdict_of(recorded, name)
        rows.append({"name": name, "paper": claim.paper, "verdict": outcome, "seeds": seeds, "effect": mean, "low": low,
                     "high": high, "command": f"python results/claims.py {name}"})
    return json.dumps(rows, indent=1)


def rows_of(name):
    """The rows compared in a claim, in the order of its parts."""
    return list(dict.fromkeys(row for part in CLAIMS[name].parts for row in (part.b, part.a) if row))


def means(recorded, rows, columns):
    """A Markdown table of rows: means over seeds ± standard deviation. Rows without records are left out; a cell is
    empty unless all runs of the row have its metric."""
    lines = []
    for row in rows:
        seeds = len(runs_of(recorded, row))
        values = [known(recorded, row, column) for column in columns]
        if seeds:
            lines.append([row, str(seeds), *(spread(cell) if len(cell) == seeds else "" for cell in values)])
    return table(["row", "seeds", *columns], lines)


PART_COLUMNS = ("part (main part first)", "difference [95 %, t over seeds]", "95 %, bootstrap over problems", "seeds",
                "interval")


def report(recorded, name, least=SEEDS):
    """A claim in Markdown: its rows, its parts with both intervals, and the verdict."""
    claim = CLAIMS[name]
    outcome, seeds, intervals = verdict_of(recorded, name, least)
    metrics = list(dict.fromkeys(m for part in claim.parts for m in part.metric.split(" - ")))
    rows = []
    for part, difference in zip(claim.parts, intervals):
        boot = bootstrap(recorded, part)
        rows.append([str(part), with_interval(*difference), f"[{number(boot[0])}, {number(boot[1])}]" if boot else "",
                     str(len(seeds_of(recorded, part))), side(part, *difference[1:])])
    lines = [f"### `{name}`: {outcome}", "", f"{claim.sentence} ({claim.paper}).", "",
             f"{seeds} seeds; `python results/claims.py {name}`; [figure](figures/{claim.figure}.png)", "",
             means(recorded, rows_of(name), metrics), "", table(PART_COLUMNS, rows)]
    if outcome in ("in part", "fails"):
        lines += ["", *wrapped(f"Why: {claim.why}")]
    return "\n".join(lines)


TABLES = {
    "k-sample objectives": (
        [f"{task}-{row}" for task in ("countdown", "routes") for row in ("base", "mean", "passk", "majority")],
        ("pass@1", "pass@8", "pass@32", "maj@8", "maj@32", "kl", "distinct", "zero", "cpu_seconds")),
    "Pass@8 against KL": ([f"kl-{o}-{beta}" for o in ("mean", "passk") for beta in ("0.01", "0.03", "0.1")],
                          ("pass@1", "pass@8", "kl")),
    "Best-of-N": (["countdown-base", "bon-sft-1", "old-bon-sft-4", "bon-sft-16", "rl", "rl-entropy", "old-star", "b-8",
                   "b-16", "old-b-8-slow", "old-b-8-64x8", "old-b-8-exact", "bp-8", "bp-16", "s", "v",
                   "old-v-noise-0", "old-v-noise-0.1", "old-v-noise-0.3"],
                  ("pass@1", "pass@8", "pass@32", "bon@8", "bon@32", "gold", "distinct", "similarity", "entropy", "kl",
                   "auc", "cpu_seconds", "samples_per_s")),
    "Pass@8 at test temperatures": ([f"{model}-T{t}" for model in ("base", "rl", "bp-8", "bp-8-cold")
                                     for t in runner.TEMPERATURES], ("pass@8", "pass@32", "rmse")),
    "Compute aligned training, Pass@N": (
        ["countdown-base", *(row for row in runner.ROWS if row.startswith(("gold", "cat-"))), "old-cat-sequence-4",
         "old-cat-raw-4", "old-cat-pool-4", "old-cat-pool-16", "old-gold50-16-then-sequence-16"],
        ("pass@1", "pass@4", "pass@16", "pass@64", "maj@8", "gold", "kl", "distinct")),
    "Compute aligned training, majority": (
        ["routes-base", *(row for row in runner.ROWS if row.startswith("majority-")), "old-majority-raw-4",
         "old-majority-log-16", "old-majority-raw-16-threshold-9"],
        ("pass@1", "pass@16", "maj@8", "maj@16", "maj@64", "gold", "kl", "distinct")),
    "Compute aligned training, best of N": (
        ["peptide-base", *(row for row in runner.ROWS if row.startswith("peptide-") and row != "peptide-base"),
         "old-peptide-4", "old-peptide-8-lower", "old-peptide-8-fifo", "old-peptide-exact-4", "old-peptide-exact-8"],
        ("max@1", "max@4", "max@8", "max@16", "max@64", "kl", "entropy")),
    "A code task, `--task program`": (
        [f"old-program-{row}" for row in ("base", "mean", "passk", "bp-8", "cat-raw-8", "bon-sft-8", "cat-bon-8",
                                          "cat-majority-8", "gold-16")],
        ("pass@1", "pass@8", "pass@32", "maj@8", "kl", "distinct", "seconds")),
    "A real model": (
        ["real-sft", "real-warm", *(f"real-{row}{first}" for first in ("", "-first")
                                    for row in ("mean", "passk", "bp-8", "cat-raw-8"))],
        ("pass@1", "pass@8", "pass@32", "maj@8", "kl", "zero", "seconds")),
}


TABLED = list(dict.fromkeys(row for rows, _ in TABLES.values() for row in rows if row in runner.ROWS))


def write(name, text):
    with open(os.path.join(runner.ROOT, name), "w", encoding="utf-8") as file:
        file.write(text)


def page(recorded):
    """The text of results/claims.md."""
    text = ["# The papers' claims on the embedded tasks", "",
            *paragraph("Generated by `python results/claims.py --draw` from results/records/. The top of that script "
                       "defines the verdicts."), listing(recorded)]
    for name in CLAIMS:
        text += ["", report(recorded, name)]
    text += ["", "## Raw weights against the success rate", "", *wrapped(
        "The weight N (1-p)^(N-1) of a problem in training for pass@N, and its weight in a test at pass@16. Shaded: "
        "success rates p at which only one of the two is above 5 % of its maximum."), "",
        "![three training weights against the weight in the test](figures/weights.png)"]
    text += ["", "## All rows", "", *wrapped(
        "400 test problems, 64 samples each: means over seeds ± standard deviation; KL in nats to the base. The "
        "commands are in `results/runner.py`. Rows old-* come from earlier versions of the code; after a warm-up, "
        "their KL is to the warmed-up policy. Rows real-* are the real model of "
        "[README.md](README.md#a-real-model): 100 problems x 32 samples, KL to the warmed-up policy. The flags of both "
        "are in `records/older.jsonl`.")]
    for title, (rows, columns) in TABLES.items():
        text += ["", f"### {title}", "", means(recorded, rows, columns)]
    return "\n".join(text) + "\n"


def draw(recorded):
    """Write results/claims.md, which.md and figures/ from the records -> one message per figure."""
    import draw as figures
    write("results/claims.md", page(recorded))
    write("results/which.md", which.page(recorded))
    return [figures.save(recorded, name) for name in figures.FIGURES]


# ------------------------------------------------------------------------------------------------------------- commands

def make(wanted, jobs, again=None):
    """Make missing runs in `jobs` parallel processes, including this one."""
    missing = len(set(wanted) - runner.records().keys())
    print(f"{len(wanted) - missing} of {len(wanted)} runs are recorded" + f"; {missing} to make, a minute or two each, "
          "plus the runs they depend on; Ctrl-C saves, the same command continues" * (missing > 0), flush=True)
    others = [multiprocessing.get_context("spawn").Process(target=runner.work, args=(wanted, again))
              for _ in range(jobs - 1)]
    try:
        for process in others:
            process.start()
        runner.work(wanted, again)
    except BaseException:
        for process in others:
            process.terminate()  # each saves after its step
        raise
    finally:
        for process in others:
            process.join()


def parse_args(argv):
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("names", nargs="*", metavar="NAME",
                   help="claims to run, in this order, or `all`; `which`: the runs of the table of all objectives; "
                        "`robust`: the runs over bases, budgets and learning rates; none: list the claims")
    p.add_argument("--seeds", type=int, default=SEEDS, help="number of seeds (0, 1, ...) to run; at least 2")
    p.add_argument("--jobs", type=int, default=2, help="parallel processes, one thread each")
    p.add_argument("--again", metavar="DIR", help="repeat all runs in DIR and compare with the records")
    p.add_argument("--json", action="store_true", help="print the list of claims as JSON")
    p.add_argument("--draw", action="store_true", help="write all tables and figures from the records; runs nothing")
    p.error = lambda sentence: p.exit(2, f"claims.py: error: {sentence}\n")  # one sentence, no usage
    args = p.parse_args(argv)
    for name in args.names:
        if name not in (*CLAIMS, "all", "which", "robust"):
            p.error(f"there is no claim {name!r}: `python results/claims.py` lists them")
    if args.again and not args.names:
        p.error("--again needs the name of a claim")
    if bool(args.names) + args.json + args.draw > 1:
        p.error("give one of NAME, --json and --draw")
    if args.seeds < 2 or args.jobs < 1:
        p.error(f"--seeds must be at least 2 and --jobs at least 1, not {args.seeds} and {args.jobs}")
    return args


def main(argv=None):
    args = parse_args(argv)
    if not args.names:
        recorded = runner.records()
        if args.draw:
            print("\n".join(draw(recorded)))
        else:
            print(as_json(recorded) if args.json else listing(recorded))
        return
    names = list(CLAIMS) if "all" in args.names else [name for name in args.names if name in CLAIMS]
    rows = [rows_of(name) for name in names] + [TABLED] * ("all" in args.names)  # also the rows of tables
    before = runner.records()
    if args.again:
        runner.use(args.again)
    if names:
        wanted = dict.fromkeys((row, seed) for group in rows for seed in range(args.seeds) for row in group)
        make(list(wanted), args.jobs, args.again)
    if "which" in args.names:
        for task in which.TASKS:
            make(which.trials(task), args.jobs, args.again)
            make(which.table_runs(runner.records(), task, args.seeds), args.jobs, args.again)
    if "robust" in args.names:
        make(which.robust_runs(args.seeds), args.jobs, args.again)
    recorded = runner.records()
    import draw as figures
    for name in names:
        print(report(recorded, name, min(args.seeds, SEEDS)))
        print("\nrecorded: " + in_brief(before, name) if args.again else figures.save(recorded, CLAIMS[name].figure))
    if {"which", "robust"} & {*args.names}:
        print(which.page(recorded))


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="replace")  # a console may lack ±; results/ alone must suffice here
    try:
        main()
        sys.stdout.flush()
    except BrokenPipeError:  # a reader such as `head` has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
