"""`python -m basinguard` is the `basinguard` command."""

from .cli import main

if __name__ == "__main__":
    main()
