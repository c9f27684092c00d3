"""`python -m bfr_core` is the `bfr` command."""

from .cli import main

if __name__ == "__main__":
    raise SystemExit(main())
