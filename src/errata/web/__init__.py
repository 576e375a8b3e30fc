"""Pages: self-contained HTML files that are functions of what was measured."""
