"""What a user did, or met, that adbench cannot go on from."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Bad input: one sentence that names what was wrong, where, and what would be right.

    The command line prints it and exits with code 2; inside a matrix it fails its cell alone.
    """


def unknown(kind: str, name: str, known: Iterable[str], where: str = "adbench list") -> UserError:
    """The error for a name that nobody registered, with the nearest registered one."""
    names = sorted(known)
    near = difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.5)
    hint = f"did you mean '{near[0]}'?" if near else f"known are {', '.join(names)}"
    return UserError(f"unknown {kind} '{name}'; {hint} ({where})")
