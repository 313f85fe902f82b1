"""What shows that training goes wrong before any label does: where the model looks, and whether features collapse."""
