"""`adbench board challenge`: adversarial examples from anybody, and what one forward pass makes of them."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adbench import __version__
from adbench.board import folders, rules, standings
from adbench.board.evidence import Challenge
from adbench.data.threat import parse_fraction
from adbench.errors import UserError
from adbench.evaluation import stored_examples
from adbench.execution.place import Place
from adbench.results import document, provenance, record
from adbench.system import files
from adbench.weights import networks

BATCH = 250
FORM = "an .npz with x (N, C, H, W), float32 in [0, 1], and index (N,), int64: the test image that each x was made of"


def challenge(
    path: Path, examples: Path, *, place: Place, by: str, weights: Path | None = None
) -> tuple[Challenge, int, int]:
    """What the examples break of the network of the record at `path`; how many stood before, and stand now.

    weights: its checkpoint, where it does not lie where the record has it. Raises UserError for a record that no board
    ranks, for examples that are not as FORM has them or lie outside the ball, and where none of them breaks anything.
    """
    found = record.read(path)
    if found.dataset not in rules.RANKED or not found.done:
        raise UserError(f"'{path}' is no record that a board ranks: {'; '.join(rules.unranked(found))}")
    found.check_configuration()
    if wrong := rules.misidentified(found):
        raise UserError(f"'{path}' is no record that a board ranks: {wrong[0]}")
    dataset = networks.dataset_of(found, place.data_dir)
    network = networks.network_of(found, dataset, place.data_dir, weights).to(place.torch_device)
    x, index = read(examples, tuple(dataset.test.images.shape))
    images, y = dataset.test.images[index], dataset.test.labels[index]
    eps = parse_fraction(rules.RANKED[found.dataset].eps)
    if (away := stored_examples.outside(images, x, eps)).any():
        first = int(away.nonzero()[0])
        raise UserError(
            f"'{examples}': {int(away.sum())} of {len(x)} examples lie outside the ball of ε = {eps} around their "
            f"test images or outside [0, 1], the first at place {first}, of test image {int(index[first])}"
        )
    fallen = torch.cat(
        [
            _wrong(network(part.to(place.torch_device)), of.to(place.torch_device)).cpu()
            for part, of in zip(torch.split(x, BATCH), torch.split(y, BATCH), strict=True)
        ]
    )
    broken = sorted({int(place) for place in index[fallen]})
    stood = standings.stands(found)
    new = sum(bool(stood[place]) for place in broken)
    if not new:
        raise UserError(f"'{examples}' breaks no image of '{path}' that stood under the attacks of its record")
    outcome = Challenge(
        schema_version=1,
        id=found.id,
        train_id=found.train_id,
        weights_sha256=found.network.weights_sha256,
        fingerprint=found.images.fingerprint,
        eps=rules.RANKED[found.dataset].eps,
        examples_sha256=files.sha256(examples),
        examples=len(x),
        broken=broken,
        by=by,
        date=provenance.now(),
        adbench=__version__,
    )
    return outcome, int(stood.sum()), int(stood.sum()) - new


@torch.no_grad()
def _wrong(logits: Tensor, y: Tensor) -> Tensor:
    """Which logits (N, K) are wrong for y (N,), and would be on another processor."""
    right, unclear = stored_examples.verdicts(logits.float(), y)
    return ~right & ~unclear


def write(outcome: Challenge, path: Path) -> None:
    """Write what a challenge came to, for `challenges/` of a board."""
    names = [name for name in Challenge.__dataclass_fields__ if name != "path"]
    document.write(path, {name: getattr(outcome, name) for name in names})


def read(path: Path, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Examples x (N, C, H, W) and the test images (N,) that they were made of. shape: of all test images.

    Raises UserError where the file is not as FORM has it, before more is unpacked than twice so many images have bytes.
    """
    images, pixels = shape[0], int(np.prod(shape[1:]))
    most = 2 * images * (pixels * 4 + 8) + 2**16
    try:
        content = folders.bounded(path, most)
        with zipfile.ZipFile(io.BytesIO(content)) as members:
            unpacked = sum(member.file_size for member in members.infolist())
        if unpacked > most:
            raise ValueError(f"it unpacks to {unpacked:,} bytes, which all test images do not have")
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            x: Any = arrays["x"]
            index: Any = arrays["index"] if "index" in arrays else np.arange(len(x))
    except UserError:
        raise
    except Exception as error:  # a damaged zip can make numpy raise anything
        raise UserError(f"'{path}' cannot be read as adversarial examples ({error}); give {FORM}") from error
    if not isinstance(x, np.ndarray) or not isinstance(index, np.ndarray):
        raise UserError(f"'{path}' cannot be read as adversarial examples (a member is no array); give {FORM}")
    if x.dtype != np.float32 or x.ndim != 4 or x.shape[1:] != shape[1:] or not 0 < len(x) <= images:
        raise UserError(f"'{path}' has x of {x.dtype} and shape {x.shape}, test images {shape}; give {FORM}")
    if index.dtype.kind not in "iu" or index.shape != (len(x),) or ((index < 0) | (index >= images)).any():
        raise UserError(f"'{path}' has an index that is not {len(x)} places in {images} test images; give {FORM}")
    return torch.from_numpy(x), torch.from_numpy(index.astype(np.int64))
