"""`python -m conformer`, also installed as `conformer`: the command line of `conformer/cli.py`, which it loads."""

import sys

__all__ = ["main"]


def main() -> int:
    """Run the command that the process was given; returns its exit status."""
    try:
        from conformer import cli

        return cli.main()
    except KeyboardInterrupt:
        print("conformer: stopped", file=sys.stderr)
        return 130


if __name__ == "__main__":
    raise SystemExit(main())
