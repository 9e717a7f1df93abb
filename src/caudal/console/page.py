"""The web page: talk to the models, watch the run. Reads the public API and the gateway, nothing else."""

from __future__ import annotations

from typing import Any

import httpx
from fastapi import FastAPI
from fastapi.responses import PlainTextResponse

from caudal.console.talk import Trusted, answer_pieces
from caudal.console.watch import chart_options, progress_line, site_rows

REFRESH_S = 1.0

STYLE = """
body { background: #f6f7f9; color: #1c2430; }
.caudal-card { background: white; border: 1px solid #e3e7ee; border-radius: 10px; padding: 18px; }
.caudal-quiet { color: #67748a; font-size: 13px; }
@media (prefers-color-scheme: dark) {
  body { background: #12161c; color: #dfe6f0; }
  .caudal-card { background: #1a2029; border-color: #2a3340; }
  .caudal-quiet { color: #93a1b5; }
}
"""


def mount_without(app: FastAPI) -> None:
    """Say at `/` that the page is not installed."""

    @app.get("/", include_in_schema=False)
    def missing() -> PlainTextResponse:
        """What to install."""
        return PlainTextResponse(
            "The web page is not installed: pip install 'caudal[console]'. The API is at /api/docs.\n"
        )


def mount(app: FastAPI, api_url: str, gateway_url: str, trusted: Trusted = True) -> None:
    """Put the page at `/` of the control API's application. `trusted`: what the gateway's certificate is checked by."""
    from nicegui import ui  # noqa: PLC0415 - an optional extra, a second to import, enters here only

    def index() -> None:
        Page(ui, api_url, gateway_url, trusted).build()

    ui.page("/", title="Caudal", dark=None)(index)
    ui.run_with(app, title="Caudal", show_welcome_message=False)


class Page:
    """One visitor's page."""

    def __init__(self, ui: Any, api_url: str, gateway_url: str, trusted: Trusted = True) -> None:
        self._ui = ui
        self._api = f"{api_url}/api/v1"
        self._gateway = gateway_url
        self._trusted = trusted
        self._messages: list[dict[str, str]] = []
        self._points: list[dict[str, Any]] = []
        self._busy = False

    def build(self) -> None:
        """Lay the page out and start its timer."""
        ui = self._ui
        ui.add_css(STYLE)
        with ui.column().classes("w-full max-w-screen-xl mx-auto q-pa-md gap-4"):
            with ui.row().classes("w-full items-baseline"):
                ui.label("Caudal").classes("text-h5 text-weight-bold")
                self._headline = ui.label("").classes("caudal-quiet")
            with ui.row().classes("w-full items-stretch gap-4"):
                with ui.column().classes("caudal-card col-grow").style("flex: 1 1 420px; min-height: 520px"):
                    self._build_talk()
                with ui.column().classes("caudal-card col-grow").style("flex: 1 1 420px"):
                    self._build_run()
        ui.timer(REFRESH_S, self._refresh)

    def _build_talk(self) -> None:
        ui = self._ui
        with ui.row().classes("w-full items-center justify-between"):
            ui.label("Talk").classes("text-h6")
            self._model = ui.select([], label="model").props("dense outlined").classes("w-64")
            self._model.mark("model")
            self._model.on_value_change(self._forget)
        self._scroll = ui.scroll_area().classes("w-full col-grow").style("min-height: 420px")
        with self._scroll:
            self._thread = ui.column().classes("w-full")
        with ui.row().classes("w-full no-wrap items-center"):
            self._input = ui.input(placeholder="Say something").props("outlined dense").classes("col-grow")
            self._input.on("keydown.enter", self._say)
            ui.button("Send", on_click=self._say).props("unelevated")

    def _build_run(self) -> None:
        ui = self._ui
        ui.label("The run").classes("text-h6")
        self._run = ui.label("no run yet").classes("text-weight-medium")
        self._bar = ui.linear_progress(0.0, show_value=False).props("rounded")
        self._chart = ui.echart(chart_options([])).classes("w-full").style("height: 250px")
        columns = [
            {"name": key, "label": label, "field": key, "align": "left"}
            for key, label in (
                ("site", "site"),
                ("state", "state"),
                ("round", "round"),
                ("loss", "loss"),
                ("speed", "tokens/s"),
            )
        ]
        self._sites = ui.table(columns=columns, rows=[], row_key="site").props("flat dense").classes("w-full")

    def _forget(self) -> None:
        self._messages.clear()
        self._thread.clear()

    async def _say(self) -> None:
        said = str(self._input.value or "").strip()
        if not said or self._busy or not self._model.value:
            return
        self._busy = True
        self._input.value = ""
        self._messages.append({"role": "user", "content": said})
        with self._thread:
            self._ui.chat_message(said, sent=True).classes("self-end")
            with self._ui.chat_message(name=str(self._model.value)).props("bg-color=blue-1"):
                spoken = self._ui.label("…").style("white-space: pre-wrap")
        answer = ""
        try:
            async for piece in answer_pieces(
                self._gateway, str(self._model.value), list(self._messages), trusted=self._trusted
            ):
                answer += piece
                spoken.set_text(answer)
                self._scroll.scroll_to(percent=1.0)
        finally:
            self._busy = False
        self._messages.append({"role": "assistant", "content": answer})

    async def _refresh(self) -> None:
        try:
            async with httpx.AsyncClient(timeout=5.0, trust_env=False) as client:
                status = (await client.get(f"{self._api}/status")).json()
                runs = [w for w in status["workloads"] if w["kind"] == "train"]
                if runs:
                    await self._fetch_points(client, runs[0]["name"])
        except httpx.TransportError:
            self._headline.set_text("the control process is away; what runs goes on")
            return
        sites = ", ".join(s["name"] for s in status["sites"])
        self._headline.set_text(f"fleet {status['fleet']}: {sites} · API {status['gateway_url']}/v1")
        self._show_models(status)
        if runs:
            self._show_run(runs[0])

    async def _fetch_points(self, client: httpx.AsyncClient, run: str) -> None:
        after = self._points[-1]["seq"] if self._points else -1
        answer = await client.get(f"{self._api}/runs/{run}/points", params={"after": after})
        fresh = answer.json()["items"]
        if fresh:
            self._points.extend(fresh)
            options = chart_options(self._points)
            self._chart.options.clear()
            self._chart.options.update(options)
            self._chart.update()

    def _show_models(self, status: dict[str, Any]) -> None:
        ready = [m["id"] for m in status["models"] if m["ready_replicas"]]
        if ready != self._model.options:
            kept = self._model.value if self._model.value in ready else (ready[0] if ready else None)
            self._model.set_options(ready, value=kept)

    def _show_run(self, run: dict[str, Any]) -> None:
        self._run.set_text(f"{run['name']} · {run['state']} · {progress_line(run['progress'])}")
        total = run["progress"].get("ids_total") or 0
        self._bar.set_value((run["progress"].get("ids_done") or 0) / total if total else 0.0)
        self._sites.rows = site_rows(run["progress"])
        self._sites.update()
