"""How programs end: one line for what can be mended, a traceback for a bug, a code for Ctrl-C."""

import pytest

from zigma_jax.errors import ConfigError
from zigma_jax.programs import exit_with_errors


@pytest.fixture(autouse=True)
def _of_this_process(monkeypatch):
    """What the tests after these log is not for these to change."""
    monkeypatch.setattr("zigma_jax.programs.logging.set_verbosity", lambda _: None)


def test_what_can_be_mended_is_one_line():
    for error in (ConfigError("config.a.b = 3: must be 4"), FileNotFoundError(2, "No such file", "a.png")):
        with pytest.raises(SystemExit, match=r"^error: "), exit_with_errors(["program"]):
            raise error


def test_a_bug_keeps_its_traceback():
    for error in (ValueError("of a bug"), OSError("of no file")):
        with pytest.raises(type(error), match="of "), exit_with_errors(["program"]):
            raise error


def test_ctrl_c_while_nothing_can_be_saved_yet_ends_with_its_code(capsys):
    """As while a model is loaded; what runs long handles the signal itself."""
    with pytest.raises(SystemExit) as ended, exit_with_errors(["program"]):
        raise KeyboardInterrupt
    assert ended.value.code == 130
    assert capsys.readouterr().err.startswith("SIGINT: stopped")
