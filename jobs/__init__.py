"""Programs: each tells its story on a screen or two. `python jobs/<name>.py --help` documents it."""
