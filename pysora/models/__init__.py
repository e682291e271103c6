"""The models: a diffusion transformer, a causal video VAE and a text encoder, each configured by its checkpoint."""
