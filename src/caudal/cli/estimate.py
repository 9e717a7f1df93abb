"""`caudal estimate`: how long, how much, will it fit. One module per question, loaded when it is asked."""

from __future__ import annotations

import importlib

import click

QUESTIONS = {
    "train": ("estimate_train", "The time and memory of training steps, and the best layouts."),
    "serve": ("estimate_serve", "Tokens a second and waits of serving; replicas for a traffic curve."),
    "run": ("estimate_run", "A whole run: days, interruptions, dollars, energy."),
}
"""Name -> (module in cli/, help). A new question is a line here and a module with a `verb`."""


class Questions(click.Group):
    """Loads a question's module when it is asked."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order above."""
        return list(QUESTIONS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """None where there is no such question."""
        if cmd_name not in QUESTIONS:
            return None
        command = importlib.import_module(f"caudal.cli.{QUESTIONS[cmd_name][0]}").verb
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list, without loading any."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in QUESTIONS.items()])


@click.command("estimate", cls=Questions)
def verb() -> None:
    """Estimate what training and serving take, before they are paid for.

    Figures are estimates with an 80 % interval; docs/accuracy.md says how far they were off on published runs.
    """
