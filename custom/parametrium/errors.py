"""Errors with stable codes, whose text may leave a site.

    ParametriumError
    ├── ConfigError      a job or site config is wrong                         PM1xx
    ├── CohortError      the cohort table or a volume is wrong                 PM2xx
    ├── DataError        cache or loader cannot give what was asked            PM3xx
    ├── TrainingError    model, objective, optimiser or checkpoint             PM4xx
    ├── FederationError  an update, a round, a run or FLARE itself             PM5xx
    └── PolicyError      the site's policy says no                             PM6xx

``str(error)`` is the *public* text: code and message. It names the thing, what is allowed, what came and the remedy,
and never holds a path, a patient, a file name or a header value, because it may reach the server. What only the site
may read goes into ``site_detail``, which the command line prints on the site's own terminal and nothing else does.
"""

from enum import Enum


class Code(Enum):
    """Every error code, with its one-line meaning; ``docs/errors.md`` lists the same table (a test compares)."""

    CONFIG_UNREADABLE = "PM101", "the config file cannot be read as YAML"
    CONFIG_UNKNOWN_KEY = "PM102", "the config has a key that does not exist"
    CONFIG_INVALID_VALUE = "PM103", "a config value is missing, of the wrong type or out of range"
    CONFIG_PATH_IN_JOB = "PM104", "a job holds something that looks like a path"
    COHORT_UNREADABLE = "PM201", "the cohort table cannot be read"
    COHORT_EMPTY = "PM202", "no usable volume is left in the cohort"
    COHORT_VOLUME = "PM203", "a volume is left out of the cohort"
    COHORT_IMPORT = "PM204", "the source folder cannot be imported"
    COHORT_CLINICAL = "PM205", "a clinical value is not in the job's schema"
    DATA_CACHE = "PM301", "the cache is unusable or was made by other settings"
    DATA_BATCH = "PM302", "no objective finds anything to train on"
    DATA_LOADER = "PM303", "a loader process was killed"
    DATA_TEXT = "PM304", "texts cannot be encoded"
    MODEL_SHAPE = "PM401", "tensor shapes do not fit the model"
    TRAINING_NOT_FINITE = "PM402", "a loss or a gradient is not finite"
    CHECKPOINT_INVALID = "PM403", "a checkpoint is incomplete, damaged or of another model"
    TRAINING_UNAVAILABLE = "PM404", "a device or a setting that was asked for is not available"
    UPDATE_REJECTED = "PM501", "a site's update was rejected"
    ROUND_FAILED = "PM502", "fewer sites than the minimum answered a round, or none found anything to train on"
    RUN_INVALID = "PM503", "the run folder is missing, complete already or contradicts itself"
    TRAINER_FAILED = "PM504", "the trainer process ended or did not answer"
    FLARE_FAILED = "PM505", "FLARE did not bring the run to its end"
    EGRESS_REFUSED = "PM506", "something that is not on the list was about to leave the site"
    POLICY_REFUSED = "PM601", "the site's policy does not permit this job"
    UNEXPECTED = "PM901", "an unexpected error; the site's own log has the details"

    def __init__(self, code: str, meaning: str) -> None:
        self.code = code
        self.meaning = meaning


class ParametriumError(Exception):
    """Base of all errors of this package.

    Args:
        code: the stable code.
        message: public text; no path, patient, file name or header value.
        site_detail: text for the site's own terminal and log only.
    """

    def __init__(self, code: Code, message: str, *, site_detail: str = "") -> None:
        super().__init__(f"{code.code} {message}")
        self.code = code
        self.message = message
        self.site_detail = site_detail

    def __reduce__(self) -> tuple[object, ...]:  # without it an error from a worker process cannot be unpickled
        return _rebuild, (type(self), self.code, self.message, self.site_detail)


def _rebuild(kind: type[ParametriumError], code: Code, message: str, site_detail: str) -> ParametriumError:
    return kind(code, message, site_detail=site_detail)


class ConfigError(ParametriumError):
    """A job or site config is wrong."""


class CohortError(ParametriumError):
    """The cohort table or a volume is wrong."""


class DataError(ParametriumError):
    """Cache or loader cannot give what was asked."""


class TrainingError(ParametriumError):
    """Model, objective, optimiser or checkpoint."""


class FederationError(ParametriumError):
    """An update, a round, a run, or FLARE itself."""


class PolicyError(ParametriumError):
    """The site's policy does not permit what the job asks."""


def public_text(error: BaseException) -> str:
    """Text about an error that may leave the site: our own message, or only the class name of a foreign exception."""
    if isinstance(error, ParametriumError):
        return str(error)
    return f"{Code.UNEXPECTED.code} {Code.UNEXPECTED.meaning} ({type(error).__name__})"
