"""Random crops from prepared volumes, beside MONAI's PersistentDataset with RandSpatialCrop, in one run.

    python benchmarks/crop_loading.py
    python benchmarks/crop_loading.py --patients 24 --spacing 1.5 --crop 96

Both see the same phantom volumes, resampled to the same spacing and standardised, and both have their caches built
before the clock runs. MONAI's cache holds whole volumes, each loaded from disk for every crop; ours is read crop by
crop from its chunks, or, where a cohort fits into ``UNPACKED_LIMIT``, kept unpacked in memory: both are timed. They
take turns; the table has the median of the paired ratios with its quartiles.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from monai.data import PersistentDataset
from monai.transforms import (
    Compose,
    EnsureChannelFirst,
    LoadImage,
    NormalizeIntensity,
    Orientation,
    RandSpatialCrop,
    Spacing,
    SpatialPad,
)

from parametrium.cohort.manifest import Cohort, read_cohort
from parametrium.cohort.phantom import write_phantom
from parametrium.config import PreparationConfig
from parametrium.data import cache
from parametrium.data.crops import draw_corner
from parametrium.data.prepare import prepare_cohort

MODALITIES = ("CT", "T2")


def ours(cohort: Cohort, folder: Path, spacing: float, crop: int) -> Callable[[int], None]:
    """Reads so many crops, each of the next volume, at a random place."""
    preparation = PreparationConfig(spacing_mm=(spacing, spacing, spacing))
    volumes = [v for patient in prepare_cohort(cohort, preparation, folder).patients for v in patient.volumes]
    rng = np.random.default_rng(0)
    extent = (crop, crop, crop)

    def read(count: int) -> None:
        for number in range(count):
            volume = volumes[number % len(volumes)]
            volume.read(draw_corner(rng, volume, extent), extent)

    read.volumes = volumes  # type: ignore[attr-defined]  # what the caller keeps unpacked or not
    return read


def peer(cohort: Cohort, folder: Path, spacing: float, crop: int) -> Callable[[int], None]:
    """The same with MONAI's transforms."""
    transform = Compose(
        [
            LoadImage(image_only=True),
            EnsureChannelFirst(),
            Orientation(axcodes="RAS", labels=None),
            Spacing(pixdim=(spacing,) * 3),
            NormalizeIntensity(),
            SpatialPad((crop,) * 3),
            RandSpatialCrop((crop,) * 3, random_size=False),
        ]
    )
    dataset = PersistentDataset([str(volume.path) for volume in cohort.volumes], transform, cache_dir=folder)
    for number in range(len(dataset)):
        dataset[number]

    def read(count: int) -> None:
        for number in range(count):
            dataset[number % len(dataset)]

    return read


def rate(read: Callable[[int], None], count: int) -> float:
    """Crops per second."""
    started = time.perf_counter()
    read(count)
    return count / (time.perf_counter() - started)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patients", type=int, default=8)
    parser.add_argument("--spacing", type=float, default=2.0, help="millimetres")
    parser.add_argument("--crop", type=int, default=64, help="voxels")
    parser.add_argument("--rounds", type=int, default=9, help="paired repetitions")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        write_phantom(place / "cohort", patients=arguments.patients, modalities=MODALITIES, seed=0)
        cohort = read_cohort(place / "cohort", MODALITIES)
        own = ours(cohort, place / "cache", arguments.spacing, arguments.crop)
        other = peer(cohort, place / "monai", arguments.spacing, arguments.crop)
        volumes = own.volumes  # type: ignore[attr-defined]
        rows: list[tuple[float, float, float]] = []
        count = 2 * len(volumes)
        for _ in range(arguments.rounds):
            cache.keep_unpacked([], limit=0)
            chunks = rate(own, count)
            cache.keep_unpacked(volumes)
            own(len(volumes))  # the first read unpacks
            rows.append((chunks, rate(own, count), rate(other, count)))
    print(f"{len(volumes)} volumes of {arguments.spacing:g} mm, crops of {arguments.crop}, one process")
    print("| ours | crops/s | MONAI, crops/s | ratio, median (quartiles) |")
    print("|---|---|---|---|")
    monai = statistics.median(row[2] for row in rows)
    for name, column in (("from chunks on disk", 0), ("kept unpacked", 1)):
        low, middle, high = statistics.quantiles((row[column] / row[2] for row in rows), n=4)
        mine = statistics.median(row[column] for row in rows)
        print(f"| {name} | {mine:.0f} | {monai:.0f} | {middle:.1f} ({low:.1f}-{high:.1f}) |")


if __name__ == "__main__":
    main()
