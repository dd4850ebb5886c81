"""The packaged recipes: YAML files, each headed by its command, hardware and expected result."""
