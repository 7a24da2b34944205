"""`python -m sinew` is the `sinew` command."""

from sinew.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
