"""Commands that fit a provisioned FLARE kit to this project, at a site and at the server."""

from pathlib import Path
from typing import Annotated

import typer

from parametrium.cli.options import AsJson, SiteFile, example
from parametrium.cli.printing import answer, say
from parametrium.errors import Code, ConfigError

kit_app = typer.Typer(no_args_is_help=True, help="A provisioned FLARE kit, fitted to this project.")

Kit = Annotated[
    Path, typer.Argument(metavar="KIT", file_okay=False, help="the kit's folder, with startup and local in it")
]


@kit_app.command("site", epilog=example("kit site kits/north site_configs/north.yaml"))
def kit_site(kit: Kit, site_file: SiteFile, as_json: AsJson = False) -> None:
    """Put the site's own settings into its kit: site config, class allow-list, no code from jobs, no log streaming."""
    from parametrium.federation.kit import equip_site

    _require_kit(kit)
    equip_site(kit, site_file)
    answer({"kit": str(kit)}, as_json, lambda: say("the kit is ready; start it with startup/start.sh"))


@kit_app.command("server", epilog=example("kit server kits/server --runs runs --storage storage"))
def kit_server(
    kit: Kit,
    runs: Annotated[Path, typer.Option(help="folder of run folders; checkpoints outlive FLARE's own workspace there")],
    storage: Annotated[Path, typer.Option(help="folder in which FLARE keeps submitted jobs and their results")],
    starts: Annotated[
        Path | None, typer.Option(help="folder of checkpoints that runs start from, each under its job's name")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Put the server's own settings into its kit."""
    from parametrium.federation.kit import equip_server

    _require_kit(kit)
    equip_server(kit, runs, storage, starts)
    answer({"kit": str(kit)}, as_json, lambda: say("the kit is ready; start it with startup/start.sh"))


def _require_kit(kit: Path) -> None:
    if not (kit / "local" / "resources.json.default").is_file():
        raise ConfigError(
            Code.CONFIG_INVALID_VALUE,
            "the folder is no FLARE kit: it has no local/resources.json.default; provisioning makes kits",
            site_detail=str(kit),
        )
