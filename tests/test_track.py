"""--track: what a dashboard has at the end, read back from its own store: every step once, whatever happened."""
import collections
import json
import os
import shutil
import sys
import tempfile
import textwrap

import pytest
from test_runs import FLAGS, handlers, killed_after, quick  # noqa: F401, fixtures
from test_scripts import read_lines, run

import ppo_passk
from support import plots, track

STORE = tempfile.TemporaryDirectory()
os.environ["TRACKIO_DIR"] = STORE.name  # it reads this when it is imported
LONG = [*FLAGS[:-1], 2, "--eval-samples", 4, "--eval-problems", 2, "--eval-every", 3]
FAKE = """
    calls = []
    class Run:
        def log(self, values, step):
            if {fails}:
                raise RuntimeError("no room\\nand more")
            calls.append((step, values))
        def finish(self):
            calls.append("finish")
    def init(**options):
        if {refuses}:
            raise ValueError("No API key configured. Use `wandb login` to log in.")
        calls.append(options)
        return Run()
    Image = "image of {{}}".format
"""


def interrupted(folder, kind):
    """A run that is killed after step 5, so that its last checkpoint is of step 4, and resumed."""
    killed_after(5, ppo_passk.main, *LONG, "--track", kind, "--out", folder)
    return resumed(folder)


def resumed(folder, *flags):
    code, out, error = run(ppo_passk.main, "--out", folder, "--resume", *flags)
    assert code == 0, error
    return out


def expected(folder):
    """{key: {step: value}} by the run's own files."""
    found = collections.defaultdict(dict)
    for line in read_lines(folder):
        step = line.pop("step")
        for name, value in track.flat(line).items():
            found[name][step] = value
    result = json.loads((folder / "result.json").read_text())
    for row, step in (("before", 0), ("after", 6)):
        for name, cell in result[row].items():
            if cell["mean"] is not None:
                found[f"{row}/{name}"][step] = cell["mean"]
    assert {"pass@2", "valid/pass@2", "before/pass@2", "after/pass@2", "loss", "seconds"} <= found.keys()
    return found


def events(folder):
    """{key: [(step, value), ...]} of the files of TensorBoard, and its pictures."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    store = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0})
    store.Reload()
    scalars = {name: [(e.step, e.value) for e in store.Scalars(name)] for name in store.Tags()["scalars"]}
    return scalars, store.Tags()["images"]


def test_tensorboard(tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    monkeypatch.setattr("support.run.plot_run", plots.plot_run)
    folder = tmp_path / "a run"
    out = interrupted(folder, "tensorboard")
    assert f"tracked by tensorboard: tensorboard --logdir {folder}/tensorboard\n" in out
    scalars, images = events(folder)
    assert images == ["curves"] and scalars.keys() == expected(folder).keys()
    for name, values in expected(folder).items():
        assert scalars[name] == [(step, pytest.approx(value, rel=1e-5)) for step, value in values.items()], name


def stored(folder):
    """[row, ...] of the store of trackio."""
    from trackio.sqlite_storage import SQLiteStorage
    name = json.loads((folder / "tracked.json").read_text())["name"]
    return SQLiteStorage.get_logs(track.PROJECT, name)


def test_trackio(tmp_path, monkeypatch):
    """Also of a run whose last checkpoint is damaged, so that it goes on from the one before."""
    trackio = pytest.importorskip("trackio")
    monkeypatch.setattr("support.run.plot_run", plots.plot_run)
    folder = tmp_path / "mine"
    killed_after(5, ppo_passk.main, *LONG, "--track", "trackio", "--out", folder)
    (folder / "state.previous.pt").replace(folder / "state.pt")
    resumed(folder)
    for _ in range(2):  # a resumed run that has all its steps adds nothing
        found = collections.defaultdict(dict)
        for row in stored(folder):
            for name, value in row.items():
                if name in ("step", "timestamp") or isinstance(value, dict):
                    continue
                assert row["step"] not in found[name], (name, row["step"])
                found[name][row["step"]] = value
        wanted = expected(folder)
        for name in ("seconds", "memory_gb", "tokens_per_s", "samples_per_s"):  # the first time that they were done
            assert found[name].keys() == wanted[name].keys()
            del found[name], wanted[name]
        assert found == wanted
        assert sum("curves" in row for row in stored(folder)) == 1
        monkeypatch.setattr("support.run.plot_run", lambda *_: None)
        resumed(folder)
    assert os.listdir(os.path.join(STORE.name, "media", track.PROJECT))
    record = trackio.Api().runs(track.PROJECT)[0]
    assert record.name.startswith("mine-") and record.config["objective"] == "passk" and record.config["k"] == 2


@pytest.fixture
def wandb(tmp_path, monkeypatch):
    """A module of this name -> what it was told."""
    def make(fails="False", refuses="False"):
        place = tmp_path / "packages"
        place.mkdir()
        (place / "wandb.py").write_text(textwrap.dedent(FAKE).format(fails=fails, refuses=refuses))
        monkeypatch.syspath_prepend(place)
        monkeypatch.delitem(sys.modules, "wandb", raising=False)
        return lambda: sys.modules["wandb"].calls
    yield make
    sys.modules.pop("wandb", None)


def test_wandb(tmp_path, wandb):
    """The same calls as for trackio, and an id, by which it finds the run again."""
    calls = wandb()
    folder = tmp_path / "mine"
    interrupted(folder, "wandb")
    first, again = (call for call in calls() if isinstance(call, dict))
    assert first["project"] == again["project"] == track.PROJECT and first["resume"] == "allow"
    assert first["id"] == again["id"] and first["name"] == again["name"] == f"mine-{first['id']}"
    assert [call[0] for call in calls() if isinstance(call, tuple)] == [0, 1, 2, 3, 4, 5, 6, 6]
    assert calls()[-1] == "finish" and calls()[-2][1]["curves"] == f"image of {folder}/curves.png"


def test_begun_later(tmp_path, wandb):
    """A run that is resumed with --track tells what it has from its first step on; without, nothing."""
    calls = wandb()
    folder = tmp_path / "r"
    killed_after(5, ppo_passk.main, *LONG, "--out", folder)
    resumed(shutil.copytree(folder, tmp_path / "s"), "--track", "none")
    assert "wandb" not in sys.modules and not (tmp_path / "s" / "tracked.json").exists()
    resumed(folder, "--track", "wandb")
    assert [call[0] for call in calls() if isinstance(call, tuple)] == [0, 1, 2, 3, 4, 5, 6, 6]


def test_a_dashboard_that_fails_ends_no_run(tmp_path, wandb):
    wandb(fails="step > 2")
    code, out, error = run(ppo_passk.main, *LONG, "--track", "wandb", "--out", tmp_path / "r")
    assert code == 0 and not error
    assert out.count("note: --track wandb has failed and is switched off (no room); metrics.jsonl is complete\n") == 1
    assert len(read_lines(tmp_path / "r")) == 6


@pytest.mark.parametrize("kind", ["tensorboard", "wandb"])
def test_nothing_is_left_of_a_run_that_computes_nothing(kind, tmp_path, wandb, monkeypatch):
    """Ctrl-C before its first step."""
    if kind == "tensorboard":
        pytest.importorskip(kind)
    wandb()

    def interrupted(*_):
        raise KeyboardInterrupt
    monkeypatch.setattr(ppo_passk, "step", interrupted)
    code, out, _ = run(ppo_passk.main, *FLAGS, "--track", kind, "--out", tmp_path / "r")
    assert code == 130 and "tracked by" in out and not (tmp_path / "r").exists()


def test_what_cannot_be_had(tmp_path, wandb, monkeypatch):
    """One sentence before the first step, and no run folder."""
    flags = [*LONG, "--out", tmp_path / "r"]
    wandb(refuses="True")
    code, _, error = run(ppo_passk.main, *flags, "--track", "wandb")
    assert code == 2 and error.count("\n") == 1
    assert "--track wandb cannot start (No API key configured. Use `wandb login` to log in.): fix this" in error
    monkeypatch.undo()
    sys.modules.pop("wandb")
    os.makedirs(tmp_path / "here" / "wandb")  # where wandb puts its files
    monkeypatch.syspath_prepend(tmp_path / "here")
    found = ["tensorboard", "trackio"]
    monkeypatch.setattr("importlib.util.find_spec", absent(found))
    for kind in ("wandb", *found):
        code, _, error = run(ppo_passk.main, *flags, "--track", kind)
        assert code == 2 and error.count("\n") == 1
        assert f"error: --track {kind} needs a package that is not installed: pip install {kind}" in error
    assert not (tmp_path / "r").exists()


def absent(names):
    from importlib.util import find_spec
    return lambda name, *rest: None if name in names else find_spec(name, *rest)
