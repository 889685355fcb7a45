"""The proof refuses every file that is not the model, and says which site is gone."""

import copy

import pytest
import torch

from simam_inject import bypass, eject
from simam_inject.export import LostSiteError, export, prove
from simam_inject.export.formats import FORMS
from simam_inject.export.graph import GraphNode, find_gates
from tests.export.networks import attended, image
from tests.networks import Network

SUFFIXES = [".pt2", ".torchscript"]
"""ONNX is one more export and the same counting; it has its own tests below."""


def write(model, path):
    """An export that nobody checks."""
    from simam_inject.dataflow.example import Example

    FORMS[path.suffix].write(model.eval(), (Example((image(),), {}),), path)
    return path


@pytest.mark.parametrize("suffix", [*SUFFIXES, ".onnx"])
def test_a_file_of_the_plain_model_is_refused(suffix, tmp_path):
    model = attended()
    path = write(eject(copy.deepcopy(model)), tmp_path / f"plain{suffix}")
    with pytest.raises(LostSiteError, match=r"lost 2 of 2 SimAM sites: blocks\.0\.conv2, blocks\.1\.conv2"):
        prove(path, model, example_inputs=image())


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_that_lost_one_site_is_refused(suffix, tmp_path):
    model = attended()
    less = copy.deepcopy(model)
    less.blocks[1].conv2.simam.bypassed = True
    path = write(less, tmp_path / f"less{suffix}")
    with pytest.raises(LostSiteError, match=r"lost 1 of 2 SimAM sites: blocks\.1\.conv2\. Its graph holds 1 live of 2"):
        prove(path, model, example_inputs=image())


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_with_another_lambda_is_refused(suffix, tmp_path):
    model = attended()
    recipe = {"version": 1, "e_lambda": 0.1, "rules": [{"block": "BasicBlock", "after": "conv2"}]}
    path = write(attended(recipe), tmp_path / f"other{suffix}")
    with pytest.raises(LostSiteError, match=r"blocks\.0\.conv2 has lambda 0\.1 in the file and 0\.0001 in the model"):
        prove(path, model, example_inputs=image())


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_with_other_weights_is_refused(suffix, tmp_path):
    model = attended()
    path = write(model, tmp_path / f"old{suffix}")
    prove(path, model, example_inputs=image())
    torch.nn.init.normal_(model.head.weight)
    with pytest.raises(LostSiteError, match=r"output differs from eager mode on an input of 1x3x32x32: .* relative"):
        prove(path, model, example_inputs=image())


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_a_file_without_names_is_counted_by_what_it_computes(tmp_path):
    """A frozen trace has no modules left."""
    model = attended().eval()
    frozen = torch.jit.freeze(torch.jit.trace(model, image(), check_trace=False))
    torch.jit.save(frozen, str(tmp_path / "frozen.torchscript"))
    report = prove(tmp_path / "frozen.torchscript", model, example_inputs=image())
    assert [site.found_by for site in report.sites] == ["structure", "structure"]


class Mixed(Network):
    """Runs its blocks under autocast, which `torch.export` puts into a graph of their own."""

    def forward(self, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = self.blocks(self.stem(x))
        return self.head(y.float().mean((2, 3)))


def test_sites_in_a_region_of_the_graph_are_counted(tmp_path):
    model = attended(network=Mixed)
    report = export(model, tmp_path / "net.pt2", example_inputs=image(), tolerance=1e-2)
    assert (report.live, {site.found_by for site in report.sites}) == (2, {"structure"})
    less = copy.deepcopy(model)
    less.blocks[1].conv2.simam.bypassed = True
    with pytest.raises(LostSiteError, match="lost 1 of 2"):
        prove(write(less, tmp_path / "less.pt2"), model, example_inputs=image(), tolerance=1e-2)


class Shortened(Network):
    """Skips its second block unless told otherwise."""

    is_long = True

    def forward(self, x):
        y = self.stem(x)
        return self.head((self.blocks(y) if self.is_long else self.blocks[0](y)).mean((2, 3)))


def test_a_site_that_eager_does_not_run_is_idle(tmp_path):
    model = attended(network=Shortened)
    model.is_long = False
    report = export(model, tmp_path / "net.pt2", example_inputs=image())
    assert [(site.path, site.found_by) for site in report.sites] == [
        ("blocks.0.conv2", "name"),
        ("blocks.1.conv2", "idle"),
    ]
    assert report.live == 1


def test_a_failed_proof_leaves_the_file_that_was_there(tmp_path, monkeypatch):
    model = attended()
    target = tmp_path / "net.torchscript"
    target.write_text("the old file")
    form = FORMS[".torchscript"]

    def write_without_attention(model, *arguments):
        with bypass(model):
            form.write(model, *arguments)

    monkeypatch.setitem(FORMS, ".torchscript", form._replace(write=write_without_attention))
    with pytest.raises(LostSiteError, match="lost 2 of 2"):
        export(model, target, example_inputs=image())
    assert target.read_text() == "the old file"
    assert list(tmp_path.iterdir()) == [target]


def chain(*, half=0.5, root="sqrt", reads=True):
    """SimAM's graph by hand, and near misses of it."""
    graph = {
        "mean": GraphNode("mean", ("x",)),
        "d": GraphNode("sub", ("x", "mean")),
        "small": GraphNode("mul", ("d", 1 / 16)),
        "squares": GraphNode("mul", ("small", "small")),
        "variance": GraphNode("mean", ("squares",)),
        "spread": GraphNode("mul", ("variance", 4.0)),
        "energy": GraphNode("add", ("spread", 4 * 1e-4 / 256)),
        "root": GraphNode(root, ("energy",)),
        "normal": GraphNode("div", ("small", "root")),
        "square": GraphNode("mul", ("normal", "normal")),
        "argument": GraphNode("add", (half, "square")),
        "gate": GraphNode("sigmoid", ("argument",)),
        "narrow": GraphNode("cast", ("gate",)),
        "y": GraphNode("mul", ("x", "narrow")),
        "z": GraphNode("relu", ("y" if reads else "x",)),
    }
    return graph, ("z",)


def test_the_formula_is_recognised_without_names():
    (gate,) = find_gates(*chain())
    assert gate.is_live
    assert gate.e_lambda == pytest.approx(1e-4)


def test_a_near_miss_of_the_formula_is_not_a_gate():
    assert find_gates(*chain(half=0.7)) == find_gates(*chain(root="exp")) == ()


def test_a_gate_that_nothing_reads_is_not_live():
    (gate,) = find_gates(*chain(reads=False))
    assert not gate.is_live


def test_squeeze_and_excite_is_no_gate():
    graph = {
        "c": GraphNode("conv", ("x",)),
        "s": GraphNode("sigmoid", ("c",)),
        "y": GraphNode("mul", ("x", "s")),
    }
    assert find_gates(graph, ("y",)) == ()


class Pair(torch.nn.Module):
    """Two outputs, and a file may have been made with one of them or another number."""

    def __init__(self, returned):
        super().__init__()
        self.net = attended()
        self.returned = returned

    def forward(self, x):
        y = self.net(x)
        return {1: y, 2: (y, y + 1), 3: (y, y + 1, y + 2)}[self.returned]


def test_a_file_may_leave_out_the_last_outputs_only(tmp_path):
    model, one, three = (Pair(number).eval() for number in (2, 1, 3))
    one.net = three.net = model.net
    (comparison,) = prove(write(one, tmp_path / "one.pt2"), model, example_inputs=image()).comparisons
    assert comparison.left_out == 1
    with pytest.raises(LostSiteError, match="the file has 3 outputs, the model 2"):
        prove(write(three, tmp_path / "three.pt2"), model, example_inputs=image())


class Spectrum(torch.nn.Module):
    """Returns a complex tensor."""

    def __init__(self, phase):
        super().__init__()
        self.net = attended()
        self.phase = phase

    def forward(self, x):
        y = self.net(x)
        return torch.complex(y, self.phase * y)


def test_the_imaginary_part_of_an_output_is_compared(tmp_path):
    model, other = Spectrum(1.0), Spectrum(2.0)
    other.net = model.net
    assert export(model, tmp_path / "net.pt2", example_inputs=image()).difference < 1e-5
    with pytest.raises(LostSiteError, match="output differs from eager mode"):
        prove(write(other, tmp_path / "other.pt2"), model, example_inputs=image())
