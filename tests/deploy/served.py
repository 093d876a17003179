"""The service of the functions under test: real clients on the servers that a test has started."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path

import google.oauth2.service_account
import grpc
import kubernetes
from google.cloud.devtools import cloudbuild_v1 as cloudbuild
from google.cloud.devtools.cloudbuild_v1.services.cloud_build.transports import CloudBuildGrpcTransport

from deploy.build_cloud import CloudBuildService
from deploy.cluster_kubernetes import KubernetesCluster
from deploy.factory import new_id, utc_now
from deploy.http import Api
from deploy.identity import Certificates, build_verifier
from deploy.manifest import AgentManifest
from deploy.ports import SourceStore
from deploy.service import DeployService
from deploy.settings import read_settings
from deploy.source_folder import FolderSourceStore
from deploy.store_sqlite import SqliteAgentStore

VARIABLE = "SERVED_BY_TEST"


def build_api(environment: Mapping[str, str]) -> Api:
    """Return the functions on the servers that the file named by `SERVED_BY_TEST` lists."""
    places = json.loads(Path(environment[VARIABLE]).read_text(encoding="utf-8"))
    settings = read_settings(environment)
    channel = grpc.insecure_channel(f"127.0.0.1:{places['cloud_build_port']}")
    configuration = kubernetes.client.Configuration()
    configuration.host = places["kubernetes"]
    sources: SourceStore = FolderSourceStore(Path(places["folder"]) / "sources")
    if places.get("bucket"):
        from deploy.source_gcs import GcsSourceStore

        account = google.oauth2.service_account.Credentials
        signer = account.from_service_account_info(places["signer"])  # type: ignore[no-untyped-call]
        sources = GcsSourceStore(settings.project, settings.bucket, now=utc_now, signer=signer)
    service = DeployService(
        settings,
        agents=SqliteAgentStore(Path(places["folder"]) / "agents.sqlite"),
        sources=sources,
        builds=CloudBuildService(
            settings.project,
            client=cloudbuild.CloudBuildClient(transport=CloudBuildGrpcTransport(channel=channel)),
        ),
        cluster=KubernetesCluster(kubernetes.client.ApiClient(configuration), settings.namespace, now=utc_now),
        render=AgentManifest(settings),
        now=utc_now,
        new_id=new_id,
        sleep=time.sleep,
    )

    def fetch(address: str) -> Certificates:
        del address
        return Certificates(by_key=places["certificates"], max_age_s=3600)

    return Api(service, build_verifier(settings.project, settings.audiences, fetch=fetch))
