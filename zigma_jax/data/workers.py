"""Worker processes that end with the process that started them, however it ends, and not by themselves.

A terminal's Ctrl-C and a batch system's SIGTERM go to every process of a group. Were the workers to follow them, the
run could not finish its step; so they are started with those signals blocked, which they inherit from the thread that
starts them. A run that is killed can't end its workers; so each of them watches it.
"""

import concurrent.futures
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from multiprocessing import resource_tracker
from typing import TypeVar

T = TypeVar("T")

_BLOCKED = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2}


def start_deaf[T](call: Callable[[], T]) -> T:
    """What `call` returns, made in a thread that has signals blocked, as have all threads and processes it starts."""
    with concurrent.futures.ThreadPoolExecutor(1, "deaf", _block) as pool:
        return pool.submit(call).result()


def live_with_parent(_index: int = 0, _count: int = 1) -> None:
    """To be called in a worker, as grain does: from now on it ends as soon as its parent has ended.

    Not by PR_SET_PDEATHSIG: that goes by the thread that started the process, and grain's ends earlier.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None, "this process was not started by multiprocessing"

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, name="parent", daemon=True).start()


def _block() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, _BLOCKED)
    resource_tracker.ensure_running()  # a process, too; Python unblocks two of the signals after starting it
    signal.pthread_sigmask(signal.SIG_BLOCK, _BLOCKED)
