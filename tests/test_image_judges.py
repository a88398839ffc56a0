"""Judges of new images: what they say of data, of noise, of copies and of one class alone."""

import numpy as np
import pytest

from thalweg.data.images import digits
from thalweg.evaluation.image_judges import ImageJudges


@pytest.fixture(scope="module")
def judged():
    train, test = digits()
    return ImageJudges(train.pixels[:900], train.labels[:900], test.pixels), train.rows(slice(900, 1300)), test


def test_images_from_the_same_source_are_near_and_of_their_classes(judged):
    judges, others, _ = judged
    found = judges.judge(others.pixels, others.labels)
    noise = judges.judge(np.random.RandomState(0).uniform(size=others.pixels.shape).astype(np.float32))
    assert found["Frechet distance, components"] < 0.1 * noise["Frechet distance, components"]
    assert found["Frechet distance, features"] < 0.1 * noise["Frechet distance, features"]
    assert found["right class"] > 0.85
    assert found["classes"] == judges.n_classes == 10
    assert found["precision"] > 0.8
    assert found["recall"] > 0.8
    assert noise["precision"] < 0.05
    assert "right class" not in noise


def test_copies_and_a_single_class_are_seen(judged):
    judges, others, _ = judged
    copies = judges.judge(judges.training[:300])
    assert copies["distance to the nearest training image, over that of held-out ones"] == pytest.approx(
        0, abs=1e-6
    )
    assert copies["Frechet distance, components"] < 0.2
    zeros = judges.judge(others.pixels[others.labels == 0], np.zeros((others.labels == 0).sum()))
    assert zeros["classes"] <= 3
    assert zeros["recall"] < 0.3
    assert zeros["right class"] > 0.85


def test_the_features_are_those_that_the_classifier_decides_by(judged):
    judges, others, _ = judged
    features = judges.features(others.pixels)
    weight, bias = judges._classifier.coefs_[-1], judges._classifier.intercepts_[-1]
    assert features.shape == (400, 64)
    np.testing.assert_array_equal((features @ weight + bias).argmax(1), judges.classes(others.pixels))
