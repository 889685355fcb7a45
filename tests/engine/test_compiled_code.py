"""Values that a forward hands to C++ are recorded as one call or refused; they never crash the interpreter."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def outcomes():
    """[means, note, is the output right?, are the gradients right?] by the name of the block."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.engine.compiled"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return {name: found for name, *found in map(json.loads, done.stdout.splitlines())}


def test_a_function_with_a_backward_of_its_own_is_one_node(outcomes):
    assert outcomes["Rounds"] == ["forward", "", True, True]


@pytest.mark.parametrize(
    ("block", "reason"),
    [
        ("RunsScript", "runs compiled code"),
        ("MakesTensor", "copies a value out of the graph (torch.as_tensor)"),
        ("MakesSubclass", "copies a value out of the graph"),
        ("Recomputes", "use_reentrant=True"),
    ],
)
def test_a_block_that_hands_a_value_to_compiled_code_is_left_as_it_is(outcomes, block, reason):
    means, note, *right = outcomes[block]
    assert means == "boundary"
    assert reason in note
    assert right == [True, True]
