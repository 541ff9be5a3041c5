"""States and kinds of uploads as rows hold them, and lists of states for SQL, formatted from the one table.

Two states and all kinds are stored under other words than the code uses. The stored words stay: processes of
the version before read them during a rolling restart.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from engine.model.uploads import FINISHED, STATES, Kind, State

STATE_TEXTS: Final[dict[State, str]] = {
    **{state: state for state in STATES},
    "retained": "lent",
    "concatenated": "joined",
}
KIND_TEXTS: Final[dict[Kind, str]] = {"single": "whole", "partial": "part", "final": "joined"}
#: What a row says, as the code calls it.
STATES_BY_TEXT: Final[dict[str, State]] = {text: state for state, text in STATE_TEXTS.items()}
KINDS_BY_TEXT: Final[dict[str, Kind]] = {text: kind for kind, text in KIND_TEXTS.items()}


def sql_state(state: State) -> str:
    """Return a state as an SQL literal."""
    return f"'{STATE_TEXTS[state]}'"


def sql_states(states: Iterable[State]) -> str:
    """Return states as an SQL list, ``('open', 'stored')``, in the order of the table."""
    chosen = set(states)
    return f"({', '.join(sql_state(state) for state in STATES if state in chosen)})"


OPEN: Final = sql_state("open")
STORED: Final = sql_state("stored")
DUPLICATE: Final = sql_state("duplicate")
EXPIRED: Final = sql_state("expired")
CONCATENATED: Final = sql_state("concatenated")
PARTIAL: Final = f"'{KIND_TEXTS['partial']}'"
FINAL: Final = f"'{KIND_TEXTS['final']}'"
COUNTS_FOR_QUOTA: Final = sql_states(state for state, rule in STATES.items() if rule.counts_for_quota)
IS_FILE: Final = sql_states(state for state, rule in STATES.items() if rule.is_file)
IN_ENTRY: Final = sql_states(state for state, rule in STATES.items() if rule.in_entry)
IS_FINISHED: Final = sql_states(FINISHED)
ENDED: Final = sql_states(state for state, rule in STATES.items() if rule.ended)
#: Uploads that a file of the same name and content can stand for, and the files that can stand for them.
FILE_OR_DUPLICATE: Final = sql_states(
    state for state, rule in STATES.items() if rule.is_file or rule.is_finished
)
#: Placed in a record, by a file of its own or by another's: their grace period begins when the record goes.
PLACED: Final = sql_states(FINISHED - {"stored"})
#: What became of uploads that were neither refused nor given up by their devices.
FINISHED_OR_EXPIRED: Final = sql_states(STATES.keys() - {"open", "refused", "cancelled"})
