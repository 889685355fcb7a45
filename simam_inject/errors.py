"""Everything this package raises on a user's mistake. One base class; the subclass says which stage refused."""

import re
from collections.abc import Sequence


class InjectError(Exception):
    """Base of every error of this package. The message says where, what was found, what is allowed, what to do next."""


class RecipeError(InjectError):
    """A recipe, rule or selector that is not valid. The message starts with the path to the offending key."""


class ModelError(InjectError):
    """A model that cannot be found, built, run on its example input, or edited in its present form."""


class NoMatchError(InjectError):
    """A rule that takes no site, or excludes what is not there. The message shows what is nearest, with reasons."""


class VerificationError(InjectError):
    """An injection that changed something it must not change, or a SimAM that is not live. The model is as it was."""


class FileError(InjectError):
    """A saved file that is truncated, foreign, made for another model, or unsafe. Nothing has been loaded."""


class CompareError(InjectError):
    """A comparison that cannot be started, continued or read. Every finished run of its study is kept."""


def describe_exception(error: BaseException) -> str:
    """The class of somebody else's exception and the first line of its message, without decoration and full stop."""
    first = str(error).strip().partition("\n")[0]
    sentence = re.sub(r"^[^\w'\"`<(\[]+", "", first).rstrip(". ")
    return f"{type(error).__name__}: {sentence}" if sentence else type(error).__name__


def shortened(lines: Sequence[str], shown: int = 5, joint: str = ", ") -> str:
    """The first of many things that a message lists, and how many more there are."""
    more = [f"and {len(lines) - shown} more"] if len(lines) > shown else []
    return joint.join([*lines[:shown], *more])
