"""Adapters of every kind that people bring: what sampler, scorer, both references and what is saved say is what plain
peft says of the folder, or the kind is refused with the reason."""
import json
import os
import shutil
import subprocess
import sys

import peft
import pytest
import torch
import transformers
from conftest import ROOT, load_policy
from safetensors.torch import load_file, save_file

import common
from support.errors import UserError
from support.folder import save_adapter

PROMPTS = [[5, 7, 2, 9, 11], [3, 4], [8, 6, 1, 12, 10, 2, 3]]
ATTENTION = ["q_proj", "v_proj"]
ALL = [*ATTENTION, "k_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def lora(**options):
    return peft.LoraConfig(task_type="CAUSAL_LM", **{"r": 4, "lora_alpha": 8, "target_modules": ALL, **options})


def of(name, **options):
    """A config of another kind on the layers of attention."""
    return getattr(peft, name)(task_type="CAUSAL_LM", **{"target_modules": ATTENTION, **options})


RIGHT = {
    "lora": lambda: lora(),
    "dropout": lambda: lora(lora_dropout=0.5),
    "rslora": lambda: lora(use_rslora=True),
    "dora": lambda: lora(use_dora=True),
    "patterns": lambda: lora(rank_pattern={"q_proj": 2}, alpha_pattern={"v_proj": 3}),
    "bias of B": lambda: lora(lora_bias=True),
    "gaussian": lambda: lora(init_lora_weights="gaussian"),
    "orthogonal": lambda: lora(init_lora_weights="orthogonal"),
    "eva": lambda: lora(init_lora_weights="eva", eva_config=peft.EvaConfig()),
    "pissa": lambda: lora(init_lora_weights="pissa"),
    "pissa, patterns": lambda: lora(init_lora_weights="pissa", rank_pattern={"q_proj": 2}, alpha_pattern={"v_proj": 3}),
    "pissa, head": lambda: lora(init_lora_weights="pissa", modules_to_save=["norm"]),
    "olora": lambda: lora(init_lora_weights="olora"),
    "olora, rslora": lambda: lora(init_lora_weights="olora", use_rslora=True),
    "some layers": lambda: lora(layers_to_transform=[1]),
    "head": lambda: lora(target_modules=[*ATTENTION, "lm_head"]),
    "embedding": lambda: lora(target_modules=[*ATTENTION, "embed_tokens"]),
    "embedding and head": lambda: lora(target_modules=[*ATTENTION, "embed_tokens", "lm_head"]),
    "modules to save": lambda: lora(modules_to_save=["lm_head"]),
    "embedding to save": lambda: lora(modules_to_save=["embed_tokens"]),
    "tokens of a LoRA": lambda: lora(trainable_token_indices=[3, 5]),
    "trainable tokens": lambda: peft.TrainableTokensConfig(
        task_type="CAUSAL_LM", target_modules=["embed_tokens"], token_indices=[3, 5]),
    "ia3": lambda: of("IA3Config", target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"]),
    "loha": lambda: of("LoHaConfig", r=4),
    "lokr": lambda: of("LoKrConfig", r=4),
    "vera": lambda: of("VeraConfig", r=8),
    "oft": lambda: of("OFTConfig", r=0, oft_block_size=8),
    "adalora": lambda: of("AdaLoraConfig", init_r=4, target_r=2, total_step=10),
    "fourierft": lambda: of("FourierFTConfig", n_frequency=20),
    "mica": lambda: lora(init_lora_weights="mica"),
    "parameters": lambda: lora(target_modules=[], target_parameters=["self_attn.q_proj.weight"]),
    "adaption prompt": lambda: peft.AdaptionPromptConfig(adapter_len=4, adapter_layers=1, task_type="CAUSAL_LM"),
    "boft": lambda: of("BOFTConfig"),
    "hra": lambda: of("HRAConfig"),
    "miss": lambda: of("MissConfig", r=4),
    "randlora": lambda: of("RandLoraConfig"),
    "road": lambda: of("RoadConfig", group_size=8),
    "shira": lambda: of("ShiraConfig", r=4),
    "vblora": lambda: of("VBLoRAConfig", vector_length=8, r=4, num_vectors=32, topk=2),
    "osf": lambda: of("OSFConfig"),
    "layer norm": lambda: peft.LNTuningConfig(task_type="CAUSAL_LM"),
}


def make_base(folder, tied=False, size=28):
    """A small llama of random weights, with the embedded tokenizer."""
    config = transformers.LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=size, max_position_embeddings=64, bos_token_id=None, eos_token_id=0, pad_token_id=0,
        tie_word_embeddings=tied)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    for p in model.parameters():
        if p.dim() > 1:
            torch.nn.init.normal_(p, std=0.2)
    model.save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(ROOT + "/models/tiny").save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    return {tied: make_base(tmp_path_factory.mktemp("base"), tied) for tied in (False, True)}


def load_base(folder):
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def shake(parameters, seed=1, scale=0.1):
    generator = torch.Generator().manual_seed(seed)
    for p in parameters:
        p.data.add_(torch.randn(p.shape, generator=generator) * scale)


def make_adapter(base, config, folder):
    """A folder as plain peft saves it, of an adapter that was trained a little."""
    torch.manual_seed(0)
    model = peft.get_peft_model(load_base(base), config)
    shake(p for p in model.parameters() if p.requires_grad)
    model.save_pretrained(folder)
    return str(folder)


def peft_model(base, folder):
    return peft.PeftModel.from_pretrained(load_base(base), folder).eval()


@torch.no_grad()
def row_logps(model, prompt, completion):
    """Of one row, without padding, cache or positions."""
    logits = model(input_ids=torch.tensor([prompt + completion])).logits[0]
    logps = torch.log_softmax(logits.float(), -1)[len(prompt) - 1:-1]
    return logps[range(len(completion)), completion]


def agree(policy, model):
    """Sampler, scorer (fast and plain) and one forward of `model` give the same log-probabilities."""
    drawn = common.sample(policy, PROMPTS, 4, [1, 2, 3], 1.0, 8)
    pairs = [(x, y) for x, ys in zip(PROMPTS, drawn.lists()) for y in ys]
    wanted = [row_logps(model, x, y) for x, y in pairs]
    for found, row in zip(drawn.logps.flatten(0, 1), wanted):
        assert torch.allclose(found[:len(row)], row, atol=1e-3)
    sums = torch.stack([row.double().sum() for row in wanted])
    for way in (policy.fast, None):
        kept, policy.fast = policy.fast, way
        found = common.sequence_logps(policy, [x for x, _ in pairs], [y for _, y in pairs])
        policy.fast = kept
        assert torch.allclose(found, sums, atol=2e-3)


TIED = ("pissa", "head", "embedding", "embedding and head", "modules to save")  # also tried where both are one table


@pytest.mark.parametrize("kind,tied", [*((kind, False) for kind in RIGHT), *((kind, True) for kind in TIED)])
def test_equals_plain_peft(kind, tied, bases, tmp_path):
    base = bases[tied]
    folder = make_adapter(base, RIGHT[kind](), tmp_path / "made")
    plain, alone = peft_model(base, folder), load_base(base)
    policy = load_policy(base, adapter=folder, reference="start")
    if kind != "adaption prompt":  # which keeps the tensors of the adapter that is off out of the model
        assert len(policy.start_parameters()) >= len(policy.parameters())
    agree(policy, plain)
    shake(policy.parameters(), seed=2)
    with policy.reference():
        agree(policy, plain)  # the start is a copy of its own
    policy.reference_kind = "base"
    with policy.reference():
        agree(policy, alone)
    save_adapter(policy.model, str(tmp_path / "saved"))
    again = peft_model(base, str(tmp_path / "saved"))
    agree(policy, again)
    resumed = load_policy(base, adapter=str(tmp_path / "saved"), reference="base")
    agree(resumed, again)
    with resumed.reference():
        agree(resumed, alone)


PROMPT = {"num_virtual_tokens": 4, "task_type": "CAUSAL_LM"}
REFUSED = {
    "pissa by chance": (lambda: lora(init_lora_weights="pissa_niter_4"), "random decomposition"),
    "pissa and dora": (lambda: lora(init_lora_weights="pissa", use_dora=True), "with DoRA"),
    "alora": (lambda: lora(alora_invocation_tokens=[3, 4]), "activated LoRA"),
    "biases": (lambda: lora(bias="lora_only"), "biases of the base"),
    "prompt tuning": (lambda: peft.PromptTuningConfig(**PROMPT), "PROMPT_TUNING adds trained vectors"),
    "prefix tuning": (lambda: peft.PrefixTuningConfig(**PROMPT), "PREFIX_TUNING adds trained vectors"),
    "p-tuning": (lambda: peft.PromptEncoderConfig(**PROMPT, encoder_hidden_size=32), "P_TUNING adds trained vectors"),
    "replication": (lambda: lora(layer_replication=[[0, 2], [1, 2]]), "changes the base"),
    "kasa": (lambda: lora(kasa_config=peft.tuners.lora.config.KasaConfig()), "changes the base"),
    "lily": (lambda: of("LilyConfig"), "depend on later tokens or on the rest of the batch"),
    "cartridge": (lambda: peft.CartridgeConfig(**PROMPT), "CARTRIDGE adds trained vectors"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_refused_with_the_reason(kind, bases, tmp_path):
    make, reason = REFUSED[kind]
    folder = make_adapter(bases[False], make(), tmp_path / "made")
    with pytest.raises(UserError, match="cannot use adapter") as found:
        load_policy(bases[False], adapter=folder)
    assert reason in str(found.value)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize("init", ["corda", "lora_ga", "loftq", "xlora"])
def test_refused_by_its_config(init, bases, tmp_path):
    """Kinds that need data or other packages to be made."""
    folder = make_adapter(bases[False], lora(), tmp_path / "made")
    path = os.path.join(folder, "adapter_config.json")
    with open(path) as file:
        config = json.load(file)
    if init == "xlora":
        config = {"peft_type": "XLORA", "task_type": "CAUSAL_LM", "hidden_size": 32, "adapters": {"1": folder}}
    else:
        config |= {"init_lora_weights": init, "loftq_config": {"loftq_bits": 4, "loftq_iter": 1}}
    with open(path, "w") as file:
        json.dump(config, file)
    with pytest.raises(UserError, match="cannot use adapter") as found:
        load_policy(bases[False], adapter=folder)
    reasons = {"loftq": "LoftQ replaced the base", "xlora": "peft's wrapper around"}
    assert reasons.get(init, "based on data") in str(found.value)


@pytest.mark.parametrize("change,words", [
    (lambda folder: edit(folder, peft_type="FUTURE"), "does not support its kind, 'FUTURE'"),
    (lambda folder: os.remove(folder / "adapter_model.safetensors"), "it has no weights"),
    (lambda folder: (folder / "adapter_model.safetensors").write_text("version https://git-lfs"), "git-lfs pointer"),
    (lambda folder: (folder / "adapter_config.json").write_text("{"), "adapter_config.json is not valid JSON"),
    (lambda folder: shutil.copytree(folder, folder / "policy") and os.remove(folder / "adapter_config.json"),
     "it has no adapter_config.json, but .*policy has: give that"),
    (lambda folder: fill(folder, float("nan")), "weight .*lora_A.weight has values that are not finite")])
def test_damaged_folders(change, words, bases, tmp_path):
    made = make_adapter(bases[False], lora(), tmp_path / "made")
    change(tmp_path / "made")
    with pytest.raises(UserError, match=words) as found:
        load_policy(bases[False], adapter=made)
    assert "\n" not in str(found.value)


def test_a_chat_template_of_its_own(bases, tmp_path):
    """As TRL saves it with the adapter; said where it says another thing than that of the base."""
    made = make_adapter(bases[False], lora(), tmp_path / "made")
    words = "the adapter's folder has another one"
    tokenizer = transformers.AutoTokenizer.from_pretrained(bases[False])
    tokenizer.save_pretrained(made)
    assert words not in load_policy(bases[False], adapter=made).note
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}>"
    tokenizer.save_pretrained(made)
    assert words in load_policy(bases[False], adapter=made).note
    base = shutil.copytree(bases[False], tmp_path / "base")
    for template, said in ((tokenizer.chat_template + "{# alike #}", False), (tokenizer.chat_template + ">", True)):
        tokenizer.chat_template = template
        tokenizer.save_pretrained(base)
        assert (words in load_policy(str(base), adapter=made).note) == said


def edit(folder, **entries):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def fill(folder, value):
    """Put a number into the first tensor."""
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    tensors[min(tensors)][0, 0] = value
    save_file(tensors, path)


def test_quantised_base_of_a_changing_adapter(bases, tmp_path):
    folder = make_adapter(bases[False], lora(init_lora_weights="pissa"), tmp_path / "made")
    with pytest.raises(UserError, match="--bits 32"):
        load_policy(bases[False], bits=8, adapter=folder)


def test_added_tokens_are_refused(bases, tmp_path):
    base = bases[False]
    for name, options in {"resized": {}, "saved": {"modules_to_save": ["embed_tokens", "lm_head"]}}.items():
        lm = load_base(base)
        lm.resize_token_embeddings(31)
        model = peft.get_peft_model(lm, lora(**options))
        model.save_pretrained(tmp_path / name, save_embedding_layers=True)
        with pytest.raises(UserError, match="31 tokens, but the base has 28"):
            load_policy(base, adapter=str(tmp_path / name))


def test_table_of_its_own_is_refused(bases, tmp_path):
    """peft overwrites the base's embedding with what the folder has, trained or not."""
    lm = load_base(bases[False])
    lm.model.embed_tokens.weight.data += 0.1
    model = peft.get_peft_model(lm, lora(target_modules=[*ATTENTION, "embed_tokens"]))
    model.save_pretrained(tmp_path / "made")
    with pytest.raises(UserError, match="another embedding table for model.embed_tokens"):
        load_policy(bases[False], adapter=str(tmp_path / "made"))


def test_other_layers_are_refused_as_before(bases, tmp_path):
    folder = make_adapter(bases[False], lora(), tmp_path / "made")
    path = os.path.join(folder, "adapter_config.json")
    with open(path) as file:
        config = json.load(file)
    with open(path, "w") as file:
        json.dump(config | {"target_modules": ["q_proj"]}, file)
    with pytest.raises(UserError, match="its layers are not those of this model"):
        load_policy(bases[False], adapter=folder)


def test_saved_adapter_finds_its_base_from_anywhere(bases, tmp_path, monkeypatch):
    """Also where it was made on a base that is elsewhere now."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(bases[False], "base")
    shutil.copytree(bases[False], "left")
    made = make_adapter("left", lora(), "made")
    os.rename("left", "moved")
    wanted = []
    for i, (name, adapter) in enumerate((("base", None), ("tiny", None), ("./moved", made))):
        policy = load_policy(name, adapter=adapter)
        shake(policy.parameters(), seed=2)
        save_adapter(policy.model, f"saved{i}")
        with torch.no_grad():
            wanted.append(policy.lm(input_ids=torch.tensor([[5, 7, 2, 9]])).logits.double().sum().item())
    code = f"""
import peft, torch
for i in range({len(wanted)}):
    model = peft.AutoPeftModelForCausalLM.from_pretrained({str(tmp_path)!r} + f"/saved{{i}}").eval()
    with torch.no_grad():
        print(model(input_ids=torch.tensor([[5, 7, 2, 9]])).logits.double().sum().item())
"""
    os.makedirs("elsewhere")
    done = subprocess.run([sys.executable, "-c", code], cwd="elsewhere", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert [float(line) for line in done.stdout.split()] == pytest.approx(wanted, abs=1e-3)


def test_a_hub_id_stays_as_it_is(bases):
    from support import adapters
    policy = load_policy(bases[False])
    for name, wanted in {"org/name": "org/name", "some/where/m.gguf": os.path.abspath("some/where")}.items():
        adapters.name_base(policy.model, name)
        assert policy.model.peft_config["default"].base_model_name_or_path == wanted


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_run_from_a_changing_adapter_resumes(init, bases, tmp_path):
    """A run that begins at a PiSSA adapter and is stopped goes on to the same numbers."""
    import bon_sft
    folder = make_adapter(bases[False], lora(init_lora_weights=init), tmp_path / "made")
    flags = ["--model", bases[False], "--adapter", folder, "--task", "countdown", "--prompts", "2", "--n", "2",
             "--eval-samples", "0", "--save-every", "1"]
    whole, cut = str(tmp_path / "whole"), str(tmp_path / "cut")
    bon_sft.main([*flags, "--steps", "3", "--out", whole])
    bon_sft.main([*flags, "--steps", "3", "--out", cut])
    for path in (os.path.join(cut, "state.pt"), os.path.join(cut, "result.json")):
        os.remove(path)
    os.replace(os.path.join(cut, "state.previous.pt"), os.path.join(cut, "state.pt"))
    bon_sft.main(["--out", cut, "--resume"])
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        with open(os.path.join(whole, "adapter", name), "rb") as a, open(os.path.join(cut, "adapter", name), "rb") as b:
            assert a.read() == b.read()
