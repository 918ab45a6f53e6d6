"""Markdown table over runs, those that differ only in --seed put together.

    python results/table.py runs/a runs/b ... --columns pass@1,pass@8,pass@32,maj@8,kl,seconds
    python results/table.py results/records/bon_rl.jsonl --where variant=bp --columns pass@8,kl,zero

A run is a folder or an entry of a file like those in results/records/, one JSON object to a line (or a JSON list of
them): {"script", "flags", "commit", "after": {metric: {"mean", "se"}}, "zero", "seconds", ...}. A flag that a file
leaves out has its default; what a file names after the run's own seed (adapter runs/a-0 of seed 0) counts as one,
runs/a-SEED. A cell is the mean over seeds ± the standard deviation over seeds, or of one run ± the standard error over
problems. What has no result is named.
"""
import json
import math
import os
import re
import statistics
import sys

sys.path[:0] = [os.path.dirname(os.path.dirname(os.path.abspath(__file__)))]
from support.flags import Parser
from support.output import consoles

IGNORED = {"seed", "out", "resume", "save_every"}


def load(path):
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file] if path.endswith(".jsonl") else json.load(file)


def read(path):
    """The runs of a folder or file.  Raises FileNotFoundError without a result, OSError or ValueError if unreadable."""
    try:
        if os.path.isfile(path):
            runs = load(path)
            runs = [run for run in runs if run.get("after")]  # a verifier has no row
            for run in runs:
                run["flags"] = {name: re.sub(f"-{run['flags']['seed']}$", "-SEED", value) if isinstance(value, str)
                                else value for name, value in run["flags"].items()}
        else:
            runs = [{**load(os.path.join(path, "args.json")), **load(os.path.join(path, "result.json"))}]
            with open(os.path.join(path, "metrics.jsonl"), encoding="utf-8") as file:
                runs[0]["zero"] = statistics.mean(json.loads(line)["zero"] for line in file)
        for cell in (cell for run in runs for row in ("before", "after") for cell in run.get(row, {}).values()):
            cell |= {name: math.nan for name, value in cell.items() if value is None}  # what is not finite
        for run in runs:  # what the table needs of each
            hash((run["script"], run["flags"]["seed"], *run["flags"].values()))
            sum(cell["mean"] + cell["se"] for row in ("before", "after") for cell in run.get(row, {}).values())
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"not a run or list of runs ({error})") from error
    if not runs:
        raise FileNotFoundError(path)
    return runs


def select(runs, where):
    """The runs recorded with every flag=value (or script=name) of `where`."""
    wanted = [part.partition("=")[::2] for part in where.split(",") if part]
    return [run for run in runs if all(str({**run, **run["flags"]}.get(name)) == value for name, value in wanted)]


def spread(values):
    """Of cells: mean, and standard deviation over seeds or the one run's standard error; of numbers: mean, None."""
    if not isinstance(values[0], dict):
        return statistics.mean(values), None
    means = [v["mean"] for v in values]
    return (statistics.mean(means), statistics.stdev(means)) if len(means) > 1 else (means[0], values[0]["se"])


def rows(runs, columns):
    """The table as [(name, number of runs, {column: spread})], the bases first."""
    groups, base = {}, {}
    for run in runs:
        flags = {name: value for name, value in sorted(run["flags"].items()) if name not in IGNORED}
        groups.setdefault((run["script"], tuple(flags.items())), []).append(run)
        if "before" in run:
            what = tuple(flags.get(name) for name in
                         ("task", "data", "model", "adapter", "bits", "temperature", "eval_samples"))
            base.setdefault(what, {})[run["flags"]["seed"]] = run["before"]
    table = [(f"before ({what[0] or what[1]})", list(results.values())) for what, results in base.items()]
    for (script, flags), members in groups.items():
        others = [dict(key[1]) for key in groups if key[0] == script]
        name = [f"{n}={v}" for n, v in flags if len({str(f.get(n)) for f in others}) > 1]  # those that vary
        results = []
        for run in members:  # beside the metrics: numbers, also those one level down
            parts = {f"{n}.{p}": v for n, value in run.items() if isinstance(value, dict) for p, v in value.items()}
            numbers = {n: v for n, v in {**run, **parts}.items() if isinstance(v, (int, float))}
            results.append({**numbers, **run.get("after", {})})
        table.append((" ".join([str(script), *name]), results))
    return [(name, len(results), {column: spread([r[column] for r in results if column in r]) for column in columns
                                  if any(column in r for r in results)}) for name, results in table]


def parser():
    p = Parser(description=__doc__.split("\n")[0])
    p.add_argument("runs", nargs="+", help="run folders, and files of runs")
    p.add_argument("--columns", default="pass@1,pass@8,pass@32,maj@8,kl,seconds", help="metrics, zero, seconds")
    p.add_argument("--where", default="", help="only these runs: flag=value,flag=value, as recorded")
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
        parser().exit(2, f"table.py: error: --where {args.where}: no run is recorded with that\n")
    print("| run | seeds | " + " | ".join(columns) + " |\n|" + "---|" * (len(columns) + 2))
    for name, seeds, cells in rows(chosen, columns):
        print(f"| {name} | {seeds} | " + " | ".join(
            "" if c not in cells else f"{cells[c][0]:.3g}" if cells[c][1] is None
            else f"{cells[c][0]:.3f} ±{cells[c][1]:.3f}" for c in columns) + " |")


if __name__ == "__main__":
    with consoles():
        main()
