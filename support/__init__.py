"""Everything around the papers' algorithms: the command line, processes, run folders, loading, the learned verifier,
pictures."""
import os

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def set_thread_policy():
    """Set environment variables that libraries read once, when they are loaded. With a tiny model on a busy machine,
    threads that spin while they wait cost up to 50x."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("GOMP_SPINCOUNT", "0")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if "PYTORCH_CUDA_ALLOC_CONF" not in os.environ:  # the older name; rows that leave fragment a GPU's memory
        os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")


# Called here for every module of this package. A file that may be loaded first and imports torch calls it before that
# import, so the order of imports does not matter.
set_thread_policy()
