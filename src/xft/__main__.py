"""`python -m xft` is the command `xft`."""

from xft.cli import main

if __name__ == "__main__":
    main()
