"""YAML from anywhere: what it may say, and how each trick ends in one RecipeError, quickly."""

import time
from contextlib import nullcontext

import pytest

from simam_inject.errors import RecipeError
from simam_inject.recipe.texts import read_yaml

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
    ("a: &x [1]", {"a": [1]}),
    ("a: .inf", {"a": float("inf")}),
    ("a: layer{1,2}.*", {"a": "layer{1,2}.*"}),
    ("a: conv2d[k=3] > *norm > act", {"a": "conv2d[k=3] > *norm > act"}),
    ("a: relu[2]", {"a": "relu[2]"}),
    ("\ufeffa: 1", {"a": 1}),
    ("[1, 2]", [1, 2]),
    ("text", "text"),
    ("---\na: 1\n...\n", {"a": 1}),
]


@pytest.mark.parametrize(("text", "value"), VALUES, ids=lambda value: str(value)[:40])
def test_values_are_read_as_the_language_says(text, value):
    found = read_yaml(text.encode())
    assert found == value
    assert type(found) is type(value)


REFUSED = [
    # (text, what the message names)
    ("", ["recipe: empty"]),
    ("# nothing\n", ["recipe: empty"]),
    ("a: 1\n---\nb: 2", ["line 2", "document"]),
    ("a: 1\nb: 2\na: 3", ["line 3", "duplicate key 'a'"]),
    ("rules:\n- x: 1\n- y: 1\n  y: 2", ["line 4", "duplicate key 'y'"]),
    ("a: [*b]", ["line 1", "*b, an alias", "globs and patterns in quotes"]),
    ("a: &x [1]\nb: *x", ["line 2", "*x, an alias"]),
    ("path: *.conv2", ["line 1, column 8", "globs and patterns in quotes: path: '*.conv2'"]),
    ("channels: >=64", ["line 1, column 12", 'comparisons in quotes: channels: ">=64"']),
    ("{channels: >64}", ["line 1, column 12", 'comparisons in quotes: channels: ">64"']),
    ("a: [>= 8, 3]", ['comparisons in quotes: ">= 8"']),
    ("a: !=64", ["the tag '!=64'", 'comparisons in quotes: a: "!=64"']),
    ("a: {b}: c", ["line 1, column 7", "globs and patterns in quotes"]),
    ("{a, b}: c", ["a key that is not a string", "globs and patterns in quotes"]),
    ("? [a]\n: b", ["a key that is not a string"]),
    ("a: !!python/object/apply:os.system [id]", ["the tag", "python/object/apply:os.system"]),
    ("a: !!binary aGk=", ["the tag", "binary"]),
    ("a: !x 1", ["the tag '!x'"]),
    ("!!python/name:os.system", ["the tag", "python/name:os.system"]),
    ("a:\n\t- b", ["line 2, column 1", "spaces, not tabs"]),
    ("a: 'b", ["line 1, column 6"]),
    ("[" * 40 + "]" * 40, ["nested more than 12 levels deep"]),
    (b"a: \xff\xfe", ["not UTF-8 text"]),
    ("a: \x00", ["#x0000"]),
    ("a: \x1b[31m", ["#x001b"]),
    ("a: '\ud800'", ["not UTF-8 text"]),
]


@pytest.mark.parametrize(("text", "facts"), REFUSED, ids=lambda value: str(value)[:40])
def test_the_message_says_what_and_where(text, facts):
    with pytest.raises(RecipeError, match=r"^recipe: ") as caught:
        read_yaml(text)
    assert not [fact for fact in facts if fact not in str(caught.value)], str(caught.value)


def test_a_number_too_long_to_be_one_is_a_text():
    assert read_yaml("a: " + "9" * 41) == {"a": "9" * 41}


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
    long_only = name in ("a long plain scalar of spaces", "many keys")
    start = time.process_time()
    with nullcontext() if long_only else pytest.raises(RecipeError) as caught:
        read_yaml(HOSTILE[name])
    assert time.process_time() - start < 5.0
    assert caught is None or len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "text",
    [
        '{"rules": [{"block": "A", "block": "B"}]}',
        '{"rules": [{"block": "*.conv[12]" "after": "c"}]}',
        '// all\n{"rules": [{"block": "A"}]}',
        "a: [[[[[[[[[[[[[[[[",
        "---\na: [1]\n---\nb: 2",
    ],
)
def test_there_is_no_advice_that_does_not_concern_the_mistake(text):
    with pytest.raises(RecipeError, match=r"^recipe: not valid at line \d, column \d+: (?!but )[^;]*$"):
        read_yaml(text)


def test_json_may_be_indented_with_tabs():
    assert read_yaml('{\n\t"rules":\t[\n\t\t{"block": "A"}\n\t]\n}') == {"rules": [{"block": "A"}]}
