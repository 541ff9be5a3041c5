"""The API as documents and the pages that show them; nothing here knows a tenant or a setting."""
