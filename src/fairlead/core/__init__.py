"""Errors, configs, runs, sites, directions, readouts, records and statistics: the lowest layer."""
