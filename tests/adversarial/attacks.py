"""What hostile candidates attempt, one promise each. A table: name, source, how it must end.

An attack that reaches its aim says SUCCEEDED; one that is refused says so with the system's own words. Each is run twice:
where everything is on, and where everything is off (a host without sandbox and with wide limits), where it must succeed.
PATHS in capitals are filled in by the tests: DATA, REPO.
"""

from __future__ import annotations

from dataclasses import dataclass

from frozen_env.contract import Cause, Ending
from tests.frozen_env.runtime.candidates import with_training

SUCCEEDED = "SUCCEEDED"


@dataclass(frozen=True)
class Attack:
    """`words` are expected in the one-line reason; `unguarded` in "ending cause reason" where every defence is off."""

    name: str
    source: str
    ending: Ending = Ending.CRASHED
    cause: Cause = Cause.EXCEPTION
    words: str = "refused"
    unguarded: str = SUCCEEDED

    def __str__(self) -> str:
        return self.name.replace(" ", "-")


def tries(code: str) -> str:
    """A candidate that tries `code` and tells how it went."""
    body = "\n".join(f"    {line}" for line in code.strip("\n").splitlines())
    return with_training(
        f"""
import ctypes, gc, glob, mmap, os, signal, socket, sys, threading, time
try:
{body}
except (OSError, AssertionError) as error:
    raise SystemExit(f"refused: {{error}}")
raise SystemExit("{SUCCEEDED}")
"""
    )


def makes_bomb(code: str) -> str:
    """A candidate that takes too much of something and holds it until it is seen."""
    return tries(f"{code}\ntime.sleep(1.5)")


CALL = "libc = ctypes.CDLL(None, use_errno=True)\ndef done(result):\n    assert result == 0, os.strerror(ctypes.get_errno())\n"

# --- reading what it must not know --------------------------------------------------------------------------------------
READING = [
    Attack(
        "reads the validation split by its path",
        tries("open(glob.glob('DATA/problem/*/validation.npy')[0])"),
        words="Error",
    ),
    Attack("lists the data folder to guess a name", tries("os.listdir('DATA')")),
    Attack("reads a guessed cache", tries("open('DATA/problem/kjv-2048/validation.npy', 'rb').read(8)")),
    Attack(
        "reads the text that the corpus was made from",
        tries("os.listdir('DATA/text') or open(glob.glob('DATA/**/kjv*')[0])"),
    ),
    Attack("reads the policy's weights", tries("os.listdir('DATA/policy')")),
    Attack("reads the host's memory in /proc", tries("open(f'/proc/{os.getppid()}/mem', 'rb')")),
    Attack(
        "reads which files the host has mapped",
        tries("assert 'train.npy' in open(f'/proc/{os.getppid()}/maps').read()"),
    ),
    Attack("reads the host's command line", tries("assert 'DATA' in open(f'/proc/{os.getppid()}/cmdline').read()")),
    Attack(
        "reopens the host's open files",
        tries("for name in os.listdir(f'/proc/{os.getppid()}/fd'): os.readlink(f'/proc/{os.getppid()}/fd/{name}')"),
    ),
    Attack("reads the supervisor's sources", tries("open('REPO/frozen_env/runtime/scoring.py').read()")),
    Attack("reads the campaign's memory", tries("os.listdir('REPO/mlruns')")),
    Attack("follows a symlink out of its folder", tries("os.symlink('/etc/hostname', 'link')\nopen('link').read()")),
    Attack("reads the list of accounts", tries("open('/etc/passwd').read()")),
    Attack("runs another program", tries("os.execv('/bin/sh', ['sh', '-c', 'echo SUCCEEDED; exit 1'])")),
]

# --- writing and changing what is not its own ---------------------------------------------------------------------------
WRITING = [
    Attack("overwrites frozen_env on disk", tries("open('REPO/frozen_env/spec.py', 'a')")),
    Attack(
        "plants a module for the next run",
        tries("name = os.path.dirname(torch.__file__) + '/planted.py'\nopen(name, 'w')\nos.remove(name)"),
    ),
    Attack("changes its own source", tries("open(__file__, 'a')")),
    Attack(
        "leaves a file in /tmp", tries("open('/tmp/left-by-a-candidate', 'w')\nos.remove('/tmp/left-by-a-candidate')")
    ),
    Attack("leaves a file in shared memory", tries("open('/dev/shm/left', 'w')\nos.remove('/dev/shm/left')")),
    Attack(
        "locks others out of a file that it may read",
        tries("os.chmod(torch.__file__, os.stat(torch.__file__).st_mode & 0o777)"),
    ),
    Attack("changes the mode of an open file", tries("os.fchmod(os.open(torch.__file__, os.O_RDONLY), 0o644)")),
    Attack("gives a file away", tries("os.chown(torch.__file__, os.getuid(), -1)")),
    Attack("dates a file back", tries("os.utime(torch.__file__)")),
    Attack(
        "marks a file",
        tries("os.setxattr(torch.__file__, 'user.seen', b'1')\nos.removexattr(torch.__file__, 'user.seen')"),
    ),
    Attack("watches what others read", tries(CALL + "fd = libc.inotify_init()\nassert fd > 0, 'no'")),
]

# --- network ------------------------------------------------------------------------------------------------------------
NETWORK = [
    Attack("opens a TCP socket", tries("socket.socket(socket.AF_INET, socket.SOCK_STREAM)")),
    Attack("opens a TCP socket over IPv6", tries("socket.socket(socket.AF_INET6, socket.SOCK_STREAM)")),
    Attack("opens a UDP socket", tries("socket.socket(socket.AF_INET, socket.SOCK_DGRAM)")),
    Attack("opens a unix socket", tries("socket.socket(socket.AF_UNIX).bind('here')")),
    Attack("opens an abstract socket", tries("socket.socket(socket.AF_UNIX).bind(chr(0) + 'arl-test')")),
    Attack(
        "sends a datagram to a path",
        tries(
            """
one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
try:
    box = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    box.bind('box')
except OSError:
    pass  # a listener of its own is refused; others' need not be
one.sendto(b'to whom it may concern', 'box')
"""
        ),
        words="refused: [Errno 1]",  # not: no such file
    ),
    Attack("listens to the kernel", tries("socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)")),
    Attack("hands an open file to the host", tries("a, b = socket.socketpair()\nsocket.send_fds(a, [b'x'], [0])")),
]

# --- other processes ----------------------------------------------------------------------------------------------------
PRLIMIT = "import resource\nresource.prlimit(os.getppid(), resource.RLIMIT_CORE, (0, 0))"
OTHERS = [
    Attack("kills its parent", tries("os.kill(os.getppid(), 0)")),  # signal 0 asks for the same permission
    Attack("stops its parent through a descriptor", tries("signal.pidfd_send_signal(os.pidfd_open(os.getppid()), 0)")),
    Attack("sets its parent's limits", tries(PRLIMIT)),
    Attack(
        "slows its parent down",
        tries("os.setpriority(os.PRIO_PROCESS, os.getppid(), os.getpriority(os.PRIO_PROCESS, 0))"),
    ),
    Attack(
        "cuts the memory that it shares with its parent",
        tries("os.truncate(4, 0)"),
        words="not permitted",
        unguarded="not permitted",  # the memory itself is sealed
    ),
    Attack("moves its parent to another core", tries("os.sched_setaffinity(os.getppid(), os.sched_getaffinity(0))")),
    Attack(
        "debugs its parent",
        tries(CALL + "done(libc.ptrace(0x4206, os.getppid(), 0, 0))\nlibc.ptrace(17, os.getppid(), 0, 0)"),
    ),
    Attack(
        "reads its parent's memory by a system call",
        tries(CALL + "done(min(0, libc.process_vm_readv(os.getppid(), None, 0, None, 0, 0)))"),
    ),
    Attack("outlives its parent's death", tries(CALL + "done(libc.prctl(1, 0, 0, 0, 0))")),
    Attack("does not let its user look into it", tries(CALL + "done(libc.prctl(4, 0, 0, 0, 0))")),
    Attack("leaves for a namespace of its own", tries(CALL + "done(libc.unshare(0x04000000))")),
    Attack(
        "calls the kernel's newest functions",
        tries(CALL + "assert libc.syscall(470, 0, 0, 0) != -1 or ctypes.get_errno() != 38, 'no such call'"),
        unguarded="refused",
    ),
    Attack(
        "asks for the keys in the kernel's ring",
        tries(CALL + "assert libc.syscall(250, 6, -3, 0, 0, 0) != -1 or ctypes.get_errno() != 1, 'not permitted'"),
    ),
]

# --- notes in the page cache --------------------------------------------------------------------------------------------
LIBRARY = (
    CALL + "open(torch.__file__).read()\nfd = os.open(torch.__file__, os.O_RDONLY)\n"
    "pages = mmap.mmap(fd, 4096, access=mmap.ACCESS_COPY)\n"
    "address = ctypes.c_void_p(ctypes.addressof(ctypes.c_char.from_buffer(pages)))\n"
    "room = ctypes.create_string_buffer(64)\n"
)
PAGE_CACHE = [
    Attack(name, tries(LIBRARY + code), words="not permitted")
    for name, code in [
        ("asks which pages of a library are in memory", "done(libc.mincore(address, 4096, room))"),
        ("asks how much of a library is in memory", "done(libc.syscall(451, fd, room, room, 0))"),
        ("brings a library into memory", "done(libc.readahead(fd, ctypes.c_long(0), 4096))"),
        ("reads a library where it is in memory", "os.preadv(fd, [bytearray(1)], 0, os.RWF_NOWAIT)"),
        ("drops a library from memory", "os.posix_fadvise(fd, 0, 4096, os.POSIX_FADV_DONTNEED)"),
        ("drops a library from memory by its mapping", "done(libc.madvise(address, 4096, 21))"),
    ]
]

# --- taking more than its share -----------------------------------------------------------------------------------------
BOMBS = [
    Attack(
        "fork bomb",
        makes_bomb("for _ in range(8):\n    if os.fork() == 0: time.sleep(9)"),
        cause=Cause.PROCESSES,
        words="processes",
    ),
    Attack(
        "fork bomb whose children fork",
        makes_bomb("for _ in range(3): os.fork()\nif os.getpid() != os.getsid(0): time.sleep(9)"),
        cause=Cause.PROCESSES,
        words="processes",
    ),
    Attack(
        "thread bomb",
        makes_bomb(
            "threading.stack_size(1 << 16)\n"
            "for _ in range(100): threading.Thread(target=time.sleep, args=(3,), daemon=True).start()"
        ),
        cause=Cause.PROCESSES,
        words="threads",
    ),
    Attack("memory bomb", makes_bomb("hoard = torch.ones(80_000_000)"), cause=Cause.OUT_OF_MEMORY, words="limit is"),
    Attack(
        "memory bomb in shared pages",
        makes_bomb("hoard = mmap.mmap(-1, 320_000_000)\nfor _ in range(320): hoard.write(bytes(1_000_000))"),
        cause=Cause.OUT_OF_MEMORY,
        words="limit is",
    ),
    Attack(
        "memory bomb in a file of the kernel's", tries("fd = os.memfd_create('hoard')\nos.write(fd, bytes(1 << 20))")
    ),
    Attack(
        "memory bomb in an orphan",
        makes_bomb(
            "if os.fork() == 0:\n"
            "    if os.fork() == 0:\n"
            "        hoard = torch.ones(80_000_000)\n"
            "        time.sleep(9)\n"
            "    os._exit(0)"
        ),
        cause=Cause.OUT_OF_MEMORY,
        words="limit is",
    ),
    Attack(
        "disk bomb",
        makes_bomb("for i in range(24): open(f'f{i}', 'wb').write(os.urandom(1 << 20))"),
        cause=Cause.DISK,
        words="limit is 16 MiB",
    ),
    Attack(
        "disk bomb in files that it deletes",
        makes_bomb(
            "files = [open('f', 'wb') for i in range(24) if not os.path.exists('f') or os.remove('f') is None]\n"
            "for f in files: f.write(os.urandom(1 << 20))"
        ),
        cause=Cause.DISK,
        words="limit is 16 MiB",
    ),
    Attack(
        "disk bomb in names",
        makes_bomb("for i in range(1500): os.close(os.open(str(i), os.O_CREAT | os.O_WRONLY))"),
        cause=Cause.DISK,
        words="files",
    ),
    Attack(
        "disk bomb in a folder that cannot be read",
        makes_bomb("os.mkdir('d', 0o300)\nfor i in range(24): open(f'd/f{i}', 'wb').write(os.urandom(1 << 20))"),
        cause=Cause.DISK,
        words="limit is 16 MiB",
    ),
    Attack(
        "folders without end",
        makes_bomb("for i in range(300):\n    os.mkdir('d')\n    os.chdir('d')"),
        cause=Cause.DISK,
        words="deep",
        unguarded="deep",
    ),
    Attack("one huge file", tries("os.truncate(os.open('f', os.O_CREAT | os.O_RDWR), 64 << 20)")),
    Attack(
        "log bomb",
        makes_bomb("for _ in range(40): print('x' * (1 << 16))"),
        cause=Cause.OUTPUT,
        words="printed more than",
    ),
    Attack(
        "never speaks again",
        with_training("env.start()\nenv.next_batch(1)\nwhile True: pass"),
        cause=Cause.SILENCE,
        words="no report",
        unguarded="no_submission no submit",
    ),
]

# --- the clock ----------------------------------------------------------------------------------------------------------
STUBBORN = "import os, signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
CLOCK = [
    Attack(
        "asks for text before start()",
        with_training(
            "env._run = None\n"
            "from frozen_env.runtime import client\n"
            "client._run.channel.send({'rows': 1})\n"
            "raise SystemExit(client._run.channel.receive()['error'])"
        ),
        words="before start()",
        unguarded="before start()",
    ),
    Attack(
        "trains before start() on text from the disk",
        tries("import numpy\nassert len(numpy.load(glob.glob('DATA/problem/*/train.npy')[0])) > 0"),
        words="range",
    ),
    Attack(
        "submits before start()",
        with_training(
            "from frozen_env.runtime import client\n"
            "client._run.channel.send({'submit': True})\n"
            "import time\n"
            "time.sleep(9)"
        ),
        ending=Ending.REJECTED,
        cause=Cause.PROTOCOL,
        words="before start()",
        unguarded="before start()",
    ),
    Attack(
        "trains past the budget",
        with_training(
            "import time\n"
            "env.start()\n"
            "end = time.monotonic() + 2.6\n"
            "while time.monotonic() < end:\n"
            "    env.next_batch(1)\n"
            "    env.report(1, 1.0)\n"
            "env.submit(build_model())"
        ),
        ending=Ending.TIMED_OUT,
        cause=Cause.OVERRUN,
        words="still training",
        unguarded="finished",
    ),
    Attack(
        "pauses once, then trains on",
        with_training(
            "import time\n"
            "env.start()\n"
            "for step in range(9): env.report(step, 1.0)\n"
            "time.sleep(0.7)\n"
            "end = time.monotonic() + 1.8\n"
            "while time.monotonic() < end:\n"
            "    env.next_batch(1)\n"
            "    env.report(9, 1.0)\n"
            "env.submit(build_model())"
        ),
        ending=Ending.TIMED_OUT,
        cause=Cause.OVERRUN,
        words="still training 1.",
        unguarded="finished",
    ),
    Attack(
        "trains on in silence and submits late",
        with_training(
            "import time\n"
            "env.start()\n"
            "while env.progress() < 1: env.report(1, 1.0)\n"
            "time.sleep(1.6)\n"
            "env.submit(build_model())"
        ),
        ending=Ending.TIMED_OUT,
        cause=Cause.OVERRUN,
        words="submitted 1.",
        unguarded="finished",
    ),
    Attack(
        "ignores SIGTERM",
        with_training(STUBBORN + "env.start()\nwhile env.progress() < 1: env.report(1, 1.0)\nwhile True: pass"),
        ending=Ending.TIMED_OUT,
        cause=Cause.NO_SUBMISSION,
        words="no submit()",
        unguarded="no_submission no submit",
    ),
    Attack(
        "double-forks and starts a daemon",
        with_training(
            STUBBORN
            + (
                "if os.fork() == 0:\n"
                "    os.setsid()\n"
                "    if os.fork() == 0:\n"
                "        time.sleep(600)\n"
                "    os._exit(0)\n"
                "env.start()\n"
                "raise SystemExit('left a daemon')"
            )
        ),
        words="left a daemon",
        unguarded="left a daemon",
    ),
    Attack(
        "keeps its output open in a daemon and ends",
        with_training(STUBBORN + "if os.fork() == 0:\n    os.setsid()\n    time.sleep(600)\n"),
        cause=Cause.NO_SUBMISSION,
        words="without submit",
        unguarded="without submit",
    ),
    Attack(
        "never starts",
        with_training("import time\ntime.sleep(60)"),
        ending=Ending.TIMED_OUT,
        cause=Cause.NO_START,
        words="did not call start()",
        unguarded="did not call",
    ),
]

# --- the protocol -------------------------------------------------------------------------------------------------------
SAYS = "from frozen_env.runtime import client\nimport time\nenv.start()\nclient._run.channel.sock.sendall({words})\ntime.sleep(5)\n"


def says(words: str) -> str:
    """A candidate that puts raw bytes on its channel."""
    return with_training(SAYS.format(words=words))


PROTOCOL = [
    Attack(name, says(words), Ending.REJECTED, Cause.PROTOCOL, reason, unguarded=reason)
    for name, words, reason in [
        ("says no JSON", "b'score 0.1\\n'", "not JSON"),
        ("says JSON that is no object", "b'[1]\\n'", "not a JSON object"),
        ("says a message without end", "b'x' * 100_000", "longer than"),
        ("nests JSON too deep for a parser", "b'[' * 3000 + b'\\n'", "not JSON"),
        ("claims a score", "b'{\"score\": 0.1}\\n'", "unknown message"),
        ("names a message in half a character", "b'{\"\\\\ud800\": 1}\\n'", "unknown message"),
        ("reports a step beyond any database", "b'{\"report\": [' + b'9' * 40 + b', 1.0, null]}\\n'", "ordinary size"),
        ("reports a loss beyond any float", "b'{\"report\": [1, ' + b'9' * 400 + b', null]}\\n'", "integer, number"),
        ("reports a text as its loss", 'b\'{"report": [1, "low", null]}\\n\'', "integer, number"),
    ]
] + [
    Attack(
        "reports an enormous loss",
        says("b'{\"report\": [1, 1e300, null]}\\n'"),
        cause=Cause.NAN,
        words="inf at step 1",
        unguarded="inf at step 1",
    ),
    Attack(
        "asks and never reads",
        with_training(
            "from frozen_env.runtime import client\n"
            "env.start()\n"
            "while True: client._run.channel.sock.sendall(b'{\"rows\": 0}\\n')"
        ),
        ending=Ending.REJECTED,
        cause=Cause.PROTOCOL,
        words="does not read",
        unguarded="does not read",
    ),
]

ALL = [*READING, *WRITING, *NETWORK, *OTHERS, *PAGE_CACHE, *BOMBS, *CLOCK, *PROTOCOL]
