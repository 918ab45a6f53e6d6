"""The inputs of a run: their paths, and digests of their contents. With digests, a resumed run is checked for changed
inputs, and an adapter for the base model that it was trained on."""
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
PATHS = ("model", "data", "adapter", "verifier")  # flags whose value may be a path, which may move
CODE = ("task", "reward", "operator")  # flags whose value may be FILE.py or FILE.py:NAME, which may move

MEGABYTE = 2 ** 20
POINTER = b"version https://git-lfs"  # beginning of a git-lfs pointer file
POINTER_SAID = "a git-lfs pointer instead of the file: download it with git lfs pull"
TOKENIZER = r"^(tokenizer|vocab|tekken|spiece|sentencepiece)|\.(model|tiktoken)$"
WEIGHTS = r"(?<!training_args)\.(?:safetensors|gguf|bin)$"
# Other files that affect a model's output
SETTINGS = r"^(?:(?:generation_|adapter_)?config|tokenizer(?:_config)?|vocab)\.json$|^merges\.txt$|\.jinja$|\.model$"


# --------------------------------------------------------------------------------------------------------------- places

def located(text, flag):
    """The value of a flag, independent of the working directory: the absolute path of a file or folder; an embedded
    model or a hub id unchanged.  Raises UserError for a path that does not exist, because otherwise transformers would
    query the hub first, which takes half a minute without a network."""
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
    if looks_like_a_path(text) or "adapter" in flag and "/" not in text:  # adapters on the hub have an owner
        raise UserError(f"{flag} {text}: there is no such file or folder")
    if flag == "--data" and "/" not in text:
        raise UserError(f"--data {text}: there is no such file or folder, and a data set of the hub is ORG/NAME")
    meant = difflib.get_close_matches(text.lower(), EMBEDDED_MODELS, n=1, cutoff=0.8)
    if meant and snapshot(text) is None:  # ids like gpt2, which have no owner, are not close
        raise UserError(f"{flag} {text}: there is no such file or folder, and the embedded models are "
                        f"{', '.join(EMBEDDED_MODELS)}: is it {meant[0]}?")
    return text


def in_cache(folder):
    """The main revision in a folder of the hub's cache; any other folder unchanged."""
    try:
        with open(os.path.join(folder, "refs", "main"), encoding="utf-8") as file:
            revision = os.path.join(folder, "snapshots", file.read().strip())
    except (OSError, UnicodeDecodeError):
        return folder
    return revision if os.path.isdir(revision) else folder


def code_file(text):
    """(absolute path, NAME or None) for FILE.py or FILE.py:NAME; None for any other text."""
    match = re.fullmatch(r"(.+\.py)(?::(.*))?", text, re.DOTALL)
    return match and (os.path.abspath(match[1]), match[2])


def located_code(text, flag):
    """`located` for FILE.py or FILE.py:NAME; any other text is the name of a task, returned unchanged."""
    parts = code_file(text)
    if parts is None:
        return text
    path, name = parts
    if not os.path.isfile(path):
        raise UserError(f"{flag} {text}: there is no such file")
    return path if name is None else f"{path}:{name}"


def moves(flag, value):
    """Whether the value of a flag is or may be a path, whose file may have moved."""
    return flag in PATHS or flag in CODE and value is not None and code_file(value) is not None


def looks_like_a_path(text):
    """Whether a name that does not exist was probably meant as a path. Hub ids have at most one slash."""
    if text.startswith((".", "~", "/", "runs/")) or text.endswith(("/", ".gguf")) or text.count("/") > 1:
        return True
    return os.path.isdir(os.path.dirname(text)) and snapshot(text) is None


def snapshot(name):
    """The folder of a hub id in the local cache, or None."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError
    try:
        for file in ("config.json", "adapter_config.json"):
            cached = try_to_load_from_cache(name, file)
            if isinstance(cached, str):
                return os.path.dirname(cached)
    except HFValidationError:
        pass
    return None


def hub_answers():
    """Whether the hub responds within ten seconds."""
    import huggingface_hub
    try:
        huggingface_hub.get_session().head(huggingface_hub.constants.ENDPOINT, timeout=10)
    except Exception:  # network errors have many types
        return False
    return True


def look_for_hub(name):
    """If `name` is a hub id and the hub does not respond, switch to offline mode, which uses only the cache. Otherwise
    the hub's library would retry for half a minute for each file."""
    from huggingface_hub import constants
    if is_hub_id(name) and not constants.HF_HUB_OFFLINE:
        constants.HF_HUB_OFFLINE = not hub_answers()


def place(model):
    """The file or folder of a model, or None if it is not on this machine."""
    if model in EMBEDDED_MODELS:
        return os.path.join(ROOT, "models", model)
    return model if os.path.exists(model) else snapshot(model)


def read_json(path):
    """Read a JSON object from a file -> dict, empty if this fails."""
    try:
        with open(path, encoding="utf-8") as file:
            values = json.load(file)
    except (OSError, ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


def fault_in(path, wanted):
    """Why a path cannot be loaded, and what to do, as text; None if no reason is found.  wanted: config.json for a
    model, adapter_config.json for an adapter."""
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
            return f"{name} is not valid JSON: download it again"
    of_adapter = wanted == "adapter_config.json"
    weights = [name for name in names if re.search(WEIGHTS, name) and name.startswith("adapter_") == of_adapter]
    if wanted in names and weights:
        if of_adapter or any(re.search(TOKENIZER, name) for name in names):
            return None
        return "it has no tokenizer: copy tokenizer.json and tokenizer_config.json from the model that it is based on"
    if os.path.exists(os.path.join(adapter_of(path), "adapter_config.json")) and not of_adapter:
        return ("it contains an adapter but no model: use --model BASE --adapter IT, BASE+IT with evaluate.py, or a "
                "merged model as the verifier")
    lacking = "weights, .safetensors or .bin" if wanted in names else wanted
    inner = [os.path.dirname(file) for depth in ("*", "*/*") for file in glob.glob(f"{path}/{depth}/{wanted}")]
    return f"it has no {lacking}" + f", but {listed(sorted(inner))} has: give that" * bool(inner)


def is_pointer(path):
    """Whether a file is a git-lfs pointer, whose contents were not fetched."""
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
    """The folder with peft's files: adapter/ of a run folder, or the folder itself."""
    inner = os.path.join(path, "adapter")
    return inner if os.path.isdir(inner) else path


def base_of(adapter):
    """The base model of an adapter, according to its run or its config, or None."""
    model = read_json(os.path.join(adapter, "args.json")).get("flags", {}).get("model")
    return model or read_json(os.path.join(adapter_of(adapter), "adapter_config.json")).get("base_model_name_or_path")


# ------------------------------------------------------------------------------------------------------------- contents

def digest(path):
    """A digest of a file's size, and of its first and last megabyte."""
    sha = hashlib.sha256()
    size = os.path.getsize(path)
    sha.update(str(size).encode())
    with open(path, "rb") as file:
        sha.update(file.read(MEGABYTE))
        file.seek(max(0, size - MEGABYTE))
        sha.update(file.read(MEGABYTE))
    return sha.hexdigest()


def of_files(model):
    """{file: digest} for a model's weights and other files that affect its output; {} if it is not on this machine."""
    path = place(model)
    if path is None or os.path.isfile(path):
        return {os.path.basename(path): digest(path)} if path else {}
    names = [name for name in sorted(os.listdir(path)) if re.search(f"{SETTINGS}|{WEIGHTS}", name)]
    if any(name.endswith(".safetensors") for name in names):  # transformers prefers them to pickle files
        names = [name for name in names if not name.endswith(".bin")]
    return {name: digest(os.path.join(path, name)) for name in names}


def of_adapter(path):
    """{file: digest} for an adapter, independent of the location of its base model."""
    folder = adapter_of(path)
    digests = of_files(folder)
    config = read_json(os.path.join(folder, "adapter_config.json"))
    config = {name: value for name, value in config.items() if name not in ("base_model_name_or_path", "revision")}
    return {**digests, "adapter_config.json": hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()}


def of_rows(task, data):
    """A summary of a task's problems: their number in each split, a digest of all, and the prefix of their ids."""
    sha = hashlib.sha256()
    counts = {}
    for split in ("train", "valid", "test"):
        problems = getattr(task, split)
        counts[split] = len(problems)
        for p in problems:
            prompt = getattr(p.prompt, "turns", p.prompt)  # chat messages with their roles
            values = [split, prompt, p.answer, p.solution, p.level]
            if hasattr(p, "row"):  # the user's reward function may use it
                values.append(p.row)
            sha.update(json.dumps(values, default=str).encode())
    return {**counts, "sha256": sha.hexdigest(), "name": data and os.path.basename(data)}


def of_run(args, task, generated):
    """{flag: digests} for all inputs of a run.  generated: whether the task generates its problems."""
    inputs = {"model": of_files(args.model), **task.code}
    if not generated:
        inputs["data"] = of_rows(task, args.data)
    if args.adapter:
        inputs["adapter"] = of_adapter(args.adapter)
    verifier = getattr(args, "verifier", None)
    if verifier:
        fitted = os.path.isdir(os.path.join(verifier, "adapter"))
        inputs["verifier"] = of_adapter(verifier) if fitted else of_files(verifier)
    return inputs


def differing(then, now):
    """Names of the files that differ between two sets {file: digest}. The name of a single file does not matter."""
    if len(then) == len(now) == 1 and {*then.values()} == {*now.values()}:
        return []
    return sorted(name for name in then.keys() | now.keys() if then.get(name) != now.get(name))


def listed(names):
    return ", ".join(names[:3]) + ", ..." * (len(names) > 3)


def change(then, now):
    """What has changed in `now`, as text; None if nothing has."""
    if "sha256" not in then:
        names = differing(then, now)
        return f"in {listed(names)}" if names else None
    if then["sha256"] == now["sha256"]:
        return None
    splits = ("train", "valid", "test")
    before, after = [", ".join(f"{rows[split]} {split}" for split in splits) for rows in (then, now)]
    if before == after:
        return "in the text of its problems"
    return f"in its problems ({before} then; {after} in it)"


def compare(then, now, flags, args, started):
    """Raises UserError that names what differs between the inputs at the start of a run (`then`, with its flags) and
    `now`.  started: whether the run has a checkpoint, which contains the weights of its adapter."""
    for name in (*PATHS, *CODE):
        if not then.get(name) or not now.get(name):
            continue
        begun = then[name]
        if name == "adapter" and started:
            begun = {file: now[name].get(file) if re.search(WEIGHTS, file) else value for file, value in begun.items()}
        difference = change(begun, now[name])
        if difference:
            before = flags.get(name)
            given = getattr(args, name)
            problem = f"the data set of task {args.task} has changed since this run began, {difference}"
            if before != given:
                problem = f"--{name} is {before} in args.json, and {given} differs from it {difference}"
            elif given:
                problem = f"--{name} {given} has changed since this run began, {difference}"
            raise UserError(f"--resume: {problem}: give what the run began with, or start a new run (--adapter)")


def rename(task, name, data):
    """Give the problems of a renamed file their old ids, because their seeds depend on these."""
    new = os.path.basename(data)
    for split in ("train", "valid", "test"):
        problems = [dataclasses.replace(p, id=name + p.id.removeprefix(new)) for p in getattr(task, split)]
        setattr(task, split, problems)


# ----------------------------------------------------------------------------------------------------------- its base

def other_base(folder, model):
    """Why the adapter in a folder does not belong to `model`, according to args.json of its run or its
    adapter_config.json; None if it does, or if they do not tell. Base models with equal weights count as the same."""
    run, inner = os.path.split(folder)
    begun = read_json(os.path.join(run, "args.json")) if inner == "adapter" else {}
    source = "args.json"
    base = begun.get("flags", {}).get("model")
    if not base:
        source = "adapter_config.json"
        base = base_of(folder)
    if not base:
        return None
    then = begun.get("contents", {}).get("model")
    if not then and (same_place(base, model) or is_hub_id(base) and last(base) == last(model)):
        return None
    then = weights(then or of_files(base))
    now = weights(of_files(model))
    if not then or not now:
        differs = is_hub_id(base) and is_hub_id(model) and base != model
        return f"it was trained on {base}, according to its {source}: use that as --model" if differs else None
    if {*now.values()} <= {*then.values()}:  # a folder may have several GGUF files, of which one is used
        return None
    names = listed(differing(then, now))
    return (f"it was trained on {base}, according to its {source}, which has other weights ({names}): use that as "
            "--model")


def weights(files):
    return {name: value for name, value in files.items() if re.search(WEIGHTS, name)}


def same_place(a, b):
    """Whether two names of a model refer to the same file or folder, or are the same hub id."""
    places = [os.path.realpath(place(name) or name) for name in (a, b)]
    return places[0] == places[1]


def is_hub_id(name):
    return not os.path.exists(name) and name not in EMBEDDED_MODELS and not looks_like_a_path(name)


def last(name):
    return name.rstrip("/").rpartition("/")[2].lower()
