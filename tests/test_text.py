"""Text and tokens: what ends a completion, what a template adds, and that decoding and encoding keep the text."""
import json
import random
import string
import time
import types

import make_tiny
import pytest
import torch
import transformers
from conftest import load_policy
from test_scripts import run
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

import common
import evaluate
import ppo_passk
from support import load, text
from support import verifier as verifiers
from support.errors import UserError
from support.run import gold_completions
from tasks.embedded import Problem

CORPUS = ["def f(x):\n    return x + 1\n\n\nfor i in range(10):\n\tprint(i)\n",
          "    y = 1\n    return y  # tabs\t\tand spaces", "The answer is 42. 你好，世界！ 🙂🙂 naïve café",
          "what is 12 + 3 = 15 ?"] * 5
LLAMA_3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
           r"|\s+(?!\S)|\s+")


# --------------------------------------------------------------------------- tokenizers of all kinds, made of CORPUS

def fast(core, **special):
    return transformers.PreTrainedTokenizerFast(tokenizer_object=core, **special)


def around(pattern, core):
    """Special tokens that a tokenizer puts around every text, as '<s> $A'."""
    tokens = [name for name in pattern.split() if name != "$A"]
    core.post_processor = processors.TemplateProcessing(
        single=pattern, special_tokens=[(name, core.token_to_id(name)) for name in tokens])


def byte_level(regex=None, normalizer=None, start=False):
    """GPT-2, Llama 3 and Qwen."""
    core = Tokenizer(models.BPE())
    if normalizer:
        core.normalizer = normalizer
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=regex is None)
    if regex:
        core.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(regex), "isolated"),
                                                      core.pre_tokenizer])
    core.decoder = decoders.ByteLevel()
    core.train_from_iterator(CORPUS, trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False,
        special_tokens=["<|endoftext|>", "<|begin|>"]))
    if not start:
        return fast(core, eos_token="<|endoftext|>")
    around("<|begin|> $A", core)
    return fast(core, eos_token="<|endoftext|>", bos_token="<|begin|>")


def sentence_piece(kind):
    """BPE with byte fallback over ▁ for spaces, as in Llama 2, Mistral, Gemma and with a Metaspace that splits. No
    letter but those of ASCII has a token of its own."""
    space = {"llama": (normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]), None),
             "mistral": (None, pre_tokenizers.Metaspace(prepend_scheme="first", split=False)),
             "gemma": (normalizers.Replace(" ", "▁"), None),
             "metaspace": (None, pre_tokenizers.Metaspace(prepend_scheme="always", split=True))}
    core = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    normalizer, pre_tokenizer = space[kind]
    if normalizer:
        core.normalizer = normalizer
    if pre_tokenizer:
        core.pre_tokenizer = pre_tokenizer
    special = ["<unk>", "<s>", "</s>"]
    known = [line.encode("ascii", "ignore").decode().replace("\n", " ").replace("\t", " ") for line in CORPUS]
    core.train_from_iterator(known, trainers.BpeTrainer(
        vocab_size=400, special_tokens=special + [f"<0x{b:02X}>" for b in range(256)], show_progress=False))
    state = json.loads(core.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] in special]
    core = Tokenizer.from_str(json.dumps(state))
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    if kind == "gemma":
        steps.pop()
    if kind == "metaspace":
        steps = [decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="always")]
    core.decoder = decoders.Sequence(steps)
    around("<s> $A", core)
    return fast(core, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def unigram(normalizer=None):
    """As in T5, whose normalizer makes one space of several, of tabs and of newlines."""
    core = Tokenizer(models.Unigram())
    if normalizer:
        core.normalizer = normalizer
    core.pre_tokenizer, core.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    core.train_from_iterator(CORPUS + [*string.printable], trainers.UnigramTrainer(
        vocab_size=200, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False))
    around("$A </s>", core)
    return fast(core, eos_token="</s>", unk_token="<unk>", pad_token="<pad>")


def word_level(characters):
    """A token for each character, or for each word between spaces."""
    words = {word for line in CORPUS for word in line.split()}
    letters = {*"".join(CORPUS), *string.printable}
    found = ["<eos>", "<unk>", *sorted(letters if characters else words)]
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(found)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if characters:
        core.pre_tokenizer, core.decoder = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated"), decoders.Fuse()
    return fast(core, eos_token="<eos>", unk_token="<unk>")


def word_piece():
    core = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    core.normalizer, core.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    core.decoder = decoders.WordPiece()
    core.train_from_iterator(CORPUS, trainers.WordPieceTrainer(
        vocab_size=300, special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[EOS]"], show_progress=False))
    around("[CLS] $A [SEP]", core)
    return fast(core, eos_token="[EOS]", sep_token="[SEP]", cls_token="[CLS]", unk_token="[UNK]", pad_token="[PAD]")


ONE_SPACE = normalizers.Sequence([normalizers.Nmt(), normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
KINDS = {"gpt2": byte_level, "llama3": lambda: byte_level(LLAMA_3, start=True),
         "qwen": lambda: byte_level(LLAMA_3.replace("{1,3}", ""), normalizers.NFC()),
         "llama2": lambda: sentence_piece("llama"), "mistral": lambda: sentence_piece("mistral"),
         "gemma": lambda: sentence_piece("gemma"), "metaspace": lambda: sentence_piece("metaspace"),
         "unigram": unigram, "t5": lambda: unigram(ONE_SPACE), "characters": lambda: word_level(True),
         "words": lambda: word_level(False), "wordpiece": word_piece}
ADDED = ["<answer>", "</answer>", "<think>", "</think>"]
PROMPTS = ["def f(x):\n", "what is 12 + 3 = ", "The answer is", "你好，", "🙂🙂\n\n", "x", "    y", "a\t",
           "Q: 42\n\nA:", "🙂" * 30 + "\n", "12<answer>"]
TEXTS = ["42", " 42", "    y = 1\n    return y", "\n\ndef f", "\tprint(i)", "你好，世界！", "🙂", "a  b   c    d", "",
         "\n", " ", "   ", "naïve café", "x\n", "x  ", ", and", "'s it", "a\r\nb", "1 + 2 = 3 .", "it 's n't .",
         "1+2<answer>3</answer>", "<answer>\n  42\n</answer>", "<think>hm</think> <answer>x</answer>",
         "a <answer> b", "<answer>你好</answer>🙂"]
# Which of TEXTS a tokenizer can write. T5's knows one kind of space, WordPiece and words none at the beginning or end,
# and always one between words, so the gold completion has to begin with it.
KEPT = dict.fromkeys(KINDS, TEXTS)
KEPT["t5"] = ["42", " 42", "🙂", "", " ", "naïve café", ", and", "'s it", "1 + 2 = 3 .", "it 's n't ."]
KEPT["words"] = [""]
KEPT["wordpiece"] = [" 42", ""]


class Bare:
    """In the place of a model: what Policy asks of one to talk to it."""
    def __init__(self, size):
        self.weight = range(size)  # of its embedding

    def get_base_model(self):
        return self

    get_input_embeddings = get_base_model


@pytest.fixture(scope="module")
def policy_of():
    """A policy that only talks, with a tokenizer of a kind, with or without ADDED tokens; made once."""
    made = {}

    def make(kind, added=False):
        if (kind, added) not in made:
            tokenizer = KINDS[kind]()
            if added:
                tokenizer.add_special_tokens({"additional_special_tokens": ADDED[:2]})
                tokenizer.add_tokens([AddedToken(ADDED[2], rstrip=True), ADDED[3]])
            made[kind, added] = common.Policy(Bare(len(tokenizer)), tokenizer, None, "", [tokenizer.eos_token_id])
        return made[kind, added]
    return make


@pytest.mark.parametrize("added", [False, True], ids=["", "added"])
@pytest.mark.parametrize("kind", KINDS)
def test_gold_completions_are_read_as_their_text(kind, added, policy_of):
    """After any prompt: the ids of prompt and gold completion are read as prompt and gold text; or there are none."""
    policy = policy_of(kind, added)
    for prompt in PROMPTS:
        x = policy.encode(prompt)
        before = text.read(policy.tokenizer, x)
        for wanted in TEXTS:
            y = policy.encode_solution(wanted, prompt)
            if wanted in KEPT[kind]:
                assert y, (prompt, wanted)
            if y:
                assert y.pop() == policy.tokenizer.eos_token_id and policy.decode(y, x) == wanted, (prompt, wanted)
                assert text.read(policy.tokenizer, x + y) == before + wanted, (prompt, wanted)
            whole = policy.encode(prompt + wanted)
            if y and whole[:len(x)] == x and policy.decode(whole[len(x):], x) == wanted:
                assert x + y == whole, (prompt, wanted)  # as the tokenizer writes it, where it can


@pytest.mark.parametrize("kind", KINDS)
def test_decoding_is_what_is_added(kind, policy_of):
    """Any tokens, after any prompt: no space, tag or newline is lost, whatever was drawn."""
    policy, rng = policy_of(kind, True), random.Random(0)
    t = policy.tokenizer
    silent = {t.bos_token_id, t.cls_token_id, t.pad_token_id, t.unk_token_id, t.eos_token_id}
    drawable, compared = sorted({*range(len(t))} - silent), 0
    for _ in range(200):
        x, y = policy.encode(rng.choice(PROMPTS)), rng.choices(drawable, k=rng.randrange(1, 8))
        whole = text.read(t, x + y)
        if text.CUT not in whole:
            assert whole == text.read(t, x) + policy.decode(y, x), (x, y)
            compared += 1
        noisy = [i for token in y for i in (token, rng.choice(sorted(silent - {t.eos_token_id, None}) or [token]))]
        if len(silent - {t.eos_token_id, None}):
            assert policy.decode([*noisy, t.eos_token_id], x) == policy.decode(y, x)
    assert compared > 20


@pytest.mark.parametrize("kind", ["gpt2", "llama2", "mistral", "gemma", "metaspace"])
def test_a_cut_character_leaves_the_others(kind, policy_of):
    policy, cut = policy_of(kind), 0
    for prompt in PROMPTS:
        x = policy.encode(prompt)
        for wanted in ("再见", "a\n😀", "😀😀", "\n再"):
            y = policy.encode_solution(wanted, prompt)
            for n in range(len(y)):
                found = policy.decode(y[:n], x)
                kept = found.rstrip(text.CUT)
                assert wanted.startswith(kept) and len(found) >= len(kept), (prompt, wanted, n, found)
                cut += found != kept
                if kind != "gpt2":  # each of these bytes is a token
                    assert kept == wanted.encode()[:n].decode(errors="ignore")
    assert cut > 20


def test_texts_belong_to_their_prompts(policy_of):
    """Words are joined by spaces where they do not begin a text, and pieces that go on with a word are not."""
    policy = policy_of("wordpiece")
    pieces = policy.tokenizer.get_vocab()
    tail, word = next(i for name, i in pieces.items() if name.startswith("##")), pieces["what"]
    inside = policy.tokenizer.convert_ids_to_tokens(tail)[2:]
    rows = [[tail], [word], [word, tail], [policy.stop[0]]]
    assert policy.texts(rows, policy.encode(["is", "x"])) == [inside, " what", " what" + inside, ""]
    llama = policy_of("llama2")
    body = "    return 1"
    assert llama.texts([llama.encode_solution(body, x) for x in PROMPTS[:3]], llama.encode(PROMPTS[:3])) == [body] * 3
    assert llama.decode(llama.encode_solution(body)) == body  # after no prompt in particular


def test_no_clean_up_of_spaces(policy_of):
    wanted = "if x != y : return ' a , b ?'"
    for kind in ("characters", "unigram"):
        policy = policy_of(kind)
        policy.tokenizer.clean_up_tokenization_spaces = True
        assert policy.decode(policy.encode_solution(wanted)) == wanted


# -------------------------------------------------------------------------------------------------------- what is added

def test_what_is_appended_does_not_end_a_prompt(policy_of):
    """[SEP] like </s>; a text of the template's start token gets no second one, in prompts and for a verifier."""
    for kind, start, added in (("wordpiece", ["[CLS]"], ["[SEP]"]), ("unigram", [], ["</s>"]), ("llama2", ["<s>"], [])):
        policy = policy_of(kind)
        name = policy.tokenizer.convert_ids_to_tokens
        ids = text.ids_of(policy.tokenizer, "what is")
        whole = policy.tokenizer("what is")["input_ids"]
        assert name(whole) == start + name(ids) + added
        assert name(policy.encode("what is")) == start + name(ids)
        again = "".join(start) + "what is"
        assert policy.encode([again, "what is"]) == [text.ids_of(policy.tokenizer, again), policy.encode("what is")]
        assert sum(i in policy.tokenizer.all_special_ids for i in policy.encode(again)) == len(start)
        found = verifiers.Verifier(None, policy.tokenizer, "", {}).encode(again, "")
        assert found == policy.encode(again) + [policy.tokenizer.eos_token_id]


def llama_folder(path, tokenizer, eos=0, **more):
    """A random model of two small layers with this tokenizer."""
    config = transformers.LlamaConfig(**{**dict(
        hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, vocab_size=len(tokenizer),
        max_position_embeddings=128, bos_token_id=None, eos_token_id=0, pad_token_id=0), **more})
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    model.generation_config = transformers.GenerationConfig(eos_token_id=eos)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return str(path)


def test_gold_of_other_problems_is_not_compared(tmp_path):
    """A tokenizer that does not know "*" has fewer gold completions than one that does."""
    other = llama_folder(tmp_path / "m", make_tiny.make_tokenizer(make_tiny.CHARACTERS.replace("*", "")))
    for pair, compared in ((("tiny", other), False), ((other, other + "/"), True)):
        out = tmp_path / str(compared)
        code, _, err = run(evaluate.main, *pair, "--problems", 20, "--samples", 2, "--k", 1, "--out", out)
        found, = json.loads((out / "result.json").read_text())["paired"].values()
        assert code == 0 and "pass@1" in found and ("gold" in found) == compared, err


def test_nothing_left_of_a_prompt(tmp_path):
    """One sentence with the line of the file, before anything is sampled; and of the sampler itself."""
    core = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(["<eos>", "[CLS]", *"0123456789+= "])}, merges=[]))
    core.decoder = decoders.Fuse()
    core.add_special_tokens(["<eos>", "[CLS]"])
    around("[CLS] $A <eos>", core)
    folder = llama_folder(tmp_path / "m", fast(core, eos_token="<eos>", cls_token="[CLS]"))
    policy = load_policy(folder, bits=32)
    assert policy.encode(["1+2=", "你好"]) == [[1, 3, 12, 4, 13], []]
    with pytest.raises(UserError, match="no tokens after tokenization"):
        common.sample(policy, policy.encode(["1+2=", "你好"]), 2, [0, 1])
    data = tmp_path / "sums.jsonl"
    lines = [{"prompt": x, "answer": "3", "split": split} for split, x in (("train", "1+2="), ("train", "你好"),
                                                                           ("test", "3+0="))]
    data.write_text("\n" + "\n".join(map(json.dumps, lines)))
    code, _, err = run(ppo_passk.main, "--model", folder, "--data", data, "--out", tmp_path / "r", "--no-chat",
                       "--max-new-tokens", 4)
    assert code == 2 and "sums.jsonl:3: " in err and "'你好'" in err and "Traceback" not in err


def test_gold_completions_that_cannot_be_written_are_counted(policy_of, capsys, monkeypatch):
    monkeypatch.setattr(common.Policy, "positions", 1000)
    policy, task = policy_of("qwen"), types.SimpleNamespace(name="t", chat=False, target=lambda p, kind: p.solution)
    solutions = ["é", "e\u0301", None, "42", "42<|endoftext|>"]  # the second would be read as the first
    problems = [types.SimpleNamespace(id=i, prompt="x:", solution=y) for i, y in enumerate(solutions)]
    kept, golds = gold_completions(policy, task, problems)
    said = capsys.readouterr().out
    assert [p.id for p in kept] == [0, 3] and "2 of 5 gold completions cannot be written" in said
    assert said.count("cannot be written") == 1 and "left out 3 of 5" in said
    assert [policy.decode(golds[p.id], policy.encode(p.prompt)) for p in kept] == ["é", "42"]
    with pytest.raises(UserError):
        gold_completions(policy, task, problems[1:3])


# ----------------------------------------------------------------------------------------------------------------- ends

def tiny_tokenizer(eos="<eos>", added=()):
    """That of the embedded models, 28 tokens; eos: which of them, or None."""
    tokenizer = load.load_base("tiny", 32)[1]
    tokenizer.add_special_tokens({"additional_special_tokens": [*added]})
    tokenizer.eos_token = eos
    return tokenizer


@pytest.mark.parametrize("role", ["pad_token", "unk_token", "bos_token"])
def test_a_digit_that_has_a_role_is_text(role):
    """As where a model is padded with `!` or `0`; what has a name of its own is silent."""
    tokenizer = tiny_tokenizer()
    setattr(tokenizer, role, "0")
    assert text.decode(tokenizer, [text.ids_of(tokenizer, "10*20")]) == ["10*20"]
    setattr(tokenizer, role, "<unk>")
    assert text.decode(tokenizer, [[tokenizer.convert_tokens_to_ids("<unk>"), *text.ids_of(tokenizer, "7")]]) == ["7"]


@pytest.mark.parametrize("eos,told,stop,words", [
    (">", 0, [0, 18], ["'<eos>' (0) of its generation_config or '>' (18) of its tokenizer"]),
    (None, 0, [0], ["'<eos>' (0) of its generation_config"]), ("<eos>", None, [0], ["'<eos>' (0) of its tokenizer"]),
    (">", [0, 5], [0, 5, 18], ["'3' (5) of its generation_config"]),
    ("<eos>", [0, 9], [0, 9], ["'<eos>' (0) of its generation_config and tokenizer"])])
def test_ends(eos, told, stop, words, tmp_path):
    """Every one counts, 0 too, and the policy's line says which and why."""
    policy = load_policy(llama_folder(tmp_path, tiny_tokenizer(eos), told), bits=32)
    assert policy.stop == stop and all(word in policy.note for word in words)


def test_an_end_that_is_no_token(tmp_path):
    folder = llama_folder(tmp_path, tiny_tokenizer())
    for value in ("0", 0.0, True, [0, "2"]):
        (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": value}))
        with pytest.raises(UserError, match="end-of-sequence token of its generation_config is .* no token id"):
            load_policy(folder, bits=32)


@pytest.mark.parametrize("eos,told,words", [
    (None, 50256, "50256 of its generation_config"), ("<eos>", [0, 28], "28 of its generation_config"),
    ("<|end|>", 0, r"'<\|end\|>' \(28\) of its tokenizer"), (None, None, "no end-of-sequence token")])
def test_ends_that_the_model_cannot_say(eos, told, words, tmp_path):
    tokenizer = tiny_tokenizer(eos, ["<|end|>"] if eos == "<|end|>" else [])
    with pytest.raises(UserError, match=words):
        load_policy(llama_folder(tmp_path, tokenizer, told, vocab_size=28), bits=32)


# ------------------------------------------------------------------------------------------------------------ templates

TURNS = "{%% for m in messages %%}%s{%% endfor %%}{%% if add_generation_prompt %%}%s{%% endif %%}"
CHATML = TURNS % ("<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n", "<|im_start|>assistant\n")
PHI = TURNS % ("<|{{ m.role }}|>\n{{ m.content }}<|end|>\n", "<|assistant|>\n") + (
    "{% if not add_generation_prompt %}<eos>{% endif %}")
MISTRAL = ("<s>{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]{% else %} "
           "{{ m.content | trim }}<eos>{% endif %}{% endfor %}")
GLM = TURNS % ("<|{{ m.role }}|>\n{{ m.content }}", "<|assistant|>\n")
VICUNA = TURNS % ("{{ m.role }}: {{ m.content }}\n", "assistant:")
MARKS = ["<|im_start|>", "<|im_end|>", "<|end|>", "<|user|>", "<|assistant|>", "<s>"]


@pytest.mark.parametrize("template,end", [(CHATML, "<|im_end|>"), (PHI, "<|end|>"), (MISTRAL, "<eos>"),
                                          (GLM, "<|user|>"), (VICUNA, None)])
def test_the_end_of_a_turn_stops(template, end, tmp_path):
    """Through the template, and only there: the first token after the answer ends a completion, and a gold one."""
    tokenizer = tiny_tokenizer(added=MARKS)
    tokenizer.chat_template = template
    policy = load_policy(llama_folder(tmp_path, tokenizer, vocab_size=len(tokenizer) + 5), bits=32)
    task = types.SimpleNamespace(chat=False)
    assert load.put_prompts(policy, task) == "as they are" and policy.stop == [0]
    assert policy.encode_solution("7*3", "c7>")[-1] == 0
    task.chat = True
    how = load.put_prompts(policy, task)
    token = 0 if end is None else tokenizer.convert_tokens_to_ids(end)
    assert policy.stop == sorted({0, token}) and policy.end == token and ("turns end" in how) == (end is not None)
    assert end is None or f"'{end}' ({token})" in how
    assert policy.encode_solution("7*3", "c7>", chat=True) == [*text.ids_of(tokenizer, "7*3"), token]
    drawn = common.sample(policy, policy.encode(["c7>"], True), 400, [0], max_new_tokens=30).lists()[0]
    assert not any({*row[:-1]} & {0, token} for row in drawn) and {0, token} <= {row[-1] for row in drawn}
    shown = [policy.decode(row) for row in drawn]
    assert any("<|assistant|>" in found for found in shown) and not any("<eos>" in found for found in shown)
    assert end is None or not any(end in found for found in shown)


@pytest.mark.parametrize("template,end", [(CHATML, "<|im_end|>"), (PHI, "<|end|>"), (MISTRAL, "<eos>"),
                                          (GLM, "<|user|>"), (VICUNA, None)])
def test_prompts_that_have_been_through_the_template(template, end, tmp_path):
    """They do not go through it again, and the end of a turn ends completions all the same."""
    tokenizer = tiny_tokenizer(added=MARKS)
    tokenizer.chat_template = template
    policy = load_policy(llama_folder(tmp_path, tokenizer, vocab_size=len(tokenizer) + 5), bits=32)

    def put(prompts, chat=None, system=None):
        policy.stop, policy.end = [0], None
        task.train, task.chat = [Problem(str(i), prompt, "3") for i, prompt in enumerate(prompts)], True
        return load.put_prompts(policy, task, chat, system)
    task = types.SimpleNamespace(train=[], valid=[], test=[], understood="read")
    plain = ["7*3", "1+2: <assistant>", "assistant"]
    assert "through the chat template" in put(plain) and task.chat
    stop = list(policy.stop)
    written = [text.put(tokenizer, prompt) for prompt in plain]
    for some in (written, [prompt + "<think>\n\n</think>\n" for prompt in written]):
        assert "as they are, with the chat template in them" in put(some) and not task.chat
        assert policy.stop == stop and policy.end == (tokenizer.convert_tokens_to_ids(end) if end else 0)
        assert policy.put(some, task.chat) == (some, False)
        with pytest.raises(UserError, match="--chat: 3 of 3 prompts have been through the chat template"):
            put(some, chat=True)
        with pytest.raises(UserError, match="--system: 3 of 3"):
            put(some, system="12")
        with pytest.raises(UserError, match="3 of 6 prompts .*--no-chat"):
            put(some + plain)
        assert "as they are" in put(some + plain, chat=False)
    turns = [text.Chat([("user", prompt)]) for prompt in written]
    assert "through the chat template" in put(turns)


def test_a_turn_that_ends_without_an_embedding(tmp_path):
    tokenizer = tiny_tokenizer(added=MARKS)
    tokenizer.chat_template = CHATML
    policy = load_policy(llama_folder(tmp_path, tokenizer, vocab_size=28), bits=32)
    with pytest.raises(UserError, match="no embedding|template"):
        load.put_prompts(policy, types.SimpleNamespace(chat=True))


def talker(template):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    return common.Policy(Bare(len(tokenizer)), tokenizer, None, "", [0])


def test_the_clock_of_a_template_stands_still(monkeypatch):
    """As Llama 3 asks for the day, in any format: prompts do not depend on when a run began or went on."""
    written = ("{%% if strftime_now is defined %%}{%% set day = strftime_now(%s) %%}{%% endif %%}"
               + "{%% for m in messages %%}{{ day }}:{{ m.content }}{%% endfor %%}")
    for call, day in (('"%d %b %Y"', "26 Jul 2024"), ("'%f'", "000000"), (' "%H" ', "00")):
        policy, task = talker(written % call), types.SimpleNamespace(chat=True)
        assert "whose clock says 26 Jul 2024" in load.put_prompts(policy, task)
        rows = []
        for _ in range(2):
            time.sleep(0.001)
            rows.append(policy.put(["c1>"], True))
        assert rows[0] == rows[1] == ([f"{day}:c1>"], True)
    with pytest.raises(UserError, match="time"):
        load.put_prompts(talker(written % "format"), types.SimpleNamespace(chat=True))
    assert "clock" not in load.put_prompts(talker(VICUNA), types.SimpleNamespace(chat=True))


def test_a_system_message_that_is_left_out():
    task, ignoring = types.SimpleNamespace(chat=True), VICUNA.replace("messages", "messages[-1:]")
    with pytest.raises(UserError, match="leaves the system message out"):
        load.put_prompts(talker(ignoring), task, system="12")
    assert "with a system message" in load.put_prompts(talker(VICUNA), task, system="12")
    load.put_prompts(talker(ignoring), task)


PARTS = "{% for p in m.content %}{{ p.text }}{% endfor %}"


@pytest.mark.parametrize("template", [VICUNA.replace("{{ m.content }}", PARTS), VICUNA.replace("{{ m.content }}", "")])
def test_what_the_user_says_is_left_out(template):
    """All prompts would be alike: a template that looks for parts in a text, one that takes no content."""
    with pytest.raises(UserError, match="leaves out what the user says"):
        load.put_prompts(talker(template), types.SimpleNamespace(chat=True))
    assert load.put_prompts(talker(template), types.SimpleNamespace(chat=False)) == "as they are"


@pytest.mark.parametrize("role", ["user", "assistant"])
def test_a_verifier_that_would_not_see_a_text(role):
    """A template that leaves one of both out would give all completions, or all prompts, one score."""
    others = VICUNA.replace("{{ m.content }}", "{% if m.role != '" + role + "' %}{{ m.content }}{% endif %}")
    verifier = verifiers.Verifier(None, talker(others).tokenizer, "", {})
    with pytest.raises(UserError, match=f"verifier leaves out what the {role} says"):
        verifier.encode("1", "2", chat=True)
    assert verifier.encode("1", "2") != verifier.encode("1", "3")
    verifier = verifiers.Verifier(None, talker(VICUNA).tokenizer, "", {})
    assert verifier.encode("1", "2", chat=True) != verifier.encode("1", "3", chat=True)


def test_system_messages_of_the_data_are_left_out():
    prompts = ["12", text.Chat([("system", "3"), ("user", "4")])]
    problems = [Problem(prompt, prompt, "1") for prompt in prompts]
    task = types.SimpleNamespace(chat=True, understood="two", train=problems, valid=[], test=[])
    ignoring = VICUNA.replace("messages", "messages[-1:]")
    with pytest.raises(UserError, match="a system message, which the chat template of this model leaves out"):
        load.put_prompts(talker(ignoring), task)
    load.put_prompts(talker(VICUNA), task)
    task.train = problems[:1]
    load.put_prompts(talker(ignoring), task)


def test_the_text_reaches_the_verifier(tmp_path):
    """Tags that are special tokens are in a pool, the end is not; the gold completion is scored where it can be."""
    tokenizer = tiny_tokenizer(added=ADDED[:2])
    policy = load_policy(llama_folder(tmp_path, tokenizer), bits=32)
    task = evaluate.tasks.load_task("countdown")
    pool = evaluate.draw_pool(policy, task, task.test[:4], 64)
    found = [y for entry in pool for y in entry["completions"]]
    assert any("<answer>" in y for y in found) and not any("<eos>" in y or "<unk>" in y for y in found)
    assert all("gold" in entry for entry in pool)
