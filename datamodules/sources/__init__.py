"""Where problems and examples come from: tables of rows, and generators."""
