"""Gradient masking: masked networks fail, ordinary ones pass, and each test counts what it says it counts."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from fractions import Fraction
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pydantic_core import ValidationError
from sklearn.datasets import load_digits
from synthetic import conform
from torch import Tensor, nn

from adbench.attacks import square
from adbench.attacks.linf import Start, ascend, attacking
from adbench.data import Split, Threat
from adbench.evaluation import masking, masking_rules
from adbench.evaluation.evaluator import Evaluator, Outcome
from adbench.losses import cross_entropy
from adbench.models import build
from adbench.results import stats
from adbench.results.fields import Masking

SMALL, WIDE = Fraction(8, 255), Fraction(32, 255)


class Quantised(nn.Module):
    """Sees a few grey levels only, so that no gradient reaches the image."""

    def __init__(self, net: nn.Module, levels: int = 8) -> None:
        super().__init__()
        self.net, self.levels = net, levels

    def forward(self, x: Tensor) -> Tensor:
        return self.net((x * self.levels).round() / self.levels)


class Loud(nn.Module):
    """The same predictions with logits so large that softmax saturates in float32."""

    def __init__(self, net: nn.Module, factor: float = 1e5) -> None:
        super().__init__()
        self.net, self.factor = net, factor

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * self.net(x)


class Noisy(nn.Module):
    """Adds noise to what it sees."""

    def __init__(self, net: nn.Module, deviation: float = 0.05) -> None:
        super().__init__()
        self.net, self.deviation = net, deviation

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x + self.deviation * torch.randn_like(x))


class Shifted(nn.Module):
    """Pads the image at random, anew in every pass (Xie et al., ICLR 2018)."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        top, left = torch.randint(3, (2,)).tolist()
        return self.net(F.pad(x, (left, 2 - left, top, 2 - top)))


def evaluator(net: nn.Module, split: Split, eps: Fraction, **changed: Any) -> Evaluator:
    settings: dict[str, Any] = {"seed": 0, "batch_size": 64, "device": torch.device("cpu")} | changed
    step = settings.pop("step", eps / 4)
    return Evaluator(net, split, Threat(eps, step), **settings)  # type: ignore[arg-type]


def examine(net: nn.Module, split: Split, eps: Fraction, **changed: Any) -> dict[str, Any]:
    return masking.examine(evaluator(net, split, eps, **changed), {}, len(split))


def alarms(found: Mapping[str, Any]) -> dict[str, str]:
    """The tests that are not passed, and their verdicts."""
    return {test["name"]: test["verdict"] for test in found["tests"] if test["verdict"] != "pass"}


def figure(found: Mapping[str, Any], name: str) -> float:
    (value,) = (test["figure"] for test in found["tests"] if test["name"] == name)
    return value


def count(found: Mapping[str, Any], name: str) -> int:
    return round(figure(found, name) * found["images"])


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor, Split]:
    """Training images and labels of digits, and 100 test images."""
    data = load_digits()
    x, y = torch.from_numpy(data.images / 16).float()[:, None], torch.from_numpy(data.target)
    return x[:1200], y[:1200], Split((255 * x[1200:1300]).round().to(torch.uint8), y[1200:1300])


@cache
def fitted(x: Tensor, y: Tensor, eps: float, seed: int, classes: int = 10) -> nn.Module:
    """A CNN trained on PGD examples within eps; on the images themselves where it is 0."""
    torch.manual_seed(seed)
    net = build("cnn-8", classes=classes, channels=1)
    optimiser = torch.optim.Adam(net.parameters(), 0.01)
    stream = torch.Generator().manual_seed(seed)
    for _ in range(120):
        index = torch.randint(len(x), (128,), generator=stream)
        seen, label = x[index], y[index]
        if eps:
            with attacking(net):
                seen = ascend(
                    seen,
                    lambda z, label=label: cross_entropy(net(z), label),
                    eps=eps,
                    step=eps / 3,
                    steps=5,
                    start=Start.UNIFORM,
                    generator=stream,
                )
        net.train()
        optimiser.zero_grad()
        cross_entropy(net(seen), label).mean().backward()
        optimiser.step()
    return net.eval()


@pytest.mark.parametrize("eps", [SMALL, WIDE])
@pytest.mark.parametrize(
    ("mask", "by"),
    [
        (Quantised, "zero-gradients"),
        (lambda net: Loud(net, 1e4), "zero-gradients"),
        (lambda net: Loud(net, 1e6), "zero-gradients"),
        (Noisy, "determinism"),
        (Shifted, "determinism"),
    ],
)
def test_known_masks_fail_and_say_by_which_test(
    trained: tuple[nn.Module, Split], mask: Callable[[nn.Module], nn.Module], by: str, eps: Fraction
) -> None:
    net, split = trained
    found = examine(mask(net), split, eps)
    assert found["verdict"] == "fail"
    assert alarms(found)[by] == "fail"


def test_masks_in_which_gradients_mislead_are_seen_by_what_breaks_them(trained: tuple[nn.Module, Split]) -> None:
    net, split = trained
    assert alarms(examine(Quantised(net), split, WIDE))["black-box"] == "fail"
    assert alarms(examine(Loud(net), split, WIDE))["logit-scale"] == "fail"
    for mask in (Quantised, Loud):
        assert alarms(examine(mask(net), split, WIDE))["growing-eps"] == "fail"


@pytest.mark.parametrize("eps", [SMALL, WIDE, Fraction(48, 255)])
def test_an_ordinary_network_passes_every_test_whatever_its_robustness(
    trained: tuple[nn.Module, Split], eps: Fraction
) -> None:
    found = examine(*trained, eps)
    assert found["verdict"] == "pass"
    assert [test["name"] for test in found["tests"]] == [
        "fgsm-weaker-than-pgd",
        "more-steps",
        "restarts",
        "logit-scale",
        "growing-eps",
        "zero-gradients",
        "black-box",
        "determinism",
    ]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("eps", [Fraction(25, 255), Fraction(51, 255)])
def test_networks_trained_naturally_and_adversarially_pass(
    digits: tuple[Tensor, Tensor, Split], eps: Fraction, seed: int
) -> None:
    x, y, split = digits
    robust = {}
    for trained_at in (0.0, float(eps)):
        judge = evaluator(fitted(x, y, trained_at, seed), split, eps, seed=seed)
        assert alarms(masking.examine(judge, {}, 100)) == {}, f"trained at {trained_at}"
        robust[trained_at] = float(judge.under("pgd20", 100).right.float().mean())
    assert robust[float(eps)] > robust[0.0] + 0.3, "one of the two is robust"


@pytest.mark.cifar10
@pytest.mark.slow
def test_the_shared_teacher_passes_on_cifar10_and_its_masked_twin_fails(robust_teacher, cifar10_npz) -> None:
    from adbench.data import load

    data = load(str(cifar10_npz), cifar10_npz.parent, test_images=16)
    net = robust_teacher
    judge = evaluator(net, data.test, SMALL)
    assert alarms(masking.examine(judge, {}, 16)) == {}
    assert 0.2 < judge.under("pgd20", 16).right.float().mean() < 0.5, "it has a robust accuracy to doubt"
    assert masking.examine(evaluator(Loud(net), data.test, SMALL), {}, 4)["verdict"] == "fail"


def test_the_counts_are_those_of_separate_evaluations(trained: tuple[nn.Module, Split]) -> None:
    net, split = trained
    judge = evaluator(net, split, WIDE, seed=3)
    found = masking.examine(judge, {}, 40)
    right = {name: judge.under(name, 40).right for name in ("fgsm", "pgd20", "pgd100", "pgd20x5", "cw")}
    stands = right["pgd20"]
    assert 5 < stands.sum() < 35
    assert count(found, "more-steps") == (stands & ~right["pgd100"]).sum()
    assert count(found, "restarts") == (stands & ~right["pgd20x5"]).sum()
    assert count(found, "fgsm-weaker-than-pgd") == stands.sum() - right["fgsm"].sum()
    far = evaluator(net, split, Fraction(1, 2), step=Fraction(1, 8), seed=3).under("pgd20", 40).right
    assert count(found, "growing-eps") == (stands & far).sum()


def test_a_rescaled_network_is_attacked_as_if_it_had_been_scaled_by_hand(trained: tuple[nn.Module, Split]) -> None:
    net, split = trained
    found = examine(Loud(net, 1e5), split, WIDE)
    judge = evaluator(Loud(net, 1e5), split, WIDE)
    stands = judge.under("pgd20", 40).right
    # Its logits have a range of about 10: undoing the factor undoes the mask.
    plain = evaluator(net, split, WIDE).under("pgd20", 40).right
    assert stands.all()
    assert abs(count(found, "logit-scale") - int((~plain).sum())) <= 2
    zeros = sum(
        int((torch.autograd.grad(cross_entropy(judge.network(z), y[None]).sum(), z)[0] == 0).all())
        for x, y in zip(judge.x, judge.y, strict=True)
        for z in [x[None].clone().requires_grad_()]
    )
    assert count(found, "zero-gradients") == zeros == 40


def test_square_is_autoattacks_own(trained: tuple[nn.Module, Split]) -> None:
    import pyautoattack

    net, split = trained
    judge = evaluator(net, split, WIDE)
    mine = square.survivors(net, judge.x, judge.y, WIDE, seed=5, queries=60, batch_size=7)
    theirs = pyautoattack.AutoAttack(net, norm="Linf", eps=float(WIDE), version="custom", seed=5, device="cpu")
    theirs.attacks_to_run = ["square"]
    theirs.square.n_queries, theirs.square.rescale_schedule = 60, True
    with torch.random.fork_rng():
        x_adv, _ = theirs.run_standard_evaluation(judge.x, judge.y, batch_size=40)
    assert torch.equal(mine, net(x_adv).argmax(1) == judge.y)
    assert 0 < mine.sum() < 40


def test_limits_are_the_least_that_chance_exceeds_once_in_a_thousand() -> None:
    def exceeds(k: int, n: int, rate: float) -> float:
        return 1 - sum(math.comb(n, i) * rate**i * (1 - rate) ** (n - i) for i in range(k + 1))

    for n in (1, 10, 64, 100, 1000):
        for rate in (0.01, 0.05, 0.2, 0.5):
            k = masking_rules.most(n, rate)
            assert exceeds(k, n, rate) <= 0.001
            assert k == 0 or exceeds(k - 1, n, rate) > 0.001
    assert masking_rules.most(0, 0.5) == 0


@pytest.mark.parametrize("name", masking_rules.RATES)
def test_a_counted_test_is_suspect_beyond_one_limit_and_fails_beyond_the_other(name: str) -> None:
    suspect, fails = (masking_rules.most(100, rate) for rate in masking_rules.RATES[name])
    verdicts = [masking_rules.counted(name, k, 100, "{} do")["verdict"] for k in range(101)]
    assert verdicts == ["pass"] * (suspect + 1) + ["suspect"] * (fails - suspect) + ["fail"] * (100 - fails)
    entry = masking_rules.counted(name, suspect, 100, "{} do")
    assert (entry["figure"], entry["limit"]) == (suspect / 100, suspect / 100)
    assert entry["says"] == f"Of 100 images, {suspect} do."


def test_fgsm_leads_where_mcnemars_test_says_so_and_by_more_than_a_margin() -> None:
    def verdict(fgsm: int, pgd: int, n: int) -> str:
        return masking_rules.leading("fgsm-weaker-than-pgd", "FGSM", "PGD-20", fgsm, pgd, n)["verdict"]

    for n in (64, 100):
        for fgsm in range(30):
            for pgd in range(30):
                # Two-sided p-values of McNemar's exact test are twice the one-sided ones, but for equality.
                leads = fgsm > pgd and stats.mcnemar(fgsm, pgd) / 2 <= 0.001
                assert (verdict(fgsm, pgd, n) == "fail") == leads, (fgsm, pgd)
    assert verdict(0, 64, 64) == verdict(0, 0, 64) == "pass"
    assert [verdict(lead, 0, 10_000) for lead in (100, 101, 300, 301)] == ["pass", "suspect", "suspect", "fail"]


@pytest.fixture
def known(trained: tuple[nn.Module, Split]) -> tuple[Evaluator, dict[str, Outcome]]:
    """An ordinary network of which the evaluation knows all that the tests read."""
    judge = evaluator(*trained, WIDE)
    return judge, {"clean": judge.clean, **{name: judge.under(name, 40) for name in ("fgsm", "pgd20", "cw")}}


def outcome(right: Tensor, *flags: str) -> Outcome:
    return Outcome(right, {"name": "made up", "batch_size": 40}, 0.0, list(flags))


def test_only_fgsm_is_doubted_where_only_fgsm_is_strong(known: tuple[Evaluator, dict[str, Outcome]]) -> None:
    judge, outcomes = known
    fgsm = outcomes["pgd20"].right & (torch.arange(40) > 39)
    found = masking.examine(judge, outcomes | {"fgsm": outcome(fgsm)}, 40)
    assert alarms(found) == {"fgsm-weaker-than-pgd": "fail"}
    assert figure(found, "fgsm-weaker-than-pgd") == outcomes["pgd20"].right.sum() / 40


def test_only_transfer_is_doubted_where_a_proxy_breaks_what_gradients_do_not(
    known: tuple[Evaluator, dict[str, Outcome]],
) -> None:
    judge, outcomes = known
    stands = outcomes["pgd20"].right
    only_cw = stands.nonzero()[0, 0]
    outcomes |= {"cw": outcome(stands & (torch.arange(40) != only_cw))}
    proxies = {"transfer:a:pgd20": outcome(torch.zeros(40, dtype=torch.bool)), "transfer:b:cw": judge.clean}
    found = masking.examine(judge, outcomes | proxies, 40)
    assert count(found, "transfer") == stands.sum() - 1 >= 6
    assert set(alarms(found)) == {"transfer"}
    weak = dict.fromkeys(proxies, judge.clean)
    assert alarms(masking.examine(judge, outcomes | weak, 40)) == {}, "a weak proxy proves nothing"


RANDOMISED = 'it seems to be a randomized defense! Please use version="rand".'
GAINED = "Square Attack has decreased the robust accuracy of {}%. This might indicate that"


@pytest.mark.parametrize(
    ("flags", "verdict"),
    [
        ((), "pass"),
        ((RANDOMISED,), "fail"),
        (("it seems to be a dynamic defense! The evaluation",), "fail"),
        (("there are 3 points with zero gradient!",), "suspect"),
        ((GAINED.format("2.50"),), "pass"),
        ((GAINED.format("12.50"),), "suspect"),
        ((GAINED.format("12.50"), RANDOMISED), "fail"),
        (("counted as wrong: 3 images with logits that are not finite",), "pass"),
    ],
)
def test_autoattacks_warnings_are_weighed(
    known: tuple[Evaluator, dict[str, Outcome]], flags: tuple[str, ...], verdict: str
) -> None:
    judge, outcomes = known
    found = masking.examine(judge, outcomes | {"aa": outcome(judge.right, *flags)}, 40)
    assert alarms(found) == ({} if verdict == "pass" else {"autoattack-flags": verdict})
    assert verdict == "pass" or all(flag in found["tests"][-1]["says"] for flag in flags)


def test_a_pgd_whose_steps_are_too_short_is_found_out_by_more_of_them(
    known: tuple[Evaluator, dict[str, Outcome]], trained: tuple[nn.Module, Split]
) -> None:
    short = evaluator(*trained, WIDE, step=Fraction(1, 510))
    weak = short.under("pgd20", 40)
    found = masking.examine(short, {"pgd20": weak, "fgsm": weak, "cw": known[1]["cw"]}, 40)
    assert alarms(found) == {"more-steps": "fail"}


def test_only_black_box_sees_what_neither_gradient_attack_broke(trained: tuple[nn.Module, Split]) -> None:
    short = evaluator(*trained, WIDE, step=Fraction(1, 1000))
    weak = short.under("pgd20", 40)
    found = masking.examine(short, {"pgd20": weak, "fgsm": weak, "cw": weak}, 40)
    assert alarms(found) == {"black-box": "fail"}
    broken = ~square.survivors(short.network, short.x, short.y, WIDE, seed=0, queries=500, batch_size=64)
    assert weak.right.all()
    assert count(found, "black-box") == broken.sum()


def test_gradients_that_vanish_at_the_image_alone_are_seen(trained: tuple[nn.Module, Split]) -> None:
    assert alarms(examine(Loud(trained[0], 20), trained[1], SMALL)) == {"zero-gradients": "fail"}


def test_a_network_that_is_right_at_any_eps_is_doubted(trained: tuple[nn.Module, Split]) -> None:
    class Stubborn(nn.Module):
        def __init__(self, net: nn.Module) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor) -> Tensor:
            return 1e-3 * self.net(x) + F.one_hot(torch.tensor(2), 5)

    _, split = trained
    found = examine(Stubborn(trained[0]), Split(split.images, torch.full_like(split.labels, 2)), WIDE)
    assert alarms(found) == {"growing-eps": "fail"}
    assert figure(found, "growing-eps") == 1


def test_a_little_noise_is_told_from_rounding(trained: tuple[nn.Module, Split]) -> None:
    net, split = trained
    assert alarms(examine(Noisy(net, 1e-3), split, WIDE)) == {"determinism": "fail"}
    assert alarms(examine(Noisy(net, 1e-7), split, WIDE)) == {}


def test_an_entry_is_the_same_every_time_and_in_any_batch(trained: tuple[nn.Module, Split]) -> None:
    net, split = trained[0], trained[1].first(10)
    whole = examine(net, split, WIDE)
    assert examine(net, split, WIDE) == whole
    for judged in (net, Quantised(net)):
        assert examine(judged, split, WIDE, batch_size=3) == examine(judged, split, WIDE)
    assert examine(net, split, WIDE, seed=1) != whole
    judge = evaluator(Noisy(net), split, WIDE)
    first = masking.examine(judge, {}, 10)
    torch.rand(5)
    assert masking.examine(judge, {}, 10) == first, "the noise of a network is drawn from the evaluator's seed too"


def test_the_network_and_the_callers_randomness_are_left_as_they_were(trained: tuple[nn.Module, Split]) -> None:
    net, split = trained
    judge = evaluator(net, split, WIDE)
    frozen = next(iter(net.parameters()))
    frozen.requires_grad_(False)
    torch.manual_seed(7)
    before = torch.get_rng_state()
    try:
        masking.examine(judge, {}, 10)
        assert [p.requires_grad for p in net.parameters()] == [False] + [True] * (len(list(net.parameters())) - 1)
    finally:
        frozen.requires_grad_(True)
    assert torch.equal(torch.get_rng_state(), before)
    assert not any(module.training for module in net.modules())
    assert all(p.grad is None or not p.grad.isnan().any() for p in net.parameters())
    assert not judge.x.requires_grad


def test_a_network_that_is_never_right_has_nothing_to_doubt(trained: tuple[nn.Module, Split]) -> None:
    net, split = trained
    never = Split(split.images, (net(split.images / 255).argmax(1) + 1) % 5)
    found = examine(net, never, WIDE)
    assert found["verdict"] == "pass"
    assert {test["figure"] for test in found["tests"]} == {0.0}


def test_two_classes_are_enough(digits: tuple[Tensor, Tensor, Split]) -> None:
    x, y, split = digits
    pair = split.labels < 2
    two = Split(split.images[pair], split.labels[pair])
    net = fitted(x[y < 2], y[y < 2], 0.1, 0, classes=2)
    assert alarms(examine(net, two, WIDE)) == {}
    assert examine(Loud(net, 1e6), two, WIDE)["verdict"] == "fail"


def test_images_beyond_the_test_set_are_not_missed_and_none_are_refused(trained: tuple[nn.Module, Split]) -> None:
    judge = evaluator(*trained, SMALL)
    assert masking.examine(judge, {}, 1000)["images"] == 40
    with pytest.raises(ValueError, match="at least one image"):
        masking.examine(judge, {}, 0)


def test_the_passes_are_those_that_a_network_sees(trained: tuple[nn.Module, Split]) -> None:
    seen = {True: 0, False: 0}

    class Counting(nn.Module):
        def __init__(self, net: nn.Module) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor) -> Tensor:
            seen[x.requires_grad] += len(x)
            return self.net(x)

    net, split = trained
    judge = evaluator(Counting(net), split, Fraction(0))
    outcomes = dict.fromkeys(("fgsm", "pgd20", "cw"), judge.clean)
    assert judge.right.all()
    seen.update({True: 0, False: 0})
    masking.examine(judge, outcomes, 10)
    assert (seen[True], seen[False]) == tuple(10 * each for each in masking.passes())


def test_an_entry_is_what_the_schema_says(known: tuple[Evaluator, dict[str, Outcome]]) -> None:
    judge, outcomes = known
    more = {"aa": outcome(judge.right, RANDOMISED), "transfer:a:pgd20": outcomes["pgd20"]}
    found = json.loads(json.dumps(masking.examine(judge, outcomes | more, 40)))
    conform(found, Masking)
    assert [test["name"] for test in found["tests"] if "attack" in test] == [
        "more-steps",
        "restarts",
        "logit-scale",
        "growing-eps",
        "black-box",
    ]
    with pytest.raises(ValidationError):
        conform(found | {"verdict": "maybe"}, Masking)
