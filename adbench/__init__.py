"""adbench: the benchmark for adversarial distillation."""

__version__ = "0.1.0"

REVISION = 1
"""Raised with every change to adbench after which the same configuration gives other numbers."""
