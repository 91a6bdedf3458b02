"""A host on a kernel that does not tell which processes a process has started: `python -m tests.frozen_env.runtime.blind_node`."""

from __future__ import annotations

import sys

from frozen_env import node
from frozen_env.runtime import processes
from frozen_env.runtime.guard import guarded

if __name__ == "__main__":
    processes.children = lambda pid: []
    sys.exit(guarded(node.main))
