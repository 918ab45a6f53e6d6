"""Two processes of torchrun on a CPU (gloo) against one: the same metrics and the same adapter, for every script."""
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from conftest import ROOT
from forks import Child
from safetensors.torch import load_file

from support import processes
from support.folder import Folder

HERE = os.path.dirname(os.path.abspath(__file__))
SMALL = ["--steps", "2", "--prompts", "5", "--eval-samples", "4", "--eval-problems", "12"]
RUNS = {
    "ppo": ("ppo_passk", [*SMALL, "--kl-coef", "0.1", "--minibatches", "3"]),
    "sft": ("bon_sft", [*SMALL, "--n", "4", "--scores", "verifier", "--verifier", "VERIFIER"]),
    "v": ("bon_rl", [*SMALL, "--variant", "v", "--verifier", "VERIFIER"]),
    "cat-sft": ("cat_passk", [*SMALL, "--mode", "sft"]),
    "cat-rl": ("cat_passk", SMALL),
    "contrastive": ("cat_majority", [*SMALL, "--mode", "sft", "--contrastive"]),
    "majority": ("cat_majority", SMALL),
    "fifo": ("cat_bon", [*SMALL, "--ranks", "fifo"]),
    "reward": ("ppo_passk", [*SMALL, "--data", "DATA", "--reward", "REWARD", "--max-new-tokens", "4"]),
    "target": ("cat_bon", [*SMALL, "--mode", "sft", "--train-problems", "12"]),
}
FIT = ["--train-problems", "40", "--samples", "4", "--epochs", "1", "--eval-problems", "12"]


def jobs(folder):
    verifier = os.path.join(folder, "verifier")
    work = os.path.dirname(folder)
    places = {"VERIFIER": verifier, "DATA": os.path.join(work, "p.jsonl"), "REWARD": os.path.join(work, "r.py:f")}
    return [("fit_verifier", [*FIT, "--out", verifier]),
            ("fit_verifier", [*FIT, "--bits", "16", "--out", verifier + "-16"]),
            *((script, [places.get(a, a) for a in argv] + ["--out", os.path.join(folder, name)])
              for name, (script, argv) in RUNS.items()),
            ("evaluate", ["tiny", os.path.join(folder, "ppo"), "--samples", "4", "--k", "1,4", "--problems", "12",
                          "--out", os.path.join(folder, "evaluate")])]


def torchrun(work, *argv):
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *argv],
        capture_output=True, text=True, timeout=300, cwd=work, env={**os.environ, "OMP_NUM_THREADS": "1"})


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Run folders of everything, by one process and by two."""
    work = tmp_path_factory.mktemp("processes")
    one, two = str(work / "one"), str(work / "two")
    (work / "p.jsonl").write_text("".join(json.dumps({"prompt": f"c{a},2>", "least": 1}) + "\n" for a in range(40)))
    (work / "r.py").write_text("def f(completion, least):\n    return completion.count('+') >= least\n")
    with ThreadPoolExecutor() as threads, pytest.MonkeyPatch.context() as patch:
        pair = threads.submit(torchrun, work, os.path.join(HERE, "processes.py"), json.dumps(jobs(two)))
        # test_house.py draws; here it would take a sixth of the time
        patch.setattr("support.run.plot_run", lambda folder, result: None)
        for script, argv in jobs(one):
            importlib.import_module(script).main(argv)
        done = pair.result()
    assert done.returncode == 0, done.stderr[-2000:]
    return one, two


def metrics(folder):
    with open(os.path.join(folder, "metrics.jsonl")) as file:
        return [json.loads(line) for line in file]


def close(a, b):
    """The same numbers under the same keys, but for the rounding of sums taken in another order, and for what measures
    time."""
    for line_a, line_b in zip(a, b, strict=True):
        assert line_a.keys() == line_b.keys()
        for name in line_a.keys() - {"seconds", "tokens_per_s", "samples_per_s", "memory_gb"}:
            assert line_a[name] == pytest.approx(line_b[name], rel=1e-3, abs=1e-5), name


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_do_what_one_does(folders, name):
    one, two = (os.path.join(folder, name) for folder in folders)
    close(metrics(one), metrics(two))
    before, after = (json.load(open(os.path.join(folder, "result.json"))) for folder in (one, two))
    for row in ("before", "after"):
        assert after[row].keys() == before[row].keys()
        for metric, cell in before[row].items():
            assert after[row][metric] == pytest.approx(cell, rel=1e-3, abs=1e-5, nan_ok=True), metric
    a, b = (load_file(os.path.join(folder, "adapter", "adapter_model.safetensors")) for folder in (one, two))
    moved = 0.0
    # Adam divides by the gradient's size: an entry whose gradient is rounding may differ by lr
    for key, weight in a.items():
        assert (weight - b[key]).abs().median() < 1e-5
        moved = max(moved, weight.abs().max().item() if "lora_B" in key else 0.0)
    assert moved > 1e-4
    assert json.load(open(os.path.join(two, "args.json")))["processes"] == 2


def test_verifier_and_evaluation(folders):
    one, two = (json.load(open(os.path.join(folder, "verifier", "verifier.json"))) for folder in folders)
    assert one["auc"] == pytest.approx(two["auc"], abs=1e-3)
    one, two = (json.load(open(os.path.join(folder, "evaluate", "result.json")))["results"] for folder in folders)
    for a, b in zip(one.values(), two.values(), strict=True):
        assert a["pass@4"] == pytest.approx(b["pass@4"], abs=1e-3)


def test_what_goes_wrong_is_added_up(monkeypatch):
    """Two processes with their shares of five completions, played one after the other: every reward in its place, and
    what had been counted before, plus what went wrong now on either."""
    class Task:
        def __init__(self):
            self.counts = Counter(timeouts=5, lost=1)

        def rewards(self, problems, completions):
            self.counts["timeouts"] += completions.count("slow")
            return [float(c == "right") for c in completions]
    completions = ["right", "slow", "wrong", "slow", "right"]
    sums, counted = {}, {}  # what each process sends, kept from a first round of both
    monkeypatch.setattr(processes, "WORLD", 2)
    for last in (False, True):
        for rank in (0, 1):
            def all_reduce(x):
                sums.setdefault(rank, x.clone())
                return sums[0] + sums[1] if last else x

            def gather(box, mine):
                counted[rank] = mine
                box[:] = [counted[0], counted[1]] if last else [mine, Counter()]
            monkeypatch.setattr(processes, "RANK", rank)
            monkeypatch.setattr(processes, "all_reduce", all_reduce)
            monkeypatch.setattr(torch.distributed, "all_gather_object", gather)
            task = Task()
            found = processes.rewards(task, list(range(5)), completions).tolist()
            assert not last or found == [1.0, 0.0, 0.0, 0.0, 1.0] and task.counts == Counter(timeouts=7, lost=1)


def test_resume_with_another_number_of_processes(folders, tmp_path, monkeypatch):
    import ppo_passk
    argv = ["--steps", "4", "--prompts", "5", "--eval-samples", "0", "--save-every", "1", "--kl-coef", "0.1"]
    ppo_passk.main([*argv, "--out", str(tmp_path / "whole")])
    save = Folder.save

    def killed(run, *rest):
        if run.step == 3:
            raise KeyboardInterrupt
        save(run, *rest)
    monkeypatch.setattr(Folder, "save", killed)
    with pytest.raises(SystemExit):
        ppo_passk.main([*argv, "--out", str(tmp_path / "part")])
    done = torchrun(tmp_path, os.path.join(ROOT, "ppo_passk.py"), "--out", str(tmp_path / "part"), "--resume")
    assert done.returncode == 0, done.stderr[-2000:]
    close(metrics(tmp_path / "whole"), metrics(tmp_path / "part"))


def launch(rank, port, out, *flags):
    """A process of a run as torchrun would start it. (With a GPU not by a fork, which must not have seen CUDA.)"""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2",
                   "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    flags = flags or ("--eval-samples", "0", "--steps", "100000", "--prompts", "4")
    argv = [os.path.join(ROOT, "ppo_passk.py"), *flags, "--out", out]
    if not torch.cuda.is_available():
        return Child(argv, environment, f"{out}.{rank}.err")
    return subprocess.Popen([sys.executable, *argv], env=environment, stdout=subprocess.DEVNULL,
                            stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_the_run_in_one_sentence(tmp_path, victim):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    out = str(tmp_path / "run")
    pair = [launch(rank, port, out) for rank in (0, 1)]
    try:
        deadline = time.time() + 120
        while not os.path.exists(os.path.join(out, "metrics.jsonl")):
            assert time.time() < deadline and all(p.poll() is None for p in pair)
            time.sleep(0.1)
        pair[victim].send_signal(signal.SIGKILL)
        _, message = pair[1 - victim].communicate(timeout=60)
        assert pair[1 - victim].returncode == 2
        assert "lost the other processes of this run" in message and "Traceback" not in message
        assert len([line for line in message.splitlines() if "error:" in line]) == 1
    finally:
        for p in pair:
            p.kill()
            p.wait()


def test_a_stop_asked_of_one_process_stops_all(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    out = str(tmp_path / "run")
    pair = [launch(rank, port, out) for rank in (0, 1)]
    try:
        deadline = time.time() + 120
        while not os.path.exists(os.path.join(out, "metrics.jsonl")):
            assert time.time() < deadline and all(p.poll() is None for p in pair)
            time.sleep(0.1)
        pair[1].send_signal(signal.SIGINT)
        assert [p.wait(timeout=60) for p in pair] == [130, 130]
    finally:
        for p in pair:
            p.kill()
            p.wait()
    steps = [line["step"] for line in metrics(out)]
    assert steps == list(range(1, len(steps) + 1))
    assert torch.load(os.path.join(out, "state.pt"), weights_only=True)["step"] == steps[-1]


def test_a_damaged_checkpoint_ends_all_processes_with_one_sentence(tmp_path):
    import ppo_passk
    out = str(tmp_path / "run")
    ppo_passk.main(["--steps", "2", "--prompts", "2", "--eval-samples", "0", "--save-every", "1", "--out", out])
    with open(os.path.join(out, "state.pt"), "r+b") as file:
        file.truncate(1000)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    pair = [launch(rank, port, out, "--resume") for rank in (0, 1)]
    try:
        messages = [p.communicate(timeout=120)[1] for p in pair]
    finally:
        for p in pair:
            p.kill()
            p.wait()
    assert [p.returncode for p in pair] == [2, 2]
    assert "state.pt is damaged" in messages[0] and messages[0].count("\n") == 1 and not messages[1], messages
