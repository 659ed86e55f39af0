"""Tables, figures and pages, built from the tidy frame, the records and the training curves."""
