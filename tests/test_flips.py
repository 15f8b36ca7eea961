"""Three hundred single-bit flips over every kind of file; `python tests/flips.py` does more."""

from __future__ import annotations

from pathlib import Path

import flips
import pytest
import torch

from adbench.errors import UserError
from adbench.evaluation import outcome_files, stored_examples
from adbench.evaluation.evaluator import Outcome
from adbench.results import layout

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_flipped_bit_is_told_or_changes_nothing(tmp_path: Path) -> None:
    seen = flips.flip(340, 0, flips.make(tmp_path))
    assert len(seen) == 17
    seen.pop("exported card")  # the weights are held to its hash alone, a small part of it (tests/test_share.py)
    assert all(counts["told"] > 10 for counts in seen.values()), seen


@pytest.mark.parametrize("part", ["beginning", "end"])
def test_no_bit_of_a_zip_makes_a_reader_fail_in_another_way(part: str, tmp_path: Path) -> None:
    """Flags for encryption, unknown compression and lengths are there, which raise whatever they raise."""
    outcome = Outcome(torch.tensor([True, False] * 4), {"name": "fgsm"}, 1.5)
    outcome_files.save(tmp_path, "fgsm", outcome, None, None, "w")  # type: ignore[arg-type]
    (path,) = tmp_path.glob(layout.PARTIAL.format("*"))
    whole = path.read_bytes()
    assert torch.equal(outcome_files.load(tmp_path, "w")["fgsm"].right, outcome.right)
    believed = 0
    bits = range(0, 8 * 64, 3) if part == "beginning" else range(8 * (len(whole) - 200), 8 * len(whole), 5)
    for bit in bits:
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        for found in outcome_files.load(tmp_path, "w").values():
            believed += 1
            assert flips.equal(found, outcome), bit
        with pytest.raises(UserError, match=r"partial-"):
            stored_examples.read(path, torch.zeros(8, 1, 8, 8, dtype=torch.uint8))
    assert believed < len(bits), "dates and permissions in a zip say nothing, the rest does"
