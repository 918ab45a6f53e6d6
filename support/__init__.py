"""What is not the papers': the command line, processes, run folders, fast paths, the learned verifier, pictures."""
import os

# A tiny model on a busy machine: threads that spin while they wait cost up to 50x. Read once, when torch is loaded, so
# everything that imports torch imports from this package first.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "0")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
