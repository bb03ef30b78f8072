"""vLLM as a child process: its arguments, its start, and a trial of what this machine's kernels can do."""
