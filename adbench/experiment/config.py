"""An experiment as validated data: what is run, on what, for how long, and how it is judged.

Configuration is read from TOML (a preset, then a user's file, then `--set key=value`), in that order of
precedence, and refuses what it does not know. Nothing here imports torch.
"""

from __future__ import annotations

import difflib
import math
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from datetime import date, time
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from adbench.data.policies import in_order, policy, spelt
from adbench.data.threat import as_text, meant, meant_attack
from adbench.errors import UserError, is_text, unknown
from adbench.registry import members
from adbench.seeding import LARGEST
from adbench.system.files import user_text

M = TypeVar("M", bound=BaseModel)

DEEPEST = 20
"""So many tables and lists may stand in each other."""


class Section(BaseModel):
    """A part of the configuration: unknown keys are refused, values cannot be changed later."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def _fraction_text(value: Any) -> Any:
    if value is None:
        return None
    try:
        return as_text(meant(value))
    except UserError as error:
        # The form in which pydantic collects a problem with the others.
        raise ValueError(str(error)) from error


def _policy(text: str) -> str:
    try:
        return spelt(text)
    except UserError as error:
        raise ValueError(str(error)) from error


PolicyName = Annotated[str, AfterValidator(_policy)]
Policies = Annotated[tuple[PolicyName, ...], AfterValidator(in_order)]
AttackName = Annotated[str, AfterValidator(meant_attack)]
FractionText = Annotated[
    str | None,
    BeforeValidator(_fraction_text),
    WithJsonSchema({"anyOf": [{"type": "string", "format": "a size from 0 to 1, as 8/255"}, {"type": "null"}]}),
]


Point = tuple[Annotated[float, Field(ge=0, le=1)], Annotated[float, Field(ge=0)]]


class Train(Section):
    """How a network is trained. The defaults are the SmaraAD paper's recipe (Sec. 4.2), common to all methods."""

    epochs: int = Field(200, ge=1, le=1_000_000, description="passes over the training images")
    batch_size: int = Field(256, ge=2, le=1_000_000, description="images an update")
    lr: float = Field(0.1, gt=0, description="learning rate, before the schedule")
    optimiser: Literal["sgd", "adamw"] = Field("sgd", description="adamw takes momentum as its first beta")
    momentum: float = Field(0.9, ge=0, lt=1, description="of SGD")
    nesterov: bool = Field(False, description="Nesterov's momentum")
    weight_decay: float = Field(5e-4, ge=0, description="L2 penalty on the weights, as the optimiser has it")
    decay: Literal["all", "kernels"] = Field("all", description="what decays; kernels: no biases, no batch-norm")
    decay_norm: bool = Field(True, description="whether the weights and biases of batch-norm decay")
    bn_momentum: float | None = Field(
        None, gt=0, le=1, description="of batch-norm's statistics, 1 in the first iteration; none means the network's"
    )
    schedule: Literal["step", "cosine", "onecycle", "linear"] = Field(
        "step",
        description="step: lr drops at the milestones; onecycle: it rises from lr/25, then falls to lr/250000; linear: "
        "straight lines between points",
    )
    per: Literal["epoch", "iteration"] = Field("epoch", description="how often the schedule goes on")
    schedule_start: float = Field(0.0, ge=0, lt=1, description="share of the epochs before cosine begins")
    schedule_end: float = Field(1.0, gt=0, le=2, description="share of the epochs after which cosine is at 0")
    schedule_shift: int = Field(
        0, ge=-1_000_000, le=1_000_000, description="epochs or iterations (per) that cosine and linear are ahead"
    )
    cosine_damping: float = Field(0.0, ge=0, description="c of exp(-c u^2), which cosine is multiplied by; u: 0 to 1")
    points: tuple[Point, ...] = Field(
        (), description="linear: shares of the epochs, in order, and the share of lr there"
    )
    warmup: float = Field(0.0, ge=0, lt=1, description="share of the epochs in which lr rises")
    warmup_lr: float = Field(0.0, ge=0, description="where it rises from (onecycle: from lr/25)")
    lr_min: float = Field(0.0, ge=0, description="cosine does not fall below it")
    cycle_momentum: bool = Field(False, description="onecycle: momentum from 0.95 to 0.85 at the peak and back")
    milestones: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = Field(
        (0.575, 0.8, 0.925), description="shares of the epochs after which lr drops: 115, 160, 185 of 200"
    )
    lr_factor: float = Field(0.1, gt=0, le=1, description="what lr is multiplied by at a milestone")
    augment: Policies = Field(
        (),
        description="beyond crops and mirroring: cutout(SIDE), cutmix(ALPHA, P), mixup(ALPHA, P), autoaugment(TABLE), "
        "randaugment(N, M), idbh(VERSION)",
    )
    average: Literal["none", "swa", "ema"] = Field(
        "none", description="of the weights, judged in the student's place; swa: after epochs, ema: after updates"
    )
    average_start: float = Field(0.0, ge=0, le=1, description="share of the epochs after which it begins")
    average_decay: float = Field(0.995, ge=0, lt=1, description="ema: what the average keeps of itself in an update")
    average_warmup: float = Field(
        0.0, ge=0, lt=1, description="ema: share of the epochs in which it is the student; then its decay rises"
    )
    average_buffers: Literal["live", "averaged", "re-estimated", "re-estimated-by-batch"] | None = Field(
        None, description="its batch-norm statistics; none means re-estimated for swa, live (the student's) for ema"
    )
    awp: float = Field(0.0, ge=0, description="adversarial weight perturbation, in shares of a layer's norm; 0: none")
    awp_start: float = Field(0.0, ge=0, lt=1, description="share of the epochs before it begins")
    awp_form: Literal["original", "restore-first"] = Field(
        "original", description="restore-first: of all parameters, and weights are restored before the update (ADR)"
    )
    grad_clip: float | None = Field(None, gt=0, description="largest gradient norm; none by default")
    attack_steps: int = Field(10, ge=1, le=10_000, description="steps of the inner maximisation")
    attack_eps: FractionText = Field(None, description="its radius; none means the threat model's")
    attack_step: FractionText = Field(None, description="its step size; none means the threat model's, to scale")
    val_every: int = Field(1, ge=1, description="epochs between evaluations on the held-out split")
    val_steps: int = Field(10, ge=1, le=10_000, description="PGD steps of that evaluation")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="auto: the fast form, on a GPU with convolutions in TF32; float32: every layer as it is written",
    )
    micro_batch: int | None = Field(
        None, ge=2, description="images at a time, their gradients summed up over the batch; none means all"
    )
    init: str | None = Field(None, description="weights to begin with, FILE or FILE#KEY; none means random ones")
    init_sha256: str | None = Field(None, pattern="^[0-9a-f]{64}$", description="what the file's hash has to be")

    @model_validator(mode="before")
    @classmethod
    def _without_compile(cls, settings: Any) -> Any:
        """Settings written when there was `compile`, which was off by default, are read without it."""
        if isinstance(settings, dict) and settings.get("compile") is False:
            return {name: value for name, value in settings.items() if name != "compile"}
        return settings

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        if self.nesterov and (self.optimiser != "sgd" or not self.momentum):
            raise ValueError("nesterov is for sgd with momentum; leave it out, or set optimiser = sgd and momentum")
        if self.cycle_momentum and self.schedule != "onecycle":
            raise ValueError("cycle_momentum is for schedule = onecycle; leave it out, or set that")
        if self.schedule == "onecycle" and not self.warmup:
            raise ValueError("schedule = onecycle needs warmup, the share of the epochs in which lr rises, as 0.25")
        if self.schedule_end <= self.schedule_start:
            raise ValueError(f"schedule_end = {self.schedule_end:g} has to be above schedule_start")
        shares = [share for share, _ in self.points]
        if shares != sorted(shares):
            raise ValueError("points have to be in the order of their shares of the epochs")
        if self.schedule == "linear" and (not any(height for _, height in self.points) or self.warmup):
            raise ValueError("schedule = linear needs points, as [[0, 0], [0.4, 1], [1, 0]], and no warmup beside them")
        names = [policy(text).name for text in self.augment]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"augment has {twice[0]} twice; name each once")
        if self.lr_min > self.lr:
            raise ValueError(f"lr_min = {self.lr_min:g} is above lr = {self.lr:g}; lower it")
        return self

    @property
    def statistics(self) -> str:
        """Where the average's batch-norm statistics come from; "" for no average."""
        default = {"none": "", "swa": "re-estimated", "ema": "live"}[self.average]
        return (self.average_buffers or default) if default else ""

    @property
    def judged_from(self) -> int:
        """The first epoch, counted from 1, whose network may be chosen: a plain average begins late."""
        return max(1, round(self.average_start * self.epochs)) if self.average == "swa" else 1

    def drops(self) -> list[int]:
        """The epochs (counted from 0) before which the learning rate drops; a smooth schedule has none."""
        if self.schedule != "step":
            return []
        return sorted(round(share * self.epochs) for share in self.milestones)


class Data(Section):
    """How much of the dataset is used; none means all of it (and the dataset's own held-out split)."""

    train_images: int | None = Field(None, ge=2, description="training images; none means all that are not held out")
    val_images: int | None = Field(None, ge=1, description="held out of them; none means the dataset's own number")
    resize: int | None = Field(
        None, ge=4, le=4096, description="side that images are brought to: middle square, bilinear, antialiased"
    )
    extra: str | None = Field(None, description="a .npz of more training images: image (N, H, W, 3) and label (N,)")
    extra_share: float = Field(0.7, gt=0, lt=1, description="share of each batch that is drawn from them")


class ThreatModel(Section):
    """The L-infinity ball, as fractions of the image range ("8/255"); none means the dataset's own."""

    eps: FractionText = Field(None, description="radius of training and evaluation; none means the dataset's own")
    step: FractionText = Field(None, description="step of their attacks; none means the dataset's own, scaled with eps")


class Evaluation(Section):
    """How a finished network is judged, on test images that training never saw."""

    attacks: tuple[AttackName, ...] = Field(("fgsm", "pgd20", "cw", "aa"), description="adbench list attacks")
    images: int | None = Field(None, ge=1, description="test images, the first n; none means all")
    aa_images: int | None = Field(None, ge=1, description="of these, images for AutoAttack; none means all")
    proxies: tuple[str, ...] = Field((), description="teachers whose adversarial examples are transferred")
    transfer_attacks: tuple[AttackName, ...] = Field(("pgd20", "cw"), description="attacks on the proxies")
    step: FractionText = Field(None, description="of PGD and C&W; none means the threat model's")
    start: Literal["uniform", "gauss", "clean"] | None = Field(None, description="theirs; none means uniform")
    aa_search: Literal["exact", "fast"] = Field(
        "exact", description="exact: the authors' package in float32; fast: in bfloat16, decided in float32"
    )
    aa_shard: int = Field(200, ge=1, description="images that AutoAttack attacks, and finishes, at a time")
    masking: int = Field(0, ge=0, description="test images for the tests of gradient masking; 0: no tests")
    keep_adversarial: bool = Field(False, description="store the adversarial examples, for adbench verify")
    checkpoint: Literal["best", "last"] = Field("best", description="best on the held-out split, or last")
    batch_size: int = Field(250, ge=1, description="test images at a time; changes time and memory alone")
    seed: int = Field(0, ge=0, description="of the attacks' random starts")


class _Some(Train):
    """Some settings of a recipe, which have to agree only with the rest of it."""

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        return self


class Override(Section):
    """What some methods have of their own in a recipe, on some datasets or on all."""

    methods: tuple[str, ...] = Field(min_length=1)
    datasets: tuple[str, ...] = Field((), description="none means all")
    train: dict[str, Any] = Field({}, description="instead of the experiment's")
    hyper: dict[str, Any] = Field({}, description="instead of the method's defaults")

    @field_validator("train")
    @classmethod
    def _fits(cls, train: dict[str, Any]) -> dict[str, Any]:
        try:
            validated(_Some, train, "train")
        except UserError as error:
            raise ValueError(str(error).removeprefix("train: ")) from error
        return train


class Experiment(Section):
    """Everything that decides which cells there are and what each of them is."""

    datasets: tuple[str, ...] = Field(("digits",), min_length=1, description="adbench list datasets, or paths")
    teachers: tuple[str, ...] = Field((), description="none means the dataset's own")
    students: tuple[str, ...] = Field(("cnn-16",), min_length=1, description="architectures: adbench list students")
    methods: tuple[str, ...] = Field(("all",), min_length=1, description="adbench list methods; all: the paper's ten")
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field((0,), min_length=1, description="a student for each")
    train: Train = Train()
    data: Data = Data()
    threat: ThreatModel = ThreatModel()
    evaluation: Evaluation = Field(Evaluation(), alias="eval")
    hyper: dict[str, dict[str, Any]] = Field({}, description="hyperparameters by method")
    overrides: tuple[Override, ...] = Field((), alias="override", description="later ones win")
    budget: float | None = Field(
        None, gt=0, description="forward and backward passes an image of the training set; decides the epochs"
    )

    sweep: dict[str, Annotated[tuple[Any, ...], Field(min_length=1)]] = Field(
        {}, description="values by the key of their setting, of which each makes cells of its own"
    )

    model_config = ConfigDict(validate_by_name=True)


# The teacher and the preset that a dataset has when none is asked for.
DEFAULT_TEACHERS = {"digits": "digits-robust", "cifar10": "cifar10-wrn-34-10", "cifar100": "cifar100-wrn-34-10"}
DEFAULT_PRESETS = {"digits": "digits"}


def default_preset(settings: Mapping[str, Any]) -> str:
    """The preset of the first dataset that (unvalidated) settings ask for."""
    datasets = settings.get("datasets", ("digits",))
    first = datasets[0] if isinstance(datasets, list | tuple) and datasets else None
    return DEFAULT_PRESETS.get(str(first), "paper")


def presets() -> dict[str, str]:
    """The presets' names and what each is for (the comment that its file begins with)."""
    summaries = {}
    for file in files("adbench.experiment.presets").iterdir():
        if file.name.endswith(".toml"):
            first = file.read_text(encoding="utf-8").partition("\n")[0]
            summaries[file.name.removesuffix(".toml")] = first.lstrip("# ")
    return dict(sorted(summaries.items()))


def read_preset(name: str) -> dict[str, Any]:
    """The settings of a preset, on top of those of the one that it `extends`. Raises UserError for an unknown name."""
    if name not in presets():
        raise unknown("preset", name, presets())
    settings = tomllib.loads((files("adbench.experiment.presets") / f"{name}.toml").read_text(encoding="utf-8"))
    base = settings.pop("extends", None)
    return layered(read_preset(base), settings) if base else settings


def read_toml(path: Path) -> dict[str, Any]:
    """A user's TOML file. Raises UserError when it is missing or not TOML."""
    text = user_text(path, "configuration")
    try:
        return tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise UserError(f"configuration '{path}' is not valid TOML: {error}") from error


def parse_setting(text: str) -> dict[str, Any]:
    """`train.epochs=10` as nested settings. The value is TOML where it is valid TOML, else a string."""
    key, equals, value = text.partition("=")
    parts = [part.strip() for part in key.split(".")]
    if not equals or not all(parts):
        raise UserError(f"--set {text}: write key=value, as in --set train.epochs=10")
    try:
        parsed: Any = tomllib.loads(f"value = {value}")["value"]
    except ValueError:  # no TOML, or a number of thousands of digits
        parsed = value
    except RecursionError as error:
        raise UserError(f"--set {key}: its lists stand in each other more than {DEEPEST} deep") from error
    for part in reversed(parts):
        parsed = {part: parsed}
    result: dict[str, Any] = parsed
    return result


def merged(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with later layers winning, table by table."""
    result: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            both = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
            result[key] = merged(result[key], value) if both else value
    return result


def is_set(settings: Mapping[str, Any], key: str) -> bool:
    """Whether settings have a value under a key such as "train.epochs"."""
    value: Any = settings
    for part in key.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return False
        value = value[part]
    return True


def layered(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of several layers (presets, a file, the command line), each winning over those before it.

    An [[override]] wins over the rest of its own layer, its budget too, and yields to what a later layer sets for all
    methods; so do a budget and `train.epochs` to each other. Raises UserError for a layer that sets both of these.
    """
    settings: dict[str, Any] = {}
    rules: list[dict[str, Any]] = []
    for layer in layers:
        train, added = _table(layer, "train"), layer.get("override", [])
        if "budget" in layer and "epochs" in train:
            raise UserError("configuration: budget and train.epochs are both set; one decides the other")
        if "epochs" in train:
            settings.pop("budget", None)
        decided = {*train, *(("epochs",) if "budget" in layer else ())}
        rules = [rule | {"train": _without(_table(rule, "train"), decided)} for rule in rules]
        if isinstance(added, list) and all(isinstance(rule, Mapping) for rule in added):
            for number, rule in enumerate(added, 1):
                # One by one, so that a complaint counts as the user does.
                validated(Override, rule, f"[[override]] number {number}")
            # Hyperparameters of earlier layers and of this one come before these overrides, as overrides themselves.
            named = members(method for rule in added for method in rule["methods"])
            layer = {key: value for key, value in layer.items() if key != "override"}
            for table in (settings, layer):
                hyper = _table(table, "hyper")
                if before := {method: hyper[method] for method in named if method in hyper}:
                    rules += [{"methods": [method], "hyper": own} for method, own in before.items()]
                    table["hyper"] = _without(hyper, before)
            rules += added
        settings = merged(settings, layer)
    return settings if "override" in settings else settings | {"override": rules}


def _table(settings: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """The table under `key`, an empty one where there is none (or something else, which is refused later)."""
    table = settings.get(key)
    return table if isinstance(table, Mapping) else {}


def _without(table: Mapping[str, Any], keys: Iterable[str]) -> dict[str, Any]:
    return {key: value for key, value in table.items() if key not in keys}


def experiment(settings: Mapping[str, Any]) -> Experiment:
    """The validated experiment. Raises UserError that lists every problem at once."""
    return validated(Experiment, settings, "configuration")


def validated(model: type[M], settings: Mapping[str, Any], where: str) -> M:
    """`model` filled from `settings`. Raises UserError that names `where` and every problem at once."""
    if unfit := list(_unfit(settings)):
        raise UserError(f"{where}: " + "; ".join(unfit))
    try:
        return model.model_validate(dict(settings))
    except ValidationError as error:
        raise UserError(f"{where}: " + "; ".join(_problems(error, model))) from error


def _unfit(value: Any, key: str = "", depth: int = 0) -> Iterator[str]:
    """What no setting may be, wherever it stands: records could not hold it, or no computation could take it."""
    if isinstance(value, Mapping | list | tuple):
        if depth == DEEPEST:
            yield f"{key}: tables and lists stand in each other more than {DEEPEST} deep"
            return
        for part, inner in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from _unfit(inner, f"{key}.{part}".lstrip("."), depth + 1)
    elif isinstance(value, float) and not math.isfinite(value):
        yield f"{key} = {value}: give a finite number"
    elif isinstance(value, int) and abs(value) > LARGEST:
        yield f"{key} is beyond {LARGEST}: give a smaller number"
    elif isinstance(value, str) and not is_text(value):
        yield f"{key} = {value!r}: it is not text"
    elif isinstance(value, date | time):
        yield f"{key} = {value}: it is a date or a time, which no setting is; write a text in quotes"


def _problems(error: ValidationError, model: type[BaseModel]) -> Iterable[str]:
    for problem in error.errors():
        parts, known = _written(model, problem["loc"])
        key = ".".join(parts)
        if problem["type"] == "extra_forbidden":
            near = settings_called(parts[0], model) if len(parts) == 1 else []
            near = near or difflib.get_close_matches(parts[-1], known, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"known are {', '.join(known)}"
            yield f"unknown key '{key}'; {hint}"
        elif problem["type"] == "missing":
            yield f"'{key}' is missing"
        else:
            cause = problem.get("ctx", {}).get("error")
            message = str(cause) if isinstance(cause, ValueError) else problem["msg"].replace("tuple", "list")
            yield f"{key} = {problem['input']!r}: {message[0].lower()}{message[1:]}"


def _written(model: type[BaseModel], location: tuple[int | str, ...]) -> tuple[list[str], list[str]]:
    """A problem's key as the user wrote it, part by part, and the keys that are known in its last table.

    Pydantic's location of a problem also says which member of a union was meant, by its tag.
    """
    parts: list[str] = []
    tables, known = [model], sorted(_fields(model))
    for part in map(str, location):
        if len(tables) > 1:
            tables = [t for t in tables if any(part in get_args(f.annotation) for f in t.model_fields.values())]
        else:
            parts.append(part)
            inner = _fields(tables[0]).get(part) if tables else None
            tables = [t for t in get_args(inner) or (inner,) if isinstance(t, type) and issubclass(t, BaseModel)]
        if len(tables) == 1:
            known = sorted(_fields(tables[0]))
    return parts, known


def settings_called(name: str, model: type[BaseModel] = Experiment) -> list[str]:
    """The settings of this name in the tables of an experiment, each as `--set` takes it: eps is threat.eps."""
    tables = {key: kind for key, kind in _fields(model).items() if isinstance(kind, type)}
    return [f"{key}.{name}" for key, kind in tables.items() if issubclass(kind, BaseModel) and name in _fields(kind)]


def _fields(model: type[BaseModel]) -> dict[str, Any]:
    """Types of a table's values by the keys that a user writes."""
    return {field.alias or name: field.annotation for name, field in model.model_fields.items()}
