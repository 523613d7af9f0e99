"""How an encoder like the bundled one is made: drawings, augmentation, a planted sink circuit, four phases of training.

    python -m regcache_jax.demo.recipe --data FOLDER --out FOLDER [--steps N]

docs/bundled_encoder.md says what was made with it, and what may not be concluded from that.
"""
