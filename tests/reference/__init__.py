"""Plain, slow, obviously right implementations that the package's fast ones must match."""
