"""Files that plain tools open, equal to eager, with every site in them and nothing changed in the model."""

import onnxruntime
import pytest
import torch
from torch import nn

from simam_inject import inject, injected
from simam_inject.dataflow.example import Example
from simam_inject.errors import ModelError
from simam_inject.export import LostSiteError, export, prove
from simam_inject.export.formats import read
from tests.export.networks import Pyramid, attended, doubling, image
from tests.networks import Network

SUFFIXES = [".onnx", ".pt2", ".torchscript"]
ONNX_IS_LONG = [pytest.param(".onnx", marks=pytest.mark.long), *SUFFIXES[1:]]
QUIET = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")


def run_file(path, x):
    """What a user without this package does."""
    if path.suffix == ".onnx":
        session = onnxruntime.InferenceSession(str(path))
        return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])
    if path.suffix == ".pt2":
        return torch.export.load(path).module()(x)
    return torch.jit.load(str(path))(x)


@QUIET
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_fixed_file_is_the_model(suffix, tmp_path):
    model, x = attended().eval(), image()
    report = export(model, tmp_path / f"net{suffix}", example_inputs=x)
    assert [site.path for site in report.sites] == [insertion.path for insertion in injected(model)]
    assert {site.found_by for site in report.sites} == {"name"}
    assert report.live == 2
    assert report.form == suffix[1:]
    assert report.is_decisive
    with torch.no_grad():
        torch.testing.assert_close(run_file(report.path, x), model(x), rtol=1e-5, atol=1e-6)
    assert [path.name for path in tmp_path.iterdir()] == [f"net{suffix}"]


@QUIET
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_forward_with_simam_inside_is_exported(suffix, tmp_path):
    model = doubling().eval()
    assert "forward" in model.__dict__
    report = export(model, tmp_path / f"net{suffix}", example_inputs=image(), dynamic=suffix == ".pt2")
    assert [(site.module, site.found_by) for site in report.sites] == [("simam_mul", "name")]
    assert report.is_decisive
    with torch.no_grad():
        x = image(2 if suffix == ".pt2" else 1)
        torch.testing.assert_close(run_file(report.path, x), model(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_gain_and_a_strength_below_one_are_in_the_file(suffix, tmp_path):
    model = attended().eval()
    whole = model(image())
    for site in injected(model):
        attention = model.get_submodule(site.module)
        attention.strength, attention.gain = 0.5, 1.4
    with pytest.warns(UserWarning, match="2 of 2 SimAM have a strength below 1"):
        report = export(model, tmp_path / f"net{suffix}", example_inputs=image())
    assert report.live == 2
    with torch.no_grad():
        torch.testing.assert_close(run_file(report.path, image()), model(image()), rtol=1e-5, atol=1e-6)
        assert not torch.allclose(whole, model(image()), rtol=1e-3)


@QUIET
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_dynamic_file_takes_other_batches_and_sizes(suffix, tmp_path):
    model = attended().eval()
    report = export(model, tmp_path / f"net{suffix}", example_inputs=image(), dynamic=True)
    assert report.dynamic == ("batch", "size")
    assert [comparison.shapes for comparison in report.comparisons] == [((2, 3, 32, 32),), ((3, 3, 64, 64),)]
    assert report.difference < 1e-5
    other = image(batch=5, side=46)
    with torch.no_grad():
        torch.testing.assert_close(run_file(report.path, other), model(other), rtol=1e-5, atol=1e-6)


class Timed(Network):
    """Takes one number for each sample, as diffusion models do."""

    def forward(self, x, times, size=None):
        return super().forward(x * times.view(-1, 1, 1, 1))


@pytest.mark.parametrize(("batch", "times"), [(3, [(3,), (4,)]), (1, [(1,), (1,)])])
def test_a_vector_with_the_length_of_the_batch_varies_with_it(batch, times, tmp_path):
    example = (image(batch), torch.rand(batch), torch.tensor([32.0, 32.0]))
    model = inject(Timed(), "after basicblock.conv2", example_inputs=example, verify=False)
    report = export(model, tmp_path / "net.pt2", example_inputs=example, dynamic="batch")
    assert [comparison.shapes[1] for comparison in report.comparisons] == times
    assert {comparison.shapes[2] for comparison in report.comparisons} == {(2,)}


class Fused(nn.Module):
    """Takes a map of half the size beside the image, and sizes that are multiples of 40 only."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)

    def forward(self, x, half):
        if not torch.compiler.is_compiling() and x.shape[-1] % 40:
            raise ValueError("multiples of 40 only")
        return self.conv(x) + nn.functional.interpolate(self.conv(half), scale_factor=2.0)


def test_a_second_map_of_another_size_grows_with_the_image(tmp_path):
    example = (image(2, 40), image(2, 20))
    model = inject(Fused().eval(), "after conv2d", example_inputs=example)
    report = export(model, tmp_path / "net.pt2", example_inputs=example, dynamic="size")
    assert [[shape[-1] for shape in comparison.shapes] for comparison in report.comparisons] == [[40, 20], [80, 40]]


def test_a_dynamic_onnx_file_names_its_sizes_and_torch_prints_nothing(tmp_path, capfd, recwarn):
    report = export(attended(), tmp_path / "net.onnx", example_inputs=image(), dynamic="batch")
    assert capfd.readouterr() == ("", ""), "torch logs its warnings"
    assert not recwarn.list
    session = onnxruntime.InferenceSession(str(report.path))
    assert session.get_inputs()[0].shape == ["batch", 3, 32, 32]
    assert session.get_outputs()[0].shape == ["batch", 5]


@pytest.mark.parametrize("suffix", ONNX_IS_LONG)
def test_keywords_a_dict_of_outputs_and_a_block_that_runs_twice(suffix, tmp_path):
    torch.manual_seed(0)
    example = {"x": image(), "scale": torch.tensor([2.0])}
    model = inject(Pyramid(), "after basicblock.conv2", example_inputs=example, verify=False)
    report = export(model, tmp_path / f"net{suffix}", example_inputs=example)
    assert [(site.path, site.runs) for site in report.sites] == [("blocks.0.conv2", 2), ("blocks.1.conv2", 1)]
    assert report.difference < 1e-5


class Siamese(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)

    def forward(self, x, y):
        return self.conv(x) - 2 * self.conv(y)


class Once(Siamese):
    """Applies one convolution twice to the same value."""

    def forward(self, x):
        return super().forward(x, x)


@QUIET
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_one_tensor_given_as_two_inputs_is_two_inputs_of_the_file(suffix, tmp_path):
    x, y = image().clone(), image().flip(-1)
    model = inject(Siamese().eval(), "after conv2d", example_inputs=(x, x))
    report = export(model, tmp_path / f"net{suffix}", example_inputs=(x, x))
    assert report.live == 1
    run = read(report.path).run
    with torch.no_grad():
        torch.testing.assert_close(run(Example((x, y), {}))[0], model(x, y), rtol=1e-5, atol=1e-5)
    assert prove(report.path, model, example_inputs=(x, x)).live == 1


def test_integers_given_twice_are_two_inputs():
    one = torch.arange(3)
    first, second = Example((one, one), {}).with_distinct_tensors().args
    assert first is not second
    assert torch.equal(first, second)


class Masked(nn.Module):
    """Refuses masks with other numbers than 0 and 1; may take sparse ones."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x, a, b):
        a, b = (mask.to_dense() for mask in (a, b))
        if not torch.compiler.is_compiling() and not set(torch.cat([a, b]).unique().tolist()) <= {0.0, 1.0}:
            raise ValueError("a mask holds 0 and 1")
        return self.conv(x) * a + b


@QUIET
@pytest.mark.parametrize("mask", [torch.ones(1, 1, 32, 32), torch.eye(32).to_sparse()])
def test_equal_masks_that_the_forward_checks(mask, tmp_path):
    example = (image(), mask, mask.clone())
    model = inject(Masked().eval(), "after conv2d", example_inputs=example)
    assert export(model, path := tmp_path / "net.pt2", example_inputs=example).live == 1
    assert prove(path, model, example_inputs=example).live == 1


def test_a_merge_of_identical_computations_is_named(tmp_path):
    model = inject(Once().eval(), "after conv2d", example_inputs=image())
    with pytest.raises(LostSiteError, match=r"lost 1 of 1 .* 1 live of 2. An exporter to ONNX may merge identical"):
        export(model, tmp_path / "net.onnx", example_inputs=image())
    assert export(model, tmp_path / "net.pt2", example_inputs=image()).live == 1


def test_a_file_that_ignores_one_of_two_inputs_is_found(tmp_path):
    x = image()
    model = inject(Siamese().eval().requires_grad_(False), "after conv2d", example_inputs=(x, x))
    torch.jit.trace(lambda x, _: model(x, x), (x, x + 1)).save(str(path := tmp_path / "net.torchscript"))
    with pytest.raises(LostSiteError, match="differs from eager mode"):
        prove(path, model, example_inputs=(x, x))


def test_the_model_is_as_it_was(tmp_path):
    model = attended().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.random.get_rng_state()
    export(model, tmp_path / "net.pt2", example_inputs=image(), dynamic=True)
    assert all(module.training for module in model.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


class Centering(Network):
    """Writes into what it is given."""

    def forward(self, x):
        return super().forward(x.sub_(0.5))


@QUIET
@pytest.mark.parametrize("suffix", ONNX_IS_LONG)
def test_the_example_is_as_it_was(suffix, tmp_path):
    model, x = inject(Centering(), "after basicblock.conv2", example_inputs=image()), image()
    export(model, tmp_path / f"net{suffix}", example_inputs=x)
    assert torch.equal(x, image())


def test_a_block_output_wrapped_at_its_boundary_is_in_the_file(tmp_path):
    report = export(attended("after basicblock"), tmp_path / "net.pt2", example_inputs=image())
    assert [site.module for site in report.sites] == ["blocks.0.simam", "blocks.1.simam"]
    assert report.live == 2


def test_channels_last_maps_are_exported(tmp_path):
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.LayerNorm(8)
            self.mix = nn.Conv2d(8, 8, 3, padding=1)

        def forward(self, x):
            return x + self.norm(self.mix(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    model = nn.Sequential(nn.Conv2d(3, 8, 1), Block())
    inject(model, "after block.norm", example_inputs=image())
    (insertion,) = injected(model)
    assert insertion.channel_dim == -1
    assert export(model, tmp_path / "net.onnx", example_inputs=image()).difference < 1e-5


@pytest.mark.parametrize("wrap", [torch.compile, torch.nn.DataParallel])
def test_wrappers_are_looked_through(wrap, tmp_path):
    assert export(wrap(attended()), tmp_path / "net.pt2", example_inputs=image()).live == 2


def test_network_of_the_default_size(tmp_path):
    torch.manual_seed(0)
    model = inject(Network(), "after basicblock.conv2", verify=False)
    report = export(model, tmp_path / "net.torchscript")
    assert report.comparisons[0].shapes == ((1, 3, 224, 224),)


@pytest.mark.parametrize("suffix", [".pt2", ".onnx", ".torchscript"])
def test_the_example_of_inject_is_remembered(suffix, tmp_path):
    sound = torch.nn.Sequential(torch.nn.Conv1d(5, 8, 3), torch.nn.ReLU(), torch.nn.Conv1d(8, 4, 3)).eval()
    inject(sound, {"rules": [{"pattern": "conv1d"}]}, example_inputs=torch.rand(2, 5, 40))
    report = export(sound, tmp_path / f"net{suffix}")
    assert report.comparisons[0].shapes == ((2, 5, 40),)
    assert prove(report.path, sound).live == 2
    assert len(injected(inject(sound, {"rules": [{"pattern": "relu"}]}))) == 3


def test_a_model_that_declares_a_size_is_exported_at_that_size(tmp_path):
    model = Network()
    model.pretrained_cfg = {"input_size": (3, 48, 48)}
    inject(model, "after basicblock.conv2", example_inputs=image())
    assert export(model, tmp_path / "net.torchscript").comparisons[0].shapes == ((1, 3, 48, 48),)


@pytest.mark.parametrize("write", [export, lambda model, path, **given: prove(path, model, **given)])
def test_an_example_that_the_model_does_not_take(write, tmp_path):
    path = tmp_path / "net.pt2"
    path.touch()
    with pytest.raises(ModelError, match=r"cannot be run on the example input \(2x7x8\)"):
        write(attended(), path, example_inputs=torch.rand(2, 7, 8))
