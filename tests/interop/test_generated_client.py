"""What openapi-python-client makes of our OpenAPI document uploads, submits, follows and reads."""

import importlib
import io
import json
import sys
import threading
import time
from importlib.util import find_spec

import pytest
import uvicorn

from app.access.key_file import ALL_SCOPES, AccessKey, add_key, hash_of
from app.http.application import create_app
from app.settings import Settings

ITEMS = [{"item_id": "books-01", "domain": "books"}, {"item_id": "food-02", "domain": "food"}]


@pytest.fixture(scope="module")
def url(bundle, tmp_path_factory):
    """A running service that asks for the key "secret"; its address."""
    folder = tmp_path_factory.mktemp("generated")
    add_key(folder / "keys", AccessKey("generated", ALL_SCOPES, hash_of(b"secret")))
    (folder / "in").mkdir()
    (folder / "in" / "mixed.ndjson").write_text(json.dumps({"user_id": "u", "items": ITEMS}) + "\n")
    settings = Settings(
        bundle=bundle.directory,
        device="cpu",
        data=folder / "data",
        api_keys_file=folder / "keys",
        input_roots=(f"file://{folder / 'in'}",),
    )
    server = uvicorn.Server(uvicorn.Config(create_app(settings), port=0, log_config=None))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 90
    while not server.started:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}", f"file://{folder / 'in'}/mixed.ndjson"
    server.should_exit = True
    thread.join(30)


@pytest.fixture(scope="module")
def generated(tmp_path_factory):
    """A function name -> module of the generated package, whose making warned of nothing but a media type."""
    if find_spec("openapi_python_client") is None:
        pytest.skip("openapi-python-client is not installed: make interop installs it")
    from openapi_python_client import generate
    from openapi_python_client.config import Config, ConfigFile, MetaType

    folder = tmp_path_factory.mktemp("made")
    (folder / "openapi.json").write_text(json.dumps(create_app(Settings(api_keys="any")).openapi()))
    chosen = ConfigFile(
        package_name_override="generated_taesar",
        project_name_override="generated-taesar",
        post_hooks=[],
        content_type_overrides={"application/x-ndjson": "application/octet-stream"},
    )
    config = Config.from_sources(
        chosen, MetaType.NONE, folder / "openapi.json", "utf-8", True, folder / "generated_taesar"
    )
    assert list(generate(config=config)) == []
    sys.path.insert(0, str(folder))
    yield lambda name: importlib.import_module(f"generated_taesar.{name}")
    sys.path.remove(str(folder))


@pytest.fixture
def connection(generated, url):
    with generated("client").AuthenticatedClient(base_url=url[0], token="secret") as client:
        yield client


def succeeded(generated, connection, job_id):
    """The job, followed until it has."""
    deadline = time.monotonic() + 60
    while True:
        job = generated("api.jobs.get_job").sync(job_id, client=connection)
        if job.state == "succeeded":
            return job
        assert job.state in ("queued", "running"), job
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_it_regenerates(generated, connection):
    models = generated("models")
    request = models.RegenerateRequest.from_dict({"target_domain": "kitchen", "sequences": [{"items": ITEMS}]})
    answer = generated("api.regeneration.regenerate").sync(client=connection, body=request)

    assert answer.target_domain == "kitchen"
    assert answer.sequences[0].replaced + answer.sequences[0].deleted == 2


def test_it_uploads_follows_and_reads(generated, connection):
    content = (json.dumps({"user_id": "u", "items": ITEMS}) + "\n").encode()
    file = generated("types").File(payload=io.BytesIO(content), file_name="mixed.ndjson")
    upload = generated("models").JobUpload(target_domain="kitchen", file=file)
    job = generated("api.jobs.submit_job").sync(client=connection, body=upload, idempotency_key="once")
    ended = succeeded(generated, connection, job.job_id)
    formats = generated("models").DownloadResultFormatType0
    result = generated("api.jobs.download_result").sync_detailed(job.job_id, client=connection, format_=formats.NDJSON)
    listed = generated("api.jobs.list_jobs").sync(client=connection)
    mapping = generated("api.mappings.read_mappings").sync("kitchen", client=connection)

    assert ended.counts.sequences == 1
    assert [json.loads(line)["user_id"] for line in result.content.splitlines()] == ["u"]
    assert job.job_id in [one.job_id for one in listed.jobs]
    assert mapping.target_domain == "kitchen"


def test_it_submits_what_lies_at_a_uri(generated, connection, url):
    request = generated("models").JobRequest(target_domain="kitchen", source_uri=url[1])
    job = generated("api.jobs.submit_job").sync(client=connection, body=request)

    assert succeeded(generated, connection, job.job_id).counts.rows_read == 1


def test_it_is_told_what_is_wrong_as_a_problem(generated, connection, url):
    models = generated("models")
    with generated("client").AuthenticatedClient(base_url=url[0], token="other") as stranger:
        refused = generated("api.models.list_models").sync(client=stranger)
    unknown = generated("api.jobs.get_job").sync("0" * 32, client=connection)

    assert (type(refused), refused.status) == (models.Problem, 401)
    assert (type(unknown), unknown.status) == (models.Problem, 404)
