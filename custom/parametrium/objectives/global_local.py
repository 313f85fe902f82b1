"""Global and local views of a patient agree, and patients fill the space evenly (LeJEPA; METHODS 4.2).

No teacher, no prototypes, no negatives: isotropy alone keeps the embedding from collapse, and every view gets a
gradient (METHODS 2.1).

P patients, V views of each, Z channels of the projection.
"""

import torch
from torch import Tensor

from parametrium.config import GlobalLocalConfig, JobConfig
from parametrium.data.batch import Batch, CropRequest
from parametrium.model.encoder import Encoder
from parametrium.model.presets import Architecture
from parametrium.objectives.isotropy import (
    PATIENTS,
    PROJECTION,
    draw_directions,
    knots,
    point,
    projection,
    statistic,
    sums,
)
from parametrium.objectives.local_views import Extent, cut, draw_corners, jittered, local_extent
from parametrium.objectives.objective import Objective, Outcome, count

GLOBAL = 2
"""Large crops of a patient."""

MINIMUM_BODY = 0.1
"""Share of a large crop that must be body; a crop of air has nothing in common with another of the same patient."""


class GlobalLocal(Objective):
    """Two large crops of a patient, of two volumes where it has them, and small crops out of these."""

    kind = "global_local"

    def __init__(self, config: GlobalLocalConfig, job: JobConfig, shape: Architecture) -> None:
        super().__init__()
        self.config = config
        self.seed = job.seed
        self.jitter = job.batch.intensity_jitter
        self.spacing_mm = job.preparation.spacing_mm
        self.projector = projection(2 * shape.width)

    def request(self, patients: int, volumes: int) -> CropRequest:
        """Two large crops of each patient: of two modalities or studies where it has them, else of one volume."""
        return CropRequest("views", patients, GLOBAL)

    def project(self, encoder: Encoder, images: Tensor, modality: Tensor) -> Tensor:
        """[B, Z] float32, not normalised, of whole crops [B, D, H, W] of any size."""
        projected: Tensor = self.projector(encoder.encode(images, modality, self.spacing_mm).pooled)
        return projected.float()

    def local_views(self, encoder: Encoder, batch: Batch, generator: torch.Generator) -> list[Tensor]:
        """[P, Z] for each small crop; those of one size are encoded together, each around its own centre."""
        d, h, w = batch.images.shape[1:]
        extents = [local_extent((d, h, w), edge) for edge in self.config.local_edges]
        views: list[Tensor] = []
        for extent in sorted(set(extents)):
            images, modality = self.small_crops(batch, extent, extents.count(extent), generator)
            views += self.project(encoder, images, modality).reshape(-1, batch.patients, PROJECTION).unbind(0)
        return views

    def small_crops(
        self, batch: Batch, extent: Extent, number: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """``number`` crops of each patient, [number * P, *extent], and their modality; each from one of its two."""
        chosen = torch.randint(0, GLOBAL, (number, batch.patients), generator=generator)
        source = (GLOBAL * torch.arange(batch.patients) + chosen).flatten().to(batch.images.device)
        corner = draw_corners(batch.body, source, extent, generator)
        images, body = (cut(volumes, source, corner, extent) for volumes in (batch.images, batch.body))
        return jittered(images, body, self.jitter, generator), batch.modality[source]

    def loss(self, views: Tensor) -> tuple[Tensor, dict[str, float]]:
        """(1 - lambda) distance to the mean of the global views + lambda 128 / P isotropy, of [V, P, Z] projections.

        The distance is squared and a mean over channels. Isotropy is measured on each view by itself: several views of
        one patient are no independent sample. ``chance`` is the loss of an embedding in which all patients are one
        point, ``isotropy`` the statistic (1.05 for Gaussian samples), ``spread`` the deviation over patients: 0 in
        collapse, towards 1 at the aim.
        """
        weight, patients = self.config.isotropy, views.shape[1]
        distance = (views - views[:GLOBAL].mean(0)).square().mean()
        at = knots()
        lines = draw_directions(self.seed, self.step, PROJECTION, self.config.directions)
        isotropy = statistic(sums(views, lines, at), at)
        scale = weight * PATIENTS / patients
        scalars = {
            "chance": scale * float(statistic(point(patients, at), at)),
            "isotropy": float(isotropy.detach()),
            "spread": float(views[:GLOBAL].detach().std(1, unbiased=False).mean()),
        }
        return (1 - weight) * distance + scale * isotropy, scalars

    def forward(self, encoder: Encoder, batch: Batch, generator: torch.Generator) -> Outcome | None:
        """The loss over patients of whom both large crops show the body, each once; None for fewer than two."""
        batch = showing(batch)
        batch = batch.of(batch.once)  # nobody is to be kept apart from herself
        if batch.patients < 2:
            return None
        large = self.project(encoder, batch.images, batch.modality).reshape(batch.patients, GLOBAL, PROJECTION)
        small = self.local_views(encoder, batch, generator)
        loss, scalars = self.loss(torch.stack([*large.unbind(1), *small]))
        # A large crop counts once, whatever is cut out of it.
        return Outcome(loss, len(batch.images), count(batch.modality, encoder.modalities), scalars=scalars)


def showing(batch: Batch) -> Batch:
    """The patients of a batch of two crops each whose crops both show enough of the body."""
    share = batch.body.flatten(1).float().mean(1)
    patients = (share >= MINIMUM_BODY).reshape(-1, GLOBAL).all(1)
    return batch.of(patients)
