"""What is not the papers': the command line, processes, run folders, fast paths, the learned verifier, pictures."""
import os

# A tiny model on a busy machine: threads that spin while they wait cost up to 50x. Read once, when torch is loaded, so
# everything that imports torch imports from this package first.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "0")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if "PYTORCH_CUDA_ALLOC_CONF" not in os.environ:  # the older name; rows that leave fragment a GPU's memory
    os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
