"""The whole way on a built-in model, ending in one HTML page."""
