"""Settings: layers, what is refused and how it is named, and that config.toml is whole."""

from __future__ import annotations

import math
import tomllib
from pathlib import Path
from typing import Any

import msgspec
import pytest

from engine.operate.monitor.metrics import RULES, Rule
from engine.runtime.setting_layers import EARLY_THRESHOLDS, Layer, environment, settings
from engine.runtime.settings import Settings, SettingsError, TenantThresholds, Thresholds

_FILE = Path(__file__).parents[3] / "config.toml"
DEFAULTS = Layer("config.toml", tomllib.loads(_FILE.read_text("utf-8")))

Values = dict[str, Any]


def load(*layers: Values, **variables: str) -> Settings:
    """The defaults under further layers, called own.toml, and the environment."""
    return settings([DEFAULTS, *(Layer("own.toml", values) for values in layers), environment(variables)])


def test_the_defaults_hold_every_domain_of_the_field() -> None:
    domains = load().domains
    records = {name: domain.policy for name, domain in domains.items() if domain.kind == "record"}
    assert records == {
        "task": "field_merge",
        "work_order": "field_merge",
        "attendance": "server_wins",
        "ticket": "preserve_escalation",
        "journal": "client_wins",
    }
    assert {name: domain.required for name, domain in domains.items() if domain.kind == "event"} == {
        "voice": ("verification_id", "timestamp", "verified"),
        "behavioral": ("event_id", "event_type", "timestamp"),
        "session": ("session_id", "session_start"),
        "metrics": ("metric_name", "value", "timestamp"),
    }
    assert domains["task"].status["STANDBY"] == ("ASSIGNED", "INPROGRESS")


@pytest.mark.parametrize(
    ("section", "key"),
    [(section, key) for section, keys in DEFAULTS.values.items() if section != "domains" for key in keys],
)
def test_config_toml_cannot_leave_a_key_out(section: str, key: str) -> None:
    torn = {name: dict(keys) for name, keys in DEFAULTS.values.items()}
    del torn[section][key]
    with pytest.raises(SettingsError, match=rf"config\.toml: {section}\.{key} is missing"):
        settings([Layer("config.toml", torn)])


def test_every_key_is_explained_in_config_toml() -> None:
    section = ""
    for line in _FILE.read_text("utf-8").splitlines():
        if line.startswith("["):
            section = line
        elif " = " in line and not line.startswith("#") and not section.startswith("[domains"):
            assert "#" in line, line


def test_a_later_layer_wins_key_by_key() -> None:
    chosen = load(
        {"server": {"port": 1, "host": "::1"}, "feed": {"tail_changes": 7}},
        {"server": {"port": 2}},
        TIDEMARK__FEED__TAIL_CHANGES="8",
        TIDEMARK_OTHER="ignored",
        PATH="/bin",
    )
    assert (chosen.server.port, chosen.server.host, chosen.feed.tail_changes) == (2, "::1", 8)
    assert chosen.server.drain_s == load().server.drain_s


def test_domains_merge_by_name_and_key() -> None:
    chosen = load(
        {"domains": {"task": {"policy": "manual"}, "patrol": {"required": ["route"]}, "bare": {}}},
        TIDEMARK__DOMAINS__WORK_ORDER__POLICY="field_merge",
        TIDEMARK__DOMAINS__PATROL__STATUS='{"OUT": ["BACK"]}',
    ).domains
    assert (chosen["task"].policy, chosen["task"].status) == ("manual", load().domains["task"].status)
    assert (chosen["patrol"].required, chosen["patrol"].status) == (("route",), {"OUT": ("BACK",)})
    assert chosen["work_order"].policy == "field_merge"
    assert chosen["bare"].kind == "record"


def test_the_environment_reads_each_type() -> None:
    chosen = load(
        TIDEMARK__SERVER__COMPRESS="false",
        TIDEMARK__SERVER__DRAIN_S="0.5",
        TIDEMARK__SERVER__ORIGINS='["https://a.example"]',
        TIDEMARK__LOG__FORMAT="console",
        TIDEMARK__AUTH__SECRET="12345",  # text, though it looks like a number
    )
    assert (chosen.server.compress, chosen.server.drain_s) == (False, 0.5)
    assert chosen.server.origins == ("https://a.example",)
    assert (chosen.log.format, chosen.auth.secret) == ("console", "12345")


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"server": {"prot": 1}}, "own.toml: server.prot: there is no such key"),
        ({"servr": {"port": 1}}, "own.toml: servr: there is no such section"),
        ({"servr": {}}, "own.toml: servr: there is no such section"),
        ({"port": 1}, "own.toml: port: there is no such section"),
        ({"server": 1}, "own.toml: server: must be a table"),
        ({"domains": {"task": 1}}, "own.toml: domains.task: must be a table"),
        ({"domains": {"task": {"polcy": "manual"}}}, "own.toml: domains.task.polcy: there is no such key"),
        ({"domains": {"Task": {"policy": "manual"}}}, "own.toml: domains.Task: a domain's name"),
        ({"domains": {"a__b!": {}}}, "own.toml: domains.a__b!: a domain's name"),
        ({"server": {"port": "80"}}, "own.toml: server.port: expected int, got str"),
        ({"server": {"port": True}}, "own.toml: server.port: expected int, got bool"),
        ({"server": {"port": -1}}, "own.toml: server.port: expected int >= 0"),
        ({"postgres": {"jobs_dsn": "host=db1"}}, "own.toml: postgres.jobs_dsn: postgres.dsn is not set"),
        ({"server": {"port": 65536}}, "own.toml: server.port: expected int <= 65535"),
        ({"server": {"workers": 0}}, "own.toml: server.workers: expected int >= 1"),
        ({"server": {"drain_s": math.nan}}, "own.toml: server.drain_s: expected float"),
        ({"server": {"drain_s": math.inf}}, "own.toml: server.drain_s: expected float"),
        ({"server": {"origins": "https://a.example"}}, "own.toml: server.origins: expected array"),
        ({"server": {"trusted_proxies": ["10.0.0.1/8"]}}, "own.toml: server.trusted_proxies: 10.0.0.1/8 is"),
        ({"jobs": {"warm": "0 2 * *"}}, "own.toml: jobs.warm: must have 5 fields"),
        ({"jobs": {"warm": "0 25 * * *"}}, "own.toml: jobs.warm: is no cron expression: Bad hour"),
        ({"jobs": {"timezone": "Mars"}}, "own.toml: jobs.timezone: there is no time zone Mars on this host"),
        (
            {"monitor": {"tenants": {"acme": {"conflict_rate": 0.1}}}},
            "own.toml: monitor.tenants: acme: conflict_rate: there is no such key; known here: success_rate_",
        ),
        (
            {"monitor": {"tenants": {"a": {}, "b": {"conflict_rate_early": 3}}}},
            "own.toml: monitor.tenants: b: conflict_rate_early: expected float",
        ),
        (
            {"uploads": {"tenant_quotas": {"acme": "1 GB"}}},
            "own.toml: uploads.tenant_quotas: acme: expected int, got str",
        ),
        ({"commit": {"lanes": 0}}, "own.toml: commit.lanes: expected int >= 1"),
        ({"log": {"level": "loud"}}, "own.toml: log.level: must be one of debug, info, warning, error"),
        ({"domains": {"task": {"fallback": "field_merge"}}}, "own.toml: domains.task.fallback: must be one"),
        ({"server": {"idle_s": 30}}, "own.toml: server.idle_s: must be above server.heartbeat_s of config."),
        ({"limits": {"frame_bytes": 262144}}, "own.toml: limits.frame_bytes: must be above limits.record_"),
        ({"commit": {"queue_bytes": 1048576}}, "own.toml: commit.queue_bytes: must be above limits.frame_"),
    ],
)
def test_what_is_wrong_is_named_with_its_file(values: Values, named: str) -> None:
    with pytest.raises(SettingsError) as refused:
        load(values)
    assert str(refused.value).startswith(named)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("variable", "text", "said"),
    [
        ("TIDEMARK__SERVER__PROT", "1", "there is no such key"),
        ("TIDEMARK__SERVR__PORT", "1", "no such setting"),
        ("TIDEMARK__SERVER", "1", "no such setting"),
        ("TIDEMARK__DOMAINS__TASK", "{}", "no such setting"),
        ("TIDEMARK__", "1", "no such setting"),
        ("TIDEMARK__SERVER__PORT", "http", "must be JSON"),
        ("TIDEMARK__SERVER__PORT", "80.5", "expected int, got float"),
        ("TIDEMARK__DOMAINS__TASK__POLICY", "newest", "must be one of"),
        ("TIDEMARK__SERVER__IDLE_S", "5", "must be above server.heartbeat_s of config.toml"),
    ],
)
def test_the_environment_is_named_by_its_variable(variable: str, text: str, said: str) -> None:
    with pytest.raises(SettingsError) as refused:
        load(**{variable: text})
    assert str(refused.value).startswith(f"environment: {variable}: {said}")


def test_no_secret_is_ever_shown() -> None:
    secret = "do-not-show"
    chosen = load(
        {"auth": {"secret": secret}, "postgres": {"dsn": f"password={secret}"}, "redis": {"url": secret}}
    )
    assert secret not in repr(chosen)
    for section in ("auth", "postgres", "redis"):
        key = {"auth": "secret", "postgres": "dsn", "redis": "url"}[section]
        with pytest.raises(SettingsError) as refused:
            load({section: {key: [secret]}})
        assert secret not in str(refused.value)


def test_monitor_thresholds_of_a_tenant_replace_those_for_all() -> None:
    monitor = load({"monitor": {"tenants": {"acme": {"min_syncs": 3, "device_health_early": 75}}}}).monitor
    own, common = monitor.thresholds("acme"), monitor.thresholds("globex")
    assert (own.min_syncs, own.device_health_early, own.min_failures) == (3, 75, 5)
    assert common == monitor.thresholds(None) == monitor


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (
            {"success_rate_early": 0.9},
            "success_rate_early: must be at least monitor.success_rate_critical of config.toml, which",
        ),
        (
            {"failed_per_minute_critical": 4.5},
            "failed_per_minute_early: must be at most monitor.failed_per_minute_critical of own.toml,",
        ),
        (
            {"tenants": {"a": {}, "b": {"device_health_warning": 90}}},
            "tenants: b: device_health_early (80) must be at least device_health_warning (90): ",
        ),
        (
            {"tenants": {"b": {"upload_abandonment_early": 0.21}}},
            "tenants: b: upload_abandonment_early (0.21) must be at most upload_abandonment_warning (0.2): ",
        ),
    ],
)
def test_monitor_early_threshold_beyond_the_other_one_is_refused(values: Values, said: str) -> None:
    with pytest.raises(SettingsError) as refused:
        load({"monitor": values})
    assert str(refused.value).partition("monitor.")[2].startswith(said)


def test_monitor_early_threshold_equal_to_the_other_one_is_taken() -> None:
    own = {"conflict_rate_early": 0.05, "success_rate_early": 0.95}
    assert load({"monitor": {**own, "tenants": {"acme": own}}}).monitor.conflict_rate_early == 0.05


def test_monitor_every_early_threshold_is_held_against_the_other_one_of_its_figure() -> None:
    held = {(early, other) for rule in RULES if (both := _of_one_figure(rule)) for early, other in [both]}
    assert held == {(early, other) for early, other, _ in EARLY_THRESHOLDS}
    assert {early for early, _, below in EARLY_THRESHOLDS if below} == {
        "success_rate_early",
        "device_health_early",
    }


def _of_one_figure(rule: Rule) -> tuple[str, str] | None:
    """The names of the early threshold of a rule and of the other one, if both are of the same figure."""
    if len(rule.limits) < 2 or rule.limits[0].name != rule.limits[1].name:
        return None
    names = {field.name for field in msgspec.structs.fields(Thresholds)}
    numbered = msgspec.structs.replace(load().monitor, **{name: at for at, name in enumerate(sorted(names))})
    other, early = (sorted(names)[int(limit.threshold(numbered))] for limit in rule.limits)
    return early, other


def test_monitor_every_threshold_can_be_set_by_tenant() -> None:
    names = [field.name for field in msgspec.structs.fields(Thresholds)]
    assert [field.name for field in msgspec.structs.fields(TenantThresholds)] == names
    for field in msgspec.structs.fields(TenantThresholds):
        assert field.default is msgspec.UNSET


def test_monitor_unknown_threshold_of_a_tenant_is_named() -> None:
    with pytest.raises(SettingsError, match=r"own.toml: monitor.tenants: .*succes_rate"):
        load({"monitor": {"tenants": {"acme": {"succes_rate": 0.9}}}})


@pytest.mark.parametrize("name", ["public", "information_schema", "pg_temp", "North", "a-b"])
def test_settings_schema_of_no_cell_is_refused(name: str) -> None:
    with pytest.raises(SettingsError, match=r"own\.toml: postgres\.schema"):
        load({"postgres": {"schema": name}})


@pytest.mark.parametrize("name", ["", "north", "publicity", "_pg"])
def test_settings_schema_of_a_cell_is_taken(name: str) -> None:
    assert load({"postgres": {"schema": name}}).postgres.schema == name
