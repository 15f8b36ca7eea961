"""`adbench export`. Torch is imported when the command runs: it takes seconds."""

from __future__ import annotations

from pathlib import Path

import click

from adbench.cli.display import Display, console
from adbench.cli.options import FilePath, data_dir_option, make_writable, network_option, place_of, threads_option
from adbench.errors import UserError
from adbench.models.names import check_onnx
from adbench.results import record

RECORDS = "records"
"""The results folder, below that of an export, of what judges its int8 network."""
DEFAULT_SQUARE = 1000
"""Test images for Square where the record has no AutoAttack."""


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
@click.option(
    "--quantise",
    type=click.Choice(["int8"]),
    help="Also write NAME.int8.onnx, calibrated on training images (needs the extra onnx), and judge it: what it loses "
    "against the float network on clean images, on that one's adversarial examples and under Square.",
)
@click.option(
    "--square-images",
    type=click.IntRange(min=1),
    metavar="N",
    help="Test images for Square. [default: as many as AutoAttack had]",
)
@threads_option()
@network_option
@data_dir_option
def export(
    record_path: Path,
    out: Path,
    name: str | None,
    checkpoint: Path | None,
    kinds: tuple[str, ...],
    quantise: str | None,
    square_images: int | None,
    threads: int | None,
    data_dir: Path,
) -> None:
    """Write a finished network for others: a plain state dict, RobustBench's card, and safetensors with metadata; or a
    graph that runs without adbench, with the normalisation inside.

    The files are read back, and have to give the logits of the network that was judged: a graph, whose sums go in
    another order, within 1e-5 (of the largest logit).

    \b
    Example:
      adbench export results/.../record.json --out shared
      adbench export results/.../record.json --out phone --format onnx
      adbench export results/.../record.json --out phone --quantise int8
      adbench eval shared/RSLAD_rn18.safetensors --arch rn18 --dataset cifar10
    """
    found = record.read(record.only(record_path))
    if "onnx" in kinds or quantise:
        check_onnx("--quantise" if quantise else "--format onnx")
    if square_images and not quantise:
        raise UserError("--square-images is for --quantise int8, whose file it judges; leave it out")
    from adbench.weights import export as exporting

    wanted = {*kinds, *((exporting.WEIGHTS, exporting.ONNX, exporting.INT8) if quantise else ())}
    for line in exporting.export(found, out, data_dir, name=name, file=checkpoint, kinds=wanted):
        click.echo(line)
    if quantise:
        _judge(found, out / exporting.name_of(found, name), data_dir, square_images, threads)


def _judge(found: record.Record, stem: Path, data_dir: Path, square_images: int | None, threads: int | None) -> None:
    """Judge the int8 network beside the float one, and say what is lost."""
    from adbench.execution import quantised
    from adbench.weights import export as exporting

    metrics = found.metrics
    square = square_images or (metrics["aa"].n if "aa" in metrics else min(DEFAULT_SQUARE, metrics["clean"].n))
    place = place_of(stem.parent / RECORDS, data_dir, "cpu")
    toml, int8 = exporting.beside(stem, ".toml"), exporting.beside(stem, exporting.INT8_SUFFIX)
    pair = quantised.cells(found, toml, int8, place, square)
    make_writable(place.results)
    with Display(console(), len(pair)) as display:
        as_float, as_int8 = quantised.judge(pair, place, threads, display)
    if not (as_float.done and as_int8.done):
        raise UserError(f"judging failed; the records in '{place.results}' say why")
    for line in quantised.lost(as_float, as_int8):
        click.echo(line)
    click.echo(f"records in {place.results}; of int8 no white-box figure is known")
