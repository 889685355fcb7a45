# ruff: noqa: E501  (tables: a case, and its message word for word, stay on one line)
"""The small languages inside a recipe: globs, conditions, names of operations, picks."""

import time

import pytest
from torch import nn

from simam_inject.discovery.kinds import module_kind
from simam_inject.recipe.bounds import parse_bounds
from simam_inject.recipe.globs import lineage, parse_glob
from simam_inject.recipe.kinds import KINDS, parse_kinds
from simam_inject.recipe.picks import parse_pick

GLOBS = [
    ("layer3.*", "layer3.0.conv1", True),
    ("layer3.*", "layer3", False),
    ("layer3.?", "layer3.10", False),
    ("layer[34].*", "layer4.0", True),
    ("layer[!34].*", "layer4.0", False),
    ("layer[!34].*", "layer2.0", True),
    ("{a,b}.c", "b.c", True),
    ("{a,b}.c", "ab.c", False),
    ("conv2{,.0,.conv}", "conv2", True),
    ("conv2{,.0,.conv}", "conv2.conv", True),
    ("conv2{,.0,.conv}", "conv2.1", False),
    ("{a,{b,c}d}", "cd", True),
    ("{a,{b,c}d}", "c", False),
    ("a[", "a[", True),
    ("relu[2]", "relu[2]", True),
    ("relu[2]", "relu2", True),
    ("relu[2]", "relu[3]", False),
    ("*", "", True),
    ("a.b", "a+b", False),
    ("(a|b)", "a", False),
    ("a\\d", "a1", False),
]


@pytest.mark.parametrize(("glob", "text", "expected"), GLOBS)
def test_globs_match_whole_texts(glob, text, expected):
    assert parse_glob(glob).matches(text) is expected


def test_letter_case_counts_in_paths_and_not_in_classes():
    assert not parse_glob("layer1").matches("Layer1")
    assert parse_glob("BASIC*").matches_any_case("basicBlock")


def test_a_filter_covers_what_is_inside_a_module():
    assert lineage("a.b.relu[2]") == ("a.b.relu[2]", "a.b.relu", "a.b", "a")
    assert lineage("a") == ("a",)
    assert parse_glob("layer4").covers("layer4.0.relu[2]")
    assert parse_glob("*relu").covers("layer4.0.relu[2]")
    assert not parse_glob("layer4").covers("layer40.0")
    assert not parse_glob("layer4.0").covers("layer4")


def test_no_glob_makes_the_search_explode():
    glob = parse_glob("*a" * 90 + "b")
    start = time.perf_counter()
    assert not glob.matches("a" * 5000)
    assert time.perf_counter() - start < 2.0


BOUNDS = [
    (3, 3, True),
    (3, (3, 3), True),
    (3, (3, 1), False),
    (">=64", 64, True),
    (">64", 64, False),
    ("<=8", (8, 9), False),
    ("!=3", (3, 3), False),
    ("!=3", (3, 1), True),
    (">=8, <=32", 16, True),
    (">=8, <=32", 64, False),
    ("1x7", (1, 7), True),
    ("1x7", (7, 1), False),
    ("1x7", 7, False),
    ("!=1x7", (7, 1), True),
    ("=3", 3, True),
    ("== 3", 3, True),
    ([8, 16], 16, True),
    ([8, 16], 32, False),
    (["<4", ">=64"], 2, True),
    (["<4", ">=64"], 32, False),
    ("3x3x3", (3, 3, 3), True),
]


@pytest.mark.parametrize(("bounds", "fact", "expected"), BOUNDS)
def test_bounds_admit(bounds, fact, expected):
    assert parse_bounds(bounds).admits(fact) is expected


def test_depthwise_is_a_fact_of_its_own():
    bounds = parse_bounds(["depthwise", 32], depthwise=True)
    assert bounds.admits(64, depthwise=True)
    assert bounds.admits(32)
    assert not bounds.admits(64)
    with pytest.raises(ValueError, match="found 'depthwise'"):
        parse_bounds("depthwise")


NAMES = [
    ("BatchNorm2d", "batch_norm", True),
    ("batch_norm2d", "batch_norm", True),
    ("bn", "batch_norm", True),
    ("SiLU", "silu", True),
    ("swish", "silu", True),
    ("LeakyReLU", "leaky_relu", True),
    ("MaxPool2d", "max_pool", True),
    ("concat", "cat", True),
    ("+", "add", True),
    ("Conv2d", "conv2d", True),
    ("conv", "conv_transpose2d", True),
    ("conv", "deform_conv2d", False),
    ("norm", "layer_norm", True),
    ("act", "gelu", True),
    ("pool", "adaptive_avg_pool", True),
    ("*norm", "batch_norm", True),
    ("conv?d", "conv3d", True),
    ("conv?d", "conv_transpose2d", False),
    ("{relu,silu}", "silu", True),
    ("*", "anything", True),
    ("*", "block", False),
    ("*", "input", False),
    ("my_operation", "my_operation", True),
    ("relu", "relu6", False),
]


@pytest.mark.parametrize(("name", "kind", "expected"), NAMES)
def test_names_of_operations(name, kind, expected):
    assert parse_kinds(name).matches(kind) is expected


MODULES = [
    nn.Conv1d(1, 1, 1), nn.Conv2d(1, 1, 1), nn.Conv3d(1, 1, 1), nn.ConvTranspose2d(1, 1, 1), nn.BatchNorm2d(1), nn.BatchNorm1d(1),
    nn.SyncBatchNorm(1), nn.GroupNorm(1, 1), nn.LayerNorm(1), nn.InstanceNorm2d(1), nn.LocalResponseNorm(1), nn.RMSNorm(1),
    nn.MaxPool2d(1), nn.AvgPool3d(1), nn.AdaptiveAvgPool2d(1), nn.AdaptiveMaxPool1d(1), nn.LPPool2d(1, 1), nn.FractionalMaxPool2d(1, 1),
    nn.ReLU(), nn.ReLU6(), nn.LeakyReLU(), nn.PReLU(), nn.ELU(), nn.SELU(), nn.CELU(), nn.GELU(), nn.SiLU(), nn.Mish(), nn.Hardswish(),
    nn.Hardsigmoid(), nn.Hardtanh(), nn.Sigmoid(), nn.Tanh(), nn.Softplus(), nn.Softsign(), nn.LogSigmoid(), nn.Hardshrink(),
    nn.Tanhshrink(), nn.GLU(), nn.Softmax(), nn.Linear(1, 1), nn.Upsample(1), nn.Flatten(), nn.Identity(), nn.Dropout(), nn.PixelShuffle(1),
    nn.Unfold(1),
]  # fmt: skip


@pytest.mark.parametrize("module", MODULES, ids=lambda module: type(module).__name__)
def test_discovery_and_recipe_use_one_vocabulary(module):
    kind = module_kind(module)
    assert kind in KINDS
    assert parse_kinds(type(module).__name__).matches(kind), "the class name names the kind as well"


def test_picks_choose():
    hits = list("abcdefg")
    assert parse_pick("first").choose(hits) == ["a"]
    assert parse_pick({"last": 2}).choose(hits) == ["f", "g"]
    assert parse_pick({"every": 3}).choose(hits) == ["a", "d", "g"]
    assert parse_pick("all").takes_all
    assert parse_pick({"every": 1}).takes_all
    assert not parse_pick({"last": 1, "per": "stage"}).takes_all
    assert str(parse_pick({"last": 1, "per": "stage"})) == "{last: 1, per: stage}"
