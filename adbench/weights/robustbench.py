"""Teachers from RobustBench's model zoo (Croce et al., NeurIPS Datasets and Benchmarks 2021).

The optional package knows the architectures and where the files are; `adbench.weights.checkpoint` reads the files, so
that nothing in them runs.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import sys
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adbench.errors import UserError, unknown
from adbench.experiment.teacher import published
from adbench.models import Network
from adbench.models.foreign import Found, find_features
from adbench.models.stages import Every
from adbench.system import files
from adbench.weights import checkpoint
from adbench.weights.checkpoint import NORMALISATION

INSTALL = "pip install robustbench==1.1.1 'setuptools<81'"
"""What the optional package takes."""


def load(model_id: str, dataset: str, *, cache_dir: Path, threat: str = "Linf") -> Network:
    """The network `model_id` of RobustBench with its weights, in evaluation mode, for images in [0, 1].

    dataset: "cifar10" or "cifar100"; threat: "Linf" or "L2". The file lies at
    cache_dir/dataset/threat/model_id.pt, RobustBench's own layout, and is downloaded if it is not there.
    Raises UserError where the package is missing, the model is unknown or an ensemble, the download fails, or
    the file does not fit.
    """
    zoo, download = _package(model_id)
    try:
        known = next(v for k, v in zoo.items() if k.value == dataset)
        entries = next(v for k, v in known.items() if k.value == threat)
    except StopIteration:
        raise UserError(f"RobustBench has no models for {dataset} under {threat}") from None
    if model_id not in entries:
        raise unknown("RobustBench model", model_id, entries, f"robustbench.github.io, {dataset} {threat}")
    address = entries[model_id]["gdrive_id"]
    if not isinstance(address, str):
        raise UserError(
            f"the RobustBench model '{model_id}' is an ensemble or has no single file; choose another teacher"
        )
    path = files.expanded(cache_dir) / dataset / threat / f"{model_id}.pt"
    if not path.exists():
        _fetch(download, address, path, model_id)
    try:
        model: nn.Module = entries[model_id]["model"]()
    except Exception as error:  # the package's constructors lean on versions of further packages
        raise UserError(
            f"the installed robustbench cannot build '{model_id}' ({_short(error)}); choose another teacher"
        ) from error
    # Some published files leave out the normalisation that the architecture brings along as buffers.
    constants = [key for key in model.state_dict() if key.rpartition(".")[2] in NORMALISATION]
    checkpoint.load(model, path, prefer="state_dict", optional=constants)
    return RobustBenchNetwork(model, model_id)


class RobustBenchNetwork(Network):
    """A RobustBench model under the contract of adbench; it normalises its inputs itself.

    Its last feature map is found by watching one forward pass of a random image: the largest 4-D output of a
    module whose mean over H and W (after a ReLU, if need be) is the input of the last linear layer.
    """

    def __init__(self, model: nn.Module, name: str) -> None:
        super().__init__(channels=3)
        self.model = model
        self.eval()
        self._name = name
        self._found = find_features(model, torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)))

    @property
    def shows_features(self) -> bool:
        return self._found is not None

    @property
    def classifier(self) -> nn.Linear:
        head = self._seen()[0]
        assert head is not None
        return head

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(x)
        return logits

    def forward_features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Raises UserError where the architecture shows no map that is average-pooled into a linear head."""
        _, source, call, rectify = self._seen()
        outputs: dict[str, Any] = {}
        handle = source.register_forward_hook(Every("maps", outputs))
        try:
            logits: Tensor = self.model(x)
        finally:
            handle.remove()
        last = outputs["maps"][call]
        return logits, F.relu(last) if rectify else last

    def _seen(self) -> Found:
        if self._found is None:
            raise UserError(
                f"the feature maps of RobustBench's '{self._name}' are unavailable: no map is average-pooled "
                f"into its linear head; choose another teacher, or a method that needs logits only"
            )
        return self._found


def _package(model_id: str) -> tuple[dict[Any, Any], Any]:
    """The model zoo and the downloader of the optional package."""
    try:
        if importlib.util.find_spec("robustbench") is None:
            near = difflib.get_close_matches(model_id, {spec.name for spec in published()} - {model_id}, n=1)
            hint = f" (if it is not a slip of the pen for 'robustbench:{near[0]}')" if near else ""
            raise UserError(
                f"'{model_id}' needs RobustBench's package{hint}: {INSTALL}; the models of `adbench teachers` do not"
            )
        # The package asks for `autoattack`, which the index has under another name.
        if "autoattack" not in sys.modules and importlib.util.find_spec("autoattack") is None:
            sys.modules["autoattack"] = importlib.import_module("pyautoattack")
        zoo: dict[Any, Any] = importlib.import_module("robustbench.model_zoo.models").model_dicts
        return zoo, importlib.import_module("robustbench.utils").download_gdrive_new
    except ImportError as error:
        raise UserError(
            f"the package robustbench is there but cannot be imported ({error}); "
            f"install it with what it needs: {INSTALL}"
        ) from error


def _fetch(download: Any, address: str, path: Path, model_id: str) -> None:
    def write(temporary: Path) -> None:
        reason = ""
        try:
            download(address, temporary)
        except Exception as error:  # whatever the downloader and its libraries raise
            reason = _short(error)
        if not reason and not temporary.stat().st_size:
            reason = "the file came back empty"
        if reason:
            raise UserError(
                f"RobustBench's file for '{model_id}' could not be downloaded ({reason}); try again, or "
                f"put it at '{path}' by hand (Google Drive id {address})"
            )

    files.write_atomic(path, write)


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:160]}"
