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

import runner

import common
from fast.choose import choose_fast


def load_policy(*args, **options):
    """common.load_policy as a run calls it, with the fast paths."""
    return common.load_policy(*args, **{"fast": choose_fast, **options})


runner.remember_problems()

# By the seconds that they take, because --dist loadfile hands out the files in this order: long ones at the end would
# leave one of the two processes without work.
LONGEST = ["test_pretend_gpu", "test_architectures", "test_processes", "test_house", "test_scripts", "test_sandbox",
           "test_user", "test_architecture_runs", "test_bon", "test_runs", "test_adapters", "test_loading", "test_cat",
           "test_common", "test_own", "test_check", "test_merge", "test_own_data", "test_tasks_math", "test_tasks_code",
           "test_text", "test_claims"]


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: (LONGEST + [item.path.stem]).index(item.path.stem))
