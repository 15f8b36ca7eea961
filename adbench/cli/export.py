"""`adbench export`. Torch is imported when the command runs: it takes seconds."""

from __future__ import annotations

from pathlib import Path

import click

from adbench.cli.options import FilePath, data_dir_option, network_option
from adbench.results import record


@click.command()
@click.argument("record_path", metavar="RECORD", type=FilePath())
@click.option("--out", type=FilePath(file_okay=False), required=True, metavar="DIR", help="Folder to write to.")
@click.option(
    "--name", metavar="NAME", help="Name of the files, as in Zi2021Revisiting. [default: of method and student]"
)
@click.option(
    "--checkpoint", type=FilePath(dir_okay=False), help="The network's weights. [default: where the record has them]"
)
@network_option
@data_dir_option
def export(record_path: Path, out: Path, name: str | None, checkpoint: Path | None, data_dir: Path) -> None:
    """Write a finished network for others: a plain state dict, RobustBench's card, and safetensors with metadata.

    The files are read back, and have to give the logits of the network that was judged.

    \b
    Example:
      adbench export results/.../record.json --out shared
      adbench eval shared/RSLAD_rn18.safetensors --arch rn18 --dataset cifar10
    """
    found = record.read(record.only(record_path))
    from adbench.weights import export as exporting

    for line in exporting.export(found, out, data_dir, name=name, file=checkpoint):
        click.echo(line)
