"""A candidate is forked from a warm interpreter: nothing that is worth knowing may be found in what it inherits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from frozen_env.problem.text import KJV_HELD_OUT
from frozen_env.runtime.sandbox import readable_paths
from tests.frozen_env.runtime.candidates import with_training

WALKS_FRAMES = """
import sys
names, frame = set(), sys._getframe()
while frame:
    for value in list(frame.f_locals.values()):
        names.add(type(value).__name__)
        names.update(type(inner).__name__ for inner in getattr(value, '__dict__', {}).values())
    frame = frame.f_back
raise SystemExit(f"found: {sorted(names & {'LanguageModel', 'PreparedData', 'BitsPerByte', 'ndarray', 'memmap'})}")
"""
SEARCHES_OBJECTS = """
import gc
gc.unfreeze()
found = {type(one).__name__ for one in gc.get_objects()}
raise SystemExit(f"found: {sorted(found & {'LanguageModel', 'PreparedData', 'BitsPerByte', 'memmap'})}")
"""
SEARCHES_MODULES = """
import sys
raise SystemExit(f"found: {sorted(name for name in sys.modules if name.startswith('frozen_env.problem'))}")
"""
COUNTS_FILES = """
import os
found = []
for fd in range(3, 1024):
    try:
        os.fstat(fd)
        found.append(fd)
    except OSError:
        pass
raise SystemExit(f"found: {found}")
"""
TEXTS = (".json", ".jsonl", ".txt", ".npy", ".npz", ".parquet", ".gguf", ".safetensors", ".csv", ".db")


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (WALKS_FRAMES, "found: []"),
        (SEARCHES_OBJECTS, "found: []"),
        (SEARCHES_MODULES, "found: []"),
        (COUNTS_FILES, "found: [3, 4]"),  # the channel, and the buffer that batches come in
    ],
    ids=["frames", "objects", "modules", "files"],
)
def test_nothing_is_inherited(body: str, reason: str, guarded) -> None:
    assert guarded(with_training(body)).reason == reason


def test_a_fork_of_the_process_that_holds_the_data_would_find_it(guarded_spec, prepared_data) -> None:
    """What the zygote is for. The same walk over frames, in a process that has loaded the data."""
    from frozen_env.problem.language_model import LanguageModel

    problem = LanguageModel(guarded_spec, prepared_data)
    code = WALKS_FRAMES.replace("while frame:", "while frame and frame.f_code.co_name != 'pytest_pyfunc_call':")
    with pytest.raises(SystemExit, match="LanguageModel"):
        exec(code, {"problem": problem})


@pytest.mark.slow
def test_no_held_out_text_lies_among_the_libraries(prepared_data: Path) -> None:
    """A held-out verse is in no file of data that a candidate can read; where the corpus is, the same search finds it."""
    verses = map(json.loads, (prepared_data / "text" / "kjv.jsonl").read_text().splitlines())
    verse = next(one["text"] for one in verses if one["book"] in KJV_HELD_OUT).encode()
    assert found_in(prepared_data / "text", verse) == [prepared_data / "text" / "kjv.jsonl"]
    folders = [Path(path) for path in readable_paths() if "site-packages" in path or path.endswith("/lib")]
    assert any("site-packages" in str(folder) for folder in folders)
    assert [path for folder in folders for path in found_in(folder, verse)] == []


def found_in(folder: Path, text: bytes) -> list[Path]:
    files = [path for path in folder.rglob("*") if path.suffix in TEXTS and path.is_file()]
    return [path for path in files if text in path.read_bytes()]
