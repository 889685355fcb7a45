"""Files that are truncated, renamed, foreign, malicious, older or newer: one `FileError` each, the model as it was."""

import json
import pickle
import random
from functools import partial

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from simam_inject import inject, injected
from simam_inject.errors import FileError
from simam_inject.persist import load, save
from simam_inject.persist.record import KEY
from tests.persist.networks import EXAMPLE, RECIPE, Malicious, net


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    model = inject(net(0), RECIPE, example_inputs=EXAMPLE, verify=False)
    return save(model, tmp_path_factory.mktemp("saved") / "x.safetensors").read_bytes()


@pytest.fixture
def file(content, tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    return path


@pytest.fixture
def refused(refused, file):
    """`refused(words)`: `load` does not read the file."""
    return lambda words, path=file: refused(load, words, path, net(1))


def metadata_of(file):
    with safe_open(file, framework="pt") as opened:
        return opened.metadata()


def rewrite(file, change):
    """Write the file again with other metadata."""
    metadata = metadata_of(file)
    data = json.loads(metadata[KEY])
    changed = change(data)
    metadata[KEY] = json.dumps(data) if changed is None else changed
    save_file(load_file(file), file, metadata)


@pytest.mark.parametrize("write", [pickle.dump, torch.save], ids=["pickle", "torch.save"])
def test_a_pickle_is_never_read(write, file, refused, tmp_path):
    mark = tmp_path / "ran"
    with file.open("wb") as opened:
        write({"weight": Malicious(mark)}, opened)
    refused("it is a pickle .* can run any code")
    assert not mark.exists()


def test_a_header_whose_length_begins_like_a_pickle(tmp_path):
    """0x580 bytes: the file begins with 80 05, as pickles of the protocol 5 do."""
    model = torch.nn.Linear(2, 2)
    file = save(model, tmp_path / "x.safetensors")
    metadata = {**metadata_of(file), "pad": ""}
    save_file(load_file(file), file, metadata)
    length = int.from_bytes(file.read_bytes()[:8], "little")
    save_file(load_file(file), file, {**metadata, "pad": " " * (0x580 - length)})
    assert file.read_bytes()[:2] == b"\x80\x05"
    assert torch.equal(load(file, torch.nn.Linear(2, 2)).weight, model.weight)


def cut(file, length):
    file.write_bytes(file.read_bytes()[:length])


def renamed(file):
    tensors = {f"module.{name}": tensor for name, tensor in load_file(file).items()}
    save_file(tensors, file, metadata_of(file))


NOISE = random.Random(0).randbytes(4096)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        *((partial(cut, length=length), "truncated") for length in (0, 5, 8, 300, -1)),
        (lambda file: file.write_bytes(NOISE), "damaged, or not a safetensors file"),
        (lambda file: file.write_bytes((16).to_bytes(8, "little") + NOISE), "damaged, or not a safetensors file"),
        (lambda file: save_file(load_file(file), file), "not written by simam_inject.persist.save"),
        (lambda file: save_file(load_file(file), file, {"format": "pt"}), "not written by simam_inject.persist.save"),
        (renamed, "names or shapes were changed"),
    ],
)
def test_damaged_and_foreign_files(damage, words, file, refused):
    damage(file)
    refused(words)


def test_a_folder_and_nothing(refused, tmp_path):
    refused("it cannot be read: Is a directory", tmp_path)
    refused("it cannot be read: No such file or directory", tmp_path / "nothing.safetensors")


def twice(data):
    """List the first site again."""
    data["sites"].append(data["sites"][0])


def edit(**changes):
    """Change the edit of the first site."""
    return lambda data: data["sites"][0]["edit"].update(changes)


def held_by(module):
    """Let another module hold the first SimAM."""
    return lambda data: data["sites"][0].update(
        edit=data["sites"][0]["edit"] | {"module": module}, module=f"{module}.simam"
    )


def site(**changes):
    """Change the first site."""
    return lambda data: data["sites"][0].update(changes)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda data: data.update(format=2), "format 2 by an older .* reads format 3"),
        (lambda data: data.update(format=4), "format 4 by a newer .* reads format 3"),
        (lambda data: data.update(format=None), "format: "),
        (lambda data: data.update(format=True), "format: "),
        (lambda data: data.update(format="3"), "format: "),
        (lambda data: data["recipes"][0].update(version=7), "recipe that this package cannot read: version: found 7"),
        (lambda data: "{", "Invalid JSON"),
        (lambda data: "[" * 100_000, "Invalid JSON"),
        (lambda data: "[1]", "should be an object"),
        (lambda data: data.pop("sites") and None, "sites: Field required"),
        (lambda data: data.update(sites={"a": 1}), "sites: "),
        (lambda data: data["sites"].append({"module": 1}), "sites.2"),
        (twice, "the same SimAM twice"),
        (lambda data: data["sites"][0].update(path=data["sites"][1]["path"]), "two SimAMs for the same value"),
        (site(strength=2.0), "sites.0.strength: "),
        (site(gain=-1.0), "sites.0.gain: "),
        (site(gain=float("nan")), "sites.0.gain: "),
        (lambda data: data.update(recipes=[{}]), "holds a recipe that this package cannot read"),
        (lambda data: data.update(versions={"torch": 2}), "versions.torch: "),
        (lambda data: data.update(layout=None), "layout: "),
        (lambda data: data.update(code="x"), "code: Extra inputs"),
        (
            lambda data: data.update(example={"args": ["tensor hub 1"], "kwargs": {}}),
            "example.args.0: .tensor hub 1. is not",
        ),
        (
            lambda data: data.update(example={"args": ["tensor float32 99999999 99999999"], "kwargs": {}}),
            "example.args.0: ",
        ),
        (held_by("nowhere"), "Network has no module 'nowhere'"),
        (held_by("blocks"), "Sequential, which cannot have a SimAM"),
        (held_by("blocks.0.conv1.weight"), "Network has no module"),
        (held_by("__class__"), "Network has no module"),
        (edit(module="a\nb"), "sites.0.edit.output.module|sites.0.edit.module"),
        (edit(module="blocks.1"), "is not the name of a SimAM in 'blocks.1'"),
        (edit(kind="call"), "sites.0.edit"),
        (edit(key=[1]), "sites.0.edit"),
        (edit(kind="input", argument="x); import os"), "sites.0.edit"),
        (edit(extra=1), "sites.0.edit"),
        (site(module="blocks.0.__class__"), "sites.0: .* is not the name of a SimAM"),
        (site(module="blocks.0.simam_x\n"), "sites.0.module"),
        (site(module="blocks.0.forward"), "sites.0: .* is not the name of a SimAM"),
        (site(path=5), "sites.0.path"),
        (site(path="a" * 2000), "sites.0.path"),
        (site(position="inside"), "sites.0.position"),
        (site(e_lambda=float("nan")), "sites.0.e_lambda"),
        (site(e_lambda=-1.0), "sites.0.e_lambda"),
        (site(e_lambda="0.1"), "sites.0.e_lambda"),
        (site(channel_dim=[1]), "sites.0.channel_dim"),
        (site(channel_dim=0), "with channel_dim 0"),
        (site(shape=[1, 2]), "sites.0.shape"),
        (site(shape=[1, 2, -3]), "sites.0.shape"),
        (site(extra=1), "sites.0.extra"),
        (site(expression={"method": "forward", "digest": "0" * 16, "span": [0, 0, 0, 0]}), "is not attended by output"),
        (site(expression={"method": "os.system", "digest": "0" * 16, "span": [0, 0, 0, 0]}), "sites.0.expression"),
        (
            lambda data: data["sites"][0].update(
                edit={"kind": "rewritten", "module": "blocks.0", "value": "add"},
                module="blocks.0.simam_add",
                expression={"method": "__setattr__", "digest": "0" * 16, "span": [0, 0, 0, 0]},
            ),
            "BasicBlock.__setattr__ is not run by forward",
        ),
    ],
)
def test_metadata_that_say_nonsense(change, words, file, refused):
    rewrite(file, change)
    refused(words)


def test_a_site_that_another_module_holds_gets_its_settings(file):
    """The model has the file's sites at the same places, though the file names another child for one of them."""

    def change(data):
        for place, one in enumerate(data["sites"]):
            one.update(strength=0.5)
            one.update(module=f"{one['module']}_other" if place == 0 else one["module"])

    rewrite(file, change)
    other = inject(net(1), RECIPE, example_inputs=EXAMPLE, verify=False)
    load(file, other)
    assert {site.strength for site in injected(other)} == {0.5}


def test_every_truncation_of_the_metadata_is_one_error(file):
    metadata, tensors = metadata_of(file), load_file(file)
    text = metadata[KEY]
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
