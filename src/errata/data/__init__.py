"""Data that ships with Errata, all written for it: starter cases, a held-out text, made-up restricted topics."""
