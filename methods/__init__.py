"""The built-in training methods, one file each; `adbench list` prints them."""
