"""The deployment that Tidemark replaces, as far as a push needs it: Django Channels on Daphne.

It runs in an environment of its own, with the packages of ``channels/requirements.txt``, as
``python -m bench.peers.channels_server`` with a plan in the environment. It speaks the product's messages.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import Any, Final

import django
import jwt
from channels.db import DatabaseSyncToAsync
from channels.generic.websocket import AsyncJsonWebsocketConsumer
from django.conf import settings
from django.db import connection, models, transaction

PLAN: Final = json.loads(os.environ["TIDEMARK_BENCH_PLAN"])
SUBPROTOCOL: Final = "tidemark.v1.json"

settings.configure(
    DATABASES={
        "default": {
            "ENGINE": "django.db.backends.postgresql",
            **PLAN["database"],
            "CONN_MAX_AGE": None,  # connections stay: one of each thread
        }
    },
    CHANNEL_LAYERS={
        "default": {
            "BACKEND": "channels_redis.core.RedisChannelLayer",
            "CONFIG": {"hosts": [PLAN["redis_url"]]},
        }
    },
    USE_TZ=True,
    DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
)
django.setup()


class Item(models.Model):
    """A record of a tenant."""

    tenant = models.CharField(max_length=64)
    domain = models.CharField(max_length=32)
    record = models.CharField(max_length=64)
    version = models.BigIntegerField()
    device = models.CharField(max_length=64)
    at = models.DateTimeField()
    data = models.JSONField()

    class Meta:
        app_label = "peer"
        db_table = "peer_item"
        constraints = (models.UniqueConstraint("tenant", "domain", "record", name="peer_item_key"),)


class SyncIdempotencyRecord(models.Model):
    """The answer to a push, under its key."""

    tenant = models.CharField(max_length=64)
    device = models.CharField(max_length=64)
    key = models.CharField(max_length=64)
    results = models.JSONField()
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        app_label = "peer"
        db_table = "peer_key"
        constraints = (models.UniqueConstraint("tenant", "device", "key", name="peer_key_key"),)


def _stored(tenant: str, device: str, key: str, items: list[dict[str, Any]]) -> tuple[bool, list[Any]]:
    """Store a push and its key in one transaction, once. Returns whether it was known, and its results."""
    with transaction.atomic():
        known = SyncIdempotencyRecord.objects.filter(tenant=tenant, device=device, key=key).first()
        if known is not None:
            return True, known.results
        results = [_written(tenant, device, item) for item in items]
        SyncIdempotencyRecord.objects.create(tenant=tenant, device=device, key=key, results=results)
    return False, results


def _written(tenant: str, device: str, item: dict[str, Any]) -> dict[str, Any]:
    """Write an item if its device knows the newest version. Returns the result."""
    own = {"tenant": tenant, "domain": item["domain"], "record": item["id"]}
    kept = Item.objects.select_for_update().filter(**own).first() or Item(**own, version=0)
    status = "applied" if kept.version == (item["base"] or 0) else "conflict"
    if status == "applied":
        kept.version += 1
        kept.device, kept.at, kept.data = device, item["at"], item["data"]
        kept.save()
    return {
        "domain": kept.domain,
        "id": kept.record,
        "status": status,
        "version": kept.version,
        "seq": kept.pk,
    }


#: By default all pushes of a process take turns in one thread; else ASGI_THREADS is their number.
_store = DatabaseSyncToAsync(_stored, thread_sensitive=PLAN["threads"] == 1)


class SyncConsumer(AsyncJsonWebsocketConsumer):
    """A device's socket: a token at the handshake, then pushes."""

    async def connect(self) -> None:
        """Let a device with a good token in, to the group of its tenant."""
        _, _, token = dict(self.scope["headers"]).get(b"authorization", b"").partition(b" ")
        try:
            claims = jwt.decode(token, PLAN["secret"], algorithms=["HS256"], audience=PLAN["audience"])
        except jwt.InvalidTokenError:
            await self.close(4401)
            return
        self.tenant, self.device = claims["tid"], claims["did"]
        await self.channel_layer.group_add(f"tenant.{self.tenant}", self.channel_name)
        await self.accept(subprotocol=SUBPROTOCOL)
        await self.send_json({"type": "welcome"})

    async def disconnect(self, _: int) -> None:
        """Leave the group."""
        if hasattr(self, "tenant"):
            await self.channel_layer.group_discard(f"tenant.{self.tenant}", self.channel_name)

    async def receive_json(self, content: dict[str, Any]) -> None:
        """Store a push and acknowledge it."""
        replayed, results = await _store(self.tenant, self.device, content["key"], content["items"])
        await self.send_json(
            {"type": "synced", "id": content["id"], "replayed": replayed, "results": results}
        )


def _listening() -> None:
    sys.stdout.write(json.dumps({"event": "listening", "port": PLAN["port"]}) + "\n")
    sys.stdout.flush()


def _serve(port: int) -> None:
    """Run one Daphne until it is told to stop.

    Its import makes the event loop, which a process must not share with those that are forked from it.
    """
    from daphne.server import Server  # noqa: PLC0415

    endpoint = f"tcp:port={port}:interface=127.0.0.1:backlog=4096"
    # With 1,000 handshakes at once some take longer than the 5 s that are usual.
    Server(
        SyncConsumer.as_asgi(), [endpoint], websocket_handshake_timeout=60, ready_callable=_listening
    ).run()


def main() -> None:
    """Make the tables, and run the processes: one on the port, several on those after it."""
    with connection.schema_editor() as editor:
        editor.create_model(Item)
        editor.create_model(SyncIdempotencyRecord)
    connection.close()
    if PLAN["processes"] == 1:
        _serve(PLAN["port"])
        return
    children = []
    for number in range(PLAN["processes"]):
        child = os.fork()
        if not child:
            _serve(PLAN["port"] + 1 + number)
            os._exit(0)
        children.append(child)

    def stop(*_: object) -> None:
        for child in children:
            os.kill(child, signal.SIGTERM)

    signal.signal(signal.SIGTERM, stop)
    for child in children:
        os.waitpid(child, 0)


if __name__ == "__main__":
    main()
