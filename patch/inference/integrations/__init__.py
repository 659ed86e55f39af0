"""Integrations of packed layers into other libraries."""
