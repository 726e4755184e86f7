"""Where basinguard meets a framework; nothing else in the package imports one."""
