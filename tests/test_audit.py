""".ci/audit.py: how it reports pip-audit's answers. An index without advisories does not count as a passed audit."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

AUDIT = Path(__file__).resolve().parent.parent / ".ci" / "audit.py"

CLEAN = {"name": "aiohttp", "version": "3.14.5", "vulns": []}
AFFECTED = {
    "name": "cryptography",
    "version": "49.0.0",
    "vulns": [{"id": "CVE-2026-69247", "fix_versions": ["50.0.0"]}],
}
SKIPPED = {
    "name": "idna",
    "skip_reason": "Dependency not found on PyPI and could not be audited: idna (3.10)",
}


def audited(tmp_path: Path, stdout: str, stderr: str = "", status: int = 0) -> tuple[int, str]:
    """Run the script with a pip-audit that gives this answer."""
    program = tmp_path / "pip-audit"
    program.write_text(
        f"#!{sys.executable}\nimport sys\nsys.stdout.write({stdout!r})\nsys.stderr.write({stderr!r})\n"
        f"sys.exit({status})\n"
    )
    program.chmod(0o755)
    done = subprocess.run(
        [sys.executable, str(AUDIT), str(program), "pins.txt"],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    return done.returncode, done.stdout


@pytest.mark.parametrize(
    ("dependencies", "status", "said"),
    [
        ([CLEAN], 0, ["1 packages audited, 0 with advisories"]),
        ([CLEAN, AFFECTED], 1, ["cryptography 49.0.0: CVE-2026-69247, fixed in 50.0.0", "1 with advisories"]),
        ([CLEAN, SKIPPED], 0, ["1 packages audited", "1 NOT AUDITED", "idna"]),
        ([SKIPPED], 0, ["0 packages audited", "1 NOT AUDITED", "that is all of them"]),
    ],
)
def test_packages_are_told_apart(
    tmp_path: Path, dependencies: list[object], status: int, said: list[str]
) -> None:
    """Packages with an advisory, without one, and without an answer are reported separately."""
    found, output = audited(tmp_path, json.dumps({"dependencies": dependencies}), status=status)

    assert found == status
    assert all(words in output for words in said), output


def test_index_that_cannot_be_asked_is_no_failure(tmp_path: Path) -> None:
    """The build continues, and its log lists the pins that were not audited."""
    error = "requests.exceptions.ConnectionError: no route"
    found, output = audited(tmp_path, "", f"Traceback\n{error}\n", 1)

    assert found == 0
    assert output == f"audit: pins.txt: NOT AUDITED, the package index could not be asked: {error}\n"


def test_any_other_failure_is_one(tmp_path: Path) -> None:
    """Other failures, such as a wrong file, must not pass as audited."""
    found, output = audited(tmp_path, "", "ERROR: no such file: pins.txt\n", 1)

    assert found == 1
    assert "no such file" in output
