"""The run folder: args.json, metrics.jsonl, samples.jsonl, checks.jsonl, result.json, curves.png, adapter/, state.pt.

Everything is written so that a kill at any moment, or a full disk, leaves the last checkpoint intact.
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
    """Turns a full disk, a read-only folder and any other reason why `path` cannot be written into one sentence."""
    try:
        yield
    except (OSError, safetensors.SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot write {path} ({reason}): what was saved before is intact, the last checkpoint too; "
                        "put that right and run the command again, a training run with --resume") from error


def write_atomic(path, data, keep=None):
    """Write a file (text or bytes) so that a reader, or a kill at any moment, meets the old one or the new one. `keep`
    is a name under which the old one stays.  Raises UserError if it cannot be written; the old one is then in place."""
    if processes.RANK:
        return
    with writing(path):
        try:
            with open(path + ".tmp", "wb") as file:
                file.write(data.encode() if isinstance(data, str) else data)
                file.flush()
                os.fsync(file.fileno())  # some file systems say only here that they are full
            if keep and os.path.exists(path):
                second_name(path, keep)
            os.replace(path + ".tmp", path)
        except OSError:
            for rest in (path + ".tmp", f"{keep}.tmp"):
                with suppress(OSError):
                    os.remove(rest)
            raise


def second_name(path, name):
    """Give the file `path` a second name, replacing the file of that name. `path` itself is never missing."""
    spare = name + ".tmp"
    with suppress(FileNotFoundError):
        os.remove(spare)
    try:
        os.link(path, spare)
    except OSError:  # a file system without hard links
        shutil.copyfile(path, spare)
    os.replace(spare, name)
    with suppress(FileNotFoundError):  # a kill between here and the next write: both were names of one file, and
        os.remove(spare)               # renaming one to the other did nothing


def save_adapter(model, folder):
    """Write the adapter "default" as peft reads it, equal adapters in equal bytes.  Raises UserError if it cannot."""
    for name, value in vars(model.peft_config["default"]).items():
        if isinstance(value, set):  # its order, and so the order in the file, is another in every process
            setattr(model.peft_config["default"], name, sorted(value))
    shutil.rmtree(folder + ".tmp", ignore_errors=True)  # what a killed run left would be taken over
    with writing(folder):
        try:
            model.save_pretrained(folder + ".tmp", selected_adapters=["default"], save_embedding_layers=False)
            os.makedirs(folder, exist_ok=True)
            for name in os.listdir(folder + ".tmp"):
                os.replace(os.path.join(folder + ".tmp", name), os.path.join(folder, name))
        finally:
            shutil.rmtree(folder + ".tmp", ignore_errors=True)


def step_of(line):
    """The step of a log line (bytes); None if it is not a log line."""
    try:
        step = json.loads(line)["step"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return step if type(step) is int and line.endswith(b"\n") else None


def broken_line(data, step, name):
    """Number of the first damaged line of a log (bytes) up to `step`; None if no damage shows. metrics.jsonl has one
    line per step, samples.jsonl some for some steps."""
    lines = data.splitlines(keepends=True)
    steps = [step_of(line) for line in lines]
    if name == "metrics.jsonl":
        count, wanted = step, range(1, step + 1)
    else:
        count = max((i for i, s in enumerate(steps, 1) if s is not None and s <= step), default=0)
        wanted = accumulate((s if s is not None and s <= step else 0 for s in steps[:count]), max)  # steps never fall
    found = (steps + [None] * count)[:count]
    return next((i for i, (s, w) in enumerate(zip(found, wanted), 1) if s != w), None)


def fits(action, value):
    """Whether a flag of argparse can have this value."""
    if value is None:
        return action.default is None
    if action.nargs == 0:
        return type(value) is bool
    if action.type not in (None, int, float):  # a script's own
        with suppress(ValueError):
            return action.type(str(value)) == value
        return False
    types = {int: (int,), float: (int, float)}.get(action.type, (str,))
    return type(value) in types and value in (action.choices or [value])


# What a checkpoint knows the bytes of, the name of the one before, and the flags that may differ from the checkpoint's:
# folders move.
LOGGED = ("metrics.jsonl", "samples.jsonl", "targets.json")
PREVIOUS = "state.previous.pt"
# given again, they take effect
MAY_CHANGE = ("out", "resume", "save_every", "device", "track", "reward_processes", "rollouts", "rollouts_dir",
              "rollouts_timeout")

BEGUN = ("args.json", "checks.jsonl")  # what is in a folder before anything has been computed
MADE = {}  # {folder of this process: those of it and the ones around it that it had to make}


def new_folder(folder, label):
    """Create the folder, or runs/<label>-<number> if it is None, and see that it can be written.  Raises UserError."""
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
            raise UserError(f"cannot create the folder runs/{label}-{number}: {error.strerror}; give another with "
                            "--out") from error
    try:
        os.makedirs(folder, exist_ok=True)
        if not all(name.endswith(".tmp") for name in os.listdir(folder)):  # a command killed early leaves no others
            raise UserError(f"--out {folder} is not empty: choose another folder, or continue a run with --resume")
    except OSError as error:
        raise UserError(f"cannot write to --out {folder}: {error.strerror}") from error
    MADE[folder] = missing
    try_folder(folder)
    return folder


def missing_folders(path):
    """Those of a path and its parent folders that do not exist, the innermost first."""
    missing = []
    while path and not os.path.exists(path):
        missing.append(path)
        path = os.path.dirname(path.rstrip("/"))
    return missing


def remove_unused():
    """Remove the folders that this process has made for runs that have computed nothing, or only a finding of the
    check."""
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
    """Check that files can be made in the folder, before any work is done.  Raises UserError."""
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
    """A file of a run folder is not what the run wrote."""


class Folder:
    """One training run on disk: args.json, metrics.jsonl, samples.jsonl, result.json, curves.png, adapter/, state.pt.

    `--resume` takes every flag from args.json (a flag given again must agree), cuts what was logged after the last
    checkpoint, and continues from it. Nothing random is stored: every draw has its own seed (seed_of).
    state.pt is the output of torch.save, followed by its SHA-256. It holds size and SHA-256 of the logs up to its step,
    and the flags. A mismatch ends in one sentence with the command to continue from state.previous.pt, the checkpoint
    before; nothing falls back to it unasked. Ctrl-C or SIGTERM sets `stopping`; the loop then saves after the current
    step. A second Ctrl-C leaves at once. With several processes, the first one reads and writes.
    """

    def __init__(self, script, parser, argv):
        """Read the flags; with --resume those of the run in --out.  Raises UserError."""
        self.script = script
        self.args = parser.parse_args(argv)
        self.name = self.args.out  # its path
        self.resumed = self.args.resume
        self.started = time.time()
        self.step = 0  # steps done
        self.training = False  # whether there are steps that can be saved
        self.asked_to_stop = False
        self.begun = {}  # what args.json holds, or will hold
        self.defaults = {action.dest: action.default for action in parser._actions}
        self.result = {}  # what result.json will hold
        self.kept = {}  # what a script keeps across a resume
        self.code = {}  # {flag: contents} of the user's own files that a script has loaded
        if self.resumed:
            self.read_args(self.args, parser, argv)

    @property
    def stopping(self):
        """Whether any process was asked to stop: all of them must call this at the same point of the loop."""
        return processes.all_reduce(float(self.asked_to_stop)) > 0

    def create(self, label):
        """Make the folder, runs/<script>-<label>-<number> unless --out names one.  Raises UserError if it is in use."""
        if not self.resumed:
            self.name = self.args.out = new_folder(self.args.out, f"{self.script}-{label}")
        elif self.made_by != self.script:
            raise UserError(f"--resume: {self.name} is a run of {self.made_by}.py, not of {self.script}.py")
        else:
            on_first(lambda: try_folder(self.name))

    def path(self, name):
        return os.path.join(self.name, name)

    def read(self, name):
        """A JSON file of the folder, or None if there is none that can be read."""
        try:
            with open(self.path(name)) as file:
                return json.load(file)
        except (OSError, ValueError, RecursionError):
            return None

    def read_args(self, args, parser, argv):
        if not args.out:
            raise UserError("--resume needs --out DIR, the run folder to continue")
        found = on_first(lambda: self.read("args.json"))
        flags = found.get("flags") if isinstance(found, dict) else None
        if not isinstance(flags, dict):
            raise UserError(f"--resume: {self.name} has no readable args.json, so it is no run folder, or of a run "
                            "killed before it wrote anything: then give the command that started it again")
        self.begun, self.made_by = found, found.get("script")
        known = {action.dest: action for action in parser._actions}
        for name, value in flags.items():
            if name not in known or not fits(known[name], value):
                raise UserError(f"--resume: args.json in {self.name} has --{name.replace('_', '-')} {value}, which "
                                f"this script does not take: it is a run of {found.get('script')}.py, or damaged")
        absent = object()  # parse again with this as every default: any other value was given
        given = vars(parser.parse_args(argv, argparse.Namespace(**dict.fromkeys(vars(args), absent))))
        given = {name: value for name, value in given.items() if value is not absent}
        compared = found.get("contents") or {}
        for name, value in given.items():
            moved = value and contents.moves(name, value) and compared.get(name)  # identify() looks what is there
            if name not in MAY_CHANGE and flags.get(name) != value and not moved:
                raise UserError(f"--resume continues with the flags of args.json, where --{name.replace('_', '-')} is "
                                f"{flags.get(name)}, not {value}: leave the flag out, or start a new run (--adapter)")
        vars(args).update({k: v for k, v in flags.items() if k not in ("out", "resume") and k not in given})

    def identify(self, task, generated):
        """Record digests of the run's input files and rows for args.json; for a resumed run check that they are
        unchanged.  generated: whether the task makes its problems itself.  Raises UserError with what differs."""
        found = on_first(lambda: contents.of_run(self.args, task, generated)) | self.code
        begun = self.begun.get("contents")
        if not self.resumed:
            self.begun["contents"] = found
        elif begun:
            started = os.path.exists(self.path("state.pt")) or os.path.exists(self.path(PREVIOUS))
            on_first(lambda: contents.compare(begun, found, self.begun["flags"], self.args, started))
            name = (begun.get("data") or {}).get("name")
            if name and task.name == "jsonl" and name != os.path.basename(self.args.data):
                contents.rename(task, name, self.args.data)

    def write_args(self, chat):
        """Write args.json as the run begins; for a resumed run write the new place of anything that has moved.  chat:
        whether prompts go through the chat template."""
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
        """The command that repeats this run where it was begun, by the commit that args.json names: all flags that are
        not at their defaults, including those set by the model or the machine."""
        script = os.path.relpath(os.path.join(ROOT, f"{self.script}.py"))
        start = ["python", shlex.quote(script)]
        if processes.WORLD > 1:
            start = ["torchrun", "--nproc-per-node", str(processes.WORLD), "--", shlex.quote(script)]
        flags = {name: value for name, value in vars(self.args).items() if value != self.defaults[name]}
        return " ".join([*start, *card.words_of(flags)])

    def start(self, policy, optimizer, chat):
        """Write args.json, load the last checkpoint if resuming (which sets `step`), listen for Ctrl-C.  chat: whether
        prompts go through the chat template."""
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
            print("stopping after this step (Ctrl-C again to leave at once)", flush=True)
        try:
            signal.signal(signal.SIGINT, stop)
            signal.signal(signal.SIGTERM, stop)
        except ValueError:
            pass  # not the main thread: the caller looks after signals

    def restore(self, policy, optimizer):
        """Load the last checkpoint and cut the logs to its step -> the checkpoint, None if there was none yet.  Raises
        UserError: damage, with what to do; flags other than the checkpoint's; files that cannot be written."""
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
                file.truncate(size)  # in place: a full disk has no room for a copy
        if state:  # a kill may have left an adapter/ newer than the checkpoint, or half of one
            save_adapter(policy.model, self.path("adapter"))
            self.describe()
        return state

    def put_back(self, state, policy, optimizer):
        """Load a checkpoint into policy, optimiser and this object.  Raises UserError if its flags or tensors do not
        match."""
        for name, value in json.loads(state["flags"]).items():
            now = vars(self.args).get(name)
            if name not in MAY_CHANGE and not contents.moves(name, now) and now != value:
                raise UserError(f"{name} is {json.dumps(now)} in {self.path('args.json')} and {json.dumps(value)} in "
                                "the state.pt beside it, so one of them was changed: put it back")
        try:
            mine, start = policy.parameters(), policy.start_parameters()
            for p, saved in zip(mine + start, state["parameters"] + state["start"], strict=True):
                if p.shape != saved.shape:
                    raise ValueError(f"{tuple(saved.shape)} for {tuple(p.shape)}")
                p.data.copy_(saved)  # of the start, too: the folder it came from may have trained on since
            optimizer.load_state_dict(state["optimizer"])
            for p in mine:
                for name, moment in optimizer.state[p].items():
                    if name != "step" and moment.shape != p.shape:
                        raise ValueError(f"{name} {tuple(moment.shape)} for {tuple(p.shape)}")
        except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise Damage(f"{self.path('state.pt')} is of another run, its tensors do not fit ({error})") from error
        self.step, self.result = state["step"], json.loads(state["result"])
        self.kept = json.loads(state["kept"])
        self.started -= state["seconds"]

    def bytes_of(self, name):
        """The bytes of a file of the folder, None if there is no such file.  Raises Damage if it cannot be read."""
        try:
            with open(self.path(name), "rb") as file:
                return file.read()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise Damage(f"{self.path(name)} cannot be read ({error.strerror})") from error

    def read_checkpoint(self, name):
        """The checkpoint in a file, None if there is no such file.  Raises Damage."""
        data = self.bytes_of(name)
        if data is None:
            return None
        if hashlib.sha256(data[:-32]).digest() != data[-32:]:
            raise Damage(f"{self.path(name)} is damaged")
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)

    def check_logs(self, state):
        """{file: its size in bytes at a checkpoint, None: at the start}.  Raises Damage if it changed up to there."""
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
        """How to continue if the last checkpoint, or a log before it, is damaged, in words."""
        script = os.path.join(ROOT, self.script + ".py")
        resume = shlex.join([sys.executable, script, "--out", self.name, "--resume"])
        state, previous = self.path("state.pt"), self.path(PREVIOUS)
        try:
            found = self.read_checkpoint(PREVIOUS)
            self.check_logs(found)
        except Damage:
            found = None
        if found:
            move = shlex.join(["mv", previous, state])
            return f"continue from the checkpoint before it, of step {found['step']}, with: {move} && {resume}"
        remove = shlex.join(["rm", "-f", state, previous])
        return f"no checkpoint before it is whole; begin this run again with: {remove} && {resume}"

    def log(self, name, **values):
        """Append one line to metrics.jsonl or samples.jsonl.  Raises UserError if it cannot be written."""
        if processes.RANK:
            return
        with writing(self.path(name)), open(self.path(name), "a") as file:
            file.write(to_json(values) + "\n")

    def seconds(self):
        """Seconds that the run has taken, interruptions not counted."""
        return time.time() - self.started

    def save(self, policy, optimizer):
        """Checkpoint: adapter/ for any user of peft, state.pt for --resume. A kill leaves the last one intact.  Raises
        UserError if it cannot be written, which leaves the last one intact too."""
        def write():
            save_adapter(policy.model, self.path("adapter"))
            self.describe()
            buffer = io.BytesIO()
            torch.save(self.state(policy, optimizer), buffer)
            body = buffer.getvalue()
            write_atomic(self.path("state.pt"), body + hashlib.sha256(body).digest(), keep=self.path(PREVIOUS))
        on_first(write)

    def state(self, policy, optimizer):
        """What state.pt holds."""
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
        """Write the model card of adapter/, with the figures known so far, in place of peft's empty form."""
        write_atomic(self.path("adapter/README.md"), card.of_adapter(card.facts(self.name, self.result)))

    def finish(self):
        self.result["seconds"] = round(self.seconds(), 1)
        on_first(self.describe)
        on_first(lambda: write_atomic(self.path("result.json"), to_json(self.result, indent=1)))


def versions():
    """Versions of what matters and the commit of this checkout, for args.json."""
    packages = {}
    for name in ("torch", "transformers", "peft", "bitsandbytes"):
        try:
            packages[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            packages[name] = None
    try:
        commit = subprocess.run(["git", "-C", ROOT, "describe", "--always", "--dirty"],
                                capture_output=True, text=True).stdout
    except OSError:  # no git here
        commit = ""
    return {"versions": packages, "commit": commit.strip() or None}
