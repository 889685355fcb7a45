"""A mistake in a recipe is one RecipeError: the path of the key, what was found, what is allowed, what is near."""

from functools import partial

import pytest
import yaml

from simam_inject.errors import RecipeError
from simam_inject.recipe import Recipe, Rule, Where, load_recipe


def rule(text):
    return "{rules: [{block: A, after: b}, {" + text + "}]}"


MESSAGES = [
    # (recipe, path of the key, what the message names)
    ("3", "recipe", ["found 3", "version, name, description, extends, e_lambda, rules"]),
    ("{}", "recipe", ["no rules", "extends: paper"]),
    ("{rules: []}", "recipe", ["no rules"]),
    ("{rules: 3}", "rules", ["found 3", "list"]),
    ("{rules: {block: A}}", "rules", ["found a mapping", "list"]),
    ("{rules: [3]}", "rules[0]", ["found 3", "structure, block, pattern, path, exclude, after, before, where, pick"]),
    ("{rules: [{block: A, after: b}, after b.conv2]}", "rules[1]", ["'after b.conv2'", "{block: b, after: conv2}"]),
    ("{extends: paper, rules: [before b]}", "rules[0]", ["write {block: b, before: input}"]),
    ("{version: 2, rules: [{block: A, after: b}]}", "version", ["found 2", "1"]),
    ("{name: 3, rules: [{block: A, after: b}]}", "name", ["found 3", "string"]),
    ("{rule: [], e_lambda: 0.1}", "rule", ["unknown key", "mean 'rules'?"]),
    ("{block: A, after: conv2}", "block", ["unknown key", "belongs in an entry of 'rules'"]),
    ("{'-': 3}", "'-'", ["unknown key"]),
    ("{'A·': 3}", "'A·'", ["unknown key"]),
    ('{"' + "\U000f0000" * 7 + '": 3}', repr("\U000f0000" * 7), ["unknown key"]),
    ("{extends: paper, rules: {}}", "rules", ["found a mapping", "list"]),
    ("{extends: paper, rules: ''}", "rules", ["found ''", "list"]),
    ("{extends: 3}", "extends", ["no shipped recipe is named 3", "paper"]),
    # e_lambda
    ("{e_lambda: -1, rules: [{block: A, after: b}]}", "e_lambda", ["found -1", "greater than 0"]),
    ("{e_lambda: 0, rules: [{block: A, after: b}]}", "e_lambda", ["found 0", "greater than 0"]),
    ("{e_lambda: .nan, rules: [{block: A, after: b}]}", "e_lambda", ["found nan", "finite"]),
    ("{e_lambda: .inf, rules: [{block: A, after: b}]}", "e_lambda", ["found inf", "finite"]),
    ("{e_lambda: true, rules: [{block: A, after: b}]}", "e_lambda", ["found true", "number"]),
    ("{e_lambda: [0.1], rules: [{block: A, after: b}]}", "e_lambda", ["found a list", "number"]),
    ("{e_lambda: '0.1', rules: [{block: A, after: b}]}", "e_lambda", ["found '0.1'", "number"]),
    (rule("block: A, after: b, e_lambda: small"), "rules[1].e_lambda", ["found 'small'"]),
    # selection
    (rule("after: b"), "rules[1]", ["has no selector", "structure: main", "block: Bottleneck"]),
    (rule("block: A, pattern: 'conv2d > relu'"), "rules[1]", ["both 'block' and 'pattern'", "exactly one"]),
    (rule("block: A, structure: main, after: b"), "rules[1]", ["both 'structure' and 'block'", "exactly one"]),
    (
        rule("structure: mian, after: b"),
        "rules[1].structure",
        ["found 'mian'", "'residual', 'main' or 'decoder'", "mean 'main'?"],
    ),
    (rule("structure: [main, 3], after: b"), "rules[1].structure[1]", ["found 3", "'main' or 'decoder'"]),
    (rule("structure: [], after: b"), "rules[1].structure", ["not 0"]),
    (rule("blok: A, after: b"), "rules[1].blok", ["unknown key", "mean 'block'?"]),
    (rule("block: A, after: b, channels: 3"), "rules[1].channels", ["belongs under 'where'"]),
    (rule("block: A, after: b, last: 1"), "rules[1].last", ["belongs under 'pick'"]),
    (rule("block: A, after: b, which: last"), "rules[1].which", ["belongs under 'after'"]),
    (rule("block: A, after: b, zzz: 1"), "rules[1].zzz", ["unknown key"]),
    (rule("block: [A, 3], after: b"), "rules[1].block[1]", ["found 3", "string"]),
    (rule("path: {a,b}, after: b"), "rules[1].path", ["found a mapping", "string, in quotes if it begins with {"]),
    (rule("block: '', after: b"), "rules[1].block", ["found ''", "at least 1"]),
    (rule("path: '{a,b', after: b"), "rules[1].path", ["'{a,b'", "unbalanced brace"]),
    (rule("path: 'a}', after: b"), "rules[1].path", ["unbalanced brace"]),
    (rule("path: '" + "{a,b}" * 7 + "', after: b"), "rules[1].path", ["more than 64 alternatives"]),
    (rule("path: " + "a" * 201 + ", after: b"), "rules[1].path", ["201 characters", "at most 200"]),
    # place
    (rule("block: A"), "rules[1]", ["has neither 'after' nor 'before'", "after: output"]),
    (rule("block: A, after: b, before: c"), "rules[1]", ["both 'after' and 'before'"]),
    (rule("block: A, before: output"), "rules[1].before", ["write after: output"]),
    (rule("block: A, after: input"), "rules[1].after", ["write before: input"]),
    (rule("block: A, after: residual"), "rules[1].after", ["write before: residual, or '{residual}' for a child"]),
    (rule("block: A, after: [conv1, conv2]"), "rules[1].after", ["found a list", "'{conv1,conv2}'"]),
    (rule("block: A, after: 0"), "rules[1].after", ["found 0", "in quotes: '0'"]),
    (rule("block: A, after: 'relu[0]'"), "rules[1].after", ["found 'relu[0]'", "relu[1] is the first"]),
    (rule("block: A, after: {kernel: 3}"), "rules[1].after.op", ["is missing"]),
    (rule("block: A, after: {op: conv2d, kernal: 3}"), "rules[1].after.kernal", ["unknown key", "mean 'kernel'?"]),
    (rule("block: A, after: {op: conv2}"), "rules[1].after.op", ["found 'conv2'", "mean 'conv2d'?"]),
    (rule("block: A, after: {op: batchnrom}"), "rules[1].after.op", ["mean 'batch_norm'?"]),
    (rule("block: A, after: {op: 3}"), "rules[1].after.op", ["found 3"]),
    (rule("block: A, after: {op: 'a b'}"), "rules[1].after.op", ["found 'a b'"]),
    (rule("block: A, after: {op: []}"), "rules[1].after.op", ["not 0", "at least 1"]),
    (rule("block: A, after: {op: depthwise}"), "rules[1].after.op", ["a condition", "groups=depthwise"]),
    (rule("block: A, before: {op: conv2d, groups: dw}"), "rules[1].before.groups", ["found 'dw'", "depthwise"]),
    (rule("block: A, after: {op: conv2d, which: lats}"), "rules[1].after.which", ["'lats'", "'first'", "mean 'last'?"]),
    # pattern
    (rule("pattern: 3"), "rules[1].pattern", ["found 3", "string"]),
    (rule("pattern: 'conv2d >'"), "rules[1].pattern", ["found ''", "conv2d[k=3, s>=2, groups=depthwise]"]),
    (rule("pattern: 'conv2d[k=]'"), "rules[1].pattern", ["found 'conv2d[k=]'"]),
    (rule("pattern: 'conv2d[kernal=3]'"), "rules[1].pattern.kernal", ["unknown key", "mean 'kernel'?"]),
    (rule("pattern: 'conv2d[which=last]'"), "rules[1].pattern.which", ["unknown key", "kernel, stride"]),
    (rule("pattern: 'conv2d[op=relu]'"), "rules[1].pattern.op", ["unknown key"]),
    (rule("pattern: 'depthwise > norm'"), "rules[1].pattern", ["a condition"]),
    (rule("pattern: 'conv2d[k=3,k=5]'"), "rules[1].pattern", ["twice"]),
    (rule("pattern: 'conv2d[k=big]'"), "rules[1].pattern.kernel", ["found 'big'"]),
    (rule("pattern: 'conv2d > relu', after: bn"), "rules[1].after", ["'bn' is not an element"]),
    (rule("pattern: 'conv2d > relu', before: rlu"), "rules[1].before", ["not an element", "mean 'relu'?"]),
    (rule("pattern: 'relu > conv > relu', after: relu"), "rules[1].after", ["ambiguous", "relu[1] or relu[2]"]),
    (rule("pattern: 'relu > conv', after: 'relu[2]'"), "rules[1].after", ["'relu[2]' is not", "write relu[1]"]),
    (rule("pattern: 'relu > conv', before: residual"), "rules[1].before", ["'residual' is not an element"]),
    # where
    (rule("block: A, after: b, where: {chanels: 3}"), "rules[1].where.chanels", ["unknown key", "mean 'channels'?"]),
    (rule("block: A, after: b, where: 3"), "rules[1].where", ["found 3", "channels, spatial, reduction, stage"]),
    (rule("block: A, after: b, where: {channels: big}"), "rules[1].where.channels", ["found 'big'", "'>=64'"]),
    (rule("block: A, after: b, where: {channels: 3.5}"), "rules[1].where.channels", ["found 3.5"]),
    (rule("block: A, after: b, where: {channels: -3}"), "rules[1].where.channels", ["found -3", "from 0"]),
    (rule("block: A, after: b, where: {channels: []}"), "rules[1].where.channels", ["not 0"]),
    (rule("block: A, after: b, where: {kernel: '>1x7'}"), "rules[1].where.kernel", ["found '>1x7'", "'!=1x7'"]),
    # pick
    (rule("block: A, after: b, pick: frist"), "rules[1].pick", ["found 'frist'", "'first'"]),
    (rule("block: A, after: b, pick: 3"), "rules[1].pick", ["found 3", "{last: 1, per: reduction}"]),
    (rule("block: A, after: b, pick: {lats: 1}"), "rules[1].pick.lats", ["unknown key", "mean 'last'?"]),
    (rule("block: A, after: b, pick: {per: stage}"), "rules[1].pick", ["none of first, last, every"]),
    (rule("block: A, after: b, pick: {first: 1, last: 1}"), "rules[1].pick", ["first and last", "exactly one"]),
    (rule("block: A, after: b, pick: {first: 0}"), "rules[1].pick.first", ["found 0", "1"]),
    (rule("block: A, after: b, pick: {first: true}"), "rules[1].pick.first", ["found true", "whole number"]),
    (rule("block: A, after: b, pick: {first: 1, per: layer}"), "rules[1].pick.per", ["'layer'", "'model', 'stage'"]),
    (rule("block: A, after: b, optional: yes please"), "rules[1].optional", ["'yes please'", "true or false"]),
]


CALLS = [
    # the constructors raise the same error
    (lambda: Rule(blok="A", after="b"), "blok", ["unknown key", "mean 'block'?"]),
    (lambda: Rule(after="b"), "rule", ["has no selector"]),
    (lambda: Where(kernel="big"), "kernel", ["found 'big'"]),
    (lambda: Recipe(rules=[object()]), "rules[0]", ["type object", "mapping"]),
    (Recipe, "recipe", ["no rules"]),
    # names and selectors
    (lambda: load_recipe("papr"), "recipe", ["'papr'", "block-output, convnext", "mean 'paper'?"]),
    (lambda: load_recipe(object()), "recipe", ["type object", "a Recipe, a mapping"]),
    (lambda: load_recipe("after bottleneck."), "selector", ["'after bottleneck.'", "BLOCK.CHILD"]),
    (lambda: load_recipe("after .conv2"), "selector", ["'after .conv2'", "BLOCK.CHILD"]),
    (lambda: load_recipe("after after bottleneck"), "selector", ["'after after bottleneck'"]),
    (lambda: load_recipe("before after bottleneck"), "selector", ["'before after bottleneck'"]),
    (lambda: load_recipe("into bottleneck"), "recipe", ["'into bottleneck'", "'after bottleneck.conv2'"]),
    (lambda: load_recipe("after"), "recipe", ["found 'after'", "write after BLOCK.CHILD"]),
    (lambda: load_recipe("before bottleneck.output"), "before", ["after: output", "'before bottleneck.output'"]),
    (lambda: load_recipe("after bottleneck.relu[0]"), "after", ["from 1", "'after bottleneck.relu[0]'"]),
]
ALL = [(partial(lambda text: Recipe.from_dict(yaml.safe_load(text)), text), *more) for text, *more in MESSAGES] + CALLS


@pytest.mark.parametrize(("call", "path", "facts"), ALL, ids=[text[:80] for text, *_ in MESSAGES] + [None] * len(CALLS))
def test_the_message_says_where_what_and_what_is_allowed(call, path, facts):
    with pytest.raises(RecipeError) as caught:
        call()
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert not [fact for fact in facts if fact not in message], message


def test_a_channel_count_as_lambda_is_warned_of():
    with pytest.warns(UserWarning, match=r"^e_lambda: 1024 is probably a channel count"):
        assert Rule(block="A", after="b", e_lambda=1024).e_lambda == 1024.0
    assert Rule(block="A", after="b", e_lambda=1024.0).e_lambda == 1024.0
    assert Rule(block="A", after="b", e_lambda=1).e_lambda == 1.0
