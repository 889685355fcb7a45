"""Why a candidate was not taken, and what the message says for a rule without a hit: the facts, not the sentences."""

import pytest
import yaml

from simam_inject.dataflow.anatomy import Anatomy
from simam_inject.matching.explain import unmatched_exclude, unmatched_message
from simam_inject.matching.match import match
from simam_inject.recipe import Recipe
from tests.matching.networks import NETWORKS


def recipe_of(rule):
    return Recipe.from_dict({"rules": [yaml.safe_load(rule)]})


REASONS = [
    # (network, rule, path of the miss, what its reason names)
    (
        "resnet",
        "{block: Bottleneck, after: conv4}",
        "layer1.1",
        ["no child conv4", "conv1, bn1, relu", "mean 'conv3'?"],
    ),
    ("resnet", "{block: Bottleneck, after: zzz}", "layer1.1", ["no child zzz", "bn3, add"]),
    ("resnet", "{block: Bottleneck, after: relu}", "layer1.0.relu", ["relu[1], relu[2] or relu[3]", "names relu"]),
    ("resnet", "{block: Bottleneck, after: 'relu[4]'}", "layer1.0.relu", ["relu[3] in layer1.0", "names relu[4]"]),
    ("resnet", "{block: Bottleneck, after: 'conv2[2]'}", "layer1.0.conv2", ["as conv2[1] in", "names conv2[2]"]),
    (
        "mobile",
        "{block: SqueezeExcitation, after: 'conv2d[3]'}",
        "features.1.conv.se.fc1",
        ["is not conv2d[3]", "has 2"],
    ),
    ("resnet", "{block: Bottleneck, after: max_pool}", "layer1.0", ["no operation max_pool", "add, batch_norm"]),
    ("resnet", "{block: Bottleneck, after: {op: conv1d}}", "layer1.0", ["no operation conv1d", "batch_norm, conv2d"]),
    ("resnet", "{block: Bottleneck, after: {op: conv, kernel: 3}}", "layer1.0.conv1", ["kernel is 1x1", "requires 3"]),
    ("mobile", "{path: '*', after: {op: conv, groups: depthwise}}", "features.0.conv.2", ["groups is 1", "depthwise"]),
    ("resnet", "{block: Bottleneck, before: add}", "layer1.1.add", ["2 values (layer1.1.bn3, layer1.1.x)", "one"]),
    ("resnet", "{block: Bottleneck, before: x}", "layer1.0.x", ["reads no value"]),
    ("plain", "{path: conv_a, before: {op: conv2d}}", "conv_a", ["reads x", "not a feature map"]),
    ("resnet", "{block: Sequential, before: residual}", "layer1", ["no branch joins", "layer1.0, layer1.1"]),
    ("wrapped", "{block: Net, before: residual}", "", ["no branch joins", "there are some in block"]),
    (
        "yolo",
        "{block: Bottleneck, before: residual}",
        "model.1.m.1",
        ["no branch joins a skip connection in its own forward (an addition", "after fewer convolutions"],
    ),
    ("resnet", "{block: Bottleneck, after: output, path: [a, 'layer2.*']}", "layer1.0", ["not in path: a or layer2.*"]),
    ("resnet", "{block: Bottleneck, after: output, exclude: [x, layer1]}", "layer1.0", ["excluded by layer1"]),
    (
        "resnet",
        "{block: Bottleneck, after: conv2, where: {channels: '>64'}}",
        "layer1.0.conv2",
        ["is 64", "requires >64"],
    ),
    ("resnet", "{block: Bottleneck, after: conv2, where: {spatial: 8}}", "layer1.0.conv2", ["is 16x16", "requires 8"]),
    ("resnet", "{block: Bottleneck, after: conv2, where: {reduction: [8, 16]}}", "layer1.0.conv2", ["4", "8 or 16"]),
    (
        "resnet",
        "{block: Bottleneck, after: output, where: {kernel: 3}}",
        "layer1.0",
        ["no kernel", "after: {op: conv2d"],
    ),
    ("yolo", "{block: Detect, after: output, where: {channels: 3}}", "model.3", ["no channels", "tuple with 2"]),
    ("resnet", "{block: Bottleneck, after: output, pick: last}", "layer1.0", ["pick {last: 1} takes layer2.1"]),
    ("resnet", "{block: Bottleneck, after: output, pick: {first: 2}}", "layer2.0", ["takes layer1.0, layer1.1"]),
    ("resnet", "{block: Bottleneck, after: output, pick: {last: 1, per: reduction}}", "layer1.0", ["takes layer1.1"]),
    ("resnet", "{block: Bottleneck, after: output, pick: {last: 1, per: parent}}", "layer1.0", ["takes layer1.1"]),
    (
        "mobile",
        "{path: '*', after: {op: conv}, pick: last}",
        "features.1.conv.se.fc1",
        ["does not count it", "1x1 map"],
    ),
    ("convnext", "{path: '*', after: {op: conv2d}, pick: last}", "aux", ["does not count it", "never ran"]),
    (
        "resnet",
        "{pattern: 'conv2d[k=3,s=2] > norm'}",
        "layer1.0.conv2",
        ["stride is 1x1", "conv2d[k=3,s=2] requires 2"],
    ),
    ("resnet", "{pattern: 'conv2d > norm > conv2d'}", "layer1.0.conv2", ["layer1.0.relu[2] (relu)", "requires conv2d"]),
    (
        "resnet",
        "{pattern: 'relu > conv2d'}",
        "layer1.0.relu[3]",
        ["2 operations (layer1.1.conv1, layer1.1.add)", "one"],
    ),
    ("plain", "{pattern: 'conv2d > relu'}", "conv_c", ["conv_c is read by no operation", "requires relu"]),
    (
        "resnet",
        "{pattern: 'relu > conv2d > norm[k=3]'}",
        "layer1.0.relu",
        ["layer1.0.bn2: this batch_norm has no kernel"],
    ),
    ("plain", "{pattern: 'conv1d > relu'}", "", ["no conv1d", "conv2d (3), mul (1), relu (1), sigmoid (1)"]),
    # one of several inputs, where another is taken
    ("pyramid", "{block: Head, before: input, exclude: 'neck:0'}", "head", ["input neck:0: excluded by neck:0"]),
    ("pyramid", "{block: Head, before: input, where: {reduction: 4}}", "head", ["input neck:0: reduction is"]),
    ("resnet", "{path: layer1.0.conv1, after: {op: conv, which: last}}", "layer1.0.conv1", ["which: last", "leave it"]),
    ("resnet", "{path: layer1.0*, after: {op: conv, which: first}}", "layer1.0.conv2", ["which: first} in layer1.0"]),
    # structure
    ("zorp", "{structure: main, after: {op: conv}}", "body.0.side", ["is on the skip connection"]),
    ("zorp", "{structure: main, after: {op: conv}}", "body.0.squeeze", ["only scales another feature map"]),
    ("zorp", "{structure: main, after: {op: conv, which: last}}", "body.0.wide", ["which: last} in body.0"]),
    ("zorp", "{structure: main, after: {op: conv, kernel: '!=1', which: last}}", "body.1.only", ["kernel is 1x1"]),
    ("zorp", "{structure: main, before: residual}", "body.1", ["no branch joins a skip"]),
    # several maps
    ("pyramid", "{block: Pyramid, after: 'output:1'}", "neck", ["neck:0, neck:p4", "no output:1"]),
    ("pyramid", "{block: Smooth, after: 'output:0'}", "neck.smooth", ["no list", "no output:0"]),
]


@pytest.mark.parametrize(("network", "rule", "path", "facts"), REASONS, ids=lambda value: str(value)[:70])
def test_the_reason_names_what_was_found_and_what_is_wanted(network, rule, path, facts):
    found = match(recipe_of(rule), NETWORKS[network])
    (reason,) = [miss.reason for miss in found.misses if miss.path == path]
    assert not [fact for fact in facts if fact not in reason], reason


MESSAGES = [
    ("resnet", "{block: botleneck, after: output}", ["no block named 'botleneck'", "Did you mean Bottleneck (4)?"]),
    ("resnet", "{block: [Squential, Botlneck], after: conv2}", ["Sequential (4) or Bottleneck (4)?"]),
    ("resnet", "{block: Maxpool, after: output}", ["Did you mean MaxPool2d (1)?", "Bottleneck (4), Sequential (4)"]),
    ("plain", "{block: Bottleneck, after: output}", ["no blocks at all, only Conv2d (3), ReLU (1)"]),
    ("resnet", "{path: layer1.0.conv22, after: output}", ["no value at 'layer1.0.conv22'", "mean 'layer1.0.conv2'?"]),
    (
        "resnet",
        "{block: Bottleneck, after: output, where: {channels: '>=1024'}}",
        [
            "The nearest misses:",
            "\n  layer1.0: channels is 256",
            "\n  layer2.0: channels is 512",
        ],
    ),
    (
        "resnet",
        "{block: Bottleneck, after: conv2, path: 'layer2.*', where: {stage: 2, channels: 64}}",
        ["\n  layer2.0.conv2: channels is 128", "\n  layer1.0.conv2: its path is not in path: layer2.*"],
    ),
    ("resnet", "{block: layer1, after: 0.conv2}", ["a module path: write path: layer1.0.conv2, after: output"]),
    ("resnet", "{block: layer1.0, before: residual}", ["a module path: write path: layer1.0, before: residual"]),
    ("resnet", "{block: layer1, after: {op: conv}}", ["a module path: write path: layer1, after: {op: conv}"]),
    ("resnet", "{block: conv2, after: output}", ["'*.conv2' matches paths: write path: '*.conv2', after: output"]),
    ("resnet", "{block: layer1, after: conv2}", ["path: layer1.*.conv2, after: output in a rule of a recipe"]),
    ("resnet", "{path: layer1.conv2, after: output}", ["mean 'layer1.*.conv2'?"]),
    ("resnet", "{path: model.layer1, after: output}", ["mean 'layer1'?"]),
    ("resnet", "{path: layer1.0.conv1, before: residual}", ["nothing at 'layer1.0.conv1' joins a branch"]),
    ("resnet", "{path: '*.1.?', after: output}", ["'*.1.?' matches only inputs of modules"]),
    ("resnet", "{path: 1.x, after: output}", ["mean '*.1.x'?"]),  # which test_match tries
    ("resnet", "{block: layer1, before: input}", ["a module path: write path: layer1, before: input"]),
    ("resnet", "{block: '" + "{a,b}" * 5 + "', after: '" + "{a,b}" * 3 + "'}", ["no block named"]),
    ("resnet", "{path: Layer1, after: output}", ["mean 'layer1'?", "letter case"]),
    ("resnet", "{path: 'layer1|layer2', after: output}", ["globs, not regular expressions"]),
    ("resnet", "{block: Bottleneck, after: output, path: layr1}", ["\npath: 'layr1' matches", "mean 'layer1'?"]),
    ("plain", "{structure: main, after: output}", ["no block of this model is main"]),
    ("hidden", "{structure: main, after: output}", ["no block of this model is main", "body.0 could not be recorded"]),
    (
        "hidden",
        "{block: Unit, after: cat}",
        ["body.0: is a torch.jit.ScriptModule", "body.0 could not be recorded"],
    ),
    (
        "hidden",
        "{block: Unit, before: residual}",
        ["body.0: is a torch.jit.ScriptModule", "body.0 could not be recorded"],
    ),
    ("hidden", "{block: Detect, after: output}", ["no block named 'Detect'", "body.0 could not be recorded"]),
    ("hidden", "{path: zzz.9, after: output}", ["no value at 'zzz.9'", "body.0 could not be recorded"]),
    ("hidden", "{pattern: 'linear > relu'}", [" could not be recorded", "computes no linear"]),
]


@pytest.mark.parametrize(("network", "rule", "facts"), MESSAGES, ids=lambda value: str(value)[:70])
def test_a_rule_without_a_hit_says_what_is_near(network, rule, facts):
    recipe, anatomy = recipe_of(rule), NETWORKS[network]
    found = match(recipe, anatomy)
    message = unmatched_message(recipe, 0, anatomy, found.misses)
    assert not found.hits
    assert message.startswith(f"rules[0] ({recipe.rules[0].selector}) matches no site")
    assert not [fact for fact in facts if fact not in message], message


def test_a_glob_that_every_path_matches_is_no_hint():
    recipe = recipe_of("{path: 'layer[5-9].*', after: output}")
    message = unmatched_message(recipe, 0, NETWORKS["resnet"], match(recipe, NETWORKS["resnet"]).misses)
    assert message.endswith("this model has no value at 'layer[5-9].*'.")


def test_only_the_rule_in_question_is_explained():
    recipe = Recipe.from_dict(
        {"rules": [{"block": "Bottleneck", "after": "conv4"}, {"block": "Detect", "after": "output"}]}
    )
    anatomy = NETWORKS["resnet"]
    message = unmatched_message(recipe, 1, anatomy, match(recipe, anatomy).misses)
    assert message.startswith("rules[1] (block Detect, after output)")
    assert "conv4" not in message


def test_a_model_without_anything_is_explained():
    recipe = Recipe.from_dict({"rules": [{"block": "Detect", "after": "output"}, {"path": "a", "after": "output"}]})
    empty = Anatomy(())
    found = match(recipe, empty)
    assert found.hits == ()
    assert "no blocks at all" in unmatched_message(recipe, 0, empty, found.misses)
    assert "no value at 'a'" in unmatched_message(recipe, 1, empty, found.misses)


IDLE = [
    ("layr1.*", "mean 'layer1.*'?"),
    ("layer1.0.conv22", "mean 'layer1.0.conv2'?"),
    ("*.cnv2", "mean '*.conv2'?"),
    ("conv2", "mean '*.conv2'?"),
    ("Layer1", "mean 'layer1'?"),
    ("conv22", "mean '*.conv2'?"),
    ("layer(1|2)", "globs, not regular expressions"),
    (".*conv2", "globs, not regular expressions"),
    ("zzz", ""),
]


@pytest.mark.parametrize(("text", "hint"), IDLE)
def test_an_exclude_that_matches_nothing_says_what_is_near(text, hint):
    message = unmatched_exclude(
        Recipe(rules=[{"block": "Bottleneck", "after": "conv2", "exclude": text}]), NETWORKS["resnet"]
    )
    assert message is not None
    assert message.startswith(f"rules[0].exclude: {text!r} matches nothing")
    assert hint in message
    assert "optional: true" in message


@pytest.mark.parametrize(
    ("text", "optional"),
    [
        ("layer1", False),
        ("layer[12].*", False),
        ("*.downsample.*", False),
        ("layer1.0.relu[2]", False),
        ("layr1", True),
    ],
)
def test_an_exclude_that_matches_a_path_or_may_match_none_is_fine(text, optional):
    rule = {"block": "Bottleneck", "after": "conv2", "exclude": text, "optional": optional}
    assert unmatched_exclude(Recipe(rules=[rule]), NETWORKS["resnet"]) is None


def test_one_that_matches_does_not_excuse_the_other():
    rule = {"block": "Bottleneck", "after": "conv2", "exclude": ["layer2", "layr1"]}
    assert "'layr1'" in str(unmatched_exclude(Recipe(rules=[rule]), NETWORKS["resnet"]))
