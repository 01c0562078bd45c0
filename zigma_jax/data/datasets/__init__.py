"""The data sets: builders of TFDS that write ArrayRecord."""

import importlib.resources.abc
import importlib.util
import sys

# TFDS 4.9.10 uses importlib_resources without requiring it. It is the backport of the standard library's
# module, which serves as well.
if importlib.util.find_spec("importlib_resources") is None:
    sys.modules["importlib_resources"] = importlib.resources
