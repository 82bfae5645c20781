"""How results leave: one file a format, named in one registry that the command line and jobs share."""
