"""timm knows a registered model with a recipe, and SimAM as an attention layer."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from timm.models import get_pretrained_cfg
from torch import nn

from simam_inject import SimAM, eject, injected, verify
from simam_inject.errors import ModelError, NoMatchError, RecipeError
from simam_inject.integrations.timm import SimamAttn, register, run_script

ROOT = Path(__file__).resolve().parents[2]
NAME = "test_resnet_simam_paper"
PATHS = ["layer1.0.conv2", "layer2.0.conv2", "layer3.0.conv2", "layer4.0.conv2"]
X = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(5))


@pytest.fixture(scope="module", autouse=True)
def _registered():
    register("test_resnet", "paper")


def paths(model):
    return [site.path for site in injected(model)]


def test_a_registered_model():
    model = timm.create_model(NAME, num_classes=7)
    assert paths(model) == PATHS
    assert {site.e_lambda for site in injected(model)} == {0.1}
    assert model(X).shape == (2, 7)
    assert model.state_dict().keys() == timm.create_model("test_resnet").state_dict().keys()
    assert verify(model).ok
    assert register("test_resnet", "block-output") == "test_resnet_simam_block_output"
    assert "test_resnet_simam_block_output" in timm.list_models("*_simam_block_output")
    assert paths(timm.create_model("test_resnet_simam_block_output"))[0] == "layer1.0"


def test_a_variant_is_the_plain_model_and_the_recipe():
    torch.manual_seed(0)
    variant = timm.create_model(NAME, zero_init_last=False).eval()
    torch.manual_seed(0)
    plain = timm.create_model("test_resnet", zero_init_last=False).eval()
    assert not torch.equal(variant(X), plain(X))
    assert torch.equal(eject(variant)(X), plain(X))


def test_published_weights_stay_those_of_the_architecture():
    config, plain = get_pretrained_cfg(NAME), get_pretrained_cfg("test_resnet")
    assert config.architecture == NAME
    assert (config.tag, config.hf_hub_id, config.input_size) == (plain.tag, plain.hf_hub_id, plain.input_size)
    register("resnet50", "paper")
    tags = timm.list_pretrained("resnet50_simam_paper*")
    assert [tag.partition(".")[2] for tag in tags] == [
        tag.partition(".")[2] for tag in timm.list_pretrained("resnet50.*")
    ]
    assert get_pretrained_cfg("resnet50_simam_paper").tag == get_pretrained_cfg("resnet50").tag
    assert get_pretrained_cfg("resnet50_simam_paper.a3_in1k").hf_hub_id == "timm/resnet50.a3_in1k"


@pytest.mark.parametrize("name", [NAME, f"{NAME}.r160_in1k"])
def test_pretrained_weights_are_loaded_before_the_injection(name, tmp_path):
    source = timm.create_model("test_resnet").eval()
    torch.save(source.state_dict(), tmp_path / "x.pth")
    overlay = {"file": str(tmp_path / "x.pth")}
    model = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay).eval()
    assert paths(model) == PATHS
    assert torch.equal(eject(model)(X), source(X))
    with pytest.raises(RuntimeError, match="Invalid pretrained tag"):
        timm.create_model(f"{NAME}.nothing")


@pytest.mark.parametrize("kind", ["list", "dict", "hook", "getter"])
def test_features_only_is_attended_in_every_form(kind):
    options = {"features_only": True, "feature_cls": kind, "out_indices": (1, 3), "zero_init_last": False}
    torch.manual_seed(0)
    model = timm.create_model(NAME, **options).eval()
    torch.manual_seed(0)
    plain = timm.create_model("test_resnet", **options).eval()

    def run(network):
        found = network(X)
        return list(found.values()) if isinstance(found, dict) else found

    attended = run(model)
    assert len(injected(model)) >= 2
    assert [one.shape for one in attended] == [one.shape for one in run(plain)]
    assert model.feature_info.channels() == plain.feature_info.channels()
    assert not any(torch.equal(one, other) for one, other in zip(attended, run(plain), strict=True))
    eject(model)
    assert all(torch.equal(one, other) for one, other in zip(run(model), run(plain), strict=True))


def test_features_of_an_fx_graph_hold_no_blocks_and_say_so():
    with pytest.raises(NoMatchError, match="no block of this model is main"):
        timm.create_model(NAME, features_only=True, feature_cls="fx")


def test_other_input_channels():
    model = timm.create_model(NAME, in_chans=1)
    assert model(X[:, :1]).shape == (2, 1000)
    assert len(injected(model)) == 4


def test_timms_own_folder_format(tmp_path):
    from timm.models import load_model_config_from_hf  # noqa: F401 - the same reader serves `local-dir:`
    from timm.models._hub import save_for_hf

    model = timm.create_model(NAME, num_classes=7).eval()
    save_for_hf(model, tmp_path, safe_serialization=True)
    assert json.loads((tmp_path / "config.json").read_text())["architecture"] == NAME
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert paths(again) == PATHS
    assert torch.equal(again(X), model(X))


def test_a_recipe_of_ones_own():
    recipe = {"name": "My own", "rules": [{"path": "layer4", "after": "output"}]}
    assert register("test_resnet", recipe) == "test_resnet_simam_My_own"
    assert paths(timm.create_model("test_resnet_simam_My_own")) == ["layer4"]
    assert register("test_resnet", recipe, name="ours") == "ours"
    assert paths(timm.create_model("ours", num_classes=2)) == ["layer4"]
    assert register("test_resnet", recipe, name="ours") == "ours"
    with pytest.raises(ModelError, match="timm already has a model 'ours'"):
        register("test_resnet", "paper", name="ours")
    for name in ("inject", "register", "nn", "class", "print"):
        with pytest.raises(ModelError, match=f"the name '{name}' is taken"):
            register("test_resnet", recipe, name=name)
    assert paths(timm.create_model("ours", num_classes=2)) == ["layer4"]


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (("resnet5O", "paper"), ModelError, "'resnet5O'.*mean resnet50"),
        (("resnet50.a1_in1k", "paper"), ModelError, "a name without a tag"),
        (("resnet50", "paper", "a-b"), ModelError, "invalid name .*'a-b'"),
        (("resnet50", {"rules": [{"pattern": "conv2d"}]}), ModelError, "'resnet50_simam_'.*pass name"),
        (("resnet50", "papr"), RecipeError, "papr"),
    ],
)
def test_what_cannot_be_registered(arguments, error, words):
    with pytest.raises(error, match=words):
        register(*arguments)


def test_an_attention_layer():
    layer = timm.layers.create_attn(SimamAttn, 64)
    assert isinstance(layer, SimamAttn)
    assert isinstance(layer, SimAM)
    assert timm.layers.create_attn(SimamAttn, 64, e_lambda=0.1).e_lambda == 0.1
    with pytest.raises(TypeError, match="SimamAttn has no option 'e_lamda'"):
        timm.layers.create_attn(SimamAttn, 64, e_lamda=0.1)
    x = torch.rand(1, 64, 5, 5)
    assert torch.equal(layer(x), SimAM()(x))


@pytest.mark.parametrize(
    ("name", "options", "count"),
    [
        ("test_resnet", {"block_args": {"attn_layer": SimamAttn}}, 4),
        ("test_efficientnet", {"se_layer": SimamAttn}, 1),
    ],
)
def test_blocks_of_timm_are_built_with_it(name, options, count):
    model = timm.create_model(name, **options)
    assert sum(isinstance(module, SimamAttn) for module in model.modules()) >= count
    assert model(X).isfinite().all()
    assert injected(model) == ()


SCRIPT = """
import argparse, sys, timm, torch
from timm.data import resolve_data_config
from helper import WORD

parser = argparse.ArgumentParser()
parser.add_argument("--model")
parser.add_argument("--num-classes", type=int)
parser.add_argument("--resume")
parser.add_argument("--experiment")
arguments = parser.parse_args()
model = timm.create_model(arguments.model, pretrained=False, num_classes=arguments.num_classes, drop_rate=0.1)
config = resolve_data_config(vars(arguments), model=model)
loss = torch.nn.functional.cross_entropy(model(torch.rand(2, *config["input_size"])), torch.tensor([0, 1]))
loss.backward()
print(WORD, sum("simam" in name for name, _ in model.named_modules()), timm.models.safe_model_name(arguments.model))
"""


def test_a_training_script_that_knows_nothing_of_this_package(tmp_path):
    (tmp_path / "train.py").write_text(SCRIPT)
    (tmp_path / "helper.py").write_text("WORD = 'beside'")
    command = [sys.executable, "-m", "simam_inject.integrations.timm", str(tmp_path / "train.py")]
    resumed = f"--resume=output/20260101-{NAME}-224/last.pth.tar"  # a folder with the name of the model in its own
    done = subprocess.run(
        [*command, "--model", NAME, "--num-classes", "3", resumed, "--experiment", f"{NAME}_2"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["beside", "4", NAME]


def test_a_misspelt_recipe_of_the_runner():
    with pytest.raises(SystemExit, match=r"error: .*'papr' is neither a shipped recipe"):
        run_script(["train.py", "--model", "resnet18_simam_papr"])
    with pytest.raises(SystemExit, match="write resnet26_simam_block_output"):
        run_script(["train.py", "--model", "resnet26_simam_block-output"])


def test_the_runner_takes_words_that_name_no_model_for_other_arguments(tmp_path, monkeypatch):
    (tmp_path / "train.py").write_text("import sys\nsys.exit(' '.join(sys.argv[1:]))\n")
    monkeypatch.setattr(sys, "argv", sys.argv)
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(SystemExit, match="--model resnet18 --output out_simam_1"):
        run_script([str(tmp_path / "train.py"), "--model", "resnet18", "--output", "out_simam_1"])


def test_the_runner_needs_a_script():
    with pytest.raises(SystemExit, match=r"usage: python -m simam_inject\.integrations\.timm SCRIPT\.py"):
        run_script([])


def test_what_timms_train_script_resolves_first():
    resolve = pytest.importorskip("timm.models").__dict__.get("resolve_model_input_args")
    if resolve is None:
        pytest.skip("this timm resolves nothing before it creates a model")
    resolved = resolve(f"{NAME}.r160_in1k", num_classes=4)
    model = timm.create_model(**resolved)
    assert paths(model) == PATHS
    assert isinstance(model.get_classifier(), nn.Linear)
    assert model.num_classes == 4
