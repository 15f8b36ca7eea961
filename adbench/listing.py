"""What `adbench list` and `adbench teachers` print. Reads names, summaries and settings; imports no torch."""

from __future__ import annotations

from adbench import teacher
from adbench.config import presets
from adbench.registry import DATASETS, METHODS, MODELS, Registry
from adbench.teacher import Download, LocalFile, TeacherSpec, Trained

ATTACKS = [
    ("fgsm", "one step of size eps on the cross-entropy (Goodfellow et al., ICLR 2015)"),
    (
        "pgdK",
        "K steps on the cross-entropy from a random start (Madry et al., ICLR 2018), as in pgd20; pgd20x5: 5 starts",
    ),
    ("cw", "C&W-infinity: 20 such steps on the margin loss (Carlini & Wagner, S&P 2017); also cw100, cw20x5"),
    ("mi-fgsm", "10 steps of eps / 10 with momentum 1 (Dong et al., CVPR 2018)"),
    ("aa", "AutoAttack standard (Croce & Hein, ICML 2020), its authors' code; the first aa_images images"),
]


def sections() -> dict[str, list[tuple[str, str]]]:
    """Everything there is, as (name, one line) by kind."""
    families = [
        ("wrn-D-K", "any other WideResNet, depth 6n + 4"),
        ("dm-wrn-D-K", "the same as DeepMind builds it, with SiLU"),
        ("cnn-W", "the small CNN at any other width"),
    ]
    return {
        "methods": [(name, _with_source(METHODS, name)) for name in METHODS],
        "teachers": [(spec.name, spec.summary) for spec in _teachers()],
        "students": [(name, _with_source(MODELS, name)) for name in MODELS] + families,
        "datasets": [(name, _with_source(DATASETS, name)) for name in DATASETS]
        + [("PATH", "your own: a .npz with x_train, y_train, x_test, y_test, or a folder train/CLASS/*.png, test/...")],
        "attacks": ATTACKS,
        "presets": list(presets().items()),
    }


def _with_source(registry: Registry, name: str) -> str:
    summary = registry.summary(name)
    return summary if registry.built_in(name) else f"{summary} [{registry.source(name)}]"


def _teachers() -> list[TeacherSpec]:
    return [*(teacher.find(name) for name in teacher.names()), *teacher.published()]


def _source(spec: TeacherSpec) -> str:
    if isinstance(spec.source, Trained):
        return f"trained here by {spec.source.method}"
    if isinstance(spec.source, LocalFile):
        return str(spec.source.path)
    if isinstance(spec.source, Download):
        return "RobustBench" if spec.source.id else "downloaded"
    return f"RobustBench {spec.source.id}"


def _claims(spec: TeacherSpec) -> str:
    claims = spec.expected.model_dump(exclude={"tolerance"}, exclude_none=True)
    return ", ".join(f"{name} {100 * value:.2f}%" for name, value in claims.items()) or "no claim"


def teacher_rows() -> list[tuple[str, ...]]:
    """One row a built-in teacher: name, dataset, architecture, source, claim; padded to columns."""
    specs = _teachers()
    rows = [("name", "dataset", "architecture", "weights", "claims")]
    rows += [(s.name, s.dataset or "any", s.architecture, _source(s), _claims(s)) for s in specs]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [tuple(text.ljust(width) for text, width in zip(row, widths, strict=True)) for row in rows]


def describe_teacher(name: str, dataset: str | None = None) -> str:
    """A teacher in a few lines."""
    spec = teacher.find(name, dataset)
    lines = [
        f"{spec.name}: {spec.summary}" if spec.summary else spec.name,
        f"  dataset       {spec.dataset or 'any that fits'}",
        f"  architecture  {spec.architecture}",
        f"  weights       {_source(spec)}",
        f"  claims        {_claims(spec)}",
    ]
    return "\n".join(lines)
