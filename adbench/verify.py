"""`adbench verify`: whether a record follows from its checkpoint, the test images and the stored adversarial examples.

It takes nothing on trust but the data set of the record's name and the files given to it: every figure is computed
again, in one forward pass over the test images and one over each attack's x'. That a survivor cannot be broken no
stored x' can show; `again` attacks anew.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
import torch

from adbench import FAST_SEARCH, adversarial, document, files, networks, record
from adbench.attacks import autoattack
from adbench.attacks.linf import Start
from adbench.attacks.named import gradient_attack, radius
from adbench.data import Threat, parse_fraction
from adbench.data.batches import to_float
from adbench.errors import UserError
from adbench.evaluate import Evaluator, Outcome
from adbench.files import content_id
from adbench.models import count_parameters
from adbench.record import Record
from adbench.stats import wilson

NOT_CHECKED = "not checked: wall times, memory, provenance, AutoAttack's warnings, the masking verdict"
"""What no file can show."""

# Of the images that are attacked anew, as many may fare worse than recorded: on another processor, rounding turns
# single pixels of an attack's path, and with them images at the boundary.
WORSE = 0.02


@dataclass(frozen=True)
class Finding:
    """One figure or file, whether it follows, and what was seen."""

    what: str
    holds: bool
    says: str


def verify(
    path: Path, *, data_dir: Path, device: torch.device, weights: Path | None = None, again: int = 0
) -> Iterator[Finding]:
    """Check the record at `path`, one finding after another; those that need a network come last.

    weights: the checkpoint, where it does not lie where the record has it. again: attack so many test images anew,
    with every gradient attack of the record, chosen by chance; AutoAttack and transfer are not repeated.
    Raises UserError for a file that is no record, or the record of a failed cell.
    """
    found = record.stated(path)
    if not found.done:
        raise UserError(f"'{path}' is the record of a failed cell; it states no figure to verify")
    problem = jsonschema.exceptions.best_match(jsonschema.Draft202012Validator(record.schema()).iter_errors(found.data))
    if problem:
        yield Finding("form", False, f"{'.'.join(map(str, problem.absolute_path)) or 'record'}: {problem.message}")
        return
    try:
        yield from _Verification(found, data_dir, device, weights).findings(again)
    except (KeyError, TypeError, IndexError) as error:
        yield Finding("form", False, f"its configuration lacks something ({type(error).__name__}: {error})")


class _Verification:
    """One record before the judge."""

    def __init__(self, found: Record, data_dir: Path, device: torch.device, weights: Path | None) -> None:
        self.record, self.data_dir, self.device, self.weights = found, data_dir, device, weights
        self.training, self.judged = found["config"]["training"], found["config"]["evaluation"]

    def findings(self, again: int) -> Iterator[Finding]:
        yield self._identity()
        yield from self._log()
        try:
            self.dataset = networks.dataset_of(self.record, self.data_dir)
            yield self._data()
            network = networks.network_of(self.record, self.dataset, self.data_dir, self.weights)
        except UserError as error:
            yield Finding("checkpoint and data", False, str(error))
            return
        yield self._model(count_parameters(network))
        self.evaluator = Evaluator(
            network, self.dataset.test, self._threat(), seed=self.judged["seed"], batch_size=250, device=self.device,
            start=self._start(),
        )  # fmt: skip
        try:
            self.table = self.record.outcomes()
        except UserError as error:
            yield Finding("outcomes", False, str(error))
            return
        yield self._outcomes()
        yield self._attacks()
        for name in self.record["metrics"]:
            yield self._figure(name)
        if again:
            yield from self._again(again)

    def _threat(self) -> Threat:
        step = self.judged.get("step")
        own = self.dataset.threat
        return own if step is None else Threat(own.eps, parse_fraction(step))

    def _start(self) -> Start:
        return Start(self.judged.get("start") or Start.UNIFORM)

    def _identity(self) -> Finding:
        ids = {"train_id": content_id(self.training)[:16], "eval_id": content_id(self.judged)[:16]}
        ids["id"] = content_id([ids["train_id"], ids["eval_id"]])[:16]
        said = {
            **ids,
            "method": self.training.get("method"),
            "seed": self.training.get("seed"),
            "student": self.training["architecture"],
        }
        wrong = [key for key, value in said.items() if self.record[key] != value]
        return _finding("configuration", wrong, "identity, method, seed and architecture are the configuration's")

    def _log(self) -> Iterator[Finding]:
        training = self.record["training"]
        if training is None:
            return
        try:
            log = self.record.log()
        except (OSError, UserError) as error:
            yield Finding("training log", False, str(error))
            return
        if not log:
            return
        said = {"epochs": len(log), "best_val_robust": log[training["best_epoch"] - 1].get("val_robust")}
        wrong = [key for key, value in said.items() if training[key] != value]
        yield _finding("training log", wrong, "epochs and best held-out accuracy are the log's")

    def _data(self) -> Finding:
        said = self.dataset.summary()
        wrong = [key for key, value in said.items() if self.record["data"].get(key, value) != value]
        return _finding("data", wrong, f"'{self.record['dataset']}' with the recorded fingerprint and counts")

    def _model(self, parameters: int) -> Finding:
        model = self.record["model"]
        said = {"parameters": parameters, "architecture": self.training["architecture"]}
        wrong = [key for key, value in said.items() if model[key] != value]
        return _finding("checkpoint", wrong, f"weights {model['weights_sha256'][:12]}..., {parameters:,} parameters")

    def _outcomes(self) -> Finding:
        table, test = self.table, self.dataset.test
        wrong = []
        stated = self.record["outcomes"] or {}
        if files.sha256(self.record.path.parent / record.OUTCOMES) != stated.get("sha256"):
            wrong.append("sha256")
        if [*table.columns] != ["index", "label", "prediction", *self.record["metrics"]] or len(table) != len(test):
            wrong.append("columns or rows")
        elif table["label"].tolist() != test.labels.tolist() or table["index"].tolist() != list(range(len(test))):
            wrong.append("labels")
        elif self._predicted_otherwise():
            wrong.append("predictions")
        return _finding("outcomes", wrong, f"{len(test):,} rows; labels and predictions follow")

    def _predicted_otherwise(self) -> bool:
        """Whether the recorded predictions are not the network's, but for what float32 leaves open."""
        stated = torch.tensor(self.table["prediction"].tolist())
        logits = self.evaluator.logits(self.evaluator.x).cpu()
        if ((stated < 0) | (stated >= logits.shape[1])).any():
            return True
        right, unclear = adversarial.verdicts(logits, stated)
        return bool((~right & ~unclear).any())

    def _attacks(self) -> Finding:
        """Whether the record has just the attacks of its configuration, defined as they have to be."""
        expected = {"clean": None} | {name: name for name in self.judged["attacks"]}
        for proxy in self.judged["proxies"]:
            expected |= {f"transfer:{proxy}:{name}": name for name in self.judged["transfer_attacks"]}
        wrong = sorted(set(expected) ^ set(self.record["metrics"]))
        for label, name in expected.items():
            if label not in wrong and name is not None:
                stated = self.record["metrics"][label]["attack"]
                wrong += [f"{label}: {key}" for key in self._otherwise(name, label, stated)]
        return _finding("attacks", wrong, "those of the configuration, with its radius, steps, starts and seed")

    def _otherwise(self, name: str, label: str, stated: dict[str, Any]) -> list[str]:
        """The keys in which a stated definition is not the one that the configuration asks for."""
        seed, threat = self.judged["seed"], self._threat()
        if name in autoattack.VERSIONS:
            due = autoattack.definition(
                name, threat.eps, self.dataset.classes, seed, self.judged["aa_search"], self.judged["aa_shard"]
            ) | {"implementation": f"pyautoattack {self.judged['pyautoattack']}"}
            if stated.get("search") == "float32":  # where bfloat16 is not faster, a fast search is none
                due["search"] = "float32"
            elif self.judged["aa_search"] == "fast" and self.judged.get("fast_search") != FAST_SEARCH:
                # The search of another version of adbench, in its words.
                due["search"] = stated.get("search")
        else:
            due = gradient_attack(name, threat.eps, threat.step, self._start()).definition(seed)
            due["implementation"] = stated.get("implementation")  # the version of adbench that it ran with
        if label.startswith("transfer:"):
            due["proxy"] = label.partition(":")[2].rpartition(":")[0]
        return sorted(key for key in {*due, *stated} if due.get(key) != stated.get(key))

    def _figure(self, name: str) -> Finding:
        """One attack's figures, from its outcomes, and these from its x'."""
        metric, column = self.record["metrics"][name], self.table.get(name)
        if column is None:
            return Finding(name, False, "the outcomes have no such column")
        count = self._images(name)
        right = torch.tensor([value is True or value == 1 for value in column[:count].fillna(False)])
        attacked = column.notna().tolist()
        if attacked != [True] * count + [False] * (len(column) - count):
            return Finding(name, False, f"the outcomes are not those of the first {count:,} test images")
        due = Outcome(right, {}, 0.0).entry(self.dataset)
        for key in ("n", "correct", "value", "ci_test", "per_class"):
            if key in metric and not _equal(metric[key], due[key]):
                return Finding(name, False, f"{key} = {_brief(metric[key])}, but the outcomes give {_brief(due[key])}")
        if problem := self._evidence(name, metric, right):
            return Finding(name, False, problem)
        low, high = wilson(int(right.sum()), count)
        return Finding(
            name, True, f"{100 * metric['value']:.2f}% of {count:,} images ({100 * low:.1f}-{100 * high:.1f}) follows"
        )

    def _images(self, name: str) -> int:
        n = len(self.dataset.test)
        return min(n, self.judged["aa_images"] or n) if name in autoattack.VERSIONS else n

    def _evidence(self, name: str, metric: dict[str, Any], right: torch.Tensor) -> str | None:
        """What is wrong with the x' of an attack, if anything is."""
        images, y = self.dataset.test.images[: len(right)], self.evaluator.y[: len(right)]
        if name == "clean":
            x_adv = to_float(images)
        else:
            if "adversarial" not in metric:
                return "no adversarial examples were stored (adbench run --keep-adversarial), so nothing shows it"
            stored = metric["adversarial"]
            eps = radius(name, self.dataset.threat.eps)
            try:
                path = document.beside(self.record.path, stored["file"])
                x_adv = adversarial.unpack(images, adversarial.read(path, images), eps)
            except UserError as error:
                return str(error)
            if files.sha256(path) != stored["sha256"]:
                return f"'{stored['file']}' has another SHA-256 than the record states"
            if (away := adversarial.outside(images, x_adv, eps)).any():
                return f"x' of image {int(away.nonzero()[0])} lies outside the ball or [0, 1]"
        found, unclear = adversarial.verdicts(self.evaluator.logits(x_adv.to(self.device)), y)
        wrong = (found.cpu() != right) & ~unclear.cpu()
        # An image that is misclassified as it is counts as broken, whatever its x'.
        wrong &= self.evaluator.clean.right[: len(right)] | right
        if wrong.any():
            first = int(wrong.nonzero()[0])
            said = "a survivor" if right[first] else "broken"
            return f"{int(wrong.sum())} outcomes do not follow: image {first} is recorded as {said}, its x' differs"
        return None

    def _again(self, count: int) -> Iterator[Finding]:
        n = len(self.dataset.test)
        index = torch.randperm(n, generator=torch.Generator().manual_seed(_chance()))[:count].sort().values
        for name in self.judged["attacks"]:
            if name in autoattack.VERSIONS:
                continue
            stated = torch.tensor(self.table[name].astype(bool).tolist())[index]
            found = self.evaluator.under(name, index).right
            worse, better = int((stated & ~found).sum()), int((~stated & found).sum())
            holds = worse <= max(1, math.ceil(WORSE * len(index)))
            yield Finding(
                f"{name} again", holds,
                f"{len(index)} images attacked anew: {worse} recorded as survivors are broken, {better} the other way",
            )  # fmt: skip


def _chance() -> int:
    """A seed that nobody who wrote a record could foresee."""
    return torch.Generator().seed() % 2**31


def _finding(what: str, wrong: list[str], fine: str) -> Finding:
    return Finding(what, not wrong, f"does not follow: {', '.join(wrong)}" if wrong else fine)


def _equal(stated: Any, due: Any) -> bool:
    """Whether two figures are the same, up to the last digits of a float."""
    if isinstance(due, float):
        return isinstance(stated, int | float) and math.isclose(stated, due, rel_tol=1e-12, abs_tol=1e-12)
    if isinstance(due, list):
        return isinstance(stated, list) and len(stated) == len(due) and all(map(_equal, stated, due))
    return bool(stated == due)


def _brief(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
