"""What bench.py and its report on a GPU measure with: random models in the shape of real ones, clocks, generate."""
import time

import torch

import common
from support import ROOT

TINY = ROOT + "/models/tiny"

SHAPES = {  # hidden, feed-forward, layers, heads, key-value heads
    "micro": (64, 192, 4, 4, 4),  # the size of the embedded model, for --scaling
    "0.1b": (512, 1536, 8, 8, 2), "0.5b": (896, 4864, 24, 14, 2), "1.5b": (1536, 8960, 28, 12, 2),
    "7b": (3584, 18944, 28, 28, 4)}


def build(shape, folder, seed, vocabulary=151936):
    """Write a random model of a shape, with the embedded tokenizer, into `folder`, so that it loads like any other."""
    import transformers
    transformers.utils.logging.disable_progress_bar()
    hidden, feed, layers, heads, kv = SHAPES[shape]
    gpu = torch.cuda.is_available()
    torch.manual_seed(common.torch_seed(seed))
    with torch.device("cuda" if gpu else "cpu"):
        model = transformers.AutoModelForCausalLM.from_config(transformers.Qwen2Config(
            vocab_size=vocabulary, hidden_size=hidden, intermediate_size=feed, num_hidden_layers=layers,
            num_attention_heads=heads, num_key_value_heads=kv, tie_word_embeddings=shape != "7b", bos_token_id=None,
            eos_token_id=0, pad_token_id=0, max_position_embeddings=8192),
            dtype=torch.bfloat16 if gpu else torch.float32)
    model.save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(TINY).save_pretrained(folder)
    del model
    if gpu:
        torch.cuda.empty_cache()


def synchronise(policy):
    if policy.device.type == "cuda":
        torch.cuda.synchronize(policy.device)


def timed(policy, call):
    """(seconds, result) of one call, the device idle before and after."""
    synchronise(policy)
    started = time.perf_counter()
    result = call()
    synchronise(policy)
    return time.perf_counter() - started, result


def alternate(policy, repeat, *calls):
    """Run the calls in turn, `repeat` times after one burn-in -> per call a list of (seconds, result)."""
    for call in calls:
        timed(policy, call)
    rounds = [[timed(policy, call) for call in calls] for _ in range(repeat)]
    return list(zip(*rounds))


@torch.no_grad()
def generate(policy, prompts, k, max_new_tokens, seed):
    """The same draw by transformers' generate -> number of useful tokens."""
    ids, mask = common.left_pad(prompts, device=policy.device)
    torch.manual_seed(common.torch_seed(seed))
    out = policy.lm.generate(input_ids=ids, attention_mask=mask, do_sample=True, num_return_sequences=k,
                             temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=max_new_tokens,
                             eos_token_id=policy.stop, pad_token_id=policy.stop[0])
    ended = torch.isin(out[:, ids.shape[1]:], torch.tensor(policy.stop, device=policy.device)).long()
    return int((ended.cumsum(1) - ended == 0).sum())  # tokens up to the first end-of-sequence token, inclusive


def reset_peak(policy):
    if policy.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(policy.device)
