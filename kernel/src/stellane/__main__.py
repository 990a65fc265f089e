"""`python -m stellane` is the `stellane` command."""

from stellane.cli import main

main()
