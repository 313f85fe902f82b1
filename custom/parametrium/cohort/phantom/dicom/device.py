"""Made-up devices, with headers as devices of that kind write them.

A site has one device a modality, and always the same. Values follow textbook protocols of the pelvis; they are the
facts by which an importer can tell a T1 from a T2 and a cone beam from a fan beam.
"""

from dataclasses import dataclass, field
from typing import Any

from pydicom.uid import CTImageStorage, MRImageStorage, PositronEmissionTomographyImageStorage

from parametrium.cohort.phantom.chance import stream

_CT: dict[str, Any] = {
    "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
    "ScanOptions": "HELICAL MODE",
    "KVP": "120",
    "DataCollectionDiameter": "500",
    "GantryDetectorTilt": "0",
    "XRayTubeCurrent": "210",
    "ExposureTime": "800",
    "ConvolutionKernel": "STANDARD",
    "RescaleType": "HU",
}
_CONE: dict[str, Any] = {
    **{name: value for name, value in _CT.items() if name not in ("ScanOptions", "ConvolutionKernel")},
    "KVP": "125",
    "XRayTubeCurrent": "60",
}
_SPIN_ECHO: dict[str, Any] = {
    "ScanningSequence": "SE",
    "MRAcquisitionType": "2D",
    "ImageType": ["ORIGINAL", "PRIMARY", "M", "ND"],
    "MagneticFieldStrength": "1.5",
    "EchoNumbers": "1",
    "NumberOfAverages": "2",
    "PixelBandwidth": "200",
    "InPlanePhaseEncodingDirection": "ROW",
}
_T1 = {
    **_SPIN_ECHO,
    "SequenceVariant": "SK",
    "SequenceName": "*tse2d1_3",
    "RepetitionTime": "580",
    "EchoTime": "9.6",
    "FlipAngle": "150",
    "EchoTrainLength": "3",
}
_T2 = {
    **_SPIN_ECHO,
    "SequenceVariant": ["SK", "SP"],
    "SequenceName": "*tse2d1_19",
    "RepetitionTime": "4300",
    "EchoTime": "101",
    "FlipAngle": "160",
    "EchoTrainLength": "19",
}
_ADC = {
    **_SPIN_ECHO,
    "ImageType": ["DERIVED", "PRIMARY", "DIFFUSION", "ADC", "ND"],
    "ScanningSequence": "EP",
    "SequenceVariant": ["SK", "SP"],
    "SequenceName": "*ep_b0_1000",
    "RepetitionTime": "5200",
    "EchoTime": "74",
    "FlipAngle": "90",
    "EchoTrainLength": "64",
}
_PET: dict[str, Any] = {
    "ImageType": ["ORIGINAL", "PRIMARY"],
    "SeriesType": ["WHOLE BODY", "IMAGE"],
    "Units": "BQML",
    "CountsSource": "EMISSION",
    "DecayCorrection": "START",
    "CorrectedImage": ["NORM", "DTIM", "ATTN", "SCAT", "DECY", "RAN"],
    "AttenuationCorrectionMethod": "measured",
    "ReconstructionMethod": "OSEM 4i 21s",
    "ScatterCorrectionMethod": "model-based",
    "RandomsCorrectionMethod": "DLYD",
    "CollimatorType": "NONE",
}


@dataclass(frozen=True)
class Device:
    """How one device writes one modality.

    Attributes:
        sop_class: of its images.
        modality: (0008,0060).
        facts: attributes by keyword, the same in every image.
        description: of the series.
        by_patient: planes are laid out by the patient, not by the machine.
        slope: of MR: the real value is slope times the stored one.
        unit: of ADC: UCUM code of its real world value mapping; empty for a device that tells none.
        late: of PET: the series time is that of a second reconstruction, long after the scan began.
    """

    sop_class: str
    modality: str
    facts: dict[str, Any]
    description: str
    by_patient: bool = False
    slope: float = 1.0
    unit: str = ""
    late: bool = False


def _made_by(maker: str, model: str, facts: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"Manufacturer": maker, "ManufacturerModelName": model, **facts, **more}


@dataclass(frozen=True)
class _Kind:
    sop_class: str
    modality: str
    devices: tuple[tuple[dict[str, Any], str, dict[str, Any]], ...] = field(default=())


_BY_PATIENT = {"by_patient": True}
_SCALED = {"by_patient": True, "slope": 0.25}
_DEVICES = {
    "CT": _Kind(
        CTImageStorage,
        "CT",
        (
            (_made_by("SIEMENS", "SOMATOM go.Sim", _CT), "Becken 3.0 Br36", {}),
            (_made_by("GE MEDICAL SYSTEMS", "Discovery RT", _CT), "PELVIS PLANNING", {}),
        ),
    ),
    "CBCT": _Kind(
        CTImageStorage,
        "CT",
        (
            (_made_by("Varian Medical Systems", "On-Board Imager", _CONE), "CBCT Pelvis", {}),
            (_made_by("ELEKTA", "XVI", _CONE), "VolumeView", {}),
        ),
    ),
    "T1": _Kind(
        MRImageStorage,
        "MR",
        (
            (_made_by("SIEMENS", "Aera", _T1), "t1_tse_tra", _BY_PATIENT),
            (_made_by("Philips Medical Systems", "Ingenia", _T1, SequenceName=""), "T1W_TSE", _SCALED),
        ),
    ),
    "T2": _Kind(
        MRImageStorage,
        "MR",
        (
            (_made_by("SIEMENS", "Aera", _T2), "t2_tse_tra", _BY_PATIENT),
            (_made_by("Philips Medical Systems", "Ingenia", _T2, SequenceName=""), "T2W_TSE", _SCALED),
        ),
    ),
    "ADC": _Kind(
        MRImageStorage,
        "MR",
        (
            (_made_by("SIEMENS", "Aera", _ADC), "ep2d_diff_ADC", _BY_PATIENT),
            (
                _made_by("Philips Medical Systems", "Ingenia", _ADC, SequenceName=""),
                "dADC",
                {**_SCALED, "unit": "um2/s"},
            ),
            (_made_by("UIH", "uMR 780", _ADC), "ADC map", {"by_patient": True, "slope": 1e-6, "unit": "mm2/s"}),
        ),
    ),
    "PET": _Kind(
        PositronEmissionTomographyImageStorage,
        "PT",
        (
            (_made_by("SIEMENS", "Biograph64_mCT", _PET), "PET WB", {}),
            (_made_by("GE MEDICAL SYSTEMS", "Discovery MI", _PET), "PET AC 3D", {"late": True}),
        ),
    ),
}


def site_devices(modality: str) -> int:
    """How many devices there are for a modality."""
    return len(_DEVICES[modality].devices)


def site_device(site: str, modality: str, which: int | None = None) -> Device:
    """The device of a site for a modality; ``which`` picks one by its number instead."""
    kind = _DEVICES[modality]
    if which is None:
        which = int(stream("device", site, modality).integers(len(kind.devices)))
    facts, description, more = kind.devices[which]
    return Device(kind.sop_class, kind.modality, facts, description, **more)
