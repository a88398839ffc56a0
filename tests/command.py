"""The command ``thalweg`` in tests: called in this process, or started and stopped while it trains."""

import contextlib
import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pytest

from thalweg import cli


class Outcome(NamedTuple):
    """What a command left: its exit code, and what it wrote to stdout and stderr."""

    code: int
    out: str
    err: str


def call(*arguments: object) -> Outcome:
    """Call the command in this process."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.setattr(sys, "argv", ["thalweg", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
    return Outcome(int(stopped.value.code or 0), out.getvalue(), err.getvalue())


def thalweg(*arguments: object, code: int = 0) -> Outcome:
    """Call the command, which must end with this exit code."""
    found = call(*arguments)
    assert found.code == code, found
    return found


def are_refused(cases: list[tuple[tuple[object, ...], int, str]]) -> None:
    """Each command must end with its exit code, after one line of an error that has these words."""
    for arguments, code, words in cases:
        done = call(*arguments)
        assert (done.code, done.err.count("\n")) == (code, 1), (arguments, done.err)
        assert done.err.startswith("error: ")
        assert words in done.err, (arguments, done.err)


def stop_in_training(settings: list[object], run: Path, how: signal.Signals) -> str:
    """Start a command, stop it at its third new checkpoint, and hand back what it wrote to stderr."""
    seen, n_new = _checkpoints(run), 0
    command = [sys.executable, "-m", "thalweg.cli", *map(str, settings), "--out", str(run)]
    process = subprocess.Popen(
        command,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # A shell that starts jobs in the background has them ignore Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        deadline = time.monotonic() + 120
        while process.poll() is None and n_new < 3:
            assert time.monotonic() < deadline
            time.sleep(0.005)
            found = _checkpoints(run)
            n_new, seen = n_new + (found != seen), found
        process.send_signal(how)
        _, message = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == (130 if how == signal.SIGINT else -how), message.decode()
    return message.decode()


def _checkpoints(run: Path) -> dict[Path, int]:
    """When each checkpoint of a run was written."""
    found = {}
    for path in [run / "training" / "checkpoint.pt", *run.glob("training/*/checkpoint.pt")]:
        with contextlib.suppress(FileNotFoundError):
            found[path] = path.stat().st_mtime_ns
    return found
