"""Libraries that say nothing: their warnings and log lines hold header values."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from pydicom import config

_LOGGERS = ("pydicom", "highdicom", "pylibjpeg", "nibabel.global", "nibabel.nicom")


@contextmanager
def quiet() -> Iterator[None]:
    """Silences pydicom and what it calls, and lets it read values that break the standard.

    Everything that touches a DICOM file runs inside it. It changes the process: it is for workers, not for threads.
    """
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    before = [logger.disabled for logger in loggers]
    mode = config.settings.reading_validation_mode
    config.settings.reading_validation_mode = config.IGNORE
    try:
        for logger in loggers:
            logger.disabled = True
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        config.settings.reading_validation_mode = mode
        for logger, disabled in zip(loggers, before, strict=True):
            logger.disabled = disabled
