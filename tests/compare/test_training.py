"""The trainer and its image folders, and `simam-inject compare` from end to end on stripes drawn here."""

import itertools
import re
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from typer.testing import CliRunner

from simam_inject import inject
from simam_inject.cli import comparing
from simam_inject.cli.options import parse_time
from simam_inject.compare import Report, compare, load_comparison
from simam_inject.compare.setups import set_up
from simam_inject.compare.training import Training, fit, make_loaders, open_folder
from simam_inject.errors import CompareError, FileError, InjectError
from simam_inject.persist import save
from simam_inject.zoo import build, load_weights
from tests.compare.networks import RECIPE
from tests.messages import says
from tests.stripes import draw_stripes

SHORT = Training(epochs=3, batch=8, size=16, rate=2.0, warmup=0, augment=False)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    draw_stripes(folder / "train", 32, 16)
    draw_stripes(folder / "val", 12, 16)
    (folder / "net.py").write_text(
        "from torch import nn\n"
        "def net(num_classes=2):\n"
        "    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(14), nn.Flatten(),\n"
        "                         nn.Linear(8, num_classes))\n",
        encoding="utf-8",
    )
    return folder


def make(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(14), nn.Flatten(), nn.Linear(8, 2))
    )


@pytest.mark.parametrize("training", [SHORT, Training(epochs=3, batch=8, size=16, rate=2.0, warmup=0, ema=0.5)])
def test_it_learns_reports_and_says_which_images_were_right(images, training):
    report = Report()
    data = open_folder(images, 16, augment=training.augment)
    value = fit(make(), 0, report, images=data, training=training, device="cpu")
    assert value >= 80
    assert report.curve[-1] == (3, value)
    assert 100 * report.correct.mean() == pytest.approx(value)
    assert len(report.correct) == 24


def test_the_same_seed_is_the_same_run_and_another_is_not(images):
    data = open_folder(images, 16, augment=False)
    short = Training(epochs=1, batch=8, size=16, rate=0.05, augment=False)
    ends = []
    for seed in (3, 3, 4):
        network = make()
        fit(network, seed, Report(), images=data, training=short, device="cpu")
        ends.append(network[0].weight.detach().clone())
    assert torch.equal(ends[0], ends[1])
    assert not torch.equal(ends[0], ends[2])


def test_no_two_seeds_and_epochs_share_an_order(images):
    orders = []
    for seed in range(3):
        loader, _ = make_loaders(open_folder(images, 16, augment=False), SHORT, seed)
        for epoch in range(3):
            loader.sampler.set_epoch(epoch)
            orders.append(tuple(loader.sampler))
    assert len(set(orders)) == 9


def test_a_loss_that_is_not_finite_ends_the_run(images):
    report = Report()
    training = Training(epochs=2, batch=8, size=16, rate=1e38, warmup=0)
    value = fit(make(), 0, report, images=open_folder(images, 16), training=training, device="cpu")
    assert np.isnan(value)


def test_a_folder_of_classes_is_split(images):
    data = open_folder(images / "train", 16, augment=False)
    assert (len(data.train), len(data.val), data.classes) == (52, 12, ("lying", "standing"))
    again = open_folder(images / "train", 16, augment=False)
    assert torch.equal(data.val.tensors[0], again.val.tensors[0])
    assert not any(torch.equal(image, other) for image in data.val.tensors[0] for other in data.train.tensors[0])


def test_small_classes_are_trained(tmp_path):
    draw_stripes(tmp_path, 9, 16, kinds=("lying",))
    draw_stripes(tmp_path, 1, 16, kinds=("standing",))
    data = open_folder(tmp_path, 16, augment=False)
    assert data.train.tensors[1].tolist() == [0] * 8 + [1]
    assert data.val.tensors[1].tolist() == [0]


def test_images_are_read_as_maps_reads_them(tmp_path):
    """Upright, and no pixels of more than 8 bits, which torchvision's own loader cuts to white."""
    file = tmp_path / "train" / "lying" / "00.png"
    for part in ("train", "val"):
        draw_stripes(tmp_path / part, 2, 16)
    upright = open_folder(tmp_path, 16, augment=False).train.tensors[0]
    exif = Image.Exif()
    exif[0x0112] = 6  # on its side
    with Image.open(file) as stripes:
        stripes.rotate(90).save(file, exif=exif)
    assert torch.equal(open_folder(tmp_path, 16, augment=False).train.tensors[0], upright)
    Image.new("I;16", (16, 16), 3000).save(file)
    with pytest.raises(FileError, match=r"00\.png has pixels of more than 8 bits"):
        open_folder(tmp_path, 16, augment=False)


def lonely(folder):
    draw_stripes(folder / "train", 1, 16)
    draw_stripes(folder / "val", 1, 16)
    for part in ("train", "val"):
        (folder / part / "lying" / "00.png").unlink()
        (folder / part / "lying").rmdir()


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda folder: None, "holds no images"),
        (lambda folder: folder.rmdir(), says("no such folder", "train/ and val/")),
        (lambda folder: draw_stripes(folder / "train", 1, 16), "no such folder: .*val"),
        (lonely, "has only one class, standing"),
        (lambda folder: draw_stripes(folder, 3, 16), "every class has fewer than 5 images"),
    ],
)
def test_data_that_cannot_be_trained_on(tmp_path, prepare, message):
    folder = tmp_path / "data"
    folder.mkdir()
    prepare(folder)
    with pytest.raises(CompareError, match=message):
        open_folder(folder, 16)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (lambda folder: folder / "none.pt", "cannot be read"),
        (lambda folder: torch.save([1], folder / "list.pt") or folder / "list.pt", "holds a list, not a state_dict"),
        (lambda folder: torch.save({"a": torch.ones(1)}, folder / "a.pt") or folder / "a.pt", "does not fit"),
    ],
)
def test_weights_that_do_not_fit(images, tmp_path, weights, message):
    with pytest.raises(InjectError, match=message):
        set_up(f"{images}/net.py:net", str(images), SHORT, "cpu", weights=str(weights(tmp_path)))


def test_trained_weights_are_loaded_and_norms_estimated_again(images, tmp_path):
    trained = make(5)
    torch.save(trained.state_dict(), tmp_path / "net.pt")
    setup = set_up(f"{images}/net.py:net", str(images), SHORT, "cpu", weights=str(tmp_path / "net.pt"))
    assert torch.equal(setup["make_model"]()[0].weight, trained[0].weight)
    assert len(setup["batches"]) == 8


def save_plain(model, path):
    torch.save(model.state_dict(), path)


def save_injected(model, path):
    save(inject(model, "after conv2d", example_inputs=torch.rand(1, 3, 16, 16)), path)


@pytest.mark.parametrize(("write", "name"), [(save_plain, "net.pt"), (save_injected, "net.safetensors")])
def test_the_head_of_weights_for_other_classes_is_drawn_by_the_seed(images, tmp_path, write, name):
    trained = nn.Sequential(*make(5)[:-1], nn.Linear(8, 9))
    write(trained, tmp_path / name)
    with pytest.raises(InjectError, match=says("another number of classes", "--num-classes N")):
        load_weights(build(f"{images}/net.py:net"), tmp_path / name)
    setup = set_up(f"{images}/net.py:net", str(images), SHORT, "cpu", weights=str(tmp_path / name))
    first, again, other = (torch.manual_seed(seed) and setup["make_model"]() for seed in (0, 0, 1))
    assert torch.equal(first[0].weight, trained[0].weight)
    assert torch.equal(first[-1].weight, again[-1].weight)
    assert not torch.equal(first[-1].weight, other[-1].weight)


@pytest.mark.parametrize(
    ("model", "mean", "deviation"),
    [
        ("timm:test_resnet", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        ("torchvision:resnet18", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ],
)
def test_images_are_normalized_as_the_weights_of_the_model_expect(tmp_path, model, mean, deviation):
    for part, name in itertools.product(("train", "val"), ("black", "white")):
        (tmp_path / part / name).mkdir(parents=True)
        Image.new("RGB", (16, 16), name).save(tmp_path / part / name / "image.png")
    short = Training(epochs=0, batch=2, size=16, augment=False)
    setup = set_up(model, str(tmp_path), short, "cpu", weights=str(save_weights(model, tmp_path)))
    pixels = setup["batches"][0][0].amin((0, 2, 3)), setup["batches"][0][0].amax((0, 2, 3))
    for found, level in zip(pixels, (0, 1), strict=True):
        torch.testing.assert_close(found, (level - torch.tensor(mean)) / torch.tensor(deviation))
    assert setup["settings"]["normalization"] == (mean, deviation)


def save_weights(model, folder):
    torch.save(build(model, num_classes=2).model.state_dict(), folder / "weights.pth")
    return folder / "weights.pth"


@pytest.fixture
def command(images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run(*more, model=f"{images}/net.py:net", data=images):
        short = ("--size", "16", "--no-augment", "--epochs", "2", "--batch", "8", "--rate", "1")
        given = [model, "--data", str(data), "--recipe", RECIPE, "--seeds", "1", *short, *more]
        return CliRunner().invoke(comparing.compare_app, given)

    return run


def test_the_command_from_end_to_end(command, tmp_path):
    done = command("--against", "se", "--e-lambda", "1e-4,0.1", "--resolve", "0.5")
    assert done.exit_code == 0, done.output
    assert f"| simam 0.1 | {RECIPE} | 1 |" in done.stdout
    assert "5 of 5 runs" in done.stderr
    comparison = load_comparison(tmp_path / "compare.journal")
    assert [cell.variant for cell in comparison.cells] == ["plain", "plain again", "simam 0.0001", "simam 0.1", "se"]
    assert all(cell.samples == 24 and cell.costs.seconds for cell in comparison.cells)
    assert comparison.resolve == 0.5
    done = CliRunner().invoke(
        comparing.compare_app, ["report", "compare.journal", "--html", "r.html", "--markdown", "r.md"]
    )
    assert done.exit_code == 0, done.output
    assert (tmp_path / "r.html").read_text(encoding="utf-8").count("<svg") == 2
    assert "| plain again |" in (tmp_path / "r.md").read_text(encoding="utf-8")


@pytest.mark.filterwarnings("ignore:the first run failed")
def test_failed_runs_are_kept_and_the_report_says_so(command, images):
    (images / "bad.py").write_text(
        "from torch import nn\n"
        "class Bad(nn.Sequential):\n"
        "    def forward(self, x):\n"
        "        assert not self.training\n"
        "        return super().forward(x)\n"
        "def net(num_classes=2):\n"
        "    body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())\n"
        "    return Bad(body, nn.Linear(8, num_classes))\n"
    )
    for _ in range(2):
        done = command(model=f"{images}/bad.py:net")
        assert (done.exit_code, "3 of 3 runs failed" in done.stdout) == (1, True), done.output


def test_a_worker_that_prints_much_is_not_blocked(command, tmp_path, monkeypatch):
    worker, done = tmp_path / "python", tmp_path / "done"
    worker.write_text(f"#!/bin/sh\nhead -c 200000 /dev/zero >&2\ntouch {done}\nexit 3\n")
    worker.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(worker))
    deadline = time.monotonic() + 20

    def run_after_the_worker(*arguments, **options):
        while not done.exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        return compare(*arguments, **options)

    monkeypatch.setattr("simam_inject.compare.compare", run_after_the_worker)
    result = command("--budget", "0s", "--workers", "2")
    assert result.exit_code == 0, result.output
    assert "a worker ended with exit code 3" in result.stderr


def test_an_error_stops_the_workers(command, monkeypatch):
    started = []

    def start(_log):
        started.append(subprocess.Popen(["sleep", "60"]))
        return started[0]

    monkeypatch.setattr(comparing, "_start_worker", start)
    assert command("--recipe", "unet", "--workers", "2").exit_code == 1
    assert started[0].returncode is not None


def test_the_budget_includes_the_time_of_other_workers(command, monkeypatch):
    budgets = []

    def compare_and_note(*arguments, budget, **options):
        budgets.append(budget)
        return compare(*arguments, budget=0.0, **options)

    monkeypatch.setattr(comparing, "_start_worker", lambda _log: subprocess.Popen(["sleep", "1.5"]))
    monkeypatch.setattr("simam_inject.compare.compare", compare_and_note)
    assert command("--budget", "1s", "--workers", "2").exit_code == 0
    assert budgets[0] == 1.0
    assert budgets[1] == 0.0


def test_a_budget_and_another_command_on_the_same_study(command):
    done = command("--budget", "0s")
    assert done.exit_code == 0, done.output
    assert re.search("0 of 3 runs are done.*same command", done.stderr)
    done = command("--epochs", "3")
    assert done.exit_code == 2
    assert "epochs: 2 in the study, 3 here" in done.stderr


@pytest.mark.parametrize(
    ("more", "given", "message"),
    [
        (("--budget", "soon"), {}, "e.g. 2h, 30m or 90s"),
        (("--budget", "-3h"), {}, "write a time, e.g. 2h, 30m or 90s"),
        (("--ema", "1"), {}, "Invalid value for '--ema'"),
        (("--resolve", "-1"), {}, "Invalid value for '--resolve'"),
        (("--size", "0"), {}, "Invalid value for '--size'"),
        (("--loaders", "-1"), {}, "Invalid value for '--loaders'"),
        (("--against", "sse"), {}, "unknown attention 'sse'"),
        (("--device", "cuda"), {}, "no CUDA device"),
        (("--pretrained",), {"model": "ultralytics:yolov8n", "data": "coco8.yaml"}, "yolov8n.pt"),
        ((), {"data": "nowhere"}, "no such folder"),
        (("--recipe", "papr"), {}, "did you mean 'paper'"),
        (("--recipe", "unet"), {}, "matches no site"),
        (("--batch", "500"), {}, "one batch of 500; use a smaller --batch"),
    ],
)
def test_a_slip_on_the_command_line_is_one_message(command, more, given, message):
    if "cuda" in more and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    done = command(*more, **given)
    assert done.exit_code == 1 + (message != "matches no site")
    assert message in " ".join(done.output.split())


def test_a_report_of_no_study():
    done = CliRunner().invoke(comparing.compare_app, ["report", "none.journal"])
    assert done.exit_code == 2
    assert "no such study: none.journal" in done.stderr


def test_times_are_read_in_hours_minutes_and_seconds():
    assert [parse_time(text) for text in ("2h", "30m", "90s", "45")] == [7200, 1800, 90, 45]


def test_help_imports_no_torch():
    code = "import sys, simam_inject.cli.comparing; assert 'torch' not in sys.modules and 'optuna' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
