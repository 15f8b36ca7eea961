"""Evaluation: a network and test images to verdicts, one an image and attack."""
