"""results/table.py, and that what is drawn from results/records/ is up to date."""
import importlib.util
import json
import os
import re
import subprocess
import sys

import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
spec = importlib.util.spec_from_file_location("table", os.path.join(ROOT, "results", "table.py"))
table = importlib.util.module_from_spec(spec)
spec.loader.exec_module(table)


def command(*arguments):
    """(exit code, stdout, stderr) of table.py in a process of its own."""
    done = subprocess.run([sys.executable, os.path.join(ROOT, "results", "table.py"), *map(str, arguments)],
                          capture_output=True, text=True, cwd=ROOT)
    return done.returncode, done.stdout, done.stderr


def test_command_line(tmp_path):
    code, out, err = command("results/records/ppo_passk.jsonl", tmp_path, tmp_path / "no.jsonl",
                             "--columns", "pass@1,kl,zero,no", "--where", "task=routes,objective=mean,steps=250")
    assert code == 0 and not err
    assert out.split("\n") == [
        f"(no result in {tmp_path})", f"(no result in {tmp_path / 'no.jsonl'})",
        "| run | seeds | pass@1 | kl | zero | no |", "|---|---|---|---|---|---|",
        "| ppo_passk | 5 | 0.575 ±0.000 | 2.222 ±0.049 | 0.589 |  |", ""]


RUN = {"script": "ppo_passk", "flags": {"task": "routes", "data": None, "model": "tiny", "seed": 0}, "commit": None,
       "before": {"pass@1": {"mean": 0.25, "se": 0.0125}}, "after": {"pass@1": {"mean": 0.5, "se": 0.025}},
       "zero": 0.5, "seconds": 2.0}


def test_a_folder_and_a_file_of_the_same_run(tmp_path):
    folder = tmp_path / "r-0"
    folder.mkdir()
    (folder / "args.json").write_text(json.dumps({name: RUN[name] for name in ("script", "flags", "commit")}))
    (folder / "result.json").write_text(json.dumps({name: RUN[name] for name in ("before", "after", "seconds")}))
    (folder / "metrics.jsonl").write_text('{"zero": 0.25}\n{"zero": 0.75}\n')
    (tmp_path / "r.jsonl").write_text(json.dumps(RUN) + "\n")
    outputs = [command(path, "--columns", "pass@1,zero,seconds") for path in (folder, tmp_path / "r.jsonl")]
    assert outputs[0] == outputs[1] and outputs[0][0] == 0
    assert "| before (routes) | 1 | 0.250 ±0.013 |  |  |\n| ppo_passk | 1 | 0.500 ±0.025 | 0.5 | 2 |\n" in outputs[0][1]


@pytest.mark.parametrize("text", [
    json.dumps(RUN)[:-9], "\n", "5", "null", '{"after": 1}', "[1]", json.dumps({**RUN, "flags": {}}), "[" * 100000,
    json.dumps({**RUN, "after": {"pass@1": [0.5, 0.1]}}),
    json.dumps({**RUN, "after": {"pass@1": {"mean": "high", "se": 0.1}}})], ids=range(10))
def test_a_damaged_file_is_one_sentence(text, tmp_path):
    (tmp_path / "r.jsonl").write_text(text)
    code, out, err = command(tmp_path / "r.jsonl")
    assert code == 2 and not out and err.count("\n") == 1 and "r.jsonl cannot be read" in err, err


def test_errors(tmp_path):
    (tmp_path / "args.json").write_text("{}")
    (tmp_path / "result.json").write_text('{"after": ')
    code, out, err = command(tmp_path)
    assert code == 2 and not out and err.count("\n") == 1 and f"{tmp_path} cannot be read" in err, err
    code, out, err = command("results/records/older.jsonl", "--where", "task=chess")
    assert code == 2 and not out and err.count("\n") == 1 and "task=chess" in err, err


def test_the_answer():
    """Which one should I use: at most 150 words; each number is the lead of the row it names, with its interval; what
    is best or tied, everywhere or on all tasks but one, is that at the metric named there."""
    import claims
    with open(os.path.join(ROOT, "results", "README.md"), encoding="utf-8") as file:
        text = file.read().split("## Which one should I use?\n")[1].split("\n## ")[0]
    assert len([word for word in text.split() if word != "-"]) <= 150
    number, seen, found = r"[+-]\.\d{3}", 0, claims.runner.records()
    *parts, rest = re.split(r"`(which-\w+?-[\w.-]+)`", text)  # what is said before a row's name is said of that row
    assert not re.search(number, rest)
    for part, row in zip(parts[::2], parts[1::2]):
        said = re.findall(rf"(pass@\d+|maj@\d+|bon@\d+)\s+({number})\s+\[({number}),\s+({number})\]", part)
        assert said and len(said) == len(re.findall(number, part)) / 3, part
        for metric, *three in said:
            base = f"which-{row.split('-')[1]}-base"
            assert [claims.number(x) for x in claims.which.lead(found, row, base, metric)] == three, (row, metric)
            seen += 1
    assert seen >= 4
    places = {"everywhere": 0, "on all tasks but one": 1}
    rules = [rule for rule in text.split("\n- ") if "best or tied " in rule]
    assert len(rules) == text.count("best or tied ") == 3
    for rule in rules:
        place, metric = re.search(rf"best or tied ({'|'.join(places)}):\s(\w+@\d+)", rule).groups()
        objectives = re.findall(r"`which-\w+?-([\w-]+)-[\d.]+`", rule)
        assert objectives
        for objective in objectives:
            assert len(behind(found, objective, metric)) == places[place], (objective, metric)


def behind(found, objective, metric):
    """The tasks on which another objective is surely better."""
    import claims
    which = claims.which
    tasks = set()
    for task in which.TASKS:
        row = which.chosen(found, task, objective)
        for other in which.LABELS:
            low = which.lead(found, which.chosen(found, task, other), row, metric)[1]
            if low is not None and low > 0:
                tasks.add(task)
    return tasks


def test_what_is_recommended_over_passk():
    """The answer names, for each budget, the objectives whose lead over `ppo_passk.py` is surely above 0 on two tasks
    or more, and no other."""
    import claims
    which = claims.which
    found = claims.runner.records()
    with open(os.path.join(ROOT, "results", "README.md"), encoding="utf-8") as file:
        text = file.read().split("## Which one should I use?\n")[1].split("\n## ")[0]
    rule = text.split("- Better [on two tasks or more]")[1].split("\n- ")[0]
    said = dict(re.findall(r"(pass@\d+)\s([a-z0-9-]+(?:,\s[a-z0-9-]+)*)[;.]", rule))
    names = {metric: re.split(r",\s", some) for metric, some in said.items()}
    assert names == {metric: which.recommended(found, metric) or ["nothing"] for metric in which.BUDGETS}
    assert "RL lowers pass@32, this least: pass@32 -" in text
    rows = [which.chosen(found, "countdown6", objective) for objective in which.SELECT if objective != "bon-sft"]
    falls = {row: which.lead(found, row, "which-countdown6-base", "pass@32")[0] for row in rows}
    assert max(falls.values()) < 0 and max(falls, key=falls.get) == which.chosen(found, "countdown6", "passk")


def test_pass1_under_training_for_passk():
    """The numbers are those of the rows named: at pass@1, and on the problems that the base solves often or seldom."""
    import claims
    found = claims.runner.records()
    which = claims.which
    with open(os.path.join(ROOT, "results", "README.md"), encoding="utf-8") as file:
        text = file.read().split("## pass@1 under training for pass@k\n\n")[1].split("\n\n## ")[0]
    assert text.startswith("Training for pass@8 raises pass@1 on average, but lowers it on easy problems")
    assert text.count("\narXiv 2602.21189 explains why: ") == 1
    wide = "robust-wide-passk-32-32-0.004"
    often = ["which-program-passk-0.002", "which-program-mean-0.002", "which-routes-passk-0.004"]
    wanted = [which.change(found, row, f"which-{row.split('-')[1]}-base", 32, 65) for row in often]
    wanted.append(which.lead(found, wide, "robust-wide-base", "pass@1"))
    wanted += [which.change(found, wide, "robust-wide-base", *ends) for ends in ((32, 65), (0, 16))]
    said = re.findall(r"[+-]\.\d{3}\s\[[+-]\.\d{3},\s[+-]\.\d{3}\]", text)
    assert [part.replace("\n", " ") for part in said] == [claims.with_interval(*three) for three in wanted]
    assert which.at_their_best(found, "wide", 32, 32)[0] == wide.replace("0.004", "0.002")  # "twice the best"
    for row in often[::2]:  # "raises pass@1 on average"
        assert which.lead(found, row, f"which-{row.split('-')[1]}-base", "pass@1")[1] > 0
    for row in (wide, *often):
        assert f"`{row}`" in text


def test_maxrl_beside_passk():
    """Its leads on countdown are those of the records, and what is said of the other tasks."""
    import claims
    which = claims.which
    found = claims.runner.records()
    with open(os.path.join(ROOT, "results", "README.md"), encoding="utf-8") as file:
        text = file.read().split("- Where pass@1 and pass@8 both count,")[1].split("\n- ")[0]

    def leads(objective, metric):
        rows = [(which.chosen(found, task, objective), which.chosen(found, task, "passk")) for task in which.TASKS]
        return [which.lead(found, row, passk, metric) for row, passk in rows]
    assert which.TASKS[0] == "countdown"
    named = [("maxrl-16", "pass@1"), ("maxrl-16", "pass@8"), ("maxrl-8", "pass@1"), ("maxrl-8", "pass@8"),
             ("maxrl-16", "pass@32"), ("maxrl-8", "pass@32"), ("passk-8-1", "pass@1"), ("passk-8-1", "pass@8")]
    wanted = [claims.with_interval(*leads(*name)[0]) for name in named]
    said = re.findall(r"[+-]\.\d{3} \[[+-]\.\d{3}, [+-]\.\d{3}\]", " ".join(text.split()))
    assert said == wanted
    for objective in ("maxrl-16", "maxrl-8"):
        assert len([low for _, low, _ in leads(objective, "pass@1") if low > 0]) >= 3  # "adds pass@1"
        assert all(round(mean, 3) >= -.009 for mean, _, _ in leads(objective, "pass@8"))
    for less, more in zip(leads("passk-8-1", "pass@1"), leads("maxrl-8", "pass@1")):
        assert less[0] < more[0]  # "gains less at pass@1"


def test_best_of_n_at_half_the_learning_rate():
    """Pages and claim say of it what the records do: where all five seeds end, and the lead over its twin."""
    import claims
    found = claims.runner.records()
    ends = claims.runner.known(found, "peptide-8-slow", "max@8")
    assert len(ends) == 5 and all(f"{end:.2f}" == "1.71" for end in ends)
    assert max(claims.runner.known(found, "peptide-8-slow", "kl")) < 4
    lead = claims.runner.interval(claims.runner.differences(found, "peptide-8-slow", "peptide-1-slow", "max@8"))
    texts = [claims.CLAIMS["bon-lift"].why]
    for path in ("docs/cat_bon.md", "results/README.md"):
        with open(os.path.join(ROOT, path), encoding="utf-8") as file:
            texts.append(" ".join(file.read().split()))
    assert all(claims.with_interval(*lead) in text for text in texts)


def test_the_lead_over_the_mean():
    """What the pages say of robustness: leads with the objectives at their best, sure at 8 and 32, not at 2."""
    import claims
    found = claims.runner.records()
    with open(os.path.join(ROOT, "results", "README.md"), encoding="utf-8") as file:
        answer, text = file.read().split("- Against the mean on three bases")
    assert "It leads the mean at k = 8, 32,\n  [hardly at 2](which.md#how-robust" in answer
    number = r"([+-]\.\d{3})"
    said = re.findall(rf"{number}\s+\[{number},\s+{number}\]\s+with\s+n\s+=\s+(\d+)", text.split("\n- ")[0])
    assert len(said) == len(claims.runner.BUDGETS)
    for (k, n), (*three, samples) in zip(claims.runner.BUDGETS, said):
        columns = [sum(column, []) for column in claims.which.compared(found, k, n)]
        best, *rates = map(claims.interval, columns)
        assert [claims.number(x) for x in best] == three and int(samples) == n and len(columns[0]) == 9
        assert (best[1] > 0) == (k > 2) and all(high > 0 for _, _, high in rates)  # the mean has no significant lead


def test_what_is_drawn_is_up_to_date():
    """claims.md and which.md say what the records say, and README.md what claims.md does."""
    import claims
    found = claims.runner.records()
    with open(os.path.join(ROOT, "README.md"), encoding="utf-8") as file:
        cited = re.findall(r"([+-]\.\d+) (\[[^]]*\]), \[`([\w-]+)`\]\(results/claims\.md", file.read())
    assert len(cited) == 6
    for mean, interval, name in cited:
        assert f"| {mean} {interval} |" in claims.report(found, name), (name, mean)
    with open(os.path.join(ROOT, "results", "claims.md"), encoding="utf-8") as file:
        assert claims.listing(found) in file.read(), "python results/claims.py --draw"
    with open(os.path.join(ROOT, "results", "which.md"), encoding="utf-8") as file:
        assert file.read() == claims.which.page(found), "python results/claims.py --draw"
