"""What deploy/k8s promises: only what the code reads, pods that the strictest standard admits, drains that fit."""

import importlib
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from servox import __version__
from servox.settings import ServiceSettings
from servox.v1 import embedder_pb2, evaluator_pb2, prober_pb2

ROOT = Path(__file__).resolve().parents[2]
BASE = ROOT / "deploy/k8s/base"
SERVICES = ("embedder", "prober", "evaluator")
CONTRACTS = {
    f"servox.v1.{name}"
    for file in (embedder_pb2, prober_pb2, evaluator_pb2)
    for name in file.DESCRIPTOR.services_by_name
}
STATE = "/var/lib/servox"
CLOSING_S = 10  # what a process needs after its drain, with a margin

Manifest = dict[str, Any]

pytestmark = pytest.mark.skipif(
    shutil.which("kubectl") is None, reason="kubectl is missing (on Debian: kubernetes-client)"
)


@cache
def base() -> list[Manifest]:
    built = subprocess.run(["kubectl", "kustomize", str(BASE)], capture_output=True, text=True, check=True)
    return list(yaml.safe_load_all(built.stdout))


def of_kind(kind: str) -> list[Manifest]:
    return [manifest for manifest in base() if manifest["kind"] == kind]


def named(kind: str, name: str) -> Manifest:
    (found,) = [manifest for manifest in of_kind(kind) if manifest["metadata"]["name"] == name]
    return found


def carrier() -> Manifest:
    manifest: Manifest = yaml.safe_load((ROOT / "deploy/k8s/carrier.yaml").read_text())
    return manifest


def pod(service: str) -> Manifest:
    spec: Manifest = named("Deployment", service)["spec"]["template"]["spec"]
    return spec


def pods() -> list[Manifest]:
    return [*(pod(service) for service in SERVICES), carrier()["spec"]]


def container(service: str) -> Manifest:
    (only,) = pod(service)["containers"]
    return dict(only)


def environment(service: str) -> dict[str, str]:
    (source,) = container(service)["envFrom"]
    data: dict[str, str] = named("ConfigMap", source["configMapRef"]["name"])["data"]
    return data


def settings_type(service: str) -> type[ServiceSettings]:
    settings: type[ServiceSettings] = importlib.import_module(f"services.{service}.settings").Settings
    return settings


def mounts(service: str) -> dict[str, bool]:
    """Path → whether it can be written."""
    return {mount["mountPath"]: not mount.get("readOnly", False) for mount in container(service)["volumeMounts"]}


def container_ports(service: str) -> dict[str, int]:
    return {port["name"]: port["containerPort"] for port in container(service)["ports"]}


@pytest.fixture
def loaded(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ServiceSettings:
    """A service's settings as its container reads them."""
    service: str = request.param
    for name in [name for name in os.environ if name.startswith("SERVOX_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("SERVOX_HOME", STATE)
    for name, value in environment(service).items():
        monkeypatch.setenv(name, value)
    return settings_type(service).load()


# ---- the objects ---------------------------------------------------------------------------------------------------


def test_every_object_fits_the_schemas_strictly() -> None:
    for manifest in [*base(), carrier()]:
        kubernetes_validate.validate(manifest, "1.37", strict=True)


def test_a_misspelt_field_would_not_fit() -> None:
    broken = {**carrier(), "spec": {**carrier()["spec"], "automountServiceAcountToken": False}}
    with pytest.raises(kubernetes_validate.ValidationError, match="automountServiceAcountToken"):
        kubernetes_validate.validate(broken, "1.37", strict=True)


def test_one_deployment_a_service() -> None:
    assert sorted(manifest["metadata"]["name"] for manifest in of_kind("Deployment")) == sorted(SERVICES)


def test_everything_lies_in_the_namespace_and_is_labelled() -> None:
    for manifest in [*base(), carrier()]:
        if manifest["kind"] not in ("Namespace", "ConfigMap"):
            assert manifest["metadata"]["namespace"] == "servox"
            assert "app.kubernetes.io/name" in manifest["metadata"]["labels"]
            assert manifest["metadata"]["labels"]["app.kubernetes.io/part-of"] == "servox"


def test_the_namespace_enforces_the_restricted_standard() -> None:
    labels = named("Namespace", "servox")["metadata"]["labels"]
    assert {labels[f"pod-security.kubernetes.io/{mode}"] for mode in ("enforce", "warn", "audit")} == {"restricted"}


def test_the_files_of_the_services_share_one_order() -> None:
    skeletons = []
    for service in SERVICES:
        kinds = [part["kind"] for part in yaml.safe_load_all((BASE / f"{service}.yaml").read_text())]
        deployment = list(yaml.safe_load_all((BASE / f"{service}.yaml").read_text()))[-1]
        spec = deployment["spec"]["template"]["spec"]
        fields = [field for field in spec["containers"][0] if field != "env"]
        skeletons.append((list(dict.fromkeys(kinds)), list(deployment["spec"]), list(spec), fields))
    assert skeletons[0] == skeletons[1] == skeletons[2]


@pytest.mark.parametrize("service", SERVICES)
def test_images_carry_the_version_of_the_package(service: str) -> None:
    assert container(service)["image"] == f"servox-{service}:{__version__}"
    assert carrier()["spec"]["containers"][0]["image"] == f"servox-embedder:{__version__}"


def test_the_overlay_of_the_readme_builds(tmp_path: Path) -> None:
    shutil.copytree(BASE, tmp_path / "base")
    overlay = tmp_path / "overlays/mine"
    overlay.mkdir(parents=True)
    readme = (ROOT / "deploy/k8s/README.md").read_text()
    (text,) = re.findall(r"```yaml\n(# kustomization\.yaml\n.+?)```", readme, flags=re.DOTALL)
    (overlay / "kustomization.yaml").write_text(text)
    built = subprocess.run(["kubectl", "kustomize", str(overlay)], capture_output=True, text=True, check=True).stdout
    assert f"image: registry.example.org/servox-embedder:{__version__}\n" in built
    assert "SERVOX_EMBEDDER_BUNDLE: /var/lib/servox/bundles/whisper-base\n" in built
    assert 'SERVOX_EMBEDDER_DRAIN_WAIT_S: "10"\n' in built


# ---- only what the code reads --------------------------------------------------------------------------------------


@pytest.mark.parametrize("service", SERVICES)
def test_every_variable_is_a_field_of_the_settings(service: str) -> None:
    fields = settings_type(service).model_fields
    prefix = settings_type(service).model_config["env_prefix"]
    for name in environment(service):
        assert name.startswith(prefix)
        assert name.removeprefix(prefix).lower() in fields


def test_every_config_map_is_read() -> None:
    read = {container(service)["envFrom"][0]["configMapRef"]["name"] for service in SERVICES}
    assert read == {manifest["metadata"]["name"] for manifest in of_kind("ConfigMap")}


@pytest.mark.parametrize("service", SERVICES)
def test_threads_follow_the_limit(service: str) -> None:
    prefix = settings_type(service).model_config["env_prefix"]
    for variable in container(service).get("env", []):
        name = variable["name"]
        assert name == "OMP_NUM_THREADS" or name.removeprefix(prefix).lower() in settings_type(service).model_fields
        assert variable["valueFrom"] == {"resourceFieldRef": {"resource": "limits.cpu"}}


@pytest.mark.parametrize("service", SERVICES)
def test_ports_are_the_defaults_of_the_settings(service: str) -> None:
    fields = settings_type(service).model_fields
    expected = {name.removesuffix("_port"): fields[name].default for name in fields if name.endswith("_port")}
    assert container_ports(service) == expected


@pytest.mark.parametrize("loaded", SERVICES, indirect=True)
def test_the_settings_load_and_listen_on_every_interface(loaded: ServiceSettings) -> None:
    hosts = {name: value for name, value in loaded.model_dump().items() if name.endswith("_host")}
    assert len(hosts) >= 2
    assert set(hosts.values()) == {"0.0.0.0"}


@pytest.mark.parametrize(("loaded", "service"), [(s, s) for s in SERVICES], indirect=["loaded"])
def test_every_path_of_the_settings_lies_on_a_volume(loaded: ServiceSettings, service: str) -> None:
    for name, value in loaded.model_dump().items():
        _, found, below = str(value).partition(STATE + "/")
        if found:
            on = [mount for mount in mounts(service) if f"{STATE}/{below}".startswith(mount + "/")]
            assert len(on) == 1, f"{name} = {value} is on none of {sorted(mounts(service))}"
            assert mounts(service)[on[0]] or name == "bundle", f"{name} = {value} is on a read-only volume"


@pytest.mark.parametrize("service", SERVICES)
def test_every_address_is_a_service_of_the_base(service: str) -> None:
    for value in environment(service).values():
        if value.startswith("dns:///"):
            host, port = value.removeprefix("dns:///").split(":")
            assert int(port) in [entry["port"] for entry in named("Service", host)["spec"]["ports"]]


@pytest.mark.parametrize(
    ("service", "peers"), [("embedder", set()), ("prober", {"embedder"}), ("evaluator", {"embedder", "prober"})]
)
def test_who_calls_whom(service: str, peers: set[str]) -> None:
    prefix = settings_type(service).model_config["env_prefix"]
    called = {k.removeprefix(prefix).lower() for k, v in environment(service).items() if v.startswith("dns:///")}
    assert called == peers


# ---- what refers to what -------------------------------------------------------------------------------------------


def selected(service: Manifest) -> list[str]:
    wanted = service["spec"]["selector"].items()
    return [
        deployment["metadata"]["name"]
        for deployment in of_kind("Deployment")
        if wanted <= deployment["spec"]["template"]["metadata"]["labels"].items()
    ]


def test_services_select_one_deployment_and_its_named_ports() -> None:
    for service in of_kind("Service"):
        (deployment,) = selected(service)
        for port in service["spec"]["ports"]:
            assert container_ports(deployment)[port["targetPort"]] == port["port"]


@pytest.mark.parametrize("service", SERVICES)
def test_grpc_is_balanced_by_the_callers(service: str) -> None:
    assert named("Service", service)["spec"]["clusterIP"] == "None"


@pytest.mark.parametrize("service", SERVICES)
def test_deployments_select_their_own_pods(service: str) -> None:
    spec = named("Deployment", service)["spec"]
    assert spec["selector"]["matchLabels"].items() <= spec["template"]["metadata"]["labels"].items()


def test_claims_exist_and_are_used() -> None:
    used = {v["persistentVolumeClaim"]["claimName"] for spec in pods() for v in volumes(spec, "persistentVolumeClaim")}
    assert used == {manifest["metadata"]["name"] for manifest in of_kind("PersistentVolumeClaim")}


@pytest.mark.parametrize("service", SERVICES)
def test_secrets_are_mounted_where_the_settings_look(service: str) -> None:
    held = {
        f"{mount['mountPath']}/{item['path']}"
        for mount in container(service)["volumeMounts"]
        for volume in volumes(pod(service), "secret")
        if volume["name"] == mount["name"]
        for item in volume["secret"].get("items", [{"path": "keys.json"}])
    }
    named_ = {value for value in environment(service).values() if value.startswith("/etc/servox/")}
    assert held == named_
    assert all(not writable for path, writable in mounts(service).items() if path.startswith("/etc/servox"))
    readme = (ROOT / "deploy/k8s/README.md").read_text()
    for volume in volumes(pod(service), "secret"):
        assert f"create secret generic {volume['secret']['secretName']} " in readme


@pytest.mark.parametrize("service", SERVICES)
def test_every_port_has_a_policy_that_says_who_reaches_it(service: str) -> None:
    spec = named("NetworkPolicy", service)["spec"]
    assert spec["podSelector"]["matchLabels"].items() <= pod_labels(service).items()
    opened = [port["port"] for rule in spec["ingress"] for port in rule["ports"]]
    assert sorted(opened) == sorted(container_ports(service))
    assert all(rule["from"] for rule in spec["ingress"])


def pod_labels(service: str) -> dict[str, str]:
    labels: dict[str, str] = named("Deployment", service)["spec"]["template"]["metadata"]["labels"]
    return labels


def test_volumes_are_declared_and_mounted() -> None:
    for spec in pods():
        declared = [volume["name"] for volume in spec["volumes"]]
        assert sorted(declared) == sorted(mount["name"] for mount in spec["containers"][0]["volumeMounts"])


def test_a_claim_for_one_node_has_one_pod() -> None:
    for service in SERVICES:
        for volume in volumes(pod(service), "persistentVolumeClaim"):
            claim = named("PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"])
            if claim["spec"]["accessModes"] == ["ReadWriteOnce"]:
                assert named("Deployment", service)["spec"]["replicas"] == 1
                assert named("Deployment", service)["spec"]["strategy"]["type"] == "Recreate"


def volumes(spec: Manifest, kind: str) -> Iterator[Manifest]:
    return (volume for volume in spec["volumes"] if kind in volume)


@pytest.mark.parametrize("service", SERVICES)
def test_pods_run_as_an_account_without_a_token(service: str) -> None:
    account = named("ServiceAccount", pod(service)["serviceAccountName"])
    assert account["automountServiceAccountToken"] is False
    assert pod(service)["automountServiceAccountToken"] is False


@pytest.mark.parametrize("service", SERVICES)
def test_metrics_are_announced_on_their_port(service: str) -> None:
    annotations = named("Deployment", service)["spec"]["template"]["metadata"]["annotations"]
    assert annotations["prometheus.io/scrape"] == "true"
    assert int(annotations["prometheus.io/port"]) == container_ports(service)["metrics"]


# ---- security ------------------------------------------------------------------------------------------------------


def test_pods_pass_the_restricted_standard() -> None:
    """Kubernetes' Pod Security Standards, profile restricted, as of 1.37."""
    allowed = {
        "configMap",
        "csi",
        "downwardAPI",
        "emptyDir",
        "ephemeral",
        "persistentVolumeClaim",
        "projected",
        "secret",
    }
    for spec in pods():
        context = spec["securityContext"]
        assert not {"hostNetwork", "hostPID", "hostIPC", "initContainers"} & spec.keys()
        assert context["runAsNonRoot"] is True
        assert context["runAsUser"] == 10001
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"sysctls", "seLinuxOptions", "appArmorProfile"} & context.keys()
        assert {key for volume in spec["volumes"] for key in volume if key != "name"} <= allowed


def test_containers_can_neither_gain_rights_nor_write_to_their_image() -> None:
    for spec in pods():
        for one in spec["containers"]:
            assert one["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert not any("hostPort" in port for port in one.get("ports", []))


def test_containers_have_requests_and_limits() -> None:
    for spec in pods():
        for one in spec["containers"]:
            for part in ("requests", "limits"):
                assert one["resources"][part].keys() == {"cpu", "memory", "ephemeral-storage"}


def test_scratch_is_bounded_and_fits_into_the_limit() -> None:
    for spec in pods():
        sizes = [volume["emptyDir"]["sizeLimit"] for volume in volumes(spec, "emptyDir")]
        limit = spec["containers"][0]["resources"]["limits"]["ephemeral-storage"]
        assert sum(int(size.removesuffix("Gi")) for size in sizes) * 1024 < mebibytes(limit)


def mebibytes(quantity: str) -> int:
    return int(quantity[:-2]) * {"Mi": 1, "Gi": 1024}[quantity[-2:]]


# ---- life and death ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("service", SERVICES)
@pytest.mark.parametrize("kind", ["startupProbe", "readinessProbe", "livenessProbe"])
def test_probes_ask_grpc_health(service: str, kind: str) -> None:
    probe = container(service)[kind]
    assert probe["grpc"]["port"] == container_ports(service)["grpc"]
    assert 5 <= probe["timeoutSeconds"] <= 10  # the default of 1 s kills a busy server
    assert probe["grpc"].get("service", f"servox.v1.{service.capitalize()}") in CONTRACTS


@pytest.mark.parametrize("service", SERVICES)
def test_a_busy_server_is_not_killed_soon(service: str) -> None:
    probe = container(service)["livenessProbe"]
    assert probe["failureThreshold"] >= 6
    assert container(service)["startupProbe"]["failureThreshold"] >= 30


@pytest.mark.parametrize(("loaded", "service"), [(s, s) for s in SERVICES], indirect=["loaded"])
def test_the_drain_fits_into_the_grace_period(loaded: ServiceSettings, service: str) -> None:
    drain_s = loaded.drain_wait_s + loaded.drain_grace_s
    assert pod(service)["terminationGracePeriodSeconds"] >= drain_s + CLOSING_S


@pytest.mark.parametrize(("loaded", "service"), [(s, s) for s in SERVICES], indirect=["loaded"])
def test_the_drain_waits_until_a_probe_has_noticed(loaded: ServiceSettings, service: str) -> None:
    assert loaded.drain_wait_s >= container(service)["readinessProbe"]["periodSeconds"]


@pytest.mark.parametrize("service", SERVICES)
def test_a_roll_out_never_goes_below_the_replicas(service: str) -> None:
    strategy = named("Deployment", service)["spec"]["strategy"]
    if strategy["type"] == "Recreate":
        assert named("Deployment", service)["spec"]["replicas"] == 1
    else:
        assert strategy["rollingUpdate"]["maxUnavailable"] == 0
