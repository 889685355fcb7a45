"""Every shipped recipe on the architectures it speaks of: its sites are those of the golden list, and they are live."""

from collections import OrderedDict

import pytest
import torch

from simam_inject import inject, injected, plan
from simam_inject.errors import NoMatchError
from simam_inject.recipe import shipped_recipes
from tests.recipe.shelf import MODELS, QUICK, YOLOS, build, example, golden, line, sites

PAIRS = [(recipe, name) for recipe, names in MODELS.items() for name in names]
COUNTS = {"resnet18": 8, "resnet34": 16, "resnet50": 16, "resnet101": 33, "resnext50_32x4d": 16, "mobilenet_v2": 17}
SLOW = ("resnet34", "resnet101", "resnet50", "resnext50_32x4d")


def marked(entries, name_of, quick):
    return [pytest.param(*entry, marks=() if name_of(entry) in quick else pytest.mark.zoo) for entry in entries]


def test_every_shipped_recipe_is_tested_on_at_least_three_architectures():
    assert set(MODELS) == set(shipped_recipes())
    assert all(len(names) >= 3 for names in MODELS.values())
    assert set(golden()) == set(PAIRS)


@pytest.mark.parametrize(("recipe", "name"), marked(PAIRS, lambda pair: pair[1], QUICK))
def test_the_sites_are_those_of_the_golden_list(recipe, name):
    assert line(recipe, name) == golden()[recipe, name]


@pytest.mark.parametrize(
    ("name", "count"), marked(COUNTS.items(), lambda entry: entry[0], ("resnet18", "mobilenet_v2"))
)
def test_the_paper_recipe_has_as_many_sites_as_the_authors(name, count):
    assert len(sites("paper", name)) == count


@pytest.mark.parametrize("recipe", ["paper", "unet", "convnext", "mobile", "yolo-sppf"])
def test_a_recipe_on_a_model_it_does_not_speak_of_is_an_error(recipe):
    with pytest.raises(NoMatchError):
        inject(
            torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU()),
            recipe,
            example_inputs=torch.rand(1, 3, 8, 8),
        )


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "UNet"])
@pytest.mark.parametrize("recipe", [recipe for recipe in MODELS if recipe.startswith("yolo-")])
def test_a_yolo_recipe_takes_nothing_of_another_network(recipe, name):
    assert sites(recipe, name) == []


LIVE = [(recipe, name) for recipe, name in PAIRS if recipe.startswith("yolo-") and name in YOLOS]
LIVE_QUICK = [(recipe, name) for recipe, name in LIVE if name == "yolov8n"] + [("yolo-concat", "yolov6n")]


@pytest.mark.parametrize(("recipe", "name"), marked(LIVE, tuple, LIVE_QUICK))
def test_every_yolo_recipe_is_live_on_every_family(recipe, name):
    model = build(name)
    inject(model, recipe, example_inputs=example(name))
    assert len(injected(model)) == len(sites(recipe, name)) > 0


def test_every_conv_leaves_out_the_convolution_that_decodes_boxes():
    """Its weights are constant, and it runs in eval mode only, so no training could adapt to its attention."""
    modules = build("yolov8n").named_modules()
    convolutions = {path for path, module in modules if isinstance(module, torch.nn.Conv2d)}
    assert convolutions - set(sites("every-conv", "yolov8n")) == {"model.22.dfl.conv"}
    own = torch.nn.Sequential(OrderedDict(dfl=torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Conv2d(8, 8, 3))))
    found = plan(own.eval(), "every-conv", example_inputs=torch.rand(1, 3, 9, 9))
    assert [one.path for one in found.insertions] == ["dfl.0", "dfl.1"]
