"""What devices do that makes the health of their tenant good or bad."""

from __future__ import annotations

from tests.harness.ws_device import Device, put


async def pushes(device: Device, count: int) -> None:
    """Send syncs of one record each that all go well."""
    for number in range(count):
        await device.push(put(f"r{number}", None, n=number))


async def failures(device: Device, count: int) -> None:
    """Send syncs that fail by the device's own fault: a key that it used for another message."""
    await device.sync("once", put("once", None))
    for number in range(count):
        await device.refused("sync", key="once", items=[put("once", None, n=number)])
