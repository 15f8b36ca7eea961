"""adbench: the benchmark for adversarial distillation."""

__version__ = "0.1.0"

DISTRIBUTION = "adversarial-distillation-bench"
"""The name that pip knows this package by: `adbench` is another project's, with the same import name."""

REVISION = 2
"""Raised with every change to adbench after which the same configuration gives other numbers."""

FAST_SEARCH = 3
"""Raised instead where AutoAttack's fast search alone may give other verdicts."""
