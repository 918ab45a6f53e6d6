"""The table of architectures.py, computed again: each causal language model of transformers is right, or a sentence."""
import re

import pytest
import torch
from architectures import EQUAL, KEYS, NOT_TRIED, REFUSED, RERUN, RIGHT, ROWS, STATES, config_of, save
from conftest import load_policy
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

import common
from support import load
from support.errors import UserError

PATHS = {ROWS: "fast (", KEYS: "samples of a prompt share its keys and values",
         RERUN: "no cache that can be shared", STATES: "has recurrent layers",
         EQUAL: "only prompts of equal length share a batch"}
PROMPTS = [[5, 7, 3, 9, 11, 4, 6, 8, 10, 12], [3, 4], [8, 6, 4, 12, 10, 5, 3]]
NEW = 14  # tokens, so that the longest row is three times the windows of these models


def test_the_table_is_whole():
    listed = [*sum(RIGHT.values(), []), *sum(REFUSED.values(), []), *NOT_TRIED]
    assert sorted(listed) == sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


@pytest.mark.parametrize("reason,kind", [(reason, kind) for reason, kinds in REFUSED.items() for kind in kinds])
def test_refused_in_one_sentence(kind, reason, tmp_path):
    with pytest.raises(UserError) as caught:
        load_policy(save(tmp_path, config_of(kind)), bits=32)
    said = str(caught.value)
    assert reason in said and "\n" not in said and ". " not in said


@pytest.mark.parametrize("path,kind", [(path, kind) for path, kinds in RIGHT.items() for kind in kinds])
def test_right(kind, path, tmp_path):
    """Sampler, scorer and one unpadded forward agree, with an adapter that says something; draws depend on nothing else
    in the batch, in which rows end at different times; every tensor of the adapter has a gradient."""
    policy = load_policy(save(tmp_path, config_of(kind)), bits=32)
    assert PATHS[path] in policy.note.replace("\n", " "), policy.note
    generator = torch.Generator().manual_seed(1)
    for p in policy.parameters():
        p.data.add_(torch.randn(p.shape, generator=generator) * 0.1)
    policy.stop = [0, 1, 2, 13]
    drawn = common.sample(policy, PROMPTS, 3, [1, 2, 3], 1.0, NEW)
    rows = drawn.lists()
    assert len({len(y) for ys in rows for y in ys}) > 2
    assert common.sample(policy, PROMPTS[1:2], 3, [2], 1.0, NEW).lists()[0] == rows[1]
    x, y = [p for p in PROMPTS for _ in range(3)], sum(rows, [])
    wanted = check_reach(policy, x, y)
    assert max(gap(drawn.logps.flatten(0, 1), wanted)) < 1e-4
    ways = [lambda: common.score(policy, x, y)]
    if policy.fast:
        ways.append(lambda fast=policy.fast: fast.score(policy, x, y, 1.0, 2048))
        policy.fast = None
    for way in ways:
        policy.model.zero_grad()
        for index, logps, _ in way():
            assert max(gap(logps.detach(), [wanted[j] for j in index.tolist()])) < 1e-4
            logps.sum().backward()
        assert all(p.grad is not None and p.grad.abs().max() > 0 for p in policy.parameters())


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2", "phi3", "bloom", "gptj", "opt", "qwen3", "smollm3"])
def test_on_ordinary_models_it_is_all_linear_layers(kind, tmp_path):
    """The same layers in the same order, the same numbers at the start, and nothing that stays as it is."""
    import peft
    folder = save(tmp_path, config_of(kind))
    policy = load_policy(folder, bits=32)
    torch.manual_seed(0)
    wanted = peft.get_peft_model(load.load_base(folder, 32)[0], peft.LoraConfig(
        r=16, lora_alpha=32, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM"))
    wanted = {name: p for name, p in wanted.named_parameters() if p.requires_grad}
    found = {name: p for name, p in policy.model.named_parameters() if p.requires_grad}
    assert [*found] == [*wanted] and all(torch.equal(p, wanted[name]) for name, p in found.items())
    assert "stay as they are" not in policy.note


def bare(policy, x, y):
    """Log-probabilities of a completion by one forward pass over the row, with gradient."""
    logits = policy.lm(input_ids=torch.tensor([x + y]), use_cache=False).logits[0, len(x) - 1:-1].float()
    return torch.log_softmax(logits, -1)[range(len(y)), y]


def gap(found, wanted):
    return [(row[:len(y)] - y).abs().max().item() for row, y in zip(found, wanted)]


def check_reach(policy, x, y):
    """The policy's line names every matrix that has a gradient and no adapter, and nothing that is not there.
    Returns what `bare` says of the rows, detached."""
    lm = policy.lm
    base = {name: p for name, p in lm.named_parameters() if p.dim() > 1 and not p.requires_grad}
    for p in base.values():
        p.requires_grad_(True)
    logps = [bare(policy, *pair) for pair in zip(x, y)]
    torch.cat(logps).sum().backward()
    found = re.search(r"parameters \((.*?) stay as they are\)", policy.note)
    said = set(found[1].split(", ")) if found else set()
    for name, p in base.items():
        owner = lm.get_submodule(name.rpartition(".")[0])
        table = isinstance(owner, torch.nn.Embedding) or owner is lm.get_output_embeddings()
        if p.grad is not None and ".base_layer." not in name and not table:
            assert said & set(name.split(".")), name
        p.requires_grad_(False)
        p.grad = None
    assert all(any(part in name.split(".") for name in base) for part in said)
    return [row.detach() for row in logps]
