"""Who may do what in a project: service accounts, a role, bindings on the narrowest resource that has them. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from deploy.setup_base import Maker, Step, slug

ACCOUNTS = {
    "trading-agent": "Trading agents",
    "dry-work-hub": "Market data hub",
    "deploy-function": "Deploy functions",
    "agent-build": "Builds of agents",
}
SUBSCRIPTIONS_ROLE = "tradingAgentSubscriptions"
# An agent makes, reads and deletes its own subscriptions; Google's roles for that could delete topics too.
SUBSCRIPTION_PERMISSIONS = (
    "pubsub.subscriptions.consume",
    "pubsub.subscriptions.create",
    "pubsub.subscriptions.delete",
    "pubsub.subscriptions.get",
    "pubsub.subscriptions.list",
    "pubsub.subscriptions.update",
    "pubsub.topics.attachSubscription",
    "pubsub.topics.get",
)
HUB_NAMESPACES = ("dry-work-hub-paper", "dry-work-hub-live")


class AccessMaker(Maker):
    """Describes accounts, the role and the bindings."""

    def account(self, name: str, title: str) -> Step:
        email = self.email(name)
        own = email.partition("@")[0]
        return Step(
            title=f"service account {own}",
            look=self.gcloud("iam", "service-accounts", "describe", email),
            create=self.gcloud("iam", "service-accounts", "create", own, "--display-name", title),
            terraform=(("google_service_account", slug(name, "_"), {"account_id": own, "display_name": title}),),
            connector=(self.custom("iam", "IAMServiceAccount", own, {"displayName": title}),),
        )

    def subscriptions_role(self) -> Step:
        title = "Subscriptions of trading agents"
        return Step(
            title=f"role {SUBSCRIPTIONS_ROLE}",
            look=self.gcloud("iam", "roles", "describe", SUBSCRIPTIONS_ROLE),
            create=self.gcloud(
                "iam", "roles", "create", SUBSCRIPTIONS_ROLE, "--title", title, "--stage", "GA",
                "--permissions", ",".join(SUBSCRIPTION_PERMISSIONS),
            ),
            terraform=(
                (
                    "google_project_iam_custom_role",
                    "subscriptions",
                    {"role_id": SUBSCRIPTIONS_ROLE, "title": title, "permissions": list(SUBSCRIPTION_PERMISSIONS)},
                ),
            ),
            connector=(
                self.custom(
                    "iam",
                    "IAMCustomRole",
                    SUBSCRIPTIONS_ROLE,
                    {
                        "resourceID": SUBSCRIPTIONS_ROLE,
                        "title": title,
                        "stage": "GA",
                        "permissions": list(SUBSCRIPTION_PERMISSIONS),
                    },
                ),
            ),
        )  # fmt: skip

    def bindings(self) -> list[Step]:
        """Return who may do what, on the narrowest resource that has it."""
        agent, hub = self._member("trading-agent"), self._member("dry-work-hub")
        function, build = self._member("deploy-function"), self._member("agent-build")
        own_role = f"projects/{self.project}/roles/{SUBSCRIPTIONS_ROLE}"
        found = [
            self._on_project(agent, own_role),
            *(self._on_topic(topic, hub, "roles/pubsub.publisher") for topic in self.topics),
            self._on_project(function, "roles/cloudbuild.builds.editor"),
            self._on_project(function, "roles/container.developer"),
            self._on_project(function, "roles/datastore.user"),
            self._on_project(function, "roles/logging.viewer"),
            self._on_bucket(function, "roles/storage.objectUser"),
            self._on_account("deploy-function", function, "roles/iam.serviceAccountTokenCreator"),  # signs uploads
            self._on_account("agent-build", function, "roles/iam.serviceAccountUser"),
            self._on_bucket(build, "roles/storage.objectViewer"),
            self._on_project(build, "roles/container.developer"),
            self._on_project(build, "roles/logging.logWriter"),
        ]
        if self.repository_place is not None:
            found.append(self._on_repository(build, "roles/artifactregistry.writer"))
        pool = f"{self.project}.svc.id.goog"
        users = [("trading-agent", self.settings.namespace), *(("dry-work-hub", name) for name in HUB_NAMESPACES)]
        for account, namespace in users:
            member = f"serviceAccount:{pool}[{namespace}/{account}]"
            found.append(self._on_account(account, member, "roles/iam.workloadIdentityUser"))
        return found

    def _member(self, name: str) -> str:
        return f"serviceAccount:{self.email(name)}"

    def _binding(
        self,
        what: str,
        words: tuple[str, ...],
        member: str,
        role: str,
        terraform: tuple[str, Mapping[str, Any]],
        reference: Mapping[str, str],
    ) -> Step:
        kind, arguments = terraform
        name = f"{what}-{role.rpartition('/')[2]}-{member.partition(':')[2]}"
        return Step(
            title=f"{member.partition(':')[2]} has {role} on {what}",
            create=self.gcloud(*words, "--member", member, "--role", role),
            terraform=((kind, slug(name, "_"), {**arguments, "role": role, "member": member}),),
            connector=(
                self.custom(
                    "iam", "IAMPolicyMember", name, {"member": member, "role": role, "resourceRef": dict(reference)}
                ),
            ),
        )  # fmt: skip

    def _on_project(self, member: str, role: str) -> Step:
        # `gcloud projects` takes the project as a word, and no --project.
        step = self._binding(
            "project", (), member, role, ("google_project_iam_member", {"project": self.project}),
            {"kind": "Project", "external": f"projects/{self.project}"},
        )  # fmt: skip
        create = (
            "gcloud", "projects", "add-iam-policy-binding", self.project, "--member", member, "--role", role,
            "--condition", "None", "--quiet",
        )  # fmt: skip
        return Step(title=step.title, create=create, terraform=step.terraform, connector=step.connector)

    def _on_topic(self, topic: str, member: str, role: str) -> Step:
        return self._binding(
            f"topic {topic}", ("pubsub", "topics", "add-iam-policy-binding", topic), member, role,
            ("google_pubsub_topic_iam_member", {"topic": topic}),
            {"kind": "PubSubTopic", "external": f"projects/{self.project}/topics/{topic}"},
        )  # fmt: skip

    def _on_bucket(self, member: str, role: str) -> Step:
        bucket = self.settings.bucket
        return self._binding(
            f"bucket {bucket}", ("storage", "buckets", "add-iam-policy-binding", f"gs://{bucket}"), member, role,
            ("google_storage_bucket_iam_member", {"bucket": bucket}), {"kind": "StorageBucket", "external": bucket},
        )  # fmt: skip

    def _on_repository(self, member: str, role: str) -> Step:
        assert self.repository_place is not None
        location, name = self.repository_place
        return self._binding(
            f"repository {name}",
            ("artifacts", "repositories", "add-iam-policy-binding", name, "--location", location), member, role,
            ("google_artifact_registry_repository_iam_member", {"repository": name, "location": location}),
            {
                "kind": "ArtifactRegistryRepository",
                "external": f"projects/{self.project}/locations/{location}/repositories/{name}",
            },
        )  # fmt: skip

    def _on_account(self, account: str, member: str, role: str) -> Step:
        email = self.email(account)
        path = f"projects/{self.project}/serviceAccounts/{email}"
        return self._binding(
            f"account {account}", ("iam", "service-accounts", "add-iam-policy-binding", email), member, role,
            ("google_service_account_iam_member", {"service_account_id": path}),
            {"kind": "IAMServiceAccount", "external": path},
        )  # fmt: skip
