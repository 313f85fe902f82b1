"""Importing DICOM with de-identification, beside dcm2niix's plain conversion of the same folder, in one run.

    python benchmarks/dicom_import.py                    # a phantom export and a large CT, made for this
    python benchmarks/dicom_import.py --source FOLDER    # a folder of DICOM

The phantom's slices are small (32 kB, 750 files), so what counts there is the time a header takes; in a CT of 120
slices of 512 x 512 voxels it is packing the voxels.

The import reads every header, decides what is an image volume and of which modality, rescales to HU, SUV or
mm2/s, writes scrubbed NIfTI files, masks, sidecars and tables, and keeps a private index. dcm2niix converts all series
and names them by number; it de-identifies nothing here (``-b n`` leaves its sidecars out). Both write gzip, both use
one process, and they take turns. The second column is the import run again over an unchanged folder.
"""

import argparse
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import dcm2niix
import numpy as np
import pydicom
from pydicom.uid import generate_uid

from parametrium.cohort.importers.dicom import import_dicom
from parametrium.cohort.phantom.dicom import write_phantom_dicom


def megabytes(folder: Path) -> float:
    """Size of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6


def seconds(run: Callable[[], object]) -> float:
    """Wall time."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def is_ct_slice(dataset: pydicom.Dataset) -> bool:
    """Whether it is a slice of a CT volume."""
    return dataset.get("Modality") == "CT" and list(dataset.ImageType)[:3] == ["ORIGINAL", "PRIMARY", "AXIAL"]


def large_ct(folder: Path, template: Path, slices: int = 120, edge: int = 512) -> None:
    """A CT series of one patient, with the header of ``template`` and voxels of an ellipse with noise."""
    folder.mkdir(parents=True)
    dataset = pydicom.dcmread(template)
    rng = np.random.default_rng(0)
    x, y = np.meshgrid(*[np.linspace(-1, 1, edge)] * 2)
    body = (x**2 / 0.6 + y**2 / 0.4 < 1) * 1040.0
    dataset.Rows = dataset.Columns = edge
    dataset.PixelSpacing = [0.9, 0.9]
    dataset.SeriesInstanceUID = generate_uid(entropy_srcs=["series"])
    for number in range(slices):
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[str(number)])
        dataset.InstanceNumber = number + 1
        dataset.ImagePositionPatient = [-230.0, -230.0, 3.0 * number]
        stored = body + rng.normal(0, 12, body.shape) - 1024 - float(dataset.RescaleIntercept)
        dataset.PixelData = np.rint(stored / float(dataset.RescaleSlope)).astype(np.int16).tobytes()
        dataset.save_as(folder / f"{number:04d}.dcm")


def measured(source: Path, place: Path, jobs: int, rounds: int) -> str:
    """A row of the table."""
    size, files = megabytes(source), sum(path.is_file() for path in source.rglob("*"))
    command = [dcm2niix.bin, "-z", "y", "-b", "n", "-f", "%s", "-o", str(place / "peer"), str(source)]
    times: list[tuple[float, float, float]] = []
    for _ in range(rounds):
        for name in ("peer", "cohort"):
            shutil.rmtree(place / name, ignore_errors=True)
        for leftover in place.glob("secret*"):
            leftover.unlink()
        (place / "peer").mkdir()

        def imported() -> None:
            import_dicom(source, place / "cohort", secret=place / "secret", jobs=jobs)

        first, again = seconds(imported), seconds(imported)
        other = seconds(lambda: subprocess.run(command, check=False, capture_output=True))
        times.append((first, again, other))
    own, again, other = (statistics.median(column) for column in zip(*times, strict=True))
    low, middle, high = statistics.quantiles((theirs / mine for mine, _, theirs in times), n=4)
    ratio = f"{middle:.2f} ({low:.2f}-{high:.2f})"
    return f"| {size:.0f} MB, {files} files | {size / own:.1f} | {again:.1f} | {size / other:.1f} | {ratio} |"


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, default=None)
    parser.add_argument("--patients", type=int, default=4, help="of the phantom export")
    parser.add_argument("--jobs", type=int, default=1, help="processes of the import; dcm2niix has one")
    parser.add_argument("--rounds", type=int, default=5, help="paired repetitions")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        sources = [arguments.source]
        if arguments.source is None:
            sources = [place / "export", place / "large"]
            write_phantom_dicom(sources[0], patients=arguments.patients, modalities=["CT", "T2", "PET"], seed=0)
            slices = (path for path in sorted(sources[0].rglob("*")) if path.is_file())
            template = next(path for path in slices if is_ct_slice(pydicom.dcmread(path, force=True)))
            large_ct(sources[1], template)
        print(f"{arguments.jobs} process(es)")
        print("| source | import, MB/s | again, unchanged, s | dcm2niix, MB/s | ratio, median (quartiles) |")
        print("|---|---|---|---|---|")
        for source in sources:
            print(measured(source, place, arguments.jobs, arguments.rounds), flush=True)


if __name__ == "__main__":
    main()
