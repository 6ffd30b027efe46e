"""The chapter of a study, docs/study.md: its tables and figures as functions of the metrics that are kept of the runs."""
