"""What a session restores, and what it refuses to begin."""

from __future__ import annotations

import shutil
from types import SimpleNamespace

import pytest
from prefect import flow, task
from prefect.context import FlowRunContext
from prefect.settings import PREFECT_API_URL, temporary_settings

from arl_core.config import load_config
from arl_core.errors import ConfigError, PolicyError
from arl_core.memory import Memory
from arl_core.patch import Patch
from arl_core.policy.policy import Policy
from arl_core.policy.rollout import Rollout
from arl_core.records import Campaign, Experiment, State
from flows import opening, retention
from flows.costs import Costs
from flows.iteration import order
from flows.session import Session
from flows.unsettled import Landed, Proposal
from frozen_env.contract import Ending, RunResult, Score
from frozen_env.fetch import data_dir
from tasks import ONCE, forget_results


class Said(list):
    """A display that keeps what it was told."""

    def say(self, text: str) -> None:
        self.append(text)

    def phase(self, text: str) -> None: ...


def session(folder, **settings) -> Session:
    config = load_config("embedded", {"policy.model": "tiny-random", "tracking": False, **settings})
    memory = Memory(folder / "memory.duckdb")
    campaign = Campaign("c", "embedded", config.to_json(), "digest", 0, "2026-11-24T00:00:00+00:00", "text")
    if not memory.campaigns():
        memory.create_campaign(campaign)
    place = folder / "campaigns" / "c"
    place.mkdir(parents=True, exist_ok=True)
    return Session(config, campaign, memory, SimpleNamespace(count=1), Said(), place)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A campaign with two checkpoints, whose value heads differ, named in its last state."""
    folder = tmp_path_factory.mktemp("trained")
    one = session(folder)
    policy = Policy.load(one.config.policy, data_dir())
    for step in (1, 2):
        for parameter in policy.network.head.parameters():
            parameter.data.fill_(float(step))
        name = f"step_{step:06d}"
        one.add_checkpoint(name, policy.save(one.policy_folder / name), step)
    one.memory.commit_iteration(Experiment("c", 0, "kept", value=1.0, source="x"), one.state())
    return folder


def head_of(one: Session) -> float:
    return float(next(iter(one.policy().network.head.parameters())).detach().flatten()[0])


def copied(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "copy")
    return tmp_path / "copy"


def test_a_campaign_goes_on_from_its_last_checkpoint(trained, tmp_path):
    one = session(copied(trained, tmp_path))
    assert (head_of(one), one.policy_step, list(one.display)) == (2.0, 2, [])


@pytest.mark.parametrize("harm", ["torn", "altered", "gone"])
def test_a_torn_checkpoint_falls_back_to_the_one_before_with_a_warning(trained, tmp_path, harm):
    one = session(copied(trained, tmp_path))
    file = one.policy_folder / "step_000002" / "policy.safetensors"
    whole = file.read_bytes()
    if harm == "gone":
        shutil.rmtree(file.parent)
    else:
        file.write_bytes(whole[: len(whole) // 2] if harm == "torn" else whole[:-1] + bytes([whole[-1] ^ 1]))
    assert (head_of(one), one.policy_step) == (1.0, 1)
    assert len(one.display) == 1
    assert one.display[0].startswith("warning: policy checkpoint")
    assert "falling back" in one.display[0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"policy.lora_r": 16}, "another model or adapter"), ({"policy.proposer": "random"}, "checkpoint of a policy")],
)
def test_a_checkpoint_that_does_not_fit_the_settings_is_an_error_and_is_left_alone(
    trained, tmp_path, settings, message
):
    one = session(copied(trained, tmp_path), **settings)
    with pytest.raises(PolicyError, match=message):
        one.policy()
    assert one.policy_step == 2
    assert sorted(path.name for path in one.policy_folder.iterdir()) == ["step_000001", "step_000002"]


def test_with_no_checkpoint_left_a_young_policy_starts_again_and_says_so(trained, tmp_path):
    one = session(copied(trained, tmp_path))
    shutil.rmtree(one.policy_folder)
    assert one.policy() is not None
    assert one.policy_step == 0
    assert "starts again from its warm start" in one.display[-1]


def test_with_no_checkpoint_left_an_old_policy_is_not_thrown_away_silently(trained, tmp_path):
    one = session(copied(trained, tmp_path))
    values = {"policy_step": 9, "checkpoints": [["step_000009", "d", 9]]}
    one.memory.commit_iteration(Experiment("c", 1, "kept", value=1.0, source="x"), State(values))
    with pytest.raises(PolicyError, match=r"restore .* from a backup"):
        session(tmp_path / "copy").policy()


SOURCE = "WIDTH = 64  # of the model\nDEPTH = 2\n"


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"policy.model": "someone/a-model"}, ["loading", "rehearse", "room"]),
        ({"policy.model": "someone/a-model", "policy.proposer": "random"}, []),
        ({"policy.model": "embedded"}, []),
        (
            {"policy.model": "m", "policy.proposer": "endpoint", "policy.endpoint_url": "http://127.0.0.1:9/v1"},
            ["loading", "rehearse", "room"],
        ),
    ],
    ids=["hub", "random", "embedded", "endpoint"],
)
def test_a_policy_from_elsewhere_answers_once_before_anything_is_trained(tmp_path, monkeypatch, settings, told):
    from arl_core.policy import proposers

    heard: list[str] = []
    policy = SimpleNamespace(
        rehearse=lambda source, seed: heard.append("rehearse"), make_room=lambda: heard.append("room")
    )
    monkeypatch.setattr(proposers, "load_proposer", lambda *_: heard.append("loading") or policy)
    session(tmp_path, **settings).rehearse(SOURCE)
    assert heard == told


def test_a_policy_that_cannot_be_had_ends_a_campaign_before_its_first_run(tmp_path):
    (tmp_path / "no_weights").mkdir()
    with pytest.raises(PolicyError, match=r"cannot load the policy '.*no_weights'"):
        session(tmp_path, **{"policy.model": str(tmp_path / "no_weights")}).rehearse(SOURCE)


@pytest.mark.parametrize(
    ("source", "settings", "words"),
    [
        ("x = 1\n" * 12_000, {}, r"it has 70 KB, 64 are allowed; raise edit.max_source_kb"),
        ("x = 1\n" * 12_000, {"edit.max_source_kb": 80}, None),
        (f"x = '{'a' * 1000}'\n", {}, r"line 1 of it has 1006 characters, 1000 are allowed; mend the line"),
        ("x = 1\n\x0c\ny = 2\n", {}, r"line 2 of it holds the character '\\x0c'; mend the line"),
    ],
)
def test_a_target_of_which_every_edit_would_be_refused_is_refused_itself(tmp_path, source, settings, words):
    (tmp_path / "train.py").write_text(source)
    config = load_config("embedded", {"source": str(tmp_path / "train.py"), **settings})
    config = config.model_copy(update={"target": {}})
    if words is None:
        assert opening.read_source(config) == source
        return
    with pytest.raises(ConfigError, match=r"every edit of .*train.py would be refused: " + words):
        opening.read_source(config)


def test_no_candidate_starts_on_a_full_disk(tmp_path, monkeypatch):
    one = session(tmp_path)
    usage = shutil.disk_usage(tmp_path)._replace(free=10 * 2**20)
    monkeypatch.setattr("shutil.disk_usage", lambda _path: usage)
    with pytest.raises(ConfigError, match="only 10 MiB free"):
        order(one, "x = 1", 1, Costs(None))


def test_experiments_that_a_killed_campaign_left_out_come_first(tmp_path):
    one = session(tmp_path)
    one.last_index = 6
    for index in (0, 1, 4):
        one.memory.commit_iteration(Experiment("c", index, "discarded", value=1.0, source="x"), State())
    assert list(one.indices()) == [2, 3, 5, 6]


def test_a_run_that_waits_for_its_second_look_survives_a_kill_and_is_not_proposed_again(tmp_path):
    one = session(tmp_path)
    one.last_index = 6
    one.memory.commit_iteration(Experiment("c", 0, "kept", value=1.0, source="x"), State())
    rollout = Rollout.foreign("prompt", "completion", 7)
    one.pending = [(rollout, 0.25)]
    result = RunResult(Ending.FINISHED, score=Score("val_bpb", 0.9, "lower", 1, 3, 0.1, 0.1, 0.0))
    for index in (2, 3):
        one.keep(Landed(Proposal(index, 0, 1.0, rollout, Patch(f"y = {index}"), 0, Costs(None)), result))
    again = session(tmp_path)
    again.last_index = 6
    assert {index: landed.result for index, landed in again.landed.items()} == {2: result, 3: result}
    assert [reward for _, reward in again.pending] == [0.25]
    assert list(again.indices()) == [1, 4, 5, 6]
    state = again.memory.state("c")
    assert state is not None
    assert state.index == 0, "the last experiment that was committed"


def test_old_folders_go_and_the_best_stay(tmp_path):
    one = session(tmp_path, **{"retention.recent": 5, "retention.best": 2, "retention.weights": 1})
    values = {0: 5.0, 1: 1.0, 2: 4.0, 3: 0.5, 4: 3.0}
    for index in range(30):
        kept = "kept" if index in (1, 3) else "discarded"
        given = Experiment("c", index, kept, value=values.get(index, 9.0 + index), source="x")
        one.memory.commit_iteration(given, State())
        (one.place(index) / "submission").mkdir(parents=True)
        retention.retire(one, index)
    left = sorted(int(path.name[-5:]) for path in one.folder.iterdir())
    assert left == [1, 3, 25, 26, 27, 28, 29]
    weights = sorted(int(path.parent.name[-5:]) for path in one.folder.glob("*/submission"))
    assert weights == [3, 29], "of the best, and of the one just committed"


def test_a_candidate_that_still_runs_keeps_its_folder_and_what_it_submitted(tmp_path):
    one = session(tmp_path, **{"retention.recent": 1, "retention.best": 1, "parallel": 4})
    for index in (1, 3, 4):  # committed later than 5, or not at all yet
        (one.place(index) / "submission").mkdir(parents=True)
    for index in (0, 2, 5):
        one.memory.commit_iteration(Experiment("c", index, "discarded", value=1.0, source="x"), State())
        retention.retire(one, index)
    (one.place(7) / "submission").mkdir(parents=True)
    retention.retire(one, 5)
    assert sorted(int(path.parent.name[-5:]) for path in one.folder.glob("*/submission")) == [1, 3, 4, 7]


def test_the_incumbents_weights_stay_though_lucky_single_runs_look_better(tmp_path):
    one = session(tmp_path, **{"retention.recent": 2, "retention.best": 1, "retention.weights": 1})
    promoted = {"confirmations": 3, "extra": {"confirmation": {"promotion": 1}}}
    for index in range(6):
        known = {"confirmed_value": 2.0, **promoted} if index == 0 else {}
        status = "discarded" if index else "kept"
        given = Experiment("c", index, status, value=1.0 + index, source="x", **known)
        one.memory.commit_iteration(given, State())
        (one.place(index) / "submission").mkdir(parents=True)
        retention.retire(one, index)
    weights = sorted(int(path.parent.name[-5:]) for path in one.folder.glob("*/submission"))
    assert weights == [0, 5], "of the incumbent, and of the one just committed"


def test_all_weights_stay_when_asked_for_though_old_folders_go(tmp_path):
    one = session(tmp_path, **{"retention.recent": 1, "retention.best": 1, "keep_weights": True})
    for index in range(4):
        one.memory.commit_iteration(Experiment("c", index, "discarded", value=1.0, source="x"), State())
        (one.place(index) / "submission").mkdir(parents=True)
        (one.place(index) / "candidate.log").write_text("words")
        retention.retire(one, index)
    assert len(list(one.folder.glob("*/submission"))) == 4
    logs = sorted(int(path.parent.name[-5:]) for path in one.folder.glob("*/candidate.log"))
    assert logs == [0, 3], "of the best, and of the latest"


def test_what_is_made_up_for_in_mlflow_is_bounded_by_the_same_rule(tmp_path):
    one = session(tmp_path, **{"retention.recent": 2, "retention.best": 1})
    for index in range(6):
        value = 1.0 if index == 1 else 2.0
        one.memory.commit_iteration(Experiment("c", index, "discarded", value=value, source="x"), State())
    one.place(2).mkdir()
    assert [index for index in range(6) if retention.is_retired(one, index)] == [0, 3]


def test_folders_stay_while_mlflow_is_away(tmp_path, monkeypatch):
    one = session(tmp_path, **{"retention.recent": 1, "retention.best": 1, "tracking": True})
    for index in range(4):
        one.memory.commit_iteration(Experiment("c", index, "discarded", value=1.0 + index, source="x"), State())
        one.place(index).mkdir()
    tried = []
    monkeypatch.setattr(retention, "drop_artifacts", lambda _campaign, index, _folder: tried.append(index))
    assert retention.retire(one, 3) == []
    assert tried == [1], "each try waits for seconds: one an iteration is enough"
    monkeypatch.setattr(retention, "drop_artifacts", lambda *_: True)
    assert retention.retire(one, 3) == [1, 2]
    assert sorted(path.name for path in one.folder.iterdir()) == ["experiment_00000", "experiment_00003"]


def test_forgetting_outside_a_flow_does_nothing():
    forget_results()


def test_a_flow_keeps_nothing_of_tasks_that_are_forgotten(server):
    @task(**ONCE)
    def answer() -> list[int]:
        return [1]

    @flow
    def asks() -> list[tuple[int, int]]:
        held, sizes = [], []
        for forgets in (False, True):
            held.append(answer())  # Prefect lets go of a result that nobody holds
            if forgets:
                forget_results()
            context = FlowRunContext.get()
            assert context is not None
            sizes.append((len(context.run_results), len(context.task_run_assets)))
        return sizes

    with temporary_settings({PREFECT_API_URL: server.url}):
        assert asks() == [(1, 1), (0, 0)]
