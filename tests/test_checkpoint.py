"""Weights in and out of files: every form the field uses is read, and nothing in a file runs."""

from __future__ import annotations

import argparse
import collections
import copy
import datetime
import gzip
import hashlib
import io
import os
import pickle
import types
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from safetensors import safe_open
from torch import Tensor, nn

from adbench.errors import Caution, UserError
from adbench.models import Network, build
from adbench.weights import file_reader
from adbench.weights.checkpoint import load, load_into, save_weights, weights_sha256

State = dict[str, Tensor]


@pytest.mark.parametrize("checksums", [True, False])
def test_a_bit_of_a_torch_file_that_changed_is_told_where_it_states_checksums(
    checksums: bool, network: Network, tmp_path: Path
) -> None:
    torch.serialization.set_crc32_options(checksums)
    try:
        path = torch_file(tmp_path / "x.pt", network.state_dict())
    finally:
        torch.serialization.set_crc32_options(True)
    load(network, path)
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        largest = max(archive.infolist(), key=lambda member: member.file_size)
    content[largest.header_offset + 300 + largest.file_size // 2] ^= 1  # the lowest bit of some weight
    path.write_bytes(content)
    if checksums:
        with pytest.raises(UserError, match=r"x\.pt'.* damaged.*CRC"):
            load(network, path)
    else:
        load(network, path)


@pytest.fixture
def network() -> Network:
    return build("cnn-4", classes=10)


def torch_file(path: Path, content: Any, **options: Any) -> Path:
    torch.save(content, path, **options)
    return path


def same(a: State, b: State) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def read(path: Path, sha256: str | None = None) -> State:
    """The tensors of a file by their full names."""
    return {name: held.tensor for name, held in file_reader.read(path, sha256).tensors.items()}


def loaded(path: Path, like: nn.Module, **options: Any) -> State:
    """The weights of a network like `like`, but initialised anew, after it was filled from a file."""
    twin = copy.deepcopy(like)
    for value in twin.state_dict().values():
        value.zero_()
    load(twin, path, **options)
    return dict(twin.state_dict())


def prefixed(prefix: str, state: State) -> State:
    return {prefix + key: value for key, value in state.items()}


def test_saved_weights_come_back_bit_by_bit_with_their_metadata(tmp_path: Path, network: Network) -> None:
    path = tmp_path / "new" / "w.safetensors"
    save_weights(path, network, {"method": "rslad"})
    assert same(read(path), dict(network.state_dict()))
    with safe_open(path, framework="pt") as file:
        assert file.metadata()["method"] == "rslad"
    assert [p.name for p in path.parent.iterdir()] == ["w.safetensors"]


def test_a_network_whose_own_keys_look_like_a_prefix_comes_back_too(tmp_path: Path) -> None:
    wrapper = nn.Module()
    wrapper.model = nn.Linear(2, 2)
    save_weights(tmp_path / "w.safetensors", wrapper, {})
    assert read(tmp_path / "w.safetensors").keys() == {"model.weight", "model.bias"}


def test_tied_weights_can_be_saved(tmp_path: Path) -> None:
    tied = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    tied[1].weight = tied[0].weight
    save_weights(tmp_path / "w.safetensors", tied, {})
    assert same(read(tmp_path / "w.safetensors"), dict(tied.state_dict()))


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
        lambda s: prefixed("_orig_mod.", s),
        lambda s: prefixed("module._orig_mod.", s),
        lambda s: {key.replace("body.", "body._orig_mod."): value for key, value in s.items()},
        lambda s: {key.replace("body.", "body.module."): value for key, value in s.items()},
        lambda s: prefixed("net.", s),
        lambda s: {"state_dict": prefixed("network.backbone.", s), "epoch": 3},
        lambda s: {"n_averaged": torch.tensor(5), **prefixed("module.", s)},
        lambda s: {"state_dict": {**prefixed("encoder.", s), "train_acc.tp": torch.zeros(10, dtype=torch.long)}},
        lambda s: {**s, "seen": torch.tensor(7), "loss.average": torch.tensor(0.5)},
        lambda s: {"ema": s, "optimizer": {"state": {0: {"momentum_buffer": torch.ones(3)}}}},
        lambda s: {"nested": {"deeper": {"weights": prefixed("student.", s)}}},
        lambda s: [s, {"epoch": 3}],
        lambda s: {"model": s, "model_ema": {key: value.clone() for key, value in s.items()}},
        lambda s: {**prefixed("module.model.", s), **prefixed("module.attacker.model.", s)},
        lambda s: {
            "body": {k[5:]: v for k, v in s.items() if k[:5] == "body."},
            "linear": {"weight": s["linear.weight"], "bias": s["linear.bias"]},
        },
    ],
)
def test_the_wrappers_and_prefixes_of_the_field_are_taken_off(
    tmp_path: Path, network: Network, wrap: Callable[[State], Any]
) -> None:
    state = dict(network.state_dict())
    assert same(loaded(torch_file(tmp_path / "w.pt", wrap(state)), network), state)


def test_a_prefix_that_only_some_keys_have_stays(tmp_path: Path) -> None:
    state = {"module.weight": torch.ones(1, 1), "bias": torch.ones(1)}
    with pytest.raises(UserError, match="do not fit"):
        loaded(torch_file(tmp_path / "w.pt", state), nn.Linear(1, 1))
    numbered = dict(nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1)).state_dict())
    path = torch_file(tmp_path / "v.pt", numbered)
    assert same(loaded(path, nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1))), numbered)


def test_foreign_safetensors_and_old_torch_files_are_read(tmp_path: Path, network: Network) -> None:
    state = dict(network.state_dict())
    safetensors.torch.save_file(prefixed("module.", state), tmp_path / "w.bin")
    assert same(loaded(tmp_path / "w.bin", network), state)
    old = torch_file(tmp_path / "old.pt", state, _use_new_zipfile_serialization=False)
    assert same(loaded(old, network), state)


def test_the_expected_hash_is_checked_and_both_are_shown(tmp_path: Path, network: Network) -> None:
    path = torch_file(tmp_path / "w.pt", dict(network.state_dict()))
    right = hashlib.sha256(path.read_bytes()).hexdigest()
    assert read(path, sha256=right.upper())
    wrong = "0123456789abcdef" * 4
    with pytest.raises(UserError, match=rf"SHA-256 is {right[:12]}\.\.\., expected 0123456789ab\.\.\."):
        read(path, sha256=wrong)


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
        read(path)
    assert not trace.exists()
    torch.load(path, weights_only=False) if pack in (zipped, legacy) else pickle.loads(path.read_bytes())
    assert trace.exists(), "the payload would not have run anywhere: this test proves nothing"


def test_a_whole_pickled_model_is_refused_by_its_class(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"refused.*torch\.nn\.modules\.linear\.Linear"):
        read(torch_file(tmp_path / "w.pt", nn.Linear(2, 2)))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "an empty file, truncated or damaged"),
        (b"hello world, this is text", "text that begins with 'hello world, this is text'"),
        (b'{"error": "not found"}\n', "text that begins with"),
        (b"\x00\x01\x02 neither", "truncated or damaged"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:77\nsize 6\n", "Git LFS pointer.*git lfs pull"),
        (gzip.compress(b"weights", mtime=0), "gzip archive"),
        (b"\x89HDF\r\n\x1a\n", "HDF5"),
        (b"x" * 257 + b"ustar\x0000", "tar archive"),
        (b"\n<!DOCTYPE html><title>Google Drive</title>", "a web page, not weights"),
        (b"<HTML><body>Quota exceeded", "a web page, not weights"),
    ],
)
def test_something_else_than_weights_is_named(tmp_path: Path, content: bytes, says: str) -> None:
    (tmp_path / "w.pt").write_bytes(content)
    with pytest.raises(UserError, match=says):
        read(tmp_path / "w.pt")


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
        read(path)


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.pt' does not exist"):
        read(tmp_path / "nowhere.pt")
    with pytest.raises(UserError, match="is a folder"):
        read(tmp_path)


def test_names_in_a_file_cannot_move_the_cursor(tmp_path: Path, network: Network) -> None:
    state = dict(network.state_dict()) | {"\x1b[2Jstray\n": torch.ones(2)}
    with pytest.raises(UserError) as error:
        load(network, torch_file(tmp_path / "w.pt", state))
    assert "stray" in str(error.value)
    assert str(error.value).isprintable()


def test_what_never_ends_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.pt")
    for path in (tmp_path / "pipe.pt", Path("/dev/zero")):
        with pytest.raises(UserError, match="is a pipe or a device"):
            read(path)


def test_an_archive_of_other_things_names_them(tmp_path: Path) -> None:
    np.savez(tmp_path / "w.pt.npz", x=np.zeros(2))
    with pytest.raises(UserError, match=r"zip archive of other things \(x\.npy\)"):
        read(tmp_path / "w.pt.npz")


def test_a_file_is_read_by_what_it_is_and_not_by_its_name(tmp_path: Path, network: Network) -> None:
    state = dict(network.state_dict())
    assert same(loaded(torch_file(tmp_path / "w.safetensors", state), network), state)
    safetensors.torch.save_file(state, tmp_path / "w.pt")
    assert same(loaded(tmp_path / "w.pt", network), state)


@pytest.mark.parametrize("content", [{}, {"epoch": 3}, [1, 2], {"state_dict": {"lr": 0.1}}, torch.ones(3)])
def test_a_file_without_named_tensors_is_refused(tmp_path: Path, content: Any) -> None:
    with pytest.raises(UserError, match="holds no named tensors"):
        read(torch_file(tmp_path / "w.pt", content))


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


def other(network: nn.Module) -> State:
    """Weights of the same shapes that are not the network's."""
    return {key: value + 1 for key, value in network.state_dict().items()}


@pytest.mark.parametrize(
    ("content", "names"),
    [
        (lambda a, b: {"model": a, "model_ema": b}, ("model", "model_ema")),
        (lambda a, b: {"model_ema": a, "state_dict": {**prefixed("net.", b)}}, ("model_ema", "state_dict.net")),
        (lambda a, b: {**prefixed("student.", a), **prefixed("ema._orig_mod.", b)}, ("student", "ema")),
        (
            lambda a, b: {**prefixed("module.model.", a), **prefixed("module.attacker.model.", b)},
            ("module.model", "module.attacker.model"),
        ),
        (lambda a, b: {**a, **prefixed("ema.", b)}, ("", "ema")),
    ],
)
def test_of_several_networks_in_a_file_one_has_to_be_named(
    tmp_path: Path, network: Network, content: Callable[[State, State], Any], names: tuple[str, str]
) -> None:
    first, second = dict(network.state_dict()), other(network)
    path = torch_file(tmp_path / "both.pt", content(first, second))
    with pytest.raises(UserError) as error:
        load(network, path)
    assert all(name in str(error.value) for name in names)
    assert f"both.pt#{names[1]}'" in str(error.value)
    assert same(loaded(path, network, key=names[0]), first)
    assert same(loaded(path, network, key=names[1]), second)
    assert same(loaded(path, network, prefer=names[1]), second)
    with pytest.raises(UserError, match="no network lies under 'modle'; it holds"):
        load(network, path, key="modle")


def test_the_network_that_has_the_shapes_is_taken(tmp_path: Path, network: Network) -> None:
    wide = dict(build("cnn-8", classes=10).state_dict())
    path = torch_file(tmp_path / "w.pt", {"teacher": wide, "student": dict(network.state_dict())})
    assert same(loaded(path, network), dict(network.state_dict()))
    assert same(loaded(path, build("cnn-8", classes=10)), wide)


def test_a_normalisation_is_found_wherever_a_file_has_it(tmp_path: Path) -> None:
    grey = build("cnn-4", classes=10, channels=1)
    state, half = dict(grey.state_dict()), torch.full((1, 1, 1), 0.5)
    model = {
        **prefixed("module.model.", state),
        **prefixed("module.attacker.model.", state),
        "module.normalizer.new_mean": half,
        "module.normalizer.new_std": half,
        "module.attacker.normalize.new_mean": half,
        "module.attacker.normalize.new_std": half,
    }
    path = torch_file(tmp_path / "w.pt", {"model": model, "epoch": 9})
    with pytest.raises(UserError, match=r"normalisation.*new_mean = \[0\.5\]"):
        load(grey, path)
    load(build("cnn-4", classes=10, channels=1, mean=(0.5,), std=(0.5,)), path)


def test_weights_beside_a_network_that_may_be_a_part_of_it_are_told(tmp_path: Path, network: Network) -> None:
    state = prefixed("net.", dict(network.state_dict())) | {"denoiser.weight": torch.ones(2, 2)}
    with pytest.warns(Caution, match=r"1 tensors.*denoiser\.weight"):
        load(network, torch_file(tmp_path / "w.pt", state))


def test_a_misfit_says_what_the_file_holds(tmp_path: Path, network: Network) -> None:
    content = {"epoch": 3, "actor": {"weight": torch.ones(2), "bias": torch.ones(2)}}
    with pytest.raises(UserError, match=r"it holds epoch, actor \(2 tensors\).*another architecture"):
        load(network, torch_file(tmp_path / "w.pt", content))


@pytest.mark.parametrize(
    "beside",
    [
        np.float64(0.81),
        np.int64(3),
        np.zeros(3),
        np.dtype("f4"),
        argparse.Namespace(lr=0.1, more=[1]),
        types.SimpleNamespace(a=1),
        collections.defaultdict(list, {1: [2]}),
        collections.deque([1, 2]),
        Path("x"),
        datetime.datetime(2020, 1, 2),
        datetime.timedelta(1),
        frozenset([1]),
        range(3),
        argparse.Namespace(best=np.float32(1), out=Path("x")),
        {"loss": [np.float32(0.1)] * 3},
    ],
    ids=repr,
)
def test_plain_data_beside_the_weights_is_no_obstacle(tmp_path: Path, network: Network, beside: Any) -> None:
    state = dict(network.state_dict())
    for number, old in enumerate((False, True)):
        path = tmp_path / f"{number}.pt"
        torch_file(path, {"state_dict": state, "beside": beside}, _use_new_zipfile_serialization=not old)
        assert same(loaded(path, network), state)


@pytest.mark.parametrize("form", [argparse.Namespace, types.SimpleNamespace])
def test_data_that_hides_code_is_refused(tmp_path: Path, form: Any) -> None:
    trace = tmp_path / "it-ran"
    with pytest.raises(UserError, match=r"refused.*pathlib\.Path\.touch|refused.*getattr"):
        read(torch_file(tmp_path / "w.pt", {"args": form(it=Payload(trace)), "w": torch.ones(1)}))
    assert not trace.exists()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda w: w.to_sparse(), "sparse"),
        (lambda w: torch.quantize_per_tensor(w, 0.1, 0, torch.qint8), "quantised"),
        (lambda w: w.to("meta"), "meta"),
        (lambda w: (10 * w).to(torch.int8), "int8"),
        (lambda w: w.to(torch.complex64), "complex64"),
    ],
)
def test_tensors_that_are_not_plain_numbers_are_named(
    tmp_path: Path, network: Network, change: Callable[[Tensor], Tensor], says: str
) -> None:
    state = dict(network.state_dict())
    state["linear.weight"] = change(state["linear.weight"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = torch_file(tmp_path / "w.pt", {"model": state})
    with pytest.raises(UserError, match=rf"linear\.weight \({says}"):
        load(network, path)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_another_precision_are_taken_as_float32(tmp_path: Path, network: Network, kind: torch.dtype) -> None:
    state = {key: value.to(kind) if value.is_floating_point() else value for key, value in network.state_dict().items()}
    expected = {key: value.float() if value.is_floating_point() else value for key, value in state.items()}
    assert same(loaded(torch_file(tmp_path / "w.pt", state), network), expected)


def test_a_state_that_contains_itself_is_read_once(tmp_path: Path, network: Network) -> None:
    state = dict(network.state_dict())
    content: dict[str, Any] = {"model": state}
    content["state_dict"] = content
    assert same(loaded(torch_file(tmp_path / "w.pt", content), network), state)
    content.pop("model")
    with pytest.raises(UserError, match="holds no named tensors"):
        read(torch_file(tmp_path / "empty.pt", content))


def test_a_file_nested_beyond_measure_is_one_sentence(tmp_path: Path) -> None:
    # Dictionaries in dictionaries, 100,000 deep: pickle cannot write them, but anybody can write such a pickle.
    deep = b"\x80\x02" + b"}(X\x01\x00\x00\x00a" * 100_000 + b"N" + b"u" * 100_000 + b"."
    with zipfile.ZipFile(torch_file(tmp_path / "like.pt", {})) as like, zipfile.ZipFile(tmp_path / "w.pt", "w") as made:
        for name in like.namelist():
            made.writestr(name, deep if name.endswith("data.pkl") else like.read(name))
    with pytest.raises(UserError, match=r"w\.pt': its dictionaries are too deeply nested"):
        read(tmp_path / "w.pt")


def test_two_tensors_of_one_name_are_told(tmp_path: Path) -> None:
    content = {"a": {"b.c": torch.ones(1)}, "a.b": {"c": torch.zeros(1)}}
    with pytest.raises(UserError, match=r"two tensors are called 'a\.b\.c'"):
        read(torch_file(tmp_path / "w.pt", content))


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
    ("mean", "std"), [("mean", "std"), ("mu", "sigma"), ("0.mean", "0.std"), ("normalize.mean", "normalize.std")]
)
def test_a_normalisation_in_a_file_is_demanded_of_the_network(
    tmp_path: Path, network: Network, mean: str, std: str
) -> None:
    values = {mean: torch.tensor([0.4, 0.5, 0.6]).view(1, 3, 1, 1), std: torch.tensor([0.1, 0.2, 0.3])}
    path = torch_file(tmp_path / "w.pt", values | prefixed("1.", dict(network.state_dict())))
    with pytest.raises(UserError, match=r"normalisation.*\[0.4, 0.5, 0.6\].*\[0.1, 0.2, 0.3\].*give"):
        load(network, path)
    with pytest.raises(UserError, match="normalisation"):
        load(build("cnn-4", classes=10, mean=(0.4, 0.5, 0.6), std=(0.1, 0.2, 0.4)), path)
    load(build("cnn-4", classes=10, mean=(0.4, 0.5, 0.6), std=(0.1, 0.2, 0.3)), path)


def test_a_normalisation_beside_the_state_dict_is_not_lost(tmp_path: Path, network: Network) -> None:
    content = {"state_dict": dict(network.state_dict()), "mean": torch.ones(3)}
    with pytest.raises(UserError, match="normalisation"):
        load(network, torch_file(tmp_path / "w.pt", content))
