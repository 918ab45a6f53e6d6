"""The inputs of a run: where they are, and digests of their contents. A resumed run checks that they have not changed,
and an adapter that it is on its own base."""
import dataclasses
import difflib
import glob
import hashlib
import json
import os
import re

from support import ROOT
from support.errors import UserError

EMBEDDED_MODELS = ("tiny", "tiny_program", "tiny_peptide", "tiny_hasty", "tiny_countdown6")  # in models/
PATHS = ("model", "data", "adapter", "verifier")  # flags whose value may be a path, and move
CODE = ("task", "reward", "operator")  # flags whose value may be FILE.py or FILE.py:NAME, and move

MEGABYTE = 2 ** 20
POINTER = b"version https://git-lfs"  # how such a file begins
POINTER_SAID = "a pointer of git-lfs in the place of the file: fetch it with git lfs pull"
TOKENIZER = r"^(tokenizer|vocab|tekken|spiece|sentencepiece)|\.(model|tiktoken)$"
WEIGHTS = r"(?<!training_args)\.(?:safetensors|gguf|bin)$"
# What else decides what a model says of a text.
SETTINGS = r"^(?:(?:generation_|adapter_)?config|tokenizer(?:_config)?|vocab)\.json$|^merges\.txt$|\.jinja$|\.model$"


# --------------------------------------------------------------------------------------------------------------- places

def located(text, flag):
    """The value of a flag, so that it is found from any working directory: a file or folder by its absolute path, an
    embedded model or a hub id unchanged.  Raises UserError for a path that does not exist: the hub would be asked for
    it first, for half a minute without a network."""
    text = text if text is None else os.fspath(text)
    if text and flag in ("--task", "--reward", "--operator"):
        return located_code(text, flag)
    if text is None or text in EMBEDDED_MODELS and flag != "--adapter":
        return text
    if os.path.exists(text):
        return os.path.abspath(in_cache(text))
    folder, mark, config = text.rpartition(":")
    if flag == "--data" and mark and os.path.isdir(folder):  # a configuration of a data set
        return f"{os.path.abspath(in_cache(folder))}:{config}"
    if looks_like_a_path(text) or "adapter" in flag and "/" not in text:  # those of the hub have an owner
        raise UserError(f"{flag} {text}: there is no such file or folder")
    if flag == "--data" and "/" not in text:
        raise UserError(f"--data {text}: there is no such file or folder, and a data set of the hub is ORG/NAME")
    meant = difflib.get_close_matches(text.lower(), EMBEDDED_MODELS, n=1, cutoff=0.8)
    if meant and snapshot(text) is None:  # ids like gpt2, which have no owner, are not close
        raise UserError(f"{flag} {text}: there is no such file or folder, and the embedded models are "
                        f"{', '.join(EMBEDDED_MODELS)}: is it {meant[0]}?")
    return text


def in_cache(folder):
    """Of a folder of the hub's cache, which holds every revision that was fetched, the main one; else the folder."""
    try:
        with open(os.path.join(folder, "refs", "main"), encoding="utf-8") as file:
            found = os.path.join(folder, "snapshots", file.read().strip())
    except (OSError, UnicodeDecodeError):
        return folder
    return found if os.path.isdir(found) else folder


def code_file(text):
    """(absolute path, NAME or None) of FILE.py or FILE.py:NAME, None of any other text."""
    match = re.fullmatch(r"(.+\.py)(?::(.*))?", text, re.DOTALL)
    return match and (os.path.abspath(match[1]), match[2])


def located_code(text, flag):
    """The same as `located` for FILE.py or FILE.py:NAME; any other text is the name of a task."""
    found = code_file(text)
    if found is None:
        return text
    path, name = found
    if not os.path.isfile(path):
        raise UserError(f"{flag} {text}: there is no such file")
    return path if name is None else f"{path}:{name}"


def moves(flag, value):
    """Whether the value of a flag is a path, or may be one: the file may have moved."""
    return flag in PATHS or flag in CODE and value is not None and code_file(value) is not None


def looks_like_a_path(text):
    """Whether a name that does not exist was meant as a file or folder. Hub ids have one slash at most."""
    if text.startswith((".", "~", "/", "runs/")) or text.endswith(("/", ".gguf")) or text.count("/") > 1:
        return True
    return os.path.isdir(os.path.dirname(text)) and snapshot(text) is None


def snapshot(name):
    """The folder of a hub id in this machine's cache, None if it is not cached."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError
    try:
        for file in ("config.json", "adapter_config.json"):
            found = try_to_load_from_cache(name, file)
            if isinstance(found, str):
                return os.path.dirname(found)
    except HFValidationError:
        pass
    return None


def hub_answers():
    """Whether the hub can be reached, within ten seconds."""
    import huggingface_hub
    try:
        huggingface_hub.get_session().head(huggingface_hub.constants.ENDPOINT, timeout=10)
    except Exception:  # of the network, of which there are too many to list
        return False
    return True


def look_for_hub(name):
    """Do with the cache alone where `name` is of the hub and that does not answer: its library would try again for half
    a minute, for each file, before it looks there."""
    from huggingface_hub import constants
    if is_hub_id(name) and not constants.HF_HUB_OFFLINE:
        constants.HF_HUB_OFFLINE = not hub_answers()


def place(model):
    """The file or folder of a model, None if it is not on this machine."""
    if model in EMBEDDED_MODELS:
        return os.path.join(ROOT, "models", model)
    return model if os.path.exists(model) else snapshot(model)


def read_json(path):
    """A JSON object in a file, {} if there is none that can be read."""
    try:
        with open(path, encoding="utf-8") as file:
            found = json.load(file)
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def fault_in(path, wanted):
    """What is wrong with a path that cannot be loaded, and what to do, in words; None where nothing is seen.  wanted:
    config.json of a model or adapter_config.json of an adapter."""
    if is_pointer(path):
        return f"it is {POINTER_SAID}"
    if path.endswith(".gguf") or not os.path.exists(path):
        return None
    if os.path.isfile(path):
        return "it is a file: give the folder that it is in"
    names = sorted(os.listdir(path))
    for name in names:
        file = os.path.join(path, name)
        if is_pointer(file):
            return f"{name} is {POINTER_SAID}"
        if name.endswith(".json") and not is_json(file):
            return f"{name} is not valid JSON: fetch it again"
    of_adapter = wanted == "adapter_config.json"
    weights = [name for name in names if re.search(WEIGHTS, name) and name.startswith("adapter_") == of_adapter]
    if wanted in names and weights:
        if of_adapter or any(re.search(TOKENIZER, name) for name in names):
            return None
        return "it has no tokenizer: copy tokenizer.json and tokenizer_config.json of the model that it was made from"
    if os.path.exists(os.path.join(adapter_of(path), "adapter_config.json")) and not of_adapter:
        return ("it holds an adapter and no model of its own: give --model BASE --adapter IT, to evaluate.py BASE+IT, "
                "and as a verifier the merged model")
    lacking = "weights, .safetensors or .bin" if wanted in names else wanted
    inner = [os.path.dirname(file) for depth in ("*", "*/*") for file in glob.glob(f"{path}/{depth}/{wanted}")]
    return f"it has no {lacking}" + f", but {listed(sorted(inner))} has: give that" * bool(inner)


def is_pointer(path):
    """Whether a file is what git-lfs leaves where the file itself was not fetched."""
    try:
        with open(path, "rb") as file:
            return file.read(len(POINTER)) == POINTER
    except OSError:
        return False


def is_json(path):
    try:
        with open(path, encoding="utf-8") as file:
            json.load(file)
    except (OSError, ValueError, RecursionError):
        return False
    return True


def adapter_of(path):
    """The folder of peft's files in a run folder or an adapter's own."""
    inner = os.path.join(path, "adapter")
    return inner if os.path.isdir(inner) else path


def base_of(adapter):
    """The base that an adapter was made on, as its run or its config say, None if they do not."""
    begun = read_json(os.path.join(adapter, "args.json")).get("flags", {}).get("model")
    return begun or read_json(os.path.join(adapter_of(adapter), "adapter_config.json")).get("base_model_name_or_path")


# ------------------------------------------------------------------------------------------------------------- contents

def digest(path):
    """A digest of a file's size, its first and its last megabyte."""
    found, size = hashlib.sha256(), os.path.getsize(path)
    found.update(str(size).encode())
    with open(path, "rb") as file:
        found.update(file.read(MEGABYTE))
        file.seek(max(0, size - MEGABYTE))
        found.update(file.read(MEGABYTE))
    return found.hexdigest()


def of_files(model):
    """{file: digest} of a model's weights and of what else decides what it says; {} if it is not on this machine."""
    path = place(model)
    if path is None or os.path.isfile(path):
        return {os.path.basename(path): digest(path)} if path else {}
    names = [name for name in sorted(os.listdir(path)) if re.search(f"{SETTINGS}|{WEIGHTS}", name)]
    if any(name.endswith(".safetensors") for name in names):  # they are taken before those of pickle
        names = [name for name in names if not name.endswith(".bin")]
    return {name: digest(os.path.join(path, name)) for name in names}


def of_adapter(path):
    """The same of an adapter, wherever its base lies."""
    folder = adapter_of(path)
    found = of_files(folder)
    config = read_json(os.path.join(folder, "adapter_config.json"))
    config = {name: value for name, value in config.items() if name not in ("base_model_name_or_path", "revision")}
    return {**found, "adapter_config.json": hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()}


def of_rows(task, data):
    """The contents of a task's problems: their number in each split, a digest of all, and how their names begin."""
    found, counts = hashlib.sha256(), {}
    for split in ("train", "valid", "test"):
        problems = getattr(task, split)
        counts[split] = len(problems)
        for p in problems:
            prompt = getattr(p.prompt, "turns", p.prompt)  # of chat messages also who says what
            values = [split, prompt, p.answer, p.solution, p.level]
            if hasattr(p, "row"):  # which the user's own reward function judges by
                values.append(p.row)
            found.update(json.dumps(values, default=str).encode())
    return {**counts, "sha256": found.hexdigest(), "name": data and os.path.basename(data)}


def of_run(args, task, generated):
    """{flag: contents} of all inputs of a run. generated: whether the task makes its problems itself."""
    found = {"model": of_files(args.model), **task.code}
    if not generated:
        found["data"] = of_rows(task, args.data)
    if args.adapter:
        found["adapter"] = of_adapter(args.adapter)
    verifier = getattr(args, "verifier", None)
    if verifier:
        fitted = os.path.isdir(os.path.join(verifier, "adapter"))
        found["verifier"] = of_adapter(verifier) if fitted else of_files(verifier)
    return found


def differing(then, now):
    """Names of the files that differ between two sets. The name of a single file does not matter.
    """
    if len(then) == len(now) == 1 and {*then.values()} == {*now.values()}:
        return []
    return sorted(name for name in then.keys() | now.keys() if then.get(name) != now.get(name))


def listed(names):
    return ", ".join(names[:3]) + ", ..." * (len(names) > 3)


def change(then, now):
    """What is different in `now`, in words; None if nothing is."""
    if "sha256" not in then:
        names = differing(then, now)
        return f"in {listed(names)}" if names else None
    if then["sha256"] == now["sha256"]:
        return None
    counts = [", ".join(f"{some[split]} {split}" for split in ("train", "valid", "test")) for some in (then, now)]
    return ("in the text of its problems" if counts[0] == counts[1] else
            f"in its problems ({counts[0]} then; {counts[1]} in it)")


def compare(then, now, flags, args, started):
    """Raises UserError with what differs between the contents at the start of a run (`then`, with its flags) and `now`.
    started: whether it has a checkpoint, which holds the weights of its adapter."""
    for name in (*PATHS, *CODE):
        if not then.get(name) or not now.get(name):
            continue
        begun = then[name]
        if name == "adapter" and started:
            begun = {file: now[name].get(file) if re.search(WEIGHTS, file) else value for file, value in begun.items()}
        found = change(begun, now[name])
        if found:
            before = flags.get(name)
            given = getattr(args, name)
            what = f"the data set of task {args.task} has changed since this run began, {found}"
            if before != given:
                what = f"--{name} is {before} in args.json, and {given} differs from it {found}"
            elif given:
                what = f"--{name} {given} has changed since this run began, {found}"
            raise UserError(f"--resume: {what}: give what the run began with, or start a new run (--adapter)")


def rename(task, name, data):
    """Give the problems of a renamed file their old names, because their draws depend on these."""
    new = os.path.basename(data)
    for split in ("train", "valid", "test"):
        problems = [dataclasses.replace(p, id=name + p.id.removeprefix(new)) for p in getattr(task, split)]
        setattr(task, split, problems)


# ----------------------------------------------------------------------------------------------------------- its base

def other_base(folder, model):
    """Why the adapter in a folder does not belong to `model`, according to the args.json of its run or its
    adapter_config.json; None if they do not say so. Bases with equal weights count as one, wherever they are stored."""
    run, inner = os.path.split(folder)
    begun = read_json(os.path.join(run, "args.json")) if inner == "adapter" else {}
    source, named = "args.json", begun.get("flags", {}).get("model")
    if not named:
        source, named = "adapter_config.json", base_of(folder)
    then = begun.get("contents", {}).get("model")
    if not named or not then and (same_place(named, model) or is_hub_id(named) and last(named) == last(model)):
        return None
    then, now = weights(then or of_files(named)), weights(of_files(model))
    if not then or not now:
        unlike = is_hub_id(named) and is_hub_id(model) and named != model
        return f"it was made on {named}, as its {source} says: take that as --model" if unlike else None
    if {*now.values()} <= {*then.values()}:  # of a folder with several GGUF files it is one
        return None
    names = listed(differing(then, now))
    return f"it was made on {named}, as its {source} says, whose weights are others ({names}): take that as --model"


def weights(files):
    return {name: value for name, value in files.items() if re.search(WEIGHTS, name)}


def same_place(a, b):
    """Whether two names of a model are of one file or folder, or the same hub id."""
    places = [os.path.realpath(place(name) or name) for name in (a, b)]
    return places[0] == places[1]


def is_hub_id(name):
    return not os.path.exists(name) and name not in EMBEDDED_MODELS and not looks_like_a_path(name)


def last(name):
    return name.rstrip("/").rpartition("/")[2].lower()
