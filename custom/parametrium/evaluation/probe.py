"""A linear probe on frozen features: does a linear map read a clinical variable from the encoder?"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr
from sklearn.linear_model import LogisticRegressionCV, RidgeCV
from sklearn.metrics import recall_score

from parametrium.clinical.schema import encode
from parametrium.config import ClinicalVariable, NominalVariable
from parametrium.data.cache import PreparedPatient
from parametrium.evaluation.features import Features

MINIMUM_TRAINING = 10
MINIMUM_TEST = 4


def probe(
    variable: ClinicalVariable,
    training: tuple[Sequence[PreparedPatient], Features],
    held_out: tuple[Sequence[PreparedPatient], Features],
) -> dict[str, float]:
    """Fits on training patients, scores on held-out ones.

    Continuous and ordinal variables: ridge regression, Spearman correlation (chance 0). Nominal ones: logistic
    regression, balanced accuracy (chance 1 / levels seen).

    Args:
        variable: what to predict.
        training: patients and their standardised features.
        held_out: patients and their standardised features.

    Returns:
        ``{measure: score, "chance": chance}``; empty where too few patients have the variable.
    """
    x, y = _table(variable, *training)
    x_test, y_test = _table(variable, *held_out)
    if not enough(variable, y, y_test):
        return {}
    if isinstance(variable, NominalVariable):
        classifier = LogisticRegressionCV(
            Cs=np.logspace(-4, 2, 7),
            cv=2,
            scoring="accuracy",
            class_weight="balanced",
            max_iter=2000,
            l1_ratios=(0,),
            use_legacy_attributes=False,
        )
        return scored(variable, classifier.fit(x, y).predict(x_test), y_test)
    return scored(variable, RidgeCV(alphas=np.logspace(-1, 5, 13)).fit(x, y).predict(x_test), y_test)


def enough(variable: ClinicalVariable, y: NDArray[np.float32], y_test: NDArray[np.float32]) -> bool:
    """Whether there are patients and different values enough, and of every level two training patients."""
    if len(y) < MINIMUM_TRAINING or len(y_test) < MINIMUM_TEST or len(set(y)) < 2 or len(set(y_test)) < 2:
        return False
    return not isinstance(variable, NominalVariable) or min(np.unique(y, return_counts=True)[1]) >= 2


def scored(variable: ClinicalVariable, guess: NDArray[Any], y_test: NDArray[np.float32]) -> dict[str, float]:
    """``{measure: score, "chance": chance}`` of guesses of held-out patients."""
    if isinstance(variable, NominalVariable):
        seen = np.unique(y_test)  # named, because a guess of a level that no test patient has is only a miss
        accuracy = recall_score(y_test, guess, labels=seen, average="macro")
        return {"balanced_accuracy": float(accuracy), "chance": 1 / len(seen)}
    correlation = spearmanr(guess, y_test).statistic if np.std(guess) > 0 else 0.0
    return {"spearman": float(correlation), "chance": 0.0}


def _table(
    variable: ClinicalVariable, patients: Sequence[PreparedPatient], features: Features
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Features (mean over a patient's modalities) and values of the patients that have both."""
    rows = encode([patient.clinical for patient in patients], [variable])
    x, y = [], []
    for index in range(len(patients)):
        vectors = [vector for (p, _), vector in features.items() if p == index]
        if vectors and rows.observed[index, 0]:
            x.append(np.mean(vectors, axis=0))
            y.append(rows.values[index, 0])
    return np.array(x, dtype=np.float32), np.array(y, dtype=np.float32)
