"""What `adbench cross` and `adbench cam` share: finished networks on the same test images, under one attack."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adbench import REVISION
from adbench.attacks import autoattack
from adbench.attacks.linf import Start
from adbench.attacks.named import GradientAttack, gradient_attack
from adbench.data import Dataset, parse_fraction
from adbench.data.batches import to_float
from adbench.data.threat import meant_attack
from adbench.errors import UserError
from adbench.execution.place import Place
from adbench.experiment.cell import dataset_folder
from adbench.models import Network
from adbench.models.verdict import right
from adbench.results import layout
from adbench.results.document import SCHEMA_VERSION
from adbench.results.networks import Finished, Group, names
from adbench.system.files import content_id
from adbench.weights.networks import dataset_of, network_of

IMAGES = 1000
"""Test images where the user asks for no other number and there are so many."""

BATCH = 250


@dataclass(frozen=True, eq=False)
class Testbed:
    """The first n test images x (n, C, H, W) in [0, 1] with labels y (n,) on a device, and the attack on them."""

    __test__ = False  # for pytest, which takes the name for a test's

    group: Group
    dataset: Dataset
    place: Place
    attack: GradientAttack
    x: Tensor
    y: Tensor

    @classmethod
    def of(cls, group: Group, place: Place, attack: str, images: int | None) -> Testbed:
        """The group's test images under its threat model. images: how many; by default IMAGES, or all if fewer.

        Raises UserError for AutoAttack or an unknown attack, for data that changed, and for more images than there are.
        """
        found = named(group, attack)
        dataset = dataset_of(group.networks[0].record, place.data_dir, whole_test=True)
        if images is not None and images > len(dataset.test):
            raise UserError(f"'{group.dataset}' has {len(dataset.test)} test images, not {images}; ask for fewer")
        test = dataset.test.first(images or IMAGES).to(place.torch_device)
        return cls(group, dataset, place, found, to_float(test.images), test.labels)

    @property
    def definition(self) -> dict[str, Any]:
        """What is run, for the record."""
        return self.attack.definition(self.group.setting.seed)

    def path(self, kind: str, weights: Sequence[str]) -> tuple[Path, str]:
        """Where the analysis of networks of these weights (SHA-256) lies, and its id: all that decides it, hashed."""
        # Another version of adbench is another revision where it computes other numbers.
        attack = {key: value for key, value in self.definition.items() if key != "implementation"}
        content = {"fingerprint": self.group.fingerprint, "images": len(self.y), "attack": attack, "networks": weights}
        identity = content_id({"revision": REVISION, "kind": kind, **content})[:16]
        return layout.analysis_path(self.place.results, dataset_folder(self.group.dataset), kind, identity), identity

    def head(self, identity: str, networks: Sequence[Finished]) -> dict[str, Any]:
        """How every analysis begins."""
        return {
            "schema_version": SCHEMA_VERSION,
            "id": identity,
            "dataset": self.group.dataset,
            "data": {"fingerprint": self.group.fingerprint, "images": len(self.y)},
            "setting": asdict(self.group.setting),
            "attack": self.definition,
            "networks": [
                one.entry(name, self.place.results) for one, name in zip(networks, names(networks), strict=True)
            ],
        }

    def crafted(self, network: Network, restart: int = 0) -> Tensor:
        """x' (n, C, H, W) against `network` for every image, whether the network is right on it or not."""
        index = torch.arange(len(self.y), device=self.y.device)
        seed = self.group.setting.seed
        return torch.cat(
            [self.attack(network, self.x[i], self.y[i], i, seed, restart) for i in torch.split(index, BATCH)]
        )

    @torch.no_grad()
    def right(self, network: Network, x: Tensor) -> Tensor:
        """Whether `network`, on the device, is right on each of the images x (n, C, H, W): (n,) booleans."""
        return right(torch.cat([network(part) for part in torch.split(x, BATCH)]), self.y)

    @contextmanager
    def holding(self, network: Network) -> Iterator[Network]:
        """The network on the device, and on the CPU again afterwards: not all need fit on a GPU at once."""
        try:
            yield network.to(self.place.torch_device)
        finally:
            network.to("cpu")


def named(group: Group, attack: str) -> GradientAttack:
    """The gradient attack of that name in the group's setting. Raises UserError for AutoAttack and unknown names."""
    if attack in autoattack.VERSIONS:
        raise UserError("AutoAttack leaves no single x' to transfer; --attack takes fgsm, mi-fgsm, pgdK and cw")
    setting = group.setting
    return gradient_attack(
        meant_attack(attack), parse_fraction(setting.eps), parse_fraction(setting.step), Start(setting.start)
    )


def load_all(
    networks: Sequence[Finished], bed: Testbed, skip_missing: bool
) -> tuple[list[tuple[Finished, Network]], list[str]]:
    """Every network with its weights, on the CPU in evaluation mode; and a line for each that is left out.

    skip_missing: leave out those whose weights are not there, or are not the record's; else this is a UserError that
    names the record.
    """
    loaded, left_out = [], []
    for one in networks:
        try:
            remedy = "bring them back, or leave such networks out with --skip-missing"
            network = network_of(one.record, bed.dataset, bed.place.data_dir, remedy=remedy)
        except UserError as error:
            if not skip_missing:
                raise
            left_out.append(f"  left out: {error}")
            continue
        loaded.append((one, network))
    return loaded, left_out
