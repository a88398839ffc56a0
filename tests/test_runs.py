"""Tasks and runs: a task added from outside, options that do not apply, what is refused without PyTorch."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pandas as pd
import pytest
import torch
from threadpoolctl import threadpool_info, threadpool_limits

from command import thalweg
from thalweg import runs
from thalweg.data.tables import read_table, write_table
from thalweg.energies import GaussianEnergy
from thalweg.estimators._base import Estimator
from thalweg.objectives import catalogue, names
from thalweg.objectives.base import Batch
from thalweg.objectives.score_matching import ScoreMatching
from thalweg.report import Card, render_page
from thalweg.report.page import footer_of
from thalweg.runs import settings_of
from thalweg.runs.base import Run, TextTable, fit_run, run_class
from thalweg.runs.settings import RunSettings, Verb, option
from thalweg.runs.settings.density import DensitySettings
from thalweg.runs.tables import check_columns, fingerprint_of, model_settings
from thalweg.training.loop import Plan, Trainer

# -- a task of one's own: settings, an estimator, a run and a page ----------------------------------------


@dataclass(frozen=True, kw_only=True)
class BellSettings(RunSettings):
    """Fit a bell curve to the first column of a table."""

    task = "bell"
    title = "bell curve of a column"
    help = "Fit a bell curve."
    example = "thalweg fit bell table.csv"
    run = "test_runs:BellRun"
    report = "test_runs"
    verbs: ClassVar = {"sample": Verb(("n",), "{run} -n 3")}

    epochs: int = option(3, "Passes over the data.", least=1)


class LearnedBell(GaussianEnergy):
    def __init__(self):
        super().__init__(torch.zeros(1), torch.ones(1))
        del self.mean
        self.mean = torch.nn.Parameter(torch.zeros(1))


class Bell(Estimator):
    def __init__(self, max_epochs=3, *, device="cpu", devices=1, num_nodes=1, strategy="auto",
                 precision="32-true", n_threads=None, random_state=None):  # fmt: skip
        self._keep(locals())

    def fit(self, X, y=None, *, run_dir=None, resume=False, checkpoint_seconds=5.0):
        plan = Plan(self.max_epochs, batch_size=8, learning_rate=0.1, seed=self._draw_seed(),
                    checkpoint_seconds=checkpoint_seconds)  # fmt: skip
        self.energy_ = LearnedBell()
        trainer = Trainer(plan, self._make_fabric(), Path(run_dir))
        data = Batch(None, torch.as_tensor(X, dtype=torch.float32))
        self.history_ = trainer.fit(self.energy_, ScoreMatching(), data, resume=resume)
        return self

    def _rebuild(self, config, tensors):
        self.energy_ = LearnedBell()


@dataclass
class Column:
    training: np.ndarray
    fingerprint: str


class BellRun(Run):
    settings_class = BellSettings

    @classmethod
    def read(cls, settings):
        table = read_table(Path(settings.data))
        return Column(table.iloc[:, :1].to_numpy(float), fingerprint_of(table))

    @classmethod
    def build(cls, settings, data, verbose):
        return Bell(settings.epochs, **model_settings(settings))

    @classmethod
    def measure(cls, model, data, settings, tell):
        return {"mean": float(model.energy_.mean.detach())}

    @classmethod
    def load_model(cls, folder, settings):
        return Bell.load(folder)

    def sample(self, n):
        return pd.DataFrame({"value": self.figures["mean"] + np.zeros(n)})

    def tables(self):
        return [TextTable("The bell", ["figure", "value"], [["mean", f"{self.figures['mean']:.3f}"]])]


def report(run):
    return render_page("A bell", "of one column", [], [Card("Mean", "It stands here.")], footer_of(run))


@pytest.fixture
def bell(monkeypatch):
    """The one line that a new task takes."""
    monkeypatch.setitem(runs.TASKS, "bell", "test_runs:BellSettings")


def test_a_task_from_outside_is_fitted_asked_resumed_and_reported(bell, tmp_path):
    table, run = tmp_path / "t.csv", tmp_path / "run"
    pd.DataFrame({"a": np.random.default_rng(0).normal(2.0, 1.0, 80)}).to_csv(table, index=False)
    assert "--epochs" in thalweg("fit", "bell", "--help").out
    assert "Fit a bell curve" in thalweg("fit", "--help").out
    done = thalweg("fit", "bell", table, "--out", run, "--epochs", 20)
    assert "The bell" in done.out
    assert f"thalweg sample {run} -n 3" in done.out
    assert "It stands here." in (run / "report.html").read_text()
    assert len(thalweg("sample", run, "-n", 3).out.splitlines()) == 4
    assert "bell: bell curve of a column" in thalweg("info", run).out
    assert "It stands here." in Path(thalweg("report", run).out.split()[-1]).read_text()
    refused = thalweg("predict", run, table, code=1).err
    assert "`thalweg fit bell` (bell curve of a column), which can't predict: it can sample" in refused
    assert "--seed does not apply" in thalweg("sample", run, "--seed", 1, code=1).err
    assert "--epochs must be at least 1" not in thalweg("fit", "bell", table, "--epochs", 0, code=2).out
    assert "finished already" in thalweg("fit", "bell", "--resume", "--out", run).err
    # As after a kill -9 at the end of the training: the checkpoint is there, the figures are not.
    whole = (run / "model" / "model.safetensors").read_bytes()
    (run / "figures.json").unlink()
    thalweg("fit", "bell", "--resume", "--out", run, "-q")
    assert (run / "model" / "model.safetensors").read_bytes() == whole


def test_the_number_of_threads_holds_for_all_that_a_run_does(bell, monkeypatch, tmp_path):
    """The baselines are measured within it: gradient boosting takes its threads from OpenMP."""
    found = []

    def measure(cls, model, data, settings, tell):
        found.extend(p["num_threads"] for p in threadpool_info() if p["user_api"] == "openmp")
        return {"mean": 0.0}

    monkeypatch.setattr(BellRun, "measure", classmethod(measure))
    table = tmp_path / "t.csv"
    pd.DataFrame({"a": np.arange(80.0)}).to_csv(table, index=False)
    with threadpool_limits(2):
        fit_run(tmp_path / "run", BellSettings(data=str(table), threads=1), verbose=False)
    assert found
    assert set(found) == {1}


# -- options and verbs that do not apply ------------------------------------------------------------------


# A setting that all tasks share, the parameter that it is, and a value other than its default.
SHARED = [
    ("device", "device", "mps"),
    ("precision", "precision", "bf16-mixed"),
    ("strategy", "strategy", "ddp"),
    ("threads", "n_threads", 7),
    ("seed", "random_state", 5),
]
BITS = pd.DataFrame(np.eye(20))


@pytest.mark.parametrize(
    ("task", "given", "data", "expected"),
    [
        (
            "regression",
            {"targets": ["y"], "objective": "nce", "epochs": 11, "members": 3, "point": "median"},
            None,
            {"objective": "nce", "max_epochs": 11, "n_members": 3, "point": "median"},
        ),
        (
            "density",
            {"objective": "cnce", "epochs": 11, "members": 3},
            None,
            {"objective": "cnce", "max_epochs": 11, "n_members": 3},
        ),
        ("images", {"steps": 11, "snapshots": 2}, None, {"max_steps": 11, "n_snapshots": 2}),
        ("generator", {"kind": "began", "steps": 11}, None, {"kind": "began", "max_steps": 11}),
        (
            "boltzmann",
            {"hidden": [9], "epochs": 11, "gibbs": 4, "persistent": False, "temperatures": 1,
             "learning_rate": 0.03},
            SimpleNamespace(kind="binary", training=BITS),
            {"hidden": 9, "max_epochs": 11, "n_gibbs": 4, "persistent": False, "n_temperatures": 1,
             "learning_rate": 0.03, "visible": "binary"},
        ),
        (
            "boltzmann",
            {"kind": "deep", "hidden": [9, 4], "epochs": 12, "gibbs": 4, "learning_rate": 0.03},
            SimpleNamespace(kind="binary", training=BITS),
            {"hidden": [9, 4], "max_epochs": 12, "max_epochs_pretraining": 6, "n_gibbs": 4, "learning_rate": 0.03},
        ),
    ],
)  # fmt: skip
def test_every_setting_reaches_the_model(task, given, data, expected):
    shared = [
        *SHARED,
        *([] if task in ("boltzmann", "generator") else [("devices", "devices", 3), ("nodes", "num_nodes", 2)]),
    ]
    settings = settings_of(task)(data="table.csv", **given, **{name: value for name, _, value in shared})
    for verbose in (False, True):
        found = run_class(type(settings)).build(settings, data, verbose).get_params()
        wanted = {**expected, "verbose": verbose, **{parameter: value for _, parameter, value in shared}}
        assert {name: found[name] for name in wanted} == wanted


def test_every_task_declares_what_it_has():
    for task in runs.TASKS:
        settings = runs.settings_of(task)
        run = runs.found(settings.run)
        assert run.settings_class is settings
        assert all(callable(getattr(run, verb)) for verb in settings.verbs)
        assert callable(runs.found(settings.report).report)


def test_names_of_objectives_are_those_of_the_catalogue():
    assert tuple(catalogue.METHODS) == names.DENSITY
    for name in names.CONDITIONAL:
        if name != "proposal-nce":
            assert catalogue.conditional_objective(name, (0.1, 0.8), 8) is not None


def _refused(folder: Path, arguments: tuple[str, ...], slow: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
    """Start a command that must be refused before any of the slow modules is loaded."""
    code = (
        "import sys; from thalweg import cli\n"
        "try: cli.main()\n"
        f"finally: print('loaded', [m for m in {slow} if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode in (1, 2)
    assert done.stdout.strip() == "loaded []"
    return done


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("fit", "density", "t.csv", "--objective", "nonsense"), "--objective must be one of auto"),
        (("fit", "density", "t.csv", "--steps", "3"), "--steps"),
        (("fit", "images", "t.npz", "--drop", "a"), "--drop"),
        (("fit", "images", "t.npz", "--objective", "nce"), "--objective"),
        (("fit", "regression", "t.csv"), "name the column to predict"),
        (("fit", "regression", "t.csv", "-t", "a", "--point", "top"), "--point must be one of"),
        (("fit", "regression", "t.csv", "-t", "a", "--test-fraction", "2"), "test fraction"),
        (("fit", "regression", "absent.csv", "-t", "a"), "there is no file"),
        (("fit", "boltzmann", "t.csv", "--kind", "belief", "--grey"), "--grey"),
        (("fit", "boltzmann", "t.csv", "--devices", "2"), "one process"),
        (("fit", "generator", "t.csv", "--kind", "wgan"), "--kind must be one of ebgan"),
        (("fit", "density", "t.csv", "--resume", "--overwrite"), "exclude each other"),
        (("fit", "density", "--resume", "--out", "nowhere"), "holds no run"),
        (("sample", "nowhere"), "holds no run"),
        (("compare", "density", "t.csv", "--objectives", "foo"), "no objective 'foo'"),
    ],
)
def test_mistakes_are_reported_without_pytorch_and_leave_nothing_behind(tmp_path, arguments, words):
    (tmp_path / "t.csv").write_text("a,b\n1,2\n3,4\n")
    (tmp_path / "t.npz").write_bytes(b"")
    assert words in _refused(tmp_path, arguments, ("torch", "pandas", "numpy")).stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["t.csv", "t.npz"]


@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "t.parquet"])
@pytest.mark.parametrize("task", ["regression", "density", "boltzmann"])
def test_a_column_that_is_not_there_is_reported_without_pytorch(tmp_path, name, task):
    table = pd.DataFrame({"a": [1.0, 2.0], "b": [3.0, 4.0]})
    write_table(table, tmp_path / name)
    options = ["-t", "c"] if task == "regression" else ["--drop", "c"]
    done = _refused(tmp_path, ("fit", task, name, *options), ("torch",))
    assert f"{name} has no column 'c'; it has 'a', 'b'" in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_a_column_without_a_name_can_be_dropped(tmp_path):
    pd.DataFrame({"a": [1.0], "b": [3.0]}).to_csv(tmp_path / "t.csv")
    settings = DensitySettings(data=str(tmp_path / "t.csv"), drop=["Unnamed: 0"])
    check_columns(settings)


def test_data_that_can_not_be_used_leave_no_unfinished_run(tmp_path):
    (tmp_path / "t.csv").write_text("a,b\n" + "1,2\n" * 30)
    thalweg("fit", "density", tmp_path / "t.csv", "--out", tmp_path / "run", code=1)
    (tmp_path / "u.csv").write_text("a,b\n" + "\n".join(f"{i}e300,{i}" for i in range(30)))
    thalweg("fit", "density", tmp_path / "u.csv", "--out", tmp_path / "run", code=1)
    assert not (tmp_path / "run").exists()


def test_the_shell_completes_commands_options_and_choices():
    def completed(line: str) -> str:
        environment = {**os.environ, "_THALWEG_COMPLETE": "complete_bash", "COMP_WORDS": line,
                       "COMP_CWORD": str(len(line.split(" ")) - 1)}  # fmt: skip
        script = (
            "import sys; sys.argv = ['thalweg']; from thalweg.cli.main import build; build()(prog_name='thalweg')"
        )
        return subprocess.run(
            [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False
        ).stdout

    assert "regression" in completed("thalweg fit re")
    assert "--objective" in completed("thalweg fit density --obj")
    assert "ssm-vr" in completed("thalweg fit density --objective ssm")
    assert "--show-completion" in thalweg("--help").out


# -- several processes ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_processes_give_the_figures_of_one(tmp_path):
    """The sums of a batch are taken in another order, so equality is up to rounding that training has grown."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=120)
    pd.DataFrame({"x": x, "y": x + 0.3 * rng.normal(size=120)}).to_csv(tmp_path / "t.csv", index=False)
    means = []
    for devices in (1, 2):
        run = tmp_path / f"run{devices}"
        command = ["fit", "regression", tmp_path / "t.csv", "-t", "y", "--epochs", 3, "--members", 2,
                   "--devices", devices, "--no-report", "--out", run]  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-m", "thalweg.cli", *map(str, command)],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("Trained in") == 1
        means.append(pd.read_csv(_predicted(run, tmp_path / "t.csv", tmp_path / f"p{devices}.csv"))["mean"])
    np.testing.assert_allclose(means[0], means[1], rtol=0, atol=2e-2)


def _predicted(run: Path, table: Path, out: Path) -> Path:
    thalweg("predict", run, table, "--out", out)
    return out
