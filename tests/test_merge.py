"""What support/merge.py writes says what the trained policy says, and nothing is left where it refuses; model cards."""
import errno
import importlib
import json
import os
import re
import shlex
import shutil
import types

import pytest
import torch
import transformers
from conftest import load_policy
from safetensors.torch import load_file, save_file
from test_adapters import RIGHT, TIED, load_base, lora, make_adapter, make_base, row_logps
from test_real import write_gguf
from test_scripts import readme, run

from support import adapters, card, load, merge
from support.errors import UserError

ROWS = [([5, 7, 2, 9], [3, 4, 8, 1]), ([6, 1, 3], [2, 2, 5, 9, 0])]
STEPS = ["--steps", 2, "--prompts", 2, "--samples", 4, "--k", 2, "--eval-samples", 2, "--eval-problems", 2,
         "--lr", 0.02]
NOT_BY_PEFT = {"bias of B": "the base layer has no bias", "adaption prompt": "no attribute 'merge_and_unload'"}
TABLES = (*TIED, "lora", "embedding to save", "tokens of a LoRA", "trainable tokens")
LIKE_LORA = ("dropout", "patterns", "gaussian", "orthogonal", "eva", "mica", "some layers", "olora", "olora, rslora",
             "pissa, patterns", "pissa, head", "adalora", *TIED[2:])  # tied, or merged by the same lines of peft
SHARED = ("pissa", "lora", "tokens of a LoRA", "trainable tokens")  # after which embedding and head are still one table


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    return {tied: make_base(tmp_path_factory.mktemp("base"), tied) for tied in (False, True)}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Run folders by the kind of their base. An adapter of one precision is one of any other, too."""
    import ppo_passk
    place = tmp_path_factory.mktemp("runs")
    write_gguf(place / "model.gguf")
    problems = [{"prompt": f"{a} plus {b} is", "answer": str(a + b)} for a in range(9) for b in range(9)]
    (place / "sums.jsonl").write_text("".join(json.dumps(p) + "\n" for p in problems))
    own = ["--model", place / "model.gguf", "--data", place / "sums.jsonl", "--system", "Count.", "--max-new-tokens", 6]
    for name, flags in {"32": ["--task", "countdown"], "gguf": own}.items():
        code, _, err = run(ppo_passk.main, *STEPS, *flags, "--out", place / name)
        assert code == 0, err
        shake(place / name / "adapter" / "adapter_model.safetensors")  # two steps move it little
    for name, kind, bits in (("4", "32", 4), ("8", "32", 8), ("16", "32", 16), ("gguf in 4 bits", "gguf", 4)):
        shutil.copytree(place / kind, place / name)
        path = place / name / "args.json"
        found = json.loads(path.read_text())
        found["flags"]["bits"] = bits
        path.write_text(json.dumps(found))
        text = card.of_adapter(card.facts(place / name))
        (place / name / "adapter" / "README.md").write_text(text)
    return place


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(merge, "SAMPLES", 8)


def shake(path):
    weights = load_file(path)
    for name, w in weights.items():
        weights[name] = w + 0.05 * torch.randn(w.shape, generator=torch.Generator().manual_seed(len(name)))
    save_file(weights, path)


def logps(lm):
    return [row_logps(lm, *row) for row in ROWS]


def gap(a, b):
    return max((x - y).abs().max().item() for x, y in zip(a, b))


def reloaded(folder):
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def flags_of(folder):
    return json.loads((folder / "args.json").read_text())["flags"]


# ------------------------------------------------------------------------------------------------------------- merging

@pytest.mark.parametrize("kind,tied", [*((kind, False) for kind in RIGHT if kind not in LIKE_LORA),
                                       *((kind, True) for kind in TABLES)])
def test_every_kind(kind, tied, bases, tmp_path):
    """Merged, and still so when it is loaded again, or refused where peft cannot do it."""
    folder = make_adapter(bases[tied], RIGHT[kind](), tmp_path / "made")
    lm = load_base(bases[tied])
    wrapped = adapters.put_on(lm, folder).eval()
    before = logps(lm)
    assert gap(before, logps(load_base(bases[tied]))) > 0.01
    if kind in NOT_BY_PEFT:
        with pytest.raises(UserError, match="peft cannot merge adapter") as found:
            merge.merged(wrapped, folder)
        assert NOT_BY_PEFT[kind] in str(found.value) and "\n" not in str(found.value)
        return
    lm = merge.merged(wrapped, folder)
    assert gap(before, logps(lm)) < 1e-4
    lm.save_pretrained(tmp_path / "merged")
    again = reloaded(tmp_path / "merged")
    assert gap(before, logps(again)) < 1e-4
    one = again.get_input_embeddings().weight is again.get_output_embeddings().weight
    assert one == again.config.tie_word_embeddings == (tied and kind in SHARED)
    names = {name for name, _ in again.named_parameters(remove_duplicate=False)}
    assert names == {name for name, _ in load_base(bases[tied]).named_parameters(remove_duplicate=False)}


@pytest.mark.parametrize("kind,dtype", [("32", "bfloat16"), ("16", "float32"), ("8", "float32"),
                                        ("gguf", "float32"), ("gguf in 4 bits", "float32")])
def test_every_base(kind, dtype, runs, tmp_path, monkeypatch):
    """The folder alone says what the run's policy says, its card's lines load it, and it has forgotten how its base was
    kept."""
    count = 64 if kind == "32" else 16
    monkeypatch.setattr(merge, "SAMPLES", count)
    code, out, err = run(merge.main, runs / kind, tmp_path / "m", "--dtype", dtype)
    assert code == 0 and not err and f" {count} samples" in out, err
    flags = flags_of(runs / kind)
    merged, = [line for line in out.split("\n") if line.startswith("Merged")]
    assert ("de-quantised" in merged) == (kind not in ("32", "16"))
    policy = load_policy(flags["model"], flags["bits"], adapter=str(runs / kind))
    lm = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    assert lm.dtype == getattr(torch, dtype)
    close = gap(logps(policy.lm), logps(lm))
    assert close < (1e-3 if kind.startswith("gguf") else 0.5)  # bf16 and int8 round as they are stored, or compute
    with policy.model.disable_adapter():
        assert gap(logps(policy.lm), logps(lm)) > 3 * close
    for name in os.listdir(tmp_path / "m"):
        path = tmp_path / "m" / name
        text = " ".join(load_file(path)) if "safetensors" in name else path.read_text().lower()
        assert name == "README.md" or not re.search("gguf|quant|bitsandbytes|nf4|scb|lora", text), name
        assert path.stat().st_mode == (tmp_path / "m" / "config.json").stat().st_mode
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "m")
    assert tokenizer.chat_template == policy.tokenizer.chat_template
    assert bool(tokenizer.chat_template) == ("gguf" in kind)
    assert transformers.GenerationConfig.from_pretrained(tmp_path / "m").eos_token_id == policy.stop
    assert os.listdir(tmp_path) == ["m"]
    ours = executed(tmp_path / "m", monkeypatch)
    assert gap(logps(ours["model"]), logps(lm)) < 1e-6
    assert ours["ids"].tolist() == [prompt_of(policy, flags, ours["turns"] if "gguf" in kind else None, ours)]


def prompt_of(policy, flags, turns, ours):
    """Token ids of the card's prompt as the run encodes it."""
    policy.system = flags["system"]
    prompt = turns[-1]["content"] if turns else ours["prompt"]
    return policy.encode(prompt, bool(turns))


def executed(folder, monkeypatch):
    """The names that the lines of a model card leave behind."""
    monkeypatch.chdir(folder)
    names, code = {}, re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)[1]
    exec(code, names)
    assert names["out"].shape[1] > names["ids"].shape[1]
    return names


def test_an_adapter_without_a_run(few, bases, tmp_path):
    """Its config names the base; what it was trained at is not known."""
    folder = make_adapter(bases[True], lora(), tmp_path / "made")
    merge.merge(folder, str(tmp_path / "deep" / "m"), "float32")
    lm = load_base(bases[True])
    adapters.put_on(lm, folder)
    assert gap(logps(lm), logps(reloaded(tmp_path / "deep" / "m"))) < 1e-4
    config = json.loads((tmp_path / "made" / "adapter_config.json").read_text())
    (tmp_path / "made" / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": None}))
    with pytest.raises(UserError, match="names no base"):
        merge.merge(folder, str(tmp_path / "other"))
    merge.merge(folder, str(tmp_path / "other"), model=bases[True])


def test_a_base_of_another_generation_config(few, bases, tmp_path):
    """Settings of sampling that transformers loads and does not save; what ended a completion ends one there, too."""
    base = shutil.copytree(bases[False], tmp_path / "base")
    (base / "generation_config.json").write_text(json.dumps({"temperature": 0.6, "top_p": 0.9, "eos_token_id": [3, 0]}))
    folder = make_adapter(str(base), lora(), tmp_path / "made")
    merge.merge(folder, str(tmp_path / "m"))
    found = json.loads((tmp_path / "m" / "generation_config.json").read_text())
    assert found["temperature"] == 0.6 and found["do_sample"] and found["eos_token_id"] == [0, 3]


# ------------------------------------------------------------------------------------------------------------ refusals


def shaken(amount):
    whole = merge.merged

    def other(*args):
        lm = whole(*args)
        for p in lm.parameters():
            p.data += amount * torch.randn(p.shape, generator=torch.Generator().manual_seed(1))
        return lm
    return other


def refused(runs, tmp_path, *words, kind="32", flags=()):
    """One sentence with these words; what was there is there, and nothing else."""
    before = sorted(os.listdir(tmp_path))
    code, out, err = run(merge.main, runs / kind, tmp_path / "m", *flags)
    assert code == 2 and err.count("\n") == 1, err
    assert all(word in err for word in words), err
    assert sorted(os.listdir(tmp_path)) == before


@pytest.mark.parametrize("dtype,amount", [("float32", 0.002), ("bfloat16", 0.1)])
def test_other_weights_are_refused(dtype, amount, few, runs, tmp_path, monkeypatch):
    monkeypatch.setattr(merge, "merged", shaken(amount))
    refused(runs, tmp_path, f"the merged model in {dtype} gives the same samples other", flags=["--dtype", dtype])


def test_a_base_that_is_de_quantised_wrongly_is_refused(few, runs, tmp_path, monkeypatch):
    monkeypatch.setattr(load, "without_trace", lambda lm: lm.apply(scaled))
    refused(runs, tmp_path, "the base in float32 gives the same samples other", kind="4")


def scaled(module):
    if isinstance(module, torch.nn.Linear):
        module.weight.data *= 1.05


def test_a_tokenizer_that_changes_is_refused(few, runs, tmp_path, monkeypatch):
    whole = merge.save

    def other(lm, policy, place, folder):
        whole(lm, policy, place, folder)
        os.remove(os.path.join(place, "chat_template.jinja"))
    monkeypatch.setattr(merge, "save", other)
    refused(runs, tmp_path, "the tokenizer is another one", kind="gguf")


def test_what_is_there_stays(runs, tmp_path, monkeypatch):
    monkeypatch.setattr(merge.common, "load_policy", None)  # said before anything is loaded
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "notes").write_text("mine")
    refused(runs, tmp_path, "is not empty")
    assert os.listdir(tmp_path / "m") == ["notes"]
    shutil.rmtree(tmp_path / "m")
    (tmp_path / "m").write_text("mine")
    refused(runs, tmp_path, "is there already")
    assert (tmp_path / "m").read_text() == "mine"


def test_no_room(few, runs, tmp_path, monkeypatch):
    """On disk, as said before and as met while writing, and in memory, as torch and Python say it."""
    def fails(error):
        def raises(*_, **__):
            raise error
        return raises
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: types.SimpleNamespace(free=1000))
        refused(runs, tmp_path, "GB of its disk are free")
    full = OSError(errno.ENOSPC, "No space left on device")
    for name, error, words in (("save_pretrained", full, "No space left"), ("to", MemoryError(), "out of memory"),
                               ("to", RuntimeError("DefaultCPUAllocator: can't allocate memory"), "out of memory")):
        with monkeypatch.context() as patch:
            patch.setattr(transformers.PreTrainedModel, name, fails(error))
            refused(runs, tmp_path, words)
    with monkeypatch.context() as patch:
        patch.setattr(load, "free_memory", lambda _: 1000)
        refused(runs, tmp_path, "GB are free: take a larger machine", kind="4")
    (tmp_path / "m").mkdir()  # an empty one may be there already
    assert run(merge.main, runs / "32", tmp_path / "m")[0] == 0


# -------------------------------------------------------------------------------------------------------------- cards

@pytest.mark.parametrize("kind", ["32", "4", "gguf"])
def test_the_lines_of_an_adapters_card(kind, runs, monkeypatch):
    flags = flags_of(runs / kind)
    policy = load_policy(flags["model"], flags["bits"], adapter=str(runs / kind))
    ours = executed(runs / kind / "adapter", monkeypatch)
    close = gap(logps(policy.lm), logps(ours["model"].eval()))
    assert close < (0.3 if kind == "4" else 1e-3)  # where it can, bitsandbytes multiplies in bf16 on a CPU
    with policy.model.disable_adapter():
        assert gap(logps(policy.lm), logps(ours["model"])) > 3 * close
    assert ours["ids"].tolist() == [prompt_of(policy, flags, ours.get("turns"), ours)]
    assert ("turns" in ours) == (kind == "gguf")


def test_what_a_card_says(runs):
    text = (runs / "gguf" / "adapter" / "README.md").read_text()
    result = json.loads((runs / "gguf" / "result.json").read_text())
    for row in ("before", "after"):
        cell = result[row]["pass@2"]
        assert re.search(rf"\| {row} \|.* {cell['mean']:.3f} ±{cell['se']:.3f} \|", text)
    for words in ("base | model.gguf, 32 bits", "`ppo_passk.py`", "objective passk", "k 2", "own problems sums.jsonl"):
        assert words in text, words
    assert "a little different" not in text
    assert "a little different" in (runs / "gguf in 4 bits" / "adapter" / "README.md").read_text()
    assert "\nbase_model:" not in text  # which is for ids of a hub
    named = {**card.facts(runs / "32"), "flags": {**flags_of(runs / "32"), "model": "org/some-model"}}
    assert "\nbase_model: org/some-model\n" in card.of_adapter(named)


@pytest.mark.parametrize("script", ["ppo_passk", "bon_sft", "bon_rl", "cat_passk", "cat_majority", "cat_bon"])
def test_the_command_repeats_the_run(script):
    parser = importlib.import_module(script).parser()
    for given in ([], ["--no-chat", "--plain", "--data", "my own.jsonl", "--system", "-be \"brief\"", "--lr", "1e-05"],
                  ["--chat", "--seed", "-1"]):
        flags = vars(parser.parse_args([*given, "--out", "here", "--resume"]))
        python, name, *words = shlex.split(card.command(script, flags))
        assert (python, name) == ("python", f"{script}.py")
        assert vars(parser.parse_args(words)) == {**flags, "out": None, "resume": False}


def test_the_command_of_the_readme():
    commands = re.findall(r"python -m support\.merge ([^\n#`]+)", readme())
    assert commands
    for words in commands:
        merge.parse_args(words.split())
