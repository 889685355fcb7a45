"""The proof refuses every file that is not the model, and says which site is gone."""

import copy
import functools

import numpy as np
import pytest
import torch

from simam_inject import bypass, eject
from simam_inject.export import LostSiteError, export, prove
from simam_inject.export.formats import FORMS
from simam_inject.export.graph import GraphNode, find_simams
from tests.export.networks import attended, image
from tests.messages import says
from tests.networks import Network


def write(model, path):
    """An export that nobody checks."""
    from simam_inject.dataflow.example import Example

    FORMS[path.suffix].write(model.eval(), (Example((image(),), {}),), path)
    return path


def without_last_site(model):
    model.blocks[1].conv2.simam.bypassed = True
    return model


def with_other_lambda(_):
    return attended({"version": 1, "e_lambda": 0.1, "rules": [{"block": "BasicBlock", "after": "conv2"}]})


def with_other_weights(model):
    torch.nn.init.normal_(model.head.weight)
    return model


OTHERS = [
    (eject, ["lost 2 of 2", "blocks.0.conv2, blocks.1.conv2"]),
    (without_last_site, ["lost 1 of 2", "blocks.1.conv2", "1 live of 2"]),
    (with_other_lambda, ["blocks.0.conv2", "lambda 0.1 in the file", "0.0001 in the model"]),
    (with_other_weights, ["output differs from eager mode", "1x3x32x32"]),
]


@pytest.mark.parametrize(
    ("change", "facts", "suffix"),
    [(*other, suffix) for other in OTHERS for suffix in (".pt2", ".torchscript")] + [(*OTHERS[0], ".onnx")],
)
def test_a_file_of_another_model_is_refused(change, facts, suffix, tmp_path):
    """ONNX is one more export and the same counting, so it is tried once."""
    model = attended()
    other = change(copy.deepcopy(model))
    path = write(other, tmp_path / f"other{suffix}")
    with pytest.raises(LostSiteError, match=says(*facts)):
        prove(path, model, example_inputs=image())
    if change is with_other_weights:
        prove(path, other, example_inputs=image())


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
    report = export(model, tmp_path / "net.pt2", example_inputs=image(), tolerance=np.float32(1e-2))
    assert (report.live, {site.found_by for site in report.sites}) == (2, {"structure"})
    less = write(without_last_site(copy.deepcopy(model)), tmp_path / "less.pt2")
    with pytest.raises(LostSiteError, match="lost 1 of 2"):
        prove(less, model, example_inputs=image(), tolerance=1e-2)


class Shortened(Network):
    """Skips its second block if it is not long."""

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


SQUEEZE = {
    "c": GraphNode("conv", ("x",)),
    "s": GraphNode("sigmoid", ("c",)),
    "y": GraphNode("mul", ("x", "s")),
}


@pytest.mark.parametrize(
    ("graph", "simams"),
    [
        (chain(), [(True, pytest.approx(1e-4))]),
        (chain(reads=False), [(False, pytest.approx(1e-4))]),
        (chain(half=0.7), []),
        (chain(root="exp"), []),
        ((SQUEEZE, ("y",)), []),
    ],
    ids=["SimAM", "read by nothing", "another constant", "another root", "squeeze and excite"],
)
def test_the_formula_and_no_near_miss_is_recognised_without_names(graph, simams):
    assert [(one.is_live, one.e_lambda) for one in find_simams(*graph)] == simams


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


@pytest.fixture(params=["backends", "backends.cudnn.conv", "backends.cuda.matmul"])
def operator(request):
    """Whose precision is set by itself, without torch's older flags."""
    place = functools.reduce(getattr, request.param.split("."), torch)
    before = place.fp32_precision
    place.fp32_precision = "ieee" if before == "tf32" else "tf32"
    yield place
    place.fp32_precision = before


def test_the_precision_of_single_operators_is_as_before(operator, tmp_path):
    """torch raises an error where an older flag is read and these do not agree with it."""
    cudnn, mkldnn = torch.backends.cudnn, torch.backends.mkldnn
    operators = [operator, cudnn.conv, cudnn.rnn, mkldnn, mkldnn.conv, mkldnn.rnn, mkldnn.matmul]
    before = [one.fp32_precision for one in operators]
    export(attended(), tmp_path / "model.pt2", example_inputs=image())
    assert [one.fp32_precision for one in operators] == before
