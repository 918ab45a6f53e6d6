"""Fitting the learned verifier of support/verifier.py to samples of a policy: bon_rl.py --fit-verifier."""
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
from support.verifier import load_verifier, verifier_logits


def fit_verifier(args):
    """bon_rl.py --fit-verifier. Samples of the policy on training problems, right or wrong by the environment's reward,
    teach a scalar head and a LoRA adapter on the same base to tell them apart (binary cross-entropy). Judged on samples
    on test problems.  Raises UserError."""
    locate(args)
    task = tasks.load_task(args.task or (None if args.data else "countdown"), args.data, args.levels,
                           args.allow_unsandboxed_code, args.columns, args.skip_bad_rows)
    if task.graded:
        raise UserError(f"task {task.name} has graded rewards: --fit-verifier needs right or wrong")
    args.task, args.model = args.task or task.name, args.model or own_base(args.adapter) or task.base
    task.max_new_tokens = args.max_new_tokens or task.max_new_tokens
    folder = new_folder(args.out, f"verifier-{task.name}")
    started = time.time()
    policy = common.load_policy(args.model, args.bits, args.lora_rank, args.adapter, "base", args.seed,
                                fast=chooser(args.plain))
    load.put_prompts(policy, task, args.chat, args.system)
    args.max_new_tokens = args.max_new_tokens or evaluate.fit_length(policy, task)
    args.bits, size = load.bits_of(policy), policy.size
    if args.fit_lr is None:
        args.fit_lr = 5e-3 if size < load.TINY else load.learning_rate(size, supervised=True)[0]
    if args.eval_problems is None:
        args.eval_problems = 0 if size < load.TINY else 4096 // 16

    def draw(problems, count):
        problems = evaluate.that_fit(policy, task, problems)
        return evaluate.draw_pool(policy, task, problems, count, args.temperature, args.seed)
    train = draw(task.need("train")[:args.fit_problems or None], args.fit_samples)
    test = draw(task.need("test")[:args.eval_problems or None], 16)
    del policy  # a large base would be in memory twice
    verifier = load_verifier(args.model, args.bits, args.lora_rank, args.seed)
    print(f"{folder}: {args.model}, {task.name} ({len(train):,} train, {len(test):,} test problems)\n"
          f"{verifier.note}, learning rate {args.fit_lr:g}\nsampled {len(train) * args.fit_samples} "
          f"completions in {time.time() - started:.0f} s", flush=True)

    generator = torch.Generator().manual_seed(common.torch_seed(args.seed))
    examples = [(e["prompt"], y, float(r == 1)) for e in train for y, r in zip(e["completions"], e["rewards"])]
    labels = torch.tensor([r for *_, r in examples])  # [R]
    flip = torch.rand(len(labels), generator=generator) < args.verifier_noise
    labels = torch.where(flip, 1 - labels, labels)
    rows = [verifier.encode(x, y, task.chat) for x, y, _ in examples]
    optimizer = torch.optim.AdamW(verifier.parameters(), lr=args.fit_lr, betas=(0.9, 0.98), weight_decay=0.01)
    batches = [batch for _ in range(args.fit_epochs)
               for batch in torch.randperm(len(rows), generator=generator).split(256)]
    losses = []
    for step, batch in enumerate(batches, 1):
        for group in optimizer.param_groups:
            group["lr"] = args.fit_lr * min(1, step / 30) * (1 - (step - 1) / len(batches))
        optimizer.zero_grad()
        losses.append(0.0)
        mine = batch[processes.RANK::processes.WORLD]
        for index, logits in verifier_logits(verifier, [rows[j] for j in mine]):
            wanted = labels[mine[index]].to(logits)
            loss = F.binary_cross_entropy_with_logits(logits, wanted, reduction="sum") / len(batch)
            loss.backward()
            losses[-1] += loss.item()
        losses[-1] = processes.all_reduce(losses[-1])
        processes.clip_gradient(verifier.parameters(), 1.0)
        optimizer.step()
        if step % 50 == 0 or step == len(batches):
            print(f"step {step}/{len(batches)}  loss {sum(losses[-50:]) / len(losses[-50:]):.4f}", flush=True)

    evaluate.add_scores(test, verifier, task.chat)
    found = evaluate.judge_verifier(test)
    verifier.extra |= {"bits": args.bits, "task": task.name, "flags": vars(args),
                       "seconds": round(time.time() - started, 1), **found}
    verifier.save(folder)
    print(f"AUC on {len(test)} test problems {found['auc']:.3f} [{found['low']:.3f}, {found['high']:.3f}] (95 %, over "
          f"problems), calibration error {found['calibration_error']:.3f}\n predicted     right   samples")
    for predicted, right, count in found["calibration"]:
        print(f"{predicted:10.3f}{right:10.3f}{count:10d}")
    print(f"{time.time() - started:.0f} s; everything is in {folder}/", flush=True)
