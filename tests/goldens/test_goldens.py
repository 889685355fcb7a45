"""Sites and outputs, planned and computed again. All of them: `pytest -m zoo tests/goldens`. See differences.md."""

import pytest
import torch

from tests.goldens import freeze

pytestmark = pytest.mark.filterwarnings("ignore")  # each library's own

QUICK = ("torchvision:resnet18", "timm:convnext_atto", "timm:res2net50_14w_8s", "timm:starnet_s050",
         "torchvision:r3d_18", "timm:vitamin_small_224", "timm:levit_128s")  # fmt: skip
"""The last two take one image size: the stem of one contains blocks, that of the other is its only block."""
GOLDEN = freeze.read_sites()
OUTPUTS = freeze.read_outputs()


def check(key):
    model = freeze.build(key)
    found = {}
    for recipe, sites in freeze.take_all(key, model, freeze.example(key, model)).items():
        lines = freeze.differences(GOLDEN.get((key, recipe), []), sites)
        if lines:
            found[recipe] = lines
    assert not found


@pytest.mark.parametrize("key", QUICK)
def test_sites(key):
    check(key)


@pytest.mark.zoo
@pytest.mark.parametrize("key", [key for key in freeze.families() if key not in QUICK])
def test_all_sites(key):
    check(key)


@pytest.mark.parametrize("key", ["torchvision:resnet18", "timm:test_nfnet", "timm:ghostnet_050"])
def test_outputs(key):
    check_outputs(key)


@pytest.mark.zoo
@pytest.mark.parametrize("key", sorted(freeze.OUTPUT_MODELS))
def test_all_outputs(key):
    check_outputs(key)


def check_outputs(key):
    stock = OUTPUTS[key, "stock"]
    for line in freeze.output_lines([key]):
        _, recipe, *numbers = line.split(" ")
        numbers = [float(number) for number in numbers]
        assert freeze.close(numbers, OUTPUTS[key, recipe]), recipe
        assert recipe == "stock" or not freeze.close(numbers, stock), "no farther from stock than rounding"


@pytest.mark.parametrize(
    "paths",
    [
        [],
        ["a"],
        ["layer1.0.conv2", "layer1.1.conv2", "layer2.0.conv2", "stem"],
        ["model.15>~.22", "model.18>~.22", "model.2.m.0.cv2>~.add"],
        ["a", "a.b", "a.c.d", "e.b", "e.c.d", "e"],
        ["x.relu[2]", "x.relu", "fpn:0", "fpn:p3"],
    ],
)
def test_paths_in_braces(paths):
    assert freeze.spread(freeze.squeeze(paths)) == sorted(paths)


def test_the_list_is_whole():
    listed = {key for key, _ in GOLDEN}
    assert listed == set(freeze.families())
    assert all((key, recipe) in GOLDEN for key in listed for recipe in freeze.RECIPES)
    assert sum(map(len, GOLDEN.values())) > 10_000
    assert torch.tensor([numbers[2] for numbers in OUTPUTS.values()]).min() > 0.05
