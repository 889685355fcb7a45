"""What cannot be exported: one clear message, no file."""

import pytest
import torch

from simam_inject import bypass
from simam_inject.export import ExportError, export, prove
from tests.export.networks import attended, image
from tests.networks import Network


@pytest.mark.parametrize("name", ["net.pb", "net", "net.pt"])
def test_an_unknown_suffix(name, tmp_path):
    with pytest.raises(ExportError, match=r"must be one of \.onnx, \.pt2, \.torchscript"):
        export(attended(), tmp_path / name)


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(ExportError, match="no such folder"):
        export(attended(), tmp_path / "missing" / "net.pt2")


@pytest.mark.parametrize("suffix", [".pt2", ".onnx", ".torchscript"])
def test_a_folder_in_the_place_of_the_file(suffix, tmp_path):
    folder = tmp_path / f"net{suffix}"
    folder.mkdir()
    with pytest.raises(ExportError, match="is a folder; give the name of a file"):
        export(attended(), folder)
    assert list(tmp_path.iterdir()) == [folder]


def test_a_model_without_attention(tmp_path):
    with pytest.raises(ExportError, match=r"no SimAM in this model; inject\(model, recipe\)"):
        export(Network(), tmp_path / "net.pt2")


def test_a_bypassed_site(tmp_path):
    model = attended()
    with bypass(model), pytest.raises(ExportError, match=r"blocks\.0\.conv2\.simam is bypassed"):
        export(model, tmp_path / "net.pt2")


def test_a_site_of_strength_zero(tmp_path):
    model = attended()
    model.blocks[1].conv2.simam.strength = 0.0
    with pytest.raises(ExportError, match=r"blocks\.1\.conv2\.simam has strength 0 and would be missing in the export"):
        export(model, tmp_path / "net.pt2")
    assert list(tmp_path.iterdir()) == []


def test_a_bad_choice_of_dynamic_sizes(tmp_path):
    with pytest.raises(ExportError, match="must be True"):
        export(attended(), tmp_path / "net.pt2", dynamic="height")


def test_a_model_compiled_in_place_is_exported_from_its_python(tmp_path):
    model = attended()
    model.compile()
    assert export(model, tmp_path / "net.torchscript", example_inputs=image()).live == 2


class Bored(Network):
    """Its control flow depends on data, which no exporter takes."""

    def forward(self, x):
        y = super().forward(x)
        return y if y.sum() > 0 else -y


def test_a_model_that_no_exporter_takes(tmp_path):
    model = attended(network=Bored)
    with pytest.raises(ExportError, match="cannot express this model with or without SimAM") as caught:
        export(model, tmp_path / "net.pt2", example_inputs=image())
    assert "data-dependent" in str(caught.value)
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


@pytest.mark.parametrize("suffix", [".onnx", ".pt2", ".torchscript"])
def test_a_file_that_is_no_export(suffix, tmp_path):
    path = tmp_path / f"net{suffix}"
    path.write_bytes(b"PK\x03\x04 not an export at all")
    with pytest.raises(ExportError, match="cannot be opened"):
        prove(path, attended(), example_inputs=image())


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ExportError, match="no such file"):
        prove(tmp_path / "net.onnx", attended())
