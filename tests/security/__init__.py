"""Attacks on a running server: each names what it attacks, and the server refuses it with an exact answer.

Every test carries the category of OWASP that it belongs to, and its section of the OWASP Application Security
Verification Standard (``catalogue.against``). ``pytest -m security`` runs them, with those of other folders
that carry the mark. Most are rows of a table: a name, a request, the answer.

An attack is refused only if, besides the answer, no row of the tenants concerned has changed, and a device
of another tenant syncs on (``arena.Arena.holds``). docs/security.md has the number of attacks by category;
``python -m tests.security.page`` writes it.
"""
