"""Which deploy service a command means: one by its address, or that of this machine."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dry_work.cli.deploy_client import DeployClient
from dry_work.errors import ConfigError, DryWorkError

if TYPE_CHECKING:
    from deploy.local_files import LocalFolder

LOCAL_FOLDER = "~/.dry-work/deploy"
_TOKEN_S = 30.0


def target_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --target, --url, --token-file and --dir."""
    options = (
        click.option(
            "--target",
            type=click.Choice(["local", "cluster"]),
            help="This machine, or the cluster behind a deploy service. Default: local, with --url cluster.",
        ),
        click.option("--url", metavar="URL", help="Base of the deploy service's functions.  [DRY_WORK_DEPLOY_URL]"),
        click.option(
            "--token-file",
            type=click.Path(path_type=Path),
            metavar="FILE",
            help="File with an identity token for --url. Default: what gcloud prints.  [DRY_WORK_DEPLOY_TOKEN]",
        ),
        click.option(
            "--dir",
            "folder",
            type=click.Path(path_type=Path),
            metavar="DIR",
            help=f"Where the local target keeps what it has. Default: {LOCAL_FOLDER}.",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


@dataclass(frozen=True, kw_only=True)
class Target:
    """What the options of a command mean."""

    url: str  # empty: this machine
    token_file: Path | None
    folder: LocalFolder

    @property
    def is_local(self) -> bool:
        """Whether agents are processes of this machine."""
        return not self.url

    def open(self, *, start: bool = True, port: int | None = None) -> DeployClient:
        """Return a client of the service. The local one is started when it does not run.

        Raises:
            ConfigError: there is no token, or nothing was ever deployed here and `start` is False.
        """
        if self.url:
            return DeployClient(self.url, _read_token(self.token_file))
        from deploy.local_service import start_service

        if not start and not self.folder.documents.exists():
            raise ConfigError(f"nothing was deployed to this machine yet ({self.folder.root}): see `dry-work deploy`")
        with translated():
            url = start_service(self.folder, port=port)
        return DeployClient(url, self.folder.token.read_text(encoding="ascii").strip())

    def look(self) -> DeployClient | None:
        """Return a client of the service if it runs; starts nothing."""
        if self.url:
            return self.open()
        from deploy.local_service import find_service

        url = find_service(self.folder)
        if not url or not self.folder.token.is_file():
            return None
        return DeployClient(url, self.folder.token.read_text(encoding="ascii").strip())


def choose_target(target: str | None, url: str | None, token_file: Path | None, folder: Path | None) -> Target:
    """Return what the options mean.

    Raises:
        ConfigError: they contradict each other, the address is not usable, or a part is not installed.
    """
    try:
        from deploy.local_files import LocalFolder
    except ImportError as error:
        raise ConfigError(f"this needs what `pip install 'dry-work[deploy]'` installs ({error.name})") from error
    from dry_work.addresses import is_loopback_url
    from dry_work.settings import parse_url, read_environment, read_variable

    environment = read_environment(Path.cwd())
    address = url or ("" if target == "local" else read_variable(environment, "DRY_WORK_DEPLOY_URL") or "")
    if target == "local" and url:
        raise ConfigError("--url names a service elsewhere: leave it out, or --target local")
    if target == "cluster" and not address:
        raise ConfigError("--target cluster needs the address of the deploy service: give --url")
    if address:
        address = parse_url(address, name="--url")
        if not address.startswith("https://") and not is_loopback_url(address):
            raise ConfigError(f"--url {address}: expected https, since a token is sent")
        if folder is not None:
            raise ConfigError("--dir is of the local target: leave it out with --url")
    root = Path(os.path.expanduser(folder or LOCAL_FOLDER)).absolute()
    return Target(url=address, token_file=token_file, folder=LocalFolder(root))


@contextmanager
def translated() -> Iterator[None]:
    """Raise errors of the deploy package as those of the command line."""
    from deploy.errors import DeployError, UnavailableError

    try:
        yield
    except UnavailableError as error:
        raise DryWorkError(str(error)) from error
    except DeployError as error:
        raise ConfigError(str(error)) from error


def _read_token(path: Path | None) -> str:
    from dry_work.settings import read_environment, read_variable

    if path is not None:
        try:
            token = path.read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"--token-file {path}: cannot be read: {type(error).__name__}") from None
        if not token:
            raise ConfigError(f"--token-file {path}: is empty")
        return token
    token = read_variable(read_environment(Path.cwd()), "DRY_WORK_DEPLOY_TOKEN") or ""
    gcloud = shutil.which("gcloud")
    if not token and gcloud is not None:
        try:
            done = subprocess.run(  # noqa: S603 - a constant
                [gcloud, "auth", "print-identity-token"], capture_output=True, text=True, timeout=_TOKEN_S, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise ConfigError(f"gcloud does not give an identity token: {type(error).__name__}") from error
        token = done.stdout.strip()
        if done.returncode != 0 or not token:
            raise ConfigError("gcloud does not give an identity token: `gcloud auth login`, or give --token-file")
    if not token:
        raise ConfigError("no identity token: give --token-file, set DRY_WORK_DEPLOY_TOKEN, or install gcloud")
    return token
