"""The command line. It is the only place that prints, and it imports what is heavy only when a command runs."""

from simam_inject.cli.app import main as main

__all__ = ["main"]
