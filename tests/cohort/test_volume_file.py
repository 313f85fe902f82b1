"""Volume files of every kind, against SimpleITK and nibabel, and against damage and hostility."""

import gzip
import os
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from cohort_files import ct, save
from parametrium.cohort.header import header_problem
from parametrium.cohort.problem import Reason
from parametrium.cohort.volume_file import (
    VolumeFileError,
    open_geometry,
    read_stored,
    read_voxels,
    source_files,
    stem_of,
)
from parametrium.config import WindowRule
from parametrium.data.recipe import Prepared, Recipe, load_volume, prepare_arrays

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
TYPES = ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float32", "float64")
META = """ObjectType = Image
NDims = 3
BinaryData = True
BinaryDataByteOrderMSB = False
CompressedData = False
TransformMatrix = 1 0 0 0 1 0 0 0 1
Offset = 0 0 0
ElementSpacing = 1 1 1
DimSize = 4 5 6
ElementType = MET_SHORT
ElementDataFile = LOCAL
"""
NRRD = """NRRD0004
# a comment
type: short
dimension: 3
space: left-posterior-superior
sizes: 4 5 6
space directions: (1,0,0) (0,1,0) (0,0,1)
kinds: domain domain domain
endian: little
encoding: raw
somebody:=wrote this
space origin: (0,0,0)

"""
SMALL = np.arange(120, dtype="<i2").reshape((4, 5, 6), order="F")


def _affine(seed: int) -> NDArray[np.float64]:
    """A random oblique, possibly mirrored, RAS+ affine."""
    rng = np.random.default_rng(seed)
    affine = np.eye(4)
    axes = Rotation.random(random_state=seed).as_matrix() * rng.choice([-1.0, 1.0], 3)
    affine[:3, :3] = axes[:, rng.permutation(3)] * rng.uniform(0.5, 5.0, 3)
    affine[:3, 3] = rng.uniform(-300, 300, 3)
    return affine


def _write(path: Path, voxels: NDArray[Any], affine: NDArray[np.float64], *, packed: bool = False) -> Path:
    """Writes through SimpleITK, in its own axis order and space."""
    lps = LPS @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image = sitk.GetImageFromArray(voxels.T)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    sitk.WriteImage(image, str(path), useCompression=packed)
    return path


def _refused(path: Path) -> Reason:
    with pytest.raises(VolumeFileError) as caught:
        read_voxels(path)
    assert str(path) not in str(caught.value)
    assert isinstance(load_volume(path), Reason)
    return caught.value.reason


def _meta(folder: Path, *changes: tuple[str, str], name: str = "x.mha", data: bytes | None = None) -> Path:
    text = META
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    (folder / name).write_bytes(text.encode() + (SMALL.tobytes(order="F") if data is None else data))
    return folder / name


def _nrrd(folder: Path, *changes: tuple[str, str], name: str = "x.nrrd", data: bytes | None = None) -> Path:
    text = NRRD
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    (folder / name).write_bytes(text.encode() + (SMALL.tobytes(order="F") if data is None else data))
    return folder / name


@settings(max_examples=25)
@given(seed=st.integers(0, 10**6), kind=st.sampled_from(TYPES), packed=st.booleans())
def test_a_volume_is_the_same_in_every_format(
    tmp_path_factory: pytest.TempPathFactory, seed: int, kind: str, packed: bool
) -> None:
    folder = tmp_path_factory.mktemp("v")
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(2, 9, 3))
    voxels = rng.integers(0, 100, shape).astype(kind)
    affine = _affine(seed)
    for suffix in (".nii.gz", ".nii", ".mha", ".mhd", ".nrrd", ".nhdr"):
        path = _write(folder / f"v{suffix}", voxels, affine, packed=packed)
        geometry = open_geometry(path)
        read, read_affine = read_voxels(path)
        tolerance = 1e-3 if "nii" in suffix else 1e-9  # NIfTI holds its affine in single precision
        np.testing.assert_allclose(geometry.affine, affine, atol=tolerance)
        np.testing.assert_array_equal(read_affine, geometry.affine)
        assert (geometry.shape, geometry.kind) == (shape, np.dtype(kind).kind)
        assert read.dtype == np.float32
        np.testing.assert_array_equal(read, voxels.astype(np.float32))
        assert read_stored(path).voxels.dtype.newbyteorder("=") == np.dtype(kind)


@pytest.mark.parametrize("seed", range(3))
def test_every_format_prepares_to_the_same_arrays(tmp_path: Path, seed: int) -> None:
    affine = np.eye(4)
    affine[:3, :3] = np.linalg.qr(_affine(seed)[:3, :3])[0] * 3.0
    recipe = Recipe("CT", (4.0, 4.0, 4.0), WindowRule(lower=-280.0, upper=400.0, centre=0.0, scale=150.0))
    prepared = []
    for suffix in (".nii.gz", ".mha", ".nrrd"):
        loaded = load_volume(_write(tmp_path / f"v{suffix}", ct(), affine, packed=True))
        assert not isinstance(loaded, Reason)
        # One grid for all: NIfTI's own is in single precision, and an oblique edge voxel may turn on its last digit.
        result = prepare_arrays(loaded[0], np.round(loaded[1], 4), recipe)
        assert isinstance(result, Prepared)
        prepared.append(result)
    for other in prepared[1:]:
        assert other.offset == prepared[0].offset
        np.testing.assert_array_equal(other.image, prepared[0].image)
        np.testing.assert_array_equal(other.body, prepared[0].body)


@pytest.mark.parametrize(
    ("space", "signs"),
    [
        ("RAS", (1, 1, 1)),
        ("right-anterior-superior", (1, 1, 1)),
        ("left-anterior-superior", (-1, 1, 1)),
        ("LPS", (-1, -1, 1)),
    ],
)
def test_the_spaces_of_nrrd_are_those_of_itk(tmp_path: Path, space: str, signs: tuple[int, int, int]) -> None:
    path = _nrrd(tmp_path, ("left-posterior-superior", space), ("origin: (0,0,0)", "origin: (10,20,30)"))
    affine = open_geometry(path).affine
    np.testing.assert_array_equal(affine[:3, 3], np.array([10, 20, 30]) * signs)
    image = sitk.ReadImage(str(path))
    itk = np.eye(4)
    itk[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    itk[:3, 3] = image.GetOrigin()
    np.testing.assert_allclose(affine, LPS @ itk)
    np.testing.assert_array_equal(read_voxels(path)[0], sitk.GetArrayFromImage(image).T)


@pytest.mark.parametrize("make", [_meta, _nrrd])
def test_big_endian_voxels_and_windows_line_ends(tmp_path: Path, make: Any) -> None:
    data = SMALL.astype(">i2").tobytes(order="F")
    change = ("MSB = False", "MSB = True") if make is _meta else ("endian: little", "endian: big")
    np.testing.assert_array_equal(read_voxels(make(tmp_path, change, data=data))[0], SMALL)
    np.testing.assert_array_equal(read_voxels(make(tmp_path, ("\n", "\r\n")))[0], SMALL)


def test_the_scaling_of_nifti_stays_beside_stored_voxels(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(SMALL, np.eye(4))
    image.header.set_slope_inter(0.5, -3.0)
    nibabel.save(image, tmp_path / "x.nii.gz")
    stored = read_stored(tmp_path / "x.nii.gz")
    assert (stored.slope, stored.intercept, stored.voxels.dtype.kind) == (0.5, -3.0, "i")
    voxels = read_voxels(tmp_path / "x.nii.gz")[0]
    np.testing.assert_array_equal(voxels, stored.voxels * np.float32(0.5) - np.float32(3.0))
    np.testing.assert_array_equal(voxels, nibabel.load(tmp_path / "x.nii.gz").get_fdata(dtype=np.float32))


def test_the_affine_of_nifti_is_the_sform_then_the_qform_then_the_voxel_sizes(tmp_path: Path) -> None:
    for name, sform, qform in [("both", 1, 1), ("qform", 0, 1), ("none", 0, 0)]:
        image = nibabel.Nifti1Image(SMALL, None)
        image.header.set_zooms((2.0, 3.0, 4.0))
        image.set_sform(np.diag([5.0, 5.0, 5.0, 1.0]), code=sform)
        image.set_qform(np.diag([6.0, 6.0, 6.0, 1.0]), code=qform)
        nibabel.save(image, tmp_path / f"{name}.nii")
        expected = nibabel.load(tmp_path / f"{name}.nii").affine
        np.testing.assert_array_equal(open_geometry(tmp_path / f"{name}.nii").affine, expected)


def test_a_trailing_axis_of_one_voxel_is_none(tmp_path: Path) -> None:
    path = save(tmp_path / "x.nii.gz", np.ones((4, 5, 6, 1), np.float32))
    assert read_voxels(path)[0].shape == read_stored(path).voxels.shape == (4, 5, 6)


@pytest.mark.parametrize("target", ["../y.raw", "/etc/hostname", "..", ".", "sub/y.raw", "link.raw", "", "LIST"])
@pytest.mark.parametrize("kind", ["mhd", "nhdr", "mha", "nrrd"])
def test_a_data_file_is_never_followed_out_of_its_folder(tmp_path: Path, kind: str, target: str) -> None:
    folder = tmp_path / "in"
    (folder / "sub").mkdir(parents=True)
    for place in (tmp_path, folder / "sub"):
        (place / "y.raw").write_bytes(SMALL.tobytes(order="F"))
    (folder / "link.raw").symlink_to(tmp_path / "y.raw")
    if kind.startswith("m"):
        path = _meta(folder, ("= LOCAL", f"= {target}"), name=f"x.{kind}", data=b"")
    else:
        path = _nrrd(folder, ("encoding: raw", f"encoding: raw\ndata file: {target}"), name=f"x.{kind}", data=b"")
    assert _refused(path) in (Reason.UNREADABLE, Reason.MISSING_FILE)


@pytest.mark.parametrize("kind", ["mhd", "nhdr"])
def test_a_data_file_in_the_same_folder_is_read(tmp_path: Path, kind: str) -> None:
    (tmp_path / "y.raw").write_bytes(SMALL.tobytes(order="F"))
    if kind == "mhd":
        path = _meta(tmp_path, ("= LOCAL", "= y.raw"), name="x.mhd", data=b"")
    else:
        path = _nrrd(tmp_path, ("encoding: raw", "encoding: raw\ndata file: y.raw"), name="x.nhdr", data=b"")
    np.testing.assert_array_equal(read_voxels(path)[0], SMALL)
    assert source_files(path) == (path, tmp_path / "y.raw")
    (tmp_path / "y.raw").unlink()
    assert header_problem(path) is Reason.MISSING_FILE


@pytest.mark.parametrize(
    ("reason", "change"),
    [
        (Reason.NOT_3D, ("NDims = 3", "NDims = 4")),
        (Reason.NOT_3D, ("DimSize", "ElementNumberOfChannels = 3\nDimSize")),
        (Reason.UNKNOWN_UNIT, ("DimSize", "DistanceUnits = um\nDimSize")),
        (Reason.TOO_LARGE, ("4 5 6", "4000 5000 6000")),
        (Reason.UNREADABLE, ("4 5 6", "400 500 600")),
        (Reason.UNREADABLE, ("4 5 6", "-4 5 6")),
        (Reason.UNREADABLE, ("4 5 6", "4 5")),
        (Reason.UNREADABLE, ("BinaryData = True", "BinaryData = False")),
        (Reason.UNREADABLE, ("MET_SHORT", "MET_STRING")),
        (Reason.UNREADABLE, ("DimSize", "DimSize = 1 1 1\nDimSize")),
        (Reason.UNREADABLE, ("DimSize", "HeaderSize = -1\nDimSize")),
        (Reason.UNREADABLE, ("DimSize", "ElementToIntensityFunctionSlope = 2\nDimSize")),
        (Reason.UNREADABLE, ("CompressedData = False", "CompressedData = True")),
        (Reason.IMPLAUSIBLE_GEOMETRY, ("Offset = 0 0 0", "Offset = 0 1e300 0")),
        (Reason.AFFINE_SINGULAR, ("Offset = 0 0 0", "Offset = 0 nan 0")),
        (Reason.AFFINE_SINGULAR, ("1 0 0 0 1 0 0 0 1", "1 0 0 1 0 0 0 0 1")),
    ],
)
def test_what_a_meta_image_may_not_say(tmp_path: Path, reason: Reason, change: tuple[str, str]) -> None:
    assert load_volume(_meta(tmp_path, change)) is reason


@pytest.mark.parametrize(
    ("reason", "change"),
    [
        (Reason.NOT_3D, ("dimension: 3", "dimension: 4")),
        (Reason.NOT_3D, ("directions: (1,0,0)", "directions: none")),
        (Reason.NO_GEOMETRY, ("space: left-posterior-superior", "space dimension: 3")),
        (Reason.NO_GEOMETRY, ("left-posterior-superior", "scanner-xyz")),
        (Reason.UNKNOWN_UNIT, ("endian", 'space units: "um" "um" "um"\nendian')),
        (Reason.TOO_LARGE, ("4 5 6", "4000 5000 6000")),
        (Reason.UNREADABLE, ("4 5 6", "400 500 600")),
        (Reason.UNREADABLE, ("endian: little\n", "")),
        (Reason.UNREADABLE, ("encoding: raw", "encoding: ascii")),
        (Reason.UNREADABLE, ("encoding: raw", "encoding: gzip")),
        (Reason.UNREADABLE, ("endian", "byte skip: 4\nendian")),
        (Reason.UNREADABLE, ("endian", "sizes: 1 1 1\nendian")),
        (Reason.UNREADABLE, ("type: short", "type: block")),
        (Reason.UNREADABLE, ("NRRD0004", "NRRD9999")),
        (Reason.AFFINE_SINGULAR, ("(0,0,1)", "(0,nan,1)")),
    ],
)
def test_what_an_nrrd_may_not_say(tmp_path: Path, reason: Reason, change: tuple[str, str]) -> None:
    assert load_volume(_nrrd(tmp_path, change)) is reason


def test_a_giant_claim_in_a_tiny_file_is_refused_before_allocation(tmp_path: Path) -> None:
    giant = ("4 5 6", "1000 1000 1000")
    image = nibabel.Nifti1Image(SMALL, np.eye(4))
    nibabel.save(image, tmp_path / "x.nii")
    content = bytearray((tmp_path / "x.nii").read_bytes())
    content[42:48] = np.array([1000, 1000, 1000], "<i2").tobytes()
    (tmp_path / "x.nii").write_bytes(content)
    (tmp_path / "x.nii.gz").write_bytes(gzip.compress(bytes(content)))
    packed = zlib.compress(SMALL.tobytes(order="F"))
    paths = [
        tmp_path / "x.nii",
        tmp_path / "x.nii.gz",
        _meta(tmp_path, giant),
        _meta(tmp_path, giant, ("CompressedData = False", "CompressedData = True"), name="y.mha", data=packed),
        _nrrd(tmp_path, giant),
        _nrrd(tmp_path, giant, ("encoding: raw", "encoding: gzip"), name="y.nrrd", data=packed),
    ]
    tracemalloc.start()
    for path in paths:
        assert header_problem(path) is Reason.UNREADABLE
        assert _refused(path) is Reason.UNREADABLE
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**22


@pytest.mark.parametrize("make", [_meta, _nrrd])
def test_a_decompression_bomb_is_unpacked_no_further_than_the_shape_allows(tmp_path: Path, make: Any) -> None:
    change = ("CompressedData = False", "CompressedData = True") if make is _meta else ("raw", "gzip")
    bomb = make(tmp_path, change, data=zlib.compress(bytes(2**27), 9))
    tracemalloc.start()
    assert _refused(bomb) is Reason.UNREADABLE
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**23


def test_a_nifti_extension_that_claims_gigabytes_is_not_read(tmp_path: Path) -> None:
    nibabel.save(nibabel.Nifti1Image(SMALL, np.eye(4)), tmp_path / "x.nii")
    content = bytearray((tmp_path / "x.nii").read_bytes())
    content[108:112] = np.array([368], "<f4").tobytes()
    content[348] = 1
    content[352:352] = np.array([2**31 - 16, 6, 0, 0], "<i4").tobytes()
    (tmp_path / "x.nii.gz").write_bytes(gzip.compress(bytes(content) + bytes(2**27)))
    tracemalloc.start()
    np.testing.assert_array_equal(read_voxels(tmp_path / "x.nii.gz")[0], SMALL)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**24


def test_a_cut_or_flipped_stream_is_unreadable(tmp_path: Path) -> None:
    for suffix in (".mha", ".nrrd", ".nii.gz"):
        path = _write(tmp_path / f"x{suffix}", ct(), np.diag([3.0, 3.0, 3.0, 1.0]), packed=True)
        content = path.read_bytes()
        path.write_bytes(content[: len(content) * 2 // 3])
        assert header_problem(path) is None
        assert _refused(path) is Reason.UNREADABLE
    path = _write(tmp_path / "y.mha", ct(), np.eye(4), packed=True)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1  # the checksum's last byte
    path.write_bytes(content)
    assert _refused(path) is Reason.UNREADABLE


@settings(max_examples=300)
@given(data=st.data(), make=st.sampled_from([_meta, _nrrd]))
def test_no_damaged_header_raises_or_prints(tmp_path_factory: pytest.TempPathFactory, data: Any, make: Any) -> None:
    folder = tmp_path_factory.mktemp("h")
    path = make(folder)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        position = data.draw(st.integers(0, 400))
        content[position : position + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=4))
    path.write_bytes(content)
    assert header_problem(path) in {None, *Reason}
    loaded = load_volume(path)
    assert isinstance(loaded, Reason) or loaded[0].size > 0


def test_nothing_is_printed_about_damage(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for index, change in enumerate([("= 4 5 6", "= 4 5"), ("LOCAL", "/etc/passwd"), ("NDims = 3", "NDims = x")]):
        assert header_problem(_meta(tmp_path, change, name=f"SENTINEL{index}.mha")) is Reason.UNREADABLE
    assert tuple(capfd.readouterr()) == ("", "")


def test_a_name_that_no_file_can_have_is_a_missing_file(tmp_path: Path) -> None:
    for name in ("x" * 300 + ".nii", "a\0.nii"):
        assert header_problem(tmp_path / name) is Reason.MISSING_FILE
        assert isinstance(load_volume(tmp_path / name), Reason)


def test_only_volume_files_are_opened(tmp_path: Path) -> None:
    nibabel.save(nibabel.Nifti1Image(SMALL, np.eye(4)), tmp_path / "x.nii")
    os.link(tmp_path / "x.nii", tmp_path / "x.dat")
    os.link(tmp_path / "x.nii", tmp_path / "X.NII")
    assert _refused(tmp_path / "x.dat") is Reason.UNREADABLE
    assert header_problem(tmp_path / "X.NII") is None
    assert _refused(tmp_path / "absent.nrrd") is Reason.MISSING_FILE
    assert [stem_of(name) for name in ("a.b.nii.gz", "A.NRRD", ".nii", "x.json")] == ["a.b", "A", None, None]
