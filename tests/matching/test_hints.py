"""A glob that matches nothing: what is said of it, and where it is an error."""

import pytest

from simam_inject.matching import idle_exclude
from simam_inject.recipe import Recipe
from tests.matching.networks import resnet

HINTS = [
    ("layr1.*", "Did you mean 'layer1.*'?"),
    ("layer1.0.conv22", "Did you mean layer1.0.conv2 or layer2.0.conv2 or layer1.1.conv2?"),
    ("*.cnv2", "Did you mean '*.conv2'?"),
    ("conv2", "Did you mean '*.conv2'? A glob is matched against the whole path."),
    ("Layer1", "Letter case counts; did you mean layer1?"),
    ("layer(1|2)", "Paths are globs, not regular expressions: * is any text, alternatives are {a,b}."),
    (".*conv2", "Paths are globs, not regular expressions: * is any text, alternatives are {a,b}."),
    ("zzz", ""),
]


def recipe(**keys):
    return Recipe.from_dict({"rules": [{"block": "Bottleneck", "after": "conv2", **keys}]})


@pytest.mark.parametrize(("text", "hint"), HINTS)
def test_an_exclude_that_matches_nothing_is_told_what_is_near(text, hint):
    message = idle_exclude(recipe(exclude=text), resnet())
    assert message is not None
    head = f"rules[0].exclude: {text!r} matches nothing in this model. {hint}".rstrip()
    assert message == f"{head} (A rule for many models says optional: true.)"


@pytest.mark.parametrize("text", ["layer1", "layer[12].*", "*.downsample.*", "layer1.0.relu[2]", "layer1.0.conv1"])
def test_an_exclude_that_matches_a_path_is_fine_whatever_it_leaves_out(text):
    assert idle_exclude(recipe(exclude=text), resnet()) is None


def test_one_that_matches_does_not_excuse_the_other():
    assert "'layr1'" in str(idle_exclude(recipe(exclude=["layer2", "layr1"]), resnet()))


def test_an_optional_rule_speaks_of_other_models_too():
    assert idle_exclude(recipe(exclude="layr1", optional=True), resnet()) is None
