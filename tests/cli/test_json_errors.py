"""With --json a mistake is JSON on stdout too; the message and the exit code stay as they are."""

import json

import pytest

SMALL = ("--input-size", "3x32x32")


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (("nets.py:Net", "--after", "blok", *SMALL), 1, "no block named 'blok'"),
        (("nets.py:Net", "--recipe", "papr", *SMALL), 2, "neither a shipped recipe"),
        (("explain", "nets.py:Broken", "--after", "block", *SMALL), 2, "the user's own mistake"),
        (("sites", "nets.py:None_", *SMALL), 2, "None_"),
    ],
)
def test_a_mistake_in_json(run, arguments, code, told):
    result = run(*arguments, "--json")
    assert result.exit_code == code
    data = json.loads(result.stdout)
    assert list(data) == ["error"]
    assert told in data["error"]
    assert result.stderr.startswith("error: ")
    assert run(*arguments).stdout == ""
