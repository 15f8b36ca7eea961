"""Help for plugin authors: `adbench list`, `info`, `new-method`, `validate` and `golden`."""
