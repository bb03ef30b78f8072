"""A machine of chaos: kills and stops processes of running jobs at drawn moments, and looks at what the runs become."""
