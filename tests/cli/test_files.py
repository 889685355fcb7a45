"""Files: weights that go in, files that come out, and what `check` and `show` say about them."""

import json
import re

import pytest
import torch
from safetensors.torch import save_file

from simam_inject import bypass, calibrate, inject, injected
from simam_inject.persist import load, save
from simam_inject.zoo import build

NET = "nets.py:Net"
SMALL = ("--input-size", "3x32x32")


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".ckpt", ".pt"])
def test_weights_are_loaded(suffix, run, folder, built):
    state = {name: torch.full_like(value, 0.5) for name, value in build(NET).model.state_dict().items()}
    file = folder / f"w{suffix}"
    if suffix == ".safetensors":
        save_file(state, file)
    else:
        torch.save({"epoch": 3, "state_dict": {f"module.{name}": value for name, value in state.items()}}, file)
    result = run(NET, "--weights", f"w{suffix}", "--after", "block", *SMALL, "--dry-run")
    assert result.exit_code == 0, result.stderr
    assert f"weights of w{suffix}" in result.stdout
    assert built[0].model.stem.weight.eq(0.5).all()


def seven(**changes):
    """Weights for seven classes, with these changes; None leaves one out."""
    state = build("nets.py:make_wide", num_classes=7).model.state_dict() | changes
    return {name: tensor for name, tensor in state.items() if tensor is not None}


@pytest.mark.parametrize(
    ("make", "facts"),
    [
        (seven, ["head.weight (file 7x8, model 5x8)", "--num-classes N"]),
        (lambda: seven(**{"stem.weight": None}), ["not in the file: stem.weight"]),
        (lambda: seven(extra=torch.zeros(1)), ["not in the model: extra"]),
        (lambda: {"fc.weight": torch.ones(2, 2)}, ["checkpoint of another model?"]),
        (lambda: build, ["w.pth: it "]),
        (lambda: ["a", "list"], ["w.pth: it "]),
        (lambda: {"a": 1}, ["w.pth: it "]),
    ],
)
def test_weights_of_another_model_or_of_something_else(make, facts, run, folder):
    torch.save(make(), folder / "w.pth")
    result = run(NET, "--weights", "w.pth", "--after", "block", *SMALL)
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")
    assert not [fact for fact in facts if fact not in result.stderr], result.stderr


def test_output_is_what_load_puts_into_a_fresh_model(run, folder):
    result = run(NET, "--after", "block", *SMALL, "--json", "--output", "x.safetensors")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["output"] == "x.safetensors"
    fresh = load(folder / "x.safetensors", build(NET).model)
    assert [site.path for site in injected(fresh)] == ["blocks.0", "blocks.1"]


def test_a_saved_file_is_shown_and_checked_and_read_as_weights(run, folder):
    run(NET, "--after", "block", *SMALL, "--output", "x.safetensors")
    shown = json.loads(run("show", "x.safetensors", "--json").stdout)
    assert [site["path"] for site in shown["sites"]] == ["blocks.0", "blocks.1"]
    assert "torch" in shown["versions"]
    lines = [line.split() for line in run("show", "x.safetensors").stdout.splitlines()]
    assert ["blocks.0", "after", "8x16x16", "2", "output"] in lines
    plain = run("check", "x.safetensors")
    assert plain.exit_code == 0
    assert "verify(model)" in plain.stdout
    save(build(NET).model, folder / "plain.safetensors")
    assert run("check", "plain.safetensors").exit_code == 1
    again = run(NET, "--weights", "x.safetensors", "--after", "block", *SMALL)
    assert re.search("0 sites inserted.* 2 already there, 0 skipped", again.stdout)
    assert "\nverified: " in again.stdout


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("x.safetensors", b"hello", "x.safetensors: "),
        ("x.pth", b"hello", "expected a .pt of ultralytics or a .safetensors"),
        ("x.onnx", b"hello", "simam_inject.export.prove"),
        ("none.pt", None, "no such file: 'none.pt'"),
    ],
)
def test_what_cannot_be_checked_is_one_message(name, content, sentence, run, folder):
    if content is not None:
        (folder / name).write_bytes(content)
    result = run("check", name)
    assert (result.exit_code, result.stdout) == (2, "")
    assert sentence in result.stderr
    assert "Traceback" not in result.stderr


def test_a_file_with_sites_needs_no_recipe(run, folder):
    run(NET, "--after", "block", "--e-lambda", "0.01", *SMALL, "--output", "x.safetensors")
    result = run(NET, "--weights", "x.safetensors", *SMALL, "--output", "x.pt2")
    assert result.exit_code == 0, result.stderr
    assert re.search("0 sites inserted.* 2 already there, 0 skipped", result.stdout)
    assert "x.pt2, which has 2 live sites" in result.stdout
    save(build(NET).model, folder / "plain.safetensors")
    assert "no site given" in run(NET, "--weights", "plain.safetensors", *SMALL).stderr


@pytest.mark.parametrize(("strength", "code"), [("0", 1), ("0.5", 0), ("1", 0)])
def test_check_reads_the_strength_of_a_file(run, strength, code):
    run(NET, "--after", "block", *SMALL, "--strength", strength, "--output", "x.safetensors")
    result = run("check", "x.safetensors")
    assert (result.exit_code, "wrong: 2 of 2 sites have strength 0" in result.stdout) == (code, code == 1)
    assert (f"strength {strength}" in result.stdout) == (strength != "1")
    assert json.loads(run("check", "x.safetensors", "--json").stdout)["ok"] is (code == 0)


def test_show_says_that_sites_are_calibrated(run, folder):
    model = inject(build(NET).model, "after block", verify=False, example_inputs=torch.rand(1, 3, 16, 16))
    calibrate(model, torch.rand(2, 3, 16, 16))
    save(model, folder / "x.safetensors")
    assert re.search(r"2 calibrated gains, from 1\.\d+ to \d", run("show", "x.safetensors").stdout)


@pytest.mark.parametrize("net", [NET, "nets.py:make_fixed"])
def test_a_file_with_sites_needs_no_input_size(net, run):
    run(net, "--after", "block", *SMALL, "--output", "x.safetensors")
    result = run(net, "--weights", "x.safetensors", "--json")
    assert result.exit_code == 0, result.stderr
    assert [site["shape"] for site in json.loads(result.stdout)["present"]] == [[1, 8, 16, 16]] * 2


@pytest.mark.parametrize("option", [("--exclude", "block"), ("--e-lambda", "0.5")])
def test_options_that_change_a_recipe_are_refused_where_the_file_has_the_sites(run, option):
    run(NET, "--after", "block", *SMALL, "--output", "x.safetensors")
    assert f"{option[0]} cannot change the sites" in run(NET, "--weights", "x.safetensors", *SMALL, *option).stderr


@pytest.mark.parametrize("is_whole", [False, True])
def test_a_part_that_was_injected_by_itself(is_whole, run, folder):
    """Its recipe does not match in the whole; the strength of the sites is that of the model."""
    model = build("nets.py:make_part").model
    if is_whole:
        inject(model, {"rules": [{"path": "stem", "after": "output"}]}, strength=0.3)
        save(model, folder / "x.safetensors")
    result = run(*((NET, "--weights", "x.safetensors") if is_whole else ("nets.py:make_part",)), *SMALL, "--json")
    assert result.exit_code == 0, result.stderr
    data = json.loads(result.stdout)
    assert [site["path"] for site in data["present"]] == ["stem"] * is_whole + ["blocks.0.conv1"]
    assert data["strength"] == 0.3


def test_an_export_that_lost_its_sites_is_1_and_not_there(run, folder, monkeypatch):
    from simam_inject.export.formats import FORMS

    form = FORMS[".torchscript"]

    def write_without_attention(model, *arguments):
        with bypass(model):
            form.write(model, *arguments)

    monkeypatch.setitem(FORMS, ".torchscript", form._replace(write=write_without_attention))
    result = run(NET, "--after", "block", *SMALL, "--output", "net.torchscript")
    assert result.exit_code == 1
    assert "lost 2 of 2 SimAM sites" in result.stderr
    assert not (folder / "net.torchscript").exists()


def test_a_file_that_has_simam_with_another_lambda_says_how_to_start_again(run, folder):
    run(NET, "--after", "block", *SMALL, "--output", "x.safetensors")
    result = run(NET, "--weights", "x.safetensors", "--after", "block", "--e-lambda", "0.5", *SMALL)
    assert result.exit_code == 1
    assert "eject(model)" in result.stderr


def test_dynamic_exports_take_other_sizes(run, folder):
    result = run(NET, "--after", "block", *SMALL, "--output", "x.pt2", "--dynamic")
    assert result.exit_code == 0, result.stderr
    assert re.search(r"^wrote x.pt2, .* 2 live sites.*\nnext:", result.stdout, re.MULTILINE)
    facts = json.loads(run(NET, "--after", "block", *SMALL, "--output", "x.pt2", "--dynamic", "--json").stdout)
    assert (facts["export"]["live"], facts["export"]["form"]) == (2, "pt2")
    assert 0 <= facts["export"]["difference"] < 1e-4
    program = torch.export.load(folder / "x.pt2").module()
    assert program(torch.rand(3, 3, 48, 40)).shape == (3, 5)


def test_sites_of_a_file_are_shown_at_the_size_of_this_run(run):
    run(NET, "--after", "block", *SMALL, "--output", "net.safetensors")
    larger = run(NET, "--weights", "net.safetensors", "--input-size", "3x64x64", "--json")
    data = json.loads(larger.stdout)
    assert [site["shape"] for site in data["present"]] == [[1, 8, 32, 32]] * 2
    assert data["totals"]["bytes_per_image"] == 2 * 65536


def test_calibration_reports_every_site(run, folder, built):
    from PIL import Image

    images = folder / "images"
    images.mkdir()
    for index in range(3):
        Image.effect_noise((40, 30), 60 + index).convert("RGB").save(images / f"{index}.png")
    result = run(NET, "--after", "block", *SMALL, "--calibrate", "images", "--json")
    assert result.exit_code == 0, result.stderr
    data = json.loads(result.stdout)
    assert [fit["gain"] for fit in data["calibration"]["sites"]] == [site["gain"] for site in data["insertions"]]
    assert all(site.gain > 1.0 for site in injected(built[0].model))
    shown = run(NET, "--after", "block", *SMALL, "--calibrate", "images").stdout
    assert re.search(r"import calibrate, inject; inject\(model, .*\); calibrate\(model, batches\)\n", shown)
    (folder / "empty").mkdir()
    assert "no image found in 'empty'" in run(NET, "--after", "block", *SMALL, "--calibrate", "empty").stderr
    (folder / "empty" / "text.png").write_text("words")
    found = run(NET, "--after", "block", *SMALL, "--calibrate", "empty")
    assert (found.exit_code, "text.png cannot be read as an image" in found.stderr) == (2, True)
