"""Data that ships with Errata: the starter cases and a held-out text, both written for this project."""
