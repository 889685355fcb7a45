"""Pretrained weights: loaded where they can be had, one clear line where they cannot. No test reaches a network."""

from urllib.error import URLError

import pytest
import timm
import torch
import torchvision
from ultralytics import YOLO

from simam_inject.errors import ModelError
from simam_inject.zoo import build


def _no_network(*args, **kwargs):
    raise URLError("the network is down\nsecond line")


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", _no_network)
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", _no_network)
    monkeypatch.setattr("ultralytics.utils.downloads.safe_download", _no_network)


@pytest.mark.parametrize(
    ("name", "told"),
    [("resnet18", "torchvision:resnet18"), ("timm:resnet18", "timm:resnet18"), ("yolov8n", "ultralytics:yolov8n")],
)
def test_weights_that_cannot_be_fetched_are_one_line(name, told, offline, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError) as caught:
        build(name, pretrained=True)
    assert str(caught.value) == (
        f"{told}: cannot load the pretrained weights: URLError: <urlopen error the network is down; "
        "without `pretrained` the weights are random"
    )
    assert not list(tmp_path.iterdir())


def test_a_published_checkpoint_that_cannot_be_fetched_is_one_line(offline, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match=r"^ultralytics:yolov8n\.pt: cannot load the pretrained weights: URLError"):
        build("yolov8n.pt")


def test_torchvision_weights_are_loaded(monkeypatch):
    published = torchvision.models.resnet18(weights=None).state_dict()
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda *args, **kwargs: published)
    built = build("resnet18", pretrained=True)
    assert torch.equal(built.model.conv1.weight, published["conv1.weight"])
    assert built.note.startswith("torchvision's pretrained weights")


def test_timm_weights_are_loaded(monkeypatch):
    published = timm.create_model("resnet18").state_dict()
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", lambda *args, **kwargs: dict(published))
    built = build("timm:resnet18", pretrained=True)
    assert torch.equal(built.model.conv1.weight, published["conv1.weight"])
    assert built.note == "timm's pretrained weights"


def test_a_timm_model_without_published_weights_is_refused():
    with pytest.raises(
        ModelError, match="cannot load the pretrained weights: RuntimeError: No pretrained weights exist"
    ):
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
    with pytest.raises(ModelError, match=r"^ultralytics:mine\.pt: cannot build the model: "):
        build("mine.pt")
