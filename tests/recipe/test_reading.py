# ruff: noqa: E501  (tables: a case, and its message word for word, stay on one line)
"""YAML that nobody vouches for: what it may say, and how each trick ends in one RecipeError, quickly."""

import time
from contextlib import nullcontext

import pytest

from simam_inject.errors import RecipeError
from simam_inject.recipe.reading import read_yaml

VALUES = [
    ("a: 1", {"a": 1}),
    ("a: -3", {"a": -3}),
    ("a: 1e-4", {"a": 1e-4}),
    ("a: 1.5e+3", {"a": 1500.0}),
    ("a: .5", {"a": 0.5}),
    ("a: on", {"a": "on"}),
    ("a: yes", {"a": "yes"}),
    ("a: 12:30", {"a": "12:30"}),
    ("a: 2021-07-18", {"a": "2021-07-18"}),
    ("a: 0x10", {"a": "0x10"}),
    ("a: true", {"a": True}),
    ("a: ~", {"a": None}),
    ("a:", {"a": None}),
    ("a: '1'", {"a": "1"}),
    ("a: '~'", {"a": "~"}),
    ("1: a", {"1": "a"}),
    ("a: [b, {c: d}]", {"a": ["b", {"c": "d"}]}),
    ("a: &x [1]\nb: *x", {"a": [1], "b": [1]}),
    ("a: layer{1,2}.*", {"a": "layer{1,2}.*"}),
    ("a: conv2d[k=3] > *norm > act", {"a": "conv2d[k=3] > *norm > act"}),
    ("a: relu[2]", {"a": "relu[2]"}),
    ("\ufeffa: 1", {"a": 1}),
    ("[1, 2]", [1, 2]),
    ("text", "text"),
    ("---\na: 1\n...\n", {"a": 1}),
]


@pytest.mark.parametrize(("text", "value"), VALUES, ids=lambda value: str(value)[:40])
def test_plain_values(text, value):
    found = read_yaml(text.encode())
    assert found == value
    assert type(found) is type(value)


REFUSED = [
    ("", "recipe: the text is empty; a recipe is a mapping with 'rules'"),
    ("# nothing\n", "recipe: the text is empty; a recipe is a mapping with 'rules'"),
    ("a: 1\n---\nb: 2", "recipe: more than one YAML document; keep one and remove '---'"),
    ("a: 1\nb: 2\na: 3", "a: the key is there twice (line 3); keep one"),
    ("rules:\n- x: 1\n- y: 1\n  y: 2", "rules[1].y: the key is there twice (line 4); keep one"),
    ("a: [*b]", "a[0]: found the alias *b, which stands for nothing above it; a glob that starts with '*' is written in quotes"),
    ("a: &x [*x]", "a[0]: found the alias *x, which stands for nothing above it; a glob that starts with '*' is written in quotes"),
    ("a: &x {b: *x}", "a.b: found the alias *x, which stands for nothing above it; a glob that starts with '*' is written in quotes"),
    ("path: *.conv2", "recipe: not valid YAML at line 1, column 8: expected alphabetic or numeric character, but found '.'; put globs and patterns in quotes: path: '*.conv2'"),
    ("path: *conv2", "path: found the alias *conv2, which stands for nothing above it; a glob that starts with '*' is written in quotes"),
    ("channels: >=64", "recipe: not valid YAML at line 1, column 12: expected chomping or indentation indicators, but found '='; put comparisons in quotes: channels: \">=64\""),
    ("{channels: >64}", "recipe: not valid YAML at line 1, column 12: found character '>' that cannot start any token; put comparisons in quotes: channels: \">64\""),
    ("a: [>= 8, 3]", "recipe: not valid YAML at line 1, column 5: found character '>' that cannot start any token; put comparisons in quotes: \">= 8\""),
    ("a: !=64", "a: found the tag '!=64'; recipes have no tags; put comparisons in quotes: \"!=64\""),
    ("a: {b}: c", "recipe: not valid YAML at line 1, column 7: mapping values are not allowed here; put globs and patterns in quotes: path: '*.conv2'"),
    ("{a, b}: c", "recipe: found a key that is not a text (line 1); a glob that starts with '{' is written in quotes"),
    ("? [a]\n: b", "recipe: found a key that is not a text (line 1)"),
    ("a: !!python/object/apply:os.system [id]", "a: found the tag 'tag:yaml.org,2002:python/object/apply:os.system'; recipes have no tags"),
    ("a: !!binary aGk=", "a: found the tag 'tag:yaml.org,2002:binary'; recipes have no tags"),
    ("a: !x 1", "a: found the tag '!x'; recipes have no tags"),
    ("!!python/name:os.system", "recipe: found the tag 'tag:yaml.org,2002:python/name:os.system'; recipes have no tags"),
    ("a:\n\t- b", "recipe: not valid YAML at line 2, column 1: found character '\\t' that cannot start any token; YAML indents with spaces, not tabs"),
    ("a: " + "9" * 41, "a: found a number of more than 40 characters"),
    ("a: 'b", "recipe: not valid YAML at line 1, column 6: found unexpected end of stream"),
    ("[" * 40 + "]" * 40, "[0]" * 13 + ": nested more than 12 levels deep"),
    (b"a: \xff\xfe", "recipe: not UTF-8 text (invalid start byte at 3); save the file as UTF-8"),
    ("a: \x00", "recipe: not valid YAML: unacceptable character #x0000: special characters are not allowed"),
    ("a: \x1b[31m", "recipe: not valid YAML: unacceptable character #x001b: special characters are not allowed"),
    ("a: '\ud800'", "recipe: not UTF-8 text (surrogates not allowed at 4); save the file as UTF-8"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "message"), REFUSED, ids=lambda value: str(value)[:40])
def test_the_message_says_what_and_where(text, message):
    with pytest.raises(RecipeError) as caught:
        read_yaml(text)
    assert str(caught.value) == message


def _bomb():
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 10)]
    return "\n".join(lines)


HOSTILE = {
    "aliases that multiply": _bomb(),
    "one megabyte": "a: " + "x" * 1_000_000,
    "one megabyte of bytes": b"\x80" * 1_000_000,
    "sixty thousand open brackets": "[" * 60_000,
    "sixty thousand open braces": "{" * 60_000,
    "sixty thousand dashes": "- " * 30_000,
    "deep block mapping": "\n".join(" " * n + "a:" for n in range(300)),
    "many keys": "\n".join(f"k{n}: 0" for n in range(6000)),
    "many anchors": "\n".join(f"- &a{n} x" for n in range(5000)) + "\n- *a0" * 1000,
    "a long plain scalar of spaces": "a: " + "b " * 30_000,
    "many question marks": "? " * 30_000,
    "merge keys": "a: &a {x: 1}\nb: {<<: *a}\n" * 2000,
    "wide characters": "\U0001f600" * 20_000,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_texts_end_in_bounded_time(name):
    long_only = name in ("a long plain scalar of spaces", "many anchors")
    start = time.perf_counter()
    with nullcontext() if long_only else pytest.raises(RecipeError) as caught:
        read_yaml(HOSTILE[name])
    assert time.perf_counter() - start < 5.0
    assert caught is None or len(str(caught.value)) < 400
