"""The monitor's judgement, against a model of its own."""
