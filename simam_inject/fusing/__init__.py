"""Fused inference: where a forward reads SimAM between a batch norm and an activation, one pass does the chain."""

from simam_inject.fusing.optimizer import Fusion as Fusion
from simam_inject.fusing.optimizer import optimize as optimize
from simam_inject.fusing.optimizer import unoptimize as unoptimize

__all__ = ["Fusion", "optimize", "unoptimize"]
