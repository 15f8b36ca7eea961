"""Odd content of any document, in any command: a few of those that tests/odd.py tries."""

from __future__ import annotations

import random
from pathlib import Path

import odd
import pytest

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return odd.make(tmp_path_factory.mktemp("odd"))


@pytest.mark.parametrize("kind", odd.FILES)
def test_odd_content_is_named_left_out_and_counted_or_harmless(kind: str, results: Path) -> None:
    quick = {"results", "compare", "merge", "export", "status"} | ({kind.removesuffix(".json")} & {"cross", "cam"})
    tried = [one for seed in range(6) for one in odd.try_out(results, kind, random.Random(seed), quick.__contains__)]
    assert len(tried) >= 6 * 5
