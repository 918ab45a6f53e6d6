"""A Markdown table of runs; runs that differ only in --seed share a row.

    python results/table.py runs/a runs/b ... --columns pass@1,pass@8,pass@32,maj@8,kl,seconds
    python results/table.py results/records/bon_rl.jsonl --where variant=bp --columns pass@8,kl,zero

A run is a run folder, or a line of a file like those in results/records/: a JSON object {"script", "flags", "commit",
"after": {metric: {"mean", "se"}}, "zero", "seconds", ...}. A flag missing from a file has its default. In files, values
that end in the run's own seed (adapter runs/a-0 at seed 0) are read as runs/a-SEED, so that seeds share a row. A cell
is the mean over seeds ± standard deviation, or for a single run ± the standard error over problems. Paths without a
result are listed.
"""
import json
import math
import os
import re
import statistics
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, os.path.dirname(HERE)]
import pages

from support.flags import Parser
from support.output import consoles

IGNORED = {"seed", "out", "resume", "save_every"}


def read_json(path):
    with open(path, encoding="utf-8") as file:
        return json.load(file)


def read_lines(path):
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def read(path):
    """The runs in a folder or file.  Raises FileNotFoundError if there is no result, OSError or ValueError if it cannot
    be read."""
    try:
        runs = read_file(path) if os.path.isfile(path) else [read_folder(path)]
        for run in runs:
            for cell in cells(run):
                cell |= {name: math.nan for name, value in cell.items() if value is None}  # stored non-finite values
            # fails here if anything the table needs is missing
            hash((run["script"], run["flags"]["seed"], *run["flags"].values()))
            sum(cell["mean"] + cell["se"] for cell in cells(run))
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"not a run or list of runs ({error})") from error
    if not runs:
        raise FileNotFoundError(path)
    return runs


def read_file(path):
    runs = [run for run in read_lines(path) if run.get("after")]  # verifiers get no row
    for run in runs:
        own = re.compile(f"-{run['flags']['seed']}$")
        run["flags"] = {name: own.sub("-SEED", value) if isinstance(value, str) else value
                        for name, value in run["flags"].items()}
    return runs


def read_folder(path):
    run = read_json(os.path.join(path, "args.json")) | read_json(os.path.join(path, "result.json"))
    steps = read_lines(os.path.join(path, "metrics.jsonl"))
    return {**run, "zero": statistics.mean(step["zero"] for step in steps)}


def cells(run):
    return [cell for row in ("before", "after") for cell in run.get(row, {}).values()]


def select(runs, where):
    """The runs that match every flag=value (or script=name) in `where`."""
    wanted = [part.partition("=")[::2] for part in where.split(",") if part]
    return [run for run in runs if all(str({**run, **run["flags"]}.get(name)) == value for name, value in wanted)]


def cell(values):
    """A table cell from the values of runs that differ only in the seed."""
    if not values:
        return ""
    if not isinstance(values[0], dict):
        return f"{statistics.mean(values):.3g}"
    if len(values) == 1:
        return f"{values[0]['mean']:.3f} ±{values[0]['se']:.3f}"
    return pages.spread([v["mean"] for v in values])


BASE = ("task", "data", "model", "adapter", "bits", "temperature", "eval_samples")  # flags that "before" rows depend on


def rows(runs, columns):
    """The rows of the table, bases first."""
    groups = {}
    bases = {}
    for run in runs:
        flags = {name: value for name, value in sorted(run["flags"].items()) if name not in IGNORED}
        groups.setdefault((run["script"], tuple(flags.items())), []).append(run)
        if "before" in run:
            kind = tuple(flags.get(name) for name in BASE)
            bases.setdefault(kind, {})[run["flags"]["seed"]] = run["before"]
    named = [(f"before ({kind[0] or kind[1]})", list(results.values())) for kind, results in bases.items()]
    for (script, flags), members in groups.items():
        others = [dict(key[1]) for key in groups if key[0] == script]
        varying = [f"{n}={v}" for n, v in flags if len({str(other.get(n)) for other in others}) > 1]
        results = []
        for run in members:
            numbers = {name: v for name, v in run.items() if isinstance(v, (int, float))}
            results.append({**numbers, **run.get("after", {})})
        named.append((" ".join([str(script), *varying]), results))
    return [[name, str(len(results)), *(cell([r[column] for r in results if column in r]) for column in columns)]
            for name, results in named]


def parser():
    p = Parser(description=__doc__.split("\n")[0])
    p.add_argument("runs", nargs="+", help="run folders and record files")
    p.add_argument("--columns", default="pass@1,pass@8,pass@32,maj@8,kl,seconds",
                   help="comma-separated metrics, zero, seconds")
    p.add_argument("--where", default="", help="select runs by recorded flags: flag=value,flag=value")
    return p


def main():
    args = parser().parse_args()
    runs, columns = [], args.columns.split(",")
    for path in args.runs:
        try:
            runs += read(path)
        except (FileNotFoundError, NotADirectoryError):
            print(f"(no result in {path})")
        except (OSError, ValueError, RecursionError) as error:
            parser().exit(2, f"table.py: error: {path} cannot be read: {error}\n")
    chosen = select(runs, args.where)
    if runs and not chosen:
        parser().exit(2, f"table.py: error: --where {args.where}: no run matches\n")
    print(pages.table(["run", "seeds", *columns], rows(chosen, columns)))


if __name__ == "__main__":
    with consoles():
        main()
