"""The paper's tables and figures, made again on a data set of one's own."""
