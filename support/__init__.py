"""What is not the papers': the command line, processes, run folders, loading, the learned verifier, pictures."""
import os

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def set_thread_policy():
    """Environment variables that libraries read once, when they are loaded. A tiny model on a busy machine: threads
    that spin while they wait cost up to 50x."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("GOMP_SPINCOUNT", "0")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if "PYTORCH_CUDA_ALLOC_CONF" not in os.environ:  # the older name; rows that leave fragment a GPU's memory
        os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")


# Here for every module below; a file that is read first and loads torch itself calls it before that, by a statement,
# so that the order of imports carries no meaning.
set_thread_policy()
