"""--track: a run on a dashboard, in addition to its own files. Nothing is imported or sent unless it is asked for.

What is sent is what the last checkpoint holds: the row `before` as step 0, the lines of metrics.jsonl under their own
keys, with the last step the row `after` and curves.png. So no step is there twice, however often a run was stopped or
killed, and resumed. tracked.json says how far wandb or trackio have been told, and says so before they are: what they
have not written or sent yet when a run is killed is missing there, never in metrics.jsonl. The files of TensorBoard lie
in the run folder, and a resumed run writes them anew.
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

    def __init__(self, place, config):
        from torch.utils.tensorboard import SummaryWriter
        shutil.rmtree(place, ignore_errors=True)
        self.make = functools.partial(SummaryWriter, place)
        self.config = config
        self.where = f"tensorboard --logdir {place}"

    @functools.cached_property
    def writer(self):
        """Made for the first line, so that a run that computes nothing leaves no file."""
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
    """wandb, or trackio, which has the same functions. What a key had last is its summary there."""

    def __init__(self, kind, name, config):
        self.module = importlib.import_module(kind)
        known_by = {"id": name.split("-")[-1]} if kind == "wandb" else {}  # trackio finds a run by its name
        self.run = self.module.init(project=PROJECT, name=name, config=config, resume="allow", **known_by)
        self.where = f"project {PROJECT}, run {name}"

    def log(self, values, step, picture=None):
        if picture:
            values = {**values, "curves": self.module.Image(picture)}
        self.run.log(values, step=step)

    def close(self):
        self.run.finish()


class Tracker:
    """Sends a run to the dashboard `kind`, or nowhere. folder: its support/folder.py, Folder. Of several processes the
    first one does."""

    def __init__(self, kind, folder):
        self.kind = kind
        self.folder = folder
        self.board = None
        self.told = -1  # the last step that is there; one more than all steps with what comes after them

    def open(self, config):
        """Begin, or continue at the last step of a resumed run.  Raises UserError if the dashboard cannot be used."""
        if self.kind != "none":
            processes.on_first(lambda: self.begin(config))

    def begin(self, config):
        known = self.folder.read(RECORD) or {}
        own = os.path.basename(os.path.abspath(self.folder.name))
        self.record = {"name": f"{own}-{secrets.token_hex(4)}", **known}  # other folders may have the same name
        try:
            if self.kind == "tensorboard":
                self.board = TensorBoard(self.folder.path("tensorboard"), config)
            else:
                self.board = Service(self.kind, self.record["name"], config)
                self.told = known.get(self.kind, -1)
        except Exception as error:  # each package has errors of its own; wandb asks for a login here
            raise UserError(f"--track {self.kind} cannot begin ({first_line(error)}): put that right, or leave it out"
                            ) from error
        print(f"tracked by {self.kind}: {self.board.where}", flush=True)

    def send(self):
        """Send what the last checkpoint holds and has not been sent yet."""
        if not self.board:
            return
        rows = {}
        if "before" in self.folder.result:
            rows[0] = {"before": self.folder.result["before"]}
        if self.folder.step:
            for line in read_metrics(self.folder.path("metrics.jsonl")):
                rows[line.pop("step")] = line
        for step, values in rows.items():
            if self.board and self.told < step <= self.folder.step:
                self.tell(step, step, values)

    def finish(self):
        """Tell the row `after` and curves.png, and close."""
        if not self.board:
            return
        self.send()
        last = self.folder.step
        if self.board and self.told <= last:
            self.tell(last + 1, last, {"after": self.folder.result.get("after", {})}, self.folder.path("curves.png"))
        if self.board:
            self.board.close()

    def tell(self, place, step, values, picture=None):
        """Send one line. A dashboard that fails is dropped, because it must not end a run."""
        self.told = self.record[self.kind] = place
        write_atomic(self.folder.path(RECORD), to_json(self.record))
        try:
            self.board.log(flat(values), step, picture)
        except Exception as error:
            self.board = None
            print(f"note: --track {self.kind} has failed and is left ({first_line(error)}); metrics.jsonl has "
                  "everything", flush=True)


def flat(values, start=""):
    """{key: number} of what a line holds, `valid/pass@8` of what is inside; of a mean with its error the mean."""
    found = {}
    for name, value in values.items():
        if isinstance(value, dict):
            inside = {"": value["mean"]} if "mean" in value else value
            found |= flat(inside, f"{start}{name}/")
        elif value is not None and math.isfinite(value):
            found[(start + name).rstrip("/")] = value
    return found
