"""YAML in, graph out; every mistake with file:line:column."""
