"""Weights and where their SimAM is, in one safetensors file.

A parameter-free module leaves no trace in a `state_dict`: weights that were trained with SimAM load strictly into a
model without it, which then computes something else. So the sites travel in the file, and `load` puts SimAM back before
it copies the weights. See docs/files.md.
"""

from simam_inject.persist.loading import load as load
from simam_inject.persist.loading import read as read
from simam_inject.persist.official import OfficialReport as OfficialReport
from simam_inject.persist.official import load_official as load_official
from simam_inject.persist.record import Manifest as Manifest
from simam_inject.persist.record import Record as Record
from simam_inject.persist.saving import save as save
from simam_inject.persist.watching import LostRecipeWarning as LostRecipeWarning
from simam_inject.persist.watching import unwatch as unwatch
from simam_inject.persist.watching import watch as watch

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
