"""The first step checks itself; windows and positions that a fast path, or a longer row, would get wrong."""
import json

import pytest
import torch
import transformers
from conftest import ROOT, load_policy
from test_common import shaken
from test_house import SMALL
from test_scripts import run

import cat_passk
import common
import evaluate
import ppo_passk
from fast import packed
from support import check, decoding
from support.errors import UserError

PROMPTS = ["c7,3:21>", "c2,7,9:23>", "c1,2,3,4:9>"]


def write(folder, config, std=0.2):
    """A random model with the tokenizer of the embedded one."""
    torch.manual_seed(0)
    lm = transformers.AutoModelForCausalLM.from_config(config)
    for p in lm.parameters():
        if p.dim() > 1:
            torch.nn.init.normal_(p, std=std)
    lm.save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(f"{ROOT}/models/tiny").save_pretrained(folder)
    return str(folder)


def findings(path):
    with open(path) as file:
        return [json.loads(line) for line in file]


@pytest.mark.parametrize("flags", [[], ["--mode", "sft"]], ids=["rl", "sft"])
def test_a_run_checks_its_first_step(flags, tmp_path):
    """Before the first update, and once more when the adapter has moved; a supervised mode, without evaluation, too;
    printed once. (Of every script: test_plain_is_the_same_run in test_house.py.)"""
    flags = flags or SMALL[4:6]
    code, out, err = run(cat_passk.main, *SMALL[2:4], "--steps", 3, "--eval-samples", 0, "--n", 4, *flags, "--out",
                         tmp_path / "r")
    assert code == 0, err
    found = findings(tmp_path / "r" / "checks.jsonl")
    assert [row["step"] for row in found][:2] == [0, 1] and all(row["largest"] < 1e-4 for row in found)
    assert out.count("first samples, scored by") == 1
    code, out, err = run(cat_passk.main, "--resume", "--out", tmp_path / "r")
    assert code == 0, err
    again = findings(tmp_path / "r" / "checks.jsonl")
    assert len(again) == len(found) + ("sft" in flags)  # a resume looks again, at the step that it begins with


def test_when_a_check_is_due():
    """At first, where the longest row has doubled, and when asked again."""
    policy, found = load_policy("tiny"), []
    policy.check = check.Check(found.append)
    short, long = [policy.encode(PROMPTS[0])], [policy.encode(PROMPTS[2] * 3)]
    for prompts, count in ((short, 1), (short, 1), (long, 2), (long, 2)):
        common.sample(policy, prompts, 2, [0], max_new_tokens=1)
        assert len(found) == count
    policy.check.again()
    common.sample(policy, short, 2, [0], max_new_tokens=1)
    assert len(found) == 3 and found[1]["longest"] > 2 * found[0]["longest"]


def test_rows_that_are_compared():
    """The longest row is among them, and one of the prompt with the most padding."""
    lengths = torch.tensor([[3, 9], [5, 2], [7, 7]])
    rows = check.some_rows(lengths, lengths + torch.tensor([4, 20, 11])[:, None])
    assert (1, 0) in rows and any(b == 0 for b, _ in rows) and len(rows) == len(set(rows)) <= check.ROWS


OFF = 0.01


@pytest.mark.parametrize("who", ["the sampler", "the scorer", "one unpadded forward"])
def test_what_differs_ends_the_run(who, tmp_path, monkeypatch):
    """By a hundredth of a nat for one token: exit code 2, the sentence says which of the three; nothing was trained."""
    decode, score, bare = packed.decode_packed, packed.score_packs, check.bare

    def sampler(*args):
        tokens, logps, *rest = decode(*args)
        logps[..., 0] += OFF
        return tokens, logps, *rest

    def scorer(*args):
        for index, logps, mask in score(*args):
            yield index, logps + OFF * mask, mask
    if who == "the sampler":
        monkeypatch.setattr(packed, "decode_packed", sampler)
    elif who == "the scorer":
        monkeypatch.setattr(packed, "score_packs", scorer)
    else:
        monkeypatch.setattr(check, "bare", lambda *args: bare(*args) - OFF)
    if who == "the scorer":  # the trial at load would see it
        monkeypatch.setattr("fast.choose.why_not", lambda *_: None)
    flags = [*SMALL, "--eval-samples", 0, "--k", 4, "--out", tmp_path / "r"]
    code, out, err = run(ppo_passk.main, *flags)
    assert code == 2 and err.count("\n") == 1, err
    assert f"{who} differs from" in err and "0.01 nats for a token" in err and "--plain" in err
    assert not (tmp_path / "r" / "metrics.jsonl").exists()
    if who != "one unpadded forward":
        flags[-1] = tmp_path / "plain"
        assert run(ppo_passk.main, *flags, "--plain")[0] == 0  # as the sentence says


@pytest.mark.parametrize("bits,kind", [(16, "bfloat16"), (8, "8 bits"), (4, "float32"), (32, "float32")])
def test_limits_by_precision(bits, kind):
    """What is normal passes, and is a tenth of the limit; what is not ends with both numbers."""
    policy, found = shaken(load_policy("tiny", bits=bits), scale=0.05), []
    policy.check = check.Check(found.append)
    prompts = [policy.encode(p) for p in PROMPTS]
    for seed in range(5):
        policy.check.again()
        common.sample(policy, prompts, 4, range(seed, seed + 3), max_new_tokens=12)
    most, mean = check.LIMITS[kind]
    assert check.precision(policy) == kind and len(found) == 5
    assert all(row["largest"] <= most / 5 and row["mean"] <= mean / 5 for row in found), found
    with pytest.raises(UserError, match=rf"up to 5 nats.* 4 on average, where the limits .* {most:g} and {mean:g}"):
        check.refuse_gap(policy, {("a", "b"): (1e-9, 1e-9), ("a", "c"): (5.0, 4.0), ("b", "c"): (5.0, 4.0)}, 5.0, 4.0)


@pytest.mark.parametrize("bits", [32, 16])
@pytest.mark.parametrize("plain", [False, True], ids=["fast", "plain"])
def test_nothing_is_drawn_from_nan(plain, bits):
    """A NaN in one matrix: a sentence, not the last token for ever."""
    policy = load_policy("tiny", bits=bits, **{"fast": None} if plain else {})
    policy.lm.model.layers[1].mlp.up_proj.base_layer.weight.data[3, 5] = torch.nan
    with pytest.raises(UserError, match="logits are not finite"):
        common.sample(policy, [policy.encode(p) for p in PROMPTS], 4, range(3), max_new_tokens=4)


@pytest.mark.parametrize("plain", [False, True], ids=["fast", "plain"])
@pytest.mark.parametrize("flags,sentence", [
    (["--temperature", "1e-44"], "logits are not finite"), (["--lr", "1e30", "--steps", 3], "not finite")])
def test_logits_that_are_not_finite(flags, sentence, plain, tmp_path):
    """A temperature near 0, a rate of 1e30."""
    code, out, err = run(ppo_passk.main, *SMALL, "--k", 4, "--eval-samples", 0, *flags, *["--plain"] * plain, "--out",
                         tmp_path / "r")
    assert code == 2 and sentence in err and err.count("\n") == 1, err


def test_evaluation_checks_each_model(tmp_path):
    code, out, err = run(evaluate.main, "tiny", "tiny_hasty", "--problems", 4, "--samples", 4, "--k", "1,4", "--out",
                         tmp_path / "e")
    assert code == 0 and out.count("first samples, scored by") == 2, err
    checks = json.load(open(tmp_path / "e" / "result.json"))["checks"]
    assert checks.keys() == {"tiny", "tiny_hasty"}
    assert all(row["largest"] < 1e-4 for rows in checks.values() for row in rows)


# --------------------------------------------------------------------------------------------------- windows, positions

def neo(**more):
    return transformers.GPTNeoConfig(**{**dict(
        vocab_size=40, hidden_size=64, num_layers=2, num_heads=4, attention_types=[[["global", "local"], 1]],
        window_size=8, max_position_embeddings=256, bos_token_id=None, eos_token_id=0, pad_token_id=0), **more})


def test_gpt_neo_beyond_its_window(tmp_path):
    """Local layers with masks of their own: no packed rows, and the numbers of the plain loops beyond the window."""
    policy, found = shaken(load_policy(write(tmp_path, neo()), bits=32)), []
    assert decoding.window(policy.lm.config) == 8 and not (policy.fast and policy.fast.packs)
    policy.check = check.Check(found.append)
    prompts = [policy.encode(p) for p in PROMPTS]
    common.sample(policy, prompts, 4, range(3), max_new_tokens=20)
    assert found[0]["longest"] > 16 and found[0]["largest"] < 1e-4


@pytest.mark.parametrize("more,limit", [
    ({"sliding_window": 16}, 16), ({"window_size": 7}, 7), ({"attention_window": [32, 64]}, 32),
    ({"attention_chunk_size": 12}, 12), ({"sliding_window": 64, "local_attention_window": 9}, 9),
    ({"sliding_window": None}, float("inf")), ({"max_window_layers": 2}, float("inf"))])
def test_every_name_of_a_limit_counts(more, limit):
    config = transformers.LlamaConfig(**more)
    assert decoding.window(config) == limit


def test_a_mask_of_its_own_is_seen():
    assert not decoding.known_masks(transformers.GPTNeoForCausalLM(neo()))
    assert decoding.known_masks(transformers.LlamaForCausalLM(transformers.LlamaConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=8)))


def longrope(**more):
    return transformers.Phi3Config(
        vocab_size=40, hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, original_max_position_embeddings=32, bos_token_id=None,
        eos_token_id=0, pad_token_id=0, sliding_window=None, **more,
        rope_parameters={"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 8,
                         "long_factor": [3.0] * 8})


def test_rows_stay_below_a_change_of_all_positions(tmp_path):
    """longrope: below the limit all is right; beyond it the run is refused with the limit, or kept below it."""
    model = write(tmp_path / "m", longrope())
    policy, found = shaken(load_policy(model, bits=32)), []
    assert policy.positions == 32
    policy.check = check.Check(found.append)
    prompts = [policy.encode(p) for p in PROMPTS]
    common.sample(policy, prompts, 4, range(3), max_new_tokens=20)
    assert found[0]["largest"] < 1e-4
    with pytest.raises(UserError, match="32 positions .beyond them its longrope rotary scaling changes all positions"):
        common.sample(policy, prompts, 4, range(3), max_new_tokens=30)
    code, _, err = run(ppo_passk.main, *SMALL, "--k", 4, "--model", model, "--max-new-tokens", 40, "--out",
                       tmp_path / "r")
    assert code == 2 and "32 positions" in err and "longrope" in err, err


def test_kinds_of_rotary_scaling():
    """Only those that change with the length are a limit."""
    config = transformers.LlamaConfig(max_position_embeddings=64, rope_parameters={
        "rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0})
    assert decoding.rope_limit(config) == (64, "dynamic")
    for kind in ({"rope_type": "linear", "factor": 4.0}, {"rope_type": "default"}):
        config = transformers.LlamaConfig(max_position_embeddings=64, rope_parameters={"rope_theta": 1e4, **kind})
        assert decoding.rope_limit(config) == (float("inf"), None)
