"""Data parallelism over processes started by torchrun or accelerate launch; a single process takes the same code path.

All processes have the same adapter and the same batch. Each one samples, verifies and updates with its share of the
prompts, and all-reduce sums the results. Only the first process prints and writes the run folder.
"""
import datetime
import os
import sys
import time
from collections import Counter
from contextlib import contextmanager

import torch

from support.errors import UserError

RANK = int(os.environ.get("RANK", 0))
WORLD = int(os.environ.get("WORLD_SIZE", 1))


def init_processes():
    """Connect to the other processes, if there are any.  Raises UserError if one cannot be reached."""
    if WORLD > 1 and not torch.distributed.is_initialized():
        local_rank = int(os.environ.get("LOCAL_RANK", 0))
        if local_rank < torch.cuda.device_count():  # with --device cpu there may be more processes than GPUs
            torch.cuda.set_device(local_rank)
        with lost():
            # Others may wait longer than NCCL's default of ten minutes while one verifies programs or evaluates.
            torch.distributed.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo",
                                                 timeout=datetime.timedelta(hours=2))
        if RANK:
            sys.stdout = open(os.devnull, "w", errors="replace")


def leave():
    """Disconnect from the other processes, if there are any."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
        # Threads of gloo outlive the group and may still be releasing the tensors of the last all-reduce. If one does
        # so while the interpreter shuts down, the process aborts; the pause lets them finish.
        time.sleep(0.5)


@contextmanager
def lost():
    """Context that turns the various errors of a broken connection into a UserError."""
    try:
        yield
    except RuntimeError as error:
        raise UserError("lost the other processes of this run, because one has ended or cannot be reached: see its "
                        "message; a training run continues from its last checkpoint with --resume") from error


def all_reduce(x):
    """Sum a tensor (in place) or a number over the processes."""
    if WORLD == 1:
        return x
    tensor = x if torch.is_tensor(x) else torch.tensor(x, dtype=torch.float64)
    with lost():
        torch.distributed.all_reduce(tensor)
    return tensor if torch.is_tensor(x) else tensor.item()


def on_first(call):
    """Run call() on the first process and return its result on all. If it raises UserError, the first process raises it
    and the others exit."""
    result = None
    error = None
    if not RANK:
        try:
            result = call()
        except UserError as raised:
            error = raised
    if WORLD > 1:
        box = [(result, error is not None)]
        with lost():
            torch.distributed.broadcast_object_list(box)
        result, failed = box[0]
        if failed and RANK:
            raise SystemExit(2)
    if error:
        raise error
    return result


def rewards(task, problems, completions):
    """task.rewards of R (problem, completion) pairs, each process verifying its share -> float64 tensor [R]. Counts of
    failures (task.counts) are summed over the processes."""
    share = slice(len(completions) * RANK // WORLD, len(completions) * (RANK + 1) // WORLD)
    before = Counter(task.counts)
    sums = torch.zeros(len(completions) + 1, dtype=torch.float64)  # the last one: number of new failures
    sums[:-1][share] = torch.tensor(task.rewards(problems[share], completions[share]), dtype=torch.float64)
    sums[-1] = (task.counts - before).total()
    sums = all_reduce(sums)
    if WORLD > 1 and sums[-1]:
        new = [None] * WORLD
        with lost():
            torch.distributed.all_gather_object(new, task.counts - before)
        task.counts = sum(new, before)
    return sums[:-1]


def clip_gradient(parameters, max_norm):
    """Sum the gradient over the processes and clip its norm in place (max_norm 0: no clipping) -> its norm before
    clipping.  Raises UserError if it is not finite, before the optimizer uses it."""
    if WORLD > 1:
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        flat = all_reduce(torch.cat([grad.flatten().float() for grad in grads]))
        sizes = [p.numel() for p in parameters]
        for p, grad in zip(parameters, flat.split(sizes)):
            p.grad = grad.view_as(p).to(p.dtype)
    norm = torch.nn.utils.clip_grad_norm_(parameters, max_norm or torch.inf)
    if not norm.isfinite():
        raise UserError("the gradient is not finite: lower --lr or --max-grad-norm; the last checkpoint is intact")
    return norm.item()
