"""Clock, supervisor, sandbox and scoring protocol: everything that holds for any problem.

supervisor.py   the caller's side: starts a host, asks it to run a candidate, hands it verdicts
host.py         the trusted process on the machine that runs candidates; forks each from a warm interpreter
training.py     watches one training run: serves batches, keeps time, reads reports, ends it
scoring.py      lets a confined worker answer held-out inputs and measures the answers outside it
launch.py       what a forked child does before it runs a candidate's code
client.py       what a candidate may call
sandbox.py, processes.py, channel.py   confinement, process trees, message framing
"""
