"""The part of a report about runs, as sections of HTML."""
