"""Models on the Hugging Face Hub, tried on local folders: weights, sites and how to build the model travel together."""

import json
import pickle
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from huggingface_hub import PyTorchModelHubMixin
from safetensors.torch import load_file
from torch import nn

from simam_inject import inject, injected
from simam_inject.adapters import network_of
from simam_inject.errors import FileError, ModelError
from simam_inject.integrations import hub
from simam_inject.zoo import build
from tests.messages import says

X = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(5))


class Layers(nn.Module):
    def __init__(self, channels=8, classes=5):
        super().__init__()
        self.conv = nn.Conv2d(3, channels, 3)
        self.norm = nn.BatchNorm2d(channels)
        self.head = nn.Linear(channels, classes)

    def forward(self, x):
        return self.head(self.norm(self.conv(x)).relu().mean((2, 3)))


class Net(Layers, hub.SimamHubMixin):
    pass


class Plain(Layers, PyTorchModelHubMixin):
    pass


RULES = {"rules": [{"path": "conv", "after": "output", "e_lambda": 0.1}]}


@pytest.fixture
def net():
    return inject(Net(channels=4).eval(), RULES, example_inputs=X)


def test_a_class_of_ones_own(net, tmp_path):
    net.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text()) == {"channels": 4, "classes": 5}
    again = Net.from_pretrained(tmp_path)
    assert type(again).__name__ == "Net"
    assert not again.training
    assert [site.path for site in injected(again)] == ["conv"]
    assert torch.equal(again(X), net(X))
    again.save_pretrained(tmp_path / "again")
    assert torch.equal(Net.from_pretrained(tmp_path / "again")(X), net(X))


def test_what_the_plain_mixin_would_lose(net, tmp_path):
    net.save_pretrained(tmp_path)
    plain = Plain(channels=4)
    plain.load_state_dict(load_file(tmp_path / "model.safetensors"), strict=True)
    assert not torch.equal(plain.eval()(X), net(X))


def test_the_files_of_the_plain_mixin_are_refused(tmp_path):
    Plain().save_pretrained(tmp_path)
    with pytest.raises(FileError, match=r"not written by simam_inject\.persist\.save"):
        Net.from_pretrained(tmp_path)


def test_a_pickle_in_the_folder_is_never_read(net, tmp_path):
    net.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps({"weight": 1}))
    with pytest.raises(FileError, match=r"has no file model\.safetensors"):
        Net.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("name", "recipe", "classes", "size"),
    [
        ("torchvision:resnet18", "paper", 3, 64),
        ("timm:test_convnext", "convnext", 3, 64),
        ("ultralytics:yolov8n", "after c2f", None, 64),
    ],
)
def test_a_model_of_a_library(name, recipe, classes, size, tmp_path):
    model = inject(build(name, num_classes=classes).model, recipe, verify=False)
    assert hub.save_pretrained(model, tmp_path, architecture=name, num_classes=classes) == tmp_path
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    card = (tmp_path / "README.md").read_text()
    assert f"# {name} with SimAM" in card
    assert f"the places of {len(injected(model))} SimAM modules" in card
    again = hub.from_pretrained(tmp_path)
    assert injected(again) == injected(model)
    x = X[:, :, :size, :size]
    ours, theirs = network_of(again)(x), network_of(model).eval()(x)
    assert torch.equal(*(found[0] if isinstance(found, tuple) else found for found in (ours, theirs)))


def test_into_a_model_that_was_built_before(net, tmp_path):
    net.save_pretrained(tmp_path)
    mine = Net(channels=4)
    assert hub.from_pretrained(str(tmp_path), mine) is mine
    assert torch.equal(mine(X), net(X))


def test_push_uploads_the_same_files(monkeypatch, tmp_path):
    from huggingface_hub import HfApi

    uploaded = {}

    def create_repo(self, repo_id, **options):
        return type("Repo", (), {"repo_id": repo_id})()

    def upload_folder(self, *, repo_id, folder_path, **options):
        for entry in Path(folder_path).iterdir():
            (tmp_path / entry.name).write_bytes(entry.read_bytes())
        uploaded[repo_id] = sorted(entry.name for entry in tmp_path.iterdir())
        return "the commit"

    monkeypatch.setattr(HfApi, "create_repo", create_repo)
    monkeypatch.setattr(HfApi, "upload_folder", upload_folder)
    model = inject(torchvision.models.resnet18(num_classes=3).eval(), "paper", verify=False)
    assert hub.push_to_hub(model, "me/net", architecture="torchvision:resnet18", num_classes=3) == "the commit"
    assert uploaded == {"me/net": ["README.md", "config.json", "model.safetensors"]}
    assert torch.equal(hub.from_pretrained(tmp_path)(X), model(X))


@pytest.mark.parametrize("name", ["resnet18", "evil.py:factory", "package.module:factory", "timm:../x", "torchvision:"])
def test_only_names_of_libraries_are_written(name, tmp_path):
    with pytest.raises(ModelError, match="timm:NAME, torchvision:NAME or ultralytics:NAME"):
        hub.save_pretrained(nn.Conv2d(1, 1, 1), tmp_path, architecture=name)


def test_a_variant_that_another_process_does_not_have_is_not_written(tmp_path):
    with pytest.raises(ModelError, match="timm has no model 'resnet18_simam_paper'"):
        hub.save_pretrained(nn.Conv2d(1, 1, 1), tmp_path / "net", architecture="timm:resnet18_simam_paper")
    assert not (tmp_path / "net").exists()


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ('{"architecture": "evil.py:factory"}', r"architecture: found 'evil\.py:factory'"),
        ('{"architecture": "os:system"}', "architecture: found 'os:system'"),
        ('{"architecture": "ultralytics:evil.pt"}', r"architecture: found 'ultralytics:evil\.pt'"),
        ('{"architecture": ["timm:resnet18"]}', "architecture: Input should be a valid string"),
        ("[]", "Input should be an object"),
        ("{", "Invalid JSON"),
        ('{"architecture": "timm:resnet18", "num_classes": "3"}', "num_classes: Input should be a valid integer"),
    ],
)
def test_a_configuration_cannot_run_code(config, words, net, tmp_path, monkeypatch):
    net.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(config)
    (tmp_path / "evil.py").write_text("raise SystemExit('ran')")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileError, match=words):
        hub.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["me/nothing", "no/such/name"])
def test_neither_a_folder_nor_to_be_had(name):
    with pytest.raises(FileError, match=f"{name} is not a local folder"):
        hub.from_pretrained(name)


def test_a_network_without_a_head(tmp_path):
    model = inject(timm.create_model("test_resnet", num_classes=0), "paper")
    hub.save_pretrained(model, tmp_path, architecture="timm:test_resnet", num_classes=0)
    assert [site.path for site in injected(hub.from_pretrained(tmp_path))] == [site.path for site in injected(model)]


@pytest.mark.parametrize(("architecture", "number"), [("timm:test_resnet", -1), ("torchvision:resnet18", 0)])
def test_a_number_of_classes_that_could_not_be_built_is_not_written(architecture, number, tmp_path):
    with pytest.raises(ModelError, match=f"num_classes is {number}; it must be at least"):
        hub.save_pretrained(nn.Conv2d(1, 1, 1), tmp_path / "net", architecture=architecture, num_classes=number)
    assert not (tmp_path / "net").exists()


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile])
def test_a_wrapped_model_is_saved(wrap, tmp_path):
    model = inject(timm.create_model("test_resnet"), "paper")
    hub.save_pretrained(wrap(model), tmp_path, architecture="timm:test_resnet")
    assert len(injected(hub.from_pretrained(tmp_path))) == len(injected(model))


def test_another_attention_is_refused_by_name(tmp_path):
    model = inject(timm.create_model("test_resnet"), "paper", attention=timm.layers.SEModule)
    with pytest.raises(FileError, match="is a SEModule"):
        hub.save_pretrained(model, tmp_path, architecture="timm:test_resnet")


@pytest.mark.parametrize(("architecture", "classes"), [("timm:test_resnet", None), ("timm:test_vit", 4)])
def test_what_would_not_load_is_not_written(architecture, classes, tmp_path):
    model, state = timm.create_model("test_resnet", num_classes=4), torch.get_rng_state()
    with pytest.raises(ModelError, match=says("built with other tensors than those of the model", "as num_classes=N")):
        hub.save_pretrained(model, tmp_path / "net", architecture=architecture, num_classes=classes)
    assert not (tmp_path / "net").exists()
    assert torch.equal(torch.get_rng_state(), state)


def test_a_file_in_the_place_of_the_folder(tmp_path):
    (tmp_path / "net").write_text("")
    with pytest.raises(FileError, match="cannot be created"):
        hub.save_pretrained(timm.create_model("test_resnet"), tmp_path / "net", architecture="timm:test_resnet")
