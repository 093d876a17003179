"""`dry-work setup`: what a Google Cloud project needs once, printed or made."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from dry_work.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from deploy.settings import DeploySettings
    from deploy.setup_base import Step


@click.command("setup")
@click.option("--plan", "plan", is_flag=True, help="Print what would be made; the default.")
@click.option("--apply", "apply", is_flag=True, help="Make what is missing with gcloud and kubectl.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["gcloud", "terraform", "kcc", "kubernetes"]),
    default="gcloud",
    show_default=True,
    help="Lines for bash, Terraform's JSON, YAML of Config Connector, or what the cluster gets alone.",
)
@click.option("--stage", type=click.Path(path_type=Path), metavar="DIR", help="Put the functions' sources there.")
@click.option("--update-functions", is_flag=True, help="With --apply, deploy the functions that are there again.")
@click.option("--yes", is_flag=True, help="With --apply, do not ask.")
def command(*, plan: bool, apply: bool, form: str, stage: Path | None, update_functions: bool, yes: bool) -> int:
    """Print or make what a Google Cloud project needs once.

    Topics, the bucket of sources, the image repository, service accounts and roles, secrets, the agents' namespace, and
    the functions. The project is GOOGLE_CLOUD_PROJECT, the cluster CLOUDSDK_CONTAINER_CLUSTER (trading-cluster) in
    CLOUDSDK_COMPUTE_REGION (us-central1), the bucket DEPLOY_BUCKET.

    \b
    Examples:
      dry-work setup --plan
      dry-work setup --format terraform > setup.tf.json
      dry-work setup --apply

    Exit codes: 0 done, 1 a command failed (run it again: it goes on from there), 2 usage or configuration.
    """
    try:
        from deploy.errors import ConfigurationError, DeployError
        from deploy.settings import read_settings
        from deploy.setup_plan import STAGE, build_setup
        from deploy.staging import stage_functions
    except ImportError as error:
        raise ConfigError(f"`setup` needs what `pip install 'dry-work[deploy]'` installs ({error.name})") from error
    from dry_work.settings import read_environment

    if plan and apply:
        raise ConfigError("--plan and --apply exclude each other")
    if apply and form != "gcloud":
        raise ConfigError("--apply runs gcloud and kubectl: leave out --format")
    if (update_functions or yes) and not apply:
        raise ConfigError("--update-functions and --yes go with --apply")
    environment = read_environment(Path.cwd())
    try:
        settings = read_settings(environment)
        folder = stage or Path(STAGE)
        if stage is not None or apply:
            stage_functions(folder)
        steps = build_setup(settings, source=str(folder))
        if apply:
            return _apply(settings, steps, environment, update_functions=update_functions, yes=yes)
        click.echo(_format(settings, steps, form), nl=False)
    except ConfigurationError as error:
        raise ConfigError(str(error)) from error
    except DeployError as error:
        raise click.ClickException(str(error)) from error
    return 0


def _format(settings: DeploySettings, steps: list[Step], form: str) -> str:
    from deploy.setup_plan import to_connector, to_gcloud, to_terraform

    if form == "terraform":
        return to_terraform(settings, steps)
    if form == "kcc":
        return to_connector(steps)
    if form == "kubernetes":
        return "".join(step.stdin for step in steps)
    return to_gcloud(steps)


def _apply(
    settings: DeploySettings, steps: list[Step], environment: Mapping[str, str], *, update_functions: bool, yes: bool
) -> int:
    from deploy.setup_apply import carry_out, describe, inspect, run_command

    click.echo(f"project {settings.project}, cluster {settings.cluster} in {settings.region}")
    found = inspect(steps, run_command, environment, update_functions=update_functions)
    for line in describe(found):
        click.echo(line)
    if not yes:
        click.confirm("Make what is missing?", abort=True)
    carry_out(found, run_command, settings, environment, tell=click.echo)
    for entry in found:
        if entry.state == "by hand":
            click.echo(f"by hand: {entry.step.title}:\n{entry.step.line}")
    return 0
