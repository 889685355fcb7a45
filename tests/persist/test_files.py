"""One file: weights that anyone can read, sites that are put back, nothing half-done."""

import copy
import json
import os
import stat
from functools import partial

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import apply_activation_checkpointing

from simam_inject import bypass, eject, inject, injected, verify
from simam_inject.errors import FileError, ModelError
from simam_inject.persist import load, read, save
from simam_inject.persist.files import in_one_step
from simam_inject.persist.record import KEY
from tests.networks import BasicBlock, Network
from tests.persist.networks import EXAMPLE, INSIDE, RECIPE, mixed, net

X = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(7))


@pytest.fixture
def model():
    return inject(net(0), RECIPE, example_inputs=EXAMPLE, verify=False)


@pytest.fixture
def file(model, tmp_path):
    return save(model, tmp_path / "x.safetensors")


def recipes_of(model, folder):
    """What a file of the model says."""
    return [recipe["name"] for recipe in read(save(model, folder / "recipes.safetensors")).recipes]


def state(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_plain_model_gets_the_sites_and_the_weights(model, file, tmp_path):
    other = net(1)
    assert load(file, other) is other
    assert injected(other) == injected(model)
    assert torch.equal(other(X), model(X))
    assert verify(other, example_inputs=EXAMPLE).ok
    eject(other)
    assert not injected(other)
    assert recipes_of(other, tmp_path) == []
    assert not torch.allclose(other(X), model(X), rtol=1e-2)


def test_a_model_with_the_same_sites_gets_the_weights(model, file):
    model.blocks[0].conv2.simam.gain = 1.25
    other = inject(net(1), RECIPE, example_inputs=EXAMPLE, verify=False)
    modules = list(other.modules())
    load(save(model, file), other)
    assert injected(other) == injected(model)
    assert all(one is another for one, another in zip(other.modules(), modules, strict=True))
    assert torch.equal(other(X), model(X))


def test_what_is_loaded_can_be_saved_again(file, tmp_path):
    again = save(load(file, net(1)), tmp_path / "again.safetensors")
    assert read(again) == read(file)
    assert same(load_file(again), load_file(file))


def test_the_weights_are_plain_safetensors(model, file):
    assert same(load_file(file), state(model))
    plain = net(1)
    plain.load_state_dict(load_file(file), strict=True)
    assert same(state(plain), state(model))


def test_the_metadata_tell_recipe_sites_and_versions(file):
    manifest = read(file)
    (recipe,) = manifest.recipes
    assert recipe["name"] == "two"
    assert recipe["e_lambda"] == 0.02
    assert [site.path for site in manifest.insertions] == ["blocks.0.conv2", "blocks.1.conv2"]
    assert {site.e_lambda for site in manifest.insertions} == {0.02}
    assert dict(manifest.versions)["torch"] == torch.__version__.partition("+")[0]
    with safe_open(file, framework="pt") as opened:
        assert opened.metadata()["format"] == "pt"
        data = json.loads(opened.metadata()[KEY])
    assert sorted(data) == ["example", "format", "layout", "recipes", "sites", "versions"]


def test_two_recipes_are_both_remembered(model, tmp_path):
    inject(model, "after BasicBlock", example_inputs=EXAMPLE, verify=False)
    other = load(save(model, tmp_path / "x.safetensors"), net(1))
    assert recipes_of(other, tmp_path) == ["two", "after BasicBlock"]
    assert injected(other) == injected(model)
    assert torch.equal(other(X), model(X))


def test_a_part_that_was_injected_is_found_in_the_whole(tmp_path):
    model = net(0)
    inject(model.blocks, "after BasicBlock", example_inputs=torch.zeros(1, 4, 8, 8), verify=False)
    file = save(model, tmp_path / "x.safetensors")
    assert [site.path for site in read(file).insertions] == ["blocks.0", "blocks.1"]
    assert torch.equal(load(file, net(1))(X), model(X))


def test_a_part_of_a_network_that_was_injected_is_saved_by_itself(model, tmp_path):
    features = torch.rand(1, 4, 8, 8)
    file = save(model.blocks, tmp_path / "x.safetensors")
    assert [(site.path, site.module) for site in read(file).insertions] == [
        ("0.conv2", "0.conv2.simam"),
        ("1.conv2", "1.conv2.simam"),
    ]
    assert torch.equal(load(file, net(1).blocks)(features), model.blocks(features))
    assert not torch.allclose(eject(copy.deepcopy(model)).blocks(features), model.blocks(features), rtol=1e-2)


def test_strength_gain_and_lambda_are_those_of_the_modules(model, tmp_path):
    first, second = (model.get_submodule(site.module) for site in injected(model))
    first.strength, first.gain, second.strength, second.e_lambda = 0.25, 1.5, 0.0, 0.3
    other = load(save(model, tmp_path / "x.safetensors"), net(1))
    assert [(site.strength, site.gain, site.e_lambda) for site in injected(other)] == [
        (0.25, 1.5, 0.02),
        (0.0, 1.0, 0.3),
    ]
    assert torch.equal(other(X), model(X))
    assert injected(other) == injected(model)
    first.strength = 1.0
    assert not torch.allclose(other(X), model(X), rtol=1e-3)


@pytest.mark.parametrize(
    ("build", "recipe", "kinds"),
    [
        (net, {"rules": [{"block": "BasicBlock", "before": "bn2"}]}, {"Input"}),
        (net, {"rules": [{"block": "BasicBlock", "after": "output"}]}, {"Output"}),
        (mixed, INSIDE, {"Rewritten"}),
    ],
)
def test_every_kind_of_edit_is_put_back(build, recipe, kinds, tmp_path):
    model = inject(build(0), recipe, example_inputs=EXAMPLE)
    assert {type(site.edit).__name__ for site in injected(model)} == kinds
    other = load(save(model, tmp_path / "x.safetensors"), build(1))
    assert injected(other) == injected(model)
    assert torch.equal(other(X), model(X))
    assert not torch.allclose(build(0)(X), model(X), rtol=1e-2)
    assert verify(other).ok, "the example's shapes are in the file"


def test_loading_runs_nothing_of_the_model(model, file, monkeypatch):
    def fail(*_):
        raise AssertionError("a forward ran")

    monkeypatch.setattr(BasicBlock, "forward", fail)
    monkeypatch.setattr(Network, "forward", fail)
    monkeypatch.setattr(nn.Conv2d, "forward", fail)
    assert len(injected(load(file, net(1)))) == 2


def test_a_model_without_simam_has_a_file_without_sites(tmp_path):
    file = save(net(0), tmp_path / "x.safetensors")
    assert read(file).insertions == ()
    assert torch.equal(load(file, net(1))(X), net(0)(X))
    other = inject(net(1), RECIPE, example_inputs=EXAMPLE, verify=False)
    with pytest.raises(FileError, match=r"blocks.0.conv2: e_lambda 0.02 in the model, none in the file"):
        load(file, other)


def test_an_injection_that_changes_nothing_is_not_remembered(model, tmp_path):
    with pytest.warns(UserWarning, match="nothing to inject"):
        inject(model, RECIPE, example_inputs=EXAMPLE)
    assert recipes_of(model, tmp_path) == ["two"]


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile], ids=["DataParallel", "compile"])
def test_wrappers_are_looked_through(model, wrap, tmp_path):
    file = save(wrap(model), tmp_path / "x.safetensors")
    assert same(load_file(file), state(model))
    other = inject(net(1), RECIPE, example_inputs=EXAMPLE, verify=False)
    load(file, wrap(other))
    assert torch.equal(other(X), model(X))
    with pytest.raises(FileError, match="load the file first, then wrap"):
        load(file, wrap(net(1)))


def test_tied_weights_are_written_under_every_key(tmp_path):
    def tied(seed):
        model = net(seed)
        model.blocks[1].conv1.weight = model.blocks[0].conv1.weight
        return model

    model = inject(tied(0), RECIPE, example_inputs=EXAMPLE, verify=False)
    file = save(model, tmp_path / "x.safetensors")
    assert load_file(file).keys() == model.state_dict().keys()
    other = load(file, tied(1))
    assert other.blocks[1].conv1.weight is other.blocks[0].conv1.weight
    assert torch.equal(other(X), model(X))


def test_views_and_memory_formats_are_stored_by_value(model, tmp_path):
    model.to(memory_format=torch.channels_last)
    model.head.weight = nn.Parameter(torch.rand(4, 5).t())
    file = save(model, tmp_path / "x.safetensors")
    other = load(file, net(1).to(memory_format=torch.channels_last))
    assert other.stem.weight.is_contiguous(memory_format=torch.channels_last)
    assert same(state(other), state(model))


def test_not_strict_leaves_out_and_says_so(file):
    other = net(1)
    other.extra = nn.Linear(2, 2)
    del other.head
    with pytest.raises(FileError, match=r"2 in the model, .*: extra.weight, extra.bias"):
        load(file, other)
    assert not injected(other)
    with pytest.warns(UserWarning, match=r"left out(.|\n)*2 in the file, .*: head.bias, head.weight"):
        load(file, other, strict=False)
    assert len(injected(other)) == 2
    assert torch.equal(other.stem.weight, net(0).stem.weight)


@pytest.mark.parametrize("strict", [True, False])
def test_other_shapes_are_refused(file, strict, refused):
    refused(partial(load, strict=strict), r"head.weight \(file 5x4, model 6x4\)", file, net(1, classes=6))


def test_other_sites_are_refused(file, refused):
    other = inject(net(1), {**RECIPE, "e_lambda": 0.5}, example_inputs=EXAMPLE, verify=False)
    refused(load, r"blocks.0.conv2: e_lambda 0.5 in the model, e_lambda 0.02 in the file", file, other)


def test_another_version_of_a_forward_that_holds_simam_is_refused(tmp_path, refused):
    file = save(inject(mixed(0), INSIDE, example_inputs=EXAMPLE, verify=False), tmp_path / "x.safetensors")
    digest = read(file).sites[0].expression.digest
    file.write_bytes(file.read_bytes().replace(digest.encode(), b"0" * 16))
    refused(load, r"Mixed.mix differs from the version", file, mixed(1))


def test_a_place_where_the_forward_has_no_expression_is_refused(tmp_path, refused):
    file = save(inject(mixed(0), INSIDE, example_inputs=EXAMPLE, verify=False), tmp_path / "x.safetensors")
    line, column, *_ = read(file).sites[0].expression.span
    before, after = (f'span\\":[{line},{start},'.encode() for start in (column, column ^ 1))
    assert before in file.read_bytes()
    file.write_bytes(file.read_bytes().replace(before, after))
    refused(load, r"Mixed.mix has no expression at", file, mixed(1))


def test_a_failure_while_copying_takes_everything_back(file):
    other = net(1)
    before = state(other)

    def fail(*_):
        other.loaded = True
        raise RuntimeError("device lost")

    other.head.register_load_state_dict_post_hook(fail)
    with pytest.raises(FileError, match=r"Network.load_state_dict raises RuntimeError: device lost"):
        load(file, other)
    assert not hasattr(other, "loaded")
    assert not injected(other)
    assert same(state(other), before)


class Extra(nn.Module):
    def get_extra_state(self):
        return {"step": 1}

    def set_extra_state(self, state):
        pass


def linear(change):
    model = nn.Linear(2, 2)
    model.weight = nn.Parameter(change(model.weight.detach()))
    return model


def peers():
    return inject(net(0), RECIPE, example_inputs=EXAMPLE, verify=False, attention=lambda c: nn.Conv2d(c, c, 1))


def with_buffer(dtype):
    model = linear(lambda weight: weight)
    model.register_buffer("table", torch.empty(2, dtype=dtype))
    return model


class Renamed(Network):
    def state_dict(self, *args, **kwargs):
        return {f"net.{name}": tensor for name, tensor in super().state_dict(*args, **kwargs).items()}


def wrapped():
    model = inject(net(0), RECIPE, example_inputs=EXAMPLE, verify=False)
    apply_activation_checkpointing(model, check_fn=lambda module: isinstance(module, nn.Conv2d))
    return model


def turned():
    model = inject(Pair(False), PAIR, example_inputs=MAPS)
    model.a.simam.channel_dim = -1
    return model


@pytest.mark.parametrize(
    ("build", "file", "words"),
    [
        (lambda: nn.Sequential(Extra()), "x.safetensors", "0._extra_state is a dict"),
        (lambda: linear(lambda weight: weight.to("meta")), "x.safetensors", "weight is on the meta device"),
        (lambda: linear(torch.Tensor.to_sparse), "x.safetensors", "weight is not a plain tensor .*sparse.*: gather"),
        (net, "nowhere/x.safetensors", "No such file or directory"),
        (net, "net.pt", "net.pt: .* is a pickle.* net.safetensors"),
        (net, "net.pth", "net.pth: .* is a pickle.* net.safetensors"),
        (peers, "x.safetensors", "blocks.0.conv2 is a Conv2d, .* SimAM only"),
        (partial(with_buffer, torch.complex128), "x.safetensors", r"table is a tensor of torch\.complex128"),
        (partial(with_buffer, torch.uint4), "x.safetensors", r"table is a tensor of torch\.uint4"),
        (wrapped, "x.safetensors", r"no tensor of blocks\.0\.conv2\S*: .* wrapper or the state_dict method"),
        (
            lambda: inject(Renamed(channels=4), RECIPE, example_inputs=EXAMPLE, verify=False),
            "x.safetensors",
            r"no tensor of blocks: .* wrapper or the state_dict method",
        ),
        (turned, "x.safetensors", "channel_dim -1, .* planned for 1"),
    ],
)
def test_what_cannot_be_saved_leaves_no_file(build, file, words, tmp_path):
    model = build()
    with pytest.raises(FileError, match=words):
        save(model, tmp_path / file)
    assert list(tmp_path.iterdir()) == []


def test_a_write_that_stops_halfway_leaves_the_old_file(file):
    resource = pytest.importorskip("resource")
    before = file.read_bytes()
    larger = inject(net(5, channels=64), RECIPE, example_inputs=EXAMPLE, verify=False)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before), hard))
    try:
        with pytest.raises(FileError, match=r"cannot write .*: File too large"):
            save(larger, file)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert file.read_bytes() == before
    assert [entry.name for entry in file.parent.iterdir()] == [file.name]


def test_links_and_permissions_stay(model, file, tmp_path):
    file.chmod(0o640)
    link = tmp_path / "link.safetensors"
    link.symlink_to(file)
    save(model, link)
    assert link.is_symlink()
    assert stat.S_IMODE(file.stat().st_mode) == 0o640


@pytest.mark.parametrize("written", [torch.float32, torch.float16])
@pytest.mark.parametrize("read", [torch.float32, torch.bfloat16])
def test_a_file_and_a_model_of_other_dtypes(tmp_path, written, read):
    model = inject(net(), RECIPE, example_inputs=EXAMPLE).to(written)
    path = save(model, tmp_path / "x.safetensors")
    other = load(path, net(1).to(read))
    assert injected(other) == injected(model)
    assert torch.equal(other.stem.weight, model.stem.weight.to(read))


class Pair(nn.Module):
    """Two convolutions, of one weight or of two."""

    def __init__(self, tied=False):
        super().__init__()
        self.a, self.b = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.register_buffer("limits", torch.tensor([3, 0]))
        if tied:
            self.b.weight = self.a.weight

    def forward(self, x):
        return self.b(self.a(x))


PAIR = {"rules": [{"pattern": "conv2d"}]}
MAPS = torch.rand(2, 4, 8, 8, generator=torch.Generator().manual_seed(8))


def test_weights_of_an_untied_model_are_refused_by_a_tied_one(tmp_path):
    untied, tied = (inject(Pair(is_tied), PAIR, example_inputs=MAPS) for is_tied in (False, True))
    with pytest.raises(FileError, match=r"b.weight \(the same tensor as a.weight"):
        load(save(untied, tmp_path / "untied.safetensors"), tied)
    file = save(tied, tmp_path / "tied.safetensors")
    load(file, untied)
    assert torch.equal(untied(MAPS), tied(MAPS))
    tied.a.weight.data[0, 0, 0, 0] = torch.nan
    load(save(tied, file), Pair(True))


def large(pair):
    pair.a.weight.data[0, 0, 0, 0] = 1e5
    return pair


def with_limits(values, dtype):
    def change(pair):
        pair.limits = torch.tensor(values, dtype=dtype)
        return pair

    return change


@pytest.mark.parametrize(
    ("saved", "loading", "words"),
    [
        (large, nn.Module.half, r"a.weight \(file torch.float32, model torch.float16, .* cannot represent"),
        (with_limits([3, 0], torch.int64), with_limits([True, True], torch.bool), "file torch.int64, model torch.bool"),
        (with_limits([300, 0], torch.int64), with_limits([0, 0], torch.int8), "int8, which cannot represent"),
        (
            with_limits([3.0, 0.0], torch.float8_e4m3fn),
            with_limits([3.0, 0.0], torch.float32),
            "limits .*float8_e4m3fn",
        ),
        (with_limits([-1, 0], torch.int64), with_limits([0, 0], torch.uint8), "uint8, which cannot represent"),
    ],
)
def test_values_that_a_dtype_cannot_represent_are_refused(saved, loading, words, tmp_path, refused):
    file = save(inject(saved(Pair(False)), PAIR, example_inputs=MAPS), tmp_path / "x.safetensors")
    refused(load, words, file, loading(Pair(False)))


def test_exchanged_arguments(model, file):
    with pytest.raises(ModelError, match="the file comes first"):
        load(model, file)
    with pytest.raises(ModelError, match="the model comes first"):
        save(file, model)


def test_a_bypassed_simam_is_not_saved(model, file, tmp_path):
    """A file has no place for it: what is loaded would compute something else."""
    with bypass(model), pytest.raises(FileError, match=r"conv2\.simam is bypassed"):
        save(model, tmp_path / "y.safetensors")
    model.blocks[0].conv2.simam.bypassed = True
    with pytest.raises(FileError, match=r"blocks\.0\.conv2\.simam is bypassed"):
        save(model, file)
    assert len(read(file).insertions) == len(injected(model))


class Overlapping(Pair):
    def __init__(self):
        super().__init__()
        self.limits = torch.tensor([3]).expand(2)


class OfInference(Pair):
    def __init__(self):
        super().__init__()
        with torch.inference_mode():
            self.b = nn.Conv2d(4, 4, 3, padding=1, bias=False)


class NotStrict(Pair):
    def load_state_dict(self, state_dict):
        return super().load_state_dict(state_dict)


class Dropping(Pair):
    """A class may drop what it does not want: torch reports the key as missing."""

    def _load_from_state_dict(self, state_dict, prefix, *rest):
        state_dict.pop(f"{prefix}b.weight")
        super()._load_from_state_dict(state_dict, prefix, *rest)


class Counting(Dropping):
    """Its state has a tensor that is made when it is asked for."""

    def __init__(self):
        super().__init__()
        self.step = 1

    def get_extra_state(self):
        return torch.tensor(self.step)

    def set_extra_state(self, state):
        self.step = int(state)


class Silent(Pair):
    """Nothing tells that it leaves out a tensor."""

    def load_state_dict(self, state_dict, strict=True):
        del state_dict["b.weight"]
        super().load_state_dict(state_dict, strict=False)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (Overlapping, r'load_state_dict raises RuntimeError: .*(.|\n)*"limits"'),
        (OfInference, r'load_state_dict raises RuntimeError: .*(.|\n)*"b.weight"'),
        (NotStrict, r"NotStrict.load_state_dict raises TypeError: .* 'strict'"),
        (Dropping, r"fit this Dropping:\n  1 with other values .*: b.weight$"),
        (Counting, r"fit this Counting:\n  1 with other values .*: b.weight$"),
        (Silent, r"fit this Silent:\n  1 with other values .*: b.weight$"),
    ],
)
def test_weights_that_a_class_does_not_take(kind, words, tmp_path, refused):
    model = inject(kind(), PAIR, example_inputs=MAPS)
    model.step = 2
    refused(load, words, save(model, tmp_path / "x.safetensors"), kind())


def test_weights_that_a_class_drops_are_in_the_warning(tmp_path):
    model, other = inject(Dropping(), PAIR, example_inputs=MAPS), Dropping()
    with pytest.warns(UserWarning, match=r"left out.*\n  1 with other values .*: b.weight$") as caught:
        load(save(model, tmp_path / "x.safetensors"), other, strict=False)
    assert len(caught) == 1
    assert injected(other) == injected(model)
    assert torch.equal(other.a.weight, model.a.weight)


class Restarting(Pair):
    """A tensor that the class sets itself in loading was not dropped, also where it had this value before."""

    def __init__(self):
        super().__init__()
        self.steps = nn.Buffer(torch.zeros(()))
        self.register_load_state_dict_post_hook(lambda module, _: setattr(module, "steps", module.steps.fill_(1)))


class Resetting(Restarting):
    def load_state_dict(self, state_dict, strict=True):
        self.loaded = super().load_state_dict({**state_dict, "steps": torch.ones(())}, strict)


@pytest.mark.parametrize("kind", [Restarting, Resetting])
@pytest.mark.parametrize("steps", [0, 1])
def test_tensors_that_a_class_sets_in_loading(kind, steps, tmp_path):
    model, other = inject(kind(), PAIR, example_inputs=MAPS), kind()
    model.steps.fill_(7)
    other.steps.fill_(steps)
    load(save(model, tmp_path / "x.safetensors"), other)
    assert other.steps == 1
    assert torch.equal(other.b.weight, model.b.weight)


class Halving(Pair):
    def load_state_dict(self, state_dict, strict=True):
        super().load_state_dict(state_dict, strict)
        self.b.weight.data.mul_(0.5)


def test_a_class_that_changes_a_parameter_in_loading_is_refused(tmp_path):
    file = save(inject(Halving(), PAIR, example_inputs=MAPS), tmp_path / "x.safetensors")
    with pytest.raises(FileError, match=r"other values after load_state_dict: b.weight"):
        load(file, Halving())


class Versioned(Pair):
    """As torchvision's MNASNet does, it reads a state of a known version only."""

    _version = 2

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, *rest):
        assert local_metadata["version"] == 2
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *rest)


def test_a_class_that_wants_to_know_its_version(tmp_path):
    model = inject(Versioned(), PAIR, example_inputs=MAPS)
    assert torch.equal(load(save(model, tmp_path / "x.safetensors"), Versioned())(MAPS), model(MAPS))


def test_a_file_takes_its_name_only_when_it_is_whole(tmp_path):
    file = tmp_path / "best.pt"
    file.write_text("before")

    def fail():
        with in_one_step(file) as unfinished:
            unfinished.write_text("half")
            raise RuntimeError("disk full\nat line 3")

    with pytest.raises(FileError, match=r"cannot write .*best\.pt: disk full; the previous file is unchanged"):
        fail()
    assert (file.read_text(), [*tmp_path.iterdir()]) == ("before", [file])
    with in_one_step(file) as unfinished:
        unfinished.write_text("after")
    assert (file.read_text(), [*tmp_path.iterdir()]) == ("after", [file])


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs a named pipe")
def test_what_is_no_file_is_written_to_and_stays(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    with in_one_step(pipe) as unfinished:
        unfinished.write_text("page")
    assert (os.read(reader, 10), pipe.is_fifo()) == (b"page", True)
    os.close(reader)
