"""Cross-modal synthesis: every voxel of a registered modality from another one, whole, by the decoder of segmentation.

The reconstructions leave behind an encoder; what turns its tokens into a drawing of every voxel begins at random for
each later task. This objective trains that part, too, as masked pretraining of whole U-Nets does (Wald et al.,
Revisiting MAE pre-training for 3D medical image segmentation, CVPR 2025). docs/transfer.md has what it is worth.

N crops, P ordered pairs of registered crops, D H W voxels, F channels at full resolution.
"""

import torch
from torch import Tensor, nn

from parametrium.config import CrossModalSynthesisConfig, JobConfig
from parametrium.data.batch import Batch, CropRequest
from parametrium.model.dense_decoder import WIDTH, DenseDecoder, convolution, spread
from parametrium.model.encoder import Encoder
from parametrium.model.modality import ByModality
from parametrium.model.presets import Architecture
from parametrium.objectives.objective import Objective, Outcome, count
from parametrium.objectives.reconstruction import registered


class CrossModalSynthesis(Objective):
    """Each crop is turned into every modality that shows the same place. Mean squared error where both are body."""

    kind = "cross_modal_synthesis"

    def __init__(self, config: CrossModalSynthesisConfig, job: JobConfig, shape: Architecture) -> None:
        super().__init__()
        self.spacing_mm = job.preparation.spacing_mm
        names = job.modalities
        self.stem = ByModality("embed", names, [convolution(1, WIDTH, 3) for _ in names])
        self.decoder = DenseDecoder(shape)
        self.coarse = ByModality("decode", names, [nn.Conv3d(self.decoder.channels, 1, 1) for _ in names])
        self.head = ByModality("decode", names, [nn.Conv3d(WIDTH, 1, 1) for _ in names])

    def request(self, patients: int, volumes: int) -> CropRequest:
        """At least two registered volumes of a patient, where it has them."""
        return CropRequest("aligned", patients, max(volumes, 2))

    def predict(self, encoder: Encoder, images: Tensor, modality: Tensor, source: Tensor, wanted: Tensor) -> Tensor:
        """[P, D, H, W] of the wanted modalities; each crop is decoded once, for all that it is turned into.

        Args:
            encoder: the shared encoder.
            images: [N, D, H, W], multiples of the patch.
            modality: [N] of the images.
            source: [P] index of the image that is looked at.
            wanted: [P] index of the modality that it is turned into.
        """
        known = self.decoder.known(encoder, images, modality, self.spacing_mm)
        features = self.decoder(self.stem(images[:, None], modality), known)
        extent = (images.shape[1], images.shape[2], images.shape[3])
        drawn: Tensor = self.head(features[source], wanted) + spread(self.coarse(known[source], wanted), extent)
        return drawn[:, 0]

    def forward(self, encoder: Encoder, batch: Batch, generator: torch.Generator) -> Outcome | None:
        """``chance`` is the error of each modality's mean over the batch."""
        source, target = registered(batch).nonzero(as_tuple=True)
        both = batch.body[source] & batch.body[target]
        shown = both.flatten(1).any(1)
        source, target, both = source[shown], target[shown], both[shown]
        if not len(source):
            return None
        looked = torch.unique(source)
        wanted, true = batch.modality[target], batch.images[target]
        places = torch.searchsorted(looked, source)
        found = self.predict(encoder, batch.images[looked], batch.modality[looked], places, wanted)
        loss = (found.float() - true)[both].square().mean()
        # Partners are so mutually: what is looked at is also what is to be found.
        tally = count(batch.modality[looked], encoder.modalities)
        chance = float(_from_means(true, both, wanted))
        return Outcome(loss, len(looked), tally, tally, scalars={"chance": chance})


def _from_means(true: Tensor, both: Tensor, wanted: Tensor) -> Tensor:
    """Mean squared difference of each pair's voxels [P, D, H, W] that count to the mean of their modality."""
    apart = [true[wanted == one][both[wanted == one]] for one in torch.unique(wanted)]
    return torch.cat([values - values.mean() for values in apart]).square().mean()
