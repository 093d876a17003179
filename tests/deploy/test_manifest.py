"""The objects of an agent and of its namespace: what the contract asks for, and data that stays data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from deploy.errors import InvalidRequestError
from deploy.manifest import (
    CREATOR_ANNOTATION,
    AgentManifest,
    parse_yaml,
    read_template,
    render_agent,
    render_namespace,
    to_yaml,
)
from deploy.schemas import find_problems
from deploy.settings import DeploySettings

K8S = Path(__file__).parents[2] / "k8s"
IMAGE = "gcr.io/my-project/trading-agent-a1:5f0c"


def render(**changes: Any) -> list[dict[str, Any]]:
    given = {"agent_id": "a1", "creator_id": "user1", "project_id": "my-project", "image": IMAGE}
    return render_agent(**{**given, **changes})


def of(documents: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    (found,) = [document for document in documents if document["kind"] == kind]
    return found


def agent_container(documents: list[dict[str, Any]]) -> dict[str, Any]:
    (container,) = of(documents, "Deployment")["spec"]["template"]["spec"]["containers"]
    return container  # type: ignore[no-any-return]


def test_the_deployment_has_the_names_labels_and_strategy_of_the_interface() -> None:
    deployment = of(render(), "Deployment")
    metadata, spec = deployment["metadata"], deployment["spec"]
    assert (metadata["name"], metadata["namespace"]) == ("trading-agent-a1", "trading-agents")
    assert metadata["labels"] == {"app": "trading-agent", "agent-id": "a1", "creator-id": "user1"}
    assert spec["selector"]["matchLabels"] == {"app": "trading-agent", "agent-id": "a1"}
    assert spec["template"]["metadata"]["labels"] == {"app": "trading-agent", "agent-id": "a1"}
    assert (spec["replicas"], spec["strategy"]) == (1, {"type": "Recreate"})
    pod = spec["template"]["spec"]
    assert pod["serviceAccountName"] == "trading-agent"
    assert pod["terminationGracePeriodSeconds"] == 60
    container = agent_container(render())
    assert (container["name"], container["image"], container["command"]) == ("agent", IMAGE, ["dry-work", "run"])
    assert container["resources"] == {
        "requests": {"memory": "256Mi", "cpu": "100m"},
        "limits": {"memory": "512Mi", "cpu": "200m"},
    }


def test_its_variables_come_from_where_the_interface_says() -> None:
    variables = {entry["name"]: entry for entry in agent_container(render())["env"]}
    plain = {name: entry["value"] for name, entry in variables.items() if "value" in entry}
    assert plain == {"AGENT_ID": "a1", "GOOGLE_CLOUD_PROJECT": "my-project"}
    secrets = {
        name: entry["valueFrom"]["secretKeyRef"]["key"]
        for name, entry in variables.items()
        if "secretKeyRef" in entry.get("valueFrom", {})
    }
    assert secrets == {
        "ALPACA_API_KEY": "api-key",
        "ALPACA_SECRET_KEY": "secret-key",
        "ALPACA_ACCOUNT_ID": "account-id",
    }
    config = {
        entry["valueFrom"]["configMapKeyRef"]["key"]: name
        for name, entry in variables.items()
        if "configMapKeyRef" in entry.get("valueFrom", {})
    }
    assert config == {
        "project_id": "PROJECT_ID",
        "redis_host": "REDIS_HOST",
        "redis_port": "REDIS_PORT",
        "market_data_topic": "MARKET_DATA_TOPIC",
        "crypto_data_topic": "CRYPTO_DATA_TOPIC",
    }
    assert set(config) == set(of(render_namespace(project_id="my-project"), "ConfigMap")["data"])


def test_its_state_is_a_volume_of_its_own_and_the_only_place_besides_scratch() -> None:
    documents = render()
    claim = of(documents, "PersistentVolumeClaim")
    assert claim["metadata"]["name"] == "agent-state-a1"
    assert claim["spec"] == {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
    mounts = {mount["mountPath"]: mount["name"] for mount in agent_container(documents)["volumeMounts"]}
    assert mounts == {"/var/lib/trading-agent": "state", "/tmp": "scratch"}
    volumes = {volume["name"]: volume for volume in of(documents, "Deployment")["spec"]["template"]["spec"]["volumes"]}
    assert volumes["state"]["persistentVolumeClaim"] == {"claimName": "agent-state-a1"}
    assert "emptyDir" in volumes["scratch"]


def test_its_probes_look_at_the_heartbeat() -> None:
    container = agent_container(render())
    live = container["livenessProbe"]
    assert live["exec"]["command"] == ["dry-work", "health", "--state-dir", "/var/lib/trading-agent"]
    assert (live["periodSeconds"], live["initialDelaySeconds"]) == (60, 60)
    assert container["readinessProbe"]["exec"]["command"] == [*live["exec"]["command"], "--ready"]


def allowed(rule: dict[str, Any]) -> tuple[set[Any], set[tuple[str, int]]]:
    """Return where a rule leads, and the ports."""
    places = set()
    for peer in rule["to"]:
        if "ipBlock" in peer:
            places.add(peer["ipBlock"]["cidr"])
        else:
            pods = peer.get("podSelector", {}).get("matchLabels", {})
            places.add(("in the cluster", *sorted(pods.values())))
    return places, {(port["protocol"], port["port"]) for port in rule["ports"]}


OPEN = {"0.0.0.0/0", "::/0"}
EGRESS = [
    ({("in the cluster", "kube-dns"), "169.254.20.10/32", "169.254.169.254/32"}, {("UDP", 53), ("TCP", 53)}),
    ({"169.254.169.254/32", "169.254.169.252/32"}, {("TCP", 80), ("TCP", 988)}),
    (OPEN, {("TCP", 443)}),
    ({("in the cluster",)}, {("TCP", 6379)}),
    ({("in the cluster", "dry-work-hub")}, {("TCP", 8099), ("TCP", 50052)}),
]


def test_the_network_is_open_to_what_is_named_and_nothing_else() -> None:
    policy = of(render(), "NetworkPolicy")["spec"]
    assert policy["podSelector"]["matchLabels"] == {"app": "trading-agent", "agent-id": "a1"}
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert policy["ingress"] == [
        {"ports": [{"protocol": "TCP", "port": 8082}, {"protocol": "TCP", "port": 9090}]}  # health and metrics
    ]
    assert [allowed(rule) for rule in policy["egress"]] == EGRESS
    (https,) = [rule for rule in policy["egress"] if allowed(rule)[0] == OPEN]
    private = {entry for peer in https["to"] for entry in peer["ipBlock"]["except"]}
    assert {"10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16", "100.64.0.0/10", "fc00::/7"} <= private


def test_by_name_the_rule_for_all_of_https_gives_way_to_one_for_google_and_alpaca() -> None:
    documents = render(by_name=True)
    assert [allowed(rule) for rule in of(documents, "NetworkPolicy")["spec"]["egress"]] == [
        rule for rule in EGRESS if rule[0] != OPEN
    ]
    (rule,) = of(documents, "FQDNNetworkPolicy")["spec"]["egress"]
    patterns = {match["pattern"] for match in rule["matches"]}
    assert {"*.googleapis.com", "*.alpaca.markets"} <= patterns
    assert rule["ports"] == [{"protocol": "TCP", "port": 443}]
    assert [document["kind"] for document in documents][-1] == "Deployment"


@pytest.mark.parametrize("by_name", [False, True])
@pytest.mark.parametrize("version", ["1.30", "1.31", "1.37"])
def test_it_fits_the_schemas_and_the_restricted_profile(by_name: bool, version: str) -> None:
    assert find_problems(render(by_name=by_name), version=version) == []


def test_the_namespace_fits_too_and_enforces_the_profile() -> None:
    documents = render_namespace(project_id="my-project")
    assert find_problems(documents) == []
    labels = of(documents, "Namespace")["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"
    annotations = of(documents, "ServiceAccount")["metadata"]["annotations"]
    assert annotations == {"iam.gke.io/gcp-service-account": "trading-agent@my-project.iam.gserviceaccount.com"}
    assert {document["kind"] for document in documents} == {
        "Namespace", "ResourceQuota", "LimitRange", "NetworkPolicy", "ServiceAccount", "ConfigMap",
    }  # fmt: skip
    quota = of(documents, "ResourceQuota")["spec"]["hard"]
    limits = agent_container(render())["resources"]["limits"]
    assert int(quota["pods"]) * int(limits["cpu"].rstrip("m")) == int(quota["limits.cpu"]) * 1000
    assert int(quota["pods"]) * int(limits["memory"].rstrip("Mi")) == int(quota["limits.memory"].rstrip("Gi")) * 1024


def test_every_yaml_file_of_the_repository_fits() -> None:
    seen = 0
    for path in sorted(K8S.rglob("*.yaml")):
        if "chart" in path.parts:
            continue
        text = path.read_text(encoding="utf-8")
        for name, value in {"AGENT_ID": "a1", "CREATOR_ID": "u", "PROJECT_ID": "my-project"}.items():
            text = text.replace(f"${{{name}}}", value)
        for document in parse_yaml(text):
            # The agent's image gets its tag when it is rendered.
            is_template = path.name == "PaperTrading.yaml"
            problems = find_problems([document])
            assert [found for found in problems if not (is_template and "neither a digest" in found)] == [], path
            seen += 1
    assert seen >= 20


@pytest.mark.parametrize("agent_id", ["null", "true", "1e3", "0x1f", "007", "y", "a" * 49, "1-2"])
def test_an_id_that_looks_like_another_value_stays_a_text(agent_id: str) -> None:
    documents = render(agent_id=agent_id)
    assert agent_container(documents)["env"][0] == {"name": "AGENT_ID", "value": agent_id}
    assert list(yaml.safe_load_all(to_yaml(documents))) == documents
    assert find_problems(documents) == []


@pytest.mark.parametrize(
    "change",
    [
        {"agent_id": ""},
        {"agent_id": "a" * 50},
        {"agent_id": "A"},
        {"agent_id": "a\n"},
        {"agent_id": 'a"b'},
        {"agent_id": "-a"},
        {"agent_id": "a\nimage: evil"},
        {"agent_id": "${PROJECT_ID}"},
        {"project_id": "p"},
        {"project_id": "my-project\nkind: Pod"},
        {"namespace": "a/b"},
        {"secret_name": "x y"},
        {"image": "gcr.io/my-project/trading-agent-a1"},
        {"image": "gcr.io/my-project/trading-agent-a1:latest"},
        {"image": "gcr.io/my-project/a1:x y"},
        {"image": "trading-agent-a1:5f0c"},
    ],
)
def test_what_is_no_id_project_name_or_image_of_a_build_is_refused(change: dict[str, str]) -> None:
    with pytest.raises(InvalidRequestError, match="expected"):
        render(**change)


@settings(max_examples=60, deadline=None)
@given(creator=st.text(max_size=200))
@example('"}, {"privileged": true}')
@example("x\nspec:\n  hostNetwork: true")
@example("${AGENT_ID}")
@example("é" * 100)
def test_a_creator_id_changes_its_label_and_annotation_and_nothing_else(creator: str) -> None:
    plain, found = render(), render(creator_id=creator)
    metadata = of(found, "Deployment")["metadata"]
    label = metadata["labels"].get("creator-id", "")
    assert label == creator or metadata["annotations"] == {CREATOR_ANNOTATION: creator}
    metadata["labels"]["creator-id"] = "user1"
    metadata.pop("annotations", None)
    assert found == plain


@settings(max_examples=60, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=8,
    )
)
def test_yaml_that_is_written_is_read_as_it_was(value: Any) -> None:
    document = {"apiVersion": "v1", "kind": "ConfigMap", "data": value}
    assert parse_yaml(to_yaml([document])) == [document]


def test_the_settings_of_a_service_reach_the_manifest() -> None:
    given = DeploySettings(project="my-project", namespace="agents", secret_name="keys")
    documents, text = AgentManifest(given)(normalised="a1", user_id="u", image=IMAGE)
    assert parse_yaml(text) == documents
    assert {document["metadata"]["namespace"] for document in documents} == {"agents"}
    names = {
        entry["valueFrom"]["secretKeyRef"]["name"]
        for entry in agent_container(documents)["env"]
        if "secretKeyRef" in entry.get("valueFrom", {})
    }
    assert names == {"keys"}


def test_a_template_is_not_changed_by_what_is_made_of_it() -> None:
    before = to_yaml(read_template("PaperTrading.yaml"))
    render(by_name=True)
    assert to_yaml(read_template("PaperTrading.yaml")) == before
    assert "${AGENT_ID}" in before
