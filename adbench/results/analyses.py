"""What `adbench cross` and `adbench cam` leave behind: one JSON file an analysis, with a published schema.

They lie in `results/<dataset>/<kind>/<id>/<kind>.json`, kind being the verb. Reading needs no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from adbench.errors import UserError
from adbench.results.document import Document, content
from adbench.system.files import below

SCHEMA_VERSION = 1


class Analysis(Document):
    """One analysis and where it lies."""


def read(path: Path) -> Analysis:
    """Read one analysis.

    Raises UserError when it is not a whole one of a version that is understood, and names the field that is not as its
    schema has it, or that is not one for each network.
    """
    remedy = f"delete it and run `adbench {path.stem}` again"
    found = Analysis(path, content(path, path.stem, remedy))
    if said := _contradiction(found):
        raise UserError(f"'{path}' contradicts itself: {said}; {remedy}")
    return found


def _contradiction(one: Analysis) -> str | None:
    """What cannot be true of fields that are right by themselves."""
    networks = len(one["networks"])
    if one.path.stem == "cross":
        counted = {"matrix": one["matrix"], "seconds": one["seconds"]}
        counted |= {f"matrix.{place}": row for place, row in enumerate(one["matrix"])}
        shares = [network["clean"] for network in one["networks"]] + [entry for row in one["matrix"] for entry in row]
        if any(share["correct"] > share["n"] for share in shares):
            return "it has more correct than there are"
    else:
        images, networks = one["examples"]["images"], networks - 1  # the teacher's maps are what others agree with
        counted = {"agreement": one["agreement"]}
        counted |= {f"examples.images.{place}.cosine": image["cosine"] for place, image in enumerate(images)}
    for field, values in counted.items():
        if len(values) != networks:
            return f"{field} has {len(values)} entries, of {networks} networks"
    return None


def read_all(results: Path, kind: str, left_out: Callable[[str], object] | None = None) -> list[Analysis]:
    """Every analysis of a kind below `results`, in path order. left_out: as of `record.read_all`."""
    found = []
    for path in below(results, f"{kind}.json"):
        if path.parent.parent.name == kind:
            try:
                found.append(read(path))
            except UserError as error:
                if left_out is None:
                    raise
                left_out(str(error))
    return found


def latest(found: Iterable[Analysis]) -> list[Analysis]:
    """Those that no later one replaces, in path order.

    A later one replaces an earlier one of the same images and setting if it has all of its networks.
    """
    kept: list[Analysis] = []
    for one in sorted(found, key=lambda a: (a["provenance"]["finished"], str(a.path)), reverse=True):
        if not any(_replaces(later, one) for later in kept):
            kept.append(one)
    return sorted(kept, key=lambda a: str(a.path))


def _replaces(later: Analysis, earlier: Analysis) -> bool:
    alike = all(later[key] == earlier[key] for key in ("dataset", "setting"))
    alike = alike and later["data"]["fingerprint"] == earlier["data"]["fingerprint"]
    # The first network of `cam` is the teacher that the others are compared with.
    alike = alike and (later.path.stem != "cam" or _weights(later)[0] == _weights(earlier)[0])
    return alike and set(_weights(earlier)) <= set(_weights(later))


def _weights(one: Analysis) -> list[str]:
    return [network["weights_sha256"] for network in one["networks"]]
