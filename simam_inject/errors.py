"""Exceptions for user errors, one subclass for each kind, and what their messages are written with."""

import difflib
import numbers
import re
import warnings
from collections.abc import Iterable, Sequence
from importlib.util import find_spec


class InjectError(Exception):
    """Base class of all errors of this package. Messages have the location, what was found, and what is expected.

    Example:
        >>> import torchvision
        >>> from simam_inject import inject
        >>> try:
        ...     inject(torchvision.models.resnet18(), "after bottleneck")  # ResNet-18 has basic blocks
        ... except InjectError as error:
        ...     print(type(error).__name__)
        NoMatchError
    """


class RecipeError(InjectError):
    """An invalid recipe, rule or selector. The message starts with the path of the offending key."""


class ModelError(InjectError):
    """A model that cannot be found, built, run on its example inputs, or modified."""


class NoMatchError(InjectError):
    """A rule that matches no site, or excludes what is not there. The message shows what is nearest, with reasons."""


class VerificationError(InjectError):
    """An injection that changed something else, or a SimAM that is not live."""


class FileError(InjectError):
    """A file that is truncated, of another format, saved from another model, or unsafe."""


class CompareError(InjectError):
    """A comparison that cannot be started, continued or read. Finished runs of the study are preserved."""


_NOUNS: dict[type, str] = {type(None): "nothing", dict: "a mapping", list: "a list", tuple: "a list", set: "a set"}


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


def describe(value: object) -> str:
    """The value as a message shows it: short, on one line, and never by its own `repr`."""
    if isinstance(value, str):
        return repr(value) if len(value) <= 60 else f"{value[:57]!r}..."
    if isinstance(value, bool | float):
        return repr(value).lower()
    if isinstance(value, int):
        return str(value) if value.bit_length() < 128 else "a number of more than 38 digits"
    return _NOUNS.get(type(value), f"a value of type {type(value).__name__}")


def nearest(name: str, names: Iterable[str], *, count: int = 3, cutoff: float = 0.6) -> tuple[str, ...]:
    """The names most similar to `name`, letter case ignored, the most similar first."""
    by_fold = {known.casefold(): known for known in sorted(names)}
    near = difflib.get_close_matches(name[:100].casefold(), list(by_fold), n=count, cutoff=cutoff)
    return tuple(by_fold[fold] for fold in near)


def did_you_mean(name: object, names: Iterable[str], *, cutoff: float = 0.6) -> str:
    """`; did you mean 'x'?` or an empty text."""
    near = nearest(name, names, count=1, cutoff=cutoff) if isinstance(name, str) else ()
    return f"; did you mean {near[0]!r}?" if near else ""


def join_names(names: Iterable[object], last: str = "or") -> str:
    """`a`, `a or b`, `a, b or c`."""
    *init, final = map(str, names)
    return f"{', '.join(init)} {last} {final}" if init else final


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
