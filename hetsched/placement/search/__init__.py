"""Better plans for more time: `improve` begins; `draft` searches plans of graphs, `costed` those of costed graphs, and `walk` is its inner loop."""
