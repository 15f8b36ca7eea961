"""One spelling for settings that say the same: what cannot make a difference makes no other cell. No torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from adbench.data.threat import parse_fraction
from adbench.experiment import attack_names
from adbench.experiment.config import Data, Evaluation, ThreatModel, Train
from adbench.experiment.teacher import split_key

_LATER = (
    *("precision", "micro_batch", "decay", "optimiser", "nesterov", "decay_norm", "bn_momentum", "init_sha256"),
    *("schedule", "per", "schedule_start", "warmup", "warmup_lr", "lr_min", "cycle_momentum", "augment"),
    *("schedule_end", "schedule_shift", "cosine_damping", "points"),
    *("average", "average_start", "average_decay", "average_warmup", "average_buffers"),
    *("awp", "awp_start", "awp_form"),
)
"""Settings of a recipe that came later: where they are unset, everything is as it was without them."""


def data(settings: Data, whole: tuple[int, int, int]) -> Data:
    """Shares of the data, none where that is all there is. whole: training, held-out and test images by default."""
    train, val, _ = whole
    # The default of the training images is what the held-out ones leave.
    left = train + val - (settings.val_images or val)
    return Data(
        train_images=None if settings.train_images == left else settings.train_images,
        val_images=None if settings.val_images == val else settings.val_images,
        resize=settings.resize,
        extra=settings.extra,
        extra_share=settings.extra_share if settings.extra else Data().extra_share,
    )


def content(settings: Data, extra: str) -> dict[str, Any]:
    """What is used of the data, JSON-able, without what is not set. extra: SHA-256 of the second source's file."""
    found: dict[str, Any] = {"train_images": settings.train_images, "val_images": settings.val_images}
    # Settings that came later: where they are unset, everything is as it was without them.
    found |= {"resize": settings.resize} if settings.resize else {}
    return found | ({"extra": {"sha256": extra, "share": settings.extra_share}} if extra else {})


def evaluation(
    settings: Evaluation, threat: ThreatModel, whole: int, *, transfers: bool, trained: Train | None
) -> Evaluation:
    """How a network is judged, without what has no effect. threat: complete; whole: test images by default.

    transfers: whether there are proxies. trained: how, None for weights from elsewhere, of which there is one state.
    """
    changed: dict[str, Any] = {"attacks": tuple(dict.fromkeys(settings.attacks))}
    changed["transfer_attacks"] = tuple(dict.fromkeys(settings.transfer_attacks)) if transfers else ()
    n = min(whole, settings.images or whole)
    changed["images"] = None if n == whole else n
    changed["masking"] = min(settings.masking, n)
    with_autoattack = any(map(attack_names.autoattack, settings.attacks))
    if not with_autoattack or (settings.aa_images or n) >= n:
        changed["aa_images"] = None
    attacks = (*changed["attacks"], *changed["transfer_attacks"])
    with_step = bool(settings.masking) or any(map(attack_names.takes_step, attacks))
    if not with_step or (
        settings.step and threat.step and parse_fraction(settings.step) == parse_fraction(threat.step)
    ):
        changed["step"] = None
    start = settings.start if with_step else None
    changed["start"] = None if start == "uniform" else start
    if not (with_autoattack or settings.masking) and (not with_step or start == "clean"):
        changed["seed"] = 0
    if trained is None or trained.val_every >= trained.epochs:
        changed["checkpoint"] = "best"
    return settings.model_copy(update=changed)


def recipe(train: Train, threat: ThreatModel) -> dict[str, Any]:
    """What a recipe sets, JSON-able, without what has no effect. threat: complete."""
    settings = _effective(train).model_dump(mode="json")
    # Weights to begin with are their content, wherever they lie; of several in a file, those of a name.
    init = settings.pop("init")
    if init and (key := split_key(Path(init))[1]):
        settings["init"] = f"#{key}"
    unset = Train().model_dump(mode="json")
    for later in _LATER:
        if settings[later] == unset[later]:
            settings.pop(later)
    if not train.weight_decay:
        settings.pop("decay", None)
    if train.micro_batch and train.micro_batch >= train.batch_size:
        settings.pop("micro_batch")
    eps, step = parse_fraction(threat.eps or 0), parse_fraction(threat.step or 0)
    if train.attack_eps is not None:
        own = parse_fraction(train.attack_eps)
        step = step * own / eps if eps else step
        settings["attack_eps"] = None if own == eps else train.attack_eps
    if train.attack_step is not None and parse_fraction(train.attack_step) == step:
        settings["attack_step"] = None
    settings["val_every"] = min(train.val_every, train.epochs)
    # Epochs at which the rate drops, not shares: drops at the end, or by nothing, are none.
    del settings["milestones"]
    settings["drops"] = [epoch for epoch in train.drops() if 0 < epoch < train.epochs and train.lr_factor < 1]
    if not settings["drops"]:
        del settings["lr_factor"]
    return settings


def _effective(train: Train) -> Train:
    """The recipe with the defaults of what has no effect beside its other settings."""
    idle = set()
    if train.decay == "kernels" or not train.weight_decay:
        idle |= {"decay_norm"}
    if train.schedule != "cosine":
        idle |= {"schedule_start", "schedule_end", "cosine_damping", "lr_min"}
    if train.schedule != "linear":
        idle |= {"points"}
    if train.schedule not in ("cosine", "linear"):
        idle |= {"schedule_shift"}
    if train.schedule == "onecycle" or not train.warmup:
        idle |= {"warmup_lr"}
    if train.schedule == "step" and not (train.warmup or train.drops()):
        idle |= {"per"}
    if train.cycle_momentum:
        idle |= {"momentum"}
    if not train.awp:
        idle |= {"awp_start", "awp_form"}
    if train.average != "ema":
        idle |= {"average_decay", "average_warmup"}
    if train.average == "none":
        idle |= {"average_start"}
    if train.statistics == train.model_copy(update={"average_buffers": None}).statistics:
        idle |= {"average_buffers"}
    return train.model_copy(update={name: Train.model_fields[name].default for name in idle})
