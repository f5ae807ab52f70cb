"""`python -m tapml`: the same as the command `tapml`."""

from .cli import main

if __name__ == "__main__":
    main()
