"""The protocols of uploads and downloads over HTTP; no rules of uploads, which are in engine/uploads."""
