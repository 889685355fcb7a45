"""Which of the recorded sites a network has."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from simam_inject.planning.records import Insertion

Key = tuple[str, str | None, str, float]


def key_of(site: Insertion) -> Key:
    """What two insertions have in common if they are the same one; shapes depend on the example."""
    return site.path, site.reader, site.position, site.e_lambda


def missing_sites(network: nn.Module, wanted: Iterable[Insertion]) -> list[Insertion]:
    """The sites that the network should have and has not.

    A site whose module is gone does not count: `fuse()` drops the branch of a head that only training needs.
    """
    from simam_inject.surgery import injected

    there = {key_of(site) for site in injected(network)}
    modules = dict(network.named_modules())
    return [site for site in wanted if key_of(site) not in there and site.scope in modules]
