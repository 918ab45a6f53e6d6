"""results/: every committed file has the one schema, and the tables of results/README.md are rebuilt from them."""
import glob
import importlib.util
import json
import math
import os
import re
import subprocess
import sys

import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
spec = importlib.util.spec_from_file_location("table", os.path.join(ROOT, "results", "table.py"))
table = importlib.util.module_from_spec(spec)
spec.loader.exec_module(table)
FILES = sorted(glob.glob(os.path.join(ROOT, "results", "*.json")))


def command(*arguments):
    """(exit code, stdout, stderr) of table.py in a process of its own."""
    done = subprocess.run([sys.executable, os.path.join(ROOT, "results", "table.py"), *map(str, arguments)],
                          capture_output=True, text=True, cwd=ROOT)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("path", FILES, ids=os.path.basename)
def test_schema(path):
    """One run to a line; numbers are numbers; no run is there twice."""
    with open(path) as file:
        text = file.read()
    runs = json.loads(text)
    assert text == "[\n" + ",\n".join(map(json.dumps, runs)) + "\n]\n" and len(runs) > 1
    for run in runs:
        evaluated = run["script"] == "evaluate"
        assert {"script", "flags", "commit", "after"} <= run.keys()
        assert run.keys() <= ({"script", "row", "flags", "commit", "after", "co_scaling"} if evaluated else
                              {"script", "flags", "commit", "versions", "before", "after", "zero", "seconds",
                               "shared_machine", "verifier_auc"})
        assert os.path.exists(os.path.join(ROOT, run["script"] + ".py"))
        assert isinstance(run["flags"]["seed"], int) and (run["commit"] is None or isinstance(run["commit"], str))
        for row in {"before", "after"} & run.keys():
            assert run[row], run["flags"]
            for cell in run[row].values():
                assert cell.keys() == {"mean", "se"} and all(math.isfinite(v) for v in cell.values())
        numbers = run["co_scaling"] if evaluated else {**run.get("verifier_auc", {}), "zero": run["zero"],
                                                       "seconds": run["seconds"]}
        assert all(isinstance(v, (int, float)) and math.isfinite(v) for v in numbers.values())
    assert len({json.dumps([run["script"], run["flags"]]) for run in runs}) == len(runs)
    assert len(table.read(path)) == len(runs)


def readme_table(start, which=0):
    """The rows below the table header number `which` that begins with `start`, split into cells."""
    with open(os.path.join(ROOT, "results", "README.md"), encoding="utf-8") as file:
        lines = file.read().split("\n")
    first = [i for i, line in enumerate(lines) if line.startswith(start)][which] + 2
    last = next(i for i in range(first, len(lines)) if not lines[i].startswith("|"))
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[first:last]]


def agree(printed, cell):
    """Whether a cell such as "**.409** ±.006" or "42 %" is (mean, spread) to its digits. The files hold four digits or
    five behind the point and README.md was made from all of them, so a half may be rounded either way."""
    found = re.fullmatch(r"(-?[\d.,]+)(?: ±([\d.]+))?( %)?", printed.replace("*", "").replace(",", ""))
    scale = 100 if found[3] else 1
    return all(abs(float(text) - value * scale) <= 0.5 * 10 ** -len(text.partition(".")[2]) + 5e-5 * scale
               for text, value in zip(found.groups()[:2], cell) if text is not None)


# file, which of its runs, how the header in results/README.md begins, its columns (None:
# not recorded), and which row of it each of table.py's rows is (None: none)
KSAMPLE = [None, None, "pass@1", "pass@8", "pass@32", "maj@8", "maj@32", "kl", "zero"]
KL = [None, "pass@1", "pass@8", "kl"]
BON = [None, "pass@1", "pass@8", "pass@32", "bon@8", "bon@32", "gold", "distinct", "similarity", "entropy", "kl",
       "verifier_auc.after"]
PASSN = [None, "pass@1", "pass@4", "pass@16", "pass@64", "maj@8", "gold", "kl", "distinct"]
TABLES = {
    "countdown": ("ppo_passk", "steps=250,task=countdown", "| task | objective, k = 8", KSAMPLE, (0, 1, 2)),
    "routes": ("ppo_passk", "steps=250,task=routes", "| task | objective, k = 8", KSAMPLE, (3, 4, 6, 5)),
    "kl mean": ("ppo_passk", "steps=100,objective=mean", "| `--kl-coef` |", KL, (None, 0, 1, 2)),
    "kl passk": ("ppo_passk", "steps=100,objective=passk", "| `--kl-coef` |", [None, None, None, *KL], (None, 0, 1, 2)),
    "best of n": ("bon", "verifier=runs/verifier,temperature=1.0", "| | pass@1 | pass@8 | pass@32 | BoN@8", BON,
                  range(14)),
    "noise": ("bon", "script=bon_rl,variant=v", "| flipped |",
              [None, None, None, "bon@8", "pass@8", "verifier_auc.after"], (None, 0, 1, 2)),
    "cat sft": ("cat", "script=cat_passk,mode=sft", "| | pass@1 | pass@4", PASSN, range(1, 6)),
    "cat rl": ("cat", "script=cat_passk,mode=rl", "| | pass@1 | pass@4", PASSN, range(1, 14)),
    "majority": ("cat", "script=cat_majority", "| | pass@1 | pass@16 |",
                 [None, "pass@1", "pass@16", "maj@8", "maj@16", "maj@64", "gold", "kl", "distinct"], range(1, 9)),
    "peptide": ("cat", "script=cat_bon", "| | mean | best of 4",
                [None, "max@1", "max@4", "max@8", "max@16", "max@64", "kl", "entropy"], range(1, 9)),
    "program": ("program", "", "| | pass@1 | pass@8 | pass@32 | maj@8 | KL",
                [None, "pass@1", "pass@8", "pass@32", "maj@8", "kl", "distinct"], range(1, 5)),
    "real": ("real", "lr=0.0001", "| from one warm-up",
             [None, "pass@1", "pass@8", "pass@32", "maj@8", "kl", "zero"], range(5))}


@pytest.mark.parametrize("name", TABLES)
def test_tables_of_the_readme(name):
    file, where, start, columns, order = TABLES[name]
    printed = readme_table(start, name == "cat rl")
    runs = table.select(table.read(os.path.join(ROOT, "results", file + ".json")), where)
    found = [row for row in table.rows(runs, [c for c in columns if c]) if row[1] == 3]  # it has no row of one seed
    checked, wrong = 0, []
    for (label, _, cells), index in zip(found, order, strict=True):
        for column, text in zip(columns, printed[index] if index is not None else ()):
            if column in cells and text:
                checked += 1
                if not agree(text, cells[column]):
                    wrong.append((label, column, text, cells[column]))
    assert checked >= 9 and not wrong, wrong


def test_table_of_temperatures():
    """One evaluation to a cell: rows are models, columns temperatures."""
    runs = table.read(os.path.join(ROOT, "results", "bon_temperatures.json"))
    models = ["tiny", "runs/rl-SEED", "runs/bp-8-SEED", "runs/bp-8-T0.5-SEED"]
    for model, printed in zip(models, readme_table("| pass@8 at T ="), strict=True):
        for temperature, text in zip(("0.1", "0.5", "1", "1.5", "2"), printed[1:], strict=True):
            chosen = table.select(runs, f"models={model},temperature={temperature}")
            [(_, seeds, cells)] = table.rows(chosen, ["pass@8"])
            assert seeds == 3 and agree(text, cells["pass@8"]), (model, temperature, text, cells)
    errors = [run["co_scaling"]["rmse"] for run in runs]
    assert len(errors) == 60 and agree(".001", [min(errors)]) and agree(".039", [max(errors)])


def test_agree():
    assert agree("**.409** ±.006", (0.4093, 0.0056)) and agree("42 %", (0.4193, 0.01)) and agree("-5.29", (-5.2926, 1))
    assert not agree(".409 ±.006", (0.4093, 0.0066)) and not agree(".409", (0.4101, 0)) and not agree("42 %", (0.43, 0))


def test_command_line(tmp_path):
    code, out, err = command("results/ppo_passk.json", tmp_path, tmp_path / "no.json",
                             "--columns", "pass@1,kl,zero,no", "--where", "task=routes,objective=mean")
    assert code == 0 and not err
    assert out.split("\n") == [
        f"(no result in {tmp_path})", f"(no result in {tmp_path / 'no.json'})",
        "| run | seeds | pass@1 | kl | zero | no |", "|---|---|---|---|---|---|",
        "| before (routes) | 3 | 0.354 ±0.002 | 0.000 ±0.000 |  |  |",
        "| ppo_passk | 3 | 0.575 ±0.000 | 2.213 ±0.009 | 0.591 |  |", ""]


RUN = {"script": "ppo_passk", "flags": {"task": "routes", "data": None, "model": "tiny", "seed": 0}, "commit": None,
       "before": {"pass@1": {"mean": 0.25, "se": 0.0125}}, "after": {"pass@1": {"mean": 0.5, "se": 0.025}},
       "zero": 0.5, "seconds": 2.0}


def test_a_folder_and_a_file_of_the_same_run(tmp_path):
    folder = tmp_path / "r-0"
    folder.mkdir()
    (folder / "args.json").write_text(json.dumps({name: RUN[name] for name in ("script", "flags", "commit")}))
    (folder / "result.json").write_text(json.dumps({name: RUN[name] for name in ("before", "after", "seconds")}))
    (folder / "metrics.jsonl").write_text('{"zero": 0.25}\n{"zero": 0.75}\n')
    (tmp_path / "r.json").write_text(json.dumps([RUN]))
    outputs = [command(path, "--columns", "pass@1,zero,seconds") for path in (folder, tmp_path / "r.json")]
    assert outputs[0] == outputs[1] and outputs[0][0] == 0
    assert "| before (routes) | 1 | 0.250 ±0.013 |  |  |\n| ppo_passk | 1 | 0.500 ±0.025 | 0.5 | 2 |\n" in outputs[0][1]


@pytest.mark.parametrize("text", [
    json.dumps([RUN])[:-9], "", "5", "null", '{"a": 1}', "[1]", json.dumps([{**RUN, "flags": {}}]), "[" * 100000,
    json.dumps([{**RUN, "after [mean, standard error]": {}, "after": {"pass@1": [0.5, 0.1]}}]),
    json.dumps([{**RUN, "after": {"pass@1": {"mean": "high", "se": 0.1}}}])], ids=range(10))
def test_a_damaged_file_is_one_sentence(text, tmp_path):
    (tmp_path / "r.json").write_text(text)
    code, out, err = command(tmp_path / "r.json")
    assert code == 2 and not out and err.count("\n") == 1 and "r.json cannot be read" in err, err


def test_errors(tmp_path):
    (tmp_path / "args.json").write_text("{}")
    (tmp_path / "result.json").write_text('{"after": ')
    code, out, err = command(tmp_path)
    assert code == 2 and not out and err.count("\n") == 1 and f"{tmp_path} cannot be read" in err, err
    code, out, err = command("results/cat.json", "--where", "task=chess")
    assert code == 2 and not out and err.count("\n") == 1 and "task=chess" in err, err


def test_what_is_drawn_is_up_to_date():
    """README.md's list of claims and claims.md say what the records say."""
    sys.path.append(os.path.join(ROOT, "results"))
    import claims
    found = claims.runner.records()
    with open(os.path.join(ROOT, "README.md"), encoding="utf-8") as file:
        page = file.read()
    assert page == claims.between(page, claims.readme(found)), "python results/claims.py --draw"
    with open(os.path.join(ROOT, "results", "claims.md"), encoding="utf-8") as file:
        assert claims.listing(found) in file.read(), "python results/claims.py --draw"
    with open(os.path.join(ROOT, "results", "which.md"), encoding="utf-8") as file:
        assert file.read() == claims.which.page(found), "python results/claims.py --draw"
