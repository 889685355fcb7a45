"""Files that are truncated, renamed, foreign, malicious, older or newer: one `FileError` each, the model as it was."""

import json
import os
import pickle
import random

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from simam_inject import inject, injected
from simam_inject.errors import FileError
from simam_inject.persist import load, save
from simam_inject.persist.manifest import KEY
from tests.persist.networks import EXAMPLE, RECIPE, net


@pytest.fixture
def file(tmp_path):
    return save(inject(net(0), RECIPE, example_inputs=EXAMPLE, verify=False), tmp_path / "x.safetensors")


@pytest.fixture
def refused(file):
    """Load, and see that it is refused with these words and nothing has happened."""
    model = net(1)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    attributes = set(vars(model))

    def check(words, path=file):
        with pytest.raises(FileError, match=words) as caught:
            load(path, model)
        assert str(caught.value).startswith(str(path))
        assert not injected(model)
        assert set(vars(model)) == attributes
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())

    return check


def rewrite(file, change):
    """Write the file again with other metadata."""
    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata()
    data = json.loads(metadata[KEY])
    changed = change(data)
    metadata[KEY] = json.dumps(data) if changed is None else changed
    save_file(load_file(file), file, metadata)


class Malicious:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("write", [pickle.dump, torch.save], ids=["pickle", "torch.save"])
def test_a_pickle_is_never_read(write, file, refused, tmp_path):
    mark = tmp_path / "ran"
    with file.open("wb") as opened:
        write({"weight": Malicious(mark)}, opened)
    refused("it is a pickle .* can run any code")
    assert not mark.exists()


@pytest.mark.parametrize("kept", [0, 5, 8, 300, -1])
def test_truncated(kept, file, refused):
    file.write_bytes(file.read_bytes()[:kept])
    refused("truncated")


def test_noise(file, refused):
    file.write_bytes(random.Random(0).randbytes(4096))
    refused("truncated, or no safetensors file")
    file.write_bytes((16).to_bytes(8, "little") + random.Random(0).randbytes(4096))
    refused("truncated, damaged, or no safetensors file")


def test_a_folder_and_nothing(refused, tmp_path):
    refused("it cannot be read: Is a directory", tmp_path)
    refused("it cannot be read: No such file or directory", tmp_path / "nothing.safetensors")


def test_foreign(file, refused):
    save_file(load_file(file), file)
    refused("it was not written by simam_inject.persist.save")
    save_file(load_file(file), file, {"format": "pt"})
    refused("it was not written by simam_inject.persist.save")


def test_renamed_tensors(file, refused):
    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata()
    save_file({f"module.{name}": tensor for name, tensor in load_file(file).items()}, file, metadata)
    refused("names or shapes were changed afterwards")


@pytest.mark.parametrize(
    ("version", "words"),
    [
        (0, "in format 0 by an older simam_inject; this one reads format 1"),
        (2, "in format 2 by a newer simam_inject; this one reads format 1"),
        (None, "names the format None"),
        (True, "names the format True"),
        ("1", "names the format '1'"),
    ],
)
def test_other_formats(version, words, file, refused):
    rewrite(file, lambda data: data.update(format=version))
    refused(words)


def test_another_recipe_version(file, refused):
    rewrite(file, lambda data: data["recipes"][0]["recipe"].update(version=7))
    refused("holds a recipe that this package cannot read: version: found 7")


def test_another_specification_version(file, refused):
    rewrite(file, lambda data: data["sites"][0]["specification"].update(version=7))
    refused("SimAM specification has version 7; this package reads version 1")


def edit(**changes):
    return lambda data: data["sites"][0]["specification"]["edits"][0].update(changes)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda data: "{", "is no JSON"),
        (lambda data: "[" * 100_000, "is no JSON"),
        (lambda data: "[1]", "is not a JSON object"),
        (lambda data: data.pop("sites") and None, "no list of sites"),
        (lambda data: data.update(sites={"a": 1}), "no list of sites"),
        (lambda data: data["sites"].append({"module": 1, "specification": {}}), "no list of sites"),
        (lambda data: data["sites"].append(data["sites"][0]), "lists one module twice"),
        (lambda data: data.update(recipes=[{}]), "no list of recipes"),
        (lambda data: data["recipes"][0].update(module="nowhere"), "recipe for 'nowhere', which is no module of Net"),
        (lambda data: data.update(versions={"torch": 2}), "no table of versions"),
        (lambda data: data.update(layout=None), "no hash of names and shapes"),
        (lambda data: data["sites"][0].update(module="nowhere"), "Net has no module 'nowhere'"),
        (lambda data: data["sites"][0].update(module="stem"), "SimAM cannot be put back into stem"),
        (edit(value="os.system('x')"), r"os\.system\('x'\) is not computed"),  # a name among names, never source
        (edit(value="a\nb"), "invalid value"),
        (edit(value="conv9"), "SimAM cannot be put back into blocks.0"),
        (edit(child="__class__"), "invalid child"),
        (edit(child="simam_x\n"), "invalid child"),
        (edit(e_lambda=float("nan")), "invalid e_lambda"),
        (edit(e_lambda=-1.0), "invalid e_lambda"),
        (edit(channel_dim=[1]), "invalid channel_dim"),
        (edit(channel_dim=True), "invalid channel_dim"),
        (edit(channel_dim=1.0), "invalid channel_dim"),
        (edit(extra=1), "is not a site"),
        (lambda data: data["sites"][0]["specification"].update(arguments=None), "SimAM cannot be put back"),
        (lambda data: data["sites"][0]["specification"].update(arguments={"tensor": [[1], [1], "load"]}), "put back"),
        (
            lambda data: data["sites"][0]["specification"].update(
                arguments={"tuple": [{"tuple": [{"tensor": [[2**62, 2**62], [2**62, 1], "float32"]}]}, {"dict": []}]}
            ),
            "SimAM cannot be put back",
        ),
        (
            lambda data: data["sites"][0]["specification"].update(
                arguments={"tuple": [{"tuple": [{"tensor": [[2**30], [1], "float64"]}]}, {"dict": []}]}
            ),
            "its recorded inputs take 8589934592 bytes",
        ),
        (
            lambda data: data["sites"][0]["specification"]["edits"].append(
                data["sites"][0]["specification"]["edits"][0]
            ),
            "puts SimAM into blocks.0 .* twice",
        ),
        (
            lambda data: data["sites"][0]["specification"].update(fingerprints={"forward": "0" * 64}),
            "forward computes something else here",
        ),
    ],
)
def test_metadata_that_say_nonsense(change, words, file, refused):
    rewrite(file, change)
    refused(words)


def test_every_truncation_of_the_metadata_is_one_error(file):
    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata()
    text = metadata[KEY]
    tensors = load_file(file)
    for length in range(0, len(text) - 1, 97):
        save_file(tensors, file, {**metadata, KEY: text[:length]})
        with pytest.raises(FileError):
            load(file, net(1))


def test_damaged_bytes_never_get_past_a_file_error(file):
    """Any one byte of the header may be wrong: refused, or read as something that is still valid."""
    content = file.read_bytes()
    generator = random.Random(0)
    length = int.from_bytes(content[:8], "little")
    for _ in range(150):
        damaged = bytearray(content)
        damaged[generator.randrange(8 + length)] = generator.randrange(256)
        file.write_bytes(damaged)
        model = net(1)
        try:
            load(file, model)
        except FileError:
            assert not injected(model)
