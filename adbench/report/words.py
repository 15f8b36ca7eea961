"""`adbench show`: one record in words. What was trained, and what it reached; and what its files do not show.

Whatever an older record does not say is left out, or stands under what is not shown.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from adbench.data.threat import as_text, parse_fraction
from adbench.registry import METHODS
from adbench.results import layout
from adbench.results.fields import RecordedNetwork
from adbench.results.record import Record
from adbench.results.runs import heading
from adbench.results.setting import size
from adbench.results.stats import wilson
from adbench.system import terminal

_HEAD = 11
"""Columns of the words that name a line."""


def lines(found: Record) -> Iterator[str]:
    """The record as lines that fit the terminal."""
    yield from terminal.wrapped(_title(found))
    for title, rows in (("made", _made(found)), ("reached", _reached(found))):
        if told := list(rows):
            yield from ("", title)
            for head, says in told:
                yield from _row(head, says)
    if found.metrics:
        yield ""
        yield from terminal.table(_figures(found))
        yield from _tests(found)
    yield ""
    yield "not shown"
    for says in _not_shown(found):
        yield from terminal.wrapped(f"- {says}", "  ")


def _row(head: str, says: str) -> Iterator[str]:
    room = terminal.wrapped(says, " " * (2 + _HEAD))
    for number, line in enumerate(room):
        yield f"  {head:{_HEAD}}{line.strip()}" if number == 0 else f"{'':{2 + _HEAD}}{line.strip()}"


def _title(found: Record) -> str:
    taught = f" taught by {found.teacher}" if found.teacher else ""
    seed = "" if found.seed is None else f", seed {found.seed}"
    what = {"student": "a student", "teacher": "a teacher", "checkpoint": "weights from elsewhere"}[found.kind]
    return f"{found.label}: {what}, {found.student}{taught} on {found.dataset}{seed}"


def _made(found: Record) -> Iterator[tuple[str, str]]:
    """How the network came about."""
    training = found.config.training
    if found.method is None:
        yield "weights", f"not trained here: {_origin(found.model)}"
    else:
        yield "method", f"{found.method}{_listed(training.get('hyper') or {})}"
        for key, entry in (("teacher", found.teachers.robust), ("natural", found.teachers.natural)):
            if entry:
                yield key, _network(entry)
        yield from _recipe(training, training.get("train") or {})
    if found.model:
        yield "network", f"{found.model.architecture}, {found.model.parameters:,} parameters; judged {_judged(found)}"
        if size := found.model.footprint:
            work = f"{size.multiply_adds:,} multiply-adds an image, " if size.multiply_adds else ""
            yield "", f"{work}{size.bytes:,} bytes; {1000 * size.latency:.3g} ms from one image to its logits"
    if found.data:
        channels, height, width = found.data.image_shape
        held = f", {found.data.val_images:,} held out to choose the epoch" if found.method else ""
        trained = f"{found.data.train_images:,} training images{held}; " if found.method else ""
        images = f"{height}x{width} {'grey' if channels == 1 else 'colour'}, {found.data.classes} classes"
        yield "images", f"{found.dataset}: {trained}{images}; content {found.data.fingerprint[:12]}"
        if found.data.extra:
            more = found.data.extra
            yield "", f"with {more.images:,} extra images, {100 * more.share:g}% of each batch ({more.file})"
    if done := found.training:
        took = f"{terminal.duration(done.seconds)} on {found.provenance.device}, {done.images_per_second:.0f} images/s"
        passes = f"; an iteration costs {done.passes['total']:g} passes" if done.passes else ""
        yield "took", f"{took}{passes}"
        best = terminal.percent(done.best_val_robust)
        yield "epochs", f"{done.epochs}, of which {done.best_epoch} is best: {best}% robust on the held-out images"
    origin = found.provenance
    yield "with", f"adbench {origin.adbench}, torch {origin.torch}, {_commit(found)}, finished {origin.finished}"


def _origin(model: RecordedNetwork | None) -> str:
    """Where weights from elsewhere lay."""
    files = [model.file, *(model.files or [])] if model else []
    return ", ".join(filter(None, files)) or "weights from elsewhere"


def _network(entry: RecordedNetwork) -> str:
    return f"{entry.name}: {entry.architecture}, weights {entry.weights_sha256[:12]}"


def _judged(found: Record) -> str:
    which = f"with the weights of its {found.network.checkpoint} epoch" if found.method else "as it is"
    return f"{which} ({found.network.weights_sha256[:12]})"


def _recipe(training: Mapping[str, Any], train: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    threat = training.get("threat") or {}
    eps, step = threat.get("eps"), train.get("attack_step") or threat.get("step")
    if (own := train.get("attack_eps")) and eps and step and not train.get("attack_step") and parse_fraction(eps):
        step = as_text(parse_fraction(step) * parse_fraction(own) / parse_fraction(eps))
    eps = own or eps
    yield "attack", f"in training {train.get('attack_steps')} steps of {size(step)} within {size(eps)} (L-infinity)"
    told = {key: value for key, value in train.items() if not key.startswith("attack_") and value is not None}
    yield "recipe", _listed(told).strip(" ,").removeprefix("with ") or "adbench's default"


def _listed(settings: Mapping[str, Any]) -> str:
    told = ", ".join(f"{key} {_value(value)}" for key, value in settings.items())
    return f" with {told}" if told else ""


def _value(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"[{' '.join(map(_value, value))}]"
    return f"{value:.4g}" if isinstance(value, float) else str(value).lower() if isinstance(value, bool) else str(value)


def _commit(found: Record) -> str:
    origin = found.provenance
    if origin.git_commit is None:
        return "from no checkout"
    return f"commit {origin.git_commit[:10]}" + (" with changes" if origin.git_dirty else "")


def _reached(found: Record) -> Iterator[tuple[str, str]]:
    if not found.done:
        yield "nothing", f"it failed in {found.failure.phase}: {found.failure.message}"
        return
    eps = (found.config.training.get("threat") or {}).get("eps")
    yield "against", f"L-infinity within {size(eps)} of the {found.images.test_images:,} test images"


def _figures(found: Record) -> list[tuple[str, ...]]:
    """A row for each attack: accuracy, images, interval, and the attack in a few words."""
    rows: list[tuple[str, ...]] = [("attack", "accuracy %", "right", "of", "95% interval", "steps", "starts", "eps")]
    for name, metric in found.metrics.items():
        low, high = wilson(metric.correct, metric.n)
        attack = metric.attack
        told = (attack.get("steps", "-"), attack.get("restarts", "-"), size(attack.get("eps", "-")))
        interval = f"{terminal.percent(low)}-{terminal.percent(high)}"
        value = f"{100 * metric.value:.2f}"
        rows.append((heading(name), value, f"{metric.correct:,}", f"{metric.n:,}", interval, *map(str, told)))
    return rows


def _tests(found: Record) -> Iterator[str]:
    if found.masking:
        yield ""
        says = f"{len(found.masking.tests)} tests on {found.masking.images:,} images: {found.masking.verdict}"
        yield from _row("masking", says)
        for test in found.masking.tests:
            if test.verdict != "pass":
                yield from _row("", f"{test.verdict}: {test.says}")


def _not_shown(found: Record) -> Iterator[str]:
    """What nobody can conclude from this record alone."""
    if not found.done:
        yield "any accuracy: the cell failed, and no attack's figures were kept"
        return
    if found.method is not None:
        yield "other seeds: how far they scatter only further records can say; the intervals are over test images alone"
    attacks = {name.partition("@")[0] for name in found.metrics if not name.startswith("transfer:")}
    if not any(name == "aa" or name.startswith("aa-") for name in attacks):
        yield "AutoAttack was not run; weaker attacks only bound the robust accuracy from above"
    for name, metric in found.metrics.items():
        if metric.n < found.images.test_images:
            yield f"{heading(name)} on all test images: it attacked {metric.n:,} of {found.images.test_images:,}"
        if metric.flags:
            yield f"{heading(name)} raised warnings: {'; '.join(metric.flags)}"
    if found.masking is None:
        yield "gradient masking was not tested for (eval.masking)"
    if not any(metric.adversarial for metric in found.metrics.values()):
        yield "adversarial examples were not stored (--keep-adversarial): adbench verify --survivors attacks anew"
    if found.method and not _weights_beside(found):
        yield "the weights are not beside the record: adbench reproduce makes them again"
    if found.training and found.training.weights is None:
        yield "its training left no hash of the weights (an older adbench)"
    if found.method and not (found.method in METHODS and METHODS.built_in(found.method)):
        yield f"the code of method '{found.method}' is not adbench's: the record has its hash alone"
    if found.provenance.git_dirty:
        yield "the code that it ran with: the checkout had changes that no commit has"
    for note in found.training.notes if found.training else ():
        yield f"a training without incidents: {note}"


def _weights_beside(found: Record) -> bool:
    name = layout.WEIGHTS.get(found.network.checkpoint, layout.BEST)
    return (found.path.parent.parent / name).is_file()
