"""A run at one site without a federation."""

import time
from pathlib import Path

from parametrium.config import JobConfig, SiteConfig
from parametrium.errors import Code, ParametriumError, TrainingError
from parametrium.site.trainer import SiteTrainer
from parametrium.training.aggregation import aggregate
from parametrium.training.round import evaluation_due
from parametrium.training.run_folder import IDLE, IDLE_REMEDY, RunFolder, contribution_of
from parametrium.training.update import check_update
from parametrium.training.warm_start.start import open_start


def train_locally(job: JobConfig, site: SiteConfig, out: Path, start: Path | None = None) -> Path:
    """The job's rounds at one site, without a federation: the same training, checks and aggregation.

    Args:
        job: what is learned; ``minimum_sites`` counts this one site.
        site: where the data are.
        out: the run folder; must not hold a run.
        start: a checkpoint that fits the job; None: the job's own initial values.

    Returns:
        The run folder, with its manifest.

    Raises:
        ParametriumError: the manifest then says so, too; PM302 when a round found nothing to train on.
    """
    folder = RunFolder(out, job)
    folder.require_new()
    tensors, folder.start = open_start(job, start)
    folder.create()
    trainer = SiteTrainer(job, site, job.name, out / "sites" / site.site)
    rounds = 0
    try:
        facts = trainer.open()
        model = tensors
        folder.save_model(0, model)
        folder.add_evaluation(0, site.site, facts | trainer.evaluate(0, model, final=False))
        for number in range(job.rounds):
            started = time.monotonic()
            update = trainer.train(number, model)
            check_update(update, model, round_number=number, max_norm=job.aggregation.max_update_norm)
            if update.idle:
                raise TrainingError(Code.DATA_BATCH, f"round {number}: at this site {IDLE}; {IDLE_REMEDY}")
            model = aggregate(
                model,
                [update],
                rule=job.aggregation.rule,
                server_learning_rate=job.aggregation.server_learning_rate,
            )
            contribution = contribution_of(update, trainer.state.owners)
            folder.add_round(number, [contribution], {site.site: update.scalars}, time.monotonic() - started)
            folder.save_model(number + 1, model)
            rounds = number + 1
            if evaluation_due(job, rounds):
                scalars = trainer.evaluate(rounds, model, final=rounds == job.rounds)
                folder.add_evaluation(rounds, site.site, scalars)
                if folder.verdict().stopped_by:
                    break
        best = folder.verdict().best_round
        if best is not None and not best == rounds == job.rounds:
            folder.add_evaluation(best, site.site, trainer.evaluate(best, folder.model(best), final=True))
        trainer.close()
    except ParametriumError as error:
        folder.finish(rounds, [site.site], error)
        raise
    folder.finish(rounds, [site.site])
    return out
