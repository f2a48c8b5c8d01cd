"""One file per backend: the operations under their own names, outputs preallocated. See _dispatch.AUTO."""
