"""`python -m adbench` is `adbench`."""

from adbench.cli import main

if __name__ == "__main__":
    main()
