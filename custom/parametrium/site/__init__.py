"""What runs at a hospital: its trainer, in a process of its own."""
