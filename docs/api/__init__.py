"""The API as documents: OpenAPI of the HTTP routes, AsyncAPI of the WebSocket, JSON Schemas of both."""
