"""Where crops lie: every draw is a pure function of the generator it is given.

Lattice indices count voxels of the job's spacing from the world's origin (data/prepare.py), so that two volumes of one
frame are cropped at the same place by the same indices.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from parametrium.data.cache import PreparedPatient, PreparedVolume

Corner = tuple[int, int, int]

INNER_DRAWS = 64
"""Places that are tried for a crop that shall lie inside the body."""


class Crop(NamedTuple):
    """One crop to be read.

    Attributes:
        volume: where from.
        slot: which patient of the batch.
        frame: crops with the same number are registered and show the same place.
        corner: lattice index of its first voxel.
    """

    volume: PreparedVolume
    slot: int
    frame: int
    corner: Corner


def draw_corner(
    rng: np.random.Generator, volume: PreparedVolume, extent: Corner, foreground_fraction: float = 1.0
) -> Corner:
    """First voxel of a crop, centred on a body voxel or anywhere, moved into the volume where that is larger."""
    if rng.random() < foreground_fraction:
        return _corner(_draw_corners(rng, volume, extent, 1)[0])
    centre = np.asarray(volume.offset) + rng.integers(volume.shape)
    return _corner(_moved_inside(rng, centre[None], volume, extent)[0])


def draw_inner_corner(rng: np.random.Generator, volume: PreparedVolume, extent: Corner) -> Corner:
    """First voxel of a crop that lies inside the body as far as a few draws can find one.

    Where the crop shows the outline, the outline alone tells patients apart (METHODS 10); inside, only anatomy does.
    """
    corners = _draw_corners(rng, volume, extent, INNER_DRAWS)
    return _corner(corners[int(np.argmax(volume.body_shares(corners, extent)))])


def _draw_corners(rng: np.random.Generator, volume: PreparedVolume, extent: Corner, count: int) -> NDArray[np.int64]:
    """[count, 3] first voxels of crops centred on body voxels."""
    foreground = volume.foreground()
    return _moved_inside(rng, foreground[rng.integers(len(foreground), size=count)], volume, extent)


def _moved_inside(
    rng: np.random.Generator, centres: NDArray[np.int64], volume: PreparedVolume, extent: Corner
) -> NDArray[np.int64]:
    first = np.asarray(volume.offset)
    last = first + volume.shape - np.asarray(extent)
    wanted = centres - np.asarray(extent) // 2
    # A volume smaller than the crop lies somewhere inside it, not always at the same edge.
    anywhere = rng.integers(np.minimum(first, last), np.maximum(first, last) + 1, size=centres.shape)
    return np.where(last >= first, np.clip(wanted, first, np.maximum(first, last)), anywhere)


def _corner(corner: NDArray[np.int64]) -> Corner:
    return int(corner[0]), int(corner[1]), int(corner[2])


def draw_aligned(
    rng: np.random.Generator,
    patients: Sequence[PreparedPatient],
    extent: Corner,
    volumes: int,
    foreground_fraction: float,
) -> list[Crop]:
    """For every patient one frame, up to ``volumes`` of its volumes (each another modality), one place for all."""
    crops = []
    for slot, patient in enumerate(patients):
        anchor = patient.volumes[rng.integers(len(patient.volumes))]
        others = [v for v in patient.volumes if v.frame == anchor.frame and v.modality != anchor.modality]
        by_modality: dict[str, list[PreparedVolume]] = defaultdict(list)
        for volume in others:
            by_modality[volume.modality].append(volume)
        chosen = [same[rng.integers(len(same))] for same in by_modality.values()]
        order = rng.permutation(len(chosen))[: volumes - 1]
        corner = draw_corner(rng, anchor, extent, foreground_fraction)
        crops += [Crop(volume, slot, slot, corner) for volume in [anchor, *(chosen[i] for i in order)]]
    return crops


def draw_views(
    rng: np.random.Generator, patients: Sequence[PreparedPatient], extent: Corner, foreground_fraction: float
) -> list[Crop]:
    """Two crops of every patient: of two volumes where it has them, at places that overlap where these share a frame.

    The second crop lies up to a quarter of its edge away along each axis, so that about two thirds of an axis overlap;
    volumes without a common frame (other studies, say) are cropped at independent places.
    """
    crops: list[Crop] = []
    for slot, patient in enumerate(patients):
        first = patient.volumes[rng.integers(len(patient.volumes))]
        others = [volume for volume in patient.volumes if volume is not first]
        second = others[rng.integers(len(others))] if others else first
        corner = draw_corner(rng, first, extent, foreground_fraction)
        crops.append(Crop(first, slot, len(crops), corner))
        if second.frame == first.frame:
            reach = np.asarray(extent) // 4
            beside = np.asarray(corner) + rng.integers(-reach, reach + 1)
            crops.append(Crop(second, slot, len(crops), _corner(beside)))
        else:
            crops.append(Crop(second, slot, len(crops), draw_corner(rng, second, extent, foreground_fraction)))
    return crops


def draw_contrast(
    rng: np.random.Generator, patients: Sequence[PreparedPatient], extent: Corner, count: int, crops_per_view: int = 1
) -> tuple[list[int], list[Crop]]:
    """One pair of modalities for the whole batch, patients that have both, independent places in each.

    One pair a batch, because candidates of different modality would be told apart by their modality. Patients with a
    single modality pair it with itself (instance level). A pair is drawn in proportion to the patients that have it.

    Returns:
        indices of the patients taken, and their crops, those of one view after each other, two views a patient; both
        empty where fewer than two patients can be compared.
    """
    having: dict[tuple[str, str], list[int]] = defaultdict(list)
    for index, patient in enumerate(patients):
        names = sorted({volume.modality for volume in patient.volumes})
        pairs = [(a, b) for a in names for b in names if a < b] or [(names[0], names[0])]
        for pair in pairs:
            having[pair].append(index)
    usable = sorted(pair for pair, found in having.items() if len(found) > 1)
    if not usable:
        return [], []
    weights = np.array([len(having[pair]) for pair in usable], dtype=float)
    pair = usable[rng.choice(len(usable), p=weights / weights.sum())]
    found = having[pair]
    taken = sorted(int(i) for i in rng.permutation(found)[:count])
    crops: list[Crop] = []
    for slot, index in enumerate(taken):
        for modality in pair:
            same = [volume for volume in patients[index].volumes if volume.modality == modality]
            volume = same[rng.integers(len(same))]
            for _ in range(crops_per_view):
                crops.append(Crop(volume, slot, len(crops), draw_inner_corner(rng, volume, extent)))
    return taken, crops
