"""Training by rewards from probes that read a frozen copy, through TRL's GRPOTrainer."""
