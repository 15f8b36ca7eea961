"""`python -m adbench` is `adbench`."""

import sys
from pathlib import Path


def _without_the_working_folder() -> None:
    """Take the folder that `-m` puts first off the path: a `torch.py` that lies there is not torch.

    Unless adbench itself is found there, as in a checkout that is not installed.
    """
    if not sys.flags.safe_path and Path(sys.path[0]) == Path.cwd() != Path(__file__).parents[1]:
        del sys.path[0]


if __name__ == "__main__":
    _without_the_working_folder()

    from adbench.cli import main

    main()
