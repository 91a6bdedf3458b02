"""Recorded trials answer instead of training: who finds the best settings in the same simulated GPU hours?

python -m bench.replay --trials TRIALS.parquet --arms random,local,tpe,cmaes,greedy,rl --seeds 5 --hours 24 --json

A surrogate fitted on recorded five-minute trials is the judge; no arm may read it, the trials, or the optimum. Everything
else is the campaign's own: prompt, constrained edits, novelty check, memory, reward and PPO.
"""
