"""Clinical variables and the similarity of patients."""
