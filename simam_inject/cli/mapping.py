"""`maps`: photographs with the gates of SimAM as heat maps over them."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

from simam_inject.cli.options import MapOptions
from simam_inject.cli.preparing import apply_plan, images_in, make_plan, prepare, read_photograph
from simam_inject.cli.program import Report, Step
from simam_inject.errors import InjectError, ModelError, NoMatchError, RecipeError, shortened
from simam_inject.zoo import ZooModel

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from simam_inject.pictures import Photograph

_MOST_IMAGES = 16
"""Rows of one picture at the most."""


def maps(options: MapOptions, step: Step) -> Report:
    """Draw where the SimAMs of MODEL look in images: each gate as a heat map over the photograph."""
    if find_spec("matplotlib") is None:
        raise InjectError('drawing attention maps requires matplotlib: pip install "simam_inject[maps]"')
    files = [file for path in options.images for file in (images_in(path, _MOST_IMAGES) if path.is_dir() else [path])]
    if len(files) > _MOST_IMAGES:
        raise ModelError(f"{len(files)} images do not fit into one picture; give at most {_MOST_IMAGES}")
    if options.sources:
        built, plan = make_plan(options, step, steps=4)
        apply_plan(built, plan, options.strength)
    else:
        built = prepare(options, step, steps=3)
    from simam_inject.pictures import draw_maps

    chosen = _chosen(built, options.site)
    step(f"running it on {len(files)} images")
    rows = [_maps_of(built, file, chosen, options) for file in files]
    step(f"drawing {options.output}")
    draw_maps(rows, "change" if options.difference else "gate", options.output)
    images = [
        {"image": shot.name, "sites": {path: [v.min().item(), v.max().item()] for path, v in found.items()}}
        for shot, found in rows
    ]
    view = f"{options.output}: {len(rows)} image{'s' * (len(rows) > 1)}, {', '.join(rows[0][1])}"
    return Report([view], {"model": options.model, "output": options.output, "images": images})


def _chosen(built: ZooModel, globs: list[str] | None) -> set[str]:
    """Paths of the sites to draw."""
    from simam_inject.api import injected
    from simam_inject.recipe.names import Glob

    sites = injected(built.model)
    if not sites:
        raise ModelError(f"{built.name} has no SimAM: add --recipe NAME or --after BLOCK")
    if not globs:
        return set({site.reduction: site.path for site in sites}.values())
    try:
        wanted = [Glob(text) for text in globs]
    except ValueError as error:
        raise RecipeError(f"--site: {error}") from None
    chosen = {site.path for site in sites for glob in wanted if glob.covers(site.path)}
    if not chosen:
        known = shortened([site.path for site in sites])
        raise NoMatchError(f"no site matches --site {' '.join(globs)}; SimAM is at {known}")
    return chosen


def _maps_of(
    built: ZooModel, file: Path, chosen: set[str], options: MapOptions
) -> tuple[Photograph, dict[str, Tensor]]:
    """A photograph with its maps by path of the site."""
    from simam_inject.maps import attention_maps, difference_maps

    shot = read_photograph(built, file)
    compute = difference_maps if options.difference else attention_maps
    found = compute(built.model, shot.input, channel=options.channel)
    wanted = {path: values for path, values in found.items() if path.partition(" (run ")[0] in chosen}
    drawn = {path: values[0, 0] for path, values in wanted.items() if values.dim() == 4}
    if not drawn:
        raise ModelError("none of these sites has a two-dimensional feature map")
    return shot, drawn
