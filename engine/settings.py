"""Settings: layers of plain values, checked and merged into frozen Structs. Nothing is read here.

A later layer wins key by key; domains merge by name, then key by key. The defaults are ``config.toml``,
the first layer, which has every key.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from ipaddress import ip_network
from typing import Annotated, Any, Final, Literal, NamedTuple, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta

from engine.domains import Domain

ENVIRONMENT: Final = "environment"
_PREFIX: Final = "TIDEMARK__"
_DOMAIN_NAME: Final = re.compile(r"[a-z][a-z0-9_]{0,63}\Z")

Text = Annotated[str, Meta(pattern=r"^[^\x00]*$")]
Count = Annotated[int, Meta(ge=1, le=1_000_000_000)]
SizeBytes = Annotated[int, Meta(ge=1024, le=1 << 31)]
Seconds = Annotated[float, Meta(gt=0, le=86_400)]
FileBytes = Annotated[int, Meta(ge=1, le=1 << 40)]
QuotaBytes = Annotated[int, Meta(ge=0, le=1 << 60)]
MediaType = Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9.+-]*/[a-z0-9][a-z0-9.+-]*$")]


class SettingsError(Exception):
    """Settings that cannot be used; one sentence names the key and the file."""


class Server(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where a process listens and how patient it is."""

    host: Annotated[str, Meta(min_length=1)]
    port: Annotated[int, Meta(ge=0, le=65_535)]
    workers: Annotated[int, Meta(ge=1, le=256)]
    drain_s: Annotated[float, Meta(ge=0, le=3600)]
    idle_s: Seconds
    heartbeat_s: Annotated[int, Meta(ge=1, le=3600)]
    outbox_bytes: SizeBytes
    write_patience_s: Seconds
    compress: bool
    origins: tuple[str, ...]
    trusted_proxies: tuple[str, ...]


class MessageLimits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one device may send, told in the welcome, what its tenant may, and what one answer may hold."""

    frame_bytes: SizeBytes
    items: Annotated[int, Meta(ge=1, le=10_000)]
    record_bytes: SizeBytes
    messages_per_minute: Count
    tenant_messages_per_minute: Count
    answer_data_bytes: SizeBytes


class Auth(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Keys of tokens. An empty text means not set; a path is relative to the working directory."""

    audience: Annotated[str, Meta(min_length=1)]
    secret: str
    secret_file: Text
    key_file: Text
    jwks_file: Text
    token_ttl_s: Annotated[int, Meta(ge=1, le=315_360_000)]
    leeway_s: Annotated[int, Meta(ge=0, le=3600)]

    def __repr__(self) -> str:
        """Show no secret, wherever this ends up being printed."""
        return "Auth(…)"


class Postgres(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The database; an empty ``dsn`` means the embedded one."""

    dsn: Text
    read_connections: Annotated[int, Meta(ge=1, le=100)]

    def __repr__(self) -> str:
        """Show no password, wherever this ends up being printed."""
        return "Postgres(…)"


class Redis(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The bus between processes; an empty ``url`` means the embedded one."""

    url: Text

    def __repr__(self) -> str:
        """Show no password, wherever this ends up being printed."""
        return "Redis(…)"


class Commit(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Bounds of the group commit."""

    lanes: Annotated[int, Meta(ge=1, le=64)]
    batch_items: Count
    batch_bytes: SizeBytes
    queue_messages: Count
    queue_bytes: SizeBytes


class FeedPages(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Bounds of the feed's pages and of its tail in memory."""

    page_bytes: SizeBytes
    tail_changes: Count
    tail_bytes: SizeBytes
    page_interval_ms: Annotated[float, Meta(ge=0, le=10_000)]


class Records(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How long the last data of a deleted record are kept; 0 keeps none."""

    tombstone_data_h: Annotated[float, Meta(ge=0, le=87_600)]


class Idempotency(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How long a message's answer is kept under its key."""

    lifetime_h: Annotated[int, Meta(ge=1, le=8760)]


class DeviceMemory(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How many devices a process keeps in mind, and how it keeps in step with what is stored of them."""

    remembered: Count
    ttl_s: Seconds
    flush_s: Seconds


class Uploads(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What files are taken, how many, and for how long what is unfinished or unwanted is kept.

    ``tenant_quotas`` are by tenant's name, in place of ``tenant_bytes``.
    """

    image_bytes: FileBytes
    image_types: tuple[MediaType, ...]
    document_bytes: FileBytes
    document_types: tuple[MediaType, ...]
    voice_bytes: FileBytes
    voice_types: tuple[MediaType, ...]
    tenant_bytes: QuotaBytes
    tenant_quotas: dict[str, QuotaBytes]
    files_per_record: Count
    expire_h: Annotated[float, Meta(gt=0, le=8760)]
    grace_h: Annotated[float, Meta(gt=0, le=87_600)]
    idle_s: Seconds
    write_threads: Annotated[int, Meta(ge=1, le=256)]


class S3(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where files are kept in place of a directory; an empty ``bucket`` means the directory."""

    bucket: Text
    endpoint: Text
    region: Text
    access_key_id: Text
    secret_access_key: Text

    def __repr__(self) -> str:
        """Show no secret, wherever this ends up being printed."""
        return "S3(…)"


class Log(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is logged, and for whom."""

    level: Literal["debug", "info", "warning", "error"]
    format: Literal["json", "console"]


class Data(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where files are kept, relative to the working directory."""

    dir: Annotated[str, Meta(min_length=1, pattern=r"^[^\x00]*$")]


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything that can be set. ``domains`` is by name."""

    server: Server
    limits: MessageLimits
    auth: Auth
    postgres: Postgres
    redis: Redis
    commit: Commit
    feed: FeedPages
    records: Records
    idempotency: Idempotency
    devices: DeviceMemory
    uploads: Uploads
    s3: S3
    log: Log
    data: Data
    domains: dict[str, Domain]


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
        return SettingsError(f"{self.source}: {self.name}: {why}")


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


def settings(layers: Sequence[Layer]) -> Settings:
    """Check each layer and merge them, later ones winning. Raises SettingsError."""
    merged: dict[tuple[str, ...], _Given] = {}
    domains: dict[str, dict[str, Any]] = {}
    for layer in layers:
        for name in layer.values.get("domains", ()):
            domains.setdefault(name, {})
        for given in _keys(layer):
            checked = _checked(given)
            merged[given.path] = given._replace(value=checked)
            if given.path[0] == "domains":
                domains[given.path[1]][given.path[2]] = checked
    sections: dict[str, dict[str, Any]] = {}
    for section, types in _TYPES.items():
        for key in types:
            if (section, key) not in merged:
                raise SettingsError(f"{layers[0].source}: {section}.{key} is missing")
            sections.setdefault(section, {})[key] = merged[section, key].value
    _check_together(merged)
    _check_networks(merged["server", "trusted_proxies"])
    return msgspec.convert({**sections, "domains": domains}, Settings)


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
        choices = get_args(wanted) if get_origin(wanted) is Literal else ()
        why = f"must be one of {', '.join(choices)}" if choices else str(error).replace("`", "")
        raise given.refused(why[0].lower() + why[1:]) from None


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
        return msgspec.json.decode(text)
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


def _check_networks(given: _Given) -> None:
    for text in given.value:  # type: ignore[attr-defined]  # it was checked as a list of texts
        try:
            ip_network(text)
        except ValueError:
            raise given.refused(f"{text} is neither an address nor a network such as 10.0.0.0/8") from None
