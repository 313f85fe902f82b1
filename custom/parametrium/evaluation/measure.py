"""Everything a site measures on its held-out patients, as scalars with public names."""

from collections.abc import Sequence

import torch

from parametrium.config import JobConfig
from parametrium.data.cache import PreparedPatient
from parametrium.evaluation.features import (
    Extractor,
    body_mask_features,
    compared_features,
    encoder_features,
    patient_means,
    standardised,
    standardised_volumes,
    template_features,
    volume_features,
    voxel_features,
)
from parametrium.evaluation.patient import pooled_probe
from parametrium.evaluation.probe import probe
from parametrium.evaluation.reconstruction import modality_means, reconstruction_errors
from parametrium.evaluation.retrieval import retrieval
from parametrium.objectives.registry import PretrainingModel, build_model

Patients = Sequence[PreparedPatient]

POOLED = {"model": "pooled", "untrained": "pooled_untrained"}
"""Features from which the patient-level probe is trained too, and what its scores are called."""


def measure_reconstruction(
    model: PretrainingModel, training: Patients, held_out: Patients, job: JobConfig, site: str
) -> dict[str, float]:
    """Held-out reconstruction error of the model, the untrained model and the trivial predictors."""
    models = {"model": model.eval(), "untrained": _untrained(job, model)}
    fresh = _equal(*models.values())
    if fresh:  # before the first round; what is the same is measured once
        del models["untrained"]
    scalars = reconstruction_errors(models, held_out, modality_means(training, job, site), job, site)
    if fresh:
        same = {name: value for name, value in scalars.items() if name.endswith("/model")}
        scalars |= {name.removesuffix("model") + "untrained": value for name, value in same.items()}
    return scalars


def measure_features(
    model: PretrainingModel, training: Patients, held_out: Patients, job: JobConfig, site: str
) -> dict[str, float]:
    """Retrieval and probe, each with its controls, as ``evaluation/retrieval/...`` and ``evaluation/probe/...``."""
    models = {"model": model.eval(), "untrained": _untrained(job, model)}
    extractors: dict[str, Extractor] = {name: encoder_features(network, job) for name, network in models.items()}
    extractors |= {"body_mask": body_mask_features, "voxels": voxel_features}
    seen_volumes = volume_features(training, extractors, job, site, "features")
    unseen_volumes = volume_features(held_out, extractors, job, site, "features-held-out")
    scalars: dict[str, float] = {}
    for name in extractors:
        seen, unseen = patient_means(seen_volumes[name]), patient_means(unseen_volumes[name])
        reference, test = standardised(seen, seen), standardised(unseen, seen)
        if job.evaluation.retrieval:
            compared = compared_features(models[name], test) if name in models else test
            scalars |= _retrieval_scalars(retrieval(compared, job.modalities), name)
        if job.evaluation.probe is not None:
            variable = next(v for v in job.clinical if v.name == job.evaluation.probe)
            scores = probe(variable, (training, reference), (held_out, test))
            chance = scores.pop("chance", None)
            for measure, score in scores.items():
                scalars[f"evaluation/probe/{measure}/{name}"] = score
                scalars[f"evaluation/probe/{measure}/chance"] = chance or 0.0
            if name in POOLED and scores:
                known, new = seen_volumes[name], unseen_volumes[name]
                if job.evaluation.missing == "template":
                    known = known + template_features(training, models[name], job, site, "features")
                    new = new + template_features(held_out, models[name], job, site, "features-held-out")
                # The scale is that of scans alone: templates are put on it and do not move it.
                studies = (training, standardised_volumes(known, seen)), (held_out, standardised_volumes(new, seen))
                pooled = pooled_probe(variable, *studies, job.modalities, job.seed)
                pooled.pop("chance", None)
                scalars |= {f"evaluation/probe/{measure}/{POOLED[name]}": score for measure, score in pooled.items()}
    return scalars


def _retrieval_scalars(results: dict[str, dict[str, float]], features: str) -> dict[str, float]:
    scalars = {}
    for pair, result in results.items():
        for measure in ("r1", "r5"):
            scalars[f"evaluation/retrieval/{pair}/{measure}/{features}"] = result[measure]
            scalars[f"evaluation/retrieval/{pair}/{measure}/chance"] = result[f"chance_{measure}"]
        scalars[f"evaluation/retrieval/{pair}/candidates"] = result["candidates"]
    return scalars


def _untrained(job: JobConfig, like: PretrainingModel) -> PretrainingModel:
    device: torch.device = next(like.parameters()).device
    return build_model(job).to(device).eval()


def _equal(one: PretrainingModel, other: PretrainingModel) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
