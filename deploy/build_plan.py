"""What Cloud Build is asked to do, as data. Pure.

What comes from outside (ids, addresses, the digest) reaches a step as a substitution in an argument or in a variable of
its environment. No text is put into a shell line, a Dockerfile or a piece of YAML: those are constants here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.errors import InternalError
from deploy.settings import DeploySettings

WORKSPACE_ARCHIVE = "agent-source.zip"
MANIFEST_FILE = "PaperTrading.yaml"

# Stands for the build's id, which is not known before the build is, until Cloud Build puts it in as $BUILD_ID.
BUILD_ID_MARK = "the-id-of-the-build"

MAX_ENV_BYTES = 60_000  # Cloud Build takes 65,536

_DOCKER = "gcr.io/cloud-builders/docker"
_GSUTIL = "gcr.io/cloud-builders/gsutil"
_KUBECTL = "gcr.io/cloud-builders/kubectl"

# The archive is taken apart in a stage of its own, after its bytes were compared with what the service has checked.
# Nothing of the requirements is built here: only wheels are installed, which run no code of theirs.
_DOCKERFILE = """\
ARG RUNTIME_IMAGE
FROM ${RUNTIME_IMAGE} AS source
USER 0
COPY agent-source.zip unpack.py /tmp/unpack/
ARG SOURCE_DIGEST
RUN ["python", "/tmp/unpack/unpack.py"]

FROM ${RUNTIME_IMAGE}
ARG SOURCE_DIGEST
LABEL org.opencontainers.image.revision=${SOURCE_DIGEST}
USER 0
COPY --from=source /tmp/unpack/requirements.txt /tmp/requirements.txt
RUN if [ -s /tmp/requirements.txt ]; then \\
      python -m pip install --no-cache-dir --disable-pip-version-check --only-binary :all: -r /tmp/requirements.txt \\
      && python -m pip check; \\
    fi
COPY --from=source /tmp/unpack/source/ ./
RUN ["python", "-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash", "."]
USER trader
"""

_UNPACK = Path(__file__).with_name("unpack.py").read_text(encoding="utf-8")

_CREATE_DOCKERFILE = """\
#!/bin/sh
set -eu
printf '%s' "$DOCKERFILE" > Dockerfile
printf '%s' "$UNPACK" > unpack.py
"""

_WRITE_MANIFEST = """\
#!/bin/sh
set -eu
printf '%s' "$MANIFEST" > PaperTrading.yaml
"""

# Runs in the image, without network, as it is to run later; what the strategy raises at import ends the build here.
IMPORT_CHECK = """\
import sys
from pathlib import Path
from dry_work.engine.agents import load_agent
from dry_work.settings import read_toml
run = read_toml(Path("dry-work.toml"))
spec = sys.argv[1]
params = {name: str(value) for name, value in run.get("params", {}).items()}
agent = load_agent(spec, params)
print("imported", agent.spec)
"""


@dataclass(frozen=True, kw_only=True)
class BuildStep:
    """One step: a container with either `args` or `script`, never both."""

    id: str
    name: str  # image that it runs in
    args: tuple[str, ...] = ()
    script: str = ""
    env: tuple[str, ...] = ()
    timeout_s: int | None = None  # None: as long as the build may take


@dataclass(frozen=True, kw_only=True)
class BuildPlan:
    """A build, before it has an id. `tags` find it again when the answer to its submission was lost."""

    agent_id: str
    normalised: str
    user_id: str
    source: str  # address of the archive
    digest: str
    agent: str  # file and class of the strategy
    image: str  # without tag
    steps: tuple[BuildStep, ...]
    substitutions: Mapping[str, str]
    tags: tuple[str, ...]
    timeout_s: int
    documents: tuple[Mapping[str, Any], ...]  # Kubernetes objects, with BUILD_ID_MARK for the build's id
    service_account: str = ""

    def documents_of(self, build_id: str) -> list[dict[str, Any]]:
        """Return the Kubernetes objects with the image of a build."""
        marked, image = f"{self.image}:{BUILD_ID_MARK}", f"{self.image}:{build_id}"
        return [_replace(document, marked, image) for document in self.documents]


def build_plan(
    settings: DeploySettings,
    *,
    agent_id: str,
    normalised: str,
    user_id: str,
    source: str,
    digest: str,
    agent: str,
    documents: Sequence[Mapping[str, Any]],
    manifest: str,
    tags: Sequence[str],
) -> BuildPlan:
    """Return the build of one agent.

    Args:
        source: address of the archive, `gs://bucket/user/agent/agent-source.zip#generation`.
        digest: sha256 of the archive, 64 hex digits.
        documents: the agent's Kubernetes objects, with the image `<agent image>:BUILD_ID_MARK`.
        manifest: the same objects as YAML.
        tags: texts of letters, digits, `_`, `.` and `-`.

    Raises:
        InternalError: when the manifest does not name the image, or is longer than a step's environment may be.
    """
    image = settings.agent_image(normalised)
    marked = f"{image}:{BUILD_ID_MARK}"
    if marked not in manifest:
        raise InternalError(f"the manifest of {normalised} does not name the image of its build")
    # Cloud Build reads $ in a variable; only the build's id is to be put in.
    text = _escape(manifest).replace(marked, f"{image}:${{BUILD_ID}}")
    if len(text.encode()) > MAX_ENV_BYTES:
        raise InternalError(f"the manifest of {normalised} has more than {MAX_ENV_BYTES:,} bytes")
    steps = (
        BuildStep(
            id="create-dockerfile",
            name=_DOCKER,
            script=_CREATE_DOCKERFILE,
            env=(f"DOCKERFILE={_escape(_DOCKERFILE)}", f"UNPACK={_escape(_UNPACK)}"),
        ),
        BuildStep(id="copy-agent-code", name=_GSUTIL, args=("cp", "$_SOURCE", WORKSPACE_ARCHIVE)),
        BuildStep(
            id="build-agent-image",
            name=_DOCKER,
            args=(
                "build",
                "--build-arg=RUNTIME_IMAGE=$_RUNTIME_IMAGE",
                "--build-arg=SOURCE_DIGEST=$_SOURCE_DIGEST",
                "--tag=$_IMAGE:$BUILD_ID",
                "--tag=$_IMAGE:latest",
                ".",
            ),
        ),
        BuildStep(
            id="check-agent-import",
            name=_DOCKER,
            args=(
                "run",
                "--rm",
                "--network=none",
                "--read-only",
                "--tmpfs=/tmp",
                "--cap-drop=ALL",
                "--security-opt=no-new-privileges",
                "--memory=512m",
                "--pids-limit=256",
                "--entrypoint=python",
                "$_IMAGE:$BUILD_ID",
                "-c",
                _escape(IMPORT_CHECK),
                "$_AGENT",
            ),
        ),
        BuildStep(id="push-agent-image", name=_DOCKER, args=("push", "--all-tags", "$_IMAGE")),
        BuildStep(id="write-manifest", name=_DOCKER, script=_WRITE_MANIFEST, env=(f"MANIFEST={text}",)),
        BuildStep(
            id="deploy-to-gke",
            name=_KUBECTL,
            args=("apply", "--filename", MANIFEST_FILE),
            env=("CLOUDSDK_COMPUTE_REGION=$_REGION", "CLOUDSDK_CONTAINER_CLUSTER=$_CLUSTER"),
        ),
    )
    return BuildPlan(
        agent_id=agent_id,
        normalised=normalised,
        user_id=user_id,
        source=source,
        digest=digest,
        agent=agent,
        image=image,
        steps=steps,
        substitutions={
            "_SOURCE": source,
            "_SOURCE_DIGEST": digest,
            "_RUNTIME_IMAGE": settings.base_image,
            "_IMAGE": image,
            "_AGENT": agent,
            "_REGION": settings.region,
            "_CLUSTER": settings.cluster,
        },
        tags=tuple(tags),
        timeout_s=settings.build_timeout_s,
        documents=tuple(documents),
        service_account=settings.build_account,
    )


def _escape(text: str) -> str:
    return text.replace("$", "$$")


def _replace(value: Any, marked: str, image: str) -> Any:
    if isinstance(value, Mapping):
        return {key: _replace(entry, marked, image) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_replace(entry, marked, image) for entry in value]
    return image if value == marked else value
