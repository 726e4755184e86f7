"""Stock diffusers pipelines in this package's terms: loading, steering, sampling. Imports diffusers."""
