"""Sources that become a cohort."""
