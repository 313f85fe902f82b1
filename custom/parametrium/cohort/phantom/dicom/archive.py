"""How a patient's studies lie on a PACS export: series, their objects, and where each file goes."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from parametrium.cohort.phantom.chance import stream
from parametrium.cohort.phantom.dicom.device import site_device
from parametrium.cohort.phantom.dicom.header import Visit, save
from parametrium.cohort.phantom.dicom.identity import Person
from parametrium.cohort.phantom.dicom.layout import Orientation, Planes, Position
from parametrium.cohort.phantom.dicom.multiframe import can_be_multiframe, multiframe
from parametrium.cohort.phantom.dicom.series import Scan, image_series, planes_of
from parametrium.cohort.phantom.dicom.structures import segmentation, structure_set
from parametrium.cohort.phantom.dicom.surroundings import (
    dose_grid,
    dose_report,
    leave_strays,
    localiser,
    screenshot,
)
from parametrium.cohort.phantom.study import Drawn
from parametrium.cohort.phantom.visit import rigid
from parametrium.cohort.problem import Reason

_MR = ("T1", "T2", "ADC")


@dataclass(frozen=True)
class Style:
    """How volumes become objects; as in ``write_phantom_dicom``."""

    orientation: Orientation
    turn_deg: tuple[float, float, float]
    position: Position
    transfer_syntax: str
    enhanced: bool
    structures: bool
    segmentations: bool
    surroundings: bool


@dataclass(frozen=True)
class Exported:
    """One series, or stray file, of an export: what an import should make of it.

    Attributes:
        patient: Patient ID in the headers.
        study: name of the visit, as ``write_phantom`` has it.
        day: days from the patient's first study.
        content: modality of a volume, or what it is else.
        reason: why an import leaves it out; None for volumes and structures.
        series: Series Instance UID; empty for a stray file.
        files: how many it has.
    """

    patient: str
    study: str
    day: int
    content: str
    reason: Reason | None
    series: str
    files: int


class Shelf:
    """Where a patient's files go: as on a medium, by date and UID, or numbered through in one folder.

    Args:
        folder: of the export.
        person: whose.
    """

    def __init__(self, folder: Path, person: Person) -> None:
        self.root = folder / person.texts["path"]
        self._medium = folder / "DICOM" / f"PA{person.number:06d}"
        self._way = person.number % 3
        self._count = 0

    def place(self, visit: Visit, dataset: Dataset) -> Path:
        """A path for one more file."""
        self._count += 1
        if self._way == 0:
            series = f"ST{visit.number:06d}/SE{int(dataset.SeriesNumber):06d}"
            return self._medium / series / f"IM{self._count:06d}"
        if self._way == 1:
            return self.root / f"{visit.date:%Y-%m-%d} Pelvis" / str(dataset.SOPInstanceUID)
        return self.root / f"IM_{self._count:04d}"


class StudyArchive:
    """Writes one study, volume by volume.

    Args:
        visit: the study.
        style: how.
        shelf: where.
    """

    def __init__(self, visit: Visit, style: Style, shelf: Shelf) -> None:
        self.exported: list[Exported] = []
        self._visit, self._style, self._shelf = visit, style, shelf
        self._series = 0
        self._scanned: set[str] = set()
        self._outlined: tuple[Scan, Drawn, list[Dataset]] | None = None
        self._segmented: tuple[Scan, Drawn, list[Dataset]] | None = None

    def add(self, drawn: Drawn) -> None:
        """Writes a volume, and the localiser that was made before it."""
        scan = self._scan(drawn)
        kind = "MR" if drawn.modality in _MR else drawn.modality
        if self._style.surroundings and kind in ("CT", "MR") and kind not in self._scanned:
            self._write("localiser", localiser(scan, self._next()), Reason.LOCALISER)
        self._scanned.add(kind)
        images = image_series(scan, self._next())
        if self._style.enhanced and can_be_multiframe(images):
            images = [multiframe(images, self._visit)]
        files = self._write(drawn.modality, images, None)
        if self._style.surroundings and len(self._scanned) == 1 and len(files) > 1:
            self._duplicate(files[0], images[0])
        if self._outlined is None or (drawn.modality == "CT" and self._outlined[0].modality != "CT"):
            self._outlined = (scan, drawn, images)
        if self._segmented is None or drawn.modality != "PET":
            self._segmented = (scan, drawn, images)

    def close(self) -> None:
        """Writes what refers to volumes, and what is no volume."""
        if self._outlined is None or self._segmented is None:
            return
        scan, drawn, images = self._outlined
        if self._style.structures:
            outlined = structure_set(self._visit, images, _masks(scan, drawn), number=self._next())
            self._write("RTSTRUCT", [outlined], None)
        if self._style.segmentations:
            other, seen, sources = self._segmented
            segments = segmentation(self._visit, sources, _masks(other, seen), number=self._next())
            self._write("SEG", [segments], None)
        if self._style.surroundings:
            self._surround(scan)

    def _surround(self, scan: Scan) -> None:
        for burned_in, reason in ((False, Reason.SECONDARY_CAPTURE), (True, Reason.BURNED_IN_TEXT)):
            self._write("screenshot", [screenshot(self._visit, self._next(), burned_in=burned_in)], reason)
        self._write("dose", [dose_grid(scan, self._next())], Reason.DOSE)
        if "CT" in self._scanned:
            self._write("report", [dose_report(self._visit, self._next())], Reason.REPORT)
        if self._visit.number == 0:
            for path, reason in leave_strays(self._shelf.root, self._visit.person, self._visit):
                self._note(path.name, reason, "", 1)

    def _scan(self, drawn: Drawn) -> Scan:
        style = self._style
        return Scan(
            visit=self._visit,
            modality=drawn.modality,
            values=drawn.image,
            affine=turned(style.turn_deg) @ drawn.pose.grid,
            frame=drawn.frame,
            device=site_device(str(self._visit.key[1]), drawn.modality),
            orientation=style.orientation,
            position=style.position,
            contrast=drawn.modality == "CT" and drawn.scanner.contrast,
        )

    def _next(self) -> int:
        self._series += 1
        return self._series

    def _write(self, content: str, objects: Sequence[Dataset], reason: Reason | None) -> list[Path]:
        """Saves a series; files are numbered in another order than the images were taken."""
        order = stream(*self._visit.key, self._series, "order").permutation(len(objects))
        paths = [self._shelf.place(self._visit, objects[index]) for index in order]
        # Objects of other bits than 16 are small; an archive that compresses leaves them as they are.
        syntax = self._style.transfer_syntax if content in ("CT", "CBCT", *_MR, "PET") else "explicit"
        for index, path in zip(order, paths, strict=True):
            save(objects[index], path, syntax)
        self._note(content, reason, objects[0].SeriesInstanceUID, len(objects))
        return paths

    def _duplicate(self, path: Path, image: Dataset) -> None:
        """Sends one image a second time, under another name."""
        copied = path.with_name(f"{path.name}_COPY")
        shutil.copyfile(path, copied)
        self._note("duplicate", Reason.DUPLICATE, image.SeriesInstanceUID, 1)

    def _note(self, content: str, reason: Reason | None, series: str, files: int) -> None:
        visit = self._visit
        study = f"s{visit.number}"
        self.exported.append(Exported(visit.person.id, study, visit.day, content, reason, str(series), files))


def turned(turn_deg: tuple[float, float, float]) -> NDArray[np.float64]:
    """[4, 4] a turn of everything about the axes of patient coordinates, RAS+."""
    return rigid(np.zeros(3), np.radians(turn_deg))


def _masks(scan: Scan, drawn: Drawn) -> dict[str, Planes]:
    return {structure: planes_of(scan, mask) for structure, mask in drawn.masks()}
