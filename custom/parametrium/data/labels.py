"""A patient's masks as one label map on the lattice of a prepared volume."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from parametrium.cohort.problem import Reason
from parametrium.cohort.rigid import matrix_of
from parametrium.data.cache import PreparedPatient, PreparedVolume
from parametrium.data.lattice import Spacing, overlap, resample
from parametrium.data.recipe import load_volume


def label_map(
    patient: PreparedPatient, volume: PreparedVolume, structures: Sequence[str], spacing_mm: Spacing
) -> NDArray[np.uint8] | None:
    """Which structure each voxel of a prepared volume belongs to.

    Masks of the volume's frame count, those of its own study before those of others. A mask is resampled as an image is
    and cut at one half, so that its border lies where the image shows it.

    Args:
        patient: whose masks.
        volume: gives frame, place and extent.
        structures: names in ``masks.csv``; where two cover a voxel, the later one has it.
        spacing_mm: of the volume's lattice.

    Returns:
        [D, H, W], 0 for none and n + 1 for structure n; None where the frame lacks one of them, or a mask cannot be
        read: a missing structure must not be taught as background.
    """
    labels = np.zeros(volume.shape, dtype=np.uint8)
    in_frame = [mask for mask in patient.masks if mask.frame == volume.frame]
    chosen = {mask.structure: mask for mask in sorted(in_frame, key=lambda mask: mask.study == volume.study)}
    if not set(structures) <= chosen.keys():
        return None
    for number, structure in enumerate(structures, start=1):
        mask = chosen[structure]
        loaded = load_volume(mask.path)
        if isinstance(loaded, Reason):
            return None
        voxels, affine = loaded
        found = resample((voxels > 0).astype(np.float32), matrix_of(mask.moved) @ affine, spacing_mm)
        shared = overlap(volume.offset, volume.shape, found.offset, found.image.shape)
        if shared is not None:
            here, there = shared
            labels[here][found.image[there] >= 0.5] = number
    return labels
