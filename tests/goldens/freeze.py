"""Golden lists: where each shipped recipe puts SimAM in one model of every family, and what a few small models return.

    python -m tests.goldens.freeze --check              # plan everything again and print the differences
    python -m tests.goldens.freeze --check 'timm:res*'  # some models
    python -m tests.goldens.freeze --write              # replace the lists

The model is recorded once and asked for every recipe. Differences between the first edition's engine and this one are
argued in `differences.md`.
One line of `sites.txt` is `MODEL RECIPE COUNT: SITES`; a site before a reader is `path>reader`, `~` in the reader
standing for the path's own scope, and `{a,b}.c` stands for `a.c` and `b.c`.
"""

from __future__ import annotations

import argparse
import contextlib
import fnmatch
import io
import math
import sys
import time
import warnings
from itertools import product
from pathlib import Path

import torch

from simam_inject.recipe import shipped_recipes
from tests.oracle import tensors

HERE = Path(__file__).parent
SITES = HERE / "sites.txt"
OUTPUTS = HERE / "outputs.txt"
FAMILIES = HERE.parent / "coverage" / "families.txt"
YOLO_RECIPES = tuple(name for name in shipped_recipes() if name.startswith("yolo-"))
RECIPES = tuple(name for name in shipped_recipes() if name not in YOLO_RECIPES)
OUTPUT_MODELS = {
    "torchvision:resnet18": ("paper", "block-output", "residual"),
    "torchvision:mobilenet_v2": ("paper", "mobile"),
    "torchvision:squeezenet1_1": ("block-output", "every-conv"),
    "torchvision:shufflenet_v2_x0_5": ("block-output", "mobile"),
    "torchvision:lraspp_mobilenet_v3_large": ("stage-end",),
    "timm:resnetv2_18": ("paper", "residual"),
    "timm:convnext_atto": ("convnext", "block-output", "residual"),
    "timm:efficientnet_b0": ("paper", "stage-end"),
    "timm:ghostnet_050": ("residual", "block-output"),
    "timm:repvit_m0_9": ("block-output", "mobile"),
    "timm:test_nfnet": ("residual",),
    "ultralytics:yolov8n-seg": ("yolo-neck", "yolo-detect", "yolo-bottleneck"),
}
"""Models whose output is frozen too, at 2 x 3 x 64 x 64 in float64."""


def families():
    """Model keys, `library:name`, in the order of `families.txt`."""
    return [line for line in FAMILIES.read_text(encoding="utf-8").split() if line != "---"]


def recipes_for(key):
    return (*RECIPES, *YOLO_RECIPES) if key.startswith("ultralytics:") else RECIPES


def build(key):
    """The network, in eval mode, with random weights."""
    library, _, name = key.partition(":")
    torch.manual_seed(0)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        if library == "torchvision":
            import torchvision

            composed = "rcnn" in name or name.startswith(("ssd", "fcos", "fcn", "deeplab", "lraspp", "retinanet"))
            options = {"weights_backbone": None} if composed else {}
            return torchvision.models.get_model(name, weights=None, **options).eval()
        if library == "timm":
            import timm

            return timm.create_model(name, pretrained=False).eval()
        from ultralytics import RTDETR, YOLO
        from ultralytics.nn.tasks import YOLOEModel

        if name.startswith("yoloe"):
            return YOLOEModel(f"{name}.yaml", verbose=False).eval()
        return (RTDETR if name.startswith("rtdetr") else YOLO)(f"{name}.yaml").model.eval()


def example(key, model):
    """Positional arguments of one forward, at the size that the library made the model for."""
    library, _, name = key.partition(":")
    noise = torch.Generator().manual_seed(0)

    def image(*shape):
        return torch.rand(shape, generator=noise)

    if library == "ultralytics":
        return (image(1, 3, 256, 256),)
    if library == "timm":
        return (image(1, *model.pretrained_cfg.get("input_size", (3, 224, 224))),)
    if "rcnn" in name or name.startswith(("ssd", "retinanet", "fcos")):
        return ([image(3, 320, 320)],)
    if name.startswith("raft"):
        return image(1, 3, 128, 128), image(1, 3, 128, 128)
    if name.startswith(("r3d", "s3d", "swin3d", "mvit")):
        side = 112 if name.startswith("r3d") else 224
        return (image(1, 3, 16, side, side),)
    side = 299 if "inception" in name else 224
    return (image(1, 3, side, side),)


def site_of(insertion):
    """`path`, or `path>reader` with the reader named from the path's scope."""
    if insertion.position == "after":
        return insertion.path
    scope, reader = insertion.path.rpartition(".")[0], insertion.reader or ""
    if scope and (reader == scope or reader.startswith(f"{scope}.")):
        reader = "~" + reader[len(scope) :]
    return f"{insertion.path}>{reader}"


def take_all(key, model, inputs):
    """Recipe -> sites that it takes, or the name of the error."""
    from simam_inject import InjectError
    from simam_inject.dataflow.example import example_of
    from simam_inject.dataflow.survey import survey_model
    from simam_inject.editing.attach import strip
    from simam_inject.matching.match import match
    from simam_inject.planning.planner import decide
    from simam_inject.recipe import load_recipe

    flow, found = survey_model(model, example_of(model, inputs), strip), {}
    for name in recipes_for(key):
        recipe = load_recipe(name)
        try:
            planned = decide(recipe, flow, match(recipe, flow.anatomy)).insertions
            found[name] = sorted(site_of(one) for one in planned)
        except InjectError as error:
            found[name] = [] if type(error).__name__ == "NoMatchError" else [f"!{type(error).__name__}"]
    return found


def squeeze(paths):
    """Paths in braces: a trie of their parts, in which siblings with equal subtrees are written once."""
    trie = {}
    for path in paths:
        node = trie
        for part in path.split("."):
            node = node.setdefault(part, {})
        node[""] = {}
    return " ".join(_write(trie))


def _write(node):
    groups = {}
    for part, below in node.items():
        if part:
            groups.setdefault((tuple(_write(below)), "" in below), []).append(part)
    found = []
    for (tails, ends), parts in groups.items():
        head = parts[0] if len(parts) == 1 else "{" + ",".join(parts) + "}"
        rest = ([""] if ends else []) + [f".{tail}" for tail in tails]
        found += [head + tail for tail in rest]
    return found


def spread(text):
    """Inverse of `squeeze`, sorted."""
    return sorted(path for word in text.split() for path in _spread(word))


def _spread(word):
    pieces, depth, start, open_at = [], 0, 0, 0
    for at, letter in enumerate(word):
        if letter == "{":
            if depth == 0:
                pieces.append([word[start:at]])
                open_at = at + 1
            depth += 1
        elif letter == "}":
            depth -= 1
            if depth == 0:
                pieces.append(word[open_at:at].split(","))
                start = at + 1
    pieces.append([word[start:]])
    return ["".join(choice) for choice in product(*pieces)]


def line_of(key, recipe, sites):
    return f"{key} {recipe} {len(sites)}: {squeeze(sites)}".rstrip()


def read_sites():
    """(model, recipe) -> sorted sites."""
    found = {}
    for line in SITES.read_text(encoding="utf-8").splitlines():
        head, _, sites = line.partition(": ")
        key, recipe, count = head.removesuffix(":").split(" ")
        found[key, recipe] = spread(sites)
        assert len(found[key, recipe]) == int(count), line
    return found


def settle_weights(model):
    """Weights that every machine makes alike: no random numbers."""
    model.double()
    with torch.no_grad():
        for index, (name, tensor) in enumerate(model.state_dict().items()):
            if not tensor.is_floating_point() or name.endswith(("dfl.conv.weight", "stride")):
                continue
            wave = torch.sin(torch.arange(tensor.numel(), dtype=torch.float64) * 1.618 + index).view(tensor.shape)
            if name.endswith("running_var"):
                tensor.copy_(1 + 0.3 * wave)
            elif tensor.dim() <= 1:
                tensor.copy_(0.1 * wave + (0.8 if name.endswith(("weight", "gamma", "gain")) else 0.0))
            else:
                tensor.copy_(wave * math.sqrt(3 / tensor[0].numel()))
    return model


def digest(model):
    """A few numbers of the output on an image that every machine makes alike."""
    x = torch.sin(torch.arange(2 * 3 * 64 * 64, dtype=torch.float64) * 0.37).view(2, 3, 64, 64)
    with torch.no_grad():
        flat = torch.cat([tensor.double().flatten() for tensor in tensors(model(x)) if tensor.is_floating_point()])
    picked = flat[torch.linspace(0, flat.numel() - 1, 4).long()]
    return [flat.numel(), flat.mean().item(), flat.std().item(), *picked.tolist()]


def output_lines(keys):
    from simam_inject import inject

    for key in keys:
        for recipe in (None, *OUTPUT_MODELS[key]):
            model = settle_weights(build(key))
            if recipe is not None:
                x = torch.zeros(2, 3, 64, 64, dtype=torch.float64)
                inject(model, recipe, example_inputs=x, verify=False)
            yield f"{key} {recipe or 'stock'} " + " ".join(f"{number:.12g}" for number in digest(model))


def read_outputs():
    """(model, recipe or `stock`) -> numbers."""
    rows = (line.split(" ") for line in OUTPUTS.read_text(encoding="utf-8").splitlines())
    return {(row[0], row[1]): [float(number) for number in row[2:]] for row in rows}


def close(one, other, tolerance=1e-6):
    """Equal up to a share of the output's spread, which its third number is."""
    if len(one) != len(other):
        return False
    return all(abs(a - b) <= tolerance * (abs(other[2]) + abs(b)) for a, b in zip(one, other, strict=True))


def differences(golden, sites):
    """What to print about one line; nothing if they agree."""
    missing, extra = sorted(set(golden) - set(sites)), sorted(set(sites) - set(golden))
    lines = [f"  - {squeeze(missing)}"] if missing else []
    return lines + ([f"  + {squeeze(extra)}"] if extra else [])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", default=["*"], help="globs on `library:name`; all without")
    task = parser.add_mutually_exclusive_group(required=True)
    task.add_argument("--check", action="store_true")
    task.add_argument("--write", action="store_true")
    parser.add_argument("--no-outputs", action="store_true", help="sites only")
    parser.add_argument("--no-sites", action="store_true", help="outputs only")
    options = parser.parse_args()
    torch.set_num_threads(1)
    keys = [key for key in families() if any(fnmatch.fnmatch(key, glob) for glob in options.models)]
    wrong = 0
    if not options.no_sites:
        wrong += write_sites(keys) if options.write else check_sites(keys)
    if not options.no_outputs:
        chosen = [key for key in OUTPUT_MODELS if any(fnmatch.fnmatch(key, glob) for glob in options.models)]
        wrong += write_outputs(chosen) if options.write else check_outputs(chosen)
    return 1 if wrong else 0


def planned(keys):
    for key in keys:
        start = time.perf_counter()
        try:
            model = build(key)
        except Exception as error:
            print(f"{key}: cannot be built: {type(error).__name__}: {str(error)[:200]}", file=sys.stderr)
            continue
        for recipe, sites in take_all(key, model, example(key, model)).items():
            if sites or not recipe.startswith("yolo-"):
                yield key, recipe, sites
        print(f"{key}: {time.perf_counter() - start:.1f} s", file=sys.stderr, flush=True)


def write_sites(keys):
    lines = {}
    if SITES.exists():
        lines = {tuple(line.split(" ")[:2]): line for line in SITES.read_text(encoding="utf-8").splitlines()}
    order = {key: index for index, key in enumerate(families())}
    for key, recipe, sites in planned(keys):
        lines[key, recipe] = line_of(key, recipe, sites)
        ordered = sorted(lines, key=lambda at: order[at[0]])
        SITES.write_text("".join(f"{lines[at]}\n" for at in ordered), encoding="utf-8")
    return 0


def check_sites(keys):
    golden, wrong = read_sites(), 0
    for key, recipe, sites in planned(keys):
        found = differences(golden.get((key, recipe), []), sites)
        wrong += bool(found)
        if found:
            print(f"{key} {recipe}: {len(golden.get((key, recipe), []))} -> {len(sites)}", *found, sep="\n", flush=True)
    print(f"{wrong} lines differ")
    return wrong


def write_outputs(keys):
    lines = {}
    if OUTPUTS.exists():
        lines = {tuple(line.split(" ")[:2]): line for line in OUTPUTS.read_text(encoding="utf-8").splitlines()}
    lines |= {tuple(line.split(" ")[:2]): line for line in output_lines(keys)}
    OUTPUTS.write_text("".join(f"{line}\n" for line in lines.values()), encoding="utf-8")
    return 0


def check_outputs(keys):
    golden, wrong = read_outputs(), 0
    for line in output_lines(keys):
        key, recipe, *numbers = line.split(" ")
        if not close([float(number) for number in numbers], golden[key, recipe]):
            wrong += 1
            print(f"{line}\n  was {golden[key, recipe]}")
    print(f"{wrong} outputs differ")
    return wrong


if __name__ == "__main__":
    sys.exit(main())
