"""The campaign's leaves of the one error tree (its root is frozen_env.contract.ResearchError)."""

from __future__ import annotations

from frozen_env.contract import ResearchError


class ConfigError(ResearchError):
    """A preset, a setting or a value is unknown or out of range."""


class MemoryFileError(ResearchError):
    """The memory file cannot be read or written."""


class CampaignLocked(ResearchError):
    """Another process runs a campaign on the same memory."""


class PolicyError(ResearchError):
    """The policy's weights are missing, unreadable, or do not fit the settings."""


class CheckpointDamaged(PolicyError):
    """A policy checkpoint is missing, torn or altered: one before it may still be whole."""


class EditRejected(ResearchError):
    """An edit cannot be applied or breaks a rule. `code` is a stable word for statistics."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
