"""The lean form of benchmarks/six_sites.py: real scans of three real sites, one federation of real processes."""

import csv
import importlib.util
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from parametrium.cohort.importers.folders import ImportReport
from parametrium.config import JobConfig
from parametrium.federation.simulate import simulate
from parametrium.model.modality import tensor_owners
from parametrium.objectives.registry import build_model
from parametrium.report.comparison import reconstructions, retrievals
from parametrium.report.record import RunRecord, read_run
from parametrium.training.run_folder import judge

pytestmark = [pytest.mark.realdata, pytest.mark.multiprocess]

HELD = {"ht": ("T1", "T1c", "FLAIR"), "mcgill": ("CT", "PET", "T1"), "openkbp": ("CT",)}
TRAINING, HELD_OUT = 6, 3
ROUNDS = 3
LEAN: dict[str, Any] = {
    "preparation": {"spacing_mm": [6.0, 6.0, 6.0]},
    "crop": [32, 32, 32],
    "model": {"patch": 8, "width": 48, "depth": 2, "heads": 4, "decoder_width": 48, "decoder_depth": 1},
    "objectives": [
        {"kind": "masked_reconstruction"},
        {"kind": "cross_modal_reconstruction"},
        {"kind": "soft_contrastive", "patients": 4, "crops": 1},
    ],
    "batch": {"patients": 4, "volumes_per_patient": 2},
    "optimiser": {"learning_rate": 3e-3},
    "rounds": ROUNDS,
    "local_steps": 24,
    "minimum_sites": len(HELD),
    "round_timeout_s": 120.0,
    "evaluation": {"crops": 4, "pictures": False},
}


@dataclass(frozen=True)
class Federation:
    """A finished run, and what went into it."""

    job: JobConfig
    folder: Path
    imported: Mapping[str, ImportReport]
    record: RunRecord


def _benchmark() -> ModuleType:
    """The script, which is no package; under a name of its own, so that its dataclasses find their module."""
    path = Path(__file__).parents[2] / "benchmarks" / "six_sites.py"
    spec = importlib.util.spec_from_file_location("benchmark_six_sites", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


six_sites = _benchmark()


def _few(data: Path, folder: Path, cohort: str, site: str) -> None:
    """A cohort folder of links to a few subjects, one of them with a missing sequence where the site has such."""
    source, target = data / "cohorts" / cohort, folder / "cohorts" / cohort
    target.mkdir(parents=True)
    with (source / "subjects.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["site"] == site]
    fullest_last = sorted(rows, key=lambda row: row["modalities"].count(";"))
    training = [row for row in fullest_last if row["split"] == "train"]
    held_out = [row for row in fullest_last if row["split"] == "test"]
    chosen = [training[0], *training[1 - TRAINING :], *held_out[-HELD_OUT:]]
    with (target / "subjects.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(chosen)
    for row in chosen:
        (target / row["subject"]).symlink_to(source / row["subject"], target_is_directory=True)


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    """Three sites with what they share and what they hold alone, through the real import, cache and simulator."""
    if not six_sites.DATA.is_dir():
        pytest.skip("the public scans are not beside this checkout (../shared/data)")
    folder = tmp_path_factory.mktemp("six-sites")
    few = folder / "data"
    sites = [site for site in six_sites.SITES if site.name in HELD]
    for site in sites:
        _few(six_sites.DATA, few, site.cohort, site.name)
    (few / "clinical").symlink_to(six_sites.DATA / "clinical", target_is_directory=True)
    imported = {site.name: six_sites.import_site(site, few, folder) for site in sites}
    job = six_sites.job_of(**LEAN)
    run = simulate(job, [six_sites.write_site(site, folder) for site in sites], folder / "run", timeout_s=300)
    return Federation(job, run, imported, read_run(run))


def test_the_run_is_complete(federation: Federation) -> None:
    assert judge(federation.folder) == (True, [])
    assert federation.record.sites == sorted(HELD)


def test_every_patient_and_modality_of_a_site_takes_part(federation: Federation) -> None:
    for site, modalities in HELD.items():
        report, facts = federation.imported[site], federation.record.facts(site)
        assert report.patients == TRAINING + HELD_OUT
        assert set(report.volumes) == set(modalities)
        assert (report.problems, report.warnings) == ((), ())
        assert (facts["site/patients"], facts["site/held_out_patients"]) == (TRAINING, HELD_OUT)
        assert not [name for name in facts if name.startswith("site/problems/")]
        in_training = {name: facts[f"site/volumes/{name}"] for name in modalities}
        assert all(0 < count <= TRAINING for count in in_training.values())
        assert sum(in_training.values()) + HELD_OUT * len(modalities) == sum(report.volumes.values())


def test_a_missing_sequence_stays_missing(federation: Federation) -> None:
    facts = federation.record.facts("ht")
    assert facts["site/volumes/FLAIR"] == TRAINING
    assert facts["site/volumes/T1"] == facts["site/volumes/T1c"] == TRAINING - 1


def test_clinical_rows_are_joined_by_pseudonym(federation: Federation) -> None:
    with (federation.folder.parent / "cohorts" / "ht" / "clinical.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == TRAINING + HELD_OUT
    assert all(row["patient"].startswith("p") and row["age"].isdigit() and row["sex"] for row in rows)
    assert {row["grade"] for row in rows} <= {"G2", "G3"}


def test_the_held_out_error_falls_at_every_site_and_modality(federation: Federation) -> None:
    found = {(m.site, m.subject): (m.controls["before"], m.model) for m in reconstructions(federation.record)}
    assert found.keys() == {(site, modality) for site, held in HELD.items() for modality in held}
    assert {cell: pair for cell, pair in found.items() if pair[1] is None or pair[1] >= pair[0]} == {}


def test_retrieval_is_measured_where_a_patient_has_several_modalities(federation: Federation) -> None:
    measured = {m.site for m in retrievals(federation.record)}
    assert measured == {site for site, held in HELD.items() if len(held) > 1}


def test_every_site_contributes_to_what_it_owns_and_to_nothing_else(federation: Federation) -> None:
    with (federation.folder / "contributions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(int(row["round"]), row["site"]) for row in rows] == [(n, s) for n in range(ROUNDS) for s in sorted(HELD)]
    expected = {site: str(_trainable(federation.job, held)) for site, held in HELD.items()}
    for row in rows:
        assert (row["status"], row["reason"]) == ("accepted", "")
        assert int(row["samples"]) > 0
        assert row["tensors"] == expected[row["site"]]
    for record in federation.record.rounds:
        for site in record["sites"]:
            owned = {group.partition("/")[2] for group in site["owners"]} - {""}
            assert owned == set(HELD[site["site"]])


def _trainable(job: JobConfig, held: tuple[str, ...]) -> int:
    """How many tensors a site can train: the shared ones and its own; one modality alone is no cross-modal pair."""
    owners = tensor_owners(build_model(job))
    pairless = () if len(held) > 1 else ("objectives.cross_modal_reconstruction.",)
    return sum(
        owner.modality in (None, *held) and not name.startswith(tuple(pairless)) for name, owner in owners.items()
    )
