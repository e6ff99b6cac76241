"""Both pages in a headless Chromium: type, click, read the answer. `make test-pages` runs these tests alone.

SCREENSHOTS=DIRECTORY keeps a picture of each page.
"""

import functools
import http.server
import json
import os
import re
import shutil
import threading
from pathlib import Path

import pytest
import torch

from hfbert_scratch.app import answers
from hfbert_scratch.app.checkpoint import open_checkpoint
from hfbert_scratch.app.page import build_page, serve


webdriver = pytest.importorskip("selenium.webdriver")
OPTIONS = [
    "headless",
    "no-sandbox",
    "disable-gpu",
    "disable-quic",
    "no-first-run",
    "disable-background-networking",
    "disable-component-update",
    "disable-sync",
    "window-size=1000,760",
]
NODE_MODULES = Path(__file__).parents[2] / ".venv-clients" / "node" / "node_modules"
MASKED = "kala [MASK] fidu"
# What is typed into the first boxes of the page of a case, and its button.
HEADS = {
    "single_label": ({"Text": "kala mose fidu"}, "Classify"),
    "token": ({"Text": "Kala ☃ mose,  fidu bäko."}, "Find"),
    "question_answering": ({"Text": "Kala mose fidu ☃ bako.", "Question": "mose?"}, "Answer"),
}


class Page:
    """A page in the browser, as a person sees it."""

    def __init__(self, driver, name):
        self.driver, self.name = driver, name
        driver.get_log("performance")  # of earlier pages

    def open(self, address):
        self.driver.get(address)

    def wait(self, condition, what):
        from selenium.webdriver.support.wait import WebDriverWait

        return WebDriverWait(self.driver, 60, 0.1).until(lambda _: condition(), what)

    def shown(self, selector):
        return [found for found in self.driver.find_elements("css selector", selector) if found.is_displayed()]

    def click(self, selector, text):
        from selenium.common.exceptions import StaleElementReferenceException

        def button():
            try:
                return next((found for found in self.shown(selector) if found.text == text), None)
            except StaleElementReferenceException:  # the page was being laid out
                return None

        self.wait(button, f"no {selector} {text}").click()

    def type(self, label, text):
        box = self.wait(lambda: next(iter(self._boxes(label)), None), f"no input {label}")
        box.clear()
        box.send_keys(text)

    def _boxes(self, label):
        labelled = self.shown(f"[aria-label='{label}']")
        return labelled or [
            box
            for found in self.shown("label")
            if found.text.split("\n")[0].startswith(label)
            for box in (
                found.find_elements("css selector", "textarea, input")
                or self.shown(f"#{found.get_attribute('for') or 'none'}")
            )
        ]

    def answer(self, selector):
        """The text of what appears at `selector`, and a picture of it if they are kept."""
        text = self.wait(lambda: " ".join(found.text for found in self.shown(selector)), f"no answer in {self.name}")
        self.keep("")
        return text

    def keep(self, suffix):
        if os.environ.get("SCREENSHOTS"):
            directory = Path(os.environ["SCREENSHOTS"])
            directory.mkdir(parents=True, exist_ok=True)
            self.driver.save_screenshot(str(directory / f"{self.name}{suffix}.png"))

    def addresses(self):
        """The addresses of the web that the page has asked for."""
        messages = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        sent = [entry["params"] for entry in messages if entry["method"] == "Network.requestWillBeSent"]
        return {entry["request"]["url"] for entry in sent if entry["request"]["url"].startswith(("http", "ws"))}

    def complaints(self):
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] == "SEVERE"]


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    browser, control = (shutil.which(name) for name in ("chromium", "chromedriver"))
    if browser is None or control is None:
        pytest.skip("no chromium and chromedriver; Debian's packages are chromium and chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for option in (*OPTIONS, f"user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(f"--{option}")
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(control))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def app(checkpoint, driver):
    """case → the page of `hfbert app`, opened in the browser."""
    pytest.importorskip("gradio")
    pages = []

    def get(case):
        built = build_page(open_checkpoint(checkpoint(case)[0]), title=f"A random model: {case}")
        _, address, _ = serve(built, "127.0.0.1", prevent_thread_lock=True, quiet=True)
        pages.append(built)
        page = Page(driver, f"app-{case}")
        page.open(address)
        return page, address

    yield get
    for page in pages:
        page.close(verbose=False)


@pytest.fixture(scope="module")
def web(exported, driver):
    """(case, quantize) → the page of the web export, served from its folder and opened in the browser."""
    servers = []
    if not NODE_MODULES.is_dir():
        pytest.skip("no Node packages; make test-clients installs them")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    def get(case, quantize=False):
        folder = exported("web", case, quantize=quantize, web_library=str(NODE_MODULES)).directory
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        page = Page(driver, f"web-{case}{'-quantized' * quantize}")
        page.open(f"http://127.0.0.1:{server.server_port}/")
        page.wait(lambda: page.shown("#status")[0].text == "The model is ready.", "the model did not load")
        return page, f"http://127.0.0.1:{server.server_port}/"

    yield get
    for server in servers:
        server.shutdown()


def words(table):
    """The texts of a table of text and per cent, likeliest first."""
    return table.replace(" %", "").split()[::2]


def test_the_app_answers_in_every_tab_and_asks_nobody_else(app, checkpoint, passed):
    page, address = app("pretraining")
    page.wait(lambda: page.shown("button[role=tab]"), "the page did not open")
    page.keep("-empty")
    page.type("Text", MASKED)
    page.click("button.primary", "Fill in")
    likeliest = answers.fill_mask(open_checkpoint(checkpoint("pretraining")[0]), MASKED)[0]
    assert page.answer(".hfbert-answer").split("\n")[::2] == list(likeliest)
    page.type("Text", "kala")
    page.click("button.primary", "Fill in")
    assert page.answer("[role=alert]") == "The text has no [MASK]; write it where a word is missing."
    for tab, button, selector, expected in (
        ("Next sentence", "Ask", ".hfbert-answer", "does not follow"),
        ("Likelihood", "Score", "p:has(> b)", "pseudo-perplexity"),
        ("Similarity", "Compare", ".hfbert-answer", "1.00"),
        ("Attention", "Show", "h4", "All heads of layer 1"),
    ):
        page.click("button[role=tab]", tab)
        page.click("button.primary", button)
        page.name = f"app-{tab.lower().replace(' ', '-')}"
        assert expected in page.answer(selector), tab
    assert page.complaints() == []
    elsewhere = {url for url in page.addresses() if not url.startswith((address, address.replace("http", "ws")))}
    assert not elsewhere
    passed("Chromium", "hfbert app: all tabs", "no address but the page's own")


@pytest.mark.parametrize("case", HEADS)
def test_the_app_has_a_tab_for_each_head(case, app, checkpoint, passed):
    page, _ = app(case)
    typed, button = HEADS[case]
    for label, text in typed.items():
        page.type(label, text)
    page.click("button.primary", button)
    answer = page.answer(".hfbert-answer")
    opened = open_checkpoint(checkpoint(case)[0])
    if case == "single_label":
        assert words(answer) == list(answers.classify(opened, typed["Text"]))
    elif case == "token":
        kinds = [kind for _, kind in answers.tag_words(opened, typed["Text"]) if kind]
        assert kinds == re.findall(r"LABEL_\d", answer)
    else:
        expected = answers.answer_question(opened, typed["Question"], typed["Text"])
        assert answer.split("\n")[0] == expected[0][0]
    passed("Chromium", f"hfbert app: {case}", "as computed")


@torch.no_grad()
@pytest.mark.parametrize("quantize", [False, True], ids=["float32", "8 bits"])
def test_the_web_page_fills_in_blanks(quantize, web, checkpoint, passed):
    page, address = web("pretraining", quantize)
    page.type("Text", MASKED)
    page.click("#ask", "Fill in")
    answer = page.answer("#answer .rows")
    opened = open_checkpoint(checkpoint("pretraining")[0])
    likeliest = answers.fill_mask(opened, MASKED, 5)[0]
    if not quantize:  # 8 bits may change the order
        assert answer.split("\n")[::2] == [word.removeprefix("##") for word in likeliest]
        assert answer.split("\n")[1] == f"{100 * next(iter(likeliest.values())):.1f} %"
    for text, sentence in (
        ("kala", "The text has no [MASK]; write one where a word is missing."),
        (f"[MASK] {'kala ' * 100}", "and this model reads at most 64; cut it."),
    ):
        page.type("Text", text)
        page.click("#ask", "Fill in")
        page.wait(lambda sentence=sentence: page.shown("#answer")[0].text.endswith(sentence), sentence)
    page.keep("-error")
    assert page.complaints() == []
    assert all(url.startswith(address) for url in page.addresses())
    passed("Chromium", f"web export, {'8 bits' if quantize else 'float32'}", "no address but the page's own")


@pytest.mark.parametrize("case", ["single_label", "regression", "multi_label", "token", "question_answering"])
def test_the_web_page_answers_as_our_model(case, web, checkpoint, passed):
    page, _ = web(case)
    typed, button = HEADS.get(case, HEADS["single_label"])
    for label, text in typed.items():
        page.type(label, text)
    page.click("#ask", button)
    opened = open_checkpoint(checkpoint(case)[0])
    answer = page.answer("#answer .rows, #answer .text")
    if case == "token":  # the text as it was typed, unknown words and all
        pieces = answers.tag_words(opened, typed["Text"])
        assert answer == "".join(text if kind is None else f"{text} {kind}" for text, kind in pieces)
    elif case == "question_answering":
        expected = answers.answer_question(opened, typed["Question"], typed["Text"], top_k=3)
        shares = dict(zip(*[iter(answer.split("\n"))] * 2, strict=True))
        assert shares == {text: f"{100 * share:.1f} %" for text, share in expected}
    elif case == "regression":
        assert answer == f"score {answers.classify(opened, typed['Text'])['score']:.3f}"
    else:
        shares = [f"{name}\n{100 * share:.1f} %" for name, share in answers.classify(opened, typed["Text"]).items()]
        assert answer == "\n".join(shares)
    passed("Chromium", f"web export: {case}", "as computed by our model")


def test_the_web_page_says_that_a_file_is_no_address(exported, driver):
    page = Page(driver, "web-file")
    page.open(
        (
            exported("web", "pretraining", quantize=False, web_library=str(NODE_MODULES)).directory / "index.html"
        ).as_uri()
    )
    assert "start a web server in this folder" in page.shown("#status")[0].text
