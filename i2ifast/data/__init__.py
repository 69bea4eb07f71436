"""Folders to batches: datasets, collation with label plans, a deterministic resumable loader, procedural data."""
