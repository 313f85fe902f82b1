"""Does the encoder become better? Measured on held-out patients, beside controls."""
