"""The tables of `adbench list` and `adbench teachers`, from names, summaries and settings; without torch."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Iterator, Sequence

from adbench.experiment import teacher
from adbench.experiment.config import presets
from adbench.experiment.settings import keys
from adbench.experiment.teacher import Download, LocalFile, RobustBench, TeacherSpec, Trained
from adbench.registry import DATASETS, GROUPS, METHODS, MODELS, Registry
from adbench.system import terminal

ATTACKS = [
    ("fgsm", "one step of size eps on the cross-entropy (Goodfellow et al., ICLR 2015)"),
    (
        "pgdK",
        "K steps on the cross-entropy from a random start (Madry et al., ICLR 2018), as in pgd20; pgd20x5: 5 starts",
    ),
    ("cw", "C&W-infinity: 20 such steps on the margin loss (Carlini & Wagner, S&P 2017); also cw100, cw20x5"),
    ("mi-fgsm", "10 steps of eps / 10 with momentum 1 (Dong et al., CVPR 2018)"),
    ("aa", "AutoAttack standard (Croce & Hein, ICML 2020), its authors' code; the first aa_images images"),
    (
        "aa-square",
        "its Square alone, of 5,000 queries, which sees logits and no gradient (Andriushchenko et al., ECCV 2020)",
    ),
]


KINDS = ("methods", "teachers", "students", "datasets", "attacks", "presets")


def sections() -> dict[str, list[tuple[str, str]]]:
    """The rows (name, summary) of each kind: methods, teachers, students, datasets, attacks, presets."""
    families = [
        ("wrn-D-K", "any other WideResNet, depth 6n + 4"),
        ("dm-wrn-D-K", "the same as DeepMind builds it, with SiLU"),
        ("cnn-W", "the small CNN at any other width"),
        ("FILE.py:NAME", "your own torch.nn.Module: a class or function of a file (docs/inputs.md)"),
        ("timm:NAME", "an architecture of timm, without its weights (pip install timm)"),
    ]
    return {
        "methods": [(name, _with_source(METHODS, name)) for name in METHODS]
        + [(group, f"a group: {', '.join(names)}") for group, names in GROUPS.items()],
        "teachers": [
            (spec.name, f"{spec.dataset or 'any dataset'}; {spec.summary or _source(spec)}") for spec in _teachers()
        ],
        "students": [(name, _with_source(MODELS, name)) for name in MODELS] + families,
        "datasets": [(name, _with_source(DATASETS, name)) for name in DATASETS]
        + [("PATH", "your own: a .npz with x_train, y_train, x_test, y_test, or a folder train/CLASS/*.png, test/...")],
        "attacks": ATTACKS,
        "presets": list(presets().items()),
    }


WIDEST = 28
"""Widest column of names; a longer name has a line of its own."""


def listed(rows: Sequence[tuple[str, str]]) -> Iterator[str]:
    """Rows (name, summary) as lines that fit the terminal."""
    width = min(WIDEST, max(len(name) for name, _ in rows))
    for name, summary in rows:
        fits = len(name) <= width
        lines = textwrap.wrap(terminal.plain(summary), max(20, terminal.width() - width - 4))
        if not fits:
            yield f"  {terminal.plain(name)}"
        for number, line in enumerate(lines or [""]):
            yield f"  {terminal.plain(name) if fits and number == 0 else '':{width}}  {line}".rstrip()


WIDE = 120
"""Columns of a terminal in which a setting's line stands beside it; else it stands below."""


def settings_lines() -> Iterator[str]:
    """Every setting with its default, what it may be, and one line."""
    rows = [("key", "default", "may be", ""), *keys()]
    widths = [min(WIDEST, max(len(row[i]) for row in rows)) for i in range(3)]
    widths[2] = max(10, min(widths[2], terminal.width() - widths[0] - widths[1] - 6))
    room = max(20, terminal.width() - sum(widths) - 8)
    for key, default, bounds, says in rows:
        cells = [
            textwrap.wrap(text, width, break_on_hyphens=False) or [""]
            for text, width in zip((key, default, bounds), widths, strict=True)
        ]
        cells.append(textwrap.wrap(says, room) if terminal.width() >= WIDE else [])
        for parts in itertools.zip_longest(*cells, fillvalue=""):
            columns = (part.ljust(width) for part, width in zip(parts, (*widths, 0), strict=True))
            yield f"  {'  '.join(columns)}".rstrip()
        if terminal.width() < WIDE and says:
            yield from terminal.wrapped(says, "      ")


def _with_source(registry: Registry, name: str) -> str:
    summary = registry.summary(name)
    return summary if registry.built_in(name) else f"{summary} [{registry.source(name)}]"


def _teachers() -> list[TeacherSpec]:
    return [*(teacher.find(name) for name in teacher.names()), *teacher.published()]


def _source(spec: TeacherSpec) -> str:
    if isinstance(spec.source, Trained):
        return f"trained here by {spec.source.method}"
    if isinstance(spec.source, LocalFile):
        return "come with adbench" if spec.source.ours else str(spec.source.path)
    if isinstance(spec.source, Download):
        return "RobustBench" if spec.source.id else "downloaded"
    if spec.members:
        return f"the mean of {' and '.join(member.name for member in spec.members)}"
    assert isinstance(spec.source, RobustBench)
    return f"RobustBench {spec.source.id}"


def _claims(spec: TeacherSpec) -> str:
    claims = spec.expected.model_dump(exclude={"tolerance"}, exclude_none=True)
    return ", ".join(f"{name} {100 * value:.2f}%" for name, value in claims.items()) or "no claim"


def teacher_lines() -> Iterator[str]:
    """A heading and the built-in teachers: name, dataset, architecture, claims, source of the weights.

    On a narrow terminal the other columns stand below the name, because names of public models are long.
    """
    rows = [("name", "dataset", "architecture", "claims", "weights")]
    rows += [(s.name, s.dataset or "any", s.architecture, _claims(s), _source(s)) for s in _teachers()]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    name, *others = widths
    fits = sum(widths) + 2 * len(others) <= terminal.width()
    for row in rows:
        rest = "  ".join(text.ljust(width) for text, width in zip(row[1:], others, strict=True)).rstrip()
        if fits:
            yield f"{row[0]:{name}}  {rest}"
        else:
            yield row[0]
            yield from terminal.wrapped(", ".join(row[1:]), "    ")


def describe_teacher(name: str, dataset: str | None = None) -> str:
    """A teacher in a few lines."""
    spec = teacher.find(name, dataset)
    made = spec.recipe
    epochs = f", {made.train.epochs} epochs" if made and made.train else ""
    lines = [
        f"{spec.name}: {spec.summary}" if spec.summary else spec.name,
        f"  dataset       {spec.dataset or 'any that fits'}",
        f"  architecture  {spec.architecture}",
        f"  weights       {_source(spec)}",
        *([f"  recipe        {made.method}{epochs}; --train makes it anew"] if made else []),
        f"  claims        {_claims(spec)}",
    ]
    return "\n".join(lines)
