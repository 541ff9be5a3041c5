"""``run.py completion``: prints what makes bash and zsh complete the commands."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from typing import Final

import click
from click.shell_completion import BashComplete, ZshComplete

_ROOT: Final = Path(__file__).parents[2]
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*\Z")
#: The shell asks this program, with the words so far in variables, as click does it.
_VARIABLE: Final = "_RUN_PY_COMPLETE"
_FUNCTION: Final = """\
# {name} runs the commands from everywhere: put this into ~/{startup}.
{name}() {{
    {program} "$@"
}}

"""


def _checked(_: click.Context, __: click.Parameter, name: str) -> str:
    if not _NAME.match(name):
        raise click.BadParameter("a name of letters, digits, _ and - is required.")
    return name


@click.command(
    "completion",
    short_help="Print the completion of the commands for bash or zsh.",
    epilog="Example: run.py completion bash >>~/.bashrc",
)
@click.argument("shell", type=click.Choice(["bash", "zsh"]))
@click.option(
    "--name",
    default="tidemark",
    show_default=True,
    metavar="NAME",
    callback=_checked,
    help="The name under which the shell runs the commands.",
)
def completion(shell: str, name: str) -> None:
    """Print a function for the shell that runs these commands, and the completion of its words.

    The function calls this program with this Python, and can be used in every directory. Commands, options
    and their choices are completed.
    """
    program = f"{shlex.quote(sys.executable)} {shlex.quote(str(_ROOT / 'run.py'))}"
    kind = BashComplete if shell == "bash" else ZshComplete
    maker = kind(click.Group(), {}, name, _VARIABLE)
    values = maker.source_vars()
    template = kind.source_template
    # click's own templates ask the program by the name of the command, which is a function here.
    if shell == "bash":
        template = template.replace(
            "%(complete_var)s=bash_complete $1", f"%(complete_var)s=bash_complete {_escaped(program)}"
        )
    else:
        template = template.replace(
            "%(complete_var)s=zsh_complete %(prog_name)s",
            f"%(complete_var)s=zsh_complete {_escaped(program)}",
        )
        template = template.replace("(( ! $+commands[%(prog_name)s] )) && return 1\n", "")
    startup = ".bashrc" if shell == "bash" else ".zshrc"
    click.echo(_FUNCTION.format(name=name, program=program, startup=startup) + template % values, nl=False)


def _escaped(text: str) -> str:
    return text.replace("%", "%%")
