"""A `YOLO` object: batches of its own loader, numbers in its record, and the stock network at strength 0, fused too."""

import copy
import itertools

import pytest
import torch

from simam_inject import inject, injected
from simam_inject.errors import ModelError
from simam_inject.warmup import Ramp, calibrate, set_strength

ultralytics = pytest.importorskip("ultralytics")


@pytest.fixture(scope="module")
def stock():
    """yolov8n with norm statistics of its own: as built, its maps are so small that lambda makes all gates constant."""
    torch.manual_seed(0)
    yolo = ultralytics.YOLO("yolov8n.yaml")
    network = yolo.model.train()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 0.5
    with torch.no_grad():
        for _ in range(4):
            network(torch.rand(4, 3, 64, 64))
    network.eval()
    return yolo


@pytest.fixture
def yolo(stock):
    model = copy.deepcopy(stock)
    return inject(model, "yolo-bottleneck", example_inputs=torch.rand(1, 3, 64, 64), verify=False)


def outputs(network, x):
    with torch.no_grad():
        return network(x)[0]


def test_calibrated_on_the_batches_of_its_loader(yolo):
    pixels = (torch.rand(4, 3, 64, 64) * 255).to(torch.uint8)
    twin = copy.deepcopy(yolo)
    found = calibrate(yolo, [{"img": pixels, "cls": torch.zeros(3, 1), "im_file": ["a.jpg"] * 4}])
    calibrate(twin, pixels / 255)
    assert [site.gain for site in injected(yolo)] == [site.gain for site in injected(twin)]
    assert len(found.sites) == 10
    assert all(site.gain > 1.1 and site.error_after < site.error_before for site in found.sites)


def test_its_record_carries_strength_and_gain(yolo, tmp_path):
    calibrate(yolo, torch.rand(4, 3, 64, 64))
    Ramp(yolo, steps=4).step()
    gains = [site.gain for site in injected(yolo)]
    sites = yolo.model.yaml["simam"]["sites"]  # what a trainer builds from
    assert [(site["strength"], site["gain"]) for site in sites] == [(0.25, gain) for gain in gains]
    yolo.save(tmp_path / "warm.pt")
    found = injected(ultralytics.YOLO(tmp_path / "warm.pt"))
    assert [(site.strength, site.gain) for site in found] == [(0.25, gain) for gain in gains]


@pytest.mark.parametrize("fused", [False, True])
def test_at_strength_0_it_is_the_stock_network(yolo, stock, fused):
    x = torch.rand(1, 3, 64, 64)
    calibrate(yolo, torch.rand(4, 3, 64, 64), norms=False)
    networks = [copy.deepcopy(one.model).eval() for one in (yolo, stock)]
    live = outputs(networks[0], x)
    if fused:
        networks = [network.fuse(verbose=False) for network in networks]
    set_strength(networks[0], 0.0)
    plain = outputs(networks[1], x)
    assert torch.equal(outputs(networks[0], x), plain)
    assert (live - plain).abs().max() > 1e-2


def test_calibrated_on_its_data_set_by_the_file(yolo, tmp_path):
    """The images of the training split as they are at this size, in mixed order."""
    from PIL import Image
    from torchvision.transforms.functional import pil_to_tensor

    from tests.yolo.drawing import draw_set

    data, twin = draw_set(tmp_path / "set", count=20), copy.deepcopy(yolo)
    yolo.overrides["imgsz"] = 64
    found = calibrate(yolo, data)
    files = sorted((tmp_path / "set" / "images" / "train").iterdir())
    order = torch.randperm(len(files), generator=torch.Generator().manual_seed(0))
    expected = calibrate(twin, torch.stack([pil_to_tensor(Image.open(file)) for file in files])[order].split(16))
    assert [site.gain for site in found.sites] == pytest.approx([site.gain for site in expected.sites], rel=1e-3)
    assert not list(tmp_path.glob("runs*"))


@pytest.mark.parametrize(("overrides", "size"), [({}, 224), ({"imgsz": 64}, 64)])
def test_a_classifier_reads_images_of_the_size_that_it_is_trained_with(overrides, size, tmp_path):
    from PIL import Image

    for part, name in itertools.product(("train", "val"), "ab"):
        (tmp_path / "set" / part / name).mkdir(parents=True)
        Image.new("RGB", (30, 20), "red").save(tmp_path / "set" / part / name / "0.png")
    yolo, sizes = ultralytics.YOLO("yolov8n-cls.yaml"), set()
    inject(yolo, "after c2f", example_inputs=torch.rand(1, 3, 64, 64), verify=False)
    yolo.overrides |= overrides
    yolo.model.register_forward_pre_hook(lambda _module, args: sizes.add(tuple(args[0].shape[1:])))
    calibrate(yolo, str(tmp_path / "set"))
    assert sizes == {(3, size, size)}


@pytest.mark.parametrize("data", ["nothing.yaml", "nothing"])
def test_a_data_set_that_is_not_there(yolo, data):
    before = [site.gain for site in injected(yolo)]
    with pytest.raises(ModelError, match=f"'{data}': .*does not exist"):
        calibrate(yolo, data)
    with pytest.raises(ModelError, match=r"batches is a str; .* YOLO object .* YAML file"):
        calibrate(yolo.model, data)
    assert [site.gain for site in injected(yolo)] == before
