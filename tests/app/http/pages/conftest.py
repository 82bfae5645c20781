"""A real server of a small bundle with hostile names, a report, and a browser that looks at it."""

import contextlib
import threading
from pathlib import Path

import pytest
import torch
from playwright.sync_api import expect

from app.http.application import create_app
from app.main import Server
from app.settings import Settings
from models.bundle import save_bundle
from models.evaluation.cells import EvaluationConfig
from models.evaluation.study import Study, run_study
from models.network.decoder import Decoder, DecoderConfig
from models.report.pages import write_report
from models.vocabulary import Vocabulary
from tests.chromium import BrowserMissingError, open_browser
from tests.services import eventually, require

SCRIPT = "<script>document.title='taken'</script>"
IMAGE = '"><img src=x onerror="document.title=1">'
QUOTES = """it's "both" & {{ 7 * 7 }}"""
RIGHT_TO_LEFT = "\u202eabc\u202c\u05d0"
HOSTILE = (SCRIPT, IMAGE, QUOTES, RIGHT_TO_LEFT)
expect.set_options(timeout=20_000)  # of a machine that has much else to do
DOMAINS = ("books", "food", '<b>shop</b> "x"')
KEY = "a-key-for-the-tests"


def hostile_bundle(directory, *, name=SCRIPT, seed=3):
    """Random decoders over three domains, each with every hostile id among its twenty items."""
    items = tuple(
        (*HOSTILE, *(f"{domain[0].strip('<')}{n:02d}" for n in range(16))) for domain in ("books", "food", "shop")
    )
    vocabulary = Vocabulary(DOMAINS, items)
    config = DecoderConfig(num_items=vocabulary.num_items, width=16, inner_width=16, num_layers=1, max_length=16)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        networks = [Decoder(config) for _ in range(4)]
        for network in networks:
            for parameter in network.parameters():
                parameter.data.add_(torch.randn_like(parameter) * 0.3)
    epochs = [{"epoch": n, "loss": 5.0 - n, "validation_ndcg_at_10": n / 20} for n in range(4)]
    provenance = {
        "name": name,
        "created": "2026-03-01T04:00:00+00:00",
        "base": {"epochs": epochs},
        "experts": {domain: {"epochs": epochs[:2]} for domain in DOMAINS},
    }
    return save_bundle(directory, vocabulary=vocabulary, base=networks[0], experts=networks[1:], provenance=provenance)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    """The folder of two bundles; the first serves."""
    root = tmp_path_factory.mktemp("page-bundles")
    hostile_bundle(root / "first")
    hostile_bundle(root / "second", name="another", seed=4)
    return root


@pytest.fixture(scope="module")
def report_folder(dataset, tmp_path_factory):
    """A report of two counted recommenders on original rows."""
    root = tmp_path_factory.mktemp("page-reports")
    study = Study(
        target="food",
        recommenders=("popularity", "markov"),
        arms=("original",),
        seeds=(1,),
        composite=None,
        histories=("target",),
        ranking="all",
        config=EvaluationConfig(),
        cells=root / "cells",
        device=torch.device("cpu"),
    )
    write_report(run_study(dataset, study, command="taesar evaluate"), root / "<i>small")
    return root


@contextlib.contextmanager
def served(**settings):
    """The address of a server in a thread of this process."""
    chosen = Settings(device="cpu", port=0, **settings)
    server = Server(create_app(chosen), chosen)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    eventually(lambda: server.started, seconds=60)
    yield f"http://localhost:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join(30)
    assert not thread.is_alive()


@pytest.fixture(scope="module")
def address(bundles, report_folder, tmp_path_factory):
    """Of a server without keys."""
    data = tmp_path_factory.mktemp("page-data")
    with served(bundle=bundles / "first", bundle_root=bundles, data=data, reports=report_folder) as where:
        yield where


@pytest.fixture(scope="module")
def browser():
    """Chromium, without a head."""
    try:
        with open_browser() as opened:
            yield opened
    except BrowserMissingError as error:
        require(error)


@pytest.fixture
def tab(browser):
    """A function address -> page; in the end no console error was seen and no other host was asked."""
    contexts, complaints, requests = [], [], []

    def open_tab(base, **options):
        context = browser.new_context(base_url=base, viewport={"width": 1280, "height": 900}, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: requests.append((base, request.url)))
        page.complaints = complaints
        return page

    yield open_tab
    for context in contexts:
        context.close()
    assert complaints == []
    assert requests
    assert [url for base, url in requests if not url.startswith((f"{base}/", "data:"))] == []


@pytest.fixture(scope="session")
def axe():
    """The text of axe-core."""
    return (Path(__file__).parent / "vendored" / "axe.min.js").read_text()
