"""From pydantic's errors to one `RecipeError` whose message starts with the path of the offending key.

`rules[1].where.channels: found 'big'; allowed is a whole number, ...`
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from pydantic import BaseModel, ValidationError

from simam_inject.errors import RecipeError
from simam_inject.recipe.targets import KeyedError
from simam_inject.recipe.wording import describe, did_you_mean

Location = tuple[int | str, ...]
MAX_OTHERS = 5


def write_path(location: Sequence[int | str], root: str) -> str:
    """`rules[1].where.channels`; `root` where the location is empty."""
    path = ""
    for part in location:
        path += f"[{part}]" if isinstance(part, int) else f".{write_key(part)}"
    return path.lstrip(".") or root


def write_key(key: str) -> str:
    """The key as it is if it is a plain word, else in quotes and shortened."""
    is_word = key[:1] != "-" and key.replace("-", "_").isidentifier()
    return key if len(key) <= 60 and key.isascii() and is_word else describe(key)


@contextmanager
def translated(root: str, models: Callable[[Location], type[BaseModel] | None]) -> Iterator[None]:
    """Turn a `ValidationError` inside the block into a `RecipeError`.

    Args:
        root: what the outermost thing is called when the error is about all of it.
        models: the model that a location stands in, to name its keys.
    """
    try:
        yield
    except ValidationError as error:
        problems = sorted(error.errors(include_url=False), key=lambda problem: problem["type"] != "extra_forbidden")
        raise RecipeError(_write(problems, root, models)) from None
    except RecursionError:
        raise RecipeError(f"{root}: nested too deeply to be a recipe") from None


def _write(problems: Sequence[Any], root: str, models: Callable[[Location], type[BaseModel] | None]) -> str:
    location, sentence = _explain(problems[0], models)
    others = [write_path(_explain(problem, models)[0], root) for problem in problems[1:]]
    also = ""
    if others:
        more = f" and {len(others) - MAX_OTHERS} more" if len(others) > MAX_OTHERS else ""
        also = f" (also wrong: {', '.join(others[:MAX_OTHERS])}{more})"
    return f"{write_path(location, root)}: {sentence}{also}"


def _explain(problem: Any, models: Callable[[Location], type[BaseModel] | None]) -> tuple[Location, str]:
    location: Location = problem["loc"]
    kind: str = problem["type"]
    if kind == "extra_forbidden":
        return location, _explain_unknown(str(location[-1]), models(location[:-1]))
    if kind == "value_error":
        reason = problem["ctx"]["error"]
        return (*location, reason.key) if isinstance(reason, KeyedError) else location, str(reason)
    found = describe(problem["input"])
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        model = models(location)
        keys = f" with the keys {', '.join(model.model_fields)}" if model else ""
        return location, f"found {found}; allowed is a mapping{keys}"
    if kind in ("tuple_type", "list_type"):
        shape = "; write rules: [{block: ..., after: ...}]" if location == ("rules",) else ""
        return location, f"found {found}; allowed is a list{shape}"
    if kind == "too_long":
        length, most = problem["ctx"]["actual_length"], problem["ctx"]["max_length"]
        return location, f"found a list of {length} entries; at most {most} are allowed"
    if kind == "invalid_key":
        return location, f"found the key {describe(problem['input'])}; keys are texts"
    return location, f"found {found}; {problem['msg']}"


def _explain_unknown(key: str, model: type[BaseModel] | None) -> str:
    if model is None:
        return "unknown key"
    fields = model.model_fields
    homes: Mapping[str, str] = getattr(model, "homes", {})
    hint = f"; {key!r} belongs {homes[key]}" if key in homes else did_you_mean(key, fields)
    return f"unknown key; allowed are {', '.join(fields)}{hint}"
