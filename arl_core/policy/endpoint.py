"""A frozen model behind an OpenAI-compatible address as the proposer: no reinforcement learning, for comparison.

Speaks POST {policy.endpoint_url}/chat/completions, as vLLM, llama.cpp, Ollama and the hosted services do. The key comes
from the environment variable that policy.endpoint_key_env names; it is sent to that address only (no redirects), never
written or shown, and candidates start with an environment that does not hold it. Answers are untrusted text and take the
outsider's door (arl_core.edit.apply_text).
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
from collections.abc import Callable

import httpx

from arl_core.errors import PolicyError
from arl_core.policy.proposers import Choose, Frozen, in_order
from arl_core.policy.rollout import Rollout
from arl_core.policy.settings import PolicySettings
from arl_core.records import one_line
from frozen_env.description import Description, built_in

log = logging.getLogger(__name__)

# No example of an edit, and no line that is a marker alone: small models copy what they are shown.
SYSTEM = """You improve {what}: {about}.
Answer with exactly one small edit as SEARCH/REPLACE blocks and nothing else. A block begins with the line `<<<<<<< SEARCH`.
Below it stand lines copied from the file, with their indentation and enough of them to be unique; then the line `=======`;
then what replaces them; then the line `>>>>>>> REPLACE`. Each of the three markers stands on a line of its own, without
backquotes.
A unified diff with a/{path} and b/{path} headers is accepted too. Change nothing else; import nothing new{imports}{keep}."""

BUSY = (408, 409, 425, 429, 500, 502, 503, 504)
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0
ANSWER_BYTES = 2**20


class Endpoint(Frozen):
    """One address and one model. `sleep` is there for tests."""

    def __init__(
        self,
        settings: PolicySettings,
        problem: Description | None = None,
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.settings, self._sleep = settings, sleep
        self._system = system_words(problem or built_in())
        key = os.environ.get(settings.endpoint_key_env, "")
        self._secret = key
        self._client = httpx.Client(
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=settings.endpoint_timeout_s,
            follow_redirects=False,  # a key goes to the address that the user named
            transport=transport,
        )

    def propose(self, prompt: str, source: str, seed: int, choose: Choose = in_order) -> Rollout:
        """Ask for one edit. The seed is sent along; whether it fixes the answer is the endpoint's business.

        Raises PolicyError that names the remedy when the endpoint refuses, or stays busy, broken or silent to the end.
        """
        began_s = time.monotonic()
        text = self._ask(self._body(self._system, prompt, seed))
        return Rollout.foreign(prompt, text, seed, seconds=time.monotonic() - began_s)

    def rehearse(self, source: str, seed: int) -> None:
        """Ask for one word, with the settings of a proposal: a wrong key, address or model shows before anything is trained.

        Raises PolicyError as propose() does.
        """
        self._ask(self._body("This is a rehearsal.", "Answer with one word: ready.", seed))

    def _body(self, system: str, prompt: str, seed: int) -> dict[str, object]:
        return {
            "model": self.settings.model,
            "messages": [{"role": "system", "content": system}, {"role": "user", "content": prompt}],
            "temperature": self.settings.temperature,
            "max_tokens": self.settings.endpoint_max_tokens,
            "seed": seed,
        }

    def _ask(self, body: dict[str, object]) -> str:
        address = self.settings.endpoint_url.rstrip("/") + "/chat/completions"
        pause_s, why = FIRST_PAUSE_S, ""
        for attempt in range(self.settings.endpoint_retries + 1):
            if attempt:
                self._sleep(min(pause_s, LONGEST_PAUSE_S))
                pause_s *= 2
            try:
                status, wanted_s, answer = self._post(address, body)
            except httpx.HTTPError as error:
                why = f"{type(error).__name__}: {error}"
                continue
            if status == 200:
                return self._content(answer)
            why = f"status {status}: {answer}"
            if status not in BUSY:
                raise PolicyError(
                    f"the endpoint {address} refused: {self._safe(why)}; {_remedy(status, self.settings)}"
                )
            pause_s = max(pause_s, wanted_s)
        raise PolicyError(
            f"the endpoint {address} did not answer in {self.settings.endpoint_retries + 1} attempts ({self._safe(why)}); "
            "check that it runs, or raise policy.endpoint_timeout_s or policy.endpoint_retries, and resume"
        )

    def _post(self, address: str, body: dict[str, object]) -> tuple[int, float, str]:
        """(status, seconds that the endpoint asks to wait, answer's text up to ANSWER_BYTES)."""
        with self._client.stream("POST", address, json=body) as response:
            data = b""
            for chunk in response.iter_bytes():
                data += chunk
                if len(data) > ANSWER_BYTES:
                    raise PolicyError(
                        f"the endpoint {address} answers with more than {ANSWER_BYTES >> 20} MiB; is it one?"
                    )
            wanted_s = 0.0
            with contextlib.suppress(ValueError):  # a date is not worth parsing
                wanted_s = float(response.headers.get("retry-after", 0))
            return response.status_code, wanted_s, data.decode("utf-8", "replace")

    def _content(self, answer: str) -> str:
        try:
            choice = json.loads(answer)["choices"][0]
            content = choice["message"]["content"]
        except (ValueError, LookupError, TypeError) as error:
            raise PolicyError(
                f"the endpoint's answer is not a chat completion ({self._safe(answer)}); "
                "does policy.endpoint_url end in /v1?"
            ) from error
        if choice.get("finish_reason") == "length":
            log.warning(
                "the endpoint's answer was cut off after %d tokens: what there is of the edit may not apply; "
                "raise policy.endpoint_max_tokens",
                self.settings.endpoint_max_tokens,
            )
        return content if isinstance(content, str) else ""  # a refusal may be null: an edit that does not apply

    def _safe(self, text: str) -> str:
        """Some services quote the key in their refusals."""
        return one_line(text.replace(self._secret, "…") if self._secret else text, 200)


def system_words(problem: Description) -> str:
    """Return what a foreign model is told of its task, from the problem's description."""
    several = len(problem.files) > 1
    names = [f"{problem.folder.name}/{name}" for name in problem.files]
    what = f"these Python files, {', '.join(names)}" if several else f"one Python file, {names[0]}"
    imports = f" but {', '.join(problem.imports)}" if problem.imports else ""
    keep = f"; keep {', '.join(f'{name}()' for name in problem.keep)}" if problem.keep else ""
    return SYSTEM.format(what=what, about=problem.about.rstrip("."), path=names[0], imports=imports, keep=keep)


def _remedy(status: int, settings: PolicySettings) -> str:
    if status in (401, 403):
        return f"put a valid key into the environment variable {settings.endpoint_key_env}"
    if status == 404:
        return f"check policy.endpoint_url (it ends in /v1) and policy.model ({settings.model!r})"
    if status in (301, 302, 307, 308):
        return "set policy.endpoint_url to the address that it redirects to"
    return "check policy.model, policy.endpoint_max_tokens and policy.prompt_tokens"
