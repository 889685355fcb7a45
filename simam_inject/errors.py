"""Exceptions for user errors, one subclass per stage."""


class InjectError(Exception):
    """Base class of all errors of this package. Messages have the location, what was found, and what is expected."""


class RecipeError(InjectError):
    """An invalid recipe, rule or selector. The message starts with the path of the offending key."""


class ModelError(InjectError):
    """A model that cannot be found, built, run on its example inputs, or modified."""


class NoMatchError(InjectError):
    """A rule that matches no site, or an `exclude` that matches nothing. The message lists near misses with reasons."""


class VerificationError(InjectError):
    """An injection that changed something else, or a SimAM that is not live. The model is unchanged."""


class FileError(InjectError):
    """A file that is truncated, of another format, saved from another model, or unsafe. Nothing has been loaded."""


class CompareError(InjectError):
    """A comparison that cannot be started, continued or read. Finished runs of the study are preserved."""
