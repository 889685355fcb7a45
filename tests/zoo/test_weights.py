"""Pretrained weights: loaded where they can be had, one clear line where they cannot. No test reaches a network."""

from collections import OrderedDict
from urllib.error import URLError

import pytest
import timm
import torch
import torchvision
from timm import models
from torch import nn
from ultralytics import YOLO

from simam_inject import eject, inject, injected
from simam_inject.errors import FileError, ModelError
from simam_inject.persist import save
from simam_inject.zoo import ZooModel, build, load_weights
from tests.messages import says

MAPS = torch.rand(2, 3, 8, 8)


def _no_network(*args, **kwargs):
    raise URLError("the network is down\nsecond line")


FETCH = {
    "torchvision": "torchvision.models._api.load_state_dict_from_url",
    "timm": "timm.models._builder.load_state_dict_from_hf",
    "ultralytics": "ultralytics.utils.downloads.safe_download",
}


@pytest.mark.parametrize(
    ("name", "full"),
    [
        ("resnet18", "torchvision:resnet18"),
        ("timm:resnet18", "timm:resnet18"),
        ("yolov8n", "ultralytics:yolov8n"),
        ("yolov8n.pt", "ultralytics:yolov8n.pt"),
    ],
)
def test_weights_that_cannot_be_fetched_are_one_line(name, full, project, monkeypatch):
    for place in FETCH.values():
        monkeypatch.setattr(place, _no_network)
    with pytest.raises(ModelError, match=says(f"{full}: ", "pretrained weights", "the network is down")) as caught:
        build(name, pretrained=not name.endswith(".pt"))
    assert "\n" not in str(caught.value)
    assert not list(project.iterdir())


@pytest.mark.parametrize(
    ("name", "library", "make"),
    [("resnet18", "torchvision", torchvision.models.resnet18), ("timm:resnet18", "timm", models.resnet18)],
)
def test_published_weights_are_loaded(name, library, make, monkeypatch):
    published = make().state_dict()
    monkeypatch.setattr(FETCH[library], lambda *args, **kwargs: dict(published))
    built = build(name, pretrained=True)
    assert torch.equal(built.model.conv1.weight, published["conv1.weight"])
    assert built.note.startswith(f"{library}'s pretrained weights")
    built = build(name, pretrained=True, num_classes=3)
    assert torch.equal(built.model.conv1.weight, published["conv1.weight"])
    assert built.model(torch.rand(2, 3, 64, 64)).shape == (2, 3)


@pytest.mark.parametrize(
    ("net", "new_head", "message"),
    [
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 7)), True, None),
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 7)), False, "another number of classes"),
        (nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(16, 7)), True, "a checkpoint of another model"),
        (nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(16, 2)), True, "a checkpoint of another model"),
    ],
)
def test_a_head_for_other_classes_stays_as_built_if_that_is_asked_for(net, new_head, message, tmp_path):
    file, built = tmp_path / "net.pth", ZooModel("net", net, "net.py", "")
    trained = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 2)).state_dict()
    torch.save(trained, file)
    head = net[2].weight.clone()
    if message is None:
        assert load_weights(built, file, new_head=True).note == "weights of net.pth, with a new 2"
        assert torch.equal(net[0].weight, trained["0.weight"])
    else:
        with pytest.raises(ModelError, match=message):
            load_weights(built, file, new_head=new_head)
    assert torch.equal(net[2].weight, head)


def test_weights_that_a_model_does_not_take(tmp_path):
    net, file = nn.Conv2d(3, 4, 3), tmp_path / "net.pth"
    torch.save(net.state_dict(), file)
    net.weight, net.bias = nn.Parameter(torch.ones(4, 3, 3, 3)), nn.Parameter(torch.zeros(1).expand(4))
    with pytest.raises(FileError, match=says(f"{file}: Conv2d.load_state_dict raises RuntimeError", '"bias"')):
        load_weights(ZooModel("net", net, "net.py", ""), file)
    assert (net.weight == 1).all()
    net.bias, net.table = nn.Parameter(torch.zeros(4)), nn.Buffer(torch.eye(2).to_sparse())
    torch.save(net.state_dict(), file)
    with pytest.raises(ModelError, match=says(f"{file} does not fit net", "table", "RuntimeError")):
        load_weights(ZooModel("net", net, "net.py", ""), file)


def test_a_class_that_wants_to_know_its_version(tmp_path):
    net, other = (torchvision.models.mnasnet0_5(num_classes=2) for _ in range(2))
    torch.save(net.state_dict(), tmp_path / "net.pth")
    load_weights(ZooModel("net", other, "net.py", ""), tmp_path / "net.pth")
    assert all(map(torch.equal, other.state_dict().values(), net.state_dict().values()))


def test_a_timm_model_without_published_weights_is_refused():
    with pytest.raises(ModelError, match="No pretrained weights exist"):
        build(_unpublished(), pretrained=True)


def _unpublished() -> str:
    published = {name.partition(".")[0] for name in timm.list_models(pretrained=True)}
    return next(f"timm:{name}" for name in timm.list_models("resnet*") if name not in published)


def test_a_checkpoint_file_is_loaded(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    saved = YOLO("yolov8n.yaml")
    saved.ckpt = {"train_args": {"imgsz": 320}}
    saved.save("mine.pt")
    built = build("mine.pt")
    assert built.note == "weights of mine.pt"
    assert built.input_shapes == ((1, 3, 320, 320),)
    key, expected = next(iter(saved.model.state_dict().items()))
    assert torch.equal(built.model.model.state_dict()[key].float(), expected.half().float())


@pytest.mark.parametrize("content", [b"", b"hello"])
def test_a_file_that_is_no_checkpoint_is_one_line(content, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.pt").write_bytes(content)
    with pytest.raises(ModelError, match=r"^ultralytics:mine\.pt: cannot"):
        build("mine.pt")


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "net.", "net._orig_mod."])
def test_a_child_called_module_is_no_wrapper(prefix, tmp_path):
    net = nn.Sequential(OrderedDict(module=nn.Conv2d(3, 4, 3)))
    state = {f"{prefix}{name}": torch.full_like(value, 0.5) for name, value in net.state_dict().items()}
    torch.save(state, tmp_path / "net.pth")
    load_weights(ZooModel("net", net, "net.py", ""), tmp_path / "net.pth")
    assert net.module.weight.eq(0.5).all()


def test_a_checkpoint_of_lightning_with_sites_is_refused(tmp_path):
    net = nn.Conv2d(3, 4, 3)
    torch.save({"state_dict": net.state_dict(), "simam_inject": {}}, tmp_path / "net.ckpt")
    with pytest.raises(FileError, match=r"net\.ckpt: it has SimAM: use load_from_checkpoint"):
        load_weights(ZooModel("net", net, "net.py", ""), tmp_path / "net.ckpt")


@pytest.mark.parametrize("protocol", [2, 5])
def test_weights_of_a_checkpoint_of_ultralytics(protocol, tmp_path):
    yolo, file = inject(YOLO("yolov8n.yaml"), "yolo-sppf", verify=False), tmp_path / "mine.pt"
    torch.save({"model": yolo.model}, file, pickle_protocol=protocol)
    built = load_weights(build("yolov8n"), file)
    assert built.note == "weights of mine.pt without its 1 SimAM sites (give mine.pt as MODEL for these)"
    assert all(map(torch.equal, built.model.model.state_dict().values(), yolo.model.state_dict().values()))
    assert not injected(built.model)
    with pytest.raises(ModelError, match=says("mine.pt", "ultralytics", "resnet18 is not one of its models")):
        load_weights(build("resnet18"), file)


@pytest.mark.parametrize("saved", ["after conv2d", None])
def test_a_model_with_other_sites_than_the_file_is_refused(saved, tmp_path):
    def net():
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())

    model = inject(net(), saved, example_inputs=MAPS) if saved else net()
    file, other = save(model, tmp_path / "net.safetensors"), inject(net(), "after relu", example_inputs=MAPS)
    before = other[0].weight.clone()
    with pytest.raises(FileError, match=says(str(file), "other SimAM sites than the file", "eject")):
        load_weights(ZooModel("net", other, "net.py", ""), file)
    assert [site.path for site in injected(other)] == ["1"]
    assert torch.equal(other[0].weight, before)
    load_weights(ZooModel("net", eject(other), "net.py", ""), file)
    assert injected(other) == injected(model)
    assert torch.equal(other(MAPS), model(MAPS))


def test_a_text_that_mentions_ultralytics_is_no_checkpoint_of_it(tmp_path):
    net, file = nn.Conv2d(3, 4, 3), tmp_path / "net.pt"
    torch.save({"model": net.state_dict(), "origin": "ultralytics.nn.tasks"}, file)
    load_weights(ZooModel("net", nn.Conv2d(3, 4, 3), "net.py", ""), file)
    with pytest.raises(ModelError, match="contains weights, not a model"):
        build(str(file))
