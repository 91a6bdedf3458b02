"""Write the page and its figures. The page loads nothing, runs nothing, and shows what candidates wrote as text.

Three walls, each enough by itself: jinja2 escapes every value; a Content-Security-Policy forbids scripts, frames, forms and
every address but the page's own data: images; the one style sheet is allowed by its digest.
"""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.figure import Figure

from arl_core import theory
from arl_core.report import evidence, figures, findings, view
from arl_core.report.source import CampaignData
from arl_core.report.style import save, styled

FOLDER = Path(__file__).parent
PAGE = "report.html"


def write_report(data: CampaignData, folder: Path) -> Path:
    """Write report.html and one PNG per figure into `folder`, made when missing; return the page's path."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn: dict[str, bytes] = {}
    with styled():
        for name, figure in draw(data).items():
            (folder / f"{name}.png").unlink(missing_ok=True)  # an older report's, perhaps of a figure that is gone
            if figure is not None:
                drawn[name] = save(figure, folder / f"{name}.png")
    page = render(view.build(data), drawn)
    partial = folder / f".{PAGE}.partial"
    partial.write_text(page, encoding="utf-8", errors="replace")
    partial.replace(folder / PAGE)
    return folder / PAGE


def draw(data: CampaignData) -> dict[str, Figure | None]:
    """Return every figure by name; None for what this campaign has nothing to show of."""
    experiments, metric = data.experiments, data.metric
    verdicts = {one.index: one.verdicts for one in experiments}
    won = findings.gains(experiments)
    steps = findings.staircase(experiments)
    process = theory.best_so_far(steps[0][1], won, data.campaign.direction) if won else None
    return {
        "best_so_far": figures.best_so_far(experiments),
        "lineage": figures.lineage(experiments),
        "curves": evidence.curves(experiments, {one.index: one.reports for one in experiments}),
        "forecasts": evidence.forecasts(experiments, verdicts),
        "savings": evidence.savings(experiments, data.budget_s),
        "statuses": figures.statuses(experiments),
        "levers": figures.levers(findings.lever_effects(experiments), metric),
        "learning": evidence.learning(findings.learning(experiments)),
        "time": figures.time_parts(findings.time_by_part(experiments)),
        "rates": evidence.rates(won, view.epsilons(data), metric),
        "process": evidence.process(process, steps[0][0], metric) if process is not None else None,
    }


def render(content: dict[str, Any], drawn: dict[str, bytes]) -> str:
    """Return the page as HTML. `drawn` are figures as SVG; images of a page run no script, whatever they hold."""
    style = (FOLDER / "page.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pictures: dict[str, str] = dict.fromkeys(FIGURES, "")
    pictures |= {name: base64.b64encode(svg).decode() for name, svg in drawn.items()}
    return environment.get_template("page.html.j2").render(**content, figures=pictures, style=style, policy=policy)


FIGURES = (
    "best_so_far", "lineage", "curves", "forecasts", "savings", "statuses", "levers", "learning", "time", "rates", "process",
)  # fmt: skip
