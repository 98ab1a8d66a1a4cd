"""Problems of a report in Chromium: python tests/app/check_report.py REPORT [FOLDER OF SCREENSHOTS]."""

import base64
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

PHONE, DESKTOP = (390, 844), (1280, 900)
TIMEOUT = 60.0  # seconds without an answer from the browser

# JavaScript by problem; each returns the list of places that have it.
CHECKS = {
    "wider than the screen": """
        const root = document.documentElement;
        return root.scrollWidth > root.clientWidth ? [`${root.scrollWidth} > ${root.clientWidth}`] : [];
    """,
    "without a text instead": """
        const named = e => e.getAttribute("alt")?.trim() || e.getAttribute("aria-label")?.trim();
        return [...document.querySelectorAll("img, svg")].filter(e => !named(e))
            .map(e => e.outerHTML.slice(0, 80));
    """,
    "not loaded": """
        return [...document.images].filter(i => !i.complete || !i.naturalWidth).map(i => i.alt);
    """,
    "scrolls, and not by the keyboard": """
        return [...document.querySelectorAll("main *")]
            .filter(e => e.scrollWidth > e.clientWidth && getComputedStyle(e).overflowX == "auto")
            .filter(e => e.tabIndex < 0)
            .map(e => e.outerHTML.slice(0, 80));
    """,
    # WCAG 2.2, 1.4.3: contrast of at least 4.5 to 1. Translucent backgrounds are composited.
    "hard to read": """
        const rgba = c => (c.match(/[\\d.]+/g).map(Number).concat(1)).slice(0, 4);
        const over = (top, low) => low.map((v, i) => i < 3 ? top[i] * top[3] + v * (1 - top[3]) : 1);
        const ground = e => e ? over(rgba(getComputedStyle(e).backgroundColor), ground(e.parentElement))
            : [255, 255, 255, 1];
        const light = c => c.slice(0, 3).map(v => v / 255)
            .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
            .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
        const contrast = e => {
            const [a, b] = [light(rgba(getComputedStyle(e).color)), light(ground(e))].sort((a, b) => b - a);
            return (a + 0.05) / (b + 0.05);
        };
        const says = e => [...e.childNodes].some(n => n.nodeType == 3 && n.data.trim());
        return [...document.querySelectorAll("main *")].filter(e => says(e) && contrast(e) < 4.5)
            .map(e => `${contrast(e).toFixed(1)}: ${e.outerHTML.slice(0, 80)}`);
    """,
}


class Page:
    """A page of a browser, controlled by the DevTools protocol over a pair of pipes."""

    def __init__(self, commands: int, answers: int) -> None:
        self._commands, self._answers = commands, answers
        self._number, self._received, self._session = 0, b"", None
        self.events: list[dict[str, Any]] = []
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **parameters: Any) -> Any:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]
            self.events.append(answer)

    def open(self, path: Path, size: tuple[int, int], scheme: str = "light") -> None:
        """Loads a file, at a screen size and in a color scheme."""
        self.events.clear()
        width, height = size
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=size == PHONE,
        )
        preference = {"name": "prefers-color-scheme", "value": scheme}
        self.send("Emulation.setEmulatedMedia", features=[preference])
        self.send("Page.navigate", url=path.resolve().as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self._receive())

    def ask(self, body: str) -> Any:
        """Evaluates the body of a JavaScript function on the page."""
        answer = self.send(
            "Runtime.evaluate",
            expression=f"(async () => {{{body}}})()",
            returnByValue=True,
            awaitPromise=True,
        )
        if "exceptionDetails" in answer:
            raise RuntimeError(f"{answer['exceptionDetails']}")
        return answer["result"].get("value")

    def screenshot(self, path: Path) -> None:
        data = self.send("Page.captureScreenshot", captureBeyondViewport=True)["data"]
        path.write_bytes(base64.b64decode(data))

    def print(self, path: Path) -> None:
        data = self.send("Page.printToPDF", printBackground=True)["data"]
        path.write_bytes(base64.b64decode(data))

    def complaints(self) -> list[str]:
        """Returns errors of the console and requests to other hosts since the page was opened."""
        found = []
        for event in self.events:
            method, parameters = event.get("method"), event.get("params", {})
            if method == "Network.requestWillBeSent":
                url = parameters["request"]["url"]
                if urlsplit(url).scheme not in ("file", "data"):
                    found.append(f"asks for {url}")
            elif method in ("Runtime.exceptionThrown", "Runtime.consoleAPICalled"):
                found.append(f"console: {json.dumps(parameters)[:200]}")
            elif method == "Log.entryAdded":
                found.append(f"console: {parameters['entry']['text']}")
        return found

    def _receive(self) -> Any:
        while b"\0" not in self._received:
            ready, _, _ = select.select([self._answers], [], [], TIMEOUT)
            received = os.read(self._answers, 1 << 20) if ready else b""
            if not received:
                raise RuntimeError("the browser does not answer")
            self._received += received
        message, _, self._received = self._received.partition(b"\0")
        return json.loads(message)


def find_chromium() -> str | None:
    """Returns the path of the browser, None if it is not installed."""
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    return next((path for path in map(shutil.which, names) if path), None)


@contextmanager
def chromium(profile: Path) -> Iterator[Page]:
    """Starts a headless browser, and ends it.

    Args:
        profile: Empty folder for its files.

    Yields:
        A page.
    """
    program = find_chromium()
    if program is None:
        raise FileNotFoundError("neither chromium nor chrome is on the PATH")
    (theirs_in, commands), (answers, theirs_out) = os.pipe(), os.pipe()
    options = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage")
    browser = subprocess.Popen(
        [program, *options, "--remote-debugging-pipe", f"--user-data-dir={profile}"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        # The browser reads commands from descriptor 3 and answers on 4.
        preexec_fn=lambda: (os.dup2(theirs_in, 3), os.dup2(theirs_out, 4)),
        pass_fds=(3, 4),
    )
    os.close(theirs_in)
    os.close(theirs_out)
    try:
        yield Page(commands, answers)
    finally:
        browser.terminate()
        browser.wait(timeout=20)
        os.close(commands)
        os.close(answers)


def problems(page: Page, report: Path) -> list[str]:
    """Returns the problems of a report on phone and desktop, in the light and the dark color scheme."""
    found, grounds = [], []
    for name, size in (("phone", PHONE), ("desktop", DESKTOP)):
        for scheme in ("light", "dark"):
            page.open(report, size, scheme)
            page.ask("document.querySelectorAll('details').forEach(d => d.open = true)")
            for what, body in CHECKS.items():
                found += [f"{name}, {scheme}: {what}: {each}" for each in page.ask(body)]
            found += [f"{name}, {scheme}: {each}" for each in page.complaints()]
            grounds.append(page.ask("return getComputedStyle(document.body).backgroundColor"))
    if len(set(grounds)) != 2:
        found.append(f"light and dark have the backgrounds {grounds}")
    return found


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, chromium(Path(folder)) as page:
        found = problems(page, Path(sys.argv[1]))
        if len(sys.argv) > 2:  # folder of screenshots
            for name, size in (("phone", PHONE), ("desktop", DESKTOP)):
                for scheme in ("light", "dark"):
                    page.open(Path(sys.argv[1]), size, scheme)
                    page.screenshot(Path(sys.argv[2]) / f"{name}_{scheme}.png")
            page.print(Path(sys.argv[2]) / "print.pdf")
    print("\n".join(found) or "no problems")
    sys.exit(bool(found))
