"""Signals that ask a run to stop: the first is a request, the second an order.

Ctrl-C (SIGINT), SIGTERM and SIGUSR1 (which SLURM sends some time before it ends a job) mean the same. What runs on
several processes stops on all of them after the same step, whichever of them got the signal.
"""

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
_SAME = 0.2  # seconds in which signals count as one: `timeout`, `uv run` and others send theirs twice


class Interrupted(Exception):  # noqa: N818  no error
    """Raised by work that a request to stop cut short."""


class Stops:
    """While it is entered, the first signal is noted in `received`; outside, signals do what they did before.

    exit_at_second: the second one ends the process at once, with code 128 + its number, even while the main thread
        waits for a compilation. Otherwise it does what it did before: whoever calls the library decides.
    In another thread than the main one, which alone may handle signals, nothing is noted.
    """

    def __init__(self, exit_at_second: bool = False):
        self.received: signal.Signals | None = None
        self._exit_at_second = exit_at_second
        self._before: dict[signal.Signals, Callable | int] = {}
        self._wakeup: tuple[socket.socket, socket.socket, int] | None = None
        self._agree: Callable[[int], jax.Array] | None = None
        self._asked: jax.Array | None = None

    def __enter__(self) -> "Stops":
        if threading.current_thread() is threading.main_thread():
            before = {number: signal.getsignal(number) for number in SIGNALS}
            # None: a handler that Python did not install, and could not put back.
            self._before = {number: handler for number, handler in before.items() if handler is not None}
            if self._exit_at_second:
                self._watch()
            for number in self._before:
                signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        self._put_back()
        if self._wakeup is not None:
            _reader, writer, before = self._wakeup
            signal.set_wakeup_fd(before)
            writer.close()  # ends the thread that reads
            self._wakeup = None

    def on(self, mesh: Mesh) -> None:
        """Several processes, each with its devices in `mesh`, stop together from now on."""
        if jax.process_count() > 1:
            everywhere = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
            largest = jax.jit(jnp.max, out_shardings=NamedSharding(mesh, PartitionSpec()))
            mine = len(mesh.local_devices)
            self._agree = lambda number: largest(
                jax.make_array_from_process_local_data(everywhere, np.full(mine, number, np.int32))
            )

    def agreed(self) -> bool:
        """Whether to stop, the same answer on all processes, each of which has to ask as often as the others.

        On several processes it is that to the question before: nobody waits for the devices.
        """
        if self._agree is not None:
            answer, self._asked = self._asked, self._agree(self.received or 0)
            if answer is None or not (number := int(jax.device_get(answer))):
                return False
            self.received, self._agree = signal.Signals(number), None
        return self.received is not None

    def _note(self, number: int, _frame: object) -> None:
        self.received = self.received or signal.Signals(number)
        if not self._exit_at_second:
            self._put_back()

    def _put_back(self) -> None:
        before, self._before = self._before, {}
        for number, handler in before.items():
            signal.signal(number, handler)

    def _watch(self) -> None:
        """Reads the signals as the system delivers them: handlers wait until the main thread is back in Python."""
        reader, writer = socket.socketpair()
        writer.setblocking(False)
        self._wakeup = reader, writer, signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)

        def watch() -> None:
            first = None
            while byte := reader.recv(1):
                if byte[0] not in SIGNALS:
                    continue
                number, now = signal.Signals(byte[0]), time.monotonic()
                if first is None:
                    first, self.received = now, self.received or number
                    _say(f"{number.name}: finishing the step and saving; a second signal stops at once")
                elif now - first > _SAME:
                    _say(f"{number.name} again: stopped at once")
                    os._exit(128 + number)
            reader.close()

        threading.Thread(target=watch, name="stops", daemon=True).start()


def _say(text: str) -> None:
    """On stderr, below a progress bar; a terminal that has gone is no reason not to stop."""
    with contextlib.suppress(OSError):
        print(f"\n{text}", file=sys.stderr, flush=True)
