"""PyTorch files that want to run something, or to fill the memory: nothing runs, and nothing grows."""

import contextlib
import os
import pickle
import struct
import subprocess
import tracemalloc
from pathlib import Path

import pytest

from tests.interop.torch_pickles import save, text
from zigma_jax.interop.inert_pickle import Record
from zigma_jax.interop.torch_file import TorchFileError, UnsafeCheckpointError, read_torch


class Attack:
    """Pickles as a call, and can set state after it."""

    def __init__(self, function, *arguments, state=None):
        self.reduced = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self):
        return self.reduced


def attacks(marker: Path) -> dict[str, bytes]:
    command = f"touch {marker}"
    nested = pickle.dumps(Attack(os.system, command))
    call = b"(" + text(command) + b"t"
    one = b"(" + text(command)
    ordered = b"\x80\x02ccollections\nOrderedDict\n)R"
    rebuild = b"ctorch._utils\n_rebuild_parameter\n"
    return {
        "reduce os.system": pickle.dumps(Attack(os.system, command), 2),
        "reduce, protocol 4": pickle.dumps(Attack(os.system, command), 4),
        "reduce, protocol 0": pickle.dumps(Attack(os.system, command), 0),
        "subprocess": pickle.dumps(Attack(subprocess.check_output, ["touch", str(marker)]), 2),
        "eval": pickle.dumps(Attack(eval, f"__import__('os').system({command!r})"), 2),
        "exec": pickle.dumps(Attack(exec, f"import os; os.system({command!r})"), 2),
        "getattr": b"\x80\x02c__builtin__\ngetattr\n(c__builtin__\n__import__\n("
        + (text("os") + b"tR" + text("system") + b"tR" + call + b"R."),
        "import": pickle.dumps(Attack(__import__, "os"), 2),
        "nested loads": pickle.dumps(Attack(pickle.loads, nested), 2),
        "open": pickle.dumps(Attack(open, str(marker), "w"), 2),
        "inst": b"\x80\x02(" + text(command) + b"ios\nsystem\n.",
        "obj": b"\x80\x02(cos\nsystem\n" + text(command) + b"o.",
        "newobj": b"\x80\x02cos\nsystem\n" + call + b"\x81.",
        "newobj_ex": b"\x80\x04cos\nsystem\n" + call + b"}\x92.",
        "stack_global": b"\x80\x04" + text("os") + text("system") + b"\x93" + call + b"R.",
        "dotted": b"\x80\x04" + text("collections") + text("OrderedDict.__init__.__globals__") + b"\x93.",
        "dotted module": b"\x80\x02ccollections.abc.os\nsystem\n" + call + b"R.",
        "torch.hub": b"\x80\x02ctorch.hub\nload\n" + call + b"R.",
        "torch.load": b"\x80\x02ctorch\nload\n" + call + b"R.",
        "torch.os": b"\x80\x02ctorch\nos.system\n" + call + b"R.",
        "omegaconf's imports": b"\x80\x02comegaconf.base\nos.system\n" + call + b"R.",
        "numpy": b"\x80\x02cnumpy.testing._private.utils\nrunstring\n" + call + b"R.",
        "this module": b"\x80\x02czigma_jax.interop.torch_file\nos.system\n" + call + b"R.",
        "extension": b"\x80\x02\x82\x01.",
        "persistent id": b"\x80\x02Pos.system\n.",
        "call what a call gave": ordered + b")R.",
        "call a string": b"\x80\x02" + text("os.system") + call + b"R.",
        "setstate of a name": b"\x80\x02" + rebuild + b"}" + text("__setstate__") + b"cos\nsystem\nsb" + one + b"tb.",
        "state of a function": b"\x80\x02" + rebuild + b"N}" + text("__code__") + b"Ns\x86b.",
        "state of a dict": b"\x80\x02}}" + text("__class__") + b"Nsb.",
        "unused": b"\x80\x02cos\nsystem\n0N.",
    }


@pytest.mark.parametrize("name", list(attacks(Path("x"))))
def test_nothing_in_the_file_runs(tmp_path, name):
    marker = tmp_path / "ran"
    path = save(tmp_path / "a.pt", attacks(marker)[name])
    with pytest.raises(UnsafeCheckpointError) as caught:
        read_torch(path)
    assert not marker.exists()
    assert "a.pt" in str(caught.value)
    if name in ("reduce os.system", "inst", "newobj", "stack_global"):
        assert "system" in str(caught.value)


def test_the_attack_would_work_on_pickle(tmp_path):
    """The markers above mean something: Python's own unpickler runs them."""
    pickle.loads(attacks(tmp_path / "ran")["reduce os.system"])
    pickle.loads(attacks(tmp_path / "ran2")["inst"])
    pickle.loads(attacks(tmp_path / "ran3")["getattr"])
    assert {path.name for path in tmp_path.iterdir()} == {"ran", "ran2", "ran3"}


def test_objects_of_config_classes_are_only_records(tmp_path):
    """A record's class is never looked up, its state never applied."""
    data = b"\x80\x02cargparse\nNamespace\n)\x81}" + text("__class__") + text("os._wrap_close") + b"sb."
    assert read_torch(save(tmp_path / "a.pt", data)) == {"__class__": "os._wrap_close"}
    data = b"\x80\x02comegaconf.base\nMetadata\n)\x81."
    record = read_torch(save(tmp_path / "b.pt", data))
    assert (type(record), record.name) == (Record, "omegaconf.base.Metadata")


MIB = 1 << 20
HUGE = struct.pack("<Q", 1 << 40)
TEXT = b"X" + struct.pack("<I", MIB) + b"a" * MIB + b"q\x00"


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("memo index", b"\x80\x02]r\xff\xff\xff\x7f."),  # C would make a table of so many
        ("bytearray", b"\x80\x05\x96" + HUGE + b"a."),
        ("bytes", b"\x80\x04\x8e" + HUGE + b"a."),
        ("text", b"\x80\x04\x8d" + HUGE + b"a."),
        ("frame", b"\x80\x04\x95" + HUGE + b"N."),
        ("long", b"\x80\x02\x8b\xff\xff\xff\x7fa."),
        (
            "copies",
            b"\x80\x02" + TEXT + b"]q\x01(" + b"c_codecs\nencode\nh\x00X\x06\x00\x00\x00latin1\x86R" * 64 + b"e.",
        ),
        ("lists", b"\x80\x02](" + b"N" * 4_000 + b"eq\x00(" + b"cbuiltins\nset\nh\x00\x85R" * 64 + b"l."),
        ("key of keys", b"\x80\x02}K\x01q\x000" + b"h\x00h\x00\x86q\x000" * 60 + b"h\x00Ns."),
        ("deep state", b"\x80\x02" + b"cm\nC\n)\x81" * 3_000 + b"b" * 2_999 + b"."),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_memory_stays_small(tmp_path, name, data):
    path = save(tmp_path / "a.pt", data)
    tracemalloc.start()
    with contextlib.suppress(TorchFileError):
        read_torch(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * MIB + 10 * len(data), name
