"""Outages brought about on a running server, found and mended by the commands of ``docs/outages.md``.

A cause is a file of ``causes`` and a section of the page. ``python -m tests.system.outages database_down``
prints all of it: symptom, alert, the commands of the page with their output, and the audit of devices.
"""
