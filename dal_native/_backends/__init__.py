"""One file per backend: the operations under their own names, with preallocated outputs. See _dispatch.AUTO."""
