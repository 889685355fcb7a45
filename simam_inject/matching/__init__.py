"""Matching: recipe and anatomy -> hits and near misses. No torch, no model."""

from simam_inject.matching.explain import explain_unmatched_glob as explain_unmatched_glob
from simam_inject.matching.explain import unmatched_exclude as unmatched_exclude
from simam_inject.matching.explain import unmatched_message as unmatched_message
from simam_inject.matching.hits import Hit as Hit
from simam_inject.matching.hits import Matches as Matches
from simam_inject.matching.hits import Skip as Skip
from simam_inject.matching.match import match as match
from simam_inject.matching.match import value_of as value_of
from simam_inject.matching.match import why_not_attendable as why_not_attendable
from simam_inject.matching.search import write_path as write_path
