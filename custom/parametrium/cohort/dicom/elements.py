"""Values of a data set's elements, read so that no broken value raises: it is None, or empty."""

import math
from datetime import date, datetime, time
from io import BytesIO
from typing import Any, BinaryIO

from pydicom.datadict import tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.filereader import read_sequence

_MAXIMUM_READS = 1_000_000  # 10 s and 300 MB at worst; a frame of an enhanced header takes 100 to 300
_MAXIMUM_BYTES = 2**27  # all of a header that is looked at; a frame's functional groups take some kilobytes

# Of objects whose header is their content, by the file's size. A contour of undefined length takes 20 to 40 reads and
# is seldom smaller than a kilobyte, a frame of a segmentation takes 90; each is passed over up to four times.
_BYTES_A_READ = 20
_PASSES = 5
_MOST_READS_OF_CONTENT = 3_000_000  # 100,000 such contours; measured at worst, on 120 MB of empty elements: 1.2 GB
_MOST_BYTES_OF_CONTENT = 2**31  # a file of 400 MB; an honest one of 100 MB takes 300 MB of memory, read to its contours

_MAXIMUM_VALUE = 2**16  # bytes of a single text or number


Tag = str | int
"""A keyword of the standard's dictionary, or the number of a private element."""


class BudgetSpentError(Exception):
    """A header asks for more work than any honest one."""


class Budget:
    """How much of one file's header may still be read; for one reading of it.

    Args:
        content: bytes of a file whose header is its content, as of a structure set; 0 where the content are pixels.
    """

    def __init__(self, content: int = 0) -> None:
        self.reads = max(_MAXIMUM_READS, min(content // _BYTES_A_READ, _MOST_READS_OF_CONTENT))
        self.bytes = max(_MAXIMUM_BYTES, min(content * _PASSES, _MOST_BYTES_OF_CONTENT))

    def metered(self, stream: BinaryIO) -> BinaryIO:
        """The stream, with its reads counted."""
        return _Metered(stream, self)  # type: ignore[return-value]  # pydicom needs read, seek and tell

    def spend(self, size: int) -> None:
        """Counts one read."""
        self.reads -= 1
        self.bytes -= size
        self.require()

    def require(self) -> None:
        """Gives the file up where nothing is left; pydicom makes other errors of this one, so it is asked again."""
        if self.reads < 0 or self.bytes < 0:
            raise BudgetSpentError

    def refuse(self) -> None:
        """Gives the file up."""
        self.reads = -1
        self.require()


class _Metered:
    """What pydicom reads from."""

    def __init__(self, stream: BinaryIO, budget: Budget) -> None:
        self._stream = stream
        self._budget = budget
        self.seek = stream.seek
        self.tell = stream.tell

    def read(self, size: int = -1) -> bytes:
        # Never more than the budget in one piece: a length field may say 4 GiB, and Python reserves what it says.
        data = self._stream.read(min(size, self._budget.bytes + 1) if size >= 0 else self._budget.bytes + 1)
        self._budget.spend(len(data))
        return data


class Elements:
    """A data set, or an item of a sequence, and what is left of its file's budget."""

    def __init__(self, dataset: Dataset, budget: Budget) -> None:
        self._dataset = dataset
        self._budget = budget

    def __contains__(self, tag: Tag) -> bool:
        return tag_number(tag) in self._dataset

    def value(self, tag: Tag) -> Any:
        """The value as pydicom converts it; None where absent, empty, oversized or broken."""
        try:
            raw = self._dataset.get_item(tag_number(tag))
            if raw is None or (isinstance(raw, RawDataElement) and raw.length > _MAXIMUM_VALUE):
                return None
            return self._dataset[tag_number(tag)].value
        except Exception:  # pydicom raises nearly anything for a broken value; each means the same here
            return None

    def numbers(self, tag: Tag) -> tuple[float, ...]:
        """Finite numbers; empty where any is not one."""
        return as_numbers(self.value(tag))

    def number(self, tag: Tag) -> float | None:
        """The first number."""
        numbers = self.numbers(tag)
        return numbers[0] if numbers else None

    def integer(self, tag: Tag) -> int | None:
        """The first number where it is whole."""
        number = self.number(tag)
        return int(number) if number is not None and number == int(number) else None

    def words(self, tag: Tag) -> tuple[str, ...]:
        """The values as texts in upper case, without the empty ones at the end."""
        words = [word.upper() for word in _texts(self.value(tag))]
        while words and not words[-1]:
            words.pop()
        return tuple(words)

    def word(self, tag: Tag) -> str:
        """The first word."""
        words = self.words(tag)
        return words[0] if words else ""

    def text(self, tag: Tag) -> str:
        """The text as it stands, stripped."""
        return "\\".join(_texts(self.value(tag)))

    def date(self, tag: Tag) -> date | None:
        """DA."""
        return as_date(self.text(tag))

    def time(self, tag: Tag) -> time | None:
        """TM."""
        return as_time(self.text(tag))

    def moment(self, tag: Tag) -> datetime | None:
        """DT, without its offset from UTC."""
        text = self.text(tag)
        day, hour = as_date(text[:8]), as_time(text[8:].partition("+")[0].partition("-")[0])
        return datetime.combine(day, hour) if day and hour else None

    def octets(self, tag: Tag) -> bytes:
        """The value's bytes as the file holds them."""
        try:
            raw = self._dataset.get_item(tag_number(tag))
            value = raw.value if raw is not None else None
        except Exception:
            return b""
        return bytes(value) if isinstance(value, bytes | bytearray) else b""

    def items(self, tag: Tag) -> list["Elements"]:
        """The items of a sequence; empty where there is none.

        Raises:
            BudgetSpentError: the sequence is larger than any honest one.
        """
        try:
            raw = self._dataset.get_item(tag_number(tag))
            if raw is None:
                return []
            if isinstance(raw, RawDataElement):
                # Not through the data set: it would parse without counting.
                stream = self._budget.metered(BytesIO(raw.value or b""))
                implicit = raw.is_implicit_VR or raw.VR == "UN"
                items = read_sequence(stream, implicit, raw.is_little_endian, len(raw.value or b""), "iso8859")
            else:
                items = raw.value
            return [Elements(item, self._budget) for item in items]
        except Exception:
            self._budget.require()
            return []

    def item(self, tag: Tag) -> "Elements | None":
        """The first item of a sequence."""
        items = self.items(tag)
        return items[0] if items else None

    def private(self, group: int, creator: str, element: int) -> int | None:
        """Tag of a private element in its creator's block (PS3.5 7.8.1); None where absent."""
        for block in PRIVATE_BLOCKS:
            if self.text(group << 16 | block).upper() == creator.upper():
                tag = group << 16 | block << 8 | element
                return tag if tag in self else None
        return None

    def private_numbers(self, group: int, creator: str, element: int) -> tuple[float, ...]:
        """Numbers of a private element, whose VR is often lost on its way."""
        tag = self.private(group, creator, element)
        if tag is None:
            return ()
        value = self.value(tag)
        if isinstance(value, bytes):
            text = value.decode("latin-1").strip("\0 ")
            value = text.split("\\")
        return as_numbers(value)


PRIVATE_BLOCKS = range(0x10, 0x15)
"""Blocks that are searched for a private creator."""


def tag_number(tag: Tag) -> int:
    """The tag's number."""
    known = tag if isinstance(tag, int) else tag_for_keyword(tag)
    if known is None:
        raise KeyError(tag)
    return known


def private_tags(group: int, *elements: int) -> list[int]:
    """Tags to read for private elements, whichever block they are in."""
    creators = [group << 16 | block for block in PRIVATE_BLOCKS]
    return creators + [group << 16 | block << 8 | element for block in PRIVATE_BLOCKS for element in elements]


def as_numbers(value: Any) -> tuple[float, ...]:
    """Finite numbers of a value or a list of values; empty where any is not one."""
    if value is None or value == "" or isinstance(value, bytes):
        return ()
    try:
        values = [value] if isinstance(value, str | int | float) or not hasattr(value, "__iter__") else list(value)
        numbers = tuple(float(part) for part in values)
    except (TypeError, ValueError, ArithmeticError):
        return ()
    return numbers if all(math.isfinite(number) for number in numbers) else ()


def as_date(text: str) -> date | None:
    """YYYYMMDD, or YYYY.MM.DD of the standard before 1993."""
    digits = text.replace(".", "").replace("-", "")[:8]
    try:
        return date(int(digits[:4]), int(digits[4:6]), int(digits[6:8])) if len(digits) == 8 else None
    except ValueError:
        return None


def as_time(text: str) -> time | None:
    """HH, HHMM, HHMMSS or HHMMSS.FFFFFF."""
    digits, _, fraction = text.replace(":", "").strip().partition(".")
    try:
        hour, minute, second = (int(digits[place : place + 2] or 0) for place in (0, 2, 4))
        return time(hour, minute, second, int(fraction[:6].ljust(6, "0"))) if digits else None
    except ValueError:
        return None


def _texts(value: Any) -> list[str]:
    if value is None or isinstance(value, bytes):
        return []
    values = value if isinstance(value, list | tuple) or type(value).__name__ == "MultiValue" else [value]
    try:
        return [str(part).strip("\0 \t\r\n") for part in values]
    except Exception:
        return []
