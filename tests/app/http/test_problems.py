"""Every error is problem+json of one shape; one test per status pins it."""

import contextlib
import json

import pytest
from fastapi import APIRouter
from fastapi.exceptions import RequestValidationError

import app.errors as errors
from app.errors import InvalidPart
from app.http.application import PARTS, ServicePart
from app.http.problems import STATUS, problem_of, problem_response, problem_responses, status_of, title_of, type_of
from app.jobs.job_bodies import JobOptions
from app.runtime.readiness import Probe
from models.errors import BundleCorruptError, DataError, UnknownDomainError


def assert_problem(answer, *, status, type_, title, instance):
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    body = answer.json()
    assert set(body) - {"errors", "checks"} == {"type", "title", "status", "detail", "instance"}
    assert (body["type"], body["title"], body["status"], body["instance"]) == (type_, title, status, instance)
    assert body["detail"]
    return body


def test_an_invalid_payload_is_422_and_names_every_invalid_place(client, payload):
    body = payload("k01") | {"explain": "perhaps", "colour": "red"}
    answer = client.post("/regenerate", json=body)

    problem = assert_problem(
        answer, status=422, type_="urn:taesar:problem:invalid-request", title="Invalid request", instance="/regenerate"
    )
    assert [found["location"] for found in problem["errors"]] == [["body", "explain"], ["body", "colour"]]


@pytest.mark.parametrize(
    "content",
    [b"{", b"", b"\xff\xfe", b'{"target_domain": "\\ud800", "sequences": [{"items": []}]}', b"[" * 100_000, b"null"],
)
def test_a_body_that_is_no_payload_is_422(client, content):
    answer = client.post("/regenerate", content=content, headers={"Content-Type": "application/json"})

    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"


def test_a_form_of_too_many_fields_is_422(client):
    fields = dict.fromkeys(("target_domain", *(f"field{n}" for n in range(len(JobOptions.model_fields)))), "kitchen")
    answer = client.post("/jobs", data=fields, files={"file": ("in.csv", b"user,item\n")})

    problem = assert_problem(
        answer, status=422, type_="urn:taesar:problem:invalid-body", title="Invalid body", instance="/jobs"
    )
    assert "Too many fields" in problem["detail"]


def test_an_unknown_domain_is_404(client, payload):
    assert_problem(
        client.post("/regenerate", json=payload("k01", target="garden")),
        status=404,
        type_="urn:taesar:problem:unknown-domain",
        title="Unknown domain",
        instance="/regenerate",
    )


def test_an_unknown_path_is_404(client):
    assert_problem(
        client.get("/no/such é"), status=404, type_="about:blank", title="Not Found", instance="/no/such%20%C3%A9"
    )


def test_a_wrong_method_is_405_and_says_which_are_right(client):
    answer = client.get("/regenerate")

    assert_problem(answer, status=405, type_="about:blank", title="Method Not Allowed", instance="/regenerate")
    assert answer.headers["allow"] == "POST"


def test_no_key_is_401(serving):
    answer = serving(api_keys="secret").get("/models")

    assert_problem(
        answer, status=401, type_="urn:taesar:problem:unauthorized", title="Unauthorized", instance="/models"
    )
    assert answer.headers["www-authenticate"].startswith("Bearer")


def test_over_a_limit_is_413(serving, payload):
    answer = serving(max_sequences_per_request=1).post("/regenerate", json=payload("k01", "k01"))

    assert_problem(
        answer,
        status=413,
        type_="urn:taesar:problem:request-too-large",
        title="Request too large",
        instance="/regenerate",
    )


def test_a_full_queue_is_429_with_retry_after(serving, payload):
    client = serving(max_queued_sequences=1, max_sequences_per_request=1, retry_after_seconds=3)
    answers = client.together(*(payload("b01 k02 f03") for _ in range(30)))
    refused = [answer for answer in answers if answer.status_code != 200]

    assert len(refused) > 0
    for answer in refused:
        assert_problem(
            answer, status=429, type_="urn:taesar:problem:queue-full", title="Queue full", instance="/regenerate"
        )
        assert answer.headers["retry-after"] == "3"


def test_no_model_is_503(serving, payload):
    answer = serving(bundle=None).post("/regenerate", json=payload("k01"))

    assert_problem(
        answer,
        status=503,
        type_="urn:taesar:problem:model-unavailable",
        title="Model unavailable",
        instance="/regenerate",
    )


def test_a_mistake_of_ours_is_500_without_its_message_and_the_service_goes_on(serving, caplog):
    router = APIRouter()

    @router.get("/mistake")
    async def mistake() -> None:
        raise RuntimeError("password: hunter2")

    def part(settings, metrics):
        return ServicePart((router,), (), lambda app: contextlib.nullcontext())

    client = serving(parts=(*PARTS, part))
    answer = client.get("/mistake", headers={"X-Request-ID": "abc"})

    assert_problem(answer, status=500, type_="about:blank", title="Internal Server Error", instance="/mistake")
    assert "hunter2" not in answer.text
    assert answer.headers["x-request-id"] == "abc"
    assert client.get("/healthz").status_code == 200


def test_a_model_error_outside_the_table_is_500():
    problem = problem_of(DataError("a path of the server"), instance="/x")

    assert problem.status == 500
    assert "path of the server" not in problem.detail


def test_a_subclass_has_its_ancestors_status_and_its_own_name():
    problem = problem_of(BundleCorruptError("weights.bin: truncated"), instance="/x")

    assert (problem.status, problem.title, problem.detail) == (409, "Bundle corrupt", "weights.bin: truncated")
    assert problem.type == "urn:taesar:problem:bundle-corrupt"


def test_every_error_of_the_service_is_in_the_table():
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.ServiceError)]

    # A backup is a command's; files of keys and passwords are the start's: lines on their error streams.
    of_no_answer = {errors.ServiceError, errors.BackupError, errors.KeyFileError, errors.QueueRefusesError}
    assert len(kinds) > 5
    for kind in kinds:
        if kind not in of_no_answer:
            assert any(ancestor in STATUS for ancestor in kind.__mro__), kind


def test_no_two_kinds_in_the_table_share_a_type():
    assert len({type_of(kind) for kind in STATUS}) == len(STATUS)
    assert all(title_of(kind) for kind in STATUS)


def test_only_invalid_payloads_are_422():
    assert {kind.__name__ for kind, status in STATUS.items() if status == 422} == {
        "RequestValidationError",
        "UnknownSequenceItemsError",
        "InvalidBodyError",
        "InvalidCursorError",
        "InvalidSourceError",
        "InputFormatError",
    }


def test_every_declared_error_of_every_route_refers_to_the_one_schema(client):
    document = client.get("/openapi.json").json()

    assert "HTTPValidationError" not in document["components"]["schemas"]
    declared = [
        (path, status, response["content"])
        for path, methods in document["paths"].items()
        for operation in methods.values()
        for status, response in operation["responses"].items()
        if int(status) >= 400
    ]
    assert len(declared) > 10
    for path, status, content in declared:
        assert list(content) == ["application/problem+json"], (path, status)
        schema = content["application/problem+json"]["schema"]
        assert schema == {"$ref": "#/components/schemas/Problem"}


def test_declared_errors_of_one_status_are_listed_together():
    responses = problem_responses(UnknownDomainError, errors.UnknownModelError)

    assert responses[404]["description"] == "Unknown domain; Unknown model"


def test_an_unencodable_detail_still_gives_an_answer(client):
    answer = problem_response(errors.UnknownModelError("\ud800"), path="/models/\ufffd")

    assert json.loads(answer.body)["status"] == 404


def test_a_part_of_an_error_keeps_its_location():
    error = errors.UnknownSequenceItemsError([InvalidPart(("body", 1), "one"), InvalidPart(("body", 2), "two")], 2)

    assert str(error) == "one (and 1 more)"
    assert status_of(error) == 422


def test_an_answer_lists_a_hundred_invalid_places_and_counts_the_rest(client, payload):
    unknown = payload(*["k01 zz1 b99"] * 60, "zz2 " * 5_000, on_unknown="error")
    unknown["sequences"][60]["items"] = unknown["sequences"][60]["items"][:4_000]
    answer = client.post("/regenerate", json=unknown)

    assert answer.status_code == 422
    assert len(answer.json()["errors"]) == errors.MAX_LISTED_PARTS == 100
    assert answer.json()["errors"][99]["location"] == ["body", "sequences", 49, "items", 2]
    assert answer.json()["detail"] == (
        "sequence 0, position 1: unknown item 'zz1' of domain 'garden' (and 4,119 more); the first 100 are listed"
    )
    assert len(answer.content) < 32_768


@pytest.mark.parametrize(
    "sequences",
    [[{"items": [{"a": 1}] * 1_000}] * 20, [1] * 20_000, [{f"key{n}": 1 for n in range(20_000)}]],
    ids=["items", "sequences", "keys"],
)
def test_a_body_that_is_wrong_in_every_place_gets_a_short_answer(client, sequences):
    answer = client.post("/regenerate", json={"target_domain": "kitchen", "sequences": sequences})

    assert answer.status_code in (413, 422)
    assert len(answer.json().get("errors", [])) <= 3
    assert len(answer.content) < 2_048


def test_invalid_places_beyond_a_hundred_are_counted():
    found = [{"loc": ("body", n), "msg": "wrong"} for n in range(1_000)]
    problem = problem_of(RequestValidationError(found), instance="/")

    assert problem.detail == "the request is invalid: wrong (and 999 more); the first 100 are listed"
    assert [part.location for part in problem.errors] == [["body", n] for n in range(100)]


def test_a_failing_check_is_503_with_every_result(serving):
    async def down():
        return "no connection"

    def part(settings, metrics):
        return ServicePart((), (Probe("sql-replica", down),), lambda app: contextlib.nullcontext())

    answer = serving(parts=(*PARTS, part)).get("/readyz")

    problem = assert_problem(
        answer, status=503, type_="urn:taesar:problem:not-ready", title="Not ready", instance="/readyz"
    )
    assert problem["checks"]["sql-replica"] == "no connection"
    assert {result for name, result in problem["checks"].items() if name != "sql-replica"} == {"ok"}
