"""`prove` on files that `yolo export` wrote: fused, and with the first of the network's outputs only."""

import pytest
import torch
from ultralytics import YOLO

from simam_inject import inject
from simam_inject.export import LostSiteError, prove
from tests.yolo.oracle import give_statistics

EXAMPLE = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
BATCH = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def exported(monkeypatch, folder, name, recipe, form="torchscript"):
    """An injected YOLO and the file that it writes."""
    monkeypatch.chdir(folder)  # where a network without a checkpoint is exported to
    yolo = YOLO(name)
    give_statistics(yolo.model, BATCH)
    if recipe is not None:
        inject(yolo, recipe, example_inputs=EXAMPLE)
    return yolo, folder / yolo.export(format=form, imgsz=64, verbose=False)


@pytest.mark.parametrize(
    ("name", "recipe", "form", "live"),
    [
        ("yolov8n-cls.yaml", "after c2f", "onnx", 4),
        ("yolov8n.yaml", "after c2f.cv2", "torchscript", 8),
        ("yolov8n.yaml", "yolo-concat", "torchscript", 8),  # the exporter puts another forward into every C2f
        ("yolov8n-seg.yaml", "after c2f", "torchscript", 8),
    ],
)
def test_what_yolo_exports_is_proven(monkeypatch, tmp_path, name, recipe, form, live):
    yolo, file = exported(monkeypatch, tmp_path, name, recipe, form)
    report = prove(file, yolo, example_inputs=EXAMPLE)
    assert report.live == live
    (comparison,) = report.comparisons
    assert comparison.effect > 100 * comparison.difference


@pytest.mark.parametrize("head", ["cv3", "one2one_cv3"])
def test_a_head_that_the_export_drops_is_not_asked_for(monkeypatch, tmp_path, head):
    recipe = {"rules": [{"block": "C2f", "after": "cv2"}, {"path": f"model.23.{head}.0.0", "after": "output"}]}
    yolo, file = exported(monkeypatch, tmp_path, "yolov10n.yaml", recipe)
    assert prove(file, yolo, example_inputs=EXAMPLE).live in (8, 9)


def test_a_yolo_export_without_simam_is_refused(monkeypatch, tmp_path):
    yolo, file = exported(monkeypatch, tmp_path, "yolov8n-cls.yaml", None)
    inject(yolo, "after c2f", example_inputs=EXAMPLE)
    with pytest.raises(LostSiteError, match="lost 4 of 4 SimAM sites"):
        prove(file, yolo, example_inputs=EXAMPLE)
