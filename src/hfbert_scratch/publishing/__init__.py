"""Publish a finished run: its records, the model card written from them, and the repository for the Hub."""
