"""Prometheus' text format, version 0.0.4."""

from __future__ import annotations

from caudal.telemetry import names

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class PrometheusText:
    """The answer to one scrape, line by line."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    def family(self, name: str, kind: str) -> None:
        """Say what the next samples are."""
        self._lines.append(f"# HELP {name} {names.HELP[name]}")
        self._lines.append(f"# TYPE {name} {kind}")

    def sample(self, name: str, value: float, **labels: str) -> None:
        """One line."""
        inside = ",".join(f'{key}="{_escape(text)}"' for key, text in labels.items())
        self._lines.append(f"{name}{{{inside}}} {value}" if inside else f"{name} {value}")

    def encode(self) -> bytes:
        """All lines."""
        return ("\n".join(self._lines) + "\n").encode()


def _escape(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
