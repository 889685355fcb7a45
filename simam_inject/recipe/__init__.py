"""The recipe language: where SimAM is applied, written once for every architecture. Does not import torch.

text, mapping, name or selector -> load_recipe -> Recipe of Rules, validated and frozen
"""

from simam_inject.recipe.recipe import Recipe as Recipe
from simam_inject.recipe.recipe import RecipeLike as RecipeLike
from simam_inject.recipe.recipe import adjusted as adjusted
from simam_inject.recipe.recipe import load_recipe as load_recipe
from simam_inject.recipe.rule import Rule as Rule
from simam_inject.recipe.rule import Where as Where
from simam_inject.recipe.texts import read_shipped as read_shipped
from simam_inject.recipe.texts import shipped_recipes as shipped_recipes
