"""`python -m conformer`: the command line of `conformer/cli.py`."""

import sys

if __name__ == "__main__":
    try:
        from conformer.cli import main
    except KeyboardInterrupt:  # while it loads, which takes a moment
        print("conformer: stopped", file=sys.stderr)
        raise SystemExit(130) from None
    raise SystemExit(main())
