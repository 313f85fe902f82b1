"""What form a source has."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from parametrium.cohort.importers.recognise import FORMS, recognise
from parametrium.errors import CohortError


def _bids(folder: Path) -> None:
    (folder / "sub-01" / "anat").mkdir(parents=True)


def _nnunet(folder: Path) -> None:
    (folder / "imagesTr").mkdir()
    (folder / "dataset.json").write_text(json.dumps({"channel_names": {"0": "T2"}, "labels": {"background": 0}}))


def _datalist(folder: Path, name: str = "list.json") -> None:
    (folder / name).write_text(json.dumps({"training": [{"image": "a.nii.gz"}]}))


def _folders(folder: Path) -> None:
    (folder / "subjects.csv").write_text("subject\na\n")


def _dicom(folder: Path) -> None:
    """One file of explicit little-endian part 10, made by hand: SOP class, instance, patient, study and series."""

    def element(group: int, number: int, representation: bytes, value: bytes) -> bytes:
        value += (b"\0" if representation == b"UI" else b" ") * (len(value) % 2)
        tag = group.to_bytes(2, "little") + number.to_bytes(2, "little")
        return tag + representation + len(value).to_bytes(2, "little") + value

    meta = element(2, 0x10, b"UI", b"1.2.840.10008.1.2.1")
    body = element(8, 0x16, b"UI", b"1.2.840.10008.5.1.4.1.1.2") + element(8, 0x18, b"UI", b"1.2.3.4")
    body += (
        element(0x10, 0x20, b"LO", b"P1") + element(0x20, 0x0D, b"UI", b"1.2.3") + element(0x20, 0x0E, b"UI", b"1.2")
    )
    length = element(2, 0, b"UL", len(meta).to_bytes(4, "little"))
    (folder / "deep" / "er").mkdir(parents=True)
    (folder / "deep" / "er" / "I0001").write_bytes(bytes(128) + b"DICM" + length + meta + body)


MAKERS = {"bids": _bids, "nnunet": _nnunet, "datalist": _datalist, "folders": _folders, "dicom": _dicom}


@pytest.mark.parametrize("form", MAKERS)
def test_every_form_is_recognised_among_other_files(tmp_path: Path, form: str) -> None:
    MAKERS[form](tmp_path)
    (tmp_path / "README").write_text("read me")
    (tmp_path / "settings.json").write_text(json.dumps({"training": "no list"}))
    (tmp_path / ".hidden.json").write_text(json.dumps({"training": [{"image": "x.nii"}]}))
    assert recognise(tmp_path) == form


def test_a_source_that_keeps_its_dicom_below_it_is_not_ambiguous(tmp_path: Path) -> None:
    _bids(tmp_path)
    _dicom(tmp_path)
    assert recognise(tmp_path) == "bids"


@pytest.mark.parametrize("other", ["nnunet", "datalist", "folders"])
def test_two_forms_are_an_error_that_names_both_and_the_way_out(tmp_path: Path, other: str) -> None:
    _bids(tmp_path)
    MAKERS[other](tmp_path)
    with pytest.raises(CohortError, match="PM204") as caught:
        recognise(tmp_path)
    text = str(caught.value)
    assert FORMS["bids"] in text
    assert FORMS[other] in text  # type: ignore[index]
    assert "--as bids" in text


def test_nnunets_own_file_may_hold_monais_lists_too(tmp_path: Path) -> None:
    _nnunet(tmp_path)
    document = json.loads((tmp_path / "dataset.json").read_text()) | {"training": [{"image": "imagesTr/a.nii.gz"}]}
    (tmp_path / "dataset.json").write_text(json.dumps(document))
    assert recognise(tmp_path) == recognise(tmp_path / "dataset.json") == "nnunet"
    (tmp_path / "imagesTr").rmdir()
    assert recognise(tmp_path) == recognise(tmp_path / "dataset.json") == "datalist"


def test_of_several_datalists_one_has_to_be_given(tmp_path: Path) -> None:
    for name in ("a.json", "b.json"):
        _datalist(tmp_path, name)
    with pytest.raises(CohortError, match="several datalists"):
        recognise(tmp_path)
    assert recognise(tmp_path / "a.json") == "datalist"


def test_what_is_nothing_is_told_what_was_looked_for(tmp_path: Path) -> None:
    folder = tmp_path / "SENTINEL"
    folder.mkdir()
    (folder / "SENTINEL.txt").write_text("x")
    for source in (folder, folder / "SENTINEL.txt", folder / "absent"):
        with pytest.raises(CohortError, match="PM204") as caught:
            recognise(source)
        assert "SENTINEL" not in str(caught.value)
    with pytest.raises(CohortError) as caught:
        recognise(folder)
    assert all(words in str(caught.value) for words in (*FORMS.values(), "--as FORM"))


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[" * 200_000, b"\xff\xfe", b"[]", b'{"training": 3, "test": [null, 1, []]}', b'"x"']
)
def test_an_odd_json_file_is_no_datalist(tmp_path: Path, content: bytes) -> None:
    for name in ("x.json", "dataset.json"):
        (tmp_path / name).write_bytes(content)
    with pytest.raises(CohortError, match="PM204"):
        recognise(tmp_path)


def test_little_is_opened_however_much_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for index in range(1500):
        (tmp_path / f"{index:04d}").write_bytes(b"x")
    os.mkfifo(tmp_path / "pipe")
    opened = 0
    original = Path.open

    def counting(self: Path, *arguments: Any, **options: Any) -> Any:
        nonlocal opened
        opened += 1
        return original(self, *arguments, **options)

    monkeypatch.setattr(Path, "open", counting)
    with pytest.raises(CohortError, match="none of"):
        recognise(tmp_path)
    assert opened <= 1000
