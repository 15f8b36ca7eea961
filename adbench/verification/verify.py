"""`adbench verify`: whether a record follows from its checkpoint, the test images and the stored adversarial examples.

It takes nothing on trust but the data set of the record's name and the files given to it: every figure is computed
again, in one forward pass over the test images and one over each attack's x'. That a survivor cannot be broken no
stored x' can show; `survivors` attacks them anew (`reattack.py`), `again` repeats the
record's gradient attacks.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adbench import FAST_SEARCH
from adbench.attacks import autoattack
from adbench.attacks.linf import Start
from adbench.attacks.named import gradient_attack, radius
from adbench.data import Dataset, Threat, load, parse_fraction
from adbench.data.batches import to_float
from adbench.errors import UserError
from adbench.evaluation import stored_examples
from adbench.evaluation.evaluator import Evaluator, Outcome
from adbench.evaluation.footprint import weight_bytes
from adbench.evaluation.masking_rules import CHANCE, most
from adbench.models import Network, count_parameters
from adbench.models.flops import multiply_adds
from adbench.models.precision import Precision
from adbench.models.verdict import predicted
from adbench.results import document, record
from adbench.results.fields import Metric, RecordedExtra
from adbench.results.record import Record
from adbench.results.stats import wilson
from adbench.system import files
from adbench.training import trainer
from adbench.training.step import SELECTIONS, Ball, Net
from adbench.verification import reattack
from adbench.verification.consistency import CONTRADICTS, FOLLOWS, NOT_SHOWN, Finding, Paper, beside, equal, guides
from adbench.weights import networks

UNSHOWABLE = (
    "a forged training: weights made in another way (method, settings, seed) than a log and names made to fit say",
    "the course of the log at other epochs than those whose weights are at hand",
    "how a run went: wall times, latency, images/s, memory, devices, notes, warnings, versions, provenance",
    "false survivors too few for the sample, all of them without --survivors; broken images without a stored x'",
    "the figures that the tests of gradient masking measured (their verdicts are computed again)",
    "what lies neither beside the record nor in adbench: an unknown teacher, proxy or method behind a name",
)
"""What no file can show, all of it: the list in docs/evaluation.md."""

OTHER_NOISE = 0.02
"""The share of held-out images that may be judged otherwise where the start noise is another device's."""


@dataclass(frozen=True)
class Asked:
    """What is to be tried beyond the files. again: test images that the gradient attacks are repeated on; survivors:
    how many of each attack's are attacked anew; seed: draws them and is that of the new attacks."""

    again: int = 0
    survivors: int = 0
    seed: int = 0


def chance() -> int:
    """A seed that nobody who wrote a record could foresee."""
    return torch.Generator().seed() % 2**31


def verify(
    path: Path,
    *,
    data_dir: Path,
    device: torch.device,
    weights: Path | None = None,
    asked: Asked = Asked(),
    plugins: bool = True,
) -> Iterator[Finding]:
    """Check the record at `path`, one finding after another; those that need a network come last.

    weights: the checkpoint, where it does not lie where the record has it. plugins: whether the code of a method that
    is not adbench's own may be imported. Raises UserError for a file that is no record, or the record of a failed cell.
    """
    try:
        found = record.stated(path)
    except document.Malformed as error:
        yield Finding("form", CONTRADICTS, error.complaint)
        return
    if not found.done:
        raise UserError(f"'{path}' is the record of a failed cell; it states no figure to verify")
    if found.model is None or found.data is None:
        yield Finding("form", CONTRADICTS, "it is done, but has no model or no data")
        return
    try:
        yield from _Verification(found, data_dir, device, weights, asked, plugins).findings()
    except UserError as error:  # settings that no run takes
        yield Finding("form", CONTRADICTS, str(error))
    except torch.OutOfMemoryError:
        raise
    except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError, RuntimeError) as error:
        yield Finding("form", CONTRADICTS, f"its configuration lacks something ({type(error).__name__}: {error})")


class _Verification:
    """One record before the judge."""

    def __init__(
        self, found: Record, data_dir: Path, device: torch.device, weights: Path | None, asked: Asked, plugins: bool
    ) -> None:
        self.record, self.data_dir, self.device, self.weights, self.asked = found, data_dir, device, weights, asked
        self.training, self.judged = found.config.training, found.config.evaluation
        self.paper = Paper(found, plugins)
        self.evaluator: Evaluator | None = None
        """None without the network's weights."""
        self._proxies: dict[str, Network] | None = None

    def findings(self) -> Iterator[Finding]:
        yield from self.paper.findings()
        dataset = self._dataset()
        if isinstance(dataset, Finding):
            yield dataset
            return
        self.dataset = dataset
        yield self._data()
        if self.record.images.extra:
            yield self._extra(self.record.images.extra)
        yield from guides(self.record, dataset)
        network = self._network()
        if isinstance(network, Finding):
            yield network
            if network.answer == CONTRADICTS:
                return
        else:
            yield self._model(network)
            self.network = network.to(self.device)
            yield self._held_out()
            self.evaluator = Evaluator(
                network,
                dataset.test,
                self._threat(),
                seed=self.judged["seed"],
                batch_size=250,
                device=self.device,
                **self._settings(),
            )
        try:
            self.table = self.record.verdicts()
        except UserError as error:
            yield Finding("outcomes", CONTRADICTS, str(error))
            return
        outcomes = self._outcomes()
        yield outcomes
        yield self._attacks()
        if outcomes.answer == CONTRADICTS:
            return
        for name in self.record.metrics:
            yield self._figure(name)
        if self.asked.again and self.evaluator:
            yield from self._again(self.asked.again)
        if self.asked.survivors and self.evaluator:
            yield from self._survivors(self.asked.survivors)

    def _dataset(self) -> Dataset | Finding:
        """The record's data, or what is wrong with it."""
        try:
            return networks.dataset_of(self.record, self.data_dir)
        except UserError as error:
            try:
                load(self.record.dataset, self.data_dir, resize=self.training["data"].get("resize"))
            except UserError:
                return Finding("data", NOT_SHOWN, str(error))
            return Finding("data", CONTRADICTS, str(error))

    def _network(self) -> Network | Finding:
        """The record's network, or what is wrong with it."""
        try:
            return networks.network_of(self.record, self.dataset, self.data_dir, self.weights)
        except networks.Missing as error:
            return Finding("checkpoint", NOT_SHOWN, str(error))
        except UserError as error:
            return Finding("checkpoint", CONTRADICTS, str(error))

    def _settings(self) -> dict[str, Any]:
        """How the record's attacks start and AutoAttack searches, for an evaluator."""
        settings = {"search": self.judged.get("aa_search"), "shard": self.judged.get("aa_shard")}
        return {"start": self._start()} | {key: value for key, value in settings.items() if value is not None}

    def _threat(self) -> Threat:
        step = self.judged.get("step")
        own = self.dataset.threat
        return own if step is None else Threat(own.eps, parse_fraction(step))

    def _start(self) -> Start:
        return Start(self.judged.get("start") or Start.UNIFORM)

    def _data(self) -> Finding:
        said = self.dataset.summary()
        wrong = [key for key, value in said.items() if getattr(self.record.images, key) not in (None, value)]
        return Finding.of("data", f"'{self.record.dataset}' with the recorded fingerprint and counts", wrong)

    def _extra(self, said: RecordedExtra) -> Finding:
        """Whether the extra training images are those of the record."""
        path = networks.extra_file(self.record, self.data_dir)
        if path is None:
            return Finding("extra images", NOT_SHOWN, f"'{said.file}' is not here; --data-dir is looked in too")
        wrong = [] if files.sha256(path) == said.sha256 else [f"'{path}' has another SHA-256"]
        return Finding.of("extra images", f"'{path}' with the recorded SHA-256", wrong)

    def _model(self, network: Network) -> Finding:
        model, parameters = self.record.network, count_parameters(network)
        said = {"parameters": parameters, "architecture": self.training["architecture"]}
        wrong = [key for key, value in said.items() if getattr(model, key) != value]
        if model.footprint:
            due = {"bytes": weight_bytes(network), "multiply_adds": multiply_adds(network, self.dataset.image_shape)}
            wrong += [f"footprint.{key}" for key, value in due.items() if (getattr(model.footprint, key) or 0) != value]
        return Finding.of("checkpoint", f"weights {model.weights_sha256[:12]}..., {parameters:,} parameters", wrong)

    def _held_out(self) -> Finding:
        """Whether the weights have the held-out accuracy that chose them."""
        what, said = "held-out accuracy", self.record.training
        if said is None:
            return Finding.of(what, "none: nothing was trained", [])
        which = self.record.network.checkpoint
        epoch = said.best_epoch if which == "best" else said.epochs
        log = self.record.log()
        stated = {key: log[epoch - 1][key] for key in SELECTIONS if key in log[epoch - 1]} if log else {}
        if not log and which == "best":
            stated = {"val_robust": said.best_val_robust}
        if not stated:
            return Finding.of(what, "", [], ["there is no log, which has that of the last epoch"])
        recipe = self.training["train"]
        ball = Ball(float(self.dataset.threat.eps), float(self.dataset.threat.step), recipe["val_steps"])
        narrow = said.precision == "bfloat16"
        shape = self.dataset.image_shape
        precision = Precision.chosen("bfloat16" if narrow else "float32", self.network, shape, self.device)
        val = self.dataset.val.to(self.device)
        found = trainer.held_out(Net(self.network, precision), val, ball, recipe["batch_size"], self.training["seed"])
        n = len(val)
        # The start noise is drawn on the device.
        alike = self.device.type == "cpu" and "CPU" in self.record.provenance.device and not narrow
        robust = most(n, reattack.REPEATED if alike else OTHER_NOISE)
        limits = {"val_clean": most(n, reattack.REPEATED), "val_robust": robust, "val_mean": robust}
        # Of the images of one class, which are fewer.
        limits["val_robust_worst"] = robust * n // int(val.labels.bincount().clamp_min(1).min())
        wrong = [
            f"{key} = {value}, the weights have {found[key]:.4f} (of {n} images, {limits[key]} may differ)"
            for key, value in stated.items()
            if value is None or abs(value - found[key]) * n > limits[key] + 0.5
        ]
        return Finding.of(
            what, f"that of epoch {epoch}: {', '.join(f'{key} {found[key]:.4f}' for key in stated)}", wrong
        )

    def _outcomes(self) -> Finding:
        table, test = self.table, self.dataset.test
        wrong, unknown, said = [], [], ""
        if [*table.columns] != ["index", "label", "prediction", *self.record.metrics] or len(table) != len(test):
            wrong.append("columns or rows")
        elif table["label"].tolist() != test.labels.tolist() or table["index"].tolist() != list(range(len(test))):
            wrong.append("labels")
        elif table["clean"].tolist() != (table["prediction"] == table["label"]).tolist():
            wrong.append("clean")
        elif self.evaluator is None:
            unknown.append("rows and labels follow, but predictions need the weights")
        else:
            stated = torch.tensor(self.table["prediction"].tolist())
            logits = self.evaluator.logits(self.evaluator.x).cpu()
            if ((stated < 0) | (stated >= logits.shape[1])).any():
                wrong.append("predictions")
            else:
                right, unclear = stored_examples.verdicts(logits, stated)
                right |= stated == predicted(logits, test.labels)  # where no class is first, by the rule of verdicts
                problem, said = rounding(torch.ones_like(right), right, unclear)
                wrong += [f"predictions ({problem})"] if problem else []
        return Finding.of("outcomes", f"{len(test):,} rows; labels and predictions follow{said}", wrong, unknown)

    def _attacks(self) -> Finding:
        """Whether the record has just the attacks of its configuration, defined as they have to be."""
        expected = {"clean": None} | {name: name for name in self.judged["attacks"]}
        for proxy in self.judged["proxies"]:
            expected |= {f"transfer:{proxy}:{name}": name for name in self.judged["transfer_attacks"]}
        wrong = sorted(set(expected) ^ set(self.record.metrics))
        for label, name in expected.items():
            if label not in wrong and name is not None:
                stated = self.record.metrics[label].attack
                wrong += [f"{label}: {key}" for key in self._otherwise(name, label, stated)]
        return Finding.of("attacks", "those of the configuration, with its radius, steps, starts and seed", wrong)

    def _otherwise(self, name: str, label: str, stated: dict[str, Any]) -> list[str]:
        """The keys in which a stated definition is not the one that the configuration asks for."""
        seed, threat = self.judged["seed"], self._threat()
        if name in autoattack.VERSIONS:
            due = autoattack.definition(
                name, threat.eps, self.dataset.classes, seed, self.judged["aa_search"], self.judged["aa_shard"]
            ) | {"implementation": f"pyautoattack {self.judged['pyautoattack']}"}
            if self.judged.get("revision", 0) < 2:
                # Whether the search was fast was left to a probe; these are its words then.
                fast = self.judged["aa_search"] == "fast" and "bfloat16" in str(stated.get("search"))
                due["search"] = stated.get("search") if fast else "float32"
            elif self.judged["aa_search"] == "fast" and self.judged.get("fast_search") != FAST_SEARCH:
                due["search"] = stated.get("search")  # in the words of another version
        else:
            due = gradient_attack(name, threat.eps, threat.step, self._start()).definition(seed)
            if str(stated.get("implementation", "")).startswith("adbench "):  # of the version that it ran with
                due["implementation"] = stated["implementation"]
        if label.startswith("transfer:"):
            due["proxy"] = label.partition(":")[2].rpartition(":")[0]
        return sorted(key for key in {*due, *stated} if due.get(key) != stated.get(key))

    def _figure(self, name: str) -> Finding:
        """One attack's figures, from its outcomes, and these from its x'."""
        metric, column = self.record.metrics[name], self.table.get(name)
        if column is None:
            return Finding(name, CONTRADICTS, "the outcomes have no such column")
        count = self._images(name)
        right = torch.tensor([value is True or value == 1 for value in column[:count].fillna(False)])
        attacked = column.notna().tolist()
        if attacked != [True] * count + [False] * (len(column) - count):
            return Finding(name, CONTRADICTS, f"the outcomes are not those of the first {count:,} test images")
        due = Outcome(right, {}, 0.0).entry(self.dataset)
        for key in ("n", "correct", "value", "ci_test", "per_class"):
            if getattr(metric, key) is None:
                # Who hashed the weights also counted by class.
                if self.record.training and self.record.training.weights:
                    return Finding(name, CONTRADICTS, f"{key} is missing, which this adbench writes")
            elif not equal(getattr(metric, key), due[key]):
                said = f"{key} = {_brief(getattr(metric, key))}, but the outcomes give {_brief(due[key])}"
                return Finding(name, CONTRADICTS, said)
        problem, shown = self._evidence(name, metric, right)
        if problem:
            return Finding(name, CONTRADICTS, problem)
        low, high = wilson(int(right.sum()), count)
        figure = f"{100 * metric.value:.2f}% of {count:,} images ({100 * low:.1f}-{100 * high:.1f})"
        if shown is None and self.evaluator is None:
            return Finding(
                name, NOT_SHOWN, f"{figure} follows from the outcomes, but without weights nothing shows these"
            )
        if shown is None:
            if self._attacked_anew(name):
                return Finding(name, FOLLOWS, f"{figure} follows from the outcomes; shown by attacking anew, see below")
            return Finding(
                name,
                NOT_SHOWN,
                f"{figure} follows from the outcomes, but no adversarial examples were stored "
                "(--keep-adversarial), so that nothing shows these; --survivors attacks anew",
            )
        return Finding(name, FOLLOWS, f"{figure} follows{shown}")

    def _images(self, name: str) -> int:
        n = len(self.dataset.test)
        return min(n, self.judged["aa_images"] or n) if name in autoattack.VERSIONS else n

    def _attacked_anew(self, name: str) -> bool:
        """Whether the attack will be repeated, on survivors or on images drawn from all."""
        if self.asked.survivors:
            return reattack.needed([name]) <= self.proxies.keys()
        return bool(self.asked.again) and name in self._repeatable()

    def _evidence(self, name: str, metric: Metric, right: Tensor) -> tuple[str, str | None]:
        """What is wrong with the x' of an attack, if anything is; else what to add, None without x' or weights."""
        images = self.dataset.test.images[: len(right)]
        standing = torch.tensor(self.table["clean"][: len(right)].astype(bool).tolist())
        if (right & ~standing).any():
            first = int((right & ~standing).nonzero()[0])
            return f"image {first} is recorded as a survivor, but misclassified as it is", None
        if self.evaluator is None:
            return "", None
        y = self.evaluator.y[: len(right)]
        if name == "clean":
            x_adv = to_float(images)
        else:
            stored = metric.adversarial
            if stored is None:
                return "", None
            eps = radius(name, self.dataset.threat.eps)
            try:
                path = document.beside(self.record.path, stored.file)
                if not files.there(path):  # a board takes no examples
                    return "", None
                x_adv = stored_examples.unpack(images, stored_examples.read(path, images), eps)
            except UserError as error:
                return str(error), None
            if files.sha256(path) != stored.sha256:
                return f"'{stored.file}' has another SHA-256 than the record states", None
            if (away := stored_examples.outside(images, x_adv, eps)).any():
                return f"x' of image {int(away.nonzero()[0])} lies outside the ball or [0, 1]", None
        found, unclear = stored_examples.verdicts(self.evaluator.logits(x_adv.to(self.device)), y)
        found, unclear = found.cpu(), unclear.cpu()
        # An image that is misclassified as it is counts as broken, whatever its x'.
        judged = standing | right
        wrong = (found != right) & ~unclear & judged
        if wrong.any():
            first = int(wrong.nonzero()[0])
            said = "a survivor" if right[first] else "broken"
            return (
                f"{int(wrong.sum())} outcomes do not follow: image {first} is recorded as {said}, its x' differs",
                None,
            )
        return rounding(right[judged], found[judged], unclear[judged])

    def _repeatable(self) -> list[str]:
        return [name for name in self.judged["attacks"] if name not in autoattack.VERSIONS]

    def _again(self, count: int) -> Iterator[Finding]:
        assert self.evaluator is not None
        if not self._repeatable():
            said = "there is no gradient attack to repeat; AutoAttack and transfer are attacked anew by --survivors"
            yield Finding("again", NOT_SHOWN, said)
            return
        generator = torch.Generator().manual_seed(self.asked.seed)
        index = torch.randperm(len(self.dataset.test), generator=generator)[:count].sort().values
        limit = most(len(index), reattack.REPEATED)
        for name in self._repeatable():
            stated = torch.tensor(self.table[name].astype(bool).tolist())[index]
            found = self.evaluator.under(name, index).right
            worse, better = int((stated & ~found).sum()), int((~stated & found).sum())
            yield Finding(
                f"{name} again",
                FOLLOWS if worse <= limit else CONTRADICTS,
                f"{len(index)} images attacked as recorded: {worse} recorded as survivors are broken, {better} the "
                f"other way; rounding breaks at most {limit} (rate {100 * reattack.REPEATED:g}%, error {CHANCE:g})",
            )

    @property
    def proxies(self) -> dict[str, Network]:
        """The proxies of the transfer attacks that lie beside the record with their weights, on the device."""
        if self._proxies is None:
            self._proxies = {}
            for name, train_id in self.judged["proxies"].items():
                near = beside(self.record, train_id)
                if near is not None:
                    try:
                        network = networks.network_of(near, self.dataset, self.data_dir)
                    except UserError:
                        continue
                    self._proxies[name] = network.to(self.device)
        return self._proxies

    def _survivors(self, count: int) -> Iterator[Finding]:
        assert self.evaluator is not None
        for name, metric in self.record.metrics.items():
            if name == "clean":
                continue
            what = f"{name} survivors"
            if missing := reattack.needed([name]) - self.proxies.keys():
                yield Finding(what, NOT_SHOWN, f"the proxy '{missing.pop()}' is not beside the record with its weights")
                continue
            right = torch.tensor([value is True or value == 1 for value in self.table[name].fillna(False)])
            found = reattack.Anew(
                self.network,
                self.dataset.test,
                self._threat(),
                self.evaluator,
                self._settings(),
                metric.n,
                self.proxies,
                self.asked.seed,
            ).of(name, right, count)
            answer = FOLLOWS if found.tells else NOT_SHOWN
            yield Finding(what, answer if found.holds else CONTRADICTS, str(found))


def rounding(stated: Tensor, found: Tensor, unclear: Tensor) -> tuple[str, str]:
    """What is wrong with verdicts (n,) that float32 leaves open, if they are too many, and what to say of them.

    Only where it is unclear may the stated verdict be another than the one found; honest records have at most as many
    such images as a binomial limit at `anew.HONEST` allows.
    """
    differ = stated != found
    if (clear := differ & ~unclear).any():
        return f"{int(clear.sum())} differ, the first at image {int(clear.nonzero()[0])}", ""
    limit, other = most(len(stated), reattack.HONEST), int(differ.sum())
    if other > limit:
        return f"{other} differ within float32's rounding, of which honest records have at most {limit}", ""
    if not unclear.any():
        return "", ""
    return "", f"; {int(unclear.sum())} lie within float32's rounding, {other} of them decided otherwise here"


def _brief(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
