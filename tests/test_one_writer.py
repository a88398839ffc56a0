"""Two processes and one folder: one of them writes, and the other is refused."""

import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from command import call, thalweg
from thalweg.runs import folder as run_folder
from thalweg.runs.folder import begin_run, check_run, writing_alone
from thalweg.runs.settings.density import DensitySettings

# A process that holds the folder until it is killed.
HOLD = """
import sys, time
from pathlib import Path
from thalweg.runs.folder import writing_alone
with writing_alone(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def table(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    pd.DataFrame(rng.normal(size=(40, 2)), columns=["a", "b"]).to_csv(tmp_path / "t.csv", index=False)
    return tmp_path / "t.csv"


@pytest.fixture
def holder(tmp_path: Path):
    process = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path / "run"], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"held\n"
    yield process
    process.kill()
    process.communicate()


SMALL = ("--epochs", 1, "--members", 1, "-q", "--no-report")


def test_a_second_process_is_refused_in_one_line_and_changes_nothing(tmp_path, table, holder):
    settings = DensitySettings(data=str(table), epochs=1, members=1)
    begin_run(tmp_path / "run", settings, "0", resume=False)
    before = {p.name: p.read_bytes() for p in (tmp_path / "run").iterdir()}
    for how in ("--overwrite", "--resume"):
        done = call("fit", "density", table, *SMALL, "--out", tmp_path / "run", how)
        assert (done.code, done.err.count("\n")) == (1, 1)
        assert done.err.startswith(f"error: another process is writing the run in {tmp_path / 'run'}: wait")
    assert {p.name: p.read_bytes() for p in (tmp_path / "run").iterdir()} == before


def test_a_lock_ends_with_a_killed_process_and_what_it_left_is_no_other_file(tmp_path, table, holder):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert (tmp_path / "run" / ".lock").exists()
    thalweg("fit", "density", table, *SMALL, "--out", tmp_path / "run")
    assert not (tmp_path / "run" / ".lock").exists()
    assert (tmp_path / "run" / "figures.json").exists()


def test_a_document_that_was_cut_off_is_no_other_file(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "fit.json.part").write_text("{")
    settings = DensitySettings(data="t.csv")
    assert not check_run(tmp_path / "run", settings, resume=False, overwrite=False)
    (tmp_path / "run" / "mine.txt").write_text("")
    with pytest.raises(ValueError, match="holds other files"):
        check_run(tmp_path / "run", settings, resume=False, overwrite=False)


def test_a_run_that_another_process_made_meanwhile_is_kept(tmp_path, table, monkeypatch):
    """The other process begins and ends between the check of the folder and the lock."""
    from thalweg.runs import base

    read = base.run_class(DensitySettings).read
    settings = DensitySettings(data=str(table), epochs=1, members=1)

    def made_meanwhile(settings):
        begin_run(tmp_path / "run", settings, "another", resume=False)
        return read(settings)

    monkeypatch.setattr(base.run_class(DensitySettings), "read", made_meanwhile)
    with pytest.raises(ValueError, match="holds an unfinished run"):
        base.fit_run(tmp_path / "run", settings, verbose=False)
    assert run_folder.read_run_settings(tmp_path / "run") == settings


def test_only_the_first_of_several_processes_takes_the_lock(tmp_path, table, holder, monkeypatch):
    """The others train beside the holder; here they come as far as the checkpoint that they share."""
    from thalweg.runs import base

    monkeypatch.setenv("RANK", "1")
    settings = DensitySettings(data=str(table), epochs=1, members=1)
    assert base.fit_run(tmp_path / "run", settings, verbose=False) is None


def test_without_locks_in_the_file_system_a_run_is_made(tmp_path, table, monkeypatch):
    import fcntl

    def unable(*arguments: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", unable)
    thalweg("fit", "density", table, *SMALL, "--out", tmp_path / "run")


def test_an_empty_folder_is_not_left_and_a_lock_is_released(tmp_path):
    for _ in range(2):
        with (
            writing_alone(tmp_path / "run"),
            pytest.raises(ValueError, match="another process"),
            writing_alone(tmp_path / "run"),
        ):
            pass
        assert not (tmp_path / "run").exists()
