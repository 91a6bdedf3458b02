"""Invented trials for the replay bench, and its judge fitted on them."""

from __future__ import annotations

import json
from pathlib import Path

import duckdb
import numpy as np
import pytest

from bench.replay.space import BASELINE
from bench.replay.surrogate import Surrogate

TINY = {
    "policy.model": "tiny-random",
    "policy.adapter": "none",
    "policy.device": "cpu",
    "policy.prompt_tokens": 900,
    "policy.batch_edits": 2,
    "policy.threads": 1,
}


@pytest.fixture(scope="session")
def trials(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Invented trials of three methods: val_bpb falls with MATRIX_LR near 0.02, large models fail."""
    rng = np.random.default_rng(0)
    rows = []
    for i in range(400):
        row = dict(BASELINE)
        if i:
            row |= {"DEPTH": int(rng.integers(4, 25)), "ASPECT_RATIO": int(rng.integers(32, 129))}
            row |= {"HEAD_DIM": int(rng.choice([64, 128, 256])), "WINDOW_PATTERN": str(rng.choice(["SSSL", "LLLL"]))}
            row |= {"DEVICE_BATCH_SIZE": int(rng.choice([64, 128])), "TOTAL_BATCH_SIZE": int(2 ** rng.integers(17, 20))}
            row |= {name: BASELINE[name] * float(np.exp(rng.uniform(-1.5, 1.5))) for name in BASELINE if "_LR" in name}
            row |= {
                name: float(rng.uniform(0.0, 0.5)) for name in BASELINE if name.endswith(("RATIO", "FRAC", "DECAY"))
            }
            row |= {"ASPECT_RATIO": int(rng.integers(32, 129)), "WARMDOWN_RATIO": float(rng.uniform(0.1, 0.8))}
        success = row["DEPTH"] * row["ASPECT_RATIO"] < 1600
        bpb = 0.98 + 0.02 * abs(np.log(row["MATRIX_LR"] / 0.02)) + 0.0005 * rng.normal()
        extra = {"method": f"m{i % 3}", "seed": 0, "trial": i, "success": success, "wall_s": 300.0 if success else 30.0}
        rows.append({**row, **extra, "val_bpb": float(bpb) if success else None})
    path = tmp_path_factory.mktemp("replay") / "trials.parquet"
    (path.parent / "trials.json").write_text(json.dumps(rows))
    duckdb.sql(f"copy (from '{path.parent / 'trials.json'}') to '{path}' (format parquet)")
    return path


@pytest.fixture(scope="session")
def judge(trials: Path) -> Surrogate:
    return Surrogate(trials)
