"""Sequential recommenders behind one protocol; one file each."""
