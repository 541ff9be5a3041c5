"""Uploads and downloads as their protocols spell them; what an upload is stands in the engine."""
