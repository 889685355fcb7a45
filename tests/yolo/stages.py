"""The stages of a YOLO's life: `python stages.py STAGE,STAGE,... FOLDER`, one process for stages that may share one.

After the first injection no stage imports the package before its stock calls.
"""

import json
import re
import shutil
import sys
import traceback
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from ultralytics import YOLO

from tests.yolo.oracle import (
    KEPT_NORMS,
    RECIPE,
    SITES,
    check_pair,
    counting,
    give_statistics,
    library_as_it_is,
    live_sites,
)

torch.set_num_threads(1)
FOLDER = Path(sys.argv[2]) if len(sys.argv) > 2 else Path()
DATA = FOLDER / "set" / "data.yaml"
BEST = FOLDER / "runs" / "first" / "weights" / "best.pt"
COUNT = 8
BY_ACCIDENT = {"model.22.cv3.0.0.simam"}  # in a branch that ultralytics' own load() takes over from the source


def common(name: str, **more) -> dict:
    """Arguments of every training."""
    return {
        "data": str(DATA), "epochs": 2, "imgsz": 64, "batch": 4, "workers": 0, "device": "cpu", "plots": False,
        "project": str(FOLDER / "runs"), "name": name, "exist_ok": True, "verbose": False, "seed": 3, **more,
    }  # fmt: skip


def images() -> torch.Tensor:
    import numpy as np

    from tests.yolo.drawing import draw_image

    drawn = [draw_image(np.random.default_rng((7, index)))[0] for index in range(8)]
    return torch.from_numpy(np.stack(drawn)).permute(0, 3, 1, 2).float() / 255


def load(file: Path):
    return YOLO(str(file))


def build() -> dict:
    """A stock checkpoint and an injected one, with real BatchNorm statistics."""
    from simam_inject import inject, injected

    torch.manual_seed(0)
    yolo = YOLO("yolov8n.yaml")
    give_statistics(yolo.model, images())
    yolo.save(str(FOLDER / "base.pt"))
    keys = list(yolo.model.state_dict())
    assert inject(yolo, RECIPE, example_inputs=images()[:1]) is yolo
    assert {site.path for site in injected(yolo)} == set(SITES)
    assert list(yolo.model.state_dict()) == keys
    assert len(keys) == 355
    give_statistics(yolo.model, images())
    yolo.save(str(FOLDER / "injected.pt"))
    assert len(live_sites(yolo.model)) == COUNT
    return check_pair(yolo.model(images()), yolo.model, images())


def _train(yolo, count: int, **arguments) -> int:
    """Train, and see that every SimAM runs whenever the network does; how often that was."""
    with counting() as counter:
        yolo.add_callback("on_train_start", counter.restart)  # before it, a summary runs the unfinished network
        yolo.train(**arguments)
    assert counter.attentions == count * counter.networks > 0, (counter.attentions, counter.networks)
    return counter.networks


def _check_trained(yolo) -> dict:
    give_statistics(yolo.model, images())
    return check_pair(yolo.model(images()), yolo.model, images())


def train() -> dict:
    """From a stock .pt: injected, trained two epochs, validated, stripped."""
    from simam_inject import inject, injected

    yolo = inject(load(FOLDER / "base.pt"), RECIPE, example_inputs=images()[:1])
    keys = {"model." + key.removeprefix("model.") for key in yolo.model.state_dict()}
    seen = []

    def look(trainer) -> None:
        seen.append((len(live_sites(trainer.model)), len(live_sites(trainer.ema.ema))))
        assert set(trainer.model.state_dict()) == keys

    for event in (
        "on_pretrain_routine_end",
        "on_train_start",
        "on_train_epoch_end",
        "on_fit_epoch_end",
        "on_train_end",
    ):
        yolo.add_callback(event, look)
    assert _train(yolo, COUNT, **common("first")) >= 6
    assert len(seen) >= 7
    assert set(seen) == {(COUNT, COUNT)}, seen
    assert len(injected(yolo)) == COUNT
    return _check_trained(yolo)


def parity() -> dict:
    """From YAML: the initial weights are those of a plain run, bit for bit, and so are all random numbers after it."""
    from simam_inject import inject

    class EnoughError(Exception):
        pass

    found = {}
    for name in ("plain", "injected"):
        yolo = YOLO("yolov8n.yaml")
        if name == "injected":
            inject(yolo, RECIPE, verify=False)

        def look(trainer, name=name) -> None:
            state = {key: value.clone() for key, value in trainer.model.state_dict().items()}
            found[name] = state, len(live_sites(trainer.model)), len(live_sites(trainer.ema.ema)), torch.rand(3)
            raise EnoughError

        yolo.add_callback("on_pretrain_routine_end", look)
        with suppress(EnoughError):
            yolo.train(**common("parity"))
    (plain, none, _, drawn), (state, model, ema, drawn_again) = found["plain"], found["injected"]
    assert (none, model, ema) == (0, COUNT, COUNT)
    assert list(plain) == list(state)
    different = [key for key in plain if not torch.equal(plain[key], state[key])]
    assert not different, different[:3]
    assert torch.equal(drawn, drawn_again)
    return {"equal": len(plain)}


def train_yaml() -> dict:
    """From YAML: injected and trained."""
    from simam_inject import inject

    yolo = inject(YOLO("yolov8n.yaml"), RECIPE, example_inputs=images()[:1])
    _train(yolo, COUNT, **common("yaml", epochs=1))
    assert len(live_sites(yolo.model)) == COUNT
    return _check_trained(yolo)


def train_detect() -> dict:
    """The shipped recipe whose sites are in the network itself: the trainer calls it with a dict, which has a loss."""
    from simam_inject import inject, injected

    yolo = inject(YOLO("yolov8n.yaml"), "yolo-detect", example_inputs=images()[:1])
    count = len(injected(yolo))
    _train(yolo, count, **common("detect", epochs=1))
    assert len(live_sites(yolo.model)) == count
    return {"sites": count}


def reload() -> dict:
    """best.pt and last.pt in a process that imports only ultralytics."""
    pairs = {}
    for name in ("best", "last"):
        yolo = load(BEST.with_stem(name))
        assert yolo.ckpt["optimizer"] is None, "not stripped"
        with counting() as counter:
            found = yolo.model(images())
        assert counter.attentions == COUNT
        pairs[name] = check_pair(found, yolo.model, images())
    return pairs


def _fused(act) -> dict:
    """Run the library's own fused backend and compare what it gave with the oracle, call by call."""
    yolo = load(FOLDER / "injected.pt")
    with counting() as counter:
        act(yolo)
    assert counter.calls
    assert counter.attentions == COUNT * counter.networks
    assert {norm.removeprefix("model.") for norm in counter.norms} == {n.removeprefix("model.") for n in KEPT_NORMS}
    reference = load(FOLDER / "injected.pt").model
    return [check_pair(found, reference, image.float()) for image, found in counter.calls][-1]


def val() -> dict:
    """val(): fused."""
    return _fused(lambda yolo: yolo.val(data=str(DATA), imgsz=64, batch=4, workers=0, device="cpu", plots=False))


def predict() -> dict:
    """predict() on a real photograph: fused, and of another shape than any seen before."""
    from ultralytics.utils import ASSETS

    return _fused(lambda yolo: yolo.predict(ASSETS / "bus.jpg", imgsz=128, device="cpu", verbose=False))


def export() -> dict:
    """ONNX and TorchScript, run by other programs."""
    import onnxruntime

    image = images()[:1]
    yolo = load(FOLDER / "injected.pt")
    onnx = yolo.export(format="onnx", imgsz=64, simplify=True, device="cpu")
    script = yolo.export(format="torchscript", imgsz=64, device="cpu")
    assert len(live_sites(yolo.model)) == COUNT, "exporting changed the object"
    session = onnxruntime.InferenceSession(onnx, providers=["CPUExecutionProvider"])
    reference = load(FOLDER / "injected.pt").model
    return {
        "onnx": check_pair(session.run(None, {session.get_inputs()[0].name: image.numpy()}), reference, image),
        "torchscript": check_pair(torch.jit.load(script)(image), reference, image),
    }


RAMP = {"epochs": 2.0, "start": 0.2}
STRENGTHS = [0.2, 0.4, 0.6, 0.8, 1.0, 1.0]
"""Of each batch of three epochs, two batches each."""


def _strengths(trainer) -> list[float]:
    """Of the trainer's network and of its EMA, which must all be one."""
    modules = [*trainer.model.modules(), *trainer.ema.ema.modules()]
    return sorted({round(module.strength, 6) for module in modules if type(module).__name__ == "SimAM"})


def _train_one_epoch_and_die(yolo, **arguments) -> None:
    class CrashError(Exception):
        pass

    def crash(trainer) -> None:
        raise CrashError

    yolo.add_callback("on_model_save", crash)
    with pytest.raises(CrashError):
        yolo.train(**arguments)


def interrupt() -> dict:
    """A training with a ramp of the strength, that dies after its first epoch."""
    from simam_inject import inject
    from simam_inject.integrations.ultralytics import ramp

    yolo = inject(load(FOLDER / "base.pt"), RECIPE, example_inputs=images()[:1], verify=False, strength=0.0)
    with pytest.warns(UserWarning, match="ramp without gains"):
        ramp(yolo, **RAMP)
    seen = []
    yolo.add_callback("on_train_batch_end", lambda trainer: seen.append(_strengths(trainer)))
    _train_one_epoch_and_die(yolo, **common("resumed", epochs=3))
    assert seen == [[value] for value in STRENGTHS[:2]], seen
    return {}


def interrupt_again() -> dict:
    """Another, which the command line resumes."""
    _train_one_epoch_and_die(load(FOLDER / "injected.pt"), **common("cli", epochs=2))
    return {}


def resume() -> dict:
    """Its continuation, from last.pt."""
    yolo = load(FOLDER / "runs" / "resumed" / "weights" / "last.pt")
    seen, strengths = [], []
    yolo.add_callback(
        "on_train_epoch_end",
        lambda trainer: seen.append(
            (trainer.epoch, len(live_sites(trainer.model)), len(live_sites(trainer.ema.ema)), _strengths(trainer))
        ),
    )
    yolo.add_callback("on_train_batch_end", lambda trainer: strengths.append(_strengths(trainer)))
    yolo.train(resume=True)
    assert seen == [(1, COUNT, COUNT, [1.0]), (2, COUNT, COUNT, [1.0])], seen
    assert strengths == [[value] for value in STRENGTHS[2:]], strengths
    assert {site["strength"] for site in yolo.model.yaml["simam"]["sites"]} == {1.0}
    return check_pair(yolo.model(images()), yolo.model, images())


def distill() -> dict:
    """A student with a ramp and an injected teacher, whose strength stays; the training dies, and is resumed."""
    from simam_inject import eject, inject, injected
    from simam_inject.attention import SimAM
    from simam_inject.integrations.ultralytics import ramp
    from simam_inject.integrations.ultralytics.checking import check_checkpoint

    yolo = inject(load(FOLDER / "base.pt"), RECIPE, example_inputs=images()[:1], verify=False, strength=0.0)
    with pytest.warns(UserWarning, match="ramp without gains"):
        ramp(yolo, **RAMP)
    found = {"student_model": [], "teacher_model": []}

    def look(trainer) -> None:
        for name, strengths in found.items():
            parts = getattr(trainer.model, name).modules()
            strengths += {round(part.strength, 6) for part in parts if isinstance(part, SimAM)}

    yolo.add_callback("on_train_batch_end", look)
    _train_one_epoch_and_die(yolo, **common("distilled", epochs=2, distill_model=str(FOLDER / "injected.pt")))
    last = FOLDER / "runs" / "distilled" / "weights" / "last.pt"
    assert check_checkpoint(last).faults == ()
    again = load(last)
    assert len(injected(again)) == COUNT
    ejected = eject(load(last))
    assert "simam" not in ejected.model.yaml, "another training would build it with SimAM"
    again.add_callback("on_train_batch_end", look)
    again.train(resume=True)
    assert found == {"student_model": STRENGTHS[:4], "teacher_model": [1.0] * 4}, found
    assert {site.strength for site in injected(load(last))} == {1.0}
    assert len(injected(load(last))) == COUNT
    return check_pair(again.model(images()), again.model, images())


def network() -> dict:
    """The network inside the object is injected, not the object: it is trained all the same."""
    from simam_inject import inject, injected

    for name, yolo in (("pt", load(FOLDER / "base.pt")), ("yaml", YOLO("yolov8n.yaml"))):
        inject(yolo.model, RECIPE, example_inputs=images()[:1], verify=False, strength=0.75)
        yolo.model.model[2].simam.gain = 1.25
        seen = []
        yolo.add_callback("on_train_end", lambda trainer, seen=seen: seen.append(len(live_sites(trainer.ema.ema))))
        _train(yolo, COUNT, **common(f"network-{name}", epochs=1))
        assert seen == [COUNT], (name, seen)
        settings = {site.path: (site.strength, site.gain) for site in injected(yolo)}
        assert settings.pop("model.2") == (0.75, 1.25)
        assert set(settings.values()) == {(0.75, 1.0)}
    return {}


def check_cli() -> dict:
    """What `yolo train model=injected.pt` wrote."""
    yolo = load(FOLDER / "runs" / "cli" / "weights" / "best.pt")
    with counting() as counter:
        found = yolo.model(images())
    assert counter.attentions == COUNT
    return check_pair(found, yolo.model, images())


def tune() -> dict:
    """tune(): every trial is a process of its own."""
    yolo = load(FOLDER / "injected.pt")
    arguments = common("tuned", epochs=1)
    yolo.tune(iterations=1, **arguments)

    (file,) = (FOLDER / "runs" / "tuned").glob("**/best.pt")
    network = load(file).model
    return check_pair(network(images()), network, images())


def two_sets() -> dict:
    """Two data sets in turn."""
    from tests.yolo.drawing import draw_set

    shutil.rmtree(FOLDER / "other", ignore_errors=True)
    other = draw_set(FOLDER / "other", seed=1)
    yolo = load(FOLDER / "injected.pt")
    arguments = common("two", epochs=1)
    yolo.train(**{**arguments, "data": [str(DATA), str(other)]})
    files = sorted(FOLDER.glob("runs/multitrain/**/best.pt"))
    assert len(files) == 2, files
    pairs = {}
    for file in files:
        network = load(file).model
        pairs[file.parent.parent.name] = check_pair(network(images()), network, images())
    return pairs


def twice() -> dict:
    """train() two times on the same object, then eject it."""
    from simam_inject import eject, inject, injected

    yolo = inject(load(FOLDER / "base.pt"), RECIPE, example_inputs=images()[:1])
    for name in ("one", "again"):
        yolo.train(**common(name, epochs=1, val=False))
        assert len(injected(yolo)) == COUNT
    eject(yolo)
    yolo.train(**common("ejected", epochs=1, val=False))
    assert not live_sites(yolo.model)
    return {}


def _step(rank: int, folder: str, port: int) -> None:
    import os

    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    network = load(Path(folder) / "injected.pt").model.train()
    for parameter in network.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    wrapped = torch.nn.parallel.DistributedDataParallel(network, find_unused_parameters=True)
    batch = images()[rank * 4 : rank * 4 + 4]
    with counting() as counter:
        result = wrapped(batch)
    assert counter.attentions == len(live_sites(network)) == COUNT
    leaves = result.values() if isinstance(result, dict) else result
    sum(leaf.float().pow(2).mean() for leaf in leaves if isinstance(leaf, torch.Tensor)).backward()
    gradient = torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])
    others = [torch.zeros_like(gradient) for _ in range(2)]
    torch.distributed.all_gather(others, gradient)
    assert torch.equal(others[0], others[1])
    assert gradient.abs().max() > 0
    torch.distributed.destroy_process_group()


def distributed() -> dict:
    """A step of DistributedDataParallel in two processes: same gradients, every SimAM live in both."""
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(_step, args=(str(FOLDER), port), nprocs=2)
    return {}


def ddp_file() -> dict:
    """What a multi-GPU launch hands to its workers, run as one: no GPU, so one process on the CPU."""
    import subprocess

    from simam_inject import inject

    yolo = inject(load(FOLDER / "base.pt"), RECIPE, example_inputs=images()[:1])
    kept = {}

    class LaunchedError(Exception):
        pass

    def keep(trainer) -> None:
        from ultralytics.utils.dist import generate_ddp_file

        kept["file"] = generate_ddp_file(trainer)
        raise LaunchedError

    from ultralytics.engine.trainer import BaseTrainer

    original = BaseTrainer.train

    def launch(self) -> None:
        self.callbacks["on_pretrain_routine_start"] = []
        keep(self)

    BaseTrainer.train = launch
    with suppress(LaunchedError):
        yolo.train(**common("worker", epochs=1))
    BaseTrainer.train = original
    done = subprocess.run([sys.executable, kept["file"]], capture_output=True, text=True, check=False)
    Path(kept["file"]).unlink()
    assert done.returncode == 0, done.stderr[-2000:]

    assert len(live_sites(load(FOLDER / "runs" / "worker" / "weights" / "best.pt").model)) == COUNT
    return {}


def _train_to_the_end_or_not(yolo, name: str) -> tuple[str, int]:
    """What stopped a training, and how many batches it had run by then."""
    batches = []
    yolo.add_callback("on_train_batch_start", batches.append)
    try:
        yolo.train(**common(name, epochs=1, val=False))
    except Exception as error:
        return f"{type(error).__name__}: {error}", len(batches)
    return "", len(batches)


def without_hooks() -> dict:
    """Guard off: nothing builds networks with their sites. The tripwire catches it; without that it is silent."""
    from simam_inject import inject
    from simam_inject.integrations.ultralytics import training

    def injected_yolo():
        return inject(load(FOLDER / "base.pt"), RECIPE, example_inputs=images()[:1], verify=False)

    yolo, unwatched = injected_yolo(), injected_yolo()
    with library_as_it_is():
        message, batches = _train_to_the_end_or_not(yolo, "unhooked")
        assert batches == 0
        lost = rf"VerificationError: SimAM lost: the trainer's model lacks [78] of {COUNT} sites"
        assert re.match(lost, message), message
    with library_as_it_is(training.Model):
        message, batches = _train_to_the_end_or_not(unwatched, "unwatched")
        assert not message
        assert batches > 0
        assert live_sites(unwatched.model) <= BY_ACCIDENT
        assert "simam" in unwatched.model.yaml
    return {}


def without_switches() -> dict:
    """Guard off: a YAML-built object is trained from its file name."""
    from simam_inject import inject
    from simam_inject.integrations.ultralytics import training

    yolo = inject(YOLO("yolov8n.yaml"), RECIPE, example_inputs=images()[:1], verify=False)
    question, training.rebuilds_from_name = training.rebuilds_from_name, lambda: False
    try:
        message, batches = _train_to_the_end_or_not(yolo, "switchless")
    finally:
        training.rebuilds_from_name = question
    assert batches == 0
    assert message.startswith("VerificationError: SimAM lost"), message
    return {}


def without_arming() -> dict:
    """Guard off: loading an injected network does not make its library ready, so training from the file loses it."""
    models = sys.modules.pop("ultralytics.models")  # as in a program that imports this package before ultralytics
    from simam_inject.adapters import IntegrationMark

    sys.modules["ultralytics.models"] = models
    IntegrationMark.__setstate__ = lambda self, state: self.__dict__.update(state)
    yolo = load(FOLDER / "injected.pt")
    assert len(live_sites(yolo.model)) == COUNT
    assert not _train_to_the_end_or_not(yolo, "unarmed")[0]
    assert live_sites(yolo.model) <= BY_ACCIDENT
    return {}


def safe_with_package() -> dict:
    """Restricted loading, with the package imported."""
    from simam_inject import injected

    yolo = load(FOLDER / "injected.pt")
    assert len(injected(yolo)) == COUNT
    return check_pair(yolo.model(images()), yolo.model, images())


def safe_without_package() -> dict:
    """Restricted loading without it: refused, not loaded without its attention."""
    with pytest.raises(TypeError, match="outside the supported"):
        load(FOLDER / "injected.pt")
    return {}


if __name__ == "__main__":
    for name in sys.argv[1].split(","):
        try:
            found = {"result": globals()[name]()}
        except BaseException:
            found = {"error": traceback.format_exc()}
        print("STAGE", json.dumps({"stage": name, **found}), flush=True)
