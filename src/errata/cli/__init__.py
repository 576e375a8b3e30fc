"""The console script ``errata``: one module a verb, each thin over library calls."""
