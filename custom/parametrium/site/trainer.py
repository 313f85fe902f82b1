"""One site's side of a run: opens the cohort, trains rounds, measures. FLARE-free."""

import csv
import logging
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from parametrium.cohort.manifest import Problem, read_cohort
from parametrium.config import JobConfig, SiteConfig, TextContrastiveConfig
from parametrium.data.cache import PreparedPatient
from parametrium.data.loader import CropLoader, stable_number
from parametrium.data.prepare import prepare_cohort
from parametrium.data.text import with_texts
from parametrium.errors import Code, TrainingError, public_text
from parametrium.evaluation.measure import measure_features, measure_reconstruction
from parametrium.evaluation.monitors import measure_monitors
from parametrium.objectives.schedule import CropPlan
from parametrium.privacy.policy import check_job, check_patients, enough_steps, templates_to_leave
from parametrium.site.moments import Moments
from parametrium.training.held_out import HeldOutLoss
from parametrium.training.round import set_tensors, train_round
from parametrium.training.step import new_state
from parametrium.training.update import Update, nothing

log = logging.getLogger(__name__)

GRAPHS = 32
"""That torch may compile of one encoder."""


class SiteTrainer:
    """Keeps a site's cohort, model and optimiser over the rounds of a run.

    Args:
        job: what is learned.
        site: where the data are, and the policy.
        run: the run's name.
        state: this site's folder for this run: optimiser, TensorBoard, problems, pictures and their page. It never
            leaves the site.
    """

    def __init__(self, job: JobConfig, site: SiteConfig, run: str, state: Path) -> None:
        self.job = job
        self.site = site
        self.run = run
        self.folder = state
        self.training: list[PreparedPatient] = []
        self.held_out: list[PreparedPatient] = []
        self.problems: tuple[Problem, ...] = ()

    def open(self) -> dict[str, float]:
        """Checks the policy, reads and prepares the cohort, builds the model.

        Returns:
            Counts with public names: ``site/patients``, ``site/held_out_patients``, ``site/volumes/<modality>``,
            ``site/problems/<reason>``.

        Raises:
            PolicyError: PM601.
            CohortError: PM201, PM202.
            DataError: PM304 when the site's text encoder does not work.
            TrainingError: PM404 when the device is not there.
        """
        check_job(self.job, self.site.policy)
        torch.set_num_threads(self.site.threads)
        cohort = read_cohort(Path(self.site.cohort), self.job.modalities)
        prepared = prepare_cohort(cohort, self.job.preparation, Path(self.site.cache), jobs=self.site.prepare_jobs)
        self.training, self.held_out = split(prepared.patients, self.job)
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.problems = prepared.problems
        write_problems(self.folder / "problems.csv", self.problems)
        check_patients(len(self.training), self.site.policy)
        self._read_texts()
        self.state = new_state(self.job, training_device(self.site.device))
        self.state.model.encoder.activation_checkpointing = self.site.activation_checkpointing
        self._leave_templates()
        if self.site.compile:
            require_compiler(self.state.device)
            # All objectives and measurements together need 8 graphs; beyond its limit, which is 8, torch compiles no
            # more and says so in a log alone.
            torch._dynamo.config.recompile_limit = GRAPHS
            self.state.model.encoder.compile()
        self.moments = Moments(self.folder / "optimiser", self.run, self.state)
        # Before the loader of training crops, whose volumes are the ones to keep in memory.
        self.held_out_loss = HeldOutLoss(self.held_out, self.job, self.site.site, self.state.model)
        plan = CropPlan(self.job, self.state.model)
        self.loader = CropLoader(self.training, self.job, self.site.site, plan, self.site.workers)
        self.writer = SummaryWriter(str(self.folder / "tensorboard"))
        return self._facts()

    def train(self, number: int, tensors: Mapping[str, Tensor]) -> Update:
        """Trains one round from the given global weights; the same again when the server asks for it again.

        What fewer steps trained than the site's policy permits stays here, and the round is idle.

        Raises:
            TrainingError: PM401 or PM402 as in ``train_round`` and ``set_tensors``; PM403 when the moments that
                an earlier process saved are damaged.
        """
        set_tensors(self.state, tensors)
        self._note_templates(number)
        self.moments.begin(number)
        update = train_round(self.state, self.loader, self.job, self.site.site, number)
        self.moments.end(number)
        self._log(update.scalars, number)
        if update.idle or enough_steps(update.steps, self.site.policy):
            return update
        return nothing(self.site.site, number)

    def evaluate(self, number: int, tensors: Mapping[str, Tensor], final: bool) -> dict[str, float]:
        """Measures the given global weights on held-out patients; the features only at the end of the run."""
        set_tensors(self.state, tensors)
        scalars = self._measure(number, final) if self.held_out else {}
        if final:
            self._write_page(number, scalars)
        return scalars

    def _measure(self, number: int, final: bool) -> dict[str, float]:
        site = self.site.site
        scalars = measure_reconstruction(self.state.model, self.training, self.held_out, self.job, site)
        scalars |= self.held_out_loss.measure(self.state)
        scalars |= measure_monitors(self.state.model, self.held_out, self.job, site)
        if final:
            scalars |= measure_features(self.state.model, self.training, self.held_out, self.job, site)
        if self.job.evaluation.pictures:
            self._draw(number, final)
        self._log(scalars, number)
        return scalars

    def close(self) -> None:
        """Ends the loader processes and flushes the site's own log."""
        self.loader.close()
        self.writer.close()

    def _read_texts(self) -> None:
        """Gives patients the vectors of their texts, where the job compares with them and the site has an encoder."""
        asked = next((config for config in self.job.objectives if isinstance(config, TextContrastiveConfig)), None)
        if asked is None or self.site.text is None:
            return
        patients = [*self.training, *self.held_out]
        told, training = with_texts(patients, self.job.clinical, self.site.text, asked.channels), len(self.training)
        self.training, self.held_out = list(told[:training]), list(told[training:])

    def _leave_templates(self) -> None:
        """Templates that the policy keeps from this site's patients stay as received, and are not sent."""
        templates = self.state.model.encoder.templates
        if templates is None:
            return
        own = [{volume.modality for volume in patient.volumes} for patient in self.training]
        patients = {modality: sum(modality in names for names in own) for modality in self.job.modalities}
        for modality in templates_to_leave(patients, self.site.policy):
            templates.template(modality).values.requires_grad_(False)
            if patients[modality]:
                log.warning(
                    "the template of %s is not trained here: there are fewer patients than the policy's "
                    "minimum_template_patients (%d)",
                    modality,
                    self.site.policy.minimum_template_patients,
                )

    def _note_templates(self, number: int) -> None:
        """Shows the templates that a round begins with; a round does not fail for a picture."""
        templates = self.state.model.encoder.templates
        if templates is None or not self.job.evaluation.pictures:
            return
        from parametrium.report.learned_templates import note_templates  # matplotlib: slow to load

        try:
            note_templates(templates, number, self.job, self.folder / "pictures", self.writer)
        except Exception as error:
            log.warning("the templates of round %d were not drawn: %s", number, public_text(error))

    def _facts(self) -> dict[str, float]:
        volumes = Counter(volume.modality for patient in self.training for volume in patient.volumes)
        reasons = Counter(problem.reason.value for problem in self.problems)
        facts: dict[str, float] = {
            "site/patients": len(self.training),
            "site/held_out_patients": len(self.held_out),
        }
        facts |= {f"site/volumes/{modality}": count for modality, count in sorted(volumes.items())}
        return facts | {f"site/problems/{reason}": count for reason, count in sorted(reasons.items())}

    def _draw(self, number: int, final: bool) -> None:
        """Rollouts of this round, for TensorBoard and for the pictures along the rounds; all pictures at the end."""
        # matplotlib is slow to load, and a job without pictures never needs it.
        from parametrium.report.pictures import draw_pictures, keep_rollouts
        from parametrium.report.scene import Scene

        model, job, site = self.state.model, self.job, self.site.site
        scene = Scene(model, job, site, self.held_out[: job.evaluation.patients], number)
        drawn = keep_rollouts(scene, self.folder / "pictures")
        if drawn is not None:
            self.writer.add_image("attention_rollout", drawn, number, dataformats="HWC")
        if final:
            draw_pictures(model, self.held_out, job, site, self.folder / "pictures", number)

    def _write_page(self, number: int, scalars: Mapping[str, float]) -> None:
        """The site's own page; a run does not fail for a page."""
        from parametrium.report.site import write_site_page  # with the pictures, hence matplotlib

        try:
            problems, site = self.problems, self.site.site
            write_site_page(self.folder, self.job, site, number, self.training, self.held_out, problems, scalars)
        except Exception as error:
            log.warning("the site's page was not written: %s", public_text(error))

    def _log(self, scalars: Mapping[str, float], number: int) -> None:
        for name, value in scalars.items():
            self.writer.add_scalar(name, value, number)
        self.writer.flush()


def split(patients: tuple[PreparedPatient, ...], job: JobConfig) -> tuple[list[PreparedPatient], list[PreparedPatient]]:
    """Training and held-out patients: as the cohort table says, otherwise by a hash of seed and pseudonym."""
    training: list[PreparedPatient] = []
    held_out: list[PreparedPatient] = []
    for patient in patients:
        share = stable_number(f"{job.seed}/{patient.name}") / 2**32
        test = patient.split == "test" if patient.split else share < job.evaluation.holdout_fraction
        (held_out if test else training).append(patient)
    return training, held_out


def training_device(name: str) -> torch.device:
    """The device a site config names; auto takes the GPU where there is one.

    Raises:
        TrainingError: PM404 when a GPU is named that is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise TrainingError(
            Code.TRAINING_UNAVAILABLE,
            f"site.device is {name}, but {torch.cuda.device_count()} GPUs are visible; use auto or cpu",
        )
    return device


def require_compiler(device: torch.device) -> None:
    """Compiles a line of code, so that what is missing is said before the first round.

    Raises:
        TrainingError: PM404 when torch cannot compile on this machine.
    """
    try:
        torch.compile(lambda x: x * 2 + 1)(torch.ones(8, device=device))
    except Exception as error:
        raise TrainingError(
            Code.TRAINING_UNAVAILABLE,
            f"site.compile is true, but torch cannot compile here ({type(error).__name__}); install a C++ compiler "
            "(Debian: g++) or set it to false",
            site_detail=str(error),
        ) from error


def write_problems(path: Path, problems: tuple[Problem, ...]) -> None:
    """The site's own list of what was left out, by pseudonym and reason; readable by its owner alone."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["patient", "modality", "reason"])
        writer.writerows([problem.patient, problem.modality, problem.reason.value] for problem in problems)
