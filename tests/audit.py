"""Tell whether anything in a lock has a known weakness: exit 1 if so, 0 if not or if nobody could tell.

What no advisory service knows is named and not called sound; a service that does not answer fails nothing,
because a change must not be refused for what it did not do.
"""

from __future__ import annotations

import json
import subprocess
import sys


def main(lock: str) -> int:
    """Ask for the lock's packages, say what was found of each kind."""
    command = [sys.executable, "-m", "pip_audit", "--require-hashes", "--disable-pip", "--format=json"]
    asked = subprocess.run(
        [*command, "--progress-spinner=off", "--requirement", lock],
        capture_output=True,
        text=True,
        check=False,
    )
    try:
        packages = json.loads(asked.stdout)["dependencies"]
    except (ValueError, KeyError):
        reason = asked.stderr.strip().splitlines()
        print(f"NOT AUDITED: {reason[-1] if reason else 'the advisory service said nothing'}")
        return 0
    weak = [package for package in packages if package.get("vulns")]
    unknown = [package["name"] for package in packages if "skip_reason" in package]
    for package in weak:
        for weakness in package["vulns"]:
            mended = ", ".join(weakness["fix_versions"]) or "no version"
            print(f"{package['name']} {package['version']}: {weakness['id']}, mended in {mended}")
    print(
        f"{lock}: {len(packages) - len(unknown)} of {len(packages)} packages audited, {len(weak)} with weaknesses"
    )
    if unknown:
        print(f"NOT AUDITED, unknown to the advisory service: {' '.join(unknown)}")
    return 1 if weak else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
