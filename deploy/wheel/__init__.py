"""Makes the tree of the checkout one package, ``tidemark``, in a wheel: docs/releases.md."""
