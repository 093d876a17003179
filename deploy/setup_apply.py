"""Carries out a setup: looks at what is there, makes what is missing. Safe to run again, and to be broken off."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from deploy.errors import ConfigurationError, UnavailableError
from deploy.settings import DeploySettings
from deploy.setup_base import Step
from deploy.setup_plan import build_secret

State = Literal["there", "missing", "again", "by hand"]

COMMAND_S = 600.0  # a function takes minutes
LOOK_S = 60.0

# What the tools say of something that is not there; anything else that goes wrong is told, and ends the setup.
_ABSENT = ("not_found", "not found", "notfound", "does not exist", "404")


@dataclass(frozen=True, kw_only=True)
class Done:
    """How a command ended."""

    code: int
    output: str = ""
    errors: str = ""


class Run(Protocol):
    """Runs a command to its end."""

    def __call__(self, words: tuple[str, ...], *, stdin: str, timeout_s: float) -> Done:
        """Return how it ended.

        Raises:
            ConfigurationError: there is no such program.
            UnavailableError: it took too long.
        """


def run_command(words: tuple[str, ...], *, stdin: str, timeout_s: float) -> Done:
    """Run a command without a shell; see `Run`."""
    try:
        done = subprocess.run(  # noqa: S603 - words that were made here
            words, input=stdin, capture_output=True, text=True, timeout=timeout_s, check=False
        )
    except FileNotFoundError as error:
        raise ConfigurationError(f"{words[0]} is not installed, or not on PATH") from error
    except subprocess.TimeoutExpired as error:
        raise UnavailableError(f"`{' '.join(words[:4])} …` did not end within {timeout_s:g} s; run it again") from error
    return Done(code=done.returncode, output=done.stdout, errors=done.stderr)


@dataclass(frozen=True, kw_only=True)
class Found:
    """A step and how it stands."""

    step: Step
    state: State


def inspect(
    steps: Iterable[Step], run: Run, environment: Mapping[str, str], *, update_functions: bool = False
) -> list[Found]:
    """Return how each step stands; changes nothing.

    A step that may be run again and again is `again`; one that needs credentials which are not set is `by hand`.

    Raises:
        UnavailableError: a look failed for another reason than that the thing is not there.
        ConfigurationError: a program is missing.
    """
    return [Found(step=step, state=_look(step, run, environment, update_functions)) for step in steps]


def _look(step: Step, run: Run, environment: Mapping[str, str], update_functions: bool) -> State:
    if not step.look or (step.is_function and update_functions):
        return "again"
    done = run(step.look, stdin="", timeout_s=LOOK_S)
    if done.code == 0:
        return "there"
    said = done.errors.lower()
    is_new_project = "has not been used in project" in said or "service_disabled" in said  # its API comes first
    # Before the first look the cluster is not known to kubectl either.
    is_new_context = step.look[0] == "kubectl" and ("context" in said and "does not exist" in said)
    if not (is_new_project or is_new_context or any(word in said for word in _ABSENT)):
        raise UnavailableError(f"{step.title}: cannot be looked at: {_last_line(done)}")
    if step.from_environment and not all(environment.get(name, "").strip() for name in step.from_environment):
        return "by hand"
    return "missing"


def carry_out(
    found: Iterable[Found],
    run: Run,
    settings: DeploySettings,
    environment: Mapping[str, str],
    *,
    tell: Callable[[str], None],
) -> None:
    """Make what is missing, in order.

    Raises:
        UnavailableError: a command failed; what is made stays, and the next run goes on from there.
        ConfigurationError: a program is missing, or half of the credentials.
    """
    for entry in found:
        step = entry.step
        if entry.state in ("there", "by hand"):
            continue
        stdin = step.stdin
        if step.from_environment:
            secret = build_secret(settings, environment)
            if secret is None:
                raise ConfigurationError(f"{step.title}: set {' and '.join(step.from_environment)}")
            stdin = json.dumps(secret)
        done = run(step.create, stdin=stdin, timeout_s=COMMAND_S)
        if done.code != 0 and not _exists(done):  # somebody else was faster
            raise UnavailableError(f"{step.title}: {_last_line(done)}")
        tell(f"done     {step.title}")


def describe(found: Iterable[Found]) -> list[str]:
    """Return a line for each step."""
    words = {"there": "there", "missing": "make", "again": "ensure", "by hand": "by hand"}
    return [f"{words[entry.state]:<8} {entry.step.title}" for entry in found]


def _exists(done: Done) -> bool:
    said = done.errors.lower()
    return "already exists" in said or "already_exists" in said or "alreadyexists" in said


def _last_line(done: Done) -> str:
    lines = [line.strip() for line in (done.errors or done.output).splitlines() if line.strip()]
    # gcloud says first what is wrong, kubectl last; a line with ERROR is the one in both.
    chosen = next((line for line in lines if "error" in line.lower()), lines[-1] if lines else f"exit code {done.code}")
    return chosen[:400]
