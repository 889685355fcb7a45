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


@pytest.mark.parametrize("inner", [False, True], ids=["object", "inner network"])
def test_predict_runs_every_site_and_none_inside_bypass_and_after_eject(yolo, inner):
    target = yolo.model if inner else yolo
    inject(target, RECIPE, example_inputs=EXAMPLE, verify=False)
    assert simam_runs(yolo) >= SITES
    with bypass(target):
        assert simam_runs(yolo) == 0
    assert simam_runs(yolo) >= SITES
    eject(target)
    assert simam_runs(yolo) == 0


def test_predict_inside_bypass_runs_no_other_attention_either(yolo):
    runs = []

    class Peer(torch.nn.Identity):
        def forward(self, x):
            runs.append(1)
            return 0.5 * x

    def boxes():
        return yolo.predict(PHOTO, imgsz=64, conf=0.0, verbose=False)[0].boxes.data

    plain = boxes()
    inject(yolo, RECIPE, example_inputs=EXAMPLE, verify=False, attention=lambda _: Peer())
    assert not torch.equal(boxes(), plain)
    with bypass(yolo):
        assert torch.equal(boxes(), plain)
    assert not torch.equal(boxes(), plain)
    assert runs


@pytest.mark.parametrize(("name", "value"), [("gain", 1.3), ("strength", 0.5), ("e_lambda", 0.1), ("bypassed", True)])
def test_predict_follows_what_is_set_on_a_simam(name, value, yolo):
    predict(inject(yolo, RECIPE, example_inputs=EXAMPLE, verify=False))
    attention = next(module for module in yolo.model.modules() if isinstance(module, SimAM))
    setattr(attention, name, value)
    predict(yolo)
    used = next(module for module in yolo.predictor.model.model.modules() if isinstance(module, SimAM))
    assert getattr(used, name) == value


def test_predict_follows_the_weights_of_an_injected_network(yolo):
    predict(inject(yolo, RECIPE, example_inputs=EXAMPLE, verify=False))
    predictor = yolo.predictor
    predict(yolo)
    assert yolo.predictor is predictor
    with torch.no_grad():
        yolo.model.model[-1].cv3[0][2].weight.fill_(0.25)
    predict(yolo)
    assert yolo.predictor.model.model.model[-1].cv3[0][2].weight.eq(0.25).all()


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
