"""The page in headless Chromium: no errors, nothing wider than a phone, reachable by keyboard, readable in the dark."""

import struct

import pytest
from tools import need

from edgedm.report import html_page

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    need("chromium")
    need("chromedriver")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = "/usr/bin/chromium"
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    opened = webdriver.Chrome(options=options, service=Service("/usr/bin/chromedriver"))
    yield opened
    opened.quit()


@pytest.fixture
def page(driver, run, tmp_path):
    path = tmp_path / "report.html"
    path.write_text(html_page(*run), encoding="utf-8")

    def show(width: int = 1200, height: int = 900, scheme: str = "light"):
        driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600},
        )
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        driver.get(path.as_uri())
        return driver

    return show


def test_the_browser_finds_nothing_to_complain_about_and_fetches_nothing(page) -> None:
    driver = page()
    assert driver.get_log("browser") == []
    fetched = driver.execute_script("return performance.getEntriesByType('resource').map(e => e.name)")
    assert [each for each in fetched if not each.startswith("data:")] == []
    assert "parity does not hold" in driver.title
    broken = "return [...document.images].filter(i => !i.complete || i.naturalWidth === 0).length"
    assert driver.execute_script(broken) == 0
    width, height = struct.unpack(">II", driver.get_screenshot_as_png()[16:24])
    assert (width, height) == (1200, 900)


@pytest.mark.parametrize("width", [320, 375, 768, 1200])
def test_nothing_is_wider_than_the_screen(page, width: int) -> None:
    driver = page(width)
    assert driver.execute_script("return document.documentElement.scrollWidth") <= width
    wide = """return [...document.querySelectorAll('section, .plot, figure, h1, h2, p, details')]
        .filter(e => e.getBoundingClientRect().right > innerWidth + 0.5).length"""
    assert driver.execute_script(wide) == 0
    gates = "const e = document.querySelector('#gates .scroll'); return e.scrollWidth - e.clientWidth"
    assert width < 375 or driver.execute_script(gates) <= 0  # what was allowed and what came, side by side
    smallest = """return Math.min(...[...document.querySelectorAll('p, td, th, li, a, summary, dd')]
        .map(e => parseFloat(getComputedStyle(e).fontSize)))"""
    assert driver.execute_script(smallest) >= 12


def test_everything_is_reached_by_the_tab_key_in_the_order_of_the_page(page) -> None:
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    driver = page()
    wanted = driver.execute_script(
        """const all = [...document.querySelectorAll('a[href], summary, [tabindex="0"]')]
            .filter(e => e.tagName === 'SUMMARY' || !e.closest('details:not([open])'));
        all.forEach((e, i) => e.dataset.order = i); return all.length"""
    )
    reached = []
    for _ in range(wanted):
        ActionChains(driver).send_keys(Keys.TAB).perform()
        reached.append(driver.execute_script("return Number(document.activeElement.dataset.order)"))
        outline = driver.execute_script("return getComputedStyle(document.activeElement).outlineStyle")
        assert outline != "none"  # where the focus is can be seen
    assert reached == list(range(wanted))
    assert wanted >= 15
    summary = driver.find_elements("css selector", "details:not([open]) > summary")[0]
    summary.send_keys(Keys.ENTER)
    assert summary.find_element("xpath", "..").get_attribute("open") is not None


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_what_is_behind_it(page, scheme: str) -> None:
    driver = page(375, scheme=scheme)
    ratios = driver.execute_script(
        """const light = c => { const v = c.match(/[0-9.]+/g).slice(0, 3).map(x => x / 255)
            .map(x => x <= 0.03928 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4);
            return 0.2126 * v[0] + 0.7152 * v[1] + 0.0722 * v[2]; };
        const behind = e => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor;
            if (!/rgba\\(.*, 0\\)/.test(c)) return c; } return 'rgb(255,255,255)'; };
        return [...document.querySelectorAll('h1, h2, p, a, td, th, dt, dd, summary, figcaption, .mark, .verdict')]
            .filter(e => e.textContent.trim() && !e.classList.contains('skip'))
            .map(e => { const a = light(getComputedStyle(e).color), b = light(behind(e));
                return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05); })"""
    )
    assert len(ratios) > 100
    assert min(ratios) >= 4.5  # WCAG AA
    background = driver.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(20, 22, 26)") == (scheme == "dark")
