"""The only files that import a training or sampling framework: each translates one into this package's own terms."""
