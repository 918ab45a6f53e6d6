"""The run folder: args.json, metrics.jsonl, samples.jsonl, checks.jsonl, result.json, curves.png, adapter/, state.pt.

All writes leave the last checkpoint intact, even if the process is killed or the disk is full.
"""
import argparse
import hashlib
import importlib.metadata
import io
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from itertools import accumulate

import safetensors
import torch

from support import ROOT, card, contents, processes
from support.errors import UserError
from support.output import to_json
from support.processes import on_first


@contextmanager
def writing(path):
    """Context that turns any failure to write `path` (full disk, read-only folder, ...) into a UserError."""
    try:
        yield
    except (OSError, safetensors.SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot write {path} ({reason}): earlier files and the last checkpoint are intact; fix the "
                        "cause and run the command again, a training run with --resume") from error


def write_atomic(path, data, keep=None):
    """Write a file (text or bytes) atomically: readers, and a process killed at any moment, see the old or the new
    file.  keep: path where the old file is kept.  Raises UserError if writing fails; the old file then stays in place.
    """
    if processes.RANK:
        return
    with writing(path):
        try:
            with open(path + ".tmp", "wb") as file:
                file.write(data.encode() if isinstance(data, str) else data)
                file.flush()
                os.fsync(file.fileno())  # some file systems report only here that they are full
            if keep and os.path.exists(path):
                second_name(path, keep)
            os.replace(path + ".tmp", path)
        except OSError:
            for leftover in (path + ".tmp", f"{keep}.tmp"):
                with suppress(OSError):
                    os.remove(leftover)
            raise


def second_name(path, name):
    """Link the file `path` to a second name, replacing a file of that name; `path` itself always exists."""
    spare = name + ".tmp"
    with suppress(FileNotFoundError):
        os.remove(spare)
    try:
        os.link(path, spare)
    except OSError:  # the file system has no hard links
        shutil.copyfile(path, spare)
    os.replace(spare, name)
    with suppress(FileNotFoundError):  # After a kill between here and the next write, `spare` and `name` may be links
        os.remove(spare)               # to one file. Renaming one to the other then does nothing.


def save_adapter(model, folder):
    """Save the adapter "default" in peft's format. Equal adapters give equal bytes.  Raises UserError if writing fails.
    """
    for name, value in vars(model.peft_config["default"]).items():
        if isinstance(value, set):  # the order of a set, and so of the file, differs between processes
            setattr(model.peft_config["default"], name, sorted(value))
    shutil.rmtree(folder + ".tmp", ignore_errors=True)  # files of a killed run would be moved, too
    with writing(folder):
        try:
            model.save_pretrained(folder + ".tmp", selected_adapters=["default"], save_embedding_layers=False)
            os.makedirs(folder, exist_ok=True)
            for name in os.listdir(folder + ".tmp"):
                os.replace(os.path.join(folder + ".tmp", name), os.path.join(folder, name))
        finally:
            shutil.rmtree(folder + ".tmp", ignore_errors=True)


def step_of(line):
    """The step of a log line (bytes), or None if it is not a log line."""
    try:
        step = json.loads(line)["step"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return step if type(step) is int and line.endswith(b"\n") else None


def broken_line(data, step, name):
    """Number of the first damaged line of a log (bytes) up to `step`, or None if no damage is visible. metrics.jsonl
    has one line per step; samples.jsonl has several lines for some steps."""
    lines = data.splitlines(keepends=True)
    steps = [step_of(line) for line in lines]
    if name == "metrics.jsonl":
        count = step
        expected = range(1, step + 1)
    else:
        valid = [s is not None and s <= step for s in steps]
        count = max((i for i, is_valid in enumerate(valid, 1) if is_valid), default=0)
        known = [s if is_valid else 0 for s, is_valid in zip(steps[:count], valid)]
        expected = accumulate(known, max)  # steps never decrease
    logged = (steps + [None] * count)[:count]
    return next((i for i, (s, e) in enumerate(zip(logged, expected), 1) if s != e), None)


def fits(action, value):
    """Whether an argparse flag accepts this value."""
    if value is None:
        return action.default is None
    if action.nargs == 0:
        return type(value) is bool
    if action.type not in (None, int, float):  # a type defined by the script
        with suppress(ValueError):
            return action.type(str(value)) == value
        return False
    types = {int: (int,), float: (int, float)}.get(action.type, (str,))
    return type(value) in types and value in (action.choices or [value])


LOGGED = ("metrics.jsonl", "samples.jsonl", "targets.json")  # files whose size and digest a checkpoint stores
PREVIOUS = "state.previous.pt"  # the checkpoint before the last
# Flags that may change when a run is resumed
MAY_CHANGE = ("out", "resume", "save_every", "device", "track", "reward_processes", "rollouts", "rollouts_dir",
              "rollouts_timeout")

BEGUN = ("args.json", "checks.jsonl")  # all that a folder contains before anything has been computed
MADE = {}  # {run folder of this process: the folders, itself and parents, that the process created for it}


def new_folder(folder, label):
    """Create the folder, or runs/<label>-<number> if it is None, and check that it is writable.  Raises UserError."""
    return on_first(lambda: make_folder(folder, label))


def make_folder(folder, label):
    number = 1
    missing = missing_folders(folder or "runs")
    while folder is None:
        try:
            os.makedirs(os.path.join("runs", f"{label}-{number}"))
            folder = os.path.join("runs", f"{label}-{number}")
            missing = [folder, *missing]
        except FileExistsError:
            number += 1
        except OSError as error:
            raise UserError(f"cannot create the folder runs/{label}-{number}: {error.strerror}; choose another with "
                            "--out") from error
    try:
        os.makedirs(folder, exist_ok=True)
        if not all(name.endswith(".tmp") for name in os.listdir(folder)):  # a command killed early may leave .tmp files
            raise UserError(f"--out {folder} is not empty: choose another folder, or continue a run with --resume")
    except OSError as error:
        raise UserError(f"cannot write to --out {folder}: {error.strerror}") from error
    MADE[folder] = missing
    try_folder(folder)
    return folder


def missing_folders(path):
    """Which of a path and its parent folders do not exist, innermost first."""
    missing = []
    while path and not os.path.exists(path):
        missing.append(path)
        path = os.path.dirname(path.rstrip("/"))
    return missing


def remove_unused():
    """Remove the folders that this process created for runs that have computed nothing yet."""
    for folder, made in MADE.items():
        with suppress(OSError):
            names = os.listdir(folder)
            if {*names} <= {*BEGUN}:
                for name in names:
                    os.remove(os.path.join(folder, name))
                for path in made:
                    os.rmdir(path)
    MADE.clear()


def try_folder(folder):
    """Check that the folder is writable, before any work is done.  Raises UserError."""
    probe = os.path.join(folder, "args.json.tmp")
    try:
        with open(probe, "w") as file:
            file.write("{}")
    except OSError as error:
        raise UserError(f"cannot write to --out {folder}: {error.strerror}") from error
    finally:
        with suppress(OSError):
            os.remove(probe)


class Damage(UserError):
    """A file of a run folder differs from what the run wrote."""


class Folder:
    """One training run on disk: args.json, metrics.jsonl, samples.jsonl, result.json, curves.png, adapter/, state.pt.

    `--resume` reads all flags from args.json (flags given again must agree), truncates the logs to the last checkpoint,
    and continues from it. No random state is stored: every draw has its own seed (seed_of).
    state.pt is the output of torch.save, followed by its SHA-256. It contains the flags, and size and SHA-256 of the
    logs up to its step. A mismatch raises an error that gives the command to continue from the previous checkpoint,
    state.previous.pt; there is no automatic fallback. Ctrl-C or SIGTERM sets `stopping`, and the loop saves after the
    current step. A second Ctrl-C exits at once. With several processes, only the first one reads and writes.
    """

    def __init__(self, script, parser, argv):
        """Parse the flags; with --resume read those of the run in --out.  Raises UserError."""
        self.script = script
        self.args = parser.parse_args(argv)
        self.name = self.args.out  # path of the folder
        self.resumed = self.args.resume
        self.started = time.time()
        self.step = 0  # steps done
        self.training = False  # whether the training loop runs, so that a stop can wait for a checkpoint
        self.asked_to_stop = False
        self.begun = {}  # contents of args.json
        self.defaults = {action.dest: action.default for action in parser._actions}
        self.result = {}  # contents of result.json
        self.kept = {}  # a script's state that checkpoints store (JSON)
        self.code = {}  # {flag: digest} of user code that a script has loaded
        if self.resumed:
            self.read_args(self.args, parser, argv)

    @property
    def stopping(self):
        """Whether any process was asked to stop. All processes must call this at the same point of the loop."""
        return processes.all_reduce(float(self.asked_to_stop)) > 0

    def create(self, label):
        """Create the folder: --out, or runs/<script>-<label>-<number>.  Raises UserError if it is not empty."""
        if not self.resumed:
            self.name = self.args.out = new_folder(self.args.out, f"{self.script}-{label}")
        elif self.made_by != self.script:
            raise UserError(f"--resume: {self.name} is a run of {self.made_by}.py, not of {self.script}.py")
        else:
            on_first(lambda: try_folder(self.name))

    def path(self, name):
        return os.path.join(self.name, name)

    def read(self, name):
        """The contents of a JSON file of the folder, or None if it cannot be read."""
        try:
            with open(self.path(name)) as file:
                return json.load(file)
        except (OSError, ValueError, RecursionError):
            return None

    def read_args(self, args, parser, argv):
        """With --resume, replace the flags by those of args.json.  Raises UserError if a given flag differs."""
        if not args.out:
            raise UserError("--resume needs --out DIR, the run folder to continue")
        saved = on_first(lambda: self.read("args.json"))
        flags = saved.get("flags") if isinstance(saved, dict) else None
        if not isinstance(flags, dict):
            raise UserError(f"--resume: {self.name} has no readable args.json: it is not a run folder, or the run was "
                            "killed before it wrote anything, and then start it again with the original command")
        self.begun = saved
        self.made_by = saved.get("script")
        known = {action.dest: action for action in parser._actions}
        for name, value in flags.items():
            if name not in known or not fits(known[name], value):
                raise UserError(f"--resume: args.json in {self.name} has --{name.replace('_', '-')} {value}, which "
                                f"this script does not accept: it is from {self.made_by}.py, or damaged")
        absent = object()  # parse again with this as every default: any other value was given
        given = vars(parser.parse_args(argv, argparse.Namespace(**dict.fromkeys(vars(args), absent))))
        given = {name: value for name, value in given.items() if value is not absent}
        digests = saved.get("contents") or {}
        for name, value in given.items():
            moved = value and contents.moves(name, value) and digests.get(name)  # identify() compares the contents
            if name not in MAY_CHANGE and flags.get(name) != value and not moved:
                raise UserError(f"--resume continues with the flags of args.json, where --{name.replace('_', '-')} is "
                                f"{flags.get(name)}, not {value}: leave the flag out, or start a new run (--adapter)")
        vars(args).update({k: v for k, v in flags.items() if k not in ("out", "resume") and k not in given})

    def identify(self, task, generated):
        """Record digests of the run's input files and problems in args.json; for a resumed run, check that they are
        unchanged.  generated: whether the task generates its problems.  Raises UserError that names what differs."""
        digests = on_first(lambda: contents.of_run(self.args, task, generated)) | self.code
        recorded = self.begun.get("contents")
        if not self.resumed:
            self.begun["contents"] = digests
        elif recorded:
            started = os.path.exists(self.path("state.pt")) or os.path.exists(self.path(PREVIOUS))
            on_first(lambda: contents.compare(recorded, digests, self.begun["flags"], self.args, started))
            name = (recorded.get("data") or {}).get("name")
            if name and task.name == "jsonl" and name != os.path.basename(self.args.data):
                contents.rename(task, name, self.args.data)

    def write_args(self, chat):
        """Write args.json at the start of a run; for a resumed run, update the paths that have moved.  chat: whether
        the chat template is applied to prompts."""
        flags = vars(self.args)
        if not self.resumed:
            first = {"script": self.script, "command": self.command(), "flags": flags, "chat": chat}
            self.begun = {**first, "processes": processes.WORLD, **self.begun, **versions()}
        else:
            moved = {name: flags[name] for name, then in self.begun["flags"].items() if contents.moves(name, then)}
            if moved.items() <= self.begun["flags"].items():
                return
            self.begun["flags"] |= moved
        on_first(lambda: write_atomic(self.path("args.json"), to_json(self.begun, indent=1)))

    def command(self):
        """The command that repeats this run from the same directory, at the commit that args.json records: all flags
        that differ from their defaults, including those set by the model or the machine."""
        script = os.path.relpath(os.path.join(ROOT, f"{self.script}.py"))
        start = ["python", shlex.quote(script)]
        if processes.WORLD > 1:
            start = ["torchrun", "--nproc-per-node", str(processes.WORLD), "--", shlex.quote(script)]
        flags = {name: value for name, value in vars(self.args).items() if value != self.defaults[name]}
        return " ".join([*start, *card.words_of(flags)])

    def start(self, policy, optimizer, chat):
        """Write args.json, load the last checkpoint if resuming (which sets `step`), handle Ctrl-C and SIGTERM.  chat:
        whether the chat template is applied to prompts."""
        if self.resumed:
            state = on_first(lambda: self.restore(policy, optimizer))
            if state and processes.RANK:
                self.put_back(state, policy, optimizer)
        self.write_args(chat)

        def stop(number, frame):
            if self.asked_to_stop or not self.training:
                saved = os.path.exists(self.path("state.pt"))
                raise KeyboardInterrupt(f"; continue with --out {self.name} --resume" * saved)
            self.asked_to_stop = True
            print("stopping after this step (Ctrl-C again to exit at once)", flush=True)
        try:
            signal.signal(signal.SIGINT, stop)
            signal.signal(signal.SIGTERM, stop)
        except ValueError:
            pass  # not the main thread: the caller handles signals

    def restore(self, policy, optimizer):
        """Load the last checkpoint and truncate the logs to its step -> the checkpoint, or None if there is none yet.
        Raises UserError for damaged files (with a way to continue), for flags that differ from the checkpoint's, and if
        writing fails."""
        try:
            state = self.read_checkpoint("state.pt")
            if state is None and os.path.exists(self.path(PREVIOUS)):
                raise Damage(f"{self.path('state.pt')} is missing")
            if state:
                self.put_back(state, policy, optimizer)
            sizes = self.check_logs(state)
        except Damage as error:
            raise UserError(f"{error}: {self.way_on()}") from error
        for name, size in sizes.items():
            with writing(self.path(name)), suppress(FileNotFoundError), open(self.path(name), "r+b") as file:
                file.truncate(size)  # in place, because the disk may be too full for a copy
        if state:  # a killed run may have left adapter/ newer than the checkpoint, or incomplete
            save_adapter(policy.model, self.path("adapter"))
            self.describe()
        return state

    def put_back(self, state, policy, optimizer):
        """Load a checkpoint into the policy, the optimizer and this object.  Raises UserError if its flags or tensors
        do not match."""
        for name, value in json.loads(state["flags"]).items():
            now = vars(self.args).get(name)
            if name not in MAY_CHANGE and not contents.moves(name, now) and now != value:
                raise UserError(f"{name} is {json.dumps(now)} in {self.path('args.json')} but {json.dumps(value)} in "
                                "the state.pt next to it, so one of them was changed: restore it")
        try:
            mine, start = policy.parameters(), policy.start_parameters()
            for p, saved in zip(mine + start, state["parameters"] + state["start"], strict=True):
                if p.shape != saved.shape:
                    raise ValueError(f"{tuple(saved.shape)} for {tuple(p.shape)}")
                p.data.copy_(saved)  # the start, too: the run that it was loaded from may have trained further
            optimizer.load_state_dict(state["optimizer"])
            for p in mine:
                for name, moment in optimizer.state[p].items():
                    if name != "step" and moment.shape != p.shape:
                        raise ValueError(f"{name} {tuple(moment.shape)} for {tuple(p.shape)}")
        except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise Damage(f"{self.path('state.pt')} is from another run: its tensors do not fit ({error})") from error
        self.step = state["step"]
        self.result = json.loads(state["result"])
        self.kept = json.loads(state["kept"])
        self.started -= state["seconds"]

    def bytes_of(self, name):
        """The bytes of a file of the folder, or None if it does not exist.  Raises Damage if it cannot be read."""
        try:
            with open(self.path(name), "rb") as file:
                return file.read()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise Damage(f"{self.path(name)} cannot be read ({error.strerror})") from error

    def read_checkpoint(self, name):
        """The checkpoint in a file, or None if the file does not exist.  Raises Damage."""
        data = self.bytes_of(name)
        if data is None:
            return None
        if hashlib.sha256(data[:-32]).digest() != data[-32:]:
            raise Damage(f"{self.path(name)} is damaged")
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)

    def check_logs(self, state):
        """{log file: its size in bytes at a checkpoint; 0 without one}.  Raises Damage if these bytes have changed."""
        sizes = dict.fromkeys(LOGGED, 0)
        for name in LOGGED if state else ():
            data = self.bytes_of(name) or b""
            sizes[name], digest = state["files"][name]
            if hashlib.sha256(data[:sizes[name]]).hexdigest() != digest:
                broken = broken_line(data, state["step"], name) if name != "targets.json" else None
                line = f" in line {broken}" if broken else ""
                raise Damage(f"{self.path(name)} is damaged{line}, before the checkpoint of step {state['step']}")
        return sizes

    def way_on(self):
        """For an error message: how to continue if the last checkpoint, or a log before it, is damaged."""
        script = os.path.join(ROOT, self.script + ".py")
        resume = shlex.join([sys.executable, script, "--out", self.name, "--resume"])
        state, previous = self.path("state.pt"), self.path(PREVIOUS)
        try:
            checkpoint = self.read_checkpoint(PREVIOUS)
            self.check_logs(checkpoint)
        except Damage:
            checkpoint = None
        if checkpoint:
            move = shlex.join(["mv", previous, state])
            return f"continue from the previous checkpoint, of step {checkpoint['step']}, with: {move} && {resume}"
        remove = shlex.join(["rm", "-f", state, previous])
        return f"there is no earlier intact checkpoint; start this run again with: {remove} && {resume}"

    def log(self, name, **values):
        """Append one line to a .jsonl file of the folder.  Raises UserError if writing fails."""
        if processes.RANK:
            return
        with writing(self.path(name)), open(self.path(name), "a") as file:
            file.write(to_json(values) + "\n")

    def seconds(self):
        """Duration of the run in seconds, without interruptions."""
        return time.time() - self.started

    def save(self, policy, optimizer):
        """Save a checkpoint: adapter/ in peft's format, state.pt for --resume. If the process is killed or writing
        fails (which raises UserError), the last checkpoint stays intact."""
        def write():
            save_adapter(policy.model, self.path("adapter"))
            self.describe()
            buffer = io.BytesIO()
            torch.save(self.state(policy, optimizer), buffer)
            body = buffer.getvalue()
            write_atomic(self.path("state.pt"), body + hashlib.sha256(body).digest(), keep=self.path(PREVIOUS))
        on_first(write)

    def state(self, policy, optimizer):
        """The contents of state.pt."""
        files = {}
        for name in LOGGED:
            data = self.bytes_of(name) or b""
            files[name] = [len(data), hashlib.sha256(data).hexdigest()]
        parameters = [p.detach() for p in policy.parameters()]
        start = [p.detach() for p in policy.start_parameters()]
        state = {"step": self.step, "seconds": self.seconds(), "files": files}
        state |= {"parameters": parameters, "start": start, "optimizer": optimizer.state_dict()}
        texts = {"result": self.result, "kept": self.kept, "flags": vars(self.args)}
        return state | {name: json.dumps(value) for name, value in texts.items()}

    def describe(self):
        """Replace peft's empty model card in adapter/ by one with the results so far."""
        write_atomic(self.path("adapter/README.md"), card.of_adapter(card.facts(self.name, self.result)))

    def finish(self):
        self.result["seconds"] = round(self.seconds(), 1)
        on_first(self.describe)
        on_first(lambda: write_atomic(self.path("result.json"), to_json(self.result, indent=1)))


def versions():
    """Versions of the main packages and the commit of this checkout, for args.json."""
    packages = {}
    for name in ("torch", "transformers", "peft", "bitsandbytes"):
        try:
            packages[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            packages[name] = None
    try:
        commit = subprocess.run(["git", "-C", ROOT, "describe", "--always", "--dirty"],
                                capture_output=True, text=True).stdout
    except OSError:  # git is not installed
        commit = ""
    return {"versions": packages, "commit": commit.strip() or None}
