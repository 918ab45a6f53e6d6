"""Output: printing that works on every console, and JSON that every parser accepts."""
import contextlib
import json
import math
import os
import sys


def to_json(value, **options):
    """JSON of nested lists and dicts, with null for NaN and infinity, which JSON lacks. All JSON files are written with
    it."""
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
    """Wraps a stream so that printing does not fail: characters missing in its encoding are replaced, and output is
    dropped when the reader of a pipe has exited, as `head` does. Other errors (full disk) are raised once."""

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
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self.stream.fileno())  # also drops what is still buffered
            os.close(null)
            if not isinstance(error, BrokenPipeError):
                raise


@contextlib.contextmanager
def consoles():
    """Context that wraps stdout and stderr as `Console`, so that printing does not end the run."""
    streams = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (stream and Console(stream) for stream in streams)  # a closed stream is None
    try:
        yield
    finally:
        for stream in filter(None, (sys.stdout, sys.stderr)):
            stream.flush()
        sys.stdout, sys.stderr = streams
