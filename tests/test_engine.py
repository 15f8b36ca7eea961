"""How networks are run: the lean form equals the network, and what a training does with it."""

from __future__ import annotations

import copy
import dataclasses
import platform
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from test_train import Broken, run, trainer
from torch import Tensor, nn

from adbench.attacks.linf import Start, start_point
from adbench.errors import UserError
from adbench.execution.expand import expand
from adbench.experiment.cell import Cell
from adbench.experiment.config import experiment
from adbench.losses import kl
from adbench.models import build
from adbench.models.flops import multiply_adds
from adbench.models.precision import AS_WRITTEN, Lean, Precision
from adbench.training.configured import configured
from adbench.training.nonfinite import Watch
from adbench.training.step import Mode, Need, Net, Teacher
from adbench.weights import checkpoint
from adbench.weights.networks import lookup

FAST = Precision("float32", lean=True)
HALF = Precision("bfloat16", lean=True)


def used(name: str, dtype: torch.dtype = torch.float64) -> Any:
    """A network whose batch-norm statistics are not those of an untrained one."""
    torch.manual_seed(0)
    network = build(name, classes=10, channels=3, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.2)).to(dtype)
    for _ in range(3):
        network(torch.rand(16, 3, 16, 16, dtype=dtype))
    return network


def outputs(network: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, the last map, and the input's gradient of a function of both."""
    z = x.clone().requires_grad_()
    logits, maps = network.forward_features(z)
    (gradient,) = torch.autograd.grad((logits.square().sum() + maps.sin().sum()), z)
    return logits.detach(), maps.detach(), gradient


KEPT = """
import resource, torch
import adbench.models.precision
from adbench.system.machine import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        torch.ones(1 << 24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
before, kept = faults(), keep_freed_memory()
for _ in range(3):  # the heap grows to what is needed
    faults()
print(before, kept, min(faults() for _ in range(3)))
"""


@pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc" or platform.libc_ver()[1] < "2.35",
    reason="blocks of this size are kept by glibc 2.35 or newer",
)
def test_what_is_freed_is_kept_and_costs_no_page_faults_when_it_is_allocated_again() -> None:
    ran = subprocess.run([sys.executable, "-c", KEPT], capture_output=True, text=True, check=True)
    before, kept, after = ran.stdout.split()
    assert kept == "True"
    assert int(before) > 100 * max(1, int(after)), "64 MiB five times over: 80,000 pages, or none"


@pytest.mark.parametrize(("name", "folded"), [("rn18", 20), ("mn-v2", 57), ("wrn-10-2", 4), ("cnn-16", 3)])
def test_the_lean_form_is_the_network_in_evaluation_mode(name: str, folded: int) -> None:
    network = used(name)
    lean = Lean(network, FAST)
    assert len(lean._folded) == folded
    x = torch.rand(3, 3, 16, 16, dtype=torch.float64)
    network.eval().requires_grad_(False)
    for mine, theirs in zip(outputs(lean, x), outputs(network, x), strict=True):
        assert mine.dtype == torch.float64
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)
    assert torch.equal(lean(x), lean.forward_features(x)[0])


def test_the_lean_form_takes_over_weights_and_statistics_and_leaves_the_network_alone() -> None:
    network = used("rn18")
    lean = Lean(network, FAST)
    optimiser = torch.optim.SGD(network.parameters(), 0.1)
    x = torch.rand(4, 3, 16, 16, dtype=torch.float64)
    network(x).square().sum().backward()
    optimiser.step()
    before = copy.deepcopy(network.state_dict())
    lean.refresh()
    assert network.training
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert all(p.requires_grad for p in network.parameters())
    torch.testing.assert_close(lean(x), network.eval()(x), rtol=1e-10, atol=1e-12)


def test_a_batch_goes_through_a_cpu_in_parts_and_comes_out_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    lean, x = Lean(used("cnn-16"), FAST), torch.rand(7, 3, 16, 16, dtype=torch.float64)
    whole = outputs(lean, x)
    monkeypatch.setattr("adbench.models.precision.PART", 3)
    for mine, theirs in zip(outputs(lean, x), whole, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)


class Branching(nn.Module):
    """A forward pass that cannot be traced, and a batch-norm whose input somebody else sees."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 5)
        self.values = True

    def forward(self, x: Tensor) -> Tensor:
        if self.values and x.sum() < 0:
            return self.head(x.new_zeros(len(x), 4))
        maps = self.conv(x)
        return self.head((maps + self.norm(maps)).mean(dim=(2, 3)))


class Tied(nn.Module):
    """Tensors under several names, as third parties' networks have them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))
        self.norms = nn.ModuleList(nn.BatchNorm2d(3) for _ in range(3))
        self.second.weight = self.first.weight  # tied weights, each before a batch-norm of its own
        self.norms[1].running_mean = self.norms[0].running_mean  # a tied buffer
        self.again = self.third  # a module under two names
        self.shift = torch.tensor([0.1, 0.2, 0.3])[:, None, None]  # a tensor that is nobody's buffer
        self.scaled = nn.Conv2d(3, 4, 3)
        self.scaled.register_forward_hook(lambda *call: 2 * call[2])  # what a hook makes of an output
        self.last = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norms[0](self.first(x - self.shift)) + self.norms[1](self.second(x))
        x = self.norms[2](self.again(x)) + nn.functional.conv2d(x, self.third.weight, padding=1)
        return self.last(self.scaled(x * torch.tensor(2.0))).mean(dim=(2, 3))


def test_tensors_under_several_names_stay_what_they_are_in_the_lean_form() -> None:
    torch.manual_seed(0)
    network = Tied()
    lean = None
    for _ in range(2):
        network.train()
        network(torch.rand(8, 3, 6, 6))
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.mul_(1.5)
        network.eval()
        if lean is None:
            lean = Lean(network, FAST)
        else:
            lean.refresh()
        x = torch.rand(5, 3, 6, 6)
        torch.testing.assert_close(lean(x), network(x), rtol=1e-4, atol=1e-5)
    assert network.first.weight is network.second.weight


@pytest.mark.parametrize("values", [True, False])
def test_what_cannot_be_folded_runs_as_it_is(values: bool) -> None:
    network = Branching()
    network.values = values
    network(torch.rand(8, 3, 6, 6))
    lean = Lean(network, FAST)
    assert lean._folded == []
    x = torch.rand(2, 3, 6, 6)
    torch.testing.assert_close(lean(x), network.eval()(x))
    with torch.no_grad():
        network.head.bias.add_(1)
    lean.refresh()
    torch.testing.assert_close(lean(x), network(x))


@pytest.mark.parametrize("name", ["rn18", "mn-v2", "wrn-10-2", "cnn-16"])
def test_half_precision_is_for_convolutions_and_the_classifier_and_outputs_are_single(name: str) -> None:
    network = used(name, torch.float32)
    lean = Lean(network, HALF)
    kinds = {type(m): {p.dtype for p in m.parameters(recurse=False)} for m in lean.modules()}
    assert kinds[nn.Conv2d] == {torch.bfloat16}
    assert nn.Linear not in kinds
    assert {p.dtype for m in lean.modules() if isinstance(m, nn.Linear) for p in m.parameters()} == {torch.float32}
    x = torch.rand(2, 3, 16, 16)
    logits, maps, _ = outputs(lean, x)
    assert logits.dtype == maps.dtype == torch.float32
    exact = outputs(network.eval().requires_grad_(False), x)[0]
    assert 0 < (logits - exact).abs().max() < 0.02 * exact.abs().max()


def test_a_net_is_lean_only_while_it_is_held_still_and_remembers_nothing_of_it() -> None:
    network = used("cnn-16", torch.float32).train()
    net, x = Net(network, FAST), torch.rand(5, 3, 16, 16)
    as_written = copy.deepcopy(network)
    with net.still():
        assert not network.training
        assert not any(p.requires_grad for p in network.parameters())
        torch.testing.assert_close(net(x), as_written.eval()(x), rtol=1e-4, atol=1e-5)
    assert network.training
    assert torch.equal(net(x), as_written.train()(x))
    with net.still(Mode.TRAIN):
        assert torch.equal(net(x), as_written(x))


def test_exact_is_single_precision_whatever_the_precision() -> None:
    network = used("cnn-16", torch.float32).eval()
    net, x = Net(network, HALF), torch.rand(5, 3, 16, 16)
    with net.still():
        half = net(x)
        with net.still(exact=True):
            assert torch.equal(net(x), network(x))
        assert torch.equal(net(x), half)
        assert not torch.equal(half, network(x))


def test_a_teacher_remembers_a_batch_and_lets_the_gradient_through_in_the_lean_form_too() -> None:
    network = used("wrn-10-2", torch.float32)
    teacher, x = Teacher(network, FAST), torch.rand(2, 3, 16, 16)
    assert teacher(x) is teacher(x)
    torch.testing.assert_close(teacher.features(x)[1], network.forward_features(x)[1], rtol=1e-4, atol=1e-5)
    z = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(teacher(z).sum(), z)
    assert gradient.abs().sum() > 0
    assert all(p.grad is None for p in network.parameters())
    teacher.run_in(AS_WRITTEN)
    teacher.forget()
    assert torch.equal(teacher(x), network(x))


def test_trades_first_gradient_is_lost_in_half_precision_and_taken_in_single() -> None:
    """Signs of the first step against float64's: the reason for `exact_first`."""
    network = used("wrn-10-2", torch.float32)
    x = torch.rand(8, 3, 16, 16)
    begun = start_point(x, Start.GAUSS, 0.03, torch.Generator().manual_seed(0))

    def signs(net: Net, *, exact: bool, dtype: torch.dtype = torch.float32) -> Tensor:
        with net.still(exact=exact):
            clean = net(x.to(dtype)).detach()
            z = begun.to(dtype).requires_grad_()
            return torch.autograd.grad(kl(net(z), clean).sum(), z)[0].sign()

    true = signs(Net(copy.deepcopy(network).double()), exact=False, dtype=torch.float64)
    half, exact = (signs(Net(network, HALF), exact=exact) for exact in (False, True))
    assert (exact == true).double().mean() > 0.995
    assert (half == true).double().mean() < 0.95


@pytest.mark.parametrize(
    ("asked", "name", "place", "expected"),
    [
        ("float32", "wrn-10-2", "cpu", AS_WRITTEN),
        ("float32", "wrn-10-2", "cuda", AS_WRITTEN),
        ("auto", "wrn-10-2", "cpu", FAST),
        ("auto", "wrn-10-2", "cuda", Precision("tf32", lean=True)),
        ("auto", "cnn-16", "cpu", AS_WRITTEN),  # too small to gain
        ("auto", "cnn-16", "cuda", Precision("tf32")),
        ("bfloat16", "cnn-16", "cpu", HALF),
        ("bfloat16", "cnn-16", "cuda", HALF),
    ],
)
def test_the_precision_follows_from_what_is_asked_the_network_and_the_device(
    asked: str, name: str, place: str, expected: Precision
) -> None:
    network = build(name, classes=10)
    assert Precision.chosen(asked, network, (3, 32, 32), torch.device(place)) == expected
    assert network.training


def test_tf32_is_for_the_steps_of_a_training_alone(tmp_path: Path) -> None:
    """Not for what needs float32: TRADES' clean outputs and first step, and the verdicts of a validation."""
    it = trainer(tmp_path, configured("trades", {}), images=32, epochs=1)
    it.attack = it.validation = dataclasses.replace(it.attack, steps=3)
    it.precision = Precision("tf32")
    it.set_up()
    allowed: list[bool] = []
    conv = next(module for module in it.student.modules() if isinstance(module, torch.nn.Conv2d))
    conv.register_forward_hook(lambda *_: allowed.append(torch.backends.cudnn.allow_tf32))
    conv.weight.register_hook(lambda _: allowed.append(torch.backends.cudnn.allow_tf32))
    torch.backends.cudnn.allow_tf32 = False
    ((index, crops), *_) = it.batches()
    it.iterate(index, crops, torch.Generator().manual_seed(0), {})
    clean, first, *later = allowed
    assert (clean, first) == (False, False)
    assert later == [True] * 5  # two steps more, two passes of the loss, and its backward pass
    allowed.clear()
    it._validate()
    assert allowed == [True] * 3 + [False] * 2  # the search, and two verdicts
    assert not torch.backends.cudnn.allow_tf32


def test_multiply_adds_are_those_of_a_hand_count() -> None:
    by_hand = 64 * (9 * 3 * 4 + 9 * 4 * 8 / 4 + 9 * 8 * 8 / 4) + 8 * 10
    assert multiply_adds(build("cnn-4", classes=10), (3, 8, 8)) == by_hand


# In training


def fast(folder: Path, name: str = "pgd-at", **config: Any) -> Any:
    """A trainer of a small network in the fast form, which `auto` would not choose for it."""
    small: dict[str, Any] = {"policy": "cnn-4", "interval": 2} if name == "las-at" else {}
    it = trainer(folder, configured(name, small), **config)
    it.teachers = {need: Teacher(build("cnn-8", classes=10, channels=1)) for need in it.method.needed()}
    it.precision = Precision(config.get("precision", "float32"), lean=True)
    return it


@pytest.mark.parametrize("name", ["pgd-at", "trades", "adaad", "smaraad", "mtard", "las-at"])
def test_the_fast_form_trains_as_float32_does(tmp_path: Path, name: str) -> None:
    losses = []
    for number, lean in enumerate((False, True)):
        torch.manual_seed(0)
        it = fast(tmp_path / str(number), name, epochs=1, attack_steps=3)
        it.precision = Precision("float32", lean=lean)
        losses.append(run(it)[0]["loss"])
    assert losses[0] == pytest.approx(losses[1], rel=2e-3)


def test_a_training_pass_on_a_cpu_is_as_exact_as_float32_allows(tmp_path: Path) -> None:
    """Against float64. Where maps are channels last, torch's batch-norm loses two digits there in training mode."""
    it = fast(tmp_path)
    it.set_up()
    torch.manual_seed(0)
    x = torch.rand(256, 1, 32, 32)

    def error(network: Any) -> float:
        """The largest of the running statistics, each relative to the largest of its buffer."""
        wide = copy.deepcopy(network).double()
        network.train()(x)
        wide.train()(x.double())
        pairs = zip(network.named_buffers(), wide.buffers(), strict=True)
        return max(float((b - w).abs().max() / w.abs().max()) for (name, b), w in pairs if "running" in name)

    assert it.precision.lean
    assert error(copy.deepcopy(it.student).to(memory_format=torch.channels_last)) > 1e-6, "what would be noticed"
    assert error(it.student) < 3e-7


def test_training_in_half_precision_says_so_and_goes_on_in_it(tmp_path: Path) -> None:
    hashes = []
    for killed in (False, True):
        folder = tmp_path / str(killed)
        it = trainer(folder, precision="bfloat16", epochs=2)
        if killed:
            with pytest.raises(KeyboardInterrupt):
                it.run(stop, lambda *_: None)
            it = trainer(folder, epochs=2)  # where `auto` means float32
        summary = it.run(lambda _: None, lambda *_: None)
        assert summary.precision == "bfloat16"
        assert {p.dtype for p in it.student.parameters()} == {torch.float32}
        hashes.append(checkpoint.weights_sha256(it.student))
    assert hashes[0] == hashes[1]


def stop(_: Any) -> None:
    raise KeyboardInterrupt


def test_micro_batches_add_up_to_the_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without batch-norm's statistics, which are each part's own, the gradient is the batch's."""
    gradients = []
    for size in (None, 2, 3):
        it = trainer(tmp_path, configured("natural", {}), images=8, batch_size=8, micro_batch=size)
        it.student.eval()
        monkeypatch.setattr(it.student, "train", lambda *_: None)
        it.set_up()
        ((index, crops),) = it.batches()
        _, parts = it.train_step(index, crops, torch.Generator())
        assert [len(p.loss) for p in parts] == {None: [8], 2: [2] * 4, 3: [3, 3, 2]}[size]
        gradients.append(torch.cat([p.grad.flatten() for p in it.student.parameters() if p.grad is not None]))
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(gradients[0], gradients[2], rtol=1e-4, atol=1e-6)


class OutOfMemory:
    """Lets batches above a size fail, as a full GPU does."""

    def __init__(self, it: Any, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen: list[Tensor] = []
        loss = type(it.method).loss

        def limited(method: Any, step: Any, x_adv: Tensor) -> Tensor:
            if len(x_adv) > most:
                self.seen.append(x_adv)
                raise torch.OutOfMemoryError("CUDA out of memory")
            return loss(method, step, x_adv)

        monkeypatch.setattr(type(it.method), "loss", limited)


def test_out_of_memory_halves_the_micro_batch_and_keeps_the_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    it = trainer(tmp_path, images=64, epochs=1)
    OutOfMemory(it, 8, monkeypatch)
    entries: list[dict[str, Any]] = []
    summary = it.run(entries.append, lambda *_: None)
    assert it.iteration == 2, "two batches of 32"
    assert summary.micro_batch == entries[0]["micro_batch"] == 8
    assert [r.message for r in caplog.records] == [
        f"out of memory: micro-batches of {n} from epoch 1 on" for n in (16, 8)
    ]


def test_what_a_pass_without_enough_memory_held_is_free_before_memory_is_given_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its examples, its graph and its teacher's outputs: else the device stays as full as it was."""
    it = trainer(tmp_path, configured("rslad", {}), images=64, epochs=1)
    it.teachers = {Need.TEACHER: Teacher(build("cnn-4", classes=10, channels=1))}
    held: list[weakref.ref[Tensor]] = []
    alive: list[list[bool]] = []
    loss = type(it.method).loss

    def limited(method: Any, step: Any, x_adv: Tensor) -> Tensor:
        graph = loss(method, step, x_adv)
        if len(x_adv) > 16:
            held.extend(weakref.ref(tensor) for tensor in (x_adv, graph, step.teacher(step.x)))
            raise torch.OutOfMemoryError("CUDA out of memory")
        return graph

    monkeypatch.setattr(type(it.method), "loss", limited)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: alive.append([ref() is not None for ref in held]))
    run(it)
    assert alive == [[False] * 3]


def test_out_of_memory_ends_where_batches_cannot_be_divided(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, most, why in (("las-at", 8, "needs its batches whole"), ("pgd-at", 1, "one image at a time")):
        with monkeypatch.context() as patched:
            it = fast(tmp_path, name, images=64, epochs=1)
            OutOfMemory(it, most, patched)
            with pytest.raises(UserError, match=why):
                run(it)


def test_an_update_that_runs_out_of_memory_is_not_taken_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    it = trainer(tmp_path, images=64, epochs=1)
    taken = []

    def step() -> None:
        taken.append(it.iteration)
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(it.optimiser, "step", step)
    with pytest.raises(UserError, match=r"train\.batch_size"):
        run(it)
    assert taken == [1]


def test_what_a_gpu_is_not_asked_at_once_is_named_with_its_own_batch(tmp_path: Path) -> None:
    """The host looks every few iterations; weights and examples are those of the batch that failed."""
    it = trainer(tmp_path, Broken(how="one term"), images=320, batch_size=32, epochs=1)
    it.optimiser = torch.optim.SGD(it.student.parameters(), 0.1, momentum=0.9, fused=True)
    it.watch = Watch(it.optimiser, torch.device("cpu"), every=4)
    weights: list[Tensor] = []

    def note(*_: int) -> None:
        weights.append(torch.cat([p.detach().flatten() for p in it.student.parameters()]))

    with pytest.raises(UserError, match=r"iteration 3; not finite: terms: kl = nan; losses: 1 of 32"):
        it.run(lambda _: None, note)
    assert len(weights) == 3, "the host asked at the fourth iteration"
    note()
    assert not torch.equal(weights[0], weights[1])
    assert torch.equal(weights[1], weights[2]), "what fails changes nothing"
    assert torch.equal(weights[1], weights[3])
    saved = torch.load(tmp_path / "failure.pt", weights_only=True)
    assert saved["iteration"] == 3
    assert torch.isfinite(saved["loss"]).sum() == 31
    assert all(torch.isfinite(buffer).all() for buffer in saved["student"].values())


# Settings


def cell(**train: Any) -> Cell:
    (found,) = expand(experiment({"methods": ["mtard"], "train": train}), lookup(Path())).students
    return found


def test_settings_that_came_later_leave_a_cell_what_it_was_and_make_another_where_they_are_set() -> None:
    plain = cell()
    # What a recipe's identity was made of at first; all that came later is left out where it is unset.
    first = "epochs batch_size lr momentum weight_decay drops lr_factor grad_clip attack_steps attack_eps attack_step"
    assert plain.training["train"].keys() == {*first.split(), "val_every", "val_steps"}
    assert cell(precision="auto").train_id == plain.train_id
    assert len({c.train_id for c in (plain, cell(precision="float32"), cell(precision="bfloat16"))}) == 3


def test_micro_batches_are_refused_where_a_method_needs_its_batches_whole() -> None:
    with pytest.raises(UserError, match="micro_batch: 'mtard' needs its batches whole"):
        cell(micro_batch=16)


def test_a_record_says_in_which_precision_its_network_was_trained(tmp_path: Path) -> None:
    for number, words in enumerate(([], ["--precision", "float32"], ["--precision", "bfloat16"])):
        results = tmp_path / str(number)
        result = tiny.run("--methods", "pgd-at", "--results", results, *words)
        assert result.exit_code == 0, result.output
        record = tiny.record_of(results, "pgd-at")
        assert record["training"]["precision"] == ("bfloat16" if number == 2 else "float32")
        assert record["config"]["training"]["train"].get("precision") == [None, "float32", "bfloat16"][number]
