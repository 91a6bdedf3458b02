"""Sequence only: the campaign, one candidate, the warm start, and what a person sees of them.

Importing the package sets Prefect's and MLflow's surroundings, which both read when they are imported.
"""

from flows import surroundings

surroundings.prepare()
