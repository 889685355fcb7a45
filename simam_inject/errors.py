"""Everything this package raises on a user's mistake. One base class; the subclass says which stage refused."""


class InjectError(Exception):
    """Base of every error of this package. The message says where, what was found, what is allowed, what to do next."""


class RecipeError(InjectError):
    """A recipe, rule or selector that is not valid. The message starts with the path to the offending key."""


class ModelError(InjectError):
    """A model that cannot be found, built, run on its example input, or edited in its present form."""


class NoMatchError(InjectError):
    """A rule that matches no site, or excludes what is not there. The message shows what is nearest, with reasons."""


class VerificationError(InjectError):
    """An injection that changed something it must not change, or a SimAM that is not live. The model is as it was."""


class FileError(InjectError):
    """A saved file that is truncated, foreign, made for another model, or unsafe. Nothing has been loaded."""


class CompareError(InjectError):
    """A comparison that cannot be started, continued or read. Every finished run of its study is kept."""
