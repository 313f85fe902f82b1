"""What others make of the same files: published volumes, dcm2niix, SimpleITK and highdicom."""

import subprocess
import warnings
from pathlib import Path

import dcm2niix
import highdicom
import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK
from dicom_files import rotation, straight, volume, write_series
from numpy.typing import NDArray

from parametrium.cohort.dicom.convert import convert_series
from parametrium.cohort.dicom.facts import Choice, Converted, Facts
from parametrium.cohort.problem import Reason

Volume = tuple[NDArray[np.float64], NDArray[np.float64]]


def take_all(facts: Facts) -> Choice:
    return Choice({"PT": "PET"}.get(facts.modality, facts.modality), "facts: test")


def converted(folder: Path, staging: Path) -> list[Converted]:
    files = sorted(path for path in folder.iterdir() if path.suffix != ".txt")
    results = convert_series(files, take_all, staging)
    assert sum(result.files for result in results) == len(files)
    left = {result.reason for result in results if not isinstance(result, Converted)}
    assert left <= {Reason.TIME_SERIES}
    return [result for result in results if isinstance(result, Converted)]


def load(path: Path) -> Volume:
    image = nibabel.load(path)
    return image.get_fdata(), image.affine


def reversed_along(volume: Volume, *axes: int) -> Volume:
    """The same volume with axes the other way round: dcm2niix turns the rows, and of a 3D acquisition the columns."""
    voxels, affine = volume
    flip = np.eye(4)
    for axis in axes:
        flip[axis, axis], flip[axis, 3] = -1, voxels.shape[axis] - 1
    return np.flip(voxels, axes), affine @ flip


@pytest.mark.realdata
@pytest.mark.parametrize("patient", ["STS_001", "STS_009", "STS_019"])
@pytest.mark.parametrize("modality", ["CT", "MR_T1", "PET"])
def test_sarcoma_equals_its_published_volumes(real_data: Path, tmp_path: Path, patient: str, modality: str) -> None:
    (result,) = converted(real_data / "dicom" / "sarcoma" / patient / modality / "image", tmp_path)
    voxels, affine = load(result.file)
    expected, grid = load(real_data / "dicom" / "sarcoma_reference" / patient / f"{modality}.nii.gz")
    np.testing.assert_allclose(affine, grid, atol=1e-4)
    np.testing.assert_allclose(voxels, expected, rtol=0.01 if modality == "PET" else 0, atol=0)


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("folder", "reference"),
    [(f"20180918GE/mr_000{n}", f"DCM2NIIX_regression_test_{n}") for n in (4, 5, 6, 7)]
    + [(f"20180918Si/mr_000{n}", f"EPI_PE={way}_{n}") for n, way in ((3, "AP"), (4, "PA"), (5, "RL"), (6, "LR"))],
)
def test_ge_series_and_siemens_mosaics_equal_dcm2niix(
    real_data: Path, tmp_path: Path, folder: str, reference: str
) -> None:
    """The references hold the time series; ours is their first point."""
    base = real_data / "dicom" / "vendors_ge_siemens"
    (result,) = converted(base / "In" / folder, tmp_path)
    voxels, affine = reversed_along(load(result.file), 1)
    series, grid = load(base / "Ref" / f"{reference}.nii")
    np.testing.assert_allclose(affine, grid, atol=1e-3)
    np.testing.assert_array_equal(voxels, series[..., 0])


@pytest.mark.realdata
def test_a_siemens_enhanced_series_equals_dcm2niix(real_data: Path, tmp_path: Path) -> None:
    base = real_data / "dicom" / "enhanced_multiframe"
    (result,) = converted(base / "In" / "Siemens" / "XA10", tmp_path)
    voxels, affine = reversed_along(load(result.file), 1)
    series, grid = load(base / "Ref" / "Siemens_REST1_w_SMS_PF7-8_6.nii")
    np.testing.assert_allclose(affine, grid, atol=1e-3)
    np.testing.assert_array_equal(voxels, series[..., 0])


@pytest.mark.realdata
def test_a_philips_enhanced_file_equals_dcm2niix(real_data: Path, tmp_path: Path) -> None:
    """Magnitude and field map are two volumes.

    dcm2niix scales the magnitude by Philips' private "precise" slope, we by the standard's Rescale Slope: one factor,
    which means nothing in MR. The field map is in Hz with both, of a range of 1000, up to the rounding of float32.
    """
    base = real_data / "dicom" / "enhanced_multiframe"
    magnitude, field = converted(base / "In" / "Philips", tmp_path)
    expected, grid = load(base / "Ref" / "Philips_WIP_B0_NS_801_e1.nii")
    voxels, affine = reversed_along(load(magnitude.file), 0, 1)
    np.testing.assert_allclose(affine, grid, atol=1e-3)
    factor = expected.max() / voxels.max()
    np.testing.assert_allclose(voxels * factor, expected, rtol=1e-5)
    expected, grid = load(base / "Ref" / "Philips_WIP_B0_NS_801_e2_fieldmaphz.nii")
    voxels, affine = reversed_along(load(field.file), 0, 1)
    np.testing.assert_allclose(affine, grid, atol=1e-3)
    np.testing.assert_allclose(voxels, expected, atol=0.01)


@pytest.fixture
def oblique(tmp_path: Path) -> tuple[list[Path], Volume]:
    """A series of an oblique volume, and what we make of it."""
    files = write_series(tmp_path / "in", volume((24, 20, 9)), steps=straight(turn=rotation(11)), shuffle=4)
    (tmp_path / "out").mkdir()
    (result,) = converted(tmp_path / "in", tmp_path / "out")
    return files, load(result.file)


def assert_same(ours: Volume, other: Volume) -> None:
    """Equal values at equal places; ``other`` may run along its axes the other way."""
    to_other = np.linalg.inv(other[1]) @ ours[1]
    indices = np.stack(np.meshgrid(*map(np.arange, ours[0].shape), indexing="ij"), -1)
    places = indices @ to_other[:3, :3].T + to_other[:3, 3]
    assert np.abs(places - np.rint(places)).max() < 1e-2
    found = other[0][tuple(np.moveaxis(np.rint(places).astype(int), -1, 0))]
    np.testing.assert_array_equal(found, ours[0])


def test_simpleitk_reads_the_same(oblique: tuple[list[Path], Volume]) -> None:
    files, ours = oblique
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(SimpleITK.ImageSeriesReader.GetGDCMSeriesFileNames(str(files[0].parent)))
    image = reader.Execute()
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) @ np.diag(image.GetSpacing())
    affine[:3, 3] = image.GetOrigin()
    assert_same(ours, (SimpleITK.GetArrayFromImage(image).T, np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine))


def test_dcm2niix_writes_the_same(oblique: tuple[list[Path], Volume], tmp_path: Path) -> None:
    files, ours = oblique
    out = tmp_path / "dcm2niix"
    out.mkdir()
    command = [dcm2niix.bin, "-b", "n", "-z", "n", "-f", "volume", "-o", str(out), str(files[0].parent)]
    subprocess.run(command, check=True, capture_output=True)
    assert_same(ours, load(next(out.glob("*.nii"))))


def test_highdicom_assembles_the_same(oblique: tuple[list[Path], Volume]) -> None:
    files, ours = oblique
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = highdicom.get_volume_from_series([pydicom.dcmread(file) for file in files])
    assert_same(ours, (found.array, np.diag([-1.0, -1.0, 1.0, 1.0]) @ found.affine))
