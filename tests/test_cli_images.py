"""The command on images: fit, sample, score, report, info, resume, and what it refuses."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from sklearn.datasets import load_digits

from command import thalweg
from thalweg.data.images import write_images
from thalweg.evaluation.generation import frechet_distance, pca_features
from thalweg.report.images import _passage, _training, wall
from thalweg.runs.base import load_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    raw = load_digits()
    np.savez(folder / "digits.npz", X=(15 * raw.images[:300]).astype(np.uint8), y=raw.target[:300])
    done = thalweg("fit", "images", folder / "digits.npz", "--out", folder / "run", "--steps", 12, "--threads", 1)
    return folder, done


def test_images_are_fitted_and_told(run):
    folder, done = run
    assert "Frechet distance, new images" in done.out
    page = (folder / "run" / "report.html").read_text()
    for heading in ("Generated", "On the way", "Is it copying?", "Completed", "Likely and unlikely images"):
        assert heading in page
    assert "AUROC" in thalweg("info", folder / "run").out


def test_images_are_sampled_to_an_array_or_pictures_and_scored(run):
    folder, _ = run
    thalweg("sample", folder / "run", "-n", 4, "--out", folder / "new.npz")
    assert np.load(folder / "new.npz")["X"].shape == (4, 8, 8)
    thalweg("sample", folder / "run", "-n", 3, "--out", folder / "new")
    assert len(list((folder / "new").glob("*.png"))) == 3
    thalweg("score", folder / "run", folder / "new", "--out", folder / "scores.csv")
    scores = pd.read_csv(folder / "scores.csv")
    assert list(scores.columns) == ["file", "score", "label"]
    assert len(scores) == 3


def test_the_figures_are_those_of_the_model(run):
    made = load_run(run[0] / "run")
    training, scores = made.images[0], made.figures["scores"]
    features = pca_features(training.pixels, 20)
    for name, images in (("new images", made.model.sample), ("where they start", made.model.starts)):
        wanted = frechet_distance(images(270, random_state=0), training.pixels, features)
        # The training images stand in another order there.
        assert scores[f"Frechet distance, {name}"] == pytest.approx(wanted, rel=1e-3)


def test_the_page_shows_the_training_and_the_way_of_new_images(run):
    made = load_run(run[0] / "run")
    (line,) = _training(made).figures[0].data
    epochs = made.model.history_.epochs
    assert list(line.x) == [e["epoch"] for e in epochs]
    assert list(line.y) == [e["velocity error"] for e in epochs]
    assert any(abs(e["velocity error"] - e["loss"]) > 1e-6 for e in epochs)
    frames = made.model.passage(16, random_state=made.settings.seed)
    (shown,) = _passage(made).figures
    np.testing.assert_array_equal(shown.data[0].z, wall(np.concatenate(frames), 16).data[0].z)


@pytest.mark.slow
def test_snapshots_are_averaged_told_and_part_of_what_is_resumed(run, tmp_path):
    folder, copy = run[0], tmp_path / "run"
    options = ["--steps", 24, "--threads", 1, "--snapshots", 3]
    done = thalweg("fit", "images", folder / "digits.npz", "--out", copy, *options)
    assert "mean of those of 3 snapshots" in done.out
    assert "mean of those of 3 snapshots" in thalweg("info", copy).out
    assert "mean of 3 snapshots" in (copy / "report.html").read_text()
    assert "another snapshots" in thalweg("fit", "images", "--resume", "--out", copy, "--snapshots", 2, code=1).err
    thalweg("score", copy, folder / "digits.npz", "--out", tmp_path / "scores.csv")
    assert len(pd.read_csv(tmp_path / "scores.csv")) == 300


def test_a_changed_image_is_noticed(tmp_path):
    pictures, run = tmp_path / "pictures", tmp_path / "run"
    write_images(np.random.RandomState(0).uniform(size=(30, 1, 4, 4)), pictures)
    thalweg("fit", "images", pictures, "--out", run, "--steps", 2, "--threads", 1, "--no-report")
    shutil.copy(pictures / "00001.png", pictures / "00000.png")
    assert "27 images" in thalweg("info", run).out
    assert f"{pictures} has changed" in thalweg("report", run, code=1).err
    (run / "figures.json").unlink()
    refused = thalweg("fit", "images", "--resume", "--out", run, code=1).err
    assert f"{pictures} has changed since the run in {run} was started" in refused


def test_a_damaged_or_unfinished_run_is_refused(run, tmp_path):
    folder, copy = run[0], tmp_path / "copy"
    shutil.copytree(folder / "run", copy)
    figures = json.loads((copy / "figures.json").read_text())
    del figures["shape"]
    (copy / "figures.json").write_text(json.dumps(figures))
    assert "figures.json was changed or damaged" in thalweg("info", copy, code=1).err
    del figures["checksum"]
    (copy / "figures.json").write_text(json.dumps(figures))
    assert "figures.json is damaged: it lacks 'shape'" in thalweg("info", copy, code=1).err
    (copy / "figures.json").unlink()
    assert f"not finished: `thalweg fit images --resume --out {copy}`" in thalweg("info", copy, code=1).err
    assert "another steps" in thalweg("fit", "images", "--resume", "--out", copy, "--steps", 13, code=1).err
    wrong = thalweg("impute", copy, folder / "digits.npz", code=1).err
    assert "not finished" in wrong
    lacking = thalweg("impute", folder / "run", folder / "digits.npz", code=1).err
    assert "can't impute: it can sample, score" in lacking
    assert "energy of images" in lacking


def test_what_is_refused(run, tmp_path):
    folder, _ = run
    assert (
        "holds a finished run"
        in thalweg("fit", "images", folder / "digits.npz", "--out", folder / "run", code=1).err
    )
    assert "no pictures" in thalweg("fit", "images", tmp_path, "--out", tmp_path / "run", code=1).err
    assert "--out" in thalweg("sample", folder / "run", code=1).err
    assert "finished already" in thalweg("fit", "images", "--resume", "--out", folder / "run").err


def test_held_out_images_that_are_training_images_are_told_and_a_single_one_is_refused(tmp_path):
    images = np.repeat(np.arange(2)[:, None, None] * np.eye(3) + 0.1, 100, 0)
    np.savez(tmp_path / "twice.npz", X=images / images.max())
    fit = ("fit", "images", tmp_path / "twice.npz", "--steps", 1, "--out", tmp_path / "run")
    assert "20 of 20 held-out rows equal training rows" in thalweg(*fit).out
    assert "ratio of distances" not in json.loads((tmp_path / "run/figures.json").read_text())["scores"]
    np.savez(tmp_path / "few.npz", X=images[95:104] / images.max())
    refused = thalweg("fit", "images", tmp_path / "few.npz", "--out", tmp_path / "few", code=1)
    assert "one of 9 images would be held out" in refused.err
    assert not (tmp_path / "few").exists()
