"""Seven random SIGKILLs over training, evaluation, merge, report and prepare; `python tests/kills.py` does more."""

from __future__ import annotations

from pathlib import Path

import kills
import pytest


@pytest.mark.slow
def test_random_kills_lose_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fewer = {"run": 3, "merge": 1, "run with workers": 1, "report": 1, "prepare": 1}
    monkeypatch.setattr(
        kills, "COMMANDS", {name: (fewer.get(name, 0), words) for name, (_, words) in kills.COMMANDS.items()}
    )
    outcome = kills.kill(7, 7, tmp_path)
    print(outcome)
    assert outcome.kills.total() >= 7
