"""Are these two images the same? Embedders, each a named (weights, preprocessing, threshold), and what uses them."""
