"""Configs are strict, and their messages name the key, the allowed and the received."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from parametrium.config import (
    DefacingConfig,
    JobConfig,
    PolicyConfig,
    SiteConfig,
    job_schema,
    load_job,
    load_site,
    parse_job,
    site_schema,
)
from parametrium.errors import ConfigError

ROOT = Path(__file__).parent.parent
MINIMAL: dict[str, Any] = {
    "name": "x",
    "modalities": ["CT", "T1"],
    "objectives": [{"kind": "masked_reconstruction"}],
}


def refusal(**changes: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_job({**MINIMAL, **changes})
    return str(caught.value)


def test_a_text_that_softens_nothing_needs_no_weighed_variable() -> None:
    text = {"kind": "text_contrastive", "softness": 0.0}
    changes = {"clinical": [AGE | {"weight": 0.0}], "objectives": [text], "evaluation": {"probe": "age"}}
    assert parse_job({**MINIMAL, **changes}).evaluation.probe == "age"


def test_a_minimal_job_has_defaults() -> None:
    job = parse_job(MINIMAL)
    assert job.total_steps == job.rounds * job.local_steps


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"roundz": 3}, ["PM102", "job.roundz", "'rounds'"]),
        ({"optimiser": {"learnin_rate": 1.0}}, ["PM102", "job.optimiser.learnin_rate", "'learning_rate'"]),
        (
            {"objectives": [{"kind": "masked_reconstruction", "mask_rato": 0.5}]},
            ["PM102", "job.objectives.0.mask_rato", "'mask_ratio'"],
        ),
        ({"objectives": []}, ["PM103", "job.objectives", "at least 1 item"]),
        (
            {"objectives": [{"kind": "global_local", "local_edges": []}]},
            ["PM103", "job.objectives.0.local_edges", "at least 1 item"],
        ),
        ({"objectives": [{"kind": "mae"}]}, ["PM103", "job.objectives.0", "'mae'", "masked_reconstruction"]),
        ({"rounds": "3"}, ["PM103", "job.rounds", "integer", "'3'"]),
        ({"rounds": 0}, ["PM103", "job.rounds", "1", "0"]),
        ({"crop": [48, 48, 44]}, ["PM103", "crop", "multiple", "8"]),
        ({"modalities": ["DOSE"]}, ["PM103", "DOSE", "preparation.intensity.DOSE"]),
        ({"modalities": ["CT", "CT"]}, ["PM103", "differ"]),
        ({"evaluation": {"probe": "age"}}, ["PM103", "evaluation.probe"]),
        ({"name": "/data/x"}, ["PM104", "job.name", "path"]),
        ({"name": "x.nii"}, ["PM104"]),
    ],
)
def test_a_wrong_job_is_refused_by_name(changes: dict[str, Any], parts: list[str]) -> None:
    message = refusal(**changes)
    for part in parts:
        assert part in message


AGE = {"kind": "continuous", "name": "age", "unit": "years", "lower": 18.0, "upper": 100.0, "sigma": 10.0}


def _begun(kind: str, **settings: Any) -> dict[str, Any]:
    return {"objectives": [{"kind": "masked_reconstruction"}, {"kind": kind, **settings}]}


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"modalities": ["CT"], **_begun("cross_modal_reconstruction")}, ["needs two modalities"]),
        ({"modalities": ["CT"], **_begun("cross_modal_synthesis")}, ["cross_modal_synthesis", "two modalities"]),
        ({"batch": {"patients": 1}, **_begun("isotropy")}, ["isotropy", "batch.patients must be at least 2"]),
        ({"batch": {"patients": 1}, **_begun("global_local")}, ["global_local", "at least 2"]),
        (_begun("soft_contrastive", patients=1), ["job.objectives.1.patients", "2"]),
        ({"crop": [8, 8, 8]}, ["masked_reconstruction", "more than one"]),
        ({"crop": [8, 8, 8], "objectives": [{"kind": "latent_prediction"}]}, ["latent_prediction", "more than one"]),
        ({"rounds": 2, "local_steps": 4, **_begun("isotropy", start=0.99)}, ["this run of 8 trains isotropy"]),
        (
            {"rounds": 2, "local_steps": 4, "objectives": [
                {"kind": "masked_reconstruction", "turns": 100}, {"kind": "isotropy"}]},
            ["trains isotropy", "fewer turns"],
        ),
        (_begun("isotropy", start=0.5, ramp=0.6), ["start + ramp", "at most 1"]),
        ({"preparation": {"intensity": {"ct": {"kind": "foreground"}}}}, ["not among the modalities (CT, T1): ct"]),
        (
            {"preparation": {"intensity": {"CT": {
                "kind": "window", "lower": 9.0, "upper": -9.0, "centre": 0.0, "scale": 1.0}}}},
            ["lower (9) must be below upper (-9)"],
        ),
        (
            {"preparation": {"intensity": {"CT": {"kind": "foreground", "percentiles": [99.5, 0.5]}}}},
            ["job.preparation.intensity.CT", "percentile"],
        ),
        ({"preparation": {"spacing_mm": [1.0, 1.0, float("inf")]}}, ["job.preparation.spacing_mm.2", "finite"]),
        ({"optimiser": {"learning_rate": float("inf")}}, ["job.optimiser.learning_rate", "finite"]),
        ({"optimiser": {"betas": [0.9, 1.0]}}, ["job.optimiser.betas.1", "less than 1"]),
        ({"clinical": [AGE | {"lower": 100.0, "upper": 18.0}]}, ["lower (100) must be below upper (18)"]),
        ({"clinical": [AGE | {"lower": -5.0, "log": True}]}, ["lower must be above -1"]),
        ({"clinical": [AGE | {"weight": 0.0}], **_begun("soft_contrastive")}, ["weight 0", "soft_contrastive"]),
        (
            {"rounds": 5, "evaluation": {"every": 1}, "stopping": {"after": 5, "held_out_loss": {}}},
            ["stopping.after (5) must be below rounds (5)"],
        ),
        ({"objectives": [{"kind": "masked_reconstuction"}]}, ["did you mean 'masked_reconstruction'?"]),
        ({"evaluation": {"monitors": "yes"}}, ["job.evaluation.monitors", "write true or false", "got 'yes'"]),
        ({"rounds": 10**400}, ["job.rounds", "less than or equal"]),
        ({"schedule": "cylic"}, ["job.schedule", "did you mean 'cyclic'?", "got 'cylic'"]),
    ],
)  # fmt: skip
def test_what_could_never_train_or_says_two_things_is_refused(changes: dict[str, Any], parts: list[str]) -> None:
    message = refusal(**changes)
    assert message.startswith("PM103")
    for part in parts:
        assert part in message


@given(
    st.lists(st.tuples(st.integers(1, 6), st.sampled_from([0.0, 0.1, 0.5, 0.9])), min_size=1, max_size=4),
    st.integers(1, 12),
    st.sampled_from(["cyclic", "summed"]),
)
def test_an_objective_without_a_step_is_found_as_by_walking_through_the_run(
    settings: list[tuple[int, float]], steps: int, schedule: str
) -> None:
    kinds = ("masked_reconstruction", "cross_modal_reconstruction", "box_localisation", "latent_prediction")
    objectives = [{"kind": k, "turns": t, "start": s} for k, (t, s) in zip(kinds, settings, strict=False)]
    objectives[0]["start"] = 0.0
    seen = set()
    for step in range(steps):
        begun = [o for o in objectives if step >= o["start"] * steps]
        cycle = [o["kind"] for o in begun for _ in range(o["turns"])]
        seen |= set(cycle) if schedule == "summed" else {cycle[step % len(cycle)]}
    changes = {"objectives": objectives, "rounds": 1, "local_steps": steps, "schedule": schedule}
    if len(seen) == len(objectives):
        assert parse_job({**MINIMAL, **changes}).total_steps == steps
    else:
        assert "no step of this run" in refusal(**changes)


READER: dict[str, Any] = {"kind": "soft_contrastive"}


@pytest.mark.parametrize(
    ("objective", "weight", "accepted"),
    [
        (READER, 1.0, False),
        (READER, 0.0, True),
        (READER | {"softness": 0.0}, 1.0, True),
        ({"kind": "text_contrastive", "softness": 0.0}, 1.0, False),  # a text may be the row in words
        ({"kind": "cross_modal_reconstruction"}, 1.0, True),
    ],
)
def test_what_training_is_told_of_patients_cannot_be_probed(
    objective: dict[str, Any], weight: float, accepted: bool
) -> None:
    age = {"kind": "continuous", "name": "age", "unit": "years", "lower": 18.0, "upper": 100.0, "sigma": 10.0}
    clinical = [age | {"weight": weight}, _stage("x")]
    changes = {"clinical": clinical, "objectives": [{"kind": "masked_reconstruction"}, objective]}
    if accepted:
        assert parse_job({**MINIMAL, **changes, "evaluation": {"probe": "age"}}).evaluation.probe == "age"
    else:
        message = refusal(**changes, evaluation={"probe": "age"})
        for part in ("PM103", "evaluation.probe", "age", objective["kind"], "weight 0"):
            assert part in message
    assert parse_job({**MINIMAL, **changes}).evaluation.probe is None


def _stage(word: str, level: str = "T1") -> dict[str, Any]:
    levels = ["T1", "T2", *([] if level == "T1" else [level])]
    return {"name": "stage", "kind": "ordinal", "levels": levels, "synonyms": {word: level}}


@pytest.mark.parametrize("word", ["T1b/2", "y/n", "G2/3", "IIB / IIIA", "w/o", "1/2/3", "n/a", "T1 ~ T2", "ca. 2"])
def test_levels_and_synonyms_may_hold_a_slash(word: str) -> None:
    job = parse_job({**MINIMAL, "clinical": [_stage(word)]})
    assert dict(job.clinical[0].synonyms) == {word: "T1"}  # type: ignore[union-attr]
    job = parse_job({**MINIMAL, "clinical": [_stage("x", level=word)]})
    assert word in job.clinical[0].levels


PATHS = [
    *(
        "/data/x",
        " /data/x",
        "~/scans",
        "~root",
        "../x",
        "a/../b",
        "a/..",
        "./x",
        ".ssh",
        "C:/scans",
        "c:\\scans",
        "d:",
    ),
    *("\\\\host\\share", "a\\b", "file:///x", "s3://bucket", "scans/a.nii", "a.nii.gz", "x/table.csv", "x/.ssh/y", "/"),
]


@pytest.mark.parametrize("path", PATHS)
def test_a_path_among_levels_and_synonyms_is_refused(path: str) -> None:
    for variable in (_stage(path), _stage("x", level=path)):
        message = refusal(clinical=[variable])
        assert "PM104" in message
        assert path not in message or path in ("/", "d:")


@pytest.mark.parametrize("changes", [{"name": "a/b"}, {"clinical": [{"name": "a/b"}]}, {"levels": ["a/b"]}])
def test_a_slash_elsewhere_is_a_path(changes: dict[str, Any]) -> None:
    assert "PM104" in refusal(**changes)


def test_a_path_is_not_repeated_in_the_public_message() -> None:
    assert "secretfolder" not in refusal(name="/data/secretfolder")


def test_a_missing_key_is_named() -> None:
    with pytest.raises(ConfigError, match=r"job\.name is missing"):
        parse_job({})


def test_a_declared_modality_needs_its_rule() -> None:
    rule = {"kind": "window", "lower": 0.0, "upper": 70.0, "centre": 35.0, "scale": 35.0}
    job = parse_job({**MINIMAL, "modalities": ["DOSE"], "preparation": {"intensity": {"DOSE": rule}}})
    assert job.modalities == ("DOSE",)


def test_jobs_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        parse_job(MINIMAL).rounds = 3  # type: ignore[misc]


@given(st.dictionaries(st.text(max_size=8), st.none() | st.booleans() | st.integers() | st.text(max_size=8)))
def test_any_mapping_is_taken_or_refused_with_a_code(data: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"^PM10[234] "):
        parse_job(data)


def test_yaml_that_builds_objects_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text("name: !!python/object/apply:os.system ['true']")
    with pytest.raises(ConfigError, match="PM101"):
        load_job(file)


def test_site_folders_are_counted_from_the_file(tmp_path: Path) -> None:
    file = tmp_path / "site.yaml"
    file.write_text("{site: a, cohort: c, cache: ../k, state: /s}")
    site = load_site(file)
    assert Path(site.cohort) == tmp_path / "c"
    assert Path(site.cache).resolve() == tmp_path.parent / "k"
    assert site.state == "/s"


def test_the_template_explains_every_field() -> None:
    template = ROOT / "site_configs" / "template.yaml"
    data = yaml.safe_load(template.read_text())
    assert data.keys() == SiteConfig.model_fields.keys()
    assert data["policy"].keys() == PolicyConfig.model_fields.keys()
    lines = template.read_text().splitlines()
    for number, line in enumerate(lines):
        key = line.strip().split(":")[0]
        if key in SiteConfig.model_fields or key in PolicyConfig.model_fields:
            assert lines[number - 1].strip().startswith("#"), f"{key} has no explanation above it"


def test_the_templates_example_of_defacing_is_valid() -> None:
    text = (ROOT / "site_configs" / "template.yaml").read_text()
    (example,) = (line.lstrip("# ") for line in text.splitlines() if line.startswith("#   {command"))
    DefacingConfig.model_validate_json(json.dumps(yaml.safe_load(example)))
    assert all(f"{name}:" in text for name in DefacingConfig.model_fields)


@pytest.mark.parametrize(
    ("defacing", "parts"),
    [
        ({"command": ["x"]}, ["site.defacing.command"]),
        ({"command": ["x", "{input}"]}, ["site.defacing.command", "{output}"]),
        ({"command": ["{input}", "{output}"]}, ["{input} and {output}"]),
        ({"command": ["./x", "{input}", "{output}"]}, ["absolute path"]),
        ({"command": "x {input} {output}"}, ["site.defacing.command", "array"]),
        ({"command": ["x", "{input}", "{output}", "\0"]}, ["site.defacing.command.3"]),
        ({"when": "never"}, ["site.defacing.when", "head_or_unknown", "'never'"]),
        ({"timeout_s": 0}, ["site.defacing.timeout_s", "0"]),
        ({"environment": ["A=B"]}, ["site.defacing.environment.0"]),
        ({"modalities": ["CT"]}, ["PM102", "site.defacing.modalities"]),
        ({"word": ["x"]}, ["'words'"]),
    ],
)
def test_a_wrong_defacing_is_refused_by_name(tmp_path: Path, defacing: dict[str, Any], parts: list[str]) -> None:
    good = {"command": ["x", "--in={input}", "{output}"]}
    places = {"site": "a", "cohort": "c", "cache": "k", "state": "s"}
    file = tmp_path / "site.yaml"
    file.write_text(yaml.safe_dump(places | {"defacing": good}))
    assert load_site(file).defacing == DefacingConfig(command=("x", "--in={input}", "{output}"))
    file.write_text(yaml.safe_dump(places | {"defacing": good | defacing}))
    with pytest.raises(ConfigError) as caught:
        load_site(file)
    for part in parts:
        assert part in f"{caught.value} {caught.value.site_detail}"


@pytest.mark.parametrize(
    "wrong",
    [
        {"defacing": {"command": "/opt/secret/deface {input} {output}"}},
        {"defacing": {"when": "secret"}},
        {"series_rules": [{"match": "Secret Hans (", "modality": "CT"}]},
        {"series_rules": [{"match": "x", "modality": "secret-name"}]},
        {"text": {"encoder": "/home/secret/enc.py:f"}},
        {"/srv/secret/scans": "x"},
        {"policy": {"secret": 3, "objectives": ["secret"]}},
        {"site": "Secret Clinic"},
        {"device": "secret"},
    ],
)
def test_what_a_site_wrote_is_for_its_own_eyes(tmp_path: Path, wrong: dict[str, Any]) -> None:
    """The public text of a wrong site config reaches the server, as that of every error."""
    file = tmp_path / "site.yaml"
    file.write_text(yaml.safe_dump({"site": "a", "cohort": "c", "cache": "k", "state": "s"} | wrong))
    with pytest.raises(ConfigError) as caught:
        load_site(file)
    assert "secret" not in str(caught.value).lower()
    assert "secret" in caught.value.site_detail.lower()


def test_folders_begin_at_home_or_are_refused_where_they_are_empty(tmp_path: Path) -> None:
    file = tmp_path / "site.yaml"
    places = {"site": "a", "cohort": "c", "cache": "k", "state": "~/state"}
    file.write_text(yaml.safe_dump(places))
    assert load_site(file).state == str(Path.home() / "state")
    file.write_text(yaml.safe_dump(places | {"state": "~old/state"}))
    assert load_site(file).state == str(tmp_path / "~old" / "state")
    file.write_text(yaml.safe_dump(places | {"state": ""}))
    with pytest.raises(ConfigError, match=r"PM103 site\.state"):
        load_site(file)


@pytest.mark.parametrize("path", sorted((ROOT / "jobs").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_job_of_the_project_is_valid_and_named_as_its_file(path: Path) -> None:
    assert load_job(path).name == path.stem


@pytest.mark.parametrize("path", sorted((ROOT / "site_configs").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_site_config_of_the_project_is_valid(path: Path) -> None:
    load_site(path)


def test_schemas_describe_every_field() -> None:
    assert job_schema()["properties"].keys() == JobConfig.model_fields.keys()
    assert site_schema()["properties"].keys() == SiteConfig.model_fields.keys()
    for schema in (job_schema(), site_schema()):
        for name, field in schema["properties"].items():
            assert "description" in field or "$ref" in field or "allOf" in field, name
