"""deepcopy, pickle, torch.save, a fresh process: the same model each time, and nothing executed on the way."""

import copy
import io
import pickle
import subprocess
import sys
import types
from dataclasses import dataclass

import pytest
import torch
import torchvision
from torch import nn

from simam_inject import InjectError, SimAM, eject, inject, injected, verify
from simam_inject.errors import FileError
from simam_inject.rewriting import restoring
from simam_inject.rewriting.classes import SPECIFICATION
from tests.engine.blocks import Block, Net
from tests.engine.networks import NETWORKS, image, twin
from tests.engine.oracle import same_bits

X = torch.rand((2, 3, 8, 8), generator=torch.Generator().manual_seed(2))
RESNET50 = next(network for network in NETWORKS if network.name == "resnet50" and network.rule["after"] == "conv2")


def by_pickle(model):
    return pickle.loads(pickle.dumps(model))


def by_torch(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = [copy.deepcopy, by_pickle, by_torch]


@pytest.fixture(scope="module")
def resnet():
    return inject(RESNET50.build(), RESNET50.recipe, example_inputs=image(), verify=False)


@pytest.fixture(scope="module")
def c2f():
    """A backbone block of YOLOv8n, with SimAM inside and behind it."""
    yolo = next(network for network in NETWORKS if network.name == "yolov8n").build()
    block, x = yolo.model[4], torch.rand((1, 64, 16, 16), generator=torch.Generator().manual_seed(1))
    rules = [{"block": "bottleneck", "after": "cv2"}, {"block": "c2f", "after": {"op": "cat"}}]
    return inject(block, {"rules": rules}, example_inputs=x), x


def run(model, x):
    with torch.no_grad():
        return model(x)


@pytest.mark.parametrize("make", COPIES)
def test_a_copied_resnet50(resnet, make):
    other = make(resnet)
    assert injected(other) == injected(resnet)
    assert [type(module).__name__ for module in other.modules()] == [type(m).__name__ for m in resnet.modules()]
    for training in (False, True):
        models = [twin(model).train(training) for model in (resnet, other)]
        assert same_bits(run(models[0], image(seed=3)), run(models[1], image(seed=3)))
    assert not {id(t) for t in other.parameters()} & {id(t) for t in resnet.parameters()}
    assert list(other.state_dict()) == list(resnet.state_dict())
    assert {id(m) for m in other.modules()}.isdisjoint({id(m) for m in resnet.modules()})


@pytest.mark.parametrize("make", COPIES)
def test_a_copied_yolo_block(c2f, make):
    block, x = c2f
    other = make(block)
    assert injected(other) == injected(block)
    assert len(injected(other)) == 3
    assert same_bits(run(other, x), run(block, x))
    assert verify(other, example_inputs=x).ok


@pytest.mark.parametrize("make", COPIES)
def test_eject_after_copying(resnet, make):
    other = make(resnet)
    count = len(injected(resnet))
    eject(other)
    assert len(injected(resnet)) == count
    assert [type(module) for module in other.modules()] == [type(module) for module in RESNET50.build().modules()]
    assert same_bits(run(other, image()), run(RESNET50.build(), image()))


LOADING = """
import sys, torch, warnings
warnings.simplefilter("ignore")
model = torch.load(sys.argv[1], weights_only=False)
x, expected = torch.load(sys.argv[2])
with torch.no_grad():
    found = model(x)
from simam_inject import injected
print(len(injected(model)), torch.equal(found, expected))
"""


def test_a_fresh_process(resnet, c2f, tmp_path):
    block, x = c2f
    for model, inputs, count in ((resnet, image(), 16), (block, x, 3)):
        torch.save(model, tmp_path / "model.pt")
        torch.save((inputs, run(model, inputs)), tmp_path / "io.pt")
        process = subprocess.run(
            [sys.executable, "-c", LOADING, tmp_path / "model.pt", tmp_path / "io.pt"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert process.stdout.split() == [str(count), "True"], process.stderr


def test_weights_only_loading_with_safe_globals(tmp_path):
    model = network()
    torch.save(model, tmp_path / "model.pt")
    own = [Net, Block, nn.Conv2d, nn.BatchNorm2d, set]
    with torch.serialization.safe_globals(own):
        other = torch.load(tmp_path / "model.pt", weights_only=True)
    assert injected(other) == injected(model)
    assert same_bits(run(other, X), run(model, X))
    with pytest.raises(pickle.UnpicklingError, match=r"blocks\.Net"):
        torch.load(tmp_path / "model.pt", weights_only=True)
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    assert list(torch.load(tmp_path / "weights.pt", weights_only=True)) == list(network(plain=True).state_dict())


def network(plain=False):
    torch.manual_seed(1)
    model = Net(Block()).eval()
    return model if plain else inject(model, "after block.a", example_inputs=X)


def test_no_code_in_the_file(resnet):
    data = pickle.dumps(resnet)
    assert b"def forward" not in data
    assert b"simam_inject.rewriting.restoring" in data


def specification():
    return copy.deepcopy(network().block.__dict__[SPECIFICATION].to_dict())


HOSTILE = [
    ({"version": 2}, "version 2"),
    ({"edits": []}, "incomplete"),
    ({"edits": "x"}, "incomplete"),
    ({"edits": [{}]}, "not a site"),
    ({"fingerprints": {"forward": "0"}}, "invalid fingerprint"),
    ({"fingerprints": {"forward; import os": "0" * 64}}, "invalid fingerprint"),
    ({"fingerprints": {"forward": "0" * 64}}, "computes something else"),
    ({"arguments": None}, "cannot be put back"),
    ({"arguments": {"tensor": [[1, 2], [1], "float32"]}}, "cannot be put back"),
    ({"arguments": {"tensor": [[1], [1], "__class__"]}}, "cannot be put back"),
    ({"arguments": {"call": "os.system"}}, "cannot be put back"),
    ({"arguments": {"plain": [1]}}, "cannot be put back"),
    ({"edit": {"value": "a); import os; ("}}, "is not computed"),
    ({"edit": {"reader": "b'); import os"}}, "does not read a"),
    ({"arguments": {"tuple": [{"tuple": []}, {"dict": []}]}}, "cannot be put back"),
]
for _key, _values in {
    "child": ["__class__", "simam_a; import os", "simam_\n", "forward", 3, "simam_" + "a" * 500],
    "value": ["a\n", 5, None, "a" * 1000],
    "reader": ["b\x00", 1],
    "position": ["inside", None],
    "e_lambda": [float("nan"), float("inf"), -1.0, 0.0, "0.1", True, 1],
    "channel_dim": [0, 2, "1"],
    "shape": [None, ["x"], [1.5]],
    "dtype": ["float32)", 4],
    "rule": ["0"],
    "note": [b"x"],
}.items():
    HOSTILE += [({"edit": {_key: value}}, f"invalid {_key}") for value in _values]


@pytest.mark.parametrize(("change", "told"), HOSTILE, ids=lambda value: repr(value)[:60])
def test_a_hostile_specification_is_refused(change, told):
    data = specification()
    change = dict(change)
    data["edits"][0].update(change.pop("edit", {}))
    data.update(change)
    model = network(plain=True).block
    model.simam_a = SimAM()
    before = sorted(sys.modules)
    with pytest.raises(FileError, match=told):
        restoring.restore(model, data, {})
    assert type(model) is Block
    assert SPECIFICATION not in model.__dict__
    assert set(sys.modules) - set(before) <= {"os", "os.path"}


def test_an_honest_specification_is_accepted():
    model = network(plain=True).block
    model.simam_a = SimAM()
    assert injected(restoring.restore(model, specification(), {})) != ()


@pytest.mark.parametrize("methods", [None, [], {"forward": "nothing"}, {"forward": "training"}, {3: "forward"}])
def test_a_hostile_table_of_methods_is_refused(methods):
    model = network(plain=True).block
    model.simam_a = SimAM()
    with pytest.raises(FileError):
        restoring.restore(model, specification(), methods)
    assert model.__dict__.get("forward") is None or isinstance(model.forward, types.MethodType)


def test_a_missing_or_foreign_child_is_refused():
    model = network(plain=True).block
    with pytest.raises(FileError, match="lacks the SimAM named simam_a"):
        restoring.restore(model, specification(), {})
    model.simam_a = nn.Identity()
    with pytest.raises(FileError, match="lacks the SimAM named simam_a"):
        restoring.restore(model, specification(), {})


def test_a_block_that_was_upgraded_is_refused(monkeypatch):
    data = pickle.dumps(network())
    monkeypatch.setattr(Block, "forward", lambda self, x: self.b(self.a(x)) + x)
    with pytest.raises(FileError, match="computes something else here than when"):
        pickle.loads(data)
    monkeypatch.setattr(Block, "forward", lambda self, x: self.b(x))
    with pytest.raises(FileError, match="cannot be put back"):
        pickle.loads(data)


class SwappedMethod(Block):
    """Runs another of its methods, as ultralytics' exporters make it."""

    def forward_other(self, x):
        return self.b(self.a(x)) * 2


@pytest.mark.parametrize("make", COPIES)
def test_a_forward_that_was_switched_stays_switched(make):
    torch.manual_seed(1)
    model = Net(SwappedMethod()).eval()
    model.block.forward = model.block.forward_other
    plain = copy.deepcopy(model)
    inject(model, "after swappedmethod.a", example_inputs=X)
    other = make(model)
    assert other.block.forward.__self__ is other.block
    assert same_bits(run(other, X), run(model, X))
    del other.block.forward
    assert not same_bits(run(other, X), run(model, X))
    eject(model)
    assert same_bits(run(model, X), run(plain, X))
    assert model.block.forward.__func__ is SwappedMethod.forward_other


class Hooked(Block):
    """Listens to its own child: the child's hook is a method of the parent."""

    def __init__(self):
        super().__init__()
        self.a.register_forward_hook(self.listen)

    def listen(self, module, args, output):
        object.__setattr__(self, "heard", tuple(output.shape))


@dataclass
class Sample:
    image: torch.Tensor


class TakesSample(Block):
    def forward(self, sample):
        return self.b(self.a(sample.image))


def test_what_could_not_be_read_back_is_not_written():
    model = inject(Net(Hooked()).eval(), "after hooked.b", example_inputs=X)
    with pytest.raises(InjectError, match="a hook of a leads back to the Hooked itself"):
        pickle.dumps(model)
    other = copy.deepcopy(model)
    assert same_bits(run(other, X), run(model, X))
    model = inject(TakesSample().eval(), "after takessample.a", example_inputs=(Sample(torch.rand(1, 4, 8, 8)),))
    if injected(model)[0].means == "forward":
        with pytest.raises(InjectError, match="an object of a class of its own"):
            pickle.dumps(model)


class HasLock(Block):
    def __init__(self):
        super().__init__()
        self.pipe = (part for part in ())  # cannot be copied, and is left out

    def __getstate__(self):
        return {name: value for name, value in self.__dict__.items() if name != "pipe"}


@pytest.mark.parametrize("make", COPIES)
def test_what_a_class_leaves_out_of_its_copies_stays_out(make):
    model = inject(Net(HasLock()).eval(), "after haslock.a", example_inputs=X)
    other = make(model)
    assert not hasattr(other.block, "pipe")
    assert same_bits(run(other, X), run(model, X))


def test_shared_blocks_stay_shared():
    torch.manual_seed(1)
    block = Block()
    model = nn.Sequential(nn.Conv2d(3, 4, 1), block, block).eval()
    inject(model, "after block.a", example_inputs=X)
    (there,) = injected(model)
    assert there.runs == 2
    for make in COPIES:
        other = make(model)
        assert other[1] is other[2]
        assert same_bits(run(other, X), run(model, X))


def test_two_classes_of_one_name_and_source_do_not_mix():
    def make(factor):
        class Scaled(Block):
            def forward(self, x, scale=factor):
                return self.b(self.a(x)) * scale

        torch.manual_seed(1)
        return Scaled().eval()

    x = torch.rand(1, 4, 8, 8)
    outputs = [run(inject(make(factor), "after scaled.a", example_inputs=x), x) for factor in (1.0, float("inf"), 3.0)]
    assert torch.equal(outputs[0] * 3, outputs[2])
    assert not torch.isfinite(outputs[1]).any()


def test_one_class_for_one_body(resnet):
    blocks = [module for module in resnet.modules() if isinstance(module, torchvision.models.resnet.Bottleneck)]
    assert len({type(block) for block in blocks}) == 2  # with and without a downsample path


class Biased(Block):
    def forward(self, x):
        return torch.relu(self.b(self.a(x)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_model_that_was_cast_after_inject(dtype):
    x = torch.rand(1, 4, 8, 8)
    model = inject(Biased().eval(), "after biased.a", example_inputs=x).to(dtype)
    for make in COPIES:
        other = make(model)
        assert injected(other) == injected(model)
        assert same_bits(run(other, x.to(dtype)), run(model, x.to(dtype)))


class HasKeys(Block):
    def __init__(self, keys):
        super().__init__()
        self.keys = keys

    def forward(self, x):
        return self.b(self.a(x)) * (3 if 2 in self.keys else 1)


def test_objects_of_an_inner_body_count_behind_a_boundary():
    x = torch.rand(1, 4, 8, 8)
    rules = {"rules": [{"block": "haskeys", "after": "a"}, {"block": "haskeys", "after": "output"}]}
    models = [inject(HasKeys(keys).eval(), rules, example_inputs=x) for keys in ({3, 1}, {3, 2})]
    assert type(models[0]) is not type(models[1])
    assert all(torch.isfinite(run(model, x)).all() for model in models)


class Named(nn.Module):
    """Children under names that no attribute can have."""

    def __init__(self):
        super().__init__()
        names = ("conv-1", "conv 2", "größe", "层", "n" * 150)
        self.parts = nn.ModuleDict({name: nn.Conv2d(4, 4, 1) for name in names})

    def forward(self, x):
        for part in self.parts.values():
            x = part(x)
        return x


def test_children_of_any_name():
    x = torch.rand(1, 4, 8, 8)
    model = Named().eval()
    rules = [{"path": "*", "after": {"op": "conv2d"}}]
    inject(model, {"rules": rules}, example_inputs=x)
    assert len(injected(model)) == 5
    for make in COPIES:
        other = make(model)
        assert injected(other) == injected(model)
        assert same_bits(run(other, x), run(model, x))


class Owned(Block):
    """A child that knows its owner, which the stock class pickles."""

    def __init__(self):
        super().__init__()
        self.a.owner = {"me": [self]}


def test_a_child_that_points_back_to_its_owner_is_not_written():
    pickle.loads(pickle.dumps(Owned()))
    model = inject(Owned().eval(), "after owned.b", example_inputs=torch.rand(1, 4, 8, 8))
    with pytest.raises(InjectError, match=r"attribute owner of a leads back to the Owned itself"):
        pickle.dumps(model)
    other = copy.deepcopy(model)
    assert other.a.owner["me"][0] is other
