"""The dashboard *business*: devices, volume, conflicts and files."""

from __future__ import annotations

from typing import Final

from deploy.grafana.panels import Dashboard, Panel, Query, Row, grown, highest, lowest, rate, total

_WITH_CONFLICT: Final = rate("tidemark_items_total", where='status=~"conflict|resolved"')
_SETTLED: Final = grown("tidemark_conflicts_total", where='outcome=~"server|client|merged"')
_MET: Final = grown("tidemark_conflicts_total", where='outcome!="held"')
_TENANTS_FAIL: Final = rate("tidemark_tenant_syncs_total", "tenant", where='outcome!="succeeded"')
_TENANTS_SUCCEED: Final = rate("tidemark_tenant_syncs_total", "tenant", where='outcome="succeeded"')
_TENANTS_HEALTH: Final = lowest("tidemark_tenant_health_score", "tenant")
_TENANTS_HOLD: Final = rate("tidemark_tenant_conflicts_total", "tenant", where='outcome="held"')
_TENANTS_ABANDON: Final = rate("tidemark_tenant_uploads_total", "tenant", where='outcome="abandoned"')

BUSINESS: Final = Dashboard(
    "business",
    "Tidemark: business",
    "Devices, volume, conflicts and files.",
    (
        Row(
            "Devices",
            (
                Panel(
                    "Connected now",
                    "short",
                    "Devices with an open connection.",
                    (Query(total("tidemark_connections"), "devices"),),
                    is_number=True,
                ),
                Panel(
                    "Known to a process",
                    "short",
                    "Devices that a process remembers. One that moved between processes counts at each.",
                    (Query(total("tidemark_devices_remembered"), "devices"),),
                    is_number=True,
                ),
                Panel(
                    "Tenants",
                    "short",
                    "Tenants that a process has served since its start, at the process with the most.",
                    (Query(highest("tidemark_tenants_remembered"), "tenants"),),
                    is_number=True,
                ),
                Panel(
                    "Revoked",
                    "short",
                    "Devices and tokens that are refused.",
                    (
                        Query(highest("tidemark_devices_revoked"), "devices"),
                        Query(highest("tidemark_tokens_revoked"), "tokens"),
                    ),
                    is_number=True,
                ),
                Panel(
                    "Connected",
                    "short",
                    "Devices with an open connection, by host.",
                    (Query(total("tidemark_connections", "instance"), "{{instance}}"),),
                ),
                Panel(
                    "Connections opened",
                    "ops",
                    "How often devices connect.",
                    (Query(rate("tidemark_connections_opened_total"), "opened"),),
                ),
            ),
        ),
        Row(
            "Volume",
            (
                Panel(
                    "Items stored",
                    "ops",
                    "Items that changed a record or added an event.",
                    (Query(rate("tidemark_items_total", where='status=~"applied|resolved"'), "items"),),
                ),
                Panel(
                    "Received",
                    "Bps",
                    "Bytes of messages and of files.",
                    (
                        Query(rate("tidemark_received_bytes_total"), "messages"),
                        Query(rate("tidemark_upload_received_bytes_total"), "files"),
                    ),
                ),
                Panel(
                    "Rows that tenants hold",
                    "short",
                    "Rows of all tenants together.",
                    (Query(highest("tidemark_held_rows", "kind"), "{{kind}}"),),
                ),
                Panel(
                    "Bytes that tenants hold",
                    "bytes",
                    "Bytes of JSON in these rows.",
                    (Query(highest("tidemark_held_bytes", "kind"), "{{kind}}"),),
                ),
                Panel(
                    "The fullest tenant",
                    "percentunit",
                    "How much of each bound the fullest tenant uses. At 100 % its messages are refused.",
                    (Query(highest("tidemark_tenant_fullest_ratio", "bound"), "{{bound}}"),),
                ),
                Panel(
                    "Refused for want of room",
                    "ops",
                    "Messages of full tenants, or of all while the database is full.",
                    (Query(rate("tidemark_messages_without_room_total"), "messages"),),
                ),
            ),
        ),
        Row(
            "Conflicts",
            (
                Panel(
                    "Open",
                    "short",
                    "Conflicts that wait for a person, counted up to 100,000.",
                    (Query(highest("tidemark_open_conflicts"), "conflicts"),),
                    is_number=True,
                ),
                Panel(
                    "Settled without a person",
                    "percentunit",
                    "The part of new conflicts that a policy settled, over the time that is shown.",
                    (Query(f"{_SETTLED} / {_MET}", "by policy"),),
                    is_number=True,
                ),
                Panel(
                    "Quarantine",
                    "short",
                    "Rejected items that are kept.",
                    (Query(highest("tidemark_held_rows", where='kind="quarantine"'), "items"),),
                    is_number=True,
                ),
                Panel(
                    "Conflicts, of all items",
                    "percentunit",
                    "Above 5 % an alert fires.",
                    (
                        Query(
                            f"{_WITH_CONFLICT} / {rate('tidemark_items_total')}",
                            "conflicts",
                        ),
                    ),
                    is_number=True,
                ),
                Panel(
                    "By outcome",
                    "ops",
                    "server, client, merged: settled by policy. open: for a person. held: joins an open one.",
                    (Query(rate("tidemark_conflicts_total", "outcome"), "{{outcome}}"),),
                ),
                Panel(
                    "By policy",
                    "ops",
                    "New conflicts by the policy of their domain and tenant.",
                    (Query(rate("tidemark_conflicts_total", "policy"), "{{policy}}"),),
                ),
                Panel(
                    "Settled by people",
                    "ops",
                    "Open conflicts that devices of supervisors settled, by the side that was chosen.",
                    (Query(rate("tidemark_conflicts_settled_total", "choice"), "{{choice}}"),),
                ),
                Panel(
                    "Rejected items",
                    "ops",
                    "Items that went to the quarantine.",
                    (Query(rate("tidemark_items_total", where='status="rejected"'), "rejected"),),
                ),
            ),
        ),
        Row(
            "Tenants, where metrics.tenants is true",
            (
                Panel(
                    "Health of tenants",
                    "short",
                    "The scores of the ten tenants with the lowest.",
                    (Query(f"bottomk(10, {_TENANTS_HEALTH})", "{{tenant}}"),),
                ),
                Panel(
                    "Syncs of tenants",
                    "reqps",
                    "The ten tenants with the most syncs.",
                    (Query(f"topk(10, {rate('tidemark_tenant_syncs_total', 'tenant')})", "{{tenant}}"),),
                ),
                Panel(
                    "Failed and refused of tenants",
                    "ops",
                    "The ten tenants with the most syncs that did not succeed.",
                    (Query(f"topk(10, {_TENANTS_FAIL})", "{{tenant}}"),),
                ),
                Panel(
                    "Mean duration of tenants' syncs",
                    "s",
                    "The ten tenants whose syncs take longest.",
                    (
                        Query(
                            f"topk(10, {rate('tidemark_tenant_sync_seconds_total', 'tenant')}"
                            f" / {_TENANTS_SUCCEED})",
                            "{{tenant}}",
                        ),
                    ),
                ),
                Panel(
                    "Conflicts held for people",
                    "ops",
                    "The ten tenants with the most new ones.",
                    (Query(f"topk(10, {_TENANTS_HOLD})", "{{tenant}}"),),
                ),
                Panel(
                    "Items of tenants",
                    "ops",
                    "Items of the ten tenants with the most.",
                    (Query(f"topk(10, {rate('tidemark_tenant_items_total', 'tenant')})", "{{tenant}}"),),
                ),
                Panel(
                    "Bytes of tenants",
                    "Bps",
                    "Bytes of messages and files of the ten tenants with the most.",
                    (
                        Query(
                            f"topk(10, {rate('tidemark_tenant_received_bytes_total', 'tenant')})",
                            "{{tenant}}",
                        ),
                    ),
                ),
                Panel(
                    "Connections of tenants",
                    "short",
                    "The ten tenants with the most connected devices.",
                    (Query(f"topk(10, {total('tidemark_tenant_connections', 'tenant')})", "{{tenant}}"),),
                ),
                Panel(
                    "Uploads that tenants gave up",
                    "ops",
                    "The ten tenants with the most.",
                    (Query(f"topk(10, {_TENANTS_ABANDON})", "{{tenant}}"),),
                ),
            ),
        ),
        Row(
            "Files",
            (
                Panel(
                    "Uploads",
                    "ops",
                    "Uploads by what became of them.",
                    (
                        Query(rate("tidemark_uploads_created_total"), "begun"),
                        Query(rate("tidemark_uploads_finished_total"), "finished"),
                        Query(rate("tidemark_uploads_cancelled_total"), "cancelled"),
                        Query(rate("tidemark_uploads_expired_total"), "given up"),
                    ),
                ),
                Panel(
                    "Requests with bytes",
                    "ops",
                    "Chunks of uploads.",
                    (Query(rate("tidemark_upload_chunks_total"), "chunks"),),
                ),
                Panel(
                    "Given up",
                    "percentunit",
                    "The part of the last day's uploads that was given up. Above 20 % an alert fires.",
                    (Query(highest("tidemark_upload_abandonment_ratio"), "given up"),),
                ),
                Panel(
                    "Cleaned up",
                    "ops",
                    "Files of records that are gone, and bytes that no row lists.",
                    (
                        Query(rate("tidemark_upload_files_freed_total"), "files"),
                        Query(rate("tidemark_upload_orphans_removed_total"), "without a row"),
                    ),
                ),
            ),
        ),
    ),
)
