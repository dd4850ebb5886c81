"""`python -m ebmhybrid`, which torchrun needs, is the command `ebmhybrid`."""

from ebmhybrid.cli import main

if __name__ == "__main__":
    main()
