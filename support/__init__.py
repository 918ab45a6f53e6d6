"""What is not the papers': the command line, processes, run folders, fast paths, the learned verifier, pictures."""
import ctypes
import os

# A tiny model on a busy machine: threads that spin while they wait cost up to 50x. Read once, when torch is loaded, so
# everything that imports torch imports from this package first.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "0")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

# glibc gives memory of large tensors back to the system at once, and each gets its pages anew: a fifth of a step of a
# 135 M model on a CPU. -3 and -1 are M_MMAP_THRESHOLD and M_TRIM_THRESHOLD.
try:
    libc = ctypes.CDLL(None)
    libc.mallopt(-3, 2 ** 30), libc.mallopt(-1, 2 ** 31 - 1)
except (OSError, AttributeError, TypeError):  # not glibc
    pass
