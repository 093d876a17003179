"""The web page of the service: its files and the headers that they travel with.

The files are in `page/`: HTML, style and ES modules, as they stand. No file is looked for by what a request says, so no
path can leave the folder. The page talks to the functions of its own origin only.
"""

from __future__ import annotations

import functools
import gzip
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from deploy.http import Response
from deploy.settings import MIB, DeploySettings

CONFIG_FILE = "config.json"  # made here, not a file
GCLOUD_AUDIENCE = "32555940559.apps.googleusercontent.com"  # of what `gcloud auth print-identity-token` prints

_FOLDER = Path(__file__).parent / "page"
_START = "index.html"
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_CLIENT_ID = ".apps.googleusercontent.com"
# What Google Identity Services asks for: https://developers.google.com/identity/gsi/web/guides/get-google-api-clientid
_GOOGLE = {
    "script-src": "https://accounts.google.com/gsi/client",
    "style-src": "https://accounts.google.com/gsi/style",
    "connect-src": "https://accounts.google.com/gsi/",
    "frame-src": "https://accounts.google.com/gsi/",
}


@dataclass(frozen=True, kw_only=True)
class PageSettings:
    """What the page is told of its service. Anybody may read it: it holds no secret."""

    google_client_id: str = (
        ""  # OAuth client of the button "Sign in with Google"; empty: no button, no script of others
    )
    takes_gcloud_tokens: bool = False
    token_file: str = ""  # of the local target: the file whose token signs in; empty in the cloud
    max_archive_bytes: int = 10 * MIB


def page_settings(settings: DeploySettings) -> PageSettings:
    """Return what the page of a service in the cloud is told.

    An audience that is an OAuth client's id, other than gcloud's own, turns on the button of Google.
    """
    clients = [name for name in settings.audiences if name.endswith(_CLIENT_ID) and name != GCLOUD_AUDIENCE]
    return PageSettings(
        google_client_id=clients[0] if clients else "",
        takes_gcloud_tokens=GCLOUD_AUDIENCE in settings.audiences,
        max_archive_bytes=settings.max_archive_bytes,
    )


def page_response(
    path: str,
    *,
    method: str = "GET",
    headers: Mapping[str, str] | None = None,
    settings: PageSettings | None = None,
) -> Response | None:
    """Return a file of the page, or None when the request is not for one.

    Args:
        path: of the request, `/` for the page itself, without what a proxy or Cloud Functions has put before it.
        method: GET and HEAD are answered; every other is a call of a function.
        headers: of the request, names in lower case; `if-none-match` and `accept-encoding` are read.
        settings: what the page is told; by default that tokens are pasted.
    """
    if method not in ("GET", "HEAD"):
        return None
    asked = headers or {}
    settings = settings or PageSettings()
    name = path.removeprefix("/") or _START
    found = _make_config(settings) if name == CONFIG_FILE else _read_files().get(name)
    if found is None:
        return None
    is_packed = _takes_gzip(asked.get("accept-encoding", ""))
    etag = f'"{found.digest}-gzip"' if is_packed else f'"{found.digest}"'
    told = {
        **_security_headers(settings),
        # Asked again each time, and answered by 304: a new version of the service is a new page at once.
        "Cache-Control": "no-cache",
        "ETag": etag,
        "Vary": "Accept-Encoding",
    }
    if _matches(asked.get("if-none-match", ""), etag):
        return Response(status=304, headers=told)
    told["Content-Type"] = found.content_type
    if is_packed:
        told["Content-Encoding"] = "gzip"
    body = found.packed if is_packed else found.content
    return Response(status=200, body=b"" if method == "HEAD" else body, headers=told)


@dataclass(eq=False)
class _File:
    content: bytes = field(repr=False)
    content_type: str

    @functools.cached_property
    def digest(self) -> str:
        return hashlib.sha256(self.content).hexdigest()[:32]

    @functools.cached_property
    def packed(self) -> bytes:
        return gzip.compress(self.content, mtime=0)


@functools.cache
def _read_files() -> dict[str, _File]:
    return {
        path.name: _File(path.read_bytes(), _TYPES[path.suffix])
        for path in sorted(_FOLDER.iterdir())
        if path.suffix in _TYPES
    }


def _make_config(settings: PageSettings) -> _File:
    config = {
        "googleClientId": settings.google_client_id,
        "takesGcloudTokens": settings.takes_gcloud_tokens,
        "tokenFile": settings.token_file,
        "maxArchiveBytes": settings.max_archive_bytes,
    }
    return _File(json.dumps(config).encode(), "application/json; charset=utf-8")


def _security_headers(settings: PageSettings) -> dict[str, str]:
    policy = {
        "default-src": "'none'",
        "script-src": "'self'",
        "style-src": "'self'",
        "img-src": "'self'",
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    if settings.google_client_id:
        for directive, source in _GOOGLE.items():
            policy[directive] = f"{policy.get(directive, '')} {source}".strip()
    else:
        # No text can become markup then, not even by mistake; Google's script makes its button from texts.
        policy |= {"require-trusted-types-for": "'script'", "trusted-types": "'none'"}
    return {
        "Content-Security-Policy": "; ".join(f"{directive} {sources}" for directive, sources in policy.items()),
        "Cross-Origin-Opener-Policy": "same-origin-allow-popups" if settings.google_client_id else "same-origin",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Permissions-Policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
        # Google's button compares the origin that it is on with those of its client.
        "Referrer-Policy": "strict-origin-when-cross-origin" if settings.google_client_id else "no-referrer",
        "X-Content-Type-Options": "nosniff",
        "X-Frame-Options": "DENY",
    }


def _matches(if_none_match: str, etag: str) -> bool:
    """Tell whether a client has this version; a proxy that packs an answer makes its tag a weak one."""
    tags = [tag.strip().removeprefix("W/") for tag in if_none_match.split(",")]
    return etag in tags or "*" in tags


def _takes_gzip(accept_encoding: str) -> bool:
    for entry in accept_encoding.lower().split(","):
        name, _, quality = entry.partition(";")
        if name.strip() in ("gzip", "*"):
            return quality.replace(" ", "") not in ("q=0", "q=0.0", "q=0.00", "q=0.000")
    return False
