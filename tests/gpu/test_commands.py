"""What takes a device as an option, and exports of a model that is on the GPU."""

import json

import pytest
import torch
from typer.testing import CliRunner

from simam_inject import inject, injected
from simam_inject.bench import Conditions, bench
from simam_inject.cli import comparing
from simam_inject.cli.app import app
from simam_inject.compare import compare
from simam_inject.compare.setups import set_up
from simam_inject.compare.training import Training
from simam_inject.export import export, prove
from tests.gpu.networks import LAMBDA, SMALL, SMALL_PLACES, assert_pair, outputs_of, small, stock_of
from tests.stripes import draw_stripes

pytestmark = pytest.mark.gpu
SHORT = Training(epochs=2, batch=8, size=16, rate=1.0, warmup=0, augment=False, ema=0.5, amp=True)
NET = (
    "from torch import nn\n"
    "def net(num_classes=2):\n"
    "    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(14), nn.Flatten(),\n"
    "                         nn.Linear(8, num_classes))\n"
)


@pytest.fixture
def folder(project):
    """A working directory with images and a network."""
    draw_stripes(project / "train", 16, 16)
    draw_stripes(project / "val", 6, 16)
    (project / "net.py").write_text(NET, encoding="utf-8")
    return project


def test_compare_trains_every_variant_on_the_device(folder, device):
    pytest.importorskip("optuna")
    setup = set_up(f"{folder}/net.py:net", str(folder), SHORT, str(device))
    seen, weights, run = [], [], setup.pop("train")

    def train(model, seed, report):
        value = run(model, seed, report)
        weight = next(model.parameters()).detach()
        seen.append(weight.device.type)
        weights.append(weight.cpu().clone())
        return value

    found = compare(recipes=["after sequential.0"], train=train, against=["se"], seeds=1, **setup)
    assert [cell.error for cell in found.cells] == [""] * 4
    assert [cell.variant for cell in found.cells] == ["plain", "plain again", "simam", "se"]
    assert all(cell.costs.seconds and cell.costs.kept_bytes for cell in found.cells)
    assert seen == [device.type] * 4
    assert len({cell.weights for cell in found.cells}) == 1
    assert not torch.allclose(weights[0], weights[2], rtol=1e-3)


def test_the_command_compare(folder, device):
    pytest.importorskip("optuna")
    options = ["--data", ".", "--recipe", "after sequential.0", "--seeds", "1", "--size", "16", "--no-augment"]
    options += ["--epochs", "1", "--batch", "8", "--device", str(device)]
    done = CliRunner().invoke(comparing.compare_app, ["net.py:net", *options])
    assert done.exit_code == 0, done.output
    assert "3 of 3 runs" in done.stderr


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_bench_on_the_device(device, dtype):
    model = small()
    conditions = Conditions(str(device), 4, dtype, channels_last=True, rounds=3, warmups=1)
    found = bench(model, SMALL, conditions, against=("eca",), example_inputs=torch.rand(1, 3, 32, 32))
    assert not found.not_run
    assert [(row.mode, row.variant) for row in found.rows] == [
        (mode, variant) for mode in ("inference", "training") for variant in ("plain", "SimAM", "eca")
    ]
    kept = {row.variant: row.kept_bytes for row in found.rows if row.mode == "training"}
    extra, one_map = kept["SimAM"] - kept["plain"], 4 * 8 * 16 * 16 * (4 if dtype == "fp32" else 2)
    assert one_map <= extra <= 1.1 * one_map
    assert all(row.seconds.median > 0 for row in found.rows)
    assert all((row.peak_bytes is not None) is (device.type == "cuda") for row in found.rows)
    assert next(model.parameters()).device.type == "cpu"


def test_the_command_bench(folder, device):
    options = ["--after", "sequential.0", "--input-size", "3x16x16", "--device", str(device), "--rounds", "3"]
    done = CliRunner().invoke(app, ["bench", "net.py:net", *options, "--json"], prog_name="simam-inject")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert "training" in done.stdout
    assert str(device) in json.dumps(found)


@pytest.mark.parametrize("suffix", [".onnx", ".pt2", ".torchscript"])
def test_a_model_on_the_device_is_exported_and_proven(device, tmp_path, suffix):
    model, x = small().to(device), torch.randn(2, 3, 32, 32, device=device)
    stock = stock_of(model)
    inject(model, SMALL, example_inputs=x, e_lambda=LAMBDA)
    torch.backends.cudnn.allow_tf32 = True
    torch.set_float32_matmul_precision("high")  # as many programs do; the proof needs more
    report = export(model, tmp_path / f"net{suffix}", example_inputs=x, dynamic=True)
    assert report.live == 1
    assert all(one.difference < 1e-4 < 1e-2 < one.effect for one in report.comparisons)
    again = prove(tmp_path / f"net{suffix}", model, example_inputs=x)
    assert again.live == 1
    assert torch.backends.cudnn.allow_tf32
    assert torch.get_float32_matmul_precision() == "high"
    torch.backends.cudnn.allow_tf32 = False
    torch.set_float32_matmul_precision("highest")
    assert len(injected(model)) == 1
    if suffix == ".pt2":
        with torch.no_grad():
            found = torch.export.load(tmp_path / "net.pt2").module()(x)
        assert_pair(found, *outputs_of(stock, SMALL_PLACES, x), 1e-5)


def test_an_export_in_half_precision(device, tmp_path):
    model = small().to(device, torch.float16)
    x = torch.randn(2, 3, 32, 32, device=device, dtype=torch.float16)
    inject(model, SMALL, example_inputs=x, e_lambda=LAMBDA)
    assert export(model, tmp_path / "net.onnx", example_inputs=x).live == 1


def test_sites_that_come_from_the_library_timm(device):
    import timm

    from simam_inject.integrations.timm import SimamAttn

    torch.manual_seed(0)
    layer = timm.layers.create_attn(SimamAttn, 8).to(device)
    x = torch.randn(2, 8, 9, 9, device=device)
    from tests.oracle import attend

    assert_pair(layer(x), attend(x, 1e-4), x, 1e-5)
