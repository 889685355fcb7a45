"""Each guard is needed: with the guard off, the loss happens."""

import copy
import subprocess
import sys
import warnings
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch
import yaml
from torch import nn
from ultralytics import YOLO
from ultralytics.models.yolo import world, yoloe
from ultralytics.nn import tasks

import simam_inject
from simam_inject import bypass, eject, inject, injected, plan, set_strength, verify
from simam_inject.editing.presence import presence_of
from simam_inject.errors import FileError, ModelError, VerificationError
from simam_inject.integrations import ultralytics as adapter
from simam_inject.integrations.ultralytics import networks, ramp, training
from simam_inject.integrations.ultralytics.record import names_of, read, recorded, write
from simam_inject.persist import LostRecipeWarning, load, save
from simam_inject.persist.record import Record
from simam_inject.zoo import build as build_zoo
from simam_inject.zoo import load_weights
from tests.messages import says
from tests.yolo.conftest import ROOT
from tests.yolo.drawing import draw_set
from tests.yolo.oracle import RECIPE, SITES, give_statistics, library_as_it_is, live_sites

SMALL = {
    "nc": 2,
    "backbone": [
        [-1, 1, "Conv", [16, 3, 2]],
        [-1, 1, "RepConv", [16, 16, 3]],
        [-1, 1, "RepVGGDW", [16]],
        [-1, 1, "Conv", [32, 3, 2]],
    ],
    "head": [[[3], 1, "Detect", ["nc"]]],
}
INSIDE_REPCONV = {"version": 1, "rules": [{"path": "model.1.conv1", "after": "output"}]}
INSIDE_REPVGG = {"version": 1, "rules": [{"path": "model.2.conv1", "after": "output"}]}
BETWEEN = {"version": 1, "rules": [{"path": ["model.0", "model.3"], "after": "conv"}]}


def build(table=SMALL, nc=None) -> nn.Module:
    return tasks.DetectionModel({**copy.deepcopy(table)}, ch=3, nc=nc, verbose=False)


@pytest.fixture
def image():
    return torch.rand(2, 3, 64, 64)


def injected_small(recipe, image) -> nn.Module:
    network = inject(build(), recipe, example_inputs=image[:1], verify=False)
    give_statistics(network, image)
    return network


def fused_difference(network, image) -> tuple[float, float]:
    """How far the fused network is from the unfused one, and how far the one without SimAM is."""
    with torch.no_grad():
        expected = network(image)[0]
        with bypass(network):
            plain = network(image)[0]
        fused = copy.deepcopy(network).fuse(verbose=False)
        return (fused(image)[0] - expected).abs().max().item(), (plain - expected).abs().max().item()


@pytest.mark.parametrize("recipe", [INSIDE_REPCONV, INSIDE_REPVGG, BETWEEN], ids=["RepConv", "RepVGGDW", "conv|bn"])
def test_fusion_keeps_a_site_that_folding_would_lose(recipe, image):
    network = injected_small(recipe, image)
    near, far = fused_difference(network, image)
    assert far > 1000 * near
    assert copy.deepcopy(network).fuse(verbose=False).is_fused()


def test_fusion_keeps_sites_of_parts_that_were_injected_by_themselves(image):
    """Also of a head, of which fusion deletes the branches that only training needs."""
    network = tasks.DetectionModel("yolov10n.yaml", verbose=False)
    give_statistics(network, image)
    head = network.model[-1]
    inject(network.model[1], {"rules": [{"pattern": "conv2d"}]}, example_inputs=torch.rand(1, 16, 32, 32), verify=False)
    maps = [torch.rand(1, channels, 8, 8) for channels in (64, 128, 256)]
    inject(head, {"rules": [{"path": "cv2.0.0*", "after": "conv"}]}, example_inputs=(maps,), verify=False)
    near, far = fused_difference(network, image)
    assert far > 1000 * near


def test_without_the_shield_a_norm_folded_across_a_site_is_an_error(image, monkeypatch):
    network = injected_small(BETWEEN, image)
    monkeypatch.setattr(networks, "must_stay", lambda module: False)
    with pytest.raises(ModelError, match="folded across"):
        fused_difference(network, image)


def test_two_threads_fuse_at_the_same_time(image):
    network = injected_small(BETWEEN, image)
    with torch.no_grad():
        expected = network(image)[0]
    with ThreadPoolExecutor(4) as pool:
        fused = list(pool.map(lambda _: copy.deepcopy(network).fuse(verbose=False)(image)[0].detach(), range(8)))
    assert all(torch.allclose(found, expected, atol=1e-4) for found in fused)
    assert len(injected(network)) == 2
    assert network.fuse(verbose=False) is network
    assert hasattr(network.model[0], "bn"), "the norm beside SimAM"


@pytest.fixture(scope="module")
def wide():
    """A stock net for 80 classes, whose head is wider than that of a net for two."""
    return tasks.DetectionModel("yolov8n.yaml", verbose=False)


@pytest.fixture(scope="module")
def record(wide):
    network = copy.deepcopy(wide)
    inject(network, RECIPE, example_inputs=torch.rand(1, 3, 64, 64), verify=False)
    return network.yaml


def sites_of(network) -> set[str]:
    return {site.path for site in injected(network)}


def transplants() -> bool:
    return "_remap_cls_by_names" in vars(tasks.BaseModel)


def test_weights_of_another_class_count_do_not_take_sites_away(wide, record):
    network = build(record, nc=2)
    assert sites_of(network) == set(SITES)
    network.load(wide, verbose=False)
    assert sites_of(network) == set(SITES)


@pytest.mark.skipif(not transplants(), reason="this release does not replace head modules on load")
def test_without_its_guard_load_takes_sites_away(wide, record):
    network = build(record, nc=2)
    tasks.BaseModel.load.__wrapped__(network, wide, verbose=False)
    assert sites_of(network) == set(SITES) - {"model.22.cv3.0.0"}


@pytest.mark.skipif(not transplants(), reason="this release does not replace head modules on load")
def test_a_plain_network_stays_plain_when_it_loads_an_injected_one(record):
    network = build({key: value for key, value in record.items() if key != "simam"}, nc=2)
    source = build(record, nc=80)
    unguarded = copy.deepcopy(network)
    tasks.BaseModel.load.__wrapped__(unguarded, source, verbose=False)
    assert live_sites(unguarded)
    with pytest.warns(LostRecipeWarning, match="8 sites that this DetectionModel lacks") as caught:
        network.load(weights=source, verbose=False)
    assert caught[0].filename == __file__
    assert not live_sites(network)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build(record, nc=2).load({"model": source}, verbose=False)


def test_a_network_with_some_of_the_sites_warns_about_the_others(record):
    network = build({key: value for key, value in record.items() if key != "simam"})
    inject(network, {"rules": [{"path": min(SITES), "after": "output"}]}, verify=False)
    with pytest.warns(LostRecipeWarning, match="7 sites that this DetectionModel lacks"):
        network.load(build(record), verbose=False)


def test_pretrained_weights_transfer_completely(wide, record):
    network = build(record)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    network.load(wide, verbose=False)
    state, source = network.state_dict(), wide.state_dict()
    assert len(state) == 355
    assert list(state) == list(source)
    assert all(torch.equal(state[key], source[key]) for key in source)
    assert not all(torch.equal(before[key], source[key]) for key in source)


def test_a_network_without_a_record_is_untouched(wide):
    torch.manual_seed(1)
    ours = tasks.DetectionModel("yolov8n.yaml", verbose=False)
    after = torch.rand(3)
    with library_as_it_is():
        torch.manual_seed(1)
        theirs = tasks.DetectionModel("yolov8n.yaml", verbose=False)
        assert torch.equal(after, torch.rand(3))
    assert ours.yaml == theirs.yaml
    assert [type(module) for module in ours.modules()] == [type(module) for module in theirs.modules()]
    assert all(torch.equal(a, b) for a, b in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True))


def test_a_subclass_of_a_network_comes_out_injected(record):
    class Mine(tasks.DetectionModel):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.extra = nn.Identity()

    network = Mine(copy.deepcopy(record), ch=1, nc=3, verbose=False)  # other channels and classes than it was made for
    assert sites_of(network) == set(SITES)


def test_a_rebuilt_network_knows_the_recipe_its_sites_came_from(record):
    rebuilt = build(record)
    assert presence_of(rebuilt).recipes == record["simam"]["recipes"]
    eject(rebuilt)
    assert presence_of(rebuilt) is None


@pytest.mark.parametrize("words", ["yolo-neck", {"version": 1, "rules": [{"block": "C2f", "after": "output"}]}])
def test_a_yaml_file_may_hold_a_recipe_in_the_users_words(wide, words):
    network = tasks.DetectionModel({**copy.deepcopy(wide.yaml), "simam": words}, verbose=False)
    assert {site.path for site in injected(network)} >= {"model.15", "model.18", "model.21"}
    assert isinstance(read(network), Record)


@pytest.mark.parametrize(
    ("imports", "built"),
    [
        ("from ultralytics import YOLO", "YOLO({!r})"),
        ("import simam_inject.integrations.ultralytics; from ultralytics import YOLO", "YOLO({!r})"),
        ("from simam_inject.zoo import build", "build({!r}).model"),
    ],
)
def test_a_new_process_reads_the_recipe_in_a_yaml_file(imports, built, tmp_path):
    file = tmp_path / "small.yaml"
    file.write_text(yaml.safe_dump({**SMALL, "simam": "after conv"}))
    code = f"{imports}; from simam_inject import injected; print(len(injected({built.format(str(file))})))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split()[-1] == "10"


def test_a_recipe_in_a_yaml_that_was_not_applied_is_not_ignored(image):
    yolo = YOLO("yolov8n.yaml")
    yolo.model.yaml = {**yolo.model.yaml, "simam": "yolo-neck"}  # as if built before the integration was imported
    for use in (inject, plan):
        with pytest.raises(
            ModelError, match=r"'simam' section .* was not applied.* before YOLO\(\.\.\.\), or call eject"
        ):
            use(yolo, "yolo-backbone", example_inputs=image)
    with pytest.raises(ModelError, match="was not applied"):
        yolo.train(data="none.yaml", epochs=1)
    assert not injected(yolo)
    assert len(injected(inject(eject(yolo), "yolo-backbone", example_inputs=image, verify=False))) == 4


def test_a_release_that_cannot_be_adapted_does_not_break_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, adapter.__name__, None)
    with pytest.warns(UserWarning, match="models of this release of ultralytics cannot be injected"):
        simam_inject._prepare()


HOSTILE = [
    ("/etc/passwd", "names a file"),
    (7, "is an int"),
    ({"format": 4, "recipes": [], "sites": []}, "a newer simam_inject"),
    ({"format": 3, "recipes": [7], "sites": []}, r"model.yaml\['simam'\] is not valid: recipes.0"),
    ({"format": 3, "recipes": [], "sites": ["x"]}, r"is not valid: sites.0"),
]


@pytest.mark.parametrize(("found", "message"), HOSTILE)
def test_a_foreign_record_is_refused(found, message):
    with pytest.raises(FileError, match=message):
        build({**SMALL, "simam": found})


CNOV = {"edit": {"kind": "output", "module": "model.0.cnov", "key": None}, "module": "model.0.cnov.simam"}


@pytest.mark.parametrize(
    ("site", "message"),
    [
        ({"module": "model.0.conv.simam(x) or open('ran', 'w')"}, r"sites\.0: .* is not the name of a SimAM"),
        (CNOV, r"has no module 'model\.0\.cnov'"),
    ],
)
def test_a_recorded_site_that_is_none_is_refused(record, site, message):
    """What else a record may hold is tested with files, tests/persist/test_bad_files.py."""
    table = copy.deepcopy(record)
    table["simam"]["sites"][0].update(site)
    with pytest.raises(FileError, match=message):
        tasks.DetectionModel(table, verbose=False)


@pytest.fixture(scope="module")
def one_yolo():
    return inject(YOLO("yolov8n.yaml"), RECIPE, example_inputs=torch.rand(1, 3, 64, 64), verify=False)


@pytest.fixture
def yolo(one_yolo):
    return copy.deepcopy(one_yolo)


def test_every_public_function_takes_the_yolo_object(yolo):
    image = torch.rand(1, 3, 64, 64)
    assert {site.path for site in injected(yolo)} == set(SITES)
    assert verify(yolo, example_inputs=image).ok
    with torch.no_grad(), bypass(yolo):
        plain = yolo.model.eval()(image)[0]
    assert not torch.equal(yolo.model(image)[0], plain)
    assert not plan(yolo, RECIPE, example_inputs=image).insertions
    with pytest.warns(UserWarning, match="already have SimAM"):
        inject(yolo, RECIPE, example_inputs=image)
    assert eject(yolo) is yolo
    assert torch.equal(yolo.model(image)[0], plain)


def test_eject_leaves_no_trace_on_the_yolo_object(yolo):
    eject(yolo)
    stock = YOLO("yolov8n.yaml")
    assert yolo.model.__dict__.keys() == stock.model.__dict__.keys()
    assert yolo.model.yaml == stock.model.yaml
    assert yolo.ckpt == stock.ckpt
    assert yolo.overrides == stock.overrides
    assert yolo.callbacks == stock.callbacks
    assert not live_sites(yolo.model)


def test_a_second_injection_is_recorded_with_the_first(yolo):
    inject(yolo, "after sppf", example_inputs=torch.rand(1, 3, 64, 64), verify=False)
    assert {site.path for site in read(yolo.model).sites} == {*SITES, "model.9"}
    assert len(read(yolo.model).recipes) == 2


def test_a_yolo_object_that_holds_a_file_is_refused(tmp_path):
    (tmp_path / "x.onnx").touch()
    yolo = YOLO(str(tmp_path / "x.onnx"), task="detect")
    with pytest.raises(ModelError, match=r"not a network; load its \.pt or \.yaml file"):
        injected(yolo)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (world.WorldTrainer, "yolov8n-worldv2"),
        (yoloe.YOLOETrainer, "yoloe-v8n"),
        (yoloe.YOLOESegTrainer, "yoloe-v8n-seg"),
    ],
)
def test_a_trainer_that_builds_the_file_of_a_yaml_keeps_the_sites(kind, name):
    rule = {"path": ["model.1.conv", "model.15"], "after": "output"}
    yolo = inject(YOLO(f"{name}.yaml"), {"rules": [rule]}, example_inputs=torch.rand(1, 3, 64, 64), verify=False)
    trainer = object.__new__(kind)
    data, task = {"channels": 3, "nc": 2}, SimpleNamespace(task=yolo.task)
    vars(trainer).update(data=data, args=task, callbacks=defaultdict(list))
    network = trainer.get_model(cfg=yolo.model.yaml, weights=yolo.model, verbose=False)
    assert sites_of(network) == set(rule["path"])
    assert {**yolo.model.yaml, "nc": 2} == network.yaml
    stock = trainer.get_model(cfg=YOLO(f"{name}.yaml").model.yaml, verbose=False)
    assert not sites_of(stock)


class Trainer:
    def __init__(self, model, ema):
        self.model = model
        self.ema = type("EMA", (), {"ema": ema})()


def test_the_tripwire_looks_at_model_and_ema_through_wrappers(yolo):
    tripwire = training.Tripwire(read(yolo.model)).on_pretrain_routine_end
    stock = copy.deepcopy(yolo.model)
    eject(stock)
    tripwire(Trainer(nn.ModuleList([stock, yolo.model]), yolo.model))  # a student beside its teacher
    with pytest.raises(VerificationError, match=r"model lacks 8 of 8 sites, first model\.0\.conv"):
        tripwire(Trainer(stock, yolo.model))
    with pytest.raises(VerificationError, match="EMA lacks 8 of 8"):
        tripwire(Trainer(yolo.model, stock))


def test_a_record_is_not_written_to_the_teacher_beside_a_student(yolo):
    teacher = eject(copy.deepcopy(yolo.model))
    training.write(nn.ModuleList([teacher, yolo.model]))
    assert (read(teacher), len(read(yolo.model).sites)) == (None, 8)


def test_a_checkpoint_with_a_record_and_without_its_sites_warns_on_load(tmp_path, yolo):
    file = str(tmp_path / "lost.pt")
    table = yolo.model.yaml
    eject(yolo)
    yolo.model.yaml = table
    yolo.save(file)
    with pytest.warns(UserWarning, match=r"lacks 8 of 8 sites, first model\.0\.conv"):
        YOLO(file)
    with library_as_it_is(), warnings.catch_warnings():
        warnings.simplefilter("error")
        YOLO(file)  # without the guard: nothing


def test_an_intact_checkpoint_loads_without_a_warning(tmp_path, yolo):
    yolo.save(str(tmp_path / "x.pt"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = YOLO(str(tmp_path / "x.pt"))
    assert {site.path for site in injected(again)} == set(SITES)


RESTRICTED = [False, True] if hasattr(tasks, "_SafeLoad") else [False]


@pytest.mark.parametrize("restricted", RESTRICTED)
def test_a_checkpoint_cannot_name_another_module_to_import(tmp_path, yolo, restricted):
    yolo.model.simam_integration.integration = "antigravity"
    torch.save({"model": yolo.model}, tmp_path / "hostile.pt")
    with pytest.raises(FileError, match="asks for the integration 'antigravity'"):
        tasks.torch_safe_load(str(tmp_path / "hostile.pt"), safe_only=restricted)
    assert "antigravity" not in sys.modules


def test_settings_are_recorded_and_rebuilt(image):
    network = inject(build(), BETWEEN, example_inputs=image[:1], verify=False, strength=0.25)
    network.model[3].conv.simam.gain = 1.5
    write(network)
    again = build(network.yaml)
    assert [(site.strength, site.gain) for site in injected(again)] == [(0.25, 1.0), (0.25, 1.5)]


def test_settings_are_those_of_the_network_after_load(image):
    """Modules that `load` takes from the source bring the source's settings."""
    source = inject(build(), BETWEEN, example_inputs=image[:1], verify=False)
    network = inject(build(), BETWEEN, example_inputs=image[:1], verify=False, strength=0.25)
    network.load(source, verbose=False)
    assert {site.strength for site in injected(network)} == {0.25}


def test_peers_of_simam_are_not_trained_as_simam(image):
    yolo = YOLO("yolov8n.yaml")
    inject(
        yolo,
        "after c2f",
        example_inputs=image[:1],
        verify=False,
        attention=lambda channels: nn.Conv2d(channels, channels, 1),
    )
    assert read(yolo.model) is None
    with pytest.raises(FileError, match=r"Conv2d.*SimAM only"):
        yolo.train(data="none.yaml")


def test_a_head_that_drops_a_branch_drops_its_sites(image):
    yolo = YOLO("yolov10n.yaml")
    branches = ["model.23.cv3.0.0", "model.23.one2one_cv3.0.0"]
    recipe = {"rules": [{"path": branches, "after": "output"}]}
    inject(yolo, recipe, example_inputs=image[:1], verify=False)
    fused = copy.deepcopy(yolo.model).eval().fuse(verbose=False)
    fused(image)
    (left,) = injected(fused)
    assert left.path in branches
    assert len(recorded(fused).sites) == 2
    assert len(injected(build(fused.yaml))) == 2


@pytest.mark.parametrize(
    ("target", "arguments", "message"),
    [
        (lambda yolo: yolo, {"epochs": 0}, "epochs must be a finite number above 0"),
        (lambda yolo: yolo, {"start": 1.5}, r"start must be a number from 0 .* to 1 .*; found"),
        *(
            (lambda yolo: yolo, {"epochs": epochs}, "epochs must be a finite number above 0")
            for epochs in (float("nan"), float("inf"), "3", None)
        ),
        (lambda yolo: yolo, {"start": "0"}, r"start must be a number from 0 .* to 1 .*; found"),
        (lambda yolo: yolo.model, {}, "expects the YOLO object"),
        (eject, {}, "no SimAM in this model"),
    ],
)
def test_a_ramp_takes_sensible_numbers_and_an_injected_yolo_object(yolo, target, arguments, message):
    with pytest.raises(ModelError, match=message):
        ramp(target(yolo), **arguments)


def test_a_hostile_recorded_ramp_is_refused(yolo):
    yolo.model.yaml["simam_ramp"] = {"epochs": "3", "start": 0.0}
    with pytest.raises(FileError, match="is not a ramp"):
        yolo.train(data="none.yaml")


QUICK = {"imgsz": 64, "workers": 0, "plots": False, "batch": 2, "epochs": 2}


class Stopped(Exception):
    """Raised inside a training."""


def network_to_train(yolo, folder, event="on_pretrain_routine_end") -> nn.Module:
    """The network of a training that stops at an event."""
    found = []

    def stop(trainer):
        found.append(trainer.model)
        raise Stopped

    yolo.clear_callback(event)
    yolo.add_callback(event, stop)
    data = folder / "set" / "data.yaml"
    with pytest.raises(Stopped):
        yolo.train(data=str(data if data.exists() else draw_set(data.parent)), project=str(folder), **QUICK)
    return found[0]


def test_a_training_that_does_not_begin_leaves_its_ramp_to_the_next(yolo):
    with warnings.catch_warnings(action="ignore"):  # of a ramp without gains
        ramp(yolo, epochs=2, start=0.5)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="does not exist"):  # the data set
            yolo.train(data="none.yaml")
        assert (vars(yolo)["simam_ramp"].epochs, vars(yolo)["simam_ramp"].start) == (2, 0.5)


def test_a_training_at_strength_0_without_a_ramp_warns(yolo):
    set_strength(yolo, 0.0)
    with pytest.warns(UserWarning, match="strength 0 and this training has no ramp") as caught:  # noqa: SIM117
        with pytest.raises(RuntimeError, match="does not exist"):
            yolo.train(data="none.yaml")
    assert caught[0].filename == __file__
    set_strength(yolo, 0.5)
    with warnings.catch_warnings(action="error"), pytest.raises(RuntimeError, match="does not exist"):
        yolo.train(data="none.yaml")


def test_a_training_that_ends_within_its_ramp_warns(yolo):
    def ends_at(strength):
        return lambda model, **_: set_strength(model, strength)

    for epochs in (None, 2):
        with warnings.catch_warnings(action="ignore"):  # of a ramp without gains
            vars(yolo).pop("simam_ramp", None) if epochs is None else ramp(yolo, epochs=epochs, start=0.1)
        with warnings.catch_warnings(action="error"):
            training._train(ends_at(0.5 if epochs is None else 1.0), yolo)
    with warnings.catch_warnings(action="ignore"):
        ramp(yolo, epochs=2)
    with pytest.warns(UserWarning, match=says("strength 0.5", "within the ramp", "start=0.5")):
        training._train(ends_at(0.5), yolo)


def test_a_training_that_stops_during_its_ramp_leaves_it_to_the_next(tmp_path):
    yolo = inject(YOLO("yolov8n.yaml"), "yolo-sppf", verify=False)
    with warnings.catch_warnings(action="ignore"):  # of a ramp without gains
        ramp(yolo, epochs=2)
    for _ in range(2):
        network = network_to_train(yolo, tmp_path, "on_train_batch_end")
        assert [site.strength for site in injected(network)] == [0.0]
        assert vars(yolo)["simam_ramp"].epochs == 2


def test_a_resumed_training_that_does_not_begin_leaves_the_recorded_ramp(yolo):
    yolo.model.yaml["simam_ramp"] = recorded_ramp = {"epochs": 2.0, "start": 0.5}
    with pytest.raises((RuntimeError, FileNotFoundError), match=r"does not exist|not found"):
        yolo.train(data="none.yaml", resume=True)
    assert yolo.model.yaml["simam_ramp"] == recorded_ramp
    with pytest.raises(RuntimeError, match="does not exist"):
        yolo.train(data="none.yaml")
    assert "simam_ramp" not in yolo.model.yaml, "another training does not go on with it"


@pytest.mark.parametrize("how", ["persist.load", "zoo.load_weights"])
def test_training_starts_from_weights_that_were_loaded(how, tmp_path):
    """Without a checkpoint, ultralytics builds a network anew when it trains."""
    source = inject(YOLO("yolov8n.yaml"), "yolo-sppf", verify=False)
    if how == "persist.load":
        yolo = load(save(source, tmp_path / "x.safetensors"), YOLO("yolov8n.yaml"))
    else:
        torch.save(source.model.state_dict(), tmp_path / "x.pth")
        yolo = inject(load_weights(build_zoo("yolov8n"), tmp_path / "x.pth").model, "yolo-sppf", verify=False)
    network = network_to_train(yolo, tmp_path)
    assert torch.equal(network.model[0].conv.weight, source.model.model[0].conv.weight)
    assert sites_of(network) == sites_of(source)


def test_a_part_that_was_injected_by_itself_is_trained(tmp_path):
    yolo = YOLO("yolov8n.yaml")
    inject(yolo.model.model[4], "after bottleneck", example_inputs=torch.rand(1, 64, 8, 8), verify=False)
    yolo.save(tmp_path / "x.pt")
    assert sites_of(network_to_train(yolo, tmp_path)) == {"model.4.m.0", "model.4.m.1"}
    code = f"from ultralytics import YOLO; import sys; YOLO({str(tmp_path / 'x.pt')!r}); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "simam_inject.integrations.ultralytics.training" in done.stdout, "armed, as in `yolo train model=x.pt`"


def test_sites_of_a_slice_of_the_layers_have_a_recipe_without_a_name():
    yolo = YOLO("yolov8n.yaml")
    inject(yolo.model.model[:3], "after c2f", example_inputs=torch.rand(1, 3, 64, 64), verify=False)
    assert names_of(write(yolo.model)) == "unnamed"


@pytest.mark.parametrize("version", ["8.3.253", "8.4.191", "9.0.0"])
def test_an_untested_release_warns(version):
    with pytest.warns(UserWarning, match=f"ultralytics {version} is outside the range"):
        adapter.warn_if_untested(version)
    adapter.warn_if_untested("8.4.0")  # does not


@pytest.mark.skipif(training.hands_network_to_workers(), reason="this release hands the network to its workers")
def test_workers_that_would_build_a_network_without_the_sites_are_not_started(yolo):
    from ultralytics.engine import trainer as engine

    with pytest.raises(ModelError, match="would train without SimAM: upgrade ultralytics"):
        engine.generate_ddp_command(Trainer(yolo.model, None))


def test_without_the_hooks_training_loses_everything_and_the_tripwire_says_so(workshop):
    workshop.run("without_hooks", *(["without_switches"] if training.rebuilds_from_name() else []))


@pytest.mark.skipif(not training.rebuilds_from_name(), reason="this release builds from model.yaml anyway")
def test_without_the_switches_a_yaml_built_net_trips_the_wire(workshop):
    workshop.run("without_switches")


def test_without_arming_on_load_training_from_a_file_loses_everything(workshop):
    workshop.run("without_arming")


def test_a_model_that_lost_recorded_sites_is_not_trained(yolo):
    table = yolo.model.yaml
    eject(yolo)
    yolo.model.yaml = table
    with pytest.raises(VerificationError, match=r"lacks 8 of 8 sites, first model\.0"):
        yolo.train(data="none.yaml", epochs=1)
    inject(yolo, RECIPE, verify=False)
    with pytest.raises(RuntimeError, match="does not exist"):  # the data set
        yolo.train(data="none.yaml", epochs=1)


def test_a_bypassed_model_is_not_trained():
    yolo = inject(YOLO("yolov8n.yaml"), "yolo-neck", verify=False)
    with bypass(yolo), pytest.raises(ModelError, match="is bypassed"):
        yolo.train(data="none.yaml", epochs=1)
    yolo.model.get_submodule(injected(yolo)[0].module).bypassed = True
    with pytest.raises(ModelError, match="end the bypass first"):
        yolo.train(data="none.yaml", epochs=1)


def test_a_model_that_was_ejected_is_not_trained_from_its_file_with_simam(tmp_path):
    file = tmp_path / "yolov8n-mine.yaml"
    file.write_text(yaml.safe_dump({**SMALL, "simam": "after conv"}))
    yolo = YOLO(str(file))
    assert injected(yolo)
    eject(yolo)
    if not training.rebuilds_from_name():
        pytest.skip("this release builds from the network's own yaml")
    with pytest.raises(ModelError, match=r"would build .*yolov8n-mine\.yaml anew, with SimAM"):
        yolo.train(data="none.yaml", epochs=1)


def with_gain(yolo):
    yolo.model.get_submodule(injected(yolo)[0].module).gain = 1.3


@pytest.mark.parametrize(
    "change",
    [eject, lambda yolo: set_strength(yolo, 0.5), lambda yolo: inject(yolo, "yolo-sppf", verify=False), with_gain],
)
def test_a_changed_model_does_not_resume_a_file_with_other_simam(change, tmp_path):
    inject(YOLO("yolov8n.yaml"), "yolo-neck", verify=False).save(tmp_path / "last.pt")
    yolo = YOLO(tmp_path / "last.pt")
    change(yolo)
    with pytest.raises(ModelError, match=r"not as in .*last\.pt, which would be resumed"):
        yolo.train(resume=True)
    with pytest.raises((RuntimeError, FileNotFoundError), match=r"does not exist|not found"):  # in 8.4.0 the file
        YOLO(tmp_path / "last.pt").train(resume=True, data="none.yaml")
