"""The operator: SimAM as a module and as a function."""

from simam_inject.attention.arguments import ArgumentError
from simam_inject.attention.functional import gate, simam
from simam_inject.attention.module import SimAM

__all__ = ["ArgumentError", "SimAM", "gate", "simam"]
