"""The `stellane` command."""
