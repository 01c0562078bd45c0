"""Errors that whoever runs a program can mend: the programs print them as one line.

Every other exception is a bug or a broken machine, and keeps its traceback. Each class is also the built-in exception
that its kind of mistake usually raises, so that library users may catch either.
"""


class UserError(Exception):
    """What the person who runs the program can mend; the message says what is wrong, where, and what to do."""


class ConfigError(UserError, ValueError):
    """A field, a flag or an argument has a value that its rule forbids: "config.section.field = value: rule"."""


class DataError(UserError, ValueError):
    """A data set, a picture, a table or an array cannot be used; names the file, the place in it and the rule."""


class WeightsError(UserError, ValueError):
    """A file of weights is damaged, unsafe, missing or of something else; names the file and the tensors."""


class MissingPackageError(UserError, ImportError):
    """An optional package is not installed; names the extra that brings it."""


class DivergedError(UserError, FloatingPointError):
    """Numbers are no longer finite: a training run, or samples; the message says where, and what helps."""


class ProcessesError(UserError, RuntimeError):
    """Processes of one run do not come together, or one of them is missing; the message says which and where."""
