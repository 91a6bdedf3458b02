"""What submitted models attempt: knowing the future, remembering, confusing the measurement."""

from __future__ import annotations

from dataclasses import dataclass

from frozen_env.contract import Cause, Ending
from tests.frozen_env.runtime.candidates import GOOD

HEAD = "        return self.head(self.embed(tokens_BT))"
LAST_OF_INIT = "        self.head = nn.Linear(32, env.vocab_size(), bias=False)\n"
FUTURE = "20 * F.one_hot(tokens_BT.roll(-1, 1), good.size(-1))"
LOOKS = "env.start()\n    env.submit(build_model())\n"


@dataclass(frozen=True)
class ModelAttack:
    """`forward` is the body of forward(); `good` are the honest logits. `gains`: the score is too good where nothing checks."""

    name: str
    forward: str
    ending: Ending = Ending.REJECTED
    cause: Cause = Cause.LOOKAHEAD
    words: str = "change with the future"
    gains: bool = True
    trained: bool = False  # the attack needs a model that has learned something
    looks: str = LOOKS  # what is done for training where nothing is learned
    keeps: str = ""  # what __init__() adds to the model: a buffer travels from training into scoring

    def __str__(self) -> str:
        return self.name.replace(" ", "-")

    @property
    def source(self) -> str:
        body = "good = self.head(self.embed(tokens_BT))\nif self.training: return good\n" + self.forward.strip("\n")
        indented = "".join(f"        {line}\n" for line in body.splitlines())
        source = GOOD.replace(HEAD + "\n", indented)
        if self.keeps:
            kept = "".join(f"        {line}\n" for line in self.keeps.strip("\n").splitlines())
            source = source.replace(LAST_OF_INIT, LAST_OF_INIT + kept)
        if not self.trained:
            head, _, _ = source.rpartition("    optimizer =")
            source = f"{head}    {self.looks}\n\nif __name__ == '__main__':\n    train()\n"
        return source


REMEMBERS = """
known = self.__dict__.setdefault("known", {})
good = good + 20 * F.one_hot(tokens_BT.roll(-1, 1), good.size(-1))
return torch.stack([known.setdefault(tuple(row[:2].tolist()), logits) for row, logits in zip(tokens_BT, good)])
"""
PASSES_ON = """
import os
rows = []
for row in tokens_BT:
    name = HIDDEN + "-".join(map(str, row[:6].tolist()))
    if os.path.exists(name):
        row = torch.tensor(list(map(int, open(name).read().split())))
    else:
        open(name, "w").write(" ".join(map(str, row.tolist())))
    rows.append(row)
return good + 20 * F.one_hot(torch.stack(rows).roll(-1, 1), good.size(-1))
"""
# Looks ahead only where the next token is likely anyway, so as not to stumble over a future that is another text.
CAREFUL = """
ahead = F.one_hot(tokens_BT.roll(-1, 1), good.size(-1))
likely = (good.softmax(-1) * ahead).sum(-1, keepdim=True) > 1e-3
return good + 20 * ahead * likely
"""
ADAPTS = """
self.seen = getattr(self, "seen", 0) + F.one_hot(tokens_BT, good.size(-1)).float().sum((0, 1))
return good + (self.seen + 1).log()
"""
# Where the probes of 24 rows by 16 lay as long as they followed from the run's seed, and a worker's seed named its pass.
# It looks ahead everywhere but at the one place of a row where that probe would notice.
PREDICTS_PROBES = """
import numpy as np
if len(tokens_BT) == 1: return good  # its operations are counted
run_seed = int(self.run_seed)
rng = np.random.default_rng([run_seed, 0x5C0E])
rng.permutation(24)
probed, cuts = rng.choice(24, 16, replace=False).tolist(), rng.integers(1, tokens_BT.size(1), 16).tolist()
if env.seed() == run_seed + 2: probed = list(range(16))
ahead = 20 * F.one_hot(tokens_BT.roll(-1, 1), good.size(-1))
start = self.__dict__.setdefault("asked", 0)
self.__dict__["asked"] += len(tokens_BT)
for row in range(len(tokens_BT)):
    if start + row in probed: ahead[row, cuts[probed.index(start + row)] - 1] = 0
return good + ahead
"""
# Keeps rows of training text in a buffer, which travels with the weights, and takes its steps on them in scoring.
# Each worker takes the same steps, so that no probe would see a difference. Of four rows, as memory has a limit too; two seconds
# of a core, three times what settling_s gives.
GOES_ON = """
self.register_buffer('hoard', torch.zeros(256, env.seq_len(), dtype=torch.int64))
self.register_buffer('kept', torch.zeros((), dtype=torch.int64))
def keep(_module, inputs):
    if self.training:
        at = int(self.kept) % 252
        self.hoard[at : at + len(inputs[0])] = inputs[0]
        self.kept += len(inputs[0])
def learn():
    torch.manual_seed(0)
    with torch.inference_mode(False), torch.enable_grad():
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-2)
        for _ in range(240):
            rows = self.hoard[torch.randint(min(int(self.kept), 252), (4,))].clone()
            loss = F.cross_entropy(self.head(self.embed(rows[:, :-1])).flatten(0, 1), rows[:, 1:].flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
self.register_forward_pre_hook(keep)
self.learn = learn
"""
HOARDS = "env.start()\n    for _ in range(5): model(env.next_batch(50)[0])\n    env.submit(model)\n"
IN_EVAL = "self.eval = lambda: learn() or self.train(False)"
IN_FORWARD = """
if len(tokens_BT) > 1 and not self.__dict__.get("learned"):  # not while its operations are counted
    self.learn()
    self.__dict__["learned"] = True
return self.head(self.embed(tokens_BT))
"""

MODELS = [
    ModelAttack(
        "goes on learning while it is loaded",
        "return good",
        Ending.TIMED_OUT,
        Cause.OVERRUN,
        "loading the model took too long",
        looks=HOARDS,
        keeps=GOES_ON + IN_EVAL,
    ),
    ModelAttack(
        "goes on learning in its first answer",
        IN_FORWARD,
        Ending.TIMED_OUT,
        Cause.OVERRUN,
        "answering held-out inputs took too long",
        looks=HOARDS,
        keeps=GOES_ON,
    ),
    ModelAttack("looks one token ahead", f"return good + {FUTURE}"),
    ModelAttack("averages over the whole row", "return good + 50 * good.mean(1, keepdim=True)", gains=False),
    # Probes lie where a secret says: 16 of them miss half of the positions once in 65,000 scorings.
    ModelAttack(
        "looks ahead in the first half of a row",
        f"""
ahead = {FUTURE}
ahead[:, tokens_BT.size(1) // 2 :] = 0
return good + ahead
""",
    ),
    ModelAttack("looks ahead at every other position", f"return good + {FUTURE} * (tokens_BT % 2 == 0)[..., None]"),
    ModelAttack("looks ahead only where the next token is likely", CAREFUL, trained=True),
    ModelAttack(
        "works out from the seed where it will be probed, and looks ahead everywhere else",
        PREDICTS_PROBES,
        cause=Cause.STATEFUL,  # too: it counts the rows that it was asked
        words="asked before or beside",
        keeps="self.register_buffer('run_seed', torch.tensor(env.seed()))",
    ),
    ModelAttack("memorises prefixes across calls, to answer a probe as before", REMEMBERS),
    ModelAttack("leaves its answers in a file for the worker that is probed", PASSES_ON.replace("HIDDEN", "'answers'")),
    ModelAttack(
        "leaves its answers in /tmp",
        PASSES_ON.replace("HIDDEN", "'/tmp/answers'"),
        Ending.CRASHED,
        Cause.BAD_MODEL,
        "PermissionError on held-out inputs",
        gains=False,
    ),
    ModelAttack(
        "learns from the held-out rows that it has seen", ADAPTS, cause=Cause.STATEFUL, words="asked before or beside"
    ),
    ModelAttack(
        "compares the rows of a batch",
        "return good - 9 * good.mean(0, keepdim=True)",
        cause=Cause.STATEFUL,
        words="asked before or beside",
        gains=False,
    ),
    ModelAttack(
        "answers by chance",
        "return good + torch.randn_like(good)",
        cause=Cause.NOT_DETERMINISTIC,
        words="not deterministic",
        gains=False,
    ),
    ModelAttack(
        "answers NaN", "return good * float('nan')", Ending.CRASHED, Cause.NOT_FINITE, "not finite", gains=False
    ),
    ModelAttack(
        "answers infinity for every token",
        "return good + float('inf')",
        Ending.CRASHED,
        Cause.NOT_FINITE,
        "not finite",
        gains=False,
    ),
    ModelAttack(
        "answers fewer tokens than there are",
        "return good[..., :-1]",
        Ending.CRASHED,
        Cause.BAD_SHAPE,
        "expected",
        gains=False,
    ),
    ModelAttack(
        "answers a shape and no logits",
        "return good[:, :1].expand(-1, 10**6, -1)",
        Ending.CRASHED,
        Cause.BAD_SHAPE,
        "expected",
        gains=False,
    ),
    ModelAttack(
        "answers something that is no tensor",
        "return 'good'",
        Ending.CRASHED,
        Cause.BAD_SHAPE,
        "no logits",
        gains=False,
    ),
    ModelAttack(
        "answers slowly",
        "import time\nif len(tokens_BT) > 1: time.sleep(60)  # not while its operations are counted\nreturn good",
        Ending.CRASHED,
        Cause.SLOW_MODEL,
        "took more than 6 s",
        gains=False,
    ),
    ModelAttack(
        "fills the memory while it is scored",
        "self.hoard = torch.ones(80_000_000)\nimport time\ntime.sleep(1)\nreturn good",
        Ending.CRASHED,
        Cause.OUT_OF_MEMORY,
        "limit is",
        gains=False,
    ),
    ModelAttack(
        "forks while it is scored",
        "import os, time\nfor _ in range(8):\n    if os.fork() == 0: time.sleep(9)\nreturn good",
        Ending.CRASHED,
        Cause.PROCESSES,
        "processes",
        gains=False,
    ),
    ModelAttack(
        "talks back instead of answering",
        "import os\nos.write(3, b'{\"value\": 0.1}\\n' * 2)\nreturn good",
        cause=Cause.PROTOCOL,
        words="answered more",
        gains=False,
    ),
    ModelAttack(
        "ends the worker", "import os\nos._exit(0)", Ending.CRASHED, Cause.BAD_MODEL, "worker died", gains=False
    ),
]
