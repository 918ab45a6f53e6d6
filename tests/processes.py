"""Run by torchrun: several scripts one after the other in one group of processes. argv[1]: JSON of [script, its argv]
pairs."""
import importlib
import json
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import support.run
from support import processes

support.run.plot_run = lambda folder, result: None  # as in test_processes.py
processes.init_processes()
for script, argv in json.loads(sys.argv[1]):
    # the command line's wrapper would leave the group after each
    importlib.import_module(script).main.__wrapped__(argv)
processes.leave()
