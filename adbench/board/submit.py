"""`adbench board submit`: finished cells as a folder for a board, once each has been checked as the board will."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from adbench import __version__, plugin_code
from adbench.board import folders, rules, standings
from adbench.board.folders import CELLS, CODE, Rules, Source, Submission
from adbench.errors import UserError
from adbench.execution.place import Place
from adbench.experiment.cell import safe
from adbench.experiment.config import validated
from adbench.plugin_code import Code
from adbench.registry import METHODS
from adbench.results import layout, provenance, record
from adbench.results.record import Record
from adbench.system import files
from adbench.verification.consistency import CONTRADICTS, FOLLOWS, Paper, beside, known_guides
from adbench.verification.verify import verify
from adbench.weights import networks

CELL = (layout.CONFIGURATION, layout.LOG, layout.SUMMARY)
"""The files of a cell beside its evaluations that go along, where they are there."""


@dataclass(frozen=True)
class Taken:
    """A record that can be ranked, and in words what verify found."""

    record: Record
    says: str


def described(label: str, weights: str, code: Sequence[Source] = ()) -> Submission:
    """What a submission says of itself. Raises UserError for a label or an address that no board takes."""
    said = {
        "schema_version": 1,
        "label": label,
        "weights": weights,
        "date": provenance.now()[:10],
        "adbench": __version__,
        "code": [source.model_dump() for source in code],
    }
    return validated(Submission, said, "submission")


def code_at(paths: Iterable[Path]) -> dict[str, Code]:
    """The code of plugins' files by the methods' names, read and not executed. Raises UserError for other files."""
    found = {}
    for path in paths:
        if path.suffix != ".py" or (why := files.no_file(path)):
            raise UserError(f"plugin '{path}': {why if path.suffix == '.py' else 'is no Python file'}; give a .py file")
        found[path.stem.replace("_", "-")] = plugin_code.read(path.resolve())
    return found


class Collection:
    """The finished students of a results folder, each taken, or refused with its reasons.

    code: of plugins, by name. known: of the board that it is for. echo: hears a line for each record.
    """

    def __init__(
        self, results: Path, place: Place, code: dict[str, Code], known: Rules, echo: Callable[[str], object]
    ) -> None:
        self.results, self.place, self.code, self.known, self.echo = results, place, code, known, echo
        self.taken: list[Taken] = []
        self.refused = 0
        for found in record.read_all(results, self._refuse):
            if found.kind == "student":
                self._look(found)

    def _refuse(self, why: str) -> None:
        self.refused += 1
        self.echo(f"refused  {why}")

    def _look(self, found: Record) -> None:
        name = found.path.relative_to(self.results)
        counts = dict.fromkeys((FOLLOWS, CONTRADICTS, "not shown"), 0)
        reasons = rules.unranked(found, self.known.teachers) + self._source(found)
        if not reasons:
            for finding in verify(
                found.path, data_dir=self.place.data_dir, device=self.place.torch_device, plugins=False
            ):
                counts[finding.answer] += 1
                if finding.answer == CONTRADICTS:
                    reasons.append(f"{finding.what} {finding.says}")
            reasons += self._teacher(found)
        if reasons:
            self._refuse(f"{name}: {'; '.join(reasons)}")
            return
        told = ", ".join(f"{number} {answer}" for answer, number in counts.items() if number)
        self.taken.append(Taken(found, told))
        self.echo(f"taken    {name}: {told}")

    def _source(self, found: Record) -> list[str]:
        """What is wrong with the source of a method that is not adbench's own."""
        method = str(found.method)
        if method in METHODS and METHODS.built_in(method):
            return []
        code = self.code.get(method) or (METHODS.code(method) if method in METHODS else None)
        if code is None:
            return [f"the code of method '{method}' is not at hand; name its file with --plugin"]
        self.code[method] = code
        if code.sha256 == found.config.training.get("source"):
            return []
        return [f"the code of method '{method}' in '{code.main.path.name}' is not what it was made with"]

    def _teacher(self, found: Record) -> list[str]:
        """Whether a teacher with a name of adbench's is another network."""
        if found.teacher not in rules.teachers() or not Paper(found, plugins=False).ours:
            return []
        known = known_guides(found, networks.dataset_of(found, self.place.data_dir))
        cell = known.get(str(found.config.training["teacher"]))
        if cell is not None and cell.name == found.teacher:
            return []
        return [f"unknown teacher: its '{found.teacher}' is not adbench's teacher of that name"]

    def write(self, label: str, weights: str, out: Path) -> None:
        """Write the folder, whole or not at all. Raises UserError where nothing was taken, or `out` is in use."""
        if not self.taken:
            raise UserError(f"'{self.results}' has nothing to submit: {self.refused} records were refused, see above")
        if out.is_symlink() or (out.exists() and not (out.is_dir() and not any(out.iterdir()))):
            raise UserError(f"'{out}' is there already; give a new folder with --out")
        out.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
        try:
            sources = self._write_code(made)
            for found in self._with_guides():
                self._copy(found, made / CELLS)
            files.write_text(made / folders.SUBMISSION, folders.as_toml(described(label, weights, sources)))
            _, left_out = standings.read(made, out.name, self.known)
            if left_out:
                raise UserError(f"a board would not take it: {'; '.join(left_out)}")
            made.chmod(out.parent.stat().st_mode)
            if out.exists():
                out.rmdir()
            made.rename(out)
        finally:
            shutil.rmtree(made, ignore_errors=True)

    def _with_guides(self) -> list[Record]:
        """The records that were taken, and those of their teachers and proxies that lie beside them."""
        found = {taken.record.path: taken.record for taken in self.taken}
        for one in list(found.values()):
            training = one.config.training
            ids = [training.get("teacher"), training.get("natural"), *one.config.evaluation.get("proxies", {}).values()]
            for train_id in ids:
                if train_id and (near := beside(one, train_id)) and near.path.is_relative_to(self.results.resolve()):
                    found.setdefault(near.path, near)
        return list(found.values())

    def _copy(self, found: Record, into: Path) -> None:
        judged = found.path.parent
        cell = judged.parent
        root = self.results if cell.is_relative_to(self.results) else self.results.resolve()
        target = into / cell.relative_to(root)
        for name in CELL:
            if (path := cell / name).is_file():
                files.write_bytes(target / name, files.content(path))
        for name in (layout.RECORD, layout.OUTCOMES):
            if (path := judged / name).is_file():  # a teacher's outcomes may be gone
                files.write_bytes(target / judged.name / name, files.content(path))

    def _write_code(self, folder: Path) -> list[Source]:
        """Write the plugins' sources as text; returns what `submission.toml` says of them."""
        sources = []
        for method in sorted({str(taken.record.method) for taken in self.taken} & self.code.keys()):
            code = self.code[method]
            for number, module in enumerate((code.main, *code.helpers)):
                file = f"{CODE}/{safe(method)}-{number}.txt"
                files.write_bytes(folder / file, module.content)
                sources.append(Source(method=method, module=module.name, was=module.path.name, file=file))
        return sources

    def uploads(self) -> list[tuple[Path, str]]:
        """The networks' files of weights here, and what each is to be called at the address of the weights."""
        named = {}
        for taken in self.taken:
            which = "best" if taken.record.network.checkpoint == "best" else "last"
            path = taken.record.path.parent.parent / layout.WEIGHTS[which]
            named[path] = f"{taken.record.train_id}-{which}.safetensors"
        return list(named.items())
