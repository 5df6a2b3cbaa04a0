"""What a trained model is worth: metrics with intervals, calibration, and what best-of-n sampling would give."""
