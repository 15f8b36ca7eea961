"""The built-in teachers, one declarative file each; `adbench teachers` prints them."""
