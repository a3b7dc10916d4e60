"""The part of a report about a prepared data set, as sections of HTML."""
