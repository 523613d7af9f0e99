"""Vision encoders in int8 without training: RegCache (cached prefix registers, deleted outlier tokens) in JAX."""
