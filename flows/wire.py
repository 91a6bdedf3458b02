"""What crosses between a campaign and its nodes: JSON, packed as text when it is long.

Prefect refuses flow parameters beyond 512 KiB, and curves are repetitive: packed they take a fifth.
"""

from __future__ import annotations

import base64
import json
import zlib
from typing import Any

PACKED = "zlib+base64"
MAX_BYTES = 64 << 20  # of a packed text once unpacked: what a node sends is not trusted to be small


def pack(data: dict[str, Any]) -> dict[str, str]:
    """Return `data` as one short text under the key that names its coding."""
    return {PACKED: base64.b64encode(zlib.compress(json.dumps(data).encode(), 9)).decode("ascii")}


def unpack(data: dict[str, Any]) -> dict[str, Any]:
    """Return what pack() was given; plain data are returned as they are. ValueError when it is torn or too large."""
    if set(data) != {PACKED}:
        return data
    try:
        unpacker = zlib.decompressobj()
        text = unpacker.decompress(base64.b64decode(data[PACKED], validate=True), MAX_BYTES)
    except (ValueError, TypeError, zlib.error) as error:
        raise ValueError(f"a packed text of {len(str(data[PACKED]))} characters cannot be read: {error}") from error
    if not unpacker.eof:
        raise ValueError(f"a packed text is torn, or holds more than {MAX_BYTES} bytes")
    found: dict[str, Any] = json.loads(text)
    return found
