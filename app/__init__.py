"""The service and the command line around the method in ``models``."""
