"""Graph passes: from the exported graph to the deployed one, target-independent."""
