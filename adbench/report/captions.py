"""Captions and footnotes: how many images and seeds, which attacks, which checkpoint, which versions.

Every phrase is read from the records that are in the table, never from defaults. Where the records of one
table disagree (another step, fewer images), the phrase names all that occur and `warnings` says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from adbench.results.quantities import QUANTITIES, attacks_behind, split
from adbench.results.record import Record
from adbench.results.runs import CI, Run, heading
from adbench.results.setting import EXACT, search, size

# A narrow no-break space: SI digit grouping that survives HTML, LaTeX and Markdown.
_THIN = "\u202f"


def whole(number: int) -> str:
    """10000 as 10 000, with thin spaces."""
    return f"{number:,}".replace(",", _THIN)


def listed(items: Iterable[object], last: str = "and") -> str:
    """ "a", "a and b", "a, b and c"."""
    words = [str(item) for item in items]
    return f" {last} ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else "".join(words)


def images(records: Sequence[Record], metrics: Sequence[str]) -> str:
    """How many test images stand behind the numbers, attack by attack where they differ."""
    counts = {m: sorted({r.metrics[m].n for r in records if m in r.metrics}) for m in metrics}
    counts = {m: n for m, n in counts.items() if n}
    if not counts:
        return ""
    if len({tuple(n) for n in counts.values()}) == 1:
        return f"n = {listed(map(whole, next(iter(counts.values()))), 'or')} test images."
    each = ", ".join(f"{heading(m)} {listed(map(whole, n), 'or')}" for m, n in counts.items())
    return f"Test images n: {each}."


def seeds(runs: Sequence[Run], spread: str = CI, value: str = "a value") -> str:
    """Which seeds, and what the number after the plus-minus sign means; value: what has none, in words."""
    numbers = sorted({r.seed for run in runs for r in run.done if r.seed is not None})
    counts = {len(run.done) for run in runs}
    most = max(counts, default=0)
    if most > 1:
        interval = spread == CI and most > 2
        kind = "half-width of the 95% Student-t interval" if interval else "standard deviation"
        two = ", of two seeds their standard deviation" if interval and 2 in counts else ""
        return f"Mean ± {kind} over seeds {listed(numbers)}{two}; {value} without ± is a single seed."
    return f"Single runs (seed {listed(numbers, 'or')})." if numbers else ""


def untaught(runs: Sequence[Run]) -> str:
    """Which methods stand under a teacher's heading and have none; "" where none does."""
    alone = dict.fromkeys(run.label for run in runs if run.teacher is None and run.method)
    if not alone or all(run.teacher is None for run in runs):
        return ""
    have, stand = ("have", "stand") if len(alone) > 1 else ("has", "stands")
    return f"{listed(alone)} {have} no teacher, and {stand} under every teacher's heading."


def attacks(records: Sequence[Record], metrics: Sequence[str]) -> str:
    """Budget and steps of the attacks as the records define them."""
    attacked = [m for m in metrics if m != "clean"]
    budgets = sorted({size(a["eps"]) for m in attacked for a in _definitions(records, m) if "eps" in a})
    ways: dict[str, dict[str, None]] = {}
    for metric in attacked:
        steps = listed(dict.fromkeys(filter(None, map(_steps, _definitions(records, metric)))), "or")
        if steps:
            # Transferred examples are made by the same few attacks on every proxy: say it once.
            ways.setdefault(steps, {})[heading(metric.rsplit(":", 1)[-1])] = None
    budget = f"Perturbations within ε = {listed(budgets, 'or')} in L∞." if budgets else ""
    phrases = "; ".join(f"{listed(names)}: {steps}" for steps, names in ways.items())
    return " ".join(filter(None, (budget, phrases and f"{phrases}.", searches(records, attacked))))


def quantities_of(columns: Sequence[str]) -> str:
    """What the columns beside accuracies are; "" where there are none."""
    told = dict.fromkeys(quantity for column in columns if (quantity := split(column)[0]))
    if not told:
        return ""
    words = "; ".join(f"{QUANTITIES[name].heading.format('...')}: {QUANTITIES[name].says}" for name in told)
    differs = " Of the difference each seed's two epochs are a pair." if "diff" in told else ""
    return f"{words[0].upper()}{words[1:]}.{differs}"


def searches(records: Sequence[Record], metrics: Sequence[str]) -> str:
    """How AutoAttack searched, in a sentence; "" where it was not run."""
    names = sorted({search(a) for m in metrics for a in _definitions(records, m) if "version" in a})
    words = {EXACT: "the authors' package, in float32 (exact)"}
    return f"AutoAttack's search: {listed((words.get(each, each) for each in names), 'or')}." if names else ""


def checkpoints(records: Sequence[Record]) -> str:
    """How long was trained and which weights were evaluated."""
    words = {"best": "the epoch best on a held-out split of the training images", "last": "the last epoch"}
    epochs = sorted({r.training.epochs for r in records if r.training})
    chosen = sorted({words[c] for r in records if r.model and (c := r.model.checkpoint) in words})
    trained = f"Trained for {listed(epochs, 'or')} epoch{'s' if epochs != [1] else ''}." if epochs else ""
    return " ".join(filter(None, (trained, f"Weights of {listed(chosen, 'or')}." if chosen else "")))


def versions(records: Sequence[Record]) -> str:
    """The versions of what computed the numbers."""
    names = ("adbench", "torch", "pyautoattack")
    each = (f"{n} {listed(sorted({getattr(r.provenance, n) for r in records}), 'or')}" for n in names)
    return f"Computed with {listed(each)}." if records else ""


def sampling(runs: Sequence[Run], metrics: Sequence[str]) -> str:
    """How far the choice of test images alone moves these numbers."""
    halves = [
        50 * (metric.ci_test[1] - metric.ci_test[0]) for run in runs for m in metrics for metric in run.metrics(m)
    ]
    return f"95% Wilson interval over test images: at most ±{max(halves):.2f} points." if halves else ""


def warnings(runs: Sequence[Run], metrics: Sequence[str]) -> tuple[str, ...]:
    """Footnotes that a careful reader would ask for: unequal seeds, failures, flags, unequal attacks."""
    metrics, notes = attacks_behind(metrics), []
    most = max((len(run.done) for run in runs), default=0)
    for run in runs:
        total = len(run.done) + len(run.failed)
        if run.done and run.failed:
            notes.append(f"{name(run)}: {len(run.failed)} of {total} seeds failed; the rest are averaged.")
        elif run.done and total < most:
            notes.append(f"{name(run)}: {total} of {most} seeds.")
        for metric in metrics:
            flags = dict.fromkeys(flag for judged in run.metrics(metric) for flag in judged.flags)
            notes.extend(f"{name(run)}, {heading(metric)}: {flag}" for flag in flags)
    done = [record for run in runs for record in run.done]
    unequal = [m for m in metrics if len({_shown(a) for a in _definitions(done, m)}) > 1]
    if unequal:
        notes.append(f"Not all rows were attacked alike ({listed(map(heading, unequal))}): compare with care.")
    if len({record.training.epochs for record in done if record.training}) > 1:
        notes.append("Not all rows were trained equally long: compare with care.")
    if any(run.differs for run in runs):
        notes.append("Rows of one name and different # ran with different settings; the digits are their digest.")
        notes.extend(f"{run.label}: {run.differs}." for run in runs if run.differs)
    return tuple(dict.fromkeys(notes))


def reason(record: Record) -> str:
    """Why a cell failed, in a sentence."""
    error = record.failure
    return f"{error.type} in {error.phase}: {' '.join(error.message.split())}"


def taught(student: str, teacher: str | None) -> str:
    """A student in words, with its teacher where it has one."""
    return f"{student} taught by {teacher}" if teacher else student


def name(run: Run) -> str:
    """A run in words."""
    return f"{run.label} on {taught(run.student, run.teacher)}"


def attack(definition: dict[str, object]) -> str:
    """One attack in words, as an analysis defines it: "PGD-20 (20 steps of 2/255) within ε = 8/255 in L∞"."""
    steps = _steps(definition)
    within = f"within ε = {size(definition['eps'])} in L∞"
    searched = f", search: {search(definition)}" if "version" in definition else ""
    return f"{heading(str(definition['name']))}{f' ({steps})' if steps else ''} {within}{searched}"


def _definitions(records: Sequence[Record], metric: str) -> list[dict[str, object]]:
    return [r.metrics[metric].attack for r in records if metric in r.metrics]


def _shown(attack: dict[str, object]) -> tuple[str, str, str]:
    return _steps(attack), size(attack.get("eps")), search(attack)


def _steps(attack: dict[str, object]) -> str:
    steps, step, restarts = attack.get("steps"), attack.get("step"), attack.get("restarts")
    if not steps or not step:
        return ""
    words = f"{steps} step{'s' if steps != 1 else ''} of {size(step)}"
    return f"{words}, {restarts} restarts" if isinstance(restarts, int) and restarts > 1 else words
