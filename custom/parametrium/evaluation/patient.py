"""A patient-level probe on frozen features: attention pooling of a patient's volumes, and ridge regression.

The mean over a patient's modalities dilutes what one volume alone shows; here the training patients say which volumes
count. Only the pooling is trained, and it begins as the plain mean; the regression behind it is solved in closed form,
and so is the error of each patient left out, from which the pooling learns. How long it does, inner folds of the
training patients choose: with the few patients of a site, nothing else keeps it from learning them by heart.

P patients, N volumes of the patient who has most, C channels, K outputs.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from parametrium.clinical.schema import encode
from parametrium.config import ClinicalVariable, NominalVariable
from parametrium.data.cache import PreparedPatient
from parametrium.evaluation.features import VolumeFeature
from parametrium.evaluation.probe import enough, scored
from parametrium.model.study_pooler import StudyPooler

FOLDS = 4
MOST_STEPS = 60
EVERY = 4
"""Steps after which the fold that was left out is looked at."""

LEARNING_RATE = 0.05
WEIGHT_DECAY = 0.1
PENALTIES = torch.logspace(-3, 3, 13)

Probed = tuple[Sequence[PreparedPatient], Sequence[VolumeFeature]]


@dataclass(frozen=True)
class Studies:
    """Patients that have volumes and the variable.

    Attributes:
        features: [P, N, C], zero where there is no volume.
        present: [P, N].
        modality: [P, N] index.
        days: [P, N].
        values: [P] the variable, as ``encode`` gives it.
    """

    features: Tensor
    present: Tensor
    modality: Tensor
    days: Tensor
    values: NDArray[np.float32]

    def rows(self, chosen: Tensor) -> "Studies":
        """Some of the patients."""
        parts = (self.features[chosen], self.present[chosen], self.modality[chosen], self.days[chosen])
        return Studies(*parts, self.values[chosen.numpy()])


class PatientHead(nn.Module):
    """Attention pooling, and ridge regression from the pooled features, which is solved and not trained.

    Args:
        width: C.
        modalities: how many the job has.
    """

    def __init__(self, width: int, modalities: int) -> None:
        super().__init__()
        self.pooler = StudyPooler(width, modalities, days=True)
        self.log_penalty = nn.Parameter(torch.zeros(()))

    def pooled(self, studies: Studies) -> Tensor:
        """[P, C], scaled so that a kernel entry does not grow with C."""
        pooled = self.pooler(studies.features, studies.present, studies.modality, studies.days)
        return pooled / pooled.shape[1] ** 0.5  # type: ignore[no-any-return]

    def left_out_loss(self, studies: Studies, target: Tensor, log_penalty: Tensor | None = None) -> Tensor:
        """Mean squared error for each patient of the ridge regression on all others, in closed form.

        With G = X X' + penalty, the residual of the i-th left out is (G^-1 y)_i / (G^-1)_ii.
        """
        inverse, centred = self._inverse(self.pooled(studies), target, log_penalty)
        return (inverse @ centred / inverse.diagonal()[:, None]).square().mean()

    def predict(self, training: Studies, target: Tensor, studies: Studies) -> Tensor:
        """[P, K] for other patients."""
        x = self.pooled(training)
        inverse, centred = self._inverse(x, target)
        kernel = (self.pooled(studies) - x.mean(0)) @ (x - x.mean(0)).T
        return kernel @ (inverse @ centred) + target.mean(0)

    def _inverse(self, x: Tensor, target: Tensor, log_penalty: Tensor | None = None) -> tuple[Tensor, Tensor]:
        penalty = (self.log_penalty if log_penalty is None else log_penalty).exp()
        x = x - x.mean(0)
        return torch.linalg.inv(x @ x.T + penalty * torch.eye(len(x))), target - target.mean(0)


def pooled_probe(
    variable: ClinicalVariable, training: Probed, held_out: Probed, modalities: Sequence[str], seed: int
) -> dict[str, float]:
    """Trains on training patients, scores on held-out ones, with the measures of the linear probe.

    Args:
        variable: what to predict.
        training: patients and the standardised features of their volumes.
        held_out: the same of others.
        modalities: the job's modalities.
        seed: of folds and initial weights.

    Returns:
        ``{measure: score, "chance": chance}``; empty where too few patients have the variable.
    """
    seen, unseen = studies_of(variable, *training, modalities), studies_of(variable, *held_out, modalities)
    if seen is None or unseen is None or not enough(variable, seen.values, unseen.values):
        return {}
    with torch.enable_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        target = targets_of(variable, seen.values)
        steps = _steps_by_folds(seen, target, len(modalities))
        *_, head = _training(seen, target, len(modalities), steps)
    with torch.no_grad():
        output = head.predict(seen, target, unseen)
        if isinstance(variable, NominalVariable):
            output = output / target.mean(0).clamp(min=1e-6)  # levels weigh alike, however many patients have them
    guess = output.argmax(1) if isinstance(variable, NominalVariable) else output[:, 0]
    return scored(variable, guess.numpy(), unseen.values)


def studies_of(
    variable: ClinicalVariable,
    patients: Sequence[PreparedPatient],
    volumes: Sequence[VolumeFeature],
    modalities: Sequence[str],
) -> Studies | None:
    """The volumes of those patients that have the variable, patient by patient; None where nobody has both."""
    rows = encode([patient.clinical for patient in patients], [variable])
    owned: dict[int, list[VolumeFeature]] = {}
    for volume in volumes:
        if rows.observed[volume.patient, 0]:
            owned.setdefault(volume.patient, []).append(volume)
    if not owned:
        return None
    chosen = sorted(owned)
    shape = len(chosen), max(map(len, owned.values()))
    features = torch.zeros(*shape, len(volumes[0].vector))
    present = torch.zeros(shape, dtype=torch.bool)
    modality, days = torch.zeros(shape, dtype=torch.long), torch.zeros(shape)
    for p, patient in enumerate(chosen):
        for n, volume in enumerate(owned[patient]):
            features[p, n] = torch.from_numpy(volume.vector)
            present[p, n] = True
            modality[p, n], days[p, n] = modalities.index(volume.modality), volume.day
    return Studies(features, present, modality, days, rows.values[chosen, 0])


def targets_of(variable: ClinicalVariable, values: NDArray[np.float32]) -> Tensor:
    """[P, K]: one column of values, or one a level, which is 1 for the patients that have it."""
    if isinstance(variable, NominalVariable):
        return F.one_hot(torch.from_numpy(values).long(), len(variable.levels)).float()
    return torch.from_numpy((values - values.mean()) / max(values.std(), 1e-12))[:, None]


def _training(studies: Studies, target: Tensor, modalities: int, steps: int) -> Iterator[PatientHead]:
    """The one head as it is before the first and after each step; every step is over all patients."""
    head = PatientHead(studies.features.shape[-1], modalities)
    with torch.no_grad():
        losses = [float(head.left_out_loss(studies, target, penalty)) for penalty in PENALTIES.log()]
        head.log_penalty.copy_(PENALTIES[int(np.argmin(losses))].log())
    optimiser = torch.optim.AdamW(head.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    yield head
    for _ in range(steps):
        optimiser.zero_grad()
        head.left_out_loss(studies, target).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        yield head


def _steps_by_folds(studies: Studies, target: Tensor, modalities: int) -> int:
    """After how many steps the error on patients that were left out is lowest, on average over the folds."""
    order = torch.randperm(len(target))
    curves = []
    for left_out in order.chunk(FOLDS):
        kept = order[~torch.isin(order, left_out)]
        rest, fold = studies.rows(kept), studies.rows(left_out)
        curve = []
        for n, head in enumerate(_training(rest, target[kept], modalities, MOST_STEPS)):
            if n % EVERY == 0:
                with torch.no_grad():
                    curve.append(float(F.mse_loss(head.predict(rest, target[kept], fold), target[left_out])))
        curves.append(curve)
    return EVERY * int(np.mean(curves, axis=0).argmin())
