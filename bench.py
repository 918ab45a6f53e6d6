"""How fast: the sampler against transformers' generate, and the update with and without dropping zero-weight samples.

    python bench.py                              embedded model on the CPU: base, LoRA and 4-bit, 16 to 512 rows
    python bench.py --shape 7b --rows 128 --new-tokens 512     random weights of a 7b model, meant for a GPU
    python bench.py --sandbox 1000               verdicts per second on small programs, each in a fresh sandbox, and nothing else

The two sides of a ratio alternate in one process on the same prompts; the median of the pairwise ratios is printed.
Tokens per second count useful tokens only (up to the end-of-sequence token, that one included). Random weights of a
large shape practically never end a completion, so there every row runs to --new-tokens. The last line is JSON.
"""
import argparse
import json
import tempfile
import time


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0],
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--shape", default="tiny", choices=["tiny", "0.1b", "0.5b", "1.5b", "7b"],
                        help="the embedded model, or random weights in the shape of Qwen2.5 0.5b, 1.5b, 7b (0.1b: a small one)")
    parser.add_argument("--rows", default=None, help="batch sizes, prompts x k, comma-separated; default 16,64,256,512 or 64")
    parser.add_argument("--k", type=int, default=8, help="samples per prompt")
    parser.add_argument("--prompt-tokens", type=int, default=128, help="prompt length for random shapes")
    parser.add_argument("--new-tokens", type=int, default=0, help="longest completion; 0 = the task's own, or 256 for random shapes")
    parser.add_argument("--precision", default=None, help="of base (no adapter), lora, 4bit (NF4 + LoRA), comma-separated; "
                                                          "default all for tiny, lora,4bit otherwise (16-bit on a GPU)")
    parser.add_argument("--repeat", type=int, default=7, help="timed repetitions of each side, after one that is not counted")
    parser.add_argument("--skip-generate", action="store_true", help="do not run the comparison with generate")
    parser.add_argument("--sandbox", type=int, default=0, help="time this many verdicts of the sandbox instead; 0 = do not")
    parser.add_argument("--seed", type=int, default=0, help="weights, prompts and draws")
    return parser.parse_args(argv)


if __name__ == "__main__":
    parse_args()  # --help and bad flags answer before the heavy imports

import random
import statistics

import common  # before torch: it sets the thread policy
import evaluate
import ppo_passk
import tasks
import torch
from common import UserError

SHAPES = {  # hidden, feed-forward, layers, heads, key-value heads
    "0.1b": (512, 1536, 8, 8, 2), "0.5b": (896, 4864, 24, 14, 2), "1.5b": (1536, 8960, 28, 12, 2), "7b": (3584, 18944, 28, 28, 4)}


def build(shape, folder, seed):
    """Write a random model of a shape, with the embedded tokenizer, into `folder`, so that it loads like any other."""
    import transformers
    transformers.utils.logging.disable_progress_bar()
    hidden, feed, layers, heads, kv = SHAPES[shape]
    gpu = torch.cuda.is_available()
    torch.manual_seed(seed)
    with torch.device("cuda" if gpu else "cpu"):
        model = transformers.AutoModelForCausalLM.from_config(transformers.Qwen2Config(
            vocab_size=151936, hidden_size=hidden, intermediate_size=feed, num_hidden_layers=layers, num_attention_heads=heads,
            num_key_value_heads=kv, tie_word_embeddings=shape != "7b", bos_token_id=None, eos_token_id=0, pad_token_id=0,
            max_position_embeddings=8192), dtype=torch.bfloat16 if gpu else torch.float32)
    model.save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(common.HERE + "/tiny").save_pretrained(folder)
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
    torch.manual_seed(seed)
    out = policy.lm.generate(input_ids=ids, attention_mask=mask, do_sample=True, num_return_sequences=k, temperature=1.0, top_k=0,
                             top_p=1.0, max_new_tokens=max_new_tokens, eos_token_id=policy.stop, pad_token_id=policy.stop[0])
    ended = torch.isin(out[:, ids.shape[1]:], torch.tensor(policy.stop, device=policy.device)).long()
    return int((ended.cumsum(1) - ended == 0).sum())  # tokens up to the first end-of-sequence token, inclusive


def reset_peak(policy):
    if policy.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(policy.device)


def peak(policy, line):
    """Peak memory of a line; on a CPU the process has one peak only, which the JSON line keeps."""
    return f"   peak {line['memory_gb']:.2f} GB" if policy.device.type == "cuda" else ""


def bench_sampler(policy, prompts, args, new_tokens, label):
    """One line: tokens per second of both samplers and the ratio."""
    rows, seeds = len(prompts) * args.k, iter(range(10 ** 9))
    reset_peak(policy)
    ours = lambda: int(common.sample(policy, prompts, args.k, [common.seed_of(next(seeds), b) for b in range(len(prompts))],
                                     max_new_tokens=new_tokens).lengths.sum())
    theirs = lambda: generate(policy, prompts, args.k, new_tokens, next(seeds))
    runs = alternate(policy, args.repeat, ours, *([] if args.skip_generate else [theirs]))
    rates = [[tokens / seconds for seconds, tokens in side] for side in runs]
    line = {"what": "sampler", "precision": label, "rows": rows, "tokens_per_s": statistics.median(rates[0]),
            "memory_gb": common.peak_memory(policy)}
    text = f"sampler  {label:5} {rows:5} rows  {line['tokens_per_s']:10,.0f} tokens/s"
    if not args.skip_generate:
        line |= {"generate_tokens_per_s": statistics.median(rates[1]), "ratio": statistics.median(a / b for a, b in zip(*rates))}
        text += f"   generate {line['generate_tokens_per_s']:10,.0f}   ratio {line['ratio']:.2f}"
    print(text + peak(policy, line), flush=True)
    return line


def bench_update(policy, prompts, rewards_of, args, new_tokens, label):
    """One line per objective: the update with zero-weight samples dropped against the same update with all of them."""
    drawn = common.sample(policy, prompts, args.k, [common.seed_of(args.seed, b) for b in range(len(prompts))], max_new_tokens=new_tokens)
    tokens, rewards, lines = drawn.lists(), rewards_of(drawn), []

    def update(A, rows):
        for p in policy.parameters():
            p.grad = None
        for index, logps, mask in common.score(policy, [prompts[b] for b, _ in rows], [tokens[b][i] for b, i in rows]):
            b, i = torch.tensor([rows[j] for j in index.tolist()]).T
            ppo_passk.ppo_loss(logps, logps.detach(), mask, A[b, i].to(logps.device), 0.2).backward()

    every = [(b, i) for b in range(len(prompts)) for i in range(args.k)]
    for objective in ("mean", "passk"):
        A = ppo_passk.advantages(rewards, args.k, objective)
        rows = [(b, i) for b, i in A.nonzero().tolist()]
        reset_peak(policy)
        dropped, full = alternate(policy, args.repeat, lambda: update(A, rows), lambda: update(A, every))
        line = {"what": "update", "precision": label, "objective": objective, "rows": len(every), "zero": 1 - len(rows) / len(every),
                "dropped_s": statistics.median(s for s, _ in dropped), "all_s": statistics.median(s for s, _ in full),
                "ratio": statistics.median(b / a for (a, _), (b, _) in zip(dropped, full)),
                "tokens_per_s": int(drawn.lengths.sum()) / statistics.median(s for s, _ in full), "memory_gb": common.peak_memory(policy)}
        lines.append(line)
        print(f"update   {label:5} {len(every):5} rows  {objective:5} {line['zero']:4.0%} zero weights  dropped {line['dropped_s']:.3f} s"
              f"   all {line['all_s']:.3f} s   ratio {line['ratio']:.2f}" + peak(policy, line), flush=True)
    return lines


def bench_sandbox(count):
    """One line per kind of program: verdicts per second with all workers, and the seconds of CPU that one verdict takes."""
    import resource
    lines, spent = [], lambda: sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])
    spec = {"tests": "assert f(2) == 4 and f(3) == 9", "names": {"f": "f"}, "prefix": "", "limit": 3.0}
    for kind, spec, program in (("function", spec, "def f(x): return x * x  # {}"),
                                ("program", {"inputs": ["2\n"], "outputs": ["4\n"], "limit": 3.0}, "print(int(input()) ** 2)  # {}")):
        problem, before = tasks.code_problem("bench", "square", None, spec), spent()
        task = tasks.Code("bench", [], [], [problem])
        task.open()
        workers = task.pool.size
        warm = 2 * workers  # until every worker and its judge have started
        task.rewards([problem] * warm, [program.format(-i) for i in range(1, warm + 1)])
        started = time.perf_counter()
        rewards = task.rewards([problem] * count, [program.format(i) for i in range(count)])
        seconds = time.perf_counter() - started
        del task  # its workers end, and their time and that of all sandboxes counts as this process's children's
        line = {"what": "sandbox", "kind": kind, "workers": workers, "verdicts": count, "verdicts_per_s": count / seconds,
                "cpu_ms": 1000 * (spent() - before) / (count + warm), "right": sum(rewards)}
        lines.append(line)
        print(f"sandbox  {kind:8} {workers} workers  {line['verdicts_per_s']:7.1f} verdicts/s   {line['cpu_ms']:.1f} ms of CPU each"
              f"   {line['right']:.0f} of {count} right", flush=True)
    return lines


@common.cli
def main(argv=None):
    args = parse_args(argv)
    if args.sandbox < 0:
        raise UserError(f"--sandbox must not be negative, it is {args.sandbox}")
    if args.sandbox:
        print(json.dumps({"lines": bench_sandbox(args.sandbox), **common.versions()}))
        return
    tiny = args.shape == "tiny"
    sizes = evaluate.numbers(args.rows or ("16,64,256,512" if tiny else "64"), int, "--rows")
    if args.repeat < 1 or args.k < 1 or any(rows % args.k for rows in sizes):
        raise UserError(f"--rows must be multiples of --k {args.k}, and --repeat at least 1")
    precisions = (args.precision or ("base,lora,4bit" if tiny else "lora,4bit")).split(",")
    if set(precisions) - {"base", "lora", "4bit"}:
        raise UserError(f"--precision {args.precision}: choose from base, lora, 4bit")
    gpu, rng, lines = torch.cuda.is_available(), random.Random(args.seed), []
    task = tasks.load_task("countdown")
    with tempfile.TemporaryDirectory() as folder:
        if not tiny:
            build(args.shape, folder, args.seed)
        for precision in precisions:
            policy = common.load_policy("tiny" if tiny else folder, 4 if precision == "4bit" else 16 if gpu else 32, seed=args.seed)
            if precision == precisions[0]:
                print(f"{args.shape}, {policy.note}; medians of {args.repeat}", flush=True)
            if precision == "base":
                policy.model.base_model.disable_adapter_layers()
            new_tokens = args.new_tokens or (task.max_new_tokens if tiny else 256)

            def prompts_for(rows):
                if tiny:
                    return [policy.encode(p.prompt) for p in task.train[:rows // args.k]]
                return [[rng.randrange(1, 30000) for _ in range(args.prompt_tokens)] for _ in range(rows // args.k)]

            def rewards_of(drawn):
                if tiny:
                    return torch.tensor(task.rewards([p for p in task.train[:len(drawn.tokens)] for _ in range(args.k)],
                                                     [policy.decode(row) for rows in drawn.lists() for row in rows])).view(-1, args.k)
                generator = torch.Generator().manual_seed(args.seed)  # random weights solve nothing: rewards at p = 0.2
                return (torch.rand(drawn.lengths.shape, generator=generator) < 0.2).float()
            lines += [bench_sampler(policy, prompts_for(rows), args, new_tokens, precision) for rows in sizes]
            if precision != "base":
                lines += bench_update(policy, prompts_for(sizes[-1]), rewards_of, args, new_tokens, precision)
            del policy
            if gpu:
                torch.cuda.empty_cache()
    print(json.dumps({"shape": args.shape, "device": "cuda" if gpu else "cpu", "lines": lines, **common.versions()}))


if __name__ == "__main__":
    main()
