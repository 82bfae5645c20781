"""One trace of one job goes through every process that works on it, as OpenTelemetry's own messages show."""

import httpx

from app.runtime.tracing import current_traceparent, span
from tests.chaos.cluster import Cluster
from tests.chaos.inputs import food_kitchen
from tests.otlp import collector
from tests.services import ServiceMissingError, eventually, free_port, reachable_folder, require

JOB, REQUEST = "a" * 31 + "1", "b" * 31 + "2"
CLIENT = "c" * 16
SOON = {"OTEL_BSP_SCHEDULE_DELAY": "200"}


def traceparent(trace):
    return {"traceparent": f"00-{trace}-{CLIENT}-01"}


def ancestors_of(span, spans):
    """From the span to the client's: the ids on the way."""
    by_id = {other.span: other for other in spans}
    way = [span.span]
    while way[-1] in by_id:
        way.append(by_id[way[-1]].parent)
    return way


def test_one_trace_of_one_job_goes_through_api_and_worker_and_one_of_a_request_through_the_models_process():
    with reachable_folder() as folder, collector() as found:
        bundle, path = food_kitchen(folder, num_sequences=40, width=16)
        settings = {"TAESAR_OTLP_ENDPOINT": found.endpoint, "TAESAR_CHUNK_SEQUENCES": "16", **SOON}
        try:
            with Cluster(folder / "cluster", bundle, path.parent, num_workers=1, settings=settings) as up:
                body = {"target_domain": "kitchen", "source_uri": f"file://{path}"}
                job = up.client.post("/jobs", json=body, headers=traceparent(JOB)).raise_for_status().json()
                items = [{"item_id": "B002IEVJRY", "domain": "food"}]
                asked = {"target_domain": "kitchen", "sequences": [{"items": items}]}
                up.client.post("/regenerate", json=asked, headers=traceparent(REQUEST)).raise_for_status()
                assert up.wait(job["job_id"], 120)["state"] == "succeeded"
                eventually(lambda: len([one for one in found.of_trace(JOB) if one.name == "regenerate"]) == 3)
                eventually(lambda: any(one.service == "taesar-model" for one in found.of_trace(REQUEST)))
                eventually(lambda: any(one.name == "POST /regenerate" for one in found.of_trace(REQUEST)))
        except ServiceMissingError as error:
            require(error)

    of_job, of_request = found.of_trace(JOB), found.of_trace(REQUEST)
    assert {(one.service, one.name) for one in of_job} == {
        ("taesar-api", "POST /jobs"),
        ("taesar-worker", "job cut"),
        ("taesar-worker", "job chunk"),
        ("taesar-worker", "regenerate"),
    }
    assert {(one.service, one.name) for one in of_request} == {
        ("taesar-api", "POST /regenerate"),
        ("taesar-api", "batch"),
        ("taesar-model", "model regenerate"),
    }
    assert all(ancestors_of(one, of_job)[-1] == CLIENT for one in of_job)
    assert all(ancestors_of(one, of_request)[-1] == CLIENT for one in of_request)
    assert {one.attributes["taesar.job"] for one in of_job if one.name.startswith("job ")} == {job["job_id"]}
    assert len({one.process for one in of_job}) == len({one.process for one in of_request}) == 2


def test_where_nobody_asks_for_traces_there_is_none():
    with span("work", parent=f"00-{JOB}-{CLIENT}-01"):
        assert current_traceparent() is None


def test_a_collector_that_is_not_there_disturbs_nobody(serving, payload):
    client = serving(otlp_endpoint=f"http://127.0.0.1:{free_port()}")

    assert client.post("/regenerate", json=payload("b01 f02 k03")).status_code == httpx.codes.OK
