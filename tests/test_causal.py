"""Models that are no decoders of their own are refused at load, by what they do and by the layers that they have."""
import math
import time

import pytest
import torch
import transformers
from conftest import ROOT, load_policy

import common
from support import load
from support.errors import UserError

ENCODERS = ["bert", "roberta", "xlm-roberta", "camembert", "electra", "roformer", "big_bird", "rembert", "ernie",
            "megatron-bert", "roberta-prelayernorm", "data2vec-text", "xlm-roberta-xl", "bert-generation"]
OFFSET = ["roberta", "xlm-roberta", "camembert", "roberta-prelayernorm", "data2vec-text", "xlm-roberta-xl"]
DECODERS = ["bart", "mbart", "pegasus", "marian", "blenderbot", "blenderbot-small", "bigbird_pegasus", "mvp", "plbart",
            "whisper", "trocr"]
TOKENS = {"vocab_size": 28, "eos_token_id": 0, "pad_token_id": 1, "bos_token_id": 2}
SMALL = {**TOKENS, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_hidden_layers": 2,
         "max_position_embeddings": 80}
PAIR = {**TOKENS, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
        "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_position_embeddings": 80,
        "decoder_start_token_id": 2}


def save(folder, kind, std=0.2, **config):
    """A model of random weights that AutoModelForCausalLM builds, with the embedded tokenizer -> its folder."""
    config = transformers.CONFIG_MAPPING[kind](**config)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    for p in model.parameters():
        if p.dim() > 1:
            torch.nn.init.normal_(p, std=std)
    model.save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(ROOT + "/models/tiny").save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("std", [0.02, 0.2])
@pytest.mark.parametrize("kind", ENCODERS)
def test_bidirectional_models_are_refused(kind, std, tmp_path):
    """Also with weights as they are before any training, where little depends on other tokens."""
    folder = save(tmp_path, kind, std, **SMALL)
    with pytest.raises(UserError, match="is not causal .* is_decoder false") as found:
        load_policy(folder)
    assert "\n" not in str(found.value)


def test_refused_in_lower_precision_too(tmp_path):
    for std in (0.02, 0.2):
        folder = save(tmp_path / str(std), "bert", std, **SMALL)
        with pytest.raises(UserError, match="is not causal"):
            load_policy(folder, bits=16)


@pytest.mark.parametrize("kind", DECODERS)
def test_decoders_of_an_encoder_are_refused(kind, tmp_path):
    folder = save(tmp_path, kind, **PAIR)
    with pytest.raises(UserError, match="is the decoder of an encoder-decoder"):
        load_policy(folder)


def test_cross_attention_is_refused(tmp_path):
    folder = save(tmp_path, "gpt2", n_embd=32, n_layer=2, n_head=4, n_positions=80, add_cross_attention=True, **TOKENS)
    with pytest.raises(UserError, match="is the decoder of an encoder-decoder"):
        load_policy(folder)


@pytest.mark.parametrize("kind", OFFSET)
def test_positions_that_begin_elsewhere_are_refused(kind, tmp_path):
    """Causal, but their positions start behind that of the padding, and the sampler counts from 0."""
    folder = save(tmp_path, kind, **SMALL, is_decoder=True)
    with pytest.raises(UserError, match="positions are counted from 0"):
        load_policy(folder)


def test_a_batch_that_changes_a_row_is_refused(tmp_path, monkeypatch):
    folder, forward = save(tmp_path, "gpt2", n_embd=32, n_layer=2, n_head=4, **TOKENS), transformers.GPT2Model.forward

    def mixed(self, *args, **options):
        out = forward(self, *args, **options)
        out.last_hidden_state += 0.1 * out.last_hidden_state.mean(0)
        return out
    monkeypatch.setattr(transformers.GPT2Model, "forward", mixed)
    with pytest.raises(UserError, match="to tokens beside another row"):
        load_policy(folder)


def test_padding_that_changes_the_rest(tmp_path):
    """RoFormer takes no positions: it counts columns. Only prompts of one length share a batch."""
    policy = load_policy(save(tmp_path, "roformer", **SMALL, is_decoder=True))
    assert not policy.pads and "only prompts of equal length share a batch" in policy.note
    lengths, forward = [], policy.lm.forward

    def watched(**options):
        lengths.append(options["attention_mask"][:, :2])
        return forward(**options)
    policy.lm.forward = watched
    prompts = [[5, 7, 3], [3, 4], [8, 6, 4], [9, 2, 7], [4, 4]]
    drawn = common.sample(policy, prompts, 2, range(5), 1.0, 4)
    common.sequence_logps(policy, prompts, [rows[0] for rows in drawn.lists()])
    assert len(lengths) > 4 and all(mask.all() for mask in lengths)


@pytest.mark.parametrize("kind", [kind for kind in ENCODERS if kind not in OFFSET])
def test_decoders_of_the_same_classes_are_right(kind, tmp_path):
    """With is_decoder: sampler, scorer and one forward without padding agree."""
    policy = load_policy(save(tmp_path, kind, **SMALL, is_decoder=True))
    generator = torch.Generator().manual_seed(1)
    for p in policy.parameters():
        p.data.add_(torch.randn(p.shape, generator=generator) * 0.1)
    prompts = [[5, 7, 3, 9, 11], [3, 4], [8, 6, 4, 12, 10, 5, 3]]
    drawn = common.sample(policy, prompts, 3, [1, 2, 3], 1.0, 8)
    pairs = [(x, y) for x, ys in zip(prompts, drawn.lists()) for y in ys]
    found = common.sequence_logps(policy, [x for x, _ in pairs], [y for _, y in pairs])
    with torch.no_grad():
        for (x, y), sampled, scored in zip(pairs, drawn.logps.flatten(0, 1), found):
            logits = policy.lm(input_ids=torch.tensor([x + y])).logits[0, len(x) - 1:-1]
            wanted = torch.log_softmax(logits, -1)[range(len(y)), y]
            assert torch.allclose(sampled[:len(y)], wanted, atol=1e-3)
            assert math.isclose(scored.item(), wanted.double().sum().item(), abs_tol=2e-3)


@pytest.mark.parametrize("bits", [32, 16, 8, 4])
def test_embedded_model_is_causal_and_the_test_cheap(bits):
    from support import model_checks
    lm, _, _ = load.load_base("tiny", bits=bits)
    model_checks.refuse(lm, "tiny")  # the first call of anything is slow
    seconds = []
    for _ in range(5):
        began = time.perf_counter()
        assert model_checks.causal(lm)
        seconds.append(time.perf_counter() - began)
    if bits == 32:
        assert min(seconds) < 0.02


def test_few_positions(tmp_path):
    """A model that has fewer positions than the rows that are tried."""
    load_policy(save(tmp_path, "gpt2", n_embd=32, n_layer=2, n_head=4, n_positions=8, **TOKENS))


def test_what_cannot_be_run_is_one_sentence(tmp_path, monkeypatch):
    """A model may want more than tokens."""
    folder = save(tmp_path, "gpt2", n_embd=32, n_layer=2, n_head=4, n_positions=80, **TOKENS)

    def forward(self, input_ids=None, **options):
        raise ValueError("Input language unknown.\nPlease set it.")
    monkeypatch.setattr(transformers.GPT2LMHeadModel, "forward", forward)
    with pytest.raises(UserError, match="cannot be run on tokens alone .*Input language unknown") as found:
        load_policy(folder)
    assert "\n" not in str(found.value)
