"""frontier.md: the picture, who is ahead at equal KL, and the fitted curves, for a person to read; the console shows its tables."""

from collections.abc import Mapping, Sequence
from typing import Any

from rlhf.report.console_table import print_table

Rows = list[list[str]]


def equal_kl_table(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> tuple[list[str], Rows]:
    """Headings and cells: a row a KL, a column a run, the winner last."""
    cells = [
        [f"{row['kl']:.2f}", *(_value(row["values"].get(name)) for name in names), row["winner"], _lead(row)]
        for row in rows
    ]
    return ["KL", *names, "ahead", "by"], cells


def fit_table(fits: Mapping[str, Mapping[str, Any] | None]) -> tuple[list[str], Rows]:
    """Headings and cells: a row a run, with α, β and where the curve turns."""
    headings = ["run", "form", "α", "β", "residual", "points", "turns at KL", "gain there"]
    return headings, [[name, *_fit_cells(fit)] if fit else [name, "none", *["–"] * 6] for name, fit in fits.items()]


def page(result: Mapping[str, Any], titles: Mapping[str, str]) -> str:
    """The page in Markdown.

    Args:
        result: content of frontier.json.
        titles: measure → what to call it.
    """
    parts = [
        "# Reward against distance from the initial policy",
        "![reward and gold score against KL](frontier.png)",
        "Points with 95 % intervals; dashed: best-of-n"
        + (", at the bound log n − (n − 1)/n" if result["best_of_n_kl"] == "bound" else ", at its estimated KL")
        + "; dotted: the fitted form. Between points, values are taken to be linear in √KL.",
    ]
    if result["relative"]:
        parts.append("All values are gains over each run's own initial policy.")
    parts += [f"**Beware:** {warning}" for warning in result["warnings"]]
    names = list(result["runs"])
    for measure, title in titles.items():
        compared = result["equal_kl"][measure]
        if compared:
            parts += [
                f"## {title[:1].upper()}{title[1:]} at equal KL",
                _markdown(*equal_kl_table(compared, names)),
                _verdict(compared),
            ]
    for measure, title in titles.items():
        fits = {name: run["fits"][measure] for name, run in result["runs"].items() if run["points"][measure]}
        if fits:
            parts += [f"## Fitted curves: {title}", _markdown(*fit_table(fits))]
    parts.append(
        "With d = √KL: best-of-n d (α − β d), reinforcement learning d (α − β log d), counted from the initial policy"
        " (arXiv 2210.10760). Standard errors come from the scatter around the curve; points of one run share their prompts, so"
        " they say how well the form fits, not how the curve would move on other prompts. No form is fitted to fewer than three"
        " points, or without one at KL 0 to count from."
    )
    return "\n\n".join(parts) + "\n"


def print_tables(result: Mapping[str, Any], titles: Mapping[str, str]) -> None:
    """The tables of the page on the console."""
    names = list(result["runs"])
    for measure, title in titles.items():
        if result["equal_kl"][measure]:
            print_table(f"{title} at equal KL", *equal_kl_table(result["equal_kl"][measure], names))
        fits = {name: run["fits"][measure] for name, run in result["runs"].items() if run["points"][measure]}
        if fits:
            print_table(f"{title}: fitted curves", *fit_table(fits))


def _markdown(headings: Sequence[str], rows: Rows) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _verdict(rows: Sequence[Mapping[str, Any]]) -> str:
    ahead = {
        name: [row for row in rows if row["winner"] == name] for name in dict.fromkeys(row["winner"] for row in rows)
    }
    said = []
    for name, won in ahead.items():
        where = ", ".join(f"{row['kl']:.2f}" for row in won)
        known = [row["clear"] for row in won if row["clear"] is not None]
        noise = (
            f", clearly (95 %) at {sum(known)} of {len(known)}"
            if known
            else "; how clearly is not known, for want of errors"
        )
        said.append(f"**{name}** is ahead at {where} nats{noise}.")
    return " ".join(said)


def _value(entry: Mapping[str, float | None] | None) -> str:
    if entry is None:
        return "–"
    return f"{entry['value']:.3f}" + (f" ± {entry['error']:.3f}" if entry["error"] is not None else "")


def _lead(row: Mapping[str, Any]) -> str:
    mark = {True: " (clear)", False: " (within noise)", None: ""}[row["clear"]]
    return f"{row['lead']:.3f}{mark}"


def _fit_cells(fit: Mapping[str, Any]) -> list[str]:
    peak = fit["peak_kl"]
    beyond = " (beyond the points)" if fit["peak_is_beyond_the_points"] else ""
    return [
        "d (α − β d)" if fit["form"] == "best_of_n" else "d (α − β log d)",
        f"{fit['alpha']:.3f} ± {fit['alpha_error']:.3f}",
        f"{fit['beta']:.3f} ± {fit['beta_error']:.3f}",
        f"{fit['residual']:.3f}",
        str(fit["points"]),
        "never" if peak is None else f"{peak:.3g}{beyond}",
        "–" if peak is None else f"{fit['peak_gain']:.3f}",
    ]
