"""Warm start: add SimAM to a trained network without losing its accuracy."""

from simam_inject.warmup.calibration import Calibration, SiteFit, calibrate
from simam_inject.warmup.strength import Ramp, set_strength

__all__ = ["Calibration", "Ramp", "SiteFit", "calibrate", "set_strength"]
