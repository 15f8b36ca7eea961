"""The kernel, the named attacks on it, and the adapter to AutoAttack."""

from __future__ import annotations

import re
from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest
import torch
from tiny import shorten_autoattack
from torch import Tensor, nn

from adbench.attacks import autoattack
from adbench.attacks.linf import Start, ascend, attacking
from adbench.attacks.named import gradient_attack, noise, radius
from adbench.data import Split, Threat
from adbench.errors import UserError
from adbench.evaluation.evaluator import Evaluator, evaluate
from adbench.losses import cross_entropy, margin
from adbench.models import build

EPS, STEP = Fraction(8, 255), Fraction(2, 255)


class Linear(nn.Module):
    """A linear classifier: the worst perturbation is known in closed form."""

    def __init__(self, classes: int = 4, side: int = 3) -> None:
        super().__init__()
        self.flat = nn.Linear(side * side, classes, dtype=torch.float64)
        with torch.no_grad():
            self.flat.weight.copy_(torch.randn(classes, side * side, generator=torch.Generator().manual_seed(3)))

    def forward(self, x: Tensor) -> Tensor:
        return self.flat(x.flatten(1))


@pytest.fixture
def x() -> Tensor:
    return torch.rand(6, 1, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(4))


@pytest.mark.parametrize("start", list(Start))
def test_examples_stay_in_the_ball_and_in_the_image_range(x: Tensor, start: Start) -> None:
    net = Linear()
    x[0], x[1] = 0, 1
    x_adv = ascend(
        x, lambda z: net(z)[:, 0], eps=0.1, step=0.07, steps=3, start=start, generator=torch.Generator().manual_seed(5)
    )
    assert ((x_adv - x).abs() <= 0.1 + 1e-12).all()
    assert (x_adv >= 0).all()
    assert (x_adv <= 1).all()
    assert not x_adv.requires_grad


def test_the_ascent_finds_the_optimum_of_a_linear_objective(x: Tensor) -> None:
    net = Linear()
    x_adv = ascend(x, lambda z: net(z)[:, 0], eps=0.1, step=0.03, steps=10, start=Start.CLEAN)
    sign = net.flat.weight[0].sign().reshape(1, 1, 3, 3)
    torch.testing.assert_close(x_adv, (x + 0.1 * sign).clamp(0, 1))


@pytest.mark.parametrize(
    "name",
    [
        "pgd0",
        "pgd99999999999999999999",
        "pgd20x0",
        "pgd20@inf",
        "pgd20@nan",
        "pgd20@2",
        "pgd20@",
        "pgd20@0",
        "pgd20@1/0",
        "pgd20@-1/255",
        "pgd20@8/255@8/255",
        "@",
        "",
        "pgd020",
        "cw0",
        "pgd\u0663",
        "aa@4/255",
        "aa-plus@4/255",
    ],
)
def test_an_odd_name_is_refused_by_that_name(name: str) -> None:
    with pytest.raises(UserError, match=f"attack '{re.escape(name)}'"):
        gradient_attack(name, Fraction(8, 255), Fraction(2, 255))


def test_examples_with_their_own_radius_step_and_count_move_as_if_they_were_alone(x: Tensor) -> None:
    net = Linear()
    eps, step = torch.linspace(0.02, 0.2, 6), torch.linspace(0.01, 0.06, 6)
    steps = torch.tensor([0, 1, 2, 3, 5, 8])
    start = (x + 0.01).clamp(0, 1)

    def objective(z: Tensor) -> Tensor:
        return net(z).square().sum(1)

    together = ascend(x, objective, eps=eps, step=step, steps=steps, start=start)
    for i in range(6):
        alone = ascend(
            x[i : i + 1], objective, eps=eps[i].item(), step=step[i].item(), steps=int(steps[i]), start=start[i : i + 1]
        )
        torch.testing.assert_close(together[i : i + 1], alone, rtol=0, atol=1e-7)


def test_images_outside_the_range_are_refused_and_not_clipped_silently(x: Tensor) -> None:
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        ascend(x + 1, lambda z: z.sum(), eps=0.1, step=0.1, steps=1)


def test_the_gaussian_start_is_not_clamped_before_the_first_step() -> None:
    seen: list[Tensor] = []

    def objective(z: Tensor) -> Tensor:
        seen.append(z.detach().clone())
        return z.sum((1, 2, 3))

    x = torch.zeros(2, 1, 3, 3)
    for start, outside in ((Start.GAUSS, True), (Start.UNIFORM_UNCLAMPED, True), (Start.UNIFORM, False)):
        ascend(x, objective, eps=0.1, step=0.1, steps=1, start=start, generator=torch.Generator().manual_seed(0))
        assert bool((seen[-1] < 0).any()) is outside


def test_modes_and_flags_are_restored_even_when_the_attack_fails() -> None:
    net = build("cnn-4", classes=4, channels=1).train()

    def fail() -> None:
        with attacking(net):
            assert not any(m.training for m in net.modules())
            assert not any(p.requires_grad for p in net.parameters())
            raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        fail()
    assert all(m.training for m in net.modules())
    assert all(p.requires_grad for p in net.parameters())


def outcomes(net: nn.Module, split: Split, batch_size: int, *attacks: str) -> dict[str, Tensor]:
    evaluator = Evaluator(
        net,
        split,
        Threat(Fraction(30, 255), Fraction(8, 255)),
        seed=1,
        batch_size=batch_size,
        device=torch.device("cpu"),
    )  # type: ignore[arg-type]
    return {k: v.right for k, v in evaluate(evaluator, attacks).items()}


def test_verdicts_do_not_depend_on_batch_size_or_order(trained) -> None:
    net, split = trained
    whole = outcomes(net, split, 64, "fgsm", "pgd20", "cw")
    for size in (1, 7):
        for name, right in outcomes(net, split, size, "fgsm", "pgd20", "cw").items():
            assert torch.equal(right, whole[name]), (name, size)
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(7))
    attack = gradient_attack("pgd20", Fraction(30, 255), Fraction(8, 255))
    x = split.images.float() / 255
    straight = attack(net, x, split.labels, torch.arange(40), 1)
    shuffled = attack(net, x[order], split.labels[order], order, 1)
    torch.testing.assert_close(shuffled, straight[order], rtol=0, atol=1e-6)


def test_stronger_attacks_break_no_fewer_images_and_the_wrong_ones_count_as_broken(trained, monkeypatch) -> None:
    shorten_autoattack(monkeypatch, 20)
    net, split = trained
    found = outcomes(net, split, 64, "fgsm", "pgd20", "aa")
    share = {k: v.float().mean().item() for k, v in found.items()}
    assert 1 > share["clean"] >= share["fgsm"] >= share["pgd20"] >= share["aa"] > 0 or share["clean"] == 1
    assert share["aa"] < share["clean"]
    for right in found.values():
        assert not (right & ~found["clean"]).any()


def test_fgsm_is_one_full_step_from_the_image(trained) -> None:
    net, split = trained
    x = split.images.float() / 255
    z = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(cross_entropy(net(z), split.labels).sum(), z)
    expected = (x + 8 / 255 * gradient.sign()).clamp(0, 1)
    found = gradient_attack("fgsm", EPS, STEP)(net, x, split.labels, torch.arange(40), 0)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_every_attack_states_its_exact_definition() -> None:
    assert gradient_attack("pgd20", EPS, STEP).definition(3) == {
        "name": "pgd20",
        "implementation": "adbench 0.1.0",
        "loss": "cross-entropy",
        "eps": "8/255",
        "step": "2/255",
        "steps": 20,
        "start": "uniform",
        "restarts": 1,
        "seed": 3,
    }
    assert gradient_attack("cw", EPS, STEP).definition(0)["loss"] == "margin"
    with pytest.raises(UserError, match="did you mean 'pgd20'"):
        gradient_attack("pdg20", EPS, STEP)


def test_autoattack_gives_the_same_verdicts_as_the_package_called_plainly(trained, monkeypatch) -> None:
    import pyautoattack

    shorten_autoattack(monkeypatch, 30)
    net, split = trained
    x, y = split.images[:12].float() / 255, split.labels[:12]
    right = net(x).argmax(1) == y
    x, y = x[right], y[right]
    plain = pyautoattack.AutoAttack(net, norm="Linf", eps=32 / 255, seed=5, device="cpu")
    plain.apgd_targeted.n_target_classes = plain.fab.n_target_classes = 4  # five classes have four targets
    x_adv, _ = plain.run_standard_evaluation(x, y)
    expected = net(x_adv).argmax(1) == y
    state = torch.random.get_rng_state()
    found = autoattack.attack(net, x, y, Fraction(32, 255), seed=5)
    assert torch.equal(~found.broken, expected)
    assert torch.equal(found.x_adv, torch.where(expected[:, None, None, None], x, x_adv))
    assert not found.doubtful.any()
    assert 0 < expected.sum() < len(expected)
    assert torch.equal(torch.random.get_rng_state(), state), "the caller's random stream moved"


def test_autoattack_is_not_shortened(trained, monkeypatch) -> None:
    """The iterations and queries of the paper, and of each attack."""
    import pyautoattack

    ran = []

    def seen(self: Any, x: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Any]:
        counts = (self.apgd.n_iter, self.apgd_targeted.n_iter, self.fab.n_iter, self.square.n_queries)
        ran.append((counts, self.attacks_to_run, (self.apgd.n_restarts, self.square.n_restarts)))
        return x, None

    monkeypatch.setattr(pyautoattack.AutoAttack, "run_standard_evaluation", seen)
    net, split = trained
    autoattack.attack(net, split.images[:2].float() / 255, split.labels[:2], EPS, seed=0)
    assert ran == [((100, 100, 100, 5000), ["apgd-ce", "apgd-t", "fab-t", "square"], (1, 1))]


def test_autoattack_copes_with_no_image_and_with_one(trained, monkeypatch) -> None:
    shorten_autoattack(monkeypatch)
    net, split = trained
    x, y = split.images[:1].float() / 255, split.labels[:1]
    none = autoattack.attack(net, x[:0], y[:0], EPS, seed=0)
    assert none.broken.shape == (0,)
    assert none.flags == []
    one = autoattack.attack(net, x, net(x).argmax(1), Fraction(0), seed=0)
    assert one.broken.tolist() == [False]


class Noisy(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) + torch.randn(len(x), 1)


def test_autoattacks_warnings_become_flags_and_do_not_leak_into_the_next_model(trained, monkeypatch) -> None:
    shorten_autoattack(monkeypatch)
    net, split = trained
    x, y = split.images[:2].float() / 255, split.labels[:2]
    flags = autoattack.attack(Noisy(net), x, y, EPS, seed=0).flags
    assert any("randomized" in flag for flag in flags)
    flags = autoattack.attack(net, x, y, EPS, seed=0).flags
    assert not any("randomized" in flag or "dynamic" in flag for flag in flags)


def test_transfer_attacks_are_crafted_on_the_proxy(trained) -> None:
    net, split = trained
    torch.manual_seed(1)
    proxy = build("cnn-8", classes=5, channels=1).eval()
    evaluator = Evaluator(
        net, split, Threat(Fraction(30, 255), Fraction(8, 255)), seed=1, batch_size=64, device=torch.device("cpu")
    )  # type: ignore[arg-type]
    found = evaluate(evaluator, ("pgd20",), proxies={"other": proxy, "itself": net}, transfer_attacks=("pgd20",))  # type: ignore[dict-item]
    assert torch.equal(found["transfer:itself:pgd20"].right, found["pgd20"].right)
    assert found["transfer:other:pgd20"].right.sum() > found["pgd20"].right.sum()
    assert found["transfer:other:pgd20"].definition["proxy"] == "other"


def with_foolbox(net: nn.Module, x: Tensor, y: Tensor, name: str, start: Tensor) -> Tensor:
    """x' of FGSM, PGD-20 or C&W-20 by foolbox, from a given start."""
    import eagerpy
    import foolbox

    class Given(foolbox.attacks.LinfPGD):
        def get_random_start(self, x0: Any, epsilon: float) -> Any:
            return eagerpy.astensor(start)

        def get_loss_fn(self, model: Any, labels: Any) -> Any:
            def loss(inputs: Any) -> Any:
                values = (margin if name == "cw" else cross_entropy)(model(inputs).raw, labels.raw)
                return eagerpy.astensor(values).sum()

            return loss

    model = foolbox.PyTorchModel(net.eval(), bounds=(0, 1), device="cpu")
    if name == "fgsm":
        attack: Any = foolbox.attacks.LinfFastGradientAttack()
    else:
        attack = Given(abs_stepsize=float(STEP), steps=20, random_start=True)
    return attack.run(model, x, foolbox.criteria.Misclassification(y), epsilon=float(EPS))


@pytest.mark.cifar10
@pytest.mark.slow
def test_verdicts_on_the_teacher_are_foolboxs_and_its_accuracy_is_the_published(robust_teacher, cifar10_npz) -> None:
    """Image for image on 120, and near the README's figures for all 10,000: three standard errors of 500 images."""
    from adbench.data import load

    data = load(str(cifar10_npz), cifar10_npz.parent, test_images=500)
    net = robust_teacher
    evaluator = Evaluator(net, data.test, Threat(EPS, STEP), seed=0, batch_size=250, device=torch.device("cpu"))
    found = {"clean": evaluator.clean} | {
        name: evaluator.under(name, images) for name, images in {"fgsm": 500, "pgd20": 200, "cw": 200}.items()
    }
    for name, published in {"clean": 0.6787, "fgsm": 0.3961, "pgd20": 0.3497, "cw": 0.3323}.items():
        error = (published * (1 - published) / 500) ** 0.5
        assert abs(found[name].metric()["value"] - published) < 3 * error, name
    part = evaluator.right[:120].nonzero().squeeze(1)
    x, y = evaluator.x[part], evaluator.y[part]
    with attacking(net):
        for name in ("fgsm", "pgd20", "cw"):
            start = (x + float(EPS) * noise(x, part, 0, name)).clamp(0, 1)
            x_adv = with_foolbox(net, x, y, name, start)
            assert torch.equal(net(x_adv).argmax(1) == y, found[name].right[part]), name
            assert 20 < found[name].right[part].sum() < len(part) - 20


def test_verdicts_on_the_shared_teacher_are_those_of_every_batch_size_and_order(robust_teacher, cifar10_npz) -> None:
    from adbench.data import load

    test = load(str(cifar10_npz), cifar10_npz.parent, test_images=32).test
    net = robust_teacher
    order = torch.randperm(32, generator=torch.Generator().manual_seed(0))
    for name in ("fgsm", "pgd20", "cw"):
        found = []
        for batch_size in (256, 7, 1):
            judge = Evaluator(net, test, Threat(EPS, STEP), seed=0, batch_size=batch_size, device=torch.device("cpu"))
            found.append(judge.under(name, 32).right)
        judge.batch_size = 7
        shuffled = torch.empty(32, dtype=torch.bool)
        shuffled[order] = judge.under(name, order).right
        assert 5 < found[0].sum() < 20
        assert all(torch.equal(other, found[0]) for other in (*found[1:], shuffled)), name


def test_the_worst_of_several_restarts_counts_and_the_first_is_the_single_one(trained) -> None:
    net, split = trained
    found = outcomes(net, split, 16, "pgd2", "pgd2x2", "pgd2x6")
    assert (found["pgd2"] >= found["pgd2x2"]).all()
    assert (found["pgd2x2"] >= found["pgd2x6"]).all()
    x, index = torch.zeros(3, 1, 8, 8), torch.arange(3)
    assert torch.equal(noise(x, index, 0, "pgd20"), noise(x, index, 0, "pgd20", restart=0))
    assert not torch.equal(noise(x, index, 0, "pgd20"), noise(x, index, 0, "pgd20", restart=1))
    assert gradient_attack("pgd20x5", EPS, STEP).definition(0)["restarts"] == 5
    assert gradient_attack("cw100x2", EPS, STEP).steps == 100


def test_mi_fgsm_follows_the_sum_of_normalised_gradients(trained) -> None:
    net, split = trained
    x = split.images.float() / 255
    x_adv, past = x.clone(), torch.zeros_like(x)
    for _ in range(10):  # Dong et al., CVPR 2018, Algorithm 1
        z = x_adv.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(cross_entropy(net(z), split.labels).sum(), z)
        past = past + gradient / gradient.abs().sum((1, 2, 3), keepdim=True)
        x_adv = (x_adv + 0.8 / 255 * past.sign()).clamp(x - 8 / 255, x + 8 / 255).clamp(0, 1)
    attack = gradient_attack("mi-fgsm", EPS, STEP)
    found = attack(net, x, split.labels, torch.arange(40), 0)
    assert (net(found).argmax(1) == net(x_adv).argmax(1)).all()
    assert ((found - x_adv).abs() < 1e-5).float().mean() > 0.99
    assert attack.definition(0)["decay"] == 1.0


@pytest.mark.parametrize("start", [Start.CLEAN, Start.UNIFORM, Start.GAUSS])
def test_the_start_of_pgd_can_be_chosen_and_is_recorded(trained, start: Start) -> None:
    net, split = trained
    attack = gradient_attack("pgd20", EPS, STEP, start)
    assert attack.definition(0)["start"] == start.value
    x = split.images.float() / 255
    one, other = (attack(net, x, split.labels, torch.arange(40), seed) for seed in (0, 1))
    assert torch.equal(one, other) is (start is Start.CLEAN)


def test_restarts_from_the_image_itself_are_refused() -> None:
    with pytest.raises(UserError, match=r"'pgd20x5': restarts from the image itself are all the same; set eval\.start"):
        gradient_attack("pgd20x5", EPS, STEP, Start.CLEAN)
    for name in ("pgd", "pgd0", "pgd20x0", "cwx", "fgsmx2"):
        with pytest.raises(UserError, match="unknown attack"):
            gradient_attack(name, EPS, STEP)


def test_an_attack_may_have_a_radius_of_its_own(x: Tensor) -> None:
    net, y, index = Linear(), torch.arange(6) % 4, torch.arange(6)
    wide = gradient_attack("pgd20@16/255", EPS, STEP)
    assert wide.definition(0) == gradient_attack("pgd20", EPS, STEP).definition(0) | {
        "name": "pgd20@16/255",
        "eps": "16/255",
        "step": "4/255",
    }
    inside = x.clamp(0.1, 0.9)
    moved = (wide(net, inside, y, index, 0) - inside).abs()
    assert moved.max() == pytest.approx(16 / 255)
    fgsm = gradient_attack("fgsm@16/255", EPS, STEP)(net, inside, y, index, 0)
    assert torch.equal(fgsm, gradient_attack("fgsm", 2 * EPS, STEP)(net, inside, y, index, 0))
    assert (radius("transfer:a@b:cw@1/255", EPS), radius("transfer:a@b:cw", EPS)) == (Fraction(1, 255), EPS)


def test_starts_of_one_attack_differ_between_radii_by_their_scale_alone(x: Tensor) -> None:
    inside, y, index = x.clamp(0.2, 0.8), torch.arange(6) % 4, torch.arange(6)
    near, far = (
        replace(gradient_attack(name, EPS, STEP), steps=0)(Linear(), inside, y, index, 0)
        for name in ("pgd20", "pgd20@16/255")
    )
    assert torch.allclose(far - inside, 2 * (near - inside))


@pytest.mark.parametrize("name", ["pgd20@", "pgd20@0/255", "pgd20@2", "pgd20@8/510", "pgd20@x", "pgd@4/255"])
def test_a_radius_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=r"no number|write the radius|unknown attack"):
        gradient_attack(name, EPS, STEP)
