"""Layers of settings: plain values by their source, checked and merged. Nothing is read here.

A later layer wins key by key; domains merge by name, then key by key. The defaults are ``config.toml``,
the first layer, which has every key.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from ipaddress import ip_network
from typing import Annotated, Any, Final, Literal, NamedTuple, get_args, get_origin, get_type_hints

import msgspec

from engine.model.domains import Domain
from engine.runtime.schedule import Schedule, ScheduleError, time_zone
from engine.runtime.settings import Settings, SettingsError
from engine.wire.floats import json_decoder

#: The source of the layer that has every key.
DEFAULT: Final = "the defaults"
ENVIRONMENT: Final = "environment"
COMMAND_LINE: Final = "the command line"
_PREFIX: Final = "TIDEMARK__"
_DOMAIN_NAME: Final = re.compile(r"[a-z][a-z0-9_]{0,63}\Z")
#: A trigger refuses to delete younger rows of audit_log (storage/migrations/0033.audit_log.sql).
_LEAST_AUDIT_D: Final = 30
#: Telemetry of the last seven days is taken, and an hour that was deleted would be stored a second time.
_LEAST_TELEMETRY_D: Final = 8
#: Either of two keys says the same.
_ALTERNATIVES: Final = (
    (("postgres", "dsn"), ("postgres", "dsn_file")),
    (("postgres", "owner_dsn"), ("postgres", "owner_dsn_file")),
    (("postgres", "jobs_dsn"), ("postgres", "jobs_dsn_file")),
    (("redis", "url"), ("redis", "url_file")),
    (("sealing", "master_key"), ("sealing", "master_key_file")),
    (("sealing", "master_key"), ("sealing", "master_key_command")),
    (("sealing", "master_key_file"), ("sealing", "master_key_command")),
    (("alerts", "webhook_url"), ("alerts", "webhook_url_file")),
    (("alerts", "webhook_secret"), ("alerts", "webhook_secret_file")),
    (("alerts", "slack_webhook_url"), ("alerts", "slack_webhook_url_file")),
)


#: Each early threshold with the other one of its figure, and whether figures below them are findings.
EARLY_THRESHOLDS: Final = (
    ("success_rate_early", "success_rate_critical", True),
    ("conflict_rate_early", "conflict_rate_warning", False),
    ("failed_per_minute_early", "failed_per_minute_critical", False),
    ("upload_abandonment_early", "upload_abandonment_warning", False),
    ("device_health_early", "device_health_warning", True),
)
_NEVER_EARLY: Final = "an early warning beyond it would never come"


class Layer(NamedTuple):
    """Values of one source, nested as in TOML; ``source`` is a file's name, as errors show it."""

    source: str
    values: Mapping[str, Any]


class _Given(NamedTuple):
    """One key of one layer. ``path`` is (section, key) or ("domains", name, key)."""

    path: tuple[str, ...]
    value: object
    source: str

    @property
    def name(self) -> str:
        """The key as its source spells it."""
        if self.source == ENVIRONMENT:
            return _PREFIX + "__".join(self.path).upper()
        return ".".join(self.path)

    def table(self) -> Iterable[tuple[str, object]]:
        """Give the keys inside. Raises SettingsError."""
        if not isinstance(self.value, Mapping):
            raise self.refused("must be a table")
        return self.value.items()

    def refused(self, why: str) -> SettingsError:
        """Make the error that says why."""
        return SettingsError(f"{self.source}: {self.name}: {why}", file=self.source, key=self.name)


_TYPES: Final[dict[str, dict[str, Any]]] = {
    name: get_type_hints(struct, include_extras=True)
    for name, struct in get_type_hints(Settings).items()
    if name != "domains"
}
_DOMAIN_TYPES: Final[dict[str, Any]] = get_type_hints(Domain, include_extras=True)


def environment(variables: Mapping[str, str]) -> Layer:
    """Make a layer of ``TIDEMARK__SECTION__KEY`` variables; others are left alone.

    Texts are taken as they are; for a key of another type the value is JSON (``8081``, ``true``,
    ``["https://a.example"]``). Raises SettingsError.
    """
    values: dict[str, Any] = {}
    for variable, text in sorted(variables.items()):
        if not variable.startswith(_PREFIX):
            continue
        path = tuple(variable.removeprefix(_PREFIX).lower().split("__"))
        given = _Given(path, text, ENVIRONMENT)
        if len(path) != (3 if path[0] == "domains" else 2) or path[0] not in ("domains", *_TYPES):
            raise given.refused("no such setting; use TIDEMARK__SECTION__KEY or TIDEMARK__DOMAINS__NAME__KEY")
        wanted = _type_of(given)
        within = values
        for part in path[:-1]:
            within = within.setdefault(part, {})
        within[path[-1]] = text if _is_text(wanted) else _json(given, text)
    return Layer(ENVIRONMENT, values)


class InForce(msgspec.Struct, frozen=True):
    """One setting: its key as in ``config.toml``, its value, and its source, ``default`` or a layer's."""

    key: str
    value: Any
    source: str


def settings(layers: Sequence[Layer]) -> Settings:
    """Check each layer and merge them, later ones winning.

    Raises:
        SettingsError: A key or a value is wrong, or one does not fit another.
    """
    merged = _merged(layers)
    domains: dict[str, dict[str, Any]] = {}
    for layer in layers:
        domains.update((name, {}) for name in layer.values.get("domains", ()))
    sections: dict[str, dict[str, Any]] = {section: {} for section in _TYPES}
    for path, given in merged.items():
        within = domains[path[1]] if path[0] == "domains" else sections[path[0]]
        within[path[-1]] = given.value
    return msgspec.convert({**sections, "domains": domains}, Settings)


def in_force(layers: Sequence[Layer]) -> list[InForce]:
    """List every setting with its source, in the order of the first layer. Raises SettingsError."""
    return [
        InForce(".".join(path), given.value, "default" if given.source == DEFAULT else given.source)
        for path, given in _merged(layers).items()
    ]


def named_policies(layers: Sequence[Layer]) -> list[str]:
    """List the domains whose policy a layer above the defaults names."""
    return sorted(
        {
            name
            for layer in layers[1:]
            for name, domain in layer.values.get("domains", {}).items()
            if "policy" in domain
        }
    )


def _merged(layers: Sequence[Layer]) -> dict[tuple[str, ...], _Given]:
    """Find for each key the layer that wins. Raises SettingsError."""
    merged: dict[tuple[str, ...], _Given] = {}
    for layer in layers:
        for given in _keys(layer):
            merged[given.path] = given._replace(value=_checked(given))
    for section, types in _TYPES.items():
        for key in types:
            if (section, key) not in merged:
                raise SettingsError(f"{layers[0].source}: {section}.{key} is missing")
    _check_together(merged)
    _check_roles(merged)
    _check_events(merged)
    _check_audit(merged)
    _check_telemetry(merged)
    _check_networks(merged["server", "trusted_proxies"])
    _check_jobs(merged)
    _check_thresholds(merged)
    return merged


def _keys(layer: Layer) -> Iterator[_Given]:
    """Walk the keys of a layer. Raises SettingsError for what is not where keys stand."""
    for section, table in layer.values.items():
        given = _Given((section,), table, layer.source)
        if section not in _TYPES and section != "domains":
            raise given.refused(f"there is no such section; known: {', '.join(_TYPES)}, domains")
        for key, value in given.table():
            inner = _Given((section, key), value, layer.source)
            if section != "domains":
                yield inner
                continue
            if not _DOMAIN_NAME.match(key):
                raise inner.refused("a domain's name is a letter, then up to 63 of a-z, 0-9 and _")
            for field, innermost in inner.table():
                yield _Given((section, key, field), innermost, layer.source)


def _checked(given: _Given) -> object:
    wanted = _type_of(given)
    try:
        return msgspec.convert(given.value, wanted)
    except msgspec.ValidationError as error:
        raise given.refused(_why(given.value, wanted, error)) from None


def _why(value: object, wanted: Any, error: msgspec.ValidationError) -> str:
    """Say why a value is not of its type, with the name of the entry of a table that is wrong."""
    inner: Mapping[str, Any] = {}
    if isinstance(value, Mapping) and get_origin(wanted) is dict:
        inner = dict.fromkeys(value, get_args(wanted)[1])
    elif isinstance(value, Mapping) and hasattr(wanted, "__struct_fields__"):
        inner = get_type_hints(wanted, include_extras=True)
    if isinstance(value, Mapping):
        for name, entry in value.items():
            if inner and name not in inner:
                return f"{name}: there is no such key; known here: {', '.join(inner)}"
            try:
                msgspec.convert(entry, inner.get(name, Any))
            except msgspec.ValidationError as wrong:
                return f"{name}: {_why(entry, inner[name], wrong)}"
    choices = get_args(wanted) if get_origin(wanted) is Literal else ()
    why = f"must be one of {', '.join(choices)}" if choices else str(error).replace("`", "")
    return why[0].lower() + why[1:]


def _type_of(given: _Given) -> Any:
    """Return the type that a key wants. Raises SettingsError for one that does not exist."""
    types = _DOMAIN_TYPES if given.path[0] == "domains" else _TYPES[given.path[0]]
    if given.path[-1] not in types:
        raise given.refused(f"there is no such key; known here: {', '.join(types)}")
    return types[given.path[-1]]


def _is_text(wanted: Any) -> bool:
    plain = get_args(wanted)[0] if get_origin(wanted) is Annotated else wanted
    return plain is str or get_origin(plain) is Literal


def _json(given: _Given, text: str) -> object:
    try:
        return json_decoder().decode(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        raise given.refused('must be JSON, such as 1, true or ["a"]') from None


def _check_together(merged: Mapping[tuple[str, ...], _Given]) -> None:
    """Hold keys against each other: a value may be fine alone and wrong beside another."""
    for low_path, high_path in (
        (("server", "heartbeat_s"), ("server", "idle_s")),
        (("limits", "record_bytes"), ("limits", "frame_bytes")),
        (("limits", "frame_bytes"), ("commit", "queue_bytes")),
    ):
        low, high = merged[low_path], merged[high_path]
        if not low.value < high.value:  # type: ignore[operator]  # both were checked as numbers
            raise high.refused(f"must be above {low.name} of {low.source}, which is {low.value}")
    for one, other in _ALTERNATIVES:
        if merged[one].value and merged[other].value:
            raise merged[other].refused(
                f"{merged[one].name} of {merged[one].source} is set as well: keep one of them"
            )


def _check_roles(merged: Mapping[tuple[str, ...], _Given]) -> None:
    """Refuse roles of a database that is not named: they would be of another one than the embedded one."""
    if merged["postgres", "dsn"].value or merged["postgres", "dsn_file"].value:
        return
    for name in ("owner_dsn", "owner_dsn_file", "jobs_dsn", "jobs_dsn_file"):
        if merged["postgres", name].value:
            raise merged["postgres", name].refused("postgres.dsn is not set: set it, too")


def _check_events(merged: Mapping[tuple[str, ...], _Given]) -> None:
    """Refuse events that go while their message may come again: they would be stored a second time."""
    events, lifetime = merged["retention", "events_d"], merged["idempotency", "lifetime_h"]
    if 0 < events.value * 24 <= lifetime.value:  # type: ignore[operator]  # both were checked as numbers
        raise events.refused(
            f"must be 0, or more days than the {lifetime.value} hours of {lifetime.name} of {lifetime.source}"
        )


def _check_audit(merged: Mapping[tuple[str, ...], _Given]) -> None:
    """Refuse to delete security events that the database holds fast."""
    audit = merged["retention", "audit_d"]
    if 0 < audit.value < _LEAST_AUDIT_D:  # type: ignore[operator]  # it was checked as a number
        raise audit.refused(f"must be 0, or {_LEAST_AUDIT_D} or more: events are kept for so long")


def _check_telemetry(merged: Mapping[tuple[str, ...], _Given]) -> None:
    """Refuse to delete telemetry that may come again."""
    telemetry = merged["retention", "telemetry_d"]
    if 0 < telemetry.value < _LEAST_TELEMETRY_D:  # type: ignore[operator]  # it was checked as a number
        raise telemetry.refused(f"must be 0, or {_LEAST_TELEMETRY_D} or more: it may come again for 7 days")


def _check_networks(given: _Given) -> None:
    for text in given.value:  # type: ignore[attr-defined]  # it was checked as a list of texts
        try:
            ip_network(text)
        except ValueError:
            raise given.refused(f"{text} is neither an address nor a network such as 10.0.0.0/8") from None


def _check_jobs(merged: Mapping[tuple[str, ...], _Given]) -> None:
    zone = merged["jobs", "timezone"]
    for given in [given for path, given in merged.items() if path[0] == "jobs"]:
        try:
            if given is zone:
                time_zone(str(given.value))
            else:
                Schedule(str(given.value), str(zone.value))
        except ScheduleError as error:
            raise given.refused(str(error)) from None


def _check_thresholds(merged: Mapping[tuple[str, ...], _Given]) -> None:
    """Refuse an early threshold that is beyond the other one, for all tenants and for each."""
    chosen = {path[1]: given for path, given in merged.items() if path[0] == "monitor"}
    for name, other, below in EARLY_THRESHOLDS:
        early, hard = chosen[name], chosen[other]
        if _is_beyond(early.value, hard.value, below=below):
            side = "least" if below else "most"
            raise early.refused(
                f"must be at {side} {hard.name} of {hard.source}, which is {hard.value:g}: {_NEVER_EARLY}"
            )
    tenants = chosen["tenants"]
    for tenant, own in tenants.value.items():  # type: ignore[attr-defined]  # it was checked as a table
        for name, other, below in EARLY_THRESHOLDS:
            values = [
                chosen[key].value if getattr(own, key) is msgspec.UNSET else getattr(own, key)
                for key in (name, other)
            ]
            if _is_beyond(*values, below=below):
                side = "least" if below else "most"
                raise tenants.refused(
                    f"{tenant}: {name} ({values[0]:g}) must be at {side} {other} ({values[1]:g}):"
                    f" {_NEVER_EARLY}"
                )


def _is_beyond(early: Any, hard: Any, *, below: bool) -> bool:
    return bool(early < hard if below else early > hard)
