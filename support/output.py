"""Output: text that cannot fail on any console, and JSON that every reader accepts."""
import contextlib
import json
import math
import os
import sys


def to_json(value, **options):
    """JSON of nested lists and dicts, with null for NaN and infinity, which JSON does not have. All files are written
    with it."""
    return json.dumps(finite(value), allow_nan=False, **options)


def finite(value):
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: finite(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(part) for part in value]
    return value


class Console:
    """A stream that can be printed to, whatever it is: characters that it does not have are replaced, and when its
    reader has gone, as `head` does, the rest is dropped. Where it cannot be written, on a full disk, that is raised
    once."""

    def __init__(self, stream):
        self.stream = stream

    def __getattr__(self, name):
        return getattr(self.stream, name)

    def write(self, text):
        encoding = getattr(self.stream, "encoding", None) or "utf-8"
        with self.dropping():
            self.stream.write(text.encode(encoding, "replace").decode(encoding))
        return len(text)

    def flush(self):
        with self.dropping():
            self.stream.flush()

    @contextlib.contextmanager
    def dropping(self):
        try:
            yield
        except OSError as error:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.stream.fileno())  # for what is still in the buffer, too
            os.close(nowhere)
            if not isinstance(error, BrokenPipeError):
                raise


@contextlib.contextmanager
def consoles():
    """Context in which no print can end the run."""
    streams = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (stream and Console(stream) for stream in streams)  # None where it is closed
    try:
        yield
    finally:
        for stream in filter(None, (sys.stdout, sys.stderr)):
            stream.flush()
        sys.stdout, sys.stderr = streams
