"""`python -m unified` is the command `unified`."""

from unified.cli import main

if __name__ == "__main__":
    main()
