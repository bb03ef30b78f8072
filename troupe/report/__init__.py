"""What a person looks at: the report, live pages, trackers. They observe a run and never steer it."""
