"""SIGTERM, the warning before a cluster takes its machine away, as an exception.

Whatever is finished is on disk, so a process may end at any moment. Training alone defers the end until the batch under
way is done, and saves its state first.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

EXIT_CODE = 128 + signal.SIGTERM
"""The exit code of a process that SIGTERM ended: 143."""


class Stopped(BaseException):
    """SIGTERM came. No failure: the command line alone catches it."""


_requested = False
_deferring = 0
"""How many blocks that defer the end are entered."""


def stop_requested() -> bool:
    """Whether SIGTERM came and the process has not ended yet."""
    return _requested


def stop_if_requested() -> None:
    """Raise Stopped where SIGTERM came."""
    if _requested:
        raise Stopped


@contextmanager
def deferred() -> Iterator[None]:
    """Within, SIGTERM waits for `stop_if_requested`, at the latest at the end of the block."""
    global _deferring
    _deferring += 1
    try:
        yield
    finally:
        _deferring -= 1
        if not _deferring:  # also where the block failed
            stop_if_requested()


def _on_signal(_number: int, _frame: FrameType | None) -> None:
    global _requested
    _requested = True
    if not _deferring:
        raise Stopped


@contextmanager
def handled() -> Iterator[None]:
    """Within, SIGTERM raises Stopped, also where it makes something fail with another error.

    Outside a process's main thread, which alone receives signals, it does nothing.
    """
    global _requested
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _requested = False
    before = signal.signal(signal.SIGTERM, _on_signal)
    try:
        yield
    except Exception:
        stop_if_requested()
        raise
    finally:
        _requested = False
        # None: a handler that was not set from Python, and cannot be put back from it.
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)
