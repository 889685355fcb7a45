"""What each of the two processes does. Started once by torchrun for all scenarios; every finding is printed as JSON.

The reference is the same step in one process: the loss is a mean over samples, so gradients averaged over two halves
of a batch are the gradients of the whole.
"""

import json
import os
import sys
import traceback
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.parallel import DistributedDataParallel

sys.path.insert(0, str(Path(__file__).parents[2]))

from simam_inject import eject, inject, injected
from simam_inject.errors import InjectError
from tests.networks import Network

RECIPE = "after basicblock.conv2"
SCENARIOS = {}


def scenario(function):
    SCENARIOS[function.__name__] = function
    return function


def batch():
    noise = torch.Generator().manual_seed(7)
    return torch.randn(4, 3, 32, 32, generator=noise), torch.randint(5, (4,), generator=noise)


def network(seed=0):
    """With batch statistics of its own, and frozen: a half batch has others than the whole."""
    torch.manual_seed(seed)
    model = Network()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    return inject(model, RECIPE, example_inputs=torch.zeros(1, 3, 32, 32), verify=False).eval()


def step(model, images, labels):
    loss = nn.functional.cross_entropy(model(images), labels)
    loss.backward()
    return loss


def halves():
    images, labels = batch()
    half = slice(2 * dist.get_rank(), 2 * dist.get_rank() + 2)
    return images[half], labels[half]


def full(tensor):
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def gradient_difference(model, reference):
    """Largest difference over the largest gradient."""
    ours = [full(parameter.grad) for parameter in model.parameters()]
    theirs = [parameter.grad for parameter in reference.parameters()]
    scale = max(gradient.abs().max() for gradient in theirs)
    return max(((a - b).abs().max() / scale).item() for a, b in zip(ours, theirs, strict=True))


def sharded(seed=0):
    model = network(seed)
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def reference_gradients():
    reference = network()
    step(reference, *batch())
    return reference


@scenario
def data_parallel(folder):
    model = DistributedDataParallel(network())
    step(model, *halves())
    return {
        "difference": gradient_difference(model, reference_gradients()),
        "sites": [site.path for site in injected(model.module)],
        "keys": list(model.module.state_dict()) == list(Network().state_dict()),
    }


@scenario
def fully_sharded(folder):
    model = sharded()
    step(model, *halves())
    return {
        "difference": gradient_difference(model, reference_gradients()),
        "sites": [site.path for site in injected(model)],
        "keys": list(model.state_dict()) == list(Network().state_dict()),
        "classes": [type(module).__name__ for module in (model, *model.blocks)],
    }


@scenario
def sharded_train_mode_runs_and_learns(folder):
    model = sharded().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for _ in range(3):
        losses.append(step(model, *halves()).item())
        optimizer.step()
        optimizer.zero_grad()
    return {"losses": losses}


@scenario
def checkpoint(folder):
    """Saved by two processes from shards, loaded into shards of other values, and into one plain network."""
    model = sharded(seed=0)
    dcp.save({"model": get_model_state_dict(model)}, checkpoint_id=folder / "checkpoint")
    other = sharded(seed=1)
    images, _ = batch()
    with torch.no_grad():
        wanted, before = model(images), other(images)
        state = {"model": get_model_state_dict(other)}
        dcp.load(state, checkpoint_id=folder / "checkpoint")
        set_model_state_dict(other, state["model"])
        after = other(images)
        plain = Network().eval()
        state = {"model": plain.state_dict()}
        dcp.load(state, checkpoint_id=folder / "checkpoint")
        plain.load_state_dict(state["model"], strict=True)
        single = inject(plain, RECIPE, example_inputs=torch.zeros(1, 3, 32, 32), verify=False)(images)
    return {
        "differed": not torch.equal(wanted, before),
        "equal": torch.equal(wanted, after),
        "single": torch.allclose(wanted, single, rtol=1e-6, atol=1e-6),
    }


@scenario
def data_parallel_checkpoint(folder):
    model = DistributedDataParallel(network(seed=0))
    dcp.save({"model": get_model_state_dict(model)}, checkpoint_id=folder / "ddp")
    other = DistributedDataParallel(network(seed=0))
    nn.init.zeros_(other.module.head.weight)
    state = {"model": get_model_state_dict(other)}
    dcp.load(state, checkpoint_id=folder / "ddp")
    set_model_state_dict(other, state["model"])
    images, _ = batch()
    with torch.no_grad():
        return {"equal": torch.equal(model(images), other(images))}


@scenario
def wrapped_models_are_refused(folder):
    messages = {}
    for name, model in [("ddp", DistributedDataParallel(network())), ("fsdp", sharded())]:
        try:
            inject(model, "after basicblock")
        except InjectError as error:
            messages[name] = str(error)
    return {"messages": messages, "still_sharded": isinstance(model, FSDPModule), "sites": len(injected(model))}


@scenario
def ejected_from_shards(folder):
    """SimAM has no parameter, so that taking it out leaves the shards as they are."""
    images, _ = batch()
    model, plain = sharded(), eject(network())
    with torch.no_grad():
        attended, wanted = model(images), plain(images)
        found = eject(model)(images)
    return {
        "still_sharded": isinstance(model, FSDPModule),
        "equal": torch.allclose(found, wanted, rtol=1e-6, atol=1e-6),
        "differed": not torch.allclose(attended, wanted, rtol=1e-2),
        "sites": len(injected(model)),
    }


@scenario
def no_parameter_is_left_unused(folder):
    """`find_unused_parameters` has nothing to find: SimAM owns no parameter."""
    model = DistributedDataParallel(network(), find_unused_parameters=True)
    step(model, *halves())
    return {"unused": [name for name, parameter in model.named_parameters() if parameter.grad is None]}


def main():
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    findings = {}
    for name, function in SCENARIOS.items():
        try:
            findings[name] = function(folder)
        except Exception:
            findings[name] = {"error": traceback.format_exc()}
        dist.barrier()
    (folder / f"rank{rank}.json").write_text(json.dumps(findings))
    dist.destroy_process_group()
    # Without the interpreter's shutdown: torch's gloo threads abort there in one start of ten ("terminate called
    # without an active exception"), after every finding is on disk, with and without SimAM.
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
