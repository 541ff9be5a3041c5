"""Keys of tenants that a test makes up, in place of those that a master key unwraps."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection

from engine.seal.ports import KeysMissingError
from engine.seal.sealer import TenantKeys
from storage.stores.sealed.sealing import Sealing


class MadeUpRing:
    """``engine.seal.ports.KeyRing``: each tenant has the keys 1 to ``newest``, made of its number.

    ``loads`` are the tenants of each load, ``loads_to_seal`` of those that write. All rings have the same
    keys, as the processes of a server.
    """

    def __init__(self, newest: int = 1) -> None:
        self.newest = newest
        self.loads: list[set[int]] = []
        self.loads_to_seal: list[set[int]] = []
        self._known: dict[int, TenantKeys] = {}

    def keys_of(self, tenant_id: int) -> TenantKeys:
        """Return the keys as they were loaded."""
        try:
            return self._known[tenant_id]
        except KeyError:
            raise KeysMissingError(tenant_id) from None

    sealing_keys_of = keys_of

    async def load(self, tenant_ids: Collection[int]) -> None:
        """Make the keys of tenants."""
        self.loads.append(set(tenant_ids))
        for tenant_id in tenant_ids:
            keys = {
                number: hashlib.sha256(b"%d/%d" % (tenant_id, number)).digest()
                for number in range(1, self.newest + 1)
            }
            self._known[tenant_id] = TenantKeys(b"%16d" % tenant_id, keys, self.newest, os.urandom)

    async def load_to_seal(self, tenant_ids: Collection[int]) -> None:
        """Make the keys of tenants, and note that they are to seal."""
        self.loads_to_seal.append(set(tenant_ids))
        await self.load(tenant_ids)


class MadeUpSealing(Sealing):
    """Sealing that the database does not know of: nothing is compared with it."""

    def check(self, *_: object) -> None:
        """Compare nothing."""


def sealing_of(*sealed: str, others: Collection[str] = (), ring: MadeUpRing | None = None) -> Sealing:
    """Return what seals some domains, and not ``others``."""
    sealing = MadeUpSealing(ring or MadeUpRing(), [*sealed, *others])
    sealing.follow(sealed)
    return sealing
