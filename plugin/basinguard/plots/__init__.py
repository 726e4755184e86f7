"""Pictures a person looks at: contact sheets, a run in one look, the trade-off of a calibration."""
