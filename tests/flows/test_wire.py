"""What crosses between nodes is text, comes back as it was, and is not believed when it is torn or huge."""

from __future__ import annotations

import base64
import json
import zlib

import pytest

from flows import wire


def test_data_come_back_as_they_were_and_shorter():
    data = {"reports": [{"step": k, "loss": 3.5, "text": "é\n"} for k in range(2000)], "none": None}
    packed = wire.pack(data)
    assert wire.unpack(json.loads(json.dumps(packed))) == data
    assert len(json.dumps(packed)) < len(json.dumps(data)) / 5


def test_plain_data_are_taken_as_they_are():
    assert wire.unpack({"completed": [], "alpha": 0.05}) == {"completed": [], "alpha": 0.05}
    assert wire.unpack({}) == {}


@pytest.mark.parametrize("text", ["no base64!", "", base64.b64encode(b"not zlib").decode(), 7])
def test_a_text_that_is_none_of_ours_is_refused(text):
    with pytest.raises(ValueError, match="pack"):
        wire.unpack({wire.PACKED: text})


def test_a_torn_text_is_refused():
    whole = base64.b64decode(wire.pack({"a": "b" * 1000})[wire.PACKED])
    with pytest.raises(ValueError, match="torn"):
        wire.unpack({wire.PACKED: base64.b64encode(whole[:-6]).decode()})


def test_a_bomb_is_refused(monkeypatch):
    monkeypatch.setattr(wire, "MAX_BYTES", 1000)
    bomb = base64.b64encode(zlib.compress(json.dumps({"a": "b" * 5000}).encode())).decode()
    with pytest.raises(ValueError, match="more than 1000 bytes"):
        wire.unpack({wire.PACKED: bomb})
