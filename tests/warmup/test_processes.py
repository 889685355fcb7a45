"""Two processes, each with its own half of the data: both get what one process gets of the whole."""

import multiprocessing

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from simam_inject import injected
from simam_inject.errors import ModelError
from simam_inject.warmup import calibrate, set_strength
from tests.warmup.networks import PATHS, attended, images, plain


def work(rank, place, queue):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{place}", rank=rank, world_size=2)
    try:
        model, half = attended(), images(16)[rank::2]
        found = calibrate(model, half.split(8 if rank else 4))
        try:
            calibrate(model, [] if rank else [half])
            message = ""
        except ModelError as error:
            message = str(error)
        norm = model.norm
        statistics = norm.running_mean.tolist(), norm.running_var.tolist()
        queue.put((rank, [site.gain for site in found.sites], *statistics, message, is_plain_at_0(half)))
        dist.barrier()  # gloo aborts a process whose peer ends while it still talks
    finally:
        dist.destroy_process_group()


def is_plain_at_0(half):
    """Wrapped, at strength 0: outputs and gradients of the plain network, and not those at strength 1."""
    models = [DistributedDataParallel(one.train()) for one in (attended(), plain(), attended())]
    set_strength(models[0], 0.0)
    outputs = [model(half) for model in models]
    for output in outputs:
        output.square().sum().backward()
    gradients = [[parameter.grad for parameter in model.parameters()] for model in models]
    same = all(torch.equal(one, other) for one, other in zip(gradients[0], gradients[1], strict=True))
    return same and torch.equal(outputs[0], outputs[1]) and not torch.equal(outputs[0], outputs[2])


def test_two_processes_agree_and_equal_one(tmp_path):
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    workers = [context.Process(target=work, args=(rank, tmp_path / "store", queue)) for rank in range(2)]
    for worker in workers:
        worker.start()
    results = sorted(queue.get(timeout=120) for _ in workers)
    for worker in workers:
        worker.join(30)
        assert worker.exitcode == 0
    (_, *first, message, plain_here), (_, *second, other, plain_there) = results
    assert plain_here
    assert plain_there
    assert first == second
    assert message == "calibration failed in another process"
    assert other == "no batch to calibrate on: the loader is empty"
    whole = attended()
    calibrate(whole, images(16))
    expected = {site.path: site.gain for site in injected(whole)}
    assert first[0] == pytest.approx([expected[path] for path in PATHS], rel=0.02)
    assert first[0][0] == pytest.approx(expected[PATHS[0]], rel=1e-5)
    assert first[1] == pytest.approx(whole.norm.running_mean.tolist(), rel=1e-4, abs=1e-6)
    assert first[2] == pytest.approx(whole.norm.running_var.tolist(), rel=1e-4)
