"""What load_base refuses and takes: names and sizes of weights, their numbers, checkpoints quantised already."""
import json
import os
import re
import shutil
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT, load_policy
from safetensors.torch import load_file, save_file
from test_real import write_gguf
from test_scripts import run

import common
import evaluate
from support import contents, load
from support.errors import UserError
from support.verifier import load_verifier

PROMPT = "c7,3,2,9:23>"


def tokenizer():
    import transformers
    return transformers.AutoTokenizer.from_pretrained(os.path.join(ROOT, "models", "tiny"))


def config_of(kind, **more):
    import transformers
    small = dict(
        vocab_size=len(tokenizer()), hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, bos_token_id=None, eos_token_id=0, pad_token_id=0)
    if kind == "gpt2":
        return transformers.GPT2Config(
            vocab_size=len(tokenizer()), n_embd=64, n_layer=2, n_head=4, n_positions=128, bos_token_id=0,
            eos_token_id=0, **more)
    return {"llama": transformers.LlamaConfig, "qwen2": transformers.Qwen2Config}[kind](**small | more)


def build(config, auto="AutoModelForCausalLM"):
    """A random model whose matrices have a standard deviation of 0.05."""
    import transformers
    torch.manual_seed(0)
    model = getattr(transformers, auto).from_config(config)
    for p in model.parameters():
        if p.dim() > 1:
            torch.nn.init.normal_(p, std=0.05)
    return model.eval()


def save(folder, model, **options):
    model.save_pretrained(folder, **options)
    tokenizer().save_pretrained(folder)
    return str(folder)


def edit(folder, change=None, **settings):
    """Rewrite the weights of a folder by change(tensors), and entries of its config."""
    weights, config = (os.path.join(folder, name) for name in ("model.safetensors", "config.json"))
    if change:
        tensors = load_file(weights)
        tensors = change(tensors) or tensors
        save_file({name: t.contiguous() for name, t in tensors.items()}, weights, metadata={"format": "pt"})
    with open(config) as file:
        held = json.load(file) | settings
    with open(config, "w") as file:
        json.dump(held, file)
    return folder


def refused(folder, *words, bits=32):
    """The message of a refusal: one sentence, short, with these words."""
    with pytest.raises(UserError) as caught:
        load_policy(str(folder), bits=bits)
    said = str(caught.value)
    assert len(said) < 700 and "\n" not in said and ". " not in said
    for word in words:
        assert word in said, said
    return said


@torch.no_grad()
def logits_of(lm):
    return lm(torch.tensor([tokenizer()(PROMPT)["input_ids"]])).logits.float()


# ------------------------------------------------------------------------------------------------------------- names

def renamed(before, after):
    return lambda tensors: {re.sub(before, after, name): t for name, t in tensors.items()}


def dropped(*parts):
    return lambda tensors: {name: t for name, t in tensors.items() if not any(part in name for part in parts)}


def added(*names):
    def change(tensors):
        for name in names:
            tensors[name] = torch.ones(2, 2)
    return change


UP = "model.layers.1.mlp.up_proj.weight"


@pytest.mark.parametrize("bits", [4, 8, 16, 32])
def test_a_missing_matrix(tmp_path, bits):
    folder = edit(save(tmp_path, build(config_of("llama"))), dropped(UP))
    refused(folder, "1 weight is missing", UP, bits=bits)


@pytest.mark.parametrize("kind,change,words", [
    ("llama", dropped("lm_head"), ["1 weight is missing", "lm_head.weight"]),
    ("gpt2", dropped("h.1.attn.c_attn"), ["2 weights are missing", "transformer.h.1.attn.c_attn.bias"]),
    ("llama", dropped("embed_tokens"), ["1 weight is missing", "embed_tokens"]),
    ("llama", dropped("model.norm"), ["1 weight is missing", "model.norm.weight"]),
    ("qwen2", dropped("k_proj.bias"), ["2 weights are missing", "layers.0.self_attn.k_proj.bias"]),
    ("llama", renamed("^", "_orig_mod."), ["21 weights are missing", "a place in the model", "'_orig_mod.'"]),
    ("gpt2", renamed("^", "_orig_mod."), ["missing", "'_orig_mod.'"]),
    ("llama", renamed("^", "module."), ["missing", "'module.'"]),
    ("llama", renamed("^", "base_model.model."), ["missing", "'base_model.model.'", ", ..."]),
    ("llama", renamed("proj.weight", "proj.base_layer.weight"), ["14 weights are missing", "'base_layer.'"]),
    ("llama", added("model.layers.2.mlp.up_proj.weight"), ["1 weight is in its files", "model.layers.2.mlp.up_proj"]),
    ("qwen2", added("lm_head.bias", "model.layers.0.self_attn.q_proj.lora_A.weight"), ["2 weights are in its files"]),
])
def test_names_that_do_not_fit(tmp_path, kind, change, words):
    folder = edit(save(tmp_path, build(config_of(kind, tie_word_embeddings=kind == "gpt2"))), change)
    refused(folder, *words)


def test_layers_by_the_config(tmp_path):
    """More layers than the files have, and fewer."""
    folder = save(tmp_path, build(config_of("llama")))
    edit(folder, num_hidden_layers=3)
    refused(folder, "9 weights are missing", "model.layers.2.input_layernorm.weight")
    edit(folder, num_hidden_layers=1)
    refused(folder, "9 weights are in its files without a place", "model.layers.1.")


@pytest.mark.parametrize("bits", [4, 8, 32])
def test_another_size(tmp_path, bits):
    """Of a matrix and of a vocabulary; what is quantised while it loads transformers does not compare."""
    folder = save(tmp_path, build(config_of("llama")))
    edit(folder, intermediate_size=96)
    refused(folder, "6 weights are of another size", "mlp.down_proj.weight", bits=bits)
    edit(folder, intermediate_size=64, vocab_size=40)
    refused(folder, "2 weights are of another size", "lm_head.weight, model.embed_tokens.weight", bits=bits)


def same(folder, model, tolerance=0.0):
    """A folder loads as the model that it was made from."""
    policy = load_policy(folder, bits=32)
    assert (logits_of(policy.lm) - logits_of(model)).abs().max() <= tolerance
    return policy


@pytest.mark.parametrize("kind,tied,change", [
    ("llama", True, None),
    ("llama", False, None),
    ("qwen2", True, dropped("lm_head")),
    ("gpt2", True, dropped("lm_head")),
    ("gpt2", True, renamed("^transformer.", "")),  # of the model without its head, as the first GPT-2
    ("llama", False, added("model.layers.0.self_attn.rotary_emb.inv_freq", "model.rotary_emb.inv_freq")),
    ("llama", False, added("mtp.layers.0.mlp.up_proj.weight", "vision_tower.patch.weight", "v_head.summary.weight")),
])
def test_harmless_names(tmp_path, kind, tied, change):
    model = build(config_of(kind, tie_word_embeddings=tied))
    same(edit(save(tmp_path, model), change), model)


def test_constants_of_old_gpt2(tmp_path):
    """Masks that GPT-2 used to save, in one of several files."""
    def change(tensors):
        for layer in range(2):
            tensors[f"transformer.h.{layer}.attn.bias"] = torch.ones(1, 1, 128, 128).tril()
            tensors[f"transformer.h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    model = build(config_of("gpt2"))
    same(edit(save(tmp_path / "one", model), change), model)
    save(tmp_path / "many", model, max_shard_size="100KB")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 2
    same(str(tmp_path / "many"), model)


def test_further_predictions(tmp_path):
    """A layer after the last one, of as many as the config says that predict further tokens."""
    model = build(config_of("llama"))
    folder = edit(save(tmp_path, model), added("model.layers.2.eh_proj.weight"), num_nextn_predict_layers=1)
    same(folder, model)
    edit(folder, added("model.layers.3.eh_proj.weight"))
    refused(folder, "1 weight is in its files", "model.layers.3.eh_proj.weight")


def test_a_gguf_file_that_lacks_a_matrix(tmp_path):
    import gguf
    path = str(tmp_path / "small.gguf")
    write_gguf(path)
    with open(path, "rb") as file:
        data = file.read()
    name = b"blk.1.ffn_up.weight"
    assert data.count(name) == 1
    with open(path, "wb") as file:
        file.write(data.replace(name, b"blk.1.ffn_xx.weight"))
    assert gguf.GGUFReader(path)
    refused(path, "missing", UP)


def test_verifiers(tmp_path):
    """A reward model has its head; a base that a verifier is to be fitted on need not."""
    base = save(tmp_path / "base", build(config_of("llama")))
    reward = save(tmp_path / "reward", build(config_of("llama", num_labels=1), "AutoModelForSequenceClassification"))
    assert load_verifier(reward).model.score.weight.std() > 0.01
    assert load_verifier(base, lora_rank=2).parameters()
    edit(reward, dropped("score"))
    edit(base, dropped("q_proj"), num_labels=1)
    with pytest.raises(UserError, match="1 weight is missing in its files .score.weight."):
        load_verifier(reward)
    with pytest.raises(UserError, match="2 weights are missing"):
        load_verifier(base, lora_rank=2)


def test_exit_code(tmp_path):
    folder = edit(save(tmp_path, build(config_of("llama"))), dropped(UP))
    code, _, err = run(evaluate.main, folder, "--task", "countdown", "--samples", 2, "--k", 2, "--out", tmp_path / "e")
    assert code == 2 and UP in err


# -------------------------------------------------------------------------------------------------- folders and files

LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
ADAPTER = "it holds an adapter and no model of its own: give --model BASE --adapter IT"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save(tmp_path_factory.mktemp("base"), build(config_of("llama")))


def copied(base, folder, without=r"\0", **texts):
    """A copy of a folder without the files of a pattern, and with texts in the place of others."""
    folder.mkdir(parents=True)
    for name in os.listdir(base):
        if not re.search(without, name):
            shutil.copy(os.path.join(base, name), folder)
    for name, text in texts.items():
        (folder / name.replace("__", ".")).write_text(text)
    return folder


@pytest.mark.parametrize("without,texts,words", [
    (r"\0", {"model__safetensors": LFS}, "model.safetensors is a pointer of git-lfs"),
    (r"\0", {"tokenizer__json": LFS}, "tokenizer.json is a pointer of git-lfs"),
    (r"\0", {"tokenizer_config__json": "{}}"}, "tokenizer_config.json is not valid JSON"),
    ("token", {"training_args__bin": ""}, "it has no tokenizer: copy"),
    (r"\.safetensors", {"training_args__bin": ""}, "it has no weights"), (".", {}, "it has no config.json"),
    (r"\.safetensors", {"adapter_config__json": "{}", "adapter_model__safetensors": ""}, ADAPTER),
    (".", {"adapter_config__json": "{}", "adapter_model__safetensors": ""}, ADAPTER)])
def test_what_a_folder_lacks(without, texts, words, base, tmp_path):
    """In the place of what transformers stumbles over."""
    refused(copied(base, tmp_path / "a", without, **texts), words)


def test_places_beside_the_model(base, tmp_path):
    """A file of it, a folder that holds it, a run; the hub's cache holds several, and one of them is meant."""
    refused(os.path.join(base, "model.safetensors"), "it is a file: give the folder")
    checkpoint = copied(base, tmp_path / "out/checkpoint-5")
    refused(tmp_path / "out", f"it has no config.json, but {checkpoint} has: give that")
    copied(base, tmp_path / "run/adapter", ".", adapter_config__json="{}")
    refused(tmp_path / "run", ADAPTER)
    cache = tmp_path / "models--org--name"
    for revision in ("abc", "def"):
        copied(base, cache / f"snapshots/{revision}")
    (cache / "refs").mkdir()
    (cache / "refs/main").write_text("def")
    for flag in ("--model", "--data"):
        assert contents.located(cache, flag) == str(cache / "snapshots/def")
    assert contents.located(f"{cache}:main", "--data") == str(cache / "snapshots/def:main")
    assert load_policy(str(cache)).lm.source == str(cache / "snapshots/def")


@pytest.mark.parametrize("file,entries", [
    ("config.json", {"model_type": "own", "auto_map": {"AutoConfig": "code.Own", "AutoModelForCausalLM": "code.Own"}}),
    ("tokenizer_config.json", {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["code.Own", None]}})])
def test_code_of_a_checkpoint_is_not_run(file, entries, base, tmp_path, monkeypatch):
    """Nor is it asked about, as a run may have no terminal."""
    folder = copied(base, tmp_path / "a", code__py=f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    settings = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(settings | entries))
    monkeypatch.setattr("builtins.input", lambda *args: "y")
    refused(folder, "code of its own, which is not run here")
    assert not (tmp_path / "ran").exists()


def test_a_tokenizer_for_another_library(base):
    """The reason stands in the last of five lines."""
    several = ValueError("Couldn't instantiate the backend tokenizer from one of: \n(1) a `tokenizers` library\n(2) a")
    assert "pip install sentencepiece tiktoken" in str(load.cannot_load(base, several))


def test_other_kinds_of_models(tmp_path):
    """An encoder-decoder, a reward model, one of another library."""
    import transformers
    small = dict(vocab_size=28, d_model=32, num_layers=1, num_heads=2, d_ff=32, d_kv=16)
    refused(save(tmp_path / "t5", transformers.T5ForConditionalGeneration(transformers.T5Config(**small))),
            "is an encoder-decoder or")
    reward = build(config_of("llama", num_labels=1), "AutoModelForSequenceClassification")
    refused(save(tmp_path / "reward", reward), "config says LlamaForSequenceClassification, and it is read as LlamaFor")
    transformers.CLIPConfig().save_pretrained(tmp_path / "clip")
    tokenizer().save_pretrained(tmp_path / "clip")
    (tmp_path / "clip/model.safetensors").write_text("")
    refused(tmp_path / "clip", "does not load its kind as a language model")


def test_an_adapter_beside_the_weights(base, tmp_path):
    """transformers puts it on them without a word, and what is trained would be another base."""
    import peft
    folder = copied(base, tmp_path / "a")
    lm = load.load_base(base, 32)[0]
    peft.get_peft_model(lm, peft.LoraConfig(target_modules=["q_proj"])).save_pretrained(folder)
    refused(folder, "holds an adapter beside its weights")
    with pytest.raises(UserError, match="holds an adapter beside its weights"):
        load_verifier(str(folder), lora_rank=2)
    assert load_policy(base, adapter=str(folder))


def test_without_a_network(base, monkeypatch):
    """The cache alone is looked into: the hub's library would try again and again for each file of a cached model."""
    import huggingface_hub
    asked = []

    def head(url, timeout):
        asked.append(url)
        raise OSError("no network")
    monkeypatch.setattr(huggingface_hub, "get_session", lambda: SimpleNamespace(head=head))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    load_policy(base)
    assert not asked and not huggingface_hub.constants.HF_HUB_OFFLINE
    with pytest.raises(UserError, match="cannot load model 'nobody/nothing'"):
        load_policy("nobody/nothing")
    assert asked and huggingface_hub.constants.HF_HUB_OFFLINE
    huggingface_hub.constants.HF_HUB_OFFLINE = False
    with pytest.raises(UserError, match="cannot load adapter 'nobody/nothing'"):
        load_policy(base, adapter="nobody/nothing")
    assert len(asked) == 2 and huggingface_hub.constants.HF_HUB_OFFLINE


# ----------------------------------------------------------------------------------------------------------- numbers

EMBEDDING, HEAD, NORM = "model.embed_tokens.weight", "lm_head.weight", "model.layers.0.input_layernorm.weight"
QUERY, DOWN = "model.layers.0.self_attn.q_proj.weight", "model.layers.0.mlp.down_proj.weight"


def filled(name, value):
    def change(tensors):
        tensors[name] = torch.full_like(tensors[name], value)
    return change


def scaled(name, value):
    def change(tensors):
        tensors[name] = tensors[name] * value
    return change


@pytest.mark.parametrize("bits", [4, 8, 16, 32])
@pytest.mark.parametrize("name", [EMBEDDING, HEAD, QUERY, DOWN, NORM, UP])
def test_numbers_that_are_none(tmp_path, name, bits):
    folder = save(tmp_path, build(config_of("llama")))
    for value in (float("nan"), float("inf")):
        refused(edit(folder, filled(name, value)), name, "not finite", bits=bits)


@pytest.mark.parametrize("bits", [4, 8, 32])
@pytest.mark.parametrize("name", [EMBEDDING, HEAD, QUERY, DOWN])
def test_numbers_of_no_ordinary_size(tmp_path, name, bits):
    folder = save(tmp_path, build(config_of("llama")))
    refused(edit(folder, scaled(name, 1000)), name, "standard deviation", bits=bits)
    refused(edit(folder, filled(name, 0)), name, "all zeros", bits=bits)


def test_numbers_may_be(tmp_path):
    """No biases, no attention in a later layer, norms of large size."""
    def change(tensors):
        filled("model.layers.1.self_attn.o_proj.weight", 0)(tensors)
        filled("model.layers.0.self_attn.q_proj.bias", 0)(tensors)
        scaled(NORM, 300)(tensors)
    load_policy(edit(save(tmp_path, build(config_of("qwen2"))), change), bits=32)


# -------------------------------------------------------------------------------------------------- quantised already

def quantised(folder, bits, plain, **more):
    """A folder of a model that bitsandbytes quantised, and that model."""
    import transformers
    more = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.float32} | more if bits == 4 else more
    settings = transformers.BitsAndBytesConfig(load_in_4bit=bits == 4, load_in_8bit=bits == 8, **more)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        plain, quantization_config=settings, device_map={"": "cpu"}, dtype=torch.float32)
    save(folder, model)
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return str(folder), model.eval()


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("bits,more", [(4, {}), (4, {"bnb_4bit_use_double_quant": True}),
                                       (4, {"bnb_4bit_quant_type": "fp4"}), (8, {})])
def test_bitsandbytes_keeps_its_precision(tmp_path, kind, bits, more):
    """The very model that was saved, said so; another --bits is refused."""
    plain = save(tmp_path / "plain", build(config_of(kind)))
    folder, model = quantised(tmp_path / "quantised", bits, plain, **more)
    wanted = logits_of(model)
    for asked in (None, bits):
        policy = load_policy(folder, bits=asked)
        assert torch.equal(logits_of(policy.lm), wanted)
        assert policy.lm.bits == bits and f"{bits}-bit base (as its checkpoint is quantised)" in policy.note
        kept = [m.support_avx512bf16_for_cpu for m in policy.lm.modules() if hasattr(m, "support_avx512bf16_for_cpu")]
        assert not any(kept) and (kept or bits == 8)
    for asked in {4, 8, 16, 32} - {bits}:
        refused(folder, f"--bits {asked}", "is quantised already", f"{bits} bits", bits=asked)


def test_what_load_base_quantised_and_saved(tmp_path):
    plain = save(tmp_path / "plain", build(config_of("llama")))
    for bits in (4, 8):
        lm, *_ = load.load_base(plain, bits)
        folder = save(tmp_path / str(bits), lm)
        assert torch.equal(logits_of(load.load_base(folder)[0]), logits_of(lm))


def test_no_half_precision_and_no_threshold(tmp_path):
    """What the hub's checkpoints say of computing is not what a gradient needs, nor a draw that depends on nothing
    else."""
    plain = save(tmp_path / "plain", build(config_of("llama")))
    folder, _ = quantised(tmp_path / "4", 4, plain, bnb_4bit_compute_dtype=torch.float16)
    layer = load_policy(folder).lm.model.layers[0].self_attn.q_proj.base_layer
    assert layer.compute_dtype == torch.float32
    folder, _ = quantised(tmp_path / "8", 8, plain)
    layer = load_policy(folder).lm.model.layers[0].self_attn.q_proj.base_layer
    assert layer.state.threshold == 0


def test_quantised_weights_are_missing(tmp_path):
    """One scale, or one matrix, of a file that bitsandbytes wrote."""
    plain = save(tmp_path / "plain", build(config_of("llama")))
    for bits, part in ((4, "1.mlp.up_proj"), (8, "1.mlp.up_proj"), (8, "1.mlp.up_proj.SCB"), (4, "up_proj.weight.abs")):
        folder, _ = quantised(tmp_path / f"{bits}{part}", bits, plain)
        refused(edit(folder, dropped(part)), bits=None)


def test_settings_that_were_lost(tmp_path):
    """Without its quantization_config a file of int8 numbers is not read as one of weights."""
    plain = save(tmp_path / "plain", build(config_of("llama")))
    for bits in (4, 8):
        folder, _ = quantised(tmp_path / str(bits), bits, plain)
        edit(folder, quantization_config=None)
        refused(folder, "without a place in the model")


def test_a_run_on_a_quantised_checkpoint(tmp_path):
    """args.json and a resume have its true precision."""
    import ppo_passk
    plain = save(tmp_path / "plain", build(config_of("llama")))
    folder, _ = quantised(tmp_path / "4", 4, plain)
    flags = ["--model", folder, "--task", "countdown", "--samples", 2, "--k", 2, "--prompts", 2, "--steps", 2,
             "--eval-samples", 0, "--max-new-tokens", 4, "--out", tmp_path / "r"]
    code, printed, err = run(ppo_passk.main, *flags)
    assert code == 0 and "4-bit base (as its checkpoint is quantised)" in printed, err
    assert json.load(open(tmp_path / "r" / "args.json"))["flags"]["bits"] == 4
    assert run(ppo_passk.main, "--out", tmp_path / "r", "--resume")[0] == 0
    code, _, err = run(evaluate.main, tmp_path / "r", "--samples", 2, "--k", 2, "--problems", 2, "--task", "countdown",
                       "--out", tmp_path / "e")
    assert code == 0, err
    assert load_verifier(folder, 32, lora_rank=2).note.count("4-bit base") == 1  # --bits is the policy's


@pytest.mark.parametrize("settings,name", [
    ({"quant_method": "gptq", "bits": 4, "group_size": 128}, "gptq"),
    ({"quant_method": "awq", "bits": 4}, "awq"),
    ({"quant_method": "fbgemm_fp8"}, "fbgemm_fp8"),
    ({"quant_method": "compressed-tensors", "config_groups": {}}, "compressed-tensors"),
    ({"quant_method": "torchao"}, "torchao"), ({"quant_method": "hqq"}, "hqq"), ({"quant_method": "mxfp8"}, "mxfp8"),
    ({"quant_method": "nobody"}, "nobody"), ({"bits": 4}, "unnamed"),
])
def test_other_methods_are_refused(tmp_path, settings, name):
    folder = save(tmp_path, build(config_of("llama")))
    edit(folder, quantization_config=settings)
    for bits in (None, 4, 16):
        refused(folder, f"({name})", "take the unquantised model", bits=bits)


def in_fp8(folder, block, more=None):
    """Rewrite the matrices of a folder in FP8 with scales of blocks -> the numbers that they stand for, computed
    number by number."""
    wanted = {}

    def change(tensors):
        for name in [name for name in tensors if "_proj" in name]:
            rows, columns = tensors[name].shape
            high, wide = block
            grid = torch.rand(-(-rows // high), -(-columns // wide)) * 0.01 + 0.001
            each = torch.tensor([[grid[r // high, c // wide] for c in range(columns)] for r in range(rows)])
            small = (tensors[name] / each).clamp(-448, 448).to(torch.float8_e4m3fn)
            tensors[name], tensors[f"{name}_scale_inv"] = small, grid
            wanted[name] = small.float() * each
        if more:
            more(tensors)
    settings = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": list(block)}
    edit(folder, change, quantization_config=settings)
    return wanted


@pytest.mark.parametrize("bits", [4, 8, 16, 32])
@pytest.mark.parametrize("block", [(32, 32), (128, 128), (64, 16)])
def test_fp8_is_dequantised(tmp_path, block, bits):
    folder = save(tmp_path, build(config_of("llama")))
    wanted = in_fp8(folder, block)
    policy = load_policy(folder, bits=bits)
    assert "de-quantised from FP8" in policy.note and ("again" in policy.note) == (bits < 16) and policy.lm.bits == bits
    assert len(wanted) == 14 and hasattr(policy.lm.config, "quantization_config") == (bits < 16)
    state = {name.replace(".base_layer", ""): t for name, t in policy.lm.state_dict().items()}
    if bits >= 16:
        assert all(torch.equal(state[name], t.to(state[name].dtype)) for name, t in wanted.items())
        return
    lm, *_ = load.load_base(folder, 32)
    copy = save(tmp_path / "copy", lm)
    assert torch.equal(logits_of(policy.lm), logits_of(load.load_base(copy, bits)[0]))


def test_fp8_of_experts(tmp_path):
    """Experts that the file has one by one, and the model in one tensor."""
    import transformers
    folder = save(tmp_path, build(transformers.Qwen3MoeConfig(
        vocab_size=len(tokenizer()), hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        head_dim=16, moe_intermediate_size=32, num_experts=4, num_experts_per_tok=2, bos_token_id=None,
        eos_token_id=0, pad_token_id=0)))
    wanted = in_fp8(folder, (32, 32))
    lm, *_ = load.load_base(folder, 32)
    for layer in range(2):
        name = f"model.layers.{layer}.mlp.experts."
        experts = lm.model.layers[layer].mlp.experts
        for i in range(4):
            gate, up, down = (wanted[f"{name}{i}.{part}_proj.weight"] for part in ("gate", "up", "down"))
            assert torch.equal(experts.gate_up_proj[i], torch.cat((gate, up)))
            assert torch.equal(experts.down_proj[i], down)


def test_fp8_that_transformers_gets_wrong(tmp_path):
    """A block that the edge cuts off, no scale, a scale under another name."""
    def bare(tensors):
        del tensors[f"{UP}_scale_inv"]

    def other(tensors):
        tensors[f"{UP}_scale"] = tensors.pop(f"{UP}_scale_inv")
    folder = save(tmp_path / "cut", build(config_of("llama", hidden_size=48, num_attention_heads=4, head_dim=12)))
    in_fp8(folder, (32, 32))
    refused(folder, "FP8", "cannot be applied here", "model.layers.0.mlp.down_proj.weight, ")
    for number, more in enumerate((bare, other)):
        folder = save(tmp_path / str(number), build(config_of("llama")))
        in_fp8(folder, (32, 32), more)
        refused(folder, f"FP8 with scales that cannot be applied here ({UP})")


FP4 = [0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6]


def in_mxfp4(folder):
    """Rewrite the experts of gpt-oss as its files have them: two numbers of 4 bits a byte, the low half first, and an
    exponent for 32 of them -> the numbers that they stand for."""
    generator = torch.Generator().manual_seed(1)
    wanted = {}

    def change(tensors):
        for name in [name for name in tensors if re.search("(gate_up|down)_proj$", name)]:
            experts, inner, outer = tensors.pop(name).shape
            blocks = torch.randint(0, 256, (experts, outer, inner // 32, 16), generator=generator, dtype=torch.uint8)
            scales = torch.randint(118, 123, (experts, outer, inner // 32), generator=generator, dtype=torch.uint8)
            tensors[f"{name}_blocks"], tensors[f"{name}_scales"] = blocks, scales
            rows = [[[FP4[half] * 2.0 ** (int(scale) - 127) for byte, scale in
                      zip(row.flatten().tolist(), exponents.repeat_interleave(16).tolist())
                      for half in (byte & 15, byte >> 4)] for row, exponents in zip(some, theirs)]
                    for some, theirs in zip(blocks, scales)]
            wanted[name] = torch.tensor(rows).transpose(1, 2)
    edit(folder, change, quantization_config={"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]})
    return wanted


@pytest.mark.parametrize("bits", [8, 16, 32])
def test_mxfp4_is_dequantised(tmp_path, bits):
    import transformers
    folder = save(tmp_path, build(transformers.GptOssConfig(
        vocab_size=len(tokenizer()), hidden_size=64, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, num_local_experts=2, num_experts_per_tok=1, max_position_embeddings=128,
        sliding_window=128, bos_token_id=None, eos_token_id=0, pad_token_id=0)))
    wanted = in_mxfp4(folder)
    lm, _, note = load.load_base(folder, bits)
    assert "de-quantised from MXFP4" in note and lm.bits == bits and len(wanted) == 4
    state = lm.state_dict()
    assert all(torch.equal(state[name].float(), t) for name, t in wanted.items())
    edit(folder, dropped("layers.1.mlp.experts.down_proj_scales"))
    refused(folder, "quantised weights cannot be put together", bits=bits)


# ----------------------------------------------------------------------------------------------- what a config may say

@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen2"])
@pytest.mark.parametrize("settings", [{"return_dict": False}, {"use_cache": False},
                                      {"return_dict": False, "use_cache": False}])
@pytest.mark.parametrize("fast", [True, False])
def test_outputs_and_cache(tmp_path, kind, settings, fast):
    """Sampler and scorer agree with one unpadded forward; the vocabulary is larger than the tokenizer's."""
    config = config_of(kind)
    config.vocab_size += 12
    model = build(config)
    for p in model.parameters():
        p.data.mul_(3 if p.dim() > 1 else 1)
    policy = load_policy(edit(save(tmp_path, model), **settings), bits=32)
    if not fast:
        policy.fast = None
    prompts = policy.encode([PROMPT, "r", "c1,2,3:6>"])
    drawn = common.sample(policy, prompts, 4, [0, 1, 2], max_new_tokens=8)
    pairs = [(x, y) for x, ys in zip(prompts, drawn.lists()) for y in ys]
    assert max(max(y) for _, y in pairs) >= len(tokenizer())
    recorded = drawn.logps.flatten(0, 1)
    scored = torch.zeros_like(recorded)
    for index, logps, _ in common.score(policy, [x for x, _ in pairs], [y for _, y in pairs]):
        scored[index, :logps.shape[1]] = logps.detach()
    for row, (x, y) in enumerate(pairs):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([x + y]), use_cache=False, return_dict=True).logits[0].float()
        wanted = torch.log_softmax(logits, -1)[len(x) - 1:-1].gather(-1, torch.tensor(y)[:, None])[:, 0]
        for found in (recorded, scored):
            assert (found[row, :len(y)] - wanted).abs().max() < 1e-4
