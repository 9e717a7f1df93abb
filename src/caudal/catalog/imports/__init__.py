"""Price lists and catalogues of others, read into rows of ours. Pure: bytes in, rows and problems out."""
