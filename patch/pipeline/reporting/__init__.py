"""Tables and figures, made from the tidy frame, the records and the training curves alone."""
