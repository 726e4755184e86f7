"""TinyWorld: a complete Stable-Diffusion-shaped model small enough to ship, and the scenes it was trained on."""
