"""The API documents over HTTP, in a browser, and against the routes of a server."""
