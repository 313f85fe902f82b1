"""What may leave a site besides tensors: one list of scalar names, checked before anything is handed to FLARE."""

import math
import re
from collections.abc import Mapping

from parametrium.cohort.problem import Reason
from parametrium.config import JobConfig
from parametrium.errors import Code, FederationError

SCALARS = (
    "train/loss/{objective}",
    "train/chance/{objective}",
    "train/template_error/{objective}",
    "train/isotropy/{objective}",
    "train/iou/{objective}",
    "train/iou_chance/{objective}",
    "train/spread/{objective}",
    "train/gradient_norm",
    "train/learning_rate",
    "train/samples",
    "train/seconds",
    "site/patients",
    "site/held_out_patients",
    "site/volumes/{modality}",
    "site/problems/{reason}",
    "evaluation/reconstruction/{modality}/{predictor}",
    "evaluation/reconstruction_volumes/{modality}",
    "evaluation/retrieval/{modality}-{modality}/{recall}/{features}",
    "evaluation/retrieval/{modality}-{modality}/candidates",
    "evaluation/probe/{score}/{probed}",
    "evaluation/loss/{objective}",
    "monitor/volumes",
    "monitor/attention/{attention}",
    "monitor/features/{collapse}",
)
"""Every scalar that may travel. A placeholder stands for one word of a public vocabulary: the job's modalities and
objectives, and the fixed lists below. Nothing that a site, a file or a header names can be part of a scalar's name."""

FEATURES = ("model", "untrained", "body_mask", "voxels", "chance")

VOCABULARIES = {
    "predictor": ("model", "untrained", "modality_mean", "neighbour_mean"),
    "features": FEATURES,
    "probed": (*FEATURES, "pooled", "pooled_untrained"),
    "recall": ("r1", "r5"),
    "score": ("spearman", "balanced_accuracy"),
    "attention": ("background", "background_share", "brightness", "entropy", "class_token", "registers"),
    "collapse": ("rankme", "spread", "alignment", "uniformity"),
    "reason": tuple(reason.value for reason in Reason),
}


def permitted(job: JobConfig) -> re.Pattern[str]:
    """The names that may travel in this job, as one pattern."""
    words = {
        **VOCABULARIES,
        "modality": job.modalities,
        "objective": tuple(objective.kind for objective in job.objectives),
    }

    def choices(match: re.Match[str]) -> str:
        return f"(?:{'|'.join(re.escape(word) for word in words[match.group(1)])})"

    return re.compile("|".join(re.sub(r"\{(\w+)\}", choices, name) for name in SCALARS))


def check_scalars(job: JobConfig, scalars: Mapping[str, object]) -> dict[str, float]:
    """The scalars as plain finite floats.

    Raises:
        FederationError: PM506 when a name is not on the list or a value is not a finite number. The public message
            holds neither names nor values: an unknown name could itself be the leak.
    """
    pattern = permitted(job)
    unknown = [name for name in scalars if not isinstance(name, str) or not pattern.fullmatch(name)]
    if unknown:
        raise FederationError(
            Code.EGRESS_REFUSED,
            f"{len(unknown)} scalars are not on the list of names that may travel (privacy/egress.py)",
            site_detail=", ".join(map(repr, unknown)),
        )
    values = {name: _finite(value) for name, value in scalars.items()}
    broken = [name for name, value in values.items() if value is None]
    if broken:
        raise FederationError(
            Code.EGRESS_REFUSED, f"{len(broken)} scalars are not finite numbers", site_detail=", ".join(broken)
        )
    return {name: value for name, value in values.items() if value is not None}


def _finite(value: object) -> float | None:
    """A finite number as a float; None for anything else, also for True, and for an integer beyond any float."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None
