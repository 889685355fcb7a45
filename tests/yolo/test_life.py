"""The whole life of an injected YOLO, each stage in a process of its own; after the injection stock calls only.

The stages hold the assertions; each that gives an output compares it as a pair, see `oracle`.
"""

import inspect

import pytest
import ultralytics
from ultralytics.engine import trainer
from ultralytics.nn import tasks
from ultralytics.utils import DEFAULT_CFG_DICT, dist

from tests.yolo.conftest import ROOT

COMMAND = "from ultralytics.cfg import entrypoint; entrypoint()"
IN_A_FRESH_PROCESS = ("reload", "val", "predict", "export")
restricted_loading = pytest.mark.skipif(
    not hasattr(tasks, "_SafeLoad"), reason="ULTRALYTICS_SAFE_LOAD came after ultralytics 8.4.0"
)


several_sets = pytest.mark.skipif(
    "multitrain" not in inspect.getsource(trainer), reason="training on several data sets in turn came after 8.4.0"
)
stock_trains_again = pytest.mark.skipif(
    ultralytics.__version__ == "8.4.0", reason="8.4.0 itself raises when it tunes, and when a model is trained again"
)
network_for_workers = pytest.mark.skipif(
    "pickle" not in inspect.getsource(dist),
    reason="multi-GPU workers of this release load a file by its name; the launch is refused (test_guards)",
)


def test_training_from_a_checkpoint_keeps_every_site_in_model_and_ema(workshop):
    workshop.run("train")
    assert workshop.run(*IN_A_FRESH_PROCESS).keys() == {"best", "last"}


def test_initial_weights_from_yaml_are_those_of_a_plain_run(workshop):
    assert workshop.run("parity") == {"equal": 355}


@pytest.mark.parametrize("stage", ["val", "predict", "export"])
def test_fused_and_exported_forms_compute_what_the_unfused_network_does(workshop, stage):
    workshop.run(*IN_A_FRESH_PROCESS)
    workshop.run(stage)


def test_a_training_that_died_is_resumed_with_its_sites_and_its_ramp(workshop):
    workshop.run("interrupt")
    workshop.run("resume")


@pytest.mark.skipif("distill_model" not in DEFAULT_CFG_DICT, reason="distillation came after ultralytics 8.4.0")
def test_a_distillation_that_died_is_resumed_and_leaves_its_teacher_alone(workshop):
    workshop.run("distill")


def test_the_network_inside_a_yolo_object_may_be_injected(workshop):
    workshop.run("network")


def test_the_command_line_trains_a_saved_injected_net(workshop):
    model, data = f"model={workshop.folder / 'injected.pt'}", f"data={workshop.folder / 'set' / 'data.yaml'}"
    project = f"project={workshop.folder / 'runs'}"
    options = ("epochs=1", "imgsz=64", "batch=4", "workers=0", "device=cpu", "plots=False", project, "name=cli")
    printed = workshop.call("-c", COMMAND, "detect", "train", model, data, *options, YOLO_VERBOSE="true")
    assert "SimAM: 8 sites live, strength 1, recipe everywhere" in printed
    workshop.run("check_cli")


@pytest.mark.long
def test_the_command_line_resumes_an_injected_net(workshop):
    workshop.run("interrupt_again")
    last = workshop.folder / "runs" / "cli" / "weights" / "last.pt"
    printed = workshop.call("-c", COMMAND, "train", "resume", f"model={last}", YOLO_VERBOSE="true")
    assert "SimAM: 8 sites live, strength 1, recipe everywhere" in printed
    workshop.done.pop("check_cli", None)
    workshop.run("check_cli")


@restricted_loading
def test_restricted_loading_works_with_the_package_imported(workshop):
    workshop.run("safe_with_package", ULTRALYTICS_SAFE_LOAD="1")


@restricted_loading
def test_restricted_loading_refuses_without_the_package(workshop):
    workshop.run("safe_without_package", ULTRALYTICS_SAFE_LOAD="1")


@pytest.mark.long
def test_training_from_yaml_keeps_every_site(workshop):
    workshop.run("train_yaml")


@pytest.mark.long
def test_sites_in_the_network_itself_are_live_in_training(workshop):
    assert workshop.run("train_detect") == {"sites": 3}


@pytest.mark.long
@pytest.mark.parametrize(
    "stage",
    [
        pytest.param("tune", marks=stock_trains_again),
        pytest.param("two_sets", marks=several_sets),
        pytest.param("twice", marks=stock_trains_again),
        "distributed",
    ],
)
def test_other_ways_to_train(workshop, stage):
    workshop.run(stage)


@network_for_workers
@pytest.mark.long
def test_multi_gpu_workers_get_the_injected_network_or_are_not_started(workshop):
    workshop.run("ddp_file")


@pytest.mark.long
@pytest.mark.parametrize(
    "name",
    ["yolov8n-seg", "yolov8n-cls", "yolov8n-pose", "yolo11n-obb", "yolov8-rtdetr"],
)
def test_other_tasks_train_with_their_sites(workshop, name):
    workshop.call(str(ROOT / "tests" / "yolo" / "tasks.py"), name, str(workshop.folder))
