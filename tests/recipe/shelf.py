"""What each shipped recipe is tested on, and the golden list of its sites.

`python -m tests.recipe.shelf` writes the list anew.
"""

from functools import cache
from pathlib import Path

import torch

from simam_inject.api import survey
from simam_inject.matching.match import match, why_not_attendable
from simam_inject.recipe import load_recipe
from tests.recipe import unets

GOLDEN = Path(__file__).with_name("golden_sites.txt")
YOLOS = (
    "yolov3", "yolov3-spp", "yolov5n", "yolov6n", "yolov8n", "yolov9t", "yolov10n", "yolo11n", "yolo12n", "yolo26n",
    "rtdetr-l", "yolov8-rtdetr",
)  # fmt: skip
EXAMPLES = {"UNet": (1, 3, 64, 64), "Unet": (1, 3, 64, 64), "BasicUNet": (1, 1, 16, 16, 16)}
RESIDUAL = ("resnet18", "mobilenet_v3_small", "timm:convnext_atto")
MODELS = {
    "paper": (
        "resnet18", "resnet50", "resnext50_32x4d", "mobilenet_v2", "timm:resnetv2_50", "timm:resnetv2_18",
        "timm:mobilenetv2_100",
    ),
    "block-output": (*RESIDUAL, "squeezenet1_0", "yolov8n", "yolov9t", "yolo12n"),
    "residual": (*RESIDUAL, "timm:resnetv2_50", "yolov8n"),
    "stage-end": (*RESIDUAL, "yolov8n", "yolo12n"),
    "every-conv": ("resnet18", "mobilenet_v3_small", "squeezenet1_0"),
    "convnext": ("convnext_tiny", "timm:convnext_atto", "timm:convnextv2_atto"),
    "mobile": ("mobilenet_v2", "mobilenet_v3_small", "mnasnet0_5", "timm:efficientnet_b0"),
    "unet": tuple(EXAMPLES),
    "yolo-backbone": YOLOS,
    "yolo-sppf": tuple(name for name in YOLOS if name not in ("yolov3", "rtdetr-l")),
    "yolo-neck": YOLOS,
    "yolo-detect": YOLOS,
    "yolo-downsample": YOLOS,
    "yolo-bottleneck": YOLOS,
    "yolo-concat": YOLOS,
}  # fmt: skip
"""YOLOv3 without spatial pooling and RT-DETR on HGNetV2 have no SPPF."""
QUICK = ("resnet18", "mobilenet_v2", "timm:convnext_atto", "yolov8n", *EXAMPLES)
"""The other models are for `pytest -m zoo`."""


def build(name):
    """A model with random weights, as small as its family allows."""
    torch.manual_seed(0)
    if name in EXAMPLES:
        return getattr(unets, name)().eval()
    if name.startswith("timm:"):
        import timm

        return timm.create_model(name.removeprefix("timm:")).eval()
    if name.startswith(("yolo", "rtdetr")):
        return build_yolo(name)
    import torchvision

    return torchvision.models.get_model(name, weights=None).eval()


def build_yolo(name):
    from ultralytics.nn.tasks import DetectionModel, RTDETRDetectionModel, yaml_model_load

    source = yaml_model_load(f"{name}.yaml")
    if name.startswith("yolov3"):
        source["width_multiple"] = 0.125  # the family has no small variant
    if "rtdetr" in name:
        source["scale"] = "n" if name.startswith("yolov8") else "l"
    return (RTDETRDetectionModel if "rtdetr" in name else DetectionModel)(source, verbose=False).eval()


def example(name):
    """Inputs for one forward: small, but large enough that no map is 1x1."""
    return torch.rand(EXAMPLES.get(name, (1, 3, 64, 64)))


@cache
def anatomy(name):
    return survey(build(name), example_inputs=example(name))


def sites(recipe, name):
    """The hits of a recipe that can be attended: `path`, or `path>reader` for those before a reader."""
    found = anatomy(name)
    hits = match(load_recipe(recipe), found).hits
    live = [hit for hit in hits if why_not_attendable(found.site_by_path[hit.path]) is None]
    return [hit.path + (f">{hit.reader}" if hit.reader else "") for hit in live]


def line(recipe, name):
    found = sites(recipe, name)
    return f"{recipe} {name} {len(found)}: {' '.join(found)}"


def golden():
    """The golden list: recipe and model -> its line."""
    lines = GOLDEN.read_text(encoding="utf-8").splitlines()
    return {tuple(text.split()[:2]): text for text in lines}


if __name__ == "__main__":
    GOLDEN.write_text(
        "".join(f"{line(recipe, name)}\n" for recipe, names in MODELS.items() for name in names), encoding="utf-8"
    )
