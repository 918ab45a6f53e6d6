"""Rows of data: files of any usual format, folders of them, data sets of the hub.

A file holds JSON lines, one JSON list or object, Parquet, CSV or TSV with a header, or what `datasets` saves to disk,
gzipped or not; its name says which, and JSON is what any other name stands for. A folder is one of such files, with the
hub's layout or without; in the names of files or folders stands the split (train, test, valid, validation, val or dev).
"""
import contextlib
import csv
import gzip
import io
import itertools
import json
import os
import re

from support.errors import UserError

from .programs import squeeze

SPLITS = {"train": "train", "valid": "valid", "test": "test", "validation": "valid", "val": "valid"}
IN_NAMES = {**SPLITS, "dev": "valid", "prompt": "prompt"}  # prompt: MBPP's examples for prompting
FORMAT = re.compile(r"\.(jsonl|ndjson|json|parquet|arrow|csv|tsv)(\.gz)?$", re.IGNORECASE)
NO_ROWS = re.compile(r"(?:dataset_infos?|dataset_dict|state)\.json$|cache-|\.")  # names that begin so
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
HALF_PAIR = re.compile(r"\\u[dD][89a-fA-F]")  # half a surrogate pair passes for JSON but is no text


# ------------------------------------------------------------------------------------------------------------ one file

def rows_in(path):
    """(unit, number, row) of one file, for "line 3" or "row 3". In the place of a row that is none stands a UserError
    with what is wrong with it.  Raises UserError if nothing more can be read."""
    match = FORMAT.search(path)
    kind = match[1].lower() if match else "json"
    packed = bool(match[2]) if match else path.endswith(".gz")
    try:
        with (gzip.open if packed else open)(path, "rb") as file:
            if kind == "parquet":
                yield from parquet_rows(file)
            elif kind == "arrow":
                yield from arrow_rows(file)
            elif kind in ("csv", "tsv"):
                yield from csv_rows(file, "," if kind == "csv" else "\t")
            else:
                yield from json_rows(file)
    except Exception as error:  # of files that are damaged, Parquet and gzip raise too many types to list
        raise UserError(f"cannot read {path} ({squeeze(str(error))[:100] or type(error).__name__})") from error


def parsed(data):
    """The JSON value in bytes, or a UserError with what is wrong with them."""
    try:
        text = data.decode("utf-8-sig")
        value = json.loads(text)
        if HALF_PAIR.search(text):
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeDecodeError:
        return UserError("cannot read it: not UTF-8 text")
    except (ValueError, RecursionError) as error:
        wrong = UserError("not valid JSON")
        wrong.line = getattr(error, "lineno", 1)  # of these bytes
        return wrong
    return value


def as_row(value):
    return value if isinstance(value, (dict, UserError)) else UserError("not a JSON object")


def json_rows(file):
    """Rows of JSON lines, which are read one by one, or of one list or object."""
    lines = enumerate(file, start=1)
    number, line = next(((number, line) for number, line in lines if line.strip()), (0, b""))
    value = parsed(line)
    if not line or isinstance(value, dict):
        if line:
            yield "line", number, value
        yield from (("line", number, as_row(parsed(line))) for number, line in lines if line.strip())
        return
    rest = file.read()
    text = line + rest if rest.strip() else line
    value = parsed(text) if rest.strip() else value
    if isinstance(value, list):
        del line, rest, text  # of a list of a gigabyte
        yield from (("row", number, as_row(row)) for number, row in enumerate(value, start=1))
    elif isinstance(value, dict):
        yield "line", number, value
    elif text.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"["):
        yield "line", number - 1 + getattr(value, "line", 1), as_row(value)
    else:  # lines of which the first is broken
        for later, line in enumerate(text.split(b"\n"), start=number):
            if line.strip():
                yield "line", later, as_row(parsed(line))


def csv_rows(file, separator):
    """Rows of text with a header; an empty cell is none."""
    csv.field_size_limit(2 ** 31 - 1)
    reader = csv.DictReader(io.TextIOWrapper(file, encoding="utf-8-sig", newline=""), delimiter=separator, strict=True)
    names = reader.fieldnames or []
    if len({*names}) < len(names):
        raise UserError("two columns of one name")
    while True:
        number = reader.line_num + 1
        try:
            row = next(reader, None)
        except csv.Error as error:
            raise UserError(f"line {number}: {error}") from error
        if row is None:
            return
        odd = None in row or None in row.values()
        yield "line", number, (UserError("not as many values as the header has names") if odd else
                               {name: value for name, value in row.items() if value})


def parquet_rows(file):
    import pyarrow.parquet
    found = pyarrow.parquet.ParquetFile(io.BytesIO(file.read()) if isinstance(file, gzip.GzipFile) else file)
    number = 0
    for batch in found.iter_batches(1024):  # rows of some data sets are long
        for row in batch.to_pylist():
            number += 1
            yield "row", number, row


def arrow_rows(file):
    import pyarrow.ipc
    whole = file.read(6) == b"ARROW1"
    file.seek(0)
    reader = pyarrow.ipc.open_file(file) if whole else pyarrow.ipc.open_stream(file)
    batches = (reader.get_batch(i) for i in range(reader.num_record_batches)) if whole else reader
    number = 0
    for batch in batches:
        for row in batch.to_pylist():
            number += 1
            yield "row", number, row


def sound_rows(path):
    """The rows of one file.  Raises UserError at one that is none."""
    for unit, number, row in rows_in(path):
        if isinstance(row, UserError):
            raise UserError(f"{path}, {unit} {number}: {row}")
        yield row


# ------------------------------------------------------------------------------------------------------------- folders

def parted(data):
    """(path or hub id, configuration or None) of PATH, PATH:CONFIG, ORG/NAME and ORG/NAME:CONFIG."""
    path, mark, config = data.rpartition(":")
    if os.path.exists(data) or not mark or not (os.path.isdir(path) or HUB_ID.fullmatch(path)):
        return data, None
    return path, config


def files_of(path, config=None):
    """{split, or None where no name says it: files that hold rows} of a file or a folder; of one configuration where
    folders are called so. The split is the first that is found in a file's name, or else in a folder's."""
    found = [path] if os.path.isfile(path) else []
    for folder, folders, names in os.walk(path):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [os.path.join(folder, name) for name in names if FORMAT.search(name) and not NO_ROWS.match(name)]
    top = os.path.dirname(path) if os.path.isfile(path) else path
    parts = {file: os.path.relpath(file, top).split(os.sep) for file in sorted(found)}
    if any(config in part[:-1] for part in parts.values()):
        parts = {file: part for file, part in parts.items() if config in part[:-1]}
    splits = {}
    for file, part in parts.items():
        splits.setdefault(split_in(reversed(part)), []).append(file)
    return splits


def split_in(names):
    """The first split that names speak of, None if there is none."""
    matches = (re.search(rf"(?<![a-z])({'|'.join(IN_NAMES)})(?![a-z])", name.lower()) for name in names)
    match = next(filter(None, matches), None)
    return match and IN_NAMES[match[1]]


def local_files(path, config, split):
    """(files of a split, files that name no split) of a local copy of a data set that is known by name."""
    found = files_of(path, config)
    mine = found.get(SPLITS[split], [])
    # not train_socratic.jsonl beside train.jsonl
    exact = [file for file in mine if os.path.basename(file).split(".")[0].lower() == split]
    return exact or mine, found.get(None, [])


def one_configuration(path, config):
    """Raises UserError if a folder holds several configurations and `config` names none of them."""
    names = []
    with contextlib.suppress(OSError, UnicodeDecodeError), open(os.path.join(path, "README.md"), encoding="utf-8") as f:
        names = re.findall(r"^ *-? *config_name: *['\"]?([^'\"\s]+)", f.read(), re.MULTILINE)
    names = list(dict.fromkeys(names))
    if config is None and len(names) > 1:
        raise UserError(f"--data: {path} has the configurations {', '.join(names[:20])}: choose one, e.g. "
                        f"{path}:{names[0]}")
    if config is not None and not any(config in folder.split(os.sep) for folder, _, _ in os.walk(path)):
        raise UserError(f"--data: {path} has no folder {config}, which should hold that configuration")


# ------------------------------------------------------------------------------------------------------------- the hub

def from_hub(path, config=None, split=None, streaming=False):
    """A split, or without one all as {split: rows}, of a data set of the hub or of a folder as `datasets` reads it."""
    import datasets
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # the errors come up as exceptions too
    if not os.path.isdir(path) and not datasets.config.HF_HUB_OFFLINE:
        import huggingface_hub
        try:
            huggingface_hub.get_session().head(huggingface_hub.constants.ENDPOINT, timeout=10)
        except Exception:  # no network: `datasets` would retry for half a minute before it looks into its cache
            datasets.config.HF_HUB_OFFLINE = True
    return datasets.load_dataset(path, config, split=split, streaming=streaming)


def reason_of(error):
    """An error of the network, the hub or a file format, in one line."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, KeyError):
        return f"a row lacks the field {error}"
    return squeeze(str(error.__cause__ or error))[:200] or type(error).__name__


def rows_of(path, config, split, make, first=None):
    """make(row) of the rows of a data set on the hub or in a local file or folder, those that are None left out. With
    `first` it is streamed, up to that many rows.  Raises UserError."""
    try:
        files = local_files(path, config, split)[0] if os.path.exists(path) else []
        rows = (row for file in files for row in sound_rows(file))
        data = rows if files else from_hub(path, config, split, streaming=first is not None)
        return [made for made in map(make, itertools.islice(data, first)) if made is not None]
    except Exception as error:  # the network, the hub, file formats and their libraries raise too many types to list
        raise UserError(f"cannot load the {split} split of {path} ({reason_of(error)}): check the network, or give a "
                        "local copy with --data DIR") from error


# ---------------------------------------------------------------------------------------------------------- one's own

def own_rows(data):
    """(place, name, split or None, row) of all rows of one's own file or folder, or of a data set of the hub. place:
    (file, unit, number), name: of the problem. A row that is none is a UserError.  Raises UserError."""
    path, config = parted(data)
    base = os.path.basename(os.path.normpath(data))
    if os.path.isdir(path):
        for split, files in own_files(path, config).items():
            places = ((file, *row) for file in files for row in rows_in(file))
            for n, (file, unit, number, row) in enumerate(places, start=1):
                yield (file, unit, number), f"{base}/{split or 'all'}:{n}", split, row
    elif HUB_ID.fullmatch(path) and not FORMAT.search(path) and not os.path.exists(path):
        for split, rows in hub_splits(path, config).items():
            for n, row in enumerate(rows, start=1):
                yield (path, f"{split or 'all'} row", n), f"{base}/{split or 'all'}:{n}", split, row
    else:
        for unit, number, row in rows_in(path):
            yield (path, unit, number), f"{base}:{number}", None, row


def own_files(path, config):
    """{split or None: files} of a folder.  Raises UserError where they cannot be told."""
    one_configuration(path, config)
    found = files_of(path, config)
    if not found:
        raise UserError(f"--data: {path} holds no file of rows (.jsonl, .json, .parquet, .csv, .tsv or .arrow)")
    return settled(found, path)


def hub_splits(path, config):
    """{split or None: rows} of a data set of the hub.  Raises UserError."""
    found = {}
    try:
        for name, rows in from_hub(path, config).items():
            found.setdefault(split_in([name]), []).append(rows)
    except Exception as error:  # as in rows_of
        raise UserError(f"cannot load --data {path}{':' * bool(config)}{config or ''} ({reason_of(error)}): check the "
                        f"name, say a configuration as {path}:NAME, or give a local copy") from error
    return {split: itertools.chain(*parts) for split, parts in settled(found, path).items()}


def settled(found, path):
    """{split or None: parts}, without MBPP's examples for prompting. Where all is called train, that says nothing about
    splits.  Raises UserError if only some parts say which split they are."""
    found = {split: parts for split, parts in found.items() if split != "prompt" or len(found) == 1}
    if None in found and len(found) > 1:
        raise UserError(f"--data: cannot tell which split all of {path} is, as only some names say so: put what does "
                        "not belong to it elsewhere")
    return {None if len(found) == 1 and split in ("train", "prompt") else split: parts
            for split, parts in found.items()}
