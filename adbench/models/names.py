"""The names of architectures, as the field spells them and as adbench does. Imports no torch."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from adbench import DISTRIBUTION
from adbench.errors import UserError, unknown
from adbench.registry import MODELS
from adbench.system.files import expanded

_WIDE = re.compile(r"(dm-)?(?:wrn|wide-?resnet)-?(\d{1,12})-(\d{1,12})")
_FILE = re.compile(r"(.*\.py):([A-Za-z_]\w*)")
ONNX = "onnx"
"""The architecture of whatever is in an ONNX file."""
TOGETHER = " + "
"""What stands between the members of an ensemble."""
TIMM = "timm:"
"""What stands before the names of timm's architectures."""
_CNN = re.compile(r"cnn-?(\d{1,12})")
MOST_PARAMETERS = 10**9
"""No network of more is built: 4 GB of weights."""
_SPELLINGS = {f"rn{depth}": re.compile(rf"(?:rn|resnet)-?{depth}") for depth in (18, 34, 56)} | {
    "prn18": re.compile(r"(?:prn|pre-?act-?resnet)-?18"),
    "mn-v2": re.compile(r"(?:mn|mobilenet)-?v2"),
}


def canonical(name: str) -> str:
    """The one spelling of an architecture's name: "ResNet-18" is "rn18", "WideResNet-34-10" "wrn-34-10".

    A registered name stands for itself; wrn-D-K, dm-wrn-D-K and cnn-W need no registration. Raises UserError for a name
    that nobody knows, for a depth or width that cannot be built, for a file's network that the user did not name here
    (see `given`), and for timm's networks without timm.
    """
    if name in MODELS or name == ONNX:
        return name
    if len(parts := together(name)) > 1:
        return TOGETHER.join(map(canonical, parts))
    if name.startswith(TIMM):
        _timm(name)
        return name
    if match := _FILE.fullmatch(name):  # maybe out of a file, which must not have another one executed
        path = expanded(Path(match[1]))
        if (registered := f"{path.name}:{match[2]}") in MODELS:
            return registered
        missing = "" if path.is_file() else f" (there is no file '{path}' here)"
        raise UserError(f"the network '{name}' is in a file of its own; name that with --network FILE.py:NAME{missing}")
    key = re.sub(r"[\s_]+", "-", name.strip().lower())
    if key in MODELS:
        return key
    for ours, spelling in _SPELLINGS.items():
        if spelling.fullmatch(key):
            return ours
    if shape := wide_shape(key):
        return ("dm-" if is_deepmind(key) else "") + wide_name(*shape)
    return _cnn_name(key, name)


def together(name: str) -> list[str]:
    """The architectures that a name puts together, as "A + B"; of one network that alone."""
    file = _FILE.fullmatch(name)
    if name in MODELS or (file and expanded(Path(file[1])).is_file()):
        return [name]
    return name.split(TOGETHER)


def given(text: str) -> None:
    """Take a word of the command line: the network of "FOLDER/FILE.py:NAME", also before "@CHECKPOINT", is known from
    now on as "FILE.py:NAME", if there is that file."""
    if (match := _FILE.fullmatch(text.partition("@")[0])) and (path := expanded(Path(match[1]))).is_file():
        MODELS.add_member(path, match[2])


def code(name: str) -> str | None:
    """What the code of an architecture is known by that is not adbench's own: a hash, or timm's version."""
    if len(parts := together(name)) > 1:
        return TOGETHER.join(filter(None, map(code, parts))) or None
    if name.startswith(TIMM):
        return f"timm {_timm(name)}"
    return None if name not in MODELS or MODELS.built_in(name) else MODELS.code(name).sha256


_ONNX_PACKAGES = ("onnx", "onnxruntime", "onnxscript")


def check_onnx(what: str) -> None:
    """Raise UserError, which says that `what` needs them, unless the packages of the extra `onnx` are installed."""
    if missing := [package for package in _ONNX_PACKAGES if find_spec(package) is None]:
        needs = f"pip install '{DISTRIBUTION}[onnx]'"
        raise UserError(f"{what} needs {', '.join(missing)}, which is not installed: {needs}")


def _timm(name: str) -> str:
    """The version of the installed timm, which `name` needs. Raises UserError where there is none."""
    try:
        return version("timm")
    except PackageNotFoundError:
        raise UserError(f"'{name}' needs the package timm, which is not installed: pip install timm") from None


def known(name: str) -> bool:
    """Whether somebody knows an architecture of that name, also one that cannot be built."""
    if len(parts := together(name)) > 1:
        return all(map(known, parts))
    key = re.sub(r"[\s_]+", "-", name.strip().lower())
    if name.startswith(TIMM) or _FILE.fullmatch(name):
        return True
    spelt = any(spelling.fullmatch(key) for spelling in (*_SPELLINGS.values(), _WIDE, _CNN))
    return spelt or name in MODELS or key in MODELS


def wide_shape(name: str) -> tuple[int, int] | None:
    """Depth and width factor of "wrn-D-K" or "dm-wrn-D-K" in any spelling; None for other names."""
    match = _WIDE.fullmatch(name)
    return (int(match[2]), int(match[3])) if match else None


def is_deepmind(name: str) -> bool:
    """Whether a WideResNet is meant as DeepMind builds it."""
    return name.startswith("dm-")


def wide_name(depth: int, width: int) -> str:
    """The name of the WideResNet of that shape. Raises UserError where there is none."""
    if depth < 10 or (depth - 4) % 6:
        raise UserError(
            f"there is no WideResNet of depth {depth} (wrn-{depth}-{width}); "
            f"the depth is 6n + 4: 10, 16, 22, 28, 34, ..."
        )
    if width < 1:
        raise UserError(f"there is no WideResNet of width {width} (wrn-{depth}-{width}); it is at least 1")
    name = f"wrn-{depth}-{width}"
    # Two 3x3 convolutions a block, on 16, 32 and 64 channels times the width.
    return _built(name, (depth - 4) // 6 * 2 * 9 * (16**2 + 32**2 + 64**2) * width**2)


def cnn_width(name: str) -> int | None:
    """The width W of "cnn-W" in any spelling; None for other names."""
    match = _CNN.fullmatch(name)
    return int(match[1]) if match else None


def _cnn_name(key: str, name: str) -> str:
    width = cnn_width(key)
    if width is None:
        raise unknown("model", name, MODELS.names(), "adbench list students, FILE.py:NAME or timm:NAME")
    if width < 1:
        raise UserError(f"there is no CNN of width {width} ({name}); it is at least 1: cnn-16, cnn-32, ...")
    return _built(f"cnn-{width}", 9 * (2 + 4) * width**2)


def _built(name: str, parameters: int) -> str:
    if parameters > MOST_PARAMETERS:
        raise UserError(f"{name} would have about {parameters:.1e} parameters; choose a network of at most 1e9")
    return name
