"""Finished networks compared: `adbench cross`, `cam` and `compare`."""
