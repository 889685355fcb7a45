"""`simam-inject check best.pt` tells a live attention from a lost one, in a checkpoint and in the export beside it."""

import json
import re
import shutil
import warnings
from pathlib import Path

import pytest
from ultralytics import YOLO

from simam_inject import eject
from simam_inject.errors import FileError
from simam_inject.integrations.ultralytics.checking import check_checkpoint
from tests.yolo.oracle import SITES


def export(file) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's and ultralytics' own, about each other
        YOLO(str(file)).export(format="onnx", imgsz=64, simplify=False, device="cpu")


@pytest.fixture(scope="module")
def exported(workshop, tmp_path_factory):
    """A folder with an injected and a stock checkpoint, and the .onnx of each beside it."""
    folder = tmp_path_factory.mktemp("exported")
    for name in ("injected", "base"):
        shutil.copy(workshop.folder / f"{name}.pt", folder)
        export(folder / f"{name}.pt")
    return folder


def test_a_live_checkpoint_with_its_export(exported):
    checkup = check_checkpoint(exported / "injected.pt")
    assert checkup.faults == ()
    assert {site.path: site.e_lambda for site in checkup.sites} == SITES
    assert all((site.is_live, site.runs, site.runs_fused) == (True, 1, 1) for site in checkup.sites)
    assert checkup.exported == 8


def test_an_export_without_the_attention_is_a_fault(exported, tmp_path):
    shutil.copy(exported / "injected.pt", tmp_path / "best.pt")
    shutil.copy(exported / "base.onnx", tmp_path / "best.onnx")
    checkup = check_checkpoint(tmp_path / "best.pt")
    assert all(site.is_live for site in checkup.sites)
    (fault,) = checkup.faults
    assert re.search("best.onnx: .*lost 8 of 8", fault)
    assert checkup.exported == 0


def test_a_checkpoint_that_lost_its_sites_has_a_fault(workshop, tmp_path):
    yolo = YOLO(str(workshop.folder / "injected.pt"))
    table = yolo.model.yaml
    eject(yolo)
    yolo.model.yaml = table
    yolo.save(str(tmp_path / "lost.pt"))
    with pytest.warns(UserWarning, match="lacks 8 of 8 sites"):
        checkup = check_checkpoint(tmp_path / "lost.pt")
    (fault,) = checkup.faults
    assert re.search("8 of 8 sites .*missing.*model.0.conv", fault)


def test_a_checkpoint_that_would_lose_its_sites_has_a_fault(workshop, tmp_path):
    yolo = YOLO(str(workshop.folder / "injected.pt"))
    del yolo.model.yaml["simam"]
    yolo.save(str(tmp_path / "unrecorded.pt"))
    (fault,) = check_checkpoint(tmp_path / "unrecorded.pt").faults
    assert re.search("8 of 8 sites are not recorded in model.yaml.*training", fault)


@pytest.mark.parametrize(("name", "value"), [("strength", 0.0), ("bypassed", True)])
def test_a_checkpoint_whose_sites_change_nothing_has_a_fault(name, value, workshop, tmp_path):
    yolo = YOLO(str(workshop.folder / "injected.pt"))
    setattr(yolo.model.model[0].conv.simam, name, value)
    yolo.save(str(tmp_path / "off.pt"))
    (fault,) = check_checkpoint(tmp_path / "off.pt").faults
    assert re.search("1 of 8 sites .*strength 0, .*change nothing: model.0.conv", fault)


@pytest.mark.parametrize("kind", [Path, str])
@pytest.mark.parametrize(
    ("name", "message"),
    [("none.pt", "no such file"), ("text.pt", "cannot load"), ("none.txt", "no such file"), ("x.txt", r"ends in \.pt")],
)
def test_a_file_that_is_no_checkpoint(tmp_path, name, message, kind):
    for file in ("text.pt", "x.txt"):
        (tmp_path / file).write_text("hello")
    with pytest.raises(FileError, match=message):
        check_checkpoint(kind(tmp_path / name))


def test_the_command_says_what_is_missing_and_exits_1(workshop):
    printed = workshop.call("-m", "simam_inject", "check", "base.pt", code=1)
    assert "the network has no SimAM" in printed


def test_a_saved_injected_yolo_passes_the_check(workshop):
    place = ("--after", "c2f", "--exclude", "model.[1-9].*", "--input-size", "3x64x64")
    printed = workshop.call("-m", "simam_inject", "ultralytics:yolov8n", *place, "--output", "x.pt")
    assert "yolo train model=x.pt" in printed
    data = json.loads(workshop.call("-m", "simam_inject", "check", "x.pt", "--json"))
    assert data["ok"]
    assert data["recipe"] == "after c2f"
    assert len(data["sites"]) == 8


def test_a_checkpoint_is_for_a_yolo_only(workshop):
    printed = workshop.call("-m", "simam_inject", "resnet18", "--after", "basicblock", "--output", "y.pt", code=2)
    assert "resnet18" in printed
    assert ".pt is the checkpoint format of ultralytics" in " ".join(printed.split())
    assert not (workshop.folder / "y.pt").exists()
