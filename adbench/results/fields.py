"""What the parts of a record hold."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from adbench.results.document import Count, Interval, Limits, Positive, Seconds, Sha256, Share, Size, Text, table

Cost = Annotated[float, Limits(gt=0)]


@dataclass(slots=True)
class RecordedFailure:
    """Why a cell failed."""

    phase: Literal["prepare", "train", "evaluate", "worker"]
    type: str
    message: str


@dataclass(slots=True)
class Configuration:
    """The complete validated configuration of the cell."""

    EXTRAS = "ignore"

    training: Annotated[
        dict[str, Any],
        table(
            revision=int,
            architecture=str,
            network=str | None,
            teacher=str | None,
            natural=str | None,
            data=Annotated[
                dict[str, Any], table(name=str, content=str, train_images=int | None, val_images=int | None)
            ],
            threat=Annotated[dict[str, Any], table({"eps": Size, "step": Size})],
            method=str | None,
            hyper=dict[str, Any],
            seed=Count,
            train=dict[str, Any],
            normalisation=Annotated[list[list[float] | None], Limits(min_length=2, max_length=2)],
        ),
        "all that decides the weights",
    ]
    evaluation: Annotated[
        dict[str, Any],
        table(
            attacks=list[str],
            images=Positive | None,
            aa_images=Positive | None,
            proxies=dict[str, str],
            transfer_attacks=list[str],
            step=Size | None,
            start=Literal["uniform", "gauss", "clean"],
            checkpoint=str,
            seed=Count,
        ),
        "all that decides the figures of given weights",
    ]

    def table(self) -> dict[str, Any]:
        """As it stands in the file."""
        return {"training": self.training, "evaluation": self.evaluation}


@dataclass(slots=True)
class Provenance:
    """Versions, commit, machine and command."""

    EXTRAS = "ignore"

    adbench: str
    torch: str
    python: str
    pyautoattack: str
    platform: str
    device: str
    threads: Positive
    git_commit: str | None
    git_dirty: bool | None
    method_source_sha256: str | None
    command: str
    started: str
    finished: str
    processor: str = ""


@dataclass(slots=True)
class RecordedExtra:
    """A second source of training images."""

    images: Positive
    share: Annotated[float, Limits(gt=0, lt=1), "of each batch"]
    sha256: Annotated[Sha256, "of its file"]
    file: Annotated[str, "where it lay, as it was given"]
    epoch_images: Annotated[Positive, "images in an epoch, of both sources"]


@dataclass(slots=True)
class RecordedData:
    """The images that it was trained, selected and judged on."""

    fingerprint: Sha256
    classes: Annotated[int, Limits(ge=2)]
    image_shape: Annotated[list[Positive], Limits(min_length=3, max_length=3)]
    train_images: Count
    val_images: Count
    test_images: Positive
    class_names: Annotated[list[str] | None, "in the order of the labels 0..C-1; older records do not say"] = None
    extra: RecordedExtra | None = None


@dataclass(slots=True)
class Footprint:
    """What a network takes to be run, on the device and with the threads that the record names."""

    multiply_adds: Annotated[
        Positive | None, "of one image: forward, in convolutions and matrix products; null of an ONNX file"
    ]
    bytes: Annotated[Positive, "of its weights and buffers"]
    latency: Annotated[Cost, "seconds from one image to its logits, the median of several"]
    latency_runs: Positive


@dataclass(slots=True)
class RecordedNetwork:
    """A network and its weights."""

    name: str
    architecture: str
    parameters: Positive
    weights_sha256: Sha256
    checkpoint: Annotated[str, "last, best, or the source of the weights"]
    file: Annotated[str | None, "where weights that were not trained here lay, as it was given"] = None
    files: Annotated[list[str | None] | None, "of an ensemble: where each member's weights lay"] = None
    footprint: Annotated[Footprint | None, "of the network that was judged; older records lack it"] = None


@dataclass(slots=True)
class Teachers:
    """The networks that guided a student."""

    robust: RecordedNetwork | None
    natural: RecordedNetwork | None


@dataclass(slots=True)
class Weights:
    """SHA-256 of what a training ended with."""

    best: Sha256
    last: Sha256


@dataclass(slots=True)
class Training:
    """What a training took, and how it went."""

    epochs: Positive
    best_epoch: Positive
    best_val_robust: Share
    seconds: Seconds
    images_per_second: Annotated[
        Seconds, "training images a second, without the validation, as in the log; older records: with it"
    ]
    peak_memory_bytes: Count
    log: Annotated[Literal["../log.jsonl", "log.jsonl"], "path of log.jsonl, relative to the record"]
    precision: Annotated[Literal["float32", "tf32", "bfloat16"], "of convolutions and matrix products in training"] = (
        "float32"
    )
    micro_batch: Annotated[
        Annotated[int, Limits(ge=2)] | None, "images at a time in the end, where batches went through in parts"
    ] = None
    devices: Annotated[Positive, "that shared the training, each with a part of every batch"] = 1
    passes: Annotated[
        Annotated[dict[str, float], table({"total": Cost}, others=Cost)] | None,
        "an iteration's cost as the method declares it: runs of a network over the batch, by kind; student and teacher "
        "are forward and backward, which total counts as two",
    ] = None
    weights: Annotated[Weights | None, "older records lack it"] = None
    log_sha256: Sha256 | None = None
    notes: Annotated[
        list[str], "what was met on the way: damaged states that were passed over, another number of devices"
    ] = field(default_factory=list)


Attack = Annotated[
    dict[str, Any],
    table(
        {"name": str, "implementation": str},
        loss=str,
        eps=Size,
        step=Size,
        steps=Positive,
        restarts=Positive,
        start=str,
        seed=Count,
    ),
    "the exact definition: loss, eps and step as fractions, steps, start, restarts, version, seed",
]


@dataclass(slots=True)
class Stored:
    """A file beside the record."""

    file: str
    sha256: Sha256


@dataclass(slots=True)
class Metric:
    """Accuracy under one attack."""

    value: Annotated[Share, "accuracy: correct / n"]
    correct: Count
    n: Positive
    ci_test: Annotated[Interval, "95% Wilson interval over test images"]
    seconds: Seconds
    attack: Attack
    flags: Annotated[list[str], "warnings that the attack raised"]
    adversarial: Annotated[Stored | None, "the stored adversarial examples"] = None
    per_class: Annotated[
        list[Annotated[list[Count], Limits(min_length=2, max_length=2)]] | None, "[correct, n] of each class, by label"
    ] = None


Verdict = Literal["pass", "suspect", "fail"]


@dataclass(slots=True)
class MaskingTest:
    """One test for gradient masking."""

    name: Text
    verdict: Verdict
    figure: Annotated[float, Limits(ge=-1), "suspect above limit, failed above fail_limit"]
    limit: Seconds
    fail_limit: Seconds
    unit: Annotated[Literal["share", "count"], "of the figure and its limits"]
    images: Annotated[Positive, "the images that this test is about"]
    says: Annotated[str, "the figure in a sentence"]
    rule: Annotated[str, "how the limits were set"]
    attack: Attack | None = None


@dataclass(slots=True)
class Masking:
    """Whether the robust accuracy may be an illusion: tests for gradient masking."""

    verdict: Annotated[Verdict, "the worst of the tests"]
    images: Annotated[Positive, "the first so many test images were examined"]
    tests: Annotated[list[MaskingTest], Limits(min_length=1)]


Epoch = Annotated[
    dict[str, Any],
    table(
        {"epoch": Positive},
        lr=float,
        loss=float,
        seconds=Annotated[Seconds, "without the validation"],
        images_per_second=Seconds,
        val_clean=Share | None,
        val_robust=Share | None,
        val_mean=Annotated[Share, "of the two, where the method chooses by it"] | None,
        val_robust_worst=Annotated[Share, "of the class where it is lowest, where the method chooses by it"] | None,
        micro_batch=Annotated[int, Limits(ge=2)] | None,
        teacher_accuracy_adv=Annotated[
            float, "share on which the robust teacher is right at the student's x'; older logs lack it"
        ]
        | None,
        teacher_entropy_adv=Annotated[float, "mean entropy in nats of what it says there; older logs lack it"] | None,
    ),
]
Log = Annotated[list[Epoch], "the lines of log.jsonl, one an epoch, with the numbers that the method logs beside these"]
