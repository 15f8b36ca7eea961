"""Cells carried out: one at a time, in processes, or on many machines."""
