"""The frozen files are the pinned ones, and every way of changing them is noticed."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from frozen_env import manifest
from frozen_env.contract import ManifestError


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the frozen environment that a test may spoil."""
    root = tmp_path / "frozen_env"
    shutil.copytree(manifest.ROOT, root, ignore=shutil.ignore_patterns("__pycache__"))
    return root


def test_the_frozen_files_are_as_pinned():
    assert len(manifest.verify()) == 64


def test_sha256sum_reads_the_manifest_too():
    done = subprocess.run(["sha256sum", "--check", "--quiet", manifest.MANIFEST], cwd=manifest.ROOT, check=False)
    assert done.returncode == 0


def change(root: Path) -> None:
    with (root / "problem" / "bits.py").open("a") as file:
        file.write("\n")


def remove(root: Path) -> None:
    (root / "spec.py").unlink()


def add(root: Path) -> None:
    (root / "runtime" / "extra.py").write_text("")


def change_a_preset(root: Path) -> None:
    path = root / "presets" / "embedded.toml"
    path.write_text(path.read_text().replace("budget_s = 20.0", "budget_s = 200.0"))


def forget_the_manifest(root: Path) -> None:
    (root / manifest.MANIFEST).unlink()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (change, "problem/bits.py has changed"),
        (remove, "spec.py is missing"),
        (add, "runtime/extra.py is not in the manifest"),
        (change_a_preset, "presets/embedded.toml has changed"),
        (forget_the_manifest, "MANIFEST.sha256 is missing"),
    ],
)
def test_what_changed_is_named(copy, spoil, words):
    spoil(copy)
    with pytest.raises(ManifestError, match=words):
        manifest.verify(copy)


def test_a_deliberate_change_can_be_pinned(copy):
    before = manifest.verify(copy)
    change(copy)
    manifest.write(copy)
    assert manifest.verify(copy) != before
