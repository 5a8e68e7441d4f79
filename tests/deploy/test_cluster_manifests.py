"""The manifests and the compose file of several nodes, compared with schemas and the configuration."""

from pathlib import Path
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]  # it ships no types
import pytest
import yaml  # type: ignore[import-untyped]  # it ships no types

from gateway.config import Config
from tests.deploy.conftest import ROOT

FOLDER = ROOT / "deploy/kubernetes/cluster"
WHOLE = ("horizontalpodautoscaler", "networkpolicy", "service")
KUBERNETES = "1.33"


def read(path: Path) -> Any:
    """Parse a YAML file."""
    return yaml.safe_load(path.read_text())


def configured(environ: dict[str, str], **given: str) -> Config:
    """Read variables as the gateway does."""
    # config/production.toml names it.
    sections: dict[str, dict[str, str]] = {"access": {"signing_key_file": "/run/secrets/signing-keys"}}
    for name, value in {**environ, **given}.items():
        if "__" in name:
            section, key = name.removeprefix("GATEWAY_").lower().split("__")
            sections.setdefault(section, {})[key] = value
    return Config.model_validate(sections)


@pytest.mark.parametrize("name", WHOLE)
def test_a_manifest_keeps_to_the_strict_schema(name: str) -> None:
    """Kubernetes knows every member, and each has the right type."""
    kubernetes_validate.validate(read(FOLDER / f"{name}.yaml"), KUBERNETES, strict=True)


def test_every_file_is_applied() -> None:
    """Every file is applied, as its own resource or as a patch of one in the folder above."""
    listed = read(FOLDER / "kustomization.yaml")
    named = {*listed["resources"], *(patch["path"] for patch in listed["patches"])} - {"../"}

    assert named == {path.name for path in FOLDER.glob("*.yaml")} - {"kustomization.yaml"}


def test_pods_have_the_time_to_hand_their_sessions_over() -> None:
    """The termination grace period is longer than the drain and the wait before it; the configuration is valid."""
    pod = read(FOLDER / "replicas.yaml")["spec"]["template"]["spec"]
    [container] = pod["containers"]
    environ = {one["name"]: one.get("value", "10.0.0.1") for one in container["env"]}
    environ = {name: value.replace("$(POD_IP)", "10.0.0.1") for name, value in environ.items()}
    config = configured(environ)

    assert pod["terminationGracePeriodSeconds"] >= config.drain.timeout_seconds + 5
    assert config.cluster.url
    assert [port["containerPort"] for port in container["ports"]] == [config.cluster.port]


def test_only_gateways_reach_the_port_between_them() -> None:
    """Only the pods of the gateway may connect to the port between nodes."""
    policy = read(FOLDER / "networkpolicy.yaml")["spec"]
    [rule] = policy["ingress"]

    assert rule["ports"] == [{"port": "peers"}]
    assert rule["from"] == [{"podSelector": policy["podSelector"]}]


def test_compose_runs_two_nodes_that_find_each_other() -> None:
    """Each advertises its own name, both are behind nginx, and Redis never evicts."""
    compose = read(ROOT / "deploy/cluster/compose.yml")
    names = [name for name in compose["services"] if name.startswith("gateway-")]
    nginx = (ROOT / "deploy/cluster/nginx.conf").read_text()
    for name in names:
        environ = {key: str(value) for key, value in compose["services"][name]["environment"].items()}
        config = configured({key: value for key, value in environ.items() if "PUBLIC_URL" not in key})
        assert config.cluster.advertise_url == f"http://{name}:{config.cluster.port}"
        assert f"server {name}:8080;" in nginx
        assert int(compose["services"][name]["stop_grace_period"].rstrip("s")) > config.drain.timeout_seconds

    assert len(names) == 2
    assert "noeviction" in compose["services"]["redis"]["command"]
