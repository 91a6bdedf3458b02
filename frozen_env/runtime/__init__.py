"""Clock, supervisor, sandbox and scoring protocol: everything that holds for any problem.

supervisor.py   the caller's side: starts a host, asks it to run a candidate, hands it verdicts
guard.py        a small process above the host: nothing outlives it
host.py         the trusted process on the machine that runs candidates; holds the data
zygote.py       a warm interpreter without data: candidates and scoring workers are forked from it
inside.py       what a forked child does before it runs a candidate's code
sandbox.py, seccomp.py, bubblewrap.py, gpus.py   its confinement
training.py     watches one training run: serves batches, keeps time, reads reports, ends it
performance.py, flops.py   how well a run used its time and its device
compile_cache.py, toolchain.py   compiling inside the sandbox, and what of it outlives a candidate
submission.py   what is handed in, and when it is too late
predicting.py   runs a command that predicts, and has the file of predictions measured
curve.py        losses from what a script prints, by a regular expression
hiding.py       parts of the installed packages that a candidate may not read
scoring.py      lets confined workers answer held-out inputs and measures the answers outside them
limits.py, disk.py, processes.py   what a candidate's processes use together, and their end
words.py        what a candidate prints, made plain and short
client.py       what a candidate may call
channel.py, launch.py   message framing, orders and folders
"""
