"""The Kubernetes manifests, the compose file and config/production.toml, compared with schemas and the gateway
itself."""

import hashlib
import re
import tomllib
from pathlib import Path
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]  # it ships no types
import pytest
import yaml  # type: ignore[import-untyped]  # it ships no types

from gateway.config import Config
from tests.deploy.conftest import ROOT

MANIFESTS = sorted(
    path for path in (ROOT / "deploy/kubernetes").glob("*.yaml") if path.name != "kustomization.yaml"
)
MONITORING = ROOT / "deploy/kubernetes/monitoring"
KUBERNETES = "1.33"
MIB = 1024 * 1024
KIB = 1024
# docs/operations.md, head-room included: the memory of a gateway that has just started, and of each idle session.
BASE_BYTES = 100 * MIB
SESSION_BYTES = 156 * KIB


def read(path: str) -> Any:
    """Parse a YAML file of the checkout."""
    return yaml.safe_load((ROOT / path).read_text())


def production() -> Any:
    """Parse config/production.toml."""
    return tomllib.loads((ROOT / "config/production.toml").read_text())


@pytest.fixture
def pod() -> Any:
    """Return the pod's specification."""
    return read("deploy/kubernetes/deployment.yaml")["spec"]["template"]["spec"]


@pytest.fixture
def container(pod: Any) -> Any:
    """Return the gateway's container."""
    (one,) = pod["containers"]
    return one


# --- config/production.toml -------------------------------------------------------------------------------------------


def test_production_differs_from_the_defaults_in_every_key() -> None:
    """The production configuration is valid and repeats no default."""
    config = Config.model_validate(production())

    same = [
        f"{name}.{key}"
        for name, keys in production().items()
        for key in keys
        if getattr(getattr(config, name), key) == getattr(getattr(Config(), name), key)
    ]
    assert same == []


def test_production_lets_nobody_in_without_a_key() -> None:
    """It listens beyond loopback, so callers and operators need credentials."""
    config = Config.model_validate(production())

    assert config.server.host == config.admin.host == "0.0.0.0"
    assert not config.access.anonymous
    assert config.access.keys_file is not None
    assert config.admin.token_file is not None


# --- Kubernetes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [*MANIFESTS, MONITORING / "service.yaml"], ids=lambda path: path.stem)
def test_a_manifest_keeps_to_the_strict_schema(path: Path) -> None:
    """Kubernetes knows every member, and each has the right type."""
    kubernetes_validate.validate(yaml.safe_load(path.read_text()), KUBERNETES, strict=True)


def test_the_schema_refuses_a_misspelt_member(pod: Any) -> None:
    """A member that Kubernetes would ignore is an error, so the check above can fail."""
    manifest = read("deploy/kubernetes/deployment.yaml")
    manifest["spec"]["template"]["spec"]["terminationGracePeriod"] = 45

    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(manifest, KUBERNETES, strict=True)


def test_what_is_applied_is_what_lies_there_but_for_the_secret() -> None:
    """kustomization.yaml lists every manifest except the example of a Secret."""
    listed = read("deploy/kubernetes/kustomization.yaml")["resources"]

    assert sorted(listed) == sorted({path.name for path in MANIFESTS} - {"secret-example.yaml"})


def test_the_config_map_is_the_production_configuration() -> None:
    """The config map contains config/production.toml word for word."""
    data = read("deploy/kubernetes/configmap.yaml")["data"]

    assert data["gateway.toml"] == (ROOT / "config/production.toml").read_text()


def test_a_changed_configuration_rolls_the_pods() -> None:
    """The pods' template holds a checksum of the configuration, so a change of the configuration restarts the pods."""
    annotations = read("deploy/kubernetes/deployment.yaml")["spec"]["template"]["metadata"]["annotations"]
    data = read("deploy/kubernetes/configmap.yaml")["data"]["gateway.toml"]

    assert annotations["checksum/config"] == hashlib.sha256(data.encode()).hexdigest()


def test_the_service_monitor_leads_to_the_metrics() -> None:
    """It selects the pods' admin port through its Service, with the job name that alerts and dashboard use."""
    monitor = read("deploy/kubernetes/monitoring/servicemonitor.yaml")["spec"]
    service = read("deploy/kubernetes/monitoring/service.yaml")
    pod = read("deploy/kubernetes/deployment.yaml")["spec"]["template"]
    (endpoint,), (port,) = monitor["endpoints"], service["spec"]["ports"]
    ports = {port["name"]: port["containerPort"] for port in pod["spec"]["containers"][0]["ports"]}

    assert monitor["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    assert service["spec"]["selector"].items() <= pod["metadata"]["labels"].items()
    assert (endpoint["port"], endpoint["path"]) == (port["name"], "/metrics")
    assert ports[port["targetPort"]] == port["port"] == 8081
    assert service["metadata"]["labels"][monitor["jobLabel"]] == "realtime-gateway"
    assert sorted(read("deploy/kubernetes/monitoring/kustomization.yaml")["resources"]) == sorted(
        path.name for path in MONITORING.glob("*.yaml") if path.name != "kustomization.yaml"
    )


def test_the_network_policy_lets_through_what_the_gateway_needs() -> None:
    """It allows clients and Prometheus in, and DNS, HTTPS and media out; the ports are the pod's own."""
    policy = read("deploy/kubernetes/networkpolicy.yaml")["spec"]
    pod = read("deploy/kubernetes/deployment.yaml")["spec"]["template"]
    named = {port["name"] for port in pod["spec"]["containers"][0]["ports"]}
    out = {(port["protocol"], port["port"]) for rule in policy["egress"] for port in rule["ports"]}

    assert policy["podSelector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()
    assert {port["port"] for rule in policy["ingress"] for port in rule["ports"]} == named
    assert [bool(rule.get("from")) for rule in policy["ingress"]] == [False, True]
    assert out == {("UDP", 53), ("TCP", 53), ("TCP", 443), ("UDP", 3478)}


def test_labels_lead_services_and_budgets_to_the_pod() -> None:
    """Every selector of a service or a disruption budget matches the pod's labels."""
    deployment = read("deploy/kubernetes/deployment.yaml")["spec"]
    labels = deployment["template"]["metadata"]["labels"]
    service = read("deploy/kubernetes/service.yaml")["spec"]
    budget = read("deploy/kubernetes/poddisruptionbudget.yaml")["spec"]

    for selector in (
        deployment["selector"]["matchLabels"],
        service["selector"],
        budget["selector"]["matchLabels"],
    ):
        assert selector.items() <= labels.items()


def test_probes_and_ports_meet_the_listeners(container: Any) -> None:
    """The probes ask the admin listener for paths that it has; the Service leads to the client listener."""
    config = Config.model_validate(production())
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    service = read("deploy/kubernetes/service.yaml")["spec"]["ports"]
    annotations = read("deploy/kubernetes/deployment.yaml")["spec"]["template"]["metadata"]["annotations"]

    assert ports == {"http": config.server.port, "admin": config.admin.port}
    probes = {name: container[f"{name}Probe"]["httpGet"] for name in ("startup", "liveness", "readiness")}
    assert {probe["port"] for probe in probes.values()} == {"admin"}
    assert {name: probe["path"] for name, probe in probes.items()} == {
        "startup": "/livez",
        "liveness": "/livez",
        "readiness": "/readyz",
    }
    assert [port["targetPort"] for port in service] == ["http"]
    assert annotations["prometheus.io/port"] == str(config.admin.port)


def test_the_grace_period_outlasts_the_drain(pod: Any, container: Any) -> None:
    """Between SIGTERM and SIGKILL there is time for preStop, the drain, and ten seconds to close."""
    waits = re.search(r"sleep\((\d+)\)", " ".join(container["lifecycle"]["preStop"]["exec"]["command"]))
    assert waits is not None
    drain = Config.model_validate(production()).drain.timeout_seconds

    assert pod["terminationGracePeriodSeconds"] >= int(waits[1]) + drain + 10


def test_every_secret_file_is_mounted(pod: Any, container: Any) -> None:
    """The files that the configuration names are mounted from the Secret, under its keys."""
    secret = read("deploy/kubernetes/secret-example.yaml")
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    files = {value for keys in production().values() for key, value in keys.items() if key.endswith("_file")}

    assert files == {f"{mounts['secrets']}/{name}" for name in secret["stringData"]}
    (volume,) = (volume for volume in pod["volumes"] if volume["name"] == "secrets")
    assert volume["secret"]["secretName"] == secret["metadata"]["name"]


def test_memory_is_enough_for_a_full_gateway(container: Any) -> None:
    """The memory limit covers the process, all its sessions, and all buffers, which include
    the logs."""
    config = Config.model_validate(production())
    needed = BASE_BYTES + config.relay.max_sessions * SESSION_BYTES + config.server.memory_budget_bytes
    limits = {"1Gi": 1024 * MIB}

    assert needed <= limits[container["resources"]["limits"]["memory"]]
    assert config.relay.log_total_bytes <= 0.75 * config.server.memory_budget_bytes
    assert "cpu" not in container["resources"]["limits"]


def test_the_pod_may_do_nothing_that_it_need_not(pod: Any, container: Any) -> None:
    """The pod runs without root, capabilities, a writable root or a token of the cluster."""
    rights = container["securityContext"]

    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["automountServiceAccountToken"] is False
    assert rights["allowPrivilegeEscalation"] is False
    assert rights["readOnlyRootFilesystem"] is True
    assert rights["capabilities"] == {"drop": ["ALL"]}


# --- compose ----------------------------------------------------------------------------------------------------------


def test_compose_mounts_only_files_that_exist() -> None:
    """Every mounted file exists, because Docker would create a folder in place of a missing one."""
    compose = read("deploy/compose.yml")
    sources = [
        volume.split(":")[0]
        for service in compose["services"].values()
        for volume in service.get("volumes", ())
        if volume.startswith(".")
    ]

    assert sources
    assert [source for source in sources if not (ROOT / "deploy" / source).exists()] == []
    build = compose["services"]["gateway"]["build"]
    assert (ROOT / "deploy" / build["context"] / build["dockerfile"]).is_file()


def test_compose_brings_every_secret_to_its_place() -> None:
    """Every file that the configuration names is mounted, and each secret that is used is declared."""
    compose = read("deploy/compose.yml")
    given = compose["services"]["gateway"]["secrets"]
    files = {value for keys in production().values() for key, value in keys.items() if key.endswith("_file")}

    assert {secret["target"] for secret in given} == files
    assert {secret["source"] for secret in given} <= compose["secrets"].keys()
    assert all(one["file"].startswith("./secrets/") for one in compose["secrets"].values())


def test_compose_publishes_nothing_but_the_proxy() -> None:
    """Only the proxy's port is published; every other port is bound to loopback."""
    compose = read("deploy/compose.yml")
    open_to_all = [
        port
        for service in compose["services"].values()
        for port in service.get("ports", ())
        if not port.startswith("127.0.0.1:")
    ]
    nginx = (ROOT / "deploy/proxies/nginx.conf").read_text()
    config = Config.model_validate(production())

    assert open_to_all == ["8000:8000"]
    assert re.search(r"listen\s+8000;", nginx)
    assert re.search(rf"server\s+127\.0\.0\.1:{config.server.port};", nginx)
    assert compose["services"]["gateway"]["network_mode"] == "service:nginx"
    assert "127.0.0.1" in config.server.trusted_proxies


def test_compose_keeps_the_network_when_the_gateway_is_restarted() -> None:
    """The gateway joins nginx's network, since a container loses the network of another one that is restarted."""
    services = read("deploy/compose.yml")["services"]
    owned = {
        one["network_mode"].removeprefix("service:") for one in services.values() if "network_mode" in one
    }

    assert owned == {"nginx"}
    assert "nginx" in services["gateway"]["depends_on"]
    assert services["nginx"]["networks"]["default"]["aliases"] == ["gateway"]


def test_compose_gives_the_gateway_time_and_no_rights() -> None:
    """It has more time than a drain takes, a process that reaps zombies, and no writable file system."""
    gateway = read("deploy/compose.yml")["services"]["gateway"]
    drain = Config.model_validate(production()).drain.timeout_seconds

    assert int(gateway["stop_grace_period"].removesuffix("s")) >= drain + 10
    assert gateway["init"] is True
    assert gateway["read_only"] is True
    assert gateway["cap_drop"] == ["ALL"]


def test_prometheus_and_grafana_find_what_they_are_to_show() -> None:
    """The scraped target is the gateway's service and port, and Grafana's data source is that Prometheus."""
    services = read("deploy/compose.yml")["services"]
    (job,) = read("deploy/prometheus/prometheus.yml")["scrape_configs"]
    (source,) = read("deploy/grafana/provisioning/datasources/prometheus.yml")["datasources"]
    (provider,) = read("deploy/grafana/provisioning/dashboards/gateway.yml")["providers"]
    port = Config.model_validate(production()).admin.port

    assert job["job_name"] == "realtime-gateway"
    assert job["static_configs"] == [{"targets": [f"gateway:{port}"]}]
    assert source["url"] == "http://prometheus:9090"
    assert {"gateway", "prometheus"} <= services.keys()
    assert any(f":{provider['options']['path']}/" in volume for volume in services["grafana"]["volumes"])
