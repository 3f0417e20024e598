"""What is measured of a trained model, and what is drawn from it."""
