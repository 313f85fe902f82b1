"""An nnU-Net v2 data set becomes a cohort table.

``dataset.json`` names the channels; ``imagesTr`` and ``imagesTs`` hold ``CASE_0000`` and so on, one file a channel,
``labelsTr`` and ``labelsTs`` one label map a case. A case is taken as a patient, and what is in ``Ts`` is held out.
Format: https://github.com/MIC-DKFZ/nnUNet/blob/master/documentation/dataset_format.md
"""

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from parametrium.cohort.importers.document import read_document
from parametrium.cohort.importers.listing import Listing, Scan, Segmentation, entries_of, structure_name
from parametrium.cohort.importers.tables import ImportReport, Options, write_listing
from parametrium.cohort.problem import Reason
from parametrium.cohort.volume_file import SUFFIXES
from parametrium.errors import Code, CohortError

_STUDY = "s1"  # the form knows one visit
_SPLITS = {"Tr": "train", "Ts": "test"}
_CASE = re.compile(r"(?P<case>.+)_(?P<channel>[0-9]{4})", re.DOTALL)


def import_nnunet(
    source: Path,
    cohort: Path,
    *,
    secret: Path | None = None,
    rename: Mapping[str, str] | None = None,
    drop: Collection[str] = (),
    rescale: Mapping[str, tuple[float, float]] | None = None,
    vocabulary: Collection[str],
    copy: bool = False,
) -> ImportReport:
    """Writes cohort.csv and masks.csv for an nnU-Net v2 data set; the same call twice writes the same bytes.

    Args:
        source: the data set's folder, or its dataset.json.
        cohort: folder to write the tables to, made where absent.
        secret: the site's secret for pseudonyms, made on first use; None puts it beside the cohort folder.
        rename: from a channel's name or number to the cohort's modality; a number goes before a name.
        drop: channel names or numbers to leave out.
        rescale: slope and intercept by (cohort) modality: value = slope * stored + intercept.
        vocabulary: modality names that need no ``rename``.
        copy: give the cohort its own scrubbed NIfTI files.

    Raises:
        CohortError: PM201 dataset.json is unreadable; PM204 it is not of version 2, two channels have one name and no
            number is renamed, a modality is unknown and neither renamed nor dropped, or nothing is left.
    """
    folder = (source.parent if source.is_file() else source).resolve()
    document = read_document(folder / "dataset.json", what="dataset.json")
    options = Options(rename or {}, drop, rescale or {}, vocabulary, copy)
    channels = _channels(document, {*options.rename, *options.drop})
    ending = document.get("file_ending")
    if ending not in SUFFIXES:
        raise CohortError(
            Code.COHORT_IMPORT,
            f"file_ending of dataset.json must be one of {', '.join(SUFFIXES)}",
            site_detail=repr(ending),
        )
    return write_listing(_listing(folder, channels, ending, _structure(document)), cohort, options, secret=secret)


def _channels(document: Mapping[str, Any], asked: Collection[str]) -> dict[int, str]:
    """Name by number of channel; the number itself where the site asks by it."""
    names = document.get("channel_names")
    if not isinstance(names, dict) or not names or not all(re.fullmatch(r"[0-9]{1,4}", key) for key in names):
        raise CohortError(
            Code.COHORT_IMPORT,
            "dataset.json has no channel_names by number, so it is not of nnU-Net version 2; "
            "one of version 1 is read as a datalist, with --as datalist",
        )
    channels = {int(key): str(int(key)) if str(int(key)) in asked else str(name) for key, name in names.items()}
    repeated = [name for name, count in Counter(channels.values()).items() if count > 1 and name not in asked]
    if repeated:
        numbers = [str(number) for number, name in sorted(channels.items()) if name in repeated]
        raise CohortError(
            Code.COHORT_IMPORT,
            f"channels {', '.join(numbers)} share a name; name each by its number, e.g. "
            f"--rename {numbers[0]}=MODALITY, or leave it out with --drop {numbers[0]}",
        )
    return channels


def _structure(document: Mapping[str, Any]) -> str:
    """What the label maps hold, as ``1=tumour;2=bladder``; a region of several labels as ``1+2=whole``."""
    labels = document.get("labels")
    named: list[tuple[list[int], str]] = []
    for name, value in labels.items() if isinstance(labels, dict) else ():
        values = value if isinstance(value, list) else [value]
        if values and all(isinstance(number, int) and 0 < number < 2**16 for number in values):
            named.append((values, structure_name(name)))
    return ";".join(f"{'+'.join(map(str, values))}={name}" for values, name in sorted(named)) or "mask"


def _listing(folder: Path, channels: Mapping[int, str], ending: str, structure: str) -> Listing:
    listing = Listing()
    for part, split in _SPLITS.items():
        cases: dict[str, dict[int, Path]] = {}
        for path in _files(folder / f"images{part}", ending, listing):
            parts = _CASE.fullmatch(path.name[: -len(ending)])
            if parts is None or int(parts["channel"]) not in channels:
                listing.leave_out("", "", Reason.BAD_ROW)
                continue
            cases.setdefault(parts["case"], {})[int(parts["channel"])] = path
        for case, files in cases.items():
            for number, name in sorted(channels.items()):
                path = files.get(number, folder / f"images{part}" / f"{case}_{number:04d}{ending}")
                listing.scans.append(Scan(case, _STUDY, name, path, split=split))
        _add_masks(folder / f"labels{part}", ending, cases, structure, listing)
    return listing


def _add_masks(folder: Path, ending: str, cases: Collection[str], structure: str, listing: Listing) -> None:
    if not folder.is_dir():
        return
    masks = {path.name[: -len(ending)]: path for path in _files(folder, ending, listing)}
    for case in cases:
        if case in masks:
            listing.masks.append(Segmentation(case, _STUDY, structure, masks[case]))
        else:
            listing.leave_out(case, "mask", Reason.MISSING_FILE)
    for case in sorted(set(masks) - set(cases)):
        listing.leave_out(case, "mask", Reason.STRUCTURES_WITHOUT_IMAGE)


def _files(folder: Path, ending: str, listing: Listing) -> Iterator[Path]:
    """Files of the data set's ending, by name; another file is left out."""
    for path in entries_of(folder):
        if path.name.endswith(ending) and path.name != ending:
            yield path
        else:
            listing.leave_out("", "", Reason.BAD_ROW)
