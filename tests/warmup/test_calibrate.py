"""`calibrate`: the gains of the formula, the statistics of the data, and a model left as it was on any mistake."""

import copy
import itertools
import re
from contextlib import contextmanager
from functools import partial

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.data import DataLoader, TensorDataset
from torchvision.ops.misc import FrozenBatchNorm2d

from simam_inject import attention_maps, bypass, inject, injected
from simam_inject.errors import ModelError
from simam_inject.warmup import calibrate, set_strength
from tests.messages import says
from tests.warmup.networks import NORMS, PATHS, Network, attended, fit_by_hand, forked, images, plain


def gains_of(model):
    return {site.path: site.gain for site in injected(model)}


def state_of(model):
    numbers = {site.path: (site.gain, site.strength) for site in injected(model)}
    return copy.deepcopy(model.state_dict()), numbers, [module.training for module in model.modules()]


@contextmanager
def refused(model, *facts, error=ModelError):
    """Inside, calibration fails with these facts, and leaves the model as it was."""
    before = state_of(model)
    with pytest.raises(error, match=says(*facts)) as caught:
        yield
    assert len(str(caught.value)) < 300
    tensors, numbers, modes = state_of(model)
    assert (numbers, modes) == before[1:]
    for name, tensor in tensors.items():
        torch.testing.assert_close(tensor, before[0][name], rtol=0, atol=0, equal_nan=True)


def distance(one, other):
    return ((one - other).norm() / other.norm()).item()


def test_the_default_device_does_not_matter():
    model, other, x = attended(), attended(), images()
    found = calibrate(model, x)
    with torch.device("meta"):
        assert calibrate(other, x) == found


def test_gains_are_the_least_squares_ones_in_the_order_of_execution():
    x = images()
    gains, output = fit_by_hand(plain(), x)
    model = attended()
    found = calibrate(model, x, norms=False)
    assert [site.path for site in found.sites] == list(PATHS)
    assert [site.gain for site in found.sites] == pytest.approx(gains, rel=1e-5)
    assert min(gains) > 1.1
    assert gains_of(model) == {site.path: site.gain for site in found.sites}
    assert distance(model(x), output.float()) < 1e-4
    # Measured on uncorrected inputs, the last gain would be another.
    assert list(gains_of(model)) != list(PATHS)


def test_errors_are_the_share_of_the_signal_before_and_after():
    model, x = attended(), images()
    seen = []
    handle = model.blocks[0].first.simam.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    first = calibrate(model, x, norms=False).sites[0]
    handle.remove()
    value = seen[0].double()
    attention = copy.deepcopy(model.blocks[0].first.simam)
    assert first.error_after == pytest.approx(distance(attention(value), value), rel=1e-4)
    attention.gain = 1.0
    assert first.error_before == pytest.approx(distance(attention(value), value), rel=1e-4)
    assert 0 < first.error_after < 0.7 * first.error_before
    assert first.kept == pytest.approx(1 - first.error_after**2)


def test_the_network_comes_back_to_what_it_was():
    x = images(32, seed=11)
    before = plain()(x)
    model = attended()
    cold = distance(model(x), before)
    calibrate(model, x, norms=False)
    with_gains = distance(model(x), before)
    calibrate(model, x)
    assert cold > 0.1
    assert with_gains < 0.6 * cold
    assert distance(model(x), before) < 0.6 * cold


def test_several_batches_give_the_gains_of_one():
    x = images(32)
    whole, parts = attended(), attended()
    calibrate(whole, x, norms=False)
    calibrate(parts, x.split(4), norms=False)
    assert gains_of(parts) == pytest.approx(gains_of(whole), rel=0.02)
    assert gains_of(parts)[PATHS[0]] == pytest.approx(gains_of(whole)[PATHS[0]], rel=1e-5)  # nothing before it


def test_norms_get_the_statistics_of_what_they_read():
    x = images(20)
    model = attended()
    found = calibrate(model, x.split(8), gains=False)  # 8, 8 and 4: samples count, not batches
    assert found.norms == len(NORMS)
    assert found.sites == ()
    with torch.no_grad():
        first = model.stem(x).transpose(0, 1).flatten(1).double()
    torch.testing.assert_close(model.norm.running_mean.double(), first.mean(1), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(model.norm.running_var.double(), first.var(1), rtol=1e-4, atol=1e-6)
    # On one batch every norm fits the very network that runs afterwards.
    calibrate(model, x, gains=False)
    for path in NORMS:
        norm = model.get_submodule(path)
        seen = []
        handle = norm.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0]))
        model(x)
        handle.remove()
        value = seen[0].transpose(0, 1).flatten(1)
        torch.testing.assert_close(norm.running_mean, value.mean(1), rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(norm.running_var, value.var(1), rtol=1e-3, atol=1e-5)


class OwnBatchNorm(nn.BatchNorm2d):
    """As HRNet and many others have one."""


@pytest.mark.parametrize("kind", [OwnBatchNorm, partial(nn.InstanceNorm2d, track_running_stats=True)])
def test_norms_derived_from_those_of_torch_get_what_train_mode_measures(kind):
    x = images(4)  # of 16x16: as many channels as lines
    model = nn.Sequential(nn.Conv2d(3, 16, 1), kind(16), nn.ReLU()).eval()
    calibrate(inject(model, "after conv2d", example_inputs=x), x)
    other = copy.deepcopy(model).train()
    other[1].reset_running_stats()
    other[1].momentum = 1.0
    other(x)
    torch.testing.assert_close(model[1].running_mean, other[1].running_mean)
    torch.testing.assert_close(model[1].running_var, other[1].running_var)


def test_an_instance_norm_of_maps_of_one_value_stays():
    norm = nn.InstanceNorm2d(4, track_running_stats=True)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.AdaptiveAvgPool2d(1), norm, nn.BatchNorm2d(4)).eval()
    assert calibrate(inject(model, "after conv2d", example_inputs=images(2)), images(4)).norms == 1
    assert not norm.running_mean.any()
    assert model[3].running_mean.all()


@pytest.mark.parametrize("size", [8, 6])
def test_an_instance_norm_may_read_single_samples(size):
    class Single(nn.Sequential):
        def forward(self, x):
            return torch.stack([self[1](sample) for sample in self[0](x)])

    norm = nn.InstanceNorm2d(8, track_running_stats=True)
    model = inject(Single(nn.Conv2d(3, 8, 1), norm), "after conv2d", example_inputs=images(2))
    x, read = images(3)[..., :size, :size], []
    calibrate(model, x, gains=False)
    norm.register_forward_pre_hook(lambda _, args: read.append(args[0].detach()))
    model.eval()(x)
    torch.testing.assert_close(norm.running_mean, torch.stack(read).mean((0, 2, 3)))


def test_a_norm_without_anything_to_measure_is_counted_as_unchanged():
    norm = nn.InstanceNorm2d(4, track_running_stats=True)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.AdaptiveAvgPool2d(1), norm)
    found = calibrate(inject(model, "after conv2d", example_inputs=images(2)), images(2), gains=False)
    assert (found.norms, found.frozen) == (0, 1)
    assert "more than one value" in found.note


def test_frozen_norms_stay_unless_asked():
    model = attended().train()
    for path in NORMS[1:3]:
        model.get_submodule(path).eval()
    model.blocks[1].norm_first = FrozenBatchNorm2d(8)
    before = copy.deepcopy(model.state_dict())
    found = calibrate(model, images())
    assert (found.norms, found.frozen) == (2, 3)
    assert "2 recomputed, 3 unchanged (frozen, not of PyTorch's classes, or not run)" in str(found)
    for path in NORMS:
        changed = not torch.equal(model.state_dict()[f"{path}.running_mean"], before[f"{path}.running_mean"])
        assert changed == (path in (NORMS[0], NORMS[4])), path
    assert calibrate(model, images(), frozen_norms=True).norms == len(NORMS)
    assert model.blocks[1].norm_first.running_mean.abs().max() > 0


@pytest.mark.parametrize(
    ("frozen", "mode", "count"),
    [("norm", "eval", 1), ("norm", "train", 0), ("", "eval", 0)],
    ids=["in eval mode", "not in train mode", "not where nothing trains, as in a checkpoint of ultralytics"],
)
def test_norms_that_do_not_train_while_others_do_are_frozen(frozen, mode, count):
    model = getattr(attended(), mode)()
    model.get_submodule(frozen).requires_grad_(False)
    assert calibrate(model, images()).frozen == count


def test_modes_momenta_and_random_numbers_are_left():
    model = attended().train()
    model.blocks.eval()
    modes = [module.training for module in model.modules()]
    momenta = [model.get_submodule(path).momentum for path in NORMS]
    random = torch.get_rng_state()
    calibrate(model, images())
    assert [module.training for module in model.modules()] == modes
    assert [model.get_submodule(path).momentum for path in NORMS] == momenta
    assert torch.equal(torch.get_rng_state(), random)
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


def test_what_a_forward_leaves_on_the_model_is_left_as_it_was():
    class Counting(Network):
        calls = 0

        def forward(self, x):
            self.calls += 1
            return super().forward(x)

    model = inject(Counting().eval(), "after Block.first", example_inputs=images(2), verify=False)
    seen = []
    model.stem.register_forward_hook(lambda *_: seen.append(1))
    assert calibrate(model, images()).norms == len(NORMS)
    assert model.calls == 0
    assert seen == [1, 1]  # hooks are for the user: once to fit gains, once for the norms


class HasAnEvalMode(Network):
    """`eval` changes more than `training`, and the forward computes gradients, as of an energy."""

    scale = 1.0

    def train(self, mode=True):
        self.scale = 1.0 if mode else 3.0
        return super().train(mode)

    def forward(self, x):
        with torch.enable_grad():
            return super().forward(x * self.scale)


def test_a_network_runs_as_its_own_eval_sets_it():
    def calibrated(in_train_mode):
        torch.manual_seed(0)
        model = inject(HasAnEvalMode().eval(), "after Block.first", example_inputs=images(2), verify=False)
        model.train(in_train_mode)
        calibrate(model, images())
        assert model.scale == (1.0 if in_train_mode else 3.0)
        return gains_of(model)

    assert calibrated(in_train_mode=True) == calibrated(in_train_mode=False)


def test_gains_do_not_depend_on_the_strength_and_norms_are_left_at_0():
    x = images()
    usual, silent = attended(), attended()
    calibrate(usual, x)
    set_strength(silent, 0.0)
    output = silent(x)
    found = calibrate(silent, x)
    assert gains_of(silent) == gains_of(usual)
    assert found.norms == 0
    assert "strength 0" in str(found)
    assert torch.equal(silent(x), output)
    assert torch.equal(output, plain()(x))


@pytest.mark.parametrize(
    "batches",
    [
        lambda x, y: x,
        lambda x, y: [x],
        lambda x, y: [(x, y)],
        lambda x, y: [[x, y]],
        lambda x, y: iter([x]),
        lambda x, y: ((part, None) for part in [x]),
        lambda x, y: [{"x": x, "label": y}],
        lambda x, y: [{"img": x, "cls": y}],
        lambda x, y: DataLoader(TensorDataset(x, y), batch_size=len(x)),
        lambda x, y: itertools.islice(DataLoader(TensorDataset(x.repeat(2, 1, 1, 1), y.repeat(2)), len(x)), 1),
        lambda x, y: x.double(),
    ],
)
def test_batches_of_every_form(batches):
    x = images()
    expected, model = attended(), attended()
    calibrate(expected, x)
    calibrate(model, batches(x, torch.arange(len(x))))
    assert gains_of(model) == gains_of(expected)
    torch.testing.assert_close(model.norm.running_var, expected.norm.running_var, rtol=0, atol=0)


@pytest.mark.parametrize(
    "batches",
    [
        lambda x: x,
        lambda x: [[x], [x]],
        lambda x: [{"x": x}],
        lambda x: itertools.islice(DataLoader(TensorDataset(x), len(x)), 1),
    ],
)
def test_a_forward_that_writes_to_its_input_gets_a_copy(batches):
    class InPlace(Network):
        def forward(self, x):
            return super().forward(x.sub_(0.5).div_(0.1))

    x, model, expected = images(), attended(), attended()
    model.__class__ = InPlace
    calibrate(model, batches(x))
    assert torch.equal(x, images())
    calibrate(expected, (x - 0.5) / 0.1)
    assert gains_of(model) == gains_of(expected)
    torch.testing.assert_close(model.norm.running_mean, expected.norm.running_mean, rtol=0, atol=0)
    assert distance(model.norm.running_mean, attended().norm.running_mean) > 0.1


class Converts(nn.Module):
    """Makes numbers that its convolution takes of its inputs, by itself."""

    def __init__(self, convert):
        super().__init__()
        self.convert = convert
        self.conv, self.norm, self.out = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)

    def forward(self, x, second=None):
        return self.out(self.norm(self.conv(self.convert(x, second))))


BYTES = (images().clamp(0, 1) * 255).to(torch.uint8)
TIMES = 1.7e9 + images().double().cumsum(0)
CONVERTS = {
    "bytes": (lambda x, _: (x.to(torch.float32) - 127) / 60, (BYTES, None), BYTES),
    "mask": (lambda x, mask: x * (mask % 3 == 2), (images(), BYTES), images()),
    "images and mask": (lambda x, mask: x * (mask % 3 == 2), (BYTES, BYTES.clone()), BYTES / 255),
    "times": (lambda x, t: x * (t - t.min()).float(), (images(), TIMES), images()),
    "half": (lambda x, _: (x / 1e5).bfloat16(), (images() * 1e5, None), images() * 1e5),
    "half and times": (lambda x, t: x * (t - t.min()).bfloat16(), (images(), TIMES), images().bfloat16()),
}


@pytest.mark.parametrize("name", CONVERTS)
def test_only_tensors_that_the_network_cannot_run_are_converted(name):
    convert, (x, second), seen = CONVERTS[name]
    torch.manual_seed(0)
    model = Converts(convert).bfloat16() if "half" in name else Converts(convert)
    inject(model, "after conv2d", example_inputs=(images().to(model.conv.weight), images()), verify=False)
    expected = copy.deepcopy(model)
    expected.convert = lambda x, _: x
    calibrate(expected, convert(seen, second))
    calibrate(model, [{"x": x, "second": second}])
    assert gains_of(model) == gains_of(expected)
    torch.testing.assert_close(model.norm.running_var, expected.norm.running_var, rtol=0, atol=0)
    assert distance(model.norm.running_var, torch.ones(4)) > 0.1


def test_no_bytes_are_converted_if_the_example_had_bytes():
    model = Converts(lambda x, second: x * (second == 2))
    inject(model, "after conv2d", example_inputs=(images(), BYTES % 3), verify=False)
    with refused(model, "cannot run on batch 0", "uint8"):
        calibrate(model, [{"second": BYTES % 3, "x": BYTES}])


def test_images_of_bytes_are_brought_to_1():
    x = (images().clamp(0, 1) * 255).to(torch.uint8)
    model, expected = attended(), attended()
    calibrate(model, x)
    calibrate(expected, x / 255)
    assert gains_of(model) == gains_of(expected)


def test_half_precision_gives_nearly_the_same_gains():
    model, half = attended(), attended().bfloat16()
    calibrate(model, images(), norms=False)
    calibrate(half, images(), norms=False)
    assert gains_of(half) == pytest.approx(gains_of(model), rel=0.02)
    assert min(gains_of(half).values()) > 1.1


def test_lists_of_images_as_detectors_take_them():
    class Detector(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = plain()

        def forward(self, images, targets=None):
            assert targets is None
            return self.network(torch.stack(images))

    x = images(4)
    model = inject(Detector(), "after Block.first", example_inputs=[*x], verify=False)
    found = calibrate(model, [([*x], [{"boxes": None}] * 4)], norms=False)
    expected = inject(plain(), "after Block.first", example_inputs=x, verify=False)
    assert [site.gain for site in found.sites] == [site.gain for site in calibrate(expected, x, norms=False).sites]


def test_a_site_that_runs_twice_has_one_gain_for_both():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(3, 8, 1)
            self.conv = nn.Conv2d(8, 8, 3, padding=1)

        def forward(self, x):
            return self.conv(self.conv(self.stem(x))).mean((2, 3))

    torch.manual_seed(0)
    model = Twice()
    inject(model, "after Twice.stem", example_inputs=images(), verify=False)
    sites = calibrate(model, images(), norms=False).sites
    assert len(sites) == 1


def broken():
    yield images()
    raise OSError("disk gone")


MISTAKES = {
    "empty loader": (list, ["the loader is empty"]),
    "empty batch": (lambda: [images(), images()[:0]], ["batch 1 is empty", "(0, 3, 16, 16) float32"]),
    "no iterable": (lambda: 3, ["batches is an int", "DataLoader"]),
    "another shape": (lambda: [images(), torch.rand(4, 5, 16, 16)], ["batch 1", "(4, 5, 16, 16) float32"]),
    "labels": (lambda: [(torch.arange(16), images())], ["batch 0", "(16,) int64", "labels"]),
    "NaN": (lambda: [images(), images() * torch.nan], ["blocks.0.first", "not finite"]),
    "paths": (lambda: ["a.jpg"], ["batch 0 is a str"]),
    "arrays": (lambda: [images().numpy()], ["batch 0 is a NumPy array", "torch.from_numpy"]),
    "dict": (lambda: [{"cls": torch.zeros(3)}], ["batch 0 is a dict of"]),
    "failing loader": (broken, ["disk gone"]),
}


@pytest.mark.parametrize("mistake", MISTAKES)
@pytest.mark.parametrize("gains", [True, False])
def test_a_mistake_has_one_message_and_the_model_is_as_before(mistake, gains):
    batches, facts = MISTAKES[mistake]
    model = attended()
    calibrate(model, images(4))
    facts = facts if gains else [fact.replace("blocks.0.first", "norm norm") for fact in facts]
    with refused(model, *facts, error=OSError if batches is broken else ModelError):
        calibrate(model, batches(), gains=gains)


def test_a_site_that_never_ran():
    class Auxiliary(Network):
        is_deployed = False

        def forward(self, x):
            y = super().forward(x)
            return y if self.is_deployed else (y, self.aux(x))

    torch.manual_seed(0)
    model = Auxiliary()
    model.aux = nn.Conv2d(3, 4, 3)
    rules = [{"path": "aux", "after": "output"}, {"path": "stem", "after": "output"}]
    inject(model, {"rules": rules}, example_inputs=images(2), verify=False)
    model.is_deployed = True
    with refused(model, "SimAM at aux did not run in eval mode", "exclude="):
        calibrate(model, images())


def test_a_bypassed_site_is_not_calibrated():
    model = attended()
    with bypass(model), refused(model, "end its bypass"):
        calibrate(model, images())


def test_code_compiled_in_place_does_not_run():
    model, expected = attended(), attended()
    compiled = CompileCounterWithBackend("eager")
    model.compile(backend=compiled)
    calibrate(model, images())
    calibrate(expected, images())
    assert gains_of(model) == gains_of(expected)
    assert compiled.frame_count == 0
    torch.testing.assert_close(model(images()), expected(images()))
    assert compiled.frame_count == 1


@pytest.mark.parametrize("look", [calibrate, attention_maps])
def test_a_scripted_part_is_run_in_eval_mode_only(look):
    part = torch.jit.script(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)))
    model = nn.Sequential(part, nn.Conv2d(8, 8, 3), nn.Flatten())
    inject(model.eval(), {"rules": [{"path": "1", "after": "output"}]}, example_inputs=images(2), verify=False)
    look(model, images())
    before = copy.deepcopy(dict(part.named_buffers()))
    with pytest.raises(ModelError, match=says("scripted", "train mode", "model.eval()")):
        look(model.train(), images())
    assert all(torch.equal(buffer, before[name]) for name, buffer in part.named_buffers())


def test_a_network_without_norms():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten())
    inject(model, {"rules": [{"path": "0", "after": "output"}]}, example_inputs=images(2), verify=False)
    found = calibrate(model, images())
    assert found.norms == 0
    assert "no norm of PyTorch's classes has" in str(found)
    with refused(model, "nothing to calibrate", "no norm of PyTorch's classes has"):
        calibrate(model, images(), gains=False)
    with refused(model, "gains and norms"):
        calibrate(model, images(), gains=False, norms=False)


ORDER = ("build", "inject", "calibrate", "EMA copy", "DistributedDataParallel", "torch.compile")


@pytest.mark.parametrize(
    ("build", "facts"),
    [
        (lambda: torch.compile(attended()), ["(torch.compile); calibrate before", ", ".join(ORDER)]),
        (lambda: nn.DataParallel(attended()), ["already wrapped (DataParallel)", ", ".join(ORDER)]),
        (plain, ["no SimAM in this model; inject"]),
    ],
)
def test_models_that_cannot_be_calibrated_say_what_to_do(build, facts):
    with pytest.raises(ModelError, match=says(*facts)):
        calibrate(build(), images())


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x, scale):
        return self.conv(x) * scale


def test_a_forward_of_several_arguments_takes_dicts_by_their_names():
    x, scale = images(2), torch.rand(2, 1, 1, 1)
    model = inject(Scaled(), "after conv2d", example_inputs=(x, scale))
    with pytest.raises(ModelError, match=says("batch 0", "give dicts by the names of the arguments")):
        calibrate(model, [(x, scale)])
    assert calibrate(model, [{"x": x, "scale": scale}], norms=False).sites[0].gain > 1


class Keywords(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

    def forward(self, **batch):
        return self.norm(input=self.conv(batch["img"])) * batch["labels"]


class Masked(Keywords):
    def forward(self, img, **more):
        return super().forward(img=img, labels=more["mask"])


class Optional(Keywords):
    def forward(self, img, labels=1, mask=1):
        return super().forward(img=img * mask, labels=labels)


def test_an_optional_argument_that_only_batches_have_is_given():
    mask, found = (images(2) > 0.5).float(), []
    for batch in ({"img": images(2), "mask": mask}, {"img": images(2) * mask}):
        model = inject(Optional(), "after conv2d", example_inputs={"img": images(2)})
        nn.init.constant_(model.conv.weight, 0.1)
        nn.init.zeros_(model.conv.bias)
        found.append(calibrate(model, [batch]).sites[0].gain)
    assert found[0] == found[1]


def test_as_few_tensors_as_possible_are_converted():
    class Times(Keywords):
        def forward(self, img, second):
            assert second.dtype == torch.float64
            return self.norm(self.conv(img)) * second.float()

    second = torch.arange(2.0, dtype=torch.float64).reshape(2, 1, 1, 1)
    model = inject(Times(), "after conv2d", example_inputs={"img": images(2), "second": second})
    assert calibrate(model, [{"img": (images(2) * 255).to(torch.uint8), "second": second}]).norms == 1


def test_trials_of_dtypes_do_not_fill_the_lists_of_hooks():
    model, calls = inject(nn.Sequential(nn.Conv2d(3, 4, 3)), "after conv2d", example_inputs=images(2)), []
    model.register_forward_pre_hook(lambda _, args: calls.append(args[0].dtype))
    calibrate(model, (images(2) * 255).to(torch.uint8), norms=False)
    assert calls == [torch.float32]


class NeedsLabels(Keywords):
    def forward(self, img, labels):
        return super().forward(img=img, labels=labels)


class TakesLabels(Keywords):
    def forward(self, img, labels=None, **options):
        assert labels is None
        return self.norm(self.conv(img), **options)


@pytest.mark.parametrize(
    ("kind", "example", "more"),
    [
        (Keywords, "labels", {"index": 1}),
        (Masked, "mask", {"index": 1}),
        (NeedsLabels, "labels", {"index": 1}),
        (TakesLabels, "img", {"labels": 1, "target": 1}),
    ],
)
def test_dicts_are_taken_as_the_forward_takes_them(kind, example, more):
    batch = {example: torch.rand(2, 1, 1, 1), "img": images(2)}
    model = inject(kind(), "after conv2d", example_inputs=batch)
    assert calibrate(model, [{**batch, **more}]).norms == 1
    assert model.norm.running_mean.all()


def test_a_dict_without_an_argument_has_the_error_of_the_forward_alone():
    model = inject(TakesLabels(), "after conv2d", example_inputs=images(2))
    with refused(model, "batch 0, (2, 1, 1, 1) float32: TypeError", "missing 1 required positional argument: 'img'"):
        calibrate(model, [{"scale": torch.rand(2, 1, 1, 1)}])


def expanded():
    return torch.zeros(1).expand(8)


def made_in_inference_mode():
    with torch.inference_mode():
        return torch.zeros(8)


@pytest.mark.parametrize("name", ["running_mean", "running_var"])
@pytest.mark.parametrize("make", [expanded, made_in_inference_mode])
def test_no_norm_is_changed_where_one_cannot_be(make, name):
    model = attended()
    setattr(model.get_submodule(NORMS[1]), name, make())
    with refused(model, f"the norm {NORMS[1]} cannot get new statistics"):
        calibrate(model, images())


@pytest.mark.parametrize("shape", [(), (3, 1, 1), (1, 3, 1, 1)])
def test_statistics_that_are_not_per_channel_stay(shape):
    scaling = ChannelsLastNorm(shape)
    model = nn.Sequential(scaling, nn.Conv2d(3, 4, 1), FrozenBatchNorm2d(4))
    inject(model, "after conv2d", example_inputs=images(2))
    found = calibrate(model, images(), frozen_norms=True)
    assert (found.norms, found.frozen) == (1, 1)
    assert not scaling.running_mean.any()


def test_the_report_is_a_table_of_sites():
    text = str(calibrate(attended(), images()))
    row = r"blocks\.\d\.\w+ +1\.\d{3} +0\.\d{3} +0\.\d{3} +\d+\.\d%\n"
    assert re.fullmatch(rf"site +gain +error before +after +kept\n({row}){{4}}norms: 5 recomputed", text)


def test_the_progress_bar_is_shown_in_a_terminal_only(monkeypatch, capsys):
    calibrate(attended(), images())
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    calibrate(attended(), images())
    out, err = capsys.readouterr()
    assert out == ""
    assert "fitting gains" in err
    assert "100%" in err


class ChannelsLastNorm(nn.Module):
    """A norm of N, H, W, C with frozen statistics."""

    def __init__(self, width):
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(width))
        self.register_buffer("running_var", torch.ones(width))

    def forward(self, x):
        return (x - self.running_mean) / self.running_var.sqrt()


class ChannelsLastNetwork(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 1)
        self.norm = ChannelsLastNorm(width)

    def forward(self, x):
        return self.norm(self.stem(x).permute(0, 2, 3, 1)).mean((1, 2))


@pytest.mark.parametrize("width", [8, 16])  # of maps of 16x16: their height is mistaken for their channels
def test_norms_whose_channels_are_elsewhere_are_refused(width):
    model = inject(
        ChannelsLastNetwork(width), {"rules": [{"path": "stem", "after": "output"}]}, example_inputs=images(2)
    )
    with refused(model, "norm has", "dimension"):
        calibrate(model, images(), frozen_norms=True)
    assert calibrate(model, images()).frozen == 1


class Permuting(nn.BatchNorm2d):
    def forward(self, x):
        return super().forward(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def test_norms_derived_from_those_of_torch_that_permute_are_refused():
    network = ChannelsLastNetwork(16)
    network.norm = Permuting(16)
    model = inject(network.eval(), {"rules": [{"path": "stem", "after": "output"}]}, example_inputs=images(2))
    with refused(model, "norm has 16 channels", "(20, 16, 16, 16)", "pass norms=False"):
        calibrate(model, images(20))


@pytest.mark.parametrize("batches", [torch.rand(1, 3, 1, 1), [torch.rand(1, 3, 1, 1)]])
def test_one_value_per_channel_is_refused(batches):
    model = attended()
    with refused(model, "one value per channel"):
        calibrate(model, batches, gains=False)
    calibrate(model, torch.rand(2, 3, 1, 1), gains=False)


def test_two_sites_of_one_value_have_two_names():
    assert [site.path for site in calibrate(forked(), images()).sites] == ["a before b", "a before c"]
