"""Which weights a model comes with, and one clear line when they cannot be had."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from simam_inject.errors import ModelError

RANDOM = "random weights"


def describe_weights(library: str, *, pretrained: bool) -> str:
    """The part of a note that says which weights a model has."""
    return f"{library}'s pretrained weights" if pretrained else RANDOM


@contextmanager
def fetching(name: str, *, pretrained: bool) -> Iterator[None]:
    """Turn whatever a library raises while it builds a model, or fetches its weights, into one `ModelError`.

    A download fails in many ways (no network, no such file, a bad hash, a full disk, a hub that is set offline), and
    each library lets its own client's exceptions through: what they have in common is a sentence worth showing.
    """
    try:
        yield
    except ModelError:
        raise
    except Exception as error:
        said = describe_exception(error)
        if not pretrained:
            raise ModelError(f"{name}: cannot build the model: {said}.") from error
        raise ModelError(
            f"{name}: cannot load the pretrained weights: {said}. Without `pretrained` the weights are random."
        ) from error


def describe_exception(error: BaseException) -> str:
    """The class of an exception and the first line of what it says, without decoration and full stop."""
    first = str(error).strip().partition("\n")[0]
    said = re.sub(r"^[^\w'\"`<(\[]+", "", first).rstrip(". ")
    return f"{type(error).__name__}: {said}" if said else type(error).__name__
