"""A rehearsal: a provisioned federation with certificates, each party in its own process, on this machine.

    python poc/run.py [--job JOB.yaml] [--site SITE.yaml]... [--keep FOLDER]

It provisions a server, two sites and a coordinator, equips every kit as a hospital would, submits the job's folder
through FLARE's admin API, waits for the job's end, downloads the run as the coordinator does, and stops everything.
Exit code 0 means that the run's own manifest says complete, in the server's run folder and in what was downloaded;
FLARE's status is no evidence. Nothing is left: no process, no port, no folder, unless --keep names one.
"""

import argparse
import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn, Self

import torch
import yaml
from nvflare.fuel.flare_api.flare_api import Session, new_secure_session
from nvflare.lighter.constants import CtxKey
from nvflare.lighter.prov_utils import prepare_builders
from nvflare.lighter.provision import prepare_project
from nvflare.lighter.provisioner import Provisioner

from parametrium.cohort.phantom import write_phantom
from parametrium.config import JobConfig, load_job, load_site
from parametrium.federation.download import downloaded_run
from parametrium.federation.job_folder import export_job
from parametrium.federation.kit import equip_server, equip_site
from parametrium.federation.processes import Family
from parametrium.training.run_folder import final_model, judge, read_lines

HERE = Path(__file__).resolve().parent
PHANTOMS = {"north": ["CT", "T2"], "east": ["CT", "PET"]}
START_S, RUN_S, POLL_S = 90.0, 400.0, 0.3


class RehearsalError(Exception):
    """A step did not end as it should; the text says which."""


def main() -> int:
    parser = argparse.ArgumentParser(description="rehearse a provisioned federation on this machine")
    parser.add_argument("--job", type=Path, default=HERE.parent / "jobs" / "smoke.yaml", help="the job")
    parser.add_argument("--site", type=Path, action="append", help="config of north or east; default: phantoms")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="work in this empty folder and leave it there")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    signal.signal(signal.SIGTERM, _leave)
    with _workspace(arguments.keep) as folder:
        try:
            sites = arguments.site or draw_hospitals(folder / "hospitals")
            rehearse(folder, load_job(arguments.job), sites)
        except Exception as error:  # also FLARE's own: whatever stops a rehearsal, its logs say why
            print(f"failed: {type(error).__name__}: {error}", file=sys.stderr)
            show_logs(folder)
            return 1
    return 0


def rehearse(folder: Path, job: JobConfig, sites: list[Path]) -> None:
    """One run from provisioning to the downloaded model; raises RehearsalError."""
    port = _free_port()
    kits = provision(folder, port)
    equip_server(kits["server"], folder / "runs", folder / "storage")
    for file in sites:
        equip_site(kits[load_site(file).site], file)
    with Parties(folder) as parties:
        for name in ("server", *(load_site(file).site for file in sites)):
            parties.start(name, kits[name])
        print(f"started: server on localhost:{port} (mTLS), {len(sites)} sites")
        parties.wait(lambda: _listens(port), START_S, "the server listens")
        session = new_secure_session("coordinator@parametrium.example", str(kits["coordinator@parametrium.example"]))
        try:
            parties.wait(lambda: len(session.get_system_info().client_info) == len(sites), START_S, "sites connect")
            number = session.submit_job(str(export_job(job, folder / "jobs")))
            print(f"submitted: {job.name}, a folder without code, as FLARE job {number}")
            parties.wait(lambda: _ended(session, number), RUN_S, "the job ends")
            run = folder / "runs" / job.name
            require_complete(run)
            downloaded = downloaded_run(Path(session.download_job_result(number, str(folder / "download"))))
            require_same(run, downloaded)
            require_refusal(parties, session, export_job(job, folder / "refused"))
        finally:
            session.close()
    show_rounds(run)
    print("complete: the run's manifest says so, and the model downloaded through the admin API is the run's")


def require_complete(run: Path) -> None:
    """The run's own manifest is the only evidence."""
    complete, reasons = judge(run)
    if not complete:
        raise RehearsalError("; ".join(reasons))


def require_same(run: Path, downloaded: Path) -> None:
    """What the coordinator has is the model that the server has."""
    require_complete(downloaded)
    here, there = final_model(run), final_model(downloaded)
    if here.keys() != there.keys() or not all(torch.equal(here[name], there[name]) for name in here):
        raise RehearsalError("the downloaded model is not the run's")


def require_refusal(parties: "Parties", session: Session, job_folder: Path) -> None:
    """The same job with code in it must be refused, although its submitter is the one who may submit jobs."""
    code = job_folder / "app" / "custom"
    code.mkdir()
    (code / "brought_along.py").write_text("", encoding="utf-8")
    number = session.submit_job(str(job_folder))
    parties.wait(lambda: _ended(session, number), RUN_S, "the job with code ends")
    meta = session.get_job_meta(number)
    if "FAILED_TO_RUN" not in meta["status"]:
        raise RehearsalError("a job that brings code was not refused")
    print(f"refused: the same job with code in it ({'; '.join(meta['job_deploy_detail'])})")


def draw_hospitals(folder: Path) -> list[Path]:
    """Two phantom cohorts with different modalities, each with its site config."""
    files = []
    for seed, (name, modalities) in enumerate(PHANTOMS.items()):
        write_phantom(folder / name, patients=5, modalities=modalities, seed=seed, site=name, test_fraction=0.4)
        site = {"site": name, "cohort": name, "cache": f"{name}-cache", "state": f"{name}-state"}
        policy = {"minimum_patients": 3, "minimum_local_steps": 1}
        file = folder / f"{name}.yaml"
        file.write_text(yaml.safe_dump({**site, "device": "cpu", "policy": policy}), encoding="utf-8")
        files.append(file)
    return files


def provision(folder: Path, port: int) -> dict[str, Path]:
    """Kits with certificates, by the name of their owner."""
    project = yaml.safe_load((HERE / "project.yml").read_text(encoding="utf-8"))
    for participant in project["participants"]:
        if participant["type"] == "server":
            participant["fed_learn_port"] = participant["admin_port"] = port
    provisioner = Provisioner(str(folder / "kits"), prepare_builders(project))
    context = provisioner.provision(prepare_project(project), logger=logging.getLogger("provisioning"))
    if context.get(CtxKey.BUILD_ERROR):
        raise RehearsalError("FLARE's provisioning failed")
    return {kit.name: kit for kit in Path(context[CtxKey.CURRENT_PROD_DIR]).iterdir()}


class Parties:
    """The processes of the server and the sites; all of them end with the block."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.family = Family()
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.family.end()
        for process in self.processes.values():
            process.wait()

    def start(self, name: str, kit: Path) -> None:
        """Starts a party by its kit's own script, with its own home, in its own folder."""
        home = self.folder / "homes" / name
        home.mkdir(parents=True)
        environment = {
            **os.environ,
            "HOME": str(home),
            "TMPDIR": str(home),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",  # the script calls python3
            "NVFLARE_SECURE_LOGGING": "true",  # FLARE then logs the class of an exception, not its text
        }
        with (self.folder / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                [kit / "startup" / "sub_start.sh", "--once"],
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env=environment,
                cwd=kit,
                start_new_session=True,
            )
        self.processes[name] = process
        self.family.adopt(process.pid)

    def wait(self, condition: Callable[[], bool], limit_s: float, what: str) -> None:
        """Waits for a condition while all parties live."""
        deadline = time.monotonic() + limit_s
        while not condition():
            self.family.look()
            for name, process in self.processes.items():
                if process.poll() is not None:
                    raise RehearsalError(f"{name} ended with code {process.returncode} before: {what}")
            if time.monotonic() > deadline:
                raise RehearsalError(f"not within {limit_s:.0f} s: {what}")
            time.sleep(POLL_S)
        self.family.look()


def show_rounds(run: Path) -> None:
    """A line a round: who contributed, how many samples, and the mean loss of each objective."""
    records = read_lines(run / "rounds.jsonl")
    losses = sorted({name for r in records for site in r["scalars"].values() for name in site if "/loss/" in name})
    print("round  sites  samples  " + "  ".join(name.rsplit("/", 1)[-1] for name in losses))
    for record in records:
        accepted = [site for site in record["sites"] if site["status"] == "accepted"]
        cells = [f"{record['round'] + 1:5}", f"{len(accepted):5}", f"{sum(site['samples'] for site in accepted):7}"]
        cells += [f"{_mean(record, name):>{len(name.rsplit('/', 1)[-1])}.4f}" for name in losses]
        print("  ".join(cells))


def show_logs(folder: Path) -> None:
    """The end of what each party wrote."""
    trainers = (folder / "hospitals").glob("*-state/*/trainer.log")
    for path in [*sorted(folder.glob("*.log")), *sorted(trainers)]:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()[-25:]
        print(f"\n--- {path.relative_to(folder)}", *lines, sep="\n", file=sys.stderr)


def _ended(session: Session, number: str) -> bool:
    status = str(session.get_job_meta(number).get("status", ""))
    return status.startswith(("FINISHED", "FAILED", "ABANDONED"))


def _mean(record: dict[str, Any], name: str) -> float:
    values = [site[name] for site in record["scalars"].values() if name in site]
    return sum(values) / len(values) if values else float("nan")


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return int(listener.getsockname()[1])


def _listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("localhost", port)) == 0


def _leave(*_: object) -> NoReturn:
    sys.exit(1)


@contextlib.contextmanager
def _workspace(keep: Path | None) -> Iterator[Path]:
    """A folder for everything, and for what libraries put into the home and temporary folders of this process."""
    with contextlib.ExitStack() as stack:
        folder = keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="parametrium-poc-")))
        folder = folder.resolve()
        own = folder / "homes" / "coordinator"
        own.mkdir(parents=True)
        os.environ["HOME"] = tempfile.tempdir = str(own)
        yield folder


if __name__ == "__main__":
    sys.exit(main())
