"""The Helm chart: what it renders is valid, closed as the compose file is, and has its environment."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from app.settings import Settings
from tests.compose import IMAGE_USER, read_compose
from tests.services import ServiceMissingError, require

ROOT = Path(__file__).resolve().parent.parent
CHART = ROOT / "deploy" / "chart"
EVERYTHING = ("monitoring.enabled=true", "worker.autoscaling.enabled=true", "api.autoscaling.enabled=true")
# Kinds that others bring: no schema of Kubernetes' own describes them.
FOREIGN = {"ScaledObject", "ServiceMonitor", "PodMonitor", "PrometheusRule"}
KUBERNETES = "1.35"
# What is another thing in a cluster: addresses, and what a Secret or a volume holds.
OTHER_VALUES = {"TAESAR_BUNDLE", "TAESAR_DATABASE_URL", "TAESAR_REDIS_URL", "TAESAR_INPUT_ROOTS", "PUBLISH"}
OTHER_VALUES |= {"TAESAR_API_KEYS_FILE", "PGPASSWORD", "PGPASSWORD_FILE"}


def render(*values: str) -> list[dict]:
    """What `helm template` makes of the chart with *values*."""
    program = shutil.which("helm", path=str(Path(sys.executable).parent)) or shutil.which("helm")
    if program is None:
        require(ServiceMissingError("helm is not installed: .ci/install-helm .venv/bin"))
    command = [str(program), "template", "release", str(CHART), "--namespace", "shop"]
    for value in values:
        command += ["--set", value]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [document for document in yaml.safe_load_all(done.stdout) if document]


@pytest.fixture(scope="module")
def rendered() -> list[dict]:
    return render(*EVERYTHING)


def pods_of(documents: list[dict]) -> dict[str, dict]:
    """Component -> the spec of its pod."""
    pods = {}
    for document in documents:
        template = document.get("spec", {}).get("jobTemplate", document).get("spec", {}).get("template")
        if template is not None:
            pods[template["metadata"]["labels"]["app.kubernetes.io/component"]] = template["spec"]
    return pods


@pytest.mark.parametrize("values", [(), EVERYTHING, ("settings.storage=s3://bucket/x", "volumes.data.existingClaim=")])
def test_everything_that_it_renders_is_valid(values):
    documents = render(*values)
    for document in documents:
        if document["kind"] not in FOREIGN:
            kubernetes_validate.validate(document, KUBERNETES, strict=True)

    assert {"Deployment", "Service", "PodDisruptionBudget", "Job", "CronJob"} <= {found["kind"] for found in documents}


def test_it_has_what_an_operator_expects(rendered):
    kinds = [document["kind"] for document in rendered]

    assert set(kinds) == FOREIGN | {
        *("Deployment", "Service", "PodDisruptionBudget", "HorizontalPodAutoscaler", "Job", "CronJob", "ConfigMap")
    }
    assert set(pods_of(rendered)) == {"api", "worker", "migrate", "prune"}


def test_its_environment_is_that_of_the_compose_file(rendered):
    services = read_compose({})
    for component, pod in pods_of(rendered).items():
        (container,) = pod["containers"]
        ours = {entry["name"]: entry.get("value") for entry in container["env"]}
        theirs = services[component].environment

        assert set(ours) == set(theirs), component
        assert {name: value for name, value in ours.items() if name not in OTHER_VALUES} == {
            name: value for name, value in theirs.items() if name not in OTHER_VALUES
        }
        assert [*container["args"]] == [*services[component].command][:1]


def test_any_other_setting_goes_into_every_container():
    for pod in pods_of(render("settings.max_loaded_bundles=3")).values():
        ours = {entry["name"]: entry.get("value") for entry in pod["containers"][0]["env"]}

        assert ours["TAESAR_MAX_LOADED_BUNDLES"] == "3"
        assert all(name.removeprefix("TAESAR_").lower() in Settings.model_fields for name in ours if "TAESAR_" in name)


def test_no_container_may_write_but_where_a_volume_is_or_be_root(rendered):
    services = read_compose({})
    for component, pod in pods_of(rendered).items():
        (container,) = pod["containers"]
        writable = {mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")}
        in_compose = {mount.inside for mount in services[component].mounts if not mount.read_only}

        assert container["securityContext"] == {
            "readOnlyRootFilesystem": True,
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
        }
        assert (pod["securityContext"]["runAsNonRoot"], pod["securityContext"]["runAsUser"]) == (True, IMAGE_USER)
        assert writable == {"/data", "/scratch", "/tmp"}
        assert writable - {"/tmp"} <= in_compose
        assert "memory" in container["resources"]["limits"]


def test_a_service_called_taesar_puts_nothing_into_the_environment(rendered):
    """Its variables, TAESAR_PORT among them, would be read as settings."""
    assert all(pod["enableServiceLinks"] is False for pod in pods_of(rendered).values())


def test_the_schema_is_migrated_before_anything_of_the_new_version_starts(rendered):
    (job,) = (document for document in rendered if document["kind"] == "Job")

    assert job["metadata"]["annotations"]["helm.sh/hook"] == "pre-install,pre-upgrade"
    assert {volume["name"] for volume in job["spec"]["template"]["spec"]["volumes"]} >= {"secrets"}


def test_probes_ask_what_the_compose_file_asks(rendered):
    pods = pods_of(rendered)
    (api,), (worker,) = pods["api"]["containers"], pods["worker"]["containers"]

    assert api["readinessProbe"]["httpGet"]["path"] == "/readyz"
    assert api["livenessProbe"]["httpGet"]["path"] == "/healthz"
    assert tuple(worker["readinessProbe"]["exec"]["command"]) == read_compose({})["worker"].health


def test_budgets_scalers_and_monitors_find_the_pods_that_they_name(rendered):
    labels = {}
    for document in rendered:
        if document["kind"] == "Deployment":
            labels[document["metadata"]["name"]] = document["spec"]["template"]["metadata"]["labels"]
    for document in rendered:
        spec = document.get("spec", {})
        if document["kind"] in ("HorizontalPodAutoscaler", "ScaledObject"):
            assert spec["scaleTargetRef"]["name"] in labels
        if document["kind"] in ("PodDisruptionBudget", "PodMonitor"):
            wanted = spec["selector"]["matchLabels"].items()
            assert any(wanted <= found.items() for found in labels.values())
