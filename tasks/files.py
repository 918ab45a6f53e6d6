"""Reads rows of data: files in the usual formats, folders of them, data sets on the Hugging Face hub.

A file contains JSON lines, a single JSON list or object, Parquet, CSV or TSV with a header, or what `datasets` saves to
disk, optionally gzipped. Its extension gives the format; any other extension means JSON. A folder contains such files,
in the hub's layout or not. The split is read off the names of files or folders: train, test, eval, valid, validation,
val or dev, also followed by ing or set.
A row comes with its place, (file, unit, number), as in "a.jsonl, line 3". Instead of an invalid row there is a
UserError that describes the problem.
"""
import contextlib
import csv
import gzip
import io
import itertools
import json
import os
import re
from collections.abc import Iterable, Iterator

from support.contents import POINTER_SAID, hub_answers, is_pointer
from support.errors import UserError

from .programs import squeeze

SPLITS = {"train": "train", "valid": "valid", "test": "test", "validation": "valid", "val": "valid"}
IN_NAMES = {**SPLITS, "dev": "valid", "eval": "test", "evaluation": "test", "prompt": "prompt"}  # prompt: MBPP's
FORMAT = re.compile(r"\.(jsonl|ndjson|json|parquet|arrow|csv|tsv)(\.gz)?$", re.IGNORECASE)
NO_ROWS = re.compile(r"(?:dataset_infos?|dataset_dict|state)\.json$|cache-|\.")  # names with these prefixes
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
HALF_PAIR = re.compile(r"\\u[dD][89a-fA-F]")  # half a surrogate pair is valid JSON but not valid text
SEPARATORS = {"csv": ",", "tsv": "\t"}

Place = tuple[str, str, int]
Rows = Iterator[tuple[Place, dict | UserError]]


# ------------------------------------------------------------------------------------------------------------ one file

def rows_in(path: str) -> Rows:
    """(place, row) for the rows of one file.  Raises UserError if the rest cannot be read."""
    match = FORMAT.search(path)
    kind = match[1].lower() if match else "json"
    try:
        with open_any(path) as file:
            if not match and not begins_as_json(file):
                raise UserError("no JSON, nor does its name say Parquet, CSV, TSV or Arrow, gzipped or not")
            if kind in SEPARATORS:
                rows = csv_rows(file, SEPARATORS[kind])
            elif kind in ("parquet", "arrow"):
                rows = table_rows(file, kind)
            else:
                rows = json_rows(file)
            for unit, number, row in rows:
                yield (path, unit, number), row
    except Exception as error:  # damaged Parquet and gzip files raise too many types to list
        raise UserError(f"cannot read {path} ({reason_of(error)[:100]})") from error


def open_any(path):
    """The file opened in binary mode, decompressed if gzipped.  Raises UserError for a Git LFS pointer."""
    if is_pointer(path):
        raise UserError(POINTER_SAID)
    with open(path, "rb") as file:
        zipped = file.read(2) == b"\x1f\x8b" or path.lower().endswith(".gz")
    return gzip.open(path, "rb") if zipped else open(path, "rb")


def begins_as_json(file):
    """Whether a file is empty or starts with a list or an object."""
    first = file.read(4096).lstrip(b"\xef\xbb\xbf \t\r\n")[:1]
    file.seek(0)
    return first in (b"", b"{", b"[")


def once(pairs):
    """A JSON object as a dict.  Raises ValueError for a duplicate name."""
    row = dict(pairs)
    if len(row) < len(pairs):
        raise ValueError("a name stands in it twice")
    return row


DECODER = json.JSONDecoder(object_pairs_hook=once)


def parsed(data):
    """The JSON value in bytes, or a UserError that describes the problem and has its `line`."""
    try:
        text = data.decode("utf-8-sig")
        value = DECODER.decode(text)
        if HALF_PAIR.search(text):
            json.dumps(value, ensure_ascii=False).encode()
        return value
    except UnicodeDecodeError:
        wrong = UserError("cannot read it: not UTF-8 text")
    except json.JSONDecodeError as error:
        wrong = UserError("not valid JSON")
        wrong.line = error.lineno
    except (ValueError, RecursionError) as error:
        wrong = UserError(f"not valid JSON ({squeeze(str(error))[:60]})")
    return wrong


def as_row(value):
    return value if isinstance(value, (dict, UserError)) else UserError("not a JSON object")


def json_rows(file):
    """Rows of JSON lines, read one by one, or of a single list or object."""
    first = next(filter(bytes.strip, file), b"").lstrip(b"\xef\xbb\xbf \t")
    by_line = first.startswith(b"{") and isinstance(parsed(first), dict)
    file.seek(0)
    if first and not by_line:
        value = parsed(file.read())
        if isinstance(value, dict):
            yield "row", 1, value
            return
        if isinstance(value, list):
            yield from (("row", number, as_row(row)) for number, row in enumerate(value, start=1))
            return
        if first.startswith(b"["):
            yield "line", getattr(value, "line", 1), value
            return
        file.seek(0)  # JSON lines whose first line is broken
    for number, line in enumerate(file, start=1):
        if line.strip():
            yield "line", number, as_row(parsed(line))


def csv_rows(file, separator):
    """Rows of CSV or TSV with a header; empty cells are left out."""
    csv.field_size_limit(2 ** 31 - 1)
    text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
    rows = csv.reader(text, delimiter=separator, strict=True)
    names = [name.strip() for name in next(filter(None, rows), [])]
    if len({*names}) < len(names):
        raise UserError("two columns of one name")
    number = rows.line_num + 1
    try:
        for cells in rows:
            row = {name: cell for name, cell in zip(names, cells) if cell}
            if len(cells) != len(names):
                row = UserError("not as many values as the header has names")
            if cells:
                yield "line", number, row
            number = rows.line_num + 1
    except csv.Error as error:
        raise UserError(f"line {number}: {error}") from error


def table_rows(file, kind):
    """Rows of a Parquet or Arrow table, from a file or a stream."""
    import pyarrow.ipc
    import pyarrow.parquet
    if isinstance(file, gzip.GzipFile):  # these formats are read from the end
        file = io.BytesIO(file.read())
    stream = file.read(6) != b"ARROW1"
    file.seek(0)
    if kind == "parquet":
        batches = pyarrow.parquet.ParquetFile(file).iter_batches(1024)  # some data sets have long rows
    elif stream:
        batches = pyarrow.ipc.open_stream(file)
    else:
        whole = pyarrow.ipc.open_file(file)
        batches = map(whole.get_batch, range(whole.num_record_batches))
    number = itertools.count(1)
    for batch in batches:
        if len({*batch.schema.names}) < len(batch.schema.names):
            raise UserError("two columns of one name")
        table = pyarrow.Table.from_batches([batch])
        yield from (("row", next(number), row) for row in as_written(table).to_pylist())


def as_written(table):
    """The table with 32-bit floats converted to the 64-bit floats of the same decimal text: .1, not .10000000149."""
    import pyarrow
    schemas = []
    for new in (pyarrow.string(), pyarrow.float64()):
        fields = [field.with_type(with_floats(field.type, new)) for field in table.schema]
        schemas.append(pyarrow.schema(fields))
    return table if schemas[1].equals(table.schema) else table.cast(schemas[0]).cast(schemas[1])


def with_floats(kind, new):
    """An Arrow type with every 32-bit float, also inside lists and structs, replaced by the type `new`."""
    import pyarrow
    if kind == pyarrow.float32():
        return new
    if pyarrow.types.is_struct(kind):
        return pyarrow.struct([field.with_type(with_floats(field.type, new)) for field in kind])
    if pyarrow.types.is_list(kind) or pyarrow.types.is_large_list(kind):
        make = pyarrow.list_ if pyarrow.types.is_list(kind) else pyarrow.large_list
        return make(kind.value_field.with_type(with_floats(kind.value_type, new)))
    return kind


# ------------------------------------------------------------------------------------------------------------- folders

def parted(data: str) -> tuple[str, str | None]:
    """(path or hub id, configuration or None) of PATH, PATH:CONFIG, ORG/NAME and ORG/NAME:CONFIG."""
    path, mark, config = data.rpartition(":")
    if os.path.exists(data) or not mark or not (os.path.isdir(path) or HUB_ID.fullmatch(path)):
        return data, None
    return path, config


def is_hub_id(path: str) -> bool:
    """Whether it can only be a data set of the hub: their ids have an owner."""
    return bool(HUB_ID.fullmatch(path)) and not FORMAT.search(path) and not os.path.exists(path)


def files_of(path: str, config: str | None = None) -> dict[str | None, list[str]]:
    """{split, or None where no name says it: files that hold rows} of a file or a folder; of one configuration where
    folders are called so. The split is the first that is found in a file's name, or else in a folder's."""
    found = [path] if os.path.isfile(path) else []
    seen = set()
    for folder, folders, names in os.walk(path, followlinks=True):
        seen.add(os.path.realpath(folder))  # a link may lead back
        inner = {name: os.path.realpath(os.path.join(folder, name)) for name in folders}
        folders[:] = [name for name, place in inner.items() if not name.startswith(".") and place not in seen]
        found += [os.path.join(folder, name) for name in names if FORMAT.search(name) and not NO_ROWS.match(name)]
    top = os.path.dirname(path) if os.path.isfile(path) else path
    parts = {file: os.path.relpath(file, top).split(os.sep) for file in sorted(found)}
    within = [file for file, part in parts.items() if config in part[:-1]]
    splits = {}
    for file in within or parts:
        splits.setdefault(split_in(reversed(parts[file])), []).append(file)
    return splits


def split_in(names: Iterable[str]) -> str | None:
    """The first split that names speak of, None if there is none."""
    words = re.compile(rf"(?<![a-z])({'|'.join(IN_NAMES)})(?:ing|set)?(?![a-z])")
    matches = (words.search(name.lower()) for name in names)
    match = next(filter(None, matches), None)
    return match and IN_NAMES[match[1]]


def one_configuration(path: str, config: str | None):
    """Raises UserError if a folder holds several configurations and `config` names none of them, or if only its card
    says which files are of which split."""
    card = ""
    with contextlib.suppress(OSError, UnicodeDecodeError), open(os.path.join(path, "README.md"), encoding="utf-8") as f:
        card = f.read()
    names, splits = (list(dict.fromkeys(re.findall(rf"^ *-? *{key}: *['\"]?([^'\"\s]+)", card, re.MULTILINE)))
                     for key in ("config_name", "split"))
    if len(splits) > 1 and files_of(path, config).keys() == {None}:
        raise UserError(f"--data: the README.md of {path} says which files are {' and '.join(splits)}, but their names "
                        "do not: put those words into them")
    if config is None and len(names) > 1:
        raise UserError(f"--data: {path} has the configurations {', '.join(names[:20])}: choose one, e.g. "
                        f"{path}:{names[0]}")
    if config is not None and not any(config in folder.split(os.sep) for folder, _, _ in os.walk(path)):
        raise UserError(f"--data: {path} has no folder {config}, which should hold that configuration")


# ------------------------------------------------------------------------------------------------------------- the hub

def from_hub(path, config, streaming):
    """{name of a split: its rows} of a data set on the hub."""
    import datasets
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # errors are also raised
    if not datasets.config.HF_HUB_OFFLINE:  # without a network it would retry before it looks into its cache
        datasets.config.HF_HUB_OFFLINE = not hub_answers()
    streaming = streaming and not datasets.config.HF_HUB_OFFLINE  # the cache contains whole splits
    return datasets.load_dataset(path, config, streaming=streaming)


def reason_of(error: Exception) -> str:
    """An exception of the network, the hub or a file format in one line."""
    if isinstance(error, UserError):
        return str(error)
    return squeeze(str(error.__cause__ or error))[:200] or type(error).__name__


@contextlib.contextmanager
def asking(path, config):
    """Turn any exception of the network, the hub, file formats and their libraries into a UserError; there are too many
    types to list."""
    try:
        yield
    except Exception as error:
        name = path if config is None else f"{path}:{config}"
        raise UserError(f"cannot load {name} ({reason_of(error)}): check the network and the name, say a configuration "
                        f"as {path}:NAME, or give a local copy with --data DIR") from error


def hub_rows(path, config, name, rows):
    with asking(path, config):
        if "float32" in str(rows.features):
            tables = rows.with_format("arrow").iter(1024)
            rows = itertools.chain.from_iterable(as_written(table).to_pylist() for table in tables)
        for number, row in enumerate(rows, start=1):
            yield (path, f"{name} row", number), row


def parts_of(path: str, config: str | None = None, streaming: bool = False, exact: bool = False
             ) -> dict[str | None, Rows]:
    """{split: rows} of a local file or folder or a data set on the hub; the split is None if no name states it. Rows
    are read lazily. From the hub, the data set is downloaded whole and cached by `datasets`; with `streaming` only the
    rows used are downloaded, every time. exact: if there is a train.jsonl, ignore other files of that split, like
    train_socratic.jsonl.  Raises UserError."""
    splits = {}
    if os.path.exists(path):
        for split, files in files_of(path, config).items():
            alone = [file for file in files if os.path.basename(file).split(".")[0].lower() in SPLITS]
            files = alone if exact and alone else files
            splits[split] = [rows_in(file) for file in files]
    else:
        with asking(path, config):
            by_name = from_hub(path, config, streaming)
        for name, rows in by_name.items():
            splits.setdefault(split_in([name]), []).append(hub_rows(path, config, name, rows))
    return {split: itertools.chain(*parts) for split, parts in splits.items()}
