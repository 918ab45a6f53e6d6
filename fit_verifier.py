"""Train a verifier for best-of-N selection: a classifier that predicts which samples of a policy are correct.

Paper: Chow et al. 2024, "Inference-Aware Fine-Tuning for Best-of-N Sampling in Large Language Models", arXiv 2412.15287
(as we read it).
Derivation: docs/bon_rl.md

BoN-RL-V selects by a verifier s(x, y) that is trained before the policy. Its loss is the binary cross-entropy

    loss = -(1/R) sum_j [ r_j log sigmoid(s_j) + (1 - r_j) log(1 - sigmoid(s_j)) ]

over R samples y_j of the policy on training problems, where r_j in {0, 1} is the environment's reward. s is the output
of a scalar head on the base model, with a LoRA adapter of its own, at the last token of prompt and completion. The
verifier is evaluated on samples for test problems: AUC and calibration.

The verifier is used by bon_rl.py --variant v and bon_sft.py --scores verifier for training, and by every script with
--verifier to evaluate best-of-N.

    CPU, embedded model:  python fit_verifier.py --out runs/verifier
    GPU, 4-bit LoRA:      python fit_verifier.py --model Qwen/Qwen2.5-1.5B-Instruct --task gsm8k --out runs/verifier
"""
from support import flags


def parser() -> flags.Parser:
    p = flags.base_parser(__doc__, task="countdown", train_problems=4000)
    g = p.add_argument_group("samples and training")
    g.add_argument("--samples", type=int, default=8,
                   help="samples per training problem")
    g.add_argument("--temperature", type=float, default=1.0,
                   help="sampling temperature T")
    g.add_argument("--max-new-tokens", type=int, default=0,
                   help="longest completion in tokens; 0 = the task's limit")
    g.add_argument("--epochs", type=int, default=2,
                   help="passes over the samples, in batches of 256")
    g.add_argument("--lr", type=float,
                   help="peak learning rate (AdamW), warmed up over 30 steps, then decayed linearly to 0; default 5e-3 "
                        "below 5 M parameters, else that of SFT for this size")
    g.add_argument("--noise", type=float, default=0.0,
                   help="probability with which each label is flipped, to study a noisy verifier")
    g.add_argument("--seed", type=int, default=0,
                   help="seed of the initialisation, the samples and their order")
    g = p.add_argument_group("evaluation and folder")
    g.add_argument("--eval-problems", type=int,
                   help="test problems for its evaluation, 16 samples each, 0 = all; default all below 5 M parameters, "
                        "else 256")
    g.add_argument("--out", help="folder of the verifier; default runs/verifier-<task>-<number>")
    return p


if __name__ == "__main__":
    flags.answer(parser().parse_args)  # answer --help and reject bad flags before the slow imports

import time

import torch
import torch.nn.functional as F

import common
import evaluate
import tasks
from fast.choose import chooser
from support import load, processes
from support.errors import UserError
from support.folder import new_folder
from support.run import locate, own_base
from support.verifier import Verifier, load_verifier, verifier_logits

# ------------------------------------------------------------------------------------------------------------ the loss

def verifier_loss(scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Binary cross-entropy of scores (logits) [R] and labels in {0, 1} [R], summed."""
    return F.binary_cross_entropy_with_logits(scores, labels, reduction="sum")


def rate(args: flags.Flags, step: int, steps: int) -> float:
    """Learning rate of step 1, 2, ..., `steps`: warm-up over 30 steps, linear decay to 0."""
    warm = min(1, step / 30)
    left = 1 - (step - 1) / steps
    return args.lr * warm * left


# ------------------------------------------------------------------------------------------------------------- training

def check_flags(args: flags.Flags) -> None:
    """Check values and combinations that argparse cannot.  Raises UserError."""
    flags.check_common(args, positive=("epochs",), not_negative=("noise",))
    if args.noise > 1:
        raise UserError(f"--noise is a probability, not {args.noise}")


def draw_pools(task: tasks.Task, args: flags.Flags) -> tuple[list[dict], list[dict]]:
    """Sample the policy on training and test problems, and grade the samples.  Returns (train, test), lists of
    {"prompt", "completions", "rewards", ...}. Fills in the flags whose defaults depend on the model."""
    policy = common.load_policy(args.model, args.bits, args.lora_rank, args.adapter, "base", args.seed,
                                args.device, chooser(args.plain))
    load.put_prompts(policy, task, args.chat, args.system)
    args.max_new_tokens = args.max_new_tokens or evaluate.fit_length(policy, task)
    small = policy.size < load.SMALL
    args.bits = load.bits_of(policy)
    if args.lr is None:
        args.lr = 5e-3 if small else load.learning_rate(policy.size, supervised=True)[0]
    if args.eval_problems is None:
        args.eval_problems = 0 if small else 256

    def draw(problems, samples):
        problems = evaluate.that_fit(policy, task, problems)
        return evaluate.draw_pool(policy, task, problems, samples, args.temperature, args.seed)
    train = draw(task.need("train")[:args.train_problems or None], args.samples)
    test = draw(task.need("test")[:args.eval_problems or None], 16)
    return train, test


def fit(verifier: Verifier, rows: list[list[int]], labels: torch.Tensor, args: flags.Flags,
        generator: torch.Generator) -> None:
    """Train the verifier on R rows of token ids (prompt and completion) and their labels [R]."""
    optimizer = torch.optim.AdamW(verifier.parameters(), lr=args.lr, betas=(0.9, 0.98), weight_decay=0.01)
    batches = []
    for _ in range(args.epochs):
        batches += torch.randperm(len(rows), generator=generator).split(256)
    losses = []
    for step, batch in enumerate(batches, 1):
        optimizer.param_groups[0]["lr"] = rate(args, step, len(batches))
        optimizer.zero_grad()
        total = 0.0
        mine = batch[processes.RANK::processes.WORLD]  # the rows of this process
        for index, scores in verifier_logits(verifier, [rows[j] for j in mine]):
            r = labels[mine[index]].to(scores)
            loss = verifier_loss(scores, r) / len(batch)
            loss.backward()
            total += loss.item()
        losses.append(processes.all_reduce(total))
        processes.clip_gradient(verifier.parameters(), 1.0)
        optimizer.step()
        if step % 50 == 0 or step == len(batches):
            last = losses[-50:]
            print(f"step {step}/{len(batches)}  loss {sum(last) / len(last):.4f}", flush=True)


def show(report: dict, problems: int) -> None:
    """Print AUC and calibration on test problems, as returned by evaluate.judge_verifier."""
    print(f"AUC on {problems} test problems {report['auc']:.3f} [{report['low']:.3f}, {report['high']:.3f}] (95 %, "
          f"over problems), calibration error {report['calibration_error']:.3f}\n predicted     right   samples")
    for predicted, right, count in report["calibration"]:
        print(f"{predicted:10.3f}{right:10.3f}{count:10d}")


@flags.cli
def main(argv: list[str] | None = None) -> None:
    args = parser().parse_args(argv)
    check_flags(args)
    locate(args)
    if not args.task and not args.data:
        args.task = "countdown"
    task = tasks.task_of(args)
    if task.graded:
        raise UserError(f"task {task.name} has graded rewards: a verifier needs rewards of 0 and 1")
    args.task = args.task or task.name
    args.model = args.model or own_base(args.adapter) or task.base
    task.max_new_tokens = args.max_new_tokens or task.max_new_tokens
    folder = new_folder(args.out, f"verifier-{task.name}")
    started = time.time()

    # Sample and grade. draw_pools frees the policy before the verifier loads: two large bases may not fit in memory.
    train, test = draw_pools(task, args)
    verifier = load_verifier(args.model, args.bits, args.lora_rank, args.seed, args.device)
    print(f"{folder}: {args.model}, {task.name} ({len(train):,} train, {len(test):,} test problems)\n"
          f"{verifier.note}, learning rate {args.lr:g}\nsampled {len(train) * args.samples} completions in "
          f"{time.time() - started:.0f} s", flush=True)

    # Fit.
    generator = torch.Generator().manual_seed(common.torch_seed(args.seed))
    rows = [verifier.encode(e["prompt"], y, task.chat) for e in train for y in e["completions"]]
    labels = [float(r == 1) for e in train for r in e["rewards"]]
    labels = torch.tensor(labels)  # [R]
    flipped = torch.rand(len(labels), generator=generator) < args.noise
    labels = torch.where(flipped, 1 - labels, labels)
    fit(verifier, rows, labels, args, generator)

    # Evaluate and save.
    evaluate.add_scores(test, verifier, task.chat)
    report = evaluate.judge_verifier(test)
    verifier.extra |= {"bits": args.bits, "task": task.name, "code": task.code, "flags": vars(args)}
    verifier.extra |= {"seconds": round(time.time() - started, 1), **report}
    verifier.save(folder)
    show(report, len(test))
    print(f"{time.time() - started:.0f} s; everything is in {folder}/", flush=True)


if __name__ == "__main__":
    main()
