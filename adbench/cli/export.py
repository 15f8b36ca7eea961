"""`adbench export`. Torch is imported when the command runs: it takes seconds."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import click

from adbench import DISTRIBUTION
from adbench.cli.options import FilePath, data_dir_option, network_option
from adbench.errors import UserError
from adbench.results import record

ONNX = ("onnx", "onnxruntime", "onnxscript")
"""Packages that writing and reading ONNX takes: the extra `onnx`."""


@click.command()
@click.argument("record_path", metavar="RECORD", type=FilePath())
@click.option("--out", type=FilePath(file_okay=False), required=True, metavar="DIR", help="Folder to write to.")
@click.option(
    "--name", metavar="NAME", help="Name of the files, as in Zi2021Revisiting. [default: of method and student]"
)
@click.option(
    "--checkpoint", type=FilePath(dir_okay=False), help="The network's weights. [default: where the record has them]"
)
@click.option(
    "--format",
    "kinds",
    type=click.Choice(["weights", "onnx", "torch.export"]),
    multiple=True,
    default=["weights"],
    show_default=True,
    help="weights: state dict, card and safetensors; onnx: a graph with its classes and input in the metadata (needs "
    "the extra onnx); torch.export: a .pt2. Repeatable.",
)
@network_option
@data_dir_option
def export(
    record_path: Path, out: Path, name: str | None, checkpoint: Path | None, kinds: tuple[str, ...], data_dir: Path
) -> None:
    """Write a finished network for others: a plain state dict, RobustBench's card, and safetensors with metadata; or a
    graph that runs without adbench, with the normalisation inside.

    The files are read back, and have to give the logits of the network that was judged: a graph, whose sums go in
    another order, within 1e-5 (of the largest logit).

    \b
    Example:
      adbench export results/.../record.json --out shared
      adbench export results/.../record.json --out phone --format onnx
      adbench eval shared/RSLAD_rn18.safetensors --arch rn18 --dataset cifar10
    """
    found = record.read(record.only(record_path))
    if "onnx" in kinds and (missing := [package for package in ONNX if find_spec(package) is None]):
        needs = f"pip install '{DISTRIBUTION}[onnx]'"
        raise UserError(f"--format onnx needs {', '.join(missing)}, which is not installed: {needs}")
    from adbench.weights import export as exporting

    for line in exporting.export(found, out, data_dir, name=name, file=checkpoint, kinds=kinds):
        click.echo(line)
