"""Models by name: three libraries and the user's own factories with one function.

    resnet50                  torchvision, then timm, then ultralytics: the first that has the name
    torchvision:resnet50      classification, segmentation, detection, optical flow, video
    timm:resnet50.a1_in1k     with or without the tag of the weights
    ultralytics:yolov8n       built from the packaged YAML; `yolov8n.pt` loads a checkpoint, `mine.yaml` builds a file
    nets/mine.py:make_net     a function, class or model in a file
    package.module:make_net   the same in an importable module

Weights are random unless asked for: by default nothing is downloaded.
"""

from simam_inject.zoo.building import build
from simam_inject.zoo.model import ZooModel
from simam_inject.zoo.weights import load_weights

__all__ = ["ZooModel", "build", "load_weights"]
