"""The command line: thin commands that parse, call a study and print. See `fairlead --help`."""

from fairlead.cli.app import main

__all__ = ["main"]
