"""What lies where the weights should be is never followed, read, waited for or unpickled by the trusted side."""

from __future__ import annotations

import os
import pickle
import subprocess
from pathlib import Path

import pytest

from frozen_env.contract import Cause, Ending
from frozen_env.runtime.client import SUBMISSION
from tests.frozen_env.runtime.candidates import with_training

HANDS_IN = """
import os, time
from frozen_env.runtime import client
env.start()
{make}
client._run.channel.send({{'submit': True}})
time.sleep(9)
"""
PICKLE = """
class Payload:
    def __reduce__(self):
        return (os.mkdir, ({marker!r},))
import pickle
open({name!r}, 'wb').write(pickle.dumps(Payload()))
"""


def hands_in(make: str) -> str:
    return with_training(HANDS_IN.format(make=make.replace("NAME", repr(SUBMISSION))))


@pytest.mark.parametrize(
    ("make", "cause", "words"),
    [
        ("os.symlink('/etc/hostname', NAME)", Cause.BAD_SUBMISSION, "not a regular file"),
        ("os.mkfifo(NAME)", Cause.BAD_SUBMISSION, "not a regular file"),
        ("os.mkdir(NAME)", Cause.BAD_SUBMISSION, "not a regular file"),
        ("open('a', 'w').close(); os.link('a', NAME)", Cause.BAD_SUBMISSION, "not a regular file"),
        ("os.truncate(os.open(NAME, os.O_CREAT | os.O_RDWR), 10 << 20)", Cause.BAD_SUBMISSION, "the limit is 8388608"),
        ("pass", Cause.BAD_SUBMISSION, "no file was written"),
        ("open(NAME, 'wb').write(b'')", Cause.BAD_MODEL, "Error"),
        ("open(NAME, 'wb').write(os.urandom(4096))", Cause.BAD_MODEL, "Error"),
        ("open(NAME, 'wb').write((2**60).to_bytes(8, 'little') + b'{}')", Cause.BAD_MODEL, "Error"),
        ("torch.save(build_model().state_dict(), NAME)", Cause.BAD_MODEL, "Error"),
        (
            "import safetensors.torch\nsafetensors.torch.save_file({'other': torch.ones(3)}, NAME)",
            Cause.BAD_MODEL,
            "state_dict",
        ),
    ],
)
def test_what_is_no_submission_is_refused(make: str, cause: Cause, words: str, guarded) -> None:
    result = guarded(hands_in(make))
    assert (result.ending, result.cause) == (Ending.CRASHED, cause), result.reason
    assert words in f"{result.reason} {result.log_tail}"


def test_a_pickle_is_never_opened(guarded, tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    make = PICKLE.format(marker=str(marker), name=SUBMISSION)
    result = guarded(hands_in(make))
    assert (result.ending, result.cause) == (Ending.CRASHED, Cause.BAD_MODEL), result.reason
    assert not marker.exists()
    pickle.loads((tmp_path / "run" / "submission" / SUBMISSION).read_bytes())
    assert marker.exists(), "whoever unpickles it runs what the candidate wrote"


def test_a_careless_reader_would_be_caught_by_link_and_fifo(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("held-out")
    os.symlink(tmp_path / "secret", tmp_path / "link")
    assert (tmp_path / "link").read_text() == "held-out"
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(subprocess.TimeoutExpired):
        subprocess.run(["cat", str(tmp_path / "fifo")], timeout=0.3, check=False)
