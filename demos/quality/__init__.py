"""What each episode of a dataset is worth for imitation: scores, one number of suspicion, and weights that training draws by."""
