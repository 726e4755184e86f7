"""What several tests build or fake; never a test module."""
