DROP TABLE revoked_tokens;

DROP TABLE removed_tenants;
