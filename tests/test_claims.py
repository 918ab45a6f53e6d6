"""results/claims.py: records have one schema, verdicts follow the rule, a run is made once and survives a kill."""
import glob
import importlib
import json
import math
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time

import claims
import pytest
import runner
import which
from claims import Claim, Part
from conftest import ROOT

FOUND = runner.records()


def command(*arguments, root=ROOT):
    """(exit code, stdout, stderr) of claims.py in a process of its own."""
    done = subprocess.run([sys.executable, os.path.join(root, "results", "claims.py"), *arguments],
                          capture_output=True, text=True, cwd=root)
    return done.returncode, done.stdout, done.stderr


# ------------------------------------------------------------------------------------------------- what is written down

def test_rows_parse_and_say_all_that_matters():
    """Each command is one that its script takes; the flags whose defaults may change are spelled out."""
    for row in runner.ROWS:
        script, rest, _ = runner.command_of(row)
        line = runner.arguments(row, 3)
        assert line[-2:] == ["--seed", "3"] and not any("{" in word for word in line)
        module = importlib.import_module(script)
        flags = vars((module.parse_args if script in ("evaluate", "make_tiny") else module.parser().parse_args)(line))
        if script not in ("evaluate", "make_tiny"):
            module.check_flags(module.parser().parse_args(line))
            own = {"ppo_passk": ["objective", "k"], "bon_sft": ["n", "train-problems"], "bon_rl": ["variant", "n"],
                   "cat_bon": ["mode", "n"], "cat_majority": ["mode"], "cat_passk": ["mode", "n"],
                   "fit_verifier": []}[script]
            own += ["scores"] * (script == "bon_sft" and flags["n"] > 1)
            own += ["n", "threshold"] * (script == "cat_majority" and not flags["contrastive"])
            wanted = [*own, "model", "task", "lr", "temperature", "prompts", "steps"]
            if script == "fit_verifier":
                wanted = ["model", "task", "train-problems", "samples", "epochs", "lr"]
            elif flags.get("mode", "rl") == "rl" and not (script == "bon_sft" and flags["n"] == 1):
                wanted += ["samples"] + ["form", "rewards"] * script.startswith("cat") + ["probability"] * (
                    script == "cat_passk")
            assert {f"--{name}" for name in wanted} <= set(line), row
        assert runner.flags_of(rest, 3).keys() <= flags.keys(), row
        assert set(runner.needs(row)) <= runner.ROWS.keys()


def test_claims():
    """Those of three papers, about rows that exist, with figures that exist; `rows_of` has what a claim runs."""
    import draw
    papers = [claim.paper for claim in claims.CLAIMS.values()]
    assert [papers.count(paper) for paper in (claims.TANG, claims.CHOW, claims.CAT)] == [5, 8, 9]
    for name, claim in claims.CLAIMS.items():
        assert set(claims.rows_of(name)) <= runner.ROWS.keys() and claim.figure in draw.FIGURES
        assert all(part.side in ("above", "below") for part in claim.parts)
        assert claim.why.count(". ") <= 1  # two sentences
        if claims.verdict_of(FOUND, name)[0] in ("in part", "fails"):
            assert claim.why, f"{name} is not right in all parts: say why"
    assert all(row in runner.ROWS or (row, 0) in FOUND for rows, _ in claims.TABLES.values() for row in rows)


def test_records():
    """One schema; a line for each run; the numbers of the problems are those of the means."""
    lines = []
    for path in glob.glob(os.path.join(runner.RECORDS, "*")):
        with open(path) as file:
            lines += [(os.path.basename(path), line) for line in file]
    assert len({(run["row"], run["flags"]["seed"]) for run in (json.loads(line) for _, line in lines)}) == len(lines)
    assert sum(len(line) for _, line in lines) < 5e6
    for name, line in lines:
        run = json.loads(line)
        for cell in run["after"].values():
            assert cell.keys() == {"mean", "se"} and all(math.isfinite(v) for v in cell.values())
        if run["row"].startswith(("old-", "real-")):
            trained = {"seconds", "zero"} if run["script"] != "evaluate" else set()
            trained |= {"auc", "auc_base"} & run.keys()
            assert name == "older.jsonl" and run["after"] and run["problems"] == {}
            assert run.keys() == {"row", "script", "flags", "commit", "versions", "after", "problems"} | trained
            continue
        script, rest, verifier = runner.command_of(run["row"])
        assert name == run["script"] + ".jsonl" and script == run["script"]
        assert run["flags"] == runner.flags_of(rest, run["flags"]["seed"])
        trained = {"seconds", "cpu_seconds", "samples_per_s", "zero"} if script != "evaluate" else set()
        if runner.is_verifier(run["row"]):
            trained = {"seconds", "cpu_seconds", "auc", "auc_interval"}
        if runner.is_base(run["row"]):
            trained = {"seconds", "cpu_seconds", "parameters"}
        extra = {"auc"} if verifier else {"co_scaling"} if "-T" in run["row"] else set()
        extra |= {"formula"} if runner.formula_of(run["row"]) else set()
        extra |= {"curve"} if run["row"].startswith("which-countdown6-") and trained else set()
        assert run.get("formula") == runner.formula_of(run["row"])
        extra |= {"valid"} if run["row"].startswith("which-") and trained and run["flags"]["seed"] == 0 else set()
        assert run.keys() == {"row", "script", "flags", "commit", "versions", "after", "problems"} | trained | extra
        size = run["flags"].get("problems", run["flags"].get("eval_problems", 400))
        for metric, values in run["problems"].items():
            assert len(values) == size or metric == "gold" and size * .98 < len(values) < size  # not all have one
            assert all(isinstance(v, int) for v in values)
            if metric != "right":
                assert abs(statistics.mean(values) / 1000 - run["after"][metric]["mean"]) < 6e-4
        for k in runner.KS if "right" in run["problems"] else ():
            assert abs(statistics.mean(runner.per_problem(run, f"pass@{k}")) - run["after"][f"pass@{k}"]["mean"]) < 2e-5


# ----------------------------------------------------------------------------------------------------------- statistics

def record(row, seed, right=(32, 32), **after):
    return {"row": row, "flags": {"seed": seed}, "problems": {"right": list(right), "maj@8": [500, 250]},
            "after": {name.replace("_", "@"): {"mean": mean, "se": 0.1} for name, mean in after.items()}}


def test_interval():
    mean, low, high = claims.interval([1, 2, 3, 4, 5])
    half = 2.7764 * math.sqrt(2.5) / math.sqrt(5)  # by hand
    assert mean == 3 and abs(low - 3 + half) < 1e-3 and abs(high - 3 - half) < 1e-3
    assert claims.interval([2.0]) == (2.0, None, None) and claims.interval([]) == (None, None, None)
    assert claims.interval([0] * 30 + [1])[2] < 0.1


def test_pairs_by_seed():
    """Only seeds with both runs count, and "x - y" is the difference of two metrics."""
    found = {(row, seed): record(row, seed, pass_1=mean, pass_8=2 * mean) for row, seed, mean in (
        ("a", 0, .5), ("b", 0, .25), ("a", 1, .75), ("a", 2, .5), ("b", 2, .125))}
    assert claims.seeds_of(found, Part("a", "b", "pass@1")) == [0, 2]
    assert claims.differences(found, Part("a", "b", "pass@1")) == [.25, .375]
    assert claims.differences(found, Part("a", None, "pass@1")) == [.5, .75, .5]
    assert claims.differences(found, Part("a", "b", "pass@8 - pass@1")) == [.25, .375]


def test_bootstrap():
    """Over problems, paired: what every problem gains is certain; what half of them gain is known to about 2 errors."""
    part = Part("a", "b", "pass@1")
    found = {(row, seed): record(row, seed, right) for row, right in (("a", [48, 32]), ("b", [32, 16]))
             for seed in (0, 1)}
    assert claims.bootstrap(found, part) == (.25, .25)
    found = {(row, 0): record(row, 0, right) for row, right in (("a", [64, 0] * 200), ("b", [0] * 400))}
    low, high = claims.bootstrap(found, part)
    assert abs(low - .5 + 1.96 * .025) < .005 and abs(high - .5 - 1.96 * .025) < .005
    found = {(row, 0): record(row, 0) for row in "ab"}
    assert claims.bootstrap(found, Part("a", "b", "maj@8")) == (0, 0)
    assert claims.bootstrap(found, Part("a", "b", "kl")) is None


def test_verdict():
    above, below = Part("a", "b", "pass@1"), Part("a", "b", "kl", "below", .5)
    yes, covers, no = (.1, .05, .15), (.1, -.05, .25), (-.1, -.2, -.05)
    for parts, intervals, wanted in (
            ([above], [yes], "holds"), ([above], [covers], "fails"), ([above], [no], "fails"),
            ([above, above], [yes, covers], "in part"), ([above, above], [yes, no], "in part"),
            ([above, above], [covers, yes], "fails"), ([below], [yes], "holds"), ([below], [(.6, .4, .8)], "fails"),
            ([above, below], [yes, no], "holds")):
        assert claims.verdict(parts, intervals, 5) == wanted
        assert claims.verdict(parts, intervals, 4) == "open"
    assert [claims.side(above, *cell[1:]) for cell in (yes, covers, no)] == ["right", "covers the bound", "wrong side"]


def test_a_claim_from_records(monkeypatch):
    monkeypatch.setitem(claims.CLAIMS, "mine", Claim("paper", "A beats B", (Part("a", "b", "pass@1"),), "kl"))
    found = {(row, seed): record(row, seed, pass_1=mean + seed / 100) for row, mean in (("a", .75), ("b", .25))
             for seed in range(5)}
    said, seeds, ((mean, low, high),) = claims.verdict_of(found, "mine")
    assert (said, seeds) == ("holds", 5) and abs(mean - .5) < 1e-9 and abs(low - .5) < 1e-9 and abs(high - .5) < 1e-9
    text = claims.report(found, "mine")
    assert "`mine`: holds" in text and "| a | 5 | 0.770 ±0.016 |" in text and "+.500 [+.500, +.500] |" in text
    assert [claims.number(x) for x in (.0123, -.5, 20.25)] == ["+.012", "-.500", "+20.250"]
    del found["b", 3]
    assert claims.verdict_of(found, "mine")[:2] == ("open", 4)


# ------------------------------------------------------------------------------------------------------------ which one

def tried(task, objective, lr, seed, right, valid=None, **after):
    run = {**record(f"which-{task}-{objective}-{lr}".removesuffix("-"), seed, right, **after), "cpu_seconds": 9.0}
    return run | ({"valid": dict.fromkeys(which.BEST, valid)} if valid is not None else {})


def test_objectives_are_compared_like_for_like():
    """Equal base, samples, steps and temperature; k = N = 8; the same three learning rates for each."""
    assert set(which.SELECT) == {*runner.OBJECTIVES, *runner.OTHERS} and set(which.LABELS) == {"base", *which.SELECT}
    budgets = {"maxrl-16": 16, "passk-8-1": "8:1"}
    for task in which.TASKS:
        for objective in which.SELECT:
            lines = [runner.command_of(row) for row in which.tries(task, objective)]
            assert [rest[rest.index("--lr") + 1] for _, rest, _ in lines] == list(runner.LRS)
            for script, rest, verifier in lines:
                flags = vars(importlib.import_module(script).parser().parse_args(rest))
                assert (flags["prompts"], flags["samples"], flags["steps"], flags["temperature"]) == (64, 16, 50, 1)
                assert flags.get("n", flags.get("k")) == budgets.get(objective, 8)
                judged = objective == "bon-v" or task != "countdown6" and objective not in runner.OTHERS
                assert verifier == (runner.VERIFIERS[task] if judged else None)
                assert (flags["model"], flags["task"]) == (runner.MODELS[task], task)


def test_validation_problems_choose():
    """The learning rate is the best at seed 0 on validation problems, whatever the test problems say, and of equal ones
    the smallest; before all are tried there is none."""
    found = {}
    for lr, valid, test in zip(runner.LRS, (.5, .75, .75), (.9, .1, .2)):
        assert which.chosen(found, "routes", "mean") is None
        run = tried("routes", "mean", lr, 0, (32, 32), valid, pass_1=test)
        found[run["row"], 0] = run
    assert which.chosen(found, "routes", "mean") == f"which-routes-mean-{runner.LRS[1]}"
    assert which.chosen({}, "routes", "base") == "which-routes-base"
    for task in which.TASKS:
        trials = which.trials(task)
        assert len(trials) == 17 * 3 and {seed for _, seed in trials} == {0}
        found = {(row, 0): {"valid": dict.fromkeys(which.BEST, .5)} for row, _ in trials}
        wanted = which.table_runs(found, task, 5)
        assert len(wanted) == 18 * 5 and all(row in runner.ROWS for row, _ in wanted)


def test_table_of_objectives():
    """The best is bold; what its paired interval does not exclude is marked; the rest is not."""
    found = {}
    for objective, means in (("base", (.2, .2, .2)), ("mean", (.5, .5, .5)), ("passk", (.4, .55, .52))):
        for seed, mean in enumerate(means):
            for lr in runner.LRS if objective != "base" and seed == 0 else ("",) if objective == "base" else ("0.002",):
                run = tried("routes", objective, lr, seed, (32, 32), .5, pass_1=mean + seed / 100, kl=0.0,
                            **dict.fromkeys(("pass_8", "pass_32", "maj_8", "bon_8"), mean))
                found[run["row"], seed] = run
    lines = {line.split(":")[0].split(" |")[0]: line for line in which.results(found, "routes").split("\n")}
    unfinished = [line for line in lines.values() if "| 0 of 3 tried | 0 |" in line]
    assert "| 0.002 | 3 | **0.510 ±0.010** |" in lines["| mean"] and "| ≈ 0.500 ±0.087 |" in lines["| pass@8"]
    assert "|  | 3 | 0.210 ±0.010 |" in lines["| base"] and len(lines) == 2 + 18
    assert len(unfinished) == 15 and all(line.endswith("| 0 |" + "  |" * len(which.COLUMNS)) for line in unfinished)
    assert which.leads(found, "routes").split("\n")[2].startswith("| mean | +.300 [+.300, +.300] |")
    text = which.page(found)
    assert "| routes | mean | pass@1 | **0.500** | 0.500 | 0.500 |" in text and "## countdown" in text


def test_what_is_recommended():
    """An objective whose lead over passk is surely above 0 on two tasks, and no other; a row that is not finished says
    how many seeds it has."""
    found = {}
    leads = {"mean": ((.1, .11), (.1, .105), (-.1, -.1)), "grpo": ((.1, .11), (.2, -.1), (.3, -.1)),
             "verl": ((.1, .11), (.1, .105), (.1, .105)), "passk": ((0, 0), (0, 0), (0, 0))}
    for objective, by_task in leads.items():
        for task, by_seed in zip(("countdown", "routes", "program"), by_task):
            for lr in runner.LRS[:2] if (objective, task) == ("verl", "routes") else runner.LRS:
                for seed, lead in enumerate(by_seed if lr == "0.002" else by_seed[:1]):
                    run = tried(task, objective, lr, seed, (32, 32), .5, pass_1=.5 + lead)
                    found[run["row"], seed] = run
    assert which.ahead(found, "mean", "pass@1") == ["countdown", "routes"]
    assert which.ahead(found, "grpo", "pass@1") == ["countdown"]
    assert which.ahead(found, "verl", "pass@1") == ["countdown", "program"]  # a rate is not tried on routes
    assert which.recommended(found, "pass@1") == ["mean", "verl"]
    lines = which.against(found, "pass@1").split("\n")
    assert "| verl | " + which.with_interval(*runner.interval([.1, .11])) + " (2 seeds) |  | " in "\n".join(lines)
    assert [line[-8:] for line in lines if line.startswith(("| mean ", "| rs-grpo "))] == [" **2** |", "|  | 0 |"]
    assert len(lines) == 2 + 16


def test_change_by_difficulty():
    """Of the problems that the base solves often, counted in its run of another seed."""
    counts = {("which-routes-base", 0): (60, 8), ("which-routes-base", 1): (8, 60), ("row", 0): (56, 24),
              ("row", 1): (16, 44)}
    found = {(row, seed): record(row, seed, right) for (row, seed), right in counts.items()}
    often, seldom = (which.change(found, "row", "which-routes-base", *ends) for ends in ((32, 65), (0, 32)))
    assert often == runner.interval([16 / 64, 8 / 64])  # 24 - 8, 16 - 8
    assert seldom == runner.interval([-4 / 64, -16 / 64])


def test_robustness_is_compared_like_for_like():
    """Pass@k and the mean on the same base, samples, steps and learning rate; n = k and n = 4k; no run is missing."""
    wanted = which.robust_runs(3)
    assert len(wanted) == len(set(wanted)) == 3 * (3 + 3 * 3 * (4 + 6)) and all(row in runner.ROWS for row, _ in wanted)
    assert {n / k for k, n in runner.BUDGETS} == {1, 4} and {k for k, _ in runner.BUDGETS} == {2, 8, 32}
    for base in runner.BASES:
        for k, n in runner.BUDGETS:
            for lr in runner.LRS:
                pair = which.robust_rows(base, k, n, lr)
                aware, mean = (runner.flags_of(runner.command_of(row)[1], 0) for row in pair)
                assert (aware.pop("k"), aware.pop("objective"), mean.pop("objective")) == (k, "passk", "mean")
                assert mean.pop("k") == n and aware == mean and aware["samples"] * aware["prompts"] == 1024


def test_table_of_robustness():
    """Pairs of all bases first, then base by base; a run without its partner leaves its cell empty; with all learning
    rates there is the lead of the best of one objective over the best of the other."""
    assert which.robust_page({})[-1].startswith("|---")
    aware = which.robust_rows("wide", 8, 32, runner.LRS[0])[0]
    found = {(aware, 0): record(aware, 0, pass_8=.5)}
    assert which.robust_page(found) == which.robust_page({})
    for base, lead in (("wide", .25), ("tiny", .125)):
        for seed in (0, 1):
            for row, mean in zip((*which.robust_rows(base, 8, 32, runner.LRS[2]), f"robust-{base}-base"),
                                 (.5 + lead, .5, .25)):
                found[row, seed] = record(row, seed, pass_8=mean + seed / 10)
    lines = which.robust_page(found)
    assert lines[-2:] == ["| tiny | 8 | 32 |  |  |  | +.125 [+.125, +.125] / +.375 | 0 |",
                          "| wide | 8 | 32 |  |  |  | +.250 [+.250, +.250] / +.500 | 0 |"]
    pooled, = (line for line in lines if line.startswith("| 8 | 32 |"))
    assert pooled == "| 8 | 32 |  |  |  | " + which.with_interval(*runner.interval([.25, .25, .125, .125])) + " | 0 |"
    for lr, right in zip(runner.LRS, ((.5, .25), (.25, .375), (.125, .0625))):  # the best: .5 and .375
        for row, mean in zip(which.robust_rows("wide", 8, 32, lr), right):
            found |= {(row, seed): record(row, seed, pass_8=mean) for seed in (0, 1)}
    assert which.robust_page(found)[-1].startswith("| wide | 8 | 32 | +.125 [+.125, +.125] | +.250 [")


def test_a_formula_takes_the_place_of_the_coefficients(tmp_path, monkeypatch):
    """In the step itself, for rows whose formula no script has; afterwards the script has its own again."""
    import elsewhere
    import torch

    import ppo_passk
    handed = []
    update = ppo_passk.ppo_update

    def captured(policy, optimizer, prompts, y, old_logps, coefficients, args):
        handed.append(coefficients)
        return update(policy, optimizer, prompts, y, old_logps, coefficients, args)
    monkeypatch.setattr(ppo_passk, "ppo_update", captured)
    rewards = []
    judged = ppo_passk.sample_stats
    monkeypatch.setattr(ppo_passk, "sample_stats", lambda *args: rewards.append(args[3]) or judged(*args))
    with runner.handed("GRPO"):
        ppo_passk.main(["--task", "countdown", "--k", "2", "--samples", "6", "--prompts", "4", "--steps", "1",
                        "--eval-samples", "0", "--out", str(tmp_path / "run")])
    wanted = elsewhere.grpo(rewards[0].double(), 2)
    assert wanted.any() and torch.allclose(handed[0].double(), wanted, rtol=1e-6, atol=1e-8)
    r = torch.tensor([[1.0] * K + [0.0] * (6 - K) for K in (1, 0, 3, 6, 1)])
    for objective, name in runner.FORMULAS.items():
        row = f"which-countdown6-{objective}-0.004"
        assert row in runner.ROWS and runner.formula_of(row) == name
        with runner.handed(name):
            found = ppo_passk.advantages(r, 2, "passk")
        wanted = elsewhere.FORMULAS[name].function(r.double(), 2)
        assert found.dtype == r.dtype and torch.allclose(found.double(), wanted, rtol=1e-6, atol=1e-8)
        assert found[0].any() and not found[1].any() and not found[3].any()
    assert ppo_passk.advantages is elsewhere.advantages
    assert all(runner.formula_of(row) is None for row in (
        "which-routes-base", "which-countdown-maxrl-8-0.002", "which-program-passk-0.002", "robust-tiny-base", "verl"))


# ------------------------------------------------------------------------------------------------------------- commands

def test_json_and_list():
    code, out, err = command("--json")
    rows = json.loads(out)
    assert code == 0 and not err and [row["name"] for row in rows] == list(claims.CLAIMS)
    for row in rows:
        assert list(row) == ["name", "paper", "verdict", "seeds", "effect", "low", "high", "command"]
        assert row["verdict"] in ("holds", "in part", "fails", "open") and type(row["seeds"]) is int
        assert (row["verdict"] == "open") == (row["seeds"] < claims.SEEDS)
        assert row["seeds"] < 2 or row["low"] <= row["effect"] <= row["high"]
        assert row["command"] == f"python results/claims.py {row['name']}"
    code, out, err = command()
    assert code == 0 and not err and all(f"| `{name}`: " in out for name in claims.CLAIMS)


@pytest.mark.parametrize("flags", [["no-such-claim"], ["--seeds", "x"], ["mean-pass1", "--seeds", "1"], ["--jobs", "0"],
                                   ["--no"], ["--again", "x"], ["--json", "--draw"], ["mean-pass1", "--json"]],
                         ids=" ".join)
def test_mistakes_are_one_sentence(flags, capsys):
    with pytest.raises(SystemExit) as stopped:
        claims.main(flags)
    out, err = capsys.readouterr()
    assert stopped.value.code == 2 and not out and err.count("\n") == 1 and err.startswith("claims.py: error: ")


def test_draw_from_what_is_committed(tmp_path):
    """Every table and figure, with results/ alone, in under a minute; a picture is small."""
    shutil.copytree(os.path.join(ROOT, "results"), tmp_path / "results", ignore=shutil.ignore_patterns(
        "figures", "claims.md", "__pycache__"))
    started = time.time()
    code, out, err = command("--draw", root=str(tmp_path))
    assert code == 0 and not err and time.time() - started < 60, err
    text = (tmp_path / "results" / "claims.md").read_text()
    assert claims.listing(runner.records()) in text or runner.records() != FOUND
    assert which.page(runner.records()) == (tmp_path / "results" / "which.md").read_text() or runner.records() != FOUND
    assert all(f"### `{name}`: " in text for name in claims.CLAIMS)
    for path in (tmp_path / "results" / "figures").iterdir():
        assert path.stat().st_size < 80_000, path


# ----------------------------------------------------------------------------------------------------------------- runs

@pytest.fixture
def place(tmp_path, monkeypatch):
    """Folders of the test's own, and two small rows."""
    monkeypatch.setattr(runner, "RECORDS", str(tmp_path / "records"))
    monkeypatch.setattr(runner, "RUNS", str(tmp_path / "runs"))
    small = "ppo_passk --task countdown --k 2 --samples 4 --prompts 4 --save-every 1 --kl-prompts 0"
    monkeypatch.setattr(runner, "ROWS", {"first": small + " --steps 3", "then": small + " --steps 1 --adapter {first}"})
    monkeypatch.setattr(runner, "evaluated", lambda row, seed, cpu: {
        "row": row, "script": "ppo_passk", "flags": {"seed": seed}, "cpu_seconds": cpu})
    return tmp_path


def test_a_run_is_made_once_and_goes_on_after_a_kill(place, monkeypatch):
    import ppo_passk
    step, steps = ppo_passk.step, []

    def counted(*args):
        steps.append(args[4])
        if len(steps) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(*args)
    monkeypatch.setattr(ppo_passk, "step", counted)
    monkeypatch.setattr("support.run.plot_run", lambda *args: None)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as stopped:
        runner.work([("first", 7)])
    assert stopped.value.code == 130 and signal.getsignal(signal.SIGTERM) is before
    assert steps == [1, 2] and not runner.records()
    runner.work([("first", 7)])
    assert steps == [1, 2, 3] and runner.records().keys() == {("first", 7)}
    assert runner.records()["first", 7]["cpu_seconds"] is None  # of a part of it would say nothing
    runner.work([("first", 7)])
    assert len(steps) == 3


def test_what_another_run_needs_is_made_again_if_its_folder_is_gone(place, monkeypatch):
    """First what is needed. In a fresh clone, which has the records alone, it is made again, and recorded once."""
    made = []

    def train(row, seed, resumed):
        made.append((row, resumed))
        os.makedirs(runner.folder(row, seed))
        for name in ("args.json", "result.json"):
            open(os.path.join(runner.folder(row, seed), name), "w").close()
    monkeypatch.setattr(runner, "train", train)
    runner.work([("then", 7), ("first", 7)])
    assert made == [("first", False), ("then", False)]
    shutil.rmtree(place / "runs" / "first-7")
    runner.work([("first", 7), ("then", 7)])
    assert len(made) == 2
    runner.ROWS["other"] = runner.ROWS["then"]
    runner.work([("other", 7)])
    assert made[2:] == [("first", False), ("other", False)] and len(runner.records()) == 3
    with open(place / "records" / "ppo_passk.jsonl") as file:
        assert len(file.readlines()) == 3


def test_records_survive_a_killed_writer(place):
    """Half a line counts as none, and does not spoil the next one."""
    for seed in (0, 1):
        runner.append({"row": "first", "script": "ppo_passk", "flags": {"seed": seed}})
        with open(place / "records" / "ppo_passk.jsonl", "a") as file:
            file.write('{"row": "first", "fl')
    assert runner.records().keys() == {("first", 0), ("first", 1)}


def test_again_from_nothing(place, monkeypatch, capsys):
    """A claim's runs once more in another folder; what is recorded stays as it is and is printed beside."""
    monkeypatch.setattr(runner, "train", lambda *args: None)
    monkeypatch.setattr(runner, "evaluated", lambda row, seed, cpu: {
        **record(row, seed, pass_1=seed / 100 + len(row) / 8), "script": "ppo_passk"})
    monkeypatch.setitem(claims.CLAIMS, "mine", Claim("paper", "s", (Part("first", "then", "pass@1"),), "kl"))
    claims.main(["mine", "--seeds", "2", "--jobs", "1", "--again", str(place / "again")])
    out = capsys.readouterr().out
    assert out.startswith("0 of 4 runs are recorded; 4 to make") and "`mine`: holds" in out
    assert out.endswith("recorded: pass@1: first minus then above 0: \n")
    assert os.listdir(place / "again" / "records") == ["ppo_passk.jsonl"] and not os.path.exists(place / "records")


def test_two_processes_share_a_list(place, monkeypatch):
    """What another one is at is left to it, and waited for in the end."""
    made = []
    monkeypatch.setattr(runner, "train", lambda row, seed, resumed: made.append(row))
    with runner.locked(runner.folder("first", 0) + ".lock") as mine:
        assert mine and not runner.ensure("first", 0, wait=False) and not runner.ensure("then", 0, wait=False)
    assert made == [] and runner.ensure("first", 0, wait=False) and made == ["first"]
