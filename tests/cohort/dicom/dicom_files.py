"""Synthetic DICOM series on disk, written with pydicom: for tests of everything that reads DICOM.

``write_series`` writes classic single-frame files from a stored array [I, J, K] (columns, rows, slices) and says where
its voxels lie in LPS millimetres by three step vectors; ``ras_affine`` is the dumb truth to compare with.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import (
    CTImageStorage,
    EnhancedMRImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    MRImageStorage,
    PositronEmissionTomographyImageStorage,
    generate_uid,
)

STORAGE = {"CT": CTImageStorage, "MR": MRImageStorage, "PT": PositronEmissionTomographyImageStorage}
Vector = Sequence[float]


def uid(*words: str) -> str:
    """The same words always give the same UID."""
    return str(generate_uid(entropy_srcs=list(words)))


def volume(shape: Sequence[int] = (7, 6, 5), seed: int = 0, low: int = -1000, high: int = 1000) -> NDArray[np.int16]:
    """Noise: every voxel can be told from its neighbours."""
    return np.random.default_rng(seed).integers(low, high, shape).astype(np.int16)


def rotation(seed: int) -> NDArray[np.float64]:
    """A random rotation, rows x, y, z in LPS, columns the image's row, column and normal."""
    q, r = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    q = q * np.sign(np.diag(r))
    q[:, 2] *= np.sign(np.linalg.det(q))
    return q


def ras_affine(steps: NDArray[np.float64], origin: Vector) -> NDArray[np.float64]:
    """Affine [4, 4] of a stored array from its step vectors (columns of ``steps``) and origin in LPS."""
    affine = np.eye(4)
    affine[:3, :3] = steps
    affine[:3, 3] = origin
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


def straight(spacing: Vector = (0.9, 1.1, 3.0), turn: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
    """Step vectors of a right-angled grid; ``turn`` as ``rotation`` gives."""
    return (np.eye(3) if turn is None else turn) @ np.diag(spacing)


def image_dataset(
    stored: NDArray[Any],
    *,
    number: int,
    modality: str = "CT",
    patient: str = "PAT1",
    study: str = "1",
    series: str = "1",
) -> Dataset:
    """A classic file of one plane, ``stored`` [rows, columns], without its place."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.SOPClassUID = STORAGE[modality]
    dataset.SOPInstanceUID = uid(patient, study, series, str(number))
    dataset.PatientID = patient
    dataset.PatientName = f"{patient}^Name"
    dataset.StudyInstanceUID = uid(patient, study)
    dataset.SeriesInstanceUID = uid(patient, study, series)
    dataset.FrameOfReferenceUID = uid(patient, study, "frame")
    dataset.StudyDate = dataset.SeriesDate = dataset.AcquisitionDate = "20200229"
    dataset.StudyTime = dataset.SeriesTime = dataset.AcquisitionTime = "101112"
    dataset.Modality = modality
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.Manufacturer = "Acme"
    dataset.SeriesDescription = "series"
    dataset.InstanceNumber = number
    dataset.SliceThickness = 3.0
    set_pixels(dataset, stored)
    if modality == "CT":
        dataset.RescaleSlope, dataset.RescaleIntercept, dataset.KVP = 1, 0, 120
    if modality == "MR":
        dataset.ScanningSequence, dataset.SequenceVariant = "SE", "SK"
        dataset.RepetitionTime, dataset.EchoTime, dataset.FlipAngle = 500, 10, 90
        dataset.MagneticFieldStrength = 1.5
    return dataset


def set_pixels(dataset: Dataset, stored: NDArray[Any]) -> None:
    """Pixel description and data; ``stored`` [rows, columns] or [frames, rows, columns] of 8, 16 or 32 bit integers."""
    dataset.Rows, dataset.Columns = stored.shape[-2:]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    bits = stored.dtype.itemsize * 8
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = bits, bits, bits - 1
    dataset.PixelRepresentation = int(stored.dtype.kind == "i")
    data = np.ascontiguousarray(stored).tobytes()
    dataset.PixelData = data + b"\0" * (len(data) % 2)
    dataset["PixelData"].VR = "OW"


def save(dataset: Dataset, path: Path, syntax: str = ExplicitVRLittleEndian) -> Path:
    """Writes a data set in any transfer syntax that pydicom can write."""
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    if syntax == ExplicitVRBigEndian:
        size = max(dataset.BitsAllocated // 8, 2)  # bytes are written as 16-bit words
        dataset.PixelData = np.frombuffer(dataset.PixelData, f"<u{size}").astype(f">u{size}").tobytes()
        dataset["PixelData"].VR = "OW"
    if getattr(syntax, "is_encapsulated", False):
        dataset.compress(syntax)
    else:
        dataset.file_meta.TransferSyntaxUID = syntax
    dataset.save_as(path, enforce_file_format=True)
    return path


def write_series(
    folder: Path,
    stored: NDArray[Any],
    *,
    steps: NDArray[np.float64] | None = None,
    origin: Vector = (-100.0, -80.0, 40.0),
    modality: str = "CT",
    patient: str = "PAT1",
    study: str = "1",
    series: str = "1",
    first: int = 1,
    syntax: str = ExplicitVRLittleEndian,
    shuffle: int | None = None,
    edit: Callable[[Dataset, int], None] | None = None,
    **elements: Any,
) -> list[Path]:
    """Writes a volume as a classic series, one file a slice; gives the paths in the order of their names.

    Args:
        folder: where to.
        stored: [I, J, K] integers: columns, rows, slices.
        steps: [3, 3] LPS millimetres; columns are the steps along I, J and K; None is a straight axial grid.
        origin: LPS millimetres of voxel (0, 0, 0).
        modality: CT, MR or PT.
        patient: Patient ID.
        study: any word; decides the study's UID.
        series: any word; decides the series' UID.
        first: Instance Number of the first slice; two calls of one series need different ones.
        syntax: transfer syntax.
        shuffle: seed that shuffles the file names.
        edit: called with each data set and its slice's index before it is written.
        elements: DICOM keywords and values for every file.
    """
    steps = straight() if steps is None else np.asarray(steps)
    spacing = np.linalg.norm(steps, axis=0)
    names = np.arange(stored.shape[2])
    if shuffle is not None:
        np.random.default_rng(shuffle).shuffle(names)
    paths = []
    for k in range(stored.shape[2]):
        dataset = image_dataset(
            stored[:, :, k].T, modality=modality, patient=patient, study=study, series=series, number=first + k
        )
        dataset.ImageOrientationPatient = [f"{x:.10f}" for x in (*steps[:, 0] / spacing[0], *steps[:, 1] / spacing[1])]
        dataset.ImagePositionPatient = [f"{x:.8f}" for x in np.asarray(origin) + k * steps[:, 2]]
        dataset.PixelSpacing = [f"{spacing[1]:.8f}", f"{spacing[0]:.8f}"]
        for keyword, value in elements.items():
            setattr(dataset, keyword, value)
        if edit is not None:
            edit(dataset, k)
        paths.append(save(dataset, folder / f"{series}_{first:04d}_{names[k]:04d}", syntax))
    return sorted(paths)


def item(**elements: Any) -> Dataset:
    """An item of a sequence."""
    dataset = Dataset()
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    return dataset


def write_enhanced(
    path: Path,
    stored: NDArray[Any],
    *,
    steps: NDArray[np.float64] | None = None,
    origin: Vector = (-100.0, -80.0, 40.0),
    order: Sequence[tuple[int, int]] | None = None,
    frame: Callable[[Dataset, int, int], None] | None = None,
    syntax: str = ExplicitVRLittleEndian,
    **elements: Any,
) -> Path:
    """Writes one enhanced MR file with a frame for each slice of each volume.

    Args:
        path: the file.
        stored: [N, I, J, K]: volumes at the same place.
        steps: as in ``write_series``.
        origin: as in ``write_series``.
        order: (volume, slice) of each frame; None is volume by volume.
        frame: called with each frame's functional groups, its volume and its slice.
        syntax: transfer syntax.
        elements: DICOM keywords and values.
    """
    steps = straight() if steps is None else np.asarray(steps)
    spacing = np.linalg.norm(steps, axis=0)
    order = order or [(n, k) for n in range(stored.shape[0]) for k in range(stored.shape[3])]
    dataset = image_dataset(np.stack([stored[n, :, :, k].T for n, k in order]), modality="MR", number=1)
    dataset.SOPClassUID = EnhancedMRImageStorage
    dataset.NumberOfFrames = len(order)
    measures = item(PixelSpacing=[f"{spacing[1]:.8f}", f"{spacing[0]:.8f}"], SliceThickness=2.5)
    cosines = [f"{x:.10f}" for x in (*steps[:, 0] / spacing[0], *steps[:, 1] / spacing[1])]
    dataset.SharedFunctionalGroupsSequence = Items(
        [
            item(
                PixelMeasuresSequence=Items([measures]),
                PlaneOrientationSequence=Items([item(ImageOrientationPatient=cosines)]),
                MRTimingAndRelatedParametersSequence=Items([item(RepetitionTime=2500.0, FlipAngle=80.0)]),
            )
        ]
    )
    groups = []
    for n, k in order:
        position = [f"{x:.8f}" for x in np.asarray(origin) + k * steps[:, 2]]
        group = item(
            PlanePositionSequence=Items([item(ImagePositionPatient=position)]),
            FrameContentSequence=Items([item(StackID="1", InStackPositionNumber=k + 1)]),
        )
        if frame is not None:
            frame(group, n, k)
        groups.append(group)
    dataset.PerFrameFunctionalGroupsSequence = Items(groups)
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    return save(dataset, path, syntax)
