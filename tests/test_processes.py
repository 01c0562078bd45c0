"""What processes of a run agree on, and how they end together: two of them, in one program."""

import textwrap

import numpy as np
import pytest

from tests.hosts import free_port, run_all
from tests.metrics.toy import ToyNetwork, pictures
from zigma_jax.errors import ProcessesError
from zigma_jax.metrics import extract
from zigma_jax.processes import join

PROGRAM = """
    import time
    from pathlib import Path
    import numpy as np
    from absl import app, flags
    from tests.metrics.toy import ToyNetwork, pictures
    from zigma_jax import processes
    from zigma_jax.errors import ConfigError, DataError, ProcessesError
    from zigma_jax.programs import DEFINE_processes, exit_with_errors, parse_flags

    DIRECTORY = flags.DEFINE_string("directory", None, "Of this process's own.")
    WHAT = flags.DEFINE_string("what", None, "To do.")
    JOIN = DEFINE_processes()

    def caught(call, *arguments):
        try:
            return call(*arguments)
        except (ConfigError, DataError, ProcessesError) as error:
            return f"{type(error).__name__}: {error}"

    def refuse():
        raise DataError("no such picture")

    def agree(index):
        assert processes.gather({"i": index}, "here") == [{"i": 0}, {"i": 1}]
        assert processes.from_primary(lambda: index + 5) == 5
        assert caught(processes.from_primary, refuse) == "DataError: no such picture"
        made = []
        assert processes.primary_first(lambda: made.append(1) or index) == index

    def late(index):
        if index == 0:
            processes.barrier("the meeting", 1)
        time.sleep(60)

    def extract(index):
        from zigma_jax.metrics import cached_features, extract
        both = extract(ToyNetwork(), [pictures(13)[:8], pictures(13)[8:]], source={"a": "b"})
        np.savez(f"{DIRECTORY.value}/features{index}.npz", covariance=both.gaussians["pool"].covariance, **both.rows)
        path = Path(DIRECTORY.value) / f"only{index}" / "toy.npz"  # of its own: process 1 never sees process 0's
        cached_features(path, ToyNetwork(), lambda: [pictures(13)], {"a": "b"})
        again = cached_features(path, ToyNetwork(), lambda: 1 / 0, {"a": "b"})
        assert again.count == 13 and dict(again.source) == {"a": "b"}
        assert path.exists() == (index == 0)
        assert bool(again.rows) == (index == 0)

    def main(argv):
        with exit_with_errors(argv):
            JOIN(config={"steps": 3 if WHAT.value != "differ" else 3 + (flags.FLAGS.process_id or 0)})
            index = processes.index()
            if WHAT.value == "fail" and index == 1:
                raise ValueError("a bug of process 1")
            if WHAT.value == "fail":
                processes.barrier("the end")
            if WHAT.value == "late":
                late(index)
            agree(index)
            extract(index)
            processes.barrier("done")
            print("all is well")

    if __name__ == "__main__":
        app.run(main, flags_parser=parse_flags)
"""


def run(tmp_path, what, **options):
    script = tmp_path / "program.py"
    script.write_text(textwrap.dedent(PROGRAM))
    return run_all(tmp_path, str(script), f"--what={what}", f"--directory={tmp_path}", seconds=120, **options)


def test_two_processes_agree_and_share_the_features_of_a_set(tmp_path):
    """With other hash seeds; a file of features that process 0 alone sees; to the bit what one process finds."""
    codes, printed = run(tmp_path, "work")
    assert codes == [0, 0], "\n".join(printed)
    assert "all is well" in printed[0]
    assert "all is well" not in printed[1]  # what a program prints, it prints once
    alone = extract(ToyNetwork(), [pictures(13)])
    for index in range(2):
        with np.load(tmp_path / f"features{index}.npz") as found:
            np.testing.assert_array_equal(found["covariance"], alone.gaussians["pool"].covariance)
            for name, rows in alone.rows.items():
                np.testing.assert_array_equal(found[name], rows)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("differ", "processes 0 and 1 were not started alike:\n  config: {'steps': 3} on 0, {'steps': 4} on 1"),
        ("late", "the meeting: process 1 of 2 did not come within 1 s"),
        ("fail", "ValueError: a bug of process 1"),
    ],
)
def test_all_end_with_the_error_of_one(tmp_path, what, message):
    codes, printed = run(tmp_path, what)
    assert codes == [1, 1], "\n".join(printed)
    assert all(message in output for output in printed) or what == "differ", "\n".join(printed)
    assert any(message in output for output in printed), "\n".join(printed)


def test_a_coordinator_that_does_not_answer():
    port = free_port()
    with pytest.raises(ProcessesError, match=rf"--coordinator=localhost:{port}: nothing answers there within 1 s"):
        join(f"localhost:{port}", 2, 1, limit=1)
