"""The operator: SimAM as a module and as a function."""

from simam_inject.attention.arguments import ArgumentError as ArgumentError
from simam_inject.attention.functional import gate as gate
from simam_inject.attention.functional import simam as simam
from simam_inject.attention.module import SimAM as SimAM

__all__ = ["ArgumentError", "SimAM", "gate", "simam"]
