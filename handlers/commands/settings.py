"""``run.py settings``: shows the settings in force and their sources."""

from __future__ import annotations

import click
import msgspec

from engine.runtime.setting_layers import COMMAND_LINE, ENVIRONMENT
from handlers.commands.deployment import Deployment, as_json, with_deployment
from handlers.commands.terminal.tables import table
from handlers.operate.printing import say

_WITHOUT_FILE = ("default", ENVIRONMENT, COMMAND_LINE)


@click.command(
    "settings",
    short_help="Show every setting in force and its source.",
    epilog="Example: run.py settings --json",
)
@click.option("--json", "json_", is_flag=True, help="Print JSON.")
@with_deployment()
def settings(deployment: Deployment, *, json_: bool) -> None:
    """Show every setting in force with its source, and its value as JSON. Secrets are hidden.

    With --json the source of a setting from a file is the path of the file.
    """
    found = deployment.in_force()
    if json_:
        as_json(found)
        return
    say(f"settings file: {deployment.settings_file or 'none'}")
    say()
    table(
        [
            (
                one.key,
                one.source if one.source in _WITHOUT_FILE else "file",
                msgspec.json.encode(one.value).decode(),
            )
            for one in found
        ],
        ("KEY", "SOURCE", "VALUE"),
        wrapped=True,
    )
