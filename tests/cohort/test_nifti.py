"""NIfTI files that hold voxels and their place, and nothing else."""

import gzip
from pathlib import Path

import nibabel
import numpy as np
import pytest

from parametrium.cohort.nifti import write_nifti

AFFINE = np.array([[-0.9, 0, 0, 10.0], [0, 1.1, 0, -20.0], [0, 0, 3.0, 5.0], [0, 0, 0, 1.0]])


@pytest.mark.parametrize("dtype", ["u1", "i1", "i2", "u2", "i4", "u4", "f4", ">i2"])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_what_is_written_is_read(tmp_path: Path, dtype: str, order: str, suffix: str) -> None:
    stored = np.asarray(np.random.default_rng(0).integers(0, 100, (5, 6, 7)), dtype=dtype, order=order)  # type: ignore[call-overload]
    path = tmp_path / f"v{suffix}"
    write_nifti(path, stored, AFFINE, slope=0.5, intercept=-3.0)
    image = nibabel.load(path)
    np.testing.assert_allclose(image.get_fdata(), stored * 0.5 - 3)
    np.testing.assert_allclose(image.affine, AFFINE, atol=1e-6)
    np.testing.assert_allclose(image.get_qform(), AFFINE, atol=1e-5)
    assert image.header.get_xyzt_units()[0] == "mm"
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_the_same_voxels_give_the_same_bytes_without_name_or_time(tmp_path: Path) -> None:
    stored = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
    first, second = tmp_path / "SENTINEL.nii.gz", tmp_path / "other.nii.gz"
    write_nifti(first, stored, AFFINE)
    write_nifti(second, stored, AFFINE)
    data = first.read_bytes()
    assert data == second.read_bytes()
    assert data[3] == 0  # RFC 1952: no flags (so no name), no time
    assert data[4:8] == b"\0\0\0\0"
    assert len(gzip.decompress(data)) == 352 + stored.nbytes
    header = nibabel.load(first).header
    assert all(not bytes(header[field]).strip(b"\0") for field in ("descrip", "aux_file", "intent_name", "db_name"))
    assert not header.extensions


def test_a_leaning_axis_is_in_the_sform_only(tmp_path: Path) -> None:
    leaning = AFFINE.copy()
    leaning[1, 2] = 0.8
    write_nifti(tmp_path / "v.nii.gz", np.ones((3, 3, 3), np.float32), leaning)
    image = nibabel.load(tmp_path / "v.nii.gz")
    np.testing.assert_allclose(image.affine, leaning, atol=1e-6)
    assert int(image.header["qform_code"]) == 0
    np.testing.assert_allclose(image.header.get_zooms(), np.linalg.norm(leaning[:3, :3], axis=0), rtol=1e-6)


def test_a_write_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("parametrium.cohort.nifti._write", full)
    with pytest.raises(OSError, match="No space"):
        write_nifti(tmp_path / "v.nii.gz", np.ones((3, 3, 3), np.float32), AFFINE)
    assert not list(tmp_path.iterdir())
