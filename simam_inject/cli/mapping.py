"""`simam-inject maps`: photographs beside the maps of their gates."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from simam_inject.cli.options import PLACE, RESULT, Options, parse_existing, parse_page, with_options
from simam_inject.cli.preparing import Prepared, check_model_name, make_plan, prepare
from simam_inject.cli.working import Step, show, working
from simam_inject.errors import ModelError, NoMatchError

if TYPE_CHECKING:
    from torch import Tensor

    from simam_inject.pictures import Photograph

_MOST_IMAGES = 16
"""Rows of one picture at the most."""
_FORMATS = (".png", ".jpg", ".pdf", ".svg")


def _parse_picture(text: str) -> Path:
    path = parse_page(text)
    if path.suffix.lower() not in _FORMATS:
        raise typer.BadParameter(f"found {text!r}; the file must end in {', '.join(_FORMATS)}")
    return path


def _option(panel: str, name: str, text: str, **more: Any) -> Any:
    return typer.Option(name, help=text, rich_help_panel=panel, **more)


@dataclass(frozen=True, slots=True, kw_only=True)
class MapOptions:
    """Which images and sites are drawn, and how."""

    images: Annotated[
        list[Path],
        typer.Argument(
            metavar="IMAGE...", show_default=False, help="Images, or folders of images", parser=parse_existing
        ),
    ]
    site: Annotated[
        list[str] | None,
        _option(PLACE, "--site", "Sites to draw, e.g. 'layer4.*'; default: the last of each map size", metavar="GLOB"),
    ] = None
    channel: Annotated[
        int | None,
        _option(RESULT, "--channel", "Draw this channel instead of the mean over channels", metavar="N", min=0),
    ] = None
    difference: Annotated[
        bool, _option(RESULT, "--difference", "Draw how much SimAM changes the feature map at each site")
    ] = False
    output: Annotated[Path, _option(RESULT, "--output", "The picture", metavar="FILE", parser=_parse_picture)] = Path(
        "maps.png"
    )


@with_options
def maps(options: Options, more: MapOptions) -> None:
    """Draw where the SimAMs of MODEL look in images: each gate as a heat map over the photograph."""
    check_model_name(options.model)
    with working(steps=5, as_json=options.as_json, quiet=options.quiet) as step:
        rows = _rows(options, more, step)
        step(f"drawing {more.output}")
        from simam_inject.pictures import draw_maps

        draw_maps(rows, "change" if more.difference else "gate", more.output)
    report = [
        {"image": shot.name, "sites": {path: [v.min().item(), v.max().item()] for path, v in found.items()}}
        for shot, found in rows
    ]
    if options.as_json:
        typer.echo(json.dumps({"model": options.model, "output": str(more.output), "images": report}, indent=2))
    elif not options.quiet:
        show(f"{more.output}: {len(rows)} image{'s' * (len(rows) > 1)}, {', '.join(rows[0][1])}")


def _rows(options: Options, more: MapOptions, step: Step) -> list[tuple[Photograph, dict[str, Tensor]]]:
    """Each photograph with its maps by path of the site."""
    from simam_inject.pictures import check_matplotlib, photograph

    check_matplotlib()
    files = _files(more.images)
    model = _attended(options, step)
    from simam_inject.maps import attention_maps, difference_maps

    chosen = _chosen(model.built.model, more.site)
    size = _size(model)
    letterbox = model.built.source == "ultralytics" and getattr(model.built.model, "task", "") != "classify"
    step(f"running it on {len(files)} images")
    rows = []
    for file in files:
        shot = photograph(file, size, normalization=model.built.normalization, letterbox=letterbox)
        compute = difference_maps if more.difference else attention_maps
        found = compute(model.built.model, shot.input, channel=more.channel)
        wanted = {path: values for path, values in found.items() if path.partition(" (run ")[0] in chosen}
        drawn = {path: values[0, 0] for path, values in wanted.items() if values.dim() == 4}
        if not drawn:
            raise ModelError("none of these sites has a two-dimensional feature map")
        rows.append((shot, drawn))
    return rows


def _attended(options: Options, step: Step) -> Prepared:
    """The model with SimAM in it: put in by the options, or there already."""
    from simam_inject.cli.composing import compose_recipe

    recipe = compose_recipe(options) if options.recipe or options.selectors else None
    prepared = prepare(options, step)
    step("inserting SimAM")
    from simam_inject.api import injected

    if recipe is not None:
        make_plan(prepared, recipe, options).apply()
    elif not injected(prepared.built.model):
        raise ModelError(f"{options.model} has no SimAM: add --recipe NAME or --after BLOCK")
    return prepared


def _files(images: list[Path]) -> list[Path]:
    from simam_inject.cli.images import images_in

    files = [file for path in images for file in (images_in(path, _MOST_IMAGES) if path.is_dir() else [path])]
    if len(files) > _MOST_IMAGES:
        raise ModelError(f"{len(files)} images do not fit into one picture; give at most {_MOST_IMAGES}")
    return files


def _chosen(model: Any, globs: list[str] | None) -> set[str]:
    """Paths of the sites to draw."""
    from simam_inject.api import injected
    from simam_inject.recipe.names import Glob

    sites = injected(model)
    if not globs:
        return set({site.reduction: site.path for site in sites}.values())
    chosen = {site.path for site in sites for text in globs if Glob(text).covers(site.path)}
    if not chosen:
        known = ", ".join(site.path for site in sites[:4]) + (", ..." if len(sites) > 4 else "")
        raise NoMatchError(f"no site matches --site {' '.join(globs)}; SimAM is at {known}")
    return chosen


def _size(prepared: Prepared) -> tuple[int, int, int]:
    from simam_inject.adapters import network_of
    from simam_inject.dataflow.example import declared_size

    built = prepared.built
    shape = built.input_shapes[0][1:] if built.input_shapes else declared_size(network_of(built.model))
    size = prepared.size or shape
    if built.takes_list or len(size) != 3 or size[0] not in (1, 3):
        raise ModelError(f"{built.name} does not take a batch of images of one size, so its maps cannot be drawn")
    return size[0], size[1], size[2]
