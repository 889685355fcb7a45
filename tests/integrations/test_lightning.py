"""A LightningModule keeps its attention through fit, checkpoint, resume and load_from_checkpoint."""

import subprocess
import sys
import warnings
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

pytest.importorskip("lightning.pytorch")
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, WeightAveraging

from simam_inject import SimAM, bypass, eject, inject, injected, verify
from simam_inject.errors import FileError, ModelError, RecipeError
from simam_inject.integrations.lightning import SimAMCallback
from simam_inject.persist.record import KEY
from tests.integrations.lightning_net import RECIPE, SITES, Net
from tests.oracle import attend, hooked

pytestmark = pytest.mark.filterwarnings("ignore")
ROOT = Path(__file__).resolve().parents[2]
IMAGE = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(3))


def trainer(folder, *callbacks, epochs=1, **options) -> Trainer:
    return Trainer(
        default_root_dir=folder, max_epochs=epochs, callbacks=list(callbacks), logger=False, accelerator="cpu",
        enable_progress_bar=False, enable_model_summary=False, **options,
    )  # fmt: skip


def saved(folder, module, *callbacks, **options) -> str:
    """Fit, and the checkpoint of it."""
    here = trainer(folder, *callbacks, enable_checkpointing=False, **options)
    here.fit(module)
    here.save_checkpoint(folder / "last.ckpt")
    return str(folder / "last.ckpt")


@torch.no_grad()
def check_output(module, strength=1.0):
    """Close to hooks on a stock module of the same weights, and far from that module without them."""

    stock = Net()
    stock.load_state_dict(module.state_dict())
    stock.eval(), module.eval()
    plain, found = stock(IMAGE), module(IMAGE)
    with hooked(stock, SITES, 1e-4, partial(attend, strength=strength)):
        expected = stock(IMAGE)
    near, far = (found - expected).abs().max(), (plain - expected).abs().max()
    assert far > 1000 * near, (near, far)


def test_the_callback_injects_and_a_loaded_checkpoint_is_injected(tmp_path):
    module = Net()
    file = saved(tmp_path, module, SimAMCallback(RECIPE))
    assert {site.path for site in injected(module)} == set(SITES)
    again = Net.load_from_checkpoint(file)
    assert injected(again) == injected(module)
    check_output(again)
    assert list(again.state_dict()) == list(Net().state_dict())


@pytest.mark.parametrize("path", ["", "net"], ids=["module", "part"])
def test_a_module_that_was_injected_directly_is_kept_too(tmp_path, path):
    module = Net()
    inject(module.get_submodule(path), RECIPE, example_inputs=IMAGE, verify=False, strength=0.5)
    again = Net.load_from_checkpoint(saved(tmp_path, module))
    assert len(injected(again)) == len(SITES)
    assert verify(again.get_submodule(path)).ok
    check_output(again, strength=0.5)


@pytest.mark.parametrize("library", ["", "ultralytics.nn.modules"], ids=["own", "ultralytics"])
def test_a_pickled_module_is_kept_where_nothing_imports_this_package(tmp_path, library):
    """As in a worker that is spawned; also if its network has a part of another library with an integration."""
    module = Net()
    if library:
        module.net.concat = pytest.importorskip(library).Concat()
    inject(module.net, RECIPE, example_inputs=IMAGE, verify=False)
    torch.save(module, tmp_path / "module.pt")
    code = f"""
import torch
from tests.integrations.lightning_net import Net
from lightning.pytorch import Trainer
module = torch.load({str(tmp_path / "module.pt")!r}, weights_only=False)
options = dict(max_epochs=1, logger=False, enable_progress_bar=False, enable_checkpointing=False, accelerator="cpu")
trainer = Trainer(**options)
trainer.fit(module)
trainer.save_checkpoint({str(tmp_path / "x.ckpt")!r})
net = Net.load_from_checkpoint({str(tmp_path / "x.ckpt")!r}, weights_only=False)
print("FOUND", sum(type(part).__name__ == "SimAM" for part in net.modules()))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert "FOUND 2" in done.stdout, done.stderr
    eject(module)
    assert not any("simam_integration" in vars(part) for part in module.modules())


def test_the_other_name_of_the_library(tmp_path):
    """`pytorch_lightning` is a package of its own, with classes of its own."""
    pytest.importorskip("pytorch_lightning")
    code = f"""
import sys, types
import pytorch_lightning
sys.modules["lightning"] = None  # only the other one is installed
sys.modules["lightning.pytorch"] = types.SimpleNamespace(LightningModule=pytorch_lightning.LightningModule)
from tests.integrations.lightning_net import RECIPE, Net
del sys.modules["lightning.pytorch"]
import simam_inject.integrations.lightning as integration
from simam_inject import injected
assert issubclass(integration.SimAMCallback, pytorch_lightning.Callback)
net = Net()
options = dict(max_epochs=1, logger=False, enable_progress_bar=False, enable_checkpointing=False, accelerator="cpu")
trainer = pytorch_lightning.Trainer(callbacks=[integration.SimAMCallback(RECIPE, verify=False)], **options)
trainer.fit(net)
trainer.save_checkpoint({str(tmp_path / "x.ckpt")!r})
print("FOUND", len(injected(Net.load_from_checkpoint({str(tmp_path / "x.ckpt")!r}))))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert "FOUND 2" in done.stdout, done.stderr


@pytest.mark.parametrize("flag", ["", "import simam_inject.integrations.lightning"])
def test_a_process_without_the_package_restores_or_refuses(tmp_path, flag):
    file = saved(tmp_path, inject(Net(), RECIPE, example_inputs=IMAGE, verify=False))
    code = f"""
{flag}
from tests.integrations.lightning_net import Net
for weights_only in (True, False):
    try:
        net = Net.load_from_checkpoint({file!r}, weights_only=weights_only)
        print("FOUND", sum(type(part).__name__ == "SimAM" for part in net.modules()))
    except Exception as error:
        print("FOUND", "IntegrationMark" in str(error))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    found = [line for line in done.stdout.splitlines() if line.startswith("FOUND")]
    assert found == (["FOUND 2", "FOUND 2"] if flag else ["FOUND True", "FOUND 2"])


def test_the_ramp_follows_the_steps_through_a_resumed_training(tmp_path):
    seen = []

    class Look(WeightAveraging):
        def on_train_batch_start(self, trainer, pl_module, *args):
            super().on_train_batch_start(trainer, pl_module, *args)
            parts = [*pl_module.modules(), *self._average_model.modules()]
            strengths = {part.strength for part in parts if type(part).__name__ == "SimAM"}
            assert len(strengths) == 1
            seen.append(*strengths)

    file = saved(tmp_path, Net(), SimAMCallback(RECIPE, ramp_steps=8, start=0.2), Look())
    assert seen == pytest.approx([0.2, 0.3, 0.4, 0.5])
    assert [site.strength for site in injected(Net.load_from_checkpoint(file))] == pytest.approx([0.6, 0.6])
    module = Net()
    trainer(tmp_path, SimAMCallback(RECIPE, ramp_steps=8, start=0.2), Look(), epochs=3).fit(module, ckpt_path=file)
    assert seen == pytest.approx([0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.0, 1.0, 1.0])
    check_output(module)


@pytest.mark.parametrize(
    ("strategy", "before", "options", "loses"),
    [
        ("ddp_notebook", False, {}, True),
        ("ddp_spawn", True, {"ramp_steps": 2}, True),
        ("ddp_spawn", True, {}, False),
        ("ddp", False, {}, False),
    ],
)
def test_a_strategy_that_trains_a_copy_in_other_processes_warns(tmp_path, strategy, before, options, loses):
    module = inject(Net(), RECIPE) if before else Net()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        SimAMCallback(RECIPE, **options).setup(trainer(tmp_path, strategy=strategy, devices=2), module, "fit")
    assert [w.filename for w in caught if "load the checkpoint instead" in str(w.message)] == [__file__] * loses
    assert {site.path for site in injected(module)} == set(SITES)


def test_a_callback_with_a_network_of_its_own_is_left(tmp_path):
    class Distill(Callback):
        def __init__(self):
            self.teacher = nn.Sequential(nn.Conv2d(3, 8, 1), SimAM())

    distill = Distill()
    file = saved(tmp_path, Net(), SimAMCallback(RECIPE, ramp_steps=8), distill)
    assert {site.strength for site in injected(Net.load_from_checkpoint(file))} == {0.5}
    assert distill.teacher[1].strength == 1.0


def test_a_ramp_as_long_as_the_training_ends_at_strength_1(tmp_path):
    seen = []

    class Validated(Net):
        val_dataloader = Net.train_dataloader

        def validation_step(self, batch, _):
            seen.extend(site.strength for site in injected(self))

    file = saved(tmp_path, Validated(), SimAMCallback(RECIPE, ramp_steps=4), num_sanity_val_steps=0)
    assert set(seen) == {1.0}
    assert {site.strength for site in injected(Net.load_from_checkpoint(file))} == {1.0}


def test_gains_are_fitted_before_the_first_step_and_kept_through_a_resumed_training(tmp_path):
    seen = []

    class Look(WeightAveraging):
        def on_train_batch_end(self, trainer, pl_module, *args):
            super().on_train_batch_end(trainer, pl_module, *args)
            seen.append([[site.gain for site in injected(net)] for net in (pl_module, self._average_model)])

    def callback():
        return SimAMCallback(RECIPE, ramp_steps=8, calibrate_batches=2)

    with warnings.catch_warnings():
        warnings.filterwarnings("error", "a ramp without gains")
        file = saved(tmp_path, Net(), callback(), Look())
        gains, averaged = seen[0]
        assert averaged == gains
        assert min(gains) > 1.1
        module = Net()
        trainer(tmp_path, callback(), Look(), epochs=2).fit(module, ckpt_path=file)
    assert seen == [[gains, gains]] * 8
    assert [site.gain for site in injected(module)] == gains


@pytest.mark.parametrize("loop", ["validate", "test", "predict"])
def test_a_network_that_is_not_trained_runs_at_strength_1(tmp_path, loop):
    class Looped(Net):
        def test_step(self, batch, index):
            self(batch[0])

        validation_step = predict_step = test_step

    module, calls = Looped(), trainer(tmp_path, SimAMCallback(RECIPE, ramp_steps=8))
    getattr(calls, loop)(module, module.train_dataloader())
    check_output(module)


def test_norms_are_fitted_at_the_start_of_the_ramp(tmp_path):
    seen = []

    class Look(Callback):
        def on_train_batch_start(self, trainer, pl_module, *args):
            seen.extend(buffer.clone() for buffer in pl_module.buffers())

    module = inject(Net(), RECIPE, example_inputs=IMAGE, verify=False)
    before = [buffer.clone() for buffer in module.buffers()]
    callback = SimAMCallback(RECIPE, ramp_steps=8, calibrate_batches=1)
    trainer(tmp_path, callback, Look(), enable_checkpointing=False, limit_train_batches=1).fit(module)
    assert all(map(torch.equal, seen, before)), "at strength 0 they do not change"


class WithoutForward(Net):
    """Its step calls the network; as Lightning's own examples."""

    forward = LightningModule.forward

    def training_step(self, batch, _):
        return self.net(batch[0]).square().mean()


def test_the_network_of_a_module_without_forward_is_injected(tmp_path):
    module = WithoutForward()
    with pytest.raises(ModelError, match=r"has no forward and 2 parts with parameters .net, head.: inject"):
        trainer(tmp_path, SimAMCallback(RECIPE)).fit(module)
    with pytest.raises(ModelError, match=r"has no forward: use the part that has one .model.net or model.head"):
        inject(module, RECIPE)
    instance = WithoutForward()
    instance.forward = instance.net.forward
    trainer(tmp_path, SimAMCallback(RECIPE, example_inputs=IMAGE)).fit(instance)
    assert len(injected(instance)) == 2
    del module.head
    file = saved(tmp_path, module, SimAMCallback(RECIPE, example_inputs=IMAGE, ramp_steps=8, calibrate_batches=1))
    gains = [site.gain for site in injected(module)]
    assert min(gains) > 1.1
    again = WithoutForward.load_from_checkpoint(file, strict=False)
    assert [site.gain for site in injected(again)] == gains
    assert verify(again.net).ok
    again.net.blocks[1].conv = nn.Conv2d(8, 8, 3, padding=1)
    with pytest.raises(ModelError, match=r"blocks\.1\.conv was lost"):
        again.training_step([IMAGE], 0)


@pytest.mark.parametrize("gather", [list, lambda loaders: dict(enumerate(loaders))], ids=["list", "dict"])
def test_gains_are_not_fitted_on_several_loaders(tmp_path, gather):
    several = trainer(tmp_path, SimAMCallback(RECIPE, calibrate_batches=1), enable_checkpointing=False)
    with pytest.raises(ModelError, match=r"takes one loader of training data, not a (list|dict)"):
        several.fit(Net(), gather([Net().train_dataloader(), Net().train_dataloader()]))


def test_a_training_that_is_resumed_without_the_callback_has_its_sites(tmp_path):
    file = saved(tmp_path, Net(), SimAMCallback(RECIPE))
    module = Net()
    with pytest.warns(UserWarning, match="SimAMCallback"):  # Lightning's own
        trainer(tmp_path, epochs=2, enable_checkpointing=False).fit(module, ckpt_path=file)
    check_output(module)


def test_other_sites_than_the_checkpoints_warn(tmp_path):
    class Own(Net):
        def __init__(self, width: int = 8) -> None:
            super().__init__(width)
            rule = {"path": "net.stem", "after": "output"}
            inject(self, {"version": 1, "rules": [rule]}, verify=False, example_inputs=IMAGE)

    file = saved(tmp_path, inject(Net(), RECIPE, example_inputs=IMAGE, verify=False))
    with pytest.warns(UserWarning, match="at other sites than those of the checkpoint"):
        module = Own.load_from_checkpoint(file)
    assert [site.path for site in injected(module)] == ["net.stem"]


def test_a_checkpoint_of_a_bypassed_module_warns(tmp_path):
    module = inject(Net(), RECIPE, example_inputs=IMAGE, verify=False)
    with bypass(module), pytest.warns(UserWarning, match="SimAM is bypassed .* will run in what is loaded"):
        saved(tmp_path, module)


def test_a_module_without_attention_is_left_alone(tmp_path):
    module = Net()
    file = saved(tmp_path, module)
    assert KEY not in torch.load(file, weights_only=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert not injected(Net.load_from_checkpoint(file))
    saved(tmp_path, eject(inject(Net(), RECIPE, example_inputs=IMAGE, verify=False)))
    assert KEY not in torch.load(file, weights_only=False)


def test_peers_are_saved_by_their_weights(tmp_path):
    module = inject(Net(), RECIPE, example_inputs=IMAGE, verify=False, attention=lambda c: nn.Conv2d(c, c, 1))
    file = saved(tmp_path, module)
    with pytest.raises(RuntimeError, match="Unexpected key"):
        Net.load_from_checkpoint(file)


def test_simam_beside_peers_is_not_saved_and_warns(tmp_path):
    module, rule = Net(), {"rules": [{"path": "conv", "after": "output"}]}
    for block, attention in zip(module.net.blocks, [None, lambda c: nn.Conv2d(c, c, 1)], strict=True):
        inject(block, rule, example_inputs=torch.rand(2, 8, 6, 6), verify=False, attention=attention)
    with pytest.warns(UserWarning, match="no record of SimAM beside a Conv2d: inject the module that loads it"):
        file = saved(tmp_path, module)
    assert KEY not in torch.load(file, weights_only=False)


def test_the_best_checkpoint_of_a_fit_is_injected(tmp_path):
    keep = ModelCheckpoint(dirpath=tmp_path, filename="best")
    trainer(tmp_path, SimAMCallback(RECIPE, example_inputs=IMAGE), keep).fit(Net())
    check_output(Net.load_from_checkpoint(keep.best_model_path))


def test_a_hostile_record_is_refused(tmp_path):
    file = saved(tmp_path, inject(Net(), RECIPE, example_inputs=IMAGE, verify=False))
    checkpoint = torch.load(file, weights_only=False)
    checkpoint[KEY]["records"][""]["sites"][0]["module"] = "forward"
    torch.save(checkpoint, file)
    with pytest.raises(FileError, match="is not the name of a SimAM"):
        Net.load_from_checkpoint(file)


@pytest.mark.parametrize(
    "options",
    [
        {"ramp_steps": -1},
        {"ramp_steps": "3"},
        {"ramp_steps": 1.5},
        {"start": 2.0},
        {"start": None},
        {"calibrate_batches": -1},
        {"calibrate_batches": None},
    ],
)
def test_numbers_out_of_range(options):
    with pytest.raises(RecipeError, match=f"{next(iter(options))} must be .* from 0"):
        SimAMCallback(RECIPE, **options)


class Late(Net):
    """Its network is built by `configure_model`, which Lightning calls after `setup`."""

    def __init__(self):
        super().__init__()
        self.built, self.net = self.net, None

    def configure_model(self):
        if self.net is None:
            self.net = self.built


def test_a_network_that_is_built_by_configure_model(tmp_path):
    module = Late()
    saved(tmp_path, module, SimAMCallback(RECIPE))
    assert {site.path for site in injected(module)} == set(SITES)
    assert injected(module.net)
