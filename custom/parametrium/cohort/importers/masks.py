"""Structures and segmentations of one series as mask files on the grids of the volumes that they were drawn on."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from parametrium.cohort.dicom import segmentations, structures
from parametrium.cohort.dicom.facts import Grid, LeftOut
from parametrium.cohort.dicom.index import Kind
from parametrium.cohort.dicom.references import References
from parametrium.cohort.importers.conversion import failure, flush
from parametrium.cohort.importers.ledger import SUFFIX, Drawn, Held
from parametrium.cohort.nifti import write_nifti
from parametrium.cohort.problem import Reason
from parametrium.cohort.volume_file import read_stored

Outcome = Drawn | LeftOut


def draw(kind: Kind, files: Sequence[Path], held: Sequence[Held], staging: Path) -> list[Outcome]:
    """Every mask of every file of one series, or why there is none; a file without any mask counts as one left out.

    Args:
        kind: structures or segmentation.
        files: of the series.
        held: volumes of the same patient.
        staging: a folder to make.

    Raises:
        OSError: ``staging`` cannot be written.
    """
    staging.mkdir(mode=0o700)
    outcomes: list[Outcome] = []
    try:
        for number, file in enumerate(files):
            outcomes.extend(_of_file(kind, file, held, staging, number))
    except OSError:
        raise
    except Exception as error:  # one odd series must not stop the batch; a fault of ours hits all and is seen
        return [failure(error, len(files))]
    for outcome in outcomes:
        if isinstance(outcome, Drawn):
            flush(outcome.file)
    return outcomes


def _of_file(kind: Kind, file: Path, held: Sequence[Held], staging: Path, number: int) -> list[Outcome]:
    read = structures.read_structures(file) if kind == "structures" else segmentations.read_segmentation(file)
    if isinstance(read, LeftOut):
        return [read]
    volume = drawn_on(read.references, held)
    if volume is None:
        return [LeftOut(read.identity, Reason.STRUCTURES_WITHOUT_IMAGE)]
    hidden = None if volume.defaced is None else read_stored(volume.defaced).voxels != 0
    outcomes: list[Outcome] = []
    for structure, mask in _rasterise(read, volume.grid):
        if hidden is not None and not isinstance(mask, Reason):
            mask[hidden] = 0  # the outline of a body or of its skin is its face
            mask = mask if mask.any() else Reason.EMPTY_STRUCTURE
        if isinstance(mask, Reason):
            outcomes.append(LeftOut(read.identity, mask, files=0))
            continue
        path = staging / f"{number}-{len(outcomes)}{SUFFIX}"
        write_nifti(path, mask, volume.grid.affine)
        outcomes.append(Drawn(volume.number, structure, path))
    if not any(isinstance(outcome, Drawn) for outcome in outcomes):
        outcomes.append(LeftOut(read.identity, Reason.EMPTY_STRUCTURE))
    return outcomes


def _rasterise(
    read: structures.StructureSet | segmentations.Segmentation, grid: Grid
) -> Iterator[tuple[str, NDArray[np.uint8] | Reason]]:
    if isinstance(read, structures.StructureSet):
        return structures.rasterise(read, grid)
    return segmentations.rasterise(read, grid)


def drawn_on(references: References, held: Sequence[Held]) -> Held | None:
    """The volume that references mean: by its slices, else by its series, else the only one of the frame."""
    shared = [len(volume.instances & references.instances) for volume in held]
    if any(shared):
        return held[shared.index(max(shared))]
    of_series = [volume for volume in held if volume.series in references.series]
    if of_series:
        return of_series[0]
    in_frame = [volume for volume in held if volume.frame_of_reference == references.frame_of_reference != ""]
    return in_frame[0] if len(in_frame) == 1 else None
