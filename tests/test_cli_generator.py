"""The command on generators: fit images and tables, sample, score, report, info, resume, and what it refuses."""

import json

import numpy as np
import pandas as pd
import pytest
from sklearn.datasets import load_digits, load_iris
from sklearn.metrics import roc_auc_score

from command import thalweg
from thalweg.estimators.gan import KINDS
from thalweg.objectives.names import ADVERSARIAL, GENERATIVE, VARIATIONAL
from thalweg.report import generator as report_generator
from thalweg.runs.base import load_run
from thalweg.runs.generator import NAMES, GeneratorRun
from thalweg.runs.settings.generator import GeneratorSettings


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("generator")
    raw = load_digits()
    np.savez(folder / "digits.npz", X=(15 * raw.images[:200]).astype(np.uint8), y=raw.target[:200])
    done = thalweg("fit", "generator", folder / "digits.npz", "--out", folder / "run", "--steps", 40)
    return folder, done


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    folder = tmp_path_factory.mktemp("generator")
    iris = load_iris(as_frame=True).frame
    iris.insert(0, "same", 3)
    iris.to_csv(folder / "iris.csv", index=False)
    options = ["--kind", "began", "--drop", "target", "--steps", 40]
    done = thalweg("fit", "generator", folder / "iris.csv", "--out", folder / "run", *options)
    return folder, done


def test_every_kind_has_a_name():
    assert set(NAMES) == set(GENERATIVE)
    assert set(KINDS) == set(ADVERSARIAL)


@pytest.mark.parametrize("kind", ["vera", "gebm", "vae", "vaebm"])
def test_other_kinds_are_fitted_to_images_and_to_tables_and_resumed(kind, images, table, tmp_path):
    for name, data in (("images", images[0] / "digits.npz"), ("table", table[0] / "iris.csv")):
        run = tmp_path / name
        drop = ["--drop", "target"] if name == "table" else []
        done = thalweg("fit", "generator", data, "--kind", kind, "--out", run, "--steps", 22, *drop)
        assert ("log p of held-out data" in done.out) == (kind in VARIATIONAL)
        page = (run / "report.html").read_text()
        assert ("Reconstructed" in page) == (name == "images" and kind in VARIATIONAL)
        assert "Training" in page
        assert kind.upper() in thalweg("info", run).out
        new = "new.npz" if name == "images" else "new.csv"
        thalweg("sample", run, "-n", 3, "--out", tmp_path / new)
        thalweg("score", run, data, "--out", tmp_path / "scores.csv")
        assert np.isfinite(pd.read_csv(tmp_path / "scores.csv").outlier_score).all()
    assert len(pd.read_csv(tmp_path / "new.csv")) == 3
    whole = (run / "model" / "model.safetensors").read_bytes()
    (run / "figures.json").unlink()
    thalweg("fit", "generator", "--resume", "--out", run, "-q", "--no-report")
    assert (run / "model" / "model.safetensors").read_bytes() == whole


def test_steps_of_a_corrected_autoencoder_are_shared_between_its_trainings():
    def built(kind, steps):
        return GeneratorRun.build(GeneratorSettings(data="x", kind=kind, steps=steps), None, False)

    assert (built("vaebm", 11).max_steps_pretraining, built("vaebm", 11).max_steps) == (8, 3)
    assert (built("vaebm", 1).max_steps_pretraining, built("vaebm", 1).max_steps) == (1, 1)
    assert (built("vae", 11).max_steps_pretraining, built("vae", 11).max_steps) == (11, 0)
    assert built("vae", None).max_steps == 0
    assert built("gebm", 11).max_steps == 11


def test_images_are_fitted_and_reported(images):
    folder, done = images
    assert "Frechet distance, draws" in done.out
    page = (folder / "run" / "report.html").read_text()
    for heading in ("Generated", "Is it copying?", "Reconstructed", "Likely and unlikely", "Training"):
        assert heading in page
    shown = thalweg("info", folder / "run").out
    assert "AUROC, shuffled" in shown
    assert "EBGAN: an autoencoder" in shown


def test_images_are_sampled_to_an_array_or_pictures_and_scored(images):
    folder, _ = images
    thalweg("sample", folder / "run", "-n", 4, "--out", folder / "new.npz")
    assert np.load(folder / "new.npz")["X"].shape == (4, 8, 8)
    thalweg("sample", folder / "run", "-n", 3, "--out", folder / "new")
    assert len(list((folder / "new").glob("*.png"))) == 3
    thalweg("score", folder / "run", folder / "digits.npz", "--out", folder / "scores.csv")
    scores = pd.read_csv(folder / "scores.csv")
    assert list(scores.columns) == ["row", "score", "outlier_score"]
    assert len(scores) == 200
    assert scores["score"].rank().corr(scores["outlier_score"].rank()) < -0.9
    assert (
        "--keep is for columns"
        in thalweg("score", folder / "run", folder / "digits.npz", "--keep", "a", code=1).err
    )


def test_a_table_is_fitted_reported_sampled_and_scored(table):
    folder, done = table
    assert "AUROC, rows with shuffled columns" in done.out
    page = (folder / "run" / "report.html").read_text()
    for heading in ("The data and the draws", "Pairs", "Is it copying?", "Likely and unlikely"):
        assert heading in page
    thalweg("sample", folder / "run", "-n", 5, "--seed", 3, "--out", folder / "new.csv")
    new = pd.read_csv(folder / "new.csv")
    assert len(new) == 5
    assert (new["same"] == 3).all()
    assert set(new.columns) == {"same", *load_iris().feature_names}
    gaps = pd.read_csv(folder / "iris.csv")
    gaps.loc[3, "sepal width (cm)"] = np.nan
    gaps.to_csv(folder / "gaps.csv", index=False)
    thalweg("score", folder / "run", folder / "gaps.csv", "--keep", "target", "--out", folder / "scores.csv")
    scores = pd.read_csv(folder / "scores.csv")
    assert list(scores.columns) == ["row", "target", "score", "outlier_score", "note"]
    assert scores.drop(columns="note").isna().any(axis=1).to_list() == [i == 3 for i in range(150)]
    assert scores["note"].dropna().to_dict() == {3: "has gaps in 'sepal width (cm)'"}


def test_a_generator_promises_to_fill_no_gaps(tmp_path):
    rows = load_iris(as_frame=True).data
    rows.iloc[3, 1] = np.nan
    rows.to_csv(tmp_path / "gaps.csv", index=False)
    data = GeneratorRun.read(GeneratorSettings(data=str(tmp_path / "gaps.csv")))
    assert data.remarks == ["1 of 150 rows have gaps (in 'sepal width (cm)') and were left out."]


def test_an_autoencoder_fills_the_gaps_of_a_table(table, tmp_path):
    rows = pd.read_csv(table[0] / "iris.csv")
    gaps = rows.copy()
    gaps.loc[[3, 60], "petal length (cm)"] = np.nan
    gaps.loc[7, "same"] = np.nan
    gaps.to_csv(tmp_path / "gaps.csv", index=False)
    done = thalweg(
        "fit", "generator", tmp_path / "gaps.csv", "--kind", "vae", "--steps", 400, "--out", tmp_path / "run",
        "--drop", "target", "--drop", "same",
    )  # fmt: skip
    assert "the model can fill them" in done.out
    assert "thalweg impute" in done.out
    thalweg("impute", tmp_path / "run", tmp_path / "gaps.csv", "--draws", 3, "--out", tmp_path / "filled.csv")
    filled = pd.read_csv(tmp_path / "filled.csv")
    assert list(filled["imputation"].unique()) == [1, 2, 3]
    first = filled[filled["imputation"] == 1].drop(columns="imputation").reset_index(drop=True)
    whole = gaps.drop(index=[3, 60])
    pd.testing.assert_frame_equal(first.drop(index=[3, 60]), whole, check_dtype=False)
    # Setosa has short petals, versicolor long ones; a draw from all would be 3.8 on average for both.
    assert first["petal length (cm)"][3] < 2.5 < first["petal length (cm)"][60]
    refused = thalweg("impute", table[0] / "run", tmp_path / "gaps.csv", code=1).err
    assert "--kind vae or vaebm" in refused


def test_an_interrupted_run_is_resumed_to_the_same_model(table):
    """As after a kill -9 at the end of the training: the checkpoint is there, the figures are not."""
    folder, _ = table
    run = folder / "run"
    whole = (run / "model" / "model.safetensors").read_bytes()
    (run / "figures.json").unlink()
    assert "not finished" in thalweg("info", run, code=1).err
    assert "another steps" in thalweg("fit", "generator", "--resume", "--out", run, "--steps", 41, code=1).err
    thalweg("fit", "generator", "--resume", "--out", run, "-q", "--no-report")
    assert (run / "model" / "model.safetensors").read_bytes() == whole
    assert "finished already" in thalweg("fit", "generator", "--resume", "--out", run).err


def test_what_is_refused(images, tmp_path):
    folder, _ = images
    npz = folder / "digits.npz"
    refused = thalweg("fit", "generator", npz, "--drop", "a", "--out", tmp_path / "run", code=1).err
    assert "--text and --missing are for tables" in refused
    assert "one process" in thalweg("fit", "generator", npz, "--devices", 2, code=1).err
    assert "--kind must be one of ebgan" in thalweg("fit", "generator", npz, "--kind", "wgan", code=1).err
    assert "gaps are filled in tables" in thalweg("impute", folder / "run", npz, code=1).err
    assert "--out" in thalweg("sample", folder / "run", code=1).err
    assert not (tmp_path / "run").exists()


def test_a_verdict_is_part_of_the_figures(images):
    folder, _ = images
    checks = {c["name"] for c in json.loads((folder / "run" / "figures.json").read_text())["verdict"]}
    assert checks == {
        "rows", "training", "variety", "modes", "samples", "held-out rows", "ranking", "memory"
    }  # fmt: skip


def test_energies_shown_and_the_memory_figure_are_those_of_the_model(images):
    folder, _ = images
    run = load_run(folder / "run")
    training, test = run.rows
    of_training, of_test = (run.model.score_samples(rows) for rows in (training, test))
    truth = np.r_[np.ones(len(of_training)), np.zeros(len(of_test))]
    wanted = roc_auc_score(truth, np.r_[of_training, of_test])
    assert run.figures["scores"]["AUROC, training against held-out"] == pytest.approx(wanted, abs=1e-3)
    figure = report_generator._energies(run, training, test).figures[0]
    shown = {trace.name: np.asarray(trace.y) for trace in figure.data}
    np.testing.assert_allclose(shown["held out"], -of_test, rtol=1e-5)
    np.testing.assert_allclose(np.sort(shown["training"]), np.sort(-of_training), rtol=1e-5)
