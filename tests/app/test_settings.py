"""Settings that cannot be used are named in one line, before anything is started, and their secrets are not in it."""

import os
import subprocess

import pytest
from pydantic import ValidationError

from app.settings import Settings
from tests.command_line import COMMAND

SECRET = "geheim"


def reason(**settings):
    with pytest.raises(ValidationError) as refused:
        Settings(**settings)
    [error] = refused.value.errors(include_url=False)
    return error["msg"]


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("hello", "not a URL such as"),
        ("", "not a URL such as"),
        (f"postgresql://u:{SECRET}@host:port/x", "not a URL such as"),
        (f"mysql://u:{SECRET}@127.0.0.1/x", "mysql:// is no database of this service"),
        (f"postgresql+asyncpg://u:{SECRET}@127.0.0.1/x", "postgresql+asyncpg:// is no database"),
        ("sqlite://", "needs the path of a file"),
        ("sqlite:///:memory:", "needs the path of a file"),
    ],
)
def test_a_url_of_no_database_is_refused_without_its_password(url, words):
    found = reason(database_url=url)

    assert words in found
    assert SECRET not in found


@pytest.mark.parametrize(
    "url", ["localhost:6379", "hello", "", f"http://u:{SECRET}@host", f"redis://:{SECRET}@host:p/0"]
)
def test_a_url_of_no_redis_is_refused_without_its_password(url):
    found = reason(redis_url=url)

    assert "not a URL such as redis://host:6379/0" in found
    assert SECRET not in found


@pytest.mark.parametrize(
    "root",
    [
        "/data",
        "data",
        "~",
        "://",
        "file:/data",
        "file://",
        "file:///",
        "file://host/x",
        "file:///a/../b",
        "file:///a//b",
        "file:///%41",
        "file:///a?b",
        "file:///a\\b",
        "s3:",
        "s3://",
        "memory://",
        "s3://key:secret@bucket",
        "simplecache::file:///a",
    ],
)
def test_an_input_root_that_is_no_folders_uri_is_refused(root):
    assert f"{root!r} is not the URI of a folder" in reason(input_roots=root)


@pytest.mark.parametrize("root", ["file:///data/in", "file:///data/in/", "s3://bucket", "s3://bucket/logs/"])
def test_an_input_root_that_is_a_folders_uri_is_taken(root):
    assert Settings(input_roots=root).input_roots == (root,)


@pytest.mark.parametrize(
    ("command", "variables"),
    [
        ("serve", {"TAESAR_DATABASE_URL": "hello"}),
        ("serve", {"TAESAR_DATABASE_URL": "sqlite:////no/such/folder/taesar.db"}),
        ("worker", {"TAESAR_REDIS_URL": "localhost:6379"}),
        ("migrate", {"TAESAR_DATABASE_URL": "mysql://u@127.0.0.1/x"}),
        ("migrate", {"TAESAR_DATABASE_URL": "postgres://u@127.0.0.1:1/x"}),
        ("prune", {"TAESAR_INPUT_ROOTS": "/data"}),
        ("probe", {"TAESAR_REDIS_URL": "redis://127.0.0.1:1/0"}),
    ],
    ids=str,
)
def test_every_command_says_in_one_line_what_is_wrong(tmp_path, command, variables):
    arguments = [command, "worker"] if command == "probe" else [command]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TAESAR_")}
    environment |= {"TAESAR_DATA": str(tmp_path), "TAESAR_PORT": "0"} | variables
    done = subprocess.run(
        [*COMMAND, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    lines = [line for line in (done.stderr + done.stdout).splitlines() if not line.startswith("{")]

    assert done.returncode in (1, 2)
    assert len(lines) == 1
    assert "Traceback" not in done.stderr + done.stdout
