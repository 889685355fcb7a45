"""`predict` runs the network as it is now, although ultralytics keeps the copy of its first call."""

import numpy as np
import pytest
import torch
from ultralytics import YOLO

from simam_inject import SimAM, bypass, eject, inject
from simam_inject.persist import load, save
from tests.yolo.oracle import give_statistics

RECIPE = "after c2f.cv2"
SITES = 8
PHOTO = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
EXAMPLE = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def yolo():
    """One that has predicted before."""
    fresh = YOLO("yolov8n.yaml")
    give_statistics(fresh.model, EXAMPLE)
    predict(fresh)
    return fresh


def predict(yolo):
    yolo.predict(PHOTO, imgsz=64, verbose=False, device="cpu")


def simam_runs(yolo) -> int:
    """How many SimAM gates one prediction computes."""
    runs, forward = [], SimAM.forward

    def counted(self, x):
        runs.append(not self.bypassed)
        return forward(self, x)

    SimAM.forward = counted
    try:
        predict(yolo)
    finally:
        SimAM.forward = forward
    return sum(runs)


def test_predict_after_inject_runs_every_site(yolo):
    inject(yolo, RECIPE, example_inputs=EXAMPLE, verify=False)
    assert simam_runs(yolo) >= SITES


def test_predict_after_inject_of_the_inner_network_runs_every_site(yolo):
    inject(yolo.model, RECIPE, example_inputs=EXAMPLE, verify=False)
    assert simam_runs(yolo) >= SITES
    eject(yolo.model)
    assert simam_runs(yolo) == 0


def test_predict_after_eject_runs_none(yolo):
    inject(yolo, RECIPE, example_inputs=EXAMPLE, verify=False)
    predict(yolo)
    eject(yolo)
    assert simam_runs(yolo) == 0


def test_predict_inside_bypass_runs_none_and_afterwards_all(yolo):
    inject(yolo, RECIPE, example_inputs=EXAMPLE, verify=False)
    predict(yolo)
    with bypass(yolo):
        assert simam_runs(yolo) == 0
    assert simam_runs(yolo) >= SITES


@pytest.mark.parametrize(("name", "value"), [("gain", 1.3), ("strength", 0.5), ("e_lambda", 0.1), ("bypassed", True)])
def test_predict_follows_what_is_set_on_a_simam(name, value, yolo):
    predict(inject(yolo, RECIPE, example_inputs=EXAMPLE, verify=False))
    attention = next(module for module in yolo.model.modules() if isinstance(module, SimAM))
    setattr(attention, name, value)
    predict(yolo)
    used = next(module for module in yolo.predictor.model.model.modules() if isinstance(module, SimAM))
    assert getattr(used, name) == value


@pytest.mark.parametrize("injected_before", [False, True])
def test_predict_after_load_runs_the_sites_and_weights_of_the_file(yolo, tmp_path, injected_before):
    if yolo.model.is_fused():
        pytest.skip("up to 8.4.120 predict() fuses the user's own network, which the file then does not fit")
    source = YOLO("yolov8n.yaml")
    save(inject(source, RECIPE, example_inputs=EXAMPLE), tmp_path / "x.safetensors")
    if injected_before:
        inject(yolo, RECIPE, example_inputs=EXAMPLE, verify=False)
        predict(yolo)
    load(tmp_path / "x.safetensors", yolo)
    assert simam_runs(yolo) >= SITES
    one, other = (model.predictor.model.state_dict() for model in (yolo, predicted(source)))
    assert all(torch.equal(a, b) for a, b in zip(one.values(), other.values(), strict=True))


def predicted(yolo):
    predict(yolo)
    return yolo
