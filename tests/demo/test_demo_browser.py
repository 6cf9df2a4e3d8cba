"""The page in headless Chromium, as visitors see and drive it.

Screenshots go to the folder that `DEMO_SCREENSHOTS` names, by default a temporary one. `DEMO_PICTURE=docs/demo.png`
writes the picture of the README anew.
"""

import os
import shutil
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image


pytest.importorskip("gradio")
sync_api = pytest.importorskip("playwright.sync_api")
expect = sync_api.expect

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")

WIDE, NARROW = {"width": 1200, "height": 900}, {"width": 360, "height": 740}


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        # In containers there is no sandbox for root.
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def visit(browser, digits_url):
    """Opens the page in a visit of its own: `visit(**settings of the context)` -> page. Errors of its scripts fail."""
    contexts, errors = [], []

    def visit(url=digits_url, viewport=WIDE, **settings):
        contexts.append(browser.new_context(viewport=viewport, **settings))
        page = contexts[-1].new_page()
        page.set_default_timeout(15_000)
        page.on("pageerror", lambda error: errors.append(error))
        page.goto(url)
        page.get_by_role("heading", level=1).wait_for()
        return page

    yield visit
    for context in contexts:
        context.close()
    assert not errors


@pytest.fixture
def shoot(tmp_path):
    """Takes a screenshot of the whole page: `shoot(page, name)`."""
    folder = Path(os.environ.get("DEMO_SCREENSHOTS", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    return lambda page, name: page.screenshot(path=folder / f"{name}.png", full_page=True, animations="disabled")


def upload(page, path):
    with page.expect_response(lambda response: "/upload" in response.url):
        page.locator("input[type=file]").first.set_input_files(path)
    page.locator(".upload img").first.wait_for()


def click(page, name):
    page.get_by_role("button", name=name, exact=True).click()


def open_tab(page, name):
    page.get_by_role("tab", name=name).click()


def caption(page):
    click(page, "Caption")
    page.locator("#captions button").first.wait_for()
    return [" ".join(line.split()) for line in page.locator("#captions p").all_inner_texts()]


def overflow(page):
    return page.evaluate("document.documentElement.scrollWidth - window.innerWidth")


def add_labels(page, labels):
    box = page.locator("#labels input")
    box.click()
    for label in labels:
        box.fill(label)
        box.press("Enter")


def test_visitor_captions_and_clicks_on_a_word(visit, digits, shoot):
    page = visit()
    expect(page.locator("#captions")).to_have_text("Captions appear here.")
    shoot(page, "empty")
    upload(page, digits.images / digits.names[0])
    assert caption(page) == [digits.captions[digits.names[0]]]
    expect(page.get_by_text("a second")).to_be_visible()
    page.locator("#captions button").nth(2).click()
    expect(page.locator("#attention")).to_contain_text("wrote “three”")
    page.locator("#attention img").wait_for()
    shoot(page, "attention")
    first = page.locator("#attention img").get_attribute("src")
    page.locator("#captions button").nth(4).click()
    expect(page.locator("#attention")).to_contain_text("wrote “nine”")
    expect(page.locator("#attention img")).not_to_have_attribute("src", first)
    if picture := os.environ.get("DEMO_PICTURE"):
        page.mouse.move(0, 0)
        taken = page.screenshot(full_page=True, animations="disabled")
        taken = Image.open(BytesIO(taken)).convert("RGB").crop((100, 0, 1100, 1000))
        taken = taken.resize((760, 760), Image.Resampling.LANCZOS)
        taken.quantize(palette=taken.quantize(256), dither=Image.Dither.FLOYDSTEINBERG).save(picture, optimize=True)


def test_visitor_searches_with_diverse_beams(visit, digits, shoot):
    page = visit()
    page.locator(".gallery-item, .thumbnail-item").first.click()  # an example
    page.locator(".upload img").first.wait_for()
    page.get_by_label("Diverse beams").check()
    page.get_by_label("number input for Captions").fill("3")
    page.get_by_label("number input for Captions").press("Tab")
    lines = caption(page)
    assert len(lines) == 3 and lines[0] == digits.captions[digits.names[0]]
    shoot(page, "diverse_beams")


def test_visitor_labels_finds_and_searches(visit, digits, shoot):
    page = visit()
    upload(page, digits.images / digits.names[0])
    open_tab(page, "Zero-shot")
    truth = digits.captions[digits.names[0]]
    add_labels(page, ["a single blue two", truth])
    page.get_by_label("Template").fill("{}")
    click(page, "Classify")
    expect(page.get_by_test_id(f"{truth}-confidence-set").first).to_contain_text("100%")
    shoot(page, "zero_shot")

    open_tab(page, "Find")
    page.get_by_label("Find", exact=True).last.fill("a green three")
    page.get_by_label("Compare with").fill("a green nine")
    click(page, "Find")
    expect(page.locator(".titled img:visible")).to_have_count(2)
    expect(page.locator(".heat-scale")).to_contain_text("cosine")
    shoot(page, "find")

    open_tab(page, "Search")
    page.get_by_label("Text", exact=True).fill(digits.captions[digits.names[2]])
    click(page, "Search by text")
    expect(page.locator("#found .grid-wrap button").first).to_contain_text(digits.names[2])
    shoot(page, "search")


def test_broken_file_gives_a_sentence(visit, digits, shoot, tmp_path):
    (tmp_path / "broken.png").write_bytes((digits.images / digits.names[0]).read_bytes()[:300])
    page = visit()
    click(page, "Caption")
    expect(page.get_by_test_id("toast-body")).to_contain_text("There is no image yet")
    with page.expect_response(lambda response: "/upload" in response.url):
        page.locator("input[type=file]").first.set_input_files(tmp_path / "broken.png")
    click(page, "Caption")
    expect(page.get_by_text("no image that can be read")).to_be_visible()
    expect(page.get_by_text("Traceback")).to_have_count(0)
    shoot(page, "broken")
    upload(page, digits.images / digits.names[0])
    assert caption(page) == [digits.captions[digits.names[0]]]


def test_two_visitors_keep_their_own(visit, digits):
    pages = [visit(), visit()]
    for page, name in zip(pages, digits.names):
        upload(page, digits.images / name)
    for page in pages:
        click(page, "Caption")
    for page, name in zip(pages, digits.names):
        page.locator("#captions button").first.wait_for()
        assert " ".join(page.locator("#captions p").inner_text().split()) == digits.captions[name]
    for page, name in zip(pages, digits.names):
        page.locator("#captions button").nth(0).click()
        word = digits.captions[name].split()[0]
        expect(page.locator("#attention")).to_contain_text(f"wrote “{word}”")


def test_narrow_and_dark_screen_has_no_overflow(visit, digits, shoot):
    page = visit(viewport=NARROW, color_scheme="dark")
    assert overflow(page) == 0
    upload(page, digits.images / digits.names[0])
    page.get_by_label("Sampling").check()
    caption(page)
    page.locator("#captions button").first.click()
    page.locator("#attention img").wait_for()
    assert overflow(page) == 0
    shoot(page, "narrow_dark")
    for name in ("Zero-shot", "Find", "Search"):
        open_tab(page, name)
        assert overflow(page) == 0


def test_keys_alone_are_enough(visit, digits):
    page = visit()
    upload(page, digits.images / digits.names[0])
    seen = []
    page.locator("body").focus()

    def tab_to(wanted):
        for _ in range(60):
            page.keyboard.press("Tab")
            focused = page.evaluate("(document.activeElement.innerText || document.activeElement.value || '').trim()")
            seen.append(focused)
            if focused == wanted:
                return
        raise AssertionError(f"{wanted!r} is not reached: {seen}")

    tab_to("Caption")  # the tab
    tab_to("Caption")  # the button
    page.keyboard.press("Enter")
    page.locator("#captions button").first.wait_for()
    tab_to("three")
    page.keyboard.press("Space")
    expect(page.locator("#attention")).to_contain_text("wrote “three”")


def test_page_of_a_tower_says_what_it_lacks(visit, serve, digits, tmp_path, shoot):
    from transformers import AutoModel, AutoProcessor

    AutoModel.from_pretrained(digits.model).vision_model.save_pretrained(tmp_path / "tower")
    AutoProcessor.from_pretrained(digits.model).image_processor.save_pretrained(tmp_path / "tower")
    page = visit(serve(tmp_path / "tower"))
    expect(page.get_by_text("need both towers")).to_be_visible()
    for index in range(2):
        place = page.locator(".upload").nth(index)
        place.locator("input[type=file]").set_input_files(digits.images / digits.names[0])
        place.locator("img").first.wait_for()
    click(page, "Compare")
    expect(page.get_by_label("Cosine of their embeddings")).to_have_value("1.0000")
    shoot(page, "tower")
