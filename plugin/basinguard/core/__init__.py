"""What every other folder stands on: records, reports, intervals, seeds, and the only code that opens files."""
