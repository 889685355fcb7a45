"""A YOLO on the GPU, trained by ultralytics itself."""

import copy
from contextlib import ExitStack

import pytest
import torch

pytest.importorskip("ultralytics")
from ultralytics import YOLO

from simam_inject import bypass, eject, inject, injected, verify
from simam_inject.integrations.ultralytics.training import ramp
from simam_inject.zoo import build
from tests.gpu.networks import assert_pair
from tests.oracle import hooked
from tests.yolo.drawing import draw_set
from tests.yolo.oracle import RECIPE, SITES, counting, give_statistics, live_sites, output, stock_twin

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def images():
    import numpy as np

    from tests.yolo.drawing import draw_image

    drawn = [draw_image(np.random.default_rng((7, index)))[0] for index in range(4)]
    return torch.from_numpy(np.stack(drawn)).permute(0, 3, 1, 2).float() / 255


def attended(stack, network):
    """Hooks of the oracle on a stock network."""
    for e_lambda in set(SITES.values()):
        stack.enter_context(hooked(network, [path for path, own in SITES.items() if own == e_lambda], e_lambda))


def check(found, network, images, limit):
    """What was found is what the weights of the injected network compute with SimAM, far from what they do without."""
    with torch.no_grad(), ExitStack() as stack:
        plain = output(network(images))
        attended(stack, network)
        assert_pair(output(found), output(network(images)), plain, limit)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_a_yolo_of_the_zoo(images, device, dtype):
    torch.manual_seed(0)
    yolo = build("ultralytics:yolov8n").model
    yolo.model.to(device)
    x = images.to(device)
    give_statistics(yolo.model, x)
    stock = copy.deepcopy(yolo.model).to(dtype)
    yolo.model.to(dtype)
    x = x.to(dtype)
    with torch.no_grad():
        before = output(yolo.model(x))
    inject(yolo, RECIPE, example_inputs=x)
    assert {site.path for site in injected(yolo)} == set(SITES)
    assert verify(yolo, example_inputs=x).ok
    with torch.no_grad():
        check(yolo.model(x), stock, x, {torch.float32: 1e-4, torch.float16: 1e-2}[dtype])
        with bypass(yolo):
            torch.testing.assert_close(output(yolo.model(x)), before, rtol=1e-3, atol=1e-2)
    assert not injected(eject(yolo))


def test_training_reload_and_prediction(images, device, tmp_path):
    data = draw_set(tmp_path / "set")
    yolo = YOLO("yolov8n.yaml")
    inject(yolo, RECIPE, example_inputs=images[:1])
    ramp(yolo, epochs=1, start=0.5)
    seen = []
    yolo.add_callback("on_train_end", lambda trainer: seen.append(next(trainer.model.parameters()).device.type))
    options = {"workers": 0, "plots": False, "project": str(tmp_path / "runs"), "name": "one", "verbose": False}
    name = 0 if device.type == "cuda" else "cpu"
    with counting() as counter:
        yolo.add_callback("on_train_start", counter.restart)
        yolo.train(data=str(data), epochs=1, imgsz=64, batch=4, device=name, **options)
    assert seen == [device.type]
    assert counter.attentions == len(SITES) * counter.networks > 0

    again = YOLO(str(tmp_path / "runs" / "one" / "weights" / "best.pt"))
    assert live_sites(again.model) == {f"{path}.simam" for path in SITES}
    assert {site.strength for site in injected(again)} == {1.0}
    again.model.float()
    give_statistics(again.model, images)
    twin = stock_twin(again.model)
    with torch.no_grad():
        check(again.model(images), twin, images, 1e-4)

    picture = next((tmp_path / "set" / "images" / "val").iterdir())
    with counting() as counter:
        (result,) = again.predict(picture, imgsz=64, half=True, device=name, verbose=False)
    assert result.boxes.data.device.type == device.type
    assert counter.attentions == len(SITES) * counter.networks > 0
    given, found = counter.calls[-1]
    assert given.dtype == (torch.float16 if device.type == "cuda" else torch.float32)
    check(found.cpu(), twin, given.float().cpu(), 2e-2)
