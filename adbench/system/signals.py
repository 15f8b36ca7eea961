"""Ending in order when the system asks for it: SIGTERM, the warning before a cluster takes its machine away.

At most moments there is nothing to put in order, since what is finished is on disk: the process ends at once. Training
holds the request back until the batch under way is done, and saves its state first.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

EXIT_CODE = 128 + signal.SIGTERM
"""What a process that SIGTERM ends tells its parent: 143."""


class Stopped(BaseException):
    """The process was asked to end. No failure: nothing but the command line catches it."""


_asked = False
_held = 0


def requested() -> bool:
    """Whether a request waits to be followed."""
    return _asked


def follow() -> None:
    """Raise Stopped where a request waits."""
    if _asked:
        raise Stopped


@contextmanager
def held() -> Iterator[None]:
    """Within, a request waits until it is followed, at the latest at the end."""
    global _held
    _held += 1
    try:
        yield
    finally:
        _held -= 1
        if not _held:  # also where what it interrupts has failed
            follow()


def _on_signal(_number: int, _frame: FrameType | None) -> None:
    global _asked
    _asked = True
    if not _held:
        raise Stopped


@contextmanager
def heeded() -> Iterator[None]:
    """Within, SIGTERM becomes Stopped, also where it makes something fail with another error.

    Outside a process's main thread, which alone hears signals, it does nothing.
    """
    global _asked
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _asked = False
    before = signal.signal(signal.SIGTERM, _on_signal)
    try:
        yield
    except Exception:
        follow()
        raise
    finally:
        _asked = False
        # None: a handler that was not set from Python, and cannot be put back from it.
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)
