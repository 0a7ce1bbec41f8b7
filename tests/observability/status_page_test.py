#!/usr/bin/env python3
"""The status page in a real browser (Chromium, headless), while the demo model changes domain.

    tests/observability/status_page_test.py build/cpu-release/bin [DIRECTORY for pictures]

Fails if the page shows no live numbers, if its heat map does not change with the domain, or if the
browser logs an error. Takes pictures in light and dark.
"""

import base64
import contextlib
import json
import pathlib
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request

from daemon import SKIPPED, Daemon


class Browser:
    """A headless Chromium behind the WebDriver protocol."""

    def __init__(self, profile):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.driver = subprocess.Popen(["chromedriver", f"--port={port}"],
                                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.url = f"http://127.0.0.1:{port}/session"
        options = {"binary": shutil.which("chromium"),
                   "args": ["--headless=new", "--no-sandbox", "--disable-gpu",
                            "--disable-dev-shm-usage", f"--user-data-dir={profile}",
                            "--window-size=1240,1300"]}
        capabilities = {"browserName": "chrome", "goog:chromeOptions": options,
                        "goog:loggingPrefs": {"browser": "ALL"}}
        for _ in range(100):
            try:
                session = self.call("", {"capabilities": {"alwaysMatch": capabilities}})
                break
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.2)
        self.url += "/" + session["sessionId"]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        request = urllib.request.Request(self.url, method="DELETE")
        urllib.request.urlopen(request, timeout=30).close()
        self.driver.terminate()
        self.driver.wait()

    def call(self, path, body=None):
        data = None if body is None else json.dumps(body).encode()
        with urllib.request.urlopen(urllib.request.Request(self.url + path, data), timeout=60) as answer:
            return json.load(answer)["value"]

    def run(self, script):
        return self.call("/execute/sync", {"script": script, "args": []})

    def scheme(self, name):
        self.call("/goog/cdp/execute", {"cmd": "Emulation.setEmulatedMedia", "params": {
            "features": [{"name": "prefers-color-scheme", "value": name}]}})

    def picture(self, path):
        path.write_bytes(base64.b64decode(self.call("/screenshot")))


def heat(browser):
    """Each layer's shares of load, as the heat map shows them."""
    return browser.run("return heat.map((row) => { const all = row.reduce((a, b) => a + b, 0) || 1;"
                       " return row.map((x) => x / all); })")


def distance(a, b):
    """Mean over layers of the total variation between two heat maps, 0 to 1."""
    rows = [sum(abs(x - y) for x, y in zip(p, q)) / 2 for p, q in zip(a, b)]
    return sum(rows) / len(rows)


def expect(condition, what):
    print(("ok    " if condition else "FAILED ") + what)
    return 0 if condition else 1


@contextlib.contextmanager
def load_of(daemon, domain):
    """Generates text of a domain again and again, however fast the daemon is."""
    stop = threading.Event()

    def generate():
        while not stop.is_set():
            daemon.generate(domain, 1000).wait()

    thread = threading.Thread(target=generate)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def wait_until_live(browser):
    """However slow browser and daemon are: until the page has rates to show, or a minute."""
    for _ in range(120):
        shown = browser.run("return [document.getElementById('hit').textContent,"
                            " document.getElementById('tokens').textContent]")
        if shown[0].endswith("%") and shown[1].replace(".", "").strip("0").isdigit():
            return
        time.sleep(0.5)


def watch(daemon, browser, pictures):
    browser.call("/url", {"url": f"http://{daemon.metrics}/"})
    maps, failures = {}, 0
    for domain, scheme in (("german", "light"), ("arithmetic", "dark")):
        with load_of(daemon, domain):
            time.sleep(9)  # a window of rates of this domain alone
            wait_until_live(browser)
            browser.scheme(scheme)
            time.sleep(1.5)
            maps[domain] = heat(browser)
            browser.picture(pictures / f"status-{scheme}.png")
            text = browser.run("return document.getElementById('hit').textContent")
            failures += expect(text.endswith("%"), f"{domain}: hit rate {text}")
            tokens = float(browser.run("return document.getElementById('tokens').textContent"))
            failures += expect(tokens > 0, f"{domain}: {tokens} tokens/s")
    moved = distance(maps["german"], maps["arithmetic"])
    failures += expect(moved > 0.2, f"the heat map changed with the domain (distance {moved:.2f})")
    points = browser.run("return document.querySelectorAll('#curve .curve').length")
    failures += expect(points == 1, "the budget curve is drawn")
    residents = browser.run("return last.layers.flatMap((l) => l.expert_resident).filter((r) => r).length")
    failures += expect(residents > 0, f"{residents} experts are marked resident")
    wide = browser.run("return document.documentElement.scrollWidth <= window.innerWidth")
    failures += expect(wide, "the page needs no sideways scrolling")
    errors = [entry for entry in browser.call("/se/log", {"type": "browser"})
              if entry["level"] == "SEVERE" and "favicon" not in entry["message"]]
    return failures + expect(not errors, f"the browser logged no error {errors}")


def main():
    if shutil.which("chromium") is None or shutil.which("chromedriver") is None:
        print("no chromium and chromedriver here: skipped")
        return SKIPPED
    with tempfile.TemporaryDirectory() as scratch:
        pictures = pathlib.Path(sys.argv[2] if len(sys.argv) > 2 else scratch)
        pictures.mkdir(parents=True, exist_ok=True)
        with Daemon(sys.argv[1], "--expert-budget", "30%") as daemon, Browser(scratch) as browser:
            return 1 if watch(daemon, browser, pictures) else 0


if __name__ == "__main__":
    sys.exit(main())
