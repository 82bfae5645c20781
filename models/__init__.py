"""The method: data, network, losses, training, contrastive decoding, recommenders and their evaluation."""
