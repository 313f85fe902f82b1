"""What a stack of DICOM slices is for us, and which rule said so.

Facts come first, because they are written by the scanner; then the hospital's own ``series_rules``; then words that
people everywhere use in descriptions, whose answer is marked as unsure. A rule with ``over_facts`` comes before the
facts. What can hold text in its pixels, and what is no volume, is left out before any rule is asked.

A ``Choice`` holds words of this package only. Descriptions are read here and end here.
"""

from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import lru_cache

import regex

from parametrium.cohort.dicom.cone_beam import is_cone_beam, is_megavoltage
from parametrium.cohort.dicom.contrast import contrast, enhanced, is_diffusion_coefficient
from parametrium.cohort.dicom.exclusion import is_secondary, left_out, no_volume, scanner_of
from parametrium.cohort.dicom.facts import Choice, Facts
from parametrium.cohort.dicom.words import (
    is_attenuation_uncorrected,
    is_contrast_enhanced,
    is_localiser,
    modality_of,
    modality_of_series,
)
from parametrium.cohort.problem import Reason
from parametrium.config import SeriesRule

TOO_LONG = "ran too long"
"""Behind a rule's name where its expression found no end; it then counts as no match."""

_LENGTH = 64  # of a text in the header (LO, PS3.5 6.2)
_LIMIT_S = (
    0.1  # of processor time for one text, where honest expressions take microseconds; nested repetition, centuries
)


def choose(facts: Facts, rules: Sequence[SeriesRule], wanted: Collection[str]) -> Choice:
    """Decides one stack; never raises, and the same facts always give the same answer.

    Args:
        facts: of the stack.
        rules: the site's ``series_rules``, first match counts.
        wanted: modalities to import; another is left out with ``Reason.MODALITY_NOT_WANTED``.

    Returns:
        Either a modality or a reason, with the rule that decided: ``facts: ...``, ``words: ...``, ``series_rules[n]``
        (counted from 0), or ``no rule``; behind it, ``series_rules[n] ran too long`` for each that was given up.
    """
    choice = no_volume(facts) or _decide(facts, rules)
    if choice.modality is None or choice.modality in wanted:
        return choice
    return Choice(None, choice.rule, Reason.MODALITY_NOT_WANTED, choice.sure)


def _decide(facts: Facts, rules: Sequence[SeriesRule]) -> Choice:
    matching, endless = _asked(facts, rules)
    choice = _decided(facts, matching)
    told = "; ".join([choice.rule, *(f"series_rules[{index}] {TOO_LONG}" for index in endless)])
    return replace(choice, rule=told) if endless else choice


def _decided(facts: Facts, matching: Sequence[tuple[int, SeriesRule]]) -> Choice:
    for index, rule in matching:
        if rule.over_facts:
            return _ruled(index, rule)
    told = _from_facts(facts)
    if told is not None and told.reason not in (None, Reason.NO_MODALITY):
        return _unless_named(told, facts)
    if told is not None and told.modality is not None:
        return told if matching else _refined(told, facts)
    if matching:
        return _ruled(*matching[0])
    return told or _from_words(facts)


def _asked(facts: Facts, rules: Sequence[SeriesRule]) -> tuple[list[tuple[int, SeriesRule]], list[int]]:
    """The rules that match, with their numbers; and the numbers of those that were given up."""
    texts = (facts.description[:_LENGTH], facts.protocol[:_LENGTH])
    matching, endless = [], []
    for index, rule in enumerate(rules):
        if rule.scanner not in (None, facts.modality):
            continue
        found = [_found(rule.match, text) for text in texts]
        if None in found:
            endless.append(index)
        elif any(found):
            matching.append((index, rule))
    return matching, endless


@lru_cache(maxsize=4096)  # a hospital has few descriptions: what runs too long does so once a description
def _found(expression: str, text: str) -> bool | None:
    """Whether an expression is found in a text; None where that takes too long to tell."""
    try:
        return regex.compile(expression, regex.IGNORECASE).search(text, timeout=_LIMIT_S) is not None
    except TimeoutError:
        return None


def _ruled(index: int, rule: SeriesRule) -> Choice:
    """A rule without modality is the hospital's word that it does not want the series."""
    reason = Reason.MODALITY_NOT_WANTED if rule.modality is None else None
    return Choice(rule.modality, f"series_rules[{index}]", reason)


def _from_facts(facts: Facts) -> Choice | None:
    """What the header alone says; None where it says nothing, ``Reason.NO_MODALITY`` where it names no word of ours."""
    scanner = scanner_of(facts)
    if scanner in ("CT", "MR", "PT") and facts.modality in ("CT", "MR", "PT", "NM") and scanner != facts.modality:
        return Choice(None, "facts: SOP class and modality disagree", Reason.NO_MODALITY)
    if scanner == "MR" and is_diffusion_coefficient(facts):
        return Choice("ADC", "facts: apparent diffusion coefficient")
    excluded = left_out(facts)
    if excluded is not None:
        return excluded
    if is_cone_beam(facts):
        return Choice("CBCT", "facts: cone-beam system")
    if scanner == "PT":
        if facts.attenuation_corrected is False:
            return Choice(None, "facts: PET without attenuation correction", Reason.NO_ATTENUATION_CORRECTION)
        return Choice("PET", "facts: PET volume")
    if is_secondary(facts):
        return Choice(None, "facts: image type derived and secondary", Reason.DERIVED)
    if scanner == "MR":
        return contrast(facts)
    if is_megavoltage(facts):
        return Choice(None, "facts: megavoltage CT", Reason.NO_MODALITY)
    return Choice("CT", "facts: CT volume")


def _unless_named(told: Choice, facts: Facts) -> Choice:
    """An ADC map that its maker marked as derived and as nothing else is known by its name only."""
    if told.reason is Reason.DERIVED and is_secondary(facts) and scanner_of(facts) == "MR":
        named = modality_of_series(facts)
        if named is not None and named.modality == "ADC":
            return named
    return told


def _refined(told: Choice, facts: Facts) -> Choice:
    """What people write and headers may not hold: localisers, uncorrected PET, cone-beam systems, agents, preparations.

    Words mend what the facts leave open and never turn over what they measured.
    """
    if is_localiser(facts):
        return Choice(None, "words: localiser", Reason.LOCALISER, sure=False)
    if told.modality == "PET" and is_attenuation_uncorrected(facts):
        return Choice(None, "words: no attenuation correction", Reason.NO_ATTENUATION_CORRECTION, sure=False)
    named = modality_of_series(facts)
    match told.modality:
        case "CT" if named is not None and named.modality == "CBCT":
            return named
        case "T1" | "T1c" | "DCE" if named is not None and named.reason is not None:
            return named  # angiography and maps have the parameters of T1
        case "T1":
            return _refined_t1(told, named, facts)
        case "T2" if named is not None:
            return _refined_t2(told, named, facts)
    return told


def _refined_t1(told: Choice, named: Choice | None, facts: Facts) -> Choice:
    """T1 without a named agent: several times are a dynamic series only where words say so."""
    if facts.time_points > 1 or facts.contrast_phase:
        if named is not None and named.modality == "DCE":
            return named
        return Choice(None, f"{told.rule}, several times, no agent", Reason.NO_MODALITY)
    if is_contrast_enhanced(facts):
        return Choice("T1c", f"{told.rule}; words: contrast", sure=False)
    return told


def _refined_t2(told: Choice, named: Choice, facts: Facts) -> Choice:
    """Diffusion and FLAIR have the TR and TE of T2; where b-value or TI is absent, words tell them."""
    if named.modality == "DWI" and facts.b_value == 0:
        return Choice(None, "words: dwi; facts: b-value 0", Reason.NO_MODALITY, sure=False)
    if named.modality == "DWI" or (named.modality == "FLAIR" and not facts.inversion_time_ms):
        return named
    # A dual echo is named after both; its long echo is T2 whatever the name begins with.
    return named if named.reason is not None and named.rule != "words: proton density" else told


def _from_words(facts: Facts) -> Choice:
    if is_localiser(facts):
        return Choice(None, "words: localiser", Reason.LOCALISER, sure=False)
    named = modality_of(facts) if scanner_of(facts) == "MR" else None
    if named is None:
        return Choice(None, "no rule", Reason.NO_MODALITY)
    if named.modality == "T1" and not facts.contrast_agent and is_contrast_enhanced(facts):
        return Choice("T1c", "words: t1, contrast", sure=False)
    return enhanced(named, facts)
