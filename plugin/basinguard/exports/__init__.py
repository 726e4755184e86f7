"""Writing a checkpoint that carries its own protection, and reading it back. No framework is imported here."""
