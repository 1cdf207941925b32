"""`python -m quantverdict`."""

from quantverdict.cli import main

if __name__ == "__main__":
    main()
