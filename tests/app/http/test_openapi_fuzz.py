"""Requests drawn from the OpenAPI document, valid and not: no 5xx, and every answer is one that it declares."""

import threading
import time

import pytest
import schemathesis
import uvicorn
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance

from app.http.application import create_app
from app.settings import Settings

EXAMPLES = 40


@pytest.fixture(scope="module")
def served(bundle, tmp_path_factory):
    """A real server with small limits, so that they are met too; its base address."""
    app = create_app(
        Settings(
            bundle=bundle.directory,
            device="cpu",
            data=tmp_path_factory.mktemp("data"),
            max_sequences_per_request=3,
            max_items_per_sequence=5,
        )
    )
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, access_log=False))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 20
    while not server.started:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join(20)


SCHEMA = schemathesis.openapi.from_dict(create_app(Settings()).openapi())
OPERATIONS = {operation.ok().label: operation.ok() for operation in SCHEMA.get_all_operations()}


# Negative data needs something to violate: an operation without body and query takes any request
DRAWS = [
    pytest.param(operation, mode, id=f"{label}-{mode.value}")
    for label, operation in OPERATIONS.items()
    for mode in GenerationMode
    if mode is GenerationMode.POSITIVE or list(operation.body) or list(operation.query)
]


@pytest.mark.parametrize(("operation", "mode"), DRAWS)
def test_every_answer_to_a_drawn_request_is_declared(served, operation, mode):
    """No 5xx; status, content type and body as declared; what the schema forbids is refused."""

    @settings(
        max_examples=EXAMPLES,
        derandomize=True,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(operation.as_strategy(generation_mode=mode), st.booleans())
    def check(case, name_a_domain):
        if name_a_domain and mode is GenerationMode.POSITIVE and operation.label == "POST /regenerate":
            case.body["target_domain"] = "kitchen"  # no draw would hit upon it, and all would end at the 404
        query = case.query if isinstance(case.query, dict) else {}
        if mode is GenerationMode.POSITIVE and "source_item" in query:
            query.setdefault("source_domain", "food")  # OpenAPI cannot say that the one needs the other
        if mode is GenerationMode.POSITIVE and operation.label == "POST /jobs" and isinstance(case.body, dict):
            if not case.body.get("result_uri"):  # nor that these need it, or which names are taken
                for name in ("result_format", "result_view"):
                    case.body.pop(name, None)
            case.body.pop("carry", None)
        # Without the one check that takes a shape for the whole truth: a well-shaped request may still be over a
        # limit, ask for unknown items to be errors, or send a cursor that nobody gave it
        excluded = [positive_data_acceptance]
        answer = case.call(base_url=served, timeout=10)
        if answer.status_code == 413:  # counted while it came: whether the rest of it was right, nobody looked
            excluded.append(negative_data_rejection)
        case.validate_response(answer, excluded_checks=excluded)
        if mode is GenerationMode.POSITIVE and answer.status_code == 422:
            assert answer.json()["type"] != "urn:taesar:problem:invalid-request", answer.text[:300]

    check()
