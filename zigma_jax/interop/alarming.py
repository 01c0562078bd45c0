"""Names in a pickle that no data would hold.

Safety does not rest on this list, because no name is ever imported. It tells whoever has such a file that it is an
attack, where other unknown names are objects that the weights do not need.
"""

import sys

# Modules of the standard library whose classes are data; a checkpoint needs no other.
_DATA_MODULES = frozenset(
    (
        *("_codecs", "argparse", "array", "collections", "copyreg", "dataclasses", "datetime", "decimal", "enum"),
        *("fractions", "functools", "ipaddress", "logging", "numbers", "operator", "pathlib", "random", "re", "time"),
        *("types", "typing", "uuid", "zoneinfo"),
    )
)
_DATA_BUILTINS = frozenset(
    (
        *("bool", "bytearray", "bytes", "complex", "dict", "float", "frozenset", "int", "list", "long", "object"),
        *("range", "set", "slice", "str", "tuple", "unicode"),
    )
)
_OTHER_MODULES = sys.stdlib_module_names - _DATA_MODULES
# These run, load or compile what they are given.
_RUNNERS = (
    *("torch.hub.", "torch.load", "torch.jit.", "torch.ops.", "torch.utils.cpp_extension.", "torch.serialization.load"),
    *("numpy.testing.", "numpy.load", "numpy.f2py.", "numpy.distutils.", "joblib.", "dill.", "cloudpickle."),
)
_NEVER_WITHIN = frozenset(
    ("builtins", "importlib", "os", "pickle", "posix", "nt", "runpy", "shutil", "subprocess", "sys")
)


def is_alarming(module: str, attribute: str) -> bool:
    """Whether only an attack would name it: what runs code, a way to it through another module, or an internal."""
    name = f"{module}.{attribute}"
    if module == "builtins":
        return attribute not in _DATA_BUILTINS
    package, *within = name.split(".")
    return (
        package in _OTHER_MODULES
        or not _NEVER_WITHIN.isdisjoint(within)
        or any(part.startswith("__") and part.endswith("__") for part in attribute.split("."))
        or (package in _DATA_MODULES and "." in attribute)
        or name.startswith(_RUNNERS)
    )
