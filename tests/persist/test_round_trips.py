"""Save here, load in a fresh process that knows the file alone: outputs are equal bit for bit."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from simam_inject import inject, injected
from simam_inject.adapters import network_of
from simam_inject.persist import read, save
from simam_inject.zoo import build

ROOT = Path(__file__).resolve().parents[2]
FRESH = """
import sys, torch
from safetensors.torch import load_file, save_file
from simam_inject.adapters import network_of
from simam_inject.persist import load
from simam_inject.zoo import build

torch.set_num_threads(1)
name, folder = sys.argv[1:]
torch.manual_seed(99)
model = build(name).model
assert load(f"{folder}/x.safetensors", model) is model
network = network_of(model).eval()
with torch.no_grad():
    found = network(load_file(f"{folder}/in.safetensors")["x"])
save_file({"y": (found[0] if isinstance(found, tuple) else found).contiguous()}, f"{folder}/out.safetensors")
"""


@pytest.mark.parametrize(
    ("name", "recipe", "count"),
    [
        ("torchvision:resnet18", "paper", 8),
        pytest.param("torchvision:resnet50", "paper", 16, marks=pytest.mark.long),
        pytest.param("timm:convnext_atto", "after convnextblock.conv_dw", 12, marks=pytest.mark.long),
        pytest.param("timm:efficientnet_b0", "after invertedresidual.conv_dw", 15, marks=pytest.mark.long),
        pytest.param("timm:nfnet_f0", "residual", None, marks=pytest.mark.long),
        pytest.param("ultralytics:yolov8n", "after c2f", 8, marks=pytest.mark.long),
    ],
)
def test_bit_equal_in_a_fresh_process(name, recipe, count, tmp_path):
    model = build(name).model
    inject(model, recipe, verify=False)
    network = network_of(model)
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        for buffer in network.buffers():
            if buffer.is_floating_point():
                buffer.add_(torch.rand_like(buffer) * 0.1)  # statistics of their own, as after training
        network.eval()
        found = network(x)
    expected = found[0] if isinstance(found, tuple) else found
    save(model, tmp_path / "x.safetensors")
    assert len(injected(model)) == (count or len(injected(model))) > 0
    assert read(tmp_path / "x.safetensors").insertions == injected(model)
    save_file({"x": x}, tmp_path / "in.safetensors")
    done = subprocess.run(
        [sys.executable, "-c", FRESH, name, str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert torch.equal(load_file(tmp_path / "out.safetensors")["y"], expected)
