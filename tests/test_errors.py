"""Error texts are public; the page of codes is complete."""

from pathlib import Path

from parametrium.errors import Code, CohortError, public_text

PAGE = Path(__file__).parent.parent / "docs" / "errors.md"


def test_codes_are_distinct() -> None:
    assert len({code.code for code in Code}) == len(Code)


def test_the_public_text_leaves_out_what_only_the_site_may_read() -> None:
    error = CohortError(Code.COHORT_UNREADABLE, "the table cannot be read", site_detail="/scans/DOE^JANE/cohort.csv")
    assert "DOE" not in str(error)
    assert "DOE" not in public_text(error)
    assert public_text(error).startswith("PM201 ")


def test_a_foreign_exception_is_reduced_to_its_class() -> None:
    text = public_text(FileNotFoundError("/scans/DOE^JANE/t1.nii.gz"))
    assert text == "PM901 an unexpected error; the site's own log has the details (FileNotFoundError)"


def test_the_page_lists_every_code_with_its_meaning() -> None:
    page = PAGE.read_text(encoding="utf-8")
    for code in Code:
        assert f"| {code.code} | {code.meaning} |" in page
