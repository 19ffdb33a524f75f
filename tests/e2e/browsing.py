"""Chromium, and a server for it: what the page's test, its screenshots and its benchmark share."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

ROOT = Path(__file__).parents[2]
CHROMIUM, DRIVER = (shutil.which(name) for name in ("chromium", "chromedriver"))
ARGUMENTS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--disable-dev-shm-usage")
# What a Chromium would ask of other machines, and on its first start; chromedriver gives it a fresh folder.
OFFLINE = (
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-quic"),
    *("--no-first-run",),
)
# A headless Chromium says that it has no mouse; the page then shows what others see when they hover.
_MOUSE = "primaryHoverType=2,availableHoverTypes=2,primaryPointerType=4,availablePointerTypes=4"


@contextmanager
def serving(gallery: Path, name: str = "shelf", *arguments: str) -> Iterator[str]:
    """Serve `gallery` by `nsfse serve` in a process of its own; give the page's address."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    paths = os.pathsep.join(str(ROOT / part) for part in (".", "export", "runtime"))
    command = [sys.executable, "-m", "nsfse", "serve", "-g", f"{name}={gallery}", "--port", str(port), *arguments]
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    with TemporaryFile("w+") as log, subprocess.Popen(command, env=environment, stderr=log) as server:
        try:
            yield _once_ready(server, log, f"http://127.0.0.1:{port}/")
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(timeout=200)


def _once_ready(server: subprocess.Popen, log: IO[str], address: str) -> str:
    for _ in range(4000):  # this many only end a start that hangs
        if server.poll() is not None:
            log.seek(0)
            raise RuntimeError(f"the server ended with {server.returncode}: {log.read()}")
        try:
            with urllib.request.urlopen(f"{address}readyz", timeout=2) as reply:
                if reply.status == 200:
                    return address
        except (urllib.error.URLError, OSError):
            time.sleep(0.05)
    raise RuntimeError("the server does not become ready")


@contextmanager
def browsing(width: int = 1440, height: int = 900, *, phone: bool = False, dark: bool = False) -> Iterator:
    """Give a headless Chromium, by selenium, with a page of `width` × `height`."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in (*ARGUMENTS, *OFFLINE):
        options.add_argument(argument)
    if not phone:
        options.add_argument(f"--blink-settings={_MOUSE}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    try:
        emulate_screen(driver, width, height, phone=phone, dark=dark)
        yield driver
    finally:
        driver.quit()


def emulate_screen(
    driver, width: int, height: int, *, phone: bool = False, dark: bool = False, still: bool = False
) -> None:
    """Emulate another screen: its size, a phone, dark mode, reduced motion."""
    metrics = {"width": width, "height": height, "deviceScaleFactor": 2 if phone else 1, "mobile": phone}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    features = [
        {"name": "prefers-color-scheme", "value": "dark" if dark else "light"},
        {"name": "prefers-reduced-motion", "value": "reduce" if still else "no-preference"},
    ]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
