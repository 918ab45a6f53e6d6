"""Real models: GGUF files, chat templates, defaults by size, progress, and what their size breaks."""
import json
import os
import types

import pytest
import torch
from conftest import load_policy
from test_scripts import run

import bench
import common
import evaluate
import ppo_passk
from support import load
from support.errors import UserError
from support.run import resolve

CHAT = ("{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}")


def write_gguf(path, chat=CHAT, architecture="llama", eos=True):
    """A Llama of 2 layers and 260 tokens (bytes, two merges, <|end|>, one without use) as llama.cpp stores it, its
    matrices in Q8_0 -> the float32 tensors by transformers' names."""
    import gguf
    import numpy as np
    rng, D, H, KV, T = np.random.default_rng(0), 64, 4, 2, 128
    writer = gguf.GGUFWriter(str(path), architecture)
    writer.add_context_length(T)
    writer.add_embedding_length(D)
    writer.add_block_count(2)
    writer.add_feed_forward_length(96)
    writer.add_head_count(H)
    writer.add_head_count_kv(KV)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(D // H)
    writer.add_rope_freq_base(10000.0)
    code = [*range(33, 127), *range(161, 173), *range(174, 256)]  # GPT-2's letters for bytes
    letters = [chr(b if b in code else 256 + sum(c not in code for c in range(b))) for b in range(256)]
    tokens = [*letters, "12", "pl", "<|end|>", "<|unused|>"]
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([1] * 258 + [3, 3])
    writer.add_token_merges(["1 2", "p l"])
    if eos:
        writer.add_eos_token_id(258)
    if chat:
        writer.add_chat_template(chat)
    found = {}

    def add(name, theirs, *shape, heads=0):
        w = rng.standard_normal(shape).astype(np.float32) * (0.05 if len(shape) > 1 else 0) + (len(shape) == 1)
        stored = w.reshape(heads, 2, -1, w.shape[1]).swapaxes(1, 2).reshape(w.shape) if heads else w
        if len(shape) > 1:
            stored = gguf.quants.quantize(stored, gguf.GGMLQuantizationType.Q8_0)
            writer.add_tensor(name, stored, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
            w = gguf.quants.dequantize(stored, gguf.GGMLQuantizationType.Q8_0)
            w = w.reshape(heads, -1, 2, w.shape[1]).swapaxes(1, 2).reshape(w.shape) if heads else w
        else:
            writer.add_tensor(name, stored)
        found[theirs] = torch.tensor(w)
    add("token_embd.weight", "model.embed_tokens.weight", len(tokens), D)
    add("output_norm.weight", "model.norm.weight", D)
    for i in range(2):
        for name, theirs, *shape in (("attn_norm", "input_layernorm", D), ("ffn_norm", "post_attention_layernorm", D),
                                     ("attn_q", "self_attn.q_proj", D, D), ("attn_k", "self_attn.k_proj", 32, D),
                                     ("attn_v", "self_attn.v_proj", 32, D), ("attn_output", "self_attn.o_proj", D, D),
                                     ("ffn_gate", "mlp.gate_proj", 96, D), ("ffn_up", "mlp.up_proj", 96, D),
                                     ("ffn_down", "mlp.down_proj", D, 96)):
            add(f"blk.{i}.{name}.weight", f"model.layers.{i}.{theirs}.weight", *shape,
                heads={"attn_q": H, "attn_k": KV}.get(name, 0))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return found


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / "small.gguf"
    return str(path), write_gguf(path)


def test_gguf_holds_the_model(file):
    """Weights, tokenizer, chat template and the end of a completion are those of the file."""
    path, tensors = file
    policy = load_policy(path, bits=32)
    state = {name.replace(".base_layer", ""): p for name, p in policy.lm.state_dict().items()}
    assert len(tensors) == 20 and all(torch.equal(state[name], wanted) for name, wanted in tensors.items())
    assert "de-quantised from GGUF" in policy.note and "again" not in policy.note and policy.stop == [258]
    assert policy.encode("12+3") == [256, ord("+"), ord("3")]
    assert policy.decode([*policy.encode("a pl 12"), 258]) == "a pl 12"
    assert policy.encode("7", chat=True) == policy.encode("<user>7<assistant>")
    assert not hasattr(policy.lm.config, "quantization_config") and policy.fast
    ids = torch.tensor([policy.encode("12 plus 3 is")])
    plain = type(policy.lm)(policy.lm.config)
    plain.load_state_dict({**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"]})
    assert torch.allclose(plain.eval()(ids).logits, policy.lm(ids).logits, atol=1e-5)


@pytest.mark.parametrize("bits", [4, 8])
def test_gguf_quantised_again(file, tmp_path, bits):
    """The very model that a copy of the de-quantised weights, saved and loaded with that precision, gives."""
    import bitsandbytes
    policy = load_policy(file[0], bits=bits)
    assert "de-quantised from GGUF and quantised again" in policy.note
    kind = {4: bitsandbytes.nn.Linear4bit, 8: bitsandbytes.nn.Linear8bitLt}[bits]
    assert isinstance(policy.lm.model.layers[1].mlp.up_proj.base_layer, kind)
    lm, tokenizer, _ = load.load_base(file[0], 32)
    lm.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    copy = load_policy(str(tmp_path), bits=bits)
    x = [policy.encode("12 plus 3 is")]
    with torch.no_grad():
        assert torch.equal(policy.lm(torch.tensor(x)).logits, copy.lm(torch.tensor(x)).logits)
    drawn = common.sample(policy, x, 3, [0], max_new_tokens=6)
    assert drawn.lists() == common.sample(copy, x, 3, [0], max_new_tokens=6).lists() and policy.stop == copy.stop


def test_gguf_end_to_end(file, tmp_path):
    """Train, resume, evaluate the run folder and base + adapter; the bench loads it too."""
    data, out = tmp_path / "d.jsonl", tmp_path / "r"
    data.write_text("".join(json.dumps({"prompt": f"{a} plus 3 is", "answer": str(a + 3), "split": split}) + "\n"
                            for a, split in enumerate(["train"] * 4 + ["test"] * 2)))
    flags = ["--model", file[0], "--data", data, "--samples", 2, "--k", 2, "--prompts", 2, "--steps", 2,
             "--max-new-tokens", 4, "--eval-samples", 2, "--system", "Sums.", "--out", out]
    code, printed, err = run(ppo_passk.main, *flags)
    assert code == 0 and "through the chat template, with a system message" in printed, err
    saved = json.load(open(out / "args.json"))["flags"]
    assert saved["bits"] == 32 and saved["lr"] == 2e-3 and saved["eval_problems"] == 0 and saved["system"] == "Sums."
    assert run(ppo_passk.main, "--out", out, "--resume")[0] == 0
    code, printed, err = run(evaluate.main, out, f"{file[0]}+{out}", "--data", data, "--samples", 2, "--k", 2,
                             "--no-chat", "--max-new-tokens", 4, "--out", tmp_path / "e")
    assert code == 0 and printed.count("prompts as they are") == 2, err
    code, printed, err = run(bench.main, "--model", file[0], "--rows", 16, "--new-tokens", 3, "--repeat", 1,
                             "--adapter", out)
    assert code == 0 and json.loads(printed.strip().split("\n")[-1])["lines"][0]["ratio"] > 0, err


def test_files_that_are_no_gguf(file, tmp_path, monkeypatch):
    whole = open(file[0], "rb").read()
    for name, data in (("empty", b""), ("text", b"hello"), ("cut", whole[:5000]), ("short", whole[:-5000])):
        (tmp_path / f"{name}.gguf").write_bytes(data)
    write_gguf(tmp_path / "other.gguf", architecture="nobody")
    (tmp_path / "folder.gguf").mkdir()
    for name in ("empty", "text", "cut", "short", "other", "folder"):
        with pytest.raises(UserError, match="cannot load model .*GGUF"):
            load_policy(str(tmp_path / f"{name}.gguf"))
    with pytest.raises(UserError, match="absent.gguf: there is no such file"):
        load_policy(str(tmp_path / "absent.gguf"))
    with pytest.raises(UserError, match="not a verifier"):
        load.load_base(file[0], 32, kind="AutoModelForSequenceClassification", num_labels=1)
    monkeypatch.setattr(load.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install gguf"):
        load_policy(file[0])


def test_chat_and_system(file, tmp_path):
    policy, task = load_policy(file[0], bits=32), types.SimpleNamespace(chat=True)
    for chat, system, words, text in ((None, None, "through the chat template", "<user>7<assistant>"),
                                      (False, None, "as they are", "7"),
                                      (True, "Hi.", "with a system message", "<system>Hi.<user>7<assistant>")):
        task.chat = True
        assert words in load.put_prompts(policy, task, chat, system)
        assert policy.encode("7", task.chat) == policy.encode(text)
    mark = policy.tokenizer.convert_tokens_to_ids("!")  # ends a turn, but is not the tokenizer's end-of-sequence token
    assert policy.encode_solution("7")[-1] == policy.tokenizer.eos_token_id != mark
    policy.tokenizer.chat_template = CHAT.replace("{{ m.content }}", "{{ m.content }}!")
    for stop, chat, end in (([mark], True, mark), ([mark], False, None), ([], True, None)):
        policy.stop = [policy.tokenizer.eos_token_id, *stop]
        load.put_prompts(policy, task, chat)
        assert policy.encode_solution("7")[-1] == (end or policy.tokenizer.eos_token_id)
    policy.tokenizer.chat_template = CHAT
    task.chat = False  # a task whose prompts are no language
    assert load.put_prompts(policy, task) == "as they are" and not task.chat
    load.put_prompts(policy, task, chat=True)
    assert task.chat
    for chat, system, template, why in ((False, "Hi.", CHAT, "add --chat"), (True, None, None, "no chat template"),
                                        (None, "Hi.", None, "no chat template"),
                                        (True, "Hi.", "{{ raise_exception('no system role') }}", "no system role")):
        policy.tokenizer.chat_template = template
        with pytest.raises(UserError, match=why):
            load.put_prompts(policy, task, chat, system)
    policy.tokenizer.chat_template, task.chat = None, True
    assert load.put_prompts(policy, task) == "as they are" and policy.encode("7", task.chat) == policy.encode("7")
    path = tmp_path / "plain.gguf"
    write_gguf(path, chat=None)
    assert load_policy(str(path)).tokenizer.chat_template is None


def test_faults_of_size(file, tmp_path):
    """No end-of-sequence token, and vocabularies of two sizes."""
    write_gguf(tmp_path / "endless.gguf", eos=False)
    try:
        policy = load_policy(str(tmp_path / "endless.gguf"))
    except UserError as error:
        assert "no end-of-sequence token" in str(error)
    else:  # what transformers takes where the file names none
        assert policy.stop
    lm, tokenizer, _ = load.load_base("tiny", 32)
    for extra in (5, -3):
        lm.resize_token_embeddings(len(tokenizer) + extra)
        lm.save_pretrained(tmp_path / str(extra))
        tokenizer.save_pretrained(tmp_path / str(extra))
    policy = load_policy(str(tmp_path / "5"))
    beyond = len(tokenizer) + 2
    assert policy.decode([beyond, *policy.encode("7*3"), beyond]) == "7*3"
    drawn = common.sample(policy, [policy.encode("c7,3:21>")], 4, [0], temperature=50.0, max_new_tokens=30)
    assert (drawn.tokens >= len(tokenizer)).any() and all(isinstance(policy.decode(y), str) for y in drawn.lists()[0])
    policy = load_policy(str(tmp_path / "-3"))
    last = tokenizer.convert_ids_to_tokens(len(tokenizer) - 1)
    for call in (policy.encode, policy.encode_solution):
        with pytest.raises(UserError, match="no embedding"):
            call(last)


def test_learning_rate_by_size():
    """2e-3 for the embedded models, from 100 M parameters on at most 2e-4, and never more for more parameters."""
    sizes = (2e5, 4e6, 5e6, 9e7, 1e8, 1.35e8, 1e9, 1.5e9, 7e9)
    for supervised in (True, False):
        rates = [load.learning_rate(size, supervised)[0] for size in sizes]
        assert rates[0] == rates[1] == 2e-3 and max(rates[4:]) <= 2e-4 and rates == sorted(rates, reverse=True)
    assert all(load.learning_rate(s, False)[0] <= load.learning_rate(s, True)[0] for s in sizes)
    assert load.learning_rate(1.35e8, False)[1] == "default of RL for 135.0 M parameters"


def resolved(size, *flags, script="ppo_passk", resumed=False, bits=None):
    folder = types.SimpleNamespace(args=ppo_passk.parser().parse_args(list(flags)), script=script, resumed=resumed)
    policy = types.SimpleNamespace(size=size, note="", device=torch.device("cpu"))
    resolve(folder, policy)
    return folder.args, policy.note


def test_defaults_are_resolved():
    args, note = resolved(135_000_000)
    assert (args.lr, args.bits, args.eval_problems) == (1e-4, 32, 64) and "1e-04" in note or "0.0001" in note
    args, note = resolved(135_000_000, "--lr", "3e-5", "--eval-problems", "0", "--eval-samples", "16", "--bits", "16")
    assert (args.lr, args.bits, args.eval_problems) == (3e-5, 16, 0) and "3e-05 (--lr)" in note
    assert resolved(135_000_000, "--eval-samples", "0")[0].eval_problems == 4096
    assert resolved(135_000_000, "--eval-samples", "9999")[0].eval_problems == 1
    assert resolved(135_000_000, script="bon_sft")[0].lr == 2e-4
    args, _ = resolved(200_000)
    assert (args.lr, args.eval_problems) == (2e-3, 0)
    assert resolved(200_000, resumed=True)[0].bits is None  # of an older run folder, whose checkpoint says so too


@pytest.mark.parametrize("bits", [4, 8, 16, 32])
def test_the_size_is_that_of_the_base(bits):
    """Quantised weights count as what they stand for, the adapter does not count."""
    size = sum(p.numel() for p in load.load_base("tiny", 32)[0].parameters())
    assert load_policy("tiny", bits=bits).size == size


def clock(monkeypatch, module, step):
    """time.time of a module runs `step` seconds on at every call."""
    now = iter(range(10 ** 6))
    monkeypatch.setattr(module, "time", types.SimpleNamespace(time=lambda: 1e9 + step * next(now)))


def test_progress_without_a_terminal(monkeypatch, capsys):
    """A line each half minute, nothing where all is done by then; blocks that grow change no draw."""
    policy, task = load_policy("tiny"), evaluate.tasks.load_task("countdown")
    problems = task.test[:40]
    wanted = evaluate.draw_pool(policy, task, problems, 8)
    assert not capsys.readouterr().out
    policy.size = 10 ** 8
    clock(monkeypatch, evaluate, 0.01)
    assert len(evaluate.draw_pool(policy, task, problems, 8)) == 40
    assert not capsys.readouterr().out
    clock(monkeypatch, evaluate, 25)
    found = evaluate.draw_pool(policy, task, problems, 8, label="base")
    said = capsys.readouterr().out.strip().split("\n")
    assert [e["completions"] for e in found] == [e["completions"] for e in wanted] and len(said) > 3
    assert said[0].startswith("base: ") and " of 40 problems, " in said[0] and said[0].endswith(" s left")


def test_slow_steps_are_shown_and_pictured(monkeypatch, tmp_path):
    """A line each half minute even between the tens; curves.png at a checkpoint, before the end."""
    import support.run
    from support.plots import plot_run
    pictures = []
    monkeypatch.setattr(support.run, "plot_run", lambda folder, result: (
        pictures.append(len(open(os.path.join(folder, "metrics.jsonl")).readlines())), plot_run(folder, result)))
    clock(monkeypatch, support.run, 20)
    code, out, err = run(ppo_passk.main, "--steps", 5, "--prompts", 2, "--samples", 2, "--k", 2, "--save-every", 2,
                         "--eval-samples", 0, "--out", tmp_path / "r")
    assert code == 0 and out.count("\nstep ") >= 3, err
    assert pictures[-1] == 5 and len(pictures) > 1 and os.path.getsize(tmp_path / "r" / "curves.png") > 1000


def test_rows_are_bounded_by_memory():
    """1,000 rows over 49,152 tokens of vocabulary: what those decoded at once need is at most 1 GB."""
    table = torch.nn.Embedding(49152, 576, device="meta")
    lm = types.SimpleNamespace(get_input_embeddings=lambda: table, device=torch.device("cpu"), dtype=torch.float32,
                               config=types.SimpleNamespace(
        get_text_config=lambda: types.SimpleNamespace(num_hidden_layers=30, num_attention_heads=9,
                                                      num_key_value_heads=3, head_dim=64, hidden_size=576)))
    for tokens in (15, 71, 500):
        rows = load.most_rows(lm, tokens)
        cache, probabilities = 2 * 4 * 30 * 3 * 64 * tokens * rows, 5 * 4 * 49152 * rows
        assert 2 ** 29 < cache + probabilities <= 2 ** 30
    assert load.micro_batch(lm) * (100 * 30 * 576 + 24 * 49152) <= 2 ** 31
