"""The training layers of each published method, one file a method."""
