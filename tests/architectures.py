"""The causal language models that transformers builds, tiny and at random: which load and are right, by which path, and
which are refused. tests/test_architectures.py computes this table again.

    python tests/architectures.py       prints it, for people
"""
import dataclasses
import os
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

# ----------------------------------------------------------------------------------------------------------- the table

ROWS = "samples of a prompt share a row, the adapter is folded into the weights"
KEYS = "samples of a prompt share its keys and values"
STATES = "plain: recurrent layers"
EQUAL = "plain: only prompts of one length share a batch"
RERUN = "plain: no cache that can be shared, so each token reruns its row"

RIGHT = {  # the path that a model of this size takes on a CPU
    ROWS: """afmoe apertus arcee aria_text axk1 axk2 beam biogpt bitnet codegen cohere cohere2 cohere2_moe
        cohere_compass_text ctrl cwm dbrx deepseek_v2 deepseek_v3 deepseek_v32 diffllama doge dots1 dots3_note_text emu3
        ernie4_5 ernie4_5_moe exaone4 exaone_moe flex_olmo flint gemma gemma2 gemma3 gemma3_text gemma3n_text gemma4
        gemma4_text gemma4_unified gemma4_unified_text git glm glm4 glm4_moe glm4_moe_lite glm_moe_dsa gpt-sw3 gpt2
        gpt_neox gpt_neox_japanese gpt_oss gptj granite granite_swa granitemoe granitemoe_swa granitemoeshared helium
        hrm_text hunyuan_v1_dense hunyuan_v1_moe hy_v3 hy_v4 hyperclovax internlm3 iquestcoder jais2 jetmoe kolibri1
        laguna llama llama4 llama4_text longcat_flash mellum mimo_v2_flash minicpm3 minimax_m2 minimax_m3_vl_text
        ministral ministral3 mistral mixtral mllama modernbert-decoder nanochat nemotron olmo olmo2 olmo3 olmoe opt
        persimmon phi phi3 phimoe qwen2 qwen2_moe qwen3 qwen3_moe seed_oss smollm3 solar_open stablelm starcoder2
        vaultgemma xglm youtu""".split(),
    EQUAL: ["deepseek_v4"],
    KEYS: """bloom falcon fuyu got_ocr2 gpt_bigcode gpt_neo moss_transcribe_diarize mpt
        phi4_multimodal""".split(),
    STATES: """bailing_hybrid bamba falcon_h1 granitemoehybrid inkling2_text inkling_text jamba kimi_linear lfm2
        lfm2_moe
        lfm3 olmo_hybrid qwen3_5 qwen3_5_moe qwen3_5_moe_text qwen3_5_text qwen3_next qwen4_exp
        qwen4_exp_text zamba zaya""".split(),
    RERUN: """falcon_mamba mamba mamba2 minimax moshi nemotron_h openai-gpt recurrent_gemma rwkv xlstm
        zamba2""".split(),
}
REFUSED = {  # by words of the sentence
    "is not causal": """bert bert-generation big_bird camembert cpmant data2vec-text electra ernie megatron-bert rembert
        roberta roberta-prelayernorm roc_bert roformer xlm xlm-roberta xlm-roberta-xl xlnet xmod""".split(),
    "is the decoder of an encoder-decoder": """bart bigbird_pegasus blenderbot blenderbot-small marian mbart mvp pegasus
        plbart prophetnet trocr whisper""".split(),
    "cannot be run on tokens alone": ["blt"],
    "no linear layer on which it would have an effect": ["reformer"],
}
NOT_TRIED = {
    "dots3_note": "dots3_note_text with eyes and ears, whose config is not made small by its flags",
    "gemma3n": "gemma3n_text with eyes that need another package (timm)",
    "gemma4_assistant": "drafts for another model, of that model's states",
    "gemma4_unified_assistant": "drafts for another model, of that model's states",
    "musicgen": "sounds, not text",
    "musicgen_melody": "sounds, not text",
}

# --------------------------------------------------------------------------------------------------------- tiny models

SIZES = {  # what configs call a size
    32: """hidden_size n_embd d_model embedding_size emb_dim embed_dim embedding_dim word_embed_proj_dim
        attention_hidden_size lru_width""",
    48: """intermediate_size intermediate_size_mlp ffn_hidden_size n_inner dff ffn_dim d_inner dim_ff feed_forward_size
        decoder_ffn_dim encoder_ffn_dim""",
    16: """moe_intermediate_size expert_ffn_hidden_size shared_expert_intermediate_size shared_intermediate_size
        moe_shared_expert_intermediate_size shared_experts_intermediate_size kv_lora_rank q_lora_rank chunk_size
        mamba_chunk_size image_size index_n_heads""",
    2: """num_hidden_layers n_layer n_layers num_layers encoder_layers decoder_layers num_encoder_layers depth
        num_decoder_layers num_key_value_heads num_kv_heads num_experts_per_tok moe_topk moe_k linear_num_key_heads
        n_mamba_heads altup_num_inputs""",
    4: """num_attention_heads n_head n_heads num_heads encoder_attention_heads decoder_attention_heads
        num_encoder_attention_heads num_decoder_attention_heads num_experts num_local_experts n_routed_experts
        moe_num_experts linear_num_value_heads mamba_dt_rank time_step_rank laurel_rank mm_tokens_per_image""",
    8: """head_dim v_head_dim qk_nope_head_dim qk_rope_head_dim o_lora_rank kv_channels attention_head_dim
        sliding_window attention_window_size attention_chunk_size window_size local_attention index_topk
        linear_key_head_dim linear_value_head_dim mamba_n_heads mamba_d_head mamba_d_state mamba_num_heads
        mamba_head_dim ssm_state_size state_size index_head_dim indexer_head_dim hidden_size_per_layer_input
        patch_size""",
    1: """n_group topk_group n_shared_experts num_shared_experts moe_num_shared_experts zero_expert_num
        first_k_dense_replace num_dense_layers mamba_n_groups n_groups mamba_ngroups""",
    0: "num_mtp_layers num_nextn_predict_layers num_kv_shared_layers eos_token_id pad_token_id",
    28: "vocab_size vocab_size_per_layer_input",  # as many as the embedded tokenizer has
    64: "mamba_d_ssm",
    128: """n_positions n_ctx max_position_embeddings original_max_position_embeddings max_target_positions
        max_source_positions context_length max_seq_len""",
}
NAMED = {"use_mamba_kernels": False, **{name: size for size, names in SIZES.items() for name in names.split()}}

HEADS = {"num_key_value_heads": 4}
SLIDING = {"layer_types": ["sliding_attention", "full_attention"]}
LINEAR = {"layer_types": ["linear_attention", "full_attention"]}
CONVOLUTION = {"layer_types": ["conv", "full_attention"]}
WINDOW = {"swa_head_dim": 8, "sliding_window_size": 8, "rel_extent": 16}
COMPRESSED = {"heavily_compressed_attention": 8, "compressed_sparse_attention": 4}
ROPE = {"rope_type": "default", "rope_theta": 1e4}
VISION = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
OTHERWISE = {  # what these sizes alone do not say: a layer of each kind, parts that must fit each other
    **dict.fromkeys(["axk1", "axk2", "deepseek_v2", "deepseek_v3", "deepseek_v32", "dots3_note_text", "glm4_moe_lite",
                     "glm_moe_dsa", "longcat_flash", "youtu"], HEADS),
    **dict.fromkeys(["afmoe", "cohere2", "cohere2_moe", "cwm", "exaone4", "exaone_moe", "gemma2", "gemma3_text",
                     "gemma3n_text", "gemma4_text", "gemma4_unified_text", "gpt_oss", "ministral", "modernbert-decoder",
                     "olmo3", "smollm3", "vaultgemma"], SLIDING),
    **dict.fromkeys(["qwen2", "qwen3"], {"use_sliding_window": True, **SLIDING}),
    **dict.fromkeys(["qwen3_5_text", "qwen3_5_moe_text", "qwen3_next", "olmo_hybrid"], LINEAR),
    **dict.fromkeys(["lfm2_moe", "lfm3"], CONVOLUTION),
    **dict.fromkeys(["codegen", "gptj"], {"rotary_dim": 8}),
    "bailing_hybrid": LINEAR | HEADS,
    "bamba": {"attn_layer_indices": [1]},
    "blt": {"encoder_hash_byte_group_vocab": 64},
    "cohere_compass_text": {"rope_parameters": dict.fromkeys(SLIDING["layer_types"], ROPE), **SLIDING},
    "dbrx": {"attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 1e4},
             "ffn_config": {"hidden_size": 32, "ffn_hidden_size": 16, "moe_num_experts": 4, "moe_top_k": 2}},
    "deepseek_v4": {"qk_rope_head_dim": 8, "layer_types": [*COMPRESSED], "compress_rates": COMPRESSED},
    "gemma3": {"vision_config": {"model_type": "siglip_vision_model", "image_size": 16, "patch_size": 8, **VISION}},
    "gemma4": {"vision_config": {"position_embedding_size": 16, "head_dim": 8, **HEADS, **VISION}},
    "gemma4_unified": {"vision_config": {"mm_embed_dim": 32, "mm_posemb_size": 16, "patch_size": 4}},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"]},
    "inkling_text": WINDOW,
    "inkling2_text": {"unpadded_vocab_size": 28, **WINDOW},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1},
    "kimi_linear": {"linear_head_dim": 8, "linear_num_heads": 4, **LINEAR, **HEADS},
    "lfm2": {"block_auto_adjust_ff_dim": False, **CONVOLUTION},
    "llama4_text": {"layer_types": ["chunked_attention", "full_attention"]},
    "mamba2": {"num_heads": 8},
    "moshi": {"audio_vocab_size": 28},
    "minicpm3": {"scale_emb": 1, "dim_model_base": 32, **HEADS},
    "qwen4_exp_text": {"indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_budget": 8, "indexer_compress_ratio": 2,
                       "ngram_vocab_size_base": 64, "hc_count": 2, "hc_lowrank": 8, "split_ngram_parts": 1, **LINEAR},
    "recurrent_gemma": {"num_hidden_layers": 3},
    "reformer": {"is_decoder": True, "axial_pos_embds": False, "attn_layers": ["local"]},
    "roc_bert": {"pronunciation_embed_dim": 16, "pronunciation_vocab_size": 9, "shape_embed_dim": 16,
                 "shape_vocab_size": 9},
    "xlstm": {"hidden_size": 128, "embedding_dim": 128, "num_heads": 2, "num_blocks": 2, "qk_dim_factor": 1.0},
    "xmod": {"default_language": "en_XX"},
    "zamba": {"layers_block_type": ["linear_attention", "hybrid"] * 2, "num_hidden_layers": 4, "attention_head_dim": 16,
              "attention_hidden_size": 64},
    "zamba2": {"layers_block_type": ["mamba", "hybrid"] * 2, "num_hidden_layers": 4},
    "zaya": {"num_experts_per_tok": 1},
}
TEXT = {  # the text model inside one that sees or hears
    "fuyu": "persimmon", "gemma3": "gemma3_text", "gemma4": "gemma4_text", "gemma4_unified": "gemma4_unified_text",
    "got_ocr2": "qwen2", "moss_transcribe_diarize": "qwen3", "qwen3_5": "qwen3_5_text",
    "qwen3_5_moe": "qwen3_5_moe_text", "qwen4_exp": "qwen4_exp_text",
}


def small(config_class):
    """Sizes for the fields that a class of configs has, and for those of its parts."""
    sizes = {field.name: NAMED[field.name] for field in dataclasses.fields(config_class) if field.name in NAMED}
    parts = getattr(config_class, "sub_configs", None) or {}
    return sizes | {name: small(part) for name, part in parts.items() if dataclasses.is_dataclass(part)}


def config_of(kind, **more):
    """The config of a tiny model."""
    import transformers
    classes = transformers.CONFIG_MAPPING
    sizes = small(classes[kind]) | OTHERWISE.get(kind, {}) | more
    if kind in TEXT:
        text = TEXT[kind]
        sizes["text_config"] = {"model_type": text, **small(classes[text]), **OTHERWISE.get(text, {})}
    return classes[kind](**sizes)


def save(folder, config, std=0.2):
    """A random model of a config, in which much depends on each weight, with the embedded tokenizer -> its folder."""
    import torch
    import transformers
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    for p in model.parameters():
        if p.dim() > 1:
            torch.nn.init.normal_(p, std=std)
        else:
            p.data += 0.1 * torch.randn(p.shape)
    if model.generation_config:
        model.generation_config.eos_token_id = 0  # of the tokenizer; some configs keep it in another place
    model.save_pretrained(folder)
    config.save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(os.path.join(ROOT, "models", "tiny")).save_pretrained(folder)
    return str(folder)


def lines():
    """The table in markdown."""
    rows = [(kind, f"right; {path}") for path, kinds in RIGHT.items() for kind in kinds]
    rows += [(kind, f"refused: {reason}") for reason, kinds in REFUSED.items() for kind in kinds]
    rows += [(kind, f"not tried: {reason}") for kind, reason in NOT_TRIED.items()]
    return ["| architecture | |", "|---|---|", *(f"| {kind} | {outcome} |" for kind, outcome in sorted(rows))]


if __name__ == "__main__":
    print("\n".join(lines()), file=sys.stdout)
