"""What only some operating systems tell of a machine: its processor cores, and how much memory a process took."""

from __future__ import annotations

import ctypes
import os
import platform
from contextlib import suppress
from functools import cache
from pathlib import Path

from adbench.errors import UserError


def cores() -> int:
    """Processor cores that this process may use; all there are where the system does not say."""
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def threads() -> int | None:
    """The number of threads that OMP_NUM_THREADS asks for, or None; of a list ("4,2": levels of nesting) the first.

    torchrun sets it by itself, so that of its processes nothing was asked. Raises UserError where it is no number.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return None
    setting = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    if not setting:
        return None
    if not setting.isdecimal() or not 1 <= (number := int(setting)) <= MOST_THREADS:
        raise UserError(
            f"OMP_NUM_THREADS is '{setting}', which is no number from 1 to {MOST_THREADS}; correct or unset it"
        )
    return number


MOST_THREADS = 1024
"""Threads that can be asked for: torch takes any number, and the system ends the process that starts too many."""


def may_have(device: str) -> bool:
    """Whether a device "cpu", "cuda", "cuda:N" or "mps" may be here: False on a Linux without any GPU's driver, where
    torch, which knows for certain, need not be asked."""
    if platform.system() != "Linux" or device == "cpu":
        return True
    return device != "mps" and (any(Path(driver).exists() for driver in DRIVERS) or _loads("libcuda.so.1"))


DRIVERS = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")
"""What NVIDIA's driver, AMD's and that of Windows' subsystem for Linux put there."""


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def peak_memory() -> int:
    """The largest memory this process took, in bytes; 0 where the system does not say."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    try:
        import resource
    except ImportError:  # Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if platform.system() == "Darwin" else 1024)


@cache
def keep_freed_memory() -> bool:
    """Let this process keep what it frees, for what it allocates next: whether its C library (glibc) can.

    By default glibc hands a large block back when it is freed and asks the kernel for another, whose pages are empty
    and cost a fault each: a fifth of a small network's time on a CPU (docs/performance.md).
    """
    trim_threshold, mmap_threshold = -1, -3  # malloc.h: M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library
        return False
    # Before 2.35 no threshold above 32 MiB is accepted.
    blocks = mallopt(mmap_threshold, 1 << 30) or mallopt(mmap_threshold, 1 << 25)
    return bool(blocks and mallopt(trim_threshold, (1 << 31) - 1))
