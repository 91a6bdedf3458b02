"""The simulation of what calibration on survivors does: its arithmetic, and that the audit holds alpha where trust does not."""

from __future__ import annotations

import numpy as np
import pytest

from bench.stopping_drift import INCUMBENT, Simulation, draw, main


def test_the_json_has_both_spreads_and_shares_at_each_count() -> None:
    found = main(["--campaigns", "2", "--runs", "5", "--ties", "4", "--repeats", "1", "--json"])
    assert list(found["spreads"]) == ["near", "wide"]
    first, second = found["spreads"]["near"]
    assert list(first["ties_stopped"]) == [4], "before four runs nothing is judged"
    assert second["proposed"] >= 5
    assert all(0 <= share <= 1 for share in second["ties_stopped"].values())


def test_a_run_that_is_shifted_ends_and_stands_so_much_higher_throughout() -> None:
    run = draw(np.random.default_rng(0))
    worse = run.ending(0.25)
    assert (run.past.final, worse.past.final) == (INCUMBENT, INCUMBENT + 0.25)
    assert worse.level_LP == pytest.approx(run.level_LP + 0.25)
    assert worse.past.levels[-1] == pytest.approx(float(run.past.levels[-1] or 0) + 0.25)


@pytest.mark.slow
@pytest.mark.parametrize(("share", "trusting", "holds"), [(0.1, False, True), (0.0, True, False)])
def test_in_a_second_campaign_the_audit_holds_alpha_and_trust_in_survivors_does_not(
    share: float, trusting: bool, holds: bool
) -> None:
    alpha, shares = 0.4, []
    ties = [draw(np.random.default_rng([7, number])) for number in range(100)]
    for repeat in range(2):
        simulation = Simulation(0.01, alpha, share, trusting, np.random.default_rng(repeat), ties)
        simulation.campaign(100)
        shares.append(simulation.campaign(20)["ties_stopped"][20])
    assert (float(np.mean(shares)) <= alpha + 0.1) is holds, shares
