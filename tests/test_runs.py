"""Run folders that were killed, damaged, filled up or locked: one sentence, a way on, and the same bits at the end."""
import builtins
import errno
import hashlib
import json
import os
import random
import shlex
import shutil
import signal
import subprocess

import peft
import pytest
import safetensors.torch
import torch
from conftest import load_policy
from test_scripts import command, read_lines, run, untimed

import cat_bon
import common
import evaluate
import ppo_passk
import support.run
import tasks
from support import load, plots
from support import verifier as verifiers
from support.errors import UserError
from support.folder import Folder

plot_run = plots.plot_run
TINY = ["--prompts", 4, "--samples", 4, "--k", 2, "--eval-samples", 0]
FLAGS = [*TINY, "--steps", 6, "--save-every", 2]


@pytest.fixture(autouse=True)
def handlers():
    before = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    yield
    for s, handler in zip((signal.SIGINT, signal.SIGTERM), before):
        signal.signal(s, handler)


@pytest.fixture(autouse=True, scope="module")
def quick():
    """What takes most of the time of so short a run: problems are made once and not measured, no picture is drawn."""
    made, load_task = {}, tasks.load_task

    def once(*args, **options):
        key = repr((args, options))
        made[key] = made.get(key) or load_task(*args, **options)
        made[key].counts.clear()
        return made[key]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tasks, "load_task", once)
        patch.setattr(evaluate, "that_fit", lambda policy, task, problems: problems)  # they all do
        patch.setattr(support.run, "plot_run", lambda *rest: None)
        yield


class Killed(BaseException):
    pass


def killed_after(step, main, *flags):
    """A run that dies when it has logged a step."""
    log = Folder.log

    def dies(self, name, **values):
        log(self, name, **values)
        if name == "metrics.jsonl" and values["step"] == step:
            raise Killed
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Folder, "log", dies)
        run(main, *flags)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Six steps that nothing interrupts."""
    folder = tmp_path_factory.mktemp("whole") / "r"
    assert run(ppo_passk.main, *FLAGS, "--out", folder)[0] == 0
    return folder


@pytest.fixture(scope="module")
def part(tmp_path_factory):
    """The same run, killed after step 5: checkpoints of steps 4 and 2."""
    folder = tmp_path_factory.mktemp("part") / "r"
    killed_after(5, ppo_passk.main, *FLAGS, "--out", folder)
    return folder


@pytest.fixture
def folder(part, tmp_path):
    return shutil.copytree(part, tmp_path / "a run")  # a name that a shell has to be told about


def files(folder):
    return {name: (folder / name).read_bytes() for name in os.listdir(folder)}


def same(a, b):
    """Bit for bit: adapter/ with every file in it, metrics, samples."""
    assert files(a / "adapter") == files(b / "adapter")
    assert untimed(read_lines(a)) == untimed(read_lines(b))
    assert (a / "samples.jsonl").read_bytes() == (b / "samples.jsonl").read_bytes()


def refused(folder, *words, main=ppo_passk.main):
    """--resume ends in one sentence with these words and changes nothing -> the sentence."""
    before = {name: (folder / name).read_bytes() for name in os.listdir(folder) if (folder / name).is_file()}
    code, out, err = run(main, "--out", folder, "--resume")
    assert code == 2 and err.count("\n") == 1 and not out, err
    assert all(str(word) in err for word in words), err
    assert before == {name: (folder / name).read_bytes() for name in before}
    return err


def go_on(sentence):
    """Do what the sentence says, its `python ppo_passk.py ...` in this process."""
    first, _, then = sentence.partition(" with: ")[2].strip().partition(" && ")
    subprocess.run(first, shell=True, check=True)
    python, script, *flags = shlex.split(then)
    assert [python, script] == command("ppo_passk.py")
    code, _, err = run(ppo_passk.main, *flags)
    assert code == 0, err


# ------------------------------------------------------------------------------------------------------------- state.pt

def flip(data, places):
    data = bytearray(data)
    for place in places:
        data[place] ^= 1 << place % 8
    return bytes(data)


STATES = {
    "empty": lambda data: b"", "one byte": lambda data: data[:1], "half": lambda data: data[:len(data) // 2],
    "all but one byte": lambda data: data[:-1], "no digest": lambda data: data[:-32],
    "appended": lambda data: data + b"\0",
    "64 flipped bytes": lambda data: flip(data, random.Random(0).sample(range(len(data)), 64)),
    "zeros": lambda data: bytes(len(data)), "text": lambda data: b"no such file\n"}


@pytest.mark.parametrize("damage", STATES)
def test_a_damaged_state_is_refused_with_the_way_on(damage, whole, folder):
    (folder / "state.pt").write_bytes(STATES[damage]((folder / "state.pt").read_bytes()))
    sentence = refused(folder, folder / "state.pt", "damaged", "step 2")
    if damage in ("empty", "64 flipped bytes"):
        go_on(sentence)
        same(whole, folder)


def test_the_command_works_as_printed(whole, folder, monkeypatch):
    """In a process that orders its sets differently: adapter/ is the same in every byte all the same."""
    monkeypatch.chdir(folder.parent)
    monkeypatch.setenv("PYTHONHASHSEED", "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1")
    (folder / "state.pt").write_bytes(b"")
    code, _, err = run(ppo_passk.main, "--out", "a run", "--resume")
    assert code == 2
    done = subprocess.run(err.partition(" with: ")[2], shell=True, capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, done.stderr
    same(whole, folder)


def test_no_flipped_byte_is_missed(folder):
    """Wherever it is: in the first and last kilobyte, between, and in the digest itself, the last 32 bytes."""
    original = (folder / "state.pt").read_bytes()
    size = len(original)
    places = sorted({*range(0, 1000, 29), *range(size - 1000, size, 29), *range(size - 34, size),
                     *random.Random(1).sample(range(size), 60)})
    reader = Folder("ppo_passk", ppo_passk.parser(), ["--out", str(folder)])
    assert reader.read_checkpoint("state.pt")["step"] == 4
    for place in places:
        (folder / "state.pt").write_bytes(flip(original, [place]))
        with pytest.raises(UserError, match="damaged"):
            reader.read_checkpoint("state.pt")


def test_both_checkpoints_damaged(whole, folder):
    for name in ("state.pt", "state.previous.pt"):
        (folder / name).write_bytes((folder / name).read_bytes()[:-1])
    go_on(refused(folder, "state.pt is damaged", "start this run again"))
    same(whole, folder)


def test_a_state_that_is_gone_is_not_a_new_run(whole, folder):
    os.remove(folder / "state.pt")
    go_on(refused(folder, "state.pt is missing", "step 2"))
    same(whole, folder)


def test_the_state_of_another_run(whole, folder, tmp_path):
    """A good digest, but another seed, tensors of another model, or logs of another run."""
    def sealed(state):
        with open(folder / "state.pt", "wb") as file:
            torch.save(state, file)
        body = (folder / "state.pt").read_bytes()
        (folder / "state.pt").write_bytes(body + hashlib.sha256(body).digest())
    own = torch.load(folder / "state.pt", weights_only=True)
    sealed({**own, "flags": json.dumps({**json.loads(own["flags"]), "seed": 1})})
    refused(folder, "seed is 0 in", "but 1 in the state.pt")
    sealed({**own, "parameters": own["parameters"][1:]})
    refused(folder, "do not fit", "step 2")
    sealed({**own, "parameters": [p[:1] for p in own["parameters"]]})  # copying would repeat the row
    refused(folder, "do not fit", "step 2")
    sealed({**own, "files": {**own["files"], "metrics.jsonl": [10, "0" * 64]}})
    go_on(refused(folder, "metrics.jsonl is damaged", "step 2"))
    same(whole, folder)


# ----------------------------------------------------------------------------------------------------------------- logs

LINES = {"no UTF-8": b"\xff\xfe\n", "no JSON": b"{\n", "no object": b"[1]\n", "no step": b"{}\n", "gone": b"",
         "a step that is text": b'{"step": "3"}\n', "a step that is true": b'{"step": true}\n', "empty": b"\n",
         "deep": b"[" * 100000 + b"\n", "another step": b'{"step": 9}\n', "zeros": b"\0" * 50 + b"\n"}


@pytest.mark.parametrize("damage", LINES)
def test_a_broken_line_before_the_checkpoint(damage, whole, folder):
    lines = (folder / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_bytes(b"".join([*lines[:2], LINES[damage], *lines[3:]]))
    sentence = refused(folder, folder / "metrics.jsonl", "line 3", "step 2")
    if damage in ("no UTF-8", "gone"):
        go_on(sentence)
        same(whole, folder)


@pytest.mark.parametrize("name", ["metrics.jsonl", "samples.jsonl"])
def test_damage_before_both_checkpoints(name, whole, folder):
    """A digit that changed in line 1, and a log that is gone."""
    data = (folder / name).read_bytes()
    digit = next(i for i, byte in enumerate(data) if chr(byte).isdigit() and i > 12)
    (folder / name).write_bytes(data[:digit] + (b"1" if data[digit:digit + 1] != b"1" else b"2") + data[digit + 1:])
    refused(folder, folder / name, "start this run again")
    os.remove(folder / name)
    go_on(refused(folder, folder / name, "start this run again"))
    same(whole, folder)


def test_what_was_logged_after_the_checkpoint_is_cut(whole, folder):
    for name in ("metrics.jsonl", "samples.jsonl"):
        with open(folder / name, "ab") as file:
            file.write(b"".join(LINES.values()) + b'{"step": 2}\n{"step": 6, "torn')
    code, _, err = run(ppo_passk.main, "--out", folder, "--resume")
    assert code == 0, err
    same(whole, folder)


def test_damaged_args(folder):
    original = (folder / "args.json").read_bytes()
    for old, new, *words in ((b'"lr": 0.002', b'"lr": 0.003', "lr is 0.003", "0.002"),
                             (b'"lr": 0.002', b'"lr": "x"', "--lr x"),
                             (b'"lr": 0.002', b'"ls": 0.002', "--ls"), (b'"steps": 6', b'"steps": true', "--steps"),
                             (b'"passk"', b'"pazzk"', "--objective"), (original, b"", "args.json"),
                             (original, b"\xff", "args.json"),
                             (original, b"[" * 100000, "args.json"), (b"ppo_passk", b"bon_rl", "bon_rl.py")):
        assert old in original
        (folder / "args.json").write_bytes(original.replace(old, new))
        refused(folder, *words)


def test_targets_are_not_found_again_by_a_trained_policy(tmp_path):
    flags = ["--mode", "sft", "--train-problems", 8, "--prompts", 4, "--samples", 4, "--n", 2, "--eval-samples", 0,
             "--steps", 3, "--save-every", 1]
    killed_after(2, cat_bon.main, *flags, "--out", tmp_path / "r")
    original = (tmp_path / "r" / "targets.json").read_bytes()
    for data in (b"", original[:-1], flip(original, [len(original) // 2])):
        (tmp_path / "r" / "targets.json").write_bytes(data)
        sentence = refused(tmp_path / "r", "targets.json is damaged", "start this run again", main=cat_bon.main)
    subprocess.run(sentence.partition(" with: ")[2].partition(" && ")[0], shell=True, check=True)
    assert run(cat_bon.main, "--out", tmp_path / "r", "--resume")[0] == 0
    assert (tmp_path / "r" / "targets.json").read_bytes() == original


# ------------------------------------------------------------------------------------------------ full and locked disks

class Full:
    """A file that takes half of what is written to it, and then the disk has no more."""

    def __init__(self, file, code):
        self.file, self.code = file, code

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.file.close()

    def __getattr__(self, name):
        return getattr(self.file, name)

    def write(self, data):
        self.file.write(data[:len(data) // 2])
        raise OSError(self.code, os.strerror(self.code))


@pytest.mark.parametrize("name, at, code", [
    ("args.json.tmp", 1, errno.ENOSPC), ("args.json.tmp", 2, errno.EDQUOT), ("metrics.jsonl", 3, errno.ENOSPC),
    ("samples.jsonl", 2, errno.EIO), ("state.pt.tmp", 1, errno.ENOSPC), ("state.pt.tmp", 2, errno.EFBIG),
    ("adapter_config.json", 2, errno.ENOSPC), ("README.md", 1, errno.EROFS),
    ("result.json.tmp", 1, errno.EACCES), ("curves.png.tmp", 1, errno.ENOSPC)])
def test_a_write_that_fails(name, at, code, whole, tmp_path, monkeypatch):
    """One sentence, no rest left behind, every checkpoint still whole; and with room again the same bits."""
    folder, count, plain = tmp_path / "r", 0, open

    def opens(path, mode="r", *rest, **options):
        nonlocal count
        file = plain(path, mode, *rest, **options)
        mine = isinstance(path, (str, os.PathLike)) and os.path.basename(path) == name and set(mode) & set("wa")
        count += bool(mine)
        return Full(file, code) if mine and count == at else file
    with monkeypatch.context() as patch:
        if "curves" in name:
            patch.setattr(support.run, "plot_run", plot_run)
        patch.setattr(builtins, "open", opens)
        exit_code, _, err = run(ppo_passk.main, *FLAGS, "--out", folder)
    assert exit_code == 2 and err.count("\n") == 1 and str(folder) in err and os.strerror(code) in err, err
    left = os.listdir(folder) if folder.exists() else []  # nothing is left of a run that could not begin
    assert count >= at and not [rest for rest in left if rest.endswith(".tmp")]
    assert folder.exists() == ("args" not in name)
    again = ["--out", folder, "--resume"] if "args" not in name else [*FLAGS, "--out", folder]
    code, _, err = run(ppo_passk.main, *again)
    assert code == 0, err
    same(whole, folder)


def test_a_disk_that_is_really_full(whole, tmp_path, monkeypatch):
    """On file systems too small by more and more; what fails first is a write inside safetensors."""
    monkeypatch.chdir(tmp_path)
    os.mkdir("disk")
    mount = ["mount", "-t", "tmpfs", "-o", "size=100k", "none", "disk"]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no right to mount a small file system here")
    try:
        first, sentences = FLAGS, []
        for size in (100, 1000, 2500):
            subprocess.run(["mount", "-o", f"remount,size={size}k", "disk"], check=True)
            code, _, err = run(ppo_passk.main, *first, "--out", "disk/r")
            assert code == 2 and err.count("\n") == 1 and "No space left" in err, (size, err)
            sentences.append(err)
            first = ["--resume"]
        subprocess.run(["mount", "-o", "remount,size=20M", "disk"], check=True)
        assert run(ppo_passk.main, "--out", "disk/r", "--resume")[0] == 0
        same(whole, tmp_path / "disk" / "r")
        assert {"adapter", "state.pt"} <= {sentence.split(" (")[0].rpartition("/")[2] for sentence in sentences}
    finally:
        subprocess.run(["umount", "disk"], check=True)


def as_owner(name, module, monkeypatch):
    """Have root call a function of a module while it is somebody else: who may not enter this project's folder."""
    call = getattr(module, name)

    def wrapped(*args, **options):
        os.seteuid(0)
        try:
            return call(*args, **options)
        finally:
            os.seteuid(65534)
    monkeypatch.setattr(module, name, wrapped)


@pytest.mark.parametrize("locked", [".", "adapter", "metrics.jsonl"])
def test_resume_in_a_folder_that_cannot_be_written(locked, folder, monkeypatch):
    """One sentence before any step. Root may write anywhere, so it is somebody else for a moment."""
    monkeypatch.setattr(common, "sample", lambda *args, **options: pytest.fail("a step was begun"))
    monkeypatch.chdir(folder)
    for path in (folder.parent, folder, folder / "adapter", *folder.iterdir()):
        os.chmod(path, 0o777)
    os.chmod(locked, 0o555)
    user = os.geteuid()
    if not user:
        as_owner("load_policy", common, monkeypatch)
        os.seteuid(65534)
    try:
        code, _, err = run(ppo_passk.main, "--out", ".", "--resume")
    finally:
        os.seteuid(user)
    assert code == 2 and err.count("\n") == 1 and "cannot write" in err and "denied" in err, err


def test_pools_on_a_full_disk(tmp_path, monkeypatch):
    plain = open

    def opens(path, mode="r", *rest, **options):
        file = plain(path, mode, *rest, **options)
        return Full(file, errno.ENOSPC) if "pool-2" in str(path) else file
    monkeypatch.setattr(builtins, "open", opens)
    code, _, err = run(evaluate.main, "--samples", 2, "--k", 1, "--problems", 2, "--temperature", "0.5,1",
                       "--out", tmp_path / "e")
    assert code == 2 and err.count("\n") == 1 and "pool-2.jsonl" in err and "No space left" in err
    assert os.listdir(tmp_path / "e") == ["pool-1.jsonl"] and len(read_lines(tmp_path / "e", "pool-1.jsonl")) == 2


# ------------------------------------------------------------------------------------------------- kills at every point

class Kill:
    """From the n-th change to the file system under `folder` on, nothing more happens: a file just opened stays empty,
    and no clean-up runs."""

    def __init__(self, patch, folder, n):
        self.left, self.folder, self.dead = n, str(folder), False
        for name in ("open", "replace", "link", "remove", "unlink", "rmdir", "makedirs", "mkdir"):
            module = builtins if name == "open" else os
            patch.setattr(module, name, self.counted(getattr(module, name), name))

    def counted(self, call, name):
        def counted(path, *rest, **options):
            if name == "open" and not set((*rest, options.get("mode", "r"))[0]) & set("wa+"):
                return call(path, *rest, **options)
            if self.dead:
                raise Killed
            if str(path).startswith(self.folder) or options.get("dir_fd") is not None:
                self.left -= 1
                if self.left == 0:
                    self.dead = True
                    if name == "open":
                        call(path, *rest, **options).close()
                    raise Killed
            return call(path, *rest, **options)
        return counted


def killed_at(n, folder, call):
    """Whether call() made n changes under the folder and was killed at the n-th."""
    with pytest.MonkeyPatch.context() as patch:
        kill = Kill(patch, folder, n)
        try:
            call()
        except Killed:
            pass
    return kill.dead


def test_a_kill_at_every_point_of_the_start(tmp_path, monkeypatch):
    """Until the first line is logged, the same command goes on, or --resume once there is an args.json."""
    flags, whole = [*TINY, "--steps", 1], tmp_path / "whole"
    assert run(ppo_passk.main, *flags, "--out", whole)[0] == 0
    def never(*args, **values):
        raise Killed
    for n in range(1, 100):
        folder = tmp_path / str(n)
        with monkeypatch.context() as patch:
            patch.setattr(Folder, "log", never)
            killed = killed_at(n, folder, lambda: run(ppo_passk.main, *flags, "--out", folder))
        resumes = (folder / "args.json").exists()
        code, _, err = run(ppo_passk.main, *(["--resume"] if resumes else flags), "--out", folder)
        assert code == 0, (n, err)
        assert not [name for name in os.listdir(folder) if name.endswith(".tmp")]
        same(whole, folder)
        if not killed:
            break
    assert n >= 5  # folder, probe and its removal, args.json and its new name


def test_a_kill_at_every_point_of_a_save(tmp_path):
    """The checkpoint before or the new one is there under its own name, another is kept, and the next save works."""
    policy = load_policy("tiny", bits=32)
    optimizer = torch.optim.AdamW(policy.parameters())

    def opened(folder, *flags):
        argv = [*map(str, TINY), "--out", str(folder), *flags]
        found = Folder("ppo_passk", ppo_passk.parser(), argv)
        found.create("")
        found.start(policy, optimizer, chat=False)
        return found

    def save(found, step):
        for p in policy.parameters():
            p.data.fill_(step)
        found.log("metrics.jsonl", step=step)
        found.step = step
        found.save(policy, optimizer)
    first = opened(tmp_path / "first")
    save(first, 1), save(first, 2)
    for n in range(1, 100):
        folder = shutil.copytree(tmp_path / "first", tmp_path / str(n))
        first.name = str(folder)
        killed = killed_at(n, folder, lambda: save(first, 3))
        for p in policy.parameters():
            p.data.zero_()
        again = opened(folder, "--resume")
        assert again.step in (2, 3) and all((p == again.step).all() for p in policy.parameters())
        assert again.read_checkpoint("state.previous.pt")["step"] in (again.step - 1, again.step)
        weights = safetensors.torch.load_file(folder / "adapter" / "adapter_model.safetensors").values()
        assert all((w == again.step).all() for w in weights)
        save(again, again.step + 1)
        assert again.read_checkpoint("state.pt")["step"] == again.read_checkpoint("state.previous.pt")["step"] + 1
        assert set(os.listdir(folder)) == {"args.json", "metrics.jsonl", "adapter", "state.pt", "state.previous.pt"}
        if not killed:
            break
    assert n >= 10


def test_a_file_system_without_hard_links(whole, tmp_path, monkeypatch):
    def link(*args, **options):
        raise PermissionError(errno.EPERM, "Operation not permitted")
    monkeypatch.setattr(os, "link", link)
    assert run(ppo_passk.main, *FLAGS, "--out", tmp_path / "r")[0] == 0
    steps = [torch.load(tmp_path / "r" / name, weights_only=True)["step"] for name in ("state.previous.pt", "state.pt")]
    assert steps == [4, 6]
    same(whole, tmp_path / "r")


# ------------------------------------------------------------------------------------------------------------- adapters

def test_a_verifier_in_equal_bytes(tmp_path):
    """Whatever the order of a set; that of another process is in test_the_command_works_as_printed."""
    class Backwards(set):
        def __iter__(self):
            return iter(sorted(set.__iter__(self), reverse=True))
    for name, order in (("a", set), ("b", Backwards)):
        verifier = verifiers.load_verifier("tiny", 32, lora_rank=2)
        config = verifier.model.peft_config["default"]
        config.target_modules = order(config.target_modules)
        verifier.save(tmp_path / name)
    assert files(tmp_path / "a" / "adapter") == files(tmp_path / "b" / "adapter")
    assert len(files(tmp_path / "a" / "adapter")) == 3 and (tmp_path / "a" / "verifier.json").exists()


def test_a_resumed_run_keeps_its_frozen_start(whole, tmp_path):
    """The folder of --adapter has trained on since: KL and gradient are still to the start of this run."""
    start = shutil.copytree(whole, tmp_path / "start")
    flags = [*TINY, "--adapter", start, "--kl-coef", 0.5, "--steps", 4, "--save-every", 2]
    assert run(ppo_passk.main, *flags, "--out", tmp_path / "a")[0] == 0
    killed_after(3, ppo_passk.main, *flags, "--out", tmp_path / "b")
    weights = start / "adapter" / "adapter_model.safetensors"
    safetensors.torch.save_file({name: w + 0.1 for name, w in safetensors.torch.load_file(weights).items()}, weights)
    assert run(ppo_passk.main, "--out", tmp_path / "b", "--resume")[0] == 0
    same(tmp_path / "a", tmp_path / "b")
    assert read_lines(tmp_path / "a")[-1]["kl"] != 0


@pytest.mark.parametrize("reference", ["start", "base"])
def test_an_adapter_with_dropout_is_continued_without(reference, tmp_path):
    """What is scored is what was sampled. (For the reference "start" peft itself leaves the training mode.)"""
    model = load.load_base("tiny", 32)[0]
    config = peft.LoraConfig(r=4, lora_dropout=0.5, init_lora_weights=False, target_modules="all-linear",
                             task_type="CAUSAL_LM")
    torch.manual_seed(0)
    peft.get_peft_model(model, config).save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    policy = load_policy("tiny", 32, adapter=str(tmp_path / "adapter"), reference=reference)
    policy.fast = None  # folded into the weights an adapter has no dropout in any mode
    prompts = [policy.encode("c7,2,9:23>")]
    drawn = common.sample(policy, prompts, 8, [0], max_new_tokens=12)
    sampled, rows = drawn.logps.double().sum(-1)[0], drawn.lists()[0]
    assert torch.allclose(common.sequence_logps(policy, prompts * 8, rows), sampled, atol=1e-4)
    for index, logps, mask in common.score(policy, prompts * 8, rows):  # with gradient, as the update does
        assert torch.allclose((logps * mask).sum(-1).double(), sampled[index], atol=1e-4)
    with policy.reference():
        once, again = (common.sequence_logps(policy, prompts * 8, rows) for _ in range(2))
    assert torch.equal(once, again) and torch.allclose(once, sampled, atol=1e-4) == (reference == "start")
