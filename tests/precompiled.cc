// An empty test program: it exists to compile the headers that the others share.
