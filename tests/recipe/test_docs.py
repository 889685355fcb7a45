"""docs/recipes.md is true: its recipes load, its tables name what there is. test_documents.py runs its Python."""

import re
from pathlib import Path

import pytest

from simam_inject.kinds import FAMILIES, KINDS
from simam_inject.recipe import Recipe, Rule, Where, load_recipe, shipped_recipes
from simam_inject.recipe.operations import Operation
from simam_inject.recipe.recipe import load_text

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("text", re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL))
def test_every_recipe_in_the_page_loads(text):
    assert load_text(text, "page").rules


def test_every_selector_in_the_page_is_one():
    lines = re.findall(r"^\| `((?:after|before) [^`]+)` \|", TEXT, re.MULTILINE)
    assert len(lines) == 6
    assert all(len(load_recipe(line).rules) == 1 for line in lines)


def test_the_table_of_the_shelf_is_complete():
    shelf = TEXT[TEXT.index("## Shipped recipes") :]
    assert tuple(sorted(re.findall(r"^\| `([a-z-]+)` \|", shelf, re.MULTILINE))) == shipped_recipes()
    assert shelf.count("[SimAM]") > len(shipped_recipes())


def test_every_key_is_explained():
    for key in (*Recipe.model_fields, *Rule.model_fields, *Where.model_fields, *Operation.model_fields):
        assert re.search(rf"`{key}`|\b{key}:", TEXT), key


def test_the_table_of_kinds_names_kinds():
    rows = re.findall(r"^\| (?:`(\w+)`|\(none\)) \| (`(?:\w+)` .*) \|$", TEXT, re.MULTILINE)
    found = {family: set(re.findall(r"`(\w+)`", names)) for family, names in rows}
    assert {family for family in found if family} == set(FAMILIES)
    for family, names in found.items():
        assert names <= (FAMILIES[family] if family else KINDS)
    for family in ("conv", "norm", "pool"):
        assert found[family] == FAMILIES[family]
