"""Checks that run nothing: every SimAM is the one that was planned, and the parameters are those of before."""

from __future__ import annotations

from typing import Any

from torch import nn

from simam_inject.attention import SimAM
from simam_inject.editing.attach import Attended
from simam_inject.editing.presence import presence_of
from simam_inject.planning.records import Check
from simam_inject.verification.runs import Marks, tensor_marks

_KEYS = "state_dict keys and parameters unchanged"


def as_planned(model: nn.Module, sites: list[Attended]) -> Check:
    """Every site has its SimAM, with the recorded settings, and not bypassed."""
    name = "every SimAM is the one planned"
    presence = presence_of(model)
    if presence is None:
        return Check(name, False, "the presence check was removed from the model")
    for entry in sites:
        attention, site = entry.attention, entry.site
        if attention is None:
            return Check(name, False, f"{site.path} has lost its module {site.child}")
        if not isinstance(attention, SimAM):
            if site.path in presence.peers:
                continue
            return Check(name, False, f"{site.path} has a {type(attention).__name__} in the place of its SimAM")
        if attention.bypassed:
            return Check(name, False, f"{site.path} is bypassed")
        found, wanted = (attention.e_lambda, attention.channel_dim), (site.e_lambda, site.channel_dim)
        if found != wanted:
            return Check(
                name, False, f"{site.path} has e_lambda {found[0]:g}, channel_dim {found[1]}; planned {wanted}"
            )
        wish = _lambdas(presence.recipes, site.rule)
        if wish and site.e_lambda not in wish:
            return Check(name, False, f"{site.path} has e_lambda {site.e_lambda:g}; its recipe has {wish[0]:g}")
    expected = sum(len(hook.sites) for _, hook, _ in presence.holders)
    if expected != len(sites):
        return Check(name, False, f"{len(sites)} of {expected} sites are in the model")
    return Check(name, True, f"{len(sites)} of {len(sites)}")


def _lambdas(recipes: list[dict[str, Any]], rule: int) -> list[float]:
    """Lambda of the rule of this index in each recipe."""
    found = []
    for recipe in recipes:
        rules = recipe.get("rules", ())
        if rule < len(rules):
            found.append(float(rules[rule].get("e_lambda", recipe.get("e_lambda", SimAM().e_lambda))))
    return found


def same_tensors(model: nn.Module, sites: list[Attended], keys: list[str], before: Marks | None) -> Check:
    """The keys of the state_dict are those of the network without SimAM, and no tensor was written to.

    Args:
        keys: those without SimAM.
        before: the tensors before the injection, where they are known.
    """
    attentions = [(entry, entry.attention) for entry in sites if entry.attention is not None]
    own = [f"{entry.site.module}." for entry, module in attentions if [*module.parameters()]]
    now = [key for key in model.state_dict() if not key.startswith(tuple(own))]
    if now != keys:
        return Check(_KEYS, False, f"keys differ: {', '.join(sorted(set(now) ^ set(keys))[:3])}")
    if before is not None and not set(before) <= set(tensor_marks(model)):
        return Check(_KEYS, False, "a parameter or buffer was replaced or written to")
    return Check(_KEYS, True, f"{len(keys)} keys")
