"""Puts the service together from the environment: Firestore, Cloud Storage, Cloud Build, GKE."""

from __future__ import annotations

import datetime as dt
import importlib
import secrets
import time
from collections.abc import Callable, Mapping

from deploy.errors import ConfigurationError
from deploy.http import Api
from deploy.manifest import AgentManifest
from deploy.service import DeployService
from deploy.settings import read_settings


def utc_now() -> dt.datetime:
    """Return the time, UTC."""
    return dt.datetime.now(dt.UTC)


def new_id() -> str:
    """Return a new random text of 20 letters and digits."""
    return secrets.token_hex(10)


def build_api(environment: Mapping[str, str]) -> Api:
    """Return the functions of the service that an environment describes.

    `DEPLOY_SERVICE_FACTORY` may name another function that does it, as `module:function`.

    Raises:
        ConfigurationError: naming the variable, the value and what is allowed.
    """
    factory = environment.get("DEPLOY_SERVICE_FACTORY", "")
    if factory:
        return _load(factory)(environment)
    return _build_cloud(environment)


def _load(factory: str) -> Callable[[Mapping[str, str]], Api]:
    module, _, name = factory.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigurationError(f"DEPLOY_SERVICE_FACTORY {factory!r}: expected module:function ({error})") from error
    return found  # type: ignore[no-any-return]


def _build_cloud(environment: Mapping[str, str]) -> Api:
    from deploy.build_cloud import CloudBuildService, bucket_log_reader
    from deploy.cluster_kubernetes import KubernetesCluster, connect
    from deploy.identity import build_verifier
    from deploy.source_gcs import GcsSourceStore
    from deploy.store_firestore import FirestoreAgentStore

    settings = read_settings(environment)
    timeout_s = settings.call_timeout_s
    service = DeployService(
        settings,
        agents=FirestoreAgentStore(
            settings.project, collection=settings.collection, database=settings.database, timeout_s=timeout_s
        ),
        sources=GcsSourceStore(
            settings.project,
            settings.bucket,
            now=utc_now,
            timeout_s=timeout_s,
            expiry_s=settings.upload_expiry_s,
            max_bytes=settings.max_archive_bytes,
        ),
        builds=CloudBuildService(
            settings.project, timeout_s=timeout_s, read_log=bucket_log_reader(settings.project, timeout_s=timeout_s)
        ),
        cluster=KubernetesCluster(
            connect(settings.project, settings.region, settings.cluster, environment=environment, timeout_s=timeout_s),
            settings.namespace,
            now=utc_now,
            timeout_s=timeout_s,
        ),
        render=AgentManifest(settings),
        now=utc_now,
        new_id=new_id,
        sleep=time.sleep,
    )
    return Api(service, build_verifier(settings.project, settings.audiences))
