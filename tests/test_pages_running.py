"""docs/data.md, docs/running.md and docs/proof.md: tables, examples, flags, sentences and figures are those of the
code."""
import importlib
import json
import os
import re
import textwrap
from types import SimpleNamespace

import page_tables
import pytest
import references
import torch
from conftest import ROOT
from references import blocks, source
from test_docs import OTHERS

import tasks
from support import load, merge
from support.measure import SHAPES
from tasks import shapes
from tasks.answers import final_answer

PAGES = ["docs/data.md", "docs/running.md", "docs/proof.md"]


@pytest.mark.parametrize("path", PAGES)
def test_a_page_is_short(path):
    assert 500 <= len(references.prose(source(path))) <= 1200, len(references.prose(source(path)))


@pytest.mark.parametrize("path", PAGES)
def test_tables_are_those_of_the_code(path):
    assert page_tables.mended(path) == source(path), "python tests/page_tables.py"
    assert source(path).count("<!-- table ") == source(path).count("<!-- end of table -->")


def test_every_table_is_on_a_page():
    text = "".join(map(source, PAGES))
    assert all(text.count(f"<!-- table {name} -->") == 1 for name in page_tables.TABLES)


def test_the_table_of_names():
    """A row for each field, and in it the names that are looked for, in their order."""
    rows = page_tables.names().split("\n")[2:]
    assert len(rows) == len(shapes.NAMES)
    for row, (field, names) in zip(rows, shapes.NAMES.items(), strict=True):
        assert row.startswith(f"| `{field}` |")
        found = re.findall(r"[a-z_]+(?:\.[a-z_]+)?", row.partition("| ")[2].partition("|")[2].partition(";")[0])
        assert [name for name in found if name in names] == [*names]


def test_rows_of_data_sets_load():
    """As they stand on the page, in the order of the names there."""
    section = source("docs/data.md").split("### Eight data sets")[1].split("\n## ")[0]
    found = [json.loads(block) for block in blocks(section, "json")]
    assert len(found) == 8
    for row, (name, wanted) in zip(found, page_tables.rows(), strict=True):
        assert row == json.loads(json.dumps(wanted)) and f"{name}:\n" in section
        problem, used = page_tables.understood(row)
        assert problem.prompt and problem.answer and "prompt" in used


def test_memory_is_reckoned_as_batches_are():
    """The bytes of the table are those by which support/load.py cuts batches."""
    hidden, wide, layers, heads, groups = SHAPES["7b"]
    text = SimpleNamespace(num_hidden_layers=layers, hidden_size=hidden, num_attention_heads=heads,
                           num_key_value_heads=groups)
    weight = torch.empty(151936, hidden, device="meta")
    lm = SimpleNamespace(config=SimpleNamespace(get_text_config=lambda: text), dtype=torch.bfloat16,
                         device=torch.device("cpu"), get_input_embeddings=lambda: SimpleNamespace(weight=weight))
    update, decoded = page_tables.of_a_sample(*SHAPES["7b"], 151936)
    assert load.micro_batch(lm) == max(256, 2 ** 31 // (update // page_tables.SAMPLE))
    assert load.most_rows(lm, page_tables.SAMPLE) == 2 ** 30 // decoded


@pytest.mark.parametrize("shape", ["0.5b", "1.5b"])
def test_sizes_of_models(shape):
    """Elements of the linear layers, and of their inputs and outputs, as transformers and peft build them."""
    import transformers
    sizes = dict(zip(("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
                      "num_key_value_heads"), SHAPES[shape]))
    with torch.device("meta"):
        lm = transformers.AutoModelForCausalLM.from_config(transformers.Qwen2Config(**sizes, vocab_size=64))
    head = lm.get_output_embeddings()
    linear = [module for module in lm.modules() if isinstance(module, torch.nn.Linear) and module is not head]
    found = sum(m.weight.numel() for m in linear), sum(m.in_features + m.out_features for m in linear)
    assert page_tables.linear_of(*SHAPES[shape]) == found


def test_which_answers_count():
    rows = re.findall(r"^\| `(.+)` \| (?:`(.+)`|none) \|$", source("docs/data.md").split("## Which answers count")[1],
                      re.MULTILINE)
    assert len(rows) >= 7
    for completion, answer in rows:
        wanted = final_answer(rf"\boxed{{{answer}}}") if answer else None
        assert final_answer(completion.replace(r"\n", "\n")) == wanted, completion
    assert {answer == "" for _, answer in rows} == {True, False}


def test_the_examples_are_those_of_help():
    known = textwrap.dedent(tasks.__doc__)
    for block in blocks(source("docs/data.md"), "python"):
        for part in block.split("\n\n"):
            assert textwrap.indent(part.strip("\n"), "    ") in known, part


def test_names_that_are_imported_exist():
    for path in PAGES:
        for module, names in re.findall(r"^from (\w+) import ([\w, ]+?)(?: +#.*)?$", source(path), re.MULTILINE):
            for name in names.split(", "):
                assert hasattr(importlib.import_module(module), name), (path, module, name)


@pytest.mark.parametrize("path", PAGES)
def test_flags_exist(path):
    """Those named anywhere but in commands (which test_readme_commands_parse has) exist in some parser."""
    modules = ["ppo_passk", "bon_sft", "bon_rl", "cat_passk", "cat_majority", "cat_bon", "fit_verifier"]
    known = "".join(importlib.import_module(name).parser().format_help() for name in modules)
    known += "--gpu-report --draw --seeds --jobs --index-url --torch-backend "  # of other programs
    for span in re.findall(r"`([^`\n]*)`", references.FENCE.sub("", source(path))):
        for flag in re.findall(r"--[a-z][a-z-]*", span):
            assert re.search(rf"{flag}\b(?!-)", known), (span, flag)


def test_merging_is_asked_for_as_its_parser_has_it():
    commands = re.findall(r"python -m support\.merge ([^\n`]*)", "".join(map(source, PAGES)))
    assert commands and all(merge.parse_args(command.split()).run == "runs/mine" for command in commands)


def test_sentences_of_refusals():
    """What the table of refusals quotes is what the code says."""
    table = source("docs/running.md").split("**What is refused**")[1].split("\n\n")[1]
    said = ""
    for name in ("load", "checkpoint", "adapters", "model_checks"):
        said += re.sub(r'"\s*\n\s*f?"', "", source(f"support/{name}.py"))
    quoted = re.findall(r"\| `([^`|]+)` \|$", table, re.MULTILINE)
    assert len(quoted) >= 5
    for words in quoted:
        assert words in said, words


@pytest.mark.parametrize("path", PAGES)
def test_figures_with_an_interval_are_those_of_the_records(path):
    number = r"[+-]\.\d{3}"
    records = " ".join("".join(map(source, OTHERS)).split())
    for figure in re.findall(rf"{number} \[{number}, {number}\]", " ".join(source(path).split())):
        assert figure in records, figure


def test_learning_rates():
    """The defaults by size that running.md gives."""
    text = " ".join(source("docs/running.md").split())
    assert ("2e-3 below 5 M parameters, 5e-4 below 100 M, then 1e-4 in RL and 2e-4 in supervised training, from 1 B "
            "on 2e-5 and 1e-4") in text
    found = [load.learning_rate(size, mode)[0] for size in (1e6, 5e7, 5e8, 2e9) for mode in (False, True)]
    assert found == [2e-3, 2e-3, 5e-4, 5e-4, 1e-4, 2e-4, 2e-5, 1e-4]


def test_limits_of_the_check():
    from support.check import LIMITS
    text = " ".join(source("docs/proof.md").split())
    assert ("more than .001 nats for a token ends the run; in bfloat16 the limit is 2 and .5 on average, in 8 bits 5 "
            "and .8") in text
    assert LIMITS == {"float32": (1e-3, 1e-3), "bfloat16": (2.0, 0.5), "8 bits": (5.0, 0.8)}


def test_files_that_are_named_exist():
    """What links by a line name is looked for in test_docs.py; what is named in code alone, here."""
    named = re.findall(r"`((?:tests/|support/|tasks/)?\w+\.py)`", "".join(map(source, PAGES)))
    assert len(named) > 10
    for name in named:
        places = [name, f"tests/{name}"]
        assert any(os.path.exists(os.path.join(ROOT, place)) for place in places) or name == "my_task.py", name
