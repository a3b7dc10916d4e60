"""The page of `in21k report`: the command, the page around sections, and what sections share."""
