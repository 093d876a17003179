"""Archives in Cloud Storage, at `<userId>/<agentId>/agent-source.zip`.

The bucket is to keep older versions of its objects (Object Versioning): a build reads the generation that it was
started with, whatever is uploaded meanwhile, and rolling back reads an older one.
"""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import os
from collections.abc import Callable
from typing import Any

import google.auth.credentials
import google.auth.transport.requests
from google.api_core.retry import Retry
from google.auth.credentials import AnonymousCredentials
from google.cloud import storage
from google.cloud.storage.retry import DEFAULT_RETRY

from deploy.archive import ARCHIVE_NAME
from deploy.errors import ConflictError, InternalError, NotFoundError
from deploy.google_errors import mapped
from deploy.ports import SignedUpload

_PART = "Cloud Storage"
_CONTENT_TYPE = "application/zip"


class GcsSourceStore:
    """A `SourceStore` in a bucket. `STORAGE_EMULATOR_HOST` points Google's client to a server that stands in.

    Args:
        now: the time, UTC.
        signer: credentials that sign upload addresses; None: those of the client, by IAM when they hold no key.
    """

    def __init__(
        self,
        project: str,
        bucket: str,
        *,
        now: Callable[[], dt.datetime],
        timeout_s: float = 10.0,
        expiry_s: int = 900,
        max_bytes: int = 10 << 20,
        signer: google.auth.credentials.Signing | None = None,
    ) -> None:
        self._now = now
        self._name = bucket
        self._timeout_s = timeout_s
        self._expiry_s = expiry_s
        self._max_bytes = max_bytes
        self._signer = signer
        emulator = os.environ.get("STORAGE_EMULATOR_HOST", "")
        with mapped(_PART):
            credentials = AnonymousCredentials() if emulator else None  # type: ignore[no-untyped-call]
            self._client = storage.Client(project=project, credentials=credentials)
        self._bucket = self._client.bucket(bucket)

    def generation(self, user_id: str, agent_id: str) -> str:
        """Return the generation of the newest archive; empty when there is none."""
        with mapped(_PART):
            found = self._bucket.get_blob(_object(user_id, agent_id), **self._patience())
        return "" if found is None else str(found.generation)

    def size_bytes(self, user_id: str, agent_id: str, generation: str) -> int:
        """Return the length of an archive."""
        with mapped(_PART):
            blob = self._blob(user_id, agent_id, generation)
            blob.reload(**self._patience())
            return int(blob.size or 0)

    def read(self, user_id: str, agent_id: str, generation: str) -> bytes:
        """Return an archive."""
        try:
            with mapped(_PART):
                return bytes(self._blob(user_id, agent_id, generation).download_as_bytes(**self._patience()))
        except NotFoundError:
            raise NotFoundError(
                f"the stored source is not in the bucket {self._name} any more: upload it again"
                " (the bucket is to keep older versions of its objects)"
            ) from None

    def write(self, user_id: str, agent_id: str, archive: bytes, *, expected_generation: str) -> str:
        """Store an archive and return its generation."""
        blob = self._bucket.blob(_object(user_id, agent_id))
        try:
            with mapped(_PART, writes=True, versions=True):
                blob.upload_from_string(
                    archive,
                    content_type=_CONTENT_TYPE,
                    if_generation_match=int(expected_generation or 0),
                    **self._patience(),
                )
                return str(blob.generation)
        except ConflictError:
            # An answer may have been lost and the request sent again: then it is our own archive that is there.
            newest = self._bucket.get_blob(blob.name, **self._patience())
            if newest is not None and newest.md5_hash == _md5(archive):
                return str(newest.generation)
            raise ConflictError("another archive was uploaded meanwhile; call again") from None
        except NotFoundError:
            raise InternalError(f"there is no bucket {self._name}: `dry-work setup` makes it") from None

    def address(self, user_id: str, agent_id: str, generation: str) -> str:
        """Return the address of an archive, with its generation."""
        return f"gs://{self._name}/{_object(user_id, agent_id)}#{generation}"

    def sign_upload(self, user_id: str, agent_id: str, *, expected_generation: str) -> SignedUpload | None:
        """Return an address that takes one archive, once, of at most the allowed length; None when nothing can sign."""
        headers = {
            "content-type": _CONTENT_TYPE,
            "x-goog-content-length-range": f"1,{self._max_bytes}",
            "x-goog-if-generation-match": expected_generation or "0",
        }
        expires = self._now() + dt.timedelta(seconds=self._expiry_s)
        with mapped("the signing of upload addresses"):
            signing = self._signing()
            if signing is None:
                return None
            url = self._bucket.blob(_object(user_id, agent_id)).generate_signed_url(
                version="v4",
                method="PUT",
                expiration=dt.timedelta(seconds=self._expiry_s),
                headers=dict(headers),  # Google's library adds to it
                api_access_endpoint=self._client._connection.API_BASE_URL,
                **signing,
            )
        return SignedUpload(url=str(url), method="PUT", headers=headers, expires=expires)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _signing(self) -> dict[str, Any] | None:
        credentials = self._signer or self._client._credentials
        if isinstance(credentials, google.auth.credentials.Signing):
            return {"credentials": credentials}
        if not hasattr(credentials, "service_account_email"):
            return None
        # On Google Cloud there is no key; IAM signs for the account (iam.serviceAccounts.signBlob).
        credentials.refresh(google.auth.transport.requests.Request())
        return {"service_account_email": credentials.service_account_email, "access_token": credentials.token}

    def _blob(self, user_id: str, agent_id: str, generation: str) -> Any:
        if not (generation.isascii() and generation.isdigit()):
            raise NotFoundError(f"no stored source of generation {generation!a}")
        return self._bucket.blob(_object(user_id, agent_id), generation=int(generation))

    def _patience(self) -> dict[str, Any]:
        retry: Retry = DEFAULT_RETRY.with_timeout(self._timeout_s)
        return {"timeout": (min(5.0, self._timeout_s), self._timeout_s), "retry": retry}


def _object(user_id: str, agent_id: str) -> str:
    return f"{user_id}/{agent_id}/{ARCHIVE_NAME}"


def _md5(content: bytes) -> str:
    return base64.b64encode(hashlib.md5(content, usedforsecurity=False).digest()).decode()
