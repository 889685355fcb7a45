"""The table: (network, rule, the paths it takes). Each good case has its bad neighbours."""

import re

import pytest
import yaml

from simam_inject.matching.match import match
from simam_inject.recipe import Recipe
from tests.matching.networks import NETWORKS

BLOCKS = ["layer1.0", "layer1.1", "layer2.0", "layer2.1"]
DEPTHWISE = ["features.0.conv.1.0", "features.1.conv.1.0"]
ZORP = [f"body.0.{name}" for name in ("first", "middle", "wide", "last")]


def each(name, blocks=BLOCKS):
    return [f"{block}.{name}" for block in blocks]


TABLE = [
    # block: class names
    ("resnet", "{block: Bottleneck, after: output}", BLOCKS),
    ("resnet", "{block: bottleneck, after: output}", BLOCKS),
    ("resnet", "{block: BOTTLE*, after: output}", BLOCKS),
    ("resnet", "{block: '*neck', after: output}", BLOCKS),
    ("resnet", "{block: '?ottleneck', after: output}", BLOCKS),
    ("resnet", "{block: '[BD]ottleneck', after: output}", BLOCKS),
    ("resnet", "{block: '[!B]ottleneck', after: output}", []),
    ("resnet", "{block: '{Basic,Bottle}*', after: output}", BLOCKS),
    ("resnet", "{block: [BasicBlock, Bottleneck], after: output}", BLOCKS),
    ("resnet", "{block: Bottle, after: output}", []),
    ("resnet", "{block: Bottlenecks, after: output}", []),
    ("resnet", "{block: BasicBlock, after: output}", []),
    (
        "resnet",
        "{block: Sequential, after: output}",
        ["layer1.0.downsample", "layer1", "layer2.0.downsample", "layer2"],
    ),
    # subclasses count, in one direction
    ("yolo", "{block: C2f, after: output}", ["model.1"]),
    ("yolo", "{block: CSP, after: output}", ["model.1"]),
    ("yolo", "{block: c2, after: output}", []),
    ("mobile", "{block: ConvNormActivation, after: '0'}", [f"features.{i}.conv.{j}.0" for i in "01" for j in "01"]),
    ("mobile", "{block: Conv2dNormActivation, after: '2'}", [f"features.{i}.conv.{j}.2" for i in "01" for j in "01"]),
    # leaf modules only where their class is written out
    ("resnet", "{block: MaxPool2d, after: output}", ["maxpool"]),
    ("resnet", "{block: 'MaxPool?d', after: output}", []),
    ("plain", "{block: Conv2d, after: output}", ["conv_a", "conv_b", "conv_c"]),
    ("plain", "{block: '*', after: output}", []),
    # children
    ("resnet", "{block: Bottleneck, after: conv2}", each("conv2")),
    ("resnet", "{block: Bottleneck, after: Conv2}", []),
    ("resnet", "{block: Bottleneck, after: conv4}", []),
    ("resnet", "{block: Bottleneck, after: 'conv[2]'}", each("conv2")),
    ("resnet", "{block: Bottleneck, after: 'conv[9]'}", []),
    ("resnet", "{block: Bottleneck, after: 'conv{2,3}'}", sorted(each("conv2") + each("conv3"))),
    ("resnet", "{block: Bottleneck, after: downsample}", ["layer1.0.downsample", "layer2.0.downsample"]),
    ("resnet", "{block: Bottleneck, after: downsample.0}", ["layer1.0.downsample.0", "layer2.0.downsample.0"]),
    ("resnet", "{block: Bottleneck, after: '*.0'}", ["layer1.0.downsample.0", "layer2.0.downsample.0"]),
    ("resnet", "{block: Bottleneck, after: x}", each("x")),
    ("resnet", "{block: Sequential, after: 1.conv2}", ["layer1.1.conv2", "layer2.1.conv2"]),
    ("resnet", "{block: Sequential, after: conv2}", []),
    ("yolo", "{block: Bottleneck, after: cv2}", ["model.1.m.0.cv2", "model.1.m.1.cv2"]),
    ("yolo", "{block: C2f, after: cv2}", ["model.1.cv2"]),
    ("yolo", "{block: C2f, after: m.0.cv2}", ["model.1.m.0.cv2"]),
    ("yolo", "{block: C2f, after: '*cv2'}", ["model.1.m.0.cv2", "model.1.m.1.cv2", "model.1.cv2"]),
    (
        "yolo",
        "{block: C2f, after: 'm.?.cv?'}",
        ["model.1.m.0.cv1", "model.1.m.0.cv2", "model.1.m.1.cv1", "model.1.m.1.cv2"],
    ),
    ("yolo", "{block: SPPF, after: cat}", ["model.2.cat"]),
    ("yolo", "{block: Detect, after: cv2.0}", ["model.3.cv2.0"]),
    ("convnext", "{block: ConvNeXtBlock, after: mlp.act}", ["stages.0.blocks.0.mlp.act"]),
    # a child that is called several times
    ("resnet", "{block: Bottleneck, after: relu}", []),
    ("resnet", "{block: Bottleneck, after: 'relu[1]'}", each("relu")),
    ("resnet", "{block: Bottleneck, after: 'relu[2]'}", each("relu[2]")),
    ("resnet", "{block: Bottleneck, after: 'relu[3]'}", each("relu[3]")),
    ("resnet", "{block: Bottleneck, after: 'relu[4]'}", []),
    ("resnet", "{block: Bottleneck, after: 'conv2[1]'}", each("conv2")),
    ("resnet", "{block: Bottleneck, after: 'conv2[2]'}", []),
    ("yolo", "{block: SPPF, after: m}", []),
    ("yolo", "{block: SPPF, after: 'm[*]'}", ["model.2.m", "model.2.m[2]", "model.2.m[3]"]),
    ("yolo", "{block: SPPF, after: 'm*'}", ["model.2.m", "model.2.m[2]", "model.2.m[3]"]),
    # a name that is no child is a kind of operation
    ("resnet", "{block: Bottleneck, after: add}", each("add")),
    ("resnet", "{block: Bottleneck, after: 'max_pool'}", []),
    ("resnet", "{block: BottleneckV9, after: conv2d}", []),
    ("mobile", "{block: SqueezeExcitation, after: conv2d}", ["features.1.conv.se.fc1", "features.1.conv.se.fc2"]),
    ("mobile", "{block: SqueezeExcitation, after: 'conv2d[2]'}", ["features.1.conv.se.fc2"]),
    ("mobile", "{block: SqueezeExcitation, after: 'conv2d[3]'}", []),
    ("mobile", "{block: SqueezeExcitation, after: Conv2d}", ["features.1.conv.se.fc1", "features.1.conv.se.fc2"]),
    ("yolo", "{block: C2f, after: concat}", ["model.1.cat"]),
    # operations
    ("resnet", "{block: Bottleneck, after: {op: add}}", each("add")),
    ("resnet", "{block: Bottleneck, after: {op: conv2d, kernel: 3}}", each("conv2")),
    ("resnet", "{block: Bottleneck, after: {op: conv2d, kernel: 3, stride: 2}}", ["layer2.0.conv2"]),
    ("resnet", "{block: Bottleneck, after: {op: conv, kernel: '>1'}}", each("conv2")),
    ("resnet", "{block: Bottleneck, after: {op: conv1d}}", []),
    ("resnet", "{block: Bottleneck, after: {op: [max_pool, add]}}", each("add")),
    ("mobile", "{block: InvertedResidual, after: {op: conv2d, groups: depthwise}}", DEPTHWISE),
    ("mobile", "{block: InvertedResidual, after: {op: conv2d, groups: 12}}", DEPTHWISE),
    ("mobile", "{block: InvertedResidual, after: {op: conv2d, groups: '>12'}}", []),
    (
        "mobile",
        "{block: InvertedResidual, after: {op: act}}",
        [f"features.{i}.conv.{j}.2" for i in "01" for j in "01"] + ["features.1.conv.se.relu"],
    ),
    ("yolo", "{block: SPPF, after: {op: pool}}", ["model.2.m", "model.2.m[2]", "model.2.m[3]"]),
    # before
    ("resnet", "{block: Bottleneck, before: bn2}", [f"{block}.conv2 -> {block}.bn2" for block in BLOCKS]),
    ("resnet", "{block: Bottleneck, before: conv1}", [f"{block}.x -> {block}.conv1" for block in BLOCKS]),
    ("resnet", "{block: Bottleneck, before: add}", []),
    ("resnet", "{block: Bottleneck, before: 'relu[3]'}", [f"{block}.add -> {block}.relu[3]" for block in BLOCKS]),
    ("resnet", "{block: Bottleneck, before: x}", []),
    (
        "resnet",
        "{block: Bottleneck, before: downsample}",
        [f"{block}.x -> {block}.downsample" for block in ("layer1.0", "layer2.0")],
    ),
    ("resnet", "{block: Bottleneck, before: residual}", [f"{block}.bn3 -> {block}.add" for block in BLOCKS]),
    ("resnet", "{block: Sequential, before: residual}", []),
    ("mobile", "{block: InvertedResidual, before: residual}", ["features.1.conv -> features.1.add"]),
    ("yolo", "{block: Bottleneck, before: residual}", ["model.1.m.0.cv2 -> model.1.m.0.add"]),
    ("yolo", "{block: C2f, before: residual}", []),
    ("yolo", "{block: C2f, before: cv2}", ["model.1.cat -> model.1.cv2"]),
    (
        "mobile",
        "{block: InvertedResidual, before: {op: conv2d, groups: depthwise}}",
        [f"features.{i}.conv.1.x -> features.{i}.conv.1.0" for i in "01"],
    ),
    (
        "resnet",
        "{block: Bottleneck, before: '{conv1,downsample}', path: layer1.0}",
        ["layer1.0.x -> layer1.0.conv1", "layer1.0.x -> layer1.0.downsample"],
    ),
    # before input: what the block is given, each value for the block alone
    ("yolo", "{block: Detect, before: input}", ["model.2 -> model.3"]),
    ("yolo", "{block: C2f, before: INPUT}", ["model.0 -> model.1"]),
    ("plain", "{block: ReLU, before: input}", ["conv_a -> relu"]),
    ("plain", "{path: mul, before: input}", ["conv_b -> mul", "sigmoid -> mul"]),
    ("plain", "{path: conv_a, before: input}", []),
    # path: a filter, or on its own
    ("resnet", "{block: Bottleneck, after: output, path: 'layer2.*'}", ["layer2.0", "layer2.1"]),
    ("resnet", "{block: Bottleneck, after: conv2, path: layer2}", ["layer2.0.conv2", "layer2.1.conv2"]),
    ("resnet", "{block: Bottleneck, after: conv2, path: 'layer[23]'}", ["layer2.0.conv2", "layer2.1.conv2"]),
    ("resnet", "{block: Bottleneck, after: conv2, path: layer}", []),
    ("resnet", "{block: Bottleneck, after: conv2, path: ['layer1.0', '*2.1*']}", ["layer1.0.conv2", "layer2.1.conv2"]),
    ("resnet", "{block: Bottleneck, after: conv2, exclude: 'layer?.0'}", ["layer1.1.conv2", "layer2.1.conv2"]),
    ("resnet", "{block: Bottleneck, after: {op: conv2d}, exclude: ['*.downsample', '*.conv?']}", []),
    (
        "resnet",
        "{block: Sequential, after: {op: conv2d}, path: '*.downsample.*', exclude: layer1}",
        ["layer2.0.downsample.0"],
    ),
    ("resnet", "{path: layer1, after: output}", ["layer1"]),
    ("resnet", "{path: 'layer?', after: output}", ["layer1", "layer2"]),
    ("resnet", "{path: 'layer?.0.conv2', after: output}", ["layer1.0.conv2", "layer2.0.conv2"]),
    ("resnet", "{path: 'layer1.0.relu[2]', after: output}", ["layer1.0.relu[2]"]),
    ("resnet", "{path: layer1.0.x, after: output}", ["layer1.0.x"]),
    ("resnet", "{path: '*.1.x', after: output}", ["layer1.1.x", "layer2.1.x"]),
    ("resnet", "{path: '*.1.[x]', after: output}", []),
    ("resnet", "{path: 'layer1.0.?', after: output}", []),
    ("resnet", "{path: 'layer2.*', after: conv2}", ["layer2.0.conv2", "layer2.1.conv2"]),
    ("resnet", "{path: layer2, after: conv2}", []),
    ("resnet", "{path: layer2, after: {op: conv2d, kernel: 3}}", ["layer2.0.conv2", "layer2.1.conv2"]),
    ("resnet", "{path: '*conv2', after: {op: conv2d}}", each("conv2")),
    ("resnet", "{path: layer9, after: output}", []),
    ("resnet", "{path: LAYER1, after: output}", []),
    ("plain", "{path: '*', after: {op: conv2d}}", ["conv_a", "conv_b", "conv_c"]),
    ("plain", "{path: '*', after: {op: conv2d, kernel: 1}}", ["conv_c"]),
    ("convnext", "{path: '*', after: {op: conv2d}}", ["stages.0.blocks.0.conv_dw", "aux"]),  # the plan skips `aux`
    # one value has one owner: the outermost path
    (
        "resnet",
        "{path: 'layer1*', after: output, exclude: ['*conv*', '*bn*', '*sample*', '*add', '*.relu', '*2]']}",
        ["layer1.0", "layer1"],
    ),
    # where
    ("resnet", "{block: Bottleneck, after: conv2, where: {channels: 64}}", ["layer1.0.conv2", "layer1.1.conv2"]),
    ("resnet", "{block: Bottleneck, after: conv2, where: {channels: '>64'}}", ["layer2.0.conv2", "layer2.1.conv2"]),
    ("resnet", "{block: Bottleneck, after: conv2, where: {channels: '>128'}}", []),
    (
        "resnet",
        "{block: Bottleneck, after: conv2, where: {channels: '>=64, <128'}}",
        ["layer1.0.conv2", "layer1.1.conv2"],
    ),
    ("resnet", "{block: Bottleneck, after: conv2, where: {channels: [64, 128]}}", each("conv2")),
    ("resnet", "{block: Bottleneck, after: conv2, where: {spatial: '<=8'}}", ["layer2.0.conv2", "layer2.1.conv2"]),
    ("resnet", "{block: Bottleneck, after: conv2, where: {spatial: 16x16}}", ["layer1.0.conv2", "layer1.1.conv2"]),
    ("resnet", "{block: Bottleneck, after: conv2, where: {spatial: 16x8}}", []),
    ("resnet", "{block: Bottleneck, after: output, where: {reduction: [8, 16]}}", ["layer2.0", "layer2.1"]),
    ("resnet", "{block: Bottleneck, after: output, where: {stage: 1}}", ["layer1.0", "layer1.1"]),
    ("resnet", "{block: Bottleneck, after: conv2, where: {stride: 2}}", ["layer2.0.conv2"]),
    ("resnet", "{block: Bottleneck, after: output, where: {stride: 2}}", []),
    ("resnet", "{block: Bottleneck, after: conv2, where: {dilation: '!=1'}}", []),
    (
        "resnet",
        "{block: Bottleneck, before: bn2, where: {channels: 128, stage: 2}}",
        [f"{b}.conv2 -> {b}.bn2" for b in BLOCKS[2:]],
    ),
    (
        "convnext",
        "{block: ConvNeXtBlock, after: mlp.fc1, where: {channels: 96, spatial: 64}}",
        ["stages.0.blocks.0.mlp.fc1"],
    ),
    ("mobile", "{block: InvertedResidual, after: {op: conv2d}, where: {groups: depthwise, spatial: '>1'}}", DEPTHWISE),
    (
        "mobile",
        "{path: '*', after: {op: conv2d}, where: {spatial: 1}}",
        ["features.1.conv.se.fc1", "features.1.conv.se.fc2"],
    ),
    # pick
    ("resnet", "{block: Bottleneck, after: output, pick: all}", BLOCKS),
    ("resnet", "{block: Bottleneck, after: output, pick: first}", ["layer1.0"]),
    ("resnet", "{block: Bottleneck, after: output, pick: last}", ["layer2.1"]),
    ("resnet", "{block: Bottleneck, after: output, pick: {first: 3}}", BLOCKS[:3]),
    ("resnet", "{block: Bottleneck, after: output, pick: {last: 9}}", BLOCKS),
    ("resnet", "{block: Bottleneck, after: output, pick: {every: 2}}", ["layer1.0", "layer2.0"]),
    ("resnet", "{block: Bottleneck, after: output, pick: {every: 1}}", BLOCKS),
    ("resnet", "{block: Bottleneck, after: output, pick: {last: 1, per: stage}}", ["layer1.1", "layer2.1"]),
    ("resnet", "{block: Bottleneck, after: output, pick: {first: 1, per: reduction}}", ["layer1.0", "layer2.0"]),
    ("resnet", "{block: Bottleneck, after: output, pick: {last: 1, per: parent}}", ["layer1.1", "layer2.1"]),
    ("resnet", "{block: Bottleneck, after: conv2, pick: {last: 1, per: parent}}", ["layer1.1.conv2", "layer2.1.conv2"]),
    ("resnet", "{block: Bottleneck, after: {op: conv2d}, pick: {last: 1, per: model}}", ["layer2.1.conv3"]),
    ("mobile", "{path: '*', after: {op: conv2d}, where: {channels: 4}, pick: last}", []),
    ("mobile", "{block: SqueezeExcitation, after: '*', pick: first}", ["features.1.conv.se.mul"]),
    ("convnext", "{path: '*', after: {op: conv2d}, pick: last}", ["stages.0.blocks.0.conv_dw"]),
    # pattern
    ("resnet", "{pattern: 'conv2d > batch_norm > relu'}", ["relu", *sorted(each("relu") + each("relu[2]"))]),
    ("resnet", "{pattern: 'conv2d[k=3] > *norm > act'}", each("relu[2]")),
    ("resnet", "{pattern: 'conv2d[k=3, s=2] > *norm > act', after: conv2d}", ["layer2.0.conv2"]),
    ("resnet", "{pattern: 'conv2d[k>=3] > norm', after: norm, path: layer2}", ["layer2.0.bn2", "layer2.1.bn2"]),
    ("resnet", "{pattern: 'conv2d[k=3] > batch_norm', before: batch_norm}", [f"{b}.conv2 -> {b}.bn2" for b in BLOCKS]),
    (
        "resnet",
        "{pattern: 'conv2d > batch_norm > add', before: add}",
        [f"{b}.bn3 -> {b}.add" for b in BLOCKS]
        + ["layer1.0.downsample -> layer1.0.add", "layer2.0.downsample -> layer2.0.add"],
    ),
    ("resnet", "{pattern: 'batch_norm > conv2d'}", []),
    ("resnet", "{pattern: 'relu > conv2d[k=1]'}", each("conv3")),
    ("resnet", "{pattern: 'add > relu'}", each("relu[3]")),
    ("resnet", "{pattern: 'conv2d[k=1] > norm > relu > conv2d[k=3]', after: 'conv2d[2]'}", each("conv2")),
    (
        "resnet",
        "{pattern: 'conv2d[k=1] > norm > relu > conv2d[k=3]', before: 'conv2d[1]'}",
        [f"{b}.x -> {b}.conv1" for b in BLOCKS],
    ),
    ("resnet", "{pattern: 'conv1d > batch_norm'}", []),
    ("mobile", "{pattern: 'conv2d[groups=depthwise] > norm', after: conv2d}", DEPTHWISE),
    ("mobile", "{pattern: 'relu6 > conv2d[g=depthwise]'}", DEPTHWISE),
    (
        "mobile",
        "{pattern: 'relu6 > conv2d[g=depthwise]', before: conv2d}",
        [f"features.{i}.conv.1.x -> features.{i}.conv.1.0" for i in "01"],
    ),
    ("yolo", "{pattern: 'cat > conv2d', after: cat}", ["model.1.cat", "model.2.cat"]),
    ("yolo", "{pattern: 'max_pool > max_pool'}", []),
    ("plain", "{pattern: 'conv2d > relu > conv2d'}", ["conv_b"]),
    ("plain", "{pattern: 'conv2d > mul'}", []),
    # structure: what a block is, whatever its class is called
    ("zorp", "{structure: main, after: output}", ["body.0", "body.1"]),
    ("zorp", "{structure: residual, after: output}", ["body.0"]),
    ("zorp", "{structure: [residual, main], after: output, exclude: body.1}", ["body.0"]),
    ("zorp", "{structure: decoder, after: output}", []),
    ("zorp", "{structure: main, after: output, path: body.1}", ["body.1"]),
    ("zorp", "{structure: residual, before: residual}", ["body.0.mul -> body.0.add"]),
    ("zorp", "{structure: main, before: residual}", ["body.0.mul -> body.0.add"]),
    ("zorp", "{structure: main, after: first}", ["body.0.first"]),
    ("zorp", "{structure: main, before: input}", ["stem -> body.0", "body.0 -> body.1"]),
    ("resnet", "{structure: residual, before: residual}", [f"{b}.bn3 -> {b}.add" for b in BLOCKS]),
    ("resnet", "{structure: main, after: output, pick: {last: 1, per: reduction}}", ["layer1.1", "layer2.1"]),
    ("yolo", "{structure: main, after: output}", ["model.1"]),
    ("yolo", "{structure: residual, before: residual}", ["model.1.m.0.cv2 -> model.1.m.0.add"]),
    # the model itself counts
    ("alone", "{structure: residual, before: residual}", ["norm -> add"]),
    ("around", "{structure: residual, before: residual}", ["block.conv -> block.add", "block -> add"]),
    ("around", "{block: Wrapper, before: residual}", ["block -> add"]),
    ("alone", "{block: Lone, before: residual}", ["norm -> add"]),
    # which: of each block's operations; in a structure rule neither those on the skip nor those in a gate
    ("zorp", "{structure: main, after: {op: conv, kernel: '!=1', which: last}}", ["body.0.wide"]),
    ("zorp", "{structure: main, after: {op: conv, kernel: '>1', which: last}}", ["body.0.middle"]),
    ("zorp", "{structure: main, after: {op: conv, which: first}}", ["body.0.first", "body.1.only"]),
    ("zorp", "{block: Zorp, after: {op: conv, kernel: 3, which: last}}", ["body.0.side"]),
    ("zorp", "{structure: main, after: {op: conv}}", [*ZORP, "body.1.only", "body.1.never"]),
    ("zorp", "{structure: main, after: conv}", [*ZORP, "body.1.only", "body.1.never"]),
    ("zorp", "{structure: main, before: {op: conv, kernel: '!=1', which: last}}", ["body.0.middle -> body.0.wide"]),
    ("zorp", "{structure: main, after: {op: conv, which: last}, exclude: '*.last'}", ["body.1.only"]),
    ("resnet", "{structure: main, after: {op: conv, kernel: '!=1', which: last}}", each("conv2")),
    ("resnet", "{structure: main, after: {op: conv, which: last}}", each("conv3")),
    ("resnet", "{path: 'layer?', after: {op: conv, which: last}}", ["layer1.1.conv3", "layer2.1.conv3"]),
    ("mobile", "{structure: main, after: {op: conv, kernel: '!=1', which: last}}", DEPTHWISE),
    ("yolo", "{structure: main, after: {op: conv, kernel: '!=1', which: last}}", ["model.1.m.1.cv2.conv"]),
    # one value is attended once, and a wrapper of a convolution has no kernel
    ("padded", "{block: BasicBlock, after: 'conv2{,.0,.conv}'}", ["unit.conv2"]),
    ("padded", "{block: BasicBlock, after: 'conv2{,.0,.conv}', where: {kernel: '>1'}}", ["unit.conv2.conv"]),
    ("padded", "{structure: main, after: {op: conv, kernel: '!=1', which: last}}", ["unit.conv2.conv"]),
    # several maps
    ("pyramid", "{block: Pyramid, after: output}", ["neck:0", "neck:p4"]),
    ("pyramid", "{block: Pyramid, after: 'output:p4'}", ["neck:p4"]),
    ("pyramid", "{block: Pyramid, after: 'output:1'}", []),
    ("pyramid", "{block: Smooth, after: 'output:0'}", []),
    ("pyramid", "{path: neck, after: output}", ["neck:0", "neck:p4"]),
    ("pyramid", "{path: 'neck:0', after: output}", ["neck:0"]),
    ("pyramid", "{path: 'neck:?4', after: output}", ["neck:p4"]),
    ("pyramid", "{path: neck, after: output, exclude: 'neck:0'}", ["neck:p4"]),
    ("pyramid", "{block: Pyramid, after: output, exclude: neck}", []),
    ("pyramid", "{block: Pyramid, after: output, where: {reduction: 4}}", ["neck:p4"]),
    ("pyramid", "{path: split, after: output}", []),
    ("pyramid", "{path: 'split.chunk', after: output}", ["split.chunk:0", "split.chunk:1"]),
    ("pyramid", "{block: Head, before: input}", ["neck:0 -> head", "neck:p4 -> head"]),
    ("pyramid", "{block: Head, before: input, exclude: 'neck:0'}", ["neck:p4 -> head"]),
    ("pyramid", "{structure: decoder, after: output}", ["neck.smooth"]),
    ("pyramid", "{structure: decoder, before: input}", ["neck.add -> neck.smooth"]),
]


@pytest.mark.parametrize(("network", "rule", "expected"), TABLE, ids=lambda value: str(value)[:90])
def test_the_rule_takes_exactly_these_paths(network, rule, expected):
    found = match(Recipe.from_dict({"rules": [yaml.safe_load(rule)]}), NETWORKS[network])

    taken = [f"{hit.path} -> {hit.reader}" if hit.reader else hit.path for hit in found.hits]
    order = [site.path for site in NETWORKS[network].sites]
    assert sorted(taken) == sorted(expected)
    assert [hit.path for hit in found.hits] == sorted((hit.path for hit in found.hits), key=order.index)
    assert all(miss.reason for miss in found.misses)
    assert not {(hit.path, hit.rule) for hit in found.hits if not hit.reader} & {(m.path, m.rule) for m in found.misses}


def test_hits_carry_position_reader_rule_and_lambda():
    recipe = Recipe.from_dict(
        {
            "e_lambda": 0.1,
            "rules": [
                {"block": "Bottleneck", "after": "conv2", "path": "layer1", "e_lambda": 0.5},
                {"block": "Bottleneck", "before": "bn3"},
            ],
        }
    )
    hits = match(recipe, NETWORKS["resnet"]).hits
    assert [(hit.path, hit.position, hit.reader, hit.rule, hit.e_lambda) for hit in hits[:2]] == [
        ("layer1.0.conv2", "after", None, 0, 0.5),
        ("layer1.0.conv3", "before", "layer1.0.bn3", 1, 0.1),
    ]


def test_the_first_rule_that_takes_a_site_owns_it():
    recipe = Recipe.from_dict(
        {
            "rules": [
                {"block": "Bottleneck", "after": "conv2", "path": "layer1.0"},
                {"block": "Bottleneck", "after": "conv2", "path": "layer1"},
                {"block": "Bottleneck", "before": "bn2", "path": "layer1"},
                {"block": "Bottleneck", "after": "output", "path": "layer1"},
                {"path": "layer1.?.relu*]", "after": "output"},
            ]
        }
    )
    found = match(recipe, NETWORKS["resnet"])
    assert [(hit.rule, hit.path) for hit in found.hits] == [
        (0, "layer1.0.conv2"),
        (4, "layer1.0.relu[2]"),
        (3, "layer1.0"),
        (1, "layer1.1.conv2"),
        (4, "layer1.1.relu[2]"),
        (3, "layer1.1"),
    ]
    owned = {(miss.rule, miss.path): miss.reason for miss in found.misses if "taken" in miss.reason}
    assert {key: re.findall(r"layer\S+(?=,)|rules\[\d\]", reason) for key, reason in owned.items()} == {
        (1, "layer1.0.conv2"): ["rules[0]"],
        (2, "layer1.0.bn2"): ["rules[0]"],
        (2, "layer1.1.bn2"): ["rules[1]"],
        (4, "layer1.0.relu[3]"): ["layer1.0", "rules[3]"],
        (4, "layer1.1.relu[3]"): ["layer1.1", "rules[3]"],
    }


def test_a_map_of_a_list_and_the_value_it_is_are_one():
    rules = [{"block": "Smooth", "after": "output"}, {"block": "Pyramid", "after": "output"}]
    found = match(Recipe.from_dict({"rules": rules}), NETWORKS["pyramid"])
    assert [(hit.path, hit.rule) for hit in found.hits] == [("neck.smooth", 0), ("neck:p4", 1)]
    assert [miss.path for miss in found.misses if "same value as neck.smooth" in miss.reason] == ["neck:0"]


def test_a_rule_picks_among_what_earlier_rules_left():
    recipe = Recipe(rules=[{"block": "Bottleneck", "after": "output", "pick": "last"}] * 2)
    assert [hit.path for hit in match(recipe, NETWORKS["resnet"]).hits] == ["layer2.0", "layer2.1"]
