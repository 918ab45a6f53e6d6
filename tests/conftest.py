"""Tests import the scripts as modules, run on one thread, and never reach for the network."""
import os
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path[:0] = [ROOT, os.path.join(ROOT, "models"), os.path.join(ROOT, "results")]
os.environ["HF_HUB_OFFLINE"] = "1"

import support

support.set_thread_policy()  # torch reads it when it is loaded

import torch

torch.set_num_threads(1)

import common
import runner
from fast.choose import choose_fast


def load_policy(*args, **options):
    """common.load_policy as a run calls it, with the fast paths."""
    return common.load_policy(*args, **{"fast": choose_fast, **options})


runner.remember_problems()
