"""Tables and comparisons: every number of the run, the right winner, and a bounded length."""

from collections.abc import Callable
from pathlib import Path

import pytest
from run_records import OBJECTIVES, write_run

from parametrium.config import JobConfig
from parametrium.errors import FederationError
from parametrium.report.comparison import comparisons, reconstructions, retrievals
from parametrium.report.record import read_run
from parametrium.report.tables import (
    MOST_ROWS,
    Table,
    contributions_table,
    faults_table,
    losses_table,
    owners_table,
    probe_table,
    reconstruction_table,
    retrieval_summary_table,
    retrieval_table,
    sites_table,
)
from parametrium.training.run_folder import Contribution, RunFolder, contribution_of, unused
from parametrium.training.update import Update

MakeJob = Callable[..., JobConfig]
ALL = (
    contributions_table,
    faults_table,
    losses_table,
    owners_table,
    probe_table,
    reconstruction_table,
    retrieval_table,
    sites_table,
)


def job(make_job: MakeJob, **changes: object) -> JobConfig:
    return make_job(**{"objectives": OBJECTIVES, "evaluation": {"probe": "age"}, **changes})


def cell(table: Table, row: int, column: str) -> str:
    return table.rows[row][table.header.index(column)]


def test_the_reconstruction_table_names_the_winner(tmp_path: Path, make_job: MakeJob) -> None:
    write_run(tmp_path / "run", job(make_job))
    table = reconstruction_table(tmp_path / "run")
    assert [row[:2] for row in table.rows] == [["alpha", "CT"], ["alpha", "T1"], ["beta", "CT"], ["beta", "T1"]]
    columns = ("volumes", "after rounds", "model", "before training", "untrained", "modality mean", "neighbour mean")
    assert [cell(table, 0, c) for c in columns] == ["7", "2", "0.5000", "1.5000", "1.5000", "1.2500", "0.7500"]
    assert [cell(table, n, "best") for n in range(2)] == ["model", "neighbour mean"]
    assert cell(table, 0, "model against best control") == "-33.3 %"
    assert [table.header[n] for n in table.best[0]] == ["model"]
    assert [table.header[n] for n in table.best[1]] == ["neighbour mean"]


def test_the_retrieval_table_is_by_ordered_pair(tmp_path: Path, make_job: MakeJob) -> None:
    write_run(tmp_path / "run", job(make_job))
    table = retrieval_table(tmp_path / "run")
    assert table.rows[0][:10] == ["alpha", "CT", "T1", "R@1", "8", "0.6875", "0.3125", "0.4375", "0.0625", "0.1250"]
    assert cell(table, 0, "best") == "model"
    assert table.rows[2][:4] == ["alpha", "T1", "CT", "R@1"]
    assert cell(table, 2, "best") == "body mask"
    assert cell(table, 2, "model against best control") == "-0.2500"


def test_the_retrieval_summary_is_the_mean_over_a_sites_pairs(tmp_path: Path, make_job: MakeJob) -> None:
    write_run(tmp_path / "run", job(make_job))
    pairs, summary = retrieval_table(tmp_path / "run"), retrieval_summary_table(tmp_path / "run")
    sites = [(site, "2", r) for site in ("alpha", "beta") for r in ("R@1", "R@5")]
    assert [tuple(row[:3]) for row in summary.rows] == [
        *sites,
        ("all sites", "all", "R@1"),
        ("all sites", "all", "R@5"),
    ]
    over_sites = (float(cell(summary, 0, "model")) + float(cell(summary, 2, "model"))) / 2
    assert float(cell(summary, 4, "model")) == pytest.approx(over_sites, abs=1e-4)
    by_loop = [
        sum(float(cell(pairs, n, name)) for n in (0, 2)) / 2 for name in ("model", "untrained", "body mask", "voxels")
    ]
    assert [float(cell(summary, 0, name)) for name in ("model", "untrained", "body mask", "voxels")] == by_loop


def test_the_probe_table(tmp_path: Path, make_job: MakeJob) -> None:
    write_run(tmp_path / "run", job(make_job))
    row = probe_table(tmp_path / "run").rows[0]
    assert row[:3] == ["alpha", "age", "Spearman correlation"]
    assert row[4:9] == ["0.5125", "0.2125", "0.1125", "-0.3125", "0.0000"]
    pooled = probe_table(tmp_path / "run").rows[1]
    assert pooled[:3] == ["alpha", "age, pooled volumes", "Spearman correlation"]
    assert pooled[4:9] == ["0.6125", "0.1875", "-", "-", "0.0000"]


def test_comparisons_tell_what_is_better_than_what(tmp_path: Path, make_job: MakeJob) -> None:
    write_run(tmp_path / "run", job(make_job))
    found = {(c.site, c.what, c.control): c for c in comparisons(tmp_path / "run")}
    assert len(found) == 2 * (2 * 4 + 2 * 4 + 4 + 2)
    good = found["alpha", "reconstruction CT", "neighbour_mean"]
    assert (good.model, good.value, good.better) == (0.5, 0.75, True)
    assert not found["alpha", "reconstruction T1", "neighbour_mean"].better
    assert found["beta", "reconstruction T1", "before"].better
    assert found["alpha", "retrieval 2 pairs R@1", "voxels"].better
    assert found["alpha", "probe age Spearman correlation", "chance"].better


def test_a_tie_is_not_better(tmp_path: Path, make_job: MakeJob) -> None:
    run = write_run(tmp_path / "run", job(make_job))
    run.add_evaluation(2, "alpha", {"evaluation/reconstruction/CT/neighbour_mean": 0.5})
    found = {(c.site, c.what, c.control): c.better for c in comparisons(tmp_path / "run")}
    assert not found["alpha", "reconstruction CT", "neighbour_mean"]
    assert reconstruction_table(tmp_path / "run").rows[0][-2] == "model = neighbour mean"


def test_a_recall_that_chance_reaches_is_no_comparison(tmp_path: Path, make_job: MakeJob) -> None:
    run = write_run(tmp_path / "run", job(make_job))
    prefix = "evaluation/retrieval/CT-T1/r5/"
    run.add_evaluation(2, "alpha", {prefix + name: 1.0 for name in ("model", "chance")})
    pairs = {(c.site, c.what) for c in comparisons(tmp_path / "run") if c.what.endswith("R@5")}
    assert pairs == {("alpha", "retrieval 1 pairs R@5"), ("beta", "retrieval 2 pairs R@5")}
    assert retrieval_table(tmp_path / "run").rows[1][-2:] == ["none: chance is 1", "-"]


def test_what_was_not_measured_after_training_is_a_dash(tmp_path: Path, make_job: MakeJob) -> None:
    write_run(tmp_path / "run", job(make_job), finish=False)
    table = reconstruction_table(tmp_path / "run")
    assert cell(table, 0, "model") == "-"
    assert cell(table, 0, "before training") == "1.5000"
    assert comparisons(tmp_path / "run") == []
    assert retrieval_table(tmp_path / "run").rows == []


def test_contributions_and_losses(tmp_path: Path, make_job: MakeJob) -> None:
    write_run(tmp_path / "run", job(make_job), rejected={(1, "beta"): "x is not finite"})
    rows = contributions_table(tmp_path / "run").rows
    assert rows[0] == ["0", "alpha", "accepted", "40", "12", "0.625", ""]
    assert rows[3] == ["1", "beta", "rejected", "-", "-", "-", "x is not finite"]
    assert faults_table(tmp_path / "run").rows == [["beta", "1", "rejected", "x is not finite"]]
    owners = owners_table(tmp_path / "run")
    assert owners.header == ["site", "shared", "decode/CT", "embed/CT"]
    assert owners.rows == [["alpha", "80", "40", "60"], ["beta", "41", "21", "31"]]
    assert losses_table(tmp_path / "run").rows[:3] == [
        ["alpha", "masked reconstruction", "2", "2.0000", "1.0000", "-"],
        ["alpha", "soft contrastive", "2", "1.7500", "1.7500", "1.8750"],
        ["beta", "masked reconstruction", "1", "3.0000", "3.0000", "-"],
    ]


def test_faults_of_consecutive_rounds_are_one_row(tmp_path: Path, make_job: MakeJob) -> None:
    rejected = {(n, "beta"): "late" for n in (1, 2, 3, 6)} | {(2, "alpha"): "norm"}
    write_run(tmp_path / "run", job(make_job, rounds=8), rejected=rejected)
    assert faults_table(tmp_path / "run").rows == [
        ["beta", "1 to 3", "rejected", "late"],
        ["alpha", "2", "rejected", "norm"],
        ["beta", "6", "rejected", "late"],
    ]


def test_sites_that_were_idle_every_other_round_are_one_row_each_behind_the_faults(
    tmp_path: Path, make_job: MakeJob
) -> None:
    run = RunFolder(tmp_path / "run", job(make_job, rounds=900))
    run.create()
    good = Contribution("alpha", "accepted", "", 40, 12, 0.5, {"shared": 40})
    idle = [contribution_of(Update(f"s{n}", 0, {}, {}, {}, 0, {}), {}) for n in range(2)]
    late = Contribution("omega", "rejected", "late")
    for number in range(900):
        unlike = [unused(good), *idle] if number % 2 else [good]
        run.add_round(number, [*unlike, late] if number == 899 else unlike, {}, 0.1)
    table = faults_table(tmp_path / "run")
    assert [row[:3] for row in table.rows] == [
        ["omega", "899", "rejected"],
        ["alpha", "450 in all", "unused"],
        ["s0", "450 in all", "idle"],
        ["s1", "450 in all", "idle"],
    ]
    samples = {row[0]: row[6] for row in contributions_table(tmp_path / "run").rows}
    assert samples == {"alpha": str(450 * 40), "omega": "0", "s0": "0", "s1": "0"}


def test_the_problems_of_a_cohort_are_counted(tmp_path: Path, make_job: MakeJob) -> None:
    run = write_run(tmp_path / "run", job(make_job))
    run.add_evaluation(0, "alpha", {"site/problems/not_finite": 3.0})
    table = sites_table(tmp_path / "run")
    assert table.rows[0] == ["alpha", "30", "8", "29", "0", "0", "not finite: 3"]
    assert table.rows[1][-1] == "none"


def test_many_sites_are_summarised(tmp_path: Path, make_job: MakeJob) -> None:
    sites = [f"s{n:03d}" for n in range(200)]
    write_run(tmp_path / "run", job(make_job), sites)
    record = read_run(tmp_path / "run")
    assert len(reconstructions(record)) == 400
    assert len(retrievals(record)) == 800
    table = reconstruction_table(record)
    assert [row[:3] for row in table.rows] == [
        ["median of 200 sites", "CT", "1400"],
        ["median of 200 sites", "T1", "1600"],
    ]
    assert cell(table, 0, "model") == "1.4950"
    assert "the model is best in 25 of 400 rows" in table.note
    for function in ALL:
        assert len(function(record).rows) <= 400
        assert all(len(row) == len(function(record).header) for row in function(record).rows)
    assert contributions_table(record).rows[0][:7] == ["s000", "2", "0", "0", "0", "0", "80"]


def test_a_table_has_as_many_cells_as_columns(tmp_path: Path, make_job: MakeJob) -> None:
    write_run(tmp_path / "run", job(make_job), rejected={(0, "beta"): "x"})
    for function in ALL:
        table = function(tmp_path / "run")
        assert table.rows
        assert len(table.rows) <= MOST_ROWS
        assert all(len(row) == len(table.header) for row in table.rows)
        assert not table.best or len(table.best) == len(table.rows)
        assert all(0 <= n < len(table.header) for n in table.numeric)


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FederationError, match="PM503 the folder holds no run"):
        reconstruction_table(tmp_path)
