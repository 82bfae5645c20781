"""The composite dataset of one target domain: what regeneration makes of a prepared dataset."""
