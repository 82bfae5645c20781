"""Dockerfile, docker-compose.yml, .env.example and the entry script: valid, and saying the same as the code."""

from __future__ import annotations

import ast
import fnmatch
import itertools
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from app.settings import Settings
from tests.compose import (
    COMPOSE,
    DOCKERFILE,
    IMAGE_USER,
    defaults_of,
    interpolate,
    read_compose,
    start_order,
    variables_of,
)

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
EXAMPLE = (ROOT / ".env.example").read_text(encoding="utf-8")
# What the compose file or the image decides, so that .env does not offer it.
DECIDED = {"TAESAR_BUNDLE", "TAESAR_BUNDLE_ROOT", "TAESAR_DATA", "TAESAR_HOST", "TAESAR_PORT", "TAESAR_DEVICE"}
DECIDED |= {"TAESAR_API_KEYS_FILE", "TAESAR_METRICS_PORT"}
ONE_SHOT = {"bundle", "migrate"}


@pytest.fixture(scope="module")
def document() -> dict:
    return yaml.safe_load(COMPOSE.read_text(encoding="utf-8"))


def offered() -> dict[str, str]:
    """Every variable of .env.example and its default."""
    return dict(re.findall(r"^#(\w+)=(.*)$", EXAMPLE, re.MULTILINE))


def run(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(argument) for argument in arguments],
        env={"PATH": os.environ["PATH"]} | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_compose_file_follows_the_compose_specification(tmp_path):
    check = (BIN / "check-jsonschema", "--builtin-schema", "vendor.compose-spec")
    broken = tmp_path / "broken.yml"
    broken.write_text(COMPOSE.read_text(encoding="utf-8").replace("condition: service_healthy", "condition: healthy"))

    assert run(*check, COMPOSE).returncode == 0
    assert run(*check, broken).returncode == 1


def test_the_dockerfile_passes_hadolint(tmp_path):
    broken = tmp_path / "Dockerfile"
    broken.write_text(DOCKERFILE.read_text(encoding="utf-8").replace("WORKDIR /build", "WORKDIR build"))
    checked = run(BIN / "hadolint", DOCKERFILE)

    assert checked.returncode == 0, checked.stdout
    assert run(BIN / "hadolint", broken).returncode == 1


def test_everything_starts_after_what_it_needs():
    services = {name: service for name, service in read_compose({}).items() if not service.profiles}
    order = start_order(services)

    assert set(order) == {"bundle", "migrate", "redis", "postgres", "api", "worker", "prune"}
    assert services["migrate"].dependencies == {"postgres": "service_healthy"}
    for name in ("api", "worker"):
        assert services[name].dependencies == {
            "bundle": "service_completed_successfully",
            "migrate": "service_completed_successfully",
            "redis": "service_healthy",
        }


def test_what_stays_up_is_checked_and_restarted_and_what_ends_is_not(document):
    for name, service in document["services"].items():
        if name in ONE_SHOT:
            assert service["restart"] == "no"
            assert "healthcheck" not in service
        else:
            assert service["restart"] == "unless-stopped"
            assert service["healthcheck"]["test"][0] == "CMD"


def test_images_are_pinned_to_a_patch_release(document):
    images = [interpolate(service["image"], {}) for service in document["services"].values()]
    base = re.search(r"^ARG PYTHON_IMAGE=(.*)$", DOCKERFILE.read_text(encoding="utf-8"), re.MULTILINE)
    assert base

    for image in (*images, base[1]):
        assert re.fullmatch(r"[a-z]+:\d+\.\d+(\.\d+)?(-[a-z]+)*", image), image
    assert interpolate(document["x-app"]["build"]["args"]["PYTHON_IMAGE"], {}) == base[1]


def test_only_the_api_is_reachable_and_only_from_this_machine(document):
    published = {name: service["ports"] for name, service in document["services"].items() if "ports" in service}

    assert set(published) == {"api", "api-gpu"}
    assert {interpolate(port, {}) for ports in published.values() for port in ports} == {"127.0.0.1:8000:8000"}


def test_our_containers_are_not_root_and_hold_no_capability(document):
    last_stage = DOCKERFILE.read_text(encoding="utf-8").rsplit("\nFROM ", 1)[1]

    assert f"\nUSER {IMAGE_USER}:{IMAGE_USER}\n" in last_stage
    for name, service in document["services"].items():
        if name not in ("redis", "postgres"):
            assert service["cap_drop"] == ["ALL"]
            assert service["security_opt"] == ["no-new-privileges:true"]
            assert "privileged" not in service


def test_nothing_can_be_written_but_volumes_and_memory_has_a_bound(document):
    """Also in what is not ours: Redis and PostgreSQL write to their volume, and to memory what they forget."""
    for name, service in document["services"].items():
        assert service["read_only"] is True, name
        assert "mem_limit" in service, name
    for service in read_compose({}).values():
        if service.image.startswith("taesar:"):
            assert {mount.inside for mount in service.mounts if not mount.read_only} == {
                "/data",
                "/bundles",
                "/scratch",
            }


def test_redis_asks_for_the_password_that_everything_else_has():
    for variables, password in (({}, "taesar"), ({"REDIS_PASSWORD": "s3cret"}, "s3cret")):
        services = read_compose(variables)
        command = services["redis"].command

        assert command[command.index("--requirepass") + 1] == password
        assert services["redis"].environment["REDISCLI_AUTH"] == password
        assert services["worker"].environment["TAESAR_REDIS_URL"] == f"redis://:{password}@redis:6379/0"


def test_the_gpu_profile_differs_in_image_and_device_only(document):
    services = read_compose({})
    for name in ("api", "worker"):
        cpu, gpu = document["services"][name], document["services"][f"{name}-gpu"]
        devices = gpu["deploy"]["resources"]["reservations"]["devices"]
        differing = {key for key in cpu.keys() | gpu.keys() if cpu.get(key) != gpu.get(key)}
        changed = services[f"{name}-gpu"].environment.items() - services[name].environment.items()

        assert differing <= {"image", "build", "environment", "deploy", "profiles"}
        assert gpu["profiles"] == ["gpu"]
        assert gpu["build"]["args"]["TORCH"] == "cuda"
        assert set(changed) == {("TAESAR_DEVICE", "cuda")}
        assert devices[0]["capabilities"] == ["gpu"]


def test_every_variable_is_in_the_example_with_its_default():
    compose = COMPOSE.read_text(encoding="utf-8")

    assert variables_of(compose) <= offered().keys()
    for name, default in defaults_of(compose):
        # A volume's name and the empty file stand for a path that is not given; the examples show one
        if name not in ("BUNDLE", "INPUT") and default != "/dev/null":
            assert offered()[name] == default


def test_every_setting_is_offered_or_decided_and_nothing_else_is():
    settings = {f"TAESAR_{name.upper()}" for name in Settings.model_fields}
    in_example = {name for name in offered() if name.startswith("TAESAR_")}

    assert in_example | DECIDED == settings, "run `make docs`"
    assert not in_example & DECIDED
    assert {name for name in offered() if name not in in_example} <= variables_of(COMPOSE.read_text(encoding="utf-8"))


def test_the_example_offers_the_settings_own_defaults():
    for name, field in Settings.model_fields.items():
        variable = f"TAESAR_{name.upper()}"
        if variable in offered() and variable not in variables_of(COMPOSE.read_text(encoding="utf-8")):
            assert offered()[variable] == ("" if field.default in (None, ()) else str(field.default)), "run `make docs`"


def test_every_variable_of_the_example_has_a_reason_above_it():
    lines = EXAMPLE.splitlines()
    for above, line in itertools.pairwise(lines):
        if re.match(r"#\w+=", line):
            assert above.startswith("# "), line
            assert not above.startswith("# ---"), line


def test_a_set_variable_of_the_example_can_be_loaded():
    """As .env with every comment sign of an assignment taken away."""
    values = {name: value for name, value in offered().items() if value and not value.startswith("./")}
    loaded = Settings(**{name.removeprefix("TAESAR_").lower(): v for name, v in values.items() if "TAESAR_" in name})

    assert loaded.max_body_bytes == Settings.model_fields["max_body_bytes"].default


def test_the_build_sees_what_the_dockerfile_copies_and_no_secret():
    rules = [line for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines() if line[0] != "#"]
    allowed = [rule[1:] for rule in rules if rule.startswith("!")]
    copied = re.findall(r"^COPY (?!--from)(?:--\S+ )?(.*) \S+$", DOCKERFILE.read_text(encoding="utf-8"), re.MULTILINE)
    sources = [source for sources in copied for source in sources.split()]

    assert rules[0] == "*"
    assert sorted(sources) == sorted(allowed)
    assert all((ROOT / source).exists() for source in sources)
    assert not any(fnmatch.fnmatch(secret, rule) for rule in allowed for secret in (".env", "secrets/api-keys"))


START = ROOT / "deploy" / "taesar-start"


@pytest.fixture
def start(tmp_path):
    """Run the entry script where ``taesar`` only says what it was given."""
    stand_in = tmp_path / "bin" / "taesar"
    stand_in.parent.mkdir()
    stand_in.write_text('#!/bin/sh\necho "taesar $*"\nenv\n', encoding="utf-8")
    stand_in.chmod(0o755)
    path = f"{stand_in.parent}:{os.environ['PATH']}"

    def begin(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return run(START, *arguments, **{"PATH": path, "TAESAR_BUNDLE_ROOT": str(tmp_path)} | environment)

    return begin


def test_a_secret_comes_from_a_file_and_the_file_is_forgotten(start, tmp_path):
    (tmp_path / "password").write_text("it's $a secret\n", encoding="utf-8")
    said = start("migrate", PGPASSWORD="", PGPASSWORD_FILE=str(tmp_path / "password")).stdout.splitlines()

    assert said[0] == "taesar migrate"
    assert "PGPASSWORD=it's $a secret" in said
    assert not any(line.startswith("PGPASSWORD_FILE=") for line in said)


def test_empty_variables_count_as_unset(start, tmp_path):
    said = start("worker", TAESAR_API_KEYS_FILE="", TAESAR_DATABASE_URL="", TAESAR_BUNDLE="").stdout.splitlines()
    names = {line.split("=")[0] for line in said}

    assert not names & {"TAESAR_API_KEYS_FILE", "TAESAR_DATABASE_URL"}
    assert f"TAESAR_BUNDLE={tmp_path}/sample" in said


@pytest.mark.parametrize(
    ("published", "said"),
    [
        ({"PUBLISH": "127.0.0.1:8000"}, "anywhere"),
        ({"PUBLISH": "[::1]:8000"}, "anywhere"),
        ({"PUBLISH": "0.0.0.0:8000"}, None),
        ({"PUBLISH": "8000"}, None),
        ({"PUBLISH": "127.0.0.1.example:8000", "TAESAR_WITHOUT_KEYS": "loopback"}, "loopback"),
        ({"PUBLISH": "0.0.0.0:8000", "TAESAR_WITHOUT_KEYS": "anywhere"}, "anywhere"),
        ({"TAESAR_WITHOUT_KEYS": ""}, None),
    ],
)
def test_a_container_may_serve_without_keys_where_only_this_machine_reaches_it(start, published, said):
    lines = start("worker", **published).stdout.splitlines()
    found = [line.partition("=")[2] for line in lines if line.startswith("TAESAR_WITHOUT_KEYS=")]

    assert found == ([] if said is None else [said])


@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({"PGPASSWORD": "x", "PGPASSWORD_FILE": "/dev/null"}, "PGPASSWORD and PGPASSWORD_FILE are both set"),
        ({"TAESAR_REDIS_URL_FILE": "/nowhere"}, "TAESAR_REDIS_URL_FILE cannot be read"),
        ({"TAESAR_BUNDLE": "/nowhere"}, "/nowhere/manifest.json cannot be read"),
    ],
)
def test_a_contradiction_or_a_missing_file_ends_the_start_with_its_reason(start, environment, reason):
    done = start("bundle", **environment)

    assert done.returncode == 2
    assert reason in done.stderr


def test_a_given_bundle_is_never_trained_over(start, tmp_path):
    """Only where no bundle is named does the first start train one."""
    given = tmp_path / "given"
    given.mkdir()
    (given / "manifest.json").write_text("{}", encoding="utf-8")
    done = start("bundle", TAESAR_BUNDLE=str(given))

    assert done.returncode == 0
    assert done.stdout == ""


def test_the_first_bundle_is_trained_as_the_demos_is(start):
    """One choice of options, that of examples/demo.py."""
    demo = (ROOT / "examples" / "demo.py").read_text(encoding="utf-8")
    briefly = re.search(r"^BRIEFLY = (\(.*\))$", demo, re.MULTILINE)
    assert briefly

    options = ast.literal_eval(briefly[1])
    said = start("bundle", SAMPLE="interactions.csv").stdout
    assert f" {' '.join(options)}\n" in said


def test_no_bundle_and_a_training_that_fails_end_the_start(start):
    """The stand-in writes no bundle, so there is none to serve."""
    done = start("bundle", SAMPLE="interactions.csv")

    assert "taesar prepare interactions.csv" in done.stdout
    assert done.returncode == 2
