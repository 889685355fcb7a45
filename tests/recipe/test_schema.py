"""The published schema is current, and says yes and no where the models do."""

import json
from pathlib import Path

import pytest
import yaml

from simam_inject.errors import RecipeError
from simam_inject.recipe import Recipe, read_shipped, shipped_recipes
from tests.recipe.mini_schema import problems

ROOT = Path(__file__).parents[2]
PUBLISHED = ROOT / "docs" / "recipe.schema.json"
SCHEMA = Recipe.model_json_schema()

GOOD = [
    "{rules: [{block: Bottleneck, after: conv2}]}",
    "{extends: paper}",
    "{version: 1, name: x, description: y, e_lambda: 0.1, extends: paper, rules: [{path: 'a.*', after: output}]}",
    "{rules: [{block: [A, B], after: {op: [conv2d, linear], kernel: [1, '>=3'], groups: depthwise}, optional: true}]}",
    "{rules: [{pattern: 'conv > norm', path: [a], exclude: [b], pick: {last: 1, per: stage}, e_lambda: 0.5}]}",
    "{rules: [{block: A, before: residual, where: {channels: '>=64, <512', spatial: 7x7, groups: 1}, pick: first}]}",
    "{rules: [{block: A, before: input, pick: {every: 2}}]}",
]
BAD = [
    "{}",
    "[]",
    "{rules: {block: A, after: b}}",
    "{rule: [{block: A, after: b}]}",
    "{version: 2, rules: [{block: A, after: b}]}",
    "{e_lambda: 0, rules: [{block: A, after: b}]}",
    "{e_lambda: text, rules: [{block: A, after: b}]}",
    "{rules: [{after: b}]}",
    "{rules: [{block: A}]}",
    "{rules: [{block: A, after: b, before: c}]}",
    "{rules: [{block: A, pattern: 'conv > norm'}]}",
    "{rules: [{block: '', after: b}]}",
    "{rules: [{block: 3, after: b}]}",
    "{rules: [{block: A, after: {kernel: 3}}]}",
    "{rules: [{block: A, after: {op: conv2d, size: 3}}]}",
    "{rules: [{block: A, after: {op: conv2d, kernel: depthwise}}]}",
    "{rules: [{block: A, after: b, where: {channel: 3}}]}",
    "{rules: [{block: A, after: b, where: {channels: 3.5}}]}",
    "{rules: [{block: A, after: b, where: {channels: []}}]}",
    "{rules: [{block: A, after: b, where: {channels: 'big'}}]}",
    "{rules: [{block: A, after: b, pick: some}]}",
    "{rules: [{block: A, after: b, pick: {first: 1, last: 1}}]}",
    "{rules: [{block: A, after: b, pick: {per: stage}}]}",
    "{rules: [{block: A, after: b, pick: {first: 0}}]}",
    "{rules: [{block: A, after: b, pick: {first: 1, per: layer}}]}",
    "{rules: [{block: A, after: b, optional: 'yes'}]}",
    "{rules: [{block: A, after: b, note: text}]}",
]


def test_the_published_schema_is_current():
    assert json.loads(PUBLISHED.read_text()) == SCHEMA, "write it again: see CONTRIBUTING.md"
    assert SCHEMA["$schema"].endswith("2020-12/schema")


@pytest.mark.parametrize("text", GOOD)
def test_what_the_models_take_conforms(text):
    Recipe.from_dict(yaml.safe_load(text))
    assert problems(yaml.safe_load(text), SCHEMA, SCHEMA) == []


@pytest.mark.parametrize("text", BAD)
def test_what_the_models_refuse_does_not_conform(text):
    with pytest.raises(RecipeError):
        Recipe.from_dict(yaml.safe_load(text))
    assert problems(yaml.safe_load(text), SCHEMA, SCHEMA)


@pytest.mark.parametrize("name", shipped_recipes())
def test_every_shipped_recipe_conforms_and_names_the_schema(name):
    text = read_shipped(name)
    assert problems(yaml.safe_load(text), SCHEMA, SCHEMA) == []
    first, *_ = text.splitlines()
    prefix = "# yaml-language-server: $schema="
    assert first.startswith(prefix)
    assert (ROOT / "recipes" / first.removeprefix(prefix)).resolve() == PUBLISHED
