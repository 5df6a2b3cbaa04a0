"""One file a stage: a frozen `Config` and `run(config)`, which writes the stage's folder and returns its summary."""
