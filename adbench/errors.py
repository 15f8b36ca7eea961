"""Errors of users, and how they are worded."""

from __future__ import annotations

import difflib
import os
import sysconfig
import traceback
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path

LISTED = 20
"""Names that a complaint about an unknown one lists."""


class UserError(Exception):
    """Bad input: one sentence that names what was wrong, where, and what would be right.

    The command line prints it and exits with code 2; inside a matrix it fails its cell alone.
    """


class Nothing(UserError):
    """There is no record to show; those left out have been named."""


class LeftOut:
    """The damaged files that a command on many files passes over: each is reported once, and counted.

    say: called with the sentences. Such a command ends with exit code 1.
    """

    def __init__(self, say: Callable[[str], object]) -> None:
        self._say = say
        self._sentences: set[str] = set()

    def __call__(self, sentence: str) -> None:
        if sentence not in self._sentences:
            self._sentences.add(sentence)
            self._say(sentence)

    def __len__(self) -> int:
        return len(self._sentences)


class Caution(UserWarning):
    """Input that can be used, but may not be what its user thinks: one sentence, which the command line prints."""


def warn(sentence: str) -> None:
    """Say a `Caution`."""
    warnings.warn(sentence, Caution, stacklevel=3)


def printable(text: str) -> str:
    """Text out of a file, without what would move a terminal's cursor or break a line."""
    return "".join(char if char.isprintable() else "?" for char in text)


def unknown(kind: str, name: str, known: Iterable[str], where: str = "adbench list") -> UserError:
    """The error for a name that nobody registered, with the nearest registered one."""
    names = sorted(set(known))
    near = difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.5)
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    hint = f"did you mean '{near[0]}'?" if near else f"known are {', '.join(names[:LISTED])}{more}"
    return UserError(f"unknown {kind} '{name}'; {hint} ({where})")


def is_text(value: str) -> bool:
    """Whether records and paths can hold `value`: no NUL, no lone surrogate (of bytes that are no UTF-8)."""
    return "\0" not in value and not any("\ud800" <= letter <= "\udfff" for letter in value)


def located(error: BaseException) -> str:
    """An error that is no sentence of ours: its type, its text, and which line of a method's file it came from."""
    others = tuple(f"{folder}{os.sep}" for folder in (Path(__file__).parent, sysconfig.get_path("stdlib")))
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if "site-packages" not in frame.filename and not frame.filename.startswith((*others, "<"))
    ]
    place = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())}{place}"
