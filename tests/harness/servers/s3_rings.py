"""Writes where each part of a Swift on this machine alone is: run as a process of its own, see own_s3.py."""

from __future__ import annotations

import sys
from pathlib import Path

from swift.common.ring import RingBuilder


def main(directory: Path, ports: list[str]) -> None:
    """Give the servers of objects, containers and accounts their ports, in this order."""
    for kind, port in zip(("object", "container", "account"), ports, strict=True):
        ring = RingBuilder(part_power=1, replicas=1, min_part_hours=1)
        address = {"ip": "127.0.0.1", "port": int(port)}
        replication = {f"replication_{name}": value for name, value in address.items()}
        place = {"id": 0, "region": 1, "zone": 1, "device": "disk", "weight": 1.0, "meta": ""}
        ring.add_dev(place | address | replication)
        ring.rebalance()
        ring.get_ring().save(str(directory / f"{kind}.ring.gz"))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
