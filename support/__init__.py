"""Everything around the papers' algorithms: command line, processes, run folders, model loading, the learned verifier,
plots."""
import os

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def set_thread_policy():
    """Set environment variables that libraries read once, when they are loaded. With a tiny model on a busy machine,
    threads that spin while waiting slow a run down up to 50 times."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("GOMP_SPINCOUNT", "0")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if "PYTORCH_CUDA_ALLOC_CONF" not in os.environ:  # older name; finished rows would fragment a GPU's memory
        os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")


# This call covers every module of the package. A file outside of it that imports torch calls the function first, so the
# order of imports does not matter.
set_thread_policy()
