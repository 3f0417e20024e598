"""What the folder of a study holds, read for reports and frames."""
