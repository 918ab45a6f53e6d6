"""What a new user does: runs of any task compared, consoles of any kind, folders that have moved, names that are wrong,
Ctrl-C at any time, and the commands of the README that start several processes."""
import ast
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
import references
import safetensors.torch
import torch
from conftest import ROOT, load_policy
from forks import Child
from test_runs import killed_after
from test_scripts import command, read_lines, run, untimed

import bon_rl
import common
import evaluate
import fit_verifier
import ppo_passk
import support.run
import tasks
from support import contents, load
from support import verifier as verifiers
from support.errors import UserError
from support.output import Console, to_json
from tasks.shapes import problem_of

TINY = ["--prompts", 2, "--samples", 4, "--k", 2]
SHORT = [*TINY, "--steps", 1, "--eval-samples", 0]


@pytest.fixture(autouse=True, scope="module")
def no_pictures():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("support.run.plot_run", lambda *rest: None)
        patch.setattr("support.plots.plot", lambda *rest: None)
        yield


@pytest.fixture(scope="module")
def routes(tmp_path_factory):
    """A run on another task than the default one."""
    folder = tmp_path_factory.mktemp("routes") / "r"
    assert run(ppo_passk.main, *SHORT, "--task", "routes", "--out", folder)[0] == 0
    return folder


def said_no(result, *words):
    """One sentence with these words on standard error, nothing computed."""
    code, out, err = result
    assert code == 2 and err.count("\n") == 1 and all(str(word) in err for word in words), err
    return err


def not_json(constant):
    raise AssertionError(f"{constant} is no JSON")


def strictly(folder):
    """Every JSON file of a folder is what any reader of JSON takes -> {name: list of values}."""
    found = {}
    for name in os.listdir(folder):
        text = (folder / name).read_text() if name.endswith((".json", ".jsonl")) else ""
        lines = text.splitlines() if name.endswith(".jsonl") else filter(None, [text])
        found[name] = [json.loads(line, parse_constant=not_json) for line in lines]
    assert any(found.values())
    return found


# ------------------------------------------------------------------------------------------------------ evaluate's task

FEW = ["--samples", 2, "--k", 1, "--problems", 3]


@pytest.mark.parametrize("form", ["tiny {}", "{}", "tiny+{}", "tiny {}/adapter/../"])
def test_the_problems_are_those_of_the_first_run(form, routes, tmp_path):
    """Wherever it stands among the arguments: README's own form has a base first."""
    models = [str(part).format(routes) for part in form.split()]
    code, out, err = run(evaluate.main, *models, *FEW, "--out", tmp_path / "e")
    assert code == 0, err
    assert out.startswith(f"{tmp_path / 'e'}: routes, 3 problems of the test split, 2 samples each\n")
    for i in range(len(models)):
        assert all(entry["id"].startswith("routes/") for entry in read_lines(tmp_path / "e", f"pool-{i + 1}.jsonl"))


def test_runs_of_different_tasks(routes, tmp_path):
    other = shutil.copytree(routes, tmp_path / "other")
    begun = json.loads((other / "args.json").read_text())
    begun["flags"]["task"] = "countdown"
    (other / "args.json").write_text(json.dumps(begun))
    said_no(run(evaluate.main, "tiny", routes, other, *FEW, "--out", tmp_path / "e"),
            f"{routes}: routes", f"{other}: countdown", "--task")
    assert not (tmp_path / "e").exists()
    code, out, err = run(evaluate.main, routes, other, *FEW, "--task", "countdown", "--out", tmp_path / "e")
    assert code == 0 and "countdown, 3 problems" in out, err


def test_how_many_problems(tmp_path):
    """Six test problems that give 0.000 ±0.000 are seen to be six."""
    data = tmp_path / "p.jsonl"
    data.write_text("".join(json.dumps({"prompt": f"c{a},2:{a}>", "answer": str(a)}) + "\n" for a in range(1, 31)))
    code, out, err = run(ppo_passk.main, *TINY, "--steps", 1, "--eval-samples", 1, "--eval-problems", 2,
                         "--max-new-tokens", 4, "--data", data, "--out", tmp_path / "r")
    assert code == 0 and "jsonl (24 train, 3 valid, 2 of 3 test problems)" in out.split("\n")[0], (out, err)
    strictly(tmp_path / "r")  # one sample: its similarity to others is not a number


# ------------------------------------------------------------------------------------------------ JSON and the console

def test_one_problem_is_json(tmp_path):
    """Its standard error is not a number: null. What was null is rescored as not a number."""
    code, out, err = run(evaluate.main, "--samples", 2, "--k", 1, "--problems", 1, "--out", tmp_path / "e")
    assert code == 0 and "±nan" in out, err
    assert strictly(tmp_path / "e")["result.json"][0]["results"]["tiny"]["pass@1"]["se"] is None
    pool = tmp_path / "e" / "pool-1.jsonl"
    pool.write_text(re.sub(r'"gold": [-.0-9e]+', '"gold": null', pool.read_text()))
    assert run(evaluate.main, "--pool", pool, "--k", 1, "--out", tmp_path / "f")[0] == 0
    assert strictly(tmp_path / "f")["result.json"][0]["results"][str(pool)]["gold"] == {"mean": None, "se": None}
    assert json.loads(to_json({"a": [float("inf"), (1.5, float("nan"))], "b": True})) == {"a": [None, [1.5, None]],
                                                                                         "b": True}


def test_all_json_is_written_by_one_function():
    """json.dumps writes NaN, which no other reader takes. Pipes to workers, requests to a server, what stays inside,
    and what claims.py prints are no files."""
    inside = {"support/output.py", "support/contents.py", "support/folder.py", "support/engine.py", "results/claims.py"}
    listed = subprocess.run(["git", "-C", ROOT, "ls-files", "*.py"], capture_output=True, text=True).stdout.split()
    for path in listed:
        if path.startswith(("tests/", "tasks/")) or path in inside:
            continue
        with open(os.path.join(ROOT, path)) as file:
            calls = [ast.unparse(node.func) for node in ast.walk(ast.parse(file.read())) if isinstance(node, ast.Call)]
        assert not {"json.dump", "json.dumps"} & {*calls}, path


def test_a_console_that_cannot_print():
    for encoding, shown in (("ascii", "0.5 ?0.1 ??"), ("cp1252", "0.5 ±0.1 ??"), ("utf-8", "0.5 ±0.1 😀?")):
        raw = io.BytesIO()
        console = Console(io.TextIOWrapper(raw, encoding=encoding))
        print("0.5 ±0.1 😀\ud800", end="", file=console, flush=True)
        assert raw.getvalue().decode(encoding) == shown


def test_a_full_disk_is_said_once():
    with open("/dev/full", "w") as full:
        console = Console(full)
        with pytest.raises(OSError, match="No space"):
            print("x", file=console, flush=True)
        print("y", file=console, flush=True)


def test_results_are_written_whoever_reads(tmp_path, monkeypatch):
    """An ASCII console whose reader goes after the first line, as `head -1` does."""
    data = tmp_path / "p.jsonl"
    data.write_text("".join(json.dumps({"prompt": f"c{a}>😀±", "answer": str(a)}) + "\n" for a in range(1, 31)))
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("LC_", "LANG", "PYTHON"))}
    child = subprocess.Popen(
        command("evaluate.py", *FEW, "--data", data, "--max-new-tokens", 3, "--out", tmp_path / "e"),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path,
        env={**clean, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "HF_HUB_OFFLINE": "1"})
    assert b"3 problems" in child.stdout.readline()
    child.stdout.close()
    err = child.stderr.read()
    assert child.wait() == 0 and not err, err
    assert "results" in strictly(tmp_path / "e")["result.json"][0]
    whole = subprocess.run(command("ppo_passk.py", "--help"), capture_output=True).stdout
    child = subprocess.Popen(command("ppo_passk.py", "--help"), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    child.stdout.close()
    assert child.stderr.read() == b"" and child.wait() == 0 and whole.startswith(b"usage")


def test_a_whole_run_on_a_console_without_characters(tmp_path, monkeypatch):
    """Prompts, completions and tables of a run, printed in ASCII."""
    data, raw = tmp_path / "p.jsonl", io.BytesIO()
    data.write_text("".join(json.dumps({"prompt": f"c{a}>😀", "answer": str(a)}) + "\n" for a in range(1, 31)))
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    ppo_passk.main([*map(str, TINY), "--steps", "1", "--eval-samples", "2", "--max-new-tokens", "3", "--data",
                    str(data), "--out", str(tmp_path / "r")])
    assert b">?" in raw.getvalue() and b" ?0." in raw.getvalue() and (tmp_path / "r" / "result.json").exists()
    assert isinstance(sys.stdout, io.TextIOWrapper)


# -------------------------------------------------------------------------------------------------- moved and changed

@pytest.fixture(scope="module")
def moving(tmp_path_factory):
    """A run on a base, data and an adapter of its own, whole and killed before its last step, and what it began with;
    the base by a relative path."""
    place = tmp_path_factory.mktemp("moving")
    shutil.copytree(os.path.join(ROOT, "models", "tiny"), place / "base")
    rows = [{"prompt": f"c{a},{a % 7 + 1},2:{a}>", "answer": str(a)} for a in range(1, 31)]
    (place / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        assert run(ppo_passk.main, *SHORT, "--model", "base", "--lr", 0.1, "--out", "start")[0] == 0
        flags = [*TINY, "--data", "p.jsonl", "--adapter", "start", "--max-new-tokens", 6, "--steps", 3,
                 "--save-every", 1, "--eval-samples", 8]
        assert run(ppo_passk.main, *flags, "--out", "whole")[0] == 0
        killed_after(3, ppo_passk.main, *flags, "--out", "part")
    return place


@pytest.fixture
def moved(moving, tmp_path):
    """The same at another place, under other names."""
    for old, new in (("part", "run"), ("base", "other base"), ("start", "warm")):
        shutil.copytree(moving / old, tmp_path / new)
    shutil.copy(moving / "p.jsonl", tmp_path / "renamed.jsonl")
    return tmp_path


def resume(place, **given):
    flags = {"model": place / "other base", "data": place / "renamed.jsonl", "adapter": place / "warm", **given}
    flags = [part for name, value in flags.items() if value for part in (f"--{name}", value)]
    return run(ppo_passk.main, "--out", place / "run", "--resume", *flags)


def test_what_is_stored_is_found_from_elsewhere(moving, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = json.loads((moving / "whole" / "args.json").read_text())["flags"]
    assert [flags[name] for name in ("model", "data", "adapter")] == [
        str(moving / name) for name in ("base", "p.jsonl", "start")]  # the base is that of the adapter
    code, out, err = run(evaluate.main, moving / "whole", *FEW, "--max-new-tokens", 6, "--out", "e")
    assert code == 0 and "jsonl, 3 problems" in out, err
    monkeypatch.chdir(moving)
    verifier = verifiers.load_verifier("base", 32, lora_rank=2)
    verifier.save(tmp_path / "v")
    config = json.loads((tmp_path / "v" / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(moving / "base") == verifier.extra["model"]


def test_a_run_goes_on_where_everything_has_moved(moving, moved):
    """The same bits; the names of the problems, on which draws depend, are those of the file as it was called."""
    os.rename(moving / "base", moving / "gone")  # nothing is where it was
    try:
        said_no(resume(moved, model=None), moving / "base", "give its new path")
        code, _, err = resume(moved)
        assert code == 0, err
        assert untimed(read_lines(moved / "run")) == untimed(read_lines(moving / "whole"))
        for name in ("before", "after"):
            a, b = (json.loads((folder / "result.json").read_text())[name]
                    for folder in (moving / "whole", moved / "run"))
            assert a == b
        a, b = (safetensors.torch.load_file(folder / "adapter" / "adapter_model.safetensors")
                for folder in (moving / "whole", moved / "run"))
        assert all(torch.equal(a[name], b[name]) for name in a)
        again = json.loads((moved / "run" / "args.json").read_text())
        assert again["flags"]["data"] == str(moved / "renamed.jsonl")
        assert resume(moved, model=None, data=None, adapter=None)[0] == 0  # args.json knows where they are
    finally:
        os.rename(moving / "gone", moving / "base")


def change_rows(place):
    text = (place / "renamed.jsonl").read_text()
    (place / "renamed.jsonl").write_text(text.replace('"answer": "5"', '"answer": "6"'))


def fewer_rows(place):
    lines = (place / "renamed.jsonl").read_text().splitlines(keepends=True)
    (place / "renamed.jsonl").write_text("".join(lines[:-10]))


def change_base(place):
    path = place / "other base" / "model.safetensors"
    tensors = safetensors.torch.load_file(path)
    tensors["model.norm.weight"][0] += 1e-3
    safetensors.torch.save_file(tensors, path, metadata={"format": "pt"})


def change_config(place, path="other base/config.json", name="rope_theta", value=9999.0):
    config = json.loads((place / path).read_text())
    (place / path).write_text(json.dumps({**config, name: value}))


def change_scale(place):
    change_config(place, "warm/adapter/adapter_config.json", "lora_alpha", 1)


@pytest.mark.parametrize("change, words", [
    (change_rows, ["--data", "the text of its problems"]),
    (fewer_rows, ["--data", "24 train, 3 valid, 3 test then", "16 train, 2 valid, 2 test"]),
    (change_base, ["warm", "on", "other base", "model.safetensors"]),  # the adapter is not of it, either
    (change_config, ["--model", "config.json"]), (change_scale, ["--adapter", "adapter_config.json"])])
def test_a_run_does_not_go_on_with_something_else(change, words, moved):
    """At the new place and, once it is known, at the same place."""
    change(moved)
    said_no(resume(moved), *words)
    begun = json.loads((moved / "run" / "args.json").read_text())
    for name, value in (("model", "other base"), ("data", "renamed.jsonl"), ("adapter", "warm")):
        begun["flags"][name] = str(moved / value)
    (moved / "run" / "args.json").write_text(json.dumps(begun))
    said_no(resume(moved, model=None, data=None, adapter=None), *words)


def test_the_weights_of_a_start_are_in_the_checkpoint(moved):
    """So they may change after it, and not before."""
    weights = moved / "warm" / "adapter" / "adapter_model.safetensors"
    tensors = safetensors.torch.load_file(weights)
    safetensors.torch.save_file({name: value + 0.1 for name, value in tensors.items()}, weights)
    fresh = shutil.copytree(moved / "run", moved / "fresh")
    for name in ("state.pt", "state.previous.pt"):
        os.remove(fresh / name)
    said_no(run(ppo_passk.main, "--out", fresh, "--resume", "--model", moved / "other base", "--adapter",
                moved / "warm", "--data", moved / "renamed.jsonl"), "adapter_model.safetensors")
    assert resume(moved)[0] == 0


def test_a_digest_reads_the_ends(tmp_path):
    size = 3 * contents.MEGABYTE
    path = tmp_path / "w.safetensors"
    found = set()
    for place in (None, 0, contents.MEGABYTE - 1, size - 1, size - contents.MEGABYTE):
        data = bytearray(size)
        if place is not None:
            data[place] = 1
        path.write_bytes(data)
        found.add(contents.digest(path))
    path.write_bytes(bytes(size + 1))
    assert len(found | {contents.digest(path)}) == 6


# ------------------------------------------------------------------------------------------------ what a new user tries

def test_own_problems_with_the_default_model(tmp_path):
    """The task's 512 new tokens would fill its 512 positions: they take what the prompts leave; a resume too."""
    data = tmp_path / "p.jsonl"
    rows = [{"prompt": f"c{a},2:{a}>" + "1" * (90 if a == 3 else 0), "answer": str(a)} for a in range(1, 31)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    longest = max(len(row["prompt"]) for row in rows)
    code, out, err = run(ppo_passk.main, *SHORT, "--data", data, "--out", tmp_path / "r")
    assert code == 0 and f"completions of at most {512 - longest} tokens" in out and "left out" not in out, err
    assert json.loads((tmp_path / "r" / "args.json").read_text())["flags"]["max_new_tokens"] == 512 - longest
    assert run(ppo_passk.main, "--out", tmp_path / "r", "--resume")[0] == 0
    task = tasks.load_task(data=str(data))
    assert evaluate.fit_length(load_policy("tiny", 32), task) == task.max_new_tokens == 512 - longest
    task.max_new_tokens = 256  # half of the positions: prompts that do not fit are left out instead
    assert evaluate.fit_length(load_policy("tiny", 32), task) == 0 and task.max_new_tokens == 256


@pytest.mark.parametrize("name", ["runs/none", "./none", "../none", "/none", "a/b/none", "none/", "none.gguf",
                                  "there/none"])
def test_what_looks_like_a_path_is_not_asked_for(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.mkdir("there")
    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", lambda *a, **b: pytest.fail("the hub was asked"))
    monkeypatch.setattr(tasks, "load_task", lambda *a, **b: pytest.fail("problems were loaded"))
    for flag in ("--model", "--adapter"):
        said_no(run(ppo_passk.main, flag, name), f"{flag} {name}: there is no such file or folder")
    said_no(run(bon_rl.main, "--variant", "v", "--verifier", name), f"--verifier {name}: there is no such")
    for models in (["tiny", name], ["tiny", "tiny+" + name]):
        said_no(run(evaluate.main, *models), name, "there is no such file or folder")
    said_no(run(evaluate.main, "--verifier", name), name, "there is no such file or folder")
    for call in (lambda: load.load_base(name), lambda: common.load_policy(adapter=name)):
        with pytest.raises(UserError, match="there is no such"):
            call()
    assert os.listdir() == ["there"]


def test_hub_ids_are_asked_for(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name in ("gpt2", "Qwen/Qwen2.5-0.5B"):
        assert contents.located(name, "--model") == name
    os.makedirs("Qwen/other")
    with pytest.raises(UserError):
        contents.located("Qwen/Qwen2.5-0.5B", "--model")
    with pytest.raises(UserError):  # no adapter of the hub is without an owner
        contents.located("warm", "--adapter")
    monkeypatch.setattr(contents, "snapshot", lambda name: "somewhere")  # in the cache
    assert contents.located("Qwen/Qwen2.5-0.5B", "--model") == "Qwen/Qwen2.5-0.5B"


def test_an_adapter_of_another_base(moving, tmp_path):
    """By the args.json of its run, or by the adapter_config.json of a folder without one; equal weights are one base,
    wherever they lie."""
    plain = shutil.copytree(moving / "start" / "adapter", tmp_path / "plain")
    for adapter, source in ((moving / "start", "args.json"), (plain, "adapter_config.json")):
        for model in ("tiny_hasty", "tiny_peptide"):
            with pytest.raises(UserError, match=f"trained on .*base, according to its {source}.*model.safetensors"):
                common.load_policy(model, adapter=str(adapter))
        common.load_policy("tiny", adapter=str(adapter))
    said_no(run(ppo_passk.main, "--model", "tiny_hasty", "--adapter", moving / "start", "--out", tmp_path / "r"),
            "it was trained on", "args.json")
    assert not (tmp_path / "r").exists()
    named = {"hub": "some/base", "same": "other/Base", "unknown": "/not/here/any", "none": None}
    for name, base in named.items():
        change_config(tmp_path, "plain/adapter_config.json", "base_model_name_or_path", base)
        reason = contents.other_base(str(plain), "my/base2" if name == "hub" else "my/base")
        assert (reason is not None) == (name == "hub"), reason
    code, _, err = run(ppo_passk.main, *SHORT, "--adapter", moving / "start", "--out", tmp_path / "s")
    assert code == 0, err  # without --model its own base is taken


@pytest.mark.parametrize("row, words", [
    ({"tests": "assert add(1) == 2", "entry_point": "ad"}, "its tests never use ad"),
    ({"tests": "def check(candidate):\n    assert candidate(1) == 2", "entry_point": "plus"}, "'plus' is in neither"),
    ({"tests": "def check(candidate):\n    assert candidate(1) == 2", "entry_point": "write",
      "solution": "def add(x):\n    return x + 1"}, "not what \"solution\" defines")])
def test_a_wrong_entry_point(row, words):
    with pytest.raises(UserError, match=words):
        problem_of({"prompt": "write a function", **row}, "p:1")
    problem_of({"prompt": "def add(x):\n    ''' one more '''\n", **row, "entry_point": "add",
                "solution": "    return x + 1"}, "p:1")


def test_a_base_with_a_plus(moving, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(moving / "base", "a+b")
    shutil.copytree(moving / "start", "c+d")
    assert evaluate.base_and_adapter("a+b")[:2] == (str(tmp_path / "a+b"), None)
    for name, base in (("a+b+c+d", str(tmp_path / "a+b")), ("tiny+c+d", "tiny")):
        found = evaluate.base_and_adapter(name)
        assert found[:2] == (base, str(tmp_path / "c+d")) and found[2]["task"] == "countdown"
    code, out, err = run(evaluate.main, "a+b+c+d", *FEW, "--out", "e")
    assert code == 0 and "a+b+c+d" in json.loads((tmp_path / "e" / "result.json").read_text())["results"], err
    for name in ("tiny+", "+c+d"):
        said_no(run(evaluate.main, name, *FEW), "BASE+ADAPTER")


@pytest.mark.parametrize("seed", [-3, 10 ** 30, 2 ** 63, 2 ** 64])
def test_a_seed_of_any_size(seed, tmp_path):
    code, _, err = run(ppo_passk.main, *SHORT, "--seed", seed, "--out", tmp_path / "r")
    assert code == 0, err
    assert json.loads((tmp_path / "r" / "args.json").read_text())["flags"]["seed"] == seed
    assert 0 <= common.torch_seed(seed) < 2 ** 63 and common.torch_seed(seed) != common.torch_seed(seed + 1)
    assert [common.torch_seed(s) for s in (0, 7, 2 ** 63 - 1)] == [0, 7, 2 ** 63 - 1]
    if seed < 0:
        code, _, err = run(fit_verifier.main, "--train-problems", 4, "--samples", 2, "--epochs", 1,
                           "--eval-problems", 4, "--seed", seed, "--out", tmp_path / "v")
        assert code == 0, err


# --------------------------------------------------------------------------------------------------------------- Ctrl-C

def test_ctrl_c_during_the_imports(tmp_path):
    child = subprocess.Popen(command("ppo_passk.py", "--out", tmp_path / "new" / "r"), stdout=subprocess.PIPE,
                             stderr=subprocess.PIPE)
    time.sleep(0.4)  # no script is through with its imports by then
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=60)
    assert child.returncode == 130 and err == b"ppo_passk.py: interrupted\n", err
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("script", ["ppo_passk.py", "evaluate.py"])
def test_ctrl_c_during_the_first_evaluation(script, tmp_path):
    """One line at once, and no folder in which nothing was computed."""
    folder = tmp_path / "new" / "r"
    samples = "--eval-samples" if "ppo" in script else "--samples"
    child = Child([os.path.join(ROOT, script), samples, 8192, "--out", folder], dict(os.environ), tmp_path / "err")
    try:
        while not (folder.exists() and ("ppo" not in script or (folder / "checks.jsonl").exists())):
            assert child.poll() is None
            time.sleep(0.02)
        time.sleep(0.3)
        child.send_signal(signal.SIGINT)
        assert child.wait() == 130
    finally:
        child.kill()
    assert (tmp_path / "err").read_text() == f"{script}: interrupted\n" and os.listdir(tmp_path) == ["err"]


def test_ctrl_c_during_the_last_evaluation(tmp_path, monkeypatch):
    """At once, too: all steps are saved."""
    result_row, rows = support.run.result_row, []

    def interrupted(*args):
        rows.append(args[-1])
        if rows[-1] == "after":
            signal.raise_signal(signal.SIGINT)
        return result_row(*args)
    monkeypatch.setattr(support.run, "result_row", interrupted)
    flags = [*TINY, "--steps", 1, "--eval-samples", 2, "--eval-problems", 3, "--out", tmp_path / "r"]
    code, out, err = run(ppo_passk.main, *flags)
    assert code == 130 and err.endswith(f": interrupted; continue with --out {tmp_path / 'r'} --resume\n"), err
    assert err.count("\n") == 1 and rows == ["before", "after"] and "stopping" not in out
    monkeypatch.undo()
    code, out, err = run(ppo_passk.main, "--out", tmp_path / "r", "--resume")
    assert code == 0 and "after" in json.loads((tmp_path / "r" / "result.json").read_text()), err


def test_a_run_that_cannot_begin_leaves_no_folder(tmp_path, monkeypatch):
    """Its own folder, and those around it that it made; nothing that was there before."""
    monkeypatch.chdir(tmp_path)
    os.mkdir("mine")
    flags = [*SHORT, "--system", "no template"]  # found when the model is loaded
    for out in ([], ["--out", "a/b"], ["--out", "mine"], ["--out", "mine/c"]):
        said_no(run(ppo_passk.main, *flags, *out), "--system")
    assert os.listdir() == ["mine"] and not os.listdir("mine")


# ------------------------------------------------------------------------------------------------------------ launchers

def launched():
    """The documented commands that start several processes -> [(launcher, its flags, script and its flags)]."""
    text = "".join(map(references.source, [*references.pages(), "results/README.md", "results/speed.md"]))
    found = re.findall(r"(?<=[`\n])(torchrun|accelerate launch) ([^\n`]*)", text.replace("\\\n", " "))
    return [(launcher, *(part.split() for part in flags.split(" -- "))) for launcher, flags in found]


def test_what_follows_two_dashes_is_the_script():
    """Without them torchrun takes --n, as an abbreviation, for one of its own flags."""
    from torch.distributed.run import get_args_parser
    assert {launcher for launcher, *_ in launched()} == {"torchrun", "accelerate launch"}
    for launcher, before, after in launched():
        if launcher == "torchrun":
            args = get_args_parser().parse_args([*before, "--", *after, "--n", "8"])
            assert args.training_script == after[0] and args.training_script_args == [*after[1:], "--n", "8"]


@pytest.mark.parametrize("launcher", ["torchrun", "accelerate launch"])
def test_a_launcher_for_two_steps(launcher, tmp_path):
    """As documented, with the embedded model in the place of a large one, two processes and a few rows of the task."""
    before, (script, *flags) = next(rest for name, *rest in launched() if name == launcher)
    before = re.sub(r"(--nproc-per-node|--num_processes) \d+", r"\1 2", " ".join(before)).split()
    for split, count in (("train", 12), ("test", 4)):
        rows = [{"question": f"{a}+1", "answer": f"#### {a + 1}"} for a in range(count)]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = re.sub(r"--model \S+", "--model tiny", " ".join(flags)).split()
    own = ["--data", str(tmp_path)] * ("gsm8k" in flags)
    small = ["--steps", "2", "--prompts", "2", "--max-new-tokens", "3", "--eval-samples", "0"]
    import accelerate.commands.launch as accelerate
    import torch.distributed.run as torchrun
    module = torchrun if launcher == "torchrun" else accelerate
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "",
                   "MASTER_PORT": str(29600 + os.getpid() % 1000 + len(launcher))}
    local = ["--master-port" if launcher == "torchrun" else "--main_process_port", environment["MASTER_PORT"]]
    child = Child([module.__file__, *local, *before, "--", os.path.join(ROOT, script), *flags, *own, *small,
                   "--out", tmp_path / "r"], environment, tmp_path / "err")
    try:
        assert child.wait(180) == 0, (tmp_path / "err").read_text()
    finally:
        child.kill()
    begun = json.loads((tmp_path / "r" / "args.json").read_text())
    assert begun["processes"] == 2 and [line["step"] for line in read_lines(tmp_path / "r")] == [1, 2]
