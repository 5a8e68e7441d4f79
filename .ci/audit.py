"""Asks the package index for advisories about the pinned packages, and says plainly for which it could not.

`audit.py PIP_AUDIT FILE…` runs pip-audit on requirement files with hashes. Exit status: 1 if a package has an advisory
or pip-audit failed, else 0, also where the index offers no advisories or cannot be reached: that is printed, since a
mirror without them would otherwise look like a clean bill of health.
"""

import json
import subprocess
import sys
from typing import Final

UNREACHABLE: Final = (
    "ConnectionError",
    "ConnectTimeout",
    "ReadTimeout",
    "NameResolutionError",
    "ServiceError",
)
"""What pip-audit's failures are called where the index cannot be asked."""

DEADLINE_SECONDS: Final = 300


def audit(program: str, file: str) -> int:
    """Audit one file and print what came of it. Return the exit status."""
    command = [program, "--requirement", file, "--require-hashes", "--disable-pip", "--format", "json"]
    done = subprocess.run(
        [*command, "--progress-spinner", "off"],
        capture_output=True,
        text=True,
        timeout=DEADLINE_SECONDS,
        check=False,
    )
    try:
        dependencies = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        said = done.stderr.strip().splitlines()[-1:] or ["nothing"]
        if any(word in done.stderr for word in UNREACHABLE):
            print(f"audit: {file}: NOT AUDITED, the package index could not be asked: {said[0]}")
            return 0
        print(f"audit: {file}: pip-audit failed with status {done.returncode}: {said[0]}")
        return 1
    skipped = [one for one in dependencies if "skip_reason" in one]
    affected = [one for one in dependencies if one.get("vulns")]
    for one in affected:
        for found in one["vulns"]:
            fixed = ", ".join(found.get("fix_versions") or ["no version yet"])
            print(f"audit: {file}: {one['name']} {one['version']}: {found['id']}, fixed in {fixed}")
    audited = len(dependencies) - len(skipped)
    print(f"audit: {file}: {audited} packages audited, {len(affected)} with advisories")
    if skipped:
        names = ", ".join(sorted(one["name"] for one in skipped)) if audited else "that is all of them"
        print(f"audit: {file}: {len(skipped)} NOT AUDITED, the package index offers no advisories: {names}")
    return 1 if affected else 0


def main(arguments: list[str]) -> int:
    """Audit every file, also after one that has advisories."""
    program, *files = arguments
    return max([audit(program, file) for file in files], default=0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
