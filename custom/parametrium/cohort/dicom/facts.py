"""What is known of DICOM objects, in the order in which it is decided.

    file -> Instance (its Identity, Facts and Slices) -> Stack (slices that make one volume) -> Choice -> Converted

An ``Identity`` identifies a patient. It stays in memory and in the site's private index, and no part of it is ever
written into the cohort, a report, a log or an error. ``Facts`` are what modality and units are decided by; texts among
them (descriptions) are read for the decision and never written either. What is written is the sidecar: numbers and
yes or no, by the names in ``SIDECAR``.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from parametrium.cohort.problem import Reason

Vector = tuple[float, float, float]

SIDECAR = (
    "spacing_mm",  # [3] voxel spacing of the written volume
    "slices",
    "slice_thickness_mm",
    "field_strength_t",
    "echo_time_ms",
    "repetition_time_ms",
    "inversion_time_ms",
    "flip_angle_deg",
    "b_value_s_mm2",
    "contrast",  # true or false
    "tube_voltage_kv",
    "suv_factor",  # SUVbw per Bq/ml (or per stored unit)
    "minutes_after_injection",
    "rescaled",  # true when stored values were brought to HU, SUV or 1e-6 mm2/s
    "derived",  # true for a scanner-made map such as ADC
    "defaced",  # whether the site's program took a face out; absent where the site has set none
)
"""Every name that a sidecar may hold; each value is a finite number, a list of them, or true or false."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Whose and which object this is; texts as in the header, stripped, empty where absent. Never written anywhere."""

    patient: str
    study: str
    series: str
    instance: str
    frame_of_reference: str
    study_date: date | None


@dataclass(frozen=True, slots=True)
class Facts:
    """What modality, units and usefulness of a stack are decided by.

    Attributes:
        sop_class: SOP Class UID.
        modality: (0008,0060), upper case.
        image_type: (0008,0008) or the frame's own, upper case.
        description: Series Description; only for the site's own rules and last-resort words.
        protocol: Protocol Name; as description.
        sequence_name: Sequence Name or Pulse Sequence Name, upper case.
        scanning_sequence: e.g. SE, GR, EP, IR, upper case.
        sequence_variant: e.g. SK, SP, MP, upper case.
        repetition_time_ms: None where absent; so for all numbers.
        echo_time_ms: of this stack's echo.
        inversion_time_ms: of inversion recovery.
        flip_angle_deg: of the excitation.
        b_value: s/mm2 of this stack; from the standard tag or the vendor's own.
        contrast_agent: whether an agent is named.
        contrast_phase: whether the acquisition is one of several time points (dynamic contrast).
        units: PET Units (BQML, GML, CNTS, ...), upper case; ADC maps' unit where given.
        suv_type: PET SUV Type (BW, LBM, BSA, ...), upper case; empty where absent.
        manufacturer: upper case.
        model: Manufacturer's Model Name, upper case.
        burned_in: Burned In Annotation says YES.
        field_strength_t: of MR.
        tube_voltage_kv: of CT.
        acquisition_type: CT Acquisition Type (e.g. CONSTANT_ANGLE, STATIONARY), upper case.
        body_part: Body Part Examined, upper case; only to know whether there may be a face.
        time_points: how many different times the series shows one place at.
        attenuation_corrected: whether Corrected Image of PET holds ATTN; None where it is absent.
    """

    sop_class: str = ""
    modality: str = ""
    image_type: tuple[str, ...] = ()
    description: str = ""
    protocol: str = ""
    sequence_name: str = ""
    scanning_sequence: tuple[str, ...] = ()
    sequence_variant: tuple[str, ...] = ()
    repetition_time_ms: float | None = None
    echo_time_ms: float | None = None
    inversion_time_ms: float | None = None
    flip_angle_deg: float | None = None
    b_value: float | None = None
    contrast_agent: bool = False
    contrast_phase: bool = False
    units: str = ""
    suv_type: str = ""
    manufacturer: str = ""
    model: str = ""
    burned_in: bool = False
    field_strength_t: float | None = None
    tube_voltage_kv: float | None = None
    acquisition_type: str = ""
    body_part: str = ""
    time_points: int = 1
    attenuation_corrected: bool | None = None


@dataclass(frozen=True, slots=True)
class Slice:
    """One plane of voxels: a file, or one frame of a multi-frame file (or one tile of a mosaic).

    Attributes:
        path: the file.
        frame: number of the frame in the file, from 0.
        instance: SOP Instance UID, for references from structures; never written.
        position: Image Position (Patient), LPS millimetres, centre of the first voxel.
        row: unit vector along which the column index grows, LPS.
        column: unit vector along which the row index grows, LPS.
        spacing: millimetres between rows, between columns.
        shape: rows, columns.
        slope: value = slope * stored + intercept; differs from slice to slice in PET.
        intercept: see slope.
    """

    path: Path
    frame: int
    instance: str
    position: Vector
    row: Vector
    column: Vector
    spacing: tuple[float, float]
    shape: tuple[int, int]
    slope: float
    intercept: float


@dataclass(frozen=True, slots=True)
class Grid:
    """Where a volume's voxels lie: shape [I, J, K] and affine [4, 4] voxel to RAS+ mm, as in its NIfTI file."""

    shape: tuple[int, int, int]
    affine: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Choice:
    """What a stack is for us.

    Attributes:
        modality: a name of the vocabulary or of the site's rules; None when it is left out.
        rule: which rule decided, in words of this package only (``facts: ...`` or ``series_rules[2]``).
        reason: why it is left out; None when it is taken.
        sure: False when only words of a description decided.
    """

    modality: str | None
    rule: str
    reason: Reason | None = None
    sure: bool = True


SidecarValue = float | bool | list[float]


@dataclass(frozen=True)
class Converted:
    """One stack that became a NIfTI file.

    Attributes:
        choice: its modality and the rule that decided.
        identity: of its first slice; for grouping only.
        file: where the NIfTI lies (still in the staging folder).
        grid: of that NIfTI.
        sidecar: what may be told of it, by the names in ``SIDECAR``.
        instances: SOP Instance UIDs of its slices, for references from structures.
        files: how many source files it used.
        defaced: where the mask of what defacing took out lies, beside ``file``; None where nothing was.
    """

    choice: Choice
    identity: Identity
    file: Path
    grid: Grid
    sidecar: Mapping[str, SidecarValue]
    instances: frozenset[str]
    files: int
    defaced: Path | None = None


@dataclass(frozen=True)
class LeftOut:
    """One stack or file that was not taken.

    Attributes:
        identity: for grouping only; None where not even that could be read.
        reason: why.
        rule: which rule decided, as in ``Choice``.
        files: how many source files it is about.
    """

    identity: Identity | None
    reason: Reason
    rule: str = ""
    files: int = 1


Source = Literal["dicom", "bids", "nnunet", "datalist", "folders"]
