"""Attacks: one projected-sign-ascent kernel, and the named attacks of the evaluation on it."""
