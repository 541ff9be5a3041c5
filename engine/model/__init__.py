"""What the store holds, as values: rows, contents, domains, uploads, tenants; no batch is planned here."""
