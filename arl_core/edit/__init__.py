"""An edit of the one file, or of several in one text: two doors, one result.

The policy's door is apply_completion(): SEARCH/REPLACE blocks. The outsider's is apply_diff(): a unified diff from
another model or a person, read tolerantly, its repairs recorded. Behind both stand the same strict rules and the same
AppliedEdit: the new source, and a canonical git-style diff that unidiff has parsed and that was applied to make it.
Everything that cannot be done is an EditRejected with a stable code (the table is in rules.py).
"""

from __future__ import annotations

from arl_core.edit.blocks import Block, apply_blocks, parse_blocks
from arl_core.edit.diffs import apply_exactly, canonical_diff, named_path
from arl_core.edit.doors import AppliedEdit, apply_completion, apply_diff, apply_text
from arl_core.edit.levers import levers, levers_seen_from
from arl_core.edit.rules import DEFAULT_RULES, Rules, check_source
from arl_core.edit.summary import summarise
from frozen_env.constants import changed_constants, read_constants, write_constants

__all__ = [
    "DEFAULT_RULES",
    "AppliedEdit",
    "Block",
    "Rules",
    "apply_blocks",
    "apply_completion",
    "apply_diff",
    "apply_exactly",
    "apply_text",
    "canonical_diff",
    "changed_constants",
    "check_source",
    "levers",
    "levers_seen_from",
    "named_path",
    "parse_blocks",
    "read_constants",
    "summarise",
    "write_constants",
]
