"""`adbench cam`: does a student look where its teacher looks? Figure 2 of SmaraAD (CVPR 2024), with numbers.

Class activation maps (Eq. 6) of the label's class, of a teacher and of its students on the same images: the clean
ones, and x' made on the teacher by PGD-20. Two maps are compared as Eq. 7 compares them: resized bilinearly to the
larger one, then brought to [0, 1] each.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adbench.analysis.common import BATCH, Testbed, load_all
from adbench.errors import UserError
from adbench.execution.place import Place
from adbench.losses import CamNorm, alignment, cam, normalise_map
from adbench.models import Network
from adbench.results import analyses, document, layout
from adbench.results.analyses import Cam, Mean
from adbench.results.networks import Finished, Group
from adbench.results.provenance import now, provenance
from adbench.results.stats import student_t
from adbench.system import files, locks, terminal

KIND = "cam"
ATTACK = "pgd20"
EXAMPLES = 6

# A map whose values differ by less than this share of the largest is constant: what is left is rounding.
FLAT = 1e-6

Maps = dict[str, Tensor]  # (n, H, W) each, of the "adversarial" and of the "clean" images


def lines(groups: Sequence[Group], place: Place, *, images: int | None, skip_missing: bool) -> Iterator[str]:
    """Compare every teacher that is not there yet with its students; what the command prints, as it goes.

    images: how many test images, by default `testbed.IMAGES`. Raises UserError where no teacher has a student, for
    weights that are not there, and where no teacher shows its maps.
    """
    pairs = [(group, teacher, pupils) for group in groups for teacher, pupils in classes(group)]
    if not pairs:
        raise UserError("attribution maps need a finished teacher and a finished student that it taught; none is here")
    refused: list[str] = []
    for group, teacher, pupils in pairs:
        yield f"{group}: teacher {teacher.label} and {len(pupils)} student{'s' if len(pupils) != 1 else ''}"
        bed = Testbed.of(group, place, ATTACK, images)
        yield from _teacher(bed, [teacher, *pupils], skip_missing, refused)
    if len(refused) == len(pairs):
        raise UserError(refused[0])


def classes(group: Group) -> list[tuple[Finished, list[Finished]]]:
    """Each teacher that taught a student of the group, with these and all students that nobody taught."""
    students = [network for network in group.networks if network.kind == "student"]
    found = []
    for teacher in (network for network in group.networks if network.kind == "teacher"):
        if any(student.taught_by == teacher.weights for student in students):
            found.append((teacher, [s for s in students if s.taught_by in (teacher.weights, None)]))
    return found


def _teacher(bed: Testbed, networks: list[Finished], skip_missing: bool, refused: list[str]) -> Iterator[str]:
    path, identity = _path(bed, networks)
    if not path.is_file():
        loaded, left_out = load_all(networks, bed, skip_missing)
        yield from left_out
        if len(loaded) < 2 or loaded[0][0] is not networks[0]:
            refused.append(f"teacher '{networks[0].label}' or all of its students have no weights")
            yield "  nothing to compare"
            return
        try:
            _ = loaded[0][1].classifier
        except UserError as error:  # a network from elsewhere whose last map nobody knows
            refused.append(str(error))
            yield f"  skipped: {error}"
            return
        path, identity = _path(bed, [one for one, _ in loaded])
        with locks.locked(path.parent):
            # Another process may have finished it while this one waited.
            if not path.is_file():
                _compute(bed, loaded, path, identity)
    yield from table(analyses.read(path, Cam))


def _path(bed: Testbed, networks: Sequence[Finished]) -> tuple[Path, str]:
    teacher, *students = (one.weights for one in networks)
    return bed.path(KIND, [teacher, *sorted(students)])


def _compute(bed: Testbed, loaded: Sequence[tuple[Finished, Network]], path: Path, identity: str) -> None:
    started = now()
    with bed.holding(loaded[0][1]) as teacher:
        inputs = {"adversarial": bed.crafted(teacher), "clean": bed.x}
        right = bed.right(teacher, bed.x).cpu()
    seen: list[Maps] = []
    for _, network in loaded:
        with bed.holding(network):
            seen.append({which: maps_of(network, x, bed.y) for which, x in inputs.items()})
    chosen = examples(bed.y.cpu(), right)
    cosines = [compared(maps["adversarial"], seen[0]["adversarial"])[0] for maps in seen[1:]]
    arrays = {
        "x": bed.dataset.test.images[chosen].numpy(),
        "x_adv": inputs["adversarial"].cpu()[chosen].numpy(),
        **{f"map{number}": maps["adversarial"][chosen].numpy() for number, maps in enumerate(seen)},
    }
    files.write_npz(path.parent / layout.EXAMPLES, arrays)
    labels = bed.dataset.class_names
    shown = [
        {
            "index": i,
            "label": labels[int(bed.y[i])],
            "cosine": [None if found[i].isnan() else float(found[i]) for found in cosines],
        }
        for i in chosen
    ]
    found = {
        **bed.head(identity, [one for one, _ in loaded]),
        "agreement": [{which: agreement(maps[which], seen[0][which]) for which in inputs} for maps in seen[1:]],
        "examples": {"file": layout.EXAMPLES, "sha256": files.sha256(path.parent / layout.EXAMPLES), "images": shown},
        "provenance": provenance(bed.place.describe(), torch.get_num_threads(), None, started),
    }
    document.write(path, found)


@torch.no_grad()
def maps_of(network: Network, x: Tensor, y: Tensor) -> Tensor:
    """Class activation maps (Eq. 6) of the labels' class, on the CPU: (n, h, w) for images x (n, C, H, W), labels y."""
    parts = []
    for some_x, some_y in zip(torch.split(x, BATCH), torch.split(y, BATCH), strict=True):
        _, features = network.forward_features(some_x)
        parts.append(cam(features, network.classifier.weight, some_y).cpu())
    return torch.cat(parts)


def compared(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine similarity and mean squared difference (Eq. 7) of maps (n, h, w) and (n, h', w'): (n,) each, float64.

    Maps are resized bilinearly to the larger height and width, then brought to [0, 1] each. A constant map becomes 0
    everywhere, as min-max leaves it: then the squared difference says so, and there is no cosine (nan).
    """
    size = (max(one.shape[1], other.shape[1]), max(one.shape[2], other.shape[2]))
    a, b = (_unit(maps, size) for maps in (one, other))
    a_length, b_length = (torch.linalg.vector_norm(maps, dim=(1, 2)) for maps in (a, b))
    cosine = (a * b).sum(dim=(1, 2)) / (a_length * b_length)  # 0 / 0 is nan
    return cosine, alignment(a, b)


def _unit(maps: Tensor, size: tuple[int, int]) -> Tensor:
    flat = maps.amax(dim=(1, 2)) - maps.amin(dim=(1, 2)) <= FLAT * maps.abs().amax(dim=(1, 2))
    unit = normalise_map(maps.double(), size, CamNorm.MINMAX)
    return torch.where(flat[:, None, None], 0.0, unit)


def agreement(student: Tensor, teacher: Tensor) -> dict[str, Any]:
    """`compared` for a record: means over the images, each with its 95% interval and its number of images."""
    cosine, mse = compared(student, teacher)
    return {"cosine": _mean(cosine[~cosine.isnan()]), "mse": _mean(mse)}


def _mean(values: Tensor) -> dict[str, Any]:
    """Mean and 95% Student-t interval over images; null where there are none, and an interval of one."""
    if not len(values):
        return {"mean": None, "ci_test": None, "n": 0}
    mean, half = student_t(values.tolist())
    return {"mean": mean, "ci_test": None if math.isnan(half) else [mean - half, mean + half], "n": len(values)}


def examples(y: Tensor, right: Tensor) -> list[int]:
    """The images to draw: of the first EXAMPLES classes the first image each that the teacher gets right as it is.

    y: (n,) labels; right: (n,) booleans. A class without such an image gives way to the next one.
    """
    firsts = [((y == label) & right).nonzero() for label in range(int(y.max()) + 1)]
    return [int(found[0]) for found in firsts if len(found)][:EXAMPLES]


def table(one: Cam) -> Iterator[str]:
    """The means for a terminal: a row a student, both kinds of image."""

    def shown(found: Mean) -> str:
        return "-" if found.mean is None else f"{found.mean:.4f}"

    yield f"  maps of the label's class, compared with the teacher's; x' by {one.attack['name']} on the teacher"
    head = ("", "cosine, x'", "MSE, x'", "cosine, clean", "MSE, clean", "images")
    rows = [
        (
            network.name,
            *(shown(mean) for kind in (found.adversarial, found.clean) for mean in (kind.cosine, kind.mse)),
            str(found.adversarial.mse.n),
        )
        for network, found in zip(one.networks[1:], one.agreement, strict=True)
    ]
    yield from terminal.table([head, *rows])
    yield f"  in {one.path}"
