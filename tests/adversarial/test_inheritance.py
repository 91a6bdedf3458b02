"""A candidate is forked from a warm interpreter: nothing that is worth knowing may be found in what it inherits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from frozen_env.problem.text import KJV_HELD_OUT
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
SEARCHES_LIBRARIES = """
import os, sys
needle = TEXT
found = []
for folder in [*sys.path, os.path.dirname(torch.__file__)]:
    for root, _, files in os.walk(folder):
        for name in files:
            path = os.path.join(root, name)
            if name.endswith(('.json', '.jsonl', '.txt', '.npy', '.parquet', '.gguf', '.safetensors')):
                with open(path, 'rb') as file:
                    if needle in file.read(): found.append(path)
raise SystemExit(f"found: {found[:3]}")
"""


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (WALKS_FRAMES, "found: []"),
        (SEARCHES_OBJECTS, "found: []"),
        (SEARCHES_MODULES, "found: []"),
        (COUNTS_FILES, "found: [3]"),  # the channel, nothing else
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


def test_no_held_out_text_lies_among_the_libraries(guarded, unguarded, prepared_data: Path) -> None:
    """A held-out verse is in no file of data that a candidate can read; beside the corpus the same search finds it."""
    verses = map(json.loads, (prepared_data / "text" / "kjv.jsonl").read_text().splitlines())
    verse = next(one["text"] for one in verses if one["book"] in KJV_HELD_OUT)
    search = SEARCHES_LIBRARIES.replace("TEXT", repr(verse.encode()))
    assert guarded(with_training(search)).reason == "found: []"
    in_the_corpus = search.replace("[*sys.path, os.path.dirname(torch.__file__)]", repr([str(prepared_data / "text")]))
    assert "kjv.jsonl" in unguarded(with_training(in_the_corpus)).reason
