"""`python -m conformer`: the command line of `conformer/cli.py`."""

from conformer.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
