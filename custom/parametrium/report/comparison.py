"""The model beside its controls: what was measured at each site, as data.

A number of a trained model means nothing alone. Every measurement therefore carries the same number of predictors that
did not learn from the scans; ``privacy/egress.py`` lists the scalars' names.
"""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import permutations
from pathlib import Path

from parametrium.report.record import RunRecord, Scalars, read_run

RECONSTRUCTION_CONTROLS = ("before", "untrained", "modality_mean", "neighbour_mean")
FEATURE_CONTROLS = ("untrained", "body_mask", "voxels", "chance")
RECALLS = {"r1": "R@1", "r5": "R@5"}
SCORES = {"spearman": "Spearman correlation", "balanced_accuracy": "balanced accuracy"}


@dataclass(frozen=True)
class Measurement:
    """One number of the model at one site, beside the same number of each control.

    Attributes:
        site: name of the site, or a text where several sites are summarised.
        kind: ``reconstruction``, ``retrieval`` or ``probe``.
        subject: ``CT``; ``CT-T2``; the clinical variable.
        score: ``mean squared error``, ``R@1``, ...
        size: held-out volumes, candidates; 0 where it is not known.
        rounds: after so many rounds.
        model: of the trained model; None where the run has no measurement after a round.
        controls: by name, in the order of the tables.
        lower_is_better: True for errors.
    """

    site: str
    kind: str
    subject: str
    score: str
    size: int
    rounds: int
    model: float | None
    controls: dict[str, float]
    lower_is_better: bool

    @property
    def what(self) -> str:
        """Name in one line, for instance ``reconstruction CT`` or ``retrieval CT-T2 R@1``."""
        return f"{self.kind} {self.subject}" + ("" if self.kind == "reconstruction" else f" {self.score}")

    @property
    def best_control(self) -> float | None:
        """The value that the model has to beat."""
        choose = min if self.lower_is_better else max
        return choose(self.controls.values()) if self.controls else None

    @property
    def best(self) -> list[str]:
        """Names of those with the best value, ``model`` first; several in a tie."""
        values = ({} if self.model is None else {"model": self.model}) | self.controls
        choose = min if self.lower_is_better else max
        top = choose(values.values(), default=None)
        return [name for name, value in values.items() if value == top]

    @property
    def decidable(self) -> bool:
        """False where nothing could be better than chance: R@5 among five candidates or fewer."""
        return self.lower_is_better or self.controls.get("chance", 0.0) < 1

    @property
    def beats_all(self) -> bool:
        """Whether the model is better than every control; a tie is not better."""
        return self.best == ["model"] and bool(self.controls)


@dataclass(frozen=True)
class Comparison:
    """The model against one control.

    Attributes:
        site: name of the site.
        what: for instance ``reconstruction CT`` or ``retrieval CT-T2 R@1``.
        model: the model's value.
        control: one of ``RECONSTRUCTION_CONTROLS`` or ``FEATURE_CONTROLS``.
        value: the control's value.
        better: whether the model is strictly better; lower for a reconstruction error, higher otherwise.
    """

    site: str
    what: str
    model: float
    control: str
    value: float
    better: bool


def comparisons(run: Path | RunRecord) -> list[Comparison]:
    """The final model against every control, at every site; recalls are means over the site's ordered pairs.

    A recall whose chance is 1 is left out: nothing can be better.
    """
    record = read_run(run)
    found = []
    for m in [*reconstructions(record), *over_pairs(retrievals(record)), *probes(record)]:
        if m.model is None or not m.decidable:
            continue
        for control, value in m.controls.items():
            better = m.model < value if m.lower_is_better else m.model > value
            found.append(Comparison(m.site, m.what, m.model, control, value, better))
    return found


def reconstructions(run: RunRecord) -> list[Measurement]:
    """Held-out reconstruction error, by site and modality, of the last evaluation."""
    found = []
    for site in run.sites:
        rounds, after = run.after(site)
        before = run.before(site)
        for modality in _middles({**before, **after}, "evaluation/reconstruction/"):
            prefix = f"evaluation/reconstruction/{modality}/"
            known = after if f"{prefix}model" in after else before
            controls = {"before": before.get(f"{prefix}model")}
            controls |= {name: known.get(prefix + name) for name in RECONSTRUCTION_CONTROLS[1:]}
            size = int(known.get(f"evaluation/reconstruction_volumes/{modality}", 0))
            model = after.get(f"{prefix}model")
            found.append(
                Measurement(
                    site, "reconstruction", modality, "mean squared error", size, rounds, model, _known(controls), True
                )
            )
    return _ordered(run, found)


def retrievals(run: RunRecord) -> list[Measurement]:
    """Cross-modal retrieval, by site, ordered pair of modalities and recall, of the last evaluation."""
    found = []
    for site in run.sites:
        rounds, after = run.after(site)
        for pair in _middles(after, "evaluation/retrieval/"):
            size = int(after.get(f"evaluation/retrieval/{pair}/candidates", 0))
            for recall, score in RECALLS.items():
                prefix = f"evaluation/retrieval/{pair}/{recall}/"
                if f"{prefix}model" in after:
                    controls = _known({name: after.get(prefix + name) for name in FEATURE_CONTROLS})
                    model = after[f"{prefix}model"]
                    found.append(Measurement(site, "retrieval", pair, score, size, rounds, model, controls, False))
    return _ordered(run, found)


def probes(run: RunRecord) -> list[Measurement]:
    """The linear probe and that of pooled volumes, by site, of the last evaluation."""
    variable = (run.job.evaluation.probe if run.job else None) or "variable"
    found = []
    for site in run.sites:
        rounds, after = run.after(site)
        size = int(run.facts(site).get("site/held_out_patients", 0))
        for score, title in SCORES.items():
            prefix = f"evaluation/probe/{score}/"
            if f"{prefix}model" in after:
                controls = _known({name: after.get(prefix + name) for name in FEATURE_CONTROLS})
                found.append(
                    Measurement(site, "probe", variable, title, size, rounds, after[f"{prefix}model"], controls, False)
                )
            if f"{prefix}pooled" in after:
                own = {"untrained": after.get(f"{prefix}pooled_untrained"), "chance": after.get(f"{prefix}chance")}
                pooled, subject = after[f"{prefix}pooled"], f"{variable}, pooled volumes"
                found.append(Measurement(site, "probe", subject, title, size, rounds, pooled, _known(own), False))
    return found


def over_sites(measurements: Sequence[Measurement]) -> list[Measurement]:
    """One measurement for all sites that have it: medians of the model and of each control; sizes add up."""
    groups: dict[tuple[str, str], list[Measurement]] = {}
    for m in measurements:
        groups.setdefault((m.subject, m.score), []).append(m)
    return [_median(group) for group in groups.values()]


def over_pairs(measurements: Sequence[Measurement]) -> list[Measurement]:
    """One retrieval measurement a site and recall: means over the site's ordered pairs of modalities.

    With a dozen candidates one pair's recall is mostly chance; the pairs of a site together say more. A pair whose
    recall is 1 by chance is left out.
    """
    groups: dict[tuple[str, str], list[Measurement]] = {}
    for m in measurements:
        if m.decidable:
            groups.setdefault((m.site, m.score), []).append(m)
    return [_mean(group, f"{len(group)} pairs") for group in groups.values()]


def all_sites(measurements: Sequence[Measurement]) -> list[Measurement]:
    """One measurement a recall for the federation: means over the sites' means of ``over_pairs``."""
    groups: dict[str, list[Measurement]] = {}
    for m in measurements:
        groups.setdefault(m.score, []).append(m)
    means = [_mean(group, "all pairs") for group in groups.values() if len(group) > 1]
    return [replace(mean, site="all sites") for mean in means]


def _mean(group: Sequence[Measurement], subject: str) -> Measurement:
    first = group[0]
    trained = [m.model for m in group if m.model is not None]
    names = [name for name in first.controls if all(name in m.controls for m in group)]
    return replace(
        first,
        subject=subject,
        size=min(m.size for m in group),
        model=statistics.fmean(trained) if trained else None,
        controls={name: statistics.fmean(m.controls[name] for m in group) for name in names},
    )


def _median(group: Sequence[Measurement]) -> Measurement:
    first = group[0]
    trained = [m.model for m in group if m.model is not None]
    names = [name for name in first.controls if all(name in m.controls for m in group)]
    return Measurement(
        site=f"median of {len(group)} sites",
        kind=first.kind,
        subject=first.subject,
        score=first.score,
        size=sum(m.size for m in group),
        rounds=min(m.rounds for m in group),
        model=statistics.median(trained) if trained else None,
        controls={name: statistics.median(m.controls[name] for m in group) for name in names},
        lower_is_better=first.lower_is_better,
    )


def _ordered(run: RunRecord, found: Iterable[Measurement]) -> list[Measurement]:
    """In the order of the job's modalities within a site."""
    names = run.job.modalities if run.job else ()
    order = [*names, *(f"{a}-{b}" for a, b in permutations(names, 2))]
    place = {subject: index for index, subject in enumerate(order)}
    return sorted(found, key=lambda m: (m.site, place.get(m.subject, len(order))))


def _middles(scalars: Scalars, prefix: str) -> list[str]:
    """The words that follow a prefix in the scalars' names, each once."""
    return list(dict.fromkeys(name[len(prefix) :].split("/")[0] for name in scalars if name.startswith(prefix)))


def _known(values: dict[str, float | None]) -> dict[str, float]:
    return {name: value for name, value in values.items() if value is not None}
