"""A task on a folder: read, begin, fit, measure, save, resume."""
