"""A frozen model behind an endpoint, against a real local server: its answers, its moods, and its key."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from pydantic import ValidationError

from arl_core.config import EditSettings, load_config
from arl_core.edit import apply_completion, apply_text
from arl_core.errors import EditRejected, PolicyError
from arl_core.policy.endpoint import Endpoint, system_words
from arl_core.policy.proposers import load_proposer
from arl_core.policy.rollout import Rollout
from arl_core.policy.settings import PolicySettings
from frozen_env.description import built_in
from frozen_env.runtime.supervisor import host_environment
from tasks.patch import patch

SOURCE = "import torch\n\nLR = 1\n\n\ndef build_model():\n    return torch.nn.Linear(1, LR)\n"
BLOCK = "Sure!\n```\n<<<<<<< SEARCH\nLR = 1\n=======\nLR = 2\n>>>>>>> REPLACE\n```\n"
DIFF = "```diff\n@@ -9,9 +9,9 @@\n \n-LR = 1\n+LR = 2\n \n```\n"
KEY = "sk-very-secret"


class Fake:
    """A server that gives its scripted answers in turn, then the last one for ever."""

    def __init__(self) -> None:
        self.answers: list[tuple[int, dict[str, str], str]] = []
        self.seen: list[tuple[str, dict[str, str], dict[str, Any]]] = []
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                fake.seen.append((self.path, dict(self.headers), body))
                status, headers, text = fake.answers.pop(0) if len(fake.answers) > 1 else fake.answers[0]
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, *_: object) -> None:
                return None

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self.thread.start()

    def say(self, content: str | None, status: int = 200, finish: str = "stop", **headers: str) -> None:
        choice = {"message": {"role": "assistant", "content": content}, "finish_reason": finish}
        text = json.dumps({"choices": [choice]})
        self.answers.append((status, headers, text))


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[Fake]:
    monkeypatch.setenv("ARL_ENDPOINT_KEY", KEY)
    fake = Fake()
    yield fake
    fake.server.shutdown()
    fake.server.server_close()
    fake.thread.join()


def endpoint(fake: Fake, pauses: list[float] | None = None, **settings: object) -> Endpoint:
    known = {"proposer": "endpoint", "model": "some/model", "endpoint_url": fake.url} | settings
    paused = pauses if pauses is not None else []
    return Endpoint(PolicySettings(**known), sleep=paused.append)  # type: ignore[arg-type]


@pytest.mark.parametrize("answer", [BLOCK, DIFF])
def test_blocks_and_diffs_both_become_the_edit(fake: Fake, answer: str) -> None:
    fake.say(answer)
    rollout = endpoint(fake).propose("the prompt", SOURCE, seed=7)
    assert apply_text(SOURCE, rollout.completion).source == SOURCE.replace("LR = 1", "LR = 2")
    path, headers, body = fake.seen[0]
    assert path == "/v1/chat/completions"
    assert headers["Authorization"] == f"Bearer {KEY}"
    assert (body["model"], body["seed"]) == ("some/model", 7)
    assert body["messages"][1] == {"role": "user", "content": "the prompt"}


def test_a_rehearsal_asks_for_one_word_with_a_proposals_settings(fake: Fake) -> None:
    fake.say("ready")
    asked = endpoint(fake)
    asked.rehearse(SOURCE, seed=7)
    asked.propose("p", SOURCE, seed=7)
    (_, _, rehearsal), (_, _, proposal) = fake.seen
    assert rehearsal | {"messages": None} == proposal | {"messages": None}
    assert "one word" in rehearsal["messages"][1]["content"]
    assert SOURCE not in str(rehearsal)


def test_a_rehearsal_says_what_a_proposal_would_fail_of(fake: Fake) -> None:
    fake.say("no", status=401)
    with pytest.raises(PolicyError, match="ARL_ENDPOINT_KEY"):
        endpoint(fake).rehearse(SOURCE, seed=7)


def test_an_answer_has_room_for_a_diff_whatever_the_policys_own_limit_is(fake: Fake) -> None:
    fake.say(BLOCK)
    endpoint(fake, max_new_tokens=96).propose("p", SOURCE, 0)
    endpoint(fake, endpoint_max_tokens=8000).propose("p", SOURCE, 0)
    assert [body["max_tokens"] for _, _, body in fake.seen] == [2048, 8000]


@pytest.mark.parametrize("content", [BLOCK[:40], None])
def test_an_answer_that_was_cut_off_is_told_in_the_log(
    fake: Fake, content: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    fake.say(BLOCK)
    fake.say(content, finish="length")
    asked = endpoint(fake)
    assert asked.propose("p", SOURCE, 0).completion == BLOCK
    assert caplog.records == []
    assert asked.propose("p", SOURCE, 0).completion == (content or "")
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "cut off after 2048 tokens" in record.message
    assert "raise policy.endpoint_max_tokens" in record.message


def test_what_it_is_told_of_the_form_is_no_edit_that_it_could_copy() -> None:
    words = system_words(built_in())
    assert all(marker in words for marker in ("<<<<<<< SEARCH", "=======", ">>>>>>> REPLACE"))
    for door in (apply_text, apply_completion):
        with pytest.raises(EditRejected) as told:
            door(SOURCE, words)
        assert told.value.code in ("no_hunks", "no_blocks"), "not even a block or a hunk that does not fit"


class Nothing:
    def seen(self, *_: object) -> None:
        return None


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (DIFF, ""),
        ("I would rather not.", "no_hunks"),
        (None, "no_hunks"),
        ("<<<<<<< SEARCH\nLR = 1\n", "malformed_blocks"),
    ],
)
def test_what_it_writes_takes_the_outsiders_door(fake: Fake, answer: str | None, code: str) -> None:
    fake.say(answer)
    rollout = endpoint(fake).propose("p", SOURCE, 0)
    edit = patch.fn(SOURCE, rollout, EditSettings(), Nothing(), "c", built_in())  # type: ignore[arg-type, call-arg]
    assert edit.code == code
    assert edit.runs == (not code)


def test_a_busy_endpoint_is_asked_again_after_the_time_it_wants(fake: Fake) -> None:
    fake.say(None, 429, **{"retry-after": "7"})
    fake.say(None, 503)
    fake.say(BLOCK)
    pauses: list[float] = []
    assert "LR = 2" in endpoint(fake, pauses).propose("p", SOURCE, 0).completion
    assert pauses == [7.0, 14.0]


def test_an_endpoint_that_stays_broken_ends_with_the_remedy(fake: Fake) -> None:
    fake.say(None, 500)
    with pytest.raises(PolicyError, match=r"did not answer in 3 attempts .*endpoint_retries, and resume"):
        endpoint(fake, endpoint_retries=2).propose("p", SOURCE, 0)
    assert len(fake.seen) == 3


@pytest.mark.parametrize(
    ("status", "remedy"),
    [(401, "ARL_ENDPOINT_KEY"), (404, "policy.model"), (400, "endpoint_max_tokens"), (307, "redirects")],
)
def test_a_refusal_is_not_repeated_and_never_shows_the_key(fake: Fake, status: int, remedy: str) -> None:
    fake.answers.append((status, {"location": "http://127.0.0.1:9/"}, f"no: {KEY} is wrong"))
    with pytest.raises(PolicyError) as told:
        endpoint(fake).propose("p", SOURCE, 0)
    assert remedy in str(told.value)
    assert KEY not in str(told.value)
    assert len(fake.seen) == 1


@pytest.mark.parametrize("answer", ["<html>", "[]", '{"choices": []}', "x" * (2 << 20)])
def test_an_answer_that_is_no_completion_is_an_error(fake: Fake, answer: str) -> None:
    fake.answers.append((200, {}, answer))
    with pytest.raises(PolicyError):
        endpoint(fake).propose("p", SOURCE, 0)


def test_nobody_there_is_told_after_all_attempts(fake: Fake) -> None:
    nowhere = {"endpoint_url": "http://127.0.0.1:1/v1", "endpoint_retries": 1}
    with pytest.raises(PolicyError, match="check that it runs"):
        endpoint(fake, **nowhere).propose("p", SOURCE, 0)


def test_candidates_never_inherit_the_key(fake: Fake) -> None:
    assert KEY not in str(host_environment(load_config("embedded").environment))


def test_settings_without_an_address_or_a_model_are_refused() -> None:
    for wrong in ({"model": "m"}, {"endpoint_url": "http://here/v1"}, {"model": "m", "endpoint_url": "file:///etc"}):
        with pytest.raises(ValidationError, match="needs policy"):
            PolicySettings(proposer="endpoint", **wrong)


def test_a_rollout_without_tokens_survives_a_restart(tmp_path) -> None:
    settings = PolicySettings(proposer="random")
    rollout = load_proposer(settings, tmp_path).propose("p", SOURCE, 3)
    again = Rollout.from_bytes(rollout.to_bytes())
    assert (again.completion, again.blocks, again.seed) == (rollout.completion, rollout.blocks, 3)
