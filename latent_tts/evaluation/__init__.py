"""From problems to records, from records to metrics and reports."""
