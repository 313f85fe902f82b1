"""Grids, outlines and the DICOM files that hold them, for tests of structure sets and segmentations."""

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import ExplicitVRLittleEndian, generate_uid
from scipy.spatial.transform import Rotation

from parametrium.cohort.dicom.facts import Grid

STRUCTURE_SET = "1.2.840.10008.5.1.4.1.1.481.3"
SENTINEL = "SENTINEL^JANE"
TO_LPS = np.diag([-1.0, -1.0, 1.0])


def oblique_grid(
    seed: int, shape: tuple[int, int, int] = (26, 24, 14), spacing: Sequence[float] = (1.9, 2.3, 3.1)
) -> Grid:
    """A grid turned at random, its slices in either order."""
    rng = np.random.default_rng(seed)
    turned = Rotation.random(random_state=rng).as_matrix() * np.asarray(spacing)
    turned[:, 2] *= rng.choice([-1, 1])
    affine = np.eye(4)
    affine[:3, :3] = turned
    affine[:3, 3] = rng.uniform(-200, 200, 3)
    return Grid(shape, affine)


def straight_grid(shape: tuple[int, int, int] = (20, 18, 12), spacing: Sequence[float] = (1.0, 1.0, 1.0)) -> Grid:
    """An axial grid with its first voxel at the origin."""
    return Grid(shape, np.diag([*spacing, 1.0]))


def to_patient(grid: Grid, voxels: NDArray[np.float64]) -> NDArray[np.float64]:
    """[N, 3] LPS mm of [N, 3] voxel coordinates."""
    return (voxels @ grid.affine[:3, :3].T + grid.affine[:3, 3]) @ TO_LPS


def ellipse(
    centre: Sequence[float], radii: Sequence[float], position: float, axis: int = 2, corners: int = 180
) -> NDArray[np.float64]:
    """[N, 3] voxel coordinates of an ellipse in the plane ``position`` of an axis."""
    angle = np.linspace(0, 2 * np.pi, corners, endpoint=False) + 0.0123
    flat = np.stack([centre[0] + radii[0] * np.cos(angle), centre[1] + radii[1] * np.sin(angle)], axis=1)
    return np.insert(flat, axis, position, axis=1)


def structure_set(
    path: Path,
    structures: Sequence[tuple[str, Sequence[NDArray[np.float64]]]],
    *,
    frame: str = "1.2.3",
    kinds: Sequence[str] = (),
    types: Sequence[str] = (),
    change: Any = None,
) -> Path:
    """Writes an RTSTRUCT: names and LPS outlines; ``kinds`` are Contour Geometric Types, ``types`` interpreted ones."""
    dataset = _file(STRUCTURE_SET, "RTSTRUCT")
    dataset.StructureSetROISequence = Items()
    dataset.ROIContourSequence = Items()
    dataset.RTROIObservationsSequence = Items()
    for number, (name, outlines) in enumerate(structures, 1):
        dataset.StructureSetROISequence.append(
            _item(ROINumber=number, ROIName=name, ReferencedFrameOfReferenceUID=frame)
        )
        contours = Items(
            _item(
                ContourGeometricType=kinds[place] if kinds else "CLOSED_PLANAR",
                NumberOfContourPoints=len(points),
                ContourData=[f"{value:.8g}"[:16] for value in points.ravel()],
            )
            for place, points in enumerate(outlines)
        )
        dataset.ROIContourSequence.append(_item(ReferencedROINumber=number, ContourSequence=contours))
        kind = types[number - 1] if types else ""
        dataset.RTROIObservationsSequence.append(
            _item(ObservationNumber=number, ReferencedROINumber=number, RTROIInterpretedType=kind)
        )
    image = _item(ReferencedSOPClassUID="1.2.840.10008.5.1.4.1.1.2", ReferencedSOPInstanceUID="1.2.3.4.5")
    series = _item(SeriesInstanceUID="1.2.3.4", ContourImageSequence=Items([image]))
    study = _item(RTReferencedSeriesSequence=Items([series]))
    dataset.ReferencedFrameOfReferenceSequence = Items(
        [_item(FrameOfReferenceUID=frame, RTReferencedStudySequence=Items([study]))]
    )
    if change is not None:
        change(dataset)
    dataset.save_as(path, enforce_file_format=True)
    return path


def many_contours(path: Path, outlines: Sequence[NDArray[np.float64]], structures: int, *, undefined: bool) -> Path:
    """An RTSTRUCT whose structures all have the same LPS outlines, written byte by byte: pydicom takes minutes for it.

    Args:
        path: the file; it refers to the frame of reference 1.2.3.
        outlines: [N, 3] each.
        structures: how many, named S1, S2 and so on.
        undefined: whether sequences and items are of undefined length (PS3.5 7.5).
    """

    def element(tag: int, representation: bytes, value: bytes) -> bytes:
        value += b" " * (len(value) % 2)
        return struct.pack("<HH2sH", tag >> 16, tag & 0xFFFF, representation, len(value)) + value

    def sequence(tag: int, items: Sequence[bytes]) -> bytes:
        mark, no_length = struct.pack("<HH", tag >> 16, tag & 0xFFFF) + b"SQ\0\0", b"\xff\xff\xff\xff"
        begin, end, last = b"\xfe\xff\x00\xe0", b"\xfe\xff\x0d\xe0\0\0\0\0", b"\xfe\xff\xdd\xe0\0\0\0\0"
        if undefined:
            return mark + no_length + b"".join(begin + no_length + item + end for item in items) + last
        body = b"".join(begin + struct.pack("<L", len(item)) + item for item in items)
        return mark + struct.pack("<L", len(body)) + body

    def contour(points: NDArray[np.float64]) -> bytes:
        text = "\\".join(f"{value:.4f}" for value in points.ravel()).encode()
        image = element(0x00081150, b"UI", b"1.2.840.10008.5.1.4.1.1.2") + element(0x00081155, b"UI", b"1.2.3.4.5.6")
        return (
            sequence(0x30060016, [image])
            + element(0x30060042, b"CS", b"CLOSED_PLANAR")
            + element(0x30060046, b"IS", str(len(points)).encode())
            + element(0x30060050, b"DS", text)
        )

    drawn = sequence(0x30060040, [contour(points) for points in outlines])
    numbers = [str(number + 1).encode() for number in range(structures)]
    content = structure_set(path, [("S", [])]).read_bytes()
    head = content[: content.index(b"\x06\x30")]
    described = [
        element(0x30060022, b"IS", number)
        + element(0x30060024, b"UI", b"1.2.3\0")
        + element(0x30060026, b"LO", b"S" + number)
        for number in numbers
    ]
    frame = sequence(0x30060010, [element(0x00200052, b"UI", b"1.2.3\0")])
    contours = [drawn + element(0x30060084, b"IS", number) for number in numbers]
    path.write_bytes(head + frame + sequence(0x30060020, described) + sequence(0x30060039, contours))
    return path


def image_series(grid: Grid) -> list[Dataset]:
    """Headers of a CT whose slice k is plane k of the grid, for a segmentation to refer to."""
    i, j, k = (TO_LPS @ grid.affine[:3, axis] for axis in range(3))
    slices = []
    for number in range(grid.shape[2]):
        dataset = _file("1.2.840.10008.5.1.4.1.1.2", "CT", number)
        dataset.FrameOfReferenceUID = _uid("frame")
        dataset.InstanceNumber = number + 1
        dataset.Rows, dataset.Columns = grid.shape[1], grid.shape[0]
        dataset.PixelSpacing = [float(np.linalg.norm(j)), float(np.linalg.norm(i))]
        directions = np.concatenate([i / np.linalg.norm(i), j / np.linalg.norm(j)])
        dataset.ImageOrientationPatient = [float(f"{value:.9f}") for value in directions]
        origin = TO_LPS @ grid.affine[:3, 3] + k * number
        dataset.ImagePositionPatient = [float(f"{value:.6f}") for value in origin]
        dataset.SliceThickness = float(np.linalg.norm(k))
        slices.append(dataset)
    return slices


def _uid(*source: object) -> str:
    """The same UID for the same source, so that files have the same bytes each time."""
    return str(generate_uid(entropy_srcs=[str(part) for part in source]))


def _file(sop_class: str, modality: str, number: int = 0) -> FileDataset:
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = sop_class
    meta.MediaStorageSOPInstanceUID = _uid(modality, number)
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID, dataset.SOPInstanceUID = sop_class, meta.MediaStorageSOPInstanceUID
    dataset.Modality = modality
    dataset.PatientName = dataset.PatientID = SENTINEL
    dataset.PatientBirthDate = dataset.PatientSex = dataset.AccessionNumber = dataset.StudyID = ""
    dataset.ReferringPhysicianName = ""
    dataset.StudyDate, dataset.StudyTime = "20200102", "101010"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = _uid("study"), _uid("series", modality)
    return dataset


def _item(**values: Any) -> Dataset:
    item = Dataset()
    for name, value in values.items():
        setattr(item, name, value)
    return item
