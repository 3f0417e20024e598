"""From settings to data, model, stages and options."""
