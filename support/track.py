"""--track: log a run to a dashboard, in addition to its files. Without the flag, nothing is imported or sent.

Only what the last checkpoint contains is sent: the row `before` as step 0, the lines of metrics.jsonl with their keys,
and at the last step the row `after` and curves.png. So no step is sent twice, however often a run is interrupted and
resumed. tracked.json records the last step sent to wandb or trackio, and is written before sending: if a run is killed
in between, the step is missing on the dashboard, but not in metrics.jsonl. TensorBoard files are in the run folder, and
a resumed run rewrites them.
"""
import functools
import importlib
import math
import os
import secrets
import shutil

from support import processes
from support.errors import UserError
from support.folder import write_atomic
from support.load import first_line
from support.output import to_json
from support.plots import read_metrics

PROJECT = "train-as-you-test"
RECORD = "tracked.json"


class TensorBoard:
    """Event files in the run folder."""

    def __init__(self, folder, config):
        from torch.utils.tensorboard import SummaryWriter
        shutil.rmtree(folder, ignore_errors=True)
        self.make = functools.partial(SummaryWriter, folder)
        self.config = config
        self.where = f"tensorboard --logdir {folder}"

    @functools.cached_property
    def writer(self):
        """Created for the first line, so that a run that computes nothing leaves no files."""
        writer = self.make()
        rows = [f"{name} {value}" for name, value in self.config.items()]
        writer.add_text("flags", "\n\n".join(rows))
        return writer

    def log(self, values, step, picture=None):
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        if picture:
            from matplotlib.image import imread
            pixels = imread(picture)[..., :3]
            self.writer.add_image("curves", pixels, step, dataformats="HWC")
        self.writer.flush()

    def close(self):
        self.writer.close()


class Service:
    """wandb, or trackio, which has the same API."""

    def __init__(self, kind, name, config):
        self.module = importlib.import_module(kind)
        identity = {"id": name.split("-")[-1]} if kind == "wandb" else {}  # trackio identifies a run by its name
        self.run = self.module.init(project=PROJECT, name=name, config=config, resume="allow", **identity)
        self.where = f"project {PROJECT}, run {name}"

    def log(self, values, step, picture=None):
        if picture:
            values = {**values, "curves": self.module.Image(picture)}
        self.run.log(values, step=step)

    def close(self):
        self.run.finish()


class Tracker:
    """Sends a run to a dashboard, from the first process.  kind: one of flags.TRACKERS, or "none"; folder: the run's
    support/folder.py, Folder."""

    def __init__(self, kind, folder):
        self.kind = kind
        self.folder = folder
        self.board = None
        self.sent = -1  # last step that was sent; the number of steps + 1 once the row `after` was sent

    def open(self, config):
        """Start, or continue after the last step of a resumed run.  Raises UserError if the dashboard is not usable."""
        if self.kind != "none":
            processes.on_first(lambda: self.begin(config))

    def begin(self, config):
        stored = self.folder.read(RECORD) or {}
        name = os.path.basename(os.path.abspath(self.folder.name))
        self.record = {"name": f"{name}-{secrets.token_hex(4)}", **stored}  # other folders may have the same name
        try:
            if self.kind == "tensorboard":
                self.board = TensorBoard(self.folder.path("tensorboard"), config)
            else:
                self.board = Service(self.kind, self.record["name"], config)
                self.sent = stored.get(self.kind, -1)
        except Exception as error:  # each package has its own exceptions; wandb asks for a login here
            raise UserError(f"--track {self.kind} cannot start ({first_line(error)}): fix this, or leave the flag out"
                            ) from error
        print(f"tracked by {self.kind}: {self.board.where}", flush=True)

    def send(self):
        """Send the steps that the last checkpoint contains and that have not been sent yet."""
        if not self.board:
            return
        rows = {}
        if "before" in self.folder.result:
            rows[0] = {"before": self.folder.result["before"]}
        if self.folder.step:
            for line in read_metrics(self.folder.path("metrics.jsonl")):
                rows[line.pop("step")] = line
        for step, values in rows.items():
            if self.board and self.sent < step <= self.folder.step:
                self.send_line(step, step, values)

    def finish(self):
        """Send the row `after` and curves.png, and close."""
        if not self.board:
            return
        self.send()
        last = self.folder.step
        if self.board and self.sent <= last:
            after = self.folder.result.get("after", {})
            self.send_line(last + 1, last, {"after": after}, self.folder.path("curves.png"))
        if self.board:
            self.board.close()

    def send_line(self, count, step, values, picture=None):
        """Send values as those of a step, and record `count` as sent. If this fails, the dashboard is dropped: it must
        not end a run."""
        self.sent = self.record[self.kind] = count
        write_atomic(self.folder.path(RECORD), to_json(self.record))
        try:
            self.board.log(flat(values), step, picture)
        except Exception as error:
            self.board = None
            print(f"note: --track {self.kind} has failed and is switched off ({first_line(error)}); metrics.jsonl is "
                  "complete", flush=True)


def flat(values, prefix=""):
    """Flatten the values of a line -> {key: number}, with keys such as `valid/pass@8`. Of a value with mean and
    standard error, only the mean is kept."""
    numbers = {}
    for name, value in values.items():
        if isinstance(value, dict):
            nested = {"": value["mean"]} if "mean" in value else value
            numbers |= flat(nested, f"{prefix}{name}/")
        elif value is not None and math.isfinite(value):
            numbers[(prefix + name).rstrip("/")] = value
    return numbers
