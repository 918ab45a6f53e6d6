"""Tests import the scripts as modules, run on one thread, and never reach for the network."""
import os
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path[:0] = [ROOT, os.path.join(ROOT, "models"), os.path.join(ROOT, "results")]
os.environ["HF_HUB_OFFLINE"] = "1"

import support  # sets the passive wait policy, which must be there before torch is loaded
import torch

torch.set_num_threads(1)

import runner

runner.remember_problems()
