"""Training on the GPU: gradients of the oracle, mixed precision, memory, and what changes SimAM while it trains."""

import copy

import pytest
import torch
from timm.utils import ModelEmaV3
from torch import nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.checkpoint import checkpoint

from simam_inject import Ramp, SimAM, attention_maps, calibrate, inject, injected, set_strength, simam
from tests.attention.truth import plain_formula
from tests.gpu.networks import (
    LAMBDA,
    LIMITS,
    SMALL,
    SMALL_PLACES,
    assert_attends,
    assert_pair,
    gradients,
    make,
    small,
    stock_of,
)
from tests.oracle import attend, distance, hooked

pytestmark = pytest.mark.gpu


@pytest.fixture
def trio(device):
    """An injected network on the device, the stock one, and a batch."""
    model = small().to(device)
    x = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(3)).to(device)
    stock = stock_of(model)
    return inject(model, SMALL, example_inputs=x, verify=False, e_lambda=LAMBDA), stock, x


def loss_of(model, x):
    labels = torch.arange(len(x), device=x.device) % 5
    return nn.functional.cross_entropy(model(x).float(), labels)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("precision", [None, torch.float16, torch.bfloat16], ids=str)
def test_gradients(trio, device, precision, training):
    model, stock, x = trio
    found = []
    for one, places in ((model, ()), (stock, SMALL_PLACES), (stock, ())):
        one.train(training)
        with (
            hooked(one, places, LAMBDA),
            torch.autocast(device.type, precision or torch.bfloat16, enabled=precision is not None),
        ):
            found.append(gradients(one, loss_of(one, x)))
    # A rounding error before a ReLU or in a difference shows more in a gradient than in an output.
    assert_pair(*found, {None: 1e-4, torch.float16: 2e-2, torch.bfloat16: 5e-2}[precision])


def test_a_step_with_a_scaled_loss(trio, device):
    """float16 autocast and GradScaler, five steps, against the oracle that does the same."""
    model, stock, x = trio
    weights = []
    for one, places in ((model, ()), (copy.deepcopy(stock), SMALL_PLACES), (stock, ())):
        one.train()
        optimizer = torch.optim.SGD(one.parameters(), lr=0.1)
        scaler = torch.amp.GradScaler(device.type, init_scale=2.0**10)
        for _ in range(5):
            with hooked(one, places, LAMBDA), torch.autocast(device.type, torch.float16):
                loss = loss_of(one, x)
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            assert torch.isfinite(loss)
        assert scaler.get_scale() == 2.0**10, "a step was skipped"
        weights.append(torch.cat([parameter.detach().flatten() for parameter in one.parameters()]))
    start = torch.cat([parameter.detach().flatten() for parameter in small().to(device).parameters()])
    assert_pair(*(found - start for found in weights), 5e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("channels_last", [False, True])
def test_one_copy_of_each_map_is_kept_for_the_backward(device, dtype, channels_last):
    form = torch.channels_last if channels_last else torch.contiguous_format
    x = torch.randn(4, 16, 56, 56, device=device, dtype=dtype).to(memory_format=form)
    for function in (lambda t: simam(t, LAMBDA), lambda t: simam(t, LAMBDA, strength=0.3, gain=1.5)):
        kept = {}

        def pack(tensor, kept=kept):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            function(x.detach().requires_grad_())
        assert x.nbytes <= sum(kept.values()) <= 1.02 * x.nbytes


def test_memory_of_a_step_on_the_gpu(cuda):
    """Of the allocator itself: SimAM adds its output, and nothing that stays after the backward."""
    x = torch.randn(8, 64, 112, 112, device=cuda, requires_grad=True)
    simam(x, LAMBDA).sum().backward()  # compiles the kernels
    x.grad = None
    torch.cuda.synchronize()
    torch.cuda.empty_cache()  # so that blocks have the very sizes that are asked for
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    y = simam(x, LAMBDA)
    assert torch.cuda.memory_allocated() - before <= 1.1 * x.nbytes
    assert torch.cuda.max_memory_allocated() - before <= 1.1 * x.nbytes
    torch.autograd.grad(y, x, torch.ones_like(x))
    assert torch.cuda.max_memory_allocated() - before <= 3.2 * x.nbytes  # y, its gradient and dx
    del y
    assert torch.cuda.memory_allocated() == before


@pytest.mark.parametrize("channels_last", [False, True])
def test_double_backward(device, channels_last):
    form = torch.channels_last if channels_last else torch.contiguous_format
    x = torch.randn(2, 3, 6, 7, device=device).to(memory_format=form).requires_grad_()

    def second(y, x):
        first = torch.autograd.grad(y.pow(2).sum(), x, create_graph=True)[0]
        return torch.autograd.grad(first.pow(2).sum(), x)[0].double()

    wide = x.detach().double().requires_grad_()
    expected = second(plain_formula(wide, 0.1), wide)
    assert_pair(second(simam(x, 0.1), x), expected, second(wide * 1.0, wide), 1e-5)


def test_a_gradient_penalty_through_a_network(trio):
    model, stock, x = trio
    found = []
    for one, places in ((model, ()), (stock, SMALL_PLACES), (stock, ())):
        with hooked(one, places, LAMBDA):
            leaf = x.detach().requires_grad_()
            inner = torch.autograd.grad(loss_of(one, leaf), leaf, create_graph=True)[0]
            found.append(gradients(one, inner.square().sum() * 1e3 + loss_of(one, leaf)))
    assert_pair(*found, 1e-3)


def test_checkpointing_and_tensors_that_are_saved_on_the_cpu(trio, device):
    model, _, x = trio
    model.train()
    expected = gradients(model, loss_of(model, x))

    def in_segments(t):
        return model.head(checkpoint(model.blocks, model.stem(t), use_reentrant=False).mean((2, 3)))

    assert distance(gradients(model, loss_of(in_segments, x)), expected) < 1e-4
    with torch.autograd.graph.save_on_cpu(pin_memory=device.type == "cuda"):
        loss = loss_of(model, x)
        assert distance(gradients(model, loss), expected) < 1e-4


def test_strength_ramp_calibration_and_maps(device):
    model, recipe, places, _ = make()
    stock, batches = stock_of(model.to(device)), [torch.rand(8, 3, 64, 64) for _ in range(2)]
    x = batches[0].to(device)
    inject(model, recipe, example_inputs=x, e_lambda=LAMBDA, verify=False)
    with torch.no_grad():
        plain = stock(x)
        set_strength(model, 0.0)
        assert torch.equal(model(x), plain)
    set_strength(model, 0.25)
    assert_attends(model, stock, places, x, operator=lambda t, *a, **o: attend(t, *a, **o, strength=0.25), limit=2e-5)
    set_strength(model, 1.0)

    other = inject(stock_of(stock).cpu(), recipe, example_inputs=x.cpu(), e_lambda=LAMBDA, verify=False)
    found, expected = calibrate(model, batches), calibrate(other, batches)  # the batches are on the CPU
    assert [site.gain for site in found.sites] == pytest.approx([site.gain for site in expected.sites], rel=1e-4)
    assert min(site.gain for site in found.sites) > 1.1
    for name, buffer in model.named_buffers():
        torch.testing.assert_close(buffer.cpu(), other.get_buffer(name), rtol=1e-3, atol=1e-4)

    ours, theirs = attention_maps(model, x), attention_maps(other, x.cpu())
    assert list(ours) == list(theirs) == places
    for name, values in ours.items():
        assert values.device.type == device.type
        torch.testing.assert_close(values.cpu(), theirs[name], rtol=1e-3, atol=1e-3)

    ramp = Ramp(model, steps=4)
    assert [ramp.step() for _ in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert {site.strength for site in injected(model)} == {1.0}


@pytest.mark.parametrize("average", ["swa", "timm"])
def test_averages_of_the_weights(trio, device, average):
    model, stock, x = trio
    # On a GPU torch 2.11 cannot average the integer buffers of batch norms.
    ema = AveragedModel(model) if average == "swa" else ModelEmaV3(model, decay=0.5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        loss_of(model.train(), x).backward()
        optimizer.step()
        ema.update_parameters(model) if average == "swa" else ema.update(model)
    averaged = ema.module.eval()
    assert next(averaged.parameters()).device.type == device.type
    stock.load_state_dict(averaged.state_dict())
    assert_attends(averaged, stock.eval(), SMALL_PLACES, x)
    assert distance(averaged(x), model.eval()(x)) > 1e-4


def test_another_attention_of_its_own_weights_is_on_the_device(device):
    model = small().to(device, torch.float16)
    x = torch.randn(2, 3, 32, 32, device=device, dtype=torch.float16)
    inject(model, SMALL, example_inputs=x, attention=lambda channels: nn.Conv2d(channels, channels, 1))
    assert {(parameter.device.type, parameter.dtype) for parameter in model.parameters()} == {
        (device.type, torch.float16)
    }
    assert model(x).shape == (2, 5)


def test_synchronized_norms_in_train_mode(cuda, process_group):
    model = small()
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(model).to(cuda)
    x = torch.randn(8, 3, 32, 32, device=cuda)
    stock = small().to(cuda)
    inject(converted, SMALL, example_inputs=x, e_lambda=LAMBDA)
    assert sum(isinstance(module, nn.SyncBatchNorm) for module in converted.modules()) == 2
    found = []
    for one, places in ((converted, ()), (stock, SMALL_PLACES), (stock, ())):
        with hooked(one.train(), places, LAMBDA):
            found.append(gradients(one, loss_of(one, x)))
    assert_pair(*found, 1e-4)


@pytest.fixture
def process_group(device, tmp_path, monkeypatch):
    """Of this process alone."""
    import torch.distributed as dist

    is_gpu = device.type == "cuda"
    monkeypatch.setenv("NCCL_SOCKET_IFNAME" if is_gpu else "GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("nccl" if is_gpu else "gloo", f"file://{tmp_path}/group", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("wrapper", ["distributed", "data parallel"])
def test_wrappers(trio, device, process_group, wrapper):
    model, stock, x = trio
    model.train(), stock.train()
    with hooked(stock, SMALL_PLACES, LAMBDA):
        expected = gradients(stock, loss_of(stock, x))
    plain = gradients(stock, loss_of(stock, x))
    devices = [0] if device.type == "cuda" else None
    if wrapper == "distributed":
        wrapped = nn.parallel.DistributedDataParallel(model, device_ids=devices)
    else:
        wrapped = nn.DataParallel(model, device_ids=devices)
    loss_of(wrapped, x).backward()
    found = torch.cat([parameter.grad.double().flatten() for parameter in wrapped.parameters()])
    assert_pair(found, expected, plain, 1e-4)
    found = calibrate(model, x) if wrapper == "distributed" else None
    assert found is None or len(found.sites) == 1


def test_sharded_weights(device, process_group):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model, x = small().to(device), torch.randn(4, 3, 32, 32, device=device)
    stock = stock_of(model)
    inject(model, SMALL, example_inputs=x, e_lambda=LAMBDA)
    mesh = init_device_mesh(device.type, (1,))
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    assert_attends(model, stock, SMALL_PLACES, x)


def test_lightning(device, tmp_path):
    pytest.importorskip("lightning.pytorch")
    from lightning.pytorch import Trainer

    from simam_inject.integrations.lightning import SimAMCallback
    from tests.integrations.lightning_net import RECIPE, SITES, Net

    module = Net()
    trainer = Trainer(
        default_root_dir=tmp_path, fast_dev_run=3, accelerator="auto" if device.type == "cuda" else "cpu", devices=1,
        precision="16-mixed" if device.type == "cuda" else "bf16-mixed", enable_progress_bar=False,
        enable_model_summary=False, callbacks=[SimAMCallback(RECIPE, ramp_steps=3, calibrate_batches=2)],
    )  # fmt: skip
    trainer.fit(module)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    assert {site.path for site in injected(module)} == set(SITES)
    assert {site.strength for site in injected(module)} == {1.0}
    again = Net.load_from_checkpoint(tmp_path / "last.ckpt", map_location=device)
    assert injected(again) == injected(module)
    assert min(site.gain for site in injected(again)) > 1.1
    stock = Net()
    stock.load_state_dict(again.state_dict())
    x = torch.rand(4, 3, 16, 16, device=device)
    gains = {site.path: site.gain for site in injected(again)}
    with torch.no_grad():
        plain, found = stock.to(device).eval()(x), again.eval()(x)
        handles = [
            stock.get_submodule(path).register_forward_hook(lambda _m, _a, y, gain=gain: attend(y, 1e-4, gain=gain))
            for path, gain in gains.items()
        ]
        expected = stock(x)
    assert len(handles) == 2
    assert_pair(found, expected, plain, LIMITS[torch.float32])


def test_a_network_that_holds_simam_from_the_start_learns(device):
    """Written by hand, in float16 autocast: the loss falls."""
    torch.manual_seed(0)
    head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5)
    net = nn.Sequential(nn.Conv2d(3, 16, 3), SimAM(), nn.BatchNorm2d(16), nn.ReLU(), *head).to(device)
    x = torch.randn(20, 3, 16, 16, device=device)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
    scaler = torch.amp.GradScaler(device.type)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        with torch.autocast(device.type, torch.float16):
            loss = loss_of(net, x)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
