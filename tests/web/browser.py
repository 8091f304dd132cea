"""A headless Chromium and a server of static files, for pages that are to be looked at."""

import contextlib
import functools
import tempfile
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
from selenium.webdriver import Chrome, ChromeOptions, ChromeService
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait
from tools import need

SECONDS = 60
IDLE = "!document.getElementById('draw').disabled"  # of edgedm's page
_FLAGS = (
    "headless",
    "no-sandbox",  # CI runs as root
    "disable-gpu",
    "disable-quic",
    "disable-dev-shm-usage",
    "no-first-run",
    "disable-background-networking",
    "disable-component-update",
    "disable-sync",
)


@contextlib.contextmanager
def browser() -> Iterator[Chrome]:
    """A Chromium with a profile of its own, which logs what pages say and ask for; skips the test where it is not."""
    need("chromium")
    need("chromedriver")
    with tempfile.TemporaryDirectory(prefix="edgedm-chromium-", ignore_cleanup_errors=True) as profile:
        options = ChromeOptions()
        options.binary_location = "/usr/bin/chromium"
        for flag in (*_FLAGS, f"user-data-dir={profile}"):
            options.add_argument(f"--{flag}")
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        driver = Chrome(options, ChromeService("/usr/bin/chromedriver"))
        try:
            yield driver
        finally:
            driver.quit()


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of `folder` on a server of static files of this machine."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


def wait(driver: Chrome, script: str) -> None:
    """Until a JavaScript expression is true of the page."""
    WebDriverWait(driver, SECONDS, 0.05).until(lambda it: it.execute_script(f"return Boolean({script})"), script)


def look(driver: Chrome, width: int, height: int, dark: bool = False, mobile: bool = False) -> None:
    """Show the page on a screen of this size."""
    screen = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": mobile}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": scheme})


def open_page(driver: Chrome, address: str) -> None:
    """Open edgedm's page and wait until it can draw."""
    driver.get_log("browser"), driver.get_log("performance")  # what others said before is not this page's
    driver.get(address)
    wait(driver, IDLE)


def fill(driver: Chrome, **wishes: int | float | str) -> None:
    """Fill in the page's form: element -> value."""
    driver.execute_script("document.getElementById('count').removeAttribute('max')")
    for name, value in wishes.items():
        driver.execute_script("document.getElementById(arguments[0]).value = arguments[1]", name, str(value))


def draw(driver: Chrome, **wishes: int | float | str) -> np.ndarray:
    """Draw to the end; images as the page has them, f32[n, ...] flat."""
    fill(driver, **wishes)
    driver.find_element(By.ID, "draw").click()
    wait(driver, IDLE)
    values = driver.execute_script("return edgedm.images.map((image) => Array.from(image))")
    return np.array(values, np.float32)
