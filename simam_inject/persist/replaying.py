"""A file's sites as a plan for a model that was built anew."""

from __future__ import annotations

from torch import nn

from simam_inject.discovery.records import Anatomy
from simam_inject.errors import FileError
from simam_inject.integrations import host_of
from simam_inject.persist.manifest import Manifest
from simam_inject.planning.plan import Plan
from simam_inject.planning.records import Insertion
from simam_inject.recipe import Recipe, Rule
from simam_inject.rewriting.provenance import recipes_of, set_recipes
from simam_inject.rewriting.recorded import prepare_recorded
from simam_inject.rewriting.rewriter import operate
from simam_inject.subjects import check_subject


def plan_recorded(model: nn.Module, network: nn.Module, manifest: Manifest) -> Plan:
    """Work out how SimAM is put back where the file says, without matching any recipe. Touches nothing.

    Args:
        model: what the user gave: the network, or an object that holds it.
        network: without SimAM.

    Raises:
        FileError: a module is not there, or computes something else than when the file was written.
        ModelError: the model cannot be edited in its present form.
    """
    check_subject(model)
    operations = prepare_recorded(network, dict(manifest.sites))
    modules = dict(network.named_modules())
    absent = [path for path, _ in manifest.recipes if path not in modules]
    if absent:
        raise FileError(f"it tells of a recipe for {absent[0]!r}, which is no module of {type(network).__name__}")

    def apply(planned: Plan) -> nn.Module:
        operate(operations)
        for path, recipe in manifest.recipes:
            set_recipes(modules[path], (*recipes_of(modules[path]), recipe))
        host = host_of(model)
        if host is not None:
            host.remember(model, planned)
        return model

    return Plan(_recipe_of(manifest), manifest.insertions, (), Anatomy(()), (), apply)


def _recipe_of(manifest: Manifest) -> Recipe:
    """The one recipe that was applied; what is nearest to it if there were several, or if none is known."""
    recipes = [Recipe.from_dict(recipe) for _, recipe in manifest.recipes]
    if len(recipes) == 1:
        return recipes[0]
    rules = [
        Rule.model_validate({"e_lambda": recipe.e_lambda} | rule.to_dict())
        for recipe in recipes
        for rule in recipe.rules
    ]
    name = " + ".join(recipe.name for recipe in recipes if recipe.name) or "recorded sites"
    return Recipe(name=name, rules=rules or [_rule_of(insertion) for insertion in manifest.insertions])


def _rule_of(insertion: Insertion) -> Rule:
    """A rule that takes this site alone."""
    if insertion.reader is None:
        return Rule(path=insertion.path, after="output", e_lambda=insertion.e_lambda)
    reader = insertion.reader.removeprefix(f"{insertion.scope}.")
    return Rule(path=insertion.scope, before=reader, e_lambda=insertion.e_lambda)
