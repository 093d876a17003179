"""The page in a browser, on the real service with its real clients: what a person does, sees and is told."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.archive import make_archive
from deploy.page import PageSettings
from tests.deploy.page_server import TOKEN, PageServer
from tests.deploy.service_stack import AGENT, ANN, Stack, agent_zip
from tests.e2e.browser import Browser, Page, serve_browser

# What stands beyond the right or left edge of the page, but for what scrolls by itself or is for screen readers only.
CUT_OFF = """
[...document.body.querySelectorAll("*")].filter(e => !e.closest(".unseen, .skip, .log, dialog") && e.offsetWidth
  && (e.getBoundingClientRect().right > innerWidth + 0.5 || e.getBoundingClientRect().left < -0.5))
  .map(e => e.tagName + "." + e.className)
"""
PILL = "document.querySelector('.title .pill')?.textContent"


class ServicePage(Page):
    """The page, and the service behind it."""

    def __init__(self, browser: Browser, server: PageServer) -> None:
        super().__init__(browser)
        self.server, self.stack = server, server.stack

    def visit(self, path: str = "") -> None:
        """Open an address of the page's own, always as a new document."""
        self.browser.call("Page.navigate", url="about:blank")
        self.browser.call("Page.navigate", url=self.server.address + path)
        self.wait("document.readyState === 'complete' && document.getElementById('loading').hidden")

    def sign_in(self, path: str = "") -> None:
        """Open the page by a link with the token, then a part of it."""
        self.visit(f"#token={TOKEN}")
        self.wait("!document.getElementById('app').hidden")
        if path:
            self.run(f"location.hash = {json.dumps(path)}")

    def click(self, selector: str) -> None:
        """Click an element with the mouse, as soon as it is there, not switched off, and does not move any more."""
        element = f"document.querySelector({json.dumps(selector)})"
        self.wait(f"(e => e && e.offsetWidth && !e.disabled)({element})")
        place, places = f"(e => e && JSON.stringify(e.getBoundingClientRect()))({element})", [""]
        while len(set(places[-3:])) > 1 or len(places) < 3:
            time.sleep(0.05)
            places.append(self.run(place) or "")
        self.browser.click(selector)

    def write(self, selector: str, text: str) -> None:
        """Write into a field by the keyboard."""
        self.click(selector)
        self.browser.call("Input.insertText", text=text)

    def press(self, key: str, code: int) -> None:
        """Press a key."""
        text = {"text": "\r"} if key == "Enter" else {}
        self.browser.call(
            "Input.dispatchKeyEvent", type="keyDown", key=key, code=key, windowsVirtualKeyCode=code, **text
        )
        self.browser.call("Input.dispatchKeyEvent", type="keyUp", key=key, code=key, windowsVirtualKeyCode=code)
        self.browser.settle()

    def drop(self, name: str, content: bytes) -> None:
        """Drop a file on the page of the agent."""
        self.run(
            "(() => { const moved = new DataTransfer();"
            f"moved.items.add(new File([Uint8Array.from({json.dumps(list(content))})], {json.dumps(name)}));"
            "for (const type of ['dragenter', 'dragover', 'drop']) document.querySelector('.zone').dispatchEvent("
            "new DragEvent(type, {dataTransfer: moved, bubbles: true, cancelable: true})) })()"
        )

    def forgive(self, text: str) -> None:
        """Forget the complaints with this text, which the browser itself writes about every answer that is an error."""
        assert any(text in error for error in self.browser.errors), self.browser.errors
        self.browser.errors[:] = [error for error in self.browser.errors if text not in error]


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    yield from serve_browser(tmp_path_factory)


@pytest.fixture
def page(chromium: Browser, tmp_path: Path) -> Iterator[ServicePage]:
    """The page on a service of its own; in the end nothing was complained of, and nobody else was asked."""
    stack = Stack(tmp_path)
    server = PageServer(stack, tmp_path)
    chromium.requests.clear()
    chromium.errors.clear()
    chromium.use_media()
    chromium.resize(1280, 900)
    try:
        yield ServicePage(chromium, server)
        assert chromium.errors == []
        assert [url for url in chromium.requests if not url.startswith((server.address, "about:", "blob:"))] == []
    finally:
        stack.cloud.go.set()
        chromium.call("Page.navigate", url="about:blank")
        server.close()
        stack.close()


def test_an_agent_is_created_deployed_watched_read_and_stopped(page: ServicePage) -> None:
    stack = page.stack
    page.visit()
    page.write("#token", TOKEN)
    page.press("Enter", 13)
    page.click(".start button.main")
    page.write("#agent-name", "Mean reversion")
    page.write("#agent-id", "Mean_Reversion")
    page.click("dialog button.main")
    page.wait("document.querySelector('.title h1').textContent === 'Mean reversion'")
    assert page.text(".title .pill") == "Not deployed"
    # A file alone is enough; what it is to trade is asked.
    page.drop("cross.py", AGENT)
    page.write("#symbols", "aapl, btc/usd")
    page.press("Enter", 13)
    page.wait("document.getElementById('deploy-now')")
    assert "AAPL, BTC/USD" in page.text(".panel")
    assert stack.fields("Mean_Reversion").get("status") is None
    stack.cloud.hold_at = "push-agent-image"
    stack.cloud.go.clear()
    page.click("#deploy-now")
    page.wait(f"{PILL} === 'Deploying'")
    stack.cloud.go.set()
    stack.cloud.go.clear()
    page.wait("document.querySelector('.steps [data-state=now]').textContent === 'Push the image: at work'")
    assert page.run("document.querySelectorAll('.steps [data-state=done]').length") == 4
    assert page.text(".agents .pill") == "Deploying"
    stack.cloud.go.set()
    page.wait(f"{PILL} === 'Running'")
    assert stack.fields("Mean_Reversion")["status"] == "deployed"
    page.wait("document.querySelector('.progress h2').textContent === 'Deployed'")
    page.wait("document.querySelectorAll('.line').length === 2")
    assert page.run("[...document.querySelectorAll('.line span')].map(e => e.textContent)") == ["started", "bar 1"]
    stack.kubernetes.log += "2026-01-02T15:04:07Z bar 2\n"
    page.wait("document.querySelectorAll('.line').length === 3")
    page.write(".logs input[type=search]", "BAR")
    assert page.text(".logs .count") == "2 of 3 lines"
    page.click("[data-action=stop]")
    page.click("dialog button.main")
    page.wait(f"{PILL} === 'Stopped'")
    assert stack.fields("Mean_Reversion")["status"] == "stopped"
    assert stack.kubernetes.deployment("mean-reversion") is None
    page.wait("document.querySelector('.agents .pill').textContent === 'Stopped'")
    page.click("[data-action=restart]")
    page.click("dialog button.main")
    page.wait(f"{PILL} === 'Running'")


def test_a_folder_is_zipped_as_the_command_zips_it_and_an_older_source_is_deployed_again(
    page: ServicePage, tmp_path: Path
) -> None:
    folder = tmp_path / "my agent"
    (folder / "agent").mkdir(parents=True)
    (folder / "agent/agent.py").write_bytes(AGENT)
    (folder / "symbols.txt").write_text("AAPL\n")
    (folder / ".env").write_text("SECRET=1\n")
    agent_id = page.stack.create()
    page.stack.deployed(agent_id, "older")
    page.sign_in(f"#/agent/{agent_id}")
    page.wait(f"{PILL} === 'Running'")
    root = page.browser.call("DOM.getDocument")["root"]["nodeId"]
    node = page.browser.call("DOM.querySelector", nodeId=root, selector="#choose-folder")["nodeId"]
    page.browser.call("DOM.setFileInputFiles", nodeId=node, files=[str(folder)])
    page.click("#deploy-now")
    page.wait("document.querySelector('.sources .tag')?.textContent === 'deployed'")
    page.wait("document.querySelectorAll('.sources li').length === 2")
    digest = make_archive(folder).digest
    page.stack.until(lambda: page.stack.fields(agent_id), lambda fields: fields["sourceDigest"] == digest)
    page.stack.settle(agent_id)
    page.wait(f"{PILL} === 'Running'")
    page.click(".sources li:last-child button")
    assert "replaces what runs" in page.text("dialog")
    page.click("dialog button.main")
    page.stack.until(lambda: page.stack.fields(agent_id), lambda fields: fields["sourceDigest"] != digest)
    page.stack.settle(agent_id)
    page.wait(f"{PILL} === 'Running'")
    page.click("[data-action=rollback]")
    page.click("dialog button.main")
    page.stack.until(lambda: page.stack.fields(agent_id), lambda fields: fields["sourceDigest"] == digest)
    page.stack.settle(agent_id)
    page.wait(f"{PILL} === 'Running'")


def test_a_bad_source_and_a_failed_build_are_told_with_the_place(page: ServicePage) -> None:
    agent_id = page.stack.create()
    page.sign_in(f"#/agent/{agent_id}")
    page.wait(f"{PILL} === 'Not deployed'")
    page.drop("a.zip", b"PK no zip")
    page.wait("document.querySelector('.deploy .problem').textContent.startsWith('The archive is no zip')")
    page.drop("a.zip", agent_zip(**{"agent/other.py": b"def f(:\n", ".netrc": b"x"}))
    page.wait("document.querySelectorAll('.deploy .problem li').length === 2")
    assert "agent/other.py, line 1: invalid syntax." in page.text(".deploy .problem")
    assert page.stack.fields(agent_id).get("sources") is None
    page.stack.cloud.failing["push-agent-image"] = 'denied: "upload" <b>refused</b>'
    page.drop("a.zip", agent_zip())
    page.click("#deploy-now")
    page.wait(f"{PILL} === 'Failed'")
    assert "The image could not be pushed" in page.text(".notice")
    assert 'denied: "upload" <b>refused</b>' in page.text(".notice")
    page.wait("document.querySelector('.steps [data-state=failed]').textContent === 'Push the image: failed'")
    page.wait("[...document.querySelectorAll('.line')].at(-1).textContent.includes('<b>refused</b>')")
    # The same after a reload; and a refused action is told where it was asked for.
    page.sign_in(f"#/agent/{agent_id}")
    page.wait("document.querySelector('.notice').innerText.includes('The image could not be pushed')")
    page.click("[data-action=rollback]")
    page.click("dialog button.main")
    page.wait(
        "document.querySelector('dialog .problem').textContent.startsWith('No other source of this agent was deployed')"
    )
    page.press("Escape", 27)
    page.wait("!document.querySelector('dialog')")
    assert page.run("document.activeElement.dataset.action") == "rollback"
    page.forgive("status of 400")


MARKUP = "<img src=x onerror=hacked=1><script>hacked=1</script>\"'&amp;<b>x</b>"


def test_what_people_and_agents_write_stays_text(page: ServicePage) -> None:
    agent_id = "it's \"<img src=x onerror=hacked=1>&amp;"
    page.stack.service.create(ANN, agent_id, MARKUP)
    page.stack.kubernetes.log = f"2026-01-02T15:04:05Z {MARKUP}\n2026-01-02T15:04:06Z \x1b[31m</span></div>\u202eabc\n"
    page.stack.deployed(agent_id)
    page.sign_in()
    page.click(".agents a")
    page.wait("document.querySelectorAll('.line').length === 2")
    assert page.run("document.querySelector('.title h1').textContent") == MARKUP
    assert page.run("document.querySelector('.agents .name').textContent") == MARKUP
    assert page.run("document.querySelector('.line span').textContent") == MARKUP
    assert page.run("document.title").startswith(MARKUP)
    page.click("[data-action=stop]")
    assert page.run("document.querySelector('dialog h2').textContent") == f"Stop {MARKUP}?"
    page.click("dialog [type=button]:not(.quiet)")
    assert page.run("[document.images.length, document.scripts.length, document.querySelectorAll('b').length]") == [
        1,
        1,
        1,
    ]
    assert page.run("typeof hacked") == "undefined"
    with pytest.raises(RuntimeError, match="TrustedHTML"):
        page.run("document.body.insertAdjacentHTML('beforeend', '<i>x</i>')")
    page.forgive("TrustedHTML")


def test_a_service_that_is_gone_is_told_and_what_is_shown_is_marked_as_old(page: ServicePage) -> None:
    agent_id = page.stack.create()
    page.stack.deployed(agent_id)
    page.sign_in(f"#/agent/{agent_id}")
    page.wait(f"{PILL} === 'Running'")
    assert page.text("#live") == "Live"
    page.server.is_down = True
    page.run("document.dispatchEvent(new Event('visibilitychange'))")
    page.wait(
        "!document.getElementById('stale').hidden && document.getElementById('live-text').textContent === 'Stale'"
    )
    assert "The service cannot be reached." in page.text("#stale")
    assert page.run("getComputedStyle(document.querySelector('.title .pill')).outlineStyle") == "dashed"
    assert page.text(".title .pill") == "Running"
    page.server.is_down = False
    page.click("#retry")
    page.wait("document.getElementById('stale').hidden")
    page.stack.kubernetes.fail = (503, "down")
    page.run("document.dispatchEvent(new Event('visibilitychange'))")
    page.wait("document.querySelector('.notice .unavailable')?.textContent.includes('What is shown may be old.')")
    # Connections that were broken off are complained of by the browser itself.
    page.forgive("net::ERR_")


def test_the_token_is_taken_from_the_link_and_one_that_does_not_hold_is_told(page: ServicePage) -> None:
    page.stack.create()
    page.sign_in()
    assert page.run("location.href") == page.server.address
    assert TOKEN not in page.run(
        "JSON.stringify([history.state, document.documentElement.outerHTML, {...localStorage}])"
    )
    page.browser.call("Page.reload")
    page.wait(
        "!document.getElementById('app').hidden && document.querySelector('.agents .name').textContent === 'My agent'"
    )
    page.run("sessionStorage.setItem('dry-work:token', 'another-token-than-that-of-the-file')")
    page.browser.call("Page.reload")
    page.wait("document.getElementById('sign-in-problem').textContent === 'The token is not that of the token file.'")
    assert page.run("sessionStorage.length") == 0
    assert page.run("document.getElementById('app').hidden")
    # A link that is opened in the same tab is taken too.
    page.run(f"location.hash = 'token={TOKEN}'")
    page.wait("!document.getElementById('app').hidden")
    page.click("#sign-out")
    page.wait("!document.getElementById('sign-in').hidden")
    assert page.run("[sessionStorage.length, document.querySelectorAll('.agents li').length]") == [0, 0]
    page.forgive("401")


def test_googles_button_is_asked_for_only_where_a_client_is_configured(page: ServicePage) -> None:
    page.visit()
    assert not any("google" in url for url in page.browser.requests)
    page.server.page = PageSettings(google_client_id="1-a.apps.googleusercontent.com", takes_gcloud_tokens=True)
    page.visit()
    page.wait(
        "document.getElementById('google').textContent === \"Google's button cannot be loaded. Paste a token instead.\""
    )
    assert "gcloud auth print-identity-token" in page.text("#token-how")
    assert [url for url in page.browser.requests if "google" in url] == ["https://accounts.google.com/gsi/client"]
    page.write("#token", TOKEN)
    page.press("Enter", 13)
    page.wait("!document.getElementById('app').hidden")
    page.browser.requests[:] = [url for url in page.browser.requests if "google" not in url]
    page.forgive("net::ERR_")


def test_two_hundred_agents_are_listed_filtered_and_asked_for_sparingly(page: ServicePage) -> None:
    for number in range(200):
        page.stack.agents.create(
            f"agent-{number:03d}", {"userId": "ann", "name": f"Agent {number}", "status": "deployed", "buildId": "b"}
        )
    page.sign_in()
    page.wait("document.querySelectorAll('.agents li').length === 200")
    page.wait("document.querySelectorAll('.agents .pill[data-state=bad]').length === 3")
    assert page.server.calls.count("listTradingAgents") <= 3
    assert page.server.calls.count("getTradingAgentStatus") <= 6
    page.run("document.querySelector('.agents li:nth-child(100)').marked = true")
    page.write(".filter input", "agent 19")
    assert page.run("document.querySelectorAll('.agents li:not([hidden])').length") == 11
    page.write(".filter input", "x")
    assert page.text(".list .empty") == "No agent fits the filter."
    page.wait("document.querySelectorAll('.agents .pill[data-state=bad]').length === 6")
    assert page.run("[...document.querySelectorAll('.agents li')].filter(e => e.marked).length") == 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_cut_off_on_a_small_phone_and_everything_has_a_name(page: ServicePage, scheme: str) -> None:
    long_id = "a-very-long-id-without-any-place-to-break-0123456789"[:49]
    page.browser.use_media(scheme=scheme)
    page.browser.resize(360, 640, is_phone=True)
    page.stack.service.create(ANN, long_id, "Donaudampfschifffahrtsgesellschaftskapitänsmütze " * 2)
    page.stack.kubernetes.log = f"2026-01-02T15:04:05Z {'x' * 3_000}\n"
    page.stack.deployed(long_id)
    views = [
        ("", "!document.getElementById('sign-in').hidden"),
        (f"#token={TOKEN}", "document.querySelector('.agents li')"),
    ]
    for path, ready in views:
        page.visit(path)
        page.wait(ready)
        check_view(page)
    page.click(".agents a")
    page.wait("document.querySelector('.line') && document.querySelector('.title .pill').textContent === 'Running'")
    assert page.run("getComputedStyle(document.getElementById('list')).display") == "none"
    assert page.run("document.activeElement.tagName") == "H1"
    check_view(page)
    page.click("[data-action=stop]")
    check_view(page)
    page.press("Escape", 27)
    page.click(".back")
    page.wait("document.activeElement.matches('.agents a')")
    page.click("#new-agent")
    check_view(page)


def check_view(page: ServicePage) -> None:
    page.browser.settle()
    assert page.run("document.documentElement.scrollWidth") == 360
    assert page.run(CUT_OFF) == []
    nodes = page.browser.call("Accessibility.getFullAXTree")["nodes"]
    named = ("button", "link", "textbox", "searchbox", "checkbox", "combobox", "heading", "dialog", "navigation", "log")
    seen = [node for node in nodes if not node["ignored"] and node.get("role", {}).get("value") in named]
    assert len(seen) > 3
    assert [node["role"] for node in seen if not node.get("name", {}).get("value")] == []
    shown = "[...document.querySelectorAll('button:not(.skip), select, .agents a')].filter(e => e.offsetWidth)"
    small = f"{shown}.filter(e => e.offsetHeight < 40)"
    assert page.run(f"{small}.map(e => e.outerHTML)") == []
    assert page.run(LOW_CONTRAST) == []


# Texts with less than 4.5 to 1 against what is behind them; what is switched off is left out.
LOW_CONTRAST = """
(() => {
  const canvas = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
  const over = (ground, colour) => {
    canvas.fillStyle = `rgb(${ground})`; canvas.fillRect(0, 0, 1, 1);
    canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const light = rgb => rgb.map(c => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const found = [];
  for (const e of document.body.querySelectorAll("*")) {
    const isText = [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim());
    if (!isText || !e.offsetWidth || e.closest(".unseen, .skip, :disabled")) continue;
    const chain = [];
    for (let at = e; at; at = at.parentElement) chain.unshift(getComputedStyle(at).backgroundColor);
    const ground = chain.reduce(over, [255, 255, 255]);
    const [a, b] = [light(ground), light(over(ground, getComputedStyle(e).color))];
    if ((Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05) < 4.5) found.push(e.outerHTML.slice(0, 120));
  }
  return found;
})()
"""
