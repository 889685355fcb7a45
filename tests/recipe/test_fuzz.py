# ruff: noqa: E501  (tables: a case, and its message word for word, stay on one line)
"""Random and mutated recipes: a recipe or a RecipeError that begins with a path, in bounded time, and nothing executed."""

import re
import time
import warnings

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from simam_inject.errors import RecipeError
from simam_inject.matching.explain import unmatched_message
from simam_inject.matching.match import match
from simam_inject.recipe import Recipe, Rule, Where, load_recipe, read_shipped, shipped_recipes
from simam_inject.recipe.operations import Operation
from simam_inject.recipe.recipe import load_text
from simam_inject.recipe.rule import Pick
from tests.matching.networks import NETWORKS

KEY = r"""(\w[\w-]*|'.{0,700}?'|".{0,700}?"|a \w[\w ]*)(\.\.\.)?(\[\d+\])*"""
PATH = re.compile(rf"(\[\d+\])*{KEY}(\.{KEY})*: |(\[\d+\])+: ")
SECONDS = 5.0
LONG = pytest.mark.long
quick = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
thorough = settings(quick, max_examples=5000)

KEYS = {key for model in (Recipe, Rule, Where, Pick, Operation) for key in model.model_fields}
WORDS = st.sampled_from([
    *sorted(KEYS), "main", "all", "model", "output", "input", "residual", "conv2", "relu[2]", "relu[*]", "Bottleneck",
    "bottleneck", "c2f", "*", "layer[34].*", "{a,b}", "conv2d", ">", "*norm", "conv2d[k=3,s>=2]", "depthwise", ">=64",
    "1x7", "paper",
])  # fmt: skip
SCALARS = st.one_of(
    WORDS,
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(10**400), 10**400),
    st.floats(),
    st.text(max_size=30),
    st.text(alphabet="[]{}*?!,.>=<kx0123456789abc ", max_size=60),
    st.sampled_from(
        ["{a,b}" * 40, "*a" * 99, "[" * 50, "9" * 5000, "a" * 5000, "conv2d > " * 100, "relu[99999999999]"]
    ),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(WORDS | st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
TARGETS = WORDS | st.fixed_dictionaries({"op": WORDS}, optional={"kernel": SCALARS, "groups": SCALARS})
RULES = st.fixed_dictionaries(
    {},
    optional={
        "structure": st.sampled_from(["main", "residual", "decoder"]),
        "block": WORDS | st.lists(WORDS, max_size=3),
        "pattern": st.lists(WORDS, max_size=4).map(" > ".join),
        "path": WORDS,
        "exclude": WORDS,
        "after": TARGETS,
        "before": TARGETS,
        "where": st.dictionaries(WORDS, SCALARS, max_size=3),
        "pick": WORDS | st.dictionaries(WORDS, SCALARS, max_size=2),
        "e_lambda": SCALARS,
        "optional": st.booleans(),
        "anything": VALUES,
    },
)
RECIPES = st.fixed_dictionaries(
    {"rules": st.lists(RULES, max_size=4)},
    optional={"e_lambda": SCALARS, "name": SCALARS, "version": st.sampled_from([1, 2, "1"]), "extends": WORDS},
)
TEXTS = [read_shipped(name) for name in shipped_recipes()]


def read(source, reader):
    """The recipe, or None after a proper error."""
    start = time.process_time()
    recipe, message = None, "recipe: "
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            recipe = reader(source)
    except RecipeError as error:
        message = str(error)
    assert PATH.match(message), message
    assert len(message) < 3000
    assert time.process_time() - start < SECONDS
    return recipe


def use(recipe):
    """A recipe that was taken round trips, and matches without an error."""
    if recipe is None:
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        assert Recipe.from_dict(recipe.to_dict()) == recipe
    start = time.process_time()
    for anatomy in (NETWORKS["resnet"], NETWORKS["yolo"], NETWORKS["pyramid"]):
        found = match(recipe, anatomy)
        for index in range(len(recipe.rules)):
            if index not in {hit.rule for hit in found.hits}:
                assert unmatched_message(recipe, index, anatomy, found.misses).startswith(f"rules[{index}] (")
    assert time.process_time() - start < SECONDS


def check_values(value):
    use(read(value, Recipe.from_dict))


def check_recipes(recipe):
    use(read(recipe, Recipe.from_dict))
    use(read(yaml.safe_dump(recipe), lambda text: load_text(text, "fuzz")))


def check_text(text):
    use(read(text, lambda source: load_text(source, "fuzz")))


def check_source(source):
    use(read(source, load_recipe))


def check_selector(position, text):
    read(f"{position} {text}", load_recipe)


@st.composite
def mutated(draw):
    """A shipped recipe with a few pieces of its text cut out, doubled, or replaced."""
    text = draw(st.sampled_from(TEXTS))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(text)))
        end = min(len(text), start + draw(st.integers(0, 40)))
        piece = draw(
            st.sampled_from(["", text[start:end] * 2, "&a ", "*a", "!!python/object:os.system ", "\t", "- ", ": "])
            | st.text(max_size=12)
        )
        text = text[:start] + piece + text[end:]
    return text


test_any_value = quick(given(VALUES)(check_values))
test_almost_a_recipe = quick(given(RECIPES)(check_recipes))
test_mutated_recipes = quick(given(mutated())(check_text))
test_any_text = quick(example("a: &a [*a]")(given(st.text(max_size=300))(check_text)))
test_any_bytes = quick(given(st.binary(max_size=300))(check_text))
test_any_source = quick(given(st.text(max_size=60))(check_source))
test_any_selector = quick(
    given(st.sampled_from(["after", "before", "x"]), WORDS | st.text(max_size=40))(check_selector)
)

test_many_values = LONG(thorough(given(VALUES)(check_values)))
test_many_almost_recipes = LONG(thorough(given(RECIPES)(check_recipes)))
test_many_mutated_recipes = LONG(thorough(given(mutated())(check_text)))
test_many_texts = LONG(thorough(given(st.text(max_size=2000))(check_text)))
test_many_bytes = LONG(thorough(given(st.binary(max_size=2000))(check_text)))
test_many_sources = LONG(thorough(given(st.text(max_size=60))(check_source)))


def test_structures_that_contain_themselves():
    loop = {"rules": []}
    loop["rules"].append(loop)
    ring = []
    ring.append(ring)
    deep = value = []
    for _ in range(100_000):
        value.append([])
        value = value[0]
    for source in (
        loop,
        {"rules": ring},
        {"rules": [{"block": ring, "after": ring, "where": loop, "pick": loop}]},
        {"rules": deep},
    ):
        assert read(source, Recipe.from_dict) is None
    while deep:  # taken apart step by step: Python's own deallocation recurses
        deep = deep.pop()


def test_objects_that_are_no_data():
    class Angry:
        def __repr__(self):
            raise RuntimeError("must not be called")

        __str__ = __repr__

    for source in (
        {"rules": [{"block": Angry(), "after": Angry()}]},
        {"rules": Angry()},
        {"e_lambda": Angry(), "rules": []},
    ):
        assert read(source, Recipe.from_dict) is None
    assert read({3: 4}, Recipe.from_dict) is None
    assert read({"rules": [{3: 4}]}, Recipe.from_dict) is None
    assert read({"rules": [{"block": "A", "after": {3: 4}}]}, Recipe.from_dict) is None
    assert read({"rules": [{"block": "A", "after": "b", "pick": {Angry(): 4}}]}, Recipe.from_dict) is None
