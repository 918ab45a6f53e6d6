"""Sampler, scorer, precision, estimators and run folder of common.py."""
import collections
import itertools
import math
import random
import statistics
import time
import types

import pytest
import torch
from conftest import ROOT, load_policy

import common
import evaluate
from fast import packed as packing
from fast import shared
from fast.choose import Fast, choose_fast, takes_wide
from fast.folded import Product, folded, lora_layers
from support import decoding, load
from support import verifier as verifiers
from support.errors import UserError
from support.run import batch_of, gold_completions, weight_stats


def tiny_config(kind, vocabulary=30):
    """Random-weight configs of the common shapes, a few thousand parameters each."""
    import transformers as t
    small = dict(hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
                 num_key_value_heads=2, vocab_size=vocabulary, max_position_embeddings=128, bos_token_id=None,
                 eos_token_id=0, pad_token_id=0)
    return {"llama": lambda: t.LlamaConfig(**small),
            "qwen2": lambda: t.Qwen2Config(**small),
            "gemma": lambda: t.GemmaConfig(**small, head_dim=16),
            "gemma2": lambda: t.Gemma2Config(**small, head_dim=16, sliding_window=8),
            "gemma2-wide": lambda: t.Gemma2Config(**small, head_dim=16, sliding_window=128),
            "gemma3": lambda: t.Gemma3TextConfig(**small, head_dim=16),
            "mistral": lambda: t.MistralConfig(**small), "qwen3": lambda: t.Qwen3Config(**small, head_dim=16),
            "phi3": lambda: t.Phi3Config(**small), "smollm3": lambda: t.SmolLM3Config(**small),
            "olmo2": lambda: t.Olmo2Config(**small), "starcoder2": lambda: t.Starcoder2Config(**small),
            "neox": lambda: t.GPTNeoXConfig(**{k: v for k, v in small.items() if k != "num_key_value_heads"}),
            "bloom": lambda: t.BloomConfig(hidden_size=64, n_layer=2, n_head=4, vocab_size=vocabulary,
                                           bos_token_id=0, eos_token_id=0, pad_token_id=0),
            "mpt": lambda: t.MptConfig(d_model=64, n_layers=2, n_heads=4, vocab_size=vocabulary, max_seq_len=128,
                                       eos_token_id=0),
            "opt": lambda: t.OPTConfig(hidden_size=64, ffn_dim=64, num_hidden_layers=2, num_attention_heads=4,
                                       word_embed_proj_dim=64, vocab_size=vocabulary, max_position_embeddings=128,
                                       bos_token_id=0, eos_token_id=0, pad_token_id=1),
            "gpt2": lambda: t.GPT2Config(n_embd=64, n_layer=2, n_head=4, vocab_size=vocabulary, n_positions=128,
                                         bos_token_id=0, eos_token_id=0)}[kind]()


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory):
    """Folder with a random model of a kind and the embedded tokenizer, made once."""
    import transformers
    made = {}

    def make(kind):
        if kind not in made:
            made[kind] = tmp_path_factory.mktemp(kind)
            tokenizer = transformers.AutoTokenizer.from_pretrained(ROOT + "/models/tiny")
            torch.manual_seed(0)
            model = transformers.AutoModelForCausalLM.from_config(tiny_config(kind, len(tokenizer)))
            for p in model.parameters():
                if p.dim() > 1:
                    torch.nn.init.normal_(p, std=0.05 if kind.startswith("gemma2") else 0.2)
            model.save_pretrained(made[kind])
            tokenizer.save_pretrained(made[kind])
        return str(made[kind])
    return make


def shaken(policy, seed=0, scale=0.1):
    """Give the adapter random weights, so that it counts."""
    generator = torch.Generator().manual_seed(seed)
    for p in policy.parameters():
        p.data.copy_(torch.randn(p.shape, generator=generator) * scale)
    return policy


PROMPTS = ["c7,3,2,9:23>", "c1,2,3:6>", "r", "c8,8:64>", "rA3+8B7+4C9+5>"]


@torch.no_grad()
def plain_sample(policy, prompt, u, temperature):
    """One completion without cache, batch or padding: a full forward per token."""
    tokens, logps = [], []
    for x in u:
        logits = policy.lm(input_ids=torch.tensor([prompt + tokens])).logits[0, -1].double() / temperature
        logp = torch.log_softmax(logits, -1)
        token = int((logp.exp().cumsum(0) <= x).sum())
        tokens.append(token)
        logps.append(logp[token].item())
        if token in policy.stop:
            break
    return tokens, logps


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gemma", "gemma2", "gpt2", "opt"])
def test_sampler_equals_plain_decoding(folder_of, kind):
    """Same uniforms, same tokens and log-probabilities as decoding each row by itself: cache, unequal prompts, rows
    that leave the batch, chunks. And the scorer gives the sampler's log-probabilities."""
    policy = shaken(load_policy(folder_of(kind), bits=32))
    prompts = [policy.encode(p) for p in PROMPTS]
    for temperature, max_rows in ((1.0, None), (0.7, 7), (1.0, 2)):  # 2: the samples of one prompt in two turns
        drawn = common.sample(policy, prompts, 3, seeds=range(5), temperature=temperature, max_new_tokens=12,
                              max_rows=max_rows)
        tokens = drawn.lists()
        assert len({len(row) for rows in tokens for row in rows}) > 2  # rows did end at different times
        for b, prompt in enumerate(prompts):
            u = torch.rand(3, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(b))
            for i in range(3):
                wanted, logps = plain_sample(policy, prompt, u[i], temperature)
                assert tokens[b][i] == wanted
                assert torch.allclose(drawn.logps[b, i, :len(wanted)].double(), torch.tensor(logps).double(), atol=2e-5)
                assert (drawn.logps[b, i, len(wanted):] == 0).all()
        flat = [(prompts[b], tokens[b][i]) for b in range(5) for i in range(3)]
        scored = common.sequence_logps(policy, [p for p, _ in flat], [c for _, c in flat], temperature)
        assert torch.allclose(scored, drawn.logps.sum(-1).flatten().double(), atol=1e-4)


def test_sampler_follows_the_exact_distribution(folder_of):
    """All completions of at most 3 tokens, their exact probabilities, and a chi-square test over 20,000 draws."""
    policy = shaken(load_policy(folder_of("llama"), bits=32))
    head = policy.lm.get_output_embeddings().weight
    with torch.no_grad():
        head[5:] = 0  # four tokens with a life of their own
        policy.lm.lm_head.bias = torch.nn.Parameter(torch.cat([torch.zeros(5), torch.full((len(head) - 5,), -60.0)]))
    prompt, T = policy.encode("c7,3:21>"), 0.8
    exact = {}
    for length in (1, 2, 3):
        for tokens in itertools.product(range(5), repeat=length):
            if 0 in tokens[:-1] or length < 3 and tokens[-1] != 0:
                continue  # 0 is the end-of-sequence token
            exact[tokens] = common.sequence_logps(policy, [prompt], [list(tokens)], T).exp().item()
    assert sum(exact.values()) == pytest.approx(1.0, abs=1e-5)
    drawn = common.sample(policy, [prompt] * 20, 1000, seeds=range(20), temperature=T, max_new_tokens=3).lists()
    counts = collections.Counter(tuple(row) for rows in drawn for row in rows)
    assert set(counts) <= set(exact)
    chi2 = sum((counts[t] - 20000 * p) ** 2 / (20000 * p) for t, p in exact.items() if 20000 * p > 5)
    cells = sum(20000 * p > 5 for p in exact.values())
    assert cells > 20 and chi2 < cells + 5 * math.sqrt(2 * cells)


def test_draws_do_not_depend_on_the_batch():
    policy = load_policy("tiny", bits=32)
    prompts = [policy.encode(p) for p in PROMPTS]
    together = common.sample(policy, prompts, 4, seeds=range(5), max_new_tokens=12).lists()
    alone = [common.sample(policy, [p], 4, seeds=[b], max_new_tokens=12).lists()[0] for b, p in enumerate(prompts)]
    assert together == alone
    assert common.sample(policy, prompts, 4, seeds=range(1, 6), max_new_tokens=12).lists() != together


def test_generation_config_has_no_say(folder_of, tmp_path):
    """top_k, top_p and a temperature in a checkpoint's generation_config change nothing; all ends that it names are."""
    import json
    import shutil
    folder = folder_of("llama")
    shutil.copytree(folder, tmp_path / "m")
    (tmp_path / "m" / "generation_config.json").write_text(json.dumps(
        {"eos_token_id": 0, "do_sample": True, "top_k": 1, "temperature": 0.01, "top_p": 0.1}))
    a, b = (load_policy(str(f), bits=32) for f in (folder, tmp_path / "m"))
    prompts = [a.encode(p) for p in PROMPTS]
    assert common.sample(a, prompts, 2, range(5)).lists() == common.sample(b, prompts, 2, range(5)).lists()
    (tmp_path / "m" / "generation_config.json").write_text(json.dumps({"eos_token_id": [9, 7]}))
    assert load_policy(str(tmp_path / "m"), bits=32).stop == [0, 7, 9]


def gradient(policy, prompts, completions, weights, **options):
    """Value and gradient of sum_i w_i log pi(y_i)."""
    for p in policy.parameters():
        p.grad = None
    value = 0.0
    for index, logps, mask in common.score(policy, prompts, completions, **options):
        part = (logps.sum(-1) * weights[index]).sum()
        part.backward()
        value += part.item()
    return value, torch.cat([p.grad.flatten() for p in policy.parameters()])


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_loss_and_gradient_do_not_depend_on_batching(folder_of, kind):
    """Micro-batch size, order, and padding: against one unpadded row at a time through the plain model."""
    policy = shaken(load_policy(folder_of(kind), bits=32))
    rng = random.Random(0)
    prompts = [policy.encode(rng.choice(PROMPTS)) for _ in range(9)]
    completions = [[rng.randrange(1, 20) for _ in range(rng.randint(1, 9))] + [0] for _ in prompts]
    weights = torch.tensor([rng.gauss(0, 1) for _ in prompts])
    T = 1.3
    for p in policy.parameters():
        p.grad = None
    total = 0.0
    for x, y, w in zip(prompts, completions, weights):
        logits = policy.lm(input_ids=torch.tensor([x + y])).logits[0, len(x) - 1:-1] / T
        total = total + w * torch.log_softmax(logits, -1)[torch.arange(len(y)), y].sum()
    total.backward()
    plain = torch.cat([p.grad.flatten() for p in policy.parameters()])
    for max_tokens in (1, 30, 10 ** 6):
        value, found = gradient(policy, prompts, completions, weights, temperature=T, max_tokens=max_tokens)
        assert value == pytest.approx(total.item(), rel=1e-5)
        assert (found - plain).norm() < 1e-5 * plain.norm()
    order = list(range(9))
    rng.shuffle(order)
    value, found = gradient(policy, [prompts[i] for i in order], [completions[i] for i in order], weights[order],
                            temperature=T)
    assert (found - plain).norm() < 1e-5 * plain.norm()


def test_long_completions_share_rows_in_parts(folder_of):
    """More of them than fit a row of PACK tokens: two to a row, the fifth alone, each scored once and as by itself."""
    policy, rng = shaken(load_policy(folder_of("llama"), bits=32)), random.Random(0)
    prompt = policy.encode(PROMPTS[0])
    completions = [[rng.randrange(1, 20) for _ in range(n)] for n in (60, 50, 64, 55, 58)]
    parts = list(common.score(policy, [prompt] * 5, completions, 1.3))
    assert policy.fast and sorted(i for index, *_ in parts for i in index.tolist()) == list(range(5))
    for index, logps, mask in parts:
        for i, row, own in zip(index.tolist(), logps, mask):
            y = completions[i]
            logits = policy.lm(input_ids=torch.tensor([prompt + y])).logits[0, len(prompt) - 1:-1] / 1.3
            assert torch.allclose(row[:len(y)], torch.log_softmax(logits, -1)[torch.arange(len(y)), y], atol=1e-4)
            assert own.sum() == len(y) and (row[len(y):] == 0).all()


# ------------------------------------------------------------------------------------------------------------ precision

@pytest.mark.parametrize("kind", ["llama", "qwen2", "gemma", "gpt2", "opt", "gemma2-wide"])
def test_fast_path_equals_plain(folder_of, kind, monkeypatch):
    """The adapter folded into the weights, and rows that hold several completions of a prompt: the tokens, the
    log-probabilities and the gradients of common.py alone, one completion to a row."""
    policy, packed = shaken(load_policy(folder_of(kind), bits=32)), []
    decode_packed, score_packs = packing.decode_packed, packing.score_packs

    def spy(policy, prompts, u, temperature):
        packed.append(u.shape[2])
        return decode_packed(policy, prompts, u, temperature)

    def spy_packs(policy, prompts, completions, packs, *rest):
        packed.append(max(map(len, packs)))
        return score_packs(policy, prompts, completions, packs, *rest)
    monkeypatch.setattr(packing, "decode_packed", spy)
    monkeypatch.setattr(packing, "score_packs", spy_packs)
    prompts = [policy.encode(p) for p in PROMPTS * 5]  # enough for the products that become convolutions
    samples = common.sample(policy, prompts, 8, seeds=range(25), max_new_tokens=10)
    drawn = samples.lists()
    rows = [(b, i) for b in range(25) for i in range(8) if (3 * b + i) % 4]  # not every completion of every prompt
    args = ([prompts[b] for b, _ in rows], [drawn[b][i] for b, i in rows],
            torch.randn(len(rows), generator=torch.Generator().manual_seed(0)))
    found, grads = gradient(policy, *args)
    few, grads_few = gradient(policy, *args, max_tokens=64)
    assert len(packed) == 3 and min(packed) > 1  # rows of several completions, in sampling and in both updates
    layers, policy.fast = policy.fast, None
    apart = common.sample(policy, prompts, 8, seeds=range(25), max_new_tokens=10)
    assert apart.lists() == drawn and torch.allclose(apart.logps, samples.logps, atol=1e-4)
    assert torch.allclose(apart.entropies, samples.entropies, atol=1e-4) and len(packed) == 3
    plain, wanted = gradient(policy, *args)
    assert found == pytest.approx(plain, rel=1e-4) and few == pytest.approx(plain, rel=1e-4)
    tolerance = 1e-3 if kind == "opt" else 1e-4  # a rounding may switch one of OPT's ReLUs
    for g in (grads, grads_few):
        assert (g - wanted).norm() <= tolerance * wanted.norm()
    if kind == "gemma2-wide":  # transformers' own forward is NaN in float64
        return
    policy.model.double()
    plain, wanted = gradient(policy, *args)
    policy.fast = layers
    found, grads = gradient(policy, *args)
    # norms stay in float32
    assert found == pytest.approx(plain, rel=1e-5) and (grads - wanted).norm() <= 1e-5 * wanted.norm()


@pytest.mark.parametrize("kind", ["mistral", "qwen3", "gemma3", "phi3", "smollm3", "olmo2", "starcoder2", "neox"])
def test_the_fast_path_is_not_lost(folder_of, kind):
    """Architectures that have had it: a change of a library that takes it from one of them is seen here."""
    policy = load_policy(folder_of(kind), bits=32)
    assert policy.fast.packs
    assert policy.note.endswith("fast (adapter folded into the weights, samples of a prompt share a row)")


SIXTEEN = ["llama", "qwen2", "qwen3", "gemma", "gemma2", "gemma3", "gpt2", "opt", "neox", "bloom", "mpt", "mistral",
           "phi3", "smollm3", "olmo2", "starcoder2"]


@pytest.mark.parametrize("kind", SIXTEEN)
def test_shared_prompts_equal_plain(folder_of, kind, monkeypatch):
    """A prompt's keys and values computed once for its completions, as a real model has it: the tokens, the
    log-probabilities and the gradients of common.py alone, whatever the micro-batch, also of one token, logits too."""
    policy = shaken(load_policy(folder_of(kind), bits=32))
    prompts = [policy.encode(p) for p in PROMPTS]
    policy.fast = None
    drawn = common.sample(policy, prompts, 6, seeds=range(5), max_new_tokens=10)
    rows = [(b, i) for b in range(5) for i in range(6) if (3 * b + i) % 4]
    y = drawn.lists()
    args = ([prompts[b] for b, _ in rows], [y[b][i][:1 if i == 5 else None] for b, i in rows],
            torch.randn(len(rows), generator=torch.Generator().manual_seed(0)))
    plain, wanted = gradient(policy, *args)
    logits = {i: (z, own) for index, zs, owns in common.score(policy, *args[:2], logits=True)
              for i, z, own in zip(index.tolist(), zs.detach(), owns)}
    policy.fast = Fast(lora_layers(policy), False)
    assert choose_fast(policy)[0]
    monkeypatch.setattr(Fast, "pays", lambda *_: True)  # of a pool as uneven as some of these it does not
    again = common.sample(policy, prompts, 6, seeds=range(5), max_new_tokens=10)
    assert again.lists() == y and torch.allclose(again.logps, drawn.logps, atol=1e-4)
    tolerance = 1e-3 if kind == "opt" else 1e-4  # a rounding may switch one of OPT's ReLUs
    for max_tokens in (1, 60, 10 ** 6):
        found, grads = gradient(policy, *args, max_tokens=max_tokens)
        assert found == pytest.approx(plain, rel=1e-4) and (grads - wanted).norm() <= tolerance * wanted.norm()
    seen = []
    for index, zs, owns in common.score(policy, *args[:2], logits=True, max_tokens=60):
        for i, z, own in zip(index.tolist(), zs, owns):
            n = int(own.sum())
            assert n == len(args[1][i]) and torch.allclose(z[:n], logits[i][0][:n], atol=1e-3)
            seen.append(i)
    assert sorted(seen) == list(range(len(rows)))


@pytest.mark.parametrize("kind", SIXTEEN)
def test_decoding_under_a_wide_mask(folder_of, kind):
    """As on a GPU: the draws of common.py alone where a model takes a 4-D mask; Bloom, whose bias needs a 2-D one, does
    not."""
    policy = shaken(load_policy(folder_of(kind), bits=32))
    prompts = [policy.encode(p) for p in PROMPTS]
    policy.fast = None
    drawn = common.sample(policy, prompts, 6, seeds=range(5), max_new_tokens=10)
    taken = takes_wide(policy)
    assert taken is (kind != "bloom")
    if taken:
        policy.fast = Fast([], False, True)
        again = common.sample(policy, prompts, 6, seeds=range(5), max_new_tokens=10)
        assert again.lists() == drawn.lists() and torch.allclose(again.logps, drawn.logps, atol=1e-4)


@pytest.mark.parametrize("bits", [4, 16])
def test_shared_prompts_of_a_quantised_base(bits):
    policy = shaken(load_policy("tiny", bits=bits))
    assert policy.fast and not policy.fast.packs and not policy.fast.layers and "float32" in policy.note
    prompts = [policy.encode(p) for p in PROMPTS[:2] for _ in range(4)]
    ys = [policy.encode_solution(y) for y in ("2*7+9", "7*2+9", "3", "", "1+1", "9", "8-7*2", "4")]
    found = common.sequence_logps(policy, prompts, ys)
    policy.fast = None
    assert torch.allclose(found, common.sequence_logps(policy, prompts, ys), atol=1e-4 if bits == 4 else 0.2)


def test_sharing_is_chosen_by_cost():
    """Where a prompt is short beside its completions, or has one, two forward passes cost more than they save."""
    policy = load_policy("tiny", bits=4)
    for L, T, n, pays in ((47, 4, 8, True), (47, 24, 8, True), (4, 64, 8, False), (47, 4, 1, False)):
        assert policy.fast.pays([[1] * L] * n, [[1] * T] * n, 2048, False) is pays
    # completions of a prompt are padded to its longest
    assert not policy.fast.pays([[1] * 47] * 8, [[1]] * 7 + [[1] * 200], 2048, False)


def test_prompts_are_read_in_slices(monkeypatch):
    """Reading prompts takes memory by their tokens, however few samples each has."""
    policy, read = load_policy("tiny"), []
    policy.fast = None
    monkeypatch.setattr(common.Policy, "positions", 10 ** 6)

    def decode(policy, prompts, u, temperature):
        read.append(sum(map(len, prompts)))
        return torch.ones(u.shape).long(), *torch.zeros(2, *u.shape), torch.ones(u.shape[:2]).long()
    monkeypatch.setattr(common, "decode", decode)
    common.sample(policy, [[1] * 3000] * 12, 1, range(12), max_new_tokens=2, max_rows=100)
    assert sum(read) == 36000 and max(read) <= 2 ** 14


def test_the_cache_grows_in_place(folder_of):
    """Keys and values are copied when there is no room behind them, and not for each token."""
    policy = load_policy(folder_of("llama"), bits=32)
    ids = torch.randint(3, 20, (3, 40))
    mask = torch.ones_like(ids)
    with torch.no_grad():
        wanted = policy.lm(input_ids=ids).logits
        cache = policy.lm(input_ids=ids[:, :5], use_cache=True).past_key_values
        decoding.make_room(cache)
        places, rows = set(), torch.arange(3)
        for t in range(5, 40):
            if t == 20:
                rows = torch.tensor([2, 0])
                cache.batch_select_indices(rows)
            logits = policy.forward(ids[rows, t:t + 1], mask[rows, :t + 1], torch.full((len(rows), 1), t), 1,
                                    past_key_values=cache, use_cache=True).logits
            assert torch.allclose(logits[:, 0], wanted[rows, t], atol=1e-4)
            places.add(cache.layers[0].keys.data_ptr())
    assert 3 < len(places) < 12 and cache.layers[0].keys.shape[2] == 40


@pytest.mark.parametrize("V", [4096, 4097, 5000, 8192, 49152])
def test_draw_of_a_large_vocabulary(V):
    """Block sums first, then the tokens of one block: the token of a float64 cumulative sum of all, unless u lies
    within 1e-6 of a boundary; tokens without probability are never drawn, the far tail is."""
    generator = torch.Generator().manual_seed(V)
    logits = 6 * torch.randn(4, V, generator=generator)
    logits[1, 100:] = -math.inf
    logits[2, ::2] = -math.inf
    logits[3, -1] = logits[3].logsumexp(0) - 14  # a last token of 8e-7
    p = logits.softmax(-1)
    cdf = p.double().cumsum(-1)
    cdf /= cdf[:, -1:].clone()
    for u in (*torch.rand(300, dtype=torch.float64, generator=generator).tolist(), 0.0, 1 - 4e-7, 1 - 2 ** -53):
        token = common.draw(p, torch.full((4, 1), u, dtype=torch.float64))
        assert token.shape == (4, 1) and (p.gather(1, token) > 0).all()
        upto, below = cdf.gather(1, token), torch.nn.functional.pad(cdf, (1, 0)).gather(1, token)
        assert ((below - 1e-6 <= u) & (u <= upto + 1e-6)).all()
    assert common.draw(p[3:], torch.tensor([[1 - 4e-7]], dtype=torch.float64)).item() == V - 1
    u = torch.full((4, 2, 1), 0.3, dtype=torch.float64)
    assert torch.equal(common.draw(p[:, None].expand(4, 2, V), u)[:, 1], common.draw(p, u[:, 0]))
    assert (common.draw(torch.full((4, V), torch.nan), u[:, 0]) < V).all()  # an id that there is


def test_the_path_taken_is_said(folder_of, monkeypatch):
    for kind, why in (("bloom", "BloomForCausalLM under a 4-D mask"), ("mpt", "under a 4-D mask: different log-prob")):
        policy = load_policy(folder_of(kind), bits=32)
        assert policy.fast and not policy.fast.packs and why in policy.note
    policy = load_policy(folder_of("llama"), bits=32)
    for module, name in ((packing, "score_packs"), (shared, "score_shared")):
        monkeypatch.setattr(module, name, lambda *rest: iter([(torch.arange(2), torch.ones(2, 3), None)]))
    assert choose_fast(policy) == (None, "plain (LlamaForCausalLM with shared keys and values: different "
                                         "log-probabilities)")
    monkeypatch.undo()
    monkeypatch.setattr(load, "free_memory", lambda device: 10 ** 5)
    policy.size = 10 ** 8
    found, why = choose_fast(policy)
    assert not found.layers and "quarter of the memory" in why


def test_an_unexpected_error_is_not_swallowed(folder_of, monkeypatch):
    """Only what models raise at a mask of another shape means that they cannot; anything else is a mistake."""
    policy = load_policy(folder_of("llama"), bits=32)
    forward = policy.lm.forward
    monkeypatch.setattr(policy.lm, "forward", lambda attention_mask=None, **rest: forward(
        attention_mask=attention_mask if attention_mask.dim() == 2 else attention_mask.renamed, **rest))
    with pytest.raises(AttributeError):
        choose_fast(policy)


def test_a_product_keeps_the_bias():
    """With weights as [out, in] and as GPT-2 has them, few rows and enough for a convolution."""
    from transformers.pytorch_utils import Conv1D
    for base in (torch.nn.Linear(16, 24), Conv1D(24, 16)):
        weight = torch.randn_like(base.weight)
        torch.nn.init.normal_(base.bias)  # the biases of the random models above are zeros
        product = Product(base, weight - base.weight)
        for shape in ((2, 3, 16), (32, 64, 16)):
            x = torch.randn(shape)
            wanted = x @ (weight if isinstance(base, Conv1D) else weight.T) + base.bias
            assert torch.allclose(product(x), wanted, atol=1e-4) and x.numel() in (96, 2 ** 15)


def test_reference_is_folded_too(tmp_path):
    """Base and frozen start give the same log-probabilities on both paths."""
    first = shaken(load_policy("tiny"))
    first.model.save_pretrained(tmp_path, save_embedding_layers=False)
    policy = load_policy("tiny", adapter=str(tmp_path))
    shaken(policy, seed=1)
    prompts, ys = [policy.encode(PROMPTS[0])] * 3, [policy.encode_solution(y) for y in ("2*7+9", "7*2+9", "3")]
    layers = policy.fast
    for kind in ("start", "base"):
        policy.reference_kind, policy.fast = kind, layers
        with policy.reference():
            folded = common.sequence_logps(policy, prompts, ys)
            policy.fast = None
            plain = common.sequence_logps(policy, prompts, ys)
        own = common.sequence_logps(policy, prompts, ys)
        assert layers and torch.allclose(folded, plain, atol=1e-4) and (folded - own).abs().min() > 1e-3


def test_a_model_that_ignores_the_mask_is_not_packed(folder_of, monkeypatch):
    """What counts is what the model does with a 4-D mask, tried once; then the plain path is taken."""
    policy = shaken(load_policy(folder_of("llama"), bits=32))
    forward = policy.lm.forward
    monkeypatch.setattr(policy.lm, "forward", lambda attention_mask=None, **rest: forward(
        attention_mask=None if attention_mask is not None and attention_mask.dim() == 4 else attention_mask, **rest))
    assert policy.fast.packs and not choose_fast(policy)[0].packs


def test_only_plain_lora_is_folded(tmp_path):
    """Adapters that are more than W + s B A, or none of LoRA's kind, take the plain path and keep all their layers."""
    for name, value in (("use_dora", True), ("lora_bias", True)):
        policy = load_policy("tiny")
        setattr(policy.model.peft_config["default"], name, value)
        assert policy.fast.layers
        found, why = choose_fast(policy)
        assert not found.layers and "W + s B A" in why
    import peft
    lm, *_ = load.load_base("tiny")
    peft.get_peft_model(lm, peft.IA3Config(task_type="CAUSAL_LM", target_modules=["k_proj"],
                                           feedforward_modules=[])).save_pretrained(tmp_path)
    policy = load_policy("tiny", adapter=str(tmp_path))
    assert not policy.fast.layers and "W + s B A" in policy.note and len(policy.parameters()) == 4
    assert all(getattr(parent, name) is layer for parent, name, layer in lora_layers(policy))


def test_folding_that_fails_leaves_the_model_as_it_was(monkeypatch):
    policy = shaken(load_policy("tiny"))
    last = policy.fast.layers[-1][2]
    monkeypatch.setattr(last, "get_delta_weight", lambda adapter: 1 / 0)
    with pytest.raises(ZeroDivisionError), folded(policy.fast.layers):
        pass
    monkeypatch.undo()
    with pytest.raises(KeyError), folded(policy.fast.layers):
        raise KeyError
    assert all(getattr(parent, name) is layer for parent, name, layer in policy.fast.layers)


def test_rollouts_leave_the_base_untouched():
    """Not one bit of one base tensor after a hundred rollouts and updates, and the layers are where they were."""
    policy = shaken(load_policy("tiny"))
    base = {n: p.detach().clone() for n, p in policy.model.named_parameters() if not p.requires_grad}
    layers = [getattr(parent, name) for parent, name, _ in policy.fast.layers]
    prompts = [policy.encode(p) for p in PROMPTS]
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-3)
    for step in range(100):
        drawn = common.sample(policy, prompts[:2], 2, [step, step], max_new_tokens=4).lists()
        optimizer.zero_grad()
        for _, logps, _ in common.score(policy, [x for x in prompts[:2] for _ in range(2)],
                                        [y for ys in drawn for y in ys]):
            logps.sum().backward()
        optimizer.step()
    assert policy.fast and all(getattr(parent, name) is layer
                               for (parent, name, _), layer in zip(policy.fast.layers, layers))
    after = dict(policy.model.named_parameters())
    assert len(base) > 30 and all(torch.equal(after[n], p) for n, p in base.items())


def dequantised(policy):
    """The same policy with every quantised linear layer replaced by a float32 one of the same (de-quantised)
    weights."""
    import bitsandbytes as bnb
    for module in policy.lm.modules():
        base = getattr(module, "base_layer", None)
        if isinstance(base, (bnb.nn.Linear4bit, bnb.nn.Linear8bitLt)):
            if isinstance(base, bnb.nn.Linear4bit):
                weight = bnb.functional.dequantize_4bit(base.weight.data, base.weight.quant_state).float()
            else:
                weight = base.state.CB.float() * base.state.SCB[:, None] / 127
            plain = torch.nn.Linear(base.in_features, base.out_features, bias=base.bias is not None)
            plain.weight.data = weight.view(base.out_features, base.in_features)
            if base.bias is not None:
                plain.bias.data = base.bias.data.float()
            module.base_layer = plain.requires_grad_(False)
    return policy


@pytest.mark.parametrize("bits,tolerance", [(4, 1e-3), (8, 0.15)])  # 8 bits round the activations too
def test_quantised_gradients_before_and_after_sampling(bits, tolerance):
    """bitsandbytes can repack CPU weights in the sampler's forward and give silently wrong gradients afterwards."""
    policy = shaken(load_policy("tiny", bits=bits), scale=0.05)
    prompts = [policy.encode(p) for p in PROMPTS]
    tokens = common.sample(shaken(load_policy("tiny", bits=32)), prompts, 2, range(5), max_new_tokens=12).lists()
    rows = ([p for p in prompts for _ in range(2)], [row for pair in tokens for row in pair], torch.linspace(-1, 1, 10))
    first = gradient(policy, *rows)[1]
    drawn = common.sample(policy, prompts, 2, range(5), max_new_tokens=12)
    again = gradient(policy, *rows)[1]
    scored = common.sequence_logps(policy, rows[0], [row for pair in drawn.lists() for row in pair])
    right = gradient(dequantised(policy), *rows)[1]
    assert right.norm() > 0
    assert (first - right).norm() < tolerance * right.norm()
    assert (again - right).norm() < tolerance * right.norm()
    assert torch.allclose(scored, drawn.logps.sum(-1).flatten().double(), atol=1e-3)


def test_an_8_bit_draw_does_not_depend_on_its_batch():
    """LLM.int8's outlier columns are chosen over all rows: with them, one row changes the others."""
    policy = shaken(load_policy("tiny", bits=8))
    prompts = [policy.encode(p) for p in PROMPTS]
    together = common.sample(policy, prompts, 4, range(5), max_new_tokens=12).lists()
    for b, prompt in enumerate(prompts):
        assert common.sample(policy, [prompt], 4, [b], max_new_tokens=12).lists()[0] == together[b]


@pytest.mark.parametrize("bits", [4, 8, 16, 32])
def test_adapter_moves_and_base_does_not(bits):
    policy = load_policy("tiny", bits=bits)
    prompts = [policy.encode(p) for p in PROMPTS]
    base = {n: p.detach().clone() for n, p in policy.lm.named_parameters() if not p.requires_grad}
    adapter = [p.detach().clone() for p in policy.parameters()]
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-2)
    for step in range(3):
        drawn = common.sample(policy, prompts, 2, [common.seed_of(step, i) for i in range(5)], max_new_tokens=12)
        rows = ([p for p in prompts for _ in range(2)], [row for pair in drawn.lists() for row in pair],
                torch.linspace(-1, 1, 10))
        gradient(policy, *rows)
        optimizer.step()
    assert all(torch.equal(p, base[n]) for n, p in policy.lm.named_parameters() if not p.requires_grad)
    assert sum(not torch.equal(a, b) for a, b in zip(adapter, policy.parameters())) == len(adapter)
    assert all(p.isfinite().all() for p in policy.parameters())


# ----------------------------------------------------------------------------------------------- adapters and reference

def test_reference_start_and_base(tmp_path):
    policy = shaken(load_policy("tiny", bits=32))
    rows = [policy.encode("c7,3,2,9:23>")], [[5, 6, 7, 0]]
    with policy.reference():
        base = common.sequence_logps(policy, *rows)  # a fresh adapter starts at the base, whatever it is now
    moved = common.sequence_logps(policy, *rows)
    assert (moved - base).abs() > 1e-3
    policy.model.save_pretrained(tmp_path)
    for kind, wanted in (("start", moved), ("base", base)):
        again = load_policy("tiny", bits=32, adapter=str(tmp_path), reference=kind)
        assert torch.allclose(common.sequence_logps(again, *rows), moved)
        shaken(again, seed=1)
        here = common.sequence_logps(again, *rows)
        with again.reference():
            assert torch.allclose(common.sequence_logps(again, *rows), wanted)
        assert torch.equal(common.sequence_logps(again, *rows), here) and (here - moved).abs() > 1e-3
        names = [n for n, p in again.model.named_parameters() if p.requires_grad]
        assert names and all("default" in n for n in names)


@pytest.mark.parametrize("options", [dict(model="no/such-model"), dict(adapter="no/such/adapter"), dict(bits=5),
                                     dict(model="tests")])
def test_load_errors_are_one_sentence(options):
    with pytest.raises(UserError) as error:
        load_policy(**options)
    assert "\n" not in str(error.value) and len(str(error.value)) < 500


def test_an_adapter_of_another_base_is_refused(folder_of, tmp_path):
    """peft loads what fits of an adapter and keeps quiet about the rest."""
    policy = shaken(load_policy(folder_of("llama"), bits=32))
    policy.model.save_pretrained(tmp_path)
    with pytest.raises(UserError):
        load_policy("tiny", bits=32, adapter=str(tmp_path))  # the same widths, more layers
    assert load_policy(folder_of("llama"), bits=32, adapter=str(tmp_path)).start == "start"


def test_a_tokenizer_that_appends_eos_does_not_end_the_prompt():
    from tokenizers.processors import TemplateProcessing
    policy = load_policy("tiny", bits=32)
    wanted, other = policy.encode(["c7,3>", "c8>"])
    assert wanted == policy.encode("c7,3>") and other == policy.encode("c8>") and policy.encode([]) == []
    policy.tokenizer._tokenizer.post_processor = TemplateProcessing(single="<eos> $A <eos>",
                                                                    special_tokens=[("<eos>", 0)])
    assert policy.tokenizer("c7,3>")["input_ids"] == [0, *wanted, 0]
    assert policy.encode(["c8>", "c7,3>"]) == [[0, *other], [0, *wanted]]
    assert policy.encode("c7,3>") == [0, *wanted]  # the first may be a beginning-of-sequence token that is the same id


def test_special_tokens_come_once():
    """A tokenizer that opens and closes every text: its tokens are in no completion or chat, nor twice at an end."""
    from tokenizers.processors import TemplateProcessing
    policy = load_policy("tiny", bits=32)
    ids = lambda text: policy.tokenizer(text, add_special_tokens=False)["input_ids"]
    start = policy.tokenizer.unk_token_id
    policy.tokenizer._tokenizer.post_processor = TemplateProcessing(
        single="<unk> $A <eos>", special_tokens=[("<unk>", start), ("<eos>", 0)])
    verifier = verifiers.Verifier(None, policy.tokenizer, "", {})
    assert policy.encode_solution("7*3") == [*ids("7*3"), 0]
    assert verifier.encode("c7,3:21>", "7*3", chat=True) == [start, *ids("c7,3:21>7*3"), 0]  # it has no chat template
    policy.tokenizer.chat_template = ("{% for m in messages %}{{ m.role[0] }}{{ m.content }}{% endfor %}"
                                      "{% if add_generation_prompt %}A{% endif %}")
    assert policy.encode("c7>", chat=True) == ids("uc7>A")
    assert policy.encode(["c7>", "c8,1>"], chat=True) == [ids("uc7>A"), ids("uc8,1>A")]
    assert verifier.encode("c7>", "7", chat=True) == ids("uc7>a7")  # the assistant's turn, finished
    assert verifier.encode("c7>", "7") == [start, *ids("c7>7"), 0]


def test_the_scale_of_the_adapter():
    """alpha is twice the rank, whatever the rank: the layer adds 2 B A."""
    for rank in (4, 16):
        policy = shaken(load_policy("tiny", lora_rank=rank))
        for _, _, layer in policy.fast.layers:
            product = 2 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
            assert torch.allclose(layer.get_delta_weight("default"), product, atol=1e-6) and product.abs().max() > 0


def test_the_last_position_is_used(folder_of):
    """Prompt and completion that fill the model's 128 positions exactly do fit; one token more does not."""
    policy = load_policy(folder_of("gpt2"), bits=32)
    task = types.SimpleNamespace(name="t", chat=False, max_new_tokens=9, target=lambda p, kind: "12")
    problems = [types.SimpleNamespace(prompt="c" * n, id=n) for n in (118, 119, 120, 125, 126)]
    assert evaluate.that_fit(policy, task, problems) == problems[:2]
    assert common.sample(policy, [policy.encode(problems[1].prompt)], 4, [0], max_new_tokens=9).lengths.max() > 1
    kept, golds = gold_completions(policy, task, problems)  # two characters and the end
    assert kept == problems[:4] and [len(golds[p.id]) for p in kept] == [3] * 4
    with pytest.raises(UserError):
        gold_completions(policy, task, problems, longest=2)


def test_shared_rows_lie_within_the_sliding_window(folder_of, tmp_path):
    """One sample after the prompt fits the window of 40, three of them in one row do not: they are decoded apart."""
    import json
    import shutil
    shutil.copytree(folder_of("gemma2"), tmp_path / "m")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    (tmp_path / "m" / "config.json").write_text(json.dumps({**config, "sliding_window": 40}))
    policy = shaken(load_policy(str(tmp_path / "m"), bits=32))
    prompt = policy.encode(PROMPTS[0])
    assert policy.fast and len(prompt) + 12 < 40 < len(prompt) + 3 * 12
    drawn = common.sample(policy, [prompt], 3, [0], max_new_tokens=12)
    u = torch.rand(3, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert drawn.lists()[0] == [plain_sample(policy, prompt, u[i], 1.0)[0] for i in range(3)]


def test_what_does_not_fit_is_said(folder_of):
    policy = load_policy(folder_of("gpt2"), bits=32)
    with pytest.raises(UserError):
        common.sample(policy, [policy.encode("c" * 120)], 2, [0], max_new_tokens=9)  # 128 positions
    for bad in (dict(prompts=[[]]), dict(prompts=[[1]], temperature=0.0)):
        with pytest.raises(ValueError):
            common.sample(policy, k=2, seeds=[0], **bad)


def test_chat_template_and_stop_tokens(folder_of):
    policy = load_policy(folder_of("llama"), bits=32)
    plain = policy.encode("c7>", chat=True)
    policy.tokenizer.chat_template = ("{% for m in messages %}r{{ m.content }}{% endfor %}"
                                      "{% if add_generation_prompt %}A{% endif %}")
    assert policy.tokenizer.decode(policy.encode("c7>", chat=True)) == "rc7>A" != policy.tokenizer.decode(plain)
    assert policy.encode("c7>", chat=False) == plain
    policy.stop = [0, 7]
    for row in common.sample(policy, [plain], 50, [0], max_new_tokens=30).lists()[0]:
        assert not {0, 7} & set(row[:-1]) and (row[-1] in (0, 7) or len(row) == 30)
        assert policy.decode(row) == policy.tokenizer.decode(row[:-1] if row[-1] in (0, 7) else row,
                                                             skip_special_tokens=True)


# ----------------------------------------------------------------------------------------------------------- estimators

def subsets(n, k):
    return list(itertools.combinations(range(n), k))


def test_pass_at_k_by_enumeration():
    for n in range(1, 8):
        for c in range(n + 1):
            for k in range(1, n + 1):
                wanted = sum(min(s) < c for s in subsets(n, k)) / math.comb(n, k)
                assert common.pass_at_k(n, c, k) == pytest.approx(wanted, abs=1e-14)
    for bad in ((4, 5, 1), (4, -1, 1), (4, 2, 0), (4, 2, 5)):
        with pytest.raises(ValueError):
            common.pass_at_k(*bad)


def test_maj_at_k_by_enumeration():
    rng = random.Random(0)
    for trial in range(80):
        n = rng.randint(1, 9)
        answers = [rng.choice("aabbc") if rng.random() < 0.8 else None for _ in range(n)]
        for k in range(1, n + 1):
            wins = {"a": 0.0, "b": 0.0}
            for s in subsets(n, k):
                votes = collections.Counter(answers[i] for i in s if answers[i] is not None)
                top = [a for a in votes if votes[a] == max(votes.values())]
                for key in wins:
                    wins[key] += (key in top) / max(1, len(top))
            for key in wins:
                assert common.maj_at_k(answers, key, k) == pytest.approx(wins[key] / math.comb(n, k), abs=1e-12)
    assert common.maj_at_k([None, None], "a", 2) == 0.0
    for bad in (lambda: common.maj_at_k(["a"], "a", 2), lambda: common.maj_at_k(["a"], "a", 0),
                lambda: common.maj_at_k(["a"], None, 1)):
        with pytest.raises(ValueError):
            bad()


def test_bon_at_k_by_enumeration():
    rng = random.Random(0)
    for trial in range(40):
        n = rng.randint(1, 7)
        scores, rewards = ([rng.choice([0.1, 0.2, 0.3]) for _ in range(n)],
                           [rng.choice([0.0, 1.0, -0.5]) for _ in range(n)])
        for k in range(1, n + 1):
            total = 0.0
            for s in subsets(n, k):
                best = [rewards[i] for i in s if scores[i] == max(scores[j] for j in s)]
                total += sum(best) / len(best)
            # within a score the mean over ALL tied samples is the same expectation, by symmetry
            assert common.bon_at_k(scores, rewards, k) == pytest.approx(total / math.comb(n, k), abs=1e-12)
    binary = [1.0] * 3 + [0.0] * 5
    assert common.bon_at_k(binary, binary, 4) == pytest.approx(common.pass_at_k(8, 3, 4))
    for bad in (lambda: common.bon_at_k([1], [1], 2), lambda: common.bon_at_k([1, 2], [1], 1)):
        with pytest.raises(ValueError):
            bad()


@pytest.mark.parametrize("n,limit", [(64, 0.005), (256, 0.1)])
def test_estimators_are_fast(n, limit):
    rng = random.Random(0)
    pools = [[rng.randrange(m) if rng.random() < 0.9 else None for _ in range(n)] for m in (2, 3, 6, 12, 30, n, 10 * n)]
    for pool in pools:
        key = next(a for a in pool if a is not None)
        for call in (lambda k: common.maj_at_k(pool, key, k), lambda k: common.pass_at_k(n, n // 3, k),
                     lambda k: common.bon_at_k([a or 0 for a in pool], [a or 0 for a in pool], k)):
            for k in (n // 8, n // 2, n):
                for _ in range(5):
                    started = time.process_time()  # others may have the processor meanwhile
                    call(k)
                    taken = time.process_time() - started
                    if taken < limit:
                        break
                assert taken < limit, (len(set(pool)), k)


# ---------------------------------------------------------------------------------------------------------- small parts

def test_means_and_spreads():
    """The standard error is that of a sample (n - 1); the spread of weights by hand."""
    values = [0.25, 1.0, 0.0, 0.5]
    error = statistics.stdev(values) / 2
    assert evaluate.mean_se(values) == {"mean": pytest.approx(0.4375), "se": pytest.approx(error)}
    assert math.isnan(evaluate.mean_se([1.0])["se"])
    found = weight_stats(torch.tensor([[0.0, 1.0, 1.04], [0.96, 0.5, 2.5]]), "w")
    assert found == pytest.approx({"w_mean": 1.0, "w_min": 0.0, "w_median": 0.96, "w_max": 2.5, "w_even": 0.5,
                                   "w_small": 1 / 6})



def test_batches_are_shuffled_passes():
    problems = list(range(10))
    drawn = [p for step in range(1, 11) for p in batch_of(problems, 3, step, seed=0)]
    assert all(sorted(drawn[e * 10:e * 10 + 10]) == problems for e in range(3)) and drawn[:10] != drawn[10:20]
    assert batch_of(problems, 3, 4, seed=0) == drawn[9:12] != batch_of(problems, 3, 4, seed=1)
    assert len(batch_of(problems, 25, 1, seed=0)) == 25
