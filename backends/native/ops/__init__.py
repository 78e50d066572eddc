"""The operators, a file a family; see registry.py for how one is written."""
