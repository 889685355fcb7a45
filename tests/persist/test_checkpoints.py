"""Files of `torch.save`: tensors only, wherever a training program has put them."""

import pytest
import torch

from simam_inject.errors import FileError
from simam_inject.persist.checkpoints import read_checkpoint, without_prefix
from tests.messages import says
from tests.persist.networks import Malicious

WEIGHT = torch.ones(2)


@pytest.fixture
def written(tmp_path):
    def write(content):
        torch.save(content, tmp_path / "x.pth")
        return tmp_path / "x.pth"

    return write


@pytest.mark.parametrize(
    ("content", "names", "others"),
    [
        ({"a.weight": WEIGHT, "b._extra_state": {"step": 1}}, ["a.weight", "b._extra_state"], ()),
        ({"epoch": 3, "model": {"state_dict": {"a.weight": WEIGHT}, "lr": 0.1}}, ["a.weight"], ("epoch", "lr")),
        ({"state_dict": {"module._orig_mod.a.weight": WEIGHT}}, ["module._orig_mod.a.weight"], ()),
        ({"model": WEIGHT}, ["model"], ()),
    ],
)
def test_the_weights_and_what_is_beside_them(content, names, others, written):
    weights, beside = read_checkpoint(written(content))
    assert list(weights) == names
    assert torch.equal(weights[names[0]], WEIGHT)
    assert beside == others


def test_prefixes_of_wrappers_are_removed_where_every_name_has_them():
    assert list(without_prefix({"module._orig_mod.a": 1, "module._orig_mod.b": 2})) == ["a", "b"]
    assert list(without_prefix({"module.a": 1, "b": 2})) == ["module.a", "b"]
    assert without_prefix({}) == {}


def test_code_does_not_run_and_is_named(written, tmp_path):
    path = written({"a": Malicious(tmp_path / "ran")})
    with pytest.raises(FileError, match=says("more than tensors", "run code", "posix.mkdir", "state_dict")):
        read_checkpoint(path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04 no zip", b"\x80\x02garbage"])
def test_what_is_no_checkpoint(content, tmp_path):
    (tmp_path / "x.pth").write_bytes(content)
    with pytest.raises(FileError, match="truncated, damaged, or not a checkpoint"):
        read_checkpoint(tmp_path / "x.pth")
