"""`adbench golden`: values that published code computed, replayed through the code that trains here.

A reference file holds inputs (logits, images, noise, weights of small networks) and what the authors' code made of
them. `golden.toml` names the method of each entry and says what the entry's values are called here. One replay serves
all of them: it fills a `Step`, runs the plugin's own `attack` and `loss` on real modules, in float64 on the CPU, and
compares; whole iterations are the trainer's own.
"""

from __future__ import annotations

import inspect
import itertools
import json
import re
import tomllib
from collections.abc import Iterator
from contextlib import nullcontext
from fnmatch import fnmatchcase
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from adbench import losses
from adbench.attacks.linf import Recorded
from adbench.data import Dataset, Split, Threat, parse_fraction
from adbench.errors import UserError
from adbench.experiment.config import Train
from adbench.models import Network
from adbench.plugins import golden_training
from adbench.plugins.reference import Node, Result, Toy, tensor
from adbench.registry import METHODS
from adbench.system import files
from adbench.training.configured import configured
from adbench.training.step import Ball, Need
from adbench.training.trainer import Trainer

FILE = Path(__file__).with_name("golden.json")
TRAINING = FILE.with_name("golden_training.json")
LATER = FILE.with_name("golden_later.json")
ITERATIONS = FILE.with_name("golden_iterations.json")
FILES = (FILE, ITERATIONS, LATER, TRAINING)
"""The values that adbench comes with: of the paper's ten methods, of whole iterations of theirs, of other methods, of
trainings; entries say whose code made them."""

RULES: dict[str, Any] = tomllib.loads(FILE.with_suffix(".toml").read_text(encoding="utf-8"))
EXACT = 1e-12
"""Largest absolute error of an adversarial example's pixels."""

ROLES = {Need.TEACHER: "teacher", Need.NATURAL_TEACHER: "nat_teacher"}
THREAT = Threat(Fraction(8, 255), Fraction(2, 255))

BALL = ("eps", "step", "steps")
NOISE = {"gauss": "noise_gauss", "unit": "noise_unit", "choice": "choice_u"}
FUNCTIONS: dict[str, Any] = {
    **{name: function for name, function in vars(losses).items() if inspect.isfunction(function)},
    **{name: getattr(torch, name) for name in ("add", "amax", "mean", "mul", "neg", "square", "sub", "sum")},
    "distance": lambda x, y: (x - y).abs().amax(dim=(1, 2, 3)),
    "integers": Tensor.long,
    "batch": lambda values: values[None],
    "item": lambda values, i: values[i],
    "by_index": lambda values: {str(i): value for i, value in enumerate(values)},
    "weights": nn.Module.state_dict,
}
"""What a rule may call, besides the method and its networks."""


def read(path: Path) -> Node:
    """The reference file. Raises UserError unless it is JSON with a table at the top."""
    try:
        content = json.loads(files.user_text(path, "reference"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"reference '{path}' cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"reference '{path}' is not a JSON object with sections such as 'outer' and 'attacks'")
    return Node(content, "")


class LogitTable(Network):
    """A network of given logits (B, C), by where x lies: 0 stands for the images, 1 for x', -1 for x - (x' - x)."""

    def __init__(self, logits: dict[str, Tensor]) -> None:
        super().__init__(channels=1)
        self.logits = nn.ParameterDict({where: nn.Parameter(table) for where, table in logits.items()})
        self.size, self.classes = next(iter(logits.values())).shape

    @property
    def classifier(self) -> nn.Linear:
        return nn.Linear(1, self.classes, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self._at(part.flatten()[0].item()) for part in torch.split(x, self.size)]) + 0.0 * x.sum()

    def _at(self, x: float) -> Tensor:
        where = {0.0: "clean", 1.0: "adv"}.get(x, "minus" if x < 0 else "plus" if x < 1 else "far")
        if where not in self.logits:
            raise UserError(f"the reference gives no logits '{where}' of a network that the method runs there")
        logits: Tensor = self.logits[where]
        return logits


class Replay:
    """One entry of a file, through one method (or through none, for the losses that all share)."""

    def __init__(self, file: Node, entry: Node, rule: dict[str, Any], method: str, result: Result) -> None:
        self.file, self.entry, self.rule, self.result = file, entry, rule, result
        given = dict(entry.get("params", entry.get("config", {})))
        given |= {key: entry[key] for key in rule.get("params", {}) if key in entry}
        tables = {key: table for key, table in given.items() if isinstance(table, dict)}
        given |= {f"{key}.{name}": value for key, table in tables.items() for name, value in table.items()}
        section, own = file.get(entry.path.partition(".")[0], {}), {key: entry[key] for key in BALL if key in entry}
        sections = {} if rule.get("shared") else section.get("inputs", {})
        inputs = file.get("attack_inputs", {}) | sections | file.get("inputs", {})
        settings = inputs | given | own | entry.get("attack", {}) | entry.get("recipe", {}) | rule.get("inputs", {})
        self.settings = Node(settings, "attack_inputs")
        if second := rule.get("second"):
            self._add_second(file[second]["inputs"])
        self.first = rule.get("first_epoch", 0)
        self.epoch = given.get("epoch", self.first) - self.first
        self.before = settings.get("first_step_index", given.get(rule.get("iteration", ""), 0))
        """Iterations before the entry's first."""
        usual = rule.get("of_epochs", 200)
        self.epochs = settings.get("epochs", max(usual, self.epoch + 1, given.get("begin", 0)))
        self.names: dict[str, Any] = FUNCTIONS | {"file": file, "entry": entry}
        for name, key in rule.get("variables", {}).items():
            self.names[name] = [tensor(row).requires_grad_() for row in entry[key]]
        self.logits: dict[str, Tensor] = {}
        self.networks = Node({}, "networks")
        if "logits" in entry:
            self._add_tables(file["logit_sets"][entry["logits"]])
        elif method and not {"loss", "cases"} & rule.keys():
            self._add_toys(file["nets"])
        self.method: Any = configured(method, self._hyper(given)) if method else None
        self.names["method"] = self.method

    def _add_second(self, second: Node) -> None:
        """Images, labels and noise of a second iteration, in the form of batches and draws."""
        size = len(self.settings["labels"])
        for key in ("x_uint8", "labels"):
            self.settings[key] = [*self.settings[key], *second[f"{key}_second"]]
        for key in NOISE.values():
            if key in self.settings and f"{key}_second" in second:
                self.settings[key] = [self.settings[key], second[f"{key}_second"]]
        self.settings["batches"] = [list(range(size)), list(range(size, len(self.settings["labels"])))]
        draws = [[[kind, i] for kind in ("gauss", "unit")] for i in range(2)]
        self.entry = Node(self.entry | {"batch": [0, 1], "draws": draws}, self.entry.path)

    def _hyper(self, given: dict[str, Any]) -> dict[str, Any]:
        """The entry's hyperparameters, under adbench's names and in its words."""
        hyper: dict[str, Any] = dict(self.rule.get("hyper", {}))
        if "train" in (self.settings.get("student_mode"), self.entry.get("bn_mode")):
            hyper["attack_bn"] = "train"
        for name, key in self.rule.get("policies", {}).items():
            hyper[name] = sorted({policy[key] for policy in self.entry["policies"]})
        for key, value in given.items():
            name = self.rule.get("params", {}).get(key, key)
            value = self.rule.get("words", {}).get(name, RULES["words"]).get(str(value), value)
            if name.endswith("_frac") and value >= 1:  # an epoch
                value /= self.epochs
            base, dot, inner = name.partition(".")
            if dot:
                hyper[f"{base}_hyper"] = hyper.get(f"{base}_hyper", {}) | {inner: value}
            elif name not in RULES["settings"]:
                hyper[name] = int(value) if isinstance(value, float) and value.is_integer() else value
        # What the default comes to by itself is left to the default.
        for name, (few, many) in self.rule.get("auto", {}).items():
            if hyper.get(name) == (few if self.names["student_adv"].shape[1] <= 10 else many):
                del hyper[name]
        return hyper

    def _add_tables(self, sets: Node) -> None:
        """Networks of given logits, whose parameters can be named."""
        self.logits = {k: tensor(values) for k, values in sets.items() if isinstance(values, list) and k != "labels"}
        for role, group in itertools.groupby(sorted(self.logits), lambda name: name.rpartition("_")[0]):
            self._add(role, LogitTable({name.rpartition("_")[2]: self.logits[name] for name in group}))
        self.names["y"] = torch.tensor(sets["labels"])
        self.settings |= {"x_uint8": [[[[0]]]] * len(sets["labels"]), "labels": sets["labels"]}
        self.settings |= {"eps": "8/255", "step": "2/255", "steps": 10}

    def _add(self, role: str, network: nn.Module) -> None:
        """A network by its role, and the logits of a table by theirs."""
        self.networks[role] = network
        if isinstance(network, LogitTable):
            self.names |= {f"{role}_{where}": parameter for where, parameter in network.logits.items()}

    def _add_toys(self, nets: Node) -> None:
        """The networks on images, by role: the entry's, and where it names none, the usual ones."""
        names = {key: value.partition("+")[0] for key, value in self.entry.items() if isinstance(value, str)}
        names = {"student" if key in ("model", "network") else key: name for key, name in names.items()}
        usual = {"student": self.rule.get("student", "student"), "teacher": "teacher"}
        usual["nat_teacher"] = "nat_teacher" if "nat_teacher" in nets else "teacher"
        for role, name in (usual | names | self.entry.get("nets", {}) | self.rule.get("nets", {})).items():
            if name in nets:
                self.networks[role] = Toy(nets[name])

    def _trainer(self) -> Trainer:
        """A trainer of the networks, whose method is set up and has the reference's networks for its own."""
        images = torch.tensor(self.settings["x_uint8"], dtype=torch.uint8)
        split = Split(images, torch.tensor(self.settings["labels"]))
        eps, size = (float(parse_fraction(str(self.settings[key]))) for key in ("eps", "step"))
        ball = Ball(eps, size, int(self.settings["steps"]))
        settings = ("momentum", "weight_decay", "nesterov")
        recipe = {key: self.settings[key] for key in settings if key in self.settings}
        recipe["decay"] = "kernels" if str(self.settings.get("decay_on")).startswith("kernels") else "all"
        trainer = Trainer(
            method=self.method,
            student=self.networks["student"],
            teachers={need: self.networks[role] for need, role in ROLES.items() if need in self.method.needed()},
            dataset=Dataset("", split, split, split, 0, (), THREAT, 0, False, "", (0, 0, 0)),
            attack=ball,
            validation=ball,
            config=Train(epochs=self.epochs, batch_size=max(2, len(split)), precision="float32", **recipe),
            seed=0,
            folder=Path(),
            device=torch.device("cpu"),
        )
        trainer.per_epoch = self.settings.get("iterations_per_epoch", trainer.per_epoch)
        trainer.set_up()
        known = self.settings | self.entry
        rule = self.rule.get("state", {})
        given = {name: known[key] for name, key in rule.items() if key in known}
        given |= {name: self.value(key).tolist() for name, key in rule.items() if "." in key}
        if given:
            self.method.load_state_dict(self.method.state_dict() | given)
        for attribute, role in self.rule.get("own", {}).items():
            if attribute in trainer.parts.modules:
                if self.networks[role] in (teacher.module for teacher in trainer.teachers.values()):
                    self._add(role, trainer.parts.modules[attribute])  # the method has copied it
                else:
                    _exchange(trainer, attribute, self.networks[role])
                continue
            setattr(self.method, attribute, self.networks[role])
            for part in (self.method.__pydantic_private__ or {}).values():
                if isinstance(part, torch.optim.Optimizer):
                    part.param_groups[0]["params"] = list(self.networks[role].parameters())
        return trainer

    def _noise(self) -> Recorded:
        """One draw of each kind for every call; with `draws`, those of the steps in their order."""
        pools = {kind: name for kind, name in NOISE.items() if name in self.settings}
        draws: dict[str, list[Tensor]] = {}
        for kind, i in itertools.chain(*self.entry.get("draws", ())):
            draws.setdefault(kind, []).append(tensor(self.settings[NOISE[kind]][i]))
        if "draws" not in self.entry:
            scale = 0 if self.rule.get("still") else 1
            draws = {kind: [scale * tensor(self.settings[name])] for kind, name in pools.items()}
        for name, key in self.rule.get("policies", {}).items():
            indices = [getattr(self.method, name).index(policy[key]) for policy in self.entry["policies"]]
            draws.setdefault("choice", []).append(torch.tensor(indices))
        return Recorded(draws)

    def value(self, expression: Any) -> Any:
        """What a name stands for, dots leading on from there, or the result of a call [function, argument, ...]."""
        if isinstance(expression, list):
            function, *arguments = map(self.value, expression)
            return function(*arguments)
        if not isinstance(expression, str):
            return expression
        name, *path = expression.split(".")
        value: Any = self.names[name]
        for part in path:
            value = value[part] if isinstance(value, dict) else getattr(value, part)
        if isinstance(value, str):  # a table, or the softmax of one, which ranks alike
            return self.names[value.removeprefix("softmax(").removesuffix(")")]
        return tensor(value) if isinstance(value, list) and not isinstance(value[0], Tensor) else value

    def run(self) -> None:
        """Compare all that the entry has, step by step. Raises UserError for what the file lacks."""
        epochs = [epoch | batch for epoch in self.entry.get("epochs", ()) for batch in epoch["batches"]]
        steps = self.entry.get("steps", self.entry.get("iterations", epochs))
        blocks = steps if steps and isinstance(steps, list) else [self.entry]
        trainer = self._trainer() if self.method and self.networks else None
        noise, rate = self._noise(), None
        rates = [block.get(self.rule.get("rate", "lr")) for block in blocks]
        if epochs:
            rates = [rates[0], *rates[:-1]]
        for number, block in enumerate(blocks):
            for name, logits in self.logits.items():
                self.names[name].data, self.names[name].grad = logits * block.get(f"scale_{name}", 1), None
            if trainer:
                if rate and rates[number] != rate:
                    self.method.on_lr_change(rates[number] / rate)
                rate = rates[number]
                epoch = block.get("epoch", self.epoch + self.first) - self.first
                trainer.epoch = self.entry.get("epoch_from_0", {number: epoch})[number]
                trainer.iteration = block.get(self.rule.get("iteration", ""), self.before + number) + 1
                self._iterate(trainer, block, noise)
            elif "loss" in self.rule:
                self._loss()
            if self.logits and "loss" not in block and "loss" not in self.rule:
                raise UserError(f"the reference's {self.entry.path} has no 'loss'")
            with torch.no_grad(), self.names["step"].still() if trainer else nullcontext():
                self._compare(block)

    def _iterate(self, trainer: Trainer, block: dict[str, Any], noise: Recorded) -> None:
        """One step: the examples and the loss there; the trainer's own where the file has what an update leaves."""
        batches, number = self.settings.get("batches"), trainer.iteration - self.before - 1
        index = torch.tensor(batches[self.entry["batch"][number]] if batches else range(len(trainer.source.labels)))
        crops = torch.zeros(3, len(index), dtype=torch.long)
        if "state_after" in block:
            for group in trainer.optimiser.param_groups:
                group["lr"] = block.get("lr", self.settings.get("lr", 0.1))
            self.names["loss"], (part,) = trainer.train_step(index, crops, noise)
            state = {name: trainer.optimiser.state[p] for name, p in trainer.student.named_parameters()}
            self.names["momentum"] = {name: values["momentum_buffer"] for name, values in state.items()}
            step, x_adv = part.step, part.x_adv
        else:
            step = trainer._step(index, crops, noise)
            self.names["ones"] = torch.ones_like(step.x)
            own = self.logits or "x_adv" in self.rule
            x_adv = self.value(self.rule.get("x_adv", "ones")) if own else self.method.attack(step)
        self.names |= {ROLES[need]: teacher for need, teacher in step.teachers.items()}
        self.names |= {"step": step, "x": step.x, "y": step.y, "x_adv": x_adv, "student": step.student}
        self.names["own"] = self.networks
        if "state_after" not in block and (self.logits or "loss" in block or "loss" in self.rule):
            self._loss()
        if "then" in self.rule:
            self.value(self.rule["then"])
        self.names["log"] = {name: values[-1] for name, values in step.logged.items()}
        self.names["state"] = self.method.state_dict()
        for key, scale, tolerance in (("x_adv", 1, EXACT), ("x_adv_255", 255, 1e-6)):
            if key in block:
                self.result.compare(key, scale * x_adv, block[key], tolerance)

    def _loss(self) -> None:
        """A loss and its gradients."""
        values: Tensor = self.value(self.rule.get("loss", ["method.loss", "step", "x_adv"]))
        values.mean().backward()  # type: ignore[no-untyped-call]
        parameters = self.networks["student"].named_parameters() if self.networks else ()
        self.names |= {
            "loss": values.mean(),
            "per_example": values,
            "gradients": {k: _gradient(p) for k, p in parameters},
        }

    def _compare(self, block: dict[str, Any]) -> None:
        """All else that the file has, by what the rules call it here. A value that no rule names is wrong, too."""
        rule = RULES["values"] | self.rule.get("values", {})
        unused = [
            *RULES["unused"],
            *self.rule.get("unused", ()),
            *self.rule.get("params", ()),
            self.rule.get("rate", ""),
        ]
        for key, part in block.items():
            inner = {f"{key}.{name}": value for name, value in part.items()} if isinstance(part, dict) else {}
            for name, expected in (inner if rule.keys() & inner else {key: part}).items():
                gradient = re.fullmatch(r"grad_(of_sum_wrt_)?(\w+)", name)
                if any(fnmatchcase(name, pattern) for pattern in unused):
                    continue
                if name in rule:
                    self.result.compare(name, self.value(rule[name]), expected)
                elif gradient and gradient[2] in self.names:
                    variable = self.names[gradient[2]]
                    pairs = (
                        zip(variable, expected, strict=True) if isinstance(variable, list) else [(variable, expected)]
                    )
                    for one, values in pairs:
                        scale = len(one) if gradient[1] else 1
                        self.result.compare(
                            name, scale * _gradient(one), (0 * one).tolist() if values is None else values
                        )
                else:
                    self.result.wrong.append(f"{name} is in no rule")


def _exchange(trainer: Trainer, name: str, network: nn.Module) -> None:
    """Put a network in the place of a method's part, which the student's optimiser trains."""
    old = set(map(id, trainer.parts.modules[name].parameters()))
    trainer.parts.modules[name] = network.train()
    places = [group for group in trainer.optimiser.param_groups if old & set(map(id, group["params"]))]
    for group, parameters in zip(places, [list(network.parameters())] + [[]] * len(places), strict=False):
        group["params"] = parameters


def _gradient(variable: Tensor) -> Tensor:
    return torch.zeros_like(variable) if variable.grad is None else variable.grad


def entries(content: Node) -> Iterator[Node]:
    """Everything in the file that has values of its own; inputs, texts, and tables of these have none."""
    for key, value in content.items():
        if isinstance(value, Node) and key not in RULES["inputs"]:
            if any(not isinstance(part, Node | str) for part in value.values()):
                yield value
            else:
                yield from entries(value)


def replay(content: Node, beginning: str = "") -> Iterator[Result]:
    """Every entry's outcome, in the file's order, of those whose name has the given beginning.

    Raises UserError for a file that is not of the format.
    """
    for entry in entries(content):
        if not entry.path.startswith(beginning):
            continue
        rule: dict[str, Any] = next(
            (rule for pattern, rule in RULES["entry"].items() if fnmatchcase(entry.path, pattern)), {}
        )
        rule = RULES["entry"][rule["like"]] | rule if "like" in rule else rule
        methods = rule.get("method", str(entry.get("method", "")))
        methods = [methods] if isinstance(methods, str) else methods
        result = Result(entry.path)
        absent = [f"method '{name}' is not installed" for name in methods if name and name not in METHODS]
        for name in () if absent else rule.get("needs", ()):
            if name not in METHODS.load(methods[0]).model_fields:
                absent.append(f"'{methods[0]}' has no hyperparameter '{name}'")
        result.skipped = rule.get("skip", "; ".join(absent))
        if not rule and methods == [""]:
            result.wrong.append("no rule says what it is about, and it names no method")
        for method in [] if result.skipped or result.wrong else methods:
            try:
                if "cases" in rule:
                    for case in entry[rule["cases"]]:
                        Replay(content, Node(entry | case, entry.path), rule, method, result).run()
                elif section := golden_training.replay_of(entry.path):
                    section(content, entry, rule, result)
                else:
                    Replay(content, entry, rule, method, result).run()
            except UserError as error:
                raise UserError(f"{entry.path}: {error}") from error
            except Exception as error:
                result.wrong.append(f"{type(error).__name__}: {error}")
        if not (result.compared or result.skipped or result.wrong):
            result.wrong.append("it has nothing to compare")
        yield result
