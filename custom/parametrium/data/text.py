"""Short texts of patients as vectors, by a small frozen encoder that the site installed.

A text is a report, or the clinical row in words. Neither texts nor vectors leave the site: they are a target that the
images' features are compared with, and no tensor of the encoder is trained or sent.

N texts, D channels of the encoder.
"""

import functools
import importlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parametrium.clinical.reading import missing_test
from parametrium.clinical.schema import encode
from parametrium.config import ClinicalVariable, TextConfig
from parametrium.config.clinical import MISSING_WORDS
from parametrium.data.cache import PreparedPatient
from parametrium.errors import Code, DataError

log = logging.getLogger(__name__)

TextEncoder = Callable[[list[str]], Any]
"""N texts to an array [N, D]."""

LONGEST = 4000
"""Characters of a text that are read: a short encoder sees no more, and a cell may be any size."""

_AT_ONCE = 256  # texts that are encoded together: a cohort is unbounded


def with_texts(
    patients: Sequence[PreparedPatient], variables: Sequence[ClinicalVariable], config: TextConfig, channels: int
) -> tuple[PreparedPatient, ...]:
    """The patients, each with the unit vector of its text; without one where it has no text.

    Args:
        patients: all of the site.
        variables: the job's clinical schema, for rows in words.
        config: encoder and source of the texts.
        channels: D that the job expects.

    Raises:
        DataError: PM304 when the encoder cannot be loaded, fails, or does not give N finite vectors of D channels.
    """
    texts = [text[:LONGEST] for text in texts_of(patients, variables, config.column)]
    told = [n for n, text in enumerate(texts) if text]
    if patients and not told:
        log.warning("no patient has a text: see whether site.text.column is a column of clinical.csv, and not empty")
    encoder = load_encoder(config.encoder)
    vectors: dict[int, NDArray[np.float32]] = {}
    for start in range(0, len(told), _AT_ONCE):
        rows = told[start : start + _AT_ONCE]
        for n, vector in zip(rows, _encoded(encoder, [texts[n] for n in rows], channels), strict=True):
            length = float(np.linalg.norm(vector))
            if length > 0:  # a text without a word that the encoder knows says nothing
                vectors[n] = (vector / length).astype(np.float32)
    return tuple(replace(patient, text=vectors.get(n)) for n, patient in enumerate(patients))


def texts_of(
    patients: Sequence[PreparedPatient], variables: Sequence[ClinicalVariable], column: str | None
) -> list[str]:
    """Patients' texts: the cell of the column, or what the row says of the job's variables; empty where there is none.

    A cell of marks alone or of a usual word for missing is no text. Values outside the schema and variables of weight 0
    are not told, as they do not enter the similarity.
    """
    rows = [patient.clinical for patient in patients]
    if column is not None:
        missing = missing_test(MISSING_WORDS)
        cells = [row.get(column, "").strip() for row in rows]
        return ["" if missing(cell) else cell for cell in cells]
    variables = [variable for variable in variables if variable.weight > 0]
    names = [variable.name for variable in variables]
    return [
        ", ".join(f"{n.replace('_', ' ')} {row[n].strip()}" for n, told in zip(names, observed, strict=True) if told)
        for row, observed in zip(rows, encode(rows, variables).observed, strict=True)
    ]


def load_encoder(name: str) -> TextEncoder:
    """The function that ``module:function`` names.

    Raises:
        DataError: PM304 when there is no such function.
    """
    module, _, function = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), function)
    except Exception as error:  # a package may fail in any way while it is imported
        raise DataError(
            Code.DATA_TEXT,
            "site.text.encoder cannot be loaded; it must be module:function of a package that is installed here",
            site_detail=f"{name}: {error}",
        ) from error
    if not callable(found):
        raise DataError(Code.DATA_TEXT, "site.text.encoder names something that is no function", site_detail=name)
    encoder: TextEncoder = found
    return encoder


def wordllama(texts: list[str]) -> NDArray[np.float32]:
    """[N, 256] of the package wordllama, from the weights that it ships; it never looks for others on the network."""
    vectors: NDArray[np.float32] = _wordllama().embed(texts)
    return vectors


@functools.cache
def _wordllama() -> Any:
    package = importlib.import_module("wordllama")
    # Its tokenizer is shipped in a folder where 0.4 does not look by itself: the package is named as its own cache.
    return package.WordLlama.load(cache_dir=Path(str(package.__file__)).parent, disable_download=True)


def _encoded(encoder: TextEncoder, texts: list[str], channels: int) -> NDArray[np.float32]:
    try:
        vectors = np.asarray(encoder(texts), dtype=np.float32)
    except Exception as error:  # the package's own words may quote a report
        raise DataError(Code.DATA_TEXT, "the text encoder failed", site_detail=type(error).__name__) from None
    if vectors.shape != (len(texts), channels):
        raise DataError(
            Code.DATA_TEXT,
            f"the text encoder gave an array {list(vectors.shape)} for {len(texts)} texts; the job's text_contrastive "
            f"has channels {channels}: install the encoder that the job is for, or ask for its channels",
        )
    if not np.isfinite(vectors).all():
        raise DataError(Code.DATA_TEXT, "the text encoder gave numbers that are not finite")
    return vectors
