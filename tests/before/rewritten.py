"""Writes methods/rewritten.toml: run it after rewriting built-in methods without changing a number."""

import json
from pathlib import Path

from adbench import plugin_code
from adbench.registry import METHODS

THEN = json.loads(Path(__file__).with_name("methods.json").read_text(encoding="utf-8"))
FILE = Path(__file__).parents[2] / "methods" / "rewritten.toml"

if __name__ == "__main__":
    plugin_code._rewritten = dict  # type: ignore[assignment]
    now = {name: METHODS.code(name).sha256 for name in THEN}
    lines = [
        "# Methods that were rewritten without changing a number keep the identity of their cells: the hash of their",
        "# code now stands for the one then. `python tests/before/rewritten.py` writes this file, which is right as",
        "# long as `adbench golden` finds no difference.",
    ]
    for title, table in (("now", now), ("then", THEN)):
        lines += ["", f"[{title}]", *(f'"{name}" = "{table[name]}"' for name in THEN if now[name] != THEN[name])]
    FILE.write_text("\n".join(lines) + "\n", encoding="utf-8")
