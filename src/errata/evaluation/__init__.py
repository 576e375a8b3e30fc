"""What measures: scores on cases, judges of text, metrics with intervals, and the schema they are kept in."""
