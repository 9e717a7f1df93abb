"""What the page shows of a run, made from the API's values. Pure."""

from __future__ import annotations

from typing import Any


def progress_line(progress: dict[str, Any]) -> str:
    """A run's progress in words."""
    words = [str(progress.get("phase") or "starting")]
    for key, label in (("stage", ""), ("round", "round ")):
        if progress.get(key) is not None:
            words.append(f"{label}{progress[key]}")
    for key, label in (("loss", "loss"), ("val_loss", "validation")):
        if progress.get(key) is not None:
            words.append(f"{label} {progress[key]:.3f}")
    if progress.get("tokens_per_s"):
        words.append(f"{progress['tokens_per_s']:,.0f} tokens/s")
    if progress.get("heldout"):
        words.append(f"held-out {progress['heldout']['correct']}/{progress['heldout']['of']}")
    return " · ".join(words)


def site_rows(progress: dict[str, Any]) -> list[dict[str, Any]]:
    """One row per site of the run."""
    rows = []
    for name, site in sorted((progress.get("sites") or {}).items()):
        loss, speed = site.get("loss"), site.get("tokens_per_s")
        rows.append(
            {
                "site": name,
                "state": site.get("state", ""),
                "round": site.get("round", ""),
                "loss": f"{loss:.3f}" if loss is not None else "",
                "speed": f"{speed:,.0f}" if speed else "",
            }
        )
    return rows


def chart_options(points: list[dict[str, Any]], most: int = 600) -> dict[str, Any]:
    """An ECharts line chart of training and validation loss over rounds, thinned to `most` points."""
    step = max(1, len(points) // most)
    train = [[p["values"]["round"], p["values"]["loss"]] for p in points[::step] if _has(p, "loss")]
    held = [[p["values"]["round"], p["values"]["val_loss"]] for p in points if _has(p, "val_loss")]
    line = {"type": "line", "showSymbol": False, "animation": False}
    return {
        "tooltip": {"trigger": "axis"},
        "legend": {"data": ["loss", "validation"], "bottom": 0, "textStyle": {"color": "#8290a5"}},
        "grid": {"left": 42, "right": 12, "top": 12, "bottom": 54},
        "xAxis": {"type": "value", "name": "round", "nameLocation": "middle", "nameGap": 22},
        "yAxis": {"type": "value", "scale": True, "splitLine": {"lineStyle": {"opacity": 0.3}}},
        "series": [
            {**line, "name": "loss", "data": train, "lineStyle": {"width": 1.5}},
            {**line, "name": "validation", "data": held, "showSymbol": True, "lineStyle": {"width": 2}},
        ],
    }


def _has(point: dict[str, Any], key: str) -> bool:
    values = point["values"]
    return values.get(key) is not None and values.get("round") is not None
