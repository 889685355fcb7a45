"""The benchmark of a user's own model: what it builds and counts. Nothing here asserts a time."""

import copy
import gc
import json
import weakref
from dataclasses import asdict

import pytest
import torch
from timm.layers import EcaModule
from torch import nn
from typer.testing import CliRunner

from simam_inject import InjectError, SimAM, inject, injected
from simam_inject.bench import Conditions, bench
from simam_inject.bench.measuring import Quartiles, bytes_kept, ratios, time_rounds
from simam_inject.bench.run import make_variants, peer_factory
from simam_inject.cli.app import app
from simam_inject.zoo.names import PEERS


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)

    def forward(self, x):
        return x + self.norm(self.conv(x)).relu()


def make_net():
    return nn.Sequential(nn.Conv2d(3, 8, 1), Block(), Block())


IMAGE = torch.rand(1, 3, 16, 16)


def test_rows_of_every_variant_in_both_modes():
    model = make_net()
    before = copy.deepcopy(model.state_dict())
    conditions = Conditions(batch=2, rounds=3, warmups=1)
    measured = bench(model, "after block.conv", conditions, against=("eca",), example_inputs=IMAGE)
    assert [(row.mode, row.variant) for row in measured.rows] == [
        (mode, variant) for mode in ("inference", "training") for variant in ("plain", "SimAM", "eca")
    ]
    assert measured.sites == 2
    assert measured.floor_bytes == 2 * 2 * (2 * 4 * 8 * 16 * 16)  # batch, sites, read and write of 8 x 16 x 16 floats
    assert not injected(model)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert json.loads(json.dumps(asdict(measured)))["sites"] == 2


def test_a_model_that_has_simam_is_compared_without_it():
    model = inject(make_net(), "after block.norm", example_inputs=IMAGE)
    variants = make_variants(model, "after block.norm", IMAGE, ("eca",))
    assert [len(injected(variants[name])) for name in ("plain", "SimAM", "eca")] == [0, 2, 2]
    assert len(injected(model)) == 2


def test_training_keeps_about_one_copy_of_each_attended_map():
    model = make_net()
    conditions = Conditions(rounds=3, warmups=1)
    rows = bench(model, "after block.conv", conditions, example_inputs=IMAGE).rows
    kept = {row.variant: row.kept_bytes for row in rows if row.mode == "training"}
    one_map = 4 * 8 * 16 * 16
    assert 0 < kept["SimAM"] - kept["plain"] <= 2 * 1.10 * one_map


@pytest.mark.parametrize("name", PEERS)
def test_every_peer_can_be_made(name):
    assert peer_factory(name)(8)(torch.rand(1, 8, 4, 4)).shape == (1, 8, 4, 4)


def test_peers_stand_in_simams_places():
    variants = make_variants(make_net(), "after block.conv", IMAGE, ("eca",))
    kinds = {name: [type(part) for part in variant.modules()] for name, variant in variants.items()}
    assert kinds["SimAM"].count(SimAM) == 2
    assert kinds["eca"].count(SimAM) == 0
    assert kinds["eca"].count(EcaModule) == 2
    assert kinds["plain"].count(SimAM) == 0
    outputs = {name: variant.eval()(IMAGE) for name, variant in variants.items()}
    assert not torch.allclose(outputs["eca"], outputs["SimAM"], rtol=1e-3)


@pytest.mark.parametrize(
    ("conditions", "against", "message"),
    [
        (Conditions(), ("sae",), "'sae'.* se, eca, cbam, gc"),
        (Conditions(dtype="fp8"), (), "'fp8'.* fp32, bf16, fp16"),
        pytest.param(
            *(Conditions(device="cuda"), (), "no CUDA device"),
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device"),
        ),
    ],
)
def test_bad_conditions_are_one_message(conditions, against, message):
    with pytest.raises(InjectError, match=message):
        bench(make_net(), "after block.conv", conditions, against=against, example_inputs=IMAGE)


def test_a_mode_the_model_does_not_run_in_is_told():
    class EvalOnly(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = Block()

        def forward(self, x):
            if self.training:
                raise ValueError("targets needed")
            return self.block(x)

    model = EvalOnly().eval()
    measured = bench(model, "after block.conv", Conditions(rounds=3), example_inputs=torch.rand(1, 8, 4, 4))
    assert measured.not_run == (("training", "ValueError: targets needed"),)
    assert {row.mode for row in measured.rows} == {"inference"}


def test_ratios_are_taken_round_by_round():
    seconds = {"plain": [1.0, 2.0, 4.0], "other": [2.0, 4.0, 8.0]}
    assert ratios(seconds, "plain")["other"] == Quartiles(2.0, 2.0, 2.0)
    assert Quartiles.of([1.0, 1.0, 2.0, 2.0]).is_noisy
    assert not Quartiles.of([1.0, 1.01, 1.02]).is_noisy


def test_every_round_runs_every_variant_once():
    ran = []
    runs = {name: lambda name=name: ran.append(name) for name in ("a", "b", "c")}
    seconds = time_rounds(runs, rounds=4, warmups=2, device=torch.device("cpu"))
    assert [sorted(ran[start : start + 3]) for start in range(0, 18, 3)] == [["a", "b", "c"]] * 6
    assert {name: len(sample) for name, sample in seconds.items()} == {"a": 4, "b": 4, "c": 4}


def test_parameters_do_not_count_as_kept():
    layer = nn.Linear(64, 64, bias=False)
    x = torch.rand(2, 64)
    assert bytes_kept(layer, lambda: layer(x)) == x.nbytes


def test_counting_what_is_kept_frees_it():
    x, outputs = torch.randn(2, 3, requires_grad=True), []

    def run():
        y = torch.sigmoid(x)  # saves its output
        outputs.append(weakref.ref(y))
        return y

    assert bytes_kept(nn.Module(), run) == x.nbytes
    gc.collect()
    assert outputs[0]() is None


@pytest.mark.parametrize("options", [["--json"], []])
def test_the_command_prints_json_or_a_table(options, tmp_path):
    source = tmp_path / "net.py"
    source.write_text(
        "from torch import nn\n\n\ndef make():\n    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())\n"
    )
    arguments = ["bench", f"{source}:make", "--after", "conv2d", "--input-size", "3x8x8", "--rounds", "3"]
    result = CliRunner().invoke(app, [*arguments, *options])
    assert result.exit_code == 0, result.output
    if options:
        rows = json.loads(result.stdout)["rows"]
        assert [row["variant"] for row in rows] == ["plain", "SimAM", "plain", "SimAM"]
    else:
        assert "x plain (quartiles)" in result.stdout
        assert "1 site; per batch" in result.stdout
