# ruff: noqa: E501  (tables: a case, and its message word for word, stay on one line)
"""A mistake in a recipe is one RecipeError: the path of the key, what was found, what is allowed, what is near."""

import pytest
import yaml

from simam_inject.errors import InjectError, RecipeError
from simam_inject.recipe import Recipe, Rule, Where, load_recipe, selector

RULE_KEYS = "block, pattern, path, exclude, after, before, where, pick, e_lambda, optional"
BOUNDS = "a whole number, a comparison such as '>=64' or '>=8, <=32', a size such as '1x7', or a list of these"
FORMS = "all, first, last, or a mapping such as {last: 1, per: reduction}"
LAMBDA = "allowed is a finite number above 0, e.g. 0.1 or 1e-4"


def rule(text):
    return "{rules: [{block: A, after: b}, {" + text + "}]}"


MESSAGES = [
    # the whole
    ("3", "recipe: found 3; allowed is a mapping with the keys version, name, description, extends, e_lambda, rules"),
    ("{}", "recipe: has no rules; write rules: [{block: Bottleneck, after: conv2}], or extends: paper"),
    ("{rules: []}", "recipe: has no rules; write rules: [{block: Bottleneck, after: conv2}], or extends: paper"),
    ("{rules: 3}", "rules: found 3; allowed is a list; write rules: [{block: ..., after: ...}]"),
    ("{rules: {block: A}}", "rules: found a mapping; allowed is a list; write rules: [{block: ..., after: ...}]"),
    ("{rules: [3]}", f"rules[0]: found 3; allowed is a mapping with the keys {RULE_KEYS}"),
    ("{version: 2, rules: [{block: A, after: b}]}", "version: found 2; this program reads version 1 of the recipe language"),
    ("{version: true, rules: [{block: A, after: b}]}", "version: found true; this program reads version 1 of the recipe language"),
    ("{name: 3, rules: [{block: A, after: b}]}", "name: found 3; allowed is a text"),
    (
        "{rule: [], e_lambda: 0.1}",
        "rule: unknown key; allowed are version, name, description, extends, e_lambda, rules; did you mean 'rules'?",
    ),
    (
        "{block: A, after: conv2}",
        ("block: unknown key; allowed are version, name, description, extends, e_lambda, rules; "
        "'block' belongs in an entry of 'rules' (also wrong: after)"),
    ),
    ("{'-': 3}", "'-': unknown key; allowed are version, name, description, extends, e_lambda, rules"),
    ("{extends: 3}", None),
    # e_lambda
    ("{e_lambda: -1, rules: [{block: A, after: b}]}", f"e_lambda: found -1; {LAMBDA}"),
    ("{e_lambda: 0, rules: [{block: A, after: b}]}", f"e_lambda: found 0; {LAMBDA}"),
    ("{e_lambda: .nan, rules: [{block: A, after: b}]}", f"e_lambda: found nan; {LAMBDA}"),
    ("{e_lambda: .inf, rules: [{block: A, after: b}]}", f"e_lambda: found inf; {LAMBDA}"),
    ("{e_lambda: true, rules: [{block: A, after: b}]}", f"e_lambda: found true; {LAMBDA}"),
    ("{e_lambda: [0.1], rules: [{block: A, after: b}]}", f"e_lambda: found a list; {LAMBDA}"),
    ("{e_lambda: '0.1', rules: [{block: A, after: b}]}", f"e_lambda: found '0.1'; {LAMBDA}; write the number without quotes"),
    (rule("block: A, after: b, e_lambda: small"), f"rules[1].e_lambda: found 'small'; {LAMBDA}"),
    # selection
    (rule("after: b"), "rules[1]: selects nothing; write block: Bottleneck, pattern: 'conv2d > relu', or path: 'layer3.*'"),
    (
        rule("block: A, pattern: 'conv2d > relu'"),
        "rules[1]: has both 'block' and 'pattern'; exactly one selects (a 'path' beside it narrows)",
    ),
    (rule("blok: A, after: b"), f"rules[1].blok: unknown key; allowed are {RULE_KEYS}; did you mean 'block'?"),
    (rule("block: A, after: b, channels: 3"), f"rules[1].channels: unknown key; allowed are {RULE_KEYS}; 'channels' belongs under 'where'"),
    (rule("block: A, after: b, last: 1"), f"rules[1].last: unknown key; allowed are {RULE_KEYS}; 'last' belongs under 'pick'"),
    (rule("block: A, after: b, zzz: 1"), f"rules[1].zzz: unknown key; allowed are {RULE_KEYS}"),
    (rule("block: 3, after: b"), "rules[1].block: found 3; a glob is a text such as 'layer[34].*'"),
    (rule("block: [A, 3], after: b"), "rules[1].block: found 3; a glob is a text such as 'layer[34].*'"),
    (rule("block: '', after: b"), "rules[1].block: found an empty text; a glob is a text such as 'layer[34].*' or '*'"),
    (rule("path: '{a,b', after: b"), "rules[1].path: '{a,b' has a brace without its partner; alternatives are written {a,b}"),
    (rule("path: 'a}', after: b"), "rules[1].path: 'a}' has a brace without its partner; alternatives are written {a,b}"),
    (
        rule("path: '" + "{a,b}" * 7 + "', after: b"),
        "rules[1].path: '" + "{a,b}" * 7 + "' stands for more than 64 alternatives; write a shorter list",
    ),
    (rule("path: " + "a" * 201 + ", after: b"), "rules[1].path: found a glob of 201 characters; at most 200 are allowed"),
    # place
    (rule("block: A"), "rules[1]: says not where; write after: output, after: conv2, before: bn2 or before: residual"),
    (rule("block: A, after: b, before: c"), "rules[1]: has both 'after' and 'before'; exactly one says where"),
    (rule("block: A, before: output"), "rules[1].before: nothing reads a block's output inside the block; write after: output"),
    (rule("block: A, after: input"), "rules[1].after: what a block is given is attended for the block alone; write before: input"),
    (
        rule("block: A, after: residual"),
        "rules[1].after: the residual branch is attended before it joins the skip; write before: residual",
    ),
    (
        rule("block: A, after: [conv1, conv2]"),
        ("rules[1].after: found a list; allowed is 'output', 'input', 'residual', the name of a child such as conv2 or "
        "relu[2], or an operation such as {op: conv2d, kernel: 3}; for several children write '{conv1,conv2}'"),
    ),
    (
        rule("block: A, after: 0"),
        ("rules[1].after: found 0; allowed is 'output', 'input', 'residual', the name of a child such as conv2 or relu[2], "
        "or an operation such as {op: conv2d, kernel: 3}; the name of a child is written in quotes: '0'"),
    ),
    (rule("block: A, after: 'relu[0]'"), "rules[1].after: found 'relu[0]'; calls are counted from 1: relu[1] is the first"),
    (rule("block: A, after: {kernel: 3}"), "rules[1].after.op: is missing; it names the operation, e.g. {op: conv2d, kernel: 3}"),
    (
        rule("block: A, after: {op: conv2d, kernal: 3}"),
        "rules[1].after.kernal: unknown key; allowed are op, kernel, stride, dilation, groups; did you mean 'kernel'?",
    ),
    (
        rule("block: A, after: {op: conv2}"),
        ("rules[1].after.op: found 'conv2'; operations are named like conv2d, batch_norm, relu, max_pool, add, cat, or by "
        "family: conv, norm, act, pool. Did you mean 'conv2d'?"),
    ),
    (
        rule("block: A, after: {op: batchnrom}"),
        ("rules[1].after.op: found 'batchnrom'; operations are named like conv2d, batch_norm, relu, max_pool, add, cat, or "
        "by family: conv, norm, act, pool. Did you mean 'batch_norm'?"),
    ),
    (rule("block: A, after: {op: 3}"), "rules[1].after.op: found 3; operations are named like conv2d, batch_norm, relu or act"),
    (rule("block: A, after: {op: 'a b'}"), "rules[1].after.op: found 'a b'; operations are named like conv2d, batch_norm or *norm"),
    (rule("block: A, after: {op: []}"), "rules[1].after.op: found a list of 0 entries; allowed are 1 to 16"),
    (rule("block: A, before: {op: conv2d, groups: dw}"), f"rules[1].before.groups: found 'dw'; allowed is {BOUNDS}, or 'depthwise'"),
    (
        rule("block: A, after: {op: conv2d, kernel: 3}, where: {kernel: 3}"),
        "rules[1].where: kernel is also in after: {op: conv2d, kernel: 3}; say it once",
    ),
    # pattern
    (rule("pattern: 3"), "rules[1].pattern: found 3; a pattern is a chain such as 'conv2d > batch_norm > relu'"),
    (
        rule("pattern: 'conv2d >'"),
        ("rules[1].pattern: found '' as a member of the chain; members are written like conv2d, *norm or "
        "conv2d[k=3, s=2, groups=depthwise], with '>' between them"),
    ),
    (rule("pattern: 'conv2d[k=]'"), "rules[1].pattern: found 'k=' in 'conv2d[k=]'; conditions are written like k=3, s>=2 or groups=depthwise"),
    (
        rule("pattern: 'conv2d[kernal=3]'"),
        ("rules[1].pattern: unknown condition 'kernal' in 'conv2d[kernal=3]'; allowed are k (kernel), s (stride), "
        "d (dilation), g (groups); did you mean 'kernel'?"),
    ),
    (
        rule("pattern: 'depthwise > norm'"),
        "rules[1].pattern: depthwise is a condition, not an operation; write conv2d[g=depthwise] in a pattern, else {op: conv2d, groups: depthwise}",
    ),
    (
        rule("block: A, after: {op: depthwise}"),
        "rules[1].after.op: depthwise is a condition, not an operation; write conv2d[g=depthwise] in a pattern, else {op: conv2d, groups: depthwise}",
    ),
    (rule("pattern: 'conv2d[k=3,k=5]'"), "rules[1].pattern: 'conv2d[k=3,k=5]' gives kernel twice"),
    (rule("pattern: 'conv2d[k=big]'"), f"rules[1].pattern: k in 'conv2d[k=big]': found 'big'; allowed is {BOUNDS}"),
    (rule("pattern: 'conv2d > relu', after: bn"), "rules[1].after: 'bn' is not a member of the chain (conv2d > relu)"),
    (
        rule("pattern: 'conv2d > relu', before: rlu"),
        "rules[1].before: 'rlu' is not a member of the chain (conv2d > relu); did you mean 'relu'?",
    ),
    (
        rule("pattern: 'relu > conv > relu', after: relu"),
        "rules[1].after: 'relu' is 2 times in the chain (relu > conv > relu); write one of relu[1], relu[2]",
    ),
    (
        rule("pattern: 'relu > conv', after: 'relu[2]'"),
        "rules[1].after: relu[2] is not in the chain (relu > conv): 'relu' is there 1 times",
    ),
    (rule("pattern: 'relu > conv', before: residual"), "rules[1].before: residual is not a member of the chain (relu > conv); write its name, e.g. relu"),
    # where
    (
        rule("block: A, after: b, where: {chanels: 3}"),
        ("rules[1].where.chanels: unknown key; allowed are channels, spatial, reduction, stage, kernel, stride, dilation, "
        "groups; did you mean 'channels'?"),
    ),
    (rule("block: A, after: b, where: 3"), "rules[1].where: found 3; allowed is a mapping with the keys channels, spatial, reduction, stage, kernel, stride, dilation, groups"),
    (rule("block: A, after: b, where: {channels: big}"), f"rules[1].where.channels: found 'big'; allowed is {BOUNDS}"),
    (rule("block: A, after: b, where: {channels: 3.5}"), f"rules[1].where.channels: found 3.5; allowed is {BOUNDS}"),
    (rule("block: A, after: b, where: {channels: -3}"), "rules[1].where.channels: found a number out of range; allowed are 0 to 2147483647"),
    (rule("block: A, after: b, where: {channels: '>=99999999999'}"), f"rules[1].where.channels: found '>=99999999999'; allowed is {BOUNDS}"),
    (rule("block: A, after: b, where: {channels: []}"), "rules[1].where.channels: found a list of 0 entries; allowed are 1 to 64"),
    (rule("block: A, after: b, where: {kernel: '>1x7'}"), "rules[1].where.kernel: found '>1x7'; a size such as 1x7 can only be compared with = or !="),
    # pick
    (rule("block: A, after: b, pick: frist"), f"rules[1].pick: found 'frist'; allowed is {FORMS}; did you mean 'first'?"),
    (rule("block: A, after: b, pick: 3"), f"rules[1].pick: found 3; allowed is {FORMS}"),
    (rule("block: A, after: b, pick: {lats: 1}"), "rules[1].pick.lats: unknown key; allowed are first, last, every, per; did you mean 'last'?"),
    (rule("block: A, after: b, pick: {per: stage}"), "rules[1].pick: found none of first, last, every; exactly one of them says how many"),
    (rule("block: A, after: b, pick: {first: 1, last: 1}"), "rules[1].pick: found first and last of first, last, every; exactly one of them says how many"),
    (rule("block: A, after: b, pick: {first: 0}"), "rules[1].pick.first: found 0; allowed are whole numbers from 1 to 10000"),
    (
        rule("block: A, after: b, pick: {first: 1, per: layer}"),
        "rules[1].pick.per: found 'layer'; allowed is model, stage, reduction or parent",
    ),
    (rule("block: A, after: b, optional: yes please"), "rules[1].optional: found 'yes please'; allowed is true or false"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "message"), MESSAGES, ids=lambda value: str(value)[:80])
def test_the_message_is_exactly_this(text, message):
    with pytest.raises(RecipeError) as caught:
        Recipe.from_dict(yaml.safe_load(text))
    if message is None:
        assert str(caught.value).startswith("extends: no shipped recipe is named 3; there are block-output,")
    else:
        assert str(caught.value) == message


def test_several_mistakes_are_counted():
    keys = {f"key{number}": 0 for number in range(9)}
    with pytest.raises(RecipeError) as caught:
        Recipe.from_dict(keys)
    assert str(caught.value).endswith("(also wrong: key1, key2, key3, key4, key5 and 3 more)")


def test_the_python_constructors_raise_the_same_error():
    with pytest.raises(RecipeError, match=r"^blok: unknown key; .*; did you mean 'block'\?"):
        Rule(blok="A", after="b")
    with pytest.raises(RecipeError, match=r"^rule: selects nothing"):
        Rule(after="b")
    with pytest.raises(RecipeError, match=r"^kernel: found 'big'"):
        Where(kernel="big")
    with pytest.raises(RecipeError, match=r"^rules\[0\]: found a value of type object; allowed is a mapping"):
        Recipe(rules=[object()])
    with pytest.raises(InjectError):
        Recipe()


def test_a_channel_count_as_lambda_is_warned_of():
    expected = (
        "e_lambda: 1024 is probably a channel count, and makes the gate a constant. SimAM needs no channel count: "
    )
    with pytest.warns(UserWarning, match="channel count") as caught:
        assert Rule(block="A", after="b", e_lambda=1024).e_lambda == 1024.0
    assert [str(entry.message) for entry in caught] == [
        expected + "leave e_lambda out, or write 1024.0 if the value is meant."
    ]
    assert Rule(block="A", after="b", e_lambda=1024.0).e_lambda == 1024.0
    assert Rule(block="A", after="b", e_lambda=1).e_lambda == 1.0


SELECTORS = [
    (("after", "bottleneck."), "selector: found 'after bottleneck.'; write after BLOCK.CHILD, e.g. 'after bottleneck.conv2'"),
    (("after", ".conv2"), "selector: found 'after .conv2'; write after BLOCK.CHILD, e.g. 'after bottleneck.conv2'"),
    (("after", "after bottleneck"), "selector: found 'after after bottleneck'; leave out the second 'after'"),
    (("before", "after bottleneck"), "selector: found 'before after bottleneck'; leave out one of 'before' and 'after'"),
    (("into", "bottleneck"), "selector: found 'into'; a selector starts with 'after' or 'before'"),
    (
        ("before", "bottleneck.output"),
        ("before: nothing reads a block's output inside the block; write after: output "
        "(in the selector 'before bottleneck.output')"),
    ),
    (
        ("after", "bottleneck.relu[0]"),
        "after: found 'relu[0]'; calls are counted from 1: relu[1] is the first (in the selector 'after bottleneck.relu[0]')",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("selected", "message"), SELECTORS, ids=str)
def test_a_selector_that_is_not_one_says_so(selected, message):
    with pytest.raises(RecipeError) as caught:
        selector(*selected)
    assert str(caught.value) == message


def test_a_name_that_is_no_recipe_is_told_what_there_is():
    with pytest.raises(RecipeError) as caught:
        load_recipe("papr")
    assert str(caught.value).startswith("recipe: 'papr' is neither a shipped recipe (block-output, convnext, ")
    assert str(caught.value).endswith(
        "a YAML file, nor a selector such as 'after bottleneck.conv2'; did you mean 'paper'?"
    )
    with pytest.raises(RecipeError, match=r"^recipe: found a value of type object; allowed is a Recipe, a mapping"):
        load_recipe(object())
