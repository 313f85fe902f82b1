"""The site's defacing program: what it is given, and what is taken of its answer."""

import json
import sys
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from defacers import TAKEN_MM, head, program, setting
from parametrium.cohort.defacing.hook import DefacingError, Hook, hook_of
from parametrium.cohort.dicom.facts import Facts
from parametrium.cohort.nifti import write_nifti
from parametrium.config import DefacingConfig
from parametrium.errors import ConfigError
from sentinel import SENTINEL, leaks

STEP = 4.0


def affine_of(order: tuple[int, int, int] = (0, 1, 2), signs: tuple[int, int, int] = (1, 1, 1)) -> NDArray[np.float64]:
    """Voxel axes along these world axes, turned by 3 degrees about the third."""
    affine = np.eye(4)
    affine[:3, :3] = np.eye(3)[:, list(order)] * signs * STEP
    angle = np.deg2rad(3)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine[:3, :3] = turn @ affine[:3, :3]
    affine[:3, 3] = -50.0, 30.0, 7.0
    return affine


def staged(folder: Path, image: NDArray[Any], affine: NDArray[np.float64] | None = None, **scaling: float) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / "0.nii.gz"
    write_nifti(path, image, affine_of() if affine is None else affine, **scaling)
    return path


def hook(config: DefacingConfig, folder: Path) -> Hook:
    return hook_of(config, folder / "log")


def voxels(path: Path) -> NDArray[np.float64]:
    return np.asarray(nibabel.load(path).dataobj, dtype=np.float64)


def face(shape: tuple[int, ...], affine: NDArray[np.float64]) -> NDArray[np.bool_]:
    """What a good program takes, voxel by voxel."""
    places = np.moveaxis(np.indices(shape), 0, -1) @ affine[1, :3]
    return places - (np.array(shape) - 1) / 2 @ affine[1, :3] > TAKEN_MM


# ------------------------------------------------------------------------------------------------------- good programs


@pytest.mark.parametrize("name", ["zero", "own type", "text"])
def test_the_face_is_gone_and_the_rest_is_as_it_was(tmp_path: Path, name: str) -> None:
    image = head()
    path = staged(tmp_path / "staging", image)
    mask = hook(program(tmp_path, name), tmp_path).deface(path, "CT")
    taken = face(image.shape, affine_of())
    assert nibabel.load(path).get_data_dtype() == np.int16
    np.testing.assert_allclose(nibabel.load(path).affine, affine_of(), atol=1e-4)
    np.testing.assert_array_equal(voxels(path), np.where(taken, 0, image))
    hidden = voxels(mask) == 1
    assert hidden[taken].all()
    assert hidden[image == -1000].mean() > 0.99  # a body is closed over its narrow bays
    kept = ~taken & (image > -1000)
    assert (~hidden[kept]).mean() > 0.97  # corners of the outline
    assert set(np.unique(voxels(mask))) == {0, 1}
    np.testing.assert_array_equal(nibabel.load(mask).affine, nibabel.load(path).affine)
    assert sorted(path.parent.iterdir()) == sorted([path, mask])
    assert {file.stat().st_mode & 0o777 for file in path.parent.iterdir()} == {0o600}


def test_no_word_of_the_program_survives(tmp_path: Path) -> None:
    path = staged(tmp_path / "staging", head())
    mask = hook(program(tmp_path, "text"), tmp_path).deface(path, "CT")
    assert leaks(path, mask, words=("TATTLE",)) == []
    assert not nibabel.load(path).header.extensions


@pytest.mark.parametrize("name", ["zero", "own type"])
def test_a_scan_of_a_few_steps_is_not_taken_for_changed_throughout(tmp_path: Path, name: str) -> None:
    """A program that reads 8 bits and writes 8 bits with a scaling of its own rounds every voxel a little."""
    image = ((head() + 1000) // 10).clip(0, 183).astype(np.uint8)
    path = staged(tmp_path / "staging", image)
    mask = hook(program(tmp_path, name), tmp_path).deface(path, "T1")
    taken = face(image.shape, affine_of())
    np.testing.assert_array_equal(voxels(path)[~taken], image[~taken])
    assert (voxels(mask)[~taken & (image > 0)] == 0).mean() > 0.9


@settings(max_examples=8, deadline=None)
@given(
    order=st.permutations([0, 1, 2]),
    signs=st.tuples(*[st.sampled_from([-1, 1])] * 3),
    dtype=st.sampled_from(["i2", "u2", "i4", "f4"]),
    scaling=st.sampled_from([(1.0, -1000.0), (0.5, -1024.0), (2.0, -1100.0)]),
)
def test_any_orientation_type_and_scaling(
    tmp_path_factory: pytest.TempPathFactory, order: Any, signs: Any, dtype: str, scaling: tuple[float, float]
) -> None:
    folder = tmp_path_factory.mktemp("any")
    slope, intercept = (1.0, 0.0) if dtype == "f4" else scaling
    affine = affine_of(tuple(order), signs)
    straight = np.transpose(head(), order)[tuple(slice(None, None, sign) for sign in signs)]
    stored = np.ascontiguousarray((straight - intercept) / slope).astype(dtype)
    path = staged(folder / "staging", stored, affine, slope=slope, intercept=intercept)
    before = voxels(path)
    mask = hook(program(folder, "zero"), folder).deface(path, "CT")
    taken = face(stored.shape, affine)
    np.testing.assert_allclose(voxels(path)[~taken], before[~taken], atol=1e-3)
    np.testing.assert_allclose(voxels(path)[taken], 0.0, atol=slope / 2)
    hidden = voxels(mask) == 1
    assert hidden[taken].all()
    assert (~hidden[~taken & (straight > -1000)]).mean() > 0.9


@pytest.mark.parametrize("filling", [0, -1000, 40])
def test_the_mask_does_not_show_the_face_that_was_taken_out(tmp_path: Path, filling: int) -> None:
    """Whoever has the mask cannot tell the face with a nose from the one without."""
    masks = []
    for name, nose in (("with", True), ("without", False)):
        image = head()
        if not nose:
            image[:, 47:] = -1000
        path = staged(tmp_path / name, image)
        config = program(tmp_path, "zero")
        script = Path(config.command[1])
        script.write_text(script.read_text().replace("voxels[face] = 0", f"voxels[face] = {filling}"))
        masks.append(voxels(hook(config, tmp_path).deface(path, "CT")))
    changed = head()[:, 47:] > -1000
    assert changed.any()  # the nose lies in what was taken
    np.testing.assert_array_equal(masks[0], masks[1])


def test_the_program_is_told_the_modality_and_nothing_that_identifies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = tmp_path / "told.json"
    spy = (
        "import json, os, sys\nheard = [sys.argv, dict(os.environ), os.getcwd(), sys.stdin.read()]\n"
        f"json.dump(heard, open({str(told)!r}, 'w'))"
    )
    config = program(tmp_path, "zero", before=spy)
    config = DefacingConfig(command=(*config.command, "--kind={modality}"), environment=("FSLDIR", "ABSENT"))
    monkeypatch.setenv("FSLDIR", "/opt/fsl")
    monkeypatch.setenv("PATIENT", SENTINEL)
    monkeypatch.setenv("OLDPWD", f"/archive/{SENTINEL}")
    path = staged(tmp_path / "staging", head())
    hook(config, tmp_path).deface(path, "T1c")
    words, environment, folder, said = json.loads(told.read_text())
    assert SENTINEL not in told.read_text()
    assert words[-1] == "--kind=T1c"
    assert [Path(word).name for word in words[1:3]] == ["input.nii.gz", "output.nii.gz"]
    assert Path(folder).parent == path.parent
    assert not Path(folder).exists()
    assert (environment["FSLDIR"], environment["TMPDIR"], said) == ("/opt/fsl", folder, "")
    known = {"PATH", "HOME", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "FSLDIR", "TMPDIR"}
    assert set(environment) - {"LC_CTYPE", "__CF_USER_TEXT_ENCODING"} <= known  # set by Python itself


def test_an_argument_is_no_shell_text(tmp_path: Path) -> None:
    config = program(tmp_path, "zero")
    config = DefacingConfig(command=(*config.command, f"; touch {tmp_path}/x", "$HOME", "{other}"))
    hook(config, tmp_path).deface(staged(tmp_path / "staging", head()), "CT")
    assert not (tmp_path / "x").exists()


# -------------------------------------------------------------------------------------------------------- bad programs


@pytest.mark.parametrize(
    ("name", "cause"),
    [
        ("fails", "the program failed"),
        ("nothing", "nothing written"),
        ("a folder", "nothing written"),
        ("a pipe", "nothing written"),
        ("unchanged", "nothing changed"),
        ("all zero", "nothing of the patient is left"),
        ("rescaled", "nothing of the patient is left"),
        ("other shape", "another grid"),
        ("more axes", "another grid"),
        ("other place", "another grid"),
        ("not finite", "values that are not finite"),
        ("no image", "no readable NIfTI file"),
    ],
)
def test_a_bad_answer_is_refused_and_the_volume_is_as_it_was(tmp_path: Path, name: str, cause: str) -> None:
    path = staged(tmp_path / "staging", head())
    before = path.read_bytes()
    with pytest.raises(DefacingError, match=f"^{cause}$"):
        hook(program(tmp_path, name), tmp_path).deface(path, "CT")
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_a_program_that_hangs_is_ended_at_its_limit(tmp_path: Path) -> None:
    config = program(tmp_path, "hangs").model_copy(update={"timeout_s": 1})
    path = staged(tmp_path / "staging", head())
    with pytest.raises(DefacingError, match=r"^time limit$"):
        hook(config, tmp_path).deface(path, "CT")
    assert list(path.parent.iterdir()) == [path]


def test_what_a_failed_program_says_stays_in_the_sites_log(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    made = hook(program(tmp_path, "fails", before="print('x' * 99999)"), tmp_path)
    for _ in range(2):
        with pytest.raises(DefacingError):
            made.deface(staged(tmp_path / "staging", head((6, 6, 6))), "CT")
    log = tmp_path / "log"
    assert log.read_text().count("a TATTLE of a complaint\nexit status 3\n") == 2
    assert log.stat().st_size < 10_000
    assert log.stat().st_mode & 0o777 == 0o600
    assert capfd.readouterr() == ("", "")
    hook(program(tmp_path, "fails"), tmp_path)
    assert not log.exists()


def test_a_good_program_that_talks_leaves_no_log(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    config = program(tmp_path, "zero", before="import sys\nprint('TATTLE ' * 50000)\nprint('x', file=sys.stderr)")
    hook(config, tmp_path).deface(staged(tmp_path / "staging", head()), "CT")
    assert not (tmp_path / "log").exists()
    assert capfd.readouterr() == ("", "")


# ------------------------------------------------------------------------------------------------------------ settings


@pytest.mark.parametrize(("when", "concerned"), [("head", "H"), ("head_or_unknown", "HU"), ("always", "HUE")], ids=str)
def test_which_volumes_are_concerned_is_the_sites_choice(tmp_path: Path, when: Any, concerned: str) -> None:
    made = hook(setting(tmp_path / "x", when=when, words=("xyz",)), tmp_path)
    facts = {"H": Facts(body_part="HEAD"), "U": Facts(), "E": Facts(body_part="PELVIS")}
    assert {name for name, told in facts.items() if made.concerns(told)} == set(concerned)
    assert made.concerns(Facts(body_part="PELVIS", description="XYZ 3"))


def test_a_program_that_is_not_there_is_refused_by_key_and_its_name_stays_here(tmp_path: Path) -> None:
    config = DefacingConfig(command=(f"/absent/{SENTINEL}", "{input}", "{output}"))
    with pytest.raises(ConfigError, match=r"PM103 site\.defacing\.command") as caught:
        hook(config, tmp_path)
    assert SENTINEL not in str(caught.value)
    assert SENTINEL in caught.value.site_detail


def test_a_program_on_the_path_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link = tmp_path / "bin" / "mydeface"
    link.parent.mkdir()
    link.symlink_to(sys.executable)
    monkeypatch.setenv("PATH", str(link.parent))
    assert hook(DefacingConfig(command=("mydeface", "{input}", "{output}")), tmp_path).program == str(link)
