"""The model card and the repository on the Hub."""
