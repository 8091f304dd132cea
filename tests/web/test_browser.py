"""The page in headless Chromium, as a person meets it: it draws, stops, says what is wrong, obeys the keyboard."""

import json

import browser
import numpy as np
import pytest
import tiny_model
from browser import IDLE, draw, fill, open_page
from PIL import Image
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from edgedm.images import grid, to_pixels
from edgedm.runtime import LocalRunner, open_runner

pytestmark = pytest.mark.slow

CLOSE = 1e-4  # of images in -1..1: kernels of x86 round products and sums at once, WebAssembly's one by one
STEPS, SEED, LABEL, GUIDANCE = 4, 2**40 + 3, 1, 1.5
MANY = {"count": 1000, "steps": 1000}  # takes ten seconds


def text(driver, name):
    return driver.find_element(By.ID, name).text


def seen(driver):
    """Grey levels of the canvases' pixels: uint8[n, pixels, rgba]."""
    script = """return [...document.querySelectorAll("#images canvas")].map((canvas) => Array.from(
      canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data))"""
    levels = np.array(driver.execute_script(script), np.uint8)
    return levels.reshape(len(levels), -1, 4)


@pytest.fixture(scope="module")
def drawn(driver, site):
    open_page(driver, f"{site}/tiny.html")
    wishes = {"count": 3, "steps": STEPS, "seed": SEED, "sampler": 1, "label": LABEL, "guidance": GUIDANCE}
    values = draw(driver, **wishes)
    return values.reshape(3, 1, 8, 8), seen(driver), driver.get_log("browser"), driver.get_log("performance")


def test_it_draws_the_bits_that_wasmtime_draws_and_nearly_those_of_x86(drawn, wasm_bundle):
    values = drawn[0]
    for runner, near in ((open_runner(wasm_bundle), 0.0), (LocalRunner(tiny_model.folder() / "model.bundle"), CLOSE)):
        with runner:
            runner.prepare(STEPS, "ddpm", label=LABEL, guidance=GUIDANCE)
            assert np.abs(runner.sample(3, SEED) - values).max() <= near


def test_canvases_show_the_pixels_of_the_written_images(drawn):
    values, levels, *_ = drawn
    for channel in range(3):
        np.testing.assert_array_equal(levels[..., channel], to_pixels(values).reshape(3, -1))
    assert (levels[..., 3] == 255).all()


def test_it_says_nothing_to_the_console_and_asks_no_server(drawn, site):
    assert drawn[2] == []
    events = [json.loads(entry["message"])["message"] for entry in drawn[3]]
    sent = [event["params"] for event in events if event["method"] == "Network.requestWillBeSent"]
    asked = {each["request"]["url"] for each in sent if each.get("documentURL", "").startswith(site)}
    assert {url for url in asked if not url.startswith(("blob:", "data:"))} == {f"{site}/tiny.html"}


def test_it_works_from_a_file_too(driver, pages):
    open_page(driver, (pages / "tiny.html").as_uri())
    assert draw(driver, count=1, steps=2).shape == (1, 64)


def test_the_estimate_of_the_finished_image_ends_in_the_same_image(driver, site):
    open_page(driver, f"{site}/tiny.html")
    both = [draw(driver, count=1, steps=STEPS, seed=5, show=show) for show in ("now", "estimate")]
    assert both[0].tobytes() == both[1].tobytes()


def test_the_saved_picture_is_the_grid_that_edgedm_writes(driver, site, tmp_path):
    open_page(driver, f"{site}/tiny.html")
    values = draw(driver, count=3, steps=STEPS, seed=5).reshape(3, 1, 8, 8)
    driver.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)})
    driver.find_element(By.ID, "save").click()
    saved = tmp_path / "images.png"
    WebDriverWait(driver, browser.SECONDS, 0.05).until(lambda _: saved.exists() and saved.stat().st_size > 0)
    pixels = np.asarray(Image.open(saved).convert("L"))
    np.testing.assert_array_equal(pixels, grid(values)[..., 0])


def test_cancel_ends_the_drawing_and_another_begins(driver, site):
    open_page(driver, f"{site}/latent.html")
    fill(driver, **MANY)
    driver.find_element(By.ID, "draw").click()
    browser.wait(driver, "document.getElementById('pace').textContent.startsWith('Step')")
    assert driver.find_element(By.ID, "images").get_attribute("aria-busy") == "true"
    driver.find_element(By.ID, "cancel").click()
    browser.wait(driver, IDLE)
    assert text(driver, "status").startswith("Cancelled after ")
    assert len(driver.find_elements(By.CSS_SELECTOR, "#images canvas")) == MANY["count"]
    assert draw(driver, count=1, steps=2).shape == (1, 192)


def test_the_keyboard_reaches_everything(driver, site):
    open_page(driver, f"{site}/tiny.html")
    wanted = ["count", "steps", "seed", "label", "guidance", "sampler", "show", "draw"]
    reached = []
    for _ in wanted:
        driver.switch_to.active_element.send_keys(Keys.TAB)
        reached.append(driver.switch_to.active_element.get_attribute("id"))
    assert reached == wanted


def test_the_keyboard_draws_and_cancels(driver, site):
    open_page(driver, f"{site}/latent.html")
    fill(driver, **MANY)
    driver.find_element(By.ID, "count").send_keys(Keys.ENTER)
    browser.wait(driver, "document.getElementById('images').ariaBusy === 'true'")
    driver.switch_to.active_element.send_keys(Keys.ESCAPE)
    browser.wait(driver, IDLE)
    assert text(driver, "status").startswith("Cancelled after ")
    fill(driver, **MANY)
    driver.find_element(By.ID, "draw").send_keys(Keys.ENTER)
    browser.wait(driver, "document.activeElement.id === 'cancel'")
    driver.switch_to.active_element.send_keys(Keys.ESCAPE)
    browser.wait(driver, IDLE)
    assert text(driver, "status").startswith("Cancelled after ")
    assert driver.switch_to.active_element.get_attribute("id") == "draw"


def test_what_the_model_refuses_is_said_on_the_page(driver, site):
    open_page(driver, f"{site}/tiny.html")
    draw(driver, count=1, steps=1000)
    assert "outside the trained 40..999" in text(driver, "trouble")
    assert text(driver, "status") == "Stopped."
    draw(driver, count=1, steps=2)
    assert text(driver, "trouble") == ""


def test_a_seed_beyond_64_bits_is_refused(driver, site):
    open_page(driver, f"{site}/tiny.html")
    assert len(draw(driver, count=1, steps=2, seed=2**64 - 1)) == 1
    fill(driver, seed=2**64)
    driver.find_element(By.ID, "draw").click()
    assert "below 2^64" in text(driver, "trouble")


def test_a_latent_model_shows_decoded_images(driver, site, latent_bundle):
    open_page(driver, f"{site}/latent.html")
    values = draw(driver, count=1, steps=STEPS, seed=7)[0].reshape(3, 8, 8)
    with open_runner(latent_bundle) as runner:
        runner.prepare(STEPS, "ddim")
        image = runner.decode(runner.sample(1, 7)[0])
    assert values.tobytes() == image.tobytes()
    np.testing.assert_array_equal(seen(driver)[0, :, :3].T.reshape(3, 8, 8), to_pixels(image[None])[0])
    assert not driver.find_element(By.ID, "label").is_displayed()


@pytest.mark.parametrize("absent", ["WebAssembly.validate = () => false", "delete globalThis.WebAssembly"])
def test_without_vectors_it_says_which_browsers_have_them(driver, site, absent):
    added = driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": absent})
    try:
        driver.get(f"{site}/tiny.html")
        assert "no WebAssembly SIMD" in text(driver, "trouble")
        assert not driver.find_element(By.ID, "draw").is_enabled()
    finally:
        driver.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", added)


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [320, 390, 1280])
def test_it_fits_a_screen_of_any_width_in_light_and_dark(driver, site, width, dark):
    browser.look(driver, width, 800, dark, mobile=width < 600)
    open_page(driver, f"{site}/tiny.html")
    draw(driver, count=5, steps=2)
    driver.find_element(By.TAG_NAME, "summary").click()
    assert driver.execute_script("return document.documentElement.scrollWidth") <= width
    shade = driver.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (sum(int(part) for part in shade[4:-1].split(",")) < 3 * 128) == dark
    heights = driver.execute_script("return [...document.querySelectorAll('button')].map((each) => each.offsetHeight)")
    assert min(heights) >= 44  # of a finger
