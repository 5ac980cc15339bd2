"""Reports: one self-contained HTML page, plotly figures and small SVG pictures, all made from records."""

from fairlead.reports.catalogue_page import write_catalogue_page, write_inspection
from fairlead.reports.findings import Finding, find_shortfalls
from fairlead.reports.guard_page import render_guarded, render_served, write_guarded, write_served
from fairlead.reports.numbers import Goals, summarize
from fairlead.reports.page import render_report, write_report
from fairlead.reports.quality import density_svg, render_quality, write_quality
from fairlead.reports.rewards_page import lines_svg, reward_pictures, scatter_svg, write_rewards
from fairlead.reports.runs import RunInfo, report_run
from fairlead.reports.steering_page import steering_svg, write_diff, write_steering
from fairlead.reports.svg import arms_svg, curves_svg, menu_svg, save_svg

__all__ = [
    "Finding",
    "Goals",
    "RunInfo",
    "arms_svg",
    "curves_svg",
    "density_svg",
    "find_shortfalls",
    "lines_svg",
    "menu_svg",
    "render_guarded",
    "render_quality",
    "render_report",
    "render_served",
    "report_run",
    "reward_pictures",
    "save_svg",
    "scatter_svg",
    "steering_svg",
    "summarize",
    "write_catalogue_page",
    "write_diff",
    "write_guarded",
    "write_inspection",
    "write_quality",
    "write_report",
    "write_rewards",
    "write_served",
    "write_steering",
]
