"""The method: data, network, losses, training, decoding, recommenders and their evaluation."""
