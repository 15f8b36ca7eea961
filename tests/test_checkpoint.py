"""Weights in and out of files: every form the field uses is read, and nothing in a file runs."""

from __future__ import annotations

import hashlib
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from safetensors import safe_open
from torch import Tensor, nn

from adbench.checkpoint import load_into, read_state_dict, save_weights, weights_sha256
from adbench.errors import UserError
from adbench.models import Network, build

State = dict[str, Tensor]


@pytest.fixture
def network() -> Network:
    return build("cnn-4", classes=10)


def torch_file(path: Path, content: Any, **options: Any) -> Path:
    torch.save(content, path, **options)
    return path


def same(a: State, b: State) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def prefixed(prefix: str, state: State) -> State:
    return {prefix + key: value for key, value in state.items()}


def test_saved_weights_come_back_bit_by_bit_with_their_metadata(tmp_path: Path, network: Network) -> None:
    path = tmp_path / "new" / "w.safetensors"
    save_weights(path, network, {"method": "rslad"})
    assert same(read_state_dict(path), dict(network.state_dict()))
    with safe_open(path, framework="pt") as file:
        assert file.metadata()["method"] == "rslad"
    assert [p.name for p in path.parent.iterdir()] == ["w.safetensors"]


def test_a_network_whose_own_keys_look_like_a_prefix_comes_back_too(tmp_path: Path) -> None:
    wrapper = nn.Module()
    wrapper.model = nn.Linear(2, 2)
    save_weights(tmp_path / "w.safetensors", wrapper, {})
    assert read_state_dict(tmp_path / "w.safetensors").keys() == {"model.weight", "model.bias"}


def test_tied_weights_can_be_saved(tmp_path: Path) -> None:
    tied = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    tied[1].weight = tied[0].weight
    save_weights(tmp_path / "w.safetensors", tied, {})
    assert same(read_state_dict(tmp_path / "w.safetensors"), dict(tied.state_dict()))


def test_the_hash_of_weights_is_that_of_their_content(network: Network) -> None:
    layer = nn.Linear(1, 1)
    with torch.no_grad():
        layer.weight.fill_(1.0)
        layer.bias.fill_(-2.0)
    by_hand = b"bias torch.float32 (1,)\n\x00\x00\x00\xc0weight torch.float32 (1, 1)\n\x00\x00\x80\x3f"
    assert weights_sha256(layer) == hashlib.sha256(by_hand).hexdigest()

    twin = build("cnn-4", classes=10)
    assert weights_sha256(twin) != weights_sha256(network)
    twin.load_state_dict(network.state_dict())
    assert weights_sha256(twin) == weights_sha256(network)
    assert weights_sha256(twin.bfloat16()) != weights_sha256(network)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {"state_dict": s, "epoch": 3},
        lambda s: {"model": s, "optimizer": {"state": {}}},
        lambda s: {"model_state_dict": s},
        lambda s: {"net": s, "acc": 81.2, "epoch": 199},
        lambda s: {"model": {"state_dict": s}},
        lambda s: prefixed("module.", s),
        lambda s: prefixed("model.", s),
        lambda s: prefixed("0.", s),
        lambda s: prefixed("1.", s),
        lambda s: prefixed("module.model.", s),
        lambda s: {"net": prefixed("module.1.", s)},
    ],
)
def test_the_wrappers_and_prefixes_of_the_field_are_taken_off(
    tmp_path: Path, network: Network, wrap: Callable[[State], Any]
) -> None:
    state = dict(network.state_dict())
    assert same(read_state_dict(torch_file(tmp_path / "w.pt", wrap(state))), state)


def test_a_prefix_that_only_some_keys_have_stays(tmp_path: Path) -> None:
    state = {"module.weight": torch.ones(1), "bias": torch.ones(1)}
    assert same(read_state_dict(torch_file(tmp_path / "w.pt", state)), state)
    numbered = {"0.weight": torch.ones(1), "1.weight": torch.ones(1)}
    assert same(read_state_dict(torch_file(tmp_path / "v.pt", numbered)), numbered)


def test_foreign_safetensors_and_old_torch_files_are_read(tmp_path: Path, network: Network) -> None:
    state = dict(network.state_dict())
    safetensors.torch.save_file(prefixed("module.", state), tmp_path / "w.bin")
    assert same(read_state_dict(tmp_path / "w.bin"), state)
    old = torch_file(tmp_path / "old.pt", state, _use_new_zipfile_serialization=False)
    assert same(read_state_dict(old), state)


def test_the_expected_hash_is_checked_and_both_are_shown(tmp_path: Path, network: Network) -> None:
    path = torch_file(tmp_path / "w.pt", dict(network.state_dict()))
    right = hashlib.sha256(path.read_bytes()).hexdigest()
    assert read_state_dict(path, sha256=right.upper())
    wrong = "0123456789abcdef" * 4
    with pytest.raises(UserError, match=rf"SHA-256 is {right[:12]}\.\.\., expected 0123456789ab\.\.\."):
        read_state_dict(path, sha256=wrong)


class Payload:
    """Creates a file when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def zipped(payload: object) -> bytes:
    buffer = io.BytesIO()
    torch.save({"state_dict": payload}, buffer)
    return buffer.getvalue()


def legacy(payload: object) -> bytes:
    buffer = io.BytesIO()
    torch.save({"state_dict": payload}, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


@pytest.mark.parametrize("pack", [zipped, legacy, pickle.dumps, lambda p: pickle.dumps(p, protocol=2)])
def test_a_file_that_would_run_code_is_refused_and_does_not_run(
    tmp_path: Path, pack: Callable[[object], bytes]
) -> None:
    trace, path = tmp_path / "it-ran", tmp_path / "w.pt"
    path.write_bytes(pack(Payload(trace)))
    with pytest.raises(UserError, match=r"refused.*torch\.save\(model\.state_dict\(\), \.\.\.\)"):
        read_state_dict(path)
    assert not trace.exists()
    torch.load(path, weights_only=False) if pack in (zipped, legacy) else pickle.loads(path.read_bytes())
    assert trace.exists(), "the payload would not have run anywhere: this test proves nothing"


def test_a_whole_pickled_model_is_refused_by_its_class(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"refused.*torch\.nn\.modules\.linear\.Linear"):
        read_state_dict(torch_file(tmp_path / "w.pt", nn.Linear(2, 2)))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "truncated or damaged"),
        (b"hello world, this is text", "truncated or damaged"),
        (b"\n<!DOCTYPE html><title>Google Drive</title>", "a web page, not weights"),
        (b"<HTML><body>Quota exceeded", "a web page, not weights"),
    ],
)
def test_something_else_than_weights_is_named(tmp_path: Path, content: bytes, says: str) -> None:
    (tmp_path / "w.pt").write_bytes(content)
    with pytest.raises(UserError, match=says):
        read_state_dict(tmp_path / "w.pt")


@pytest.mark.parametrize("form", ["safetensors", "torch", "old torch"])
@pytest.mark.parametrize("kept", [0.02, 0.5, 0.99])
def test_a_truncated_file_is_called_that(tmp_path: Path, network: Network, form: str, kept: float) -> None:
    path = tmp_path / "w"
    if form == "safetensors":
        save_weights(path, network, {})
    else:
        torch_file(path, dict(network.state_dict()), _use_new_zipfile_serialization=form == "torch")
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(UserError, match="truncated or damaged"):
        read_state_dict(path)


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.pt': no such file"):
        read_state_dict(tmp_path / "nowhere.pt")
    with pytest.raises(UserError, match="cannot be read"):
        read_state_dict(tmp_path)


@pytest.mark.parametrize("content", [{}, {"epoch": 3}, [1, 2], {"state_dict": {"lr": 0.1}}, torch.ones(3)])
def test_a_file_without_named_tensors_is_refused(tmp_path: Path, content: Any) -> None:
    with pytest.raises(UserError, match="holds no named tensors"):
        read_state_dict(torch_file(tmp_path / "w.pt", content))


def test_loaded_weights_compute_the_same_logits(network: Network) -> None:
    twin = build("cnn-4", classes=10).eval()
    load_into(twin, network.state_dict(), "here")
    x = torch.rand(2, 3, 8, 8)
    assert torch.equal(twin(x), network.eval()(x))


def test_a_misfit_names_the_first_three_keys_of_each_kind_and_their_number(network: Network) -> None:
    state = dict(network.state_dict())
    for key in ("body.0.weight", "body.1.weight", "body.1.bias", "body.1.running_mean"):
        state[f"stray.{key}"] = state.pop(key)
    state["body.3.weight"] = torch.ones(8, 4, 5, 5)
    with pytest.raises(UserError) as error:
        load_into(network, state, "teachers/x")
    assert str(error.value) == (
        "teachers/x: the keys of the file do not fit ("
        "4 missing: body.0.weight, body.1.weight, body.1.bias, ...; "
        "4 unexpected: stray.body.0.weight, stray.body.1.weight, stray.body.1.bias, ...; "
        "1 of wrong shape: body.3.weight: (8, 4, 5, 5), expected (8, 4, 3, 3))"
    )


@pytest.mark.parametrize(
    ("name", "file_has", "network_has", "hint"),
    [
        ("cnn-4", {"classes": 10, "channels": 1}, {"classes": 10}, "is it a model for grey images?"),
        ("cnn-4", {"classes": 10}, {"classes": 10, "channels": 1}, "is it a model for colour images?"),
        ("wrn-10-1", {"classes": 100}, {"classes": 10}, "is it a 100-class model?"),
    ],
)
def test_an_evident_reason_for_a_misfit_is_given(
    name: str, file_has: dict[str, int], network_has: dict[str, int], hint: str
) -> None:
    with pytest.raises(UserError, match=hint.replace("?", r"\?$")):
        load_into(build(name, **network_has), build(name, **file_has).state_dict(), "here")


def test_another_architecture_is_suspected_when_most_keys_are_missing(network: Network) -> None:
    other = build("wrn-10-1", classes=10).state_dict()
    for state in (prefixed("blocks.", dict(network.state_dict())), other):
        with pytest.raises(UserError, match=r"is it another architecture\?$"):
            load_into(network, state, "here")


def test_a_network_is_left_as_it_was_when_a_file_does_not_fit(network: Network) -> None:
    before = weights_sha256(network)
    state = dict(build("cnn-4", classes=10).state_dict()) | {"stray": torch.ones(1)}
    with pytest.raises(UserError):
        load_into(network, state, "here")
    assert weights_sha256(network) == before


def test_counts_of_batches_may_be_absent(network: Network) -> None:
    state = {k: v for k, v in network.state_dict().items() if not k.endswith("num_batches_tracked")}
    load_into(build("cnn-4", classes=10), state, "here")


def test_the_unused_group_of_trades_files_is_tolerated_and_nothing_else() -> None:
    wide = build("wrn-10-1", classes=10)
    state = dict(wide.state_dict())
    unused = {k.replace("block1", "sub_block1"): v for k, v in state.items() if k.startswith("block1.")}
    load_into(wide, state | unused, "here")
    with pytest.raises(UserError, match=r"1 unexpected: sub_block2\.x"):
        load_into(wide, state | {"sub_block2.x": torch.ones(1)}, "here")


@pytest.mark.parametrize(
    ("mean", "std"),
    [("mean", "std"), ("mu", "sigma"), ("0.mean", "0.std"), ("normalize.mean", "normalize.std")],
)
def test_a_normalisation_in_a_file_is_demanded_of_the_network(
    tmp_path: Path, network: Network, mean: str, std: str
) -> None:
    values = {mean: torch.tensor([0.4, 0.5, 0.6]).view(1, 3, 1, 1), std: torch.tensor([0.1, 0.2, 0.3])}
    path = torch_file(tmp_path / "w.pt", values | prefixed("1.", dict(network.state_dict())))
    state = read_state_dict(path)
    with pytest.raises(UserError, match=r"normalisation.*\[0.4, 0.5, 0.6\].*\[0.1, 0.2, 0.3\].*give"):
        load_into(network, state, "here")
    with pytest.raises(UserError, match="normalisation"):
        load_into(build("cnn-4", classes=10, mean=(0.4, 0.5, 0.6), std=(0.1, 0.2, 0.4)), state, "here")
    load_into(build("cnn-4", classes=10, mean=(0.4, 0.5, 0.6), std=(0.1, 0.2, 0.3)), state, "here")


def test_a_normalisation_beside_the_state_dict_is_not_lost(tmp_path: Path, network: Network) -> None:
    content = {"state_dict": dict(network.state_dict()), "mean": torch.ones(3)}
    with pytest.raises(UserError, match="normalisation"):
        load_into(network, read_state_dict(torch_file(tmp_path / "w.pt", content)), "here")
