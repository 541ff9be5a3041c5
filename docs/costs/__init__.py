"""Everything that a client or a tenant can take, and its limit. docs/security.md is made of these tables."""
