"""Weights and SimAM sites in one safetensors file.

A module without parameters has no key in a `state_dict`: weights that were trained with SimAM load strictly into a
model without it, which then computes something else. So the file contains the sites as well, and `load` adds SimAM
before it copies the weights. See docs/files.md.
"""

from simam_inject.persist.checkpoints import OfficialReport, load_official
from simam_inject.persist.files import load, read, save
from simam_inject.persist.record import Manifest, Record
from simam_inject.persist.watching import LostRecipeWarning, unwatch, watch

__all__ = [
    "LostRecipeWarning",
    "Manifest",
    "OfficialReport",
    "Record",
    "load",
    "load_official",
    "read",
    "save",
    "unwatch",
    "watch",
]
