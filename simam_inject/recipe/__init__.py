"""The recipe language: where SimAM goes, written once for every architecture.

    text, mapping, name or selector -> load_recipe -> Recipe of Rules, validated and frozen

Nothing here knows torch or a model.
"""

from simam_inject.recipe.recipe import Recipe as Recipe
from simam_inject.recipe.recipe import RecipeLike as RecipeLike
from simam_inject.recipe.recipe import adjusted as adjusted
from simam_inject.recipe.recipe import load_recipe as load_recipe
from simam_inject.recipe.rule import Rule as Rule
from simam_inject.recipe.rule import Where as Where
from simam_inject.recipe.texts import read_shipped as read_shipped
from simam_inject.recipe.texts import shipped_recipes as shipped_recipes
