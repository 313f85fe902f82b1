"""The phantom: reproducible, shaped like a cohort, and with pictures and clinical rows that tell the same story."""

import csv
import math
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import nibabel
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage, stats

from parametrium.cohort.manifest import read_cohort
from parametrium.cohort.phantom import write_phantom
from parametrium.cohort.phantom.anatomy import sample_anatomy
from parametrium.cohort.phantom.body import draw_body
from parametrium.cohort.phantom.chance import stream
from parametrium.cohort.phantom.clinical import (
    COLUMNS,
    FIGO_STAGES,
    GRADES,
    HISTOLOGIES,
    HPV,
    NODAL_STATUS,
    Latent,
    clinical_row,
    sample_latent,
)
from parametrium.cohort.phantom.scanner import site_scanner
from parametrium.cohort.phantom.tissue import MODALITIES, Tissue, tissue_table
from parametrium.cohort.phantom.visit import displacement, present_modalities
from parametrium.errors import Code, CohortError

Image = NDArray[np.float32]
PATIENTS = 2


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phantom") / "cohort"
    write_phantom(folder, patients=PATIENTS, modalities=MODALITIES, seed=1, missing=0, test_fraction=0.5, jobs=1)
    return folder


@pytest.fixture(scope="module")
def latents() -> list[Latent]:
    return [sample_latent(3, "north", index) for index in range(400)]


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@lru_cache(maxsize=40)  # many tests read the same few volumes
def image(folder: Path, name: str) -> tuple[Image, NDArray[np.float64]]:
    loaded = nibabel.load(folder / name)
    return np.asarray(loaded.get_fdata(dtype=np.float32)), np.asarray(loaded.affine)


def centroid(inside: NDArray[np.bool_], affine: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(affine[:3, :3] @ np.argwhere(inside).mean(0) + affine[:3, 3])


def resampled(
    mask: NDArray[np.bool_], of: NDArray[np.float64], like: Image, affine: NDArray[np.float64]
) -> NDArray[np.bool_]:
    there = np.linalg.inv(of) @ affine
    moved = ndimage.affine_transform(mask.astype(np.float32), there[:3, :3], there[:3, 3], like.shape, order=1)
    return np.asarray(moved > 0.95)


def organ(folder: Path, patient: str, structure: str, modality: str) -> Image:
    """Values of a modality well inside an organ."""
    mask, of = image(folder, f"{patient}/s0/masks/{structure}.nii.gz")
    inner = ndimage.binary_erosion(mask > 0) if structure not in ("bones", "tumour") else mask > 0
    values, affine = image(folder, f"{patient}/s0/{modality}.nii.gz")
    return values[resampled(inner, of, values, affine)]


def tissue_values(modality: str) -> NDArray[np.float32]:
    return tissue_table(modality, sample_latent(1, "phantom", 0).profile)[0]


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def pelvis_of(folder: Path) -> Iterator[str]:
    yield from (f"p{index:03d}" for index in range(len({row["patient"] for row in table(folder / "cohort.csv")})))


# ------------------------------------------------------------------------------------------------- reproducibility


def test_the_same_seed_gives_the_same_bytes_whatever_the_number_of_processes(tmp_path: Path) -> None:
    for jobs in (1, 2):
        write_phantom(tmp_path / str(jobs), patients=2, modalities=["ADC"], seed=7, jobs=jobs)
    assert files(tmp_path / "1") == files(tmp_path / "2")


def test_a_patient_does_not_depend_on_how_many_others_or_which_modalities_there_are(
    cohort: Path, tmp_path: Path
) -> None:
    write_phantom(tmp_path / "one", patients=1, modalities=["T2"], seed=1, missing=0, jobs=1)
    assert (tmp_path / "one/p000/s0/T2.nii.gz").read_bytes() == (cohort / "p000/s0/T2.nii.gz").read_bytes()
    assert table(tmp_path / "one/clinical.csv")[0] == table(cohort / "clinical.csv")[0]


def test_sites_have_their_own_patients_and_scanners() -> None:
    assert sample_latent(1, "north", 0) != sample_latent(1, "south", 0)
    latent = sample_latent(1, "north", 0)
    assert sample_anatomy(latent, 1, "north", 0) != sample_anatomy(latent, 1, "south", 0)
    for modality in MODALITIES:
        assert site_scanner("north", modality) == site_scanner("north", modality)
        assert site_scanner("north", modality) != site_scanner("south", modality)
    assert {site_scanner(f"site-{k}", "T2").lps for k in range(12)} == {True, False}


# ------------------------------------------------------------------------------------------------- the folder


def test_the_cohort_is_read_without_a_problem(cohort: Path) -> None:
    read = read_cohort(cohort, MODALITIES)
    assert not read.problems
    assert [len(patient.volumes) for patient in read.patients] == [len(MODALITIES)] * PATIENTS
    assert sorted(str(patient.split) for patient in read.patients) == ["test", "train"]


def test_the_tables_have_the_agreed_columns_and_levels(cohort: Path) -> None:
    volumes, masks, rows = (table(cohort / f"{name}.csv") for name in ("cohort", "masks", "clinical"))
    assert list(volumes[0]) == ["patient", "study", "day", "modality", "path", "frame", "split"]
    assert list(masks[0]) == ["patient", "study", "structure", "path", "frame"]
    assert tuple(rows[0]) == COLUMNS
    assert {row["path"] for row in volumes + masks} == {name for name in files(cohort) if name.endswith(".nii.gz")}
    for row in rows:
        assert 18 <= float(row["age"]) <= 100
        assert row["figo_stage"] in FIGO_STAGES
        assert row["histology"] in HISTOLOGIES
        assert row["grade"] in GRADES
        assert row["nodal_status"] in NODAL_STATUS
        assert row["hpv"] in HPV


def test_headers_hold_nothing_but_geometry(cohort: Path) -> None:
    for path in cohort.rglob("*.nii.gz"):
        header = nibabel.load(path).header
        for field in ("descrip", "aux_file", "intent_name", "db_name", "data_type"):
            assert header[field].tobytes().strip(b"\0") == b""
        assert not header.extensions
        assert path.read_bytes()[4:8] == bytes(4)  # no time of writing in the gzip header


def test_grids_differ_between_modalities_and_stay_small(cohort: Path) -> None:
    shapes = {nibabel.load(cohort / f"p000/s0/{modality}.nii.gz").shape for modality in MODALITIES}
    assert len(shapes) == len(MODALITIES)
    assert max(math.prod(shape) for shape in shapes) < 1_100_000


def test_studies_over_a_treatment_have_their_own_days_and_frames_and_the_tumour_shrinks(tmp_path: Path) -> None:
    write_phantom(tmp_path / "c", patients=1, modalities=["PET"], seed=4, studies=2, jobs=1)
    rows = table(tmp_path / "c/cohort.csv")
    assert [(row["study"], row["day"]) for row in rows] == [("s0", "0"), ("s1", "28")]
    assert rows[0]["frame"] != rows[1]["frame"]
    voxels = [image(tmp_path / "c", f"p000/{study}/masks/tumour.nii.gz")[0].sum() for study in ("s0", "s1")]
    assert voxels[1] < 0.9 * voxels[0]


# ------------------------------------------------------------------------------------------------- refusals


def test_an_unknown_modality_is_refused_with_the_allowed_ones(tmp_path: Path) -> None:
    with pytest.raises(CohortError, match="US; allowed: CT CBCT T1 T2 ADC PET") as caught:
        write_phantom(tmp_path, patients=1, modalities=["CT", "US"], seed=1)
    assert caught.value.code is Code.COHORT_IMPORT


def test_a_folder_with_something_in_it_is_refused_without_its_name(tmp_path: Path) -> None:
    (tmp_path / "precious").touch()
    with pytest.raises(CohortError, match="must be absent or empty") as caught:
        write_phantom(tmp_path, patients=1, modalities=["CT"], seed=1)
    assert str(tmp_path) not in str(caught.value)


@pytest.mark.parametrize(
    "wrong",
    [{"patients": 0}, {"modalities": []}, {"studies": 0}, {"missing": 1.5}, {"misregistration_mm": -1.0}, {"jobs": 0}],
)
def test_a_number_out_of_range_is_refused_by_name(tmp_path: Path, wrong: dict[str, float]) -> None:
    with pytest.raises(CohortError, match=next(iter(wrong))):
        write_phantom(tmp_path / "c", **{"patients": 1, "modalities": ["CT"], "seed": 1, **wrong})  # type: ignore[arg-type]
    assert not (tmp_path / "c").exists()


# ------------------------------------------------------------------------------------------------- pictures


def test_organs_lie_in_the_body_and_do_not_overlap(cohort: Path) -> None:
    for patient in pelvis_of(cohort):
        body = image(cohort, f"{patient}/s0/masks/body.nii.gz")[0] > 0
        total = np.zeros(body.shape, dtype=int)
        for path in sorted((cohort / patient / "s0/masks").glob("*.nii.gz")):
            if path.name != "body.nii.gz":
                total += image(cohort, str(path.relative_to(cohort)))[0].astype(int)
        assert total.max() == 1
        assert not total[~body].any()
        assert 0.2 < body.mean() < 0.8


def test_the_row_says_the_volume_of_the_drawn_tumour(cohort: Path) -> None:
    for row in table(cohort / "clinical.csv"):
        mask, affine = image(cohort, f"{row['patient']}/s0/masks/tumour.nii.gz")
        drawn = mask.sum() * abs(np.linalg.det(affine[:3, :3])) / 1000
        assert float(row["tumour_volume"]) == pytest.approx(drawn, rel=0.1, abs=0.2)


def test_registered_volumes_agree_in_the_world(cohort: Path) -> None:
    for patient in pelvis_of(cohort):
        mask, of = image(cohort, f"{patient}/s0/masks/bladder.nii.gz")
        where = centroid(mask > 0, of)
        for modality, threshold in (("T2", 0.75), ("ADC", 0.8), ("PET", 0.3)):
            values, affine = image(cohort, f"{patient}/s0/{modality}.nii.gz")
            smooth = ndimage.gaussian_filter(values, 1)
            inverse = np.linalg.inv(affine)
            seed = tuple(np.rint(inverse[:3, :3] @ where + inverse[:3, 3]).astype(int))
            labels, _ = ndimage.label(smooth > threshold * smooth[seed])
            assert np.linalg.norm(centroid(labels == labels[seed], affine) - where) < 12


def test_ct_shows_bone_above_muscle_above_fat() -> None:
    values = tissue_values("CT")
    assert values[Tissue.CORTEX] > 500 > values[Tissue.MUSCLE] > 20 > -80 > values[Tissue.SUBCUTANEOUS_FAT]


def test_ct_volumes_are_in_hounsfield_units(cohort: Path) -> None:
    for patient in pelvis_of(cohort):
        assert 180 < np.mean(organ(cohort, patient, "bones", "CT")) < 900
        assert abs(np.mean(organ(cohort, patient, "bladder", "CT"))) < 40
        values, _ = image(cohort, f"{patient}/s0/CT.nii.gz")
        assert values.min() >= -1024
        assert np.median(values[:4, -4:, :]) < -900


def test_t2_shows_the_bladder_bright_and_t1_dark_below_fat(cohort: Path) -> None:
    for patient in pelvis_of(cohort):
        body_t2, body_t1 = (np.median(organ(cohort, patient, "body", modality)) for modality in ("T2", "T1"))
        assert np.median(organ(cohort, patient, "bladder", "T2")) > 1.4 * body_t2
        assert np.median(organ(cohort, patient, "bladder", "T1")) < 0.6 * body_t1
    values = tissue_values("T1")
    assert values[Tissue.SUBCUTANEOUS_FAT] == values.max()


def test_pet_shows_a_hot_bladder_and_tumour_and_adc_a_dark_tumour(cohort: Path) -> None:
    for patient in pelvis_of(cohort):
        background = np.median(organ(cohort, patient, "body", "PET"))
        assert np.median(organ(cohort, patient, "bladder", "PET")) > 8 * background
        assert np.percentile(organ(cohort, patient, "tumour", "PET"), 90) > 4 * background
        tumour, bladder = (np.median(organ(cohort, patient, name, "ADC")) for name in ("tumour", "bladder"))
        assert 600 < tumour < 1300 < 2300 < bladder


def test_cbct_sees_a_noisy_cylinder_in_the_middle_of_the_ct(cohort: Path) -> None:
    for patient in pelvis_of(cohort):
        (ct, of), (cone, affine) = (image(cohort, f"{patient}/s0/{name}.nii.gz") for name in ("CT", "CBCT"))
        seen = [np.abs(np.linalg.det(a[:3, :3])) * (v > -900).sum() for v, a in ((ct, of), (cone, affine))]
        assert seen[1] < 0.75 * seen[0]
        assert (cone[0, 0] == -1000).all()
        noise = [np.std(organ(cohort, patient, "bladder", name)) for name in ("CT", "CBCT")]
        assert noise[1] > 1.3 * noise[0]


def test_modalities_share_structure_inside_the_body(cohort: Path) -> None:
    t1, affine = image(cohort, "p000/s0/T1.nii.gz")
    t2, of = image(cohort, "p000/s0/T2.nii.gz")
    mask, grid = image(cohort, "p000/s0/masks/body.nii.gz")
    there = np.linalg.inv(of) @ affine
    moved = ndimage.affine_transform(t2, there[:3, :3], there[:3, 3], t1.shape, order=1)
    inner = resampled(ndimage.binary_erosion(mask > 0, iterations=4), grid, t1, affine) & (moved > 0)
    assert stats.spearmanr(t1[inner], moved[inner]).statistic > 0.5


def test_misregistration_gives_own_frames_and_moves_by_the_order_asked(cohort: Path, tmp_path: Path) -> None:
    write_phantom(tmp_path / "c", patients=1, modalities=["CT", "T2"], seed=1, misregistration_mm=20, missing=0, jobs=1)
    rows = table(tmp_path / "c/cohort.csv")
    assert len({row["frame"] for row in rows}) == 2
    assert table(tmp_path / "c/masks.csv")[0]["frame"] == rows[0]["frame"]
    assert (tmp_path / "c/p000/s0/CT.nii.gz").read_bytes() == (cohort / "p000/s0/CT.nii.gz").read_bytes()
    bladder = []
    for folder in (cohort, tmp_path / "c"):
        values, affine = image(folder, "p000/s0/T2.nii.gz")
        smooth = ndimage.gaussian_filter(values, 1.5)
        labels, _ = ndimage.label(smooth > 0.75 * smooth.max())
        largest = np.bincount(labels.ravel())[1:].argmax() + 1
        bladder.append(centroid(labels == largest, affine))
    assert 10 < np.linalg.norm(bladder[1] - bladder[0]) < 32


def test_displacements_are_rigid_and_of_the_size_asked() -> None:
    for index in range(20):
        matrix = displacement(10.0, "T2", 1, "north", index, 0)
        assert np.allclose(matrix[:3, :3] @ matrix[:3, :3].T, np.eye(3))
        assert 7 <= np.linalg.norm(matrix[:3, 3]) <= 13


# ------------------------------------------------------------------------------------------------- clinical ties


def test_a_modality_is_missing_as_often_as_asked_and_one_always_stays() -> None:
    present = [present_modalities(["CT", "T2", "PET"], 0.3, 1, "north", index, 0) for index in range(500)]
    assert min(len(names) for names in present) >= 1
    assert np.mean([len(names) for names in present]) == pytest.approx(3 * 0.7, abs=0.12)
    assert all(len(present_modalities(MODALITIES, 1.0, 1, "north", index, 0)) == 1 for index in range(20))


def test_values_are_missing_as_often_as_asked_and_some_rows_altogether(latents: list[Latent]) -> None:
    rows = [clinical_row(latent, "p", 1.0, 0.2, stream("m", k)) for k, latent in enumerate(latents)]
    kept = [row for row in rows if row]
    empty = np.mean([not cell for row in kept for cell in row.values() if cell != "p"])
    assert empty == pytest.approx(0.2, abs=0.03)
    assert 0.02 < 1 - len(kept) / len(rows) < 0.12
    assert all(clinical_row(latent, "p", 1.0, 0.0, stream("m")) for latent in latents[:20])


def test_the_stage_follows_from_the_spread(latents: list[Latent]) -> None:
    for latent in latents:
        spread, stage = latent.spread, latent.figo_stage
        below_four = stage not in ("IVA", "IVB")
        assert (stage == "IIIC") == (spread.nodes != "none" and below_four)
        assert (stage == "IVA") == ((spread.bladder or spread.rectum) and not spread.bone)
        if stage in ("IA", "IB", "IIA"):
            assert max(spread.parametrium) == 0
        assert (stage == "IA") == (latent.tumour_ml <= 0.5)
    assert {latent.figo_stage for latent in latents} == set(FIGO_STAGES)


def test_tumours_grow_with_the_stage_on_average(latents: list[Latent]) -> None:
    groups = ("IA",), ("IB",), ("IIA", "IIB"), ("IIIA", "IIIB", "IIIC"), ("IVA", "IVB")
    sizes = [np.mean([latent.tumour_ml for latent in latents if latent.figo_stage in group]) for group in groups]
    assert sizes == sorted(sizes)


def test_age_thins_bone_fattens_muscle_and_shrinks_the_uterus(latents: list[Latent]) -> None:
    age = [latent.age for latent in latents]
    assert stats.spearmanr(age, [latent.profile.bone_density for latent in latents]).statistic < -0.5
    assert stats.spearmanr(age, [latent.profile.muscle_fat for latent in latents]).statistic > 0.5
    uterus = [sample_anatomy(latent, 3, "north", index).uterus[0] for index, latent in enumerate(latents)]
    assert stats.spearmanr(age, uterus).statistic < -0.5


def test_histology_and_grade_drive_contrast_and_hpv(latents: list[Latent]) -> None:
    squamous, glandular = (
        [latent for latent in latents if latent.histology == name] for name in ("squamous", "adenocarcinoma")
    )
    for attribute, sign in (("tumour_adc", -1), ("tumour_suv", 1)):
        means = [np.mean([getattr(latent.profile, attribute) for latent in group]) for group in (squamous, glandular)]
        assert sign * (means[0] - means[1]) > 0
    positive = [np.mean([latent.hpv == "positive" for latent in group]) for group in (squamous, glandular)]
    assert positive[0] > positive[1] > 0.5


def touching(tissue: NDArray[np.uint8], lumen: tuple[Tissue, ...]) -> int:
    """Tumour voxels beside a lumen."""
    tumour = np.isin(tissue, (Tissue.TUMOUR, Tissue.NECROSIS))
    return int((tumour & ndimage.binary_dilation(np.isin(tissue, lumen))).sum())


def test_what_the_stage_says_is_drawn(latents: list[Latent]) -> None:
    urine, rectum = (Tissue.URINE,), (Tissue.RECTUM_STOOL, Tissue.RECTUM_GAS)
    picks = {
        "bladder": next(k for k, latent in enumerate(latents) if latent.spread.bladder),
        "rectum": next(k for k, latent in enumerate(latents) if latent.spread.rectum),
        "nodes": next(k for k, latent in enumerate(latents) if latent.figo_stage == "IIIC"),
        "bone": next(k for k, latent in enumerate(latents) if latent.spread.bone),
        "IA": next(k for k, latent in enumerate(latents) if latent.figo_stage == "IA"),
    }
    bodies = {name: draw_body(latents[k], 3, "north", k, 0, 1) for name, k in picks.items()}
    assert touching(bodies["bladder"].tissue, urine) > 20
    assert touching(bodies["rectum"].tissue, rectum) > 20
    assert touching(bodies["nodes"].tissue, urine) < 5
    assert (bodies["nodes"].tissue == Tissue.METASTATIC_NODE).sum() > 20
    assert not (bodies["IA"].tissue == Tissue.METASTATIC_NODE).any()
    assert (bodies["bone"].tissue == Tissue.BONE_METASTASIS).sum() > 50
    assert 0 < bodies["IA"].tumour_ml < 1
