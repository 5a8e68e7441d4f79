"""The text of the Dockerfile. tests/deploy/test_debian.py builds and runs it."""

import re
import tomllib

from gateway.config import Config
from tests.deploy.conftest import ROOT

DOCKERFILE = ROOT / "deploy/Dockerfile"


def steps(word: str) -> list[str]:
    """Return the arguments of each instruction of a kind."""
    text = re.sub(r"\\\n", " ", DOCKERFILE.read_text())
    return re.findall(rf"^{word} (.+)$", text, re.MULTILINE)


def test_the_health_check_asks_where_the_operator_listens() -> None:
    """The health check asks the admin port of the configuration in the image."""
    config = Config.model_validate(tomllib.loads((ROOT / "config/production.toml").read_text()))

    assert f"127.0.0.1:{config.admin.port}/livez" in steps("HEALTHCHECK")[-1]
    assert steps("EXPOSE")[-1] == f"{config.server.port} {config.admin.port}"


def test_what_is_copied_is_let_through_to_the_build() -> None:
    """The ignore file excludes everything, so it must list each path that is copied."""
    allowed = {
        line.removeprefix("!")
        for line in (ROOT / "deploy/Dockerfile.dockerignore").read_text().splitlines()
        if line.startswith("!")
    }
    copied = {source for step in steps("COPY") if "--from" not in step for source in step.split()[:-1]}

    assert copied == allowed
    assert all((ROOT / source).exists() for source in copied)
