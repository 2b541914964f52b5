"""One self-contained HTML page that a person reads in a minute: verdicts, tables, pictures."""

import base64
import html
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from calmoe_jax._files import write_whole
from calmoe_jax.study.report.plots import draw_all
from calmoe_jax.study.report.summary import (
    Results,
    Spread,
    comparison,
    split_names,
    spread,
    title_of,
)
from calmoe_jax.study.report.verdicts import verdicts

_CSS = """
:root { --ink: #1b1f24; --soft: #57606a; --line: #d8dee4; --back: #fff; --panel: #f6f8fa; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 75rem; padding: 1.5rem 1rem 4rem; color: var(--ink);
  background: var(--back); font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; margin: 0 0 .3rem; } h2 { font-size: 1.2rem; margin: 2.2rem 0 .6rem; }
p, figcaption, .soft { color: var(--soft); } p { max-width: 46rem; }
.verdicts { list-style: none; padding: 0; margin: 0; }
.verdicts li { border-left: .4rem solid var(--line); background: var(--panel);
  padding: .55rem .8rem; margin: .5rem 0; }
.verdicts .better { border-color: #009e73; } .verdicts .worse { border-color: #d55e00; }
.verdicts .mixed { border-color: #e69f00; } .verdicts .reference { border-color: #0072b2; }
.verdicts b { color: var(--ink); } .verdicts .detail { display: block; color: var(--soft);
  font-size: .9rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums;
  min-width: 100%; }
th, td { padding: .3rem .4rem; border-bottom: 1px solid var(--line); text-align: right; }
td { white-space: nowrap; } th { font-weight: 600; max-width: 8rem; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0;
  background: var(--back); }
thead th { border-bottom: 2px solid var(--line); vertical-align: bottom; }
td .std { color: var(--soft); font-size: .8rem; }
tr.reference td { background: var(--panel); }
.clear { font-weight: 700; }
figure { margin: 1rem 0; max-width: 68rem; }
img { max-width: 100%; min-width: 38rem; height: auto; }
details { margin: .6rem 0; } summary { cursor: pointer; font-weight: 600; }
.warning { border-left: .4rem solid #e69f00; padding-left: .8rem; }
code { font-size: .9em; }
"""

_CAPTIONS = {
    "tradeoff": "Accuracy against top-label ECE; up and to the left is good. Filled: as trained. "
    "Hollow, joined to it: with a temperature fitted on held-out in-distribution data. Bars: one "
    "standard deviation over seeds.",
    "along_the_shift": "Top-label ECE along the order of the shift, as trained, mean over seeds.",
    "reliability": "Accuracy by confidence, 15 bins, all seeds together. On the diagonal "
    "confidence is true; below it, over-confident. Faint points hold under 0.5 % of the examples; "
    "bars show where the examples are.",
}

_METRIC_TITLES = {
    "accuracy": "accuracy, %",
    "nll": "NLL, nats",
    "brier": "Brier",
    "ece": "ECE",
    "classwise_ece": "classwise ECE",
    "smooth_ece": "smooth ECE",
    "confidence_gap": "confidence − accuracy, points",
    "disagreement": "disagreement",
    "routing_entropy": "routing entropy, nats",
}
_PERCENT = ("accuracy", "confidence_gap")


def write_report(runs: list[Results], out: Path) -> Path:
    """Writes `report.html` into a folder, and each run's pictures into its `plots/`.

    Args:
        runs: results of one or more runs; each is a section of the page.
        out: the folder.

    Returns:
        The path of the page.
    """
    sections = []
    for number, run in enumerate(runs, start=1):
        pictures = draw_all(run)
        plots = out / "plots"
        plots.mkdir(parents=True, exist_ok=True)
        for name, content in pictures.items():
            prefix = "" if len(runs) == 1 else f"{number}_{run['task']}_"
            write_whole(plots / f"{prefix}{name}.png", content)
        sections.append(_section(run, pictures))
    title = "calmoe: " + ", ".join(run["task"] for run in runs)
    page = (
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>{html.escape(title)}</title><style>{_CSS}</style></head><body>"
        + "<hr>".join(sections)
        + _reading_aid()
        + "</body></html>\n"
    )
    path = out / "report.html"
    write_whole(path, page)
    return path


def _section(run: Results, pictures: dict[str, bytes]) -> str:
    config = run["config"]
    counts = {split["kind"]: 0 for split in run["splits"]}
    for split in run["splits"]:
        counts[split["kind"]] += split["n"]
    intro = (
        f"{config['seeds']} seeds, {config['train']['epochs']} epochs, "
        f"{config['model']['experts']} experts, {config['model']['routing']} routing. "
        f"Trained on {counts['train']:,} examples, temperatures fitted on "
        f"{counts['calibration']:,} held-out ones, tested on {counts['id']:,} of the same law and "
        f"{counts.get('shift', 0):,} shifted ones. Data: {run['source']}."
    )
    parts = [
        f"<h1>When does the confidence of a mixture of experts stop being true? "
        f"<code>{html.escape(run['task'])}</code></h1>",
        f"<p>{html.escape(intro)}</p>",
        "<h2>Verdicts</h2>",
        _verdict_list(run),
        "<h2>At a glance</h2>",
        _glance(run),
        _repair_tables(run),
        *(_figure(name, content) for name, content in pictures.items()),
    ]
    if run["warnings"]:
        lines = "".join(f"<li>{html.escape(line)}</li>" for line in run["warnings"])
        parts.append(
            "<details class='warning'><summary>Experts that went idle: "
            f"{len(run['warnings'])} of the trained models</summary><ul>{lines}</ul></details>"
        )
    parts.append("<h2>Every figure</h2>")
    for metric in _METRIC_TITLES:
        parts.append(_metric_table(run, metric))
    parts += [_difference_table(run), _temperature_table(run), _environment(run)]
    return "".join(parts)


def _verdict_list(run: Results) -> str:
    items = "".join(
        f"<li class='{v.tone}'><b>{html.escape(title_of(run, v.method))}: "
        f"{html.escape(v.headline)}.</b>"
        f"<span class='detail'>{html.escape(_capitalised(v.detail))}</span></li>"
        for v in verdicts(run)
    )
    return f"<ul class='verdicts'>{items}</ul>"


def _capitalised(text: str) -> str:
    return text[:1].upper() + text[1:]


def _glance(run: Results) -> str:
    inside, shifts, hard = (split_names(run, kind) for kind in ("id", "shift", "hard"))
    columns = [
        ("accuracy in distribution, %", inside, "none", "accuracy"),
        ("accuracy under shift, %", shifts, "none", "accuracy"),
        ("ECE in distribution", inside, "none", "ece"),
        ("ECE under shift", shifts, "none", "ece"),
        ("confidence − accuracy under shift, points", shifts, "none", "confidence_gap"),
        ("ECE under shift, with temperature", shifts, "temperature", "ece"),
        ("ECE under shift, per-expert temperatures", shifts, "per_expert", "ece"),
        ("NLL under shift", shifts, "none", "nll"),
    ]
    if hard:
        columns.append(("ECE on the hard subset", hard, "none", "ece"))
    columns = [column for column in columns if column[1]]
    rows = []
    for method in run["methods"]:
        cells = [
            _cell(spread(run, method, calibrator, splits, metric), metric)
            for _, splits, calibrator, metric in columns
        ]
        rows.append((title_of(run, method), cells, method == "vanilla"))
    note = "<p>Mean ± standard deviation over seeds; shifted splits count alike.</p>"
    return _table([title for title, *_ in columns], rows) + note


def _metric_table(run: Results, metric: str) -> str:
    splits = split_names(run)
    rows = []
    for method in run["methods"]:
        for calibrator in ("none", "temperature", "per_expert"):
            cells = [_cell(spread(run, method, calibrator, [s], metric), metric) for s in splits]
            label = title_of(run, method)
            if calibrator != "none":
                label += f", {calibrator.replace('_', ' ')}"
            rows.append((label, cells, False))
    return (
        f"<details><summary>{html.escape(_METRIC_TITLES[metric])}</summary>"
        f"{_table(splits, rows)}</details>"
    )


def _difference_table(run: Results) -> str:
    if not run["comparisons"]:
        return ""
    labels = list(dict.fromkeys(line["split"] for line in run["comparisons"]))
    body = []
    for metric in ("ece", "accuracy"):
        scale, digits = (100, 1) if metric in _PERCENT else (1, 3)
        rows = []
        for method in dict.fromkeys(line["method"] for line in run["comparisons"]):
            for calibrator in ("none", "temperature"):
                cells = []
                for label in labels:
                    line = comparison(run, method, calibrator, label, metric)
                    if line is None:
                        cells.append("")
                        continue
                    clear = line["low"] > 0 or line["high"] < 0
                    low, high = scale * line["low"], scale * line["high"]
                    text = f"{scale * line['difference']:+.{digits}f}"
                    cells.append(
                        f"<span class='{'clear' if clear else ''}'>{text}</span> "
                        f"<span class='std'>{low:+.{digits}f} to {high:+.{digits}f}</span>"
                    )
                suffix = "" if calibrator == "none" else f", {calibrator}"
                rows.append((title_of(run, method) + suffix, cells, False))
        body.append(
            f"<details><summary>Difference from vanilla: {_METRIC_TITLES[metric]}</summary>"
            "<p>Paired bootstrap over clusters of examples and seeds, 95 % intervals; bold where "
            "they leave out 0. Few seeds understate the noise of training, and one seed leaves it "
            f"out.</p>{_table(labels, rows)}</details>"
        )
    return "".join(body)


_CALIBRATOR_TITLES = {
    "none": "as trained",
    "temperature": "temperature, in distribution",
    "per_expert": "per-expert temperatures",
    "configuration_balanced": "configuration-balanced",
    "agreement": "agreement of neighbours and seeds",
    "neighbours": "agreement of neighbours",
    "separability": "PAD2",
    "difference_of_confidences": "difference of confidences",
    "average_threshold": "average threshold",
}


def _repair_tables(run: Results) -> str:
    """Calibrators that look at unlabelled examples of each split, and what they rest on."""
    shifts = split_names(run, "shift")
    if not shifts or not run.get("shifts"):
        return ""
    reported = {record["calibrator"] for record in run["records"]}
    titles = {k: v for k, v in _CALIBRATOR_TITLES.items() if k in reported}
    rows = [
        (
            title_of(run, method),
            [_cell(spread(run, method, calibrator, shifts, "ece"), "ece") for calibrator in titles],
            method == "vanilla",
        )
        for method in run["methods"]
    ]
    words = (
        "<p>ECE under shift after one temperature for each split, from its examples without their "
        "labels; no rule makes a model more confident than the temperature fitted in distribution. "
        "Agreement: confidence falls as labelled examples that look alike have other labels than "
        "the predicted ones, and as models trained alike fall apart.</p>"
    )
    return (
        "<h2>Repair without labels</h2>"
        + _table(list(titles.values()), rows)
        + words
        + _decision_table(run)
    )


def _decision_table(run: Results) -> str:
    rows = []
    for method in run["methods"]:
        for split in split_names(run):
            lines = [x for x in run["shifts"] if (x["method"], x["split"]) == (method, split)]
            if not lines:
                continue
            middle = {
                name: float(np.median([x[name] for x in lines]))
                for name in ("p_value", "load", "confidence", "disagreement", "effective_share")
            }
            decisions = [x["decision"] for x in lines]
            names = sorted(set(decisions), key=decisions.count, reverse=True)
            cells = [
                *(f"{middle[x]:.3f}" for x in ("p_value", "load", "confidence", "disagreement")),
                f"{middle['effective_share']:.2f}",
                ", ".join(f"{x.replace('_', ' ')} ({decisions.count(x)})" for x in names),
            ]
            rows.append((f"{title_of(run, method)}, {split}", cells, False))
    columns = ["p, any", "p, load", "p, confidence", "p, disagreement"]
    columns += ["effective share of the held-out", "decision (seeds)"]
    return (
        "<details><summary>Does the routing configuration shift, and what can be done</summary>"
        "<p>Permutation test of held-out against unlabelled examples, whole clusters relabelled; "
        "medians over the seeds. Keep: no shift is seen, or hard routing bears it. Rebalance: "
        "held-out examples can be weighted to look like the split's. Cannot repair: too few of "
        "them do.</p>"
        f"{_table(columns, rows)}</details>"
    )


def _temperature_table(run: Results) -> str:
    rows = []
    for fit in run["fits"]:
        values = (
            fit["temperature"] if isinstance(fit["temperature"], list) else [fit["temperature"]]
        )
        flags = fit["converged"] if isinstance(fit["converged"], list) else [fit["converged"]]
        text = ", ".join(
            f"{t:.3g}" + ("" if ok else " (no finite optimum)")
            for t, ok in zip(values, flags, strict=True)
        )
        label = f"{title_of(run, fit['method'])}, {fit['calibrator'].replace('_', ' ')}"
        rows.append((label, [str(fit["seed"]), text], False))
    return (
        "<details><summary>Fitted temperatures</summary>"
        f"{_table(['seed', 'temperature'], rows)}</details>"
    )


def _environment(run: Results) -> str:
    env = run["environment"]
    versions = ", ".join(f"{k} {v}" for k, v in env["versions"].items() if v)
    text = (
        f"Python {env['python']}, {versions}; {env['platform']}, {', '.join(env['devices'])}, "
        f"{env['cores']} cores; commit {env['commit'] or 'unknown'}."
    )
    return f"<details><summary>Environment</summary><p>{html.escape(text)}</p></details>"


def _reading_aid() -> str:
    return (
        "<h2>How to read this</h2><p><b>ECE</b> (expected calibration error, top label, 15 bins): "
        "by how much confidence and accuracy differ, on average; 0 is perfect, and few examples "
        "push it up. <b>Confidence − accuracy</b> says in which direction: above 0 is "
        "over-confident. <b>Temperature</b>: one number fitted on held-out in-distribution data "
        "that sharpens or softens all predictions; it never changes accuracy. <b>Per expert</b>: "
        "one such number for every expert, before mixing. A method is called better or worse only "
        "where the 95 % interval of its difference from vanilla leaves out 0.</p>"
    )


def _figure(name: str, content: bytes) -> str:
    data = base64.b64encode(content).decode()
    caption = html.escape(_CAPTIONS[name])
    return (
        f"<figure><div class='scroll'><img alt='{caption}' "
        f"src='data:image/png;base64,{data}'></div>"
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _cell(value: Spread | None, metric: str) -> str:
    if value is None:
        return "–"
    scale, digits = (100, 1) if metric in _PERCENT else (1, 3)
    text = f"{scale * value.mean:.{digits}f}"
    if value.std is not None:
        text += f" <span class='std'>± {scale * value.std:.{digits}f}</span>"
    return text


def _table(columns: list[str], rows: Iterable[tuple[str, list[str], bool]]) -> str:
    head = "".join(f"<th>{html.escape(column)}</th>" for column in ("", *columns))
    body = "".join(
        f"<tr{' class=reference' if marked else ''}><td>{html.escape(label)}</td>"
        + "".join(f"<td>{cell}</td>" for cell in cells)
        + "</tr>"
        for label, cells, marked in rows
    )
    return (
        f"<div class='scroll'><table><thead><tr>{head}</tr></thead>"
        f"<tbody>{body}</tbody></table></div>"
    )
