"""Locate-then-edit: one algorithm (keys, values, a solve) with interchangeable parts."""
