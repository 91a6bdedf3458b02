"""Every setting of a campaign, as one pydantic model, and the presets that fill it.

A preset is two TOML files of the same name: arl_core/presets/NAME.toml says how the campaign decides, and
frozen_env/presets/NAME.toml holds what must never move (the environment's constants, the target's starting values).
Any field can be overridden by its dotted name: `--set policy.learning_rate=1e-5`, or a flow parameter.
"""

from __future__ import annotations

import copy
import difflib
import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from arl_core.errors import ConfigError
from arl_core.policy.settings import PolicySettings
from arl_core.selfeval.snapshot import DEFAULT_ALPHA, DEFAULT_AUDIT_SHARE
from frozen_env.contract import FrozenEnvError
from frozen_env.description import Description, built_in, read, shown
from frozen_env.spec import EnvironmentSpec, read_preset

PRESETS = Path(__file__).parent / "presets"
Constant = bool | int | float | str
PROBLEM = "environment.problem"
SHORT_NAMES = {"sandbox": "environment.sandbox", "problem": PROBLEM}


class Settings(BaseModel):
    """Base of every group of settings: unknown keys are errors, values are checked."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class PromptSettings(Settings):
    """What the policy is shown."""

    recent: int = Field(32, ge=0, le=256, description="most recent experiments shown")
    top: int = Field(5, ge=0, le=64, description="best experiments shown")
    agenda: str = Field(
        shown(built_in().agenda), description="the research agenda, a Markdown file that the human edits"
    )


class EditSettings(Settings):
    """What an edit may do."""

    allowed_imports: tuple[str, ...] = Field(
        built_in().imports, description="top-level modules that a candidate may import"
    )
    max_source_kb: int = Field(64, ge=1, description="largest edited file")
    max_changed_lines: int = Field(200, ge=1, description="most added plus removed lines of one edit")


class RewardSettings(Settings):
    """The reward's scale and penalties (docs/metrics.md); every reward lies in [-1, 1]."""

    scale: float = Field(
        0.02, gt=0, description="gain in the metric's units at which the reward reaches tanh(1) = 0.76"
    )
    loss_weight: float = Field(0.5, gt=0, lt=1, description="most that a scored run below the incumbent can lose")
    invalid: float = Field(-0.6, ge=-1, le=0, description="reward of a rejected or duplicate edit: cost no training")
    crashed: float = Field(-0.8, ge=-1, le=0, description="reward of a crashed run")
    timed_out: float = Field(-1.0, ge=-1, le=0, description="reward of a run that used its time and left no result")

    @model_validator(mode="after")
    def _ordered(self) -> RewardSettings:
        if not -self.loss_weight > self.invalid > self.crashed > self.timed_out:
            raise ValueError("rewards must be ordered: -loss_weight > invalid > crashed > timed_out")
        return self


class StoppingSettings(Settings):
    """When the supervisor ends a hopeless run."""

    rule: Literal["ours", "naive", "none"] = Field("ours", description="which verdict is asked at each check")
    alpha: float = Field(
        DEFAULT_ALPHA,
        gt=0,
        lt=1,
        description="most probability of stopping a run that would exactly tie the best, over all its checks (docs/stopping.md)",
    )
    history: bool = Field(
        True, description="calibrate on earlier campaigns of this frozen environment and kind of device too"
    )
    audit_share: float = Field(
        DEFAULT_AUDIT_SHARE,
        ge=0,
        le=1,
        description="share of runs, evenly spread from a first that the seed draws, that `ours` may not stop (docs/stopping.md)",
    )


class StopSettings(Settings):
    """When a start of the campaign ends, besides `iterations`; whichever comes first. null: no such limit."""

    hours: float | None = Field(
        None, gt=0, description="wall-clock hours from the start; none is begun that would end later"
    )
    until: str = Field("", description="time of day (07:00, local) or date and time (2026-12-24T07:00) to end by")
    experiments: int | None = Field(None, ge=1, description="experiments of this start")
    gpu_hours: float | None = Field(None, gt=0, description="hours that candidates of this start spent on their slots")
    plateau: int | None = Field(None, ge=1, description="experiments in a row without a new best")


class RetentionSettings(Settings):
    """What stays on disk and in MLflow; the memory keeps every experiment (docs/operations.md)."""

    recent: int = Field(500, ge=1, description="latest experiments whose folders and MLflow artifacts stay")
    best: int = Field(50, ge=1, description="best experiments whose folders and MLflow artifacts stay, however old")
    weights: int = Field(5, ge=1, description="best experiments whose submitted weights stay")


class NodeSettings(Settings):
    """Candidates on other machines, through a Prefect server (docs/operations.md)."""

    deployment: str = Field(
        "", description="run candidates through this deployment, e.g. experiment/node; empty: on this machine"
    )
    silence_s: float = Field(
        60.0, ge=10, description="a node without a sign of life for so long is dead; its candidate is scheduled again"
    )


class ConfirmSettings(Settings):
    """When an improvement is believed (docs/confirmation.md)."""

    enabled: bool = Field(True, description="keep a candidate only after paired re-runs; false: any better single run")
    confidence: float = Field(
        0.95,
        ge=0.5,
        lt=1,
        description="of a whole campaign: that nothing is kept which is not better than what it replaced",
    )
    baseline_repeats: int = Field(
        3,
        ge=0,
        le=64,
        description="runs of the untouched target on fresh seeds, before the first proposal: the noise floor",
    )
    second_look: float = Field(
        1.0, ge=0, description="re-run from this gain on, in standard deviations of the difference of two runs"
    )
    first_look: int = Field(3, ge=2, le=64, description="paired re-runs before a candidate may be kept")
    max_reruns: int = Field(12, ge=2, le=64, description="paired re-runs at most; then it is kept or discarded")
    borrowed_df: float = Field(
        1.0, ge=0, description="degrees of freedom that the noise of other files counts for in judging one candidate"
    )
    history: bool = Field(
        True, description="learn the noise from earlier campaigns of this frozen environment and kind of device too"
    )
    reuse: bool = Field(
        True,
        description="pair with the incumbent's earlier runs; false: run both arms now, on seeds of their own, at up to twice "
        "the cost, for a machine whose speed drifts",
    )

    @model_validator(mode="after")
    def _looks_fit(self) -> ConfirmSettings:
        if self.first_look > self.max_reruns:
            raise ValueError(f"first_look must not exceed max_reruns = {self.max_reruns}")
        return self


class CampaignConfig(Settings):
    """All of a campaign."""

    preset: str
    iterations: int = Field(
        8,
        ge=0,
        description="experiments after experiment 0, the untouched target: in all, or of each start where the campaign "
        "`continues`. The more, the less error each second look may use: name about what a start has time for "
        "(docs/confirmation.md)",
    )
    seed: int = Field(0, ge=0, lt=2**31, description="fixes batches and proposals")
    source: str = Field(
        built_in().source, description="the file that the policy edits, or the folder that holds several of them"
    )
    memory: str = Field("mlruns/memory.duckdb", description="DuckDB file that remembers every experiment")
    tracking: bool = Field(True, description="log to MLflow (mlruns/mlflow.db)")
    keep_weights: bool = Field(
        False, description="keep the submitted weights of every experiment, not only of the best"
    )
    continues: bool = Field(
        False, description="a start goes on with the latest campaign of this preset, unless told to start afresh"
    )
    parallel: int = Field(1, ge=1, le=1024, description="candidates that run side by side, one per GPU or node slot")
    environment: EnvironmentSpec
    target: dict[str, Constant] = Field(
        default_factory=dict, description="constants written into the campaign's own train.py"
    )
    policy: PolicySettings = Field(default_factory=PolicySettings)
    prompt: PromptSettings = Field(default_factory=PromptSettings)
    edit: EditSettings = Field(default_factory=EditSettings)
    reward: RewardSettings = Field(default_factory=RewardSettings)
    stopping: StoppingSettings = Field(default_factory=StoppingSettings)
    stop: StopSettings = Field(default_factory=StopSettings)
    retention: RetentionSettings = Field(default_factory=RetentionSettings)
    nodes: NodeSettings = Field(default_factory=NodeSettings)
    confirm: ConfirmSettings = Field(default_factory=ConfirmSettings)

    def problem(self) -> Description:
        """Return the description of the problem's folder. Raises ProblemError when it does not keep the contract."""
        return read(self.environment.problem)

    def to_json(self) -> dict[str, Any]:
        return self.model_dump(mode="json")

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> CampaignConfig:
        return _validated(data)


def preset_names() -> list[str]:
    return sorted(path.stem for path in PRESETS.glob("*.toml"))


def load_config(preset: str, overrides: Mapping[str, Any] | None = None) -> CampaignConfig:
    """Return a preset with dotted overrides applied, e.g. {"environment.budget_s": 5}.

    `environment.problem` names the folder of another problem than the built-in one: its description then gives the
    environment. Raises ConfigError that names the preset, key or value at fault and what would be right, ProblemError for
    a folder that does not keep the contract.
    """
    path = PRESETS / f"{preset}.toml"
    if not path.is_file():
        raise ConfigError(f"unknown preset {preset!r}; there are: {', '.join(preset_names())}")
    data = tomllib.loads(path.read_text(encoding="utf-8"))
    try:
        frozen = read_preset(data.pop("environment_preset", preset))
    except FrozenEnvError as error:
        raise ConfigError(f"preset {preset!r}: {error}") from error
    data = {"preset": preset, **data, "environment": frozen["environment"], "target": frozen["target"]}
    changes = full_names(overrides or {})
    problem = read(changes.get(PROBLEM, EnvironmentSpec.problem))
    changes[PROBLEM] = shown(problem.folder)
    return override(_described(data, problem), changes)


def full_names(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return overrides under the settings' full names: `problem` stands for `environment.problem`."""
    return {SHORT_NAMES.get(key, key): value for key, value in overrides.items()}


def _described(data: dict[str, Any], problem: Description) -> dict[str, Any]:
    """Fill in what the problem's description says. A preset that was written for the problem knows better."""
    told: dict[str, Any] = {
        "source": problem.source,
        "prompt.agenda": shown(problem.agenda),
        "edit.allowed_imports": problem.imports,
        "reward.scale": problem.gain,
    }
    if not problem.has_curve:
        told["stopping.rule"] = "none"
    told |= problem.campaign
    data = copy.deepcopy(data)
    if not problem.preset_only:
        data["environment"] = {"name": problem.name, **problem.environment}
        data["target"] = dict(problem.target)
    for key, value in told.items():
        group, _, last = key.rpartition(".")
        inside = data.get(group, {}) if group else data
        if not problem.preset_only or last not in inside:
            _set(data, key, value)
    return data


def override(data: dict[str, Any], overrides: Mapping[str, Any]) -> CampaignConfig:
    """Return plain settings with dotted overrides applied. Raises ConfigError as load_config does."""
    data = copy.deepcopy(data)
    for key, value in full_names(overrides).items():
        _set(data, key, value)
    return _validated(data)


def parse_overrides(items: Sequence[str]) -> dict[str, Any]:
    """Read KEY=VALUE words of a command line; values are JSON where they parse as such, else text."""
    overrides: dict[str, Any] = {}
    for item in items:
        key, equals, text = item.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"--set takes KEY=VALUE, got {item!r}")
        try:
            overrides[key.strip()] = json.loads(text)
        except ValueError:
            overrides[key.strip()] = text
    return overrides


def setting_names(model: type[BaseModel] = CampaignConfig, prefix: str = "") -> list[str]:
    """Every dotted setting, for messages and for docs."""
    names = []
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            names += setting_names(kind, f"{prefix}{name}.")
        elif kind is EnvironmentSpec:
            names += [f"environment.{key}" for key in EnvironmentSpec.__dataclass_fields__]
        else:
            names.append(prefix + name)
    return names


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings by their dotted names: {"policy.lora_r": 8, …}."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found


def _set(data: dict[str, Any], key: str, value: Any) -> None:
    known = setting_names()
    if key not in known and not key.startswith("target."):
        close = difflib.get_close_matches(key, known, n=3)
        # A bare last part that is unique is a common slip: budget_s for environment.budget_s.
        close = close or [name for name in known if name.endswith("." + key)]
        hint = f"; did you mean {' or '.join(close)}?" if close else "; see docs/settings.md"
        raise ConfigError(f"unknown setting {key!r}{hint}")
    *path, last = key.split(".")
    for part in path:
        data = data.setdefault(part, {})
    data[last] = value


def _validated(data: dict[str, Any]) -> CampaignConfig:
    try:
        return CampaignConfig.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"setting {where}: {first['msg']}, got {first.get('input')!r}") from error
