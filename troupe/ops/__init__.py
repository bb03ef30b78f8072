"""What keeps machines in order: the doctor, clusters, pipelines of jobs."""
