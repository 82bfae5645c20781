"""Requests drawn from the OpenAPI document, valid and not: no 5xx, and every answer is one that it declares."""

import threading
import time

import pytest
import uvicorn

from app.http.application import create_app
from app.settings import Settings
from tests.attack.openapi_cases import CALLERS, DRAWS, EVERYTHING, AnswerTally, check_drawn, write_keys

EXAMPLES = 40


@pytest.fixture(scope="module")
def served(bundle, tmp_path_factory):
    """A real server with small limits, so that they are met too, and a key for each scope; its base address."""
    folder = tmp_path_factory.mktemp("fuzz")
    app = create_app(
        Settings(
            bundle=bundle.directory,
            device="cpu",
            data=folder / "data",
            api_keys_file=write_keys(folder / "keys"),
            key_requests_per_second=0,
            max_sequences_per_request=3,
            max_items_per_sequence=5,
        )
    )
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, access_log=False))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 90
    while not server.started:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join(20)


@pytest.mark.parametrize(("label", "mode"), [pytest.param(*draw, id=f"{draw[0]}-{draw[1].value}") for draw in DRAWS])
def test_every_answer_to_a_drawn_request_is_declared(served, label, mode):
    """No 5xx; status, content type and body as declared; what the schema or the key's scope forbids is refused."""
    tally = AnswerTally()
    # Half of them by a key that may do everything: the others' requests end before anything is done
    callers = (EVERYTHING,) * len(CALLERS) + CALLERS

    check_drawn(served, label, mode, examples=EXAMPLES, seed_number=1, callers=callers, tally=tally)
    assert tally.cases > 0
