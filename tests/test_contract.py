"""`adbench validate`: every built-in method keeps every promise, and each broken plugin is caught where it breaks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from tiny import PLUGIN as WORKS
from tiny import cli, options

import adbench
from adbench.execution.engines.inline import Inline
from adbench.plugins import validate
from adbench.registry import GROUPS, METHODS

PLUGIN = '''
import torch
from adbench import Method, Mode, Need, Passes, Start
from adbench.losses import cross_entropy, kl

class Plugin(Method):
    """A plugin."""
    label = "plugin"
    needs = frozenset({{Need.TEACHER}})

    def attack(self, step):
        {attack}

    def loss(self, step, x_adv):
        {loss}

    def passes(self, steps):
        return {passes}
{more}
'''

ATTACK = "return step.ascend(lambda x: cross_entropy(step.student(x), step.y), start=Start.UNIFORM)"
LOSS = "return kl(step.student(x_adv), step.teacher(x_adv))"
EXAMPLES, VALUE = ATTACK.removeprefix("return "), LOSS.removeprefix("return ")
COST = "Passes(student=steps + 1, teacher_forward=1)"

# Which check must catch it, and the part of the plugin that is broken.
BROKEN = {
    "holds the student": (
        "its_own_networks_can_be_trained",
        {"more": "    def parts(self, step):\n        return {'mine': step.student.module}\n"},
    ),
    "holds nothing that learns": (
        "its_own_networks_can_be_trained",
        {"more": "    def parts(self, step):\n        return {'mine': torch.nn.ReLU()}\n"},
    ),
    "holds no network": (
        "its_own_networks_can_be_trained",
        {"more": "    def parts(self, step):\n        return {'mine': torch.zeros(3)}\n"},
    ),
    "builds an optimiser of something else": (
        "its_own_networks_can_be_trained",
        {
            "more": "    def parts(self, step):\n"
            "        one, other = torch.nn.Linear(10, 10), torch.nn.Linear(10, 10)\n"
            "        return {'mine': __import__('adbench').Part(one, torch.optim.SGD(other.parameters(), 0.1))}\n"
        },
    ),
    "initialises its network by chance": (
        "its_own_networks_can_be_trained",
        {
            "loss": LOSS.replace("step.student(x_adv)", "step.parts['mine'](step.student(x_adv))"),
            "more": "    def parts(self, step):\n        head = torch.nn.Linear(10, 10)\n"
            "        torch.nn.init.constant_(head.weight, __import__('random').random())\n"
            "        return {'mine': head}\n",
        },
    ),
    "leaves its network out": (
        "loss_is_finite_and_teaches_the_student_alone",
        {"more": "    def parts(self, step):\n        return {'mine': torch.nn.Linear(10, 10)}\n"},
    ),
    "steps its network itself": (
        "loss_is_finite_and_teaches_the_student_alone",
        {
            "loss": "head = step.parts['mine']\n        with torch.no_grad():\n            head.weight.mul_(0.9)\n"
            "        return kl(head(step.student(x_adv)), step.teacher(x_adv))",
            "more": "    def parts(self, step):\n        return {'mine': torch.nn.Linear(10, 10)}\n",
        },
    ),
    "moves its network in the attack": (
        "attack_leaves_the_student_as_it_was",
        {
            "attack": "step.parts['mine'](step.x)\n        " + ATTACK,
            "loss": LOSS.replace("step.student(x_adv)", "step.student(step.parts['mine'](x_adv))"),
            "more": "    def parts(self, step):\n        return {'mine': torch.nn.BatchNorm2d(3)}\n",
        },
    ),
    "leaves the ball": ("attack_stays_in_the_ball", {"attack": "return (step.x + 0.2).clamp(0, 1)"}),
    "leaves the image range": ("attack_stays_in_the_ball", {"attack": "return step.x - 0.09"}),
    "keeps the graph": ("attack_stays_in_the_ball", {"attack": "return step.x.clone().requires_grad_()"}),
    "changes the shape": ("attack_stays_in_the_ball", {"attack": "return step.x[:1]"}),
    "moves to nan": ("attack_stays_in_the_ball", {"attack": "return step.x * float('nan')"}),
    "averages early": ("loss_is_finite_and_teaches_the_student_alone", {"loss": LOSS + ".mean()"}),
    "is not a number": ("loss_is_finite_and_teaches_the_student_alone", {"loss": LOSS + " * float('nan')"}),
    "detaches the student": (
        "loss_is_finite_and_teaches_the_student_alone",
        {"loss": "return kl(step.student(x_adv).detach(), step.teacher(x_adv.clone().requires_grad_()))"},
    ),
    "trains the teacher": (
        "loss_is_finite_and_teaches_the_student_alone",
        {
            "loss": "step.teacher.module.requires_grad_(True)\n"
            "        return kl(step.student(x_adv), step.teacher.module(x_adv))"
        },
    ),
    "wakes the teacher": (
        "loss_is_finite_and_teaches_the_student_alone",
        {"loss": "step.teacher.module.train()\n        " + LOSS},
    ),
    "leaves the student in evaluation mode": (
        "attack_leaves_the_student_as_it_was",
        {"attack": "step.student.module.eval()\n        " + ATTACK},
    ),
    "attacks in training mode": (
        "attack_leaves_the_student_as_it_was",
        {"attack": ATTACK.replace("start=", "bn=Mode.TRAIN, start=")},
    ),
    "moves the statistics although its mode does not": (
        "attack_leaves_the_student_as_it_was",
        {"attack": ATTACK.replace("start=", "bn=Mode.TRAIN, start="), "more": "    attack_bn: Mode = Mode.BATCH\n"},
    ),
    "leaves gradients behind": (
        "attack_leaves_the_student_as_it_was",
        {"attack": "step.student(step.x).sum().backward()\n        return step.x"},
    ),
    "leaves the student frozen": (
        "attack_leaves_the_student_as_it_was",
        {"attack": "x = " + EXAMPLES + "\n        step.student.weight.requires_grad_(False)\n        return x"},
    ),
    "moves the images themselves": ("attack_stays_in_the_ball", {"attack": "return step.x.add_(0.3).clamp_(0, 1)"}),
    "knows one radius": ("attack_stays_in_the_ball", {"attack": "return (step.x + 0.09 * step.x.sign()).clamp(0, 1)"}),
    "draws from elsewhere": (
        "same_seed_gives_the_same_result",
        {"attack": "return (step.x + 0.02 * __import__('random').random()).clamp(0, 1)"},
    ),
    "weighs by chance": ("same_seed_gives_the_same_result", {"loss": LOSS + " * __import__('random').random()"}),
    "knows one batch size": (
        "loss_is_finite_and_teaches_the_student_alone",
        {
            "loss": LOSS + " * self.weights_of_mine",
            "more": "    _w: object = None\n"
            "    def setup(self, step):\n        self._w = torch.ones(len(step.x))\n"
            "    @property\n    def weights_of_mine(self):\n        return self._w\n",
        },
    ),
    "knows the first batch size": (
        "state_survives",
        {
            "loss": "self.see(step)\n        " + LOSS + " * self.weights_of_mine",
            "more": "    _w: object = None\n"
            "    def see(self, step):\n        self._w = torch.ones(len(step.x)) if self._w is None else self._w\n"
            "    @property\n    def weights_of_mine(self):\n        return self._w\n",
        },
    ),
    "forgets its state": (
        "state_survives",
        {
            "loss": LOSS + " * self.state_of_mine()",
            "more": "    _n: int = 0\n"
            "    def state_of_mine(self):\n        self._n += 1\n        return 1 + self._n / 10\n",
        },
    ),
    "saves what cannot be loaded": (
        "state_survives",
        {"more": "    def state_dict(self):\n        return {'f': torch.nn.ReLU()}\n"},
    ),
    "moves its state in a rehearsal": (
        "rehearsal_leaves_no_trace",
        {
            "loss": "self._n += 1\n        " + LOSS + " * (1 + self._n / 10)",
            "more": "    rehearses = True\n    _n: int = 0\n"
            "    def state_dict(self):\n        return {'n': self._n}\n"
            "    def load_state_dict(self, state):\n        self._n = state['n']\n",
        },
    ),
    "rehearses another loss": ("rehearsal_leaves_no_trace", {"loss": LOSS + " * (2 if step.rehearsal else 1)"}),
    "takes soft labels for hard ones": ("soft_labels_stand_for_labels", {"more": "    soft_labels = True\n"}),
    "hides what a rehearsal costs": (
        "declared_cost_is_what_it_takes",
        {"more": "    def outer(self, steps):\n        return Passes(student=3)\n"},
    ),
    "mixes the examples": (
        "loss_of_a_batch_is_the_mean_of_its_examples",
        {"loss": "value = " + VALUE + "\n        return value / value.detach().mean()"},
    ),
    "knows ten classes": ("any_number_of_classes", {"loss": LOSS + " + 0 * step.student(x_adv)[:, 9]"}),
    "is another loss in bfloat16": (
        "bfloat16",
        {"loss": "z = step.student(x_adv)\n        return " + VALUE + " + (z - z.bfloat16()).abs().sum(dim=1).sign()"},
    ),
    "hooks the teacher itself": (
        "bfloat16",
        {
            "loss": "seen = []\n        body = step.teacher.module.body\n"
            "        handle = body.register_forward_hook(lambda m, i, o: seen.append(o))\n        value = "
            + VALUE.replace("teacher(x_adv)", "teacher(x_adv.clone())")
            + "\n        handle.remove()\n        return value + seen[0].mean(dim=(1, 2, 3))"
        },
    ),
    "climbs": ("few_steps_lower_the_loss", {"loss": "v = " + VALUE + "\n        return 2 * v.detach() - v"}),
    "hides its cost": ("declared_cost_is_what_it_takes", {"passes": "Passes(student=1)"}),
    "writes state_dict otherwise": ("names_are_the_contracts", {"more": "    def statedict(self):\n        return {}"}),
    "forgets the steps": ("declared_cost_is_what_it_takes", {"passes": "Passes(student=5, teacher_forward=1)"}),
}


@pytest.fixture(autouse=True)
def _forget_plugins(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(METHODS, "_files", {})
    monkeypatch.setattr(METHODS, "_loaded", {})


def plugin(folder: Path, **parts: str) -> Path:
    path = folder / "plugin_under_test.py"
    filled = {"attack": ATTACK, "loss": LOSS, "passes": COST, "more": ""} | parts
    path.write_text(PLUGIN.format(**filled), encoding="utf-8")
    return path


def broken_promises(path: Path) -> list[str]:
    """The names of the checks that fail."""
    verdicts = list(validate.validate(METHODS.add_file(path)))
    assert len(verdicts) == len(validate.CHECKS)
    return [check.__name__ for check, verdict in zip(validate.CHECKS, verdicts, strict=True) if verdict.error]


@pytest.mark.parametrize("method", METHODS.names())
def test_every_built_in_method_keeps_its_promises(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cls = METHODS.load(method)
    if method == "las-at":  # its policy is a ResNet-18

        class Small(cls):  # type: ignore[misc, valid-type]
            policy: str = "cnn-4"

        monkeypatch.setattr(METHODS, "load", lambda _: Small)
    assert [v for v in validate.validate(method) if v.error] == []


def test_the_plugin_that_the_broken_ones_differ_from_keeps_its_promises(tmp_path: Path) -> None:
    assert broken_promises(plugin(tmp_path)) == []


def test_a_loss_with_randomness_of_torch_is_no_breach(tmp_path: Path) -> None:
    dropout = LOSS.replace("step.student(x_adv)", "torch.nn.functional.dropout(step.student(x_adv), 0.2)")
    assert broken_promises(plugin(tmp_path, loss=dropout)) == []


def test_a_method_with_a_network_of_its_own_keeps_its_promises(tmp_path: Path) -> None:
    """One trained by the student's optimiser and one by its own, with batch-norm in it."""
    more = (
        "    def parts(self, step):\n        n = len(step.student.weight)\n"
        "        head, own = torch.nn.Linear(n, n), torch.nn.BatchNorm1d(n)\n"
        "        adam = torch.optim.Adam(own.parameters(), 0.01)\n"
        "        return {'head': head, 'norm': __import__('adbench').Part(own, adam)}\n"
        "    separable = False\n"
    )
    loss = LOSS.replace("step.student(x_adv)", "step.parts['norm'](step.parts['head'](step.student(x_adv)))")
    assert broken_promises(plugin(tmp_path, loss=loss, more=more)) == []


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_plugin_is_caught_by_the_check_that_is_meant_for_it(tmp_path: Path, name: str) -> None:
    check, parts = BROKEN[name]
    found = broken_promises(plugin(tmp_path, **parts))
    assert check in found
    # Checks before the one that is meant may not mistake the breach for theirs.
    assert found[0] == check


def test_a_plugin_that_logs_over_a_column_is_told_its_name(tmp_path: Path) -> None:
    found = list(validate.validate(METHODS.add_file(plugin(tmp_path, loss=f"return step.term('loss', {VALUE})"))))
    assert any(verdict.error and "'loss'" in verdict.error for verdict in found)


def test_every_check_has_a_plugin_that_breaks_it() -> None:
    assert {check for check, _ in BROKEN.values()} == {check.__name__ for check in validate.CHECKS}


def test_a_group_is_validated_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(validate, "validate", lambda name: asked.append(name) or [])
    assert cli("validate", "fairness", "trades").exit_code == 0
    assert asked == [*GROUPS["fairness"], "trades"]
    asked.clear()
    cli("validate", "all")
    assert asked == METHODS.names(), "here it stands for all there are"


def test_the_command_prints_a_line_a_promise_and_what_was_seen(tmp_path: Path) -> None:
    result = cli("validate", plugin(tmp_path, passes="Passes(student=1)"), "mtard")
    assert result.exit_code == 1
    lines = result.output.splitlines()
    assert lines[0] == "plugin-under-test"
    assert "  ok      The attack stays in the ball and in [0, 1]" in lines[1:4]
    assert "  broken  The declared cost is what an iteration takes" in lines
    said = "`passes` declares 2 forward and backward passes of student and teachers for 4 attack steps, seen were 11"
    assert f"          {said}" in lines
    assert "  -       A batch's loss is the mean of its examples' losses (not claimed)" in lines
    assert lines[-1] == "1 broken promise"
    assert cli("validate", "natural").output.splitlines()[-1] == "all promises kept"


def test_what_cannot_be_validated_is_refused(tmp_path: Path) -> None:
    assert "did you mean 'rslad'" in cli("validate", "rslda").output
    assert cli("validate", "rslda").exit_code == 2
    assert "no such Python file" in cli("validate", tmp_path / "none.py").output


ENDS = {
    "sys.exit": "import sys\nsys.exit()",
    "sys.exit with a code": "import sys\nsys.exit(3)",
    "exit with a text": "raise SystemExit('usage: mine.py FILE')",
    "base exception": "raise BaseException('odd')",
    "generator's end": "raise GeneratorExit",
    "interrupted by itself": "raise KeyboardInterrupt",
}


@pytest.mark.parametrize("end", ENDS)
def test_a_plugin_that_ends_the_program_is_refused_with_a_sentence(
    end: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("script.py").write_text(f"{WORKS}\n{ENDS[end]}\n")
    for words in (["validate", "script.py"], ["run", "--methods", "script", "--plugin", "script.py", *options()]):
        result = cli(*words)
        assert result.exit_code == 2, (words, result.output)
        assert "script.py' cannot be imported" in result.stderr


def test_a_loss_that_ends_the_program_fails_its_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from adbench.execution.runner import Local

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Local, "engine", lambda *given: Inline(given[2], 1, given[4]))
    Path("ends.py").write_text(WORKS.replace("        return cross", "        raise SystemExit\n        return cross"))
    result = cli("run", "--methods", "ends", "--plugin", "ends.py", *options())
    assert result.exit_code == 1, result.output
    assert "SystemExit" in result.output


def test_what_plugin_authors_import_from_adbench_is_what_the_package_itself_uses() -> None:
    from adbench.attacks import linf
    from adbench.results import frame
    from adbench.training import method, parts, step

    homes = {"Start": linf, "load": frame, "losses": None}
    homes |= dict.fromkeys(("ATTACK_BN", "Method", "Passes", "hyper"), method)
    homes |= {"Part": parts}
    homes |= dict.fromkeys(("Mode", "Need", "Net", "Step"), step)
    assert set(adbench.__all__) == set(homes)
    for name, home in homes.items():
        public = getattr(adbench, name)
        assert home is None or public is getattr(home, name)
        assert public.__doc__
    with pytest.raises(AttributeError, match="ascend"):
        _ = adbench.ascend


def test_adbench_alone_imports_neither_torch_nor_pandas() -> None:
    program = "import sys, adbench; print(*{'torch', 'pandas', 'pydantic'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert not done.stdout.split()


@pytest.mark.parametrize("name", ["all.py", "a,b.py"])
def test_a_plugin_that_its_name_does_not_reach_is_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).write_text(WORKS)
    result = cli("list", "methods", "--plugin", name)
    assert result.exit_code == 2
    assert "rename the file" in result.stderr


@pytest.mark.parametrize("name", ["random", "torch", "adbench", "lambda", "all", "rslad", "pytest"])
def test_a_new_method_hides_nothing(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli("new-method", name).exit_code == 2
    assert not list(tmp_path.iterdir())
