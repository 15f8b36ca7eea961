"""Several teachers as one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import save_file

from adbench.errors import UserError
from adbench.experiment import teacher
from adbench.models import build, names
from adbench.models.ensemble import Ensemble
from adbench.models.precision import AS_WRITTEN, Precision
from adbench.results import record
from adbench.training.step import EnsembleTeacher, Teacher

PLUGIN = '''
import torch
from adbench import Method, Need, Passes, Start
from adbench.losses import kl


class Several(Method):
    """The teacher that is surest of an image teaches it."""

    label = "Several"
    needs = frozenset({Need.TEACHER})

    def attack(self, step):
        return step.ascend(lambda x: kl(step.student(x), step.teacher(step.x)), start=Start.UNIFORM)

    def loss(self, step, x_adv):
        logits = torch.stack([member(step.x) for member in step.teacher.members])
        step.log("teachers", len(logits))
        surest = logits.softmax(2).amax(2).argmax(0)
        target = logits[surest, torch.arange(len(step.x))]
        return kl(step.student(x_adv), target)
'''


EVAL = ["--dataset", "digits", "--attacks", "pgd20", "--images", "16", "--results", "other"]


def member(folder: Path, name: str, seed: int, classes: int = 10) -> str:
    """A network of that architecture in a file, as a teacher is named."""
    torch.manual_seed(seed)
    path = folder / f"{name}-{seed}.safetensors"
    save_file(build(name, classes=classes, channels=1).state_dict(), path)
    return f"{name}@{path}"


def together(folder: Path, *members: str, more: str = "") -> Path:
    """The file of the ensemble of these."""
    path = folder / "pair.toml"
    path.write_text(f'{more}\n[source]\nkind = "ensemble"\nmembers = {json.dumps(members)}\n', encoding="utf-8")
    return path


def test_its_logits_are_the_mean_of_its_members_each_with_its_own_normalisation() -> None:
    torch.manual_seed(0)
    members = [build("cnn-4", classes=3), build("wrn-10-1", classes=3, mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.2))]
    x = torch.rand(4, 3, 16, 16)
    module = Ensemble(members, channels=3).eval()
    expected = (members[0](x) + members[1](x)) / 2
    assert torch.equal(module(x), expected)
    for precision in (Precision(), Precision(lean=True)):
        found = Teacher.of(module, precision)
        assert isinstance(found, EnsembleTeacher)
        assert torch.allclose(found(x), expected, atol=1e-5)
        assert [torch.allclose(one(x), net(x), atol=1e-5) for one, net in zip(found.members, members, strict=True)]
        z = x.clone().requires_grad_(True)
        (gradient,) = torch.autograd.grad(found(z).sum(), z)
        (due,) = torch.autograd.grad(sum(net(z).sum() / 2 for net in members), z)
        assert torch.allclose(gradient, due, atol=1e-5)


def test_what_a_member_computed_is_not_computed_again() -> None:
    calls: list[int] = []
    members = [build("cnn-4", classes=3, channels=1) for _ in range(2)]
    for number, one in enumerate(members):
        one.register_forward_hook(lambda *_, number=number: calls.append(number))
    found = Teacher.of(Ensemble(members, channels=1))
    x = torch.rand(2, 1, 16, 16)
    assert found.known(x) is None
    one = found.members[1](x)
    assert found.known(x) is None, "one member alone says nothing of the mean"
    both = found(x)
    assert calls == [1, 0]
    known = found.known(x)
    assert known is not None
    assert torch.equal(known, both)
    assert torch.equal(found.members[1](x), one)
    found.forget()
    assert found.known(x) is None


def test_stages_are_asked_of_a_member_and_an_attack_on_it_is_on_all() -> None:
    members = [build("cnn-4", classes=3, channels=1) for _ in range(2)]
    found = Teacher.of(Ensemble(members, channels=1), Precision("bfloat16", lean=True))
    x = torch.rand(2, 1, 16, 16)
    with pytest.raises(UserError, match="an ensemble has no stages of its own"):
        found.stages(x, -1)
    assert found.members[0].stages(x, -1)[1][-1].ndim == 4
    with found.still(exact=True):
        assert {one.precision for one in found.members} == {AS_WRITTEN}
    assert {one.precision for one in found.members} == {found.precision}


def test_a_single_teacher_is_its_only_member() -> None:
    alone = Teacher.of(build("cnn-4", classes=3, channels=1))
    assert alone.members == (alone,)


def test_a_student_of_two_teachers_from_the_run_to_the_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    plugin = tmp_path / "several.py"
    plugin.write_text(PLUGIN, encoding="utf-8")
    pair = together(tmp_path, member(tmp_path, "cnn-4", 1), member(tmp_path, "cnn-8", 2), more='dataset = "digits"')
    given = ["--methods", "rslad,several", "--plugin", plugin, "--teacher", pair]
    done = tiny.run(*given, "--results", "results")
    assert done.exit_code == 0, done.output
    records = tiny.records(Path("results"))
    guide = next(found for found in records.values() if found["kind"] == "teacher")
    assert guide["student"] == "cnn-4 + cnn-8"
    assert [Path(str(file)).stem for file in guide["model"]["files"]] == ["cnn-4-1", "cnn-8-2"]
    students = [found for found in records.values() if found["kind"] == "student"]
    assert {found["teachers"]["robust"]["name"] for found in students} == {"pair"}
    assert len(records) == 3
    log = next(path for path in Path("results").rglob("log.jsonl") if "several" in str(path))
    assert json.loads(log.read_text().splitlines()[0])["teachers"] == 2
    found = tiny.cli("verify", "results")
    assert found.exit_code == 0, found.output
    (student,) = (Path("results", name) for name in records if "several" in name)
    again = tiny.cli("reproduce", student, "--plugin", plugin)
    assert again.exit_code == 0, again.output
    (judged,) = (Path("results", name) for name in records if "/teachers/" in name)
    exported = tiny.cli("export", judged, "--out", "exported")
    assert exported.exit_code == 0, exported.output
    (weights,) = Path("exported").glob("*.safetensors")
    again = tiny.cli("eval", weights, "--arch", guide["student"], *EVAL)
    assert again.exit_code == 0, again.output
    assert tiny.cli("verify", "other").exit_code == 0, "weights of an ensemble in one file"
    (other,) = (found for found in tiny.records(Path("other")).values())
    assert other["metrics"]["pgd20"]["correct"] == guide["metrics"]["pgd20"]["correct"]


def test_the_same_members_are_the_same_teacher_in_any_file(tmp_path: Path) -> None:
    names = member(tmp_path, "cnn-4", 1), member(tmp_path, "cnn-8", 2)
    one = teacher.find(str(together(tmp_path, *names)))
    assert one.identity() == teacher.find(str(together(tmp_path, *names, more='summary = "mine"'))).identity()
    assert one.identity() != teacher.find(str(together(tmp_path, *names[::-1]))).identity()
    assert one.natural is None
    assert teacher.natural_partner(one).architecture == "cnn-4"


def test_a_member_is_looked_up_for_the_dataset_that_the_ensemble_is_asked_for(tmp_path: Path) -> None:
    pair = together(tmp_path, "robustbench:Wang2023Better_WRN-28-10", "robustbench:Wang2023Better_WRN-70-16")
    assert [one.dataset for one in teacher.find(str(pair), "cifar10").members] == ["cifar10"] * 2
    with pytest.raises(UserError, match="say which"):
        teacher.find(str(pair))


def test_a_path_with_an_at_sign(tmp_path: Path) -> None:
    folder = tmp_path / "a@b"
    folder.mkdir()
    one = together(folder, member(folder, "cnn-4", 1), "digits-robust")
    assert teacher.find(str(one)).members[0].name == "cnn-4-1"
    inner = folder / "inner.toml"
    inner.write_text('architecture = "cnn-4"\n[source]\nkind = "file"\npath = "cnn-4-1.safetensors"\n', "utf-8")
    assert teacher.find(str(together(folder, str(inner), "digits-robust"))).members[0].name == "inner"


def test_a_record_that_does_not_say_where_its_members_lay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pair = together(tmp_path, "digits-robust", member(tmp_path, "cnn-4", 2))
    assert tiny.run("--methods", "rslad", "--teacher", pair, "--results", "results").exit_code == 0
    (path,) = (Path("results", name) for name, one in tiny.records(Path("results")).items() if one["kind"] == "teacher")
    changed = json.loads(path.read_text(encoding="utf-8"))
    del changed["model"]["files"], changed["digest"]
    record.write(path, changed)
    for command in (["export", path, "--out", "x"], ["verify", path]):
        found = tiny.cli(*command)
        assert "does not say where the weights of its 2 members lay" in found.output, found.output


def test_weights_that_normalise_each_by_itself_are_not_written_as_one_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    member(tmp_path, "cnn-4", 1)
    Path("inner.toml").write_text(
        'architecture = "cnn-4"\nmean = [0.5]\nstd = [0.5]\n[source]\nkind = "file"\npath = "cnn-4-1.safetensors"\n',
        "utf-8",
    )
    pair = together(tmp_path, "inner.toml", "digits-robust")
    assert tiny.run("--methods", "rslad", "--teacher", pair, "--results", "results").exit_code == 0
    (path,) = (Path("results", name) for name, one in tiny.records(Path("results")).items() if one["kind"] == "teacher")
    assert tiny.cli("verify", path).exit_code == 0
    found = tiny.cli("export", path, "--out", "x")
    assert found.exit_code == 2
    assert "whose members normalise the images each by itself" in found.output
    assert tiny.cli("export", path, "--out", "x", "--format", "torch.export").exit_code == 0


def test_members_lie_beside_the_file_that_names_them(tmp_path: Path) -> None:
    member(tmp_path, "cnn-4", 1)
    other = tmp_path / "other.toml"
    other.write_text(
        'architecture = "cnn-4"\n[source]\nkind = "file"\npath = "cnn-4-1.safetensors"\n', encoding="utf-8"
    )
    spec = teacher.find(str(together(tmp_path, "other.toml", "cnn-4@cnn-4-1.safetensors", "digits-robust")))
    assert [one.name for one in spec.members] == ["other", "cnn-4-1", "digits-robust"]
    assert spec.dataset == "digits", "its members say what it is for"


@pytest.mark.parametrize(
    ("members", "more", "says"),
    [
        (["digits-robust"], "", "an ensemble has at least two members"),
        (["digits-robust", "trained.toml"], "", "'trained' is trained here; a member's weights are a file"),
        (["digits-robust", "cifar10-wrn-10-2"], "", "its members are for different datasets: cifar10, digits"),
        (["digits-robust", "digits-robast"], "", "did you mean 'digits-robust'"),
        (["digits-robust"] * 2, 'dataset = "cifar10"', "is for 'cifar10', its member 'digits-robust' is not"),
        (["digits-robust"] * 2, 'architecture = "rn18"', "has the architecture of its members; leave it out"),
        (["pair.toml", "digits-robust"], "", "of kind ensemble"),
    ],
)
def test_what_is_no_ensemble_is_said_in_a_sentence(members: list[str], more: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "trained.toml").write_text(tiny.TEACHER, encoding="utf-8")
    if members[0] == "pair.toml":
        inner = together(tmp_path, "digits-robust", "digits-robust")
        members = [str(inner.rename(tmp_path / "inner.toml")), *members[1:]]
    with pytest.raises(UserError, match=says):
        teacher.find(str(together(tmp_path, *members, more=more)))


def test_no_features_and_no_student(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pair = together(tmp_path, "digits-robust", member(tmp_path, "cnn-4", 2))
    found = tiny.run("--methods", "smaraad", "--teacher", pair, "--results", "results")
    assert found.exit_code == 1
    (failed,) = (one for one in tiny.records(Path("results")).values() if one["kind"] == "student")
    assert "an ensemble has no" in failed["error"]["message"]
    assert "choose a single teacher" in failed["error"]["message"]
    found = tiny.run("--methods", "rslad", "--student", "cnn-4 + cnn-8")
    assert found.exit_code == 2
    assert "a student is one network" in found.output


def test_a_path_with_a_plus_sign_is_one_network(tmp_path: Path) -> None:
    folder = tmp_path / "papers + code"
    folder.mkdir()
    (folder / "net.py").write_text("class Net: pass\n", encoding="utf-8")
    assert names.together(f"{folder}/net.py:Net") == [f"{folder}/net.py:Net"]
    assert names.together("cnn-4 + net.py:Net") == ["cnn-4", "net.py:Net"]
    assert names.canonical("CNN-4 + ResNet-18") == "cnn-4 + rn18"
    with pytest.raises(UserError, match="unknown model 'rn19'"):
        names.canonical("cnn-4 + rn19")
