"""The same judges for every generator of images: distances, precision and recall, classes, copies."""

from __future__ import annotations

import warnings

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier

from thalweg.evaluation.generation import copying_ratio, frechet_distance, pca_features, precision_recall

# Precision and recall compare all pairs of images.
_MOST_COMPARED = 2000


class ImageJudges:
    """Figures of new images beside training and held-out ones.

    Twenty principal components see shades and not ragged strokes. So there is a classifier too, a perceptron of
    two hidden layers that learned the labels of the training images, whose second layer gives other features.

    Args:
        training: images ``[n, C, H, W]`` in [0, 1].
        labels: of the training images ``[n]``.
        held_out: images that nobody learned from ``[m, C, H, W]``.
        random_state: seed of the classifier.
    """

    def __init__(self, training: np.ndarray, labels: np.ndarray, held_out: np.ndarray, random_state: int = 0):
        self.training, self.held_out = training, held_out
        self.n_classes = len(np.unique(labels))
        self._components = pca_features(training, min(20, len(training) - 1, training[0].size))
        classifier = MLPClassifier((128, 64), max_iter=40, early_stopping=True, random_state=random_state)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            self._classifier = classifier.fit(_flat(training), labels)

    def features(self, images: np.ndarray) -> np.ndarray:
        """What the classifier's second hidden layer makes of images ``[n, 64]``."""
        found = _flat(np.asarray(images))
        for weight, bias in zip(self._classifier.coefs_[:-1], self._classifier.intercepts_[:-1], strict=True):
            found = np.maximum(found @ weight + bias, 0)
        return found

    def classes(self, images: np.ndarray) -> np.ndarray:
        """The class that the classifier takes each image for ``[n]``."""
        return self._classifier.predict(_flat(images))

    def judge(self, images: np.ndarray, labels: np.ndarray | None = None) -> dict[str, float]:
        """The figures of new images.

        Distances are biased upward by few images: compare them at equal numbers, and with those of as many
        held-out images.

        Args:
            images: ``[n, C, H, W]`` in [0, 1].
            labels: what each was meant to be ``[n]``.
        """
        quality = precision_recall(images, self.training[:_MOST_COMPARED])
        found = {
            "Frechet distance, components": frechet_distance(images, self.training, self._components),
            "Frechet distance, features": frechet_distance(images, self.training, self.features),
            "precision": quality.precision,
            "recall": quality.recall,
            "distance to the nearest training image, over that of held-out ones": copying_ratio(
                images, self.training, self.held_out
            ),
        }
        classes = self.classes(images)
        if labels is not None:
            found["right class"] = float((classes == labels).mean())
        found["classes"] = float(len(np.unique(classes)))
        return found


def _flat(images: np.ndarray) -> np.ndarray:
    return images.reshape(len(images), -1)
