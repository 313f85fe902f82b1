"""From a cohort to batches of crops."""
