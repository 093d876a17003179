"""What a Google Cloud project needs once, as data: command lines, Terraform, Config Connector. Pure.

Every part is described once. Nothing is spliced: commands are lists of words, Terraform is its JSON form, YAML is made
from objects. The values of secrets are in none of it.
"""

from __future__ import annotations

import base64
import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from deploy.errors import ConfigurationError
from deploy.manifest import render_namespace, to_yaml
from deploy.settings import DeploySettings
from deploy.setup_access import ACCOUNTS, AccessMaker
from deploy.setup_base import Step, slug

FUNCTIONS = (
    "createTradingAgent",
    "uploadAgentSource",
    "deployTradingAgent",
    "stopTradingAgent",
    "restartTradingAgent",
    "rollbackTradingAgent",
    "getTradingAgentStatus",
    "getTradingAgentLogs",
    "listTradingAgents",
    "beginPaperTrading",
    "stopPaperTrading",
    "tradingAgents",  # all of them by path, and the page
)
FOLLOW = "followBuilds"  # triggered by the messages of Cloud Build, and every minute
BUILDS_TOPIC = "cloud-builds"  # named by Cloud Build
APIS = (
    "artifactregistry.googleapis.com",
    "cloudbuild.googleapis.com",
    "cloudfunctions.googleapis.com",
    "cloudscheduler.googleapis.com",
    "container.googleapis.com",
    "eventarc.googleapis.com",
    "firestore.googleapis.com",
    "iam.googleapis.com",
    "iamcredentials.googleapis.com",
    "pubsub.googleapis.com",
    "run.googleapis.com",
    "secretmanager.googleapis.com",
    "storage.googleapis.com",
)
SECRETS = {"api-key": "ALPACA_API_KEY", "secret-key": "ALPACA_SECRET_KEY", "account-id": "ALPACA_ACCOUNT_ID"}
STAGE = "build/function"  # where the sources of the functions are put together


def build_setup(settings: DeploySettings, *, source: str = STAGE) -> list[Step]:
    """Return everything that a project needs, in the order in which it is made.

    Args:
        settings: of the deploy service, which is to find what is made here.
        source: folder with the sources of the functions, see `staging.stage_functions`.

    Raises:
        ConfigurationError: images are to be kept where no repository can be made.
    """
    maker = _Maker(settings)
    return [
        maker.apis(),
        *(maker.topic(topic) for topic in maker.topics),
        maker.bucket(),
        maker.versions(),
        *maker.repository(),
        maker.firestore(),
        *(maker.account(name, title) for name, title in ACCOUNTS.items()),
        maker.subscriptions_role(),
        *maker.bindings(),
        *(maker.secret(f"alpaca-{key}") for key in SECRETS),
        *maker.namespace(),
        *(maker.function(name, source) for name in FUNCTIONS),
        maker.topic(BUILDS_TOPIC),
        maker.function(FOLLOW, source),
        maker.schedule(),
    ]


def build_secret(settings: DeploySettings, environment: Mapping[str, str]) -> dict[str, Any] | None:
    """Return the Secret of the agents with the credentials of an environment; None when there are none.

    Raises:
        ConfigurationError: one of key and secret is missing.
    """
    found = {key: environment.get(name, "").strip() for key, name in SECRETS.items()}
    if not found["api-key"] and not found["secret-key"]:
        return None
    for key in ("api-key", "secret-key"):
        if not found[key]:
            raise ConfigurationError(f"{SECRETS[key]} is not set: the agents' Secret needs key and secret")
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": settings.secret_name, "namespace": settings.namespace},
        "type": "Opaque",
        "stringData": {key: value for key, value in found.items() if value},
    }


def to_gcloud(steps: Iterable[Step]) -> str:
    """Return the steps as lines for bash."""
    parts = [
        "#!/usr/bin/env bash",
        "# What one Google Cloud project needs once. `dry-work setup --apply` runs these lines, and leaves out what is",
        "# there; run by hand, a line that makes what exists says so.",
        "set -uo pipefail",
    ]
    for step in steps:
        parts.append(f"\n# {step.title}")
        if step.stdin and not step.shown:
            mark = "END_OF_YAML"
            parts.append(f"{step.line} <<'{mark}'\n{step.stdin.rstrip()}\n{mark}")
        else:
            parts.append(step.line)
    return "\n".join(parts) + "\n"


def to_terraform(settings: DeploySettings, steps: Sequence[Step]) -> str:
    """Return the steps as one Terraform file in JSON, `setup.tf.json`."""
    resources: dict[str, dict[str, Any]] = {}
    stages: list[dict[tuple[str, str], None]] = [
        {(kind, name): None for step in steps for kind, name, _ in step.terraform if _terraform_stage(kind) == stage}
        for stage in range(3)
    ]
    for step in steps:
        for kind, name, arguments in step.terraform:
            stage = _terraform_stage(kind)
            after = [f"{kind}.{name}" for kind, name in stages[stage - 1]] if stage else []
            resources.setdefault(kind, {})[name] = {**arguments, **({"depends_on": after} if after else {})}
    document = {
        "terraform": {
            "required_version": ">= 1.5",
            "required_providers": {
                "google": {"source": "hashicorp/google", "version": ">= 6.0"},
                "kubernetes": {"source": "hashicorp/kubernetes", "version": ">= 2.30"},
            },
        },
        "provider": {
            "google": {"project": settings.project, "region": settings.region},
            "kubernetes": {"config_path": "~/.kube/config", "config_context": _context(settings)},
        },
        "resource": resources,
    }
    return json.dumps(document, indent=2) + "\n"


def _terraform_stage(kind: str) -> int:
    """Return when a resource is made: APIs first; who may use it, and what runs on it, last."""
    if kind == "google_project_service":
        return 0
    is_last = kind.endswith("_iam_member") or kind.startswith(("google_cloud", "kubernetes"))
    return 2 if is_last else 1


def to_connector(steps: Iterable[Step]) -> str:
    """Return the steps as YAML for Config Connector; the functions are not among what it offers."""
    return to_yaml(document for step in steps for document in step.connector)


def _context(settings: DeploySettings) -> str:
    return f"gke_{settings.project}_{settings.region}_{settings.cluster}"


class _Maker(AccessMaker):
    """Describes the rest: what is reached, and what runs."""

    def apis(self) -> Step:
        return Step(
            title="APIs",
            create=self.gcloud("services", "enable", *APIS),
            terraform=tuple(
                ("google_project_service", slug(api, "_"), {"service": api, "disable_on_destroy": False})
                for api in APIS
            ),
            connector=tuple(self.custom("serviceusage", "Service", api, {"resourceID": api}) for api in APIS),
        )

    def topic(self, topic: str) -> Step:
        return Step(
            title=f"topic {topic}",
            look=self.gcloud("pubsub", "topics", "describe", topic),
            create=self.gcloud("pubsub", "topics", "create", topic),
            terraform=(("google_pubsub_topic", slug(topic, "_"), {"name": topic}),),
            connector=(self.custom("pubsub", "PubSubTopic", topic, {"resourceID": topic}),),
        )

    def versions(self) -> Step:
        """Return that old generations of a source are kept: they are what a rollback deploys."""
        bucket = self.settings.bucket
        return Step(
            title=f"bucket {bucket} keeps versions",
            create=self.gcloud("storage", "buckets", "update", f"gs://{bucket}", "--versioning"),
        )

    def bucket(self) -> Step:
        bucket, region = self.settings.bucket, self.settings.region
        return Step(
            title=f"bucket {bucket}",
            look=self.gcloud("storage", "buckets", "describe", f"gs://{bucket}"),
            create=self.gcloud(
                "storage", "buckets", "create", f"gs://{bucket}", "--location", region,
                "--uniform-bucket-level-access", "--public-access-prevention",
            ),
            terraform=(
                (
                    "google_storage_bucket",
                    "agent_source",
                    {
                        "name": bucket,
                        "location": region,
                        "uniform_bucket_level_access": True,
                        "public_access_prevention": "enforced",
                        "versioning": {"enabled": True},
                    },
                ),
            ),
            connector=(
                self.custom(
                    "storage",
                    "StorageBucket",
                    bucket,
                    {
                        "resourceID": bucket,
                        "location": region,
                        "uniformBucketLevelAccess": True,
                        "publicAccessPrevention": "enforced",
                        "versioning": {"enabled": True},
                    },
                ),
            ),
        )  # fmt: skip

    def repository(self) -> list[Step]:
        if self.repository_place is None:
            return []
        location, name = self.repository_place
        return [
            Step(
                title=f"image repository {self.settings.images}",
                look=self.gcloud("artifacts", "repositories", "describe", name, "--location", location),
                create=self.gcloud(
                    "artifacts", "repositories", "create", name, "--location", location,
                    "--repository-format", "docker", "--description", "Dry Work and its agents",
                ),
                terraform=(
                    (
                        "google_artifact_registry_repository",
                        "images",
                        {"repository_id": name, "location": location, "format": "DOCKER"},
                    ),
                ),
                connector=(
                    self.custom(
                        "artifactregistry",
                        "ArtifactRegistryRepository",
                        f"images-{name}",
                        {"resourceID": name, "format": "DOCKER", "location": location},
                    ),
                ),
            )
        ]  # fmt: skip

    def firestore(self) -> Step:
        database, region = self.settings.database, self.settings.region
        return Step(
            title=f"Firestore database {database}",
            look=self.gcloud("firestore", "databases", "describe", f"--database={database}"),
            create=self.gcloud(
                "firestore", "databases", "create", f"--database={database}", "--location", region,
                "--type", "firestore-native",
            ),
            terraform=(
                (
                    "google_firestore_database",
                    "agents",
                    {"name": database, "location_id": region, "type": "FIRESTORE_NATIVE"},
                ),
            ),
            connector=(
                self.custom(
                    "firestore",
                    "FirestoreDatabase",
                    f"firestore-{database}",
                    {"resourceID": database, "location": region, "projectRef": {"external": self.project}},
                ),
            ),
        )  # fmt: skip

    def secret(self, name: str) -> Step:
        return Step(
            title=f"secret {name} in Secret Manager, without a value",
            look=self.gcloud("secrets", "describe", name),
            create=self.gcloud("secrets", "create", name, "--replication-policy", "automatic"),
            terraform=(
                (
                    "google_secret_manager_secret",
                    slug(name, "_"),
                    {"secret_id": name, "replication": {"auto": {}}},
                ),
            ),
            connector=(
                self.custom(
                    "secretmanager",
                    "SecretManagerSecret",
                    name,
                    {"resourceID": name, "replication": {"automatic": True}},
                ),
            ),
        )

    def namespace(self) -> list[Step]:
        settings, context = self.settings, _context(self.settings)
        documents = render_namespace(
            project_id=self.project,
            namespace=settings.namespace,
            account=self.email("trading-agent"),
            config={
                "market_data_topic": settings.market_data_topic,
                "crypto_data_topic": settings.crypto_data_topic,
            },
        )
        shown = (
            f"kubectl --context {shlex.quote(context)} --namespace {settings.namespace} create secret generic "
            f'{settings.secret_name} \\\n  --from-file=api-key=<(printf %s "$ALPACA_API_KEY") \\\n'
            '  --from-file=secret-key=<(printf %s "$ALPACA_SECRET_KEY")'
        )
        return [
            Step(
                title=f"cluster {settings.cluster}: its address and certificate for kubectl",
                create=self.gcloud(
                    "container", "clusters", "get-credentials", settings.cluster, "--region", settings.region
                ),
            ),
            Step(
                title=f"namespace {settings.namespace}: quota, limits, network, service account, configuration",
                create=("kubectl", "--context", context, "apply", "--filename", "-"),
                stdin=to_yaml(documents),
                terraform=tuple(
                    ("kubernetes_manifest", slug(f"{document['kind']}-{document['metadata']['name']}", "_"),
                     {"manifest": document})
                    for document in documents
                ),
                connector=tuple(documents),
            ),
            Step(
                title=f"Secret {settings.secret_name} in the cluster, from the environment",
                look=(
                    "kubectl", "--context", context, "--namespace", settings.namespace,
                    "get", "secret", settings.secret_name,
                ),
                create=("kubectl", "--context", context, "create", "--filename", "-"),
                from_environment=("ALPACA_API_KEY", "ALPACA_SECRET_KEY"),
                shown=shown,
            ),
        ]  # fmt: skip

    def function(self, name: str, source: str) -> Step:
        settings = self.settings
        region = settings.region
        variables = {
            "GOOGLE_CLOUD_PROJECT": self.project,
            "CLOUDSDK_COMPUTE_REGION": region,
            "CLOUDSDK_CONTAINER_CLUSTER": settings.cluster,
            "DEPLOY_BUCKET": settings.bucket,
            "DEPLOY_NAMESPACE": settings.namespace,
            "DEPLOY_IMAGE_PREFIX": settings.images,
            "DEPLOY_RUNTIME_IMAGE": settings.base_image,
            "DEPLOY_BUILD_ACCOUNT": self.email("agent-build"),
            "DEPLOY_SECRET_NAME": settings.secret_name,
            "DEPLOY_COLLECTION": settings.collection,
            "DEPLOY_DATABASE": settings.database,
        }
        title = slug(name, "_")
        is_open = name != FOLLOW
        trigger = ("--trigger-http", "--allow-unauthenticated") if is_open else ("--trigger-topic", BUILDS_TOPIC)
        note = "it checks its callers' tokens itself" if is_open else f"called by the topic {BUILDS_TOPIC}"
        return Step(
            title=f"function {name}; {note}",
            look=self.gcloud("functions", "describe", name, "--gen2", "--region", region),
            create=self.gcloud(
                "functions", "deploy", name, "--gen2", "--region", region, "--runtime", "python311",
                "--source", source, "--entry-point", name, *trigger,
                "--service-account", self.email("deploy-function"), "--memory", "512Mi", "--timeout", "120s",
                "--max-instances", "10",
                # Neither a comma nor a semicolon is in a value: the settings are checked.
                "--set-env-vars", "^;^" + ";".join(f"{key}={value}" for key, value in variables.items()),
            ),
            is_function=True,
            terraform=(
                (
                    "google_storage_bucket_object",
                    "functions",
                    {
                        "name": "functions/${filesha256(\"function.zip\")}.zip",
                        "bucket": "${google_storage_bucket.agent_source.name}",
                        "source": "function.zip",
                    },
                ),
                (
                    "google_cloudfunctions2_function",
                    title,
                    {
                        "name": name,
                        "location": region,
                        "build_config": {
                            "runtime": "python311",
                            "entry_point": name,
                            "source": {
                                "storage_source": {
                                    "bucket": "${google_storage_bucket.agent_source.name}",
                                    "object": "${google_storage_bucket_object.functions.name}",
                                }
                            },
                        },
                        "service_config": {
                            "available_memory": "512Mi",
                            "timeout_seconds": 120,
                            "max_instance_count": 10,
                            "service_account_email": self.email("deploy-function"),
                            "environment_variables": variables,
                        },
                        **({} if is_open else self._trigger()),
                    },
                ),
                *(
                    [
                        (
                            "google_cloud_run_service_iam_member",
                            title,
                            {
                                "location": region,
                                "service": f"${{google_cloudfunctions2_function.{title}.service_config[0].service}}",
                                "role": "roles/run.invoker",
                                "member": "allUsers",
                            },
                        )
                    ]
                    if is_open
                    else []
                ),
            ),
        )  # fmt: skip

    def _trigger(self) -> dict[str, Any]:
        return {
            "event_trigger": {
                "event_type": "google.cloud.pubsub.topic.v1.messagePublished",
                "pubsub_topic": f"projects/{self.project}/topics/{BUILDS_TOPIC}",
                "trigger_region": self.settings.region,
            }
        }

    def schedule(self) -> Step:
        """Return the clock of `followBuilds`: a rollout ends after its build, which is the last thing it hears of."""
        name, region, every = "follow-builds", self.settings.region, "* * * * *"
        return Step(
            title=f"schedule {name}, every minute",
            look=self.gcloud("scheduler", "jobs", "describe", name, "--location", region),
            create=self.gcloud(
                "scheduler", "jobs", "create", "pubsub", name, "--location", region, "--schedule", every,
                "--topic", BUILDS_TOPIC, "--message-body", "{}",
            ),
            terraform=(
                (
                    "google_cloud_scheduler_job",
                    "follow_builds",
                    {
                        "name": name,
                        "region": region,
                        "schedule": every,
                        "pubsub_target": {
                            "topic_name": f"projects/{self.project}/topics/{BUILDS_TOPIC}",
                            "data": base64.b64encode(b"{}").decode(),
                        },
                    },
                ),
            ),
            connector=(
                self.custom(
                    "cloudscheduler",
                    "CloudSchedulerJob",
                    name,
                    {
                        "resourceID": name,
                        "location": region,
                        "schedule": every,
                        "pubsubTarget": {
                            "topicRef": {"external": f"projects/{self.project}/topics/{BUILDS_TOPIC}"},
                            "data": base64.b64encode(b"{}").decode(),
                        },
                    },
                ),
            ),
        )  # fmt: skip
