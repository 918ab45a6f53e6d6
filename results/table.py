"""Markdown table over run folders, runs that differ only in --seed put together.

    python results/table.py runs/a runs/b ... --columns pass@1,pass@8,pass@32,maj@8,kl,seconds

A cell is the mean over seeds ± the standard deviation over seeds, or of one run ± the standard error over
problems. Folders without a result are named, not hidden.
"""
import argparse
import json
import os
import statistics

IGNORED = {"seed", "out", "resume", "save_every"}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folders", nargs="+", help="run folders")
    parser.add_argument("--columns", default="pass@1,pass@8,pass@32,maj@8,kl,seconds", help="entries of result.json")
    args = parser.parse_args()
    groups = {}
    for folder in args.folders:
        try:
            with open(os.path.join(folder, "args.json")) as file:
                recorded = json.load(file)
            with open(os.path.join(folder, "result.json")) as file:
                result = json.load(file)
        except OSError:
            print(f"(no result in {folder})")
            continue
        with open(os.path.join(folder, "metrics.jsonl")) as file:
            result["zero"] = statistics.mean(json.loads(line)["zero"] for line in file)
        key = (recorded["script"], tuple(sorted((k, v) for k, v in recorded["flags"].items() if k not in IGNORED)))
        groups.setdefault(key, []).append((recorded["flags"]["seed"], result))
    varying = {}  # flags that differ among the runs of one script
    for script in {key[0] for key in groups}:
        flags = [dict(key[1]) for key in groups if key[0] == script]
        varying[script] = [name for name in flags[0] if len({str(f[name]) for f in flags}) > 1]
    columns = args.columns.split(",")
    print("| run | seeds | " + " | ".join(columns) + " |\n|" + "---|" * (len(columns) + 2))

    def row(name, results):
        cells = []
        for column in columns:
            values = [r[column] for r in results if column in r]
            if not values:
                cells.append("")
            elif not isinstance(values[0], dict):
                cells.append(f"{statistics.mean(values):.3g}")
            elif len(values) == 1:
                cells.append(f"{values[0]['mean']:.3f} ±{values[0]['se']:.3f}")
            else:
                means = [v["mean"] for v in values]
                cells.append(f"{statistics.mean(means):.3f} ±{statistics.stdev(means):.3f}")
        print(f"| {name} | {len(results)} | " + " | ".join(cells) + " |")
    base = {}
    for key, runs in groups.items():
        for seed, result in runs:
            if "before" in result:
                flags = dict(key[1])
                what = tuple(flags[name] for name in
                             ("task", "data", "model", "adapter", "bits", "temperature", "eval_samples"))
                base.setdefault(what, {})[seed] = result["before"]
    for what, results in base.items():
        row(f"before ({what[0] or what[1]})", list(results.values()))
    for key, runs in groups.items():
        flags = dict(key[1])
        row(" ".join([key[0]] + [f"{name}={flags[name]}" for name in varying[key[0]]]),
            [{**result.get("after", {}), "seconds": result["seconds"], "zero": result["zero"]} for _, result in runs])


if __name__ == "__main__":
    main()
