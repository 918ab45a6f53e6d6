"""Model cards: README.md of a run's adapter, and of a model merged by support/merge.py."""
import json
import os
import re
import shlex

from support import contents
from support.output import to_json

PLACE = ("out", "resume")  # flags about the location of a run, not its contents
NEGATED = ("chat", "normalise")  # flags that are switched off with --no-...
OBJECTIVE = ("objective", "variant", "mode", "operator", "weight", "estimator", "target", "k", "n")  # of the scripts
TRAINING = ("steps", "prompts", "samples", "lr", "temperature", "seed")
LONGEST = 300  # maximum length of the example prompt, in characters

QUANTISED = {4: 'load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True',
             8: "load_in_8bit=True, llm_int8_threshold=0.0"}
AGAIN = ("The base was quantised to {bits} bits during training. transformers cannot quantise a GGUF file that way, so "
         "the code below loads a slightly different model; `python -m support.merge` writes the model that was "
         "trained.\n\n")


def facts(run, result=None):
    """The facts in the files of a run folder: {"script", "flags", "chat", "prompts", "result"}, empty if there are
    none.  result: the contents of result.json, if it is not written yet."""
    args = contents.read_json(os.path.join(run, "args.json"))
    flags = args.get("flags")
    if not isinstance(flags, dict):
        flags = {}
    if result is None:
        result = contents.read_json(os.path.join(run, "result.json"))
    return {"script": args.get("script"),
            "flags": flags,
            "chat": args.get("chat"),
            "prompts": prompts(run),
            "result": result}


def prompts(folder, most=8):
    """Up to `most` distinct prompts of samples.jsonl, latest first."""
    try:
        with open(os.path.join(folder, "samples.jsonl")) as file:
            shown = [str(json.loads(line)["prompt"]) for line in file]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return []
    return list(dict.fromkeys(reversed(shown)))[:most]


def of_adapter(info):
    """The card of an adapter, from the facts of its run."""
    flags = info["flags"]
    bits = flags.get("bits")
    file = os.path.basename(flags.get("model") or "")
    gguf = ""
    options = ""
    precision = []
    note = ""
    imports = "from transformers import AutoTokenizer"
    if file.endswith(".gguf"):
        gguf = options = f", gguf_file={to_json(file)}"
        note = AGAIN.format(bits=bits) if bits in QUANTISED else ""
    elif bits in QUANTISED:
        imports += ", BitsAndBytesConfig"
        precision = [f"precision = BitsAndBytesConfig({QUANTISED[bits]})"]
        options = ", quantization_config=precision"
    dtype = "torch.bfloat16" if bits == 16 else "torch.float32"
    lines = ["import torch", "from peft import AutoPeftModelForCausalLM, PeftConfig", imports, "",
             'folder = "."',
             "base = PeftConfig.from_pretrained(folder).base_model_name_or_path",
             f"tokenizer = AutoTokenizer.from_pretrained(base{gguf})",
             *precision,
             f"model = AutoPeftModelForCausalLM.from_pretrained(folder, dtype={dtype}{options})"]
    return page("peft", info, note, lines)


def of_model(info, note):
    """The card of a merged model, from the facts of the run that trained its adapter.  note: how it was made."""
    lines = ["import torch", "from transformers import AutoModelForCausalLM, AutoTokenizer", "",
             'folder = "."',
             "tokenizer = AutoTokenizer.from_pretrained(folder)",
             "model = AutoModelForCausalLM.from_pretrained(folder)"]
    return page("transformers", info, note + "\n\n", lines)


def page(library, info, note, lines):
    """A complete card.  lines: Python code that creates `tokenizer` and `model`."""
    code = "\n".join([*lines, *sampling(info)])
    temperature = info["flags"].get("temperature", 1.0)
    return (f"{front(library, info)}{title(info)}{note}{table(info)}{figures(info)}{how(info)}"
            "Run this in the folder to sample a completion from the trained distribution, at temperature "
            f"{temperature:g}:\n\n```python\n{code}\n```\n")


def front(library, info):
    """The metadata for a hub. base_model is left out unless it is a hub id."""
    base = info["flags"].get("model") or ""
    base_line = f"base_model: {base}\n" * is_hub_id(base)
    return f"---\nlibrary_name: {library}\npipeline_tag: text-generation\n{base_line}---\n\n"


def is_hub_id(model):
    return bool(re.fullmatch(r"[\w.-]+/[\w.-]+", model)) and not os.path.exists(model) and not model.endswith(".gguf")


def title(info):
    if not info["script"]:
        return "# Adapter without a run folder\n\n"
    return f"# {info['script']} on {task_of(info['flags'])}\n\n"


def task_of(flags):
    """The task, data and reward of a run, without paths."""
    task = os.path.basename(flags.get("task") or "own problems")
    data = f" {os.path.basename(flags['data'])}" if flags.get("data") else ""
    judge = f", judged by {os.path.basename(flags['reward'])}" if flags.get("reward") else ""
    return f"{task}{data}{judge}"


def table(info):
    """A table of what was trained and how."""
    flags = info["flags"]
    if not info["script"]:
        return ""
    model = flags.get("model") or ""
    base = model if is_hub_id(model) else os.path.basename(os.path.normpath(model))
    objective = [f"{name} {os.path.basename(str(flags[name]))}" for name in OBJECTIVE if flags.get(name) is not None]
    training = [f"{name} {flags.get(name)}" for name in TRAINING]
    rows = {"base": f"{base}, {flags.get('bits')} bits during training",
            "script": f"`{info['script']}.py` of train-as-you-test",
            "objective": ", ".join(objective),
            "task": task_of(flags),
            "training": ", ".join(training)}
    return "| | |\n|---|---|\n" + "".join(f"| {name} | {value} |\n" for name, value in rows.items()) + "\n"


def figures(info):
    """The results before and after training, mean and standard error over problems."""
    rows = {name: info["result"][name] for name in ("before", "after") if name in info["result"]}
    if not rows:
        return ""
    budget = info["flags"].get("k") or info["flags"].get("n")
    budget = str(budget).split(":")[0]  # a schedule such as 8:1 starts with the largest k
    names = [name for name in rows["before"] if name in {"pass@1", "max@1", "kl"} or name.endswith(f"@{budget}")]
    lines = ["| test problems | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for row, cells in rows.items():
        values = [f"{cells[name]['mean']:.3f} ±{cells[name]['se']:.3f}" for name in names]
        lines.append(f"| {row} | " + " | ".join(values) + " |")
    return "\n".join(lines) + "\n\n± is the standard error over problems; kl is relative to the base, in nats.\n\n"


def how(info):
    return f"```bash\n{command(info['script'], info['flags'])}\n```\n\n" if info["script"] else ""


def command(script, flags):
    """The command that repeats a run. It has all flags with a value, also defaults, which may change later."""
    return " ".join(["python", f"{script}.py", *words_of(flags)])


def words_of(flags):
    """Flags {name: value} as words of a command line, quoted for a shell, without those of PLACE."""
    words = []
    for name, value in flags.items():
        flag = f"--{name.replace('_', '-')}"
        if value is None or name in PLACE:
            continue
        if value is False:
            words += [f"--no{flag[1:]}"] * (name in NEGATED)
        elif value is True:
            words.append(flag)
        elif str(value).startswith("-"):
            words.append(shlex.quote(f"{flag}={value}"))
        else:
            words += [flag, shlex.quote(str(value))]
    return words


def sampling(info):
    """Code that draws one completion of a prompt of the run, as lines."""
    flags = info["flags"]
    prompt = next((text for text in info["prompts"] if len(text) <= LONGEST), "Your problem")
    lines = [f"prompt = {to_json(prompt)}"]
    special = ""
    if info["chat"]:
        turns = [{"role": "system", "content": flags["system"]}] if flags.get("system") else []
        lines.append(f'turns = {to_json(turns)} + [{{"role": "user", "content": prompt}}]')
        lines.append("prompt = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)")
        special = ", add_special_tokens=False"
    options = f"max_new_tokens={flags.get('max_new_tokens') or 64}, do_sample=True,"
    temperature = flags.get("temperature", 1.0)
    return [*lines,
            f'ids = tokenizer(prompt, return_tensors="pt"{special})["input_ids"]',
            f"out = model.generate(ids, {options}",
            f"                     temperature={temperature}, top_k=0, top_p=1.0)",
            "print(tokenizer.decode(out[0]))"]
