"""Texts that mean something to what stands behind a server, if it lets them through as code."""

from __future__ import annotations

from typing import Final

TEXTS: Final = {
    "a quote": "' OR '1'='1",
    "a second statement": "x'); DELETE FROM records; DROP TABLE events; --",
    "a union": "' UNION SELECT name, tenant_id FROM tenants --",
    "a wait": "1) OR pg_sleep(60) IS NOT NULL --",
    "a dollar quote": "$$; COPY records TO PROGRAM 'id'; $$",
    "a backslash": "\\'; UPDATE tenants SET name = 'x'; --",
    "a format": "%s %(tenant_id)s %% {0.__class__} {tenant}",
    "an array": '","globex"},{NULL,"',
    "an operator": '{"$ne": null, "$where": "sleep(1000)"}',
    "a shell": "a; id > /tmp/owned | cat `id` $(id) #",
    "a template": "{{7*7}} ${7*7} ${jndi:ldap://127.0.0.1:1/a} <%= 7*7 %>",
    "a page": "<script>alert(1)</script><!--#exec cmd=id-->",
    "an entity": '<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]>&b;',
    "a path": "../../../../etc/passwd",
    "a formula": '=HYPERLINK("http://127.0.0.1/?"&A1)',
}
#: Texts with control characters, which end lines and begin commands elsewhere.
CONTROLS: Final = {
    "a line": "a\r\nFLUSHALL\r\n*1\r\n$8\r\nSHUTDOWN",
    "a header": "a\r\nSet-Cookie: a=b\r\n\r\n<html>",
    "an escape": "\x1b[2J\x1b]0;owned\x07",
    "a NUL": "globex\0acme",
    "a C1 control": "\x9b31m\x85",
}
