"""What a record says against itself: its configuration, the files of its training, and what follows from its numbers.

No network is run here. What says so of a record is a `Finding`: it follows, or something contradicts it, or nothing at
hand shows it. `adbench.verification.verify` goes on from here with data and weights.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from adbench import REVISION
from adbench.data import Dataset
from adbench.data.batches import per_epoch
from adbench.data.extra import Extra
from adbench.errors import UserError
from adbench.evaluation.masking_rules import VERDICTS, contradicted
from adbench.execution.expand import teacher_cell
from adbench.experiment import teacher
from adbench.experiment.cell import Cell, safe
from adbench.experiment.config import Data, Experiment, ThreatModel, Train, validated
from adbench.registry import DATASETS, METHODS
from adbench.results import document, layout, record
from adbench.results.record import Record
from adbench.system.files import content_id
from adbench.training.configured import configured, training_passes
from adbench.training.method import Method
from adbench.training.schedule import rate

FOLLOWS, CONTRADICTS, NOT_SHOWN = "follows", "contradicts", "not shown"
ANSWERS = (FOLLOWS, CONTRADICTS, NOT_SHOWN)


@dataclass(frozen=True)
class Finding:
    """One figure or file, one of ANSWERS, and what was seen."""

    what: str
    answer: str
    says: str

    @classmethod
    def of(cls, what: str, fine: str, wrong: Sequence[str], unknown: Sequence[str] = ()) -> Finding:
        """What contradicts it decides, else what nothing shows; else it follows, and `fine` says what does."""
        if wrong:
            return cls(what, CONTRADICTS, f"does not follow: {', '.join(wrong)}")
        if unknown:
            return cls(what, NOT_SHOWN, "; ".join(unknown))
        return cls(what, FOLLOWS, fine)


def differing(stated: Any, due: dict[str, Any]) -> list[str]:
    """The keys in which `stated` is not what is due."""
    values = stated if isinstance(stated, dict) else {key: getattr(stated, key, None) for key in due}
    return [key for key, value in due.items() if not equal(values.get(key), value)]


def equal(stated: Any, due: Any) -> bool:
    """Whether two figures are the same, up to the last digits of a float."""
    if isinstance(due, bool) or isinstance(stated, bool):
        return stated is due
    if isinstance(due, float):
        return isinstance(stated, int | float) and math.isclose(stated, due, rel_tol=1e-9, abs_tol=1e-12)
    if isinstance(due, list | tuple):
        return isinstance(stated, list) and len(stated) == len(due) and all(map(equal, stated, due))
    return bool(stated == due)


def recipe(settings: dict[str, Any]) -> Train:
    """The recipe of a configuration. Raises UserError for what is none."""
    train = validated(Train, {key: value for key, value in settings.items() if key != "drops"}, "train")
    drops = settings.get("drops", train.drops())
    if not isinstance(drops, list) or not all(isinstance(drop, int) and 0 <= drop <= train.epochs for drop in drops):
        raise UserError(f"train: drops = {drops}, which are no epochs")
    shares = tuple(drop / train.epochs for drop in drops if 0 < drop < train.epochs)
    return train.model_copy(update={"milestones": shares})


class Paper:
    """One record on its own paper. method: of the network, with its settings; None where adbench has none such.

    plugins: whether code that is not adbench's own may be imported for that.
    """

    def __init__(self, found: Record, plugins: bool = True) -> None:
        self.record, self.plugins = found, plugins
        self.training, self.judged = found.config.training, found.config.evaluation
        self.method: Method | None = None
        self.no_method = ""
        if found.method is not None:
            self._configure()

    def _configure(self) -> None:
        name = str(self.record.method)
        if self._unread:
            self.no_method = f"method '{name}' is a plugin, whose code is not imported here"
            return
        if name not in METHODS:
            self.no_method = f"method '{name}' is not installed, which its label, settings and cost would follow from"
            return
        try:
            self.method = configured(name, self.training["hyper"])
        except UserError as error:
            self.no_method = f"method '{name}' cannot be had as configured ({error})"

    @property
    def _unread(self) -> bool:
        """Whether the method is a plugin that may not be imported."""
        name = str(self.record.method)
        return not self.plugins and name in METHODS and not METHODS.built_in(name)

    @property
    def ours(self) -> bool:
        """Whether this adbench computes what the one that wrote the record did."""
        return bool(self.training.get("revision") == REVISION)

    def findings(self) -> Iterator[Finding]:
        yield self._configuration()
        yield self._training()
        yield self._log()
        if self.record.masking or self.judged.get("masking"):
            yield self._masking()

    def _configuration(self) -> Finding:
        said, training, judged = self.record, self.training, self.judged
        due = said.identity()
        # One's own data are their content; older records have the file's name.
        names = [said.dataset] if said.dataset in DATASETS else ["", Path(said.dataset).name]
        wrong = differing(said, {**due, "error": None})
        wrong += [] if training["data"]["name"] in names else ["dataset"]
        extra, due_extra = said.data and said.data.extra, training["data"].get("extra")
        if (extra and {"sha256": extra.sha256, "share": extra.share}) != due_extra:
            wrong.append("data.extra")
        unknown: list[str] = []
        student, trained = said.kind == "student", said.method is not None
        if (student and not trained) or (said.kind == "checkpoint" and trained):
            wrong.append("kind")
        if not student and (said.teacher, training.get("teacher"), training.get("natural")) != (None, None, None):
            wrong.append("kind")
        if (said.teacher is None) != (training.get("teacher") is None):
            wrong.append("teacher")
        model = said.model
        source = None if trained else training["source"]["source"]["kind"]
        model_due = {
            "name": said.method if student else said.label,
            "architecture": training["architecture"],
            "checkpoint": judged["checkpoint"] if trained else source,
        }
        wrong += [f"model.{key}" for key in differing(model, model_due)]
        if said.kind == "teacher" and (judged["checkpoint"], judged["proxies"]) != ("best", {}):
            wrong.append("kind")
        if trained and self.method is None:
            known = str(said.method) in METHODS and self.same_code and not self._unread
            (wrong if known else unknown).append(self.no_method)
        if self.method is not None:
            if student and self.same_code and said.label != self.method.label:
                wrong.append("label")
            if self.same_code and training["hyper"] != self.method.settings():
                wrong.append("hyper")
        unknown += self._code()
        wrong += self._recipe()
        wrong += [f"timing.{key}" for key in differing(said.timing, self._times())]
        if judged["images"] is not None and said.images.test_images != judged["images"]:
            wrong.append("data.test_images")
        origin = said.provenance
        if judged.get("pyautoattack", origin.pyautoattack) != origin.pyautoattack:
            wrong.append("provenance.pyautoattack")
        clean = said.metrics.get("clean")
        if clean is None or clean.attack != {"name": "clean", "implementation": f"adbench {origin.adbench}"}:
            wrong.append("clean's definition")
        if said.outcomes is None or said.outcomes.file != layout.OUTCOMES:
            wrong.append("outcomes.file")
        wrong += self._place(due["train_id"])
        fine = "identity, method, kind, label, seed, architecture, recipe and checkpoint are the configuration's"
        return Finding.of("configuration", fine, list(dict.fromkeys(wrong)), unknown)

    @property
    def same_code(self) -> bool:
        """Whether the method is, in this adbench, the one that the record was made with."""
        name, stated = str(self.record.method), self.training.get("source")
        return self.ours and (name not in METHODS or METHODS.code(name).sha256 == stated)

    def _code(self) -> list[str]:
        """What is to be said of the method's code."""
        if self.method is None or self.same_code:
            return []
        older = "" if self.ours else f" (revision {self.training.get('revision')}, here {REVISION})"
        return [f"the code of method '{self.record.method}' is not what is installed here{older}"]

    def _recipe(self) -> list[str]:
        """What is wrong with the recipe as such."""
        if "train" not in self.training:
            return []
        try:
            recipe(self.training["train"])
        except UserError as error:
            return [str(error)]
        return []

    def _times(self) -> dict[str, Any]:
        summary = self.record.training
        return {} if summary is None else {"train": summary.seconds}

    def _place(self, train_id: str) -> list[str]:
        """What is wrong with where it lies, if that is a place as `adbench run` makes it."""
        said, folder = self.record, self.record.path.resolve().parent.parent
        named = re.fullmatch(r"(.+)-([0-9a-f]{8})", folder.name)
        usual = "__" in folder.parent.name or folder.parent.name in (layout.TEACHERS, layout.CHECKPOINTS)
        if named is None or not (usual or re.fullmatch(r"s\d+", named[1])):
            return []
        if named[2] != train_id[:8]:
            return [f"its folder '{folder.name}'"]
        head = f"s{said.seed}" if said.kind == "student" else safe(said.label)
        pair = f"{safe(said.teacher or 'none')}__{safe(said.student)}"
        above = (safe(said.method or ""), pair) if said.kind == "student" else (f"{said.kind}s",)
        if named[1] != head:
            return [f"its folder '{folder.name}'"]
        around = folder.parts[-1 - len(above) : -1]
        return [f"its folder '{'/'.join(around)}'"] if usual and around != above else []

    def _training(self) -> Finding:
        said = self.record.training
        if self.record.method is None:
            return Finding.of("training", "none: the weights are from elsewhere", ["training"] if said else [])
        if said is None:
            return Finding.of("training", "", ["there is none"])
        asked, wrong, unknown = self.training["train"], [], []
        if said.epochs != asked["epochs"] or not 1 <= said.best_epoch <= said.epochs:
            wrong.append("epochs")
        if asked.get("precision", "auto") not in ("auto", said.precision):
            wrong.append("precision")
        if (size := asked.get("micro_batch")) and not 2 <= (said.micro_batch or 0) <= size:
            wrong.append("micro_batch")
        if self.method is not None and said.passes is not None and self.same_code:
            cost = training_passes(self.method, str(self.record.method), recipe(asked))
            due = {kind: number for kind, number in asdict(cost).items() if number} | {"total": cost.total}
            wrong += [] if said.passes == due else ["passes"]
        weights = said.weights
        if weights is None:
            unknown.append("its training left no hash of the weights (an older adbench)")
        elif getattr(weights, self.record.network.checkpoint, None) != self.record.network.weights_sha256:
            wrong.append("weights")
        beside, problem = self._beside(layout.SUMMARY)
        wrong += [problem] if problem else []
        if beside is None and not problem:
            unknown.append(f"its {layout.SUMMARY} is not there")
        elif beside is not None:
            wrong += [f"{layout.SUMMARY}: {key}" for key in differing(asdict(said), beside)]
        planned, problem = self._beside(layout.CONFIGURATION)
        if planned is not None and planned != self.training:
            wrong.append(layout.CONFIGURATION)
        return Finding.of("training", f"as its configuration and {layout.SUMMARY} have it", wrong, unknown)

    def _beside(self, name: str) -> tuple[Any, str]:
        """A JSON file of the cell's folder, None where it is not there, and what is wrong with it."""
        try:
            found = document.opened(self.record.path.parent.parent / name)
        except FileNotFoundError:
            return None, ""
        except (OSError, ValueError) as error:
            return None, f"{name} cannot be read ({error})"
        return (found, "") if isinstance(found, dict) else (None, f"{name} is no table")

    def _log(self) -> Finding:
        said = self.record.training
        if said is None:
            return Finding.of("training log", "none: nothing was trained", [])
        try:
            log = self.record.log()
        except (OSError, UserError) as error:
            return Finding.of("training log", "", [str(error)])
        if not log:
            return Finding.of(
                "training log", "", [], ["there is no log, which epochs and best epoch would follow from"]
            )
        if self._recipe():
            return Finding.of("training log", "", ["its recipe is none"])
        wrong, train = [], recipe(self.training["train"])
        if [entry.get("epoch") for entry in log] != [*range(1, said.epochs + 1)]:
            return Finding.of("training log", "", ["epochs"])
        images = self.record.images
        batches = per_epoch(images.train_images, train.batch_size)
        if images.extra:
            batches = per_epoch(images.extra.epoch_images, train.batch_size, filled=True)
        rates = (rate(train, epoch, batches - 1, batches) for epoch in range(len(log)))
        wrong += [] if all(equal(entry.get("lr"), rate) for entry, rate in zip(log, rates, strict=True)) else ["lr"]
        judged = [epoch % train.val_every == 0 or epoch == said.epochs for epoch in range(1, said.epochs + 1)]
        if judged != [entry.get("val_robust") is not None for entry in log]:
            return Finding.of("training log", "", [*wrong, "epochs judged on the held-out split"])
        if not equal(log[said.best_epoch - 1]["val_robust"], said.best_val_robust):
            wrong.append("best_val_robust")
        chosen = self.method if self.same_code else None
        if chosen is not None and not wrong:
            found = [entry.get(chosen.selects) for entry in log]
            scores = [-1.0 if score is None else score for score in found]
            scores[: train.judged_from - 1] = [-1.0] * (train.judged_from - 1)
            wrong += [] if said.best_epoch == 1 + scores.index(max(scores)) else ["best_epoch"]
        if sum(entry.get("seconds", 0.0) for entry in log) > said.seconds * (1 + 1e-6):
            wrong.append("seconds")
        unknown = [] if said.log_sha256 else ["the record has no hash of it (an older adbench)"]
        unknown += [] if chosen else ["its method is not here, which says by what the best epoch is chosen"]
        return Finding.of(
            "training log", "epochs, rates, best epoch and held-out accuracy are the log's", wrong, unknown
        )

    def _masking(self) -> Finding:
        entry = self.record.masking
        if entry is None or not self.judged.get("masking"):
            return Finding.of("masking", "", ["what the configuration asks for"])
        tests, wrong = entry.tests, []
        n = self.record.metrics["clean"].n
        if entry.images != min(self.judged["masking"], n):
            wrong.append("images")
        names = {test.name for test in tests}
        asked = {
            "fgsm-weaker-than-pgd",
            "more-steps",
            "restarts",
            "logit-scale",
            "growing-eps",
            "zero-gradients",
            "black-box",
            "determinism",
        }
        asked |= {"transfer"} if any(label.startswith("transfer:") for label in self.record.metrics) else set()
        asked |= {"autoattack-flags"} if {"aa", "aa-plus", "aa-rand"} & {*self.judged["attacks"]} else set()
        if names != asked or len(names) != len(tests):
            wrong.append("tests")
        wrong += [f"{test.name}: {key}" for test in tests for key in contradicted(asdict(test))]
        if entry.verdict != max((test.verdict for test in tests), key=VERDICTS.index):
            wrong.append("verdict")
        return Finding.of("masking", f"verdict {entry.verdict} follows from the {len(tests)} tests' figures", wrong)


def guides(found: Record, dataset: Dataset) -> Iterator[Finding]:
    """Whether the teachers and proxies that a record names are the networks of its configuration."""
    training, named = found.config.training, found.teachers
    for key, id_key in (("robust", "teacher"), ("natural", "natural")):
        entry, train_id = getattr(named, key), training.get(id_key)
        if entry is None and train_id is None:
            continue
        if entry is None or train_id is None:
            yield Finding.of(f"teacher ({key})", "", ["teachers and configuration differ in whether there is one"])
            continue
        wrong = ["teacher"] if key == "robust" and entry.name != found.teacher else []
        yield _guide(found, dataset, f"teacher ({key})", asdict(entry), train_id, wrong)
    for name, train_id in found.config.evaluation["proxies"].items():
        yield _guide(found, dataset, f"proxy {name}", {"name": name}, train_id, [])


def _guide(
    found: Record, dataset: Dataset, what: str, entry: dict[str, Any], train_id: str, wrong: list[str]
) -> Finding:
    near = beside(found, train_id)
    if near is not None:
        own = {
            "name": near.label,
            **{
                key: getattr(near.network, key)
                for key in ("architecture", "parameters", "weights_sha256", "checkpoint")
            },
        }
        wrong = [*wrong, *differing(entry, {key: own[key] for key in entry if key in own})]
        return Finding.of(what, f"'{entry['name']}' of the configuration, with the weights that it ended with", wrong)
    known = known_guides(found, dataset)
    if train_id in known:
        wrong = [*wrong, *([] if entry["name"] == known[train_id].name else ["name"])]
        unknown = ["its weights are not beside the record"] if "weights_sha256" in entry else []
        return Finding.of(what, f"'{entry['name']}' is the configuration's", wrong, unknown)
    return Finding.of(
        what, "", wrong, [f"'{entry['name']}' is not beside the record, so that nothing shows what it is"]
    )


def beside(found: Record, train_id: str) -> Record | None:
    """The finished record of the teacher with that identity in the same results folder, if there is one."""
    for folder in found.path.resolve().parents[1:6]:
        for path in layout.guide_records(folder, train_id):
            try:
                other = record.read(path)
            except UserError:
                continue
            if other.done and other.train_id == train_id == content_id(other.config.training)[:16]:
                return other
    return None


def known_guides(found: Record, dataset: Dataset) -> dict[str, Cell]:
    """The teachers that adbench knows by name, as this record's recipe would have them, by identity."""
    training = found.config.training
    data = {key: training["data"].get(key) for key in ("train_images", "val_images", "resize")}
    if extra := training["data"].get("extra"):  # teachers that are trained here are trained with them, too
        dataset = replace(dataset, extra=Extra.recorded(extra["sha256"], extra["share"]))
        data |= {"extra": "recorded", "extra_share": extra["share"]}
    experiment = Experiment(
        train=recipe(training.get("train", {})), data=Data(**data), threat=ThreatModel(**training["threat"])
    )
    known: dict[str, Cell] = {}
    specs = [teacher.find(name, found.dataset) for name in teacher.names()]
    for spec in itertools.chain(specs, teacher.published()):
        if spec.dataset in (None, found.dataset):
            for one in (spec, teacher.natural_partner(spec)):
                cell = teacher_cell(experiment, found.dataset, one, lambda *_: dataset)
                known.setdefault(cell.train_id, cell)
    return known
