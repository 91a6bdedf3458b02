"""Compiled code outlives a candidate only when nobody could have planted it; and compiling works inside the sandbox."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from arl_core.edit import write_constants
from frozen_env.files import join
from frozen_env.runtime import compile_cache, toolchain
from frozen_env.runtime.compile_cache import CompileCache, fingerprint

SEED = (Path(__file__).resolve().parents[3] / "target" / "train.py").read_text(encoding="utf-8")


@pytest.fixture
def cache(tmp_path: Path) -> CompileCache:
    return CompileCache(tmp_path / "cache", SEED)


def scratch(tmp_path: Path, name: str, files: dict[str, str]) -> Path:
    folder = tmp_path / name
    folder.mkdir(exist_ok=True)
    for path, text in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    return folder


# --- whose code is kept -----------------------------------------------------------------------------------------------


def test_other_values_of_constants_leave_a_program_trusted(cache: CompileCache) -> None:
    assert cache.is_trusted(SEED)
    assert cache.is_trusted(write_constants(SEED, {"DEPTH": 14, "MUON_LR": 2.8e-3, "ADAM_BETAS": (0.9, 0.99)}))
    assert cache.is_trusted(SEED.replace("# transformer blocks", "# how deep"))


@pytest.mark.parametrize(
    "edit",
    [
        ("import torch\n", "import torch\nimport os\n"),
        ("DEPTH = 12", "DEPTH = int('12')"),
        ("DEPTH = 12", "DEPTH = [print(1) for _ in range(1)]"),
        ("DEPTH = 12", "DEPTH: int = 12"),
        ("DEPTH = 12", "DEPTH = EXTRA = 12"),
        ("DEPTH = 12", "depth = 12"),
        ("DEPTH = 12", "DEPTH = 12; print(1)"),
        ("return CLIP_NORM", "return 2 * CLIP_NORM"),
        ("    loss.backward()\n", "    loss.backward()\n    X = 1\n"),
        # What looks like a comment becomes code where a cookie says how to read the file.
        ('"""Train a GPT', '# -*- coding: unicode_escape -*-\n# \\nimport os\n"""Train a GPT'),
        ("DEPTH = 12", "DEPTH = = 12"),
    ],
)
def test_any_other_change_makes_it_untrusted(cache: CompileCache, edit: tuple[str, str]) -> None:
    before, after = edit
    assert before in SEED
    assert not cache.is_trusted(SEED.replace(before, after, 1))


FILES = {"model.py": "import torch\nWIDTH = 8\n", "train.py": "import model\nmodel.WIDTH\nprint(1)\n"}


@pytest.mark.parametrize(
    ("files", "is_trusted"),
    [
        (FILES, True),
        ({"model.py": "import torch\nWIDTH = 16\n", "train.py": FILES["train.py"]}, True),
        # A cookie of a later file's own, and a line that moves from one file to the other, leave the joined text's tree alone.
        ({**FILES, "train.py": "# coding: unicode_escape\n# \\nimport os\n" + FILES["train.py"]}, False),
        ({"model.py": FILES["model.py"] + "import model\n", "train.py": "model.WIDTH\nprint(1)\n"}, False),
        ({"other.py": FILES["model.py"], "train.py": FILES["train.py"]}, False),
    ],
)
def test_each_file_of_a_program_counts_by_itself(tmp_path: Path, files: dict[str, str], is_trusted: bool) -> None:
    assert CompileCache(tmp_path, join(FILES)).is_trusted(join(files)) == is_trusted


def test_without_a_trusted_program_nothing_is_trusted(tmp_path: Path) -> None:
    assert not CompileCache(tmp_path, None).is_trusted(SEED)
    assert not CompileCache(tmp_path, "not python (").is_trusted("nor this (")
    assert fingerprint("also not (") == ""


# --- keeping and giving -----------------------------------------------------------------------------------------------


def test_each_candidate_gets_a_copy_that_it_may_spoil(cache: CompileCache, tmp_path: Path) -> None:
    cache.take(scratch(tmp_path, "trusted", {"inductor/ab/kernel.py": "honest", "triton/x.cubin": "honest too"}))
    for name in ("first", "second"):
        one = scratch(tmp_path, name, {})
        cache.give(one, 1024)
        assert (one / "inductor" / "ab" / "kernel.py").read_text() == "honest"
        (one / "inductor" / "ab" / "kernel.py").write_text("planted")
        (one / "triton" / "new.cubin").write_text("planted")
    kept = {path.read_text() for path in cache.folder.rglob("*") if path.is_file()}
    assert kept == {"honest", "honest too"}


def test_what_is_kept_stays_as_it_was_first_and_grows(cache: CompileCache, tmp_path: Path) -> None:
    cache.take(scratch(tmp_path, "one", {"inductor/a": "first"}))
    cache.take(scratch(tmp_path, "two", {"inductor/a": "second", "inductor/b": "more", "weights.safetensors": "no"}))
    found = {
        str(path.relative_to(cache.folder)): path.read_text() for path in cache.folder.rglob("*") if path.is_file()
    }
    assert found == {"inductor/a": "first", "inductor/b": "more"}


def test_links_are_not_kept(cache: CompileCache, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    one = scratch(tmp_path, "one", {"inductor/a": "kernel"})
    (one / "inductor" / "link").symlink_to(secret)
    cache.take(one)
    assert not os.path.lexists(cache.folder / "inductor" / "link")


def test_a_cache_that_grew_too_large_starts_anew(
    cache: CompileCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.take(scratch(tmp_path, "one", {"inductor/a": "old"}))
    monkeypatch.setattr(compile_cache, "MAX_BYTES", 1)
    cache.take(scratch(tmp_path, "two", {"inductor/b": "new"}))
    assert [path.name for path in cache.folder.rglob("*") if path.is_file()] == ["b"]


def test_a_cache_that_would_fill_the_scratch_folder_is_not_given(cache: CompileCache, tmp_path: Path) -> None:
    cache.take(scratch(tmp_path, "trusted", {"inductor/a": "x" * 600_000}))
    one = scratch(tmp_path, "one", {})
    cache.give(one, 2)
    assert list(one.iterdir()) == []
    cache.give(one, 4)
    assert (one / "inductor" / "a").stat().st_size == 600_000


def test_an_empty_cache_gives_nothing(cache: CompileCache, tmp_path: Path) -> None:
    one = scratch(tmp_path, "one", {})
    cache.give(one, 1024)
    assert list(one.iterdir()) == []


# --- compiling --------------------------------------------------------------------------------------------------------

COMPILES = """
import json, sys, torch
from torch._dynamo.utils import counters
loss = torch.compile(lambda x: (x.sin() * 2).sum())
loss(torch.ones(64, requires_grad=True)).backward()
print(json.dumps({key: value for key, value in counters["inductor"].items() if key.startswith("fxgraph")}))
"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler on a CPU")
def test_compiled_code_is_found_again_in_another_candidates_scratch_folder(cache: CompileCache, tmp_path: Path) -> None:
    found = []
    for name in ("trusted", "candidate"):
        one = scratch(tmp_path, name, {})
        cache.give(one, 1024)
        variables = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(one / "inductor"), "TMPDIR": str(one)}
        done = subprocess.run(
            [sys.executable, "-c", COMPILES], env=variables, capture_output=True, text=True, check=True
        )
        found.append(json.loads(done.stdout.splitlines()[-1]))
        cache.take(one)
    assert found[0].get("fxgraph_cache_hit", 0) == 0
    assert found[0]["fxgraph_cache_miss"] >= 1
    assert found[1]["fxgraph_cache_hit"] >= 1
    assert found[1].get("fxgraph_cache_miss", 0) == 0


CONFINED = """
import subprocess, sys
from frozen_env.runtime import sandbox, toolchain
sandbox.confine_files(readable=toolchain.readable_paths(sys.argv[1]), writable=[sys.argv[2]])
environment = {"PATH": "/usr/bin:/bin", "TMPDIR": sys.argv[2]}
command = ["gcc", f"-I{sys.argv[3]}", "-shared", "-fPIC", f"{sys.argv[2]}/stub.c", "-o", f"{sys.argv[2]}/stub.so"]
sys.exit(subprocess.run(command, env=environment).returncode)
"""

COMPILES_CONFINED = """
import os, sys
from frozen_env.runtime import inside, sandbox, seccomp, toolchain
from frozen_env.runtime.launch import Order
from frozen_env.spec import EnvironmentSpec
scratch = sys.argv[1]
variables = inside.clean_environment(Order("candidate", "", scratch, [], 0, 0), EnvironmentSpec(name="test", device="cpu"))
sandbox.confine_files(readable=toolchain.readable_paths("cuda"), writable=[scratch])
seccomp.install(seccomp.deny_program())
os.environ.clear()
os.environ.update(variables)
os.chdir(scratch)
"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler on a CPU")
def test_torch_compiles_under_the_sandbox(tmp_path: Path) -> None:
    code = COMPILES_CONFINED + COMPILES
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["fxgraph_cache_miss"] >= 1
    assert any((tmp_path / "inductor").rglob("*.so"))


@pytest.mark.skipif(shutil.which("gcc") is None, reason="there is no C compiler here")
@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_the_sandbox_lets_a_gpus_candidate_compile_c_and_no_other(tmp_path: Path, device: str) -> None:
    import sysconfig

    headers = sysconfig.get_path("include")
    if not Path(headers, "Python.h").is_file():
        pytest.skip("Python's headers are not installed")
    (tmp_path / "stub.c").write_text("#include <Python.h>\nint answer(void) { return 42; }\n")
    arguments = [sys.executable, "-c", CONFINED, device, str(tmp_path), headers]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert (done.returncode == 0) == (device == "cuda"), done.stderr
    assert (tmp_path / "stub.so").exists() == (device == "cuda")


def test_libcuda_is_pointed_to_where_it_lies(tmp_path: Path) -> None:
    (tmp_path / "libcuda.so.1").write_text("")
    folders = (str(tmp_path / "none"), str(tmp_path))
    assert toolchain.environment("cuda", folders) == {"TRITON_LIBCUDA_PATH": str(tmp_path)}
    assert toolchain.environment("cpu", folders) == {}
    assert toolchain.environment("cuda", (str(tmp_path / "none"),)) == {}
