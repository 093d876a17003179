"""The page's files and headers, as any server of the service answers them."""

from __future__ import annotations

import dataclasses
import gzip
import json
import re
import sys
from pathlib import Path

import functions_framework
import pytest

from deploy.http import Api
from deploy.identity import build_verifier
from deploy.page import GCLOUD_AUDIENCE, PageSettings, page_response, page_settings
from deploy.settings import DeploySettings
from deploy.staging import stage_functions
from tests.deploy.service_stack import Stack

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy/page"
CLIENT = "123-abc.apps.googleusercontent.com"
MAX_SENT_BYTES = 40_000  # all files of the page, as a browser gets them


def policy_of(settings: PageSettings) -> dict[str, list[str]]:
    found = page_response("/", settings=settings)
    assert found is not None
    parts = [part.split() for part in found.headers["Content-Security-Policy"].split("; ")]
    return {directive: sources for directive, *sources in parts}


@pytest.mark.parametrize(
    ("path", "content_type"),
    [
        ("/", "text/html; charset=utf-8"),
        ("", "text/html; charset=utf-8"),
        ("/index.html", "text/html; charset=utf-8"),
        ("/page.css", "text/css; charset=utf-8"),
        ("/app.js", "text/javascript; charset=utf-8"),
        ("/icon.svg", "image/svg+xml"),
        ("/config.json", "application/json; charset=utf-8"),
    ],
)
def test_every_file_has_its_type_and_the_headers_that_close_the_page(path: str, content_type: str) -> None:
    found = page_response(path)
    assert found is not None
    assert found.status == 200
    assert found.body
    assert found.headers["Content-Type"] == content_type
    assert found.headers["X-Content-Type-Options"] == "nosniff"
    assert found.headers["X-Frame-Options"] == "DENY"
    assert found.headers["Referrer-Policy"] == "no-referrer"
    assert found.headers["Cross-Origin-Opener-Policy"] == "same-origin"
    assert found.headers["Cache-Control"] == "no-cache"
    assert "Content-Security-Policy" in found.headers
    assert "Access-Control-Allow-Origin" not in found.headers


@pytest.mark.parametrize(
    "path",
    [
        "/../page.py", "/..%2fpage.py", "/%2e%2e/page.py", "//etc/passwd", "/page/app.js", "/./app.js", "/app.js/",
        "/app.js\0", "/APP.JS", "/.git/config", "/deployTradingAgent", "/\\..\\page.py", "/app.js?x", "/" + "x" * 9_000,
    ],
)  # fmt: skip
def test_nothing_but_the_files_of_the_page_is_answered(path: str) -> None:
    assert page_response(path) is None


@pytest.mark.parametrize("method", ["POST", "OPTIONS", "PUT", "DELETE"])
def test_other_methods_are_left_to_the_functions(method: str) -> None:
    assert page_response("/", method=method) is None


def test_head_answers_as_get_without_the_content() -> None:
    asked, looked = page_response("/app.js"), page_response("/app.js", method="HEAD")
    assert asked is not None
    assert looked is not None
    assert (looked.status, looked.body, looked.headers) == (200, b"", asked.headers)


def test_a_file_that_is_known_is_not_sent_again_and_a_packed_one_has_a_tag_of_its_own() -> None:
    plain, packed = page_response("/app.js"), page_response("/app.js", headers={"accept-encoding": "br, gzip;q=0.8"})
    assert plain is not None
    assert packed is not None
    assert packed.headers["Content-Encoding"] == "gzip"
    assert gzip.decompress(packed.body) == plain.body == (FOLDER / "app.js").read_bytes()
    assert packed.headers["Vary"] == plain.headers["Vary"] == "Accept-Encoding"
    assert plain.headers["ETag"] != packed.headers["ETag"]
    for tags in (plain.headers["ETag"], f'"x", W/{plain.headers["ETag"]}', "*"):
        again = page_response("/app.js", headers={"if-none-match": tags})
        assert again is not None
        assert (again.status, again.body, again.headers["ETag"]) == (304, b"", plain.headers["ETag"])
        assert "Content-Security-Policy" in again.headers
    for headers in (
        {"if-none-match": '"other"'},
        {"if-none-match": packed.headers["ETag"]},
        {"accept-encoding": "gzip;q=0"},
    ):
        other = page_response("/app.js", headers=headers)
        assert other is not None
        assert (other.status, other.body) == (200, plain.body)


def test_the_policy_lets_in_nothing_but_the_pages_own_files() -> None:
    policy = policy_of(PageSettings())
    assert policy.pop("default-src") == ["'none'"]
    assert policy.pop("require-trusted-types-for") == ["'script'"]
    for directive in ("base-uri", "form-action", "frame-ancestors", "trusted-types"):
        assert policy.pop(directive) == ["'none'"]
    assert policy == {name: ["'self'"] for name in ("script-src", "style-src", "img-src", "connect-src")}


def test_googles_script_is_let_in_only_where_a_client_is_configured() -> None:
    settings = page_settings(
        DeploySettings(project="my-project", audiences=(GCLOUD_AUDIENCE, "https://x.run.app", CLIENT))
    )
    assert settings == PageSettings(google_client_id=CLIENT, takes_gcloud_tokens=True)
    policy = policy_of(settings)
    assert policy["script-src"] == ["'self'", "https://accounts.google.com/gsi/client"]
    assert policy["frame-src"] == ["https://accounts.google.com/gsi/"]
    assert policy["default-src"] == ["'none'"]
    assert not any("unsafe" in source or source == "*" for sources in policy.values() for source in sources)
    found = page_response("/config.json", settings=settings)
    assert found is not None
    assert json.loads(found.body)["googleClientId"] == CLIENT
    none = page_settings(DeploySettings(project="my-project", audiences=(GCLOUD_AUDIENCE, "https://x.run.app")))
    assert none.google_client_id == ""
    assert "google" not in str(policy_of(none))


def test_the_files_have_no_inline_script_or_style_and_make_no_markup_from_texts() -> None:
    html = (FOLDER / "index.html").read_text(encoding="utf-8")
    assert re.findall(r"<script(?![^>]*\bsrc=)|<style|\bstyle=|\son\w+=|javascript:|https?://", html) == []
    for path in FOLDER.glob("*.js"):
        text = path.read_text(encoding="utf-8")
        found = re.findall(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|srcdoc|createContextual",
            text,
        )
        assert found == [], path.name
        addresses = set(re.findall(r"https?://[^\s\"'`\\]+", text))
        assert addresses <= {"https://accounts.google.com/gsi/client"}, path.name


def test_every_file_that_is_named_is_there_and_the_page_is_small() -> None:
    sent = 0
    for path in FOLDER.iterdir():
        found = page_response(f"/{path.name}", headers={"accept-encoding": "gzip"})
        assert found is not None, path.name
        sent += len(found.body)
        text = path.read_text(encoding="utf-8")
        for name in re.findall(r"""(?:from|href=|src=) ?["'](?:\./)?([\w-]+\.\w+)["']""", text):
            assert (FOLDER / name).is_file(), f"{path.name} names {name}"
    assert sent < MAX_SENT_BYTES


def test_the_functions_in_one_place_serve_the_page_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage_functions(tmp_path / "staged")
    assert (tmp_path / "staged/deploy/page/index.html").is_file()
    stack = Stack(tmp_path)
    try:
        stack.service.settings = dataclasses.replace(stack.settings, audiences=(CLIENT,))
        app = functions_framework.create_app("tradingAgents", str(ROOT / "functions/main.py"), "http")
        verifier = build_verifier("my-project", (CLIENT,))
        monkeypatch.setitem(sys.modules["main"].__dict__, "_api", Api(stack.service, verifier))
        with app.test_client() as client:
            answer = client.get("/", headers={"Accept-Encoding": "gzip"})
            assert (answer.status_code, answer.mimetype) == (200, "text/html")
            assert gzip.decompress(answer.data) == (FOLDER / "index.html").read_bytes()
            assert answer.headers["Content-Security-Policy"].startswith("default-src 'none'")
            assert (
                client.get("/app.js", headers={"If-None-Match": client.get("/app.js").headers["ETag"]}).status_code
                == 304
            )
            assert client.get("/config.json").json["googleClientId"] == CLIENT
            assert client.get("/deployTradingAgent").status_code == 405
            assert client.post("/listTradingAgents").status_code == 401
    finally:
        stack.close()
