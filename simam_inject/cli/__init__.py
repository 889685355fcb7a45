"""The command line: the only package that prints. Large libraries are imported only when a command needs them."""

from simam_inject.cli.app import main

__all__ = ["main"]
