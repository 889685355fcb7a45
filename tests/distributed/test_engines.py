"""DDP and FSDP2 on two processes: the gradients of one, checkpoints that load anywhere, wrappers left alone."""

import json
from pathlib import Path

import pytest
import torch.distributed as dist

from tests.distributed.launching import torchrun

SITES = ["blocks.0.conv2", "blocks.1.conv2"]

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="this torch was built without torch.distributed")


@pytest.fixture(scope="module")
def findings(tmp_path_factory):
    """Of both processes, all scenarios, from one start of torchrun."""
    folder = tmp_path_factory.mktemp("distributed")
    torchrun(Path(__file__).with_name("worker.py"), folder)
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(2)]


def of(findings, name):
    found = [of_rank[name] for of_rank in findings]
    for finding in found:
        assert "error" not in finding, finding["error"]
    return found


@pytest.mark.parametrize("engine", ["data_parallel", "fully_sharded"])
def test_gradients_are_those_of_one_process(findings, engine):
    for finding in of(findings, engine):
        assert finding["difference"] < 1e-6
        assert finding["sites"] == SITES
        assert finding["keys"]


def test_sharding_swaps_classes_and_attention_stays(findings):
    for finding in of(findings, "fully_sharded"):
        assert finding["classes"] == ["FSDPNetwork", "FSDPBasicBlock", "FSDPBasicBlock"]


def test_sharded_training_lowers_the_loss(findings):
    for finding in of(findings, "sharded_train_mode_runs_and_learns"):
        assert finding["losses"][-1] < finding["losses"][0]


def test_a_checkpoint_of_shards_loads_into_shards_and_into_one_plain_network(findings):
    for finding in of(findings, "checkpoint"):
        assert finding == {"differed": True, "equal": True, "single": True}


def test_a_checkpoint_of_data_parallel_training_loads(findings):
    for finding in of(findings, "data_parallel_checkpoint"):
        assert finding["equal"]


def test_a_wrapped_model_is_refused_and_stays_wrapped(findings):
    for finding in of(findings, "wrapped_models_are_refused"):
        assert sorted(finding["messages"]) == ["ddp", "fsdp"]
        assert all("inject first, then" in message for message in finding["messages"].values())
        assert finding["still_sharded"]
        assert finding["sites"] == 2


def test_attention_can_be_ejected_from_shards(findings):
    for finding in of(findings, "ejected_from_shards"):
        assert finding == {"still_sharded": True, "equal": True, "differed": True, "sites": 0}


def test_every_parameter_gets_a_gradient(findings):
    for finding in of(findings, "no_parameter_is_left_unused"):
        assert finding["unused"] == []
