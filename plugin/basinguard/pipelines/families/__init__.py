"""What differs between the models that can be guarded: a file for each family of pipelines."""
