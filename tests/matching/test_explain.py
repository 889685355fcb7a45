"""The sentences: why a candidate was not taken, word for word, and what a rule without a hit is told."""

import pytest
import yaml

from simam_inject.dataflow.records import Anatomy
from simam_inject.matching import match, unmatched_message
from simam_inject.recipe import Recipe
from tests.matching.networks import NETWORKS

REASONS = [
    (
        "resnet",
        "{block: Bottleneck, after: conv4}",
        "layer1.1",
        "has no child conv4; it has conv1, bn1, relu, conv2, bn2, conv3, bn3, add; did you mean 'conv3'?",
    ),
    (
        "resnet",
        "{block: Bottleneck, after: conv4}",
        "layer1.0",
        (
            "has no child conv4; it has conv1, bn1, relu, conv2, bn2, conv3, bn3, downsample and 1 more; "
            "did you mean 'conv3'?"
        ),
    ),
    (
        "resnet",
        "{block: Bottleneck, after: zzz}",
        "layer1.1",
        "has no child zzz; it has conv1, bn1, relu, conv2, bn2, conv3, bn3, add",
    ),
    (
        "resnet",
        "{block: Bottleneck, after: relu}",
        "layer1.0.relu",
        "relu is called 3 times; write relu[1], relu[2] or relu[3]",
    ),
    (
        "resnet",
        "{block: Bottleneck, after: 'relu[4]'}",
        "layer1.0.relu",
        "relu is called 3 times in layer1.0; there is no relu[4]",
    ),
    (
        "resnet",
        "{block: Bottleneck, after: 'conv2[2]'}",
        "layer1.0.conv2",
        "conv2 is called once in layer1.0; there is no conv2[2]",
    ),
    (
        "mobile",
        "{block: SqueezeExcitation, after: 'conv2d[3]'}",
        "features.1.conv.se",
        "conv2d is computed twice in it; there is no conv2d[3]",
    ),
    (
        "resnet",
        "{block: Bottleneck, after: 'conv[12]'}",
        "layer1.1",
        ("conv is computed 3 times in it; there is no conv[12]; [..] counts calls; the children are '{conv1,conv2}'"),
    ),
    (
        "resnet",
        "{block: [Sequential, Botleneck], after: output}",
        "",
        "has no block named 'Botleneck'; did you mean 'Bottleneck'?",
    ),
    ("resnet", "{block: Bottleneck, after: max_pool}", "layer1.0", "has no child and no operation named max_pool"),
    (
        "resnet",
        "{block: Bottleneck, after: {op: conv1d}}",
        "layer1.0",
        "has no operation conv1d; it computes add, batch_norm, conv2d, relu",
    ),
    (
        "resnet",
        "{block: Bottleneck, after: {op: conv2d, kernel: 3}}",
        "layer1.0.conv1",
        "kernel is 1x1; after {op: conv2d, kernel: 3} wants 3",
    ),
    (
        "mobile",
        "{block: InvertedResidual, after: {op: conv2d, groups: depthwise}}",
        "features.0.conv.2",
        "groups is 1; after {op: conv2d, groups: depthwise} wants depthwise",
    ),
    (
        "resnet",
        "{block: Bottleneck, before: add}",
        "layer1.1.add",
        "reads 2 values (layer1.1.bn3, layer1.1.x); before needs a reader of one",
    ),
    (
        "resnet",
        "{block: Bottleneck, before: x}",
        "layer1.0.x",
        "is what the block is given and reads nothing itself; write after instead of before",
    ),
    ("plain", "{path: conv_a, before: {op: conv2d}}", "conv_a", "reads x, which is no feature map"),
    (
        "resnet",
        "{block: Sequential, before: residual}",
        "layer1",
        "no branch joins a skip in its own forward; there are some in layer1.0, layer1.1",
    ),
    ("yolo", "{block: Bottleneck, before: residual}", "model.1.m.1", "no branch joins a skip in its own forward"),
    ("resnet", "{block: Bottleneck, after: output, path: 'layer2.*'}", "layer1.0", "its path is not in path: layer2.*"),
    ("resnet", "{block: Bottleneck, after: output, path: [a, b]}", "layer1.0", "its path is not in path: a or b"),
    ("resnet", "{block: Bottleneck, after: output, exclude: [x, 'layer1']}", "layer1.0", "excluded by layer1"),
    (
        "resnet",
        "{block: Bottleneck, after: conv2, where: {channels: '>64'}}",
        "layer1.0.conv2",
        "channels is 64; where.channels wants >64",
    ),
    (
        "resnet",
        "{block: Bottleneck, after: conv2, where: {spatial: '<=8'}}",
        "layer1.0.conv2",
        "spatial is 16x16; where.spatial wants <=8",
    ),
    (
        "resnet",
        "{block: Bottleneck, after: conv2, where: {reduction: [8, 16]}}",
        "layer1.0.conv2",
        "reduction is 4; where.reduction wants 8 or 16",
    ),
    (
        "resnet",
        "{block: Bottleneck, after: output, where: {kernel: 3}}",
        "layer1.0",
        (
            "kernel is not known: this block has none; where.kernel wants 3; "
            "an operation has it: after: {op: conv2d, kernel: 3}"
        ),
    ),
    (
        "yolo",
        "{block: Detect, after: output, where: {channels: 3}}",
        "model.3",
        "channels is not known: returns a tuple with 2 tensors, not a feature map; where.channels wants 3",
    ),
    ("resnet", "{block: Bottleneck, after: output, pick: last}", "layer1.0", "pick {last: 1} takes layer2.1"),
    (
        "resnet",
        "{block: Bottleneck, after: output, pick: {first: 2}}",
        "layer2.0",
        "pick {first: 2} takes layer1.0 to layer1.1",
    ),
    (
        "resnet",
        "{block: Bottleneck, after: output, pick: {last: 1, per: reduction}}",
        "layer1.0",
        "pick {last: 1, per: reduction} takes layer1.1 at reduction 4",
    ),
    (
        "resnet",
        "{block: Bottleneck, after: output, pick: {last: 1, per: parent}}",
        "layer1.0",
        "pick {last: 1, per: parent} takes layer1.1 in layer1",
    ),
    (
        "mobile",
        "{path: '*', after: {op: conv2d}, pick: last}",
        "features.1.conv.se.fc1",
        "pick {last: 1} does not count it: is a 1x1 map: its gate would be the constant sigmoid(0.5)",
    ),
    (
        "convnext",
        "{path: '*', after: {op: conv2d}, pick: last}",
        "aux",
        "pick {last: 1} does not count it: never ran in the example forward",
    ),
    (
        "resnet",
        "{pattern: 'conv2d[k=3,s=2] > norm'}",
        "layer1.0.conv2",
        "stride is 1x1; the pattern's conv2d[k=3,s=2] wants 2",
    ),
    (
        "resnet",
        "{pattern: 'conv2d > norm > conv2d'}",
        "layer1.0.conv2",
        "layer1.0.bn2 is read by layer1.0.relu[2] (relu); the pattern wants conv2d",
    ),
    (
        "resnet",
        "{pattern: 'relu > conv2d'}",
        "layer1.0.relu[3]",
        (
            "layer1.0.relu[3] is read by 2 operations (layer1.1.conv1, layer1.1.add); in a pattern each value has one "
            "reader; layer1.1.add is where a residual branch joins"
        ),
    ),
    (
        "plain",
        "{pattern: 'conv2d > mul'}",
        "conv_b",
        "conv_b is read by 2 operations (sigmoid, mul); in a pattern each value has one reader",
    ),
    ("plain", "{pattern: 'conv2d > relu'}", "conv_c", "no operation reads conv_c; the pattern wants relu to"),
    (
        "resnet",
        "{pattern: 'relu > conv2d[k=1] > norm[k=3]'}",
        "layer1.0.relu[2]",
        "layer1.0.bn3: kernel is not known: this batch_norm has none; the pattern's norm[k=3] wants 3",
    ),
    (
        "plain",
        "{pattern: 'conv1d > relu'}",
        "",
        "computes no conv1d; its operations are conv2d (3), mul (1), relu (1), sigmoid (1)",
    ),
]


@pytest.mark.parametrize(("network", "rule", "path", "reason"), REASONS, ids=lambda value: str(value)[:70])
def test_the_reason_is_a_sentence_with_what_was_found_and_what_is_wanted(network, rule, path, reason):
    found = match(Recipe.from_dict({"rules": [yaml.safe_load(rule)]}), NETWORKS[network]())
    assert [miss.reason for miss in found.misses if miss.path == path] == [reason]


MESSAGES = [
    (
        "resnet",
        "{block: botleneck, after: output}",
        (
            "rules[0] (block botleneck, after output) takes no site: this model has no block named 'botleneck'. "
            "Did you mean Bottleneck (4)? Its blocks: Bottleneck (4), Sequential (4)."
        ),
    ),
    (
        "resnet",
        "{block: [Squential, Botlneck], after: conv2}",
        (
            "rules[0] (block Squential or Botlneck, after conv2) takes no site: this model has no block named "
            "'Squential' or 'Botlneck'. Did you mean Sequential (4) or Bottleneck (4)? Its blocks: Bottleneck (4), "
            "Sequential (4)."
        ),
    ),
    (
        "resnet",
        "{block: Maxpool, after: output}",
        (
            "rules[0] (block Maxpool, after output) takes no site: this model has no block named 'Maxpool'. "
            "Did you mean MaxPool2d (1)? Its blocks: Bottleneck (4), Sequential (4)."
        ),
    ),
    (
        "plain",
        "{block: Bottleneck, after: output}",
        (
            "rules[0] (block Bottleneck, after output) takes no site: this model has no block named 'Bottleneck'; "
            "it has no blocks at all, only Conv2d (3), ReLU (1)."
        ),
    ),
    (
        "resnet",
        "{path: layer1.0.conv22, after: output}",
        (
            "rules[0] (path layer1.0.conv22, after output) takes no site: this model has no value at "
            "'layer1.0.conv22'. Did you mean layer1.0.conv2 or layer2.0.conv2 or layer1.1.conv2?"
        ),
    ),
    (
        "resnet",
        "{block: Bottleneck, after: output, where: {channels: '>=1024'}}",
        (
            "rules[0] (block Bottleneck, after output) takes no site. The nearest misses:\n"
            "  layer1.0: channels is 256; where.channels wants >=1024\n"
            "  layer2.0: channels is 512; where.channels wants >=1024\n"
            "  layer1.1: channels is 256; where.channels wants >=1024"
        ),
    ),
    (
        "resnet",
        "{block: Bottleneck, after: conv2, path: 'layer2.*', where: {stage: 2, channels: 64}}",
        (
            "rules[0] (block Bottleneck, after conv2) takes no site. The nearest misses:\n"
            "  layer2.0.conv2: channels is 128; where.channels wants 64\n"
            "  layer2.1.conv2: channels is 128; where.channels wants 64\n"
            "  layer1.0.conv2: its path is not in path: layer2.*"
        ),
    ),
]


@pytest.mark.parametrize(("network", "rule", "message"), MESSAGES, ids=lambda value: str(value)[:70])
def test_a_rule_without_a_hit_is_told_what_is_near(network, rule, message):
    recipe, anatomy = Recipe.from_dict({"rules": [yaml.safe_load(rule)]}), NETWORKS[network]()
    assert unmatched_message(recipe, 0, anatomy, match(recipe, anatomy).misses) == message


MIX_UPS = [
    ("{block: layer1, after: output}", "'layer1' is a module path: write path: layer1, after: output."),
    (
        "{block: layer1, after: 0.conv2}",
        "'layer1.0.conv2' is a module path: write path: layer1.0.conv2, after: output.",
    ),
    ("{block: layer1, before: input}", "'layer1' is a module path: write path: layer1, before: input."),
    ("{block: models.resnet.Bottleneck, after: conv2}", "A class is named without its module: Bottleneck."),
    ("{block: models, after: resnet.Bottleneck.conv2}", "A class is named without its module: Bottleneck."),
    ("{block: residual, before: input}", "Did you mean 'before bottleneck.residual'?"),
    ("{path: Layer1, after: output}", "Letter case counts; did you mean layer1?"),
    ("{path: 'layer1|layer2', after: output}", "Paths are globs, not regular expressions"),
    ("{block: Bottleneck, after: output, path: layr1}", "\npath: 'layr1' matches nothing in this model. Did you mean"),
    ("{pattern: cat > Bottleneck}", "\nBottleneck is a class, and a pattern names operations; write block: Bottleneck"),
]


@pytest.mark.parametrize(("rule", "sentence"), MIX_UPS)
def test_what_was_mixed_up_is_said(rule, sentence):
    recipe, anatomy = Recipe.from_dict({"rules": [yaml.safe_load(rule)]}), NETWORKS["resnet"]()
    assert sentence in unmatched_message(recipe, 0, anatomy, match(recipe, anatomy).misses)


def test_a_name_among_others_is_no_slip_where_what_is_near_is_taken():
    recipe = Recipe.from_dict({"rules": [{"block": ["Bottleneck", "PreBottleneck"], "after": "conv2"}]})
    assert not [miss for miss in match(recipe, NETWORKS["resnet"]()).misses if not miss.path]


def test_only_the_rule_in_question_is_explained():
    recipe = Recipe.from_dict(
        {"rules": [{"block": "Bottleneck", "after": "conv4"}, {"block": "Detect", "after": "output"}]}
    )
    anatomy = NETWORKS["resnet"]()
    message = unmatched_message(recipe, 1, anatomy, match(recipe, anatomy).misses)
    assert message.startswith(
        "rules[1] (block Detect, after output) takes no site: this model has no block named 'Detect'"
    )


def test_a_model_without_anything_is_explained():
    recipe = Recipe.from_dict({"rules": [{"block": "Detect", "after": "output"}, {"path": "a", "after": "output"}]})
    empty = Anatomy(())
    assert match(recipe, empty).hits == ()
    assert unmatched_message(recipe, 0, empty, ()).endswith("it has no blocks at all.")
    assert unmatched_message(recipe, 1, empty, ()).endswith("this model has no value at 'a'.")
