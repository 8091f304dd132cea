"""A bundle inside other libraries."""
