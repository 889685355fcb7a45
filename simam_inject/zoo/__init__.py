"""Models by name: three libraries and the user's own factories behind one call.

    resnet50                  torchvision, then timm, then ultralytics: the first that has the name
    torchvision:resnet50      classification, segmentation, detection, optical flow, video
    timm:resnet50.a1_in1k     with or without the tag of the weights
    ultralytics:yolov8n       built from the packaged YAML; `yolov8n.pt` loads a checkpoint
    nets/mine.py:make_net     a function, class or model in a file
    package.module:make_net   the same in an importable module

Weights are random unless asked for: no network is touched by default.
"""

from simam_inject.zoo.building import build as build
from simam_inject.zoo.records import ZooModel as ZooModel

__all__ = ["ZooModel", "build"]
