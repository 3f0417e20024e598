"""Study files, budgets, and the plan of a study before anything trains."""
