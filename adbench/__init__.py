"""adbench: the benchmark for adversarial distillation."""

__version__ = "0.1.0"
