"""Object stores, by a server that speaks S3: logs are read from it and results written to it."""

import io

import fsspec
import polars as pl
import pytest
from moto.server import ThreadedMotoServer

from models.data.dataset import load_dataset
from models.data.preparation import PreparationConfig, prepare
from models.errors import InputFormatError
from tests.app.jobs.test_input_warnings import ended

HEADER = "user,item,timestamp\n"
KEEP_ALL = PreparationConfig(min_user_interactions=1, min_item_interactions=1, overlap="any")


@pytest.fixture(scope="module")
def server():
    """A server of our own, at a port that is free."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    yield "http://{}:{}".format(*server.get_host_and_port())
    server.stop()


@pytest.fixture
def bucket(server, monkeypatch):
    """An empty bucket; this process finds it as people's do, by the environment."""
    variables = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}
    for name, value in {**variables, "AWS_ENDPOINT_URL": server}.items():
        monkeypatch.setenv(name, value)
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    store = fsspec.filesystem("s3")
    store.mkdir("logs")
    yield store
    store.rm("logs", recursive=True)
    fsspec.get_filesystem_class("s3").clear_instance_cache()


def test_partitions_of_a_bucket_are_prepared_as_the_same_files_here(bucket, tmp_path):
    for domain in ("books", "home goods"):
        content = HEADER + "".join(f"u{n % 3},{domain[0]}{n},{n}\n" for n in range(9))
        bucket.pipe(f"logs/march/domain={domain}/part-0.csv", content.encode())
        (tmp_path / f"domain={domain}").mkdir()
        (tmp_path / f"domain={domain}" / "part-0.csv").write_text(content)
    prepare(["s3://logs/march/domain=*/*.csv"], tmp_path / "there", KEEP_ALL)
    prepare([f"{tmp_path}/domain=*/*.csv"], tmp_path / "here", KEEP_ALL)

    assert load_dataset(tmp_path / "there").fingerprint == load_dataset(tmp_path / "here").fingerprint
    assert load_dataset(tmp_path / "there").vocabulary.domains == ("books", "home goods")


@pytest.mark.parametrize("place", ["s3://logs/nothing.csv", "s3://nobodys/x.csv", "s3://logs/*.csv"])
def test_what_a_bucket_does_not_hold_is_said_in_a_line(bucket, place, tmp_path):
    with pytest.raises(InputFormatError, match=r"no such file|cannot be read"):
        prepare([place], tmp_path / "out", KEEP_ALL)


def test_a_job_reads_from_a_bucket_and_writes_its_result_there(bucket, serving):
    rows = [("u", "b01", "books", 1), ("u", "k01", "kitchen", 2), ("u", "k99", "kitchen", 3)]
    content = "user,item,domain,timestamp\n" + "".join(f"{u},{i},{d},{t}\n" for u, i, d, t in rows)
    bucket.pipe("logs/in/log.csv", content.encode())
    client = serving(input_roots=("s3://logs/in",), output_roots=("s3://logs/out",))
    body = {"target_domain": "kitchen", "source_uri": "s3://logs/in/log.csv", "result_view": "interactions"}
    answer = client.post("/jobs", json=body | {"result_uri": "s3://logs/out/march/kitchen.parquet"})
    job = ended(client, answer.headers["Location"])
    table = pl.read_parquet(io.BytesIO(bucket.cat("logs/out/march/kitchen.parquet")))

    assert job["state"] == "succeeded"
    kept = table.filter(pl.col("origin") == "kept")
    assert kept.select("user", "item", "timestamp").rows() == [("u", "k01", 2), ("u", "k99", 3)]
