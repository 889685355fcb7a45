"""Exceptions for user errors, one subclass for each kind, and what their messages are written with."""

import numbers
import re
import warnings
from collections.abc import Sequence
from importlib.util import find_spec


class InjectError(Exception):
    """Base class of all errors of this package. Messages have the location, what was found, and what is expected."""


class RecipeError(InjectError):
    """An invalid recipe, rule or selector. The message starts with the path of the offending key."""


class ModelError(InjectError):
    """A model that cannot be found, built, run on its example inputs, or modified."""


class NoMatchError(InjectError):
    """A rule that matches no site, or excludes what is not there. The message shows what is nearest, with reasons."""


class VerificationError(InjectError):
    """An injection that changed something else, or a SimAM that is not live. The model is unchanged."""


class FileError(InjectError):
    """A file that is truncated, of another format, saved from another model, or unsafe. Nothing has been loaded."""


class CompareError(InjectError):
    """A comparison that cannot be started, continued or read. Finished runs of the study are preserved."""


def describe_exception(error: BaseException) -> str:
    """The class of any exception and the first line of its message, without decoration and full stop."""
    first = str(error).strip().partition("\n")[0]
    sentence = re.sub(r"^[^\w'\"`<(\[]+", "", first).rstrip(". ")
    return f"{type(error).__name__}: {sentence}" if sentence else type(error).__name__


def a_type(value: object) -> str:
    """The class of a value with its article: `a Conv2d`, `an int`."""
    name = type(value).__name__
    return f"{'an' if name[0] in 'aeioAEIO' else 'a'} {name}"


def shortened(lines: Sequence[str], shown: int = 5, joint: str = ", ") -> str:
    """The first of many things that a message lists, and how many more there are."""
    more = [f"and {len(lines) - shown} more"] if len(lines) > shown else []
    return joint.join([*lines[:shown], *more])


def plural(number: int, one: str, several: str = "") -> str:
    """A number of things: `1 site`, `3 sites`, `2 near misses`."""
    return f"{number} {one if number == 1 else several or f'{one}s'}"


def check_installed(user: str, extra: str, *packages: str, error: type[InjectError] = ModelError) -> None:
    """Raise an error if a package, which `user` needs and an extra of this package installs, is missing."""
    for package in packages:
        if find_spec(package) is None:
            raise error(f"{user} needs {package}, which is not installed: pip install 'simam_inject[{extra}]'")


def warn_of_channel_count(e_lambda: object, written: str, *, stacklevel: int) -> None:
    """Warn when a lambda looks like a channel count, as in `SimAM(1024)`: the gate would be a constant."""
    if isinstance(e_lambda, numbers.Integral) and int(e_lambda) > 1:
        warnings.warn(
            f"{written} is probably a channel count, and makes the gate a constant. SimAM needs no channel count: "
            "leave e_lambda out, or write a decimal point if the value is intended.",
            stacklevel=stacklevel + 1,
        )
