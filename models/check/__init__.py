"""From raw interactions to a verdict: whether Taesar helps a recommender of one target, in one sentence."""
