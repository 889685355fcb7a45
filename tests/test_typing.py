"""A user's script, checked by mypy against the installed types: `inject` returns the type that it was given."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
from typing import assert_type

import torch
from torch import nn

import simam_inject
from simam_inject import Plan, Recipe, Rule, attention_maps, bypass, eject, inject, injected, plan, verify
from simam_inject.persist import load


class Net(nn.Module):
    classes = 3


net = inject(Net(), "paper", strength=0.5, exclude=["stem"])
assert_type(net, Net)
assert_type(eject(net), Net)
assert_type(plan(net, {"rules": []}), Plan[Net])
assert_type(plan(net, Recipe(rules=[Rule(block="Net", after="output")])), Plan[Net])
assert_type(verify(net).ok, bool)
assert_type(attention_maps(net, torch.zeros(1)), dict[str, torch.Tensor])
assert_type(simam_inject.__version__, str)
assert_type(plan(net, "paper").apply(), Net)


def show(found: Plan) -> str:
    return str(found)


show(plan(net, "paper"))
found: dict[str, Plan] = {"paper": plan(net, "paper")}
assert_type(load("net.safetensors", net), Net)
print([site.module for site in injected(net)])
with bypass(net) as same:
    assert_type(same, Net)
"""
ROOT = Path(__file__).parent.parent


def check(text, tmp_path):
    pytest.importorskip("mypy", reason="comes with the extra `dev`")
    script = tmp_path / "script.py"
    script.write_text(text)
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path / "cache"), str(script)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=600)


def test_a_users_script_is_well_typed(tmp_path):
    found = check(SCRIPT, tmp_path)
    assert found.returncode == 0, found.stdout + found.stderr


def test_a_wrong_recipe_is_a_type_error(tmp_path):
    found = check("from simam_inject import inject\nfrom torch import nn\ninject(nn.ReLU(), 3)\n", tmp_path)
    assert "arg-type" in found.stdout
