"""Pseudonyms: stable, keyed, and undone only with what lies beside the secret."""

import re
from pathlib import Path

import pytest

from parametrium.cohort.deidentify import pseudonym, remember, site_secret
from parametrium.errors import CohortError


def test_the_secret_is_made_once_and_private(tmp_path: Path) -> None:
    path = tmp_path / "site" / "secret"
    first = site_secret(path)
    assert site_secret(path) == first
    assert len(first) == 32
    assert path.stat().st_mode & 0o777 == 0o600
    assert [file.name for file in path.parent.iterdir()] == ["secret"]
    assert site_secret(tmp_path / "other") != first


def test_a_secret_that_others_may_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    site_secret(path)
    path.chmod(0o644)
    with pytest.raises(CohortError, match="chmod 600"):
        site_secret(path)


@pytest.mark.parametrize("content", ["", "abc", "zz" * 32, "00" * 31])
def test_a_damaged_secret_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "SENTINEL"
    path.touch(0o600)
    path.write_text(content)
    with pytest.raises(CohortError, match="PM204") as caught:
        site_secret(path)
    assert "SENTINEL" not in str(caught.value)


def test_pseudonyms() -> None:
    names = [pseudonym(b"k" * 32, f"patient {i}") for i in range(1000)]
    assert len(set(names)) == 1000
    assert all(re.fullmatch("p[0-9a-f]{12}", name) for name in names)
    assert pseudonym(b"k" * 32, "patient 0") == names[0]
    assert pseudonym(b"l" * 32, "patient 0") != names[0]


def test_the_key_table_grows_and_stays_private(tmp_path: Path) -> None:
    remember(tmp_path / "secret", {"b": "p2"})
    path = remember(tmp_path / "secret", {"a": "p1"})
    assert path.read_text() == "subject,pseudonym\na,p1\nb,p2\n"
    assert path.stat().st_mode & 0o777 == 0o600
