"""Warm start: add SimAM to a trained network without losing its accuracy."""

from simam_inject.warmup.calibration import Calibration as Calibration
from simam_inject.warmup.calibration import SiteFit as SiteFit
from simam_inject.warmup.calibration import calibrate as calibrate
from simam_inject.warmup.strength import Ramp as Ramp
from simam_inject.warmup.strength import set_strength as set_strength

__all__ = ["Calibration", "Ramp", "SiteFit", "calibrate", "set_strength"]
