"""``./dev bench`` works; what it finds is judged by people, on a machine that does nothing else."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from benchmarks.targets import TARGETS
from tests.nursery import ROOT, program


@pytest.mark.timeout(300)
def test_every_measure_of_the_benchmark_works_and_meets_its_targets_by_name(tmp_path: Path) -> None:
    """At tiny size each measure gives numbers; no target is of a figure that nobody takes."""
    page = tmp_path / "bench.md"
    env = dict(os.environ)

    done = subprocess.run(
        program("benchmarks", "--tiny", "--rounds", "1", "--report", str(page), env=env),
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env=env,
    )

    assert 0 == done.returncode, done.stderr
    rows = re.findall(r"^\| (.+?) \| (-?[\d.,]+) \| ", page.read_text(), re.MULTILINE)
    assert set() == set(TARGETS) - {name for name, _ in rows}
    assert page.read_text().partition("| what |")[2].strip() in done.stdout
