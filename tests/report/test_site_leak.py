"""The site probe: at chance where sites are alike, at 1 where they are not, and never across modalities."""

from pathlib import Path

import numpy as np
import pytest
from sklearn.model_selection import StratifiedKFold

from parametrium.report.embedding import Point, save_points
from parametrium.report.site_leak import site_accuracy, site_leak_table, site_leaks


def points_of(site: str, patients: int, shift: float = 0.0, modality: str = "CT", seed: int = 0) -> list[Point]:
    rng = np.random.default_rng([seed, *site.encode()])
    rows = rng.normal(size=(patients, 12)) + shift * np.eye(12)[0]
    return [Point(site, p + 1, modality, tuple(row)) for p, row in enumerate(rows)]


def table_of(points: list[Point]) -> tuple[np.ndarray, np.ndarray]:
    sites = sorted({p.site for p in points})
    return np.array([p.vector for p in points]), np.array([sites.index(p.site) for p in points])


def test_sites_that_look_alike_are_told_at_chance() -> None:
    (leak,) = site_leaks([*points_of("a", 14), *points_of("b", 10)])
    assert (leak.modality, leak.sites, leak.patients, leak.chance) == ("CT", 2, 24, 0.5)
    assert 0.5 < leak.ordinary < 0.85
    every = [site_accuracy(*table_of([*points_of("a", 14, seed=s), *points_of("b", 10, seed=s)])) for s in range(40)]
    assert np.mean(every) == pytest.approx(0.5, abs=0.07)


def test_a_site_that_looks_different_is_told() -> None:
    (leak,) = site_leaks([*points_of("a", 14), *points_of("b", 10, shift=12)])
    assert leak.accuracy == 1
    assert leak.ordinary < 0.9
    three = [*points_of("a", 9), *points_of("b", 9, shift=12), *points_of("c", 9, shift=-12)]
    (leak,) = site_leaks(three)
    assert leak.chance == pytest.approx(1 / 3)
    assert leak.accuracy > 0.9


def test_the_probe_is_the_nearest_mean_by_the_distance_of_mahalanobis() -> None:
    x, y = table_of([*points_of("a", 13), *points_of("b", 8, shift=1.5), *points_of("c", 9, shift=3)])
    x = (x - x.mean(0)) / x.std(0)
    hits: dict[int, list[bool]] = {0: [], 1: [], 2: []}
    for seen, unseen in StratifiedKFold(5, shuffle=True, random_state=0).split(x, y):
        means = [x[seen][y[seen] == site].mean(0) for site in range(3)]
        own = [row - means[site] for row, site in zip(x[seen], y[seen], strict=True)]
        covariance = sum(np.outer(row, row) for row in own) / len(own) + 0.03 * np.eye(12)
        for row, site in zip(x[unseen], y[unseen], strict=True):
            away = [row - mean for mean in means]
            distances = [d @ np.linalg.solve(covariance, d) for d in away]
            hits[site].append(int(np.argmin(distances)) == site)
    wanted = np.mean([np.mean(own) for own in hits.values()])
    assert 0.4 < wanted < 1
    assert site_accuracy(x, y) == pytest.approx(wanted)


def test_modalities_are_never_compared_with_each_other() -> None:
    assert site_leaks([*points_of("a", 8), *points_of("b", 8, modality="PET")]) == []
    both = [*points_of("a", 8), *points_of("b", 8), *points_of("b", 8, modality="PET", shift=50)]
    assert [leak.modality for leak in site_leaks(both)] == ["CT"]


def test_a_site_with_few_patients_is_left_out() -> None:
    assert site_leaks([*points_of("a", 8), *points_of("b", 3)]) == []
    (leak,) = site_leaks([*points_of("a", 8), *points_of("b", 4), *points_of("c", 3)])
    assert (leak.sites, leak.patients) == (2, 12)


def keep(run: Path, points: list[Point]) -> None:
    folder = run / "sites" / points[0].site / "pictures"
    folder.mkdir(parents=True)
    features = {(p.patient - 1, p.modality): np.array(p.vector, dtype=np.float32) for p in points}
    save_points(folder / "embeddings.json", features, points[0].site)


def test_the_table_is_of_the_sites_folders(tmp_path: Path) -> None:
    keep(tmp_path, points_of("a", 14))
    assert site_leak_table(tmp_path).rows == []
    keep(tmp_path, points_of("b", 10, shift=12))
    (row,) = site_leak_table(tmp_path).rows
    assert row[:5] == ["CT", "2", "24", "1.000", "0.500"]
    keep(tmp_path, [Point("c", 1, "CT", (1.0, 2.0))])  # of another model
    assert site_leak_table(tmp_path).rows == []
