# ruff: noqa: E501  (tables: a case, and its message word for word, stay on one line)
"""The small languages inside a recipe: globs, conditions, names of operations, picks."""

import time

import pytest

from simam_inject.errors import RecipeError
from simam_inject.kinds import FAMILIES, KINDS, find_kind, kind_of
from simam_inject.recipe.names import Glob, Kind, lineage
from simam_inject.recipe.operations import Operation, is_met
from simam_inject.recipe.rule import Pick, Rule

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
    ("relu[2]", "relu2", False),
    ("*.relu[2]:*", "a.relu[2]:p3", True),
    ("*.relu[1]", "a.relu", True),
    ("*.relu[1]", "a.relu[2]", False),
    ("relu[12]", "relu2", True),
    ("relu[2]", "relu[3]", False),
    ("*", "", True),
    ("a.b", "a+b", False),
    ("(a|b)", "a", False),
    ("a\\d", "a1", False),
]


@pytest.mark.parametrize(("glob", "text", "expected"), GLOBS)
def test_globs_match_whole_texts(glob, text, expected):
    assert Glob(glob).matches(text) is expected


def test_letter_case_counts_in_paths_and_not_in_classes():
    assert not Glob("layer1").matches("Layer1")
    assert Glob("BASIC*").matches_any_case("basicBlock")


def test_a_filter_covers_what_is_inside_a_module():
    assert lineage("a.b.relu[2]") == ("a.b.relu[2]", "a.b.relu", "a.b", "a")
    assert lineage("a") == ("a",)
    assert lineage("a.fpn:0") == ("a.fpn:0", "a.fpn", "a")
    assert lineage("a.fpn[2]:p.3") == ("a.fpn[2]:p.3", "a.fpn[2]", "a.fpn", "a")
    assert Glob("neck").covers("neck:p3")
    assert Glob("layer4").covers("layer4.0.relu[2]")
    assert Glob("*relu").covers("layer4.0.relu[2]")
    assert not Glob("layer4").covers("layer40.0")
    assert not Glob("layer4.0").covers("layer4")


def test_no_glob_makes_the_search_explode():
    glob = Glob("*a" * 90 + "b")
    start = time.process_time()
    assert not glob.matches("a" * 5000)
    assert time.process_time() - start < 2.0


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
def test_bounds_admit_what_they_say(bounds, fact, expected):
    operation = Operation(op="conv", kernel=bounds)
    assert is_met(operation.kernel, fact) is expected


def test_depthwise_is_a_fact_of_its_own():
    groups = Operation(op="conv", groups=["depthwise", 32]).groups
    assert is_met(groups, 64, depthwise=True)
    assert is_met(groups, 32)
    assert not is_met(groups, 64)
    with pytest.raises(RecipeError, match="found 'depthwise'"):
        Operation(op="conv", kernel="depthwise")


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
    ("conv", "deform_conv2d", True),
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
    assert Kind(name).includes(kind) is expected


SPELLINGS = [
    ("Conv2d", "conv2d"), ("conv_transpose2d", "conv_transpose2d"), ("ConvTranspose1d", "conv_transpose1d"),
    ("BatchNorm2d", "batch_norm"), ("SyncBatchNorm", "batch_norm"), ("GroupNorm", "group_norm"), ("RMSNorm", "rms_norm"),
    ("InstanceNorm2d", "instance_norm"), ("LocalResponseNorm", "local_response_norm"), ("LayerNorm", "layer_norm"),
    ("MaxPool2d", "max_pool"), ("max_pool2d_with_indices", "max_pool"), ("AdaptiveAvgPool2d", "adaptive_avg_pool"),
    ("LPPool2d", "lp_pool"), ("FractionalMaxPool2d", "fractional_max_pool"), ("ReLU", "relu"), ("relu_", "relu"),
    ("ReLU6", "relu6"), ("PReLU", "prelu"), ("RReLU", "rrelu"), ("LeakyReLU", "leaky_relu"), ("SiLU", "silu"),
    ("GELU", "gelu"), ("Hardswish", "hardswish"), ("HardSwish", "hardswish"), ("LogSigmoid", "logsigmoid"),
    ("Upsample", "interpolate"), ("__iadd__", "add"), ("__radd__", "add"), ("truediv", "div"), ("DropPath", "drop_path"),
    ("PixelShuffle", "pixel_shuffle"), ("ZeroPad2d", "pad"), ("concat", "cat"), ("Identity", "identity"),
    ("GridSample", "grid_sample"), ("MyBlock", "my_block"), ("Conv2dSame", "conv2d_same"), ("Norm", "norm"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "kind"), SPELLINGS)
def test_one_vocabulary_for_classes_functions_and_operators(name, kind):
    assert kind_of(name) == kind
    if kind in KINDS:
        assert find_kind(name) == kind
        assert Kind(name.strip("_")).includes(kind), "the name of a class or function names its kind as well"


def test_a_family_is_no_kind():
    assert not KINDS & FAMILIES.keys()


def test_picks_choose_the_first_the_last_or_every_nth():
    hits = list("abcdefg")
    assert Rule(path="*", after="output", pick="first").choice.choose(hits) == ["a"]
    assert Pick(last=2).choose(hits) == ["f", "g"]
    assert Pick(every=3).choose(hits) == ["a", "d", "g"]
    assert Rule(path="*", after="output", pick="all").choice.takes_all
    assert Pick(every=1).takes_all
    assert not Pick(last=1, per="stage").takes_all
    assert str(Pick(last=1, per="stage")) == "{last: 1, per: stage}"
