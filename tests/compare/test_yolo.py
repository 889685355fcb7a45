"""A YOLO by ultralytics' own trainer: takes half a minute, so it is marked."""

import pytest
import torch
from ultralytics import YOLO
from ultralytics.nn import tasks

from simam_inject import inject, injected
from simam_inject.compare import compare
from simam_inject.compare.setups import set_up
from simam_inject.compare.training import Training
from simam_inject.errors import CompareError, FileError, ModelError
from tests.messages import says
from tests.stripes import draw_stripes
from tests.yolo.drawing import draw_set

SHORT = Training(epochs=2, batch=4, size=64)


@pytest.mark.long
def test_a_yolo_from_scratch_and_from_weights(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = str(draw_set(tmp_path / "set"))
    YOLO("yolov8n.yaml").save("start.pt")
    for weights in (None, "start.pt"):
        setup = set_up("ultralytics:yolov8n", data, SHORT, "cpu", weights=weights)
        trained = []

        def train(model, seed, report, run=setup["train"], trained=trained):
            before = model.model[0].bn.running_mean.clone()
            value = run(model, seed, report)
            trained.append({type(module).__name__ for module in model.modules()} & {"SimAM", "EcaModule"})
            assert not torch.equal(before, model.model[0].bn.running_mean)
            return value

        comparison = compare(setup["make_model"], ["yolo-bottleneck"], train, ["eca"], 1, settings=setup["settings"])
        assert [cell.error for cell in comparison.cells] == [""] * 4
        assert trained == [set(), set(), {"SimAM"}, {"EcaModule"}]
        assert all([epoch for epoch, _ in cell.curve] == [1, 2] for cell in comparison.cells)
        assert len({cell.weights for cell in comparison.cells}) == 1


def test_a_checkpoint_as_the_model_keeps_its_weights_and_loses_its_simam(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    yolo = inject(YOLO("yolov8n.yaml"), "yolo-sppf", verify=False)
    yolo.save("start.pt")
    setup = set_up("start.pt", str(draw_set(tmp_path / "set")), SHORT, "cpu")
    made = setup["make_model"]()
    assert torch.equal(made.model[0].conv.weight, yolo.model.model[0].conv.weight.half().float())
    assert not injected(made)


def test_weights_are_loaded_into_the_model_that_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = str(draw_set(tmp_path / "set"))
    YOLO("yolov8n.yaml").save("n.pt")
    network = tasks.DetectionModel("yolov8n.yaml", nc=3, verbose=False)
    torch.save({"model": network}, "three.pt")
    made = set_up("yolov8n.yaml", data, SHORT, "cpu", weights="three.pt")["make_model"]()
    assert torch.equal(made.model[0].conv.weight, network.model[0].conv.weight)
    assert made.model[-1].nc == 2
    for weights, error, message in (
        ("n.pt", ModelError, says("n.pt does not fit", "yolov8s", "another model")),
        ("yolov8n", FileError, says("yolov8n", "No such file")),
    ):
        with pytest.raises(error, match=message):
            set_up("ultralytics:yolov8s", data, SHORT, "cpu", weights=weights)


@pytest.mark.parametrize(("model", "size"), [("yolov8n", 640), ("yolov8n-cls", 224)])
def test_the_usual_size_is_that_of_the_task(model, size, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for part in ("train", "val"):
        draw_stripes(tmp_path / "images" / part, 1, 16)
    data = tmp_path / "images" if model.endswith("cls") else draw_set(tmp_path / "set")
    setup = set_up(f"ultralytics:{model}", str(data), Training(size=0), "cpu")
    assert setup["settings"]["size"] == size
    assert setup["example_inputs"][0].shape == (1, 3, size, size)


def test_settings_that_ultralytics_does_not_take_are_refused(tmp_path):
    with pytest.raises(CompareError, match="--rate, --no-augment"):
        set_up("ultralytics:yolov8n", str(tmp_path), Training(rate=0.5, augment=False), "cpu")


def test_a_yolo_without_data(tmp_path):
    with pytest.raises(CompareError, match="is not a data set that ultralytics can read"):
        set_up("ultralytics:yolov8n", str(tmp_path / "none.yaml"), SHORT, "cpu")
