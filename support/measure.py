"""Tools for bench.py and its GPU report: random models with the shapes of real ones, timers, generate, and TRL's
training steps."""
import math
import time

import torch

import common
from support import ROOT, load

TINY_FOLDER = ROOT + "/models/tiny"
SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
SHAPES = {
    "micro": (64, 192, 4, 4, 4),  # size of the embedded model, for --scaling
    "0.1b": (512, 1536, 8, 8, 2),
    "0.5b": (896, 4864, 24, 14, 2),
    "1.5b": (1536, 8960, 28, 12, 2),
    "7b": (3584, 18944, 28, 28, 4)}
IDS = {"bos_token_id": None, "eos_token_id": 0, "pad_token_id": 0}
UNCHANGED = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}  # sample from the full distribution
SAME = {"temperature": 1.0, "beta": 0.0}  # settings with which TRL does the same as the scripts
QUIET = {"report_to": [], "save_strategy": "no", "logging_strategy": "no", "disable_tqdm": True}


def build(shape, folder, seed, vocabulary=151936, device=None):
    """Save a randomly initialised model of a shape, with the embedded tokenizer, in `folder`."""
    import transformers
    transformers.utils.logging.disable_progress_bar()
    device = load.device_of(device)
    gpu = device.type == "cuda"
    torch.manual_seed(common.torch_seed(seed))
    sizes = dict(zip(SIZES, SHAPES[shape]))
    config = transformers.Qwen2Config(**sizes, **IDS, vocab_size=vocabulary, tie_word_embeddings=shape != "7b",
                                      max_position_embeddings=8192)
    with device:
        dtype = torch.bfloat16 if gpu else torch.float32
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(TINY_FOLDER).save_pretrained(folder)
    del model
    if gpu:
        torch.cuda.empty_cache()


def whole_bits(device=None):
    """Precision of an unquantised base model: 16 on a GPU that supports bfloat16, else 32."""
    device = load.device_of(device)
    half = device.type == "cuda" and load.has_bfloat16()
    return 16 if half else 32


def synchronise(policy):
    if policy.device.type == "cuda":
        torch.cuda.synchronize(policy.device)


def timed(policy, call):
    """(seconds, result) of one call; waits for the device before and after it."""
    synchronise(policy)
    started = time.perf_counter()
    result = call()
    synchronise(policy)
    return time.perf_counter() - started, result


def alternate(policy, repeat, *calls):
    """Run the calls in turn, `repeat` times after one warm-up -> for each call a list of (seconds, result)."""
    for call in calls:
        timed(policy, call)
    rounds = [[timed(policy, call) for call in calls] for _ in range(repeat)]
    return list(zip(*rounds))


@torch.no_grad()
def generate(policy, prompts, k, max_new_tokens, seed):
    """Sample with the generate method of transformers -> number of tokens up to each EOS token."""
    ids, mask = common.left_pad(prompts, device=policy.device)
    torch.manual_seed(common.torch_seed(seed))
    ends = {"eos_token_id": policy.stop, "pad_token_id": policy.stop[0]}
    out = policy.lm.generate(input_ids=ids, attention_mask=mask, num_return_sequences=k, max_new_tokens=max_new_tokens,
                             **ends, **UNCHANGED)
    stop = torch.tensor(policy.stop, device=policy.device)
    ended = torch.isin(out[:, ids.shape[1]:], stop).long()
    return int((ended.cumsum(1) - ended == 0).sum())  # tokens up to and including the first EOS token


def reset_peak(policy):
    if policy.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(policy.device)


def without_gradients(policy):
    """Clear the gradients of a policy."""
    for p in policy.parameters():
        p.grad = None


def trl_trainer(path, tokenizer, task, problems, folder, rows, micro, dtype=torch.float32, cpu=None, **settings):
    """TRL's GRPOTrainer with LoRA, for steps of `rows` samples in micro-batches, configured as close to the scripts as
    possible. Other settings are TRL's defaults, or given in `settings`.  problems: {prompt: problem of the task}; cpu:
    whether to use the CPU; None: only if there is no GPU."""
    if cpu is None:
        cpu = not torch.cuda.is_available()
    import datasets
    import peft
    import transformers
    import trl

    def reward(prompts, completions, **_):
        return task.rewards([problems[x] for x in prompts], completions)

    batch = {"per_device_train_batch_size": micro, "gradient_accumulation_steps": math.ceil(rows / micro)}
    hardware = {"use_cpu": cpu, "bf16": dtype == torch.bfloat16}
    args = trl.GRPOConfig(output_dir=folder, max_completion_length=task.max_new_tokens, **batch, **hardware, **SAME,
                          **QUIET, **settings)
    model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=dtype)
    lora = peft.LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    prompts = datasets.Dataset.from_list([{"prompt": x} for x in problems])
    trainer = trl.GRPOTrainer(model=model, processing_class=tokenizer, reward_funcs=reward, train_dataset=prompts,
                              args=args, peft_config=lora)
    trainer.remove_callback(transformers.PrinterCallback)
    return trainer


def steps_of_trl(trainer, between=lambda: None):
    """Run TRL's training -> seconds of each step. `between` is called after each step, outside of the timing."""
    import transformers
    seconds = []

    class Clock(transformers.TrainerCallback):
        def on_step_end(self, *_, **__):
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - self.mark)
            between()
            self.mark = time.perf_counter()

    clock = Clock()
    trainer.add_callback(clock)
    clock.mark = time.perf_counter()
    trainer.train()
    return seconds
