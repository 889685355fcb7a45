"""What cannot be exported: one clear message, no file."""

from pathlib import Path

import onnx
import pytest
import torch

from simam_inject import inject
from simam_inject.errors import InjectError
from simam_inject.export import ExportError, export, prove
from tests.export.networks import attended, image
from tests.networks import Network


class Bored(Network):
    """Its control flow depends on data, which no exporter takes."""

    def forward(self, x):
        y = super().forward(x)
        return y if y.sum() > 0 else -y


def off(**attributes):
    """A model whose second SimAM has these attributes."""
    model = attended()
    for name, value in attributes.items():
        setattr(model.blocks[1].conv2.simam, name, value)
    return model


@pytest.mark.parametrize(
    ("build", "name", "options", "words"),
    [
        (attended, "net.pb", {}, r"must be one of \.onnx, \.pt2, \.torchscript"),
        (attended, "net", {}, r"must be one of \.onnx, \.pt2, \.torchscript"),
        (attended, "missing/net.pt2", {}, "no such folder"),
        (attended, "net.pt2", {"dynamic": "height"}, "must be True"),
        *((attended, "net.pt2", {"tolerance": t}, "tolerance must be") for t in (-1, "1", True, float("nan"))),
        (Network, "net.pt2", {}, r"no SimAM in this model; inject\("),
        (lambda: off(bypassed=True), "net.pt2", {}, r"blocks\.1\.conv2\.simam is bypassed"),
        (lambda: off(strength=0.0), "net.pt2", {}, r"blocks\.1\.conv2\.simam has strength 0"),
        (attended, "net.pt2", {"example_inputs": {"image": image()}}, "missing a required argument: 'x'"),
        (lambda: attended(network=Bored), "net.pt2", {}, "(?s)cannot express this model.*data-dependent"),
    ],
)
def test_refused_and_nothing_is_written(build, name, options, words, tmp_path):
    with pytest.raises(InjectError, match=words):
        export(build(), tmp_path / name, **{"example_inputs": image(), **options})
    assert list(tmp_path.iterdir()) == []


def test_exchanged_arguments(tmp_path):
    with pytest.raises(InjectError, match="the model comes first"):
        export(tmp_path / "net.pt2", attended())


def test_a_folder_in_the_place_of_the_file(tmp_path):
    (tmp_path / "net.pt2").mkdir()
    with pytest.raises(ExportError, match="is a folder; give the name of a file"):
        export(attended(), tmp_path / "net.pt2")
    assert list(tmp_path.iterdir()) == [tmp_path / "net.pt2"]


@pytest.mark.skipif(not Path("/dev/null").exists(), reason="needs a device")
def test_a_link_to_a_device_is_refused(tmp_path):
    (tmp_path / "net.pt2").symlink_to("/dev/null")
    with pytest.raises(ExportError, match="is a device; give the name of a file"):
        export(attended(), tmp_path / "net.pt2", example_inputs=image())
    assert not Path("/dev/null").is_file()


def test_a_link_in_the_place_of_the_file_stays_a_link(tmp_path):
    (tmp_path / "real.pt2").write_text("before")
    (tmp_path / "net.pt2").symlink_to(tmp_path / "real.pt2")
    export(attended(), tmp_path / "net.pt2", example_inputs=image())
    assert (tmp_path / "net.pt2").is_symlink()
    assert (tmp_path / "real.pt2").stat().st_size > 1000
    assert len(list(tmp_path.iterdir())) == 2


def test_a_model_compiled_in_place_is_exported_from_its_python(tmp_path):
    model = attended()
    model.compile()
    assert export(model, tmp_path / "net.torchscript", example_inputs=image()).live == 2


def test_weights_that_torch_puts_beside_an_onnx_file(tmp_path, monkeypatch):
    from torch.onnx._internal.exporter import _onnx_program

    monkeypatch.setattr(_onnx_program, "_LARGE_MODEL_THRESHOLD", 10)
    with pytest.raises(ExportError, match="too large for one ONNX file"):
        export(attended(), tmp_path / "net.onnx", example_inputs=image())
    assert list(tmp_path.iterdir()) == []


class Rigid(Network):
    """Takes one size only."""

    def __init__(self) -> None:
        super().__init__()
        self.head = torch.nn.Linear(8 * 16 * 16, 5)

    def forward(self, x):
        return self.head(self.blocks(self.stem(x)).flatten(1))


def test_a_model_of_one_size_asked_for_all(tmp_path):
    model = attended(network=Rigid)
    with pytest.raises(ExportError, match=r"dynamic='batch'"):
        export(model, tmp_path / "net.pt2", example_inputs=image(), dynamic=True)
    report = export(model, tmp_path / "net.pt2", example_inputs=image(), dynamic="batch")
    assert report.dynamic == ("batch",)


class Generator(Network):
    """Makes an image from a vector."""

    def forward(self, z):
        return super().forward(z.view(-1, 3, 8, 8))


def test_a_model_without_images_asked_for_all_batches(tmp_path):
    model = inject(Generator(), "after basicblock.conv2", example_inputs=torch.rand(2, 192), verify=False)
    with pytest.raises(ExportError, match="dynamic has no effect"):
        export(model, tmp_path / "net.pt2", example_inputs=torch.rand(2, 192), dynamic="batch")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_dtype_that_onnx_runtime_does_not_compute(dtype, tmp_path):
    model = attended().to(dtype)
    with pytest.raises(ExportError, match=r"(?s)^net.onnx cannot be opened.*.pt2 file takes every dtype"):
        export(model, tmp_path / "net.onnx", example_inputs=image().to(dtype))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", [".onnx", ".pt2", ".torchscript"])
def test_a_file_that_is_no_export(suffix, tmp_path):
    path = tmp_path / f"net{suffix}"
    path.write_bytes(b"PK\x03\x04 not an export at all")
    with pytest.raises(ExportError, match="cannot be opened"):
        prove(path, attended(), example_inputs=image())


def test_what_onnx_runtime_opens_is_opened_and_no_half_of_it(tmp_path):
    model, path = attended(), tmp_path / "net.onnx"
    export(model, path, example_inputs=image())
    moved = onnx.load(path)
    nodes = [*moved.graph.node]
    del moved.graph.node[:]
    moved.graph.node.extend(reversed(nodes))  # a conversion to float16 leaves casts behind their readers
    onnx.save(moved, path)
    assert prove(path, model, example_inputs=image()).live == 2
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ExportError, match="cannot be opened"):
        prove(path, model, example_inputs=image())


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ExportError, match="no such file"):
        prove(tmp_path / "net.onnx", attended())
