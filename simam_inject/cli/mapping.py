"""`simam-inject maps`: heat maps of the gates over photographs."""

from __future__ import annotations

from importlib.util import find_spec

from simam_inject.cli.options import MapsOptions
from simam_inject.cli.preparing import images_in, make_plan, prepare, read_image, selectors
from simam_inject.cli.program import Outcome, Step
from simam_inject.errors import FileError, ModelError, NoMatchError, RecipeError, plural, shortened
from simam_inject.zoo import ZooModel

_MOST = 16
"""Photographs in one picture."""


def maps(options: MapsOptions, step: Step) -> Outcome:
    """Draw the gates of SimAM in MODEL as heat maps over images."""
    if find_spec("matplotlib") is None:
        raise ModelError('drawing attention maps requires matplotlib: pip install "simam_inject[maps]"')
    files = [file for path in options.images for file in (images_in(path, _MOST) if path.is_dir() else [path])]
    if len(files) > _MOST:
        raise FileError(f"{len(files)} images do not fit into one picture; give at most {_MOST}")
    if selectors(options):
        built, plan = make_plan(options, step, options.strength)
        plan.apply()
    else:
        built = prepare(options, step)
    chosen = _choose(built, options.site)
    from simam_inject.maps import attention_maps, difference_maps
    from simam_inject.pictures import draw_maps

    step("running the model")
    look = difference_maps if options.difference else attention_maps
    shots = [read_image(built, file) for file in files]
    found = [look(built.model, shot.input, channel=options.channel) for shot in shots]
    names = [name for name, value in found[0].items() if value.dim() == 4 and _path_of(name) in chosen]
    if not names:
        raise ModelError("none of these sites has a two-dimensional feature map")
    rows = [(shot, {name: values[name][0, 0] for name in names}) for shot, values in zip(shots, found, strict=True)]
    step("drawing")
    draw_maps(rows, "change" if options.difference else "gate", options.output)
    images = [
        {"image": file.name, "sites": {name: [value.min().item(), value.max().item()] for name, value in drawn.items()}}
        for file, (_, drawn) in zip(files, rows, strict=True)
    ]
    data = {"model": built.name, "output": str(options.output), "images": images}
    return Outcome([f"{options.output}: {plural(len(files), 'image')}, {', '.join(names)}"], data)


def _path_of(name: str) -> str:
    """Path of the site in a name of `attention_maps`: `path`, `path (run 2)`, `path before reader`."""
    return name.partition(" (run ")[0].partition(" before ")[0]


def _choose(built: ZooModel, patterns: list[str]) -> set[str]:
    """The sites to draw: those that `--site` matches, or the last of each reduction."""
    from simam_inject import injected
    from simam_inject.recipe.names import Glob

    sites = injected(built.model)
    if not sites:
        raise ModelError(f"{built.name} has no SimAM: add --recipe NAME or --after BLOCK")
    if not patterns:
        return set({site.reduction: site.path for site in sites}.values())
    try:
        globs = [Glob(pattern) for pattern in patterns]
    except ValueError as error:
        raise RecipeError(f"--site: {error}") from None
    chosen = {site.path for site in sites if any(glob.covers(site.path) for glob in globs)}
    if not chosen:
        known = shortened([site.path for site in sites])
        raise NoMatchError(f"no site matches --site {' '.join(patterns)}; SimAM is at {known}")
    return chosen
