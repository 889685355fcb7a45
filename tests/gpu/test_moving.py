"""An injected model that moves between devices, processes and files."""

import copy
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from simam_inject import inject, injected, verify
from simam_inject.persist import load, save
from tests.gpu.networks import LAMBDA, assert_attends, make, stock_of

pytestmark = pytest.mark.gpu
ROOT = Path(__file__).parents[2]


@pytest.fixture(params=["resnet18", "rewritten"])
def injected_on_cpu(request):
    model, recipe, places, x = make(request.param)
    stock = stock_of(model)
    return inject(model, recipe, example_inputs=x, verify=False, e_lambda=LAMBDA), stock, places, x


def test_there_and_back(injected_on_cpu, device):
    model, stock, places, x = injected_on_cpu
    for place in (device, torch.device("cpu"), device):
        model.to(place)
        assert verify(model).ok
        assert_attends(model, stock.to(place), places, x.to(place))


def test_copies_and_pickles_of_a_model_on_the_device(injected_on_cpu, device, tmp_path):
    model, stock, places, x = injected_on_cpu
    model, stock, x = model.to(device), stock.to(device), x.to(device)
    torch.save(model, tmp_path / "model.pt")
    on_cpu = torch.load(tmp_path / "model.pt", map_location="cpu", weights_only=False)
    for again in (
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
        torch.load(tmp_path / "model.pt", weights_only=False),
        copy.deepcopy(on_cpu).to(device),
    ):
        assert next(again.parameters()).device.type == device.type
        assert_attends(again, stock, places, x)
    assert next(on_cpu.parameters()).device.type == "cpu"
    assert_attends(on_cpu, stock.cpu(), places, x.cpu())


def test_a_pickle_of_the_cpu_goes_to_the_device(injected_on_cpu, device, tmp_path):
    model, stock, places, x = injected_on_cpu
    torch.save(model, tmp_path / "model.pt")
    again = torch.load(tmp_path / "model.pt", map_location=device, weights_only=False)
    assert_attends(again, stock.to(device), places, x.to(device))


@pytest.mark.parametrize("from_device", [True, False])
def test_files_cross_devices(injected_on_cpu, device, tmp_path, from_device):
    model, stock, places, x = injected_on_cpu
    places_of = (device, torch.device("cpu"))
    writer, reader = places_of if from_device else reversed(places_of)
    save(model.to(writer), tmp_path / "net.safetensors")
    again = copy.deepcopy(stock)
    with torch.no_grad():
        for parameter in again.parameters():
            parameter.zero_()
    again.to(reader)
    load(tmp_path / "net.safetensors", again)
    assert next(again.parameters()).device.type == reader.type
    assert_attends(again, stock.to(reader), places, x.to(reader))


def test_optimizer_and_weights_of_a_checkpoint_on_the_other_device(injected_on_cpu, device, tmp_path):
    model, stock, places, x = injected_on_cpu
    torch.save(model.to(device).state_dict(), tmp_path / "weights.pt")
    again = copy.deepcopy(model).cpu()
    again.load_state_dict(torch.load(tmp_path / "weights.pt", map_location="cpu"))
    assert len(injected(again)) == len(places)
    assert_attends(again, stock, places, x)


FRESH = """
import sys, torch
model = torch.load(sys.argv[1] + "/model.pt", map_location={device!r}, weights_only=False)
x = torch.load(sys.argv[1] + "/x.pt", map_location={device!r})
with torch.no_grad():
    torch.backends.cudnn.allow_tf32 = False
    torch.save(model(x).cpu(), sys.argv[1] + "/y.pt")
"""


def test_a_fresh_process_runs_it_on_either_device(device, tmp_path):
    model, recipe, places, x = make()
    stock = stock_of(model)
    inject(model.to(device), recipe, example_inputs=x.to(device), verify=False, e_lambda=LAMBDA)
    torch.save(model, tmp_path / "model.pt")
    torch.save(x.to(device), tmp_path / "x.pt")
    for place in dict.fromkeys((str(device), "cpu")):
        code = FRESH.format(device=place)
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        y = torch.load(tmp_path / "y.pt")
        assert_attends(lambda _, y=y: y, stock, places, x, limit=1e-4)
