"""Several processes, started by torchrun or accelerate launch (one process is a group of one and takes the same path).

All hold the same adapter and the same batch. Each samples, verifies and updates with its own prompts; sums over the
processes combine the shares. Only the first one writes the run folder and prints.
"""
import datetime
import os
import sys
import time
from collections import Counter
from contextlib import contextmanager

import torch

from support.errors import UserError

RANK, WORLD = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def init_processes():
    """Connect to the other processes, if there are any.  Raises UserError if one cannot be reached."""
    if WORLD > 1 and not torch.distributed.is_initialized():
        own = int(os.environ.get("LOCAL_RANK", 0))
        if own < torch.cuda.device_count():  # with --device cpu there may be more processes
            torch.cuda.set_device(own)
        with lost():
            # Waiting for one that verifies programs or evaluates is not a fault; NCCL gives up after ten minutes.
            torch.distributed.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo",
                                                 timeout=datetime.timedelta(hours=2))
        if RANK:
            sys.stdout = open(os.devnull, "w", errors="replace")


def leave():
    """Disconnect from the other processes, if there are any."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
        # Threads of gloo outlive the group and may still be dropping the tensors of the last sum. One that does so when
        # the interpreter has begun to end aborts the process, so let them have their turn.
        time.sleep(0.5)


@contextmanager
def lost():
    """Turns the many errors of a broken connection into one sentence."""
    try:
        yield
    except RuntimeError as error:
        raise UserError("lost the other processes of this run, one of which has ended or cannot be reached: see its "
                        "own message; a training run continues from its last checkpoint with --resume") from error


def all_reduce(x):
    """Sum over the processes, of a tensor (in place) or a number."""
    if WORLD == 1:
        return x
    tensor = x if torch.is_tensor(x) else torch.tensor(x, dtype=torch.float64)
    with lost():
        torch.distributed.all_reduce(tensor)
    return tensor if torch.is_tensor(x) else tensor.item()


def on_first(call):
    """Run call() on the first process and return its result on all. If it raises UserError, all end and one says
    why."""
    result, error = None, None
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
    """task.rewards of R pairs, each process verifying its share -> float64 tensor [R]; what went wrong anywhere is
    added to task.counts everywhere."""
    share = slice(len(completions) * RANK // WORLD, len(completions) * (RANK + 1) // WORLD)
    before, found = Counter(task.counts), torch.zeros(len(completions) + 1, dtype=torch.float64)
    found[:-1][share] = torch.tensor(task.rewards(problems[share], completions[share]), dtype=torch.float64)
    found[-1] = (task.counts - before).total()
    found = all_reduce(found)
    if WORLD > 1 and found[-1]:
        new = [None] * WORLD
        with lost():
            torch.distributed.all_gather_object(new, task.counts - before)
        task.counts = sum(new, before)
    return found[:-1]


def clip_gradient(parameters, max_norm):
    """Sum the gradient of an adapter over the processes, and clip its norm (max_norm 0: leave it), in place -> its norm
    before.  Raises UserError if it is not finite, before it can reach the adapter."""
    if WORLD > 1:
        flat = [(torch.zeros_like(p) if p.grad is None else p.grad).flatten().float() for p in parameters]
        for p, grad in zip(parameters, all_reduce(torch.cat(flat)).split([p.numel() for p in parameters])):
            p.grad = grad.view_as(p).to(p.dtype)
    norm = torch.nn.utils.clip_grad_norm_(parameters, max_norm or torch.inf)
    if not norm.isfinite():
        raise UserError("the gradient is not finite: lower --lr or --max-grad-norm; the last checkpoint is intact")
    return norm.item()
