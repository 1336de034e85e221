"""The processor cores that this process may use, by which each part of the project counts its threads and processes."""

import os


def cores() -> int:
    """Number of cores that this process may use: fewer than the machine has where an affinity mask says so."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
