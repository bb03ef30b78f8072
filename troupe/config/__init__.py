"""What a config file may say: one schema per program, the loader that reads it, the help text."""
